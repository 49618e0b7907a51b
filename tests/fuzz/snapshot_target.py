"""What the fuzzer of the snapshot reader runs: bytes for a file, or for what stands in a good one.

    0, rest       the rest is the file
    1, edits      a good snapshot, written over in places: part, offset, how many bytes, what; with
                  checksums and sizes that fit, as whoever can write the file can make them

Either it is refused with a reason, or it is loaded and a processor goes on with it: bounds are
checked, and nothing may raise.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from otel_anomaly.episodes import EpisodeBook, read_pages
from otel_anomaly.handoff import Batch
from otel_anomaly.processor import Processor
from otel_anomaly.report import Reporter
from otel_anomaly.snapshot import PARTS
from otel_anomaly.snapshot_file import SnapshotRefused, write
from otel_anomaly.snapshots import Loaded, load
from otel_anomaly.telemetry import Telemetry
from tests.fleet_traffic import Delivery, Fleet
from tests.judge_rigs import KEEN
from tests.rig import Rig, Room
from tests.snapshot_rigs import joined, split
from tests.traffic import START_NS

FEW: dict[str, Any] = {
    "agents": 6,
    "services": 4,
    "sessions": 12,
    "traces": 16,
    "spans": 64,
    "moves": 32,
    "episodes": 6,
    "labels": 16,
    "agent_keep": "0s",
    "session_keep": "0s",
}
BYTES_MAX = 64
"""Written over at a time."""
_AFTER = 6
"""Requests judged with what was loaded."""


class Ground(NamedTuple):
    """What is changed, and what comes after it."""

    data: bytes
    after: list[Delivery]


@cache
def ground() -> Ground:
    """A good snapshot, with everything in it, and the requests that would have followed."""
    rig = Rig(**KEEN, limits=FEW)
    book = EpisodeBook(Reporter(rig.processor.texts), 5 * 10**9)
    rig.processor._on_judged = lambda columns, judgement: book.take(  # type: ignore[assignment]
        columns, judgement, rig.state
    )
    deliveries = Fleet(3).deliveries(26)
    cut = len(deliveries) - _AFTER
    for received_ns, signal, body in deliveries[:cut]:
        rig.offer(body, received_ns, signal)
    assert len(book) > 0
    path = _folder() / "good"
    write(path, rig.processor.snapshot(book.to_bytes(), START_NS))
    return Ground(path.read_bytes(), deliveries[cut:])


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="otel-anomaly-fuzz-", dir=_memory()))


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def edited(data: bytes, edits: bytes) -> bytes:
    """A snapshot written over in places, checksums right."""
    header, parts = split(data)
    at = 0
    while at + 5 <= len(edits):
        part = parts[edits[at] % len(PARTS)]
        offset = int.from_bytes(edits[at + 1 : at + 4], "little") % max(len(part), 1)
        count = edits[at + 4] % BYTES_MAX
        at += 5
        new = edits[at : at + count]
        part[offset : offset + len(new)] = new[: max(len(part) - offset, 0)]
        at += count
    return joined(header, parts)


def check(data: bytes) -> None:
    """The target. Fails when anything but a refusal comes of it."""
    if not data:
        return
    base = ground()
    check_file(data[1:] if data[0] % 2 == 0 else edited(base.data, data[1:]))


def check_file(data: bytes) -> bool:
    """A file is refused, or goes on like a good one. Returns whether it was loaded."""
    path = _folder() / "hostile"
    path.write_bytes(data)
    rig = Rig(**KEEN, limits=FEW)
    try:
        loaded = load(path, rig.config)
    except SnapshotRefused as refused:
        reason = str(refused)
    else:
        _go_on(rig, loaded)
        return True
    assert reason.isprintable()
    assert 0 < len(reason) < 500
    return False


def _go_on(rig: Rig, loaded: Loaded) -> None:
    """Judge what comes after, and take the next snapshot."""
    room = Room()
    processor = Processor(rig.config, room, Telemetry(), seed=loaded.seed, state=loaded.state)
    book = EpisodeBook(Reporter(processor.texts), 5 * 10**9)
    book.reopen(read_pages(loaded.book), processor.state)
    processor._on_judged = lambda columns, judgement: book.take(  # type: ignore[assignment]
        columns, judgement, processor.state
    )
    for received_ns, signal, body in ground().after:
        processor.process(Batch(body, signal, "grpc", received_ns))
        book.tick(processor.state, received_ns)
        assert processor.healthy, "what was loaded cannot be judged with"
    processor.sweep(ground().after[-1].received_ns + 10**13)
    path = _folder() / "next"
    write(path, processor.snapshot(book.to_bytes(), START_NS))
    with contextlib.suppress(SnapshotRefused):  # A number that was at its end is beyond it now.
        load(path, rig.config)
