"""Slow twins of the fast kernels: protobuf classes, dicts, loops. Obviously right, never fast."""

from __future__ import annotations

import itertools
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import naive_recognition, wire_reader
from tests import wire_writer as wire
from tests.naive_recognition import Table, Told, recognise
from tests.traffic import Value, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    from otel_anomaly.config import IdentityConfig

IDENTITIES = naive_recognition.IDENTITIES
WAY_TO_SPANS = (1, 2, 2)
"""Field numbers on the way down: request.resource_spans, .scope_spans, .spans."""


def parses(data: bytes, cls: type[Message] = ExportTraceServiceRequest) -> bool:
    """Whether the protobuf library reads the bytes as such a message."""
    try:
        cls.FromString(data)
    except DecodeError:
        return False
    return True


def accepts(data: bytes, cls: type[Message] = ExportTraceServiceRequest) -> bool:
    """Whether the bytes are such a message at all: the protobuf library is the judge.

    But for one thing: from version 7 on it lets the field number 0 pass inside a group that it does
    not know. The format forbids that number; earlier versions, Go and Rust refuse it there too.
    """
    return parses(data, cls) and not _holds_number_zero(data, cls.DESCRIPTOR)


def _holds_number_zero(data: bytes, descriptor: Any) -> bool:
    for field in wire_reader.fields(data):
        if field.wire_type == wire.GROUP_START:
            if 0 in wire_reader.numbers_in_group(data[field.start : field.end]):
                return True
        elif field.wire_type == wire.BYTES:
            known = descriptor.fields_by_number.get(field.number)
            below = known.message_type if known is not None else None
            if below is not None and _holds_number_zero(data[field.start : field.end], below):
                return True
    return False


def spans_with_place(
    message: ExportTraceServiceRequest,
) -> Iterator[tuple[Span, Iterable[KeyValue], InstrumentationScope]]:
    """Each span in document order, with the attributes of its resource, and its scope."""
    for resource_spans in message.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield span, resource_spans.resource.attributes, scope_spans.scope


def usable(pairs: Iterable[KeyValue]) -> dict[str, str]:
    """What attributes say in words. Of two with one key the last that says something counts."""
    said = ((pair.key, naive_recognition.text(pair.value)) for pair in pairs)
    return {key: value for key, value in said if value is not None}


def children_with_place(
    message: ExportTraceServiceRequest | ExportLogsServiceRequest,
) -> Iterator[tuple[Span | LogRecord, Iterable[KeyValue], InstrumentationScope]]:
    """Each span or log record in document order, with its resource's attributes and its scope."""
    if isinstance(message, ExportTraceServiceRequest):
        yield from spans_with_place(message)
        return
    for resource_logs in message.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                yield record, resource_logs.resource.attributes, scope_logs.scope


def tool_calls(
    body: bytes, identity: IdentityConfig, *, logs: bool = False, lenient: bool = False
) -> list[dict[str, Any]]:
    """Every tool call of a request, in document order.

    `index` counts all spans. `strong` is what span, resource and scope say without the weak keys;
    `weak` is what the weak keys say: it counts only when the trace knows nothing better.
    """
    message = (ExportLogsServiceRequest if logs else ExportTraceServiceRequest).FromString(body)
    table = Table(identity, placeholders=identity.placeholders, lenient=lenient)
    calls = []
    for index, (child, resource, scope) in enumerate(children_with_place(message)):
        told = recognise(table, child, resource, scope)
        if told.is_call:
            calls.append({"index": index, **_tool_call(child), **_in_words(told)})
    return calls


def _tool_call(child: Span | LogRecord) -> dict[str, Any]:
    if isinstance(child, Span):
        end_ns = child.end_time_unix_nano or child.start_time_unix_nano
    else:
        end_ns = child.time_unix_nano or child.observed_time_unix_nano
    return {"trace_id": child.trace_id, "span_id": child.span_id, "end_ns": end_ns}


def _in_words(told: Told) -> dict[str, Any]:
    return {
        "tool": told.facts["tool"],
        "error": told.error,
        "call_id": told.facts["call_id"],
        "arguments": told.facts["arguments"],
        "result": told.facts["result"],
        "strong": told.strong,
        "weak": told.weak,
    }


def is_forged(pair: KeyValue, prefix: str) -> bool:
    """Whether an attribute that came with a span pretends to be a verdict."""
    return pair.key.startswith(prefix + ".")


def annotate(
    body: bytes,
    verdicts: Mapping[int, Sequence[tuple[str, Value]]],
    prefix: str,
    *,
    logs: bool = False,
) -> Any:
    """The request with forged verdicts removed from all spans and ours appended, as a message.

    `verdicts`: span number in document order -> attributes. Compare by equality of messages.
    """
    message = (ExportLogsServiceRequest if logs else ExportTraceServiceRequest).FromString(body)
    for index, (span, _, _) in enumerate(children_with_place(message)):
        for place in reversed(range(len(span.attributes))):
            if is_forged(span.attributes[place], prefix):
                del span.attributes[place]
        span.attributes.extend(attributes(verdicts.get(index, ())))
    return message


def splice(body: bytes, blobs: Mapping[int, bytes], prefix: str, *, logs: bool = False) -> bytes:
    """`annotate` on the wire, byte for byte: `blobs` are encoded fields to append to each span,
    for log records with the number that attributes have there.

    Only messages with a change in them get a new length; all else is copied as it came.
    """
    count = itertools.count()

    def copied(message: bytes, way_down: Sequence[int]) -> bytes:
        if not way_down:
            blob = blobs.get(next(count), b"")
            return _spliced_span(message, blob, prefix, 6 if logs else 9)
        parts, touched = [], False
        for field in wire_reader.fields(message):
            whole, inner = message[field.at : field.end], message[field.start : field.end]
            if (field.number, field.wire_type) == (way_down[0], wire.BYTES):
                changed = copied(inner, way_down[1:])
                if changed is not inner:
                    touched = True
                    tag = message[field.at : field.value_at]
                    whole = tag + wire.varint(len(changed)) + changed
            parts.append(whole)
        return b"".join(parts) if touched else message

    return copied(body, WAY_TO_SPANS)


def _spliced_span(span: bytes, blob: bytes, prefix: str, attributes: int) -> bytes:
    found = list(wire_reader.fields(span))
    kept = [
        span[field.at : field.end]
        for field in found
        if (field.number, field.wire_type) != (attributes, wire.BYTES)
        or not is_forged(KeyValue.FromString(span[field.start : field.end]), prefix)
    ]
    return b"".join(kept) + blob if blob or len(kept) < len(found) else span


def otlp_json(message: Message) -> dict[str, Any]:
    """A request as OTLP/JSON, parsed: protobuf's own mapping, its ids turned into hex.

    Keys are names of fields, never of attributes, so a name is enough to know an id.
    """
    plain = MessageToDict(message, use_integers_for_enums=True)
    return {key: _hex_ids(part) for key, part in plain.items()}


def _hex_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_hex_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: b64decode(part).hex()
        if key in {"traceId", "spanId", "parentSpanId"}
        else _hex_ids(part)
        for key, part in value.items()
    }
