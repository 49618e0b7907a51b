"""`otel-anomaly snapshot`: asks the running service for a snapshot, or says what is in one.

Asking is a signal to the process that holds the data directory; the answer is the file itself, new
under its name. Nothing is opened for it and nothing listens.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import snapshot_path
from otel_anomaly.directory_lock import running_in
from otel_anomaly.snapshot_file import SnapshotRefused
from otel_anomaly.snapshots import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.config import Config

WAIT_S: Final = 60.0
POLL_S: Final = 0.05


class Answer(NamedTuple):
    """What came of it."""

    good: bool
    text: str


def _which(path: Path) -> tuple[int, int]:
    """Tells one file under a name from the next."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def ask(
    config: Config, *, sleep: Callable[[float], None] = time.sleep, wait_s: float = WAIT_S
) -> Answer:
    """Have the service of this configuration write a snapshot now, and wait until it is there."""
    if sys.platform == "win32":
        return Answer(good=False, text="a running service cannot be asked on this system")
    if not config.storage.snapshots.enabled:
        return Answer(good=False, text="storage.snapshots.enabled is false: none is written")
    path = snapshot_path(config)
    earlier = _which(path)
    try:
        process = running_in(Path(config.storage.directory))
        os.kill(process, signal.SIGUSR1)
    except (LookupError, OSError) as error:
        return Answer(good=False, text=str(error.args[-1]))
    waited_s = 0.0
    while _which(path) in {earlier, (0, 0)}:
        if waited_s >= wait_s:
            why = "the service is still starting, or its log says why"
            text = f"{path}: not written within {wait_s:.0f} s: {why}"
            return Answer(good=False, text=text)
        sleep(POLL_S)
        waited_s += POLL_S
    return look_into(path)


def look_into(path: Path) -> Answer:
    """What is in a snapshot: when it was written and how much of each kind; no names."""
    try:
        found = inspect(path)
    except FileNotFoundError:
        return Answer(good=False, text=f"{path}: there is none")
    except SnapshotRefused as error:
        return Answer(good=False, text=f"{path}: {error}")
    written_ns, size = found.pop("written_ns"), found.pop("bytes")
    age_s = max(time.time() - written_ns / 1e9, 0.0)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(written_ns // 10**9))
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.items())
    return Answer(
        good=True, text=f"{path}: {size} bytes, written {when}, {age_s:.0f} s ago: {counts}"
    )
