"""The disk queue of the real process: killed under load, started again, and nothing is lost."""

from __future__ import annotations

import http.client
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import http_connection
from tests.e2e.next_hop import NextHop
from tests.e2e.service_process import ServiceProcess, free_ports, wait_until
from tests.e2e.test_lifecycle import calls_request

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

KILLS = 3
SPANS = 5


class Client(threading.Thread):
    """Sends requests one after the other; knows how many were answered with success."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(name=name)
        self.port, self.accepted, self.sent = port, 0, 0

    def run(self) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        with http_connection(self.port) as connection:
            while True:
                body = calls_request(SPANS, session=f"{self.name}-{self.sent}")
                self.sent += 1
                try:
                    connection.request("POST", "/v1/traces", body, headers)
                    with connection.getresponse() as answer:
                        answer.read()
                except (OSError, http.client.HTTPException):
                    return
                self.accepted += answer.status == 200


def busy(clients: list[Client]) -> bool:
    """Whether each has had some answers."""
    return all(client.accepted >= 10 for client in clients)


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_killed_under_load(fsync: str, tmp_path: Path) -> None:
    """
    Scenario: clients send without pause, the next hop is away at first; the process is killed three
    times with SIGKILL and started again; then the next hop is there.
    Guarantees: every start succeeds and says what it found; each span whose request was answered
    with success arrives; those that arrive twice were under way when the process died.
    """
    hop_ports = free_ports(2)
    sections = {
        "exporters": {
            "otlp_http": {
                "endpoint": f"http://127.0.0.1:{hop_ports[1]}",
                "sending_queue": {"storage": "disk", "fsync": fsync},
                "retry_on_failure": {"initial_interval": "100ms", "max_interval": "200ms"},
            }
        },
    }
    accepted = 0
    # Kernels as plain Python: their speed is nothing to this test, three starts are.
    service = ServiceProcess(tmp_path / "service", sections, NUMBA_DISABLE_JIT="1")
    for number in range(KILLS):
        service.launch() if number else None
        service.wait_ready()
        found = service.metric("exporter_recovered_spans_total", exporter="otlp_http")
        assert found >= accepted
        clients = [Client(service.http_port, f"c{number}-{index}") for index in range(3)]
        for client in clients:
            client.start()
        wait_until(partial(busy, clients), "some load")
        service.kill()
        for client in clients:
            client.join()
        accepted += sum(client.accepted for client in clients) * SPANS
    with NextHop(*hop_ports) as hop:
        service.launch()
        service.wait_ready()
        recovered = int(service.metric("exporter_recovered_spans_total", exporter="otlp_http"))
        doubtful = int(
            service.metric("exporter_recovered_doubtful_spans_total", exporter="otlp_http")
        )
        assert recovered >= accepted
        service.wait_sent("otlp_http", recovered)
        arrived = [span.span_id for span in hop.spans()]
        assert len(set(arrived)) == recovered
        assert len(arrived) - len(set(arrived)) <= doubtful
        assert service.metric("exporter_dropped_spans_total", exporter="otlp_http") == 0
        assert service.stop() == 0
        assert f"recovered {recovered} = sent {recovered}" in service.stdout + service.stderr
    assert [path.name for path in (service.data / "queue" / "otlp_http").iterdir()] == ["lock"]
