"""The directory of a disk queue: the few things that are done with files, so that a test can play
a disk that is full, fails, or forgets what was not forced to it.

Private: the directory is its owner's alone. Whoever could write into it could have us send what
they like, and whoever could read it would read all telemetry.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
BUFFERS_MAX: Final = 1024
"""Of one write (IOV_MAX on Linux)."""
LOCK_NAME: Final = "lock"


class File(Protocol):
    """An open file. Everything raises OSError."""

    def size(self) -> int:
        """Bytes, reserved ones too."""

    def read(self, size: int, place: int) -> bytes:
        """So many bytes; fewer only at the end of the file."""

    def write(self, buffers: Sequence[bytes], place: int) -> None:
        """All of them, one after the other."""

    def reserve(self, place: int, size: int) -> None:
        """Room on the disk, so that writing there cannot fail for want of it; reads as zeros."""

    def truncate(self, size: int) -> None:
        """Cut off what lies behind."""

    def sync(self) -> None:
        """Force what was written to the disk."""

    def close(self) -> None:
        """No more."""


class Files(Protocol):
    """A directory with its lock."""

    place: str
    """For messages."""

    def open_directory(self) -> None:
        """Make it when missing, see that it is private, and lock it.

        Raises
        ------
        OSError, ValueError
            It cannot be used, or another process uses it.
        """

    def names(self) -> list[str]:
        """What lies there."""

    def open(self, name: str, *, new: bool = False) -> File:
        """A file that is there, or one that must not be there yet."""

    def rename(self, name: str, to: str) -> None:
        """Another name; takes the place of what has it."""

    def remove(self, name: str) -> None:
        """Gone."""

    def sync(self) -> None:
        """Force new names to the disk."""

    def close(self) -> None:
        """Give the lock back."""


class RealFile:
    """A file of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, size: int, place: int) -> bytes:
        data = os.pread(self._fd, size, place)
        while 0 < len(data) < size:
            more = os.pread(self._fd, size - len(data), place + len(data))
            if not more:
                break
            data += more
        return data

    def write(self, buffers: Sequence[bytes], place: int) -> None:
        for first in range(0, len(buffers), BUFFERS_MAX):
            some = buffers[first : first + BUFFERS_MAX]
            size = sum(map(len, some))
            written = os.pwritev(self._fd, some, place)
            if written < size:
                self._write_rest(b"".join(some)[written:], place + written)
            place += size

    def _write_rest(self, data: bytes, place: int) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._fd, left, place)
            left, place = left[written:], place + written

    def reserve(self, place: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, place, size)
        else:  # On macOS the room is a promise only: a full disk is seen when it is written.
            os.ftruncate(self._fd, max(place + size, self.size()))

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class RealFiles:
    """A directory of the operating system."""

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path
        self._lock = self._directory = -1

    def open_directory(self) -> None:
        if sys.platform == "win32":
            raise ValueError("sending_queue.storage: disk is not there on Windows")
        self._path.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._directory = os.open(self._path, flags)
        try:
            self._make_private()
            self._take_lock()
        except BaseException:
            self.close()
            raise

    def _make_private(self) -> None:
        """Also when somebody made it beforehand, say as a volume."""
        state = os.fstat(self._directory)
        if state.st_uid != os.geteuid():
            raise ValueError(f"{self.place}: belongs to another user")
        if stat.S_IMODE(state.st_mode) & ~DIRECTORY_MODE:
            os.fchmod(self._directory, DIRECTORY_MODE)

    def _take_lock(self) -> None:
        import fcntl  # noqa: PLC0415 - not to be had on Windows.

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._lock = os.open(self._path / LOCK_NAME, flags, FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = "is open already: in another process, or its disk hung when it was closed"
            raise ValueError(f"{self.place}: this queue {why}") from None

    def names(self) -> list[str]:
        return [path.name for path in self._path.iterdir()]

    def open(self, name: str, *, new: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if new:
            flags |= os.O_CREAT | os.O_EXCL
        return RealFile(os.open(self._path / name, flags, FILE_MODE))

    def rename(self, name: str, to: str) -> None:
        (self._path / name).replace(self._path / to)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        os.fsync(self._directory)

    def close(self) -> None:
        for descriptor in (self._lock, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._directory = -1
