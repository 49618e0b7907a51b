"""One service to a data directory: a locked file that says who it is.

The lock is the system's (`flock`) and ends with the process, however that ends; the file stays and
means nothing by itself. In it stand the process number of the service and the namespace that number
is of, for the command that asks the service for a snapshot: from another container or machine the
same number is somebody else.

Some file systems of a network have no locks. There the service runs without, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

LOG: Final = logging.getLogger("otel_anomaly")
NAME: Final = "lock"
_BYTES_MAX: Final = 256
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
TRIES, PAUSE_S = 5, 0.05
"""Who asks whether a service runs holds the lock for a moment: that is no reason not to start."""


class InUse(OSError):
    """Another process holds the lock."""


def _namespace() -> str:
    """What process numbers are unique in, as far as this system tells: machine and container."""
    with contextlib.suppress(OSError):
        # The first namespace of every machine has the same number.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{Path('/proc/self/ns/pid').readlink()}@{boot}"
    return "-"


def _locked(number: int) -> bool:
    """Take the lock, if nobody has it. Where there is no such lock it is never held.

    Raises OSError where it cannot be known.
    """
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
        with contextlib.ExitStack() as undo:
            self._number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            undo.callback(os.close, self._number)
            self._take()
            os.ftruncate(self._number, 0)
            os.pwrite(self._number, f"{os.getpid()}\n{_namespace()}\n".encode(), 0)
            undo.pop_all()
        return self

    def _take(self) -> None:
        for left in reversed(range(TRIES)):
            try:
                if _locked(self._number):
                    return
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                LOG.warning(
                    "%s is on a file system without locks: nothing keeps a second service out",
                    self._path.parent,
                )
                return
            if left:
                time.sleep(PAUSE_S)
        raise InUse(f"{self._path.parent} is in use by {_owner(self._number)}")

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


def _owner(number: int) -> str:
    process, namespace = _read(number)
    if not process:
        return "a process that is just starting"
    elsewhere = "" if namespace == _namespace() else " of another container or machine"
    return f"process {process}{elsewhere}"


def running_in(directory: Path) -> int:
    """The process number of the service that holds a data directory.

    Raises
    ------
    LookupError
        There is none, or it cannot be reached from here; says which.
    """
    directory = directory.absolute()  # Two who speak of `data` may stand in different places.
    try:
        number = os.open(directory / NAME, os.O_RDWR)
    except FileNotFoundError as error:
        raise LookupError(f"no service runs on {directory}") from error
    except OSError as error:
        raise LookupError(f"{directory / NAME}: {error.strerror}: ask as its owner") from error
    try:
        if _locked(number):
            raise LookupError(f"no service runs on {directory}")
        process, namespace = _read(number)
    except OSError as error:  # What stands in the file may be long over.
        raise LookupError(f"{directory / NAME}: {error.strerror}: nobody can tell") from error
    finally:
        os.close(number)
    if process <= 1 and namespace == "-":
        raise LookupError(f"the service on {directory} is just starting")
    if namespace != _namespace():
        raise LookupError(
            f"the service on {directory} runs in another container or on another machine: ask there"
        )
    return process
