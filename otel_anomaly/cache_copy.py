"""A copy of a kernel cache that may only be read: numba wants to write where it reads from.

An image with a read-only root is then ready as fast as any; only we can read the copy. It goes with
the process. A process that is killed leaves it, and where the folder for such things is memory that
outlives the container, every crash would take some more: so each start removes what is abandoned.
A copy in use is locked, and a lock ends with its process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

LOG: Final = logging.getLogger("otel_anomaly")
PREFIX: Final = "otel-anomaly-kernels-"
YOUNG_S: Final = 60.0
"""One that was made just now may not be locked yet."""
_LOCKS: Final[list[int]] = []
"""Open as long as we run."""


def writable_copy(folder: Path) -> Path | None:
    """A copy of `folder` for this process; None when there is no room for it, and says so."""
    try:
        remove_abandoned(Path(tempfile.gettempdir()))
        copied = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = _locked(copied)
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        copied.chmod(0o700)  # It was, but a copy takes over the mode of its original.
    except OSError as error:
        LOG.warning("the kernels in %s are of no use, all is compiled anew: %s", folder, error)
        return None
    if lock is not None:
        _LOCKS.append(lock)
    atexit.register(shutil.rmtree, copied, ignore_errors=True)
    return copied


def remove_abandoned(folder: Path) -> None:
    """Remove copies of ours that no process holds."""
    if sys.platform == "win32":
        return
    for copy in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = copy.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_ctime < YOUNG_S:
                continue
            lock = _locked(copy)
            if lock is not None:
                shutil.rmtree(copy, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on a folder, as an open file; None when somebody has it, or there are none."""
    if sys.platform == "win32":
        return None
    import fcntl  # noqa: PLC0415 - not to be had on Windows.

    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number
