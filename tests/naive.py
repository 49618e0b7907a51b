"""Slow twins of the fast kernels: protobuf classes, dicts, loops. Obviously right, never fast."""

from __future__ import annotations

import itertools
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests import wire_reader
from tests import wire_writer as wire
from tests.traffic import Value, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.config import IdentityConfig

IDENTITIES = ("tenant", "agent", "session", "user", "owner")
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
) -> Iterator[tuple[Span, Iterable[KeyValue], Iterable[KeyValue]]]:
    """Each span in document order, with the attributes of its resource and of its scope."""
    for resource_spans in message.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield span, resource_spans.resource.attributes, scope_spans.scope.attributes


def by_key(pairs: Iterable[KeyValue]) -> dict[str, AnyValue]:
    """Attributes by key. Of two with one key the last counts, whatever its type."""
    return {pair.key: pair.value for pair in pairs}


def text(value: AnyValue | None) -> str | None:
    """What a value counts as in an identity: text, or nothing for empty and other types."""
    if value is None:
        return None
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value or None
        case "int_value":
            return str(value.int_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case _:
            return None


def usable(pairs: Iterable[KeyValue]) -> dict[str, str]:
    """What attributes say in words. Of two with one key the last that says something counts."""
    said = ((pair.key, text(pair.value)) for pair in pairs)
    return {key: value for key, value in said if value is not None}


def find(keys: Iterable[str], *places: Mapping[str, str]) -> str | None:
    """The first key that is there: all keys in the first place, then all in the next."""
    ordered = list(keys)
    return next((place[key] for place in places for key in ordered if key in place), None)


def is_tool_call(own: Mapping[str, AnyValue]) -> bool:
    """Whether a span with these attributes is one call of one tool, by the GenAI conventions."""
    operation, tool = own.get("gen_ai.operation.name"), own.get("gen_ai.tool.name")
    # Google ADK adds a span for parallel calls that is not a call itself.
    merged = tool is not None and tool.string_value == "(merged tools)"
    return operation is not None and operation.string_value == "execute_tool" and not merged


def tool_calls(body: bytes, identity: IdentityConfig) -> list[dict[str, Any]]:
    """Every tool call of a request, in document order.

    `index` counts all spans. `strong` is what span, resource and scope say without the weak keys;
    `weak` is what the weak keys say: it counts only when the trace knows nothing better.
    """
    message = ExportTraceServiceRequest.FromString(body)
    calls = []
    for index, (span, resource, scope) in enumerate(spans_with_place(message)):
        if is_tool_call(by_key(span.attributes)):
            places = [usable(pairs) for pairs in (span.attributes, resource, scope)]
            call = _tool_call(span, places[0])
            calls.append({"index": index, **call, **_who(identity, places)})
    return calls


def _tool_call(span: Span, own: Mapping[str, str]) -> dict[str, Any]:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "end_ns": span.end_time_unix_nano or span.start_time_unix_nano,
        "tool": own.get("gen_ai.tool.name"),
        "error": failed or "error.type" in own,
    }


def _who(
    identity: IdentityConfig, places: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, str | None]]:
    strong, weak = {}, {}
    for name in IDENTITIES:
        keys = getattr(identity, name)
        strong[name] = find([key for key in keys if key not in identity.weak], *places)
        weak[name] = find([key for key in keys if key in identity.weak], *places)
    return {"strong": strong, "weak": weak}


def is_forged(pair: KeyValue, prefix: str) -> bool:
    """Whether an attribute that came with a span pretends to be a verdict."""
    return pair.key.startswith(prefix + ".")


def annotate(
    body: bytes, verdicts: Mapping[int, Sequence[tuple[str, Value]]], prefix: str
) -> ExportTraceServiceRequest:
    """The request with forged verdicts removed from all spans and ours appended, as a message.

    `verdicts`: span number in document order -> attributes. Compare by equality of messages.
    """
    message = ExportTraceServiceRequest.FromString(body)
    for index, (span, _, _) in enumerate(spans_with_place(message)):
        for place in reversed(range(len(span.attributes))):
            if is_forged(span.attributes[place], prefix):
                del span.attributes[place]
        span.attributes.extend(attributes(verdicts.get(index, ())))
    return message


def splice(body: bytes, blobs: Mapping[int, bytes], prefix: str) -> bytes:
    """`annotate` on the wire, byte for byte: `blobs` are encoded fields to append to each span.

    Only messages with a change in them get a new length; all else is copied as it came.
    """
    count = itertools.count()

    def copied(message: bytes, way_down: Sequence[int]) -> bytes:
        if not way_down:
            return _spliced_span(message, blobs.get(next(count), b""), prefix)
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


def _spliced_span(span: bytes, blob: bytes, prefix: str) -> bytes:
    found = list(wire_reader.fields(span))
    kept = [
        span[field.at : field.end]
        for field in found
        if (field.number, field.wire_type) != (9, wire.BYTES)
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
