"""kill -9 at a random moment under load, restart, again and again: disk queue and snapshots on.

The load goes on throughout: requests that are cut off are sent again, as clients do. At the end
every span whose client heard OK is at the next hop; copies beyond what the clients themselves sent
again, or the next hop took without a word, are counted, and bounded by what may be under way at a
kill. What the service says at each start may be sent twice is told beside them.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from functools import partial

from tests.e2e.service_process import merged
from tests.reliability.children import Hop, Load, Service
from tests.reliability.figures import Figure
from tests.reliability.rows.outage import disk_queue
from tests.reliability.trial import (
    HTTP,
    SMALL,
    Trial,
    compare,
    load_on,
    running,
    sections,
    settle,
)

CONSUMERS = 4
MERGED_BYTES = 64 << 10
SPAN_BYTES = 530
"""As the load sends it: a merged request holds at most so many spans."""


@dataclass
class Starts:
    """What the starts after the kills brought."""

    failed: int = 0
    slowest_s: float = 0.0
    recovered: int = 0
    """Spans found on disk."""
    doubtful: int = 0
    """Of these, spans that the service says may have been sent already."""
    bad_segments: int = 0
    snapshots_refused: int = 0
    cold: int = 0
    """Starts without a snapshot."""

    def note(self, service: Service, seconds: float) -> None:
        """A start that came to its end."""
        self.slowest_s = max(self.slowest_s, seconds)
        told = partial(service.metric, missing=0.0, exporter=HTTP)
        self.recovered += int(told("exporter_recovered_spans_total"))
        self.doubtful += int(told("exporter_recovered_doubtful_spans_total"))
        self.bad_segments += int(told("exporter_bad_segments_total"))
        refused = service.metric("state_snapshots_total", missing=0.0, result="refused")
        self.snapshots_refused += int(refused)
        self.cold += "cold start" in service.stderr


def run(trial: Trial, kills: int = 200) -> list[Figure]:
    """Lost spans, failed starts, duplicates."""
    count = kills if trial.full else 3
    rate = trial.size(100, 500)
    queue = {"num_consumers": CONSUMERS, "batch": {"max_size": f"{MERGED_BYTES}"}}
    exporter = merged(disk_queue(), {"sending_queue": {"fsync": "always", **queue}})
    learned = {"storage": {"snapshots": {"interval": "1s"}}}
    with (
        Hop(SMALL, trial.seed) as hop,
        running(trial.folder, sections(hop, exporter=exporter) | learned) as service,
        load_on(service, rate, spans=SMALL, patience_s=600.0) as load,
    ):
        starts = _kill_often(trial, count, hop, service, load)
        said = load.stop()
        settle(service, HTTP, 300)
        known, taken = load.arrays(trial.folder), hop.arrays(trial.folder)
        ledger = service.ledger(HTTP)
    compared = compare(known, taken["http_counts"], SMALL, taken["http_forgotten"])
    return [
        Figure(
            "kills",
            "accepted spans lost",
            compared.lost,
            "spans",
            limit=0,
            details={
                "kills": count,
                "requests/s": rate,
                "accepted spans": compared.accepted,
                "cut off, sent again": int((known["cuts"] > 0).sum()),
                "recovered after starts, spans": starts.recovered,
                "segments set aside": starts.bad_segments,
                "dropped by the last process": ledger.dropped,
                "given up by clients": said["given_up"] + said["unknown"],
            },
        ),
        Figure(
            "kills",
            "failed starts, and snapshots refused",
            starts.failed + starts.snapshots_refused,
            "starts",
            limit=0,
            details={"slowest, s": starts.slowest_s, "without a snapshot": starts.cold},
        ),
        Figure(
            "kills",
            "copies at the next hop that no client sent, per kill",
            compared.doubled / count,
            "spans",
            limit=CONSUMERS * MERGED_BYTES // SPAN_BYTES,
            details={
                "the bound": f"{CONSUMERS} requests under way of {MERGED_BYTES} bytes",
                "copies": compared.doubled,
                "told by the service as possible copies": starts.doubtful,
                "taken by the next hop without a word": int(taken["http_forgotten"].sum()),
            },
        ),
    ]


def _kill_often(trial: Trial, count: int, hop: Hop, service: Service, load: Load) -> Starts:
    rng = random.Random(trial.seed)
    starts = Starts()
    for number in range(count):
        if number % 20 == 19:
            print(f"kills: {number + 1} of {count}", file=sys.stderr, flush=True)
        # The next hop is away now and then, so that there is something on disk.
        hop.mood(rng.choice(("ok", "ok", "down", "forget")), "http")
        time.sleep(rng.random() * 1.5)
        service.kill()
        began_s = time.monotonic()
        service.launch()
        try:
            service.wait_ready()
        except AssertionError as error:
            print(f"kills: a start failed: {error}", file=sys.stderr)
            starts.failed += 1
            service.kill()
            service.launch()
            service.wait_ready()
        starts.note(service, time.monotonic() - began_s)
    hop.mood("ok", "http")
    assert load.ask(do="totals")["accepted"] > 0
    return starts
