"""Next hops of moods: slow, busy, picky, broken, silent, or gone after they took what was sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from otel_anomaly.exporters.contract import SENT, Kind, SendResult, rejected, retry, too_large
from otel_anomaly.handoff import Signal
from tests.simulation.numbered import spans_in

if TYPE_CHECKING:
    import random

CALM = (90, 4, 2, 1, 1, 1, 0, 1)
SUNSHINE = (1, 0, 0, 0, 0, 0, 0, 0)
STORM = (40, 25, 10, 6, 3, 3, 1, 8)
"""Weights of: took it, busy, refused, too large, a bug of ours, took part of it, silence, took it
and the answer was lost."""


class Hop:
    """An exporter and what is behind it. Remembers which spans it has, and how often."""

    serial = False

    def __init__(self, rng: random.Random, log: list[str], name: str) -> None:
        self.rng, self.name, self._log = rng, name, log
        self.weights = STORM
        self.spans: Counter[int] = Counter()
        self.acknowledged = 0
        """Spans in requests that were answered with success."""
        self.requests: Counter[Signal] = Counter()
        self.under_way = 0
        self.opened = self.closed = 0

    async def start(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1
        assert self.closed <= self.opened

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        self.under_way += 1
        try:
            result = await self._answer(body, signal)
        finally:
            self.under_way -= 1
        self._log.append(f"{self.name} {signal.value} {len(body)} {result.kind.value}")
        if result.kind is Kind.SENT and signal is Signal.TRACES:
            assert items == len(spans_in(body))
            self.acknowledged += items
        return result

    async def _answer(self, body: bytes, signal: Signal) -> SendResult:
        rng = self.rng
        await asyncio.sleep(rng.choice((0, 0.001, 0.3, 4)))
        match rng.choices(range(8), weights=self.weights)[0]:
            case 1:
                return retry("busy", rng.choice((None, 0.5, 40.0, 1e12, -1.0)))
            case 2:
                return rejected("bad", about_data=rng.random() < 0.8)
            case 3:
                return too_large("big")
            case 4:
                raise RuntimeError("a mistake of ours")
            case 5:
                self._take(body, signal)
                return SendResult(Kind.SENT, "\x00?", rejected=rng.getrandbits(63))
            case 6:
                await asyncio.sleep(1e6)
            case 7:
                self._take(body, signal)
                return retry("the connection broke")
        self._take(body, signal)
        return SENT

    def _take(self, body: bytes, signal: Signal) -> None:
        """The last word: from here on only the way back can fail."""
        self.requests[signal] += 1
        if signal is Signal.TRACES:
            self.spans.update(spans_in(body))
