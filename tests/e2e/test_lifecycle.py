"""Starting, stopping, and going on: the process in bad company."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests import traffic
from tests.e2e.clients import export, http_connection, http_export
from tests.e2e.next_hop import NextHop
from tests.e2e.service_process import (
    ServiceProcess,
    free_ports,
    run_command,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartService

pytestmark = pytest.mark.e2e

QUICK_RETRY = {"initial_interval": "100ms", "max_interval": "500ms"}
DOORS = ("grpc", "http", "metrics")
_LEDGER = re.compile(
    r"accepted\W*(\d+).*?sent\W*(\d+).*?held\W*(\d+).*?dropped\W*(\d+)", re.IGNORECASE
)


def calls_request(count: int, session: str = "sess-1") -> bytes:
    """`count` tool calls of one session that end now, ids fresh in every call."""
    agent = traffic.Agent("support-agent", session=session, seed=time.perf_counter_ns())
    now_ns = time.time_ns()
    return traffic.request([agent.call(now_ns) for _ in range(count)])


def otlp_grpc(port: int) -> dict[str, object]:
    return {
        "endpoint": f"127.0.0.1:{port}",
        "tls": {"insecure": True},
        "retry_on_failure": QUICK_RETRY,
    }


def otlp_http(port: int) -> dict[str, object]:
    return {"endpoint": f"http://127.0.0.1:{port}", "retry_on_failure": QUICK_RETRY}


def exporter_to(transport: str, port: int) -> dict[str, object]:
    make = otlp_grpc if transport == "grpc" else otlp_http
    return {f"otlp_{transport}": make(port)}


class SteadyClient(threading.Thread):
    """Sends requests over one connection until the service no longer takes them."""

    SPANS = 5

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.accepted = port, 0

    def run(self) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        with http_connection(self.port) as connection:
            while True:
                body = calls_request(self.SPANS, session=self.name)
                try:
                    connection.request("POST", "/v1/traces", body, headers)
                    with connection.getresponse() as answer:
                        answer.read()
                except (OSError, http.client.HTTPException):
                    return
                if answer.status != 200:
                    return
                self.accepted += self.SPANS


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_sigterm_under_load_drains(
    transport: str, start_service: StartService, next_hop: NextHop
) -> None:
    """
    Scenario: four clients send without pause when SIGTERM arrives.
    Guarantees: exit code 0; every span whose request was answered with success is at the next hop;
    the last words are a ledger in which accepted = sent + held + dropped, nothing held or dropped.
    """
    port = next_hop.grpc_port if transport == "grpc" else next_hop.http_port
    service = start_service({"exporters": exporter_to(transport, port)})
    clients = [SteadyClient(service.http_port) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: all(client.accepted >= 20 for client in clients), "some load")
    assert service.stop() == 0
    for client in clients:
        client.join()
    told = sum(client.accepted for client in clients)
    match = _LEDGER.search(service.stdout + service.stderr)
    assert match is not None, service.stderr
    accepted, sent, held, dropped = map(int, match.groups())
    assert accepted == sent + held + dropped
    assert (held, dropped) == (0, 0)
    # A last answer may be lost on its way when the connection ends: taken over, but not told.
    assert told <= accepted <= told + len(clients) * SteadyClient.SPANS
    assert len(next_hop.spans()) == accepted


@pytest.mark.parametrize("door", DOORS)
def test_taken_port(door: str, tmp_path: Path) -> None:
    """
    Scenario: another program listens on one of the three addresses.
    Guarantees: exit code 3, and the message on standard error names the address.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = dict(zip(DOORS, free_ports(3), strict=True))
        ports[door] = taken.getsockname()[1]
        protocols = {name: {"endpoint": f"127.0.0.1:{ports[name]}"} for name in ("grpc", "http")}
        config = tmp_path / "config.yaml"
        sections = {
            "receivers": {"otlp": {"protocols": protocols}},
            "telemetry": {"metrics": {"endpoint": f"127.0.0.1:{ports['metrics']}"}},
            "storage": {"directory": str(tmp_path / "data")},
        }
        config.write_text(json.dumps(sections))
        ended = run_command("run", "--config", str(config))
    assert ended.returncode == 3, ended.stderr
    assert f"127.0.0.1:{ports[door]}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_configuration(tmp_path: Path) -> None:
    """
    Scenario: one limit is text, and one key is misspelt.
    Guarantees: `run` and `validate` end with exit code 2 and name file, line, key and value.
    """
    config = tmp_path / "config.yaml"
    config.write_text("detectors:\n  rate:\n    warn: plenty\n    blok: 5\n")
    for command in ("run", "validate"):
        ended = run_command(command, "--config", str(config))
        assert ended.returncode == 2, ended.stderr
        assert re.search(r"config\.yaml:3: detectors\.rate\.warn: .*plenty", ended.stderr)
        assert re.search(r"config\.yaml:4: detectors\.rate\.blok: ", ended.stderr)
        assert "Traceback" not in ended.stderr


