"""How fast a backlog is read from the disk: new traffic goes first.

Both are served by one event loop, which is one core at most. A backlog that is read as fast as it
can be takes as much of it as new traffic does, and whoever sends that traffic waits. So it rests
between two loads, for twice as long whenever the process was busy since the last, and less when it
was not: what new traffic leaves of the core is the backlog's. A part is the backlog's in any case,
or the outage of one busy day would lie on the disk for ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REST_S_MIN, REST_S_MAX = 0.005, 0.5
"""The longest leaves the backlog one load in about so long: 4 MiB, of a small queue less."""
BUSY: Final = 0.9
"""CPU time of the process over time: the interpreter has one core for all of its threads."""
LATE_S: Final = 0.01
"""A process that gets less than a core, of a machine that is busy or a container that is limited,
hears the end of a rest so much later."""


class Pace:
    """The rests of one queue."""

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        """`cpu_s` is the CPU time of the process, in seconds."""
        self._cpu_s = cpu_s
        self.rest_s = REST_S_MIN
        """How long to rest after a load, seconds."""
        self._seen_s, self._seen_cpu_s = 0.0, 0.0

    def rested(self, now_s: float, late_s: float) -> None:
        """A rest is over, `late_s` later than it was due."""
        cpu_s = self._cpu_s()
        busy_s = BUSY * (now_s - self._seen_s)
        is_busy = late_s > LATE_S or cpu_s - self._seen_cpu_s > busy_s
        self._seen_s, self._seen_cpu_s = now_s, cpu_s
        rest_s = self.rest_s * (2 if is_busy else 3 / 4)
        self.rest_s = min(max(rest_s, REST_S_MIN), REST_S_MAX)
