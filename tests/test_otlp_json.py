"""OTLP/JSON against protobuf's own mapping, against the specification, and against bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.json import DEPTH_MAX, REQUEST_OF, decode, encode
from tests import naive, traffic
from tests.wire_writer import chunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

ROOT = Path(__file__).parent
CAPTURES = ROOT / "data" / "captures"
ALL_CAPTURES = Path(
    os.environ.get("OTEL_ANOMALY_CAPTURES", ROOT.parent.parent / "shared" / "captures")
)
F = FieldDescriptor

SPAN = "$.resourceSpans[0].scopeSpans[0].spans[0]"
VALUE = "$.resourceSpans[0].resource.attributes[0].value"


def in_span(**fields: object) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}).encode()


def in_value(**fields: object) -> bytes:
    attribute = {"key": "k", "value": fields}
    return json.dumps({"resourceSpans": [{"resource": {"attributes": [attribute]}}]}).encode()


def read_span(line: bytes) -> Any:
    message = ExportTraceServiceRequest.FromString(decode(line, Signal.TRACES))
    return message.resource_spans[0].scope_spans[0].spans[0]


def read_value(line: bytes) -> Any:
    message = ExportTraceServiceRequest.FromString(decode(line, Signal.TRACES))
    return message.resource_spans[0].resource.attributes[0].value


def check_round_trip(body: bytes, signal: Signal) -> None:
    """One line, equal to the slow twin's, and back to the same message."""
    message = REQUEST_OF[signal].FromString(body)
    message.DiscardUnknownFields()
    line = encode(body, signal)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line) == naive.otlp_json(message)
    assert decode(line, signal) == message.SerializeToString()


# --- Every field -------------------------------------------------------------------------------


