"""Configuration: every key, default, limit and cross-check; the only reader of YAML and env.

The models below are the reference: the README table and `config/default.yaml` are generated from
their defaults and docstrings, and a test keeps them equal. A room is handed its own section.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND_NS = 1_000_000_000

_DURATION_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
    "d": 86400 * SECOND_NS,
}
_SIZE_UNITS = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "KB": 1000, "MB": 10**6, "GB": 10**9}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h|d))+")


def _duration_ns(value: object) -> object:
    """`90s`, `1m30s`, `0.5h` to nanoseconds; a bare 0 is allowed, other bare numbers are not."""
    if value == 0 and not isinstance(value, bool):
        return 0
    if not isinstance(value, str) or not _DURATION.fullmatch(value.strip()):
        raise ValueError("must be a duration with its unit, like 10s, 1m30s or 24h")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", value)
    return round(sum(float(number) * _DURATION_UNITS_NS[unit] for number, unit in parts))


def _size_bytes(value: object) -> object:
    """`64MiB` to bytes; a bare whole number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError("must be a size, like 512KiB, 64MiB or 1GiB")
    return round(float(match[1]) * _SIZE_UNITS[match[2]])


def _endpoint(value: object) -> object:
    """`host:port`; the port may be 0 for any free one."""
    if not isinstance(value, str) or not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):\d{1,5}", value):
        raise ValueError("must be host:port, like 127.0.0.1:4317")
    if int(value.rpartition(":")[2]) > 65535:
        raise ValueError("the port must be at most 65535")
    return value


Duration = Annotated[int, BeforeValidator(_duration_ns), Field(ge=0)]
"""Nanoseconds inside, `10s` in YAML."""
Size = Annotated[int, BeforeValidator(_size_bytes), Field(ge=0)]
"""Bytes inside, `64MiB` in YAML."""
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
"""`host:port`."""


class Section(BaseModel):
    """One block of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class GrpcReceiverConfig(Section):
    """OTLP/gRPC door."""

    endpoint: Endpoint = "127.0.0.1:4317"
    """Address to listen on."""
    max_recv_msg_size_mib: int = Field(64, gt=0, le=1024)
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
    def _named_without_a_value(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: {} if part is None else part for key, part in value.items()}

    @model_validator(mode="after")
    def _some_door(self) -> Self:
        if self.grpc is None and self.http is None:
            raise ValueError("at least one of grpc and http must be there")
        return self


class OtlpReceiverConfig(Section):
    """The OTLP receiver."""

    protocols: ProtocolsConfig = ProtocolsConfig(grpc=GrpcReceiverConfig(), http=HttpReceiverConfig())


class ReceiversConfig(Section):
    """Where telemetry comes in."""

    otlp: OtlpReceiverConfig = OtlpReceiverConfig()


class EntityLimits(Section):
    """How much is remembered. Each is a number of rows; beyond it the longest idle go."""

    agents: int = Field(131072, ge=1, le=1 << 24)
    """Agents with a past of their own."""
    sessions: int = Field(262144, ge=1, le=1 << 24)
    """Sessions with a rate counter."""
    traces: int = Field(65536, ge=1, le=1 << 24)
    """Traces whose identity is remembered for spans that come later."""
    spans: int = Field(262144, ge=1, le=1 << 26)
    """Span ids remembered, so that a span delivered twice counts once."""
    agent_idle: Annotated[Duration, Field(gt=0)] = 24 * 3600 * SECOND_NS
    """An agent silent for so long may be forgotten at any time."""
    session_idle: Annotated[Duration, Field(gt=0)] = 3600 * SECOND_NS
    """A session silent for so long may be forgotten at any time."""
    agent_keep: Annotated[Duration, Field(ge=0)] = 600 * SECOND_NS
    """An agent seen within this time is never evicted: newcomers share the overflow row instead."""
    session_keep: Annotated[Duration, Field(ge=0)] = 60 * SECOND_NS
    """A session seen within this time is never evicted: newcomers share the overflow row instead."""


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
    weak: tuple[str, ...] = ("service.name",)
    """Keys of the above that count only when span, resource and trace hold none of the others."""
    limits: EntityLimits = EntityLimits()

    @field_validator("tenant", "agent", "session", "user", "owner", "weak")
    @classmethod
    def _keys_are_sound(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if len(keys) > 32 or len(set(keys)) != len(keys):
            raise ValueError("at most 32 keys, each once")
        if any(not key or len(key.encode()) > 256 for key in keys):
            raise ValueError("a key has 1 to 256 bytes")
        return keys

    @model_validator(mode="after")
    def _weak_keys_are_used(self) -> Self:
        used = {*self.tenant, *self.agent, *self.session, *self.user, *self.owner}
        if stray := set(self.weak) - used:
            raise ValueError(f"weak names keys that no identity uses: {sorted(stray)}")
        return self


class RateConfig(Section):
    """Calls of a session in the last window against two fixed limits, inclusive; 0 is off."""

    enabled: bool = True
    """Whether the detector runs."""
    scope: Literal["session", "agent", "user", "tenant"] = "session"
    """Whose calls are added up."""
    window: Duration = 60 * SECOND_NS
    """Length of the window: 1s to 60s, whole seconds."""
    warn: int = Field(100, ge=0, le=65535)
    """Calls in the window from which the action is warn; 0 is off."""
    block: int = Field(500, ge=0, le=65535)
    """Calls in the window from which the action is block; 0 is off."""

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        if self.window % SECOND_NS or not SECOND_NS <= self.window <= 60 * SECOND_NS:
            raise ValueError("window must be whole seconds from 1s to 60s")
        if self.warn and self.block and self.warn >= self.block:
            raise ValueError(f"warn ({self.warn}) must be below block ({self.block}), or 0")
        return self


class RateShiftConfig(Section):
    """An agent's open bucket far above its own closed ones, at 1 s and at 60 s."""

    enabled: bool = True
    """Whether the detector runs."""
    k: float = Field(3.0, gt=0, le=1000)
    """How many robust standard deviations above the median the limit lies."""
    ratio: float = Field(2.0, ge=1, le=1000)
    """The limit is at least so many times the level reached in three closed buckets."""
    min_calls_second: int = Field(30, ge=1, le=65535)
    """No one-second bucket below this is ever a shift."""
    min_calls_minute: int = Field(120, ge=1, le=65535)
    """No one-minute bucket below this is ever a shift."""
    min_buckets: int = Field(10, ge=3, le=59)
    """Closed buckets needed before a resolution judges: its learning time."""
    min_samples: int = Field(10, ge=1)
    """Calls needed in the agent's past before anything is judged."""
    ceiling: int = Field(6000, ge=0, le=65535)
    """Calls of an agent in one minute that are a shift whatever its past; 0 is off."""
    action: Literal["warn", "pause", "block"] = "pause"
    """What a shift asks for."""

    @model_validator(mode="after")
    def _ceiling_above_floor(self) -> Self:
        if self.ceiling and self.ceiling < self.min_calls_minute:
            raise ValueError("ceiling must be at least min_calls_minute, or 0")
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

    prefix: str = Field("anomaly", pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=32)
    """First part of every attribute key written; keys that arrive under it are removed."""
    signals: Literal["nonzero", "all"] = "nonzero"
    """Which detectors' own scores are written: those that are not zero, or all."""


