"""Readings of memory as the seed plays them, and what the limit must make of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.handoff import Outcome, Reply
from otel_anomaly.memory import RESUME_SHARE, Bound, MemoryFiles

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from otel_anomaly.config import MemoryConfig

MIB = 1 << 20
THERE = 256 * MIB
CALM, TIGHT, OVER = "calm", "tight", "over"


class Readings(MemoryFiles):
    """Stands where `MemoryFiles` stands, and witnesses what is let in."""

    def __init__(self, rng: random.Random, now_s: Callable[[], float]) -> None:
        self._rng, self._now_s = rng, now_s
        self._mood = CALM
        self._used = self._line = self._let_in = 0
        self._read_s = now_s()

    def change(self) -> None:
        """Somebody else on the machine takes memory, or gives it back."""
        self._mood = self._rng.choice((CALM, CALM, TIGHT, OVER))

    def bound(self) -> Bound:
        """Of a cgroup."""
        return Bound(THERE, self._read(THERE * 80 // 100), "cgroup")

    def resident(self) -> int:
        """Of the process, against the smallest limit that there is."""
        return self._read(64 * MIB)

    def relieve(self) -> None:
        """What garbage collection finds: much, or nothing."""
        if self._rng.random() < 0.3:
            self._mood = CALM

    def _read(self, line: int) -> int:
        rng = self._rng
        self._line, self._let_in, self._read_s = line, 0, self._now_s()
        match self._mood:
            case "calm":
                self._used = rng.randrange(line // 2)
            case "tight":  # Some requests more, and it is full.
                self._used = line - rng.choice((0, 50_000, 500_000, line // 25))
            case _:
                self._used = line + rng.randrange(1, line // 4)
        return self._used

    def check(self, counted: int, reply: Reply | None, config: MemoryConfig) -> None:
        """A request that counts as so many bytes hears `reply`: right by the last reading?"""
        assert self._now_s() - self._read_s <= config.check_interval / 1e9, "an old reading"
        limited = config.limit is not None or config.limit_percentage > 0
        used = self._used + self._let_in
        if reply is None:
            assert not limited or used + counted <= self._line, "more than there is room for"
            self._let_in += counted
            return
        assert reply.outcome is Outcome.MEMORY
        assert reply.retry_after_s > 0
        full = used + counted > self._line
        assert limited
        assert full or self._used > self._line * RESUME_SHARE, "there was room"
