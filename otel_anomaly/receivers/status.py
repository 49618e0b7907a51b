"""Outcome -> what the client is told, on both transports. The one table of its kind.

A client sends again after UNAVAILABLE and 503 and gives up after INVALID_ARGUMENT and 400 (OTLP
specification, "Failures"). RESOURCE_EXHAUSTED is read as "give up" only without RetryInfo.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from otel_anomaly.handoff import Outcome, Reply, Signal

if TYPE_CHECKING:
    from collections.abc import Mapping

GRPC_STATUS: Final[Mapping[Outcome, grpc.StatusCode]] = {
    Outcome.ACCEPTED: grpc.StatusCode.OK,
    Outcome.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Outcome.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Outcome.QUEUE_FULL: grpc.StatusCode.UNAVAILABLE,
    Outcome.MEMORY: grpc.StatusCode.UNAVAILABLE,
    Outcome.STOPPING: grpc.StatusCode.UNAVAILABLE,
    Outcome.THROTTLED: grpc.StatusCode.UNAVAILABLE,
    Outcome.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Outcome.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Outcome.REJECTED: grpc.StatusCode.INVALID_ARGUMENT,
}
HTTP_STATUS: Final[Mapping[Outcome, HTTPStatus]] = {
    Outcome.ACCEPTED: HTTPStatus.OK,
    Outcome.MALFORMED: HTTPStatus.BAD_REQUEST,
    Outcome.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Outcome.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    Outcome.MEMORY: HTTPStatus.SERVICE_UNAVAILABLE,
    Outcome.STOPPING: HTTPStatus.SERVICE_UNAVAILABLE,
    Outcome.THROTTLED: HTTPStatus.TOO_MANY_REQUESTS,
    Outcome.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Outcome.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Outcome.REJECTED: HTTPStatus.BAD_REQUEST,
}
# The code inside a Status body for refusals that HTTP has a number for and OTLP has no outcome.
HTTP_ONLY_CODES: Final[Mapping[HTTPStatus, int]] = {
    HTTPStatus.BAD_REQUEST: code_pb2.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: code_pb2.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: code_pb2.UNIMPLEMENTED,
    HTTPStatus.REQUEST_TIMEOUT: code_pb2.DEADLINE_EXCEEDED,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: code_pb2.INVALID_ARGUMENT,
}
assert set(GRPC_STATUS) == set(Outcome), "every outcome has exactly one gRPC status"
assert set(HTTP_STATUS) == set(Outcome), "every outcome has exactly one HTTP status"
RETRYABLE_HTTP: Final = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}
assert all((HTTP_STATUS[each] in RETRYABLE_HTTP) == each.retryable for each in Outcome)
assert all((GRPC_STATUS[each] is grpc.StatusCode.UNAVAILABLE) == each.retryable for each in Outcome)

RETRY_AFTER_S: Final = 1.0
"""The hint when the outcome is retryable and the reply names no time."""
MESSAGE_CHARS_MAX: Final = 400
"""gRPC carries the message twice in headers, percent- and base64-encoded, and clients refuse more
than 8 KiB of headers: 400 characters of 4 bytes each come to 4800 + 2200 bytes."""


def retry_after_s(reply: Reply) -> float:
    """When to send again, seconds."""
    assert reply.outcome.retryable
    return reply.retry_after_s if reply.retry_after_s > 0 else RETRY_AFTER_S


def retry_after_header(reply: Reply) -> str:
    """Whole seconds for `Retry-After`, rounded up: rounded down, 0.3 s would mean "at once"."""
    return str(max(1, math.ceil(retry_after_s(reply))))


def status_of(reply: Reply) -> status_pb2.Status:
    """The google.rpc.Status of a refusal, with RetryInfo when the client is to send again."""
    assert reply.outcome is not Outcome.ACCEPTED
    code, _ = GRPC_STATUS[reply.outcome].value
    message = reply.message or f"refused: {reply.outcome.value}"
    status = status_pb2.Status(code=code, message=message[:MESSAGE_CHARS_MAX])
    if reply.outcome.retryable:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(round(retry_after_s(reply) * 1e9))
        status.details.add().Pack(info)
    return status


def http_only_status(http_status: HTTPStatus, message: str) -> status_pb2.Status:
    """The google.rpc.Status of a refusal that only HTTP knows: wrong path, method or type."""
    return status_pb2.Status(code=HTTP_ONLY_CODES[http_status], message=message[:MESSAGE_CHARS_MAX])


def status_as_json(status: status_pb2.Status) -> bytes:
    """The same in JSON. protobuf's own mapping is right here: Status is not an OTLP message."""
    return json_format.MessageToJson(status, indent=None).encode()


# Field 1 of every signal's partial_success is the count, field 2 the message; only in JSON the
# count has a name.
_REJECTED_NAMES: Final = {
    Signal.TRACES: "rejectedSpans",
    Signal.METRICS: "rejectedDataPoints",
    Signal.LOGS: "rejectedLogRecords",
}
assert set(_REJECTED_NAMES) == set(Signal)


def partial_success(reply: Reply) -> bytes:
    """The response to a request that was accepted with a word about it, in protobuf."""
    told = trace_service_pb2.ExportTraceServiceResponse()
    told.partial_success.rejected_spans = reply.rejected
    told.partial_success.error_message = reply.message[:MESSAGE_CHARS_MAX]
    return told.SerializeToString()


def partial_success_as_json(reply: Reply, signal: Signal) -> bytes:
    """The same in JSON, whose 64-bit integers are strings."""
    told = {
        _REJECTED_NAMES[signal]: str(reply.rejected),
        "errorMessage": reply.message[:MESSAGE_CHARS_MAX],
    }
    return json.dumps({"partialSuccess": told}).encode()
