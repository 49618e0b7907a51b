"""The file of an audit trail: locked, appended to in whole groups, repaired when opened.

What a crash or a stranger leaves behind never stops the service and is never thrown away:

    last line without an end   appended to PATH.torn-TIME, cut from the trail, told in a gap record
    last whole record invalid  file renamed to PATH.broken-TIME, new chain, first record tells
    file moved away in use     new chain at PATH, first record names the last record of the old one

Only the tail is read when opening, so that a large trail does not delay the start: a change
further up is for `verify` to find. The head in memory moves on only when a group is on disk as a
whole; what a failed write left is cut off again, so that trying again cannot leave half a group.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from otel_anomaly.sinks.chain import (
    LINE_BYTES_MAX,
    START,
    BrokenRecordError,
    Head,
    Value,
    read_record,
    seal,
)
from otel_anomaly.sinks.text import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_anomaly.handoff import Clock

_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_STRANGER_BITS = 0o077

Fields = dict[str, Value]


class Trail:
    """One open trail. Not thread-safe."""

    def __init__(self, path: Path, clock: Clock, sync: Callable[[int], None] | None) -> None:
        """`sync` forces a descriptor to disk; None leaves that to the system.

        Raises OSError when the file cannot be opened, is no regular file, or is in use.
        """
        self._path, self._clock = path, clock
        self.sync = sync
        """May be exchanged at any time, by any thread."""
        self.head = START
        self.notes: list[str] = []
        """What was repaired and is not told yet; whoever writes tells it and clears the list."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = -1
        self._sound_size: int | None = None  # Where a failed write began, until it is cut off.
        self._open()

    def append(self, records: Sequence[Fields]) -> None:
        """Write the records as the next ones of the chain: all of them, or none and OSError."""
        self._cut_back()
        head, lines = self.head, []
        for fields in records:
            line, head = seal(fields, head)
            lines.append(line)
        data = b"".join(lines)
        size = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, data)
            sync = self.sync
            if sync is not None:
                sync(self._descriptor)
        except OSError:
            self._sound_size = size
            with contextlib.suppress(OSError):  # Else before the next attempt.
                self._cut_back()
            raise
        self.head = head

    def reopen_if_moved(self) -> None:
        """Start a new chain at the path when the open file is no longer the one there."""
        if self._descriptor < 0 or _is_at(self._descriptor, self._path):
            return
        old, head = self._descriptor, self.head
        self._open()
        os.close(old)
        self.notes.append(f"the trail was moved away; its last record was {head.seq}, {head.hash}")

    def close(self) -> None:
        """Let go of file and lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _cut_back(self) -> None:
        """Take off what a failed write of ours left, and nothing that others wrote before it."""
        if self._sound_size is not None:
            os.ftruncate(self._descriptor, self._sound_size)
            self._sound_size = None

    def _open(self) -> None:
        descriptor = open_locked(self._path)
        notes: list[str] = []
        try:
            descriptor, head = self._repair(descriptor, notes)
        except BaseException:
            os.close(descriptor)
            raise
        self.notes += notes
        self._descriptor, self.head, self._sound_size = descriptor, head, None

    def _repair(self, descriptor: int, notes: list[str]) -> tuple[int, Head]:
        """Continue a sound trail, else begin a new one. Leaves one descriptor open."""
        stamp = rfc3339(self._clock.now_ns()).replace("-", "").replace(":", "")
        try:
            self._cut_torn(descriptor, stamp, notes)
            return descriptor, _last_head(descriptor)
        except BrokenRecordError as error:
            aside = _free_name(self._path, f"broken-{stamp}")
            self._path.rename(aside)
            fresh = open_locked(self._path)
            os.close(descriptor)  # Last: the lock on the old file keeps others out until here.
            notes.append(
                f"the trail before is not valid and lies in {aside.name}: its last line {error}"
            )
            return fresh, START

    def _cut_torn(self, descriptor: int, stamp: str, notes: list[str]) -> None:
        """Move a last line without an end to a file of its own, then cut it off: in this order."""
        size = os.fstat(descriptor).st_size
        tail = _read_tail(descriptor, size)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        if len(torn) > LINE_BYTES_MAX:
            raise BrokenRecordError("is longer than any record")
        aside = Path(f"{self._path}.torn-{stamp}")
        copy = os.open(aside, _OPEN, 0o600)
        try:
            _write_all(copy, torn)
            os.fsync(copy)
        finally:
            os.close(copy)
        os.ftruncate(descriptor, size - len(torn))
        notes.append(f"a torn last line of {len(torn)} bytes was cut off and lies in {aside.name}")


def open_locked(path: Path) -> int:
    """A descriptor of the regular file at `path`, owner-only, locked against other processes."""
    while True:
        descriptor = os.open(path, _OPEN, 0o600)
        try:
            _claim(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # Renamed between open and lock: another one stands there now.


def _claim(descriptor: int, path: Path) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "the audit trail must be a regular file", str(path))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(
            errno.EBUSY, "the audit trail is in use by another process", str(path)
        ) from error
    if mode & _STRANGER_BITS:
        os.fchmod(descriptor, 0o600)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _free_name(path: Path, ending: str) -> Path:
    """A name beside `path` that is not taken: a rename would overwrite."""
    candidate, number = Path(f"{path}.{ending}"), 1
    while candidate.exists():
        number += 1
        candidate = Path(f"{path}.{ending}-{number}")
    return candidate


def _read_tail(descriptor: int, size: int) -> bytes:
    """The last bytes of the file: enough for any one record and the line end before it."""
    length = min(size, LINE_BYTES_MAX + 1)
    return os.pread(descriptor, length, size - length)


def _last_head(descriptor: int) -> Head:
    """The head that the last line makes. Raises BrokenRecordError when it is not a record."""
    tail = _read_tail(descriptor, os.fstat(descriptor).st_size)
    if not tail:
        return START
    head, _ = read_record(tail[tail.rfind(b"\n", 0, -1) + 1 :])
    return head


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
