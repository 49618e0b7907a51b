"""What a next hop answers: partial success, status details, hints when to come back.

Everything here comes from outside. It is bounded before it is parsed, and what cannot be read
never changes the fate that the status code decided.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf import json_format
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
    from google.protobuf.message import Message

RESPONSE_BYTES_MAX: Final = 4 << 20
"""Of a response, as OTLP recommends."""
JSON_BYTES_MAX: Final = 64 << 10
"""Of a response in JSON that is read. It is parsed in the event loop: 4 MiB of it, made to cost as
much as they can, took a third of a second and 100 MB, and all others waited (CPython 3.11)."""
DETAILS_BYTES_MAX: Final = 16 << 10
"""Of `grpc-status-details-bin`; it holds a code, a sentence and a duration."""
DATE_CHARS_MAX: Final = 64


class Success(NamedTuple):
    """How the next hop answers for a signal."""

    response: type[Message]
    rejected: str
    """The field of `partial_success` that counts what was left out."""


_SUCCESS: Final = {
    Signal.TRACES: Success(ExportTraceServiceResponse, "rejected_spans"),
    Signal.METRICS: Success(ExportMetricsServiceResponse, "rejected_data_points"),
    Signal.LOGS: Success(ExportLogsServiceResponse, "rejected_log_records"),
}
assert set(_SUCCESS) == set(Signal), "every signal has its response"


def taken(body: bytes | None, signal: Signal, *, in_json: bool = False) -> SendResult:
    """The result of a request that was answered with success; None: with too long a response."""
    if body is None:
        return SendResult(Kind.SENT, f"its response is over {RESPONSE_BYTES_MAX} bytes")
    if not body:
        return SENT
    if in_json and len(body) > JSON_BYTES_MAX:
        return SendResult(Kind.SENT, f"its response, in JSON, is over {JSON_BYTES_MAX} bytes")
    success = _SUCCESS[signal]
    response: Any = success.response()
    try:
        if in_json:
            json_format.Parse(body, response, ignore_unknown_fields=True)
        else:
            response.ParseFromString(body)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        # The status says that the data was taken; sending it again would double it.
        return SendResult(Kind.SENT, "its response cannot be read")
    partial = response.partial_success
    return SendResult(
        Kind.SENT, clipped(partial.error_message), rejected=getattr(partial, success.rejected)
    )


def status_message(body: bytes, *, in_json: bool = False) -> str:
    """The sentence in an encoded google.rpc.Status, as OTLP/HTTP sends it with an error."""
    if in_json:
        return _json_message(body)
    try:
        return clipped(Status.FromString(body[:DETAILS_BYTES_MAX]).message)
    except DecodeError:
        return ""


def _json_message(body: bytes) -> str:
    """The same in JSON. By hand: the details may be of types that only the next hop knows."""
    try:
        status = json.loads(body) if len(body) <= DETAILS_BYTES_MAX else None
    except (ValueError, RecursionError):
        return ""
    return clipped(status.get("message") or "") if isinstance(status, dict) else ""


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
