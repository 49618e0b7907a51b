"""Every key of the configuration, its default, its limits and what it does.

These models are the reference: the README table and `config/default.yaml` are generated from
their defaults and docstrings, and a test keeps them equal. A room is handed its own section.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from otel_anomaly.config.conflicts import check_together, conflict
from otel_anomaly.config.exporters import AnyExporterConfig, FileExporterConfig, tagged
from otel_anomaly.config.quantities import (
    GIB,
    MIB,
    SECOND_NS,
    Count,
    Duration,
    Endpoint,
    Ratio,
    Size,
)
from otel_anomaly.config.section import Section

_KEYS_MAX, _KEY_BYTES_MAX = 32, 256


class GrpcReceiverConfig(Section):
    """OTLP/gRPC door."""

    endpoint: Endpoint = "127.0.0.1:4317"
    """Address to listen on."""
    max_recv_msg_size_mib: Count = Field(default=64, gt=0, le=1024)
    """Largest request in MiB, also after decompression."""


class HttpReceiverConfig(Section):
    """OTLP/HTTP door."""

    endpoint: Endpoint = "127.0.0.1:4318"
    """Address to listen on."""
    max_request_body_size: Annotated[Size, Field(gt=0, le=GIB)] = 64 * MIB
    """Largest request body, also after decompression."""


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


class EntityLimits(Section):
    """How much is remembered. Each is a number of rows; beyond it the longest idle go."""

    agents: Count = Field(default=131072, ge=1, le=1 << 24)
    """Agents with a past of their own."""
    sessions: Count = Field(default=262144, ge=1, le=1 << 24)
    """Sessions with a rate counter."""
    traces: Count = Field(default=65536, ge=1, le=1 << 24)
    """Traces whose identity is remembered for spans that come later."""
    spans: Count = Field(default=262144, ge=1, le=1 << 26)
    """Span ids remembered, so that a span delivered twice counts once."""
    agent_idle: Annotated[Duration, Field(gt=0)] = 24 * 3600 * SECOND_NS
    """An agent silent for so long may be forgotten at any time."""
    session_idle: Annotated[Duration, Field(gt=0)] = 3600 * SECOND_NS
    """A session silent for so long may be forgotten at any time."""
    agent_keep: Duration = 600 * SECOND_NS
    """An agent seen within this time is never evicted: newcomers share the overflow row."""
    session_keep: Duration = 60 * SECOND_NS
    """A session seen within this time is never evicted: newcomers share the overflow row."""

    @model_validator(mode="after")
    def _kept_no_longer_than_idle(self) -> Self:
        if self.agent_keep > self.agent_idle:
            raise conflict("agent_keep must be at most agent_idle", "agent_keep", "agent_idle")
        if self.session_keep > self.session_idle:
            text = "session_keep must be at most session_idle"
            raise conflict(text, "session_keep", "session_idle")
        return self


class IdentityConfig(Section):
    """Who made a call. Attribute keys in order of preference: span, then resource, then trace."""

    tenant: tuple[str, ...] = ("tenant.id", "microsoft.tenant.id", "organization.id")
    """Keys of the tenant."""
    agent: tuple[str, ...] = (
        "gen_ai.agent.name",
        "gen_ai.main_agent.name",
        "gen_ai.agent.id",
        "service.name",
    )
    """Keys of the agent."""
    session: tuple[str, ...] = ("gen_ai.conversation.id", "session.id")
    """Keys of the session. None found: the user, the tenant, then `anon` stand in."""
    user: tuple[str, ...] = ("enduser.id", "user.id", "user.email", "enduser.pseudo.id")
    """Keys of the user."""
    owner: tuple[str, ...] = ()
    """Keys naming whom the presented credential belongs to."""
    weak: tuple[str, ...] = ("gen_ai.agent.id", "service.name")
    """Keys of the above that count only when span, resource and trace hold none of the others."""
    limits: EntityLimits = EntityLimits()

    @field_validator("tenant", "agent", "session", "user", "owner", "weak")
    @classmethod
    def _keys_are_sound(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if len(keys) > _KEYS_MAX or len(set(keys)) != len(keys):
            raise ValueError(f"must be at most {_KEYS_MAX} keys, each once")
        if any(not key or len(key.encode()) > _KEY_BYTES_MAX for key in keys):
            raise ValueError(f"must be keys of 1 to {_KEY_BYTES_MAX} bytes")
        return keys

    @model_validator(mode="after")
    def _weak_keys_are_used(self) -> Self:
        used = {*self.tenant, *self.agent, *self.session, *self.user, *self.owner}
        if stray := set(self.weak) - used:
            raise conflict(f"names keys that no identity uses: {', '.join(sorted(stray))}", "weak")
        return self


class RateConfig(Section):
    """Calls of a session in the last window against two fixed limits, inclusive; 0 is off."""

    enabled: bool = True
    """Whether the detector runs."""
    scope: Literal["session", "agent", "user", "tenant"] = "session"
    """Whose calls are added up."""
    window: Duration = 60 * SECOND_NS
    """Length of the window: 1s to 60s, whole seconds."""
    warn: Count = Field(default=100, ge=0, le=65535)
    """Calls in the window from which the action is warn; 0 is off."""
    block: Count = Field(default=500, ge=0, le=65535)
    """Calls in the window from which the action is block; 0 is off."""

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        if self.window % SECOND_NS or not SECOND_NS <= self.window <= 60 * SECOND_NS:
            raise conflict("must be whole seconds from 1s to 60s", "window")
        if self.warn and self.block and self.warn >= self.block:
            text = f"warn ({self.warn}) must be below block ({self.block}), or one of them 0"
            raise conflict(text, "warn", "block")
        return self


class RateShiftConfig(Section):
    """An agent's open bucket far above its own closed ones, at 1 s and at 60 s."""

    enabled: bool = True
    """Whether the detector runs."""
    k: Ratio = Field(default=3.0, gt=0, le=1000)
    """How many robust standard deviations above the median the limit lies."""
    ratio: Ratio = Field(default=2.0, ge=1, le=1000)
    """The limit is at least so many times the level reached in three closed buckets."""
    min_calls_second: Count = Field(default=30, ge=1, le=65535)
    """No one-second bucket below this is ever a shift."""
    min_calls_minute: Count = Field(default=120, ge=1, le=65535)
    """No one-minute bucket below this is ever a shift."""
    min_buckets: Count = Field(default=10, ge=3, le=59)
    """Closed buckets needed before a resolution judges: its learning time."""
    min_samples: Count = Field(default=10, ge=1, le=1_000_000)
    """Calls needed in the agent's past before anything is judged."""
    ceiling: Count = Field(default=6000, ge=0, le=65535)
    """Calls of an agent in one minute that are a shift whatever its past; 0 is off."""
    action: Literal["warn", "pause", "block"] = "pause"
    """What a shift asks for."""

    @model_validator(mode="after")
    def _ceiling_above_floor(self) -> Self:
        if self.ceiling and self.ceiling < self.min_calls_minute:
            floor = self.min_calls_minute
            text = f"ceiling ({self.ceiling}) must be at least min_calls_minute ({floor}), or 0"
            raise conflict(text, "ceiling", "min_calls_minute")
        return self


