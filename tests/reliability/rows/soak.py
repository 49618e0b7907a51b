"""Soak at half load, every call of a new agent and a new session: resident memory stays flat.

The slope is that of a straight line through the samples after the warm-up, in percent of the mean
an hour. The warm-up ends when every table of identities is full, or after a third of the time.
"""

from __future__ import annotations

import numpy as np

from tests.reliability.children import Hop, Watch
from tests.reliability.figures import Figure
from tests.reliability.rows.latency import _capacity
from tests.reliability.trial import (
    HTTP,
    LARGE,
    Trial,
    compare,
    for_a_while,
    load_on,
    running,
    sections,
    settle,
)

LIMIT_PERCENT_PER_HOUR = 1.0


def run(trial: Trial, minutes: float = 60.0) -> list[Figure]:
    """Percent an hour."""
    seconds = trial.size(4, minutes * 60)
    with Hop(LARGE, trial.seed) as hop, running(trial.folder, sections(hop)) as service:
        rate = _capacity(trial, "http", service.http_port) / 2
        before = service.ledger(HTTP).accepted
        with (
            load_on(service, rate, spans=LARGE, all_new=True) as load,
            Watch(service.pid, 0.5) as watch,
        ):
            for_a_while(seconds)
            said = load.stop()
            settle(service, HTTP)
            compared = compare(
                load.arrays(trial.folder), hop.arrays(trial.folder)["http_counts"], LARGE
            )
        ledger = service.ledger(HTTP)
        evicted = service.metric("entities_evicted_total", scope="agent")
        agents = service.metric("entities", scope="agent")
    times, sizes = np.array(watch.samples).T
    warm = times > times[0] + seconds / 3
    return [
        Figure(
            "soak",
            "slope of resident memory after the warm-up",
            slope_percent_per_hour(times[warm], sizes[warm]),
            "%/h",
            limit=LIMIT_PERCENT_PER_HOUR if trial.full else None,
            details={
                "minutes": seconds / 60,
                "requests/s": rate,
                "new identities/s": rate * LARGE,
                "agents held": agents,
                "agents evicted": evicted,
                "resident at the start, MiB": int(sizes[0]) >> 20,
                "after the warm-up, MiB": int(sizes[warm][0]) >> 20,
                "at the end, MiB": int(sizes[-1]) >> 20,
                "peak, MiB": watch.peak >> 20,
            },
        ),
        Figure(
            "soak",
            "accepted spans that did not arrive",
            compared.lost + abs(ledger.accepted - ledger.sent),
            "spans",
            limit=0,
            details={"accepted": ledger.accepted - before, "requests": said["made"]},
        ),
    ]


def slope_percent_per_hour(times: np.ndarray, sizes: np.ndarray) -> float:
    """Of a straight line through the samples."""
    if sizes.size < 2:
        return 0.0
    slope = float(np.polyfit(times - times[0], sizes, 1)[0])
    return slope * 3600 / float(sizes.mean()) * 100
