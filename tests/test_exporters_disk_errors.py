"""The log on disk while calls fail: an error of a moment costs nothing that was accepted."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.exporters.contract import SENT, retry
from otel_anomaly.exporters.disk_format import (
    DONE,
    NUMBER_MAX,
    RECORD_HEAD_BYTES,
    RECORDS_MAX,
    SEGMENT_HEAD_BYTES,
    TRIED,
    WINDOW_BYTES,
    SegmentHead,
    pack_segment_head,
)
from otel_anomaly.exporters.disk_store import BAD_FILES_MAX, READ_FAILURES_MAX
from otel_anomaly.handoff import Outcome, Payload, Signal
from tests.disk_world import SimDisk, SimFile, append, bodies, store_on
from tests.test_exporters_disk import Rig, on, record, records

if TYPE_CHECKING:
    from otel_anomaly.exporters.disk_store import DiskStore


def payload(number: int, size: int = 100) -> Payload:
    """A request that tells its number, with two spans."""
    return Payload(b"%010d" % number + bytes(size), Signal.TRACES, 2)


def numbers(store: DiskStore) -> list[int]:
    return [int(body[:10]) for body in bodies(store)]


def disk_with(requests: int, size: int = 100, *, in_order: bool = False) -> SimDisk:
    """A disk with one segment that an earlier run has left, by a crash or in order."""
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=64 << 20)
    store.open()
    append(store, [payload(number, size) for number in range(requests)])
    if in_order:
        store.close()
    else:
        disk.kill()
    return disk


class Sector:
    """A part of all segments that cannot be read, for the next so many reads of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: int, failures: int) -> None:
        self.failures = failures
        read = SimFile.read

        def torn_read(file: SimFile, size: int, at: int) -> bytes:
            data = read(file, size, at)
            touched = file.name.endswith(".seg") and at <= place < at + len(data)
            if touched and self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "Input/output error")
            return data

        monkeypatch.setattr(SimFile, "read", torn_read)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_segments_that_cannot_be_opened_stay(code: int) -> None:
    """
    Scenario: 60 requests in 30 segments and a book; at a start none can be opened, new requests
    come, and at the next start all can be opened again.
    Guarantees: nothing is renamed or removed, all is counted as bad; nothing takes the names that
    are there; the next start has all that was not done, in order.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    first, *_ = append(store, [payload(number, 35_000) for number in range(60)], kept=True)
    store.mark([(DONE, first, 2)])
    disk.kill()
    there = {name: bytes(node.data) for name, node in disk.nodes.items()}
    assert sum(name.endswith(".seg") for name in there) == 30
    disk.fault = lambda call, name: (
        OSError(code, "no") if call == "open" and name in there else None
    )
    store = store_on(disk)
    assert store.open() == (0, 0, 0)
    assert store.bad_segments == 30
    append(store, [payload(60)])
    assert {name: bytes(disk.nodes[name].data) for name in there} == there
    disk.kill()
    disk.fault = lambda _call, _name: None
    store = store_on(disk)
    assert store.open().requests == 60
    assert numbers(store) == list(range(1, 61))
    assert store.bad_segments == 0


@pytest.mark.parametrize("failures", [1, 3, 10_000])
@pytest.mark.parametrize("place", [50, 2 * WINDOW_BYTES])
def test_a_sector_that_the_start_cannot_read(
    monkeypatch: pytest.MonkeyPatch, place: int, failures: int
) -> None:
    """
    Scenario: the segment that a crash left has a sector which the start cannot read, at its begin
    or in the middle; later reads of it succeed, or none does.
    Guarantees: all that stands before is taken over, the file is left as it is; the rest is loaded
    and told as found, or after thirty attempts given up and the file kept as `.bad`. The counts of
    requests and spans agree with what was delivered.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=64 << 20)
    store.open()
    append(store, [payload(number, 50_000) for number in range(20)])
    disk.kill()
    (name,) = disk.nodes
    before = bytes(disk.nodes[name].data)
    Sector(monkeypatch, place, failures)
    store = store_on(disk, size=64 << 20)
    recovered = store.open()
    whole = (place - SEGMENT_HEAD_BYTES) // (50_010 + RECORD_HEAD_BYTES)
    assert recovered.requests == (20 if failures == 1 else whole)
    assert recovered.spans == 2 * recovered.requests
    if recovered.requests < 20:
        assert (list(disk.nodes), bytes(disk.nodes[name].data)) == ([name], before)
    found, requests, spans = [], recovered.requests, recovered.spans
    for _ in range(100):
        loaded = store.load(100_000)
        found += loaded.records
        requests += loaded.found_requests - loaded.lost_requests
        spans += loaded.found_spans - loaded.lost_spans
    delivered = [int(record.body[:10]) for _, record in found]
    readable = 20 if failures < READ_FAILURES_MAX else recovered.requests
    assert delivered == list(range(readable))
    assert (requests, spans, store.left, store.unread) == (readable, 2 * readable, readable, 0)
    store.mark([(DONE, where, 2) for where, _ in found])
    gone_bad = failures >= READ_FAILURES_MAX
    assert list(disk.nodes) == [name.replace(".seg", ".bad")] * gone_bad
    assert (store.bad_segments, store.left, store.charge) == (gone_bad, 0, 0)


