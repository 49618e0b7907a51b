"""What a next hop answers: partial success, status details, hints when to come back.

Everything here comes from outside. It is bounded before it is parsed, and what cannot be read
never changes the fate that the status code decided.
"""

from __future__ import annotations

import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.contract import SENT, Kind, SendResult, clipped
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

RESPONSE_BYTES_MAX: Final = 4 << 20
"""Of a response, as OTLP recommends."""
DETAILS_BYTES_MAX: Final = 16 << 10
"""Of `grpc-status-details-bin`; it holds a code, a sentence and a duration."""
DATE_CHARS_MAX: Final = 64


def taken(response: bytes, signal: Signal) -> SendResult:
    """The result of a request that was answered with success."""
    if not response:
        return SENT
    try:
        rejected, message = _PARTIAL_SUCCESS[signal](response)
    except DecodeError:
        # The status says that the data was taken; sending it again would double it.
        return SendResult(Kind.SENT, "its response cannot be read")
    return SendResult(Kind.SENT, clipped(message), rejected=rejected)


def _traces(response: bytes) -> tuple[int, str]:
    partial = ExportTraceServiceResponse.FromString(response).partial_success
    return partial.rejected_spans, partial.error_message


def _metrics(response: bytes) -> tuple[int, str]:
    partial = ExportMetricsServiceResponse.FromString(response).partial_success
    return partial.rejected_data_points, partial.error_message


def _logs(response: bytes) -> tuple[int, str]:
    partial = ExportLogsServiceResponse.FromString(response).partial_success
    return partial.rejected_log_records, partial.error_message


_PARTIAL_SUCCESS: Final[dict[Signal, Callable[[bytes], tuple[int, str]]]] = {
    Signal.TRACES: _traces,
    Signal.METRICS: _metrics,
    Signal.LOGS: _logs,
}
assert set(_PARTIAL_SUCCESS) == set(Signal), "every signal has its response"


def status_message(body: bytes) -> str:
    """The sentence in an encoded google.rpc.Status, as OTLP/HTTP sends it with an error."""
    try:
        return clipped(Status.FromString(body[:DETAILS_BYTES_MAX]).message)
    except DecodeError:
        return ""


def retry_info_s(details: bytes) -> float | None:
    """The RetryInfo in an encoded google.rpc.Status, seconds; None when there is none."""
    if len(details) > DETAILS_BYTES_MAX:
        return None
    info = RetryInfo()
    try:
        for detail in Status.FromString(details).details:
            if detail.Is(RetryInfo.DESCRIPTOR):
                detail.Unpack(info)
                delay = info.retry_delay
                return float(max(delay.seconds + delay.nanos / SECOND_NS, 0.0))
    except DecodeError:
        return None  # The next hop's garbage: our own backoff decides, as without a hint.
    return None


def retry_after_s(value: str | None, now_ns: int) -> float | None:
    """A Retry-After header, seconds or HTTP-date, as seconds from now; None when unreadable."""
    text = (value or "")[:DATE_CHARS_MAX].strip()
    if re.fullmatch(r"[0-9]{1,18}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(math.ceil(date.timestamp() - now_ns / SECOND_NS), 0.0)
