"""Annotated requests, to the byte: against the slow twins, at every change of a length's size."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp.scan import END, START, scan
from otel_anomaly.otlp.splice import VARINT_MAX, splice, varint_size, write_varint
from tests import naive, traffic
from tests import wire_writer as wire
from tests.scan_rigs import (
    IDENTITY,
    KEYS,
    PREFIX,
    check_scan,
    check_splice,
    encoded,
    keys_of,
    one_span,
    random_verdicts,
    spliced,
)
from tests.sizes import scaled

if TYPE_CHECKING:
    from otel_anomaly.otlp.scan import Columns
    from tests.traffic import Value

CALL = Span(
    trace_id=b"T" * 16,
    span_id=b"S" * 8,
    attributes=traffic.attributes([("gen_ai.operation.name", "execute_tool")]),
).SerializeToString()
VERDICT: list[tuple[str, Value]] = [("anomaly.action", "warn"), ("anomaly.score", 0.25)]
BLOB = encoded(VERDICT)


def forged(key: bytes = b"anomaly.x", value: bytes = b"\x0a\x01f") -> bytes:
    """An attribute under our prefix, as a client would write it."""
    return wire.chunk(9, wire.chunk(1, key) + wire.chunk(2, value))


def checked(body: bytes) -> Columns:
    """The columns of a request that is accepted, compared with the twin."""
    columns = check_scan(body)
    assert columns is not None
    return columns


# --- Against the twins --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_hostile_traffic(seed: int) -> None:
    """
    Scenario: requests written with every trick; verdicts for none, some or all of the rows.
    Guarantees: to the byte what the twin writes, and parsed what the classes make of it.
    """
    body = traffic.random_request(seed)
    columns = checked(body)
    rng = random.Random(seed)
    for _ in range(3):
        check_splice(columns, random_verdicts(rng, columns))
    check_splice(columns, {})


def test_hostile_traffic_covers_all() -> None:
    """
    Scenario: the same requests together.
    Guarantees: annotated and not, forged and not, grown and shrunk: nothing is tested in vain.
    """
    seen, grown, kept = set(), set(), False
    for seed in range(20):
        body = traffic.random_request(seed)
        columns = scan(body, KEYS)
        verdicts = random_verdicts(random.Random(seed), columns)
        out = check_splice(columns, verdicts)
        for row in columns.rows:
            seen.add((int(row["index"]) in verdicts, bool(row["forged"])))
        grown.add(int(np.sign(len(out) - len(body))))
        kept = kept or out is body
    assert seen == {(False, False), (False, True), (True, False), (True, True)}
    assert grown >= {-1, 1}
    assert kept


def test_busy_fleet() -> None:
    """
    Scenario: what the benchmarks send, every span annotated.
    Guarantees: the twin's bytes; a second splice of the same verdicts changes nothing more.
    """
    columns = scan(traffic.benchmark_request(scaled(256)), KEYS)
    verdicts = {int(index): VERDICT for index in columns.rows["index"]}
    out = check_splice(columns, verdicts)
    assert check_splice(scan(out, KEYS), verdicts) == out


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_taken_out_again(seed: int) -> None:
    """
    Scenario: verdicts are written and then removed as forged ones are, by a splice without any.
    Guarantees: the first bytes come back, unknown fields and all; lengths only in their short form.
    """
    rng = random.Random(seed)
    body = traffic.random_request(seed, tricks={"shuffle", "unknown", "group", "mistyped"})
    clean = check_splice(scan(body, KEYS), {})
    columns = scan(clean, KEYS)
    assert not columns.rows["forged"].any()
    out = check_splice(columns, random_verdicts(rng, columns))
    assert check_splice(scan(out, KEYS), {}) == clean


# --- Nothing to do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", wire.group(9), one_span(), one_span(CALL), traffic.benchmark_request(3)],
    ids=["empty", "group", "nothing said", "call", "calls"],
)
def test_no_verdicts(body: bytes) -> None:
    """
    Scenario: requests with and without calls, nothing forged, no verdict written.
    Guarantees: the very same object comes back, not a copy.
    """
    columns = scan(body, KEYS)
    ends = np.zeros(columns.rows.size, np.int64)
    assert splice(columns, KEYS, np.zeros(0, np.uint8), ends) is body
    assert splice(columns, KEYS, np.frombuffer(BLOB, np.uint8), ends) is body


def test_an_end_for_each_row() -> None:
    """
    Scenario: fewer ends than rows, which only a mistake of ours can bring.
    Guarantees: an assertion, before a byte is written.
    """
    columns = scan(traffic.benchmark_request(3), KEYS)
    with pytest.raises(AssertionError):
        splice(columns, KEYS, np.frombuffer(BLOB, np.uint8), np.array([len(BLOB)] * 2))


def test_spans_that_are_not_touched() -> None:
    """
    Scenario: among annotated spans one without a row, and one without a verdict, both with lengths
    in more bytes than needed; a resource and a scope without any change.
    Guarantees: those stand in the output byte for byte, the lengths included.
    """
    wide = wire.chunk(2, CALL, tag_width=3, width=4)
    plain = wire.chunk(2, wire.chunk(5, b"no call"), tag_width=2, width=5)
    scope = wire.chunk(2, wire.chunk(2, CALL) + wide + plain)
    quiet_scope = wire.chunk(2, wide, width=3)
    quiet = wire.chunk(1, wire.chunk(2, wide + plain, width=5), tag_width=4, width=5)
    body = quiet + wire.chunk(1, quiet_scope + scope + quiet_scope, width=5) + quiet
    columns = scan(body, KEYS)
    assert columns.rows["index"].tolist() == [0, 2, 3, 4, 6, 7]
    out = check_splice(columns, {3: VERDICT})
    grown = wire.chunk(2, wire.chunk(2, CALL + BLOB) + wide + plain)
    assert out == quiet + wire.chunk(1, quiet_scope + grown + quiet_scope) + quiet


def test_unknown_fields_survive() -> None:
    """
    Scenario: fields and groups nobody knows, at every level, around what is annotated.
    Guarantees: all there, where they were.
    """
    stranger = wire.chunk(99, b"later") + wire.group(98, wire.number(1, 1)) + wire.fixed32(2, 9)
    span = stranger + CALL + stranger + forged() + stranger
    body = stranger + wire.chunk(
        1, stranger + wire.chunk(2, stranger + wire.chunk(2, span) + stranger) + stranger
    )
    out = check_splice(scan(body, KEYS), {0: VERDICT})
    kept = stranger + CALL + stranger + stranger + BLOB
    assert out == stranger + wire.chunk(
        1, stranger + wire.chunk(2, stranger + wire.chunk(2, kept) + stranger) + stranger
    )


# --- Lengths ------------------------------------------------------------------------------------


def framed_sizes(body: bytes) -> list[int]:
    """The sizes of the content of the one span, its scope and its resource."""
    columns = scan(body, KEYS)
    row = columns.rows[0]
    frames = [(row["start"], row["end"])]
    frames += [(frame[START], frame[END]) for frame in (columns.scopes[0], columns.resources[0])]
    return [int(end - start) for start, end in frames]


def test_lengths_that_grow() -> None:
    """
    Scenario: a span padded byte by byte until its length, and those around it, have passed 128 and
    16384, before and after annotation.
    Guarantees: the twin's bytes, and no more growth than was announced as the most.
    """
    before: list[set[int]] = [set(), set(), set()]
    after: list[set[int]] = [set(), set(), set()]
    reach = len(BLOB) + 20
    pads = [*range(150), *range(16384 - len(CALL) - reach, 16384 - len(CALL) + 10)]
    for pad in pads:
        # An unknown field, whose own tag and length take up to four bytes.
        body = one_span(CALL, wire.chunk(14, bytes(pad)) if pad else b"")
        out = check_splice(scan(body, KEYS), {0: VERDICT})
        assert len(out) - len(body) <= len(BLOB) + 3 * VARINT_MAX
        for sizes, found in ((before, framed_sizes(body)), (after, framed_sizes(out))):
            for level, size in zip(sizes, found, strict=True):
                level.add(size)
    # A size is missed where the pad's own length gets longer; not the same one before and after.
    for level_before, level_after in zip(before, after, strict=True):
        assert level_before | level_after >= {127, 128, 16383, 16384}


@pytest.mark.parametrize("size", [126, 127, 128, 129])
def test_lengths_around_127(size: int) -> None:
    """
    Scenario: a span that becomes exactly so long.
    Guarantees: the twin's bytes, with a length of one byte up to 127 and of two beyond.
    """
    pad = size - len(BLOB) - len(CALL)
    assert pad > 2
    out = check_splice(scan(one_span(CALL, wire.chunk(14, bytes(pad - 2))), KEYS), {0: VERDICT})
    assert framed_sizes(out)[0] == size


@pytest.mark.parametrize("size", [100, 127, 128, 129, 150, 16383, 16384, 16400])
def test_lengths_that_shrink(size: int) -> None:
    """
    Scenario: forged attributes so long that all lengths around them get shorter without them.
    Guarantees: the twin's bytes, with and without a verdict in their place.
    """
    for extra in range(-20, 20, 3):
        body = one_span(CALL, forged(value=wire.chunk(1, bytes(size + extra))))
        columns = scan(body, KEYS)
        assert check_splice(columns, {}) == one_span(CALL)
        check_splice(columns, {0: VERDICT})


@pytest.mark.parametrize("width", range(1, 6))
def test_lengths_in_more_bytes_than_needed(width: int) -> None:
    """
    Scenario: tags and lengths of up to five bytes around a span that is annotated.
    Guarantees: the tags stay as they are, the lengths get their short form.
    """

    def framed(content: bytes, length_width: int) -> bytes:
        for number in (2, 2, 1):
            content = wire.chunk(number, content, tag_width=width, width=length_width)
        return content

    out = check_splice(scan(framed(CALL, width), KEYS), {0: VERDICT})
    assert out == framed(CALL + BLOB, 1)


def test_varints() -> None:
    """
    Scenario: numbers at every change of size.
    Guarantees: written as the writer of the tests writes them, in as many bytes as announced.
    """
    for bits in range(40):
        for value in ((1 << bits) - 1, 1 << bits):
            out = np.zeros(12, np.uint8)
            end = write_varint(out, 1, value)
            assert out[1:end].tobytes() == wire.varint(value)
            assert varint_size(value) == end - 1 == len(wire.varint(value))
            assert not out[end:].any()


# --- Forged verdicts ----------------------------------------------------------------------------

OTHER = wire.chunk(9, wire.chunk(1, b"anomalyx.y") + wire.chunk(2, b""))


@pytest.mark.parametrize("verdicts", [{}, {0: VERDICT}], ids=["none", "one"])
@pytest.mark.parametrize(
    "fields",
    [
        (forged(), CALL),
        (CALL, forged()),
        (forged(), CALL, forged(), OTHER, forged(), forged()),
        (forged(), forged()),
        (forged(b"anomaly."),),
        (CALL, forged(b"anomaly.\xc3\xbcber"), forged(b"anomaly." + b"k" * 300)),
        (CALL, forged(value=b"")),
        (CALL, wire.chunk(9, wire.chunk(1, b"anomaly.x"))),
        (CALL, forged(value=wire.chunk(6, wire.chunk(1, wire.chunk(1, b"x") * 3)))),
    ],
    ids=["first", "last", "amid", "only", "bare", "long keys", "empty", "no value", "map"],
)
def test_forged_anywhere(fields: tuple[bytes, ...], verdicts: dict[int, list[object]]) -> None:
    """
    Scenario: attributes under our prefix in every place of a span, of every kind of value.
    Guarantees: all are gone, all else is there, a verdict of ours comes last.
    """
    body = one_span(*fields)
    out = check_splice(checked(body), dict.fromkeys(verdicts, VERDICT))
    kept = [field for field in fields if not field.startswith(b"\x4a") or b"anomaly." not in field]
    blobs = [BLOB] * len(verdicts)
    assert out == one_span(*kept, *blobs)


ODD = {
    "value first": wire.chunk(2, b"\x0a\x01f") + wire.chunk(1, b"anomaly.x"),
    "key said last": wire.chunk(1, b"harmless") + wire.chunk(1, b"anomaly.x"),
    "wide": wire.chunk(1, b"anomaly.x", tag_width=5, width=5),
    "strangers": wire.group(7) + wire.chunk(1, b"anomaly.x") + wire.number(1, 1),
    "two values": wire.chunk(1, b"anomaly.x") + wire.chunk(2, b"") + wire.chunk(2, b"\x18\x01"),
}


@pytest.mark.parametrize("name", ODD)
def test_forged_in_odd_forms(name: str) -> None:
    """
    Scenario: a forged attribute written as no library writes it, in a field with a wide tag.
    Guarantees: it is seen and gone.
    """
    for tag_width in (1, 2, 5):
        field = wire.chunk(9, ODD[name], tag_width=tag_width, width=tag_width)
        columns = checked(one_span(CALL, field, OTHER))
        assert check_splice(columns, {0: VERDICT}) == one_span(CALL, OTHER, BLOB)


@pytest.mark.parametrize(
    "pair",
    [
        wire.chunk(1, b"anomaly.x") + wire.chunk(1, b"harmless"),
        wire.chunk(1, b"anomaly") + wire.chunk(2, b""),
        wire.chunk(1, b"Anomaly.x") + wire.chunk(2, b""),
        wire.chunk(1, b" anomaly.x") + wire.chunk(2, b""),
        wire.chunk(1, b"anomalyx.") + wire.chunk(2, b""),
        wire.chunk(1, b"x") + wire.chunk(2, wire.chunk(1, b"anomaly.x")),
        wire.chunk(3, b"anomaly.x"),
        b"",
    ],
    ids=range(8),
)
def test_what_is_not_forged(pair: bytes) -> None:
    """
    Scenario: attributes that only look like verdicts.
    Guarantees: they stay.
    """
    body = one_span(CALL, wire.chunk(9, pair))
    assert check_splice(checked(body), {}) is body


def test_only_attributes_of_spans() -> None:
    """
    Scenario: keys under our prefix on resource, scope, event and link, and inside of a value.
    Guarantees: they stay: only the span's own attributes are where verdicts stand.
    """
    pairs = traffic.attributes([("anomaly.x", 1)])
    span = Span.FromString(CALL)
    span.events.add(attributes=pairs)
    span.links.add(attributes=pairs)
    span.attributes.extend(traffic.attributes([("map", {"anomaly.x": 1})]))
    request = ExportTraceServiceRequest.FromString(traffic.request([span], resource=pairs))
    request.resource_spans[0].scope_spans[0].scope.attributes.extend(pairs)
    body = request.SerializeToString()
    assert check_splice(checked(body), {}) is body


@pytest.mark.parametrize("prefix", ["a", "agent.verdict", "x" * 32])
def test_another_prefix(prefix: str) -> None:
    """
    Scenario: a configured prefix.
    Guarantees: what stands under it goes, what stands under the usual one stays.
    """
    keys = keys_of(IDENTITY, prefix=prefix)
    ours = forged(f"{prefix}.action".encode())
    near = forged(prefix.encode())
    columns = scan(one_span(CALL, ours, forged(), near), keys)
    assert spliced(columns, {}, keys) == one_span(CALL, forged(), near)
    blob = encoded([(f"{prefix}.action", "warn")])
    out = spliced(columns, {0: blob}, keys)
    assert out == one_span(CALL, forged(), near, blob)
    assert out == naive.splice(columns.body, {0: blob}, prefix)
    assert prefix != PREFIX
