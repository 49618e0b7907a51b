"""All queues as one: room in every required one or in none, and one stop for all."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from otel_anomaly.exporters.queue import RETRY_AFTER_S_MIN, charge_of
from otel_anomaly.handoff import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from otel_anomaly.exporters.queue import SendQueue
    from otel_anomaly.handoff import Payload, Reply

_LOG = logging.getLogger(__name__)

PROBLEM_SHARE = 0.7
"""A queue fuller than this is a problem that somebody should hear of."""


class Fanout:
    """All queues as one: what the processor and the service see."""

    def __init__(self, queues: Sequence[SendQueue]) -> None:
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self.arrange(queues)

    def arrange(self, queues: Sequence[SendQueue]) -> None:
        """Hand everything to these queues from now on. No reservation may be open.

        Whoever calls has started those that are new; those that are missing are to `retire`.
        """
        self._queues = tuple(queues)
        self._required = tuple(queue for queue in queues if queue.required)
        self._optional = tuple(queue for queue in queues if not queue.required)
        self._bytes_max = min((queue.capacity for queue in self._required), default=math.inf)

    def retire(self, queue: SendQueue, timeout_s: float) -> None:
        """Let a queue that gets nothing more deliver what it holds, beside the others."""
        task = asyncio.create_task(_leave(queue, timeout_s), name=f"exporter {queue.name} leaves")
        self._leaving[queue.name] = task

    def is_leaving(self, name: str) -> bool:
        """Whether an exporter of this name was retired and is not closed yet."""
        return name in self._leaving and not self._leaving[name].done()

    async def gone(self, name: str) -> None:
        """Wait until an exporter of this name that was retired is closed."""
        task = self._leaving.pop(name, None)
        if task is not None:
            await asyncio.wait({task})

    async def start(self) -> None:
        """Start all, or none."""
        started: list[SendQueue] = []
        try:
            for queue in self._queues:
                await queue.start()
                started.append(queue)
        except BaseException:
            await asyncio.gather(*(queue.stop(0) for queue in started))
            raise

    def reserve(self, bytes_needed: int) -> Outcome:
        """Set room aside in every required queue, or in none, and say why not."""
        if self._stopping:
            return Outcome.STOPPING
        charge = charge_of(bytes_needed)
        if charge > self._bytes_max:
            return Outcome.TOO_LARGE  # No drain will ever make room for it.
        for queue in self._required:
            if queue.used + charge > queue.capacity:
                return Outcome.QUEUE_FULL
        for queue in self._required:
            queue.used += charge
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> Awaitable[Reply] | None:
        """Fill a reservation. Cannot fail: that is what the reservation was for."""
        size = len(payload.body)
        assert size <= bytes_reserved
        charge = charge_of(size)
        spare = charge_of(bytes_reserved) - charge
        for queue in self._required:
            queue.free(spare)
            queue.put(payload, charge)
        for queue in self._optional:
            queue.offer(payload, charge)
        return None

    def release(self, bytes_reserved: int) -> None:
        """Give a reservation back unused."""
        for queue in self._required:
            queue.free(charge_of(bytes_reserved))

    def retry_after_s(self) -> float:
        """When a refused client may succeed, seconds, from 1 to 30."""
        waits = (queue.retry_after_s() for queue in self._required)
        return max(waits, default=RETRY_AFTER_S_MIN)

    def problems(self) -> dict[str, str]:
        """Exporters that do not keep up, and why: their queue is filling."""
        return {
            f"exporters.{queue.name}": f"queue {share:.0%} full{queue.trouble()}"
            for queue in self._queues
            if (share := queue.used / queue.capacity) > PROBLEM_SHARE
        }

    async def stop(self, drain_timeout_s: float) -> dict[str, int]:
        """Refuse what comes, deliver what is held. Returns spans dropped, by exporter."""
        self._stopping = True
        dropped = await asyncio.gather(*(queue.stop(drain_timeout_s) for queue in self._queues))
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        return {queue.name: spans for queue, spans in zip(self._queues, dropped, strict=True)}


async def _leave(queue: SendQueue, timeout_s: float) -> None:
    """Drain and close a queue that was retired. Whatever happens to it is its own affair."""
    try:
        dropped = await queue.stop(timeout_s)
    except OSError:
        _LOG.warning("exporter %s: removed, but could not be closed", queue.name, exc_info=True)
    else:
        _LOG.info("exporter %s: removed and drained; %d spans dropped", queue.name, dropped)
