"""SIGTERM under full load: accepted = sent + on disk + reported, within the drain deadline.

The next hop is as fast as it can be, slow, or down; the load goes on over the stop. The last words
of the process are held against what the clients were told and what the next hop has.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from tests.e2e.service_process import wait_until
from tests.reliability.children import Hop, Service
from tests.reliability.figures import Figure
from tests.reliability.rows.outage import disk_queue
from tests.reliability.trial import (
    HTTP,
    SMALL,
    Compared,
    Trial,
    compare,
    for_a_while,
    load_on,
    running,
    sections,
)

DRAIN_SHORT_S, DRAIN_S = 2.0, 5.0
BESIDE_S = 0.5
"""For the sinks to be closed and the last words to be said, on a machine that has more to do."""
DOWN = {"kind": "down"}
HOPS: dict[str, dict[str, Any]] = {
    "quick": {"kind": "ok"},
    "slow": {"kind": "slow", "s": 1.0},
    "down": DOWN,
    "down, queue on disk": DOWN,
}


def run(trial: Trial) -> list[Figure]:
    """Spans that nobody accounts for: none."""
    names = [*HOPS] * int(trial.size(1, 5))
    stops = [_one(trial, index, name) for index, name in enumerate(names)]
    told = [f"{name}: {one.words}" for name, one in zip(names, stops, strict=True)]
    rate = trial.size(300, 2000)
    return [
        Figure(
            "sigterm",
            "accepted spans that are neither sent nor reported",
            sum(one.unaccounted for one in stops),
            "spans",
            limit=0,
            details={"stops": len(names), "requests a second": rate, "last words": "; ".join(told)},
        ),
        Figure(
            "sigterm",
            "longest time from SIGTERM to the last words",
            max(one.told_s for one in stops),
            "s",
            limit=DRAIN_S + BESIDE_S if trial.full else None,
            details={
                "drain_timeout, s": trial.size(DRAIN_SHORT_S, DRAIN_S),
                "to the end of the process, s": max(one.ended_s for one in stops),
            },
        ),
    ]


class Stop(NamedTuple):
    """One stop."""

    unaccounted: int
    """Spans."""
    told_s: float
    """From SIGTERM to the last words."""
    ended_s: float
    """To the end of the process: the interpreter takes itself apart."""
    words: str


def _one(trial: Trial, index: int, name: str) -> Stop:
    """One stop under load."""
    folder = trial.folder / str(index)
    exporter = disk_queue() if "disk" in name else {}
    drain_s = trial.size(DRAIN_SHORT_S, DRAIN_S)
    with Hop(SMALL, trial.seed) as hop:
        config = sections(hop, exporter=exporter) | {
            "service": {"drain_timeout": f"{drain_s:.0f}s"}
        }
        with running(folder, config) as service:
            transport = ("http", "grpc")[(index + index // len(HOPS)) % 2]
            rate, plan = trial.size(300, 2000), {"connections": 32, "patience_s": 1.0}
            with load_on(service, rate, transport, spans=SMALL, **plan) as load:
                hop.ask(do="mood", transport="http", mood=HOPS[name])
                for_a_while(trial.size(1.5, 5.0))
                began_s = time.monotonic()
                service.ask_to_stop()
                wait_until(lambda: "\nstopped: " in service.stderr, "its last words")
                told_s = time.monotonic() - began_s
                wait_until(lambda: service.exit_code is not None, "its end")
                assert service.exit_code == 0, service.stderr
                ended_s = time.monotonic() - began_s
                load.stop()
                compared = compare(load.arrays(folder), hop.arrays(folder)["http_counts"], SMALL)
    words = service.last_words()[HTTP]
    return Stop(_missing(words, compared, service), told_s, ended_s, _sentence(service))


def _missing(words: dict[str, int], compared: Compared, service: Service) -> int:
    """Spans that the last words do not account for."""
    accepted = words.pop("accepted")
    assert accepted >= compared.accepted, f"fewer counted than told OK:\n{service.stderr}"
    reported = sum(number for word, number in words.items() if word not in {"sent", "recovered"})
    unexplained = max(compared.lost - reported, 0)
    return abs(accepted + words.get("recovered", 0) - reported - words["sent"]) + unexplained


def _sentence(service: Service) -> str:
    line = next(line for line in service.stderr.splitlines() if line.startswith("stopped:"))
    return line.partition(f"{HTTP}: ")[2]