def test_a_killed_run_leaves_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the start cannot read a sector of a torn segment; the process is killed before it
    loads, or after it has loaded and sent some; the next start can read it.
    Guarantees: everything that was not marked is there.
    """
    for sent in (0, 3):
        disk = disk_with(10, 40_000)
        with monkeypatch.context() as patch:
            Sector(patch, 60, 1)
            store = store_on(disk)
            store.open()
            records = store.load(1 << 20).records[:sent]
            store.mark([(DONE, where, 2) for where, _ in records])
            disk.kill()
        store = store_on(disk)
        store.open()
        assert numbers(store) == list(range(sent, 10))


@pytest.mark.parametrize("size", [100, 2 * WINDOW_BYTES])
def test_a_read_that_fails_once_loses_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """
    Scenario: each record in turn fails to be read, fewer times than make a segment given up, but
    more often in all; bodies within the window, and larger.
    Guarantees: every record is delivered.
    """
    disk = disk_with(4, size, in_order=True)
    store = store_on(disk)
    store.open()
    found = []
    for number in range(4):
        place = SEGMENT_HEAD_BYTES + number * (RECORD_HEAD_BYTES + 10 + size) + RECORD_HEAD_BYTES
        with monkeypatch.context() as patch:
            sector = Sector(patch, place + 9 + size, READ_FAILURES_MAX - 3)
            for _ in range(READ_FAILURES_MAX):
                found += [int(record.body[:10]) for _, record in store.load(1).records]
                if len(found) > number:
                    break
            assert sector.failures == 0
    assert found == list(range(4))
    assert (store.unread, store.bad_segments) == (0, 0)


@pytest.mark.parametrize("ending", ["seg", "ack", "bad"])
@pytest.mark.parametrize("number", [(1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 62])
def test_a_name_does_not_use_up_the_numbers(number: int, ending: str) -> None:
    """
    Scenario: a file with a number that is as high as can be, or as we count.
    Guarantees: the start succeeds, requests are written, and the next start finds them.
    """
    disk = SimDisk(random.Random(0))
    disk.open(f"{number:016x}.{ending}", new=True)
    for sent in range(2):
        store = store_on(disk)
        store.open()
        assert numbers(store) == list(range(sent))
        append(store, [payload(sent)])
        disk.kill()


def test_a_head_does_not_use_up_the_numbers() -> None:
    """
    Scenario: a segment whose checksum is right, and whose records are to begin at the end of all
    numbers.
    Guarantees: it is set aside, and requests are written.
    """
    disk = SimDisk(random.Random(0))
    name = f"{5:016x}.seg"
    head = SegmentHead(5, NUMBER_MAX, 1)
    disk.open(name, new=True).write([pack_segment_head(head)], 0)
    store = store_on(disk)
    store.open()
    append(store, [payload(1)])
    assert numbers(store) == [1]
    assert f"{5:016x}.bad" in disk.nodes


@pytest.mark.parametrize("failures", [1, 9])
@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_nothing_more_is_written_where_a_sync_failed(fsync: str, failures: int) -> None:
    """
    Scenario: the segment that is written cannot be forced to the disk, once or often; there are
    marks of it and of another one, and a name that is new. Then it can, and more is written.
    Guarantees: the failure is told; the marks and the names are forced all the same; what comes
    next lies in another segment, and nothing is written into the first but what ends it.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, fsync=fsync)
    store.open()
    old = append(store, [payload(number, 40_000) for number in range(3)], kept=True)
    active = old[-1].segment
    assert old[0].segment is not active
    store.mark([(TRIED, old[0], 2), (TRIED, old[-1], 2)])
    errors = [OSError(errno.EIO, "Input/output error")] * failures
    disk.fault = lambda call, name: (
        errors.pop() if (call, name) == ("sync", active.name) and errors else None
    )
    with pytest.raises(OSError, match="Input/output error"):
        store.sync()
    assert disk.unsynced == []
    assert not disk.nodes[old[0].segment.book_name].unsynced
    disk.fault = lambda _call, _name: None
    content = bytes(disk.nodes[active.name].data)
    (next_place,) = append(store, [payload(3)])
    store.sync()
    assert next_place.segment is not active
    assert bytes(disk.nodes[active.name].data) == content
    assert not disk.nodes[active.book_name].unsynced
    disk.kill()
    store = store_on(disk, fsync=fsync)
    store.open()
    assert numbers(store) == list(range(4))


