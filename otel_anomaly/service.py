"""The service: builds every part, starts the far end first and drains the door first.

    start   monitoring, exporters, sinks, kernels warm, doors, ready
    stop    not ready, doors shut, requests in flight answered, queues drained to the deadline,
            sinks flushed, last words: accepted = sent + held + dropped

One event loop runs it all. A request is judged where it arrives, between two awaits; only the scan
of a large body goes to a thread, where it holds no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import random
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from otel_anomaly import __version__
from otel_anomaly.config import Config, audit_path
from otel_anomaly.episodes import EpisodeBook
from otel_anomaly.exporters import build
from otel_anomaly.handoff import Batch, Clock, EpisodeEvent, Outcome, Reply, Signal, Sink
from otel_anomaly.kernels import cache_is_warm, signed
from otel_anomaly.otlp.json import decode
from otel_anomaly.otlp.scan import Columns, MalformedRequest, scan
from otel_anomaly.processor import SIGNALS, Processor
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.receivers.listener import host_and_port
from otel_anomaly.receivers.monitoring import Monitoring
from otel_anomaly.report import Reporter
from otel_anomaly.sinks import AuditSink, ConsoleSink
from otel_anomaly.telemetry import Telemetry
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
DOOR_GRACE_S: Final = 5.0
SINK_FLUSH_S: Final = 5.0
EXIT_OK, EXIT_CANNOT_START = 0, 3


class SystemClock:
    """The machine's own time."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


