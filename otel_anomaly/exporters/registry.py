"""From configuration to exporters: the one place that knows every type."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, TextIO

from otel_anomaly.config import (
    FileExporterConfig,
    OtlpGrpcExporterConfig,
    OtlpHttpExporterConfig,
    queue_directory,
    signal_paths,
)
from otel_anomaly.exporters.debug import DebugExporter
from otel_anomaly.exporters.disk_files import RealFiles
from otel_anomaly.exporters.disk_queue import DiskQueue, ThreadWorker
from otel_anomaly.exporters.disk_store import DiskStore
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.file import FileExporter
from otel_anomaly.exporters.grpc import GrpcExporter
from otel_anomaly.exporters.http import HttpExporter
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    import random

    from otel_anomaly.config import AnyExporterConfig, Config
    from otel_anomaly.exporters.contract import Exporter
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry


def build(
    config: Config,
    telemetry: Telemetry,
    clock: Clock,
    rng: random.Random,
    stream: TextIO | None = None,
) -> Fanout:
    """Every exporter of the configuration, not yet started.

    `rng` spreads the retries. `stream` is where `debug` writes, standard error by default.

    Raises
    ------
    ValueError
        A header that the exporter's protocol cannot carry. Names the exporter.
    """
    debug_stream = sys.stderr if stream is None else stream
    queues = []
    for name, section in config.exporters.items():
        try:
            exporter = _exporter(section, config, clock, debug_stream)
        except ValueError as error:
            raise ValueError(f"exporters.{name}: {error}") from error
        queues.append(_queue(name, exporter, config, telemetry, rng))
    return Fanout(queues, config.ack, config.ack_timeout)


def _queue(
    name: str, exporter: Exporter, config: Config, telemetry: Telemetry, rng: random.Random
) -> SendQueue:
    section = config.exporters[name]
    if section.sending_queue.storage == "memory":
        return SendQueue(name, exporter, section, telemetry, rng.random)
    store = DiskStore(
        RealFiles(queue_directory(config, name)),
        size=section.sending_queue.disk_size,
        fsync=section.sending_queue.fsync,
        key=lambda: secrets.randbits(64),
    )
    worker = ThreadWorker(name)
    return DiskQueue(name, exporter, section, telemetry, rng.random, store=store, worker=worker)


def _exporter(section: AnyExporterConfig, config: Config, clock: Clock, stream: TextIO) -> Exporter:
    match section:
        case FileExporterConfig():
            paths = signal_paths(config, section)
            return FileExporter(section, {signal: paths[signal.value] for signal in Signal})
        case OtlpGrpcExporterConfig():
            return GrpcExporter(section)
        case OtlpHttpExporterConfig():
            return HttpExporter(section, clock)
        case _:
            detailed = section.verbosity == "detailed"
            return DebugExporter(stream, detailed=detailed, prefix=config.annotate.prefix)
