"""Stands beside one life of a service and sees what it takes over, judges, writes down, refuses."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from typing import TYPE_CHECKING

from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.memory import REQUEST_BYTES_MIN
from otel_anomaly.plans import rules_of
from tests.rig import arrays_of
from tests.simulation.numbered import spans_in
from tests.simulation.past import parts_in

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Hashable, Iterable

    import numpy as np

    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.service import Service
    from otel_anomaly.snapshot import Snapshot
    from otel_anomaly.state import State
    from tests.simulation.clients import Books, Door
    from tests.simulation.memory import Readings
    from tests.simulation.past import Past


class Witness:
    """Of one life."""

    def __init__(
        self, rng: random.Random, books: Books, past: Past, readings: Readings, service: Service
    ) -> None:
        self._rng, self._books, self._past, self._readings = rng, books, past, readings
        self._service, self._processor = service, service.processor
        self.taken: list[Batch] = []
        """Requests that the service took over, whether or not a client heard of it."""
        self.judged: Counter[Hashable] = Counter()
        """Calls, each as often as it was judged in this life."""
        self.known: frozenset[Hashable] = frozenset()
        """Calls that this life knows of from those before it."""
        self.seen: Counter[str] = Counter()
        """How often what happened, so that nobody takes for tested what never came."""
        self._wrong: list[str] = []
        # Not assertions: the service would take them for a bug of its own, and go on.

    def attach(self, doors: Iterable[Door]) -> None:
        """Stand in between."""
        processor, memory = self._processor, self._service.memory
        self._consume, self._process = self._service.consume, processor.process
        self._finish, self._snapshot = processor._finish, processor.snapshot
        self._admit = memory.admit
        processor.process = self.process  # type: ignore[method-assign]
        processor._finish = self.finish  # type: ignore[method-assign]
        processor.snapshot = self.snapshot  # type: ignore[method-assign]
        memory.admit = self.admit  # type: ignore[method-assign]
        for door in doors:
            for intake in door.intakes.values():
                intake._consume = self.consume

    def _rules(self) -> object:
        """All that decides how a state is laid out."""
        return self._service._config.identity.limits, rules_of(self._processor._plans)

    def check_start(self) -> None:
        """What the last life wrote down is what this one has read."""
        expected = self._past.expected() if self._service.snapshots._section.enabled else None
        loaded = self._service.snapshots._loaded
        if expected is None:
            assert loaded is None, "cold"
            return
        path, known = expected
        assert loaded is not None
        assert loaded.path == path
        self.known = known.calls
        self.seen["loaded"] += 1
        self.seen["loaded the one before"] += path.suffix == ".1"
        if known.rules == self._rules():
            now = parts_in(self._processor.snapshot(self._service.pages(), 0))
            wrong = [name for name, part in now.items() if part != known.parts[name]]
            assert wrong == [], wrong
            self.seen["compared"] += 1

    async def consume(self, batch: Batch) -> Reply:
        """The service's own; what was told after it was taken may be a lie that is allowed."""
        before = len(self.taken)
        try:
            reply = await self._consume(batch)
        except asyncio.CancelledError:
            self._books.maybe.update(numbers_of(batch))
            raise
        if reply.outcome is not Outcome.ACCEPTED and batch in self.taken[before:]:
            self._books.maybe.update(numbers_of(batch))
        return reply

    def admit(self, size: int, admitted: int | None = None) -> Reply | None:
        """The memory limit's own. A refusal leaves no trace."""
        before = self._learned()
        reply = self._admit(size, admitted)
        counted = max(size, REQUEST_BYTES_MIN)
        if admitted is not None:
            counted = max(counted - max(admitted, REQUEST_BYTES_MIN), 0)
        try:
            self._readings.check(counted, reply, self._service._config.service.memory)
        except AssertionError as error:
            self._wrong.append(f"memory: {error}")
        if reply is not None:
            self.seen["short of memory"] += 1
            self._expect_no_trace(before)
        return reply

    def process(self, batch: Batch) -> Reply:
        """The processor's own. A refusal leaves no trace."""
        before = self._learned()
        reply = self._process(batch)
        if reply.outcome is Outcome.ACCEPTED:
            self.taken.append(batch)
        else:
            self._expect_no_trace(before)
        return reply

    def finish(self, batch: Batch, columns: Columns, room: int) -> Awaitable[Reply] | None:
        """A request is judged, maybe long after it was taken."""
        calls = calls_of(batch)
        self.seen["known from an earlier life"] += sum(call in self.known for call in calls)
        self.judged.update(calls)
        return self._finish(batch, columns, room)

    def snapshot(self, book: bytes, now_ns: int, room: np.ndarray | None = None) -> Snapshot:
        """What was learned is copied."""
        copy = self._snapshot(book, now_ns, room)
        self._past.copied(copy, self.known | self.judged.keys(), self._rules())
        self.seen["copied"] += 1
        return copy

    def _learned(self) -> int | None:
        """A digest of all that the judge knows, every other time."""
        if self._rng.random() < 0.5:
            return None
        return digest_of(self._processor.state)

    def _expect_no_trace(self, before: int | None) -> None:
        if before not in {None, digest_of(self._processor.state)}:
            self._wrong.append("a refusal left a trace in the state")

    def accepted(self) -> int:
        """Spans that the service says it took over."""
        grpc, http = self._processor._accepted.values()
        return int(grpc._value.get() + http._value.get())

    def check(self) -> None:
        """Nothing was wrong so far."""
        assert self._wrong == []

    def check_judge(self) -> None:
        """Every call was counted once, whatever was refused, repeated or held back on its way, and
        in whichever life."""
        assert self._processor.healthy
        counts = self._processor.counts()
        fresh = self.judged.keys() - self.known
        assert counts["tool_calls", ()] == len(fresh)
        assert counts["duplicates", ()] == self.judged.total() - len(fresh)

    def check_stopped(self) -> None:
        """All that was taken was judged, and nothing is forgotten."""
        taken: Counter[Hashable] = Counter()
        for batch in self.taken:
            taken.update(calls_of(batch))
        assert self.judged == taken
        snapshots = self._service.snapshots
        if snapshots._section.enabled and not snapshots.problem:
            assert self._past.newest().calls == self.known | self.judged.keys()


def digest_of(state: State) -> int:
    """One number for all that the judge knows."""
    digest = 0
    for array in arrays_of(state):
        digest = zlib.crc32(array.tobytes(), digest)
    return digest


def numbers_of(batch: Batch) -> list[int]:
    """Of the spans in a batch."""
    return spans_in(batch.body) if batch.signal is Signal.TRACES else []


def calls_of(batch: Batch) -> list[Hashable]:
    """The same, and the call that a log tells of."""
    return [batch.body] if batch.signal is Signal.LOGS else list(numbers_of(batch))
