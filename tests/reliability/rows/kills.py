"""kill -9 at a random moment under load, restart, again and again, with the disk queue on.

The load goes on throughout: requests that are cut off are sent again, as clients do. At the end
every span whose client heard OK is at the next hop; copies beyond what the clients themselves sent
again are counted, and bounded by what may be under way at a kill.
"""

from __future__ import annotations

import random
import time

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


def run(trial: Trial, kills: int = 200) -> list[Figure]:
    """Lost spans, failed starts, duplicates."""
    count = kills if trial.full else 3
    rate = trial.size(100, 500)
    queue = {"num_consumers": CONSUMERS, "batch": {"max_size": f"{MERGED_BYTES}"}}
    exporter = merged(disk_queue(), {"sending_queue": {"fsync": "always", **queue}})
    with (
        Hop(SMALL, trial.seed) as hop,
        running(trial.folder, sections(hop, exporter=exporter)) as service,
        load_on(service, rate, spans=SMALL, patience_s=600.0) as load,
    ):
        failed, recovered, slowest_s = _kill_often(trial, count, hop, service, load)
        said = load.stop()
        settle(service, HTTP, 300)
        known, taken = load.arrays(trial.folder), hop.arrays(trial.folder)
        ledger = service.ledger(HTTP)
    compared = compare(known, taken["http_counts"], SMALL)
    per_kill = CONSUMERS * MERGED_BYTES // SPAN_BYTES
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
                "recovered after starts, spans": recovered,
                "dropped by the last process": ledger.dropped,
                "given up by clients": said["given_up"] + said["unknown"],
            },
        ),
        Figure(
            "kills", "failed starts", failed, "starts", limit=0, details={"slowest, s": slowest_s}
        ),
        Figure(
            "kills",
            "copies at the next hop that no client sent, per kill",
            compared.doubled / count,
            "spans",
            limit=per_kill,
            details={"the bound": f"{CONSUMERS} requests under way of {MERGED_BYTES} bytes"},
        ),
    ]


def _kill_often(
    trial: Trial, count: int, hop: Hop, service: Service, load: Load
) -> tuple[int, int, float]:
    """(failed starts, spans found on disk at starts, slowest start in seconds)."""
    rng = random.Random(trial.seed)
    failed, recovered, slowest_s = 0, 0, 0.0
    for _ in range(count):
        # The next hop is away now and then, so that there is something on disk.
        hop.mood(rng.choice(("ok", "ok", "down", "forget")), "http")
        time.sleep(rng.random() * trial.size(1.5, 3.0))
        service.kill()
        began_s = time.monotonic()
        service.launch()
        try:
            service.wait_ready()
        except AssertionError as error:
            print(f"kills: a start failed: {error}")
            failed += 1
            service.launch()
            service.wait_ready()
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        recovered += int(
            service.metric("exporter_recovered_spans_total", missing=0.0, exporter=HTTP)
        )
    hop.mood("ok", "http")
    assert load.ask(do="totals")["accepted"] > 0
    return failed, recovered, slowest_s
