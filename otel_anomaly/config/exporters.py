"""The exporters: every key, its default, its limits and what it does."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from otel_anomaly.config.conflicts import conflict
from otel_anomaly.config.quantities import (
    GIB,
    KIB,
    MIB,
    SECOND_NS,
    Count,
    Duration,
    GrpcTarget,
    Ratio,
    Size,
    Url,
)
from otel_anomaly.config.section import Section

OUR_HEADERS: Final = frozenset(
    {"content-type", "content-encoding", "content-length", "transfer-encoding"}
)
"""What the HTTP exporter says of its own requests."""


def _header_name(name: str) -> str:
    """An HTTP field name (RFC 9110, 5.1), lower-case as HTTP/2 wants it."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", name):
        raise ValueError("must be a header name")
    return name.lower()


def _header_value(value: str) -> str:
    """Visible ASCII (RFC 9110, 5.5): a stray line break from a secret's file is found at start."""
    if not re.fullmatch(r"[ -~]*", value) or value != value.strip():
        raise ValueError("must be printable ASCII without line breaks or spaces around it")
    return value


def _http_name(name: str) -> str:
    if name in OUR_HEADERS:
        raise ValueError(f"{name} is set by the exporter")
    return name


def _grpc_name(name: str) -> str:
    """Letters, digits, `_`, `.` and `-`; what ends in `-bin` is binary. Else every call fails."""
    if not re.fullmatch(r"[0-9a-z_.-]+", name) or name.endswith("-bin"):
        raise ValueError("is not a name that gRPC can send")
    return name


_Name = Annotated[str, AfterValidator(_header_name)]
_Value = Annotated[str, AfterValidator(_header_value)]
# Sent with every request. Values are secrets: no message shows them.
HttpHeaders = dict[Annotated[_Name, AfterValidator(_http_name)], _Value]
GrpcHeaders = dict[Annotated[_Name, AfterValidator(_grpc_name)], _Value]


MaxRequestSize = Annotated[Size, Field(ge=64 * KIB, le=GIB)]
"""OTLP recommends that nobody sends, or takes, more than 64 MiB at once."""


class RetryConfig(Section):
    """How a failed send is repeated. The Collector's names and meanings."""

    enabled: bool = True
    """Whether a transient failure is retried."""
    initial_interval: Annotated[Duration, Field(gt=0)] = 5 * SECOND_NS
    """Wait before the first retry."""
    multiplier: Ratio = Field(default=1.5, ge=1, le=10)
    """Factor from one wait to the next."""
    randomization_factor: Ratio = Field(default=0.5, ge=0, le=1)
    """Share of a wait that is random, either way."""
    max_interval: Annotated[Duration, Field(gt=0)] = 30 * SECOND_NS
    """Longest wait."""
    max_elapsed_time: Duration = 300 * SECOND_NS
    """After so long the data is dropped and counted; 0 is never. Default with a disk queue: 0."""

    @model_validator(mode="after")
    def _waits_grow(self) -> Self:
        if self.max_interval < self.initial_interval:
            text = "max_interval must be at least initial_interval"
            raise conflict(text, "max_interval", "initial_interval")
        if 0 < self.max_elapsed_time < self.initial_interval:
            text = "max_elapsed_time must be at least initial_interval, or 0"
            raise conflict(text, "max_elapsed_time", "initial_interval")
        return self


class BatchConfig(Section):
    """Small requests are merged into one until one of these is reached."""

    flush_timeout: Duration = 200_000_000
    """Longest wait for company."""
    max_size: Annotated[Size, Field(gt=0)] = MIB
    """Bytes from which a request is sent at once; small ones merge up to this, and no further than
    `max_request_size` (a quarter of it with `encoding: json`)."""