class RetryConfig(Section):
    """How a failed send is repeated. The Collector's names and meanings."""

    enabled: bool = True
    """Whether a transient failure is retried."""
    initial_interval: Annotated[Duration, Field(gt=0)] = 5 * SECOND_NS
    """Wait before the first retry."""
    multiplier: float = Field(1.5, ge=1, le=10)
    """Factor from one wait to the next."""
    randomization_factor: float = Field(0.5, ge=0, le=1)
    """Share of a wait that is random, either way."""
    max_interval: Annotated[Duration, Field(gt=0)] = 30 * SECOND_NS
    """Longest wait."""
    max_elapsed_time: Duration = 300 * SECOND_NS
    """After so long the data is dropped and counted; 0 is never."""


class BatchConfig(Section):
    """Small requests are merged into one until one of these is reached."""

    flush_timeout: Duration = 200_000_000
    """Longest wait for company."""
    max_size: Annotated[Size, Field(gt=0)] = MIB
    """Bytes from which a request is sent at once; small ones merge up to this."""


class QueueConfig(Section):
    """Each exporter's own queue, bounded in bytes."""

    queue_size: Annotated[Size, Field(gt=0)] = 256 * MIB
    """Bytes held while the next hop is slow or away."""
    num_consumers: int = Field(4, ge=1, le=64)
    """Requests under way at once."""
    batch: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _holds_a_batch(self) -> Self:
        if self.queue_size < self.batch.max_size:
            raise ValueError("queue_size must hold at least one batch.max_size")
        return self


class TlsClientConfig(Section):
    """How the next hop is reached."""

    insecure: bool = False
    """No TLS."""
    ca_file: str | None = None
    """PEM file of the authorities trusted; the system's when not given."""
    cert_file: str | None = None
    """PEM file of the client certificate, for mutual TLS."""
    key_file: str | None = None
    """PEM file of the client key."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class ExporterConfig(Section):
    """What all exporters share."""

    required: bool = True
    """Full queue: refuse at the door (true), or drop for this exporter alone and count (false)."""
    sending_queue: QueueConfig = QueueConfig()
    retry_on_failure: RetryConfig = RetryConfig()


class FileExporterConfig(ExporterConfig):
    """Annotated telemetry in files: one for each signal, `spans`, `metrics`, `logs`."""

    kind: Literal["file"] = Field("file", exclude=True, repr=False)
    path: str | None = None
    """File for traces; metrics and logs go beside it. Default `<storage.directory>/spans.jsonl`."""
    format: Literal["json", "proto"] = "json"
    """`json`: OTLP JSON lines, for people. `proto`: length-delimited requests, for speed."""
    max_size: Annotated[Size, Field(ge=64 * KIB)] = 128 * MIB
    """A file that reaches this is rotated."""
    max_backups: int = Field(4, ge=0, le=10000)
    """Rotated files kept; the oldest go. The disk holds at most (max_backups + 1) x max_size."""


class OtlpGrpcExporterConfig(ExporterConfig):
    """Next hop over OTLP/gRPC."""

    kind: Literal["otlp_grpc"] = Field("otlp_grpc", exclude=True, repr=False)
    endpoint: str = Field(min_length=1)
    """`host:port`, or `http://` / `https://` before it."""
    tls: TlsClientConfig = TlsClientConfig()
    compression: Literal["gzip", "none"] = "gzip"
    """How requests are compressed."""
    timeout: Annotated[Duration, Field(gt=0)] = 5 * SECOND_NS
    """Deadline of one attempt."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Metadata sent with every request."""


