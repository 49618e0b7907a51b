"""All queues as one: between processor and exporters.

    reserve -> commit -+-> queue "file"      -> send
                       +-> queue "otlp_grpc" -> send

Rule 1: room is set aside in every required queue before anything is learned; `commit` cannot
fail. An optional exporter takes what it has room for at `commit` and counts the rest as dropped.

Rule 2: with `ack: queued` an answer is open until the disk queues, if there are any, have written
the request. With `ack: sent` it is open until every required exporter has brought it to its end,
for a time that is bounded, as is the number of clients that wait. Nobody waits for an optional
exporter.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.answer import Answer
from otel_anomaly.exporters.queue import RETRY_AFTER_S_MIN
from otel_anomaly.handoff import Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from otel_anomaly.exporters.queue import SendQueue
    from otel_anomaly.handoff import Payload

_LOG = logging.getLogger(__name__)

WAITING_MAX: Final = 10_000
"""Clients that wait for delivery at once; beyond this a request is refused like by a full queue."""
PROBLEM_SHARE: Final = 0.7
"""A queue fuller than this is a problem that somebody should hear of."""
STOP_ANSWER_S: Final = 3.0
"""When the service stops, whoever waits is answered within this: the doors do not wait longer."""
_LATE: Final = Reply(Outcome.UNAVAILABLE, "not delivered in time, still queued: send again later")


class Fanout:
    """What the processor and the service see of the exporters."""

    def __init__(
        self, queues: Sequence[SendQueue], ack: str = "queued", ack_timeout: int = 8 * SECOND_NS
    ) -> None:
        """`ack` and `ack_timeout` (ns) as in the configuration."""
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._open: dict[Answer, None] = {}
        self._stopping = False
        self.arrange(queues, ack, ack_timeout)

    def arrange(
        self, queues: Sequence[SendQueue], ack: str = "queued", ack_timeout: int = 8 * SECOND_NS
    ) -> None:
        """Hand everything to these queues from now on. No reservation may be open.

        Whoever calls has started those that are new; those that are missing are to `retire`.
        """
        self._queues = tuple(queues)
        self._required = tuple(queue for queue in queues if queue.required)
        self._optional = tuple(queue for queue in queues if not queue.required)
        self._on_disk = sum(queue.on_disk for queue in self._required)
        self._wants_sent = ack == "sent" and bool(self._required)
        self._ack_timeout_s = ack_timeout / SECOND_NS

    def retire(self, queue: SendQueue, timeout_s: float) -> None:
        """Let a queue that gets nothing more deliver what it holds, beside the others."""
        self._leaving = {name: task for name, task in self._leaving.items() if not task.done()}
        task = asyncio.create_task(_leave(queue, timeout_s), name=f"exporter {queue.name} leaves")
        self._leaving[queue.name] = task

    def is_leaving(self, name: str) -> bool:
        """Whether an exporter of this name was retired and is not closed yet."""
        return name in self._leaving and not self._leaving[name].done()

    async def gone(self, name: str) -> None:
        """Wait until an exporter of this name that was retired is closed."""
        if name in self._leaving:
            await asyncio.wait({self._leaving[name]})
            del self._leaving[name]

    async def start(self) -> None:
        """Start all, or none."""
        started: list[SendQueue] = []
        try:
            for queue in self._queues:
                await queue.start()
                started.append(queue)
        except BaseException:
            await _stop_all(started, 0)
            raise

    def reserve(self, bytes_needed: int) -> Outcome:
        """Set room aside in every required queue, or in none, and say why not."""
        if self._stopping:
            return Outcome.STOPPING
        required = self._required
        charges = [queue.charge_of(bytes_needed) for queue in required]
        for queue, charge in zip(required, charges, strict=True):
            if charge > queue.charge_max:
                return Outcome.TOO_LARGE  # No drain will ever make room for it.
        if self._wants_sent and len(self._open) >= WAITING_MAX:
            return Outcome.QUEUE_FULL
        for queue, charge in zip(required, charges, strict=True):
            if not queue.has_room(charge):
                return Outcome.QUEUE_FULL
        for queue, charge in zip(required, charges, strict=True):
            queue.hold(charge)
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> Awaitable[Reply] | None:
        """Fill a reservation. Cannot fail: that is what the reservation was for.

        Returns the answer where it is open, else None.
        """
        size = len(payload.body)
        assert size <= bytes_reserved
        written = ended = None
        if self._wants_sent:
            ended = self._open_answer()
        elif self._on_disk:
            written = Answer(self._on_disk, self.retry_after_s)
        for queue in self._required:
            charge = queue.charge_of(size)
            queue.free(queue.charge_of(bytes_reserved) - charge)
            queue.put(payload, charge, written=written if queue.on_disk else None, ended=ended)
        for queue in self._optional:
            queue.offer(payload)
        answer = written or ended
        return answer.future if answer is not None else None

    def release(self, bytes_reserved: int) -> None:
        """Give a reservation back unused."""
        for queue in self._required:
            queue.free(queue.charge_of(bytes_reserved))

    def retry_after_s(self) -> float:
        """When a refused client may succeed, seconds, from 1 to 30."""
        waits = (queue.retry_after_s() for queue in self._required)
        return max(waits, default=RETRY_AFTER_S_MIN)

    def problems(self) -> dict[str, str]:
        """Exporters that do not keep up, and why: their disk fails, or their queue is filling."""
        found = {queue.name: queue.problem for queue in self._queues if queue.problem}
        for queue in self._queues:
            share = queue.used / queue.capacity
            if share > PROBLEM_SHARE and queue.name not in found:
                found[queue.name] = f"queue {share:.0%} full{queue.trouble()}"
        return {f"exporters.{name}": problem for name, problem in found.items()}

    def hurry(self) -> None:
        """The service is about to stop: whoever waits is answered soon."""
        for queue in self._queues:
            queue.hurry(STOP_ANSWER_S)
        self._ack_timeout_s = min(self._ack_timeout_s, STOP_ANSWER_S)
        for answer in self._open:
            asyncio.get_running_loop().call_later(self._ack_timeout_s, answer.settle, _LATE)

    async def stop(self, drain_timeout_s: float) -> dict[str, int]:
        """Refuse what comes, deliver what is held. Returns spans dropped, by exporter.

        An exporter that could not be stopped is not among them: that was logged.
        """
        self._stopping = True
        dropped = await _stop_all(self._queues, drain_timeout_s)
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        for answer in tuple(self._open):
            answer.settle(_LATE)
        return dropped

    def _open_answer(self) -> Answer:
        """An answer that all required exporters give, or the clock."""
        answer = Answer(len(self._required), self.retry_after_s)
        timer = asyncio.get_running_loop().call_later(self._ack_timeout_s, answer.settle, _LATE)
        self._open[answer] = None

        def given(_: asyncio.Future[Reply]) -> None:
            timer.cancel()
            self._open.pop(answer, None)

        answer.future.add_done_callback(given)
        return answer


async def _stop_all(queues: Sequence[SendQueue], timeout_s: float) -> dict[str, int]:
    """Stop each to its end: one that fails cuts short nobody else's drain."""
    stops = (queue.stop(timeout_s) for queue in queues)
    ended = await asyncio.gather(*stops, return_exceptions=True)
    dropped = dict[str, int]()
    for queue, end in zip(queues, ended, strict=True):
        if isinstance(end, BaseException):
            # Not the words of any error: they might repeat what was being sent.
            why = (isinstance(end, OSError) and end.strerror) or type(end).__name__
            _LOG.error("exporter %s: could not be stopped: %s", queue.name, why)
        else:
            dropped[queue.name] = end
    return dropped


async def _leave(queue: SendQueue, timeout_s: float) -> None:
    """Drain and close a queue that was retired. Whatever happens to it is its own affair."""
    try:
        dropped = await queue.stop(timeout_s)
    except OSError:
        _LOG.warning("exporter %s: removed, but could not be closed", queue.name, exc_info=True)
    else:
        _LOG.info("exporter %s: removed and drained; %d spans dropped", queue.name, dropped)
