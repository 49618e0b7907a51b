"""Slow twins of the fast kernels: protobuf classes, dicts, loops. Obviously right, never fast."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.traffic import Value, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.config import IdentityConfig

IDENTITIES = ("tenant", "agent", "session", "user")


def accepts(body: bytes) -> bool:
    """Whether `body` is a trace request at all: the protobuf library is the judge."""
    try:
        ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        return False
    return True


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


def find(keys: Iterable[str], *places: Mapping[str, AnyValue]) -> str | None:
    """The first usable value: all keys in the first place, then all in the next."""
    ordered = list(keys)
    for place in places:
        for key in ordered:
            found = text(place.get(key))
            if found is not None:
                return found
    return None


def tool_calls(body: bytes, identity: IdentityConfig) -> list[dict[str, Any]]:
    """Every tool call of a request, in document order.

    `index` counts all spans. `strong` is what span, resource and scope say without the weak keys;
    `weak` is what the weak keys say: it counts only when the trace knows nothing better.
    """
    message = ExportTraceServiceRequest.FromString(body)
    calls = []
    for index, (span, resource, scope) in enumerate(spans_with_place(message)):
        own = by_key(span.attributes)
        operation = own.get("gen_ai.operation.name")
        if operation is None or operation.WhichOneof("value") != "string_value":
            continue
        if operation.string_value == "execute_tool":
            call = _tool_call(span, own)
            places = (own, by_key(resource), by_key(scope))
            calls.append({"index": index, **call, **_who(identity, places)})
    return calls


def _tool_call(span: Span, own: Mapping[str, AnyValue]) -> dict[str, Any]:
    tool = own.get("gen_ai.tool.name")
    failed = span.status.code == Status.STATUS_CODE_ERROR
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "end_ns": span.end_time_unix_nano or span.start_time_unix_nano,
        "tool": (tool.string_value or None) if tool is not None else None,
        "error": failed or text(own.get("error.type")) is not None,
    }


def _who(
    identity: IdentityConfig, places: Sequence[Mapping[str, AnyValue]]
) -> dict[str, dict[str, str | None]]:
    strong, weak = {}, {}
    for name in IDENTITIES:
        keys = getattr(identity, name)
        strong[name] = find([key for key in keys if key not in identity.weak], *places)
        weak[name] = find([key for key in keys if key in identity.weak], *places)
    return {"strong": strong, "weak": weak}


def annotate(
    body: bytes, verdicts: Mapping[int, Sequence[tuple[str, Value]]], prefix: str
) -> ExportTraceServiceRequest:
    """The request with forged verdicts removed from all spans and ours appended, as a message.

    `verdicts`: span number in document order -> attributes. Compare by equality of messages.
    """
    message = ExportTraceServiceRequest.FromString(body)
    for index, (span, _, _) in enumerate(spans_with_place(message)):
        for place in reversed(range(len(span.attributes))):
            if span.attributes[place].key.startswith(prefix + "."):
                del span.attributes[place]
        span.attributes.extend(attributes(verdicts.get(index, ())))
    return message


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
