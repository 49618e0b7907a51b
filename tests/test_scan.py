"""Requests to columns: against the slow twin, on everything that may come in, whole or broken."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp import scan as scan_module
from otel_anomaly.otlp.dialects import SESSION
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    MalformedRequest,
    scan,
)
from tests import naive, traffic
from tests import wire_writer as wire
from tests.scan_rigs import (
    KEYS,
    TANGLED,
    check_scan,
    one_span,
    text_of,
    try_scan,
)
from tests.sizes import COMPILED, scaled

CALL = ("gen_ai.operation.name", "execute_tool")
SOUND: dict[str, Any] = {"trace_id": b"T" * 16, "span_id": b"S" * 8}


def same_verdict(body: bytes) -> bool:
    """Scan and library agree whether this is a request; returns what they say."""
    accepted = try_scan(body) is not None
    assert accepted == naive.accepts(body), body.hex()
    return accepted


# --- Against the twin ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_hostile_traffic(seed: int) -> None:
    """
    Scenario: requests written with every trick the wire allows, under plain and tangled keys.
    Guarantees: frames, rows, calls, names, ids, times, errors, identities are the twin's.
    """
    body = traffic.random_request(seed)
    assert check_scan(body) is not None
    assert check_scan(body, TANGLED) is not None
    check_scan(traffic.random_request(seed, tricks=()))


def test_hostile_traffic_has_all_kinds_of_rows() -> None:
    """
    Scenario: the same requests together.
    Guarantees: each flag is seen and missed, and spans without a row: nothing is tested in vain.
    """
    flags, rows, spans = 0, 0, 0
    every = IS_CALL | IS_HINT | IS_ERROR | BAD_ID
    none = every
    for seed in range(20):
        columns = scan(traffic.random_request(seed), KEYS)
        for row in columns.rows:
            flags, none = flags | row["flags"], none & row["flags"]
        rows, spans = rows + columns.rows.size, spans + columns.span_count
    assert flags & every == every
    assert none == 0
    assert 0 < rows < spans


def test_benchmark_request() -> None:
    """
    Scenario: what a busy fleet sends.
    Guarantees: as the twin reads it: every span is a call with all it names.
    """
    columns = check_scan(traffic.benchmark_request(scaled(512)))
    assert columns is not None
    assert columns.call_count == columns.span_count == scaled(512)


# --- Broken on purpose --------------------------------------------------------------------------


def small_requests(count: int) -> list[bytes]:
    """Short hostile requests with a span in them."""
    found: list[bytes] = []
    seed = 0
    while len(found) < count:
        body = traffic.random_request(seed, spans=1)
        seed += 1
        columns = try_scan(body)
        if columns is not None and columns.span_count and len(body) < 1200:
            found.append(body)
    return found


@pytest.mark.parametrize("body", small_requests(4), ids=range(4))
def test_every_truncation(body: bytes) -> None:
    """
    Scenario: small requests cut at every byte.
    Guarantees: refused, or read exactly as the library reads what is left; never half read.
    """
    for cut in range(0, len(body), 1 if COMPILED else 5):
        check_scan(body[:cut])


@pytest.mark.parametrize("body", small_requests(2), ids=range(2))
def test_every_bit(body: bytes) -> None:
    """
    Scenario: small requests with one bit turned: every bit in turn.
    Guarantees: refused and read as the library does.
    """
    for at in range(0, len(body), 1 if COMPILED else 13):
        for bit in range(8):
            turned = bytearray(body)
            turned[at] ^= 1 << bit
            check_scan(bytes(turned))


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_changed_bytes(seed: int) -> None:
    """
    Scenario: a larger request with bytes replaced, dropped, doubled at random.
    Guarantees: as the library has it.
    """
    rng = random.Random(seed)
    body = traffic.random_request(seed, spans=3)
    for _ in range(20):
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        same_verdict(bytes(changed))


@given(st.binary(max_size=200))
def test_random_bytes(body: bytes) -> None:
    """
    Scenario: any bytes.
    Guarantees: as the library has it, bare and as the content of each envelope.
    """
    for number in (1, 2, 2, 9, 2, 5, 1):
        same_verdict(body)
        body = wire.chunk(number, body)


@pytest.mark.parametrize("length", [1, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_lengths_that_lie(length: int) -> None:
    """
    Scenario: at each level of nesting a message that claims to be longer than what holds it.
    Guarantees: refused, by the library as well.
    """
    levels = (1, 2, 2, 9, 2, 1)
    for depth in range(len(levels)):
        body = wire.tag(levels[depth], wire.BYTES) + wire.varint(length)
        for number in reversed(levels[:depth]):
            body = wire.chunk(number, body)
        assert not same_verdict(body)


def test_refusal_says_nothing_of_the_data() -> None:
    """
    Scenario: a request broken right behind something private.
    Guarantees: the error says what is wrong and does not repeat a byte of it.
    """
    for body in (one_span(b"secret"), one_span(wire.chunk(3, b"secret\xff")), b"secret"):
        with pytest.raises(MalformedRequest) as caught:
            scan(body, KEYS)
        assert "ExportTraceServiceRequest" in str(caught.value)
        assert "secret" not in repr(caught.value)


def every_text() -> tuple[ExportTraceServiceRequest, list[bytes]]:
    """A request with a mark of its own in every field that holds text."""
    span = Span(**SOUND, trace_state="<state>", name="<name>")
    span.status.message = "<status>"
    pairs: dict[str, traffic.Value] = {
        "<key>": "<value>",
        "<list>": ["<item>"],
        "<map>": {"<inner>": {"<deep>": "<leaf>"}},
    }
    span.attributes.extend(traffic.attributes(pairs.items()))
    span.events.add(name="<event>", attributes=traffic.attributes([("<of event>", "<said>")]))
    span.links.add(trace_state="<link>", attributes=traffic.attributes([("<of link>", "<to>")]))
    body = traffic.request([span], resource=[("<of resource>", "<r>")])
    message = ExportTraceServiceRequest.FromString(body)
    resource_spans = message.resource_spans[0]
    resource_spans.schema_url = "<schema of resource>"
    resource = resource_spans.resource
    resource.entity_refs.add(
        schema_url="<e>", type="<type>", id_keys=["<id>"], description_keys=["<about>"]
    )
    scope_spans = resource_spans.scope_spans[0]
    scope_spans.schema_url = "<schema of scope>"
    scope_spans.scope.name, scope_spans.scope.version = "<scope>", "<version>"
    scope_spans.scope.attributes.extend(traffic.attributes([("<of scope>", "<v>")]))
    body = message.SerializeToString()
    marks = [part.partition(b">")[0] for part in body.split(b"<")[1:]]
    return message, [b"<" + mark + b">" for mark in marks]


def test_every_text_must_be_text() -> None:
    """
    Scenario: each string anywhere in a request in turn is not UTF-8; then bytes are not.
    Guarantees: the first are refused, the second are not.
    """
    message, marks = every_text()
    body = message.SerializeToString()
    assert same_verdict(body)
    assert len(marks) == len(set(marks)) == 29
    for mark in marks:
        for bad in (b"\xff", b"\xc3", b"\xed"):
            assert not same_verdict(body.replace(mark, mark[:-1] + bad))
        assert same_verdict(body.replace(mark, mark[:-2] + b"\xc3\xa9"))
    span = message.resource_spans[0].scope_spans[0].spans[0]
    span.trace_id, span.parent_span_id = b"\xff" * 16, b"\xed" * 8
    span.attributes.extend(traffic.attributes([("x", b"\xff"), ("y", [b"\xff"])]))
    assert same_verdict(message.SerializeToString())


# --- Deep, wide, long ---------------------------------------------------------------------------


def nested(levels: int, through: str) -> bytes:
    """An AnyValue, or for groups the content of any message."""
    data = b""
    for _ in range(levels):
        if through == "lists":
            data = wire.chunk(5, wire.chunk(1, data))
        elif through == "maps":
            data = wire.chunk(6, wire.chunk(1, wire.chunk(2, data)))
        else:
            data = wire.group(77, data)
    return data


# Where an attribute may stand: the field numbers on the way down to its KeyValue.
PLACES = {
    "resource": (1, 1, 1),
    "scope": (1, 2, 1, 3),
    "span": (1, 2, 2, 9),
    "event": (1, 2, 2, 11, 3),
    "link": (1, 2, 2, 13, 4),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("through", ["lists", "maps", "groups"])
def test_nesting_up_to_the_bound(place: str, through: str) -> None:
    """
    Scenario: values and groups nested ever deeper, in the attributes of each kind of thing.
    Guarantees: accepted up to the level where the library stops, refused from there on.
    """
    step = {"lists": 2, "maps": 3, "groups": 1}[through]
    answers = []
    for levels in (1, *range(80 // step, 105 // step), 10_000):
        # A KeyValue with the value in it, or with a group in it; key first, as is usual, or not.
        inner = nested(levels, through)
        inner = inner if through == "groups" else wire.chunk(2, inner)
        for pair in (wire.chunk(1, b"session.id") + inner, inner + wire.chunk(1, b"k"), inner):
            body = pair
            for number in reversed(PLACES[place]):
                body = wire.chunk(number, body)
            answers.append(same_verdict(body))
    assert answers == sorted(answers, reverse=True)
    assert set(answers) == {True, False}


@pytest.mark.parametrize("way", [(), (1,), (1, 1), (1, 2), (1, 2, 1), (1, 2, 2), (1, 2, 2, 15)])
def test_groups_at_every_level(way: tuple[int, ...]) -> None:
    """
    Scenario: groups nested around the bound, directly in each kind of message.
    Guarantees: as the library has it: the depth of the message counts.
    """
    answers = []
    for levels in range(92, 103):
        body = nested(levels, "groups")
        for number in reversed(way):
            body = wire.chunk(number, body)
        answers.append(same_verdict(body))
    assert answers.count(True) == 100 - len(way) - 91


@pytest.mark.parametrize("key", ["session.id", "anomaly.x", "unknown", ""])
def test_very_many_attributes(key: str) -> None:
    """
    Scenario: a million attributes with the same key on one span, each with another value.
    Guarantees: as the library has it; the last value counts; all forged ones are counted.
    """
    count = 1_000_000 if COMPILED else 2_000
    pairs = traffic.attributes([(key, "0000000")])
    pattern = Span(attributes=pairs).SerializeToString()
    body = one_span(
        wire.chunk(1, b"T" * 16),
        wire.chunk(2, b"S" * 8),
        *(pattern[:-7] + b"%07d" % n for n in range(count)),
    )
    columns = scan(body, KEYS)
    assert naive.parses(body)
    assert columns.span_count == 1
    if key == "session.id":
        assert text_of(body, columns.rows[0], SESSION) == f"{count - 1:07d}"
    elif key == "anomaly.x":
        assert columns.rows["forged_count"].tolist() == [count]
        assert columns.rows["forged"].tolist() == [count * len(pattern)]
    else:
        assert columns.rows["flags"].tolist() == [0]
        assert set(columns.rows[0]["order"]) == {ABSENT}


def test_very_many_of_everything() -> None:
    """
    Scenario: thousands of empty resources, scopes, spans, attributes, groups.
    Guarantees: read as the library reads them, with a frame for each.
    """
    count = scaled(20_000)
    for content, expected in (
        (wire.chunk(1, b""), (count, 0, 0)),
        (wire.chunk(1, wire.chunk(2, b"")), (count, count, 0)),
        (one_span(), (count, count, count)),
        (wire.chunk(1, wire.chunk(2, wire.chunk(2, b"") * 3)), (count, count, 3 * count)),
        (one_span(wire.chunk(9, b"") * 2, wire.group(1)), (count, count, count)),
        (wire.group(9), (0, 0, 0)),
    ):
        body = content * count
        columns = scan(body, KEYS)
        found = (len(columns.resources), len(columns.scopes), columns.span_count)
        assert found == expected
        assert columns.rows.size == columns.call_count == 0
        assert naive.parses(body)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: requests at and beyond the most spans and the most bytes, both lowered to be seen.
    Guarantees: at the limit read, beyond it refused, and the reason says so.
    """
    body = wire.chunk(1, wire.chunk(2, wire.chunk(2, b"") * 3))
    monkeypatch.setattr(scan_module, "SPANS_PER_REQUEST_MAX", 3)
    assert scan(body, KEYS).span_count == 3
    monkeypatch.setattr(scan_module, "SPANS_PER_REQUEST_MAX", 2)
    with pytest.raises(MalformedRequest, match="3 spans, at most 2"):
        scan(body, KEYS)
    monkeypatch.undo()
    monkeypatch.setattr(scan_module, "REQUEST_BYTES_MAX", len(body))
    assert scan(body, KEYS).span_count == 3
    monkeypatch.setattr(scan_module, "REQUEST_BYTES_MAX", len(body) - 1)
    with pytest.raises(MalformedRequest, match=f"{len(body)} bytes, at most {len(body) - 1}"):
        scan(body, KEYS)


def test_nothing() -> None:
    """
    Scenario: an empty body, which is a request without spans.
    Guarantees: read, and empty.
    """
    columns = scan(b"", KEYS)
    assert (columns.span_count, columns.call_count, columns.rows.size) == (0, 0, 0)
    assert (len(columns.resources), len(columns.scopes), columns.data.size) == (0, 0, 0)


def test_one_scan_does_not_change_the_next() -> None:
    """
    Scenario: the same bytes scanned before and after quite other bytes.
    Guarantees: the same columns to the byte; what the scan starts from stays blank.
    """
    blank = scan_module.BLANK.copy()
    body = traffic.random_request(7)
    assert blank["order"].min() == ABSENT
    before = scan(body, KEYS)
    rows = before.rows.copy()
    for seed in range(5):
        scan(traffic.random_request(seed), KEYS)
    assert try_scan(body[:-1]) is None
    assert np.array_equal(scan(body, KEYS).rows, rows)
    assert np.array_equal(before.rows, rows)
    assert np.array_equal(scan_module.BLANK, blank)
