"""The memory limit: requests are refused before they are read, not after the kernel has killed us.

    limit   service.memory.limit, against the process's own resident memory; else a percentage
            of the tightest cgroup limit above us (v2 or v1), against that cgroup's use without
            file cache, which is what the kernel goes by when it kills; else of the machine
    used    looked at once in `check_interval`, sooner when much has come in, never per request;
            between two looks everything that is let in counts on top: a burst cannot pass under a
            stale figure

    let in --- used + let in since >= limit ---> refusing --- used <= limit - 5 % ---> let in

When the limit is met, garbage is collected and free memory given back (at most every ten seconds):
what is left after that is in use.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import SECOND_NS
from otel_anomaly.handoff import Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.config import MemoryConfig
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

LOG = logging.getLogger("otel_anomaly")

RESUME_SHARE: Final = 0.95
"""Of the limit: refusing ends when no more than this is used, so that it does not flutter."""
AGAIN_S: Final = 0.01
"""So soon is looked again when what was let in since the last look fills the limit: at a gigabyte
a second most of it has left by then."""
RELIEF_EVERY_S: Final = 10.0
LOG_EVERY_S: Final = 60.0
REQUEST_BYTES_MIN: Final = 4096
"""What a request counts for at least: the objects around it take room too."""
UNLIMITED: Final = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63."""


class Bound(NamedTuple):
    """How much there is and how much is used, bytes."""

    limit: int
    """All that there is; 0: not known."""
    used: int
    whose: str
    """For people: `cgroup`, `machine` or `process`."""


class Cgroup(NamedTuple):
    """The files of one control group that has a memory limit."""

    limit: Path
    usage: Path
    stat: Path
    cache: str
    """The line of `stat` that says how much of it is file cache nobody needs."""


class MemoryFiles:
    """Reads what the kernel says. Every file that is missing or odd is as if it were not there."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc, self._groups = root / "proc", root / "sys/fs/cgroup"
        self._chain = self._find()

    def bound(self) -> Bound:
        """The tightest limit above the process, and what is held against it."""
        machine = _field(self._proc / "meminfo", "MemTotal:") * 1024
        best = Bound(machine, self.resident(), "machine")
        for group in self._chain:
            limit = _number(group.limit)
            if 0 < limit < UNLIMITED and (not best.limit or limit <= best.limit):
                used = max(_number(group.usage) - _field(group.stat, group.cache), 0)
                best = Bound(limit, used, "cgroup")
        return best

    def resident(self) -> int:
        """Resident memory of this process."""
        return _field(self._proc / "self/status", "VmRSS:") * 1024

    def _find(self) -> list[Cgroup]:
        """The control groups above the process, the nearest last."""
        chain: list[Cgroup] = []
        for line in _text(self._proc / "self/cgroup").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                chain += self._above(self._groups, path, _V2)
            elif "memory" in controllers.split(","):
                chain += self._above(self._groups / "memory", path, _V1)
        return chain

    def _above(self, mount: Path, path: str, names: tuple[str, str, str]) -> list[Cgroup]:
        # In a container the path may be that outside, of which nothing is mounted here: then only
        # the root of the mount is there, and it is the container's own group.
        parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
        folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        limit, usage, cache = names
        return [
            Cgroup(folder / limit, folder / usage, folder / "memory.stat", cache)
            for folder in folders
            if (folder / limit).is_file()
        ]


_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int:
    """The number in a file; 0 for `max` and whatever else is none."""
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def _field(path: Path, name: str) -> int:
    """The number after `name` in a file of lines."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0


def give_back() -> None:
    """Collect garbage, and give memory that is free back to the system."""
    gc.collect()
    if os.name == "posix":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # Another libc: it does so by itself, or not at all.


class MemoryLimiter:
    """Says which requests must not come in for want of memory."""

    def __init__(
        self,
        config: MemoryConfig,
        telemetry: Telemetry,
        clock: Clock,
        retry_after_s: Callable[[], float],
        *,
        files: MemoryFiles | None = None,
        relieve: Callable[[], None] = give_back,
    ) -> None:
        """`retry_after_s`: how long it takes until some of what is held has left."""
        self._telemetry, self._clock = telemetry, clock
        self._retry_after_s, self._relieve = retry_after_s, relieve
        self._files = MemoryFiles() if files is None else files
        self._let_in = 0
        self._refusing = False
        self._relieved_s = self._logged_s = -1e9
        self.reconfigure(config)

    def reconfigure(self, config: MemoryConfig) -> None:
        """Go by another limit from now on."""
        self._config = config
        self._interval_s = config.check_interval / SECOND_NS
        self.look()

    def admit(self, size: int, admitted: int | None = None) -> Reply | None:
        """None: a request of so many bytes may come in, and counts. Else the refusal to give.

        `admitted`: it was let in as so many bytes before, and only the rest counts.
        """
        now_s = self._clock.monotonic()
        if now_s >= self._look_s:
            self.look()
        size = max(size, REQUEST_BYTES_MIN)
        if admitted is not None:
            size = max(size - max(admitted, REQUEST_BYTES_MIN), 0)
        if not self._limit:
            return None
        if not self._has_room(size) and not self._refusing and now_s >= self._looked_s + AGAIN_S:
            self.look()  # Much of what was let in may have left.
        if self._refusing or not self._has_room(size):
            wait_s = max(self._retry_after_s(), self._interval_s)
            return Reply(Outcome.MEMORY, "the service is near its memory limit", wait_s)
        self._let_in += size
        return None

    def _has_room(self, size: int) -> bool:
        return self._used + self._let_in + size <= self._limit

    def tick(self) -> None:
        """Look when it is time to, also while nobody asks."""
        if self._clock.monotonic() >= self._look_s:
            self.look()

    def look(self) -> None:
        """Read how much is used, and settle whether requests may come in."""
        now_s = self._clock.monotonic()
        self._looked_s, self._look_s = now_s, now_s + self._interval_s
        self._let_in = 0
        self._read()
        over = self._is_over()
        if over and now_s - self._relieved_s >= RELIEF_EVERY_S:
            self._relieved_s = now_s
            self._relieve()
            self._read()
            over = self._is_over()
        if over and now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOG.warning("%s", self._sentence())
        if self._refusing and not over:
            LOG.info("memory: %d MiB used, requests come in again", self._used >> 20)
        self._refusing = over

    @property
    def problem(self) -> str | None:
        """Why requests are refused just now; None when they are not."""
        return self._sentence() if self._refusing else None

    def _is_over(self) -> bool:
        line = self._limit * RESUME_SHARE if self._refusing else self._limit
        return bool(self._limit) and self._used > line

    def _read(self) -> None:
        config = self._config
        if config.limit is not None:
            self._limit, self._used = config.limit, self._files.resident()
            self._whose = "process"
        else:
            there, self._used, self._whose = self._files.bound()
            self._limit = there * config.limit_percentage // 100
        self._telemetry.memory_limit.set(self._limit)
        self._telemetry.memory_used.set(self._used)

    def _sentence(self) -> str:
        used, limit = self._used >> 20, self._limit >> 20
        return f"memory: {used} MiB used by the {self._whose}, limit {limit} MiB: requests refused"
