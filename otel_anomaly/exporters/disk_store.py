"""A log of requests in segment files: appended, read from the front, marked when they are done.

    segments   | all done: gone | read up to here, then what is kept in memory | ... | active |
    books                       | a mark for each that is done or was tried                   |

Rule 1: only the active segment is written, and never again after a failure or a restart: what
follows a doubtful write would be doubtful too. A segment goes when all of its records are done.

Rule 2: records lie in reserved room (`prepare`), so a disk that fills up is seen before anything
is promised. Where it is full, the active segment just grows on.

Rule 3: what is known of records that lie on the disk alone is one bit each, in segments where some
are in memory, and two numbers per segment. What was written by an earlier run is not read at start,
but for the last segment, which a crash may have torn, and the books.

Rule 4: no damage stops the start. What is sound is delivered; then the file is kept as `.bad`.
What cannot be opened or read is not damaged by that: it stays, and the next start tries again.

Blocks, and is called from one thread at a time.
"""

from __future__ import annotations

import errno
import logging
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import KIB, MIB
from otel_anomaly.exporters.disk_format import (
    DONE,
    MARK_BYTES,
    NUMBER_MAX,
    RECORD_HEAD_BYTES,
    RECORDS_MAX,
    SEGMENT_HEAD_BYTES,
    Record,
    SegmentHead,
    pack_record_head,
    pack_segment_head,
    unpack_segment_head,
)
from otel_anomaly.exporters.disk_segment import CHARGE_BYTES_MIN, Book, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from otel_anomaly.exporters.disk_files import Files
    from otel_anomaly.handoff import Payload

_LOG = logging.getLogger(__name__)

