"""SIGHUP to the real process under load: nothing refused, nothing lost, a bad file harmless."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.next_hop import NextHop
from tests.e2e.service_process import ServiceProcess, merged, wait_until
from tests.e2e.test_lifecycle import SteadyClient, exporter_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartService

pytestmark = pytest.mark.e2e


def reload(service: ServiceProcess, text: str) -> dict[str, int]:
    """Replace the file, send SIGHUP, wait for it to be done. Returns reloads by result."""
    before = results(service)
    file = service.folder / "config.yaml"
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)
    os.kill(service.pid, signal.SIGHUP)
    wait_until(lambda: sum(results(service).values()) > sum(before.values()), "a reload")
    return results(service)


def health_of(service: ServiceProcess) -> dict[str, Any]:
    """What `/healthz` says."""
    url = f"http://127.0.0.1:{service.metrics_port}/healthz"
    with urllib.request.urlopen(url, timeout=10) as answer:
        health: dict[str, Any] = json.load(answer)
    return health


def results(service: ServiceProcess) -> dict[str, int]:
    """How often reloads had which result."""
    return {
        result: int(service.metric("config_reloads_total", result=result))
        for result in ("applied", "unchanged", "refused")
    }


@pytest.fixture
def hops() -> Iterator[list[NextHop]]:
    """Two next hops."""
    with NextHop() as one, NextHop() as other:
        yield [one, other]


def test_reloads_under_load(start_service: StartService, hops: list[NextHop]) -> None:
    """
    Scenario: four clients send without pause; twelve times SIGHUP: another next hop, other limits
    of queue and detectors, nonsense, a certificate that is not there, in turn.
    Guarantees: no request is refused and no connection is cut; the bad files are told by health and
    metrics while readiness stays; the two next hops together have every span that was accepted.
    """
    sections = {"exporters": exporter_to("http", hops[0].http_port)}
    # How fast it judges does not matter here, and so nothing needs to be compiled.
    service = start_service(sections, NUMBA_DISABLE_JIT="1")
    good = json.loads((service.folder / "config.yaml").read_text())
    clients = [SteadyClient(service.http_port) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: all(client.accepted >= 20 for client in clients), "some load")
    for number in range(12):
        told = [client.accepted for client in clients]
        text, refused = _next_file(good, number, hops)
        before = results(service)["refused"]
        assert reload(service, text)["refused"] == before + refused
        health = health_of(service)
        assert ("configuration" in health["problems"]) is bool(refused)
        assert service.status("/readyz") == 200
        wait_until(partial(_all_above, clients, told), "every client to go on")
    assert service.stop() == 0
    for client in clients:
        client.join()
    accepted = sum(client.accepted for client in clients)
    arrived = len(hops[0].spans()) + len(hops[1].spans())
    assert accepted <= arrived <= accepted + len(clients) * SteadyClient.SPANS
    assert hops[1].spans()
    assert "Traceback" not in service.stderr


def _all_above(clients: list[SteadyClient], told: list[int]) -> bool:
    """Whether each client has had more accepted since."""
    return all(client.accepted > was for client, was in zip(clients, told, strict=True))


def _next_file(good: dict[str, Any], number: int, hops: list[NextHop]) -> tuple[str, int]:
    """What the file says next, and how many refusals that makes."""
    match number % 4:
        case 0:
            hop = hops[(number // 4 + 1) % 2]
            return json.dumps(good | {"exporters": exporter_to("http", hop.http_port)}), 0
        case 1:
            return "detectors: [", 1
        case 2:
            limits = {"sending_queue": {"num_consumers": 1 + number, "queue_size": "64MiB"}}
            section = merged(exporter_to("http", hops[1].http_port)["otlp_http"], limits)
            detectors = {"rate": {"warn": 5 + number}}
            changed = {"exporters": {"otlp_http": section}, "detectors": detectors}
            return json.dumps(good | changed), 0
        case _:
            bad = {"endpoint": "h:1", "tls": {"ca_file": "/nowhere/ca.pem"}}
            return json.dumps(good | {"exporters": {"otlp_grpc/bad": bad}}), 1