def test_second_start_compiles_nothing(start_service: StartService, tmp_path: Path) -> None:
    """
    Scenario: the service starts with an empty kernel cache, judges a call, ends, and starts again.
    Guarantees: the first start says that it compiles; the second does not, and neither its start
    nor its first request adds to the cache or changes a file in it.
    """
    cache = tmp_path / "cache"

    def files() -> dict[str, int]:
        found = [path for path in cache.rglob("*.nb?") if path.is_file()]
        return {str(path): path.stat().st_mtime_ns for path in found}

    for round_number in range(2):
        before = files()
        service = start_service(XDG_CACHE_HOME=str(cache), NUMBA_CACHE_DIR="")
        compiled_at_start = files()
        assert export("http", service.http_port, calls_request(3))
        assert service.stop() == 0
        assert files() == compiled_at_start
        assert compiled_at_start
        assert (compiled_at_start == before) == (round_number == 1)
        assert ("compiling the kernels" in service.stderr) == (round_number == 0)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_next_hop_down_then_back(transport: str, start_service: StartService) -> None:
    """
    Scenario: nobody listens at the next hop while 40 requests come in; then it is there.
    Guarantees: every client gets success; everything is held, then delivered once; nothing dropped.
    """
    grpc_port, http_port = free_ports(2)
    port = grpc_port if transport == "grpc" else http_port
    service = start_service({"exporters": exporter_to(transport, port)})
    name = f"otlp_{transport}"
    for number in range(40):
        door = ("grpc", "http")[number % 2]
        into = service.grpc_port if door == "grpc" else service.http_port
        assert export(door, into, calls_request(2))
    assert service.metric("exporter_held_spans", exporter=name) == 80
    assert service.metric("exporter_sent_spans_total", exporter=name) == 0
    with NextHop(grpc_port, http_port) as hop:
        service.wait_sent(name, 80)
        assert len({span.span_id for span in hop.spans()}) == len(hop.spans()) == 80
        assert service.metric("exporter_held_spans", exporter=name) == 0
        assert service.metric("exporter_dropped_spans_total", exporter=name) == 0
        assert service.stop() == 0


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("door", ["grpc", "http"])
@pytest.mark.parametrize("signal", ["metrics", "logs"])
def test_other_signals_byte_for_byte(
    signal: str, door: str, compression: str, start_service: StartService, next_hop: NextHop
) -> None:
    """
    Scenario: metrics, and logs that tell of no call, with fields nobody knows and lengths written
    long, to two kinds of exporter.
    Guarantees: each reaches the next hop by each exporter exactly as it came, once.
    """
    exporters = {
        **exporter_to("grpc", next_hop.grpc_port),
        **exporter_to("http", next_hop.http_port),
    }
    for exporter in exporters.values():
        assert isinstance(exporter, dict)
        exporter["compression"] = compression
    service = start_service({"exporters": exporters})
    bodies = [b"\x0a\x84\x00\x12\x02\x12\x00", b"\x7a\x80\x50" + bytes(range(256)) * 40]
    port = service.grpc_port if door == "grpc" else service.http_port
    for body in bodies:
        assert export(door, port, body, signal)
    wait_until(lambda: len(next_hop.received(signal)) >= 4, f"{signal} at the next hop")
    assert service.stop() == 0
    for transport in ("grpc", "http"):
        came = [item.body for item in next_hop.received(signal) if item.transport == transport]
        assert sorted(came) == sorted(bodies)


def test_monitoring_pages(service: ServiceProcess) -> None:
    """
    Scenario: a running service is asked for its pages.
    Guarantees: alive and ready say 200, and a request makes the counters of its door move.
    """
    assert service.status("/healthz") == 200
    assert service.status("/readyz") == 200
    assert http_export(service.http_port, calls_request(7)) == 200
    assert service.metric("receiver_accepted_spans_total", transport="http") == 7
    assert service.metric("tool_calls_total") == 7
