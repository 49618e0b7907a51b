"""The service: builds every part, starts the far end first and drains the door first.

    start   monitoring, exporters, sinks, kernels warm, doors, ready
    stop    not ready, doors shut, requests in flight answered, what was learned written, queues
            drained to the deadline, sinks flushed, last words:
            accepted + recovered = sent + held + dropped

One event loop runs it all. A request is judged where it arrives, between two awaits; only the scan
of a large body goes to a thread, where it holds no lock.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, TextIO

from otel_anomaly import __version__
from otel_anomaly.config import SECOND_NS, Config, config_hash
from otel_anomaly.doors import Doors
from otel_anomaly.episodes import EpisodeBook, read_pages
from otel_anomaly.exporters import Exchange, Makers
from otel_anomaly.handoff import Batch, Clock, Outcome, Reply, Signal
from otel_anomaly.memory import MemoryLimiter
from otel_anomaly.otlp.metrics import is_metrics
from otel_anomaly.otlp.scan import Columns, MalformedRequest, scan
from otel_anomaly.processor import SIGNALS, Processor
from otel_anomaly.reloading import Fixed, Readable, Reloads, check_can_change
from otel_anomaly.report import Reporter
from otel_anomaly.snapshots import Snapshots, ahead_problem
from otel_anomaly.telemetry import Telemetry
from otel_anomaly.telling import Telling, sink_names
from otel_anomaly.warm import warm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from otel_anomaly.handoff import EpisodeEvent
    from otel_anomaly.state import Judgement

LOG: Final = logging.getLogger("otel_anomaly")
INLINE_BYTES_MAX: Final = 1 << 20
"""A body up to here is scanned in the loop, in about a millisecond; a larger one in a thread."""
METRICS_INLINE_BYTES_MAX: Final = 1 << 16
"""The same for metrics, of which each field is checked: about a millisecond as well."""
PATIENCE_SHARE: Final = 0.9
"""Of the time until the client's deadline; the rest is for the answer's way."""
TICK_S: Final = 1.0
TICK_LOG_EVERY_S: Final = 60.0
"""A bug that every tick meets is told once a minute."""
HOLD_STEPS: Final = 4
"""A span is held back by at most so much of `identity.hold` too long: a quarter."""
HOLD_STEP_S_MIN: Final = 0.01
"""Unless that is shorter than this."""


class Service:
    """One running service."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        out: TextIO,
        *,
        seed: int,
        source: Readable | None = None,
    ) -> None:
        """Build every part. Raises OSError or ValueError when one cannot be.

        `source`: where the configuration is read again; when not given it stays as it is.
        """
        self._config, self._clock = config, clock
        self.telemetry = Telemetry(config.exporters, sink_names(config))
        self.snapshots = Snapshots(config, clock, self.telemetry)
        loaded = self.snapshots.load()
        makers = Makers(self.telemetry, clock, random.Random(seed))  # noqa: S311
        self._exporters = Exchange(config, makers)
        self._fanout = self._exporters.fanout
        self.memory = MemoryLimiter(
            config.service.memory, self.telemetry, clock, self._fanout.retry_after_s
        )
        self.processor = Processor(
            config,
            self._fanout,
            self.telemetry,
            seed=seed if loaded is None else loaded.seed,
            state=None if loaded is None else loaded.state,
            on_judged=self._on_judged,
            on_emptied=self._on_emptied,
        )
        self._book = EpisodeBook(Reporter(self.processor.texts), config.alerts.hold)
        self._over: list[EpisodeEvent] = []  # What is open in a snapshot and has no record.
        if loaded is not None:
            self._over = self._book.reopen(read_pages(loaded.book), self.processor.state)
        self._telling = Telling(clock, self.telemetry, out)
        self._stopping = False
        self._exporters_run = False
        self.has_opened = False
        """Whether a client may have been told OK."""
        self._ticker: asyncio.Task[None] | None = None
        self._told_s = -TICK_LOG_EVERY_S
        self._reloaders: list[asyncio.Task[None]] = []
        self.reloads = Reloads(source or Fixed(config), self.reconfigure, self.telemetry, clock)
        self.is_ready = False
        self.doors = Doors(
            config,
            self.consume,
            self.telemetry,
            clock,
            admit=self.admit,
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
            self._telling.tell(self._over)
            await asyncio.to_thread(warm, redacts=self._config.redact.enabled)
            self.has_opened = True
            await self.doors.open()
        except BaseException:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick_forever())
        self._reloaders = [
            asyncio.create_task(self.reloads.serve()),
            asyncio.create_task(self.reloads.watch(self._watch_interval_ns)),
        ]
        self.snapshots.start(self)
        self.is_ready = True
        self.telemetry.ready.set(1)
        self.reloads.note_loaded()

    def pages(self) -> bytes:
        """The book of open episodes, for a snapshot."""
        return self._book.to_bytes()

    def admit(self, size: int, admitted: int | None = None) -> Reply | None:
        """What the doors ask before they read a request of `size` bytes. None: it may come in.

        `admitted`: as how many bytes it was let in before, if it was.
        """
        if self._stopping:
            return Reply(Outcome.STOPPING, "the service is stopping: send again later", 1.0)
        return self.memory.admit(size, admitted)

    async def consume(self, batch: Batch) -> Reply:
        """What the doors call with each request."""
        began_s = asyncio.get_running_loop().time()
        # Anew: the door knew how long it was on the wire, and now it is inflated.
        refusal = self.admit(len(batch.body), batch.admitted)
        if refusal is not None:
            return refusal
        reply = await self._process(batch)
        if reply.pending is None:
            return reply
        patience_s = batch.patience_s
        due_s = None if patience_s is None else began_s + patience_s * PATIENCE_SHARE
        return await self._in_time(reply.pending, due_s)

    async def _in_time(self, pending: Awaitable[Reply], due_s: float | None) -> Reply:
        """The answer that is open, or while the client still listens: that there is none yet."""
        try:
            async with asyncio.timeout_at(due_s):
                return await pending
        except TimeoutError:
            wait_s = self._fanout.retry_after_s()
            return Reply(Outcome.UNAVAILABLE, "not done before your deadline", wait_s)

    async def _process(self, batch: Batch) -> Reply:
        """Judge a batch and hand it on, the large ones read in a thread."""
        if batch.signal is Signal.METRICS:
            return await self._pass_on(batch)
        if len(batch.body) <= INLINE_BYTES_MAX:
            return self.processor.process(batch)
        signal, keys = SIGNALS[batch.signal], None
        try:
            while keys is not self.processor.keys:  # Others by now: what was read is theirs.
                keys = self.processor.keys
                columns = await asyncio.to_thread(scan, batch.body, keys, signal)
                if self.processor.redacts:
                    columns = await asyncio.to_thread(self.processor.cover_apart, columns)
        except MalformedRequest as error:
            return self.processor.refuse_unread(batch, error)
        return self.processor.process_columns(batch, columns)

    async def _pass_on(self, batch: Batch) -> Reply:
        if len(batch.body) <= METRICS_INLINE_BYTES_MAX:
            return self.processor.process(batch)
        return self.processor.pass_on(batch, await asyncio.to_thread(is_metrics, batch.body))

    async def reconfigure(self, config: Config) -> bool:
        """Go over to another configuration: no port is closed, nothing held or learned is lost.

        Returns whether anything has changed. Raises OSError or ValueError naming what cannot be;
        then all is as before.
        """
        old = self._config
        check_can_change(old, config)
        async with AsyncExitStack() as undo:
            self.snapshots.reconfigure(config)
            undo.callback(self.snapshots.reconfigure, old)
            if config.redact.enabled and not old.redact.enabled:
                await asyncio.to_thread(warm)  # Else the first request would wait for the compiler.
            rules = await asyncio.to_thread(self.processor.prepare, config)
            exporters = await self._exporters.prepare(config, undo)
            telling = await self._telling.prepare(old, config, undo)
            await self.doors.reconfigure(old, config, undo)
            # From here on nothing waits, so no request sees half of it; and nothing fails.
            if config != old:
                self.processor.adopt(rules)
            undo.pop_all()
            exporters()
            if config != old:
                telling()
                self._book.reconfigure(Reporter(rules.texts), config.alerts.hold)
                self._telling.tell(self._book.follow(self.processor.state))
                self.memory.reconfigure(config.service.memory)
            self._config = config
        return config != old

    def _watch_interval_ns(self) -> int:
        service = self._config.service
        return service.watch_interval if service.watch_config else 0

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        if judgement.steps.size:
            self._telling.tell(self._book.take(columns, judgement, self.processor.state))

    def _on_emptied(self) -> None:
        self.snapshots.emptied()
        self._telling.tell(self._book.forget())

    async def _tick_forever(self) -> None:
        slept_s = 0.0
        while True:
            hold_s = self._config.identity.hold / 1e9
            step_s = min(TICK_S, max(hold_s / HOLD_STEPS, HOLD_STEP_S_MIN)) if hold_s else TICK_S
            await asyncio.sleep(step_s)
            slept_s += step_s
            is_due = slept_s >= TICK_S
            slept_s = 0.0 if is_due else slept_s
            for part in (self.processor.release, self.tick)[: 1 + is_due]:
                try:
                    part(self._clock.now_ns())
                except Exception as error:  # noqa: BLE001 - else time would stand still from now on.
                    self._tick_failed(error)

    def _tick_failed(self, error: Exception) -> None:
        """Told when it is time to: the next tick may meet the same."""
        now_s = self._clock.monotonic()
        if now_s - self._told_s >= TICK_LOG_EVERY_S:
            self._told_s = now_s
            LOG.error("a tick of the service failed; the next one comes", exc_info=error)

    def tick(self, now_ns: int) -> None:
        """What time alone brings: episodes end, idle rows are freed."""
        self._telling.tell(self._book.tick(self.processor.state, now_ns))
        self.processor.sweep(now_ns)
        self.telemetry.episodes_open.set(len(self._book))
        self.memory.tick()

    def health(self) -> Mapping[str, object]:
        """For /healthz: what a person asks first."""
        state = self.processor.state
        problems = self._telling.problems() | self._fanout.problems() | self.doors.problems()
        if not self.processor.healthy:
            problems["detection"] = "a batch went on without a verdict; see the log"
        for name, problem in (
            ("configuration", self.reloads.problem),
            ("memory", self.memory.problem),
            ("snapshots", self.snapshots.problem),
            ("clock", ahead_problem(state, self._clock.now_ns())),
        ):
            if problem:
                problems[name] = problem
        return {
            "status": "degraded" if problems else "ok",
            "ready": self.is_ready,
            "version": __version__,
            "config_hash": config_hash(self._config),
            "problems": problems,
            "state": {
                "agents": int(state.agents.head["in_use"][0]),
                "sessions": int(state.sessions.head["in_use"][0]),
                **self.snapshots.status(),
            },
        }

    def exporter_names(self) -> list[str]:
        """The exporters in use."""
        return list(self._config.exporters)

    @property
    def drain_timeout_s(self) -> float:
        """How long a stop that begins now delivers what is held. What an earlier run left on disk
        is no reason to stay: it was there before."""
        return self._config.service.drain_timeout / SECOND_NS if self.has_opened else 0.0

    def places(self) -> dict[str, str]:
        """What listens where."""
        return self.doors.places()

    async def stop(self) -> None:
        """Door first. Safe to call on what was only half started.

        What the doors and the snapshot take of the drain timeout, the queues do not have.
        """
        drain_s, loop = self.drain_timeout_s, asyncio.get_running_loop()
        deadline_s = loop.time() + drain_s
        self.is_ready = False
        self.telemetry.ready.set(0)
        for task in self._reloaders:
            task.cancel()
        if self._reloaders:  # A reload under way takes back what it has begun.
            await asyncio.wait(self._reloaders)
        self._fanout.hurry()
        await self.doors.shut(drain_s)
        self._stopping = True
        if self._ticker is not None:
            self._ticker.cancel()
        self.processor.release_all()
        if not await self.snapshots.finish():
            self._telling.tell(self._book.end_all(self.processor.state))
        try:
            if self._exporters_run:
                await self._fanout.stop(max(deadline_s - loop.time(), 0.0))
        finally:  # The threads of the sinks would keep the process alive.
            await self._telling.settled()
            await asyncio.to_thread(self._telling.close, self.telemetry.ledger())
            await self.doors.monitoring.stop()
