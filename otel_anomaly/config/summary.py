"""What a configuration will do, in one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.config.conflicts import audit_path, signal_paths
from otel_anomaly.config.own_doors import is_local
from otel_anomaly.config.problems import without_password
from otel_anomaly.config.quantities import quantity_text
from otel_anomaly.config.section import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.config.doors import GrpcReceiverConfig, HttpReceiverConfig
    from otel_anomaly.config.exporters import AnyExporterConfig
    from otel_anomaly.config.models import Config


_MODES = {
    "enforce": "enforce: actions are written as decided",
    "observe": "observe: nothing above warn is written",
}


def summary(config: Config) -> str:
    """Doors, detectors that are on with their limits, policy, exporters, and what stands beside."""
    protocols = config.receivers.otlp.protocols
    named = (("grpc", protocols.grpc), ("http", protocols.http))
    doors = [f"otlp/{name} on {door.endpoint}{_guards(door)}" for name, door in named if door]
    exporters = [
        f"{name} ({_target(config, exporter)}){_queue(exporter)}"
        for name, exporter in config.exporters.items()
    ]
    beside = []
    if config.ack == "sent":
        beside.append("answers when that is delivered")
    if config.redact.enabled:
        beside.append(f"redacts {', '.join(config.redact.what)} ({config.redact.mode})")
    beside.append(f"metrics on {config.telemetry.metrics.endpoint}")
    if not config.storage.snapshots.enabled:
        beside.append("forgets what it learned when it stops")
    if config.audit.enabled:
        beside.append(f"audit in {audit_path(config)}")
    return "; ".join(
        (
            f"receives {', '.join(doors)}",
            f"judges {', '.join(_detectors(config)) or 'nothing'}",
            _policy(config),
            f"forwards to {', '.join(exporters)}",
            *beside,
        )
    )


def _guards(door: GrpcReceiverConfig | HttpReceiverConfig) -> str:
    """How a door is shut: ` (tls, bearer)`; ` (open)` when it is not, and others can reach it."""
    guards = []
    if door.tls is not None:
        guards.append("tls" if door.tls.client_ca_file is None else "mutual tls")
    if door.auth is not None:
        kinds = (("bearer", door.auth.bearer), ("basic", door.auth.basic))
        guards += [name for name, kind in kinds if kind is not None]
    if not guards and not is_local(door.endpoint):
        guards.append("open")
    return f" ({', '.join(guards)})" if guards else ""


def _queue(exporter: AnyExporterConfig) -> str:
    return " from a disk queue" if exporter.sending_queue.storage == "disk" else ""


def _detectors(config: Config) -> Iterator[str]:
    """`rate (window 60s, warn 100)` of each that is on; one that needs a list has one."""
    detectors = config.detectors
    for name in type(detectors).model_fields:
        section = getattr(detectors, name)
        if not getattr(section, "enabled", False):
            continue
        if name == "unknown_connection" and not detectors.unknown_connection.allow:
            continue
        limits = ", ".join(_limits(section))
        yield f"{name} ({limits})" if limits else name


def _limits(section: Section) -> Iterator[str]:
    """`window 60s`, `allow 3 entries`: every key but the switch and what is empty."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name == "enabled" or value is None or value == ():
            continue
        if isinstance(value, Section):
            yield f"{name} {' '.join(_limits(value))}"
        elif isinstance(value, tuple):
            yield f"{name} {len(value)} {'entry' if len(value) == 1 else 'entries'}"
        else:
            quantity = quantity_text(field, value) if isinstance(value, int) else None
            yield f"{name} {quantity or value}"


def _policy(config: Config) -> str:
    count = len(config.policy.overrides)
    overrides = f", {count} override{'' if count == 1 else 's'}" if count else ""
    return _MODES[config.policy.mode] + overrides


def _target(config: Config, exporter: AnyExporterConfig) -> str:
    if exporter.kind == "file":
        return str(signal_paths(config, exporter)["traces"])
    if exporter.kind == "debug":
        return "standard error"
    if exporter.endpoint is not None:
        return without_password(exporter.endpoint)
    urls = exporter.endpoints().items() if exporter.kind == "otlp_http" else ()
    return ", ".join(f"{signal} {without_password(url)}" for signal, url in urls)