class QueueConfig(Section):
    """Each exporter's own queue, bounded in bytes."""

    storage: Literal["memory", "disk"] = "memory"
    """`memory`: lost with the process. `disk`: a client hears OK when its request is written."""
    directory: str | None = None
    """Of the disk queue. Default `<storage.directory>/queue/<exporter>`."""
    disk_size: Annotated[Size, Field(ge=16 * MIB)] = GIB
    """Bytes held on disk while the next hop is slow or away."""
    fsync: Literal["always", "interval", "never"] = "interval"
    """When what is written is forced to the disk: before the client hears OK, now and then, or
    when the system likes. A process that is killed loses nothing either way, a power cut does."""
    fsync_interval: Annotated[Duration, Field(gt=0)] = SECOND_NS
    """How much may be lost to a power cut with `fsync: interval`; and with `always`, too, what was
    delivered in that time is sent again after one."""
    queue_size: Annotated[Size, Field(gt=0)] = 256 * MIB
    """Bytes held in memory: all that waits, or, of a disk queue, what is written and read ahead."""
    num_consumers: Count = Field(default=4, ge=1, le=64)
    """Requests under way at once."""
    batch: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _holds_a_batch(self) -> Self:
        if self.queue_size < self.batch.max_size:
            raise conflict(
                "queue_size must hold at least one batch.max_size", "queue_size", "batch"
            )
        if self.storage == "disk" and self.disk_size < 4 * self.batch.max_size:
            text = "disk_size must hold at least four batch.max_size"
            raise conflict(text, "disk_size", "batch")
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
            raise conflict("cert_file and key_file go together", "cert_file", "key_file")
        return self


class ExporterConfig(Section):
    """What all exporters share."""

    required: bool = True
    """Full queue: refuse at the door (true), or drop for this exporter alone and count (false)."""
    sending_queue: QueueConfig = QueueConfig()
    retry_on_failure: RetryConfig = RetryConfig()

    @model_validator(mode="before")
    @classmethod
    def _a_disk_waits(cls, value: object) -> object:
        """Who asks for a disk queue wants to outlast the next hop: it ends when it is full."""
        if not isinstance(value, dict):
            return value
        queue, retry = value.get("sending_queue"), value.get("retry_on_failure") or {}
        is_disk = isinstance(queue, dict) and queue.get("storage") == "disk"
        if not is_disk or not isinstance(retry, dict):
            return value
        return {**value, "retry_on_failure": {"max_elapsed_time": 0, **retry}}


class FileExporterConfig(ExporterConfig):
    """Annotated telemetry in files: one for each signal, `spans`, `metrics`, `logs`."""

    kind: Literal["file"] = Field(default="file", exclude=True, repr=False)
    path: str | None = None
    """File for traces; metrics and logs go beside it. Default `<storage.directory>/spans.jsonl`."""
    format: Literal["json", "proto"] = "json"
    """`json`: OTLP JSON lines, for people. `proto`: length-delimited requests, for speed."""
    max_size: Annotated[Size, Field(ge=64 * KIB)] = 128 * MIB
    """A file that reaches this is rotated."""
    max_backups: Count = Field(default=4, ge=0, le=10000)
    """Rotated files kept; the oldest go. The disk holds at most (max_backups + 1) x max_size."""


class OtlpGrpcExporterConfig(ExporterConfig):
    """Next hop over OTLP/gRPC."""

    kind: Literal["otlp_grpc"] = Field(default="otlp_grpc", exclude=True, repr=False)
    endpoint: GrpcTarget
    """`host:port`, or `http://` / `https://` before it."""
    tls: TlsClientConfig = TlsClientConfig()
    compression: Literal["gzip", "none"] = "gzip"
    """How requests are compressed."""
    timeout: Annotated[Duration, Field(gt=0)] = 5 * SECOND_NS
    """Deadline of one attempt."""
    max_request_size: MaxRequestSize = 64 * MIB
    """Larger requests are cut between spans, measured before compression; a span that is larger
    alone is dropped and counted."""
    headers: GrpcHeaders = Field(default_factory=dict)
    """Metadata sent with every request."""


