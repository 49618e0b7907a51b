"""What a configuration will do, in one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.config.conflicts import audit_path, signal_paths
from otel_anomaly.config.problems import without_password
from otel_anomaly.config.quantities import quantity_text

if TYPE_CHECKING:
    from otel_anomaly.config.exporters import AnyExporterConfig
    from otel_anomaly.config.models import Config
    from otel_anomaly.config.section import Section


def summary(config: Config) -> str:
    """Doors, detectors that are on with their limits, exporters, and what stands beside."""
    protocols = config.receivers.otlp.protocols
    named = (("grpc", protocols.grpc), ("http", protocols.http))
    doors = [f"otlp/{name} on {door.endpoint}" for name, door in named if door]
    detectors = [
        f"{name} ({_limits(getattr(config.detectors, name))})"
        for name in type(config.detectors).model_fields
        if getattr(config.detectors, name).enabled
    ]
    exporters = [
        f"{name} ({_target(config, exporter)})" for name, exporter in config.exporters.items()
    ]
    beside = [f"metrics on {config.telemetry.metrics.endpoint}"]
    if config.audit.enabled:
        beside.append(f"audit in {audit_path(config)}")
    return "; ".join(
        (
            f"receives {', '.join(doors)}",
            f"judges {', '.join(detectors) or 'nothing'}",
            f"forwards to {', '.join(exporters)}",
            *beside,
        )
    )


def _limits(detector: Section) -> str:
    """`window 60s, warn 100`: every key but the switch."""
    texts = []
    for name, field in type(detector).model_fields.items():
        value = getattr(detector, name)
        if name != "enabled":
            quantity = quantity_text(field, value) if isinstance(value, int) else None
            texts.append(f"{name} {quantity or value}")
    return ", ".join(texts)


def _target(config: Config, exporter: AnyExporterConfig) -> str:
    if exporter.kind == "file":
        return str(signal_paths(config, exporter)["traces"])
    if exporter.kind == "debug":
        return "standard error"
    return without_password(exporter.endpoint)