class OtlpHttpExporterConfig(ExporterConfig):
    """Next hop over OTLP/HTTP, protobuf."""

    kind: Literal["otlp_http"] = Field("otlp_http", exclude=True, repr=False)
    endpoint: str = Field(pattern=r"^https?://[^\s]+$")
    """Base URL; `/v1/traces`, `/v1/metrics` and `/v1/logs` are appended."""
    tls: TlsClientConfig = TlsClientConfig()
    compression: Literal["gzip", "none"] = "gzip"
    """How requests are compressed."""
    timeout: Annotated[Duration, Field(gt=0)] = 30 * SECOND_NS
    """Deadline of one attempt."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers sent with every request."""


class DebugExporterConfig(ExporterConfig):
    """A line per request on standard error, to see that something flows."""

    kind: Literal["debug"] = Field("debug", exclude=True, repr=False)
    verbosity: Literal["basic", "detailed"] = "basic"
    """`basic`: counts. `detailed`: every judged span and its anomaly attributes."""


AnyExporterConfig = Annotated[
    FileExporterConfig | OtlpGrpcExporterConfig | OtlpHttpExporterConfig | DebugExporterConfig,
    Field(discriminator="kind"),
]
EXPORTER_KINDS = {
    "file": "file",
    "otlp_grpc": "otlp_grpc",
    "otlp": "otlp_grpc",
    "otlp_http": "otlp_http",
    "otlphttp": "otlp_http",
    "debug": "debug",
}
"""Exporter type as written in YAML -> kind. `otlp` and `otlphttp` are the Collector's older names."""


class AuditConfig(Section):
    """The audit trail: hash-chained JSON lines."""

    enabled: bool = True
    """Whether a trail is written."""
    path: str | None = None
    """Default `<storage.directory>/audit.jsonl`."""
    queue_records: int = Field(10000, ge=1)
    """Records waiting for the disk; beyond this they are dropped and counted."""
    fsync: bool = True
    """Whether each written group of records is forced to disk."""


class AlertsConfig(Section):
    """Episodes and where they are told."""

    console: bool = True
    """One line per episode on standard output."""
    hold: Annotated[Duration, Field(ge=SECOND_NS, le=86400 * SECOND_NS)] = 60 * SECOND_NS
    """An episode ends when its detector has been quiet about the entity for so long."""
    clear: float = Field(0.8, gt=0, le=1)
    """It stays open while the observed value is at least this share of the limit: hysteresis."""
    queue_records: int = Field(10000, ge=1)
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

    directory: str = "./otel-anomaly-data"
    """Made with owner-only permission when missing. OTEL_ANOMALY_DATA sets the default."""


class ServiceConfig(Section):
    """Life cycle."""

    drain_timeout: Duration = 20 * SECOND_NS
    """After SIGTERM, the longest time to deliver what is held."""


class Config(Section):
    """The whole configuration."""

    receivers: ReceiversConfig = ReceiversConfig()
    identity: IdentityConfig = IdentityConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    policy: PolicyConfig = PolicyConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    exporters: dict[str, AnyExporterConfig] = Field(
        default_factory=lambda: {"file": FileExporterConfig()}
    )
    """Every exporter gets everything. Key: type, or `type/name` for several of one type."""
    audit: AuditConfig = AuditConfig()
    alerts: AlertsConfig = AlertsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    storage: StorageConfig = StorageConfig()
    service: ServiceConfig = ServiceConfig()

    @field_validator("exporters", mode="before")
    @classmethod
    def _kind_from_name(cls, value: Any) -> Any:
        """Choose the model of each exporter by the type in its key."""
        if not isinstance(value, dict):
            return value
        tagged = {}
        for name, part in value.items():
            kind = EXPORTER_KINDS.get(str(name).partition("/")[0])
            if kind is None:
                raise ValueError(f"unknown exporter type {name!r}: one of {', '.join(EXPORTER_KINDS)}")
            if isinstance(part, Section):
                tagged[str(name)] = part
                continue
            if part is not None and not isinstance(part, dict):
                raise ValueError(f"{name} must be a block of keys")
            if part and "kind" in part:
                raise ValueError(f"{name}: unknown key 'kind'")
            tagged[str(name)] = {"kind": kind, **(part or {})}
        return tagged
