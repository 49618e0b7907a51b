"""Requests for the suite: each signal with every kind of field, and ways to spoil them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from otel_anomaly.handoff import Signal
from tests.traffic import any_value, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.traffic import Value

TRACE_ID, SPAN_ID = bytes(range(1, 17)), bytes(range(101, 109))
RESOURCE = Resource(attributes=attributes([("service.name", "desk")]))
SCOPE = InstrumentationScope(name="suite", version="1")
EVERY_KIND: tuple[tuple[str, Value], ...] = (
    ("text", "a"),
    ("empty", None),
    ("yes", True),
    ("int", -(1 << 62)),
    ("double", 0.1),
    ("bytes", b"\x00\xff"),
    ("mixed", ["a", 1, None, [b"x", {}], {"k": [True]}]),
    ("nested", {"a": {"b": None, "c": []}}),
)
UNKNOWN_FIELD = b"\xba\x3e\x05later"
"""Number 999, as a later version might bring it."""


def traces() -> ExportTraceServiceRequest:
    """A span with all that a span has."""
    request = ExportTraceServiceRequest()
    block = request.resource_spans.add(resource=RESOURCE, schema_url="https://r")
    span = block.scope_spans.add(scope=SCOPE, schema_url="https://s").spans.add(
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        parent_span_id=SPAN_ID[::-1],
        trace_state="a=b",
        name="GET /",
        kind=3,
        start_time_unix_nano=1_700_000_000_000_000_001,
        end_time_unix_nano=1_700_000_000_000_000_002,
        attributes=attributes(EVERY_KIND),
        flags=0x301,
    )
    span.events.add(time_unix_nano=5, name="e", attributes=attributes(EVERY_KIND))
    span.links.add(trace_id=TRACE_ID, span_id=SPAN_ID, flags=0x101)
    span.status.code = 2
    span.status.message = "no"
    return request


def logs() -> ExportLogsServiceRequest:
    """A log record with all that it has."""
    request = ExportLogsServiceRequest()
    block = request.resource_logs.add(resource=RESOURCE)
    block.scope_logs.add(scope=SCOPE).log_records.add(
        time_unix_nano=7,
        observed_time_unix_nano=8,
        severity_number=9,
        severity_text="INFO",
        body=any_value("said"),
        attributes=attributes(EVERY_KIND),
        flags=1,
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        event_name="said",
    )
    return request


def metrics() -> ExportMetricsServiceRequest:
    """Numbers of every kind."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add(resource=RESOURCE).scope_metrics.add(scope=SCOPE)
    point = {"start_time_unix_nano": 1, "time_unix_nano": 2, "attributes": attributes(EVERY_KIND)}
    gauge = scope.metrics.add(name="g", unit="1").gauge.data_points.add(as_double=0.5, **point)
    gauge.exemplars.add(trace_id=TRACE_ID, span_id=SPAN_ID, as_int=-3, time_unix_nano=4)
    total = scope.metrics.add(name="s").sum
    total.is_monotonic, total.aggregation_temporality = True, 2
    total.data_points.add(as_int=-5, flags=1, **point)
    histogram = scope.metrics.add(name="h").histogram
    histogram.data_points.add(
        count=3, sum=1.5, bucket_counts=[1, 2], explicit_bounds=[0.5], min=0, max=1, **point
    )
    exponential = scope.metrics.add(name="e").exponential_histogram.data_points.add(
        count=1, scale=-1, zero_count=1, zero_threshold=0.1, **point
    )
    exponential.positive.bucket_counts.extend([1, 300])
    exponential.negative.offset = -4
    summary = scope.metrics.add(name="q").summary.data_points.add(count=1, sum=2, **point)
    summary.quantile_values.add(quantile=0.5, value=1)
    return request


def full(signal: Signal) -> Message:
    """The request of a signal."""
    return {Signal.TRACES: traces, Signal.METRICS: metrics, Signal.LOGS: logs}[signal]()


def messages_in(message: Message) -> Iterator[Message]:
    """The message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if not isinstance(value, Message) else (value,):
                yield from messages_in(part)


def with_unknown_fields(message: Message) -> bytes:
    """The message with a field from the future in every message it holds."""
    for part in list(messages_in(message)):
        part.MergeFromString(UNKNOWN_FIELD)
    return message.SerializeToString()


def nested(depth: int) -> bytes:
    """A span whose attribute is an array in an array, `depth` times. Google's own classes refuse
    to hold it."""
    value = field(1, b"x")
    for _ in range(depth):
        value = field(5, field(1, value))
    span = field(1, TRACE_ID) + field(2, SPAN_ID) + field(9, field(1, b"deep") + field(2, value))
    return field(1, field(2, field(2, span)))


def field(number: int, body: bytes) -> bytes:
    """One length-delimited field."""
    size, head = len(body), [number << 3 | 2]
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + body