def test_marks_alone_do_not_force_the_directory() -> None:
    """
    Scenario: rounds of marks, each followed by a sync, in one segment; then its last record.
    Guarantees: the directory is forced when a book is new and when files go, not in between.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, fsync="interval")
    store.open()
    places = append(store, [payload(number) for number in range(5)], kept=True)
    store.sync()
    forced: list[str] = []
    disk.fault = lambda call, _name: forced.append(call) if call == "sync_directory" else None
    counts = []
    for place in places:
        store.mark([(DONE, place, 2)])
        store.sync()
        counts.append(len(forced))
    assert counts == [1, 1, 1, 1, 1]
    store.close()
    assert len(forced) == 2
    assert disk.unsynced == []


def test_the_name_of_a_book_is_forced_whoever_began_it() -> None:
    """
    Scenario: a book begins with the summary of its segment; another one was begun by a run that
    was killed before it forced anything. Marks follow, and a sync.
    Guarantees: the names of both are forced to the disk.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, fsync="interval")
    store.open()
    places = append(store, [payload(number, 40_000) for number in range(2)], kept=True)
    store.sync()
    places += append(store, [payload(2)], kept=True)
    assert places[2].segment is not places[0].segment
    store.mark([(DONE, places[0], 2)])
    store.sync()
    assert disk.unsynced == []
    store.mark([(TRIED, places[2], 2)])
    disk.kill()
    assert [name for _, name, _ in disk.unsynced] == [places[2].segment.book_name]
    store = store_on(disk, fsync="interval")
    store.open()
    store.mark([(TRIED, where, 2) for where, _ in store.load(1 << 20).records])
    store.sync()
    assert disk.unsynced == []


def test_a_book_of_any_length_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: two records are tried more often than a segment can hold records twice; one is then
    done. A read of the book fails half way, at another start.
    Guarantees: what is done stays done; with a book that cannot be read all is sent once more, and
    the start after it has not lost anything.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    places = append(store, [payload(number) for number in range(3)], kept=True)
    store.mark([(DONE, places[2], 2)])
    store.mark([(TRIED, places[0], 2), (TRIED, places[1], 2)] * (RECORDS_MAX + 1))
    store.mark([(DONE, places[0], 2)])
    disk.kill()
    store = store_on(disk)
    assert store.open() == (1, 2, 2)
    disk.kill()
    read = SimFile.read

    def failing(file: SimFile, size: int, at: int) -> bytes:
        if file.name.endswith(".ack") and at:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, size, at)

    with monkeypatch.context() as patch:
        patch.setattr(SimFile, "read", failing)
        (book,) = [node for name, node in disk.nodes.items() if name.endswith(".ack")]
        del book.data[-24:]  # The summary: it is counted again.
        store = store_on(disk)
        assert store.open().requests == 3
        disk.kill()
    store = store_on(disk)
    store.open()
    assert 1 in numbers(store)


