"""10 000 connections idle and 1 000 slow writers, on one core: what normal clients notice of them.

The service is pinned to one core; the clients and the next hop run on the others. The same load is
measured without the crowd, with it, and without it again: the quiet figure is the mean of the two.
What slow writers do that all write in the same instant, once a second, is told beside it.
"""

from __future__ import annotations

import numpy as np
import psutil  # type: ignore[import-untyped]

from tests.bench.processes import Child
from tests.reliability.children import Hop, Load, Service, Watch
from tests.reliability.figures import Figure
from tests.reliability.generator import ACCEPTED, Plan
from tests.reliability.trial import SMALL, Trial, for_a_while, percentile, running, sections

LIMIT = 2.0


class Crowd(Child):
    """Connections that do nothing, and clients that write a byte now and then."""

    def __init__(self, http_port: int, grpc_port: int) -> None:
        super().__init__("tests.reliability.crowd", str(http_port), str(grpc_port))


def run(trial: Trial) -> list[Figure]:
    """p99 with the crowd over p99 without."""
    idle, slow = int(trial.size(400, 10_000)), int(trial.size(50, 1_000))
    with Hop(SMALL, trial.seed) as hop, running(trial.folder, sections(hop)) as service:
        if (psutil.cpu_count() or 1) > 1:
            service.pin(0)
        quiet_before = _answers(trial, service)
        with Crowd(service.http_port, service.grpc_port) as crowd:
            told = crowd.ask(do="gather", idle=idle, slow=slow)
            with Watch(service.pid) as watch:
                crowded = _answers(trial, service)
                crowd.ask(do="turns", value=1)
                in_step = _answers(trial, service)
            left = crowd.ask(do="count")
            alive = service.status("/readyz") == 200
        quiet_after = _answers(trial, service)
    quiet = (percentile(quiet_before, 99) + percentile(quiet_after, 99)) / 2
    return [
        Figure(
            "idle",
            "99th percentile of normal clients with the crowd over without it",
            percentile(crowded, 99) / quiet if quiet else float("inf"),
            "times",
            limit=LIMIT if trial.full else None,
            details={
                "with, ms": percentile(crowded, 99) * 1e3,
                "with, all slow writers in the same instant, ms": percentile(in_step, 99) * 1e3,
                "without, before, ms": percentile(quiet_before, 99) * 1e3,
                "without, after, ms": percentile(quiet_after, 99) * 1e3,
                "medians, ms": f"{percentile(crowded, 50) * 1e3:.3g} with, "
                f"{percentile(quiet_before, 50) * 1e3:.3g} without",
                "idle": told["idle"],
                "slow writers": told["slow"],
                "idle at the end": left["idle"],
                "slow writers cut off, and there again": left["cut"],
                "resident, MiB": watch.peak >> 20,
            },
        ),
        Figure(
            "idle",
            "requests of normal clients that were not accepted, or the service not ready",
            _failed(crowded) + _failed(in_step) + (not alive),
            "requests",
            limit=0,
        ),
    ]


def _plan(trial: Trial, service: Service) -> Plan:
    rate = trial.size(100, 300)
    return Plan("http", service.http_port, rate, spans=SMALL, connections=16)


def _answers(trial: Trial, service: Service) -> np.ndarray:
    """Seconds until each answer; NaN for none."""
    with Load(_plan(trial, service)) as load:
        for_a_while(trial.size(2, 30))
        load.stop()
        known = load.arrays(trial.folder)
    answers = np.where(known["status"] == ACCEPTED, known["answer_s"].astype(float), np.nan)
    return answers[trial_start(answers) :]


def trial_start(answers: np.ndarray) -> int:
    """The first tenth is for connections to be made."""
    return answers.size // 10


def _failed(answers: np.ndarray) -> int:
    return int(np.isnan(answers).sum())
