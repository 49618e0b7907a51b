"""From configuration to exporters: the one place that knows every type."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, TextIO

from otel_anomaly.config import (
    FileExporterConfig,
    OtlpGrpcExporterConfig,
    OtlpHttpExporterConfig,
    signal_paths,
)
from otel_anomaly.exporters.debug import DebugExporter
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.file import FileExporter
from otel_anomaly.exporters.grpc import GrpcExporter
from otel_anomaly.exporters.http import HttpExporter
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.exporters.splitting import Splitting
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    import random

    from otel_anomaly.config import AnyExporterConfig, Config
    from otel_anomaly.exporters.contract import Exporter
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

JSON_GROWTH: Final = 4
"""How much longer JSON may be than protobuf, for where to cut: twice is usual. What grows more is
measured when it is written, and dropped as too large."""


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
        queues.append(SendQueue(name, exporter, section, telemetry, rng.random))
    return Fanout(queues)


def _exporter(section: AnyExporterConfig, config: Config, clock: Clock, stream: TextIO) -> Exporter:
    match section:
        case FileExporterConfig():
            paths = signal_paths(config, section)
            return FileExporter(section, {signal: paths[signal.value] for signal in Signal})
        case OtlpGrpcExporterConfig():
            return Splitting(GrpcExporter(section), section.max_request_size)
        case OtlpHttpExporterConfig():
            share = JSON_GROWTH if section.encoding == "json" else 1
            return Splitting(HttpExporter(section, clock), section.max_request_size // share)
        case _:
            detailed = section.verbosity == "detailed"
            return DebugExporter(stream, detailed=detailed, prefix=config.annotate.prefix)
