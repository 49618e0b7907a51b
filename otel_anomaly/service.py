"""The service: builds every part, starts the far end first and drains the door first.

    start   monitoring, exporters, sinks, kernels warm, doors, ready
    stop    not ready, doors shut, requests in flight answered, queues drained to the deadline,
            sinks flushed, last words: accepted = sent + held + dropped

One event loop runs it all. A request is judged where it arrives, between two awaits; only the scan
of a large body goes to a thread, where it holds no lock.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, TextIO

from otel_anomaly import __version__
from otel_anomaly.config import Config, config_hash
from otel_anomaly.doors import Doors
from otel_anomaly.episodes import EpisodeBook
from otel_anomaly.exporters import build
from otel_anomaly.handoff import Batch, Clock, Outcome, Reply, Signal
from otel_anomaly.otlp.scan import Columns, MalformedRequest, scan
from otel_anomaly.processor import SIGNALS, Processor
from otel_anomaly.report import Reporter
from otel_anomaly.telemetry import Telemetry
from otel_anomaly.telling import Telling, sink_names
from otel_anomaly.warm import warm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_anomaly.state import Judgement

INLINE_BYTES_MAX: Final = 1 << 20
"""A body up to here is scanned in the loop, in about a millisecond; a larger one in a thread."""
TICK_S: Final = 1.0
HOLD_STEPS: Final = 4
"""A span is held back by at most so much of `identity.hold` too long: a quarter."""
HOLD_STEP_S_MIN: Final = 0.01
"""Unless that is shorter than this."""


class Service:
    """One running service."""

    def __init__(self, config: Config, clock: Clock, out: TextIO, *, seed: int) -> None:
        """Build every part. Raises OSError or ValueError when one cannot be."""
        self._config, self._clock = config, clock
        self.telemetry = Telemetry(config.exporters, sink_names(config))
        self._fanout = build(config, self.telemetry, clock, random.Random(seed))  # noqa: S311
        self.processor = Processor(
            config,
            self._fanout,
            self.telemetry,
            seed=seed,
            on_judged=self._on_judged,
            on_emptied=self._on_emptied,
        )
        self._book = EpisodeBook(Reporter(self.processor.texts), config.alerts.hold)
        self._telling = Telling(clock, self.telemetry, out)
        self._stopping = False
        self._exporters_run = False
        self._ticker: asyncio.Task[None] | None = None
        self.is_ready = False
        self.doors = Doors(
            config,
            self.consume,
            self.telemetry,
            clock,
            health=self.health,
            ready=lambda: self.is_ready,
        )

    async def start(self) -> None:
        """Far end first. Raises OSError naming what is taken; what was started is stopped again."""
        try:
            await self.doors.monitoring.start()
            self.doors.check_free()
            await self._fanout.start()
            self._exporters_run = True
            self._telling.start(self._config)
            await asyncio.to_thread(warm)
            await self.doors.open()
        except BaseException:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick_forever())
        self.is_ready = True
        self.telemetry.ready.set(1)

    async def consume(self, batch: Batch) -> Reply:
        """What the doors call with each request."""
        if self._stopping:
            return Reply(Outcome.STOPPING, "the service is stopping: send again later", 1.0)
        reply = await self._process(batch)
        return reply if reply.pending is None else await reply.pending

    async def _process(self, batch: Batch) -> Reply:
        """Judge a batch and hand it on, the large ones scanned in a thread."""
        if batch.signal is Signal.METRICS or len(batch.body) <= INLINE_BYTES_MAX:
            return self.processor.process(batch)
        signal = SIGNALS[batch.signal]
        try:
            columns = await asyncio.to_thread(scan, batch.body, self.processor.keys, signal)
        except MalformedRequest as error:
            return self.processor.refuse_unread(batch, error)
        return self.processor.process_columns(batch, columns)

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        if judgement.steps.size:
            self._telling.tell(self._book.take(columns, judgement, self.processor.state))

    def _on_emptied(self) -> None:
        self._telling.tell(self._book.forget())

    async def _tick_forever(self) -> None:
        hold_s = self._config.identity.hold / 1e9
        step_s = min(TICK_S, max(hold_s / HOLD_STEPS, HOLD_STEP_S_MIN)) if hold_s else TICK_S
        slept_s = 0.0
        while True:
            await asyncio.sleep(step_s)
            self.processor.release(self._clock.now_ns())
            slept_s += step_s
            if slept_s >= TICK_S:
                slept_s = 0.0
                self.tick(self._clock.now_ns())

    def tick(self, now_ns: int) -> None:
        """What time alone brings: episodes end, idle rows are freed."""
        self._telling.tell(self._book.tick(self.processor.state, now_ns))
        self.processor.sweep(now_ns)
        self.telemetry.episodes_open.set(len(self._book))

    def health(self) -> Mapping[str, object]:
        """For /healthz: what a person asks first."""
        problems = self._telling.problems()
        if not self.processor.healthy:
            problems["detection"] = "a batch went on without a verdict; see the log"
        return {
            "status": "degraded" if problems else "ok",
            "ready": self.is_ready,
            "version": __version__,
            "config_hash": config_hash(self._config),
            "problems": problems,
        }

    def places(self) -> dict[str, str]:
        """What listens where."""
        return self.doors.places()

    async def stop(self) -> None:
        """Door first. Safe to call on what was only half started."""
        self.is_ready = False
        self.telemetry.ready.set(0)
        await self.doors.shut()
        self._stopping = True
        if self._ticker is not None:
            self._ticker.cancel()
        self.processor.release_all()
        self._telling.tell(self._book.end_all(self.processor.state))
        try:
            if self._exporters_run:
                await self._fanout.stop(self._config.service.drain_timeout / 1e9)
        finally:  # The threads of the sinks would keep the process alive.
            await asyncio.to_thread(self._telling.close, self.telemetry.ledger())
            await self.doors.monitoring.stop()