def config_hash(config: Config) -> str:
    """Names a configuration in audit records: SHA-256 of all keys and values."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def random_seed() -> int:
    """A fresh secret for the hashes of this process."""
    return signed(secrets.randbits(64))


class Service:
    """One running service."""

    def __init__(self, config: Config, clock: Clock, out: TextIO, *, seed: int) -> None:
        """Build every part. Raises OSError or ValueError when one cannot be."""
        self._config, self._clock, self._out = config, clock, out
        sinks = {"audit": config.audit.enabled, "console": config.alerts.console}
        self.telemetry = Telemetry(config.exporters, [name for name, on in sinks.items() if on])
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
        self._sinks: list[Sink] = []
        self._audit: AuditSink | None = None
        self._console: ConsoleSink | None = None
        self._stopping = False
        self._exporters_run = False
        self._ticker: asyncio.Task[None] | None = None
        self._build_doors()

    def _build_doors(self) -> None:
        config, telemetry, clock = self._config, self.telemetry, self._clock
        protocols = config.receivers.otlp.protocols
        self.grpc: GrpcReceiver | None = None
        if protocols.grpc is not None:
            self.grpc = GrpcReceiver(protocols.grpc, self.consume, telemetry, clock)
        self.http: HttpReceiver | None = None
        if protocols.http is not None:
            self.http = HttpReceiver(protocols.http, self.consume, telemetry, clock, decode)
        self.monitoring = Monitoring(
            config.telemetry.metrics, telemetry, self.health, lambda: self.is_ready
        )
        self.is_ready = False

    async def start(self) -> None:
        """Far end first. Raises OSError naming what is taken; what was started is stopped again."""
        try:
            await self.monitoring.start()
            self._check_doors_are_free()
            await self._fanout.start()
            self._exporters_run = True
            self._start_sinks()
            await asyncio.to_thread(warm)
            for door in (self.grpc, self.http):
                if door is not None:
                    await door.start()
        except BaseException:
            await self.stop()
            raise
        if self.grpc is not None:
            await self.grpc.set_serving(serving=True)
        self._ticker = asyncio.create_task(self._tick_forever())
        self.is_ready = True
        self.telemetry.ready.set(1)

    def _check_doors_are_free(self) -> None:
        """Say that a port is taken at once, not when the kernels are compiled."""
        protocols = self._config.receivers.otlp.protocols
        for section in (protocols.grpc, protocols.http):
            if section is not None:
                address = host_and_port(section.endpoint)
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                try:
                    socket.create_server(address, family=family).close()
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise OSError(f"cannot listen on {section.endpoint}: {reason}") from error

    def _start_sinks(self) -> None:
        config = self._config
        if config.audit.enabled:
            self._audit = AuditSink(
                audit_path(config), config_hash(config), config.audit, self.telemetry, self._clock
            )
            self._audit.service_started()
            self._sinks.append(self._audit)
        if config.alerts.console:
            self._console = ConsoleSink(self._out, self.telemetry, config.alerts, self._clock)
            self._sinks.append(self._console)

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
            self._tell(self._book.take(columns, judgement, self.processor.state))

    def _on_emptied(self) -> None:
        self._tell(self._book.forget())

    def _tell(self, events: list[EpisodeEvent]) -> None:
        if events:
            for sink in self._sinks:
                sink.offer(events)

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
        self._tell(self._book.tick(self.processor.state, now_ns))
        self.processor.sweep(now_ns)
        self.telemetry.episodes_open.set(len(self._book))

    def health(self) -> Mapping[str, object]:
        """For /healthz: what a person asks first."""
        problems = {
            name: sink.problem
            for name, sink in (("audit", self._audit), ("console", self._console))
            if sink is not None and sink.problem
        }
        problems |= {f"exporters.{name}": text for name, text in self._fanout.problems().items()}
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
        protocols = self._config.receivers.otlp.protocols
        metrics = self._config.telemetry.metrics
        listening = (
            ("OTLP/gRPC", protocols.grpc, self.grpc),
            ("OTLP/HTTP", protocols.http, self.http),
            ("metrics and health", metrics, self.monitoring),
        )
        return {
            name: f"{section.endpoint.rpartition(':')[0]}:{door.port}"
            for name, section, door in listening
            if section is not None and door is not None
        }

    async def stop(self) -> None:
        """Door first. Safe to call on what was only half started."""
        self.is_ready = False
        self.telemetry.ready.set(0)
        if self.grpc is not None:
            with contextlib.suppress(RuntimeError):
                await self.grpc.set_serving(serving=False)
        self._fanout.hurry()
        doors = [door for door in (self.grpc, self.http) if door is not None]
        await asyncio.gather(*(door.stop(DOOR_GRACE_S) for door in doors))
        self._stopping = True
        if self._ticker is not None:
            self._ticker.cancel()
        self.processor.release_all()
        self._tell(self._book.end_all(self.processor.state))
        try:
            if self._exporters_run:
                await self._fanout.stop(self._config.service.drain_timeout / 1e9)
        finally:  # The threads of the sinks would keep the process alive.
            await asyncio.to_thread(self._close_sinks)
            await self.monitoring.stop()

    def _close_sinks(self) -> None:
        if self._audit is not None:
            self._audit.service_stopped(**self.telemetry.ledger()._asdict())
        for sink in (self._audit, self._console):
            if sink is not None:
                sink.close(SINK_FLUSH_S)


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory instead of giving back every request's.

    Without it each request of some 100 KiB faults its pages in anew: 18 page faults and a fifth
    of the CPU time of a 270 KiB request (2 cores, glibc 2.36).
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)


async def _serve(config: Config) -> int:
    err = sys.stderr
    if not cache_is_warm():
        print("first start on this machine: compiling the kernels, about a minute ...", file=err)
    clock = SystemClock()
    started = clock.monotonic()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        service = Service(config, clock, sys.stdout, seed=random_seed())
        await service.start()
    except (OSError, ValueError) as error:
        print(f"otel-anomaly cannot start: {error}", file=err)
        return EXIT_CANNOT_START
    print(_welcome(service, clock.monotonic() - started), file=err, flush=True)
    await stop.wait()
    print("stopping: no new requests, delivering what is held ...", file=err, flush=True)
    await service.stop()
    for name in config.exporters:
        print(f"stopped: {name}: {service.telemetry.ledger(name).sentence()}", file=err, flush=True)
    return EXIT_OK


def _welcome(service: Service, seconds: float) -> str:
    places = ", ".join(f"{name} on {place}" for name, place in service.places().items())
    return f"otel-anomaly {__version__} ready after {seconds:.1f} s: {places}"


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    keep_freed_memory()
    try:
        Path(config.storage.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"otel-anomaly cannot start: {error}\n")
        return EXIT_CANNOT_START
    if sys.platform == "win32":
        return asyncio.run(_serve(config))
    import uvloop  # noqa: PLC0415 - not to be had on Windows.

    return uvloop.run(_serve(config))
