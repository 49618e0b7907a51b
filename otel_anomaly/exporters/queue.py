"""One exporter's queue: bounded in bytes, batching, retry, drain.

    put -> pending -> ready -> num_consumers -> send

Rule 1: room is set aside (`hold`) before a payload comes (`put`), which then cannot fail.

Rule 2: all queues share the same bytes object. A merged request is joined when it is sent and
forgotten after the attempt, so what is held is what was received.

Rule 3: traces merge by concatenation, which protobuf defines to be one request. The scan has
proven each of them well-formed. A merged request that is refused goes again part by part, so one
bad part takes none with it; as that cannot be told of a piece, none is merged that would be cut.
Metrics and logs are never looked at, so one broken request must not take its neighbours with it:
each goes alone.

Rule 4: all of this runs in one event loop and reads the loop's time only, so a test plays it
with a loop whose time is virtual. Nothing wakes up while there is nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.answer import not_delivered
from otel_anomaly.exporters.contract import Kind, SendResult, rejected
from otel_anomaly.exporters.echo import without_echo
from otel_anomaly.exporters.ledger import Ledger, Notices, spans_in
from otel_anomaly.exporters.retry import Backoff, RetryPolicy
from otel_anomaly.exporters.splitting import cut_over
from otel_anomaly.handoff import Outcome, Reply, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_anomaly.config import ExporterConfig
    from otel_anomaly.exporters.answer import Answer
    from otel_anomaly.exporters.contract import Exporter
    from otel_anomaly.exporters.disk_store import Place
    from otel_anomaly.handoff import Payload
    from otel_anomaly.telemetry import Telemetry

_LOG = logging.getLogger(__name__)

CHARGE_BYTES_MIN = 256
"""What the smallest payload is charged: the objects that hold it take room too, so a flood of
empty requests is bounded like any other."""
RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 30.0
RATE_MEMORY_S = 10.0
"""Over about so long is the drain rate averaged."""
ROOM_SHARE = 1 / 8
"""A client is asked to come back when this share of the queue should be free."""

INT64_MAX = (1 << 63) - 1
"""The most items that a partial success can name."""

MERGED_TOLD = "not kept by the next hop"
"""Said to those whose requests went on as one."""

FRESH, BACKLOG = 0, 1
"""Lanes: what came in lately, and what is read from the disk again."""


class Parcel:
    """A payload in a queue."""

    __slots__ = ("answer", "charge", "payload", "place")

    def __init__(
        self,
        payload: Payload,
        charge: int,
        answer: Answer | None = None,
        place: Place | None = None,
    ) -> None:
        """`answer` is told what became of it; `place` is where it lies on disk, if it does."""
        self.payload = payload
        self.charge = charge
        self.answer = answer
        self.place = place


class Group:
    """Parcels of one signal that travel as one request."""

    __slots__ = ("charge", "lane", "parts", "signal", "spans")

    def __init__(self, parts: Sequence[Parcel], charge: int, lane: int = FRESH) -> None:
        self.parts = parts
        self.charge = charge
        self.lane = lane
        self.signal = parts[0].payload.signal
        self.spans = spans_in([part.payload for part in parts])

    @property
    def requests(self) -> int:
        """Received requests in it."""
        return len(self.parts)

    def body(self) -> bytes:
        """The request. A single payload is not copied."""
        if len(self.parts) == 1:
            return self.parts[0].payload.body
        return b"".join([part.payload.body for part in self.parts])

    def tell(self, reply: Reply) -> None:
        """Let those who wait for it know."""
        for part in self.parts:
            if part.answer is not None:
                part.answer.tell(reply)

    def tell_taken(self, left_out: int, message: str) -> None:
        """The same when it was taken over but for `left_out` items, as the next hop says.

        The number is of the whole group and comes from outside: nobody hears of more items than
        his own, as far as they are counted, nor of more than an answer can say. Nor of words that
        may be about another's data.
        """
        if len(self.parts) > 1:
            message = MERGED_TOLD
        for part in self.parts:
            if part.answer is not None:
                most = part.payload.items if self.signal is Signal.TRACES else INT64_MAX
                own = min(left_out, most)
                # Only with a loss: a warning without one would be logged for each request.
                part.answer.tell(Reply(Outcome.ACCEPTED, message if own else "", rejected=own))


class Lanes(asyncio.Queue[Group]):
    """Groups that are ready: the fresh, and the backlog read from the disk.

    Where both lanes have some they take turns, so a long backlog does not keep new traffic waiting
    nor the other way round.
    """

    def _init(self, maxsize: int) -> None:
        del maxsize
        self._lanes: tuple[deque[Group], deque[Group]] = (deque(), deque())
        self._turn = FRESH
        self.charges = [0, 0]
        """Of what waits in each lane."""

    def _put(self, item: Group) -> None:
        self._lanes[item.lane].append(item)
        self.charges[item.lane] += item.charge

    def _get(self) -> Group:
        lane = self._turn if self._lanes[self._turn] else 1 - self._turn
        self._turn = 1 - lane
        group = self._lanes[lane].popleft()
        self.charges[lane] -= group.charge
        return group

    def qsize(self) -> int:
        """Groups in both lanes."""
        return sum(map(len, self._lanes))

    def empty(self) -> bool:
        """Whether there are none."""
        return not any(self._lanes)


class DrainRate:
    """Bytes a second that left lately: an exponentially weighted mean."""

    def __init__(self, now_s: float) -> None:
        self._weighted_bytes = 0.0
        self._at_s = now_s

    def add(self, size: int, now_s: float) -> None:
        """`size` bytes left."""
        self._weighted_bytes = self._faded(now_s) + size
        self._at_s = now_s

    def bytes_per_s(self, now_s: float) -> float:
        """The rate, as of now."""
        return self._faded(now_s) / RATE_MEMORY_S

    def _faded(self, now_s: float) -> float:
        return self._weighted_bytes * math.exp((self._at_s - now_s) / RATE_MEMORY_S)


class SendQueue:
    """One exporter's queue: what is held for it, and the tasks that send."""

    on_disk = False

    def __init__(
        self,
        name: str,
        exporter: Exporter,
        config: ExporterConfig,
        telemetry: Telemetry,
        chance: Callable[[], float],
    ) -> None:
        self.name = name
        self.used = 0
        """Bytes held or reserved."""
        self.ledger = Ledger(telemetry, name)
        self.problem = ""
        """What is wrong, for health."""
        self._exporter = exporter
        self._chance = chance
        self._tasks: list[asyncio.Task[None]] = []
        self._capacity_told = telemetry.queue_capacity.labels(name)
        self._take_limits(config)
        self._notices = Notices(name)
        self._pending: list[Parcel] = []
        self._pending_charge = 0
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._closed = False
        self._shutdown_spans = 0
        telemetry.queue_size.labels(name).set_function(lambda: self.used)

    def _take_limits(self, config: ExporterConfig) -> None:
        queue = config.sending_queue
        self.required, self.capacity = config.required, queue.queue_size
        self._policy = RetryPolicy.of(config.retry_on_failure)
        self._consumer_count = 1 if self._exporter.serial else queue.num_consumers
        self._merge_bytes_max = min(queue.batch.max_size, cut_over(config))
        self._flush_s = queue.batch.flush_timeout / SECOND_NS
        self._capacity_told.set(self.capacity)

    def retune(self, config: ExporterConfig) -> None:
        """Go by other limits from now on. What is held stays, also where it is more than that."""
        self._take_limits(config)
        self._staff()

    async def start(self) -> None:
        """Open the exporter and start sending. Names the exporter in what it raises."""
        try:
            await self._exporter.start()
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"exporters.{self.name}: {error}") from error
        self._loop = asyncio.get_running_loop()
        self._rate = DrainRate(self._loop.time())
        # Bounded by `used`: every group in it was charged.
        self._ready = Lanes()
        self._empty = asyncio.Event()
        self._staff()

    def _staff(self) -> None:
        """See that all consumers are at work; those that are too many leave by themselves."""
        for index in range(self._consumer_count):
            if index == len(self._tasks) or self._tasks[index].done():
                task = asyncio.create_task(
                    self._consume(index), name=f"exporter {self.name} {index}"
                )
                self._tasks[index : index + 1] = [task]

    @property
    def charge_max(self) -> int:
        """What is charged more never fits."""
        return self.capacity

    def charge_of(self, size: int) -> int:
        """Bytes of room that a payload of `size` bytes takes."""
        return max(size, CHARGE_BYTES_MIN)

    def has_room(self, charge: int) -> bool:
        """Whether so much can be set aside now."""
        return self.used + charge <= self.capacity

    def hold(self, charge: int) -> None:
        """Set room aside."""
        self.used += charge

    def offer(self, payload: Payload) -> None:
        """Take room and the payload, or drop and count it: an optional exporter."""
        charge = self.charge_of(len(payload.body))
        if not self.has_room(charge):
            reason = "too_large" if charge > self.charge_max else "queue_full"
            self.ledger.refused(payload.signal, 1, spans_in((payload,)), reason)
            return
        self.hold(charge)
        self.put(payload, charge)

    def put(
        self,
        payload: Payload,
        charge: int,
        *,
        written: Answer | None = None,
        ended: Answer | None = None,
    ) -> None:
        """Take a payload over. The room is already set aside.

        `written` is told when it is as safe as this queue makes it, `ended` what became of it.
        """
        assert charge <= self.used
        assert written is None, "who waits for a disk asks a queue that has one"
        self.ledger.took(payload)
        parcel = Parcel(payload, charge, ended)
        if self._closed:
            self._drop(Group((parcel,), charge), "shutdown")
        else:
            self._enter(parcel)

    def free(self, charge: int) -> None:
        """Give room back."""
        assert charge <= self.used
        self.used -= charge
        self._check_empty()

    def _holds(self) -> bool:
        """Whether something has not come to its end."""
        return self.used > 0

    def _check_empty(self) -> None:
        if self._draining and not self._holds():
            self._empty.set()

    def hurry(self, within_s: float) -> None:
        """The service is about to stop: who waits for this queue's disk, if it has one, must be
        answered within so long."""

    def trouble(self) -> str:
        """What the exporter said last, if it fails; for health."""
        return self._notices.trouble()

    def retry_after_s(self) -> float:
        """Seconds until there should be room again, by what left lately."""
        if self.used <= self.capacity * (1 - ROOM_SHARE):
            return RETRY_AFTER_S_MIN
        rate = self._rate.bytes_per_s(self._loop.time())
        room = self.capacity * ROOM_SHARE
        if room >= rate * RETRY_AFTER_S_MAX:
            return RETRY_AFTER_S_MAX
        return max(room / rate, RETRY_AFTER_S_MIN)

    async def stop(self, timeout_s: float) -> int:
        """Deliver what is held, for at most `timeout_s`, then drop the rest. Returns spans dropped.

        Reservations that are not committed or released by then count as held: a door that is
        still busy gets the same time.
        """
        if not await self._drained(timeout_s):
            _LOG.warning("exporter %s: %d bytes not delivered in time", self.name, self.used)
        await self._end_consumers()
        while not self._ready.empty():
            self._drop(self._ready.get_nowait(), "shutdown")
        await self._exporter.close()
        return self._shutdown_spans

    async def _drained(self, timeout_s: float) -> bool:
        """Deliver what is held, for at most `timeout_s`. Whether that was all."""
        self._draining = True
        self._cut()
        if self._timer is not None:
            self._timer.cancel()
        if self._holds():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)
        return not self._holds()

    async def _end_consumers(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _enter(self, parcel: Parcel) -> None:
        """Send it, alone or with others."""
        charge = parcel.charge
        if parcel.payload.signal is not Signal.TRACES or charge >= self._merge_bytes_max:
            self._ready.put_nowait(Group((parcel,), charge))
        else:
            self._merge(parcel, charge)

    def _merge(self, parcel: Parcel, charge: int) -> None:
        """Let a small payload wait for company."""
        if self._pending_charge + charge > self._merge_bytes_max:
            self._cut()
        self._pending.append(parcel)
        self._pending_charge += charge
        if self._draining or self._pending_charge == self._merge_bytes_max:
            self._cut()
        elif len(self._pending) == 1:
            self._due_s = self._loop.time() + self._flush_s
            if self._timer is None:
                self._timer = self._loop.call_at(self._due_s, self._on_timer)

    def _cut(self) -> None:
        """What has merged so far is one request."""
        if self._pending:
            self._ready.put_nowait(Group(self._pending, self._pending_charge))
            self._pending, self._pending_charge = [], 0

    def _on_timer(self) -> None:
        """Send what is due. One timer serves all: it is set again for those that came later."""
        self._timer = None
        if self._pending and self._loop.time() < self._due_s:
            self._timer = self._loop.call_at(self._due_s, self._on_timer)
        else:
            self._cut()

    async def _consume(self, index: int) -> None:
        """Send one group after the other, until cancelled or, by other limits, one too many."""
        while index < self._consumer_count:
            group = await self._ready.get()
            self._on_taken(group)
            try:
                await self._deliver(group)
            except asyncio.CancelledError:
                self._break_off(group)
                raise

    def _on_taken(self, group: Group) -> None:
        """A group is about to be sent for the first time."""

    def _break_off(self, group: Group) -> None:
        """The time to deliver is over."""
        self._drop(group, "shutdown")

    async def _deliver(self, group: Group) -> None:
        """Bring a group to its end: sent, dropped, or cut into its parts."""
        # Time counts from the first attempt on: waiting for it in the queue does not.
        backoff = Backoff(lambda: self._policy, self._chance, self._loop.time())
        while True:
            result = await self._attempt(group)
            if result.kind is Kind.SENT:
                self._sent(group, result)
                return
            self.ledger.failed(group.spans)
            if result.kind is not Kind.RETRY:
                self._refused(group, result)
                return
            self._notices.fails(result.message)
            wait_s = backoff.next_wait(self._loop.time(), result.retry_after_s)
            if wait_s is None:
                self._drop(group, "retries_exhausted", result.message)
                return
            await asyncio.sleep(wait_s)

    async def _attempt(self, group: Group) -> SendResult:
        """One send. Whatever an exporter raises is a refusal: the queue must outlive it."""
        items = group.spans if group.signal is Signal.TRACES else 1
        try:
            body = group.body()
            result = await self._exporter.send(body, group.signal, items)
            return result._replace(message=without_echo(result.message, body))
        except Exception as error:  # noqa: BLE001 - Rule of the house: outlive every bug.
            _LOG.exception("exporter %s: a mistake of ours", self.name)
            return rejected(type(error).__name__)

    def _sent(self, group: Group, result: SendResult) -> None:
        self.ledger.sent(group, result.rejected, result.losses)
        self._notices.works()
        for reason, items in result.losses:
            self._notices.lost(reason, f"{items} items, in pieces", self._loop.time())
        if result.rejected:
            text = f"{result.rejected} not kept by the next hop: {result.message}"
            self._notices.lost("partial success", text, self._loop.time())
        elif result.message:
            self._notices.lost("taken by the next hop", result.message, self._loop.time())
        left_out = max(result.rejected, 0) + sum(items for _, items in result.losses)
        group.tell_taken(left_out, result.message)
        self._leave(group)

    def _refused(self, group: Group, result: SendResult) -> None:
        """Drop a group, or send its parts alone when one bad part may have doomed the others."""
        if len(group.parts) == 1 or not result.about_data:
            self._drop(group, result.kind.value, result.message)
            return
        for part in group.parts:
            self._ready.put_nowait(Group((part,), part.charge, group.lane))

    def _drop(self, group: Group, reason: str, message: str = "") -> None:
        self.ledger.dropped(group.signal, len(group.parts), group.spans, reason)
        group.tell(not_delivered(reason))
        if reason == "shutdown":
            self._shutdown_spans += group.spans
        else:
            self._notices.lost(reason, message, self._loop.time())
        self._leave(group)

    def _leave(self, group: Group) -> None:
        self._rate.add(group.charge, self._loop.time())
        self.free(group.charge)
