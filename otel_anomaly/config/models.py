"""Every key of the configuration, its default, its limits and what it does.

These models are the reference: the README table and `config/default.yaml` are generated from
their defaults and docstrings, and a test keeps them equal. A room is handed its own section.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from otel_anomaly.config.conflicts import check_together, conflict
from otel_anomaly.config.detectors import DetectorsConfig
from otel_anomaly.config.doors import GrpcReceiverConfig, HttpReceiverConfig
from otel_anomaly.config.exporters import AnyExporterConfig, FileExporterConfig, tagged
from otel_anomaly.config.identity import IdentityConfig
from otel_anomaly.config.overrides import OVERRIDES_MAX, OverrideConfig, check_overrides
from otel_anomaly.config.patterns import Globs
from otel_anomaly.config.quantities import (
    SECOND_NS,
    Count,
    Duration,
    Endpoint,
    Ratio,
)
from otel_anomaly.config.redaction import RedactConfig
from otel_anomaly.config.section import Section
from otel_anomaly.config.service import ServiceConfig
from otel_anomaly.config.snapshots import SnapshotsConfig


class ProtocolsConfig(Section):
    """The doors. Leave one out and it stays shut; name it without a value for its defaults."""

    grpc: GrpcReceiverConfig | None = None
    http: HttpReceiverConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_without_a_value(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: {} if part is None else part for key, part in value.items()}

    @model_validator(mode="after")
    def _some_door(self) -> Self:
        if self.grpc is None and self.http is None:
            raise conflict("at least one of grpc and http must be there")
        return self


class OtlpReceiverConfig(Section):
    """The OTLP receiver."""

    protocols: ProtocolsConfig = ProtocolsConfig(
        grpc=GrpcReceiverConfig(), http=HttpReceiverConfig()
    )


class ReceiversConfig(Section):
    """Where telemetry comes in."""

    otlp: OtlpReceiverConfig = OtlpReceiverConfig()


class DialectsConfig(Section):
    """Which spans are tool calls. The table of instrumentations is built in."""

    lenient: bool = False
    """Whether a span is a call that has a tool's name, or a name like `execute_tool X`, alone."""


class PolicyConfig(Section):
    """From findings to the verdict: the strongest action wins."""

    mode: Literal["enforce", "observe"] = "enforce"
    """`enforce`: actions are written as decided. `observe`: nothing above warn is written, counted
    or told, verdicts and findings alike; agents learn by what was decided all the same."""
    max_clock_skew: Annotated[Duration, Field(le=30 * SECOND_NS)] = 10 * SECOND_NS
    """How far ahead of arrival a span may end; one further ahead is taken as ending at arrival."""
    polling_tools: Globs = ()
    """Tools that ask the same again and again by nature: no loop, no burst. Patterns."""
    batch_tools: Globs = ()
    """Tools that are called in masses by nature: no burst. Patterns."""
    overrides: tuple[OverrideConfig, ...] = Field(default=(), max_length=OVERRIDES_MAX)
    """Other limits for some calls; of several that match, the first alone. An agent tells its own
    name and its tools': a laxer override is safest with a tenant. One that never applies, or that
    changes nothing, is refused."""


class AnnotateConfig(Section):
    """What is written on a judged span."""

    prefix: str = Field(default="anomaly", max_length=32)
    """First part of every attribute key written; keys that arrive under it are removed."""
    signals: Literal["nonzero", "all"] = "nonzero"
    """Which detectors' own scores are written: those that are not zero, or all."""

    @field_validator("prefix")
    @classmethod
    def _prefix_is_a_name(cls, prefix: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", prefix):
            raise ValueError("must be lower-case letters, digits and _, in parts joined by dots")
        return prefix


class AuditConfig(Section):
    """The audit trail: hash-chained JSON lines."""

    enabled: bool = True
    """Whether a trail is written."""
    path: str | None = None
    """Default `<storage.directory>/audit.jsonl`."""
    queue_records: Count = Field(default=10000, ge=1, le=1_000_000)
    """Records waiting for the disk; beyond this they are dropped and counted."""
    fsync: bool = True
    """Whether each written group of records is forced to disk."""


class AlertsConfig(Section):
    """Episodes and where they are told."""

    console: bool = True
    """One line per episode on standard output."""
    hold: Annotated[Duration, Field(ge=SECOND_NS, le=86400 * SECOND_NS)] = 60 * SECOND_NS
    """An episode ends when its detector has been quiet about the entity for so long."""
    clear: Ratio = Field(default=0.8, gt=0, le=1)
    """It stays open while the observed value is at least this share of the limit: hysteresis."""
    queue_records: Count = Field(default=10000, ge=1, le=1_000_000)
    """Lines waiting for the console; beyond this they are dropped and counted."""


class MetricsConfig(Section):
    """Where Prometheus scrapes."""

    endpoint: Endpoint = "127.0.0.1:9464"
    """Address of `/metrics`, `/healthz` and `/readyz`."""


class TelemetryConfig(Section):
    """The service's own telemetry."""

    metrics: MetricsConfig = MetricsConfig()


class StorageConfig(Section):
    """Where the defaults keep files."""

    directory: str = Field(default="./otel-anomaly-data", min_length=1)
    """Made with owner-only permission when missing. OTEL_ANOMALY_DATA sets the default."""
    snapshots: SnapshotsConfig = SnapshotsConfig()


def _default_exporters() -> dict[str, AnyExporterConfig]:
    return {"file": FileExporterConfig()}


class Config(Section):
    """The whole configuration."""

    receivers: ReceiversConfig = ReceiversConfig()
    identity: IdentityConfig = IdentityConfig()
    dialects: DialectsConfig = DialectsConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    policy: PolicyConfig = PolicyConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    redact: RedactConfig = RedactConfig()
    exporters: dict[str, AnyExporterConfig] = Field(default_factory=_default_exporters)
    """Every exporter gets everything. Key: type, or `type/name` for several of one type."""
    ack: Literal["queued", "sent"] = "queued"
    """When a client hears OK. `queued`: a required exporter's queue has it, on disk where the queue
    is. `sent`: every required exporter has delivered it; the worst result is the client's."""
    ack_timeout: Annotated[Duration, Field(gt=0, le=600 * SECOND_NS)] = 8 * SECOND_NS
    """With `ack: sent`, after so long the client hears that it must send again; what it sent stays
    queued. Best below the clients' own deadline: 10s in most SDKs."""
    audit: AuditConfig = AuditConfig()
    alerts: AlertsConfig = AlertsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    storage: StorageConfig = StorageConfig()
    service: ServiceConfig = ServiceConfig()

    @property
    def answers_late(self) -> bool:
        """Whether a client's answer can be open when its request is handed on."""
        queues = (part.sending_queue for part in self.exporters.values() if part.required)
        return self.ack == "sent" or any(queue.storage == "disk" for queue in queues)

    @field_validator("exporters", mode="before")
    @classmethod
    def _kind_from_name(cls, value: object) -> object:
        """Choose the model of each exporter by the type in its key."""
        if not isinstance(value, dict):
            return value
        if not value:
            raise conflict("every exporter removed: nothing would be forwarded")
        return {name: tagged(name, part) for name, part in value.items()}

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        check_together(self)
        check_overrides(self)
        return self
