"""Added latency at half load, 50-span requests, beside a proxy that only echoes bytes.

The capacity is measured first, closed loop, on this machine as it is now; half of it is the load.
"Added" is the time from the request to its answer: the client waits for nothing else. The echo
proxy answers when the next hop has answered it, so its figure holds one hop more.
"""

from __future__ import annotations

import time

import numpy as np

from tests.bench.processes import Peer
from tests.reliability.children import Hop, Load, Service, Watch
from tests.reliability.figures import Figure
from tests.reliability.generator import ACCEPTED, Plan
from tests.reliability.trial import (
    HTTP,
    LARGE,
    Trial,
    for_a_while,
    percentile,
    running,
    sections,
    settle,
)

LIMIT_MS = 10.0
PROBE_RATE = 20_000.0
"""More than anything here can do: the connections are always busy."""
TRANSPORTS = ("http", "grpc")


def run(trial: Trial) -> list[Figure]:
    """The 99th percentile of the answer, by transport."""
    with Hop(LARGE, trial.seed) as hop, running(trial.folder, sections(hop)) as service:
        return [_measured(trial, hop, service, transport) for transport in TRANSPORTS]


def _measured(trial: Trial, hop: Hop, service: Service, transport: str) -> Figure:
    port = service.http_port if transport == "http" else service.grpc_port
    seconds = trial.size(2, 30)
    capacity = _capacity(trial, transport, port)
    settle(service, HTTP)
    with Watch(service.pid) as watch:
        answers, load = _half_load(trial, transport, port, capacity, seconds)
        cpu = watch.cpu_share()
    settle(service, HTTP)
    upstream = f"127.0.0.1:{hop.http_port if transport == 'http' else hop.grpc_port}"
    with Peer(f"{transport}-echo", "--upstream", upstream) as echo:
        echoed, _ = _half_load(trial, transport, echo.ports["port"], capacity, seconds)
    delivered = _delivery(trial, hop, load) if transport == "http" else None
    return Figure(
        "latency",
        f"request to answer at half load, 50 spans, {transport}, 99th percentile",
        percentile(answers, 99) * 1e3,
        "ms",
        limit=LIMIT_MS if trial.full else None,
        details={
            "median, ms": percentile(answers, 50) * 1e3,
            "echo proxy median, ms": percentile(echoed, 50) * 1e3,
            "echo proxy 99th, ms": percentile(echoed, 99) * 1e3,
            "requests/s": capacity / 2,
            "spans/s": capacity / 2 * LARGE,
            "CPU of the service, cores": cpu,
            "requests": answers.size,
            **({"to the next hop, median, ms": delivered} if delivered else {}),
        },
    )


def _capacity(trial: Trial, transport: str, port: int) -> float:
    """Requests a second when eight connections are always busy."""
    seconds = trial.size(1.5, 5)
    with Load(_plan(transport, port, PROBE_RATE, connections=8)) as load:
        for_a_while(1.0)
        before, began_s = load.ask(do="totals")["accepted"], time.monotonic()
        for_a_while(seconds)
        done = load.ask(do="totals")["accepted"] - before
        rate = done / (time.monotonic() - began_s)
        load.ask(do="rate", value=0)
        load.stop()
    assert rate > 0, "nothing was accepted"
    return float(rate)


def _plan(transport: str, port: int, rate: float, connections: int) -> Plan:
    return Plan(transport, port, rate, spans=LARGE, connections=connections, requests_max=2_000_000)


def _half_load(
    trial: Trial, transport: str, port: int, capacity: float, seconds: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Seconds until each answer, without the first second; and all that is known."""
    with Load(_plan(transport, port, capacity / 2, connections=16)) as load:
        for_a_while(1.0 + seconds)
        load.stop()
        known = load.arrays(trial.folder)
    warm = known["sent_s"] > known["sent_s"].min() + 1.0
    return known["answer_s"][(known["status"] == ACCEPTED) & warm].astype(float), known


def _delivery(trial: Trial, hop: Hop, load: dict[str, np.ndarray]) -> float | None:
    """Median time from the client to the next hop: batching included."""
    first_s = hop.arrays(trial.folder)["http_first_s"][: load["sent_s"].size]
    sent_s = load["sent_s"][: first_s.size]
    there = first_s > sent_s  # Numbers of the probe, earlier, are the same.
    return percentile((first_s - sent_s)[there], 50) * 1e3 if there.any() else None