class DetectorsConfig(Section):
    """One section per detector."""

    rate: RateConfig = RateConfig()
    rate_shift: RateShiftConfig = RateShiftConfig()


class PolicyConfig(Section):
    """From findings to the verdict: the strongest action wins."""

    max_clock_skew: Annotated[Duration, Field(le=30 * SECOND_NS)] = 10 * SECOND_NS
    """How far ahead of arrival a span may end; one further ahead is taken as ending at arrival."""


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


class ServiceConfig(Section):
    """Life cycle."""

    drain_timeout: Duration = 20 * SECOND_NS
    """After SIGTERM, the longest time to deliver what is held."""


def _default_exporters() -> dict[str, AnyExporterConfig]:
    return {"file": FileExporterConfig()}


class Config(Section):
    """The whole configuration."""

    receivers: ReceiversConfig = ReceiversConfig()
    identity: IdentityConfig = IdentityConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    policy: PolicyConfig = PolicyConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    exporters: dict[str, AnyExporterConfig] = Field(default_factory=_default_exporters)
    """Every exporter gets everything. Key: type, or `type/name` for several of one type."""
    audit: AuditConfig = AuditConfig()
    alerts: AlertsConfig = AlertsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    storage: StorageConfig = StorageConfig()
    service: ServiceConfig = ServiceConfig()

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
        return self
