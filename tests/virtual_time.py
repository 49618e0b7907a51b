"""An event loop whose time is virtual: it jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

EVENTS_PER_MOMENT_MAX = 100_000
"""A loop that turns so often without time passing is busy-waiting."""


class _JumpingSelector(selectors.SelectSelector):
    """Where a loop would sleep, its time moves on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else"
        self.loop.jump(timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Counts its turns, so that a test can see that nothing turns for nothing."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._turns_here = 0
        self.turns = 0
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        # Of half a year in seconds a double has no nanoseconds: asyncio's own resolution, added to
        # such a time, is nothing, and what is due then would never be called.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._now_s

    def jump(self, seconds: float) -> None:
        self.turns += 1
        self._turns_here = 0 if seconds > 0 else self._turns_here + 1
        assert self._turns_here < EVENTS_PER_MOMENT_MAX, "time stands still"
        self._now_s += max(seconds, 0)


def play(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` in virtual time. Threads do not mix with it: nothing waits for them."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
