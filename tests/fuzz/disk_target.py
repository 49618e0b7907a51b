"""What the fuzzer tries to break in the disk queue: whatever its files hold, it opens and goes on.

The first byte chooses the file, the next two a place in it; the rest is written there over a sound
queue of three records. So the fuzzer starts behind the checksums that it could not guess.
"""

from __future__ import annotations

import random

from otel_anomaly.exporters.disk_format import DONE, TRIED
from otel_anomaly.handoff import Payload, Signal
from tests.disk_world import SimDisk, append, store_on

SENT = [
    Payload(b"first" * 9, Signal.TRACES, 2),
    Payload(b"\xf5oar" * 20, Signal.LOGS, 1),
    Payload(b"", Signal.METRICS, 1),
]


def check(data: bytes) -> None:
    """AssertionError where a damaged queue gives something that nobody sent, or is not usable."""
    if not data:
        return
    disk = damaged(data)
    store = store_on(disk)
    recovered = store.open()
    assert 0 <= recovered.doubtful_spans <= recovered.spans
    places = []
    for _ in range(9):
        loaded = store.load(100)
        places += [(DONE, place, 0) for place, _ in loaded.records]
        assert all(record.payload in SENT for _, record in loaded.records)
        assert loaded.lost_requests >= 0
        assert loaded.lost_spans >= 0
    assert store.unread == 0
    assert len(places) == len({place.number for _, place, _ in places}) == store.left <= len(SENT)
    places += [(DONE, place, 0) for place in append(store, SENT, kept=True)]
    store.mark(places)
    assert store.left == 0
    store.close()
    assert disk.open_files == 0
    assert all(name.endswith(".bad") for name in disk.nodes)


def damaged(data: bytes) -> SimDisk:
    """A queue of three records, one sent and one tried, with `data` written into one file."""
    disk = SimDisk(random.Random(7))
    store = store_on(disk)
    store.open()
    first, second, _ = append(store, SENT, kept=True)
    store.mark([(TRIED, first, 2), (DONE, first, 2), (TRIED, second, 0)])
    if data[0] & 2:
        store.close()
    disk.kill()
    ending = ".ack" if data[0] & 1 else ".seg"
    content = next(node.data for name, node in disk.nodes.items() if name.endswith(ending))
    place = int.from_bytes(data[1:3], "little") % 600
    if data[0] & 4:
        del content[place:]
    content.extend(bytes(max(place - len(content), 0)))
    content[place : place + len(data) - 3] = data[3:]
    return disk
