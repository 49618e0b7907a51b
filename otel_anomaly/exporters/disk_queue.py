"""A queue on disk: what is accepted outlives the process.

    put -> unwritten -> DiskStore.append -> answer -+-> fresh lane (kept in memory) -+-> consumers
                                                    +-> on disk alone -> backlog lane -+     |
                        DiskStore.mark <----------------------------------- sent, dropped <-+

Rule 1: only a worker touches the disk, one round after the other, each with all that has gathered
since the last (group commit). Whether that is a thread is the worker's business.

Rule 2: memory is bounded by `queue_size`, whatever lies on disk. A quarter of it is for requests
that wait to be written, half for fresh ones that are kept to be sent, and the rest for what is
read from the disk until it has left; but for one request on its way in, and one on its way out,
that are larger than that. What finds no place among the fresh is read when it is its turn. While
nothing leaves, only as much is kept fresh as is read ahead: all of the half, full of what came
early in an outage, would stand before new traffic when the next hop is back.

Rule 3: a record leaves the disk when it was sent or given up. The drain deadline gives up nothing.

Rule 4: after a write that failed the clients of that round are asked to send again, and the door
is shut for a second, before anything is learned. A disk that does not answer shuts the door until
it does; then, too, nobody waits for it for long, and neither does the stop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import MIB, SECOND_NS
from otel_anomaly.exporters.answer import not_delivered
from otel_anomaly.exporters.disk_format import DONE, TRIED
from otel_anomaly.exporters.disk_segment import charge_of, spans_of
from otel_anomaly.exporters.queue import (
    BACKLOG,
    FRESH,
    RETRY_AFTER_S_MAX,
    Group,
    Parcel,
    SendQueue,
)
from otel_anomaly.handoff import Outcome, Reply, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_anomaly.config import ExporterConfig
    from otel_anomaly.exporters.answer import Answer
    from otel_anomaly.exporters.contract import Exporter
    from otel_anomaly.exporters.disk_format import Record
    from otel_anomaly.exporters.disk_store import DiskStore, Loaded, Place
    from otel_anomaly.exporters.disk_worker import Worker
    from otel_anomaly.exporters.pace import Pace
    from otel_anomaly.handoff import Payload
    from otel_anomaly.telemetry import Telemetry

_LOG = logging.getLogger(__name__)

LOAD_BYTES_MAX: Final = 4 * MIB
"""Read from the disk at once."""
STUCK_S: Final = 2.0
"""When nothing has left for so long, the next hop is away, or as good as away."""
SHUT_S: Final = 1.0
"""After a failure of the disk it is left alone for so long."""
STALL_S: Final = 8.0
"""A round at the disk that takes longer: whoever waits is asked to send again. Less than the 10 s
after which most SDKs give up by themselves, and more than a busy disk needs."""
LAST_ROUND_S: Final = 3.0
"""For what is still to be written when the time to deliver is over; then the disk is left alone."""
SPILLED_ANSWERS_MAX: Final = 20_000
"""Clients that wait for records on disk alone; those who gave up are then forgotten."""


class _Written(NamedTuple):
    """A parcel on its way to the disk."""

    parcel: Parcel
    kept: bool
    answer: Answer | None
    """Told when it is written."""


class _Round(NamedTuple):
    """What a round at the disk brought."""

    places: list[Place]
    loaded: Loaded | None
    error: str


class DiskQueue(SendQueue):
    """One exporter's queue, on disk."""

    on_disk = True

    def __init__(
        self,
        name: str,
        exporter: Exporter,
        config: ExporterConfig,
        telemetry: Telemetry,
        chance: Callable[[], float],
        *,
        store: DiskStore,
        worker: Worker,
        pace: Pace,
    ) -> None:
        super().__init__(name, exporter, config, telemetry, chance)
        self._bad_segments = telemetry.bad_segments.labels(name)
        self._store, self._worker, self._pace = store, worker, pace
        self._reserved = 0
        self._unwritten: deque[_Written] = deque()
        self._unwritten_charge = 0
        self._writing: list[_Written] = []
        self._round = 0
        """Counts up at the begin and at the end of a round: odd while one is under way."""
        self._stall_s = STALL_S
        self._is_full, self._headroom = False, 0
        """Of the store, as the last round left them: while one is under way, it is between two."""
        self._wanted = 0
        """What was refused last for want of room on a full disk."""
        self._room_due = False
        self._room_timer: asyncio.TimerHandle | None = None
        self._marks: list[tuple[int, Place, int]] = []
        self._fresh_charge = self._backlog_charge = 0
        self._moved_s = 0.0
        """When something left last, or began to wait where nothing did."""
        self._spilled: dict[int, Answer] = {}
        self._open = 0
        """Requests that have not come to an end."""
        self._shut_until_s = 0.0
        self._sync_timer: asyncio.TimerHandle | None = None
        self._sync_due = False
        self._loads_paused = False
        self._bad_told = 0
        self._wake = asyncio.Event()
        self._disk_task: asyncio.Task[None] | None = None
        self._is_store_closed = False
        """Used in the worker only."""

    def _take_limits(self, config: ExporterConfig) -> None:
        super()._take_limits(config)
        queue = config.sending_queue
        self.capacity = queue.disk_size
        self._capacity_told.set(self.capacity)
        self._memory_max = queue.queue_size
        self._load_bytes = min(LOAD_BYTES_MAX, self._memory_max // 8)
        self._sync_s = None if queue.fsync == "never" else queue.fsync_interval / SECOND_NS

    def retune(self, config: ExporterConfig) -> None:
        """Go by other limits from now on. The disk hears of them with a round."""
        super().retune(config)
        self._ask_for_room()

    # The door.

    @property
    def charge_max(self) -> int:
        """A quarter of the disk may hold requests that are done, in segments that are not."""
        return min(self.capacity * 3 // 4, self._memory_max)

    def charge_of(self, size: int) -> int:
        """Bytes of the disk that a payload of `size` bytes takes."""
        return charge_of(size)

    def has_room(self, charge: int) -> bool:
        """Whether so much can be set aside now, in memory until it is written and on disk."""
        waiting = self._reserved + self._unwritten_charge
        if self.used + charge > self.capacity or self._loop.time() < self._shut_until_s:
            return False
        quarter = self._memory_max // 4
        # One that is larger than that goes in beside a little, or steady traffic would shut it out.
        if waiting and waiting + charge > max(quarter, charge + quarter // 4):
            return False
        if self._is_full and waiting + charge > self._headroom:
            self._wanted = charge
            self._ask_for_room()
            return False
        return True

    def hold(self, charge: int) -> None:
        """Set room aside."""
        self.used += charge
        self._reserved += charge

    def free(self, charge: int) -> None:
        """Give back what was set aside and is not needed."""
        assert charge <= self._reserved
        self.used -= charge
        self._reserved -= charge
        self._check_empty()

    def put(
        self,
        payload: Payload,
        charge: int,
        *,
        written: Answer | None = None,
        ended: Answer | None = None,
    ) -> None:
        """Take a payload over, for which room was set aside."""
        assert charge <= self._reserved
        self._reserved -= charge
        self.ledger.took(payload)
        self._open += 1
        self._unwritten_charge += charge
        parcel = Parcel(payload, charge, ended)
        if self._closed:
            self._lose(_Written(parcel, kept=False, answer=written), "shutdown")
            return
        kept = self._fresh_charge + charge <= self._fresh_max()
        if kept:
            self._fresh_charge += charge
        self._unwritten.append(_Written(parcel, kept, written))
        if written is not None and self._shut_until_s == math.inf:
            written.settle(not_delivered("write_failed"))  # Reserved before the disk hung.
        self._wake.set()

    def _fresh_max(self) -> int:
        """How much may be kept to be sent, as of now."""
        now_s = self._loop.time()
        if not self._fresh_charge:
            self._moved_s = now_s
        stuck = now_s - self._moved_s > STUCK_S
        return self._load_bytes if stuck else self._memory_max // 2

    def retry_after_s(self) -> float:
        """Seconds until there should be room again."""
        if self._is_full and self._wanted:
            return RETRY_AFTER_S_MAX
        return super().retry_after_s()

    # Life.

    async def start(self) -> None:
        """Take over what lies on disk, then start sending."""
        try:
            recovered = await self._worker.run(self._store.open)
        except (OSError, ValueError) as error:
            self._worker.close()
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"exporters.{self.name}.sending_queue: {error}") from error
        try:
            await super().start()
        except BaseException:
            await self._worker.run(self._store.close)
            self._worker.close()
            raise
        self.used += self._store.charge
        self._open = recovered.requests
        self.ledger.recovered(recovered.spans, recovered.doubtful_spans)
        self._count_bad()
        if recovered.requests:
            text = "exporter %s: %d requests with %d spans on disk from an earlier run"
            _LOG.info(text, self.name, recovered.requests, recovered.spans)
        self._disk_task = asyncio.create_task(self._serve_disk(), name=f"queue {self.name}")
        self._wake.set()

    async def stop(self, timeout_s: float) -> int:
        """Deliver what is held, for at most `timeout_s`; the rest stays on disk."""
        await self._drained(timeout_s)
        await self._end_consumers()
        await self._leave_disk()
        for timer in (self._sync_timer, self._room_timer):
            if timer is not None:
                timer.cancel()
        await self._exporter.close()
        self.ledger.stays()
        if self._open:
            text = "exporter %s: %d requests with %d spans stay on disk"
            _LOG.warning(text, self.name, self._open, self.ledger.held_spans)
        return self._shutdown_spans

    async def _leave_disk(self) -> None:
        """Write what is left to be written and close; or leave a disk alone that hangs."""

        async def last_rounds() -> None:
            self._wake.set()
            if self._disk_task is not None:
                await self._disk_task
            await self._worker.run(self._close_store)

        try:
            await asyncio.wait_for(last_rounds(), LAST_ROUND_S)
            self._worker.close()
        except TimeoutError:
            # Should it answer one day, its files are closed then: the process may live on, and the
            # exporter come back.
            self._worker.close(self._close_store)
            lost = (*self._writing, *self._unwritten)
            text = "exporter %s: its disk does not answer and is left alone, %d requests unwritten"
            _LOG.error(text, self.name, len(lost))
            for one in lost:
                self._lose(one, "write_failed")

    def hurry(self, within_s: float) -> None:
        """Nobody is to wait for the disk for longer than this."""
        self._stall_s = min(within_s, STALL_S)
        if self._round % 2:
            self._loop.call_later(self._stall_s, self._on_stall, self._round)

    def _on_stall(self, number: int) -> None:
        """A round takes for ever, perhaps."""
        if number != self._round:
            return
        if self._shut_until_s != math.inf:
            self._shut_until_s = math.inf
            self.problem = "the disk of the queue does not answer"
            _LOG.warning("exporter %s: %s: clients are to send again", self.name, self.problem)
        for one in (*self._writing, *self._unwritten):
            if one.answer is not None:
                one.answer.settle(not_delivered("write_failed"))

    def _close_store(self) -> None:
        if self._is_store_closed:
            return
        self._is_store_closed = True
        try:
            self._store.close()
        except OSError as error:
            _LOG.warning("exporter %s: the disk queue: %s", self.name, error)

    def _holds(self) -> bool:
        """Whether something has not come to its end, on disk too."""
        return self._open > 0 or self._reserved > 0

    # The disk.

    async def _serve_disk(self) -> None:
        """Rounds at the disk for as long as there is something to do there."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._unwritten or self._marks or self._room_due:
                await self._write()
            elif self._closed:
                return
            if self._sync_due:
                await self._sync()
            if self._wants_load():
                await self._load()
            if self._unwritten or self._marks or self._closed or self._wants_load():
                self._wake.set()

    async def _write(self) -> None:
        """Write all that waits, and the marks."""
        self._room_due = False
        batch, self._unwritten = list(self._unwritten), deque()
        marks, self._marks = self._marks, []
        need = self._reserved + self._unwritten_charge + self._wanted
        self._writing = batch
        done = await self._at_disk(self._write_round, batch, marks, need, self.capacity)
        self._writing = []
        for one, place in zip(batch, done.places, strict=False):
            self._is_written(one, place)
        for one in batch[len(done.places) :]:
            self._lose(one, "write_failed")
        self._after(done.error)

    def _write_round(
        self, batch: list[_Written], marks: list[tuple[int, Place, int]], need: int, size: int
    ) -> _Round:
        error = ""
        places: list[Place] = []
        self._store.resize(size)
        try:
            self._store.prepare(need)
        except OSError as failure:
            error = failure.strerror or str(failure)
        requests = [(one.parcel.payload, one.kept) for one in batch]
        while len(places) < len(requests):
            try:
                places += self._store.append(requests[len(places) :])
            except OSError as failure:
                error = failure.strerror or str(failure)
                break
        self._store.mark(marks)
        return _Round(places, None, error)

    async def _load(self) -> None:
        """Read some of what lies on disk alone."""
        loaded = (await self._at_disk(self._load_round)).loaded
        if loaded is None or (not loaded.records and self._store.unread > 0):
            self._pause_loads(SHUT_S)
        elif not self._draining:
            self._pause_loads(self._pace.rest_s)
        if loaded is None:
            return
        if loaded.lost_requests:
            self._open -= loaded.lost_requests
            self.ledger.dropped(Signal.TRACES, loaded.lost_requests, loaded.lost_spans, "damaged")
            self._notices.lost("damaged", "a segment of the disk queue", self._loop.time())
        self._open += loaded.found_requests
        self.ledger.recovered(loaded.found_spans)
        for group in self._grouped(loaded.records):
            self._backlog_charge += group.charge
            self._ready.put_nowait(group)
        self._after(None)

    def _load_round(self) -> _Round:
        return _Round([], self._store.load(self._load_bytes), "")

    def _pause_loads(self, seconds: float) -> None:
        self._loads_paused = True
        due_s = self._loop.time() + seconds
        self._loop.call_at(due_s, self._load_again, due_s)

    def _load_again(self, due_s: float) -> None:
        now_s = self._loop.time()
        self._pace.rested(now_s, now_s - due_s)
        self._loads_paused = False
        self._wake.set()

    async def _sync(self) -> None:
        self._sync_due = False
        done = await self._at_disk(self._sync_round)
        if done.error:
            self._after(done.error)

    def _sync_round(self) -> _Round:
        try:
            self._store.sync()
        except OSError as failure:
            return _Round([], None, failure.strerror or str(failure))
        return _Round([], None, "")

    async def _at_disk(self, action: Callable[..., _Round], *arguments: object) -> _Round:
        """A round. Whatever it raises is a failure of the disk: the queue must outlive it."""
        self._round += 1
        stall = self._loop.call_later(self._stall_s, self._on_stall, self._round)
        try:
            done: _Round = await self._worker.run(action, *arguments)
        except Exception as error:  # noqa: BLE001 - rule of the house: outlive every bug.
            _LOG.exception("exporter %s: a mistake of ours", self.name)
            done = _Round([], None, type(error).__name__)
        finally:
            stall.cancel()
        self._round += 1
        if self._shut_until_s == math.inf:
            self._shut_until_s, self.problem = 0.0, ""
            _LOG.info("exporter %s: the disk of the queue answers again", self.name)
        return done

    def _after(self, error: str | None) -> None:
        """Draw the sums after a round. `error`: "" when all was written, None when nothing was."""
        self.used = self._store.charge + self._reserved + self._unwritten_charge
        self._is_full, self._headroom = self._store.is_full, self._store.headroom
        self._count_bad()
        if error:
            self._shut_until_s = self._loop.time() + SHUT_S
            self._notices.lost("write_failed", error, self._loop.time())
            self.problem = f"the disk queue cannot be written: {error}"
        elif self._is_full:
            self.problem = "the disk of the queue is full"
        elif error is not None:
            self.problem, self._wanted = "", 0
        if self._is_full and self._room_timer is None and not self._closed:
            self._room_timer = self._loop.call_later(SHUT_S, self._on_room_timer)
        if self._sync_s is not None and self._sync_timer is None and not self._closed:
            self._sync_timer = self._loop.call_later(self._sync_s, self._on_sync_timer)
        self._check_empty()

    def _on_room_timer(self) -> None:
        self._room_timer = None
        self._ask_for_room()

    def _ask_for_room(self) -> None:
        """Look whether the disk is still full."""
        self._room_due = True
        self._wake.set()

    def _on_sync_timer(self) -> None:
        self._sync_timer = None
        self._sync_due = True
        self._wake.set()

    def _count_bad(self) -> None:
        self._bad_segments.inc(self._store.bad_segments - self._bad_told)
        self._bad_told = self._store.bad_segments

    # What comes back from there.

    def _is_written(self, one: _Written, place: Place) -> None:
        parcel = one.parcel
        self._unwritten_charge -= parcel.charge
        parcel.place = place
        if one.answer is not None:
            one.answer.tell(Reply(Outcome.ACCEPTED))
        if one.kept:
            self._enter(parcel)
        elif parcel.answer is not None:
            self._remember(place.number, parcel.answer)

    def _remember(self, number: int, answer: Answer) -> None:
        """Somebody waits for a record that is read again some day."""
        if len(self._spilled) >= SPILLED_ANSWERS_MAX:
            self._spilled = {key: each for key, each in self._spilled.items() if each.is_open}
        self._spilled[number] = answer

    def _lose(self, one: _Written, reason: str) -> None:
        """It could not be written: the client is told to send again."""
        parcel = one.parcel
        self._unwritten_charge -= parcel.charge
        if one.kept:
            self._fresh_charge -= parcel.charge
        if reason == "shutdown":
            self.used -= parcel.charge
        self._open -= 1
        spans = spans_of(parcel.payload)
        self.ledger.dropped(parcel.payload.signal, 1, spans, reason)
        if reason == "shutdown":
            self._shutdown_spans += spans
        for answer in (one.answer, parcel.answer):
            if answer is not None:
                answer.tell(not_delivered(reason))
        self._check_empty()

    def _grouped(self, records: list[tuple[Place, Record]]) -> Iterator[Group]:
        """Requests as large as merging makes them, in order."""
        parts: list[Parcel] = []
        size = 0
        for place, record in records:
            answer = self._spilled.pop(place.number, None)
            parcel = Parcel(record.payload, charge_of(len(record.body)), answer, place)
            alone = record.signal is not Signal.TRACES
            if parts and (alone or size + parcel.charge > self._merge_bytes_max):
                yield Group(parts, size, BACKLOG)
                parts, size = [], 0
            if alone:
                yield Group((parcel,), parcel.charge, BACKLOG)
            else:
                parts.append(parcel)
                size += parcel.charge
        if parts:
            yield Group(parts, size, BACKLOG)

    def _wants_load(self) -> bool:
        fits = self._backlog_charge + self._load_bytes <= self._memory_max // 4
        few = self._ready.charges[BACKLOG] < self._load_bytes
        is_open = not (self._closed or self._loads_paused)
        return self._store.unread > 0 and fits and few and is_open

    # The consumers.

    def _on_taken(self, group: Group) -> None:
        self._note(TRIED, group)

    def _break_off(self, group: Group) -> None:
        """It stays on disk."""

    def _leave(self, group: Group) -> None:
        self._moved_s = self._loop.time()
        self._rate.add(group.charge, self._moved_s)
        self._open -= len(group.parts)
        if group.lane == FRESH:
            self._fresh_charge -= group.charge
        else:
            self._backlog_charge -= group.charge
        self._note(DONE, group)
        self._check_empty()

    def _note(self, kind: int, group: Group) -> None:
        """A mark for each record, with the next round."""
        for part in group.parts:
            assert part.place is not None, "what is sent was written"
            self._marks.append((kind, part.place, spans_of(part.payload)))
        self._wake.set()
