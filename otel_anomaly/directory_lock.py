"""One service to a data directory: a locked file that says who it is.

The lock is the system's (`flock`) and ends with the process, however that ends; the file stays and
means nothing by itself. In it stand the process number of the service and the namespace that number
is of, for the command that asks the service for a snapshot: from another container the same number
is somebody else.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

NAME: Final = "lock"
_BYTES_MAX: Final = 256


class InUse(OSError):
    """Another process holds the lock."""


def _namespace() -> str:
    """What process numbers are unique in, as far as this system tells."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return "-"


def _locked(number: int) -> bool:
    """Take the lock, if nobody has it. Where there is no such lock it is never held."""
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415 - not to be had on Windows.

    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class DirectoryLock:
    """Holds a data directory from `with` to its end. Raises InUse, or OSError."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._number = -1

    def __enter__(self) -> Self:
        self._number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _locked(self._number):
            owner = _read(self._number)[0]
            os.close(self._number)
            raise InUse(f"{self._path.parent} is in use by process {owner}")
        os.ftruncate(self._number, 0)
        os.pwrite(self._number, f"{os.getpid()}\n{_namespace()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._number)


def _read(number: int) -> tuple[int, str]:
    """Process number and namespace in the file; 0 when it has none."""
    words = os.pread(number, _BYTES_MAX, 0).decode("ascii", "replace").split()
    process = int(words[0]) if words and words[0].isdecimal() else 0
    return process, words[1] if len(words) > 1 else "-"


def running_in(directory: Path) -> int:
    """The process number of the service that holds a data directory.

    Raises
    ------
    LookupError
        There is none, or it cannot be reached from here; says which.
    """
    try:
        number = os.open(directory / NAME, os.O_RDWR)
    except OSError as error:
        raise LookupError(f"no service runs on {directory}") from error
    try:
        if _locked(number):
            raise LookupError(f"no service runs on {directory}")
        process, namespace = _read(number)
    finally:
        os.close(number)
    if process <= 1 and namespace == "-":
        raise LookupError(f"the service on {directory} is just starting")
    if namespace != _namespace():
        raise LookupError(f"the service on {directory} runs in another container: ask there")
    return process
