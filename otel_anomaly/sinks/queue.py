"""A bounded queue of records and the one thread that writes them.

    offer -> | e | e | e | gap 3 | e | -> take a group -> write -> counted as written
               ^ at most `capacity`        OSError: wait, try the same group again
               full: drop, count, mark     other error: one by one, drop the one at fault

Rule 1: `put` never waits for the writer. The lock is held for queue operations only, never
while writing. Rule 2: what was put is written, dropped and counted, or waiting:

    offered = sink_records + sink_dropped + waiting

Rule 3: order is kept, and a loss has its place in the order: where records were dropped the
queue holds a `Gap`, so that a sink can say there how many are missing. Gaps stand outside the sum.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from otel_anomaly.handoff import EpisodeEvent

if TYPE_CHECKING:
    from otel_anomaly.telemetry import Telemetry

GROUP_MAX = 256
RETRY_S = (0.1, 5.0)
"""First and longest wait between two attempts to write the same group."""
RETRY_CLOSING_S = 0.1
"""Longest wait between two attempts once the sink is closing."""
GRACE_S = 1.0
"""After the time to flush is over, how long the thread may take to see it."""

assert RETRY_CLOSING_S < GRACE_S


class LifeCycle(NamedTuple):
    """The service started or stopped, or goes by another configuration."""

    type: str
    time_ns: int
    reason: str
    config_hash: str = ""
    """The configuration from here on; empty: as before."""


class Gap(NamedTuple):
    """Records that were dropped here."""

    records: int
    reason: str


Record = EpisodeEvent | LifeCycle
Item = Record | Gap
Write = Callable[[list[Item]], int]
"""Writes a group, whole or not at all; returns how many records it left out on purpose."""


def _nothing() -> None:
    """What there is to do at the end when nothing was said."""


class SinkWorker:
    """Takes records at any pace, writes them at the sink's."""

    def __init__(
        self,
        name: str,
        write: Write,
        *,
        capacity: int,
        telemetry: Telemetry,
        group_max: int = GROUP_MAX,
        idle_s: float | None = None,
        retry_s: tuple[float, float] = RETRY_S,
        finish: Callable[[], None] = _nothing,
    ) -> None:
        """`idle_s`: with nothing to write for so long, `write` is called with an empty group.

        `finish` is called by the thread when it ends. Whoever builds a worker must close it: its
        thread keeps the process alive.
        """
        self._name, self._write, self._finish = name, write, finish
        self._capacity, self._group_max = capacity, group_max
        self._idle_s, self._retry_s = idle_s, retry_s
        self._records = telemetry.sink_records.labels(name)
        self._dropped = telemetry.sink_dropped.labels(name)
        self._problem: str | None = None
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._paused = threading.Condition(lock)
        self._queue: deque[Item] = deque()
        self._held: list[Item] = []  # The group being written.
        self._singly = 0  # So many items are taken one by one: one of them is at fault.
        self._closing = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=False)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why the last attempt to write failed, or that records are dropped; None: all is well."""
        with self._filled:
            is_full = bool(self._queue) and isinstance(self._queue[-1], Gap)
        if self._problem is None and is_full:
            return f"{self._name}: the queue is full, records are dropped"
        return self._problem

    def retune(self, capacity: int) -> None:
        """Hold so many records from now on; those that wait stay."""
        self._capacity = capacity

    def put(self, records: Sequence[Record], *, must: bool = False) -> None:
        """Queue the records or drop and count them. Never waits, never raises.

        `must` is for the few records of the service's own life cycle: they get in when full.
        """
        if not records:
            return
        with self._filled:
            room = self._room(len(records), must=must)
            self._queue.extend(records[:room])
            lost = len(records) - room
            if lost and not self._closing:
                self._mark_full(lost)
            self._filled.notify()
        if lost:
            self._dropped.inc(lost)

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, for at most so long; drop and count the rest. Whether all got out.

        Waits, so call it off the event loop. Records put from now on are dropped.
        """
        with self._filled:
            self._closing = True
            self._filled.notify_all()
            self._paused.notify_all()
        self._thread.join(timeout_s)
        with self._filled:
            self._abandoned = True
            lost = _count_records(self._queue) + _count_records(self._held)
            self._queue.clear()
            self._held = []
        self._dropped.inc(lost)
        self._thread.join(GRACE_S)
        return lost == 0

    def _room(self, wanted: int, *, must: bool) -> int:
        if self._closing:
            return 0
        if must:
            return wanted
        return min(wanted, max(0, self._capacity - len(self._queue) - len(self._held)))

    def _mark_full(self, lost: int) -> None:
        """Say at the end of the queue how many are missing: one mark per stretch."""
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Gap):
            self._queue[-1] = last._replace(records=last.records + lost)
        else:
            self._queue.append(Gap(lost, "the queue was full"))

    def _run(self) -> None:
        while (group := self._take()) is not None:
            self._deliver(group)
        self._finish()

    def _take(self) -> list[Item] | None:
        """The next group; an empty one when it is time to tick; None at the end."""
        with self._filled:
            while not self._queue and not self._closing:
                if not self._filled.wait(self._idle_s):
                    return []
            if not self._queue:
                return None
            size = 1 if self._singly else self._group_max
            self._singly = max(0, self._singly - 1)
            self._held = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
            return self._held

    def _deliver(self, group: list[Item]) -> None:
        wait_s, wait_s_max = self._retry_s
        while True:
            try:
                left_out = self._write(group)
            except OSError as error:  # The disk is full, the pipe is shut: it may get better.
                self._problem = f"{self._name}: {error}"
                if not self._pause(wait_s):
                    return
                wait_s = min(wait_s * 2, wait_s_max)
            except Exception as error:  # noqa: BLE001 - a bug of ours must not stop the sink.
                # Its words may quote the record, and the problem stands in /healthz.
                kind = type(error).__name__
                self._problem = f"{self._name}: a record cannot be written: {kind}"
                self._set_apart(group, kind)
                return
            else:
                self._problem = None
                self._settle(group, left_out)
                return

    def _pause(self, wait_s: float) -> bool:
        """Wait before the next attempt. False when there is none."""
        with self._paused:
            if not self._abandoned:
                self._paused.wait(min(wait_s, RETRY_CLOSING_S) if self._closing else wait_s)
            return not self._abandoned

    def _set_apart(self, group: list[Item], error: str) -> None:
        """A group that cannot be written goes back, to be taken one by one; a single one goes."""
        with self._filled:
            if self._abandoned:
                return
            self._held = []
            if len(group) > 1:
                self._queue.extendleft(reversed(group))
                self._singly = len(group)
                return
            lost = _count_records(group)
            if lost:
                self._queue.appendleft(Gap(lost, f"could not be written ({error})"))
                self._singly += 1
        self._dropped.inc(lost)

    def _settle(self, group: list[Item], left_out: int) -> None:
        with self._filled:
            if self._abandoned:
                return  # Counted as dropped by `close`, which could not know.
            self._held = []
        self._records.inc(max(0, _count_records(group) - left_out))
        self._dropped.inc(left_out)


def _count_records(items: Sequence[Item] | deque[Item]) -> int:
    return sum(not isinstance(item, Gap) for item in items)
