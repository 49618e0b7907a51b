"""Annotated telemetry in files: a line of OTLP/JSON per request, or length-delimited protobuf.

    spans.jsonl          being written
    spans.jsonl.1        full, the newest of the rotated
    ...
    spans.jsonl.N        the oldest; it goes when the next one is full

Rule 1: a record is in the file whole or not at all. What a failed write left behind is cut off
before anything else is written, now or, after a crash, when the file is opened again.

Rule 2: only a thread touches the disk, never the loop, and one request at a time.

Rule 3: where somebody relies on it (`forced`), a record and the name of its file are forced to the
disk before it counts as sent. When that fails the record is cut off, as after a failed write: what
was not forced may be gone, and asking once more does not tell.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
import threading
from typing import TYPE_CHECKING, Final

from otel_anomaly.exporters.contract import SENT, SendResult, clipped, rejected, retry
from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from otel_anomaly.config import FileExporterConfig

_LOG = logging.getLogger(__name__)

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
BLOCK_BYTES: Final = 1 << 16
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP})
"""Of a folder on a file system that keeps names in its own way."""
VARINT_BYTES_MAX: Final = 5
"""Of a length below 2^31, protobuf's limit for a message."""


class FileExporter:
    """Three files, one for each signal; metrics and logs are made when there is need."""

    serial = True

    def __init__(
        self, config: FileExporterConfig, paths: Mapping[Signal, Path], *, forced: bool = False
    ) -> None:
        """`forced`: what was sent outlives a power cut."""
        self._encode = _json_record if config.format == "json" else _proto_record
        recover = cut_torn_line if config.format == "json" else put_aside_torn
        self._files = {
            signal: RotatingFile(path, config.max_size, config.max_backups, recover, forced=forced)
            for signal, path in paths.items()
        }

    async def start(self) -> None:
        """Make the directory, open the file of traces."""
        await asyncio.to_thread(self._files[Signal.TRACES].open)

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """Write one record."""
        del items
        return await asyncio.to_thread(self._write, body, signal, self._files[signal].closed)

    async def close(self) -> None:
        """Close the files, after a write that is still under way."""
        for file in self._files.values():
            await asyncio.to_thread(file.close)

    def _write(self, body: bytes, signal: Signal, closed: int) -> SendResult:
        try:
            record = self._encode(body, signal)
        except ValueError as error:
            return rejected(f"not OTLP: {clipped(error)}")
        try:
            self._files[signal].append(record, closed)
        except OSError as error:
            return retry(clipped(error))
        return SENT


def _json_record(body: bytes, signal: Signal) -> bytes:
    return json.encode(body, signal) + b"\n"


def _proto_record(body: bytes, signal: Signal) -> bytes:
    del signal
    return _varint(len(body)) + body


class RotatingFile:
    """One file that is appended to, and its rotated forebears."""

    def __init__(
        self,
        path: Path,
        max_size: int,
        max_backups: int,
        recover: Callable[[RotatingFile], None],
        *,
        forced: bool = False,
    ) -> None:
        """`recover` makes an existing file end on a record. `forced`: Rule 3."""
        self.path = path
        self.size = 0
        self.fd = -1
        """-1 while it is not open."""
        self.closed = 0
        """How often it was closed."""
        self._max_size = max_size
        self._max_backups = max_backups
        self._recover = recover
        self._forced = forced
        self._is_regular = True
        """A pipe or a device has nothing to force or to cut."""
        # A cancelled send leaves its thread behind; the next or `close` must wait for it.
        self._lock = threading.Lock()

    def open(self) -> None:
        """Open for appending, or go on where an earlier run ended."""
        with self._lock:
            self._open()

    def append(self, record: bytes, closed: int | None = None) -> None:
        """Write a record whole, or raise OSError and leave no trace of it.

        `closed`: what it was when this began; it must not open again what was closed since.
        """
        with self._lock:
            if closed not in {None, self.closed}:
                raise OSError(errno.EBADF, "closed meanwhile")
            if self.fd < 0:
                self._open()
            if self.size and self.size + len(record) > self._max_size:
                self.rotate()
            try:
                self._write(record)
            except OSError:
                self._undo()
                raise
            self.size += len(record)

    def close(self) -> None:
        """Close; an `append` that begins later would open it again."""
        with self._lock:
            self.closed += 1
            self._close()

    def rotate(self) -> None:
        """Start a new file; the older ones move up by one, those beyond the limit go."""
        self._close()
        for number, backup in self._backups():
            if number >= self._max_backups:
                backup.unlink()
            else:
                backup.replace(self._backup(number + 1))
        if self._max_backups:
            self.path.replace(self._backup(1))
        else:
            self.path.unlink()
        self._open()

    def _open(self) -> None:
        self.path.parent.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, FILE_MODE)
        try:
            state = os.fstat(self.fd)
            self.size = state.st_size
            self._recover(self)
            self._is_regular = stat.S_ISREG(state.st_mode)
            if self._forced and self._is_regular:
                self._force_names()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, record: bytes) -> None:
        left = memoryview(record)
        while left:
            left = left[os.write(self.fd, left) :]
        if self._forced and self._is_regular:
            # macOS has no fdatasync.
            getattr(os, "fdatasync", os.fsync)(self.fd)

    def _force_names(self) -> None:
        """What was made or moved in the folder keeps its name through a power cut."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(folder)

    def _undo(self) -> None:
        """Cut off what a failed write left. Should that fail too, opening again finds it."""
        try:
            os.ftruncate(self.fd, self.size)
        except OSError as error:
            _LOG.warning("%s: cannot cut back after a failed write: %s", self.path, error)
        self._close()

    def _backups(self) -> list[tuple[int, Path]]:
        """(number, file) of the rotated ones, the oldest first."""
        pattern = re.compile(re.escape(self.path.name) + r"\.([1-9][0-9]{0,8})")
        found = ((pattern.fullmatch(entry.name), entry) for entry in self.path.parent.iterdir())
        return sorted(((int(match[1]), entry) for match, entry in found if match), reverse=True)

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def cut_torn_line(file: RotatingFile) -> None:
    """Cut a JSON file back to its last newline: a crash may have left half a line."""
    end = file.size
    while end > 0:
        start = max(end - BLOCK_BYTES, 0)
        newline = os.pread(file.fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < file.size:
        _LOG.warning("%s: cut a torn line of %d bytes", file.path, file.size - end)
        os.ftruncate(file.fd, end)
        file.size = end


def put_aside_torn(file: RotatingFile) -> None:
    """Rotate a protobuf file that does not end on a record.

    Why not cut it as well: a record is found by walking from the front, so in a file that is not
    ours, or of the other format, anything may look like the torn end.
    """
    if not _ends_on_record(file.fd, file.size):
        _LOG.warning("%s: does not end on a record, put aside", file.path)
        file.rotate()


def _ends_on_record(fd: int, size: int) -> bool:
    """Whether the lengths in a file lead exactly to its end."""
    place = 0
    while place < size:
        head = os.pread(fd, VARINT_BYTES_MAX, place)
        length = shift = 0
        for byte in head:
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004 - The varint's last byte.
                break
        else:
            return False
        place += length
    return place == size


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - Seven bits a byte.
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
