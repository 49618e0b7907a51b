"""Log records that tell of tool calls, as some coding agents send them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tests.traffic import Attributes, any_value, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.traffic import Value


def tool_record(
    *,
    time_ns: int,
    tool: str | None,
    trace_id: bytes = b"",
    span_id: bytes = b"",
    session: str | None = None,
    user: str | None = None,
    call_id: str | None = None,
    arguments: str | None = None,
    result: str | None = None,
    error: bool = False,
    extra: Attributes = (),
) -> LogRecord:
    """One tool call in a log record; `span_id`: of the span it was written in."""
    known = {
        "event.name": "codex.tool_result",
        "tool_name": tool,
        "call_id": call_id,
        "conversation.id": session,
        "user.account_id": user,
        "arguments": arguments,
        "output": result,
        "success": "false" if error else "true",
    }
    said = [(key, value) for key, value in known.items() if value is not None]
    return LogRecord(
        time_unix_nano=time_ns,
        trace_id=trace_id,
        span_id=span_id,
        attributes=[*attributes(said), *attributes(extra)],
    )


def content_record(
    *,
    time_ns: int,
    trace_id: bytes,
    span_id: bytes,
    call_id: str,
    arguments: Value,
    result: str | None = None,
    session: str | None = None,
) -> LogRecord:
    """What the AWS distribution takes out of a tool's span `span_id`, as a record of its own."""
    asked = {"content": arguments, "role": "tool", "id": call_id}
    answered = {"message": result or "", "id": call_id}
    said: list[tuple[str, Value]] = [("event.name", "strands.telemetry.tracer")]
    said += [] if session is None else [("session.id", session)]
    body: Value = {
        "input": {"messages": [{"content": asked, "role": "tool"}]},
        "output": {"messages": [{"content": answered, "role": "assistant"}]},
    }
    return LogRecord(
        time_unix_nano=time_ns,
        trace_id=trace_id,
        span_id=span_id,
        attributes=attributes(said),
        body=any_value(body),
    )


def log_request(records: Iterable[LogRecord], *, resource: Attributes = ()) -> bytes:
    """An encoded ExportLogsServiceRequest with one resource and one scope."""
    resource_logs = ResourceLogs(
        resource=Resource(attributes=attributes(resource)),
        scope_logs=[ScopeLogs(log_records=records)],
    )
    return ExportLogsServiceRequest(resource_logs=[resource_logs]).SerializeToString()