AHEAD_BYTES_MAX: Final = 8 * MIB
"""Room reserved beyond what is asked for, so that asking is rare."""
AHEAD_PARTS: Final = (1, 8, 64)
"""Towards the end of the disk less is reserved ahead, before it counts as full."""
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 64 * KIB, 64 * MIB
SEGMENTS_SHARE: Final = 16
"""A segment is at most this part of the disk size: room comes back a segment at a time."""
BAD_FILES_MAX: Final = 8
"""Damaged segments kept for somebody to look at; the oldest go."""
READ_FAILURES_MAX: Final = 30
"""After so many failed reads, a second apart, the rest of a segment counts as lost."""
_NAME: Final = re.compile(r"([0-7][0-9a-f]{15})\.(seg|ack|bad)")
"""Below 2**63: what we count up stays in 64 bits."""
_OURS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""We are short of something: that says nothing of the disk, however long it lasts."""
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Place(NamedTuple):
    """Where a record lies."""

    segment: Segment
    number: int


class Loaded(NamedTuple):
    """What came back from the disk."""

    records: list[tuple[Place, Record]]
    lost_requests: int
    lost_spans: int
    """Accepted once, and damaged since."""
    found_requests: int
    found_spans: int
    """There, though nobody had counted them."""


class Recovered(NamedTuple):
    """What an earlier run has left."""

    requests: int
    spans: int
    doubtful_spans: int
    """Of those, spans that were tried: the next hop may have them."""


class DiskStore:
    """The log of one queue."""

    def __init__(self, files: Files, *, size: int, fsync: str, key: Callable[[], int]) -> None:
        """`size` is the whole log's; `key` gives 64 random bits."""
        self._files, self._fsync, self._key = files, fsync, key
        self._segments: dict[int, Segment] = {}
        self._active: Segment | None = None
        self.resize(size)
        self._next_id = self._next_number = 1
        self._untaken: set[int] = set()
        self._unsynced: set[Segment] = set()
        self._unmarked: list[Segment] = []
        """Their marks could not be written."""
        self._names_changed = False
        self.charge = 0
        """Bytes that all segments take."""
        self.left = 0
        """Records that are not done."""
        self.unread = 0
        """Of them, those on the disk alone."""
        self.is_full = False
        """The disk had no more room when it was last asked."""
        self.bad_segments = 0
        """Damaged, foreign, or left for the next start, since this one."""
        self.trouble = ""
        """The failure that was logged last: the same one again is not."""

    @property
    def headroom(self) -> int:
        """Reserved bytes that nothing is written in."""
        return max(self._active.reserved - self._active.end, 0) if self._active else 0

    def resize(self, size: int) -> None:
        """Go by another size of the whole log from now on; what it holds stays."""
        self._segment_bytes = min(max(size // SEGMENTS_SHARE, SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)
        self._ahead = min(self._segment_bytes, AHEAD_BYTES_MAX)
        if self._active is not None:
            self._tidy(self._active)  # Small once, it may be all that fits now.

    # Start and end.

    def open(self) -> Recovered:
        """Take over what lies there. Raises only when the directory itself cannot be used."""
        self._files.open_directory()
        found: dict[str, set[int]] = {"seg": set(), "ack": set(), "bad": set()}
        for name in self._files.names():
            if match := _NAME.fullmatch(name):
                found[match[2]].add(int(match[1], 16))
        doubtful = 0
        for number in sorted(found["seg"]):
            doubtful += self._recover(number, has_book=number in found["ack"])
        there = self._untaken.union(self._segments)
        for number in found["ack"] - there:
            self._try(self._files.remove, f"{number:016x}.ack")
        self._prune_bad()
        seen = {number for number in set().union(*found.values()) if number < NUMBER_MAX}
        self._next_id = max(seen | there, default=0) + 1
        self._names_changed = True  # By a run that was killed, perhaps, and not forced.
        spans = sum(segment.unread_spans for segment in self._segments.values())
        return Recovered(self.left, spans, min(doubtful, spans))

    def close(self) -> None:
        """Leave everything in order for the next start."""
        try:
            if self._active is not None:
                self._seal(self._active)
            self.mark(())  # The sealing gave room back, perhaps.
            self.sync()
        finally:
            for segment in self._segments.values():
                self._try(segment.close)
            self._files.close()

    # Writing.

    def prepare(self, size: int) -> None:
        """See that `size` bytes can be written for sure, and some more; else `is_full` says so."""
        if self._active is None:
            self._begin(size)
        active = self._active
        if active is None or (self.headroom >= size + self._ahead // 2 and not self.is_full):
            return
        wanted = [size + self._ahead // part for part in AHEAD_PARTS]
        self.is_full = not any(
            self.headroom >= more or self._reserve(active, more) for more in wanted
        )
        if self.headroom < size:
            self._reserve(active, size)

    def _reserve(self, segment: Segment, size: int) -> bool:
        """Whether the disk has so much room for what comes next."""
        try:
            segment.file().reserve(segment.end, size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return False
        segment.reserved = segment.end + size
        return True

    def append(self, batch: Sequence[tuple[Payload, bool]]) -> list[Place]:
        """Write the first requests of `batch`: as many as the segment takes, at least one.

        The flag says that the request stays in memory too. Raises OSError when none is written.
        """
        segment = self._writable(len(batch[0][0].body))
        number, end = segment.head.first + segment.records, segment.end
        numbers_left = RECORDS_MAX - segment.records
        buffers: list[bytes] = []
        for payload, _ in batch:
            if buffers and (end >= self._segment_bytes or len(buffers) // 2 >= numbers_left):
                break
            place = number + len(buffers) // 2
            buffers += (pack_record_head(place, payload, segment.head.seed), payload.body)
            end += RECORD_HEAD_BYTES + len(payload.body)
        try:
            segment.file().write(buffers, segment.end)
            if self._fsync == "always":
                segment.file().sync()
        except OSError:
            self._seal(segment)  # What is behind its last sound record is cut off.
            raise
        segment.end = end
        places = [Place(segment, number + i) for i in range(len(buffers) // 2)]
        charge = segment.charge
        for (_, each), (payload, kept) in zip(places, batch, strict=False):
            segment.took(each, payload, kept=kept)
            self.unread += not kept
        self.left += len(places)
        self.charge += segment.charge - charge
        self._unsynced.add(segment)
        return places

    def mark(self, marks: Iterable[tuple[int, Place, int]]) -> None:
        """Note (kind, place, spans), and what could not be written before: the book has no reserved
        room. A process that dies before it can be costs a repetition, nothing else.

        So does a power cut, up to the next `sync`, also with `fsync: always`: to force the marks
        with each round took 20 to 40 % of the small requests (32 clients, 5.3 KB, 2-core machine).
        """
        by_segment: dict[Segment, list[tuple[int, int, int]]]
        by_segment, self._unmarked = {segment: [] for segment in self._unmarked}, []
        for kind, (segment, number), spans in marks:
            by_segment.setdefault(segment, []).append((kind, number, spans))
            if kind == DONE:
                segment.left -= 1
                self.left -= 1
        for segment, lines in by_segment.items():
            if segment.left or not segment.sealed:
                self._unsynced.add(segment)
                self._names_changed |= not segment.has_book
                try:
                    segment.write_marks(lines)
                except OSError as error:
                    self._note("cannot mark what was sent", error)  # One text for all books.
                    self._unmarked.append(segment)
            self._tidy(segment)

    def sync(self) -> None:
        """Force what was written to the disk. Raises OSError when the records cannot be."""
        unsynced, self._unsynced = self._unsynced, set()
        if self._fsync == "never":
            return
        failure: OSError | None = None
        for segment in [each for each in self._segments.values() if each in unsynced]:
            self._try(segment.sync_marks)
            if segment is self._active:
                try:
                    segment.file().sync()
                except OSError as error:
                    failure = error
                    self._seal(segment)
                    self._unsynced.add(segment)  # It has got its summary.
        if self._names_changed:
            # Else a power cut brings back files that are gone, and all in them is sent again.
            self._names_changed = False
            self._try(self._files.sync)
        if failure is not None:
            raise failure

    # Reading.

    def load(self, bytes_max: int) -> Loaded:
        """The next records that lie on the disk alone, about so many bytes of them."""
        records: list[tuple[Place, Record]] = []
        lost_requests = lost_spans = found_requests = found_spans = size = 0
        for segment in [each for each in self._segments.values() if each.has_more]:
            before, left = len(records), self.left
            try:
                whole = self._load_from(segment, bytes_max - size, records)
            except OSError as error:
                whole = self._give_up_reading(segment, error)
            size += sum(len(record.body) for _, record in records[before:])
            found_requests += self.left - left
            found_spans += max(-segment.unread_spans, 0)
            segment.unread_spans = max(segment.unread_spans, 0)
            if whole:
                requests, spans = self._finish_reading(segment)
                lost_requests, lost_spans = lost_requests + requests, lost_spans + spans
            if not whole or size >= bytes_max:
                break
        return Loaded(records, lost_requests, lost_spans, found_requests, found_spans)

    def _load_from(
        self, segment: Segment, bytes_max: int, records: list[tuple[Place, Record]]
    ) -> bool:
        """Load from one segment; whether it was read to its end."""
        size = 0
        for record in segment.begin_reading().records(segment.end, segment.is_wanted):
            segment.read_failures = 0
            if record is None:
                continue
            if segment.uncounted_from is not None and record.number >= segment.uncounted_from:
                segment.left += 1
                self.left += 1
                self._count_unread(segment, 1, 0)  # That its spans are too many tells of them.
            if not segment.has_more:  # Its book knows of no more: they are done.
                return True
            records.append((Place(segment, record.number), record))
            self._count_unread(segment, -1, -record.spans)
            size += len(record.body) + RECORD_HEAD_BYTES
            if size >= bytes_max:
                return not segment.has_more
        return True

    def _give_up_reading(self, segment: Segment, error: OSError) -> bool:
        """Whether so many reads failed that the rest of the segment counts as lost."""
        self._note(f"cannot read {segment.name}", error)
        if error.errno in _OURS:
            return False
        segment.read_failures += 1
        return segment.read_failures >= READ_FAILURES_MAX

    def _finish_reading(self, segment: Segment) -> tuple[int, int]:
        """All was loaded. Returns requests and spans that should have been there and were not."""
        lost = segment.unread, segment.unread_spans
        self._count_unread(segment, -lost[0], -lost[1])
        segment.left -= lost[0]
        self.left -= lost[0]
        if segment.uncounted_from is not None:
            segment.uncounted_from = None
            self.unread -= 1
        given_up = segment.read_failures >= READ_FAILURES_MAX
        broken = lost[0] or given_up or (segment.reader is not None and segment.reader.damaged)
        if broken and not segment.damaged:
            segment.damaged = True
            self.bad_segments += 1
            _LOG.warning("%s: %s is damaged", self._files.place, segment.name)
        if segment.sealed:
            self._try(segment.close)
            segment.forget()
        elif given_up:  # What is written from now on is read again, in a segment of its own.
            self._seal(segment)
        self._tidy(segment)
        return lost

    # Segments.

    def _recover(self, number: int, *, has_book: bool) -> int:
        """Take over a segment of an earlier run. Returns spans that were tried and are not done."""
        name = f"{number:016x}.seg"
        try:
            head = self._read_head(name)
            if head is None or head.id != number:
                self._set_aside(name)
                return 0
            segment = Segment(head, self._files)
            try:
                return self._take_over(segment, has_book=has_book)
            finally:
                self._try(segment.close)
        except OSError as error:
            self._note(f"cannot take over {name}, it is left for the next start", error)
            self.bad_segments += 1
            self._untaken.add(number)
            return 0

    def _read_head(self, name: str) -> SegmentHead | None:
        file = self._files.open(name)
        try:
            return unpack_segment_head(file.read(SEGMENT_HEAD_BYTES, 0))
        finally:
            file.close()

    def _take_over(self, segment: Segment, *, has_book: bool) -> int:
        book = Book(0, 0, 0, None)
        if has_book:
            try:
                book = segment.read_marks()
            except OSError as error:  # All of it is sent once more.
                segment.forget()  # Also what was already read as done.
                self._note(f"cannot read {segment.book_name}", error)
        size = segment.file().size()
        doubtful, in_order = book.doubtful_spans, book.summary is not None
        if book.summary is not None:
            segment.records, segment.spans = book.summary
            segment.end = size
        else:
            try:
                segment.find_records(book, size)
            except OSError as error:
                self._note(f"cannot read {segment.name} to its end", error)
                self.unread += 1  # So that the rest is asked for.
        segment.left = max(segment.records - book.done, 0)
        segment.charge = max(
            segment.end + 2 * MARK_BYTES * segment.records, CHARGE_BYTES_MIN * segment.records
        )
        self._segments[segment.head.id] = segment
        self._next_number = max(self._next_number, segment.head.first + RECORDS_MAX)
        self.charge += segment.charge
        self.left += segment.left
        self._count_unread(segment, segment.left, max(segment.spans - book.done_spans, 0))
        if not in_order and segment.uncounted_from is None:
            self._finish(segment)
        segment.sealed = True
        self._tidy(segment)
        return doubtful

    def _writable(self, size: int) -> Segment:
        """The segment that the next record goes to."""
        active = self._active
        is_over = active is not None and active.end >= self._segment_bytes
        if active is None or is_over or active.records >= RECORDS_MAX:
            self._begin(size + RECORD_HEAD_BYTES)
        if self._active is None:
            raise OSError(errno.ENOSPC, "no room for a new segment")
        return self._active

    def _begin(self, size: int) -> None:
        """A new active segment with the room that the old one had. On a full disk there is none:
        the old one grows on."""
        old = self._active
        segment = Segment(SegmentHead(self._next_id, self._next_number, self._key()), self._files)
        self._next_id += 1
        segment.reserved = SEGMENT_HEAD_BYTES + max(self.headroom, size)
        try:
            self._make(segment)
        except OSError as error:
            self._try(segment.close)
            self._try(self._files.remove, segment.name)
            self.is_full = error.errno in _NO_ROOM
            if not self.is_full:
                raise
            if old is not None and old.records >= RECORDS_MAX:
                self._seal(old)
            return
        if old is not None:
            self._seal(old)
        self._segments[segment.head.id] = segment
        self._next_number = segment.head.first + RECORDS_MAX
        self._active, self.is_full = segment, False

    def _make(self, segment: Segment) -> None:
        file = segment.file(new=True)
        file.reserve(0, segment.reserved)
        file.write([pack_segment_head(segment.head)], 0)
        if self._fsync != "never":
            file.sync()
            self._files.sync()

    def _seal(self, segment: Segment) -> None:
        """Nothing more is written into a segment."""
        self._active = None
        self._finish(segment)
        segment.sealed = True
        self._try(segment.close)
        if not segment.unread:
            segment.forget()
        self._tidy(segment)

    def _finish(self, segment: Segment) -> None:
        if not segment.left:
            return
        self._names_changed |= not segment.has_book
        try:
            segment.finish(sync=self._fsync != "never")
        except OSError as error:
            # Without its summary the next start reads it record by record.
            self._unmarked.append(segment)
            self._note(f"cannot end {segment.name}", error)

    def _tidy(self, segment: Segment) -> None:
        """Remove a segment of which nothing is left; the active one once it has some size."""
        if segment.left or segment.has_more:
            return
        if not segment.sealed:
            if segment.end >= self._segment_bytes // 4:
                self._seal(segment)
            return
        if self._segments.pop(segment.head.id, None) is None:
            return
        self.charge -= segment.charge
        self._names_changed = True
        self._try(segment.close)
        # First the records, then the book: the other way round a crash between sends all again.
        if segment.damaged:
            self._rename_bad(segment.name)
            self._prune_bad()
        else:
            self._try(self._files.remove, segment.name)
        self._try(self._files.remove, segment.book_name)

    def _set_aside(self, name: str) -> None:
        """A file that is no segment of ours."""
        self.bad_segments += 1
        _LOG.warning("%s: %s is not readable, set aside", self._files.place, name)
        self._rename_bad(name)

    def _rename_bad(self, name: str) -> None:
        self._try(self._files.rename, name, name.replace(".seg", ".bad"))

    def _prune_bad(self) -> None:
        """Keep the newest of the damaged."""
        try:
            bad = sorted(name for name in self._files.names() if _NAME.fullmatch(name))
        except OSError as error:
            self._note("cannot list", error)
            return
        for name in [name for name in bad if name.endswith(".bad")][:-BAD_FILES_MAX]:
            self._try(self._files.remove, name)

    def _count_unread(self, segment: Segment, records: int, spans: int) -> None:
        segment.unread += records
        segment.unread_spans += spans
        self.unread += records

    def _try(self, action: Callable[..., None], *arguments: str) -> None:
        """Do what is no loss when it fails."""
        try:
            action(*arguments)
        except OSError as error:
            self._note("cannot tidy up", error)

    def _note(self, what: str, error: OSError) -> None:
        text = f"{what}: {error.strerror or error}"
        if text != self.trouble:
            _LOG.warning("%s: %s", self._files.place, text)
        self.trouble = text
