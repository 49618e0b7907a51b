r"""An exporter that can be exchanged for another while its queue goes on.

    queue --send--> Swapping --> the one in use
                            \-> the one before: ends the attempts under way, then closes

The queue, what it holds, its books and its consumers stay, so an exchange loses nothing: what was
held for the old address goes to the new one. A request is under way with one exporter from its
first byte to its last.

An exporter of which there may be one at a time only (it writes files) is closed before the next
one opens; attempts wait meanwhile. Were the next one to fail, the one before opens again by itself
with its next attempt.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_anomaly.exporters.contract import Exporter, SendResult
    from otel_anomaly.handoff import Signal

_LOG = logging.getLogger(__name__)


class _InUse:
    """An exporter and its attempts under way."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        self._under_way += 1
        self._idle.clear()
        try:
            return await self.exporter.send(body, signal, items)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def close(self) -> None:
        """Close when the last attempt is over; each has a deadline of its own."""
        await self._idle.wait()
        try:
            await self.exporter.close()
        except OSError:
            _LOG.warning("an exporter that was replaced could not be closed", exc_info=True)


class Swapping:
    """The exporter that a queue sees."""

    def __init__(self, exporter: Exporter) -> None:
        self.serial = exporter.serial
        self._first = exporter
        self._open = asyncio.Event()
        self._open.set()
        self._retired: set[asyncio.Task[None]] = set()
        self._current: _InUse | None = None
        self._next: _InUse | None = None

    async def start(self) -> None:
        """Open the first exporter."""
        await self._first.start()
        self._current = _InUse(self._first)

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """One attempt with the exporter in use; it waits while one is being exchanged."""
        while not self._open.is_set():
            await self._open.wait()
        assert self._current is not None
        return await self._current.send(body, signal, items)

    async def close(self) -> None:
        """Close what is open."""
        self._open.set()
        if self._retired:
            await asyncio.wait(self._retired)
        if self._current is not None:
            await self._current.exporter.close()

    async def try_next(self, exporter: Exporter) -> None:
        """Open another exporter beside the one in use. Then either `adopt` it or `forget` it.

        Raises OSError or ValueError when it cannot be opened; the one in use goes on then.
        """
        assert exporter.serial == self.serial
        assert self._next is None
        assert self._current is not None
        try:
            if self.serial:
                self._open.clear()
                await self._current.close()
            await exporter.start()
        except BaseException:  # A stop breaks it off: the one before goes on, see above.
            self._open.set()
            raise
        self._next = _InUse(exporter)

    async def forget(self) -> None:
        """Close what `try_next` opened."""
        if self._next is not None:
            await self._next.close()
            self._next = None
        self._open.set()

    def adopt(self) -> None:
        """Send through what `try_next` opened, from the next attempt on."""
        assert self._next is not None
        assert self._current is not None
        if not self.serial:
            task = asyncio.create_task(self._current.close(), name="exporter that was replaced")
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
        self._current, self._next = self._next, None
        self._open.set()
