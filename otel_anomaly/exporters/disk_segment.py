"""One segment of a disk queue: its two files, and what is known of the records in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.exporters.disk_format import (
    DONE,
    MARK_BYTES,
    RECORD_HEAD_BYTES,
    RECORDS_MAX,
    SEGMENT_HEAD_BYTES,
    SUMMARY,
    TRIED,
    SegmentReader,
    pack_mark,
    unpack_marks,
)
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from otel_anomaly.exporters.disk_files import File, Files
    from otel_anomaly.exporters.disk_format import Mark, SegmentHead
    from otel_anomaly.handoff import Payload

CHARGE_BYTES_MIN: Final = 256
MARKS_READ_BYTES: Final = (1 << 15) * MARK_BYTES
"""Of a book that are read at once. All of it is: a record may be tried in any number of lives."""


def charge_of(size: int) -> int:
    """Bytes of the disk that a request of `size` bytes takes, with its marks."""
    return max(size + RECORD_HEAD_BYTES + 2 * MARK_BYTES, CHARGE_BYTES_MIN)


def spans_of(payload: Payload) -> int:
    """Spans in a payload; metrics and logs hold none."""
    return payload.items if payload.signal is Signal.TRACES else 0


class Book(NamedTuple):
    """What the marks of a segment say."""

    done: int
    done_spans: int
    doubtful_spans: int
    """Tried, and not done."""
    summary: tuple[int, int] | None
    """Records and spans in all, when the segment came to its end in order."""


class Segment:
    """A segment and its book. What touches a file raises OSError."""

    def __init__(self, head: SegmentHead, files: Files) -> None:
        self.head = head
        self.name, self.book_name = f"{head.id:016x}.seg", f"{head.id:016x}.ack"
        self.end = SEGMENT_HEAD_BYTES
        """Where the next record goes, or where those with a sound head end."""
        self.reserved = 0
        self.records = self.spans = self.charge = 0
        self.left = 0
        """Records that are not done."""
        self.unread = self.unread_spans = 0
        """Of them, those that lie on the disk alone and were not loaded yet."""
        self.uncounted_from: int | None = None
        """The start could not read the records from this number on, if there are any."""
        self.sealed = self.damaged = False
        self.reader: SegmentReader | None = None
        self.read_failures = 0
        self._files = files
        self._file: File | None = None
        self._book: File | None = None
        self._book_end = 0
        self._book_dirty = False
        self._marks_due = b""
        self.has_book = False
        # A bit for each record not to be loaded: kept in memory, or done in an earlier run.
        self._kept: bytearray | None = None

    @property
    def has_more(self) -> bool:
        """Whether something is to be loaded, as far as is known."""
        return self.unread > 0 or self.uncounted_from is not None

    def keep(self, number: int) -> bool:
        """Set a record's bit; whether it was not set before."""
        if self._kept is None:
            self._kept = bytearray(RECORDS_MAX // 8)
        place, bit = divmod(number - self.head.first, 8)
        before = self._kept[place]
        self._kept[place] = before | 1 << bit
        return self._kept[place] != before

    def is_wanted(self, number: int) -> bool:
        """Whether a record is to be loaded."""
        if self._kept is None:
            return True
        place, bit = divmod(number - self.head.first, 8)
        return not self._kept[place] >> bit & 1

    def took(self, number: int, payload: Payload, *, kept: bool) -> None:
        """A record was written. `kept`: it is in memory as well."""
        spans = spans_of(payload)
        self.records += 1
        self.spans += spans
        self.left += 1
        self.charge += charge_of(len(payload.body))
        if kept:
            self.keep(number)
        else:
            self.unread += 1
            self.unread_spans += spans

    # The records.

    def file(self, *, new: bool = False) -> File:
        """The open file."""
        if self._file is None:
            self._file = self._files.open(self.name, new=new)
        return self._file

    def begin_reading(self) -> SegmentReader:
        """Go on reading where it was left."""
        if self.reader is None:
            # Whichever file is open then: it is closed in between.
            self.reader = SegmentReader(lambda *where: self.file().read(*where), self.head)
        self.reader.forget_window()
        return self.reader

    def find_records(self, book: Book, size: int) -> None:
        """Count the records one by one: the segment did not come to its end in order.

        Those that the book calls done count even where they are gone: they always will be done.
        One with a broken body counts, and is missed when it is loaded: its head was written for a
        client that, but for the last ones, was told OK.

        When this raises, what was found before counts, and the rest is left to the loading.
        """
        self.records, self.spans = book.done, book.done_spans
        reader = SegmentReader(self.file().read, self.head)
        self.end = size
        try:
            for record in reader.records(size, self.is_wanted):
                if record is not None:
                    self.records += 1
                    self.spans += record.spans
        except OSError:
            self.uncounted_from = reader.next
            raise
        else:
            self.end = reader.place
        finally:
            self.records += reader.broken_records
            self.spans += reader.broken_spans

    def finish(self, *, sync: bool) -> None:
        """Give back the room that was reserved, and sum the segment up."""
        self.file().truncate(self.end)
        if sync:
            self.file().sync()
        self.write_marks([(SUMMARY, self.records, self.spans)])

    def close(self) -> None:
        """Close the files; they are opened again when there is need."""
        opened = [file for file in (self._file, self._book) if file is not None]
        self._file = self._book = None
        for file in opened:
            file.close()

    def forget(self) -> None:
        """All was loaded that has to be: no more is to be known of single records."""
        self.reader = self._kept = None

    # The marks.

    def write_marks(self, lines: Iterable[tuple[int, int, int]]) -> None:
        """Append (kind, number, spans). What cannot be written goes before what comes next."""
        seed = self.head.seed
        data = b"".join([pack_mark(kind, number, spans, seed) for kind, number, spans in lines])
        self._marks_due += data  # A few for each record: RECORDS_MAX bounds them.
        try:
            self._open_book().write([self._marks_due], self._book_end)
            self._book_end += len(self._marks_due)
            self._marks_due = b""
            self._book_dirty = True
        finally:
            if self.sealed:
                self._close_book()

    def sync_marks(self) -> None:
        """Force them to the disk."""
        if self._book_dirty:
            self._open_book().sync()
            self._book_dirty = False
            if self.sealed:
                self._close_book()

    def read_marks(self) -> Book:
        """What an earlier run has noted."""
        self.has_book = True
        done = done_spans = 0
        tried: dict[int, int] = {}
        summary = None
        for kind, number, spans in self._marks():
            if kind == SUMMARY:
                summary = min(number, RECORDS_MAX), spans
            elif not 0 <= number - self.head.first < RECORDS_MAX:
                continue
            elif kind == TRIED and self.is_wanted(number):
                tried[number] = spans
            elif kind == DONE and self.keep(number):
                tried.pop(number, None)
                done, done_spans = done + 1, done_spans + spans
        self._close_book()
        return Book(done, done_spans, sum(tried.values()), summary)

    def _marks(self) -> Iterator[Mark]:
        while data := self._open_book().read(MARKS_READ_BYTES, self._book_end):
            yield from unpack_marks(data, self.head.seed)
            self._book_end += len(data) - len(data) % MARK_BYTES
            if len(data) < MARKS_READ_BYTES:
                break

    def _open_book(self) -> File:
        if self._book is None:
            self._book = self._files.open(self.book_name, new=not self.has_book)
            self.has_book = True
        return self._book

    def _close_book(self) -> None:
        book, self._book = self._book, None
        if book is not None:
            book.close()
