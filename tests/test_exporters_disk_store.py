"""The log on disk against a list: crashes at any byte, failing and full disks, by seed.

`SIM_SEEDS=500` plays more worlds, `SIM_SEED=17` replays one.
"""

from __future__ import annotations

import errno
import itertools
import random
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.exporters.disk_format import DONE, TRIED
from otel_anomaly.exporters.disk_segment import spans_of
from otel_anomaly.exporters.disk_store import READ_FAILURES_MAX
from otel_anomaly.handoff import Payload, Signal
from tests.disk_world import SimDisk, append, bodies, store_on
from tests.simulation.seeds import seeds

if TYPE_CHECKING:
    from otel_anomaly.exporters.disk_store import DiskStore, Place

SIZES = (0, 1, 30, 300, 3_000, 30_000)
FAULTS = ("write", "sync", "reserve", "truncate", "open", "remove", "rename", "sync_directory")


def payload(number: int, size: int = 100, signal: Signal = Signal.TRACES) -> Payload:
    """A request that tells its number."""
    return Payload(b"%010d" % number + b"\xf5oar" * (size // 4), signal, number % 7 + 1)


def number_of(body: bytes) -> int:
    return int(body[:10])


def numbers(store: DiskStore) -> list[int]:
    return [number_of(body) for body in bodies(store)]


class World:
    """A log, the list that it is to agree with, and all that can happen to both."""

    def __init__(self, seed: int, fsync: str) -> None:
        self.rng = random.Random(seed)
        self.disk, self.fsync = SimDisk(self.rng), fsync
        self.size = self.rng.choice((1 << 20, 4 << 20))
        self.store = store_on(self.disk, size=self.size, fsync=fsync)
        self.store.open()
        self.offered: dict[int, Payload] = {}
        self.accepted: list[int] = []
        self.safe: set[int] = set()
        self.done: set[int] = set()
        self.here: dict[int, Place] = {}
        self.failing = False

    def write(self) -> None:
        """A round of clients."""
        rng, first = self.rng, len(self.offered)
        batch = [
            (payload(first + i, rng.choice(SIZES), rng.choice(list(Signal))), rng.random() < 0.5)
            for i in range(rng.choice((1, 2, 20)))
        ]
        self.offered |= {number_of(one.body): one for one, _ in batch}
        try:
            self.store.prepare(rng.choice((0, 1_000, 100_000)))
            while batch:
                places = self.store.append(batch)
                for place, (one, kept) in zip(places, batch, strict=False):
                    self.accepted.append(number_of(one.body))
                    if kept:
                        self.here[number_of(one.body)] = place
                    if self.fsync == "always":
                        self.safe.add(number_of(one.body))
                batch = batch[len(places) :]
        except OSError:
            assert self.failing

    def read(self) -> None:
        """What lies on the disk alone comes into memory."""
        loaded = self.store.load(self.rng.choice((1, 5_000, 100_000)))
        for place, record in loaded.records:
            number = number_of(record.body)
            assert record.payload == self.offered[number]
            assert number not in self.here
            self.here[number] = place
        if not self.failing:
            assert loaded[1:] == (0, 0, 0, 0)

    def finish(self) -> None:
        """Some of what is in memory is sent."""
        some = [number for number in self.here if self.rng.random() < 0.5]
        spans = {number: spans_of(self.offered[number]) for number in some}
        self.store.mark([(TRIED, self.here[number], spans[number]) for number in some])
        self.store.mark([(DONE, self.here.pop(number), spans[number]) for number in some])
        self.done |= set(some)

    def force(self) -> None:
        """The interval of fsync."""
        try:
            self.store.sync()
        except OSError:
            assert self.failing
        else:
            if self.fsync == "interval":
                self.safe |= set(self.accepted)

    def restart(self) -> list[int]:
        """A new process reads all that the old one has left."""
        self.store = store_on(self.disk, size=self.size, fsync=self.fsync)
        self.store.open()
        self.here.clear()
        found = []
        while self.store.unread:
            before = set(self.here)
            self.read()
            found += [number for number in self.here if number not in before]
        return found

    def play(self, steps: int) -> None:
        """Some time without a crash."""
        for _ in range(steps):
            self.rng.choice((self.write, self.write, self.read, self.finish, self.force))()
            assert self.disk.open_files <= 6


@pytest.mark.parametrize("seed", seeds(regression=(1, 4021), sweep=12))
@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_killed_at_any_step(seed: int, fsync: str) -> None:
    """
    Scenario: a log is written, read and marked; the process is killed, again and again.
    Guarantees: with any policy exactly what was accepted and not marked is there, in order, byte
    for byte.
    """
    world = World(seed, fsync)
    for _ in range(4):
        world.play(world.rng.randrange(60))
        world.disk.kill()
        undone = [number for number in world.accepted if number not in world.done]
        assert world.restart() == undone
    world.finish()


@pytest.mark.parametrize("seed", seeds(regression=(1, 4021), sweep=12))
@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_power_lost_at_any_byte(seed: int, fsync: str) -> None:
    """
    Scenario: the same, but the machine goes: of what was not forced to the disk any part is lost,
    names and marks too.
    Guarantees: the log opens; what was forced is there, in order and byte for byte; nothing is
    there that was never accepted; what is there twice had been sent.
    """
    world = World(seed, fsync)
    for _ in range(4):
        world.play(world.rng.randrange(60))
        world.disk.lose_power()
        world.failing = True  # Records may be missing without that anybody is to blame.
        found = world.restart()
        assert found == sorted(found)
        assert set(found) <= set(world.accepted)
        assert world.safe - world.done <= set(found)
        world.failing = False
        world.accepted = found
        world.done -= set(found)
        world.safe &= set(found)


@pytest.mark.parametrize("fsync", ["always", "interval"])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_sent_before_the_last_sync_stays_sent(fsync: str, seed: int) -> None:
    """
    Scenario: segments of which all is done, and one of which a part is; a sync; then the power
    goes.
    Guarantees: files that were removed do not come back, nor do the marks go: of what was done
    before the sync nothing is there again.
    """
    disk = SimDisk(random.Random(seed))
    store = store_on(disk, fsync=fsync)
    store.open()
    store.prepare(1 << 10)
    places = append(store, [payload(number, 5_000) for number in range(40)], kept=True)
    store.sync()  # Else records, too, may be gone.
    store.mark([(DONE, place, 1) for place in places[:35]])
    store.sync()
    disk.lose_power()
    again = store_on(disk, fsync=fsync)
    assert again.open().requests == 5


@pytest.mark.parametrize("seed", seeds(regression=(1, 4021), sweep=12))
def test_a_disk_that_fails_at_any_call(seed: int) -> None:
    """
    Scenario: calls fail at random, half written or not at all; at the end the process is killed
    while the disk works again.
    Guarantees: nothing raises but to the client whose record was not written; what was accepted
    and not done is there, in order; nothing is there that nobody sent.
    """
    world = World(seed, "always")
    world.failing = True
    code = world.rng.choice((errno.EIO, errno.ENOSPC))

    def fault(call: str, _: str) -> OSError | None:
        fails = call in FAULTS and world.rng.random() < 0.2
        return OSError(code, "it fails") if fails else None

    world.disk.fault = fault
    world.play(80)
    world.disk.fault = lambda _call, _name: None
    world.disk.kill()
    found = world.restart()
    assert found == sorted(found)
    assert set(world.accepted) - world.done <= set(found) <= set(world.offered)


def test_torn_at_every_byte() -> None:
    """
    Scenario: a segment of three records, cut at every byte, zeros behind it as reserved.
    Guarantees: the records before the cut are there, and the log goes on; one that was cut behind
    its head counts as lost, where the zeros are as long as its body.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    sent = [payload(number, size) for number, size in enumerate((30, 0, 300))]
    places = append(store, sent)
    (name,) = disk.nodes
    whole = bytes(disk.nodes[name].data)
    ends = [40]
    for one in sent:
        ends.append(ends[-1] + 32 + len(one.body))
    for cut in range(ends[-1] + 1):
        disk = SimDisk(random.Random(0))
        disk.open(name, new=True).write([whole[:cut] + bytes(100)], 0)
        store = store_on(disk)
        store.open()
        there = sum(end <= cut for end in ends[1:])
        lost = any(begin + 32 <= cut < end <= cut + 100 for begin, end in itertools.pairwise(ends))
        assert store.left == there + lost
        assert numbers(store) == list(range(there))
        assert store.left == there
        append(store, [payload(9)])
        assert numbers(store) == [9]
        assert store.bad_segments == (cut < 36 or lost)
    assert len(places) == 3


def test_broken_in_the_middle() -> None:
    """
    Scenario: each byte of the middle one of three records is turned, in a segment that was closed
    in order and in one that was not; bodies are full of what a record starts with.
    Guarantees: both neighbours are delivered, and then the file is kept as `.bad` and counted; one
    request with its spans is known to be lost, but where its head is broken and the segment was
    not closed in order.
    """
    for in_order in (True, False):
        disk = SimDisk(random.Random(0))
        store = store_on(disk)
        store.open()
        append(store, [payload(0), payload(1, 40), payload(2)])
        store.close() if in_order else disk.kill()
        name = next(name for name in disk.nodes if name.endswith(".seg"))
        whole = {each: bytes(node.data) for each, node in disk.nodes.items()}
        begin = 40 + 32 + len(payload(0).body)
        for place in range(begin, begin + 32 + len(payload(1, 40).body)):
            disk = SimDisk(random.Random(0))
            for each, data in whole.items():
                disk.open(each, new=True).write([data], 0)
            disk.nodes[name].data[place] ^= 0x41
            store = store_on(disk)
            recovered = store.open()
            loaded = store.load(1 << 20)
            found = [number_of(record.body) for _, record in loaded.records]
            assert found == [0, 2], place
            is_known = in_order or place >= begin + 32
            assert recovered.requests == 2 + is_known
            lost = (1, 2) if is_known else (0, 0)
            assert (loaded.lost_requests, loaded.lost_spans) == lost
            store.mark([(DONE, where, record.items) for where, record in loaded.records])
            assert sorted(disk.nodes) == [name.replace(".seg", ".bad")]
            assert (store.bad_segments, store.left) == (1, 0)


def test_foreign_files_do_not_stop_the_start() -> None:
    """
    Scenario: files that are not ours or no longer what they were: empty, of another version, under
    another number, marks without records, names of other forms, one that cannot be read.
    Guarantees: the start succeeds; what looks like a segment and is none is set aside and counted;
    what cannot be read is counted and stays; what is not ours at all is left alone; at most eight
    of the set aside are kept.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    append(store, [payload(1)])
    disk.kill()
    (good,) = disk.nodes
    sound = bytes(disk.nodes[good].data)
    files = {f"{number:016x}.seg": b"" for number in range(100, 112)}
    files |= {
        f"{200:016x}.seg": b"oaqueue2" + sound[8:],
        f"{201:016x}.seg": sound,
        f"{202:016x}.ack": b"marks",
        "notes.txt": b"mine",
        "00.seg": b"too short a name",
    }
    for name, data in files.items():
        disk.open(name, new=True).write([data], 0)
    disk.fault = lambda call, name: (
        OSError(errno.EACCES, "no") if call == "open" and name == f"{100:016x}.seg" else None
    )
    store = store_on(disk)
    store.open()
    assert numbers(store) == [1]
    assert store.bad_segments == 14
    left = set(disk.nodes)
    assert {"notes.txt", "00.seg", good, f"{100:016x}.seg"} <= left
    assert sum(name.endswith(".bad") for name in left) == 8
    append(store, [payload(2)])
    assert numbers(store) == [2]


def test_a_body_is_no_record() -> None:
    """
    Scenario: somebody sends a body in which two whole segments lie, of another queue and, though
    nobody could know it, of this very one; and the record is broken.
    Guarantees: what is inside the body is not taken for records: it has not this segment's key, or
    its numbers were there before.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    other = store_on(SimDisk(random.Random(1)))
    other.open()
    append(other, [payload(number) for number in range(100, 110)])
    seen = bytes(next(iter(other._files.nodes.values())).data).rstrip(b"\0")
    append(store, [payload(7)])
    own = bytes(next(iter(disk.nodes.values())).data).rstrip(b"\0")
    append(store, [Payload(seen + own, Signal.TRACES, 1), payload(8)])
    disk.kill()
    next(iter(disk.nodes.values())).data[len(own) + 4] ^= 1
    store = store_on(disk)
    store.open()
    assert numbers(store) == [7, 8]


def test_a_full_disk_is_seen_before_it_is_written() -> None:
    """
    Scenario: a disk with room for 300 000 bytes, of which more and more is asked for; then some of
    it is freed.
    Guarantees: what was prepared can be written; what cannot be is told beforehand, without an
    error; when there is room again it is seen.
    """
    disk = SimDisk(random.Random(0), room=300_000)
    store = store_on(disk, size=16 << 20)
    store.open()
    written = 0
    while True:
        store.prepare(10_100)
        if store.is_full:
            break
        append(store, [payload(written, 10_000)])
        written += 1
    assert 25 <= written <= 30
    disk.room += 100_000
    store.prepare(10_100)
    assert not store.is_full
    append(store, [payload(written, 10_000)])
    assert numbers(store) == list(range(written + 1))


def test_segments_go_when_they_are_done() -> None:
    """
    Scenario: many records, done one after the other.
    Guarantees: the bytes on disk are never more than a segment, its reserve and what is left need;
    at the end nothing is left.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=1 << 20)
    store.open()
    for number in range(1000):
        (place,) = append(store, [payload(number, 5_000)], kept=True)
        store.mark([(TRIED, place, 1), (DONE, place, 1)])
        assert disk.used <= 3 * (1 << 16) + 5_100
        assert store.charge <= 2 * (1 << 16)
    store.close()
    assert list(disk.nodes) == []
    assert disk.open_files == 0


def test_a_smaller_limit_keeps_what_is_there() -> None:
    """
    Scenario: a log of 3 MB is opened with a limit of 1 MB, and then by one with another policy.
    Guarantees: all is there, and counted as taking its room.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=4 << 20)
    store.open()
    append(store, [payload(number, 10_000) for number in range(300)])
    disk.kill()
    for fsync in ("never", "interval"):
        store = store_on(disk, size=1 << 20, fsync=fsync)
        assert store.open().requests == 300
        assert store.charge > 3_000_000
        assert numbers(store) == list(range(300))
        disk.kill()


def test_what_was_tried_is_counted() -> None:
    """
    Scenario: five records, of which one was sent, two were tried; the process is killed.
    Guarantees: at the next start four are there, and the spans of the two are in doubt.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    sent = [payload(number) for number in range(5)]
    places = append(store, sent, kept=True)
    tried = [(TRIED, places[i], sent[i].items) for i in (0, 2, 4)]
    store.mark([*tried, (DONE, places[0], sent[0].items)])
    disk.kill()
    recovered = store_on(disk).open()
    assert recovered == (4, 2 + 3 + 4 + 5, 3 + 5)


def test_a_segment_that_cannot_be_read_is_given_up() -> None:
    """
    Scenario: a segment of an earlier run fails to read, over and over; another is fine.
    Guarantees: after thirty attempts its records count as lost, and the other's are delivered.
    """
    disk = SimDisk(random.Random(0))
    for number in (0, 1):
        store = store_on(disk)
        store.open()
        append(store, [payload(number)])
        store.close()
    bad = min(name for name in disk.nodes if name.endswith(".seg"))
    store = store_on(disk)
    store.open()
    disk.fault = lambda call, name: (
        OSError(errno.EIO, "unreadable") if call == "read" and name == bad else None
    )
    assert not any(store.load(1000).records for _ in range(READ_FAILURES_MAX - 1))
    loaded = store.load(1000)
    assert (loaded.lost_requests, loaded.lost_spans) == (1, 1)
    assert [number_of(record.body) for _, record in loaded.records] == [1]
    assert bad.replace(".seg", ".bad") in disk.nodes


def test_what_comes_after_a_segment_was_given_up_is_read() -> None:
    """
    Scenario: the segment that is being written cannot be read for good; it is given up, with one
    record of it still in memory. Then more is written, and what is in memory is done.
    Guarantees: the new records are loaded, each once, and nothing more is lost; the old segment is
    kept as `.bad`, counted once.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=64 << 20)
    store.open()
    (here,) = append(store, [payload(0)], kept=True)
    append(store, [payload(number) for number in range(1, 4)])
    (bad,) = disk.nodes
    disk.fault = lambda call, name: (
        OSError(errno.EIO, "unreadable") if call == "read" and name == bad else None
    )
    lost = sum(store.load(1000).lost_requests for _ in range(READ_FAILURES_MAX))
    assert (lost, store.left, store.unread) == (3, 1, 0)
    for number in range(4, 8):
        append(store, [payload(number)])
        loaded = store.load(1000)
        assert [number_of(record.body) for _, record in loaded.records] == [number]
        assert loaded[1:] == (0, 0, 0, 0)
    store.mark([(DONE, here, 1)])
    assert bad.replace(".seg", ".bad") in disk.nodes
    assert (store.bad_segments, store.left) == (1, 4)