class OtlpHttpExporterConfig(ExporterConfig):
    """Next hop over OTLP/HTTP."""

    kind: Literal["otlp_http"] = Field(default="otlp_http", exclude=True, repr=False)
    endpoint: Url | None = None
    """Base URL; `/v1/traces`, `/v1/metrics` and `/v1/logs` are appended."""
    traces_endpoint: Url | None = None
    """URL for traces, used as it is."""
    metrics_endpoint: Url | None = None
    """URL for metrics, used as it is."""
    logs_endpoint: Url | None = None
    """URL for logs, used as it is. A signal without any URL is dropped and counted."""
    encoding: Literal["proto", "json"] = "proto"
    """What requests are written in."""
    tls: TlsClientConfig = TlsClientConfig()
    compression: Literal["gzip", "zstd", "none"] = "gzip"
    """How requests are compressed."""
    timeout: Annotated[Duration, Field(gt=0)] = 30 * SECOND_NS
    """Deadline of one attempt."""
    max_request_size: MaxRequestSize = 64 * MIB
    """Larger requests are cut between spans, measured before compression; a span that is larger
    alone is dropped and counted."""
    headers: HttpHeaders = Field(default_factory=dict)
    """Headers sent with every request."""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if not self.endpoints():
            raise conflict("is required, or one of its forms for a signal", "endpoint")
        return self

    def endpoints(self) -> dict[str, str]:
        """Signal -> URL. A signal that has none is not in it."""
        urls = {} if self.endpoint is None else _signal_urls(self.endpoint)
        own = {
            "traces": self.traces_endpoint,
            "metrics": self.metrics_endpoint,
            "logs": self.logs_endpoint,
        }
        return urls | {signal: url for signal, url in own.items() if url is not None}


def _signal_urls(base: str) -> dict[str, str]:
    return {signal: f"{base.rstrip('/')}/v1/{signal}" for signal in ("traces", "metrics", "logs")}


class DebugExporterConfig(ExporterConfig):
    """A line per request on standard error, to see that something flows."""

    kind: Literal["debug"] = Field(default="debug", exclude=True, repr=False)
    verbosity: Literal["basic", "detailed"] = "basic"
    """`basic`: counts. `detailed`: every judged span and its anomaly attributes."""


AnyExporterConfig = Annotated[
    FileExporterConfig | OtlpGrpcExporterConfig | OtlpHttpExporterConfig | DebugExporterConfig,
    Field(discriminator="kind"),
]
EXPORTER_MODELS: dict[str, type[ExporterConfig]] = {
    "file": FileExporterConfig,
    "otlp_grpc": OtlpGrpcExporterConfig,
    "otlp_http": OtlpHttpExporterConfig,
    "debug": DebugExporterConfig,
}
EXPORTER_KINDS = {
    "file": "file",
    "otlp_grpc": "otlp_grpc",
    "otlp": "otlp_grpc",
    "otlp_http": "otlp_http",
    "otlphttp": "otlp_http",
    "debug": "debug",
}
"""Type as written in YAML -> kind. `otlp` and `otlphttp` are the Collector's older names."""


def exporter_kind(name: str) -> str | None:
    """`otlp/tempo` -> `otlp_grpc`; None for a type that does not exist."""
    return EXPORTER_KINDS.get(name.partition("/")[0])


def tagged(name: str, part: object) -> object:
    """One exporter's block, with the kind that its name says."""
    kind = exporter_kind(name)
    if kind is None:
        raise conflict(f"no such exporter type: one of {', '.join(EXPORTER_KINDS)}", name)
    if "/" in name and not re.fullmatch(r"[^/\s]{1,64}", name.partition("/")[2]):
        raise conflict("the name after / has 1 to 64 characters, no space and no other /", name)
    if isinstance(part, Section):
        return part
    if part is not None and not isinstance(part, dict):
        raise conflict("must be a block of keys", name)
    if part and "kind" in part:
        raise conflict("unknown key; the kind is the name of the block", (name, "kind"))
    return {"kind": kind, **(part or {})}
