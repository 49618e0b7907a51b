"""What a disk queue's files hold: bytes in, records out; nothing here touches a disk.

    000...07.seg   | head 40 | record | record | ... | zeros, reserved ahead |
    000...07.ack   | mark 24 | mark | ...

    segment head   magic 8 | id 8 | number of its first record 8 | key 8 | crc 4 | 0000
    record         magic 4 | length 4 | number 8 | items 4 | signal 1 000 | 2 crc of 4 | body
    mark           kind 1 000 | crc 4 | number 8 | items 8

Integers are little-endian. Records of a segment have rising numbers, from its head's on.

Rule 1: every checksum starts from the segment's key, which is random. Bodies come from anybody who
can reach a port, so one may hold what looks like a record; it cannot hold one with our checksum.

Rule 2: a record whose head is sound has a length that is true, so a broken body costs that record
alone. After a broken head the next sound one is searched for, in one pass over the rest.

Rule 3: a mark stands alone. A broken one is skipped: what it was about is sent once more.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.handoff import Payload, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SEGMENT: Final = struct.Struct("<8sQQQI4x")
_RECORD: Final = struct.Struct("<4sIQIB3xII")
_MARK: Final = struct.Struct("<B3xIQQ")
SEGMENT_HEAD_BYTES, RECORD_HEAD_BYTES, MARK_BYTES = _SEGMENT.size, _RECORD.size, _MARK.size
assert (SEGMENT_HEAD_BYTES, RECORD_HEAD_BYTES, MARK_BYTES) == (40, 32, 24)

SEGMENT_MAGIC: Final = b"oaqueue1"
"""The digit is the version: another one is another format, set aside and never guessed at."""
RECORD_MAGIC: Final = b"\xf5oar"
"""0xF5 is in no UTF-8 text, so a search for it seldom stops in a body."""
RECORDS_MAX: Final = 1 << 18
"""In one segment: what is known of each of them is bounded."""
WINDOW_BYTES: Final = 1 << 18
NUMBER_MAX: Final = 1 << 62
"""No segment and no record is ever counted so far: what says so is not ours."""

DONE, TRIED, SUMMARY = 1, 2, 3
"""Kinds of marks: a record was sent or given up; it is about to be sent; and, in place of number
and items of a record, how many records and spans a segment got in all."""

_CODES: Final = {Signal.TRACES: 1, Signal.METRICS: 2, Signal.LOGS: 3}
_SIGNALS: Final = {code: signal for signal, code in _CODES.items()}
assert set(_CODES) == set(Signal)


class SegmentHead(NamedTuple):
    """What a segment says of itself."""

    id: int
    first: int
    """Number of its first record."""
    key: int

    @property
    def seed(self) -> int:
        """Where the checksums start."""
        return self.key & 0xFFFFFFFF


class Record(NamedTuple):
    """One request on disk."""

    number: int
    items: int
    signal: Signal
    body: bytes

    @property
    def payload(self) -> Payload:
        """The same, as it was handed on."""
        return Payload(self.body, self.signal, self.items)

    @property
    def spans(self) -> int:
        """Spans in it; metrics and logs hold none."""
        return self.items if self.signal is Signal.TRACES else 0


class Mark(NamedTuple):
    """A line in the book of a segment."""

    kind: int
    number: int
    items: int


def pack_segment_head(head: SegmentHead) -> bytes:
    """The first bytes of a segment."""
    bare = _SEGMENT.pack(SEGMENT_MAGIC, *head, 0)[:32]
    return _SEGMENT.pack(SEGMENT_MAGIC, *head, zlib.crc32(bare))


def unpack_segment_head(data: bytes) -> SegmentHead | None:
    """None when this is no segment of ours."""
    if len(data) != SEGMENT_HEAD_BYTES:
        return None
    magic, number, first, key, crc = _SEGMENT.unpack(data)
    if magic != SEGMENT_MAGIC or crc != zlib.crc32(data[:32]) or first >= NUMBER_MAX:
        return None
    return SegmentHead(number, first, key)


def pack_record_head(number: int, payload: Payload, seed: int) -> bytes:
    """What stands before the body of a record."""
    size, code = len(payload.body), _CODES[payload.signal]
    body_crc = zlib.crc32(payload.body, seed)
    bare = _RECORD.pack(RECORD_MAGIC, size, number, payload.items, code, body_crc, 0)
    return bare[:-4] + zlib.crc32(bare[:-4], seed).to_bytes(4, "little")


def pack_mark(kind: int, number: int, items: int, seed: int) -> bytes:
    """One mark."""
    crc = zlib.crc32(_MARK.pack(kind, 0, number, items), seed)
    return _MARK.pack(kind, crc, number, items)


def unpack_marks(data: bytes, seed: int) -> Iterator[Mark]:
    """The sound marks of a book. A torn end is no mark."""
    whole = len(data) - len(data) % MARK_BYTES
    for kind, crc, number, items in _MARK.iter_unpack(data[:whole]):
        if crc == zlib.crc32(_MARK.pack(kind, 0, number, items), seed) and DONE <= kind <= SUMMARY:
            yield Mark(kind, number, items)


class _Head(NamedTuple):
    """The head of a record, sound."""

    size: int
    number: int
    items: int
    signal: Signal
    body_crc: int

    @property
    def spans(self) -> int:
        """Spans in its body, also where that is broken."""
        return self.items if self.signal is Signal.TRACES else 0


class SegmentReader:
    """Walks through a segment, past what is broken."""

    def __init__(self, read: Callable[[int, int], bytes], head: SegmentHead) -> None:
        """`read(size, place)` gives so many bytes of the file, fewer only at its end."""
        self._read, self._head = read, head
        self._window, self._window_at = b"", 0
        self._broken = False
        self.next = head.first
        """No record that is still to come has a lower number."""
        self.place = SEGMENT_HEAD_BYTES
        """Where the last record with a sound head ended."""
        self.broken_records = self.broken_spans = 0
        """Wanted, with a sound head and a broken body."""
        self.damaged = False
        """Something broken stands before a sound record: more than a torn end."""

    def records(self, end: int, wanted: Callable[[int], bool]) -> Iterator[Record | None]:
        """The sound records up to `end`, from where the last call stopped.

        Of one that is not `wanted`, by its number, the body is not looked at: None.
        """
        while (head := self._sound_head(self.place, end)) or self._search(self.place + 1, end):
            if head is None:
                self._broken = True
                continue
            body_at, is_wanted = self.place + RECORD_HEAD_BYTES, wanted(head.number)
            # When this read fails, the next call begins with the same record.
            record = self._record(head, body_at) if is_wanted else None
            self.place = body_at + head.size
            self.next = head.number + 1
            if record is None and is_wanted:
                self._broken = True
                self.broken_records += 1
                self.broken_spans += head.spans
                continue
            self.damaged |= self._broken
            yield record

    def forget_window(self) -> None:
        """The file has grown: read its end anew."""
        self._window, self._window_at = b"", 0

    def _record(self, head: _Head, body_at: int) -> Record | None:
        """The record, when its body is sound."""
        body = self._bytes(body_at, head.size)
        if zlib.crc32(body, self._head.seed) != head.body_crc:
            return None
        return Record(head.number, head.items, head.signal, body)

    def _sound_head(self, place: int, end: int) -> _Head | None:
        """The head of the record at `place`, when it is one of ours and the record fits."""
        if place + RECORD_HEAD_BYTES > end:
            return None
        return self._parsed(self._bytes(place, RECORD_HEAD_BYTES), place, end)

    def _parsed(self, data: bytes, place: int, end: int) -> _Head | None:
        if data[:4] != RECORD_MAGIC or len(data) != RECORD_HEAD_BYTES:
            return None
        _, size, number, items, code, body_crc, crc = _RECORD.unpack(data)
        if crc != zlib.crc32(data[:-4], self._head.seed) or code not in _SIGNALS:
            return None
        fits = place + RECORD_HEAD_BYTES + size <= end
        in_turn = self.next <= number < self._head.first + RECORDS_MAX
        return _Head(size, number, items, _SIGNALS[code], body_crc) if fits and in_turn else None

    def _search(self, place: int, end: int) -> bool:
        """Go to the next sound head from `place` on; False: there is none, stay.

        Linear whatever the bytes are: a body may consist of nothing but our magic.
        """
        while place + RECORD_HEAD_BYTES <= end:
            window = self._bytes(place, min(WINDOW_BYTES, end - place))
            if len(window) < RECORD_HEAD_BYTES:
                return False
            found = window.find(RECORD_MAGIC)
            while 0 <= found <= len(window) - RECORD_HEAD_BYTES:
                data = window[found : found + RECORD_HEAD_BYTES]
                if self._parsed(data, place + found, end) is not None:
                    self.place = place + found
                    return True
                found = window.find(RECORD_MAGIC, found + 1)
            place += len(window) - RECORD_HEAD_BYTES + 1
        return False

    def _bytes(self, place: int, size: int) -> bytes:
        """Bytes of the file. Small reads go through a window."""
        at = place - self._window_at
        if not 0 <= at <= at + size <= len(self._window):
            if size > WINDOW_BYTES:
                return self._read(size, place)
            try:
                self._window, self._window_at, at = self._read(WINDOW_BYTES, place), place, 0
            except OSError:  # Of what lies further on, perhaps.
                return self._read(size, place)
        return self._window[at : at + size]