def test_what_broke_behind_the_last_sound_record_is_counted() -> None:
    """
    Scenario: power is cut while five records are not forced yet: of the last three the heads are
    on the disk, of the last one broken, and no bodies. One of them was sent.
    Guarantees: what the sound heads tell counts as recovered, and as lost when it is loaded; so
    does it when the process is killed in between; the file is kept as `.bad`.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk)
    store.open()
    places = append(store, [payload(number) for number in range(6)], kept=True)
    store.mark([(DONE, places[3], 2)])
    disk.kill()
    name = next(name for name in disk.nodes if name.endswith(".seg"))
    for number in (2, 3, 4, 5):
        body = SEGMENT_HEAD_BYTES + number * (RECORD_HEAD_BYTES + 110) + RECORD_HEAD_BYTES
        disk.nodes[name].data[body : body + 110] = bytes(110)
    disk.nodes[name].data[body - 5] ^= 1
    for _ in range(2):
        store = store_on(disk)
        assert store.open() == (4, 8, 0)
        disk.kill()
    store = store_on(disk)
    store.open()
    loaded = store.load(1 << 20)
    assert [int(record.body[:10]) for _, record in loaded.records] == [0, 1]
    assert loaded[1:] == (2, 4, 0, 0)
    store.mark([(DONE, where, 2) for where, _ in loaded.records])
    assert list(disk.nodes) == [name.replace(".seg", ".bad")]
    assert (store.bad_segments, store.left, store.unread) == (1, 0, 0)


def test_only_what_was_read_is_pruned() -> None:
    """
    Scenario: twelve files that are no segments, and twelve that cannot be read.
    Guarantees: of the first eight are kept as `.bad`; the others stay as they are.
    """
    disk = SimDisk(random.Random(0))
    for number in range(1, 25):
        disk.open(f"{number:016x}.seg", new=True).write([b"something else" * 9], 0)
    closed = {f"{number:016x}.seg" for number in range(1, 13)}
    disk.fault = lambda call, name: (
        OSError(errno.EIO, "no") if call == "read" and name in closed else None
    )
    store = store_on(disk)
    store.open()
    assert closed <= set(disk.nodes)
    assert sum(name.endswith(".bad") for name in disk.nodes) == BAD_FILES_MAX
    assert store.bad_segments == 24


def test_ok_after_a_bout_of_read_errors_is_kept() -> None:
    """
    Scenario: the next hop is away and requests lie on disk alone, where for a while nothing can be
    read; what lay there is given up. Then reads work, and larger requests come, before the next
    hop is back.
    Guarantees: every request that was told OK after that is delivered; nothing is held for ever,
    and the ledger adds up.
    """
    disk = SimDisk(random.Random(0))

    async def scenario(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        disk.fault = lambda call, name: (
            OSError(errno.EIO, "unreadable") if call == "read" and name.endswith(".seg") else None
        )
        for number in range(300):
            assert await rig.send(record(number, 256)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(2 * READ_FAILURES_MAX)
        lost = rig.books.dropped("damaged")
        assert 0 < lost == rig.books.dropped() < 300
        disk.fault = lambda _call, _name: None
        late = [record(number, 256) for number in range(300, 310)]
        for body in late:
            assert await rig.send(body, items=10).outcome() is Outcome.ACCEPTED
        rig.hop.judge = lambda _: SENT
        await rig.fanout.stop(1000)
        seen = {each for body in rig.hop.bodies for each in records(body)}
        assert {body[:16] for body in late} <= seen
        assert (rig.books.sent, rig.books.held) == (300 - lost + 100, 0)
        assert rig.balance() == (400, 0)

    on(disk, scenario, disk_size="64MiB", queue_size="1MiB", batch={"max_size": "64KiB"})


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_marks_that_a_full_disk_refused_are_written_later(ending: str) -> None:
    """
    Scenario: others fill the disk; 300 requests go into reserved room and are delivered, but none
    can be marked. Then there is room, the next hop goes away, and one request more comes before the
    end, in order or by a kill.
    Guarantees: the next process has that one request and sends nothing twice.
    """
    disk = SimDisk(random.Random(0))

    def full(call: str, name: str) -> OSError | None:
        needs_room = call == "reserve" or (call == "write" and name.endswith(".ack"))
        return OSError(errno.ENOSPC, "No space left on device") if needs_room else None

    async def first(rig: Rig) -> None:
        assert await rig.send(record(0)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(2)
        disk.fault = full
        for number in range(1, 301):
            assert await rig.send(record(number)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(5)
        assert (rig.books.sent, rig.books.held) == (301, 0)
        disk.fault = lambda _call, _name: None
        rig.hop.judge = lambda _: retry("away")
        await asyncio.sleep(5)
        assert await rig.send(record(301)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(5)
        if ending == "stop":
            await rig.fanout.stop(1)

    async def second(rig: Rig) -> None:
        assert (rig.books.held, rig.balance()) == (1, (1, 1))
        assert rig.books.read(rig.telemetry.doubtful_spans) == 1
        await asyncio.sleep(5)
        assert rig.hop.bodies == [record(301)]
        await rig.fanout.stop(1)
        assert disk.nodes == {}

    on(disk, first, disk_size="64MiB")
    on(disk, second, disk_size="64MiB")


def test_an_orderly_end_writes_the_marks_that_are_due() -> None:
    """
    Scenario: the books of two segments cannot be written; of each, one record of two is done, and
    nothing else happens before the log is closed with room again.
    Guarantees: no file stays open meanwhile but the one that is written; the next start finds what
    was not done, and knows how much it is without reading the records.
    """
    disk = SimDisk(random.Random(0))
    store = store_on(disk, size=1 << 20)
    store.open()
    disk.fault = lambda call, name: (
        OSError(errno.ENOSPC, "full") if call == "write" and name.endswith(".ack") else None
    )
    places = append(store, [payload(number, 40_000) for number in range(4)], kept=True)
    assert len({place.segment for place in places}) == 2
    store.mark([(DONE, places[0], 2), (DONE, places[2], 2)])
    store.mark([])
    assert disk.open_files <= 2
    disk.fault = lambda _call, _name: None
    store.close()
    reads: list[str] = []

    def watch(call: str, name: str) -> None:
        if call == "read" and name.endswith(".seg"):
            reads.append(name)

    disk.fault = watch
    store = store_on(disk)
    assert store.open() == (2, 4, 0)
    assert len(reads) == 2, "the heads of the segments"
    disk.fault = lambda _call, _name: None
    assert numbers(store) == [1, 3]
