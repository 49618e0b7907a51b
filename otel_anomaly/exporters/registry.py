"""From configuration to exporters: the one place that knows every type."""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from otel_anomaly.config import (
    AnyExporterConfig,
    DebugExporterConfig,
    FileExporterConfig,
    OtlpGrpcExporterConfig,
    OtlpHttpExporterConfig,
    QueueConfig,
    RetryConfig,
    listening,
    queue_directory,
    signal_paths,
)
from otel_anomaly.exporters.debug import DebugExporter
from otel_anomaly.exporters.disk_files import RealFiles
from otel_anomaly.exporters.disk_queue import DiskQueue
from otel_anomaly.exporters.disk_store import DiskStore
from otel_anomaly.exporters.disk_worker import ThreadWorker
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.file import FileExporter
from otel_anomaly.exporters.grpc import GrpcExporter
from otel_anomaly.exporters.http import HttpExporter
from otel_anomaly.exporters.pace import Pace
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.exporters.splitting import Splitting, cut_over
from otel_anomaly.exporters.swapping import Swapping
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    import random

    from otel_anomaly.config import Config
    from otel_anomaly.exporters.contract import Exporter
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry


class Line(NamedTuple):
    """One exporter of a configuration, with all that belongs to it."""

    section: AnyExporterConfig
    files: frozenset[Path]
    """What it writes; nobody else may."""
    likeness: object
    """Two exporters that are alike in this need not be exchanged, whatever their limits are."""
    exporter: Swapping
    queue: SendQueue
    stored: object
    """Where and how its queue holds what it holds."""


class Makers:
    """Makes exporters and their queues."""

    def __init__(
        self,
        telemetry: Telemetry,
        clock: Clock,
        rng: random.Random,
        stream: TextIO | None = None,
    ) -> None:
        """`rng` spreads the retries. `stream` is where `debug` writes, default standard error."""
        self.telemetry = telemetry
        self._clock, self._rng = clock, rng
        self._stream = sys.stderr if stream is None else stream

    def line(self, name: str, config: Config) -> Line:
        """An exporter with its queue, not started. Raises ValueError naming it."""
        section = config.exporters[name]
        exporter = Swapping(self.exporter(name, config))
        queue = self._queue(name, exporter, config)
        alike, where = likeness(name, config), stored(name, config)
        return Line(section, files_of(name, config), alike, exporter, queue, where)

    def _queue(self, name: str, exporter: Exporter, config: Config) -> SendQueue:
        section = config.exporters[name]
        queue = section.sending_queue
        if queue.storage == "memory":
            return SendQueue(name, exporter, section, self.telemetry, self._rng.random)
        files = RealFiles(queue_directory(config, name))
        store = DiskStore(
            files, size=queue.disk_size, fsync=queue.fsync, key=lambda: secrets.randbits(64)
        )
        return DiskQueue(
            name,
            exporter,
            section,
            self.telemetry,
            self._rng.random,
            store=store,
            worker=ThreadWorker(name),
            pace=Pace(),
        )

    def exporter(self, name: str, config: Config) -> Exporter:
        """An exporter, not started. Raises ValueError naming it: a header it cannot carry."""
        try:
            return _exporter(config.exporters[name], config, self._clock, self._stream)
        except ValueError as error:
            raise ValueError(f"exporters.{name}: {error}") from error


def build(
    config: Config,
    telemetry: Telemetry,
    clock: Clock,
    rng: random.Random,
    stream: TextIO | None = None,
) -> Fanout:
    """Every exporter of the configuration, not yet started, for whoever will not exchange them.

    Raises
    ------
    ValueError
        A header that the exporter's protocol cannot carry. Names the exporter.
    """
    makers = Makers(telemetry, clock, rng, stream)
    queues = [makers.line(name, config).queue for name in config.exporters]
    return Fanout(queues, config.ack, config.ack_timeout)


def files_of(name: str, config: Config) -> frozenset[Path]:
    """What an exporter writes."""
    section = config.exporters[name]
    if not isinstance(section, FileExporterConfig):
        return frozenset()
    return frozenset(path.absolute() for path in signal_paths(config, section).values())


def stored(name: str, config: Config) -> object:
    """Where and how a queue holds what it holds."""
    queue = config.exporters[name].sending_queue
    if queue.storage == "memory":
        return None
    return queue_directory(config, name).absolute(), queue.fsync


def likeness(name: str, config: Config) -> object:
    """All that an exporter itself goes by: not the limits of its queue, but what its files hold."""
    section = config.exporters[name]
    queue = QueueConfig(num_consumers=section.sending_queue.num_consumers)
    own = section.model_copy(
        update={"required": True, "retry_on_failure": RetryConfig(), "sending_queue": queue}
    )
    match section:
        case DebugExporterConfig():
            beyond: object = config.annotate.prefix
        case FileExporterConfig():
            beyond = is_forced(section, config)
        case _:
            beyond = None
    return own, beyond, _pem_digests(section)


def is_forced(section: AnyExporterConfig, config: Config) -> bool:
    """Whether what it writes must outlive a power cut: a queue that does forgets it, or a client
    hears OK."""
    queue = section.sending_queue
    return config.ack == "sent" or (queue.storage == "disk" and queue.fsync != "never")


def _pem_digests(section: AnyExporterConfig) -> tuple[bytes, ...]:
    """What the certificates and keys are, so that new ones under the same name are noticed."""
    tls = getattr(section, "tls", None)
    if tls is None:
        return ()
    digests = []
    for path in (tls.ca_file, tls.cert_file, tls.key_file):
        try:
            body = Path(path).read_bytes() if path else b""
        except OSError as error:  # Told when the exporter starts.
            body = str(error.errno).encode()
        digests.append(hashlib.sha256(body).digest())
    return tuple(digests)


def _exporter(section: AnyExporterConfig, config: Config, clock: Clock, stream: TextIO) -> Exporter:
    match section:
        case FileExporterConfig():
            paths = signal_paths(config, section)
            return FileExporter(
                section,
                {signal: paths[signal.value] for signal in Signal},
                forced=is_forced(section, config),
            )
        case OtlpGrpcExporterConfig():
            return Splitting(GrpcExporter(section, listening(config)), cut_over(section))
        case OtlpHttpExporterConfig():
            return Splitting(HttpExporter(section, clock, listening(config)), cut_over(section))
        case _:
            detailed = section.verbosity == "detailed"
            return DebugExporter(stream, detailed=detailed, prefix=config.annotate.prefix)
