"""Protobuf framing: the readers against a small writer, the checks against the protobuf library."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2 as common
from opentelemetry.proto.metrics.v1 import metrics_pb2 as metrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as trace

from otel_anomaly.kernels import Int, kernel, signed
from otel_anomaly.otlp import wire
from tests import naive, traffic, wire_reader
from tests import wire_writer as writer
from tests.hostile import HostileWriter
from tests.sizes import COMPILED, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

BROKEN = -1
NUMBERS = sorted({
    *(n for bits in range(0, 64, 7) for n in ((1 << bits) - 1, 1 << bits)),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
})  # fmt: skip


def view(data: bytes) -> np.ndarray:
    """Bytes as kernels see them."""
    return np.frombuffer(data, np.uint8)


def around(data: bytes) -> tuple[np.ndarray, int, int]:
    """The bytes amid others that could be read on into, and where they begin and end."""
    return view(b"\x80\x80" + data + b"\x01\x80\x01"), 2, 2 + len(data)


# --- Varints, tags, lengths ---------------------------------------------------------------------


@pytest.mark.parametrize("width", range(1, 11))
def test_varints(width: int) -> None:
    """
    Scenario: numbers at every change of size, with up to nine needless bytes, cut anywhere.
    Guarantees: value and position are those written; what is cut is broken.
    """
    for value in NUMBERS:
        data = writer.varint(value, width)
        all_bytes, at, end = around(data)
        assert wire.read_varint(all_bytes, at, end) == (signed(value), end)
        for cut in range(at, end):
            assert wire.read_varint(all_bytes, at, cut)[1] == BROKEN


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (b"\xff" * 9 + b"\x7f", True),
        (b"\x81" + b"\x80" * 8 + b"\x02", True),
        (b"\x80" * 10 + b"\x00", False),
        (b"\xff" * 20, False),
    ],
)
def test_varints_at_the_limit(*, data: bytes, read: bool) -> None:
    """
    Scenario: ten bytes with more than 64 bits in them; eleven bytes.
    Guarantees: the library reads the first and loses the bits beyond, refuses the second: so do we.
    """
    value, after = wire.read_varint(view(data), 0, len(data))
    field = writer.tag(3, writer.VARINT) + data
    if not read:
        assert after == BROKEN
        with pytest.raises(DecodeError):
            common.AnyValue.FromString(field)
    else:
        assert after == 10
        assert value == common.AnyValue.FromString(field).int_value


@pytest.mark.parametrize("width", range(1, 7))
def test_tags(width: int) -> None:
    """
    Scenario: tags of each wire type and of numbers at every change of size, with needless bytes.
    Guarantees: five bytes are read, six are not, nor is the number 0; as the library has it.
    """
    numbers = [0, 1, 2, 15, 16, 2047, 2048, (1 << 18) - 1, 1 << 18, (1 << 25), (1 << 29) - 1]
    for number, wire_type in itertools.product(numbers, range(6)):
        data = writer.tag(number, wire_type, width)
        expected = number << 3 | wire_type if number and len(data) <= 5 else None
        tag, after = wire.read_tag(view(data), 0, len(data))
        assert (tag if after > 0 else None) == expected
        assert after in {len(data), BROKEN}
        if wire_type == writer.FIXED64:
            assert naive.parses(data + bytes(8)) == (expected is not None)
        for cut in range(len(data)):
            assert wire.read_tag(view(data), 0, cut)[1] == BROKEN


def test_tags_of_more_than_32_bits() -> None:
    """
    Scenario: a tag of five bytes whose bits beyond the 32nd are set.
    Guarantees: refused by us and by the library.
    """
    for tag in (1 << 32, (1 << 32) | 9, (1 << 35) - 7):
        data = writer.varint(tag)
        assert len(data) == 5
        assert wire.read_tag(view(data), 0, 5)[1] == BROKEN
        assert not naive.accepts(data + bytes(8))


@pytest.mark.parametrize("width", range(1, 7))
@pytest.mark.parametrize("length", [0, 1, 127, 128, 300])
def test_lengths(length: int, width: int) -> None:
    """
    Scenario: a length of up to six bytes in front of that many bytes, then one byte too few.
    Guarantees: start and stop enclose the payload; six bytes and a payload that is cut are broken.
    """
    data = writer.varint(length, width) + bytes(length)
    all_bytes, at, end = around(data)
    start, stop = wire.read_length(all_bytes, at, end)
    if width <= 5:
        assert (start, stop) == (end - length, end)
    else:
        assert stop == BROKEN
    assert naive.accepts(writer.tag(50, writer.BYTES) + data) == (width <= 5)
    if length:
        assert wire.read_length(all_bytes, at, end - 1)[1] == BROKEN


@pytest.mark.parametrize("length", [1 << 30, (1 << 31) - 1, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_lengths_beyond_all_bounds(length: int) -> None:
    """
    Scenario: a length that claims gigabytes, or is negative when read as signed.
    Guarantees: broken, and no position is computed from it.
    """
    data = writer.varint(length) + bytes(20)
    assert wire.read_length(view(data), 0, len(data)) == (0, BROKEN)
    assert not naive.accepts(writer.tag(1, writer.BYTES) + data)


# --- Skipping -----------------------------------------------------------------------------------

FIELDS = [
    writer.number(9, 1 << 40, width=9),
    writer.fixed64(9, 7),
    writer.fixed32(9, 7),
    writer.chunk(9, b"", width=3),
    writer.chunk(9, b"x" * 200),
    writer.group(9),
    writer.group(
        9, writer.number(9, 1) + writer.group(7, writer.chunk(1, b"ab")) + b"\x4d\1\2\3\4"
    ),
]


@pytest.mark.parametrize("field", FIELDS, ids=range(len(FIELDS)))
def test_skip(field: bytes) -> None:
    """
    Scenario: a field of each wire type, whole and cut at every byte.
    Guarantees: the position behind it; broken when cut.
    """
    data, at, end = around(field)
    tag, at = wire.read_tag(data, at, end)
    assert wire.skip(data, at, end, tag, 0) == end
    for cut in range(at, end):
        assert wire.skip(data, at, cut, tag, 0) == BROKEN


@pytest.mark.parametrize("wire_type", [4, 6, 7])
def test_wire_types_that_do_not_exist(wire_type: int) -> None:
    """
    Scenario: a group that ends without having begun; the two wire types nobody defined.
    Guarantees: broken, bare and inside a group.
    """
    tag = 9 << 3 | wire_type
    body = writer.varint(tag)
    assert wire.skip(view(bytes(9)), 0, 9, tag, 0) == BROKEN
    assert not naive.accepts(body + bytes(9))
    inside = body + writer.tag(8, writer.GROUP_END)
    assert wire.skip_group(view(inside), 0, len(inside), 8, 0) == BROKEN


def nested_groups(levels: int) -> bytes:
    """Groups within groups."""
    opening = b"".join(writer.tag(1 + i % 20, writer.GROUP_START) for i in range(levels))
    closing = b"".join(writer.tag(1 + i % 20, writer.GROUP_END) for i in reversed(range(levels)))
    return opening + closing


@pytest.mark.parametrize("levels", [1, 2, 98, 99, 100, 101, 102, 10_000])
def test_groups_within_groups(levels: int) -> None:
    """
    Scenario: groups nested up to and beyond the bound, at each depth they may begin.
    Guarantees: exactly those the library reads are read.
    """
    body = nested_groups(levels)
    tag, at = wire.read_tag(view(body), 0, len(body))
    assert (wire.skip(view(body), at, len(body), tag, 0) == len(body)) == naive.accepts(body)
    assert naive.accepts(body) == (levels <= wire.DEPTH_MAX)
    for depth in (1, 2, 3, 50):
        expected = len(body) if levels + depth <= wire.DEPTH_MAX else BROKEN
        assert wire.skip(view(body), at, len(body), tag, depth) == expected


def test_groups_that_end_as_others() -> None:
    """
    Scenario: groups whose end tags are swapped, missing, or of another number.
    Guarantees: broken, as for the library.
    """
    start, end = writer.GROUP_START, writer.GROUP_END
    for pieces in (
        ((1, start), (2, end)),
        ((1, start), (2, start), (1, end), (2, end)),
        ((1, start), (2, start), (2, end)),
        ((1, start), (17, end)),
    ):
        body = b"".join(writer.tag(number, kind) for number, kind in pieces)
        assert not naive.accepts(body)
        assert not whole(body, wire.REQUEST)


# --- UTF-8 --------------------------------------------------------------------------------------

# The first and last byte of every class that the rules of UTF-8 tell apart, and their neighbours.
EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")


@kernel
def _utf8_of_each(data: np.ndarray, size: int, out: np.ndarray) -> None:
    """`is_utf8` of each `size` bytes in a row."""
    for i in range(out.size):
        out[i] = wire.is_utf8(data, i * size, (i + 1) * size)


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_utf8_of_every_class(size: int) -> None:
    """
    Scenario: every sequence of one and two bytes; of three and four, every mix of edges.
    Guarantees: well-formed exactly if Python decodes it.
    """
    alphabet = bytes(range(256)) if size <= 2 else EDGES
    every = [bytes(letters) for letters in itertools.product(alphabet, repeat=size)]
    if not COMPILED:
        every = every[:: max(1, len(every) // 20_000)]
    found = np.zeros(len(every), np.bool_)
    _utf8_of_each(view(b"".join(every)), size, found)
    assert found.tolist() == [decodes(data) for data in every]


@pytest.mark.parametrize("piece", ["\u00e9", "\u20ac", "\U0001f916"])
@pytest.mark.parametrize("before", range(18))
def test_utf8_at_every_place(piece: str, before: int) -> None:
    """
    Scenario: one character of several bytes amid ASCII, the range ending anywhere within.
    Guarantees: eight bytes at a time or one by one, the answer is Python's; bytes outside the range
    count for nothing.
    """
    data = b"a" * before + piece.encode() + b"b" * 9
    for start in range(len(data)):
        for stop in range(start, len(data) + 1):
            cut = data[start:stop]
            assert wire.is_utf8(view(data), start, stop) == decodes(cut)
            assert wire.is_ascii(view(data), start, stop) == cut.isascii()


@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_utf8_of_anything(data: bytes) -> None:
    """
    Scenario: any bytes, and any text.
    Guarantees: well-formed exactly if Python decodes it.
    """
    assert wire.is_utf8(view(data), 0, len(data)) == decodes(data)


# --- Messages -----------------------------------------------------------------------------------

CLASSES: dict[str, type[Message]] = {
    "REQUEST": ExportTraceServiceRequest,
    "RESOURCE_SPANS": trace.ResourceSpans,
    "RESOURCE": Resource,
    "ENTITY_REF": common.EntityRef,
    "SCOPE_SPANS": trace.ScopeSpans,
    "SCOPE": common.InstrumentationScope,
    "SPAN": trace.Span,
    "EVENT": trace.Span.Event,
    "LINK": trace.Span.Link,
    "STATUS": trace.Status,
    "KEY_VALUE": common.KeyValue,
    "ANY_VALUE": common.AnyValue,
    "ARRAY_VALUE": common.ArrayValue,
    "KEY_VALUE_LIST": common.KeyValueList,
    "METRICS_REQUEST": ExportMetricsServiceRequest,
    "RESOURCE_METRICS": metrics.ResourceMetrics,
    "SCOPE_METRICS": metrics.ScopeMetrics,
    "METRIC": metrics.Metric,
    "GAUGE": metrics.Gauge,
    "SUM": metrics.Sum,
    "HISTOGRAM": metrics.Histogram,
    "EXPONENTIAL_HISTOGRAM": metrics.ExponentialHistogram,
    "SUMMARY": metrics.Summary,
    "NUMBER_POINT": metrics.NumberDataPoint,
    "HISTOGRAM_POINT": metrics.HistogramDataPoint,
    "EXPONENTIAL_POINT": metrics.ExponentialHistogramDataPoint,
    "BUCKETS": metrics.ExponentialHistogramDataPoint.Buckets,
    "SUMMARY_POINT": metrics.SummaryDataPoint,
    "VALUE_AT_QUANTILE": metrics.SummaryDataPoint.ValueAtQuantile,
    "EXEMPLAR": metrics.Exemplar,
}
MESSAGE_OF = {cls.DESCRIPTOR.full_name: getattr(wire, name) for name, cls in CLASSES.items()}


def whole(data: bytes, message: Int) -> bool:
    """Our own judgement on the bytes of a message that stands alone."""
    return bool(wire.check_message(view(data), np.int64(0), len(data), message, np.int64(0)))


def test_schema() -> None:
    """
    Scenario: the installed definition of the protocol, message by message, field by field.
    Guarantees: ours is the same: kinds, numbers, and the wire type each must come with.
    """
    assert len(MESSAGE_OF) == wire.SCHEMA.shape[0] - wire.FIRST_MESSAGE
    f = FieldDescriptor
    kinds = {f.TYPE_STRING: wire.TEXT, f.TYPE_BYTES: wire.OPAQUE}
    kinds |= dict.fromkeys((f.TYPE_FIXED64, f.TYPE_SFIXED64, f.TYPE_DOUBLE), wire.DOUBLE)
    kinds |= dict.fromkeys((f.TYPE_FIXED32, f.TYPE_SFIXED32, f.TYPE_FLOAT), wire.SINGLE)
    for cls in CLASSES.values():
        descriptor = cls.DESCRIPTOR
        expected = np.full(wire.FIELD_MAX + 1, wire.UNKNOWN)
        for field in descriptor.fields:
            below = field.message_type
            if field.is_packed:
                fixed = kinds.get(field.type) == wire.DOUBLE
                expected[field.number] = wire.DOUBLES if fixed else wire.NUMBERS
                continue
            expected[field.number] = (
                kinds.get(field.type, wire.NUMBER) if below is None else MESSAGE_OF[below.full_name]
            )
        found = wire.SCHEMA[MESSAGE_OF[descriptor.full_name]]
        # An older definition knows fewer fields. It is enough that none of its own is missing.
        assert np.array_equal(np.where(expected == wire.UNKNOWN, expected, found), expected)


def test_schema_is_not_ahead() -> None:
    """
    Scenario: the fields of our schema that the installed definition lacks.
    Guarantees: none, but for the two that came last, which an older definition may lack.
    """
    late = {("KeyValue", 3), ("AnyValue", 8)}
    for cls in CLASSES.values():
        descriptor = cls.DESCRIPTOR
        row = wire.SCHEMA[MESSAGE_OF[descriptor.full_name]]
        ours = {(descriptor.name, int(number)) for number in np.flatnonzero(row)}
        theirs = {(descriptor.name, field.number) for field in descriptor.fields}
        assert ours - theirs <= late


def parts_of(message: Message) -> Iterator[Message]:
    """A message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from parts_of(item)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, dropped or doubled."""
    out = bytearray(data)
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at:at] = rng.randbytes(rng.randrange(1, 4))
            case 1:
                del out[at : at + rng.randrange(1, 4)]
            case 2:
                out[at : at + 1] = rng.randbytes(1)
            case _:
                out[at:at] = out[at : at + rng.randrange(1, 12)]
    return bytes(out)


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_messages_like_the_library(seed: int) -> None:
    """
    Scenario: messages of every type, written with all tricks, some with bytes changed.
    Guarantees: whole exactly if the library parses them.
    """
    rng = random.Random(seed)
    body = traffic.random_request(seed)
    verdicts = set()
    for part in parts_of(ExportTraceServiceRequest.FromString(body)):
        cls: Any = type(part)
        data = mutated(rng, HostileWriter(rng).message(part))
        expected = naive.accepts(data, cls)
        assert whole(data, MESSAGE_OF[cls.DESCRIPTOR.full_name]) == expected, data.hex()
        verdicts.add(expected)
    assert verdicts <= {True, False}


@pytest.mark.parametrize("name", CLASSES)
def test_small_messages_like_the_library(name: str) -> None:
    """
    Scenario: every message of up to two bytes, and a sample of three, for each type.
    Guarantees: whole exactly if the library parses it.
    """
    cls, message = CLASSES[name], getattr(wire, name)
    rng = random.Random(name)
    short = [bytes([a]) for a in range(256)]
    short += [bytes([a, b]) for a in range(0, 256, 1 if COMPILED else 7) for b in EDGES]
    short += [bytes([rng.randrange(136), 1, rng.randrange(256)]) for _ in range(scaled(2000))]
    for data in (b"", *short):
        assert whole(data, message) == naive.accepts(data, cls), data.hex()


def nested_values(levels: int, *, through: str) -> bytes:
    """An AnyValue with lists or maps nested in it, the innermost empty."""
    data = b""
    for _ in range(levels):
        # AnyValue.array_value = 5, .kvlist_value = 6; ArrayValue.values = 1; KeyValue.value = 2.
        if through == "lists":
            data = writer.chunk(5, writer.chunk(1, data))
        else:
            data = writer.chunk(6, writer.chunk(1, writer.chunk(2, data)))
    return data


@pytest.mark.parametrize("through", ["lists", "maps"])
@pytest.mark.parametrize("levels", [1, 10, 31, 32, 33, 34, 47, 48, 49, 50, 51, 52, 500, 10_000])
def test_values_within_values(levels: int, through: str) -> None:
    """
    Scenario: lists in lists and maps in maps, around the bound on nesting and far beyond it.
    Guarantees: whole exactly if the library parses it; no call stack is used up.
    """
    data = nested_values(levels, through=through)
    assert whole(data, wire.ANY_VALUE) == naive.accepts(data, common.AnyValue)
    pair = writer.chunk(2, data)
    assert whole(pair, wire.KEY_VALUE) == naive.accepts(pair, common.KeyValue)


def test_number_zero() -> None:
    """
    Scenario: the field number 0 with each wire type: in a message, in a group, in a group therein.
    Guarantees: refused everywhere, also where the library is lenient.
    """
    for wire_type in (writer.VARINT, writer.FIXED64, writer.BYTES, writer.FIXED32):
        field = writer.tag(0, wire_type) + bytes(8)
        for body in (field, writer.group(50, field), writer.group(50, writer.group(1, field))):
            assert not whole(body, wire.REQUEST)
            assert not naive.accepts(body)
    group = writer.group(0)
    assert not naive.accepts(writer.group(50, group))
    assert not whole(writer.group(50, group), wire.REQUEST)
    assert naive.accepts(writer.group(50, writer.number(1, 0)))


def test_reader_of_the_tests() -> None:
    """
    Scenario: the small reader that other tests rest on, over a hostile request.
    Guarantees: its fields join up to the whole, and it finds the spans that the library finds.
    """
    body = traffic.random_request(5)
    found = [body]
    for number in naive.WAY_TO_SPANS:
        below = []
        for message in found:
            fields = list(wire_reader.fields(message))
            assert b"".join(message[field.at : field.end] for field in fields) == message
            below += [
                message[field.start : field.end]
                for field in fields
                if (field.number, field.wire_type) == (number, writer.BYTES)
            ]
        found = below
    spans = [
        span for span, _, _ in naive.spans_with_place(ExportTraceServiceRequest.FromString(body))
    ]
    assert len(spans) > 5
    parsed = [trace.Span.FromString(span).SerializeToString() for span in found]
    assert parsed == [span.SerializeToString() for span in spans]
