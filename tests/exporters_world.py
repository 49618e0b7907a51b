"""What the exporter tests share: a destination that follows a script, and short ways to build."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from otel_anomaly.config import DebugExporterConfig
from otel_anomaly.exporters import Fanout, SendQueue, SendResult
from otel_anomaly.exporters.contract import SENT
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import DROP_REASONS, Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from prometheus_client import Counter, Gauge

    from otel_anomaly.exporters import Exporter

NAME = "next"


class FixedClock:
    """A wall clock that stands where it is put."""

    def __init__(self, now_ns: int = 1_790_000_000_000_000_000) -> None:
        self.ns = now_ns

    def now_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9


class Sent(NamedTuple):
    """One attempt that a scripted next hop saw."""

    at_s: float
    body: bytes
    signal: Signal
    items: int


class ScriptedExporter:
    """Answers each request with the next step of a script, then with success."""

    def __init__(self, *script: SendResult | BaseException | Awaitable[None]) -> None:
        self.serial = False
        self.script = list(script)
        self.attempts: list[Sent] = []
        self.closed = False
        self.under_way = self.under_way_max = 0
        self.judge: Callable[[bytes], SendResult] = lambda _: SENT

    async def start(self) -> None:
        """Nothing to open."""

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        now_s = asyncio.get_running_loop().time()
        self.attempts.append(Sent(now_s, body, signal, items))
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            step = self.script.pop(0) if self.script else self.judge(body)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, SendResult):
                return step
            await step
            return SENT
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        assert not self.closed
        self.closed = True

    @property
    def bodies(self) -> list[bytes]:
        return [attempt.body for attempt in self.attempts]


class Relay:
    """TCP connections to a port, passed on or swallowed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._ways: set[asyncio.Task[None]] = set()
        self.made = self.open = 0
        self.swallowed = 0
        """So many of the first connections stay open, and nothing passes any more."""
        self.gate: asyncio.Event | None = None
        """Connections are taken, and nothing passes before it is set."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """The relay at a port; what is open at the end is cut."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*self._ways)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        self.open += 1
        self._writers.add(writer)
        number = self.made
        if self.gate is not None:
            await self.gate.wait()
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = writer, back_writer
        self._writers.add(back_writer)
        ways = [
            asyncio.create_task(self._pass_on(number, reader, back_writer)),
            asyncio.create_task(self._pass_on(number, back_reader, writer)),
        ]
        self._ways.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.transport.abort()
        self._writers.difference_update(ends)
        self.open -= 1

    async def _pass_on(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(1 << 16):
                if number > self.swallowed:
                    sink.write(chunk)


def section(**keys: object) -> DebugExporterConfig:
    """The part of a configuration that all exporters share. `queue` and `retry` are blocks."""
    blocks = {"queue": "sending_queue", "retry": "retry_on_failure"}
    return DebugExporterConfig.model_validate({blocks.get(key, key): keys[key] for key in keys})


def queue_of(
    exporter: Exporter, telemetry: Telemetry, *, name: str = NAME, **keys: object
) -> SendQueue:
    """A queue whose retries are not random."""
    return SendQueue(name, exporter, section(**keys), telemetry, lambda: 0.5)


def hand_over(
    fanout: Fanout, body: bytes, signal: Signal = Signal.TRACES, items: int = 1
) -> Outcome:
    """Reserve twice what is needed, as the processor does, and fill it."""
    outcome = fanout.reserve(2 * len(body))
    if outcome is Outcome.ACCEPTED:
        fanout.commit(Payload(body, signal, items), 2 * len(body))
    return outcome


class Books:
    """The metrics of one exporter. Read one by one: a simulation asks thousands of times."""

    def __init__(self, telemetry: Telemetry, exporter: str = NAME) -> None:
        self.telemetry = telemetry
        self.exporter = exporter

    def read(self, metric: Counter | Gauge, *labels: str) -> int:
        """The value of a metric; `labels` are those after the exporter."""
        samples = metric.labels(self.exporter, *labels)._child_samples()
        return int(next(iter(samples)).value)

    @property
    def sent(self) -> int:
        return self.read(self.telemetry.sent_spans)

    @property
    def failed(self) -> int:
        return self.read(self.telemetry.failed_spans)

    @property
    def rejected(self) -> int:
        return self.read(self.telemetry.rejected_spans)

    @property
    def held(self) -> int:
        return self.read(self.telemetry.held_spans)

    @property
    def size(self) -> int:
        return self.read(self.telemetry.queue_size)

    @property
    def capacity(self) -> int:
        return self.read(self.telemetry.queue_capacity)

    def dropped(self, reason: str | None = None) -> int:
        reasons = DROP_REASONS if reason is None else (reason,)
        return sum(self.read(self.telemetry.dropped_spans, one) for one in reasons)

    def requests(self, signal: Signal) -> int:
        """Received requests that reached their end: delivered or given up."""
        label = signal.value
        dropped = self.telemetry.dropped_requests
        given_up = sum(self.read(dropped, label, reason) for reason in DROP_REASONS)
        return self.read(self.telemetry.sent_requests, label) + given_up
