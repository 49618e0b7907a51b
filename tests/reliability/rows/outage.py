"""The next hop is down for ten minutes at 2 000 requests a second, then it is back.

Nothing accepted is lost, memory stays under its limit throughout, the backlog drains, and what
comes in meanwhile is neither turned away nor waits behind it: the rate is kept, and the time from
client to next hop of requests sent during the drain is told beside that of the time before the
outage. The drain begins with the first request that arrives: until then an exporter that waits
between two attempts does not know that the next hop is back, and what comes in is of the outage.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tests.e2e.service_process import wait_until
from tests.reliability.children import Hop, Service, Watch
from tests.reliability.figures import Figure
from tests.reliability.trial import (
    HTTP,
    SMALL,
    Trial,
    compare,
    for_a_while,
    load_on,
    percentile,
    running,
    sections,
    settle,
)

if TYPE_CHECKING:
    from tests.e2e.service_process import Section

MIB = 1 << 20
MEMORY_LIMIT_MIB = 1024
RATE_SHORT, RATE_FULL = 200, 2_000
MISSING_PERCENT_MAX = 1.0
"""With more, the trial was of another rate than it says."""


def disk_queue(size: str = "32GiB") -> Section:
    """An exporter whose queue is on disk."""
    return {"sending_queue": {"storage": "disk", "disk_size": size}}


def run(trial: Trial, minutes: float = 10.0) -> list[Figure]:
    """Lost spans, peak memory, and how new traffic fares during the drain."""
    rate, down_s = trial.size(RATE_SHORT, RATE_FULL), trial.size(3, minutes * 60)
    limits = {"service": {"memory": {"limit": f"{MEMORY_LIMIT_MIB}MiB"}}}
    with (
        Hop(SMALL, trial.seed) as hop,
        running(trial.folder, sections(hop, exporter=disk_queue()) | limits) as service,
        load_on(service, rate, spans=SMALL, connections=32) as load,
        Watch(service.pid) as watch,
    ):
        for_a_while(trial.size(1.5, 20))
        hop.mood("down", "http")
        down_from_s = time.monotonic()
        for_a_while(down_s)
        backlog = service.ledger(HTTP).held
        hop.mood("ok", "http")
        back_s = time.monotonic()
        drained_s = _wait_drained(service, hop, backlog, trial)
        for_a_while(trial.size(1, 5))
        said, cores = load.stop(), watch.cpu_share()
        settle(service, HTTP, 300)
        known, taken = load.arrays(trial.folder), hop.arrays(trial.folder)
        ledger = service.ledger(HTTP)
    compared = compare(known, taken["http_counts"], SMALL)
    first_s = taken["http_first_s"]
    begun_s = float(first_s[first_s > back_s].min())
    before, during = _delays(known, first_s, down_from_s, begun_s, drained_s)
    return [
        Figure(
            "outage",
            "accepted spans lost",
            compared.lost + ledger.dropped,
            "spans",
            limit=0,
            details={
                "down, s": down_s,
                "requests": said["made"],
                "refused, then given up": said["given_up"] + said["refused"],
                "accepted spans": compared.accepted,
                "doubled": compared.doubled,
                "backlog, spans": backlog,
                "until it is heard that the next hop is back, s": begun_s - back_s,
                "drain, s": drained_s - begun_s,
            },
        ),
        _kept_up(trial, rate, said, known["sent_s"], cores),
        Figure(
            "outage",
            "peak of resident memory over the limit",
            watch.peak / MIB / MEMORY_LIMIT_MIB,
            "limits",
            limit=1,
            details={"limit, MiB": MEMORY_LIMIT_MIB, "peak, MiB": watch.peak // MIB},
        ),
        Figure(
            "outage",
            "client to next hop of new requests during the drain, median",
            percentile(during, 50),
            "s",
            details={
                "99th, s": percentile(during, 99),
                "before the outage, median, s": percentile(before, 50),
                "before, 99th, s": percentile(before, 99),
                "requests during the drain": during.size,
            },
        ),
    ]


def _kept_up(
    trial: Trial, rate: float, said: dict[str, int], sent_s: np.ndarray, cores: float
) -> Figure:
    """Whether the rate was what the trial says."""
    sent_s = sent_s[sent_s > 0]
    return Figure(
        "outage",
        "load that was due and never made: clients, next hop and service did not keep up",
        100 * said["skipped"] / max(said["made"] + said["skipped"], 1),
        "%",
        limit=MISSING_PERCENT_MAX if trial.full else None,
        details={
            "asked for, requests/s": rate,
            "made, requests/s": sent_s.size / max(float(np.ptp(sent_s)), 1e-9),
            "cores of the service": cores,
        },
    )


def _wait_drained(service: Service, hop: Hop, backlog: int, trial: Trial) -> float:
    """Until the backlog is delivered; the moment."""
    target = hop.totals()["spans"] + backlog
    seconds = trial.size(60, 1800)
    wait_until(lambda: hop.totals()["spans"] >= target, "the backlog to drain", seconds)
    wait_until(lambda: service.ledger(HTTP).held <= backlog / 20 + 20_000, "the drain", seconds)
    return time.monotonic()


def _delays(
    known: dict[str, np.ndarray], first_s: np.ndarray, down_s: float, begun_s: float, end_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from client to next hop: of requests before the outage, and during the drain."""
    size = min(first_s.size, known["sent_s"].size)
    sent_s, there_s = known["sent_s"][:size], first_s[:size]
    arrived = there_s > 0
    before = arrived & (sent_s < down_s - 1)
    during = arrived & (sent_s > begun_s) & (sent_s < end_s)
    return (there_s - sent_s)[before], (there_s - sent_s)[during]