def set_all_fields(message: Any, variant: int, depth: int) -> None:
    """Set every field, to other values per variant; of a oneof, whichever the variant says."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof and oneof.fields[variant % len(oneof.fields)].name != field.name:
            continue
        if field.message_type is None:
            value = sample(field, variant)
            if field.is_repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
        elif depth:
            child = getattr(message, field.name)
            child = child.add() if field.is_repeated else child
            child.SetInParent()
            set_all_fields(child, variant, depth - 1)


def sample(field: Any, variant: int) -> Any:
    match field.type:
        case F.TYPE_STRING:
            return f"{field.name} \u00fc"
        case F.TYPE_BYTES:
            return bytes(range(250, 256)) + bytes([variant])
        case F.TYPE_BOOL:
            return True
        case F.TYPE_DOUBLE:
            return (1.5, -0.0, 1e300, math.inf, -math.inf, math.nan)[variant % 6]
        case F.TYPE_INT64 | F.TYPE_SFIXED64:
            return -(2**63) + variant
        case F.TYPE_UINT64 | F.TYPE_FIXED64:
            return 2**64 - 1 - variant
        case F.TYPE_UINT32 | F.TYPE_FIXED32:
            return 2**32 - 1 - variant
        case _:
            return 1 + variant


def fields_set(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        yield field.full_name
        if field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                yield from fields_set(child)


def fields_reachable(descriptor: Any, seen: set[str]) -> set[str]:
    for field in descriptor.fields:
        if field.full_name not in seen:
            seen.add(field.full_name)
            if field.message_type is not None:
                fields_reachable(field.message_type, seen)
    return seen


@pytest.mark.parametrize("signal", Signal)
def test_every_field(signal: Signal) -> None:
    """
    Scenario: messages with every field of the installed opentelemetry-proto set, at extremes.
    Guarantees: each field of the signal is written as the twin writes it and comes back.
    """
    seen: set[str] = set()
    for variant in range(40):
        message = REQUEST_OF[signal]()
        set_all_fields(message, variant, depth=9)
        seen.update(fields_set(message))
        check_round_trip(message.SerializeToString(), signal)
    assert seen == fields_reachable(REQUEST_OF[signal].DESCRIPTOR, set())


# --- Random messages ---------------------------------------------------------------------------

SCALARS: dict[int, st.SearchStrategy[Any]] = {
    F.TYPE_STRING: st.text(max_size=8),
    F.TYPE_BYTES: st.binary(max_size=17),
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_DOUBLE: st.floats(allow_nan=False) | st.just(math.nan),  # JSON has but one NaN.
    F.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.TYPE_SFIXED64: st.integers(-(2**63), 2**63 - 1),
    F.TYPE_UINT64: st.integers(0, 2**64 - 1),
    F.TYPE_FIXED64: st.integers(0, 2**64 - 1),
    F.TYPE_UINT32: st.integers(0, 2**32 - 1),
    F.TYPE_FIXED32: st.integers(0, 2**32 - 1),
}
INT32 = st.integers(-(2**31), 2**31 - 1)


def fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    """Set some fields of the message; those that hold messages rather than not."""
    for field in message.DESCRIPTOR.fields:
        child = field.message_type is not None
        if draw(st.integers(0, 3)) <= (0 if child else 1) or (child and not depth):
            continue
        count = draw(st.integers(1, 2)) if field.is_repeated else 1
        if child:
            for _ in range(count):
                part = getattr(message, field.name)
                part = part.add() if field.is_repeated else part
                part.SetInParent()
                fill(draw, part, depth - 1)
        elif field.is_repeated:
            values = st.lists(SCALARS.get(field.type, INT32), max_size=3)
            getattr(message, field.name).extend(draw(values))
        else:
            setattr(message, field.name, draw(SCALARS.get(field.type, INT32)))


@st.composite
def requests(draw: st.DrawFn) -> tuple[Signal, bytes]:
    signal = draw(st.sampled_from(Signal))
    message: Message = REQUEST_OF[signal]()
    fill(draw, message, 7)
    return signal, message.SerializeToString()


@settings(max_examples=60, deadline=None)
@given(requests())
def test_random_messages(request_: tuple[Signal, bytes]) -> None:
    """
    Scenario: random requests of all signals, drawn from the descriptors.
    Guarantees: the line equals the slow twin's, and decoding gives the same message.
    """
    signal, body = request_
    check_round_trip(body, signal)


@pytest.mark.parametrize("seed", range(30))
def test_hostile_bytes(seed: int) -> None:
    """
    Scenario: protobuf written in any way the wire allows, unknown fields and groups included.
    Guarantees: the line says what the message says; only unknown fields are gone.
    """
    check_round_trip(traffic.random_request(seed), Signal.TRACES)


def signal_of(path: Path) -> Signal:
    return Signal.LOGS if "-logs-" in path.name else Signal.TRACES


@pytest.mark.parametrize(
    "path", sorted(CAPTURES.glob("*/*.bin")), ids=lambda path: path.parent.name
)
def test_captures(path: Path) -> None:
    """
    Scenario: requests as real agent frameworks sent them.
    Guarantees: they are written as the twin writes them, and come back whole.
    """
    check_round_trip(path.read_bytes(), signal_of(path))


def test_all_captures() -> None:
    """
    Scenario: the full collection of captures, where it is at hand.
    Guarantees: as for the few in this repository.
    """
    paths = sorted(ALL_CAPTURES.glob("*/*.bin"))
    if not paths:
        pytest.skip(f"no captures in {ALL_CAPTURES}: set OTEL_ANOMALY_CAPTURES to their folder")
    for path in paths:
        check_round_trip(path.read_bytes(), signal_of(path))


# --- Written by hand from the specification ----------------------------------------------------

GOLDEN_TRACES = (
    '{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":'
    '{"stringValue":"my.service"}}]},"scopeSpans":[{"scope":{"name":"my.library",'
    '"version":"1.0.0"},"spans":[{"traceId":"5b8efff798038103d269b633813fc60c",'
    '"spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173","name":"I\'m a server span",'
    '"kind":2,"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000",'
    '"attributes":[{"key":"n","value":{"intValue":"-7"}},{"key":"b","value":{"bytesValue":"+/8="}},'
    '{"key":"d","value":{"doubleValue":"NaN"}},{"key":"l","value":{"arrayValue":{"values":['
    '{"boolValue":true},{}]}}}],"links":[{"traceId":"0a","spanId":"0b"}],"flags":257}]}]}]}'
)
GOLDEN_METRICS = (
    '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"m","exponentialHistogram":'
    '{"dataPoints":[{"timeUnixNano":"1","count":"3","sum":0.0,"scale":-1,"positive":{"offset":2,'
    '"bucketCounts":["1","2"]},"exemplars":[{"timeUnixNano":"1","spanId":"eee19b7ec3c1b174",'
    '"traceId":"5b8efff798038103d269b633813fc60c","asInt":"9"}],"max":"Infinity"}],'
    '"aggregationTemporality":1}}]}]}]}'
)
GOLDEN_LOGS = (
    '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"severityNumber":9,"body":{"kvlistValue":'
    '{"values":[{"key":"\\"\\\\\\n\u00fc","value":{"stringValue":""}}]}},'
    '"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"}]}]}]}'
)


@pytest.mark.parametrize(
    ("signal", "line"),
    [
        (Signal.TRACES, GOLDEN_TRACES),
        (Signal.METRICS, GOLDEN_METRICS),
        (Signal.LOGS, GOLDEN_LOGS),
    ],
)
def test_golden(signal: Signal, line: str) -> None:
    """
    Scenario: lines written by hand from the rules of the specification.
    Guarantees: they are read, and written again to the byte.
    """
    body = decode(line.encode(), signal)
    assert encode(body, signal).decode() == line


def test_ids_are_hex() -> None:
    """
    Scenario: ids in either case, in spans, links, logs and exemplars.
    Guarantees: their bytes are those the hex digits say.
    """
    span = read_span(
        in_span(traceId="5B8EfFF798038103D269B633813FC60C", links=[{"spanId": "0aFF"}])
    )
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert span.links[0].span_id == b"\x0a\xff"
    for signal, line in ((Signal.METRICS, GOLDEN_METRICS), (Signal.LOGS, GOLDEN_LOGS)):
        assert bytes.fromhex("5b8efff798038103d269b633813fc60c") in decode(line.encode(), signal)


def test_empty() -> None:
    """
    Scenario: requests that hold nothing, or nothing that is known.
    Guarantees: they are the empty request, which OTLP accepts.
    """
    for line in (b"{}", b' {"resourceLogs": [{}], "x": {"y": [1]}} ', b'{"resourceSpans": null}'):
        assert decode(line, Signal.TRACES) == b""
    assert encode(b"", Signal.TRACES) == b"{}"
    assert decode(b'{"resourceSpans":[{},null]}', Signal.TRACES) == chunk(1, b"") * 2


def test_liberal_reading() -> None:
    """
    Scenario: what the specification does not write but senders do.
    Guarantees: snake_case, enum names, numbers for strings and the reverse, Python's NaN, URL-safe
    base64 without padding, unknown names, null and duplicate keys are all read.
    """
    span = read_span(
        b'{"resource_spans":[{"scope_spans":[{"spans":[{"start_time_unix_nano":5,"kind":'
        b'"SPAN_KIND_CLIENT","endTimeUnixNano":1e3,"flags":"257","name":"a","name":"b","new":{},'
        b'"traceState":null,"attributes":[{"value":{"doubleValue":NaN}},'
        b'{"value":{"doubleValue":"-1.5e2"}},{"value":{"doubleValue":3}},'
        b'{"value":{"bytesValue":"-_8"}}]}]}]}]}'
    )
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (5, 1000)
    assert (span.kind, span.flags, span.name, span.trace_state) == (3, 257, "b", "")
    values = [attribute.value for attribute in span.attributes]
    assert math.isnan(values[0].double_value)
    assert (values[1].double_value, values[2].double_value) == (-150.0, 3.0)
    assert values[3].bytes_value == b"\xfb\xff"


def test_presence() -> None:
    """
    Scenario: an empty value, an empty string and an empty list, which are three things.
    Guarantees: each is kept as what it is.
    """
    assert read_value(in_value()).WhichOneof("value") is None
    assert read_value(in_value(stringValue="")).WhichOneof("value") == "string_value"
    assert read_value(in_value(arrayValue={})).WhichOneof("value") == "array_value"
    assert read_value(in_value(stringValue=None)).WhichOneof("value") is None


# --- Bad input ---------------------------------------------------------------------------------

MISFITS = [
    (b"", "not JSON"),
    (b'{"resourceSpans":[', "not JSON"),
    (b'\xef\xbb\xbf{"x":1}', "not JSON"),
    (b'{"a":"\xff"}', "not UTF-8: byte 6"),
    ('{"a":1}'.encode("utf-16"), "not UTF-8"),
    (b"[]", "$: must be an object"),
    (b'{"x":' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"resourceSpans":{}}', "$.resourceSpans: must be a list"),
    (b'{"resourceSpans":[{},7]}', "$.resourceSpans[1]: must be an object"),
    (in_span(traceId="abc"), f"{SPAN}.traceId: must be a string of hex digits"),
    (in_span(traceId="0a 0b"), f"{SPAN}.traceId: must be a string of hex digits"),
    (in_span(span_id=7), f"{SPAN}.span_id: must be a string of hex digits"),
    (in_span(name=7), f"{SPAN}.name: must be a string"),
    (in_span(kind="CLIENT"), f"{SPAN}.kind: must be a whole number"),
    (in_span(kind=2**31), f"{SPAN}.kind: must be a whole number from"),
    (in_span(flags=-1), f"{SPAN}.flags: must be a whole number from 0 to 4294967295"),
    (in_span(flags=1.5), f"{SPAN}.flags: must be a whole number"),
    (in_span(flags=True), f"{SPAN}.flags: must be a whole number"),
    (in_span(flags=math.nan), f"{SPAN}.flags: must be a whole number"),
    (in_span(endTimeUnixNano="1e3"), f"{SPAN}.endTimeUnixNano: must be a whole number"),
    (in_span(endTimeUnixNano=str(2**64)), f"{SPAN}.endTimeUnixNano: must be a whole number from"),
    (in_span(events=[{}, {"name": []}]), f"{SPAN}.events[1].name: must be a string"),
    (in_value(boolValue="true"), f"{VALUE}.boolValue: must be true or false"),
    (in_value(boolValue=1), f"{VALUE}.boolValue: must be true or false"),
    (in_value(doubleValue="inf"), f"{VALUE}.doubleValue: must be a number"),
    (in_value(doubleValue=False), f"{VALUE}.doubleValue: must be a number"),
    (in_value(doubleValue=10**400), f"{VALUE}.doubleValue: out of range"),
    (in_value(bytesValue="a"), f"{VALUE}.bytesValue: must be a string in base64"),
    (in_value(bytesValue="a\u00fcaa"), f"{VALUE}.bytesValue: must be a string in base64"),
    (in_value(bytesValue=[1]), f"{VALUE}.bytesValue: must be a string in base64"),
    (in_value(intValue="9" * 30), f"{VALUE}.intValue: must be a whole number"),
]


@pytest.mark.parametrize(("line", "message"), MISFITS, ids=itertools.count())
def test_misfits(line: bytes, message: str) -> None:
    """
    Scenario: a line that is no JSON, or a value that does not fit its field.
    Guarantees: ValueError says what is wrong and where, and nothing else is raised.
    """
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        decode(line, Signal.TRACES)


def test_misfit_in_a_list_of_numbers() -> None:
    """
    Scenario: a bucket count that is no number.
    Guarantees: the path names its place in the list; null is no number either.
    """
    line = GOLDEN_METRICS.replace('["1","2"]', '["1",null]').encode()
    with pytest.raises(ValueError, match=r"\.bucketCounts\[1\]: must be a whole number"):
        decode(line, Signal.METRICS)


@pytest.mark.parametrize("body", [b"x", b"\x0a\x05", chunk(1, chunk(3, b"\xff"))])
def test_bytes_that_are_no_request(body: bytes) -> None:
    """
    Scenario: broken framing, a cut message, a schema URL that is not UTF-8.
    Guarantees: ValueError names the request it is not.
    """
    with pytest.raises(ValueError, match="not an ExportTraceServiceRequest"):
        encode(body, Signal.TRACES)


def nested(levels: int) -> bytes:
    """An attribute value of so many lists inside one another: two messages each."""
    opened = '{"arrayValue":{"values":[' * levels
    value = f"{opened}{{}}{']}}' * levels}"
    text = f'{{"resourceSpans":[{{"resource":{{"attributes":[{{"value":{value}}}]}}}}]}}'
    return text.encode()


def test_depth_is_bounded() -> None:
    """
    Scenario: values nested up to the limit, one further, and as deep as a line can say.
    Guarantees: what protobuf can read is read and comes back; the rest is a ValueError, and the
    path in its message is cut.
    """
    deepest = (DEPTH_MAX - 5) // 2
    body = decode(nested(deepest), Signal.TRACES)
    check_round_trip(body, Signal.TRACES)
    for levels in (deepest + 1, 200, 100_000):
        with pytest.raises(ValueError, match="nested") as caught:
            decode(nested(levels), Signal.TRACES)
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="nested too deep"):
        decode(b'{"unknown":' * 100_000, Signal.TRACES)
    value = b""
    for _ in range(10_000):
        value = chunk(5, chunk(1, value))
    with pytest.raises(ValueError, match="nested too deep"):
        encode(chunk(1, chunk(1, chunk(1, chunk(2, value)))), Signal.TRACES)
