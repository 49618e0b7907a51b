"""The end of a process whose stop does not come to an end.

A disk that hangs holds the thread that writes to it, and the interpreter waits for its threads. The
parts of the stop have times of their own; this one is for what none of them has thought of.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class LastResort:
    """Armed when the stop begins, disarmed when it is over."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        """`end` is called with the exit code, in a thread of its own."""
        self._end = end
        self._timer: threading.Timer | None = None

    def arm(self, after_s: float, code: int, last_words: Callable[[], str]) -> None:
        """End the process after so long, saying what is known of it by then."""
        assert self._timer is None
        self._timer = threading.Timer(after_s, self._give_up, (code, last_words))
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        """The stop is over, or never began."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, code: int, last_words: Callable[[], str]) -> None:
        try:
            sys.stderr.write(last_words())
            sys.stderr.flush()
        finally:
            self._end(code)
