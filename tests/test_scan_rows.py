"""What a row of the scan says, case by case: who, which tool, when, and whether it is a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_anomaly.kernels import Record, signed
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.dialects import AGENT, OWNER, SESSION, TENANT, TOOL, USER, WEAK
from otel_anomaly.otlp.scan import ABSENT, BAD_ID, IS_CALL, IS_ERROR, IS_HINT, scan
from tests import traffic
from tests import wire_writer as wire
from tests.scan_rigs import KEYS, check_scan, one_span, text_of, try_scan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.traffic import Value

CALL = ("gen_ai.operation.name", "execute_tool")
SOUND: dict[str, Any] = {"trace_id": b"T" * 16, "span_id": b"S" * 8}
IDS = (wire.chunk(1, b"T" * 16), wire.chunk(2, b"S" * 8))


def row_of(body: bytes) -> Record:
    """The one row of a request."""
    (row,) = scan(body, KEYS).rows
    return row


def said(
    own: Iterable[tuple[str, Value]],
    resource: traffic.Attributes = (),
    role: int = SESSION,
) -> str | None:
    """What a call with these attributes counts as in one role."""
    body = traffic.request(
        [Span(**SOUND, attributes=traffic.attributes([CALL, *own]))], resource=resource
    )
    return text_of(body, row_of(body), role)


def test_of_equal_keys_the_last_usable_one() -> None:
    """
    Scenario: one key several times, with values that name somebody and values that do not.
    Guarantees: the last that is text, a truth value or a whole number counts.
    """
    key = "session.id"
    assert said([(key, "a"), (key, "b")]) == "b"
    for useless in ("", None, 1.5, b"bytes", ["list"], {"a": "map"}):
        assert said([(key, "a"), (key, useless)]) == "a"
        assert said([(key, useless), (key, "a")]) == "a"
        assert said([(key, useless)]) is None
    assert said([(key, "a"), (key, 0)]) == "0"
    assert said([(key, "a"), (key, False)]) == "false"
    assert said([(key, True), (key, "x")]) == "x"


def test_of_keys_the_better_of_places_the_nearer() -> None:
    """
    Scenario: identities said by two keys, on span, resource and scope.
    Guarantees: the better key wins in one place; any key of the nearer place wins over the farther;
    a weak key stands behind all strong ones and is marked by its order.
    """
    better, worse = "gen_ai.conversation.id", "session.id"
    assert said([(worse, "w"), (better, "b")]) == "b"
    assert said([(better, "b"), (worse, "w")]) == "b"
    assert said([(better, ""), (worse, "w")]) == "w"
    assert said([(worse, "w")], [(better, "r")]) == "w"
    assert said([(worse, [])], [(better, "r"), (worse, "s")]) == "r"
    agents = [("service.name", "weak")]
    assert said(agents, role=AGENT) == "weak"
    assert said(agents, [("gen_ai.agent.name", "strong")], AGENT) == "strong"
    body = traffic.request([Span(attributes=traffic.attributes([CALL, *agents]))])
    assert row_of(body)["order"][AGENT] >= WEAK
    assert row_of(body)["flags"] & IS_HINT == 0


def test_scope_stands_behind_resource() -> None:
    """
    Scenario: an identity on the scope alone, then on the resource as well, which comes last.
    Guarantees: the scope's counts only while the resource has none; where on the wire the resource
    stands makes no difference.
    """
    pair = Span(attributes=traffic.attributes([("tenant.id", "t")])).attributes[0]
    scope = wire.chunk(1, wire.chunk(3, pair.SerializeToString()))
    pair.value.string_value = "r"
    resource = wire.chunk(1, wire.chunk(1, pair.SerializeToString()))
    span = wire.chunk(2, Span(attributes=traffic.attributes([CALL])).SerializeToString())
    for scoped in (scope + span, span + scope):
        alone = wire.chunk(1, wire.chunk(2, scoped))
        assert text_of(alone, row_of(alone), TENANT) == "t"
        for both in (
            resource + wire.chunk(2, scoped),
            wire.chunk(2, scoped) + resource,
        ):
            body = wire.chunk(1, both)
            assert text_of(body, row_of(body), TENANT) == "r"


def test_nothing_leaks_into_the_next() -> None:
    """
    Scenario: two resources and two scopes, the first of each with an identity, the second without.
    Guarantees: what one says is not said by the other.
    """
    one = ExportTraceServiceRequest()
    for who in ("first", None):
        resource_spans = one.resource_spans.add()
        for where in ("scope", None):
            scope_spans = resource_spans.scope_spans.add()
            spans = scope_spans.spans
            spans.add(attributes=traffic.attributes([CALL, ("user.id", "own")]))
            spans.add(attributes=traffic.attributes([CALL]))
            if where:
                pairs = traffic.attributes([("session.id", where)])
                scope_spans.scope.attributes.extend(pairs)
        if who:
            pairs = traffic.attributes([("tenant.id", who)])
            resource_spans.resource.attributes.extend(pairs)
    body = one.SerializeToString()
    rows = scan(body, KEYS).rows
    assert [text_of(body, row, TENANT) for row in rows] == ["first"] * 4 + [None] * 4
    assert [text_of(body, row, SESSION) for row in rows] == (["scope"] * 2 + [None] * 2) * 2
    assert [text_of(body, row, USER) for row in rows] == ["own", None] * 4
    assert [text_of(body, row, OWNER) for row in rows] == ["own", None] * 4


def test_names_and_errors_are_not_inherited() -> None:
    """
    Scenario: a resource that carries a tool's name and an error.
    Guarantees: they say nothing about its spans.
    """
    pairs: list[tuple[str, Value]] = [("gen_ai.tool.name", "r"), ("error.type", "r"), CALL]
    span = Span(**SOUND, attributes=traffic.attributes([("session.id", "s")]))
    row = row_of(traffic.request([span], resource=pairs))
    assert row["flags"] == IS_HINT
    assert row["order"][TOOL] == ABSENT
    assert said([], pairs, TOOL) is None


@pytest.mark.parametrize("number", traffic.EDGES)
def test_numbers_as_text(number: int) -> None:
    """
    Scenario: identities that are whole numbers, at the edges of 64 bits, in needlessly many bytes.
    Guarantees: they count as the text a person would write, and hash as that text.
    """
    assert said([("session.id", number)]) == str(number)
    for width in range(1, 11):
        value = wire.number(3, number, width=width)
        pair = wire.chunk(1, b"session.id") + wire.chunk(2, value)
        body = one_span(*IDS, wire.chunk(9, pair))
        assert text_of(body, row_of(body), SESSION) == str(number)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_decimal(number: int) -> None:
    """
    Scenario: any whole number of 64 bits.
    Guarantees: written as Python writes it.
    """
    digits = np.zeros(20, np.uint8)
    start = decimal(np.int64(number), digits)
    assert digits[start:].tobytes().decode() == str(number)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "false"), (1, "true"), (2, "true"), (1 << 63, "true")]
)
def test_truth_values(value: int, expected: str) -> None:
    """
    Scenario: truth values, also as numbers that no writer uses.
    Guarantees: all but 0 are true, as the library has it.
    """
    for width in range(1, 11):
        pair = wire.chunk(1, b"session.id") + wire.chunk(2, wire.number(2, value, width=width))
        body = one_span(*IDS, wire.chunk(9, pair))
        assert text_of(body, row_of(body), SESSION) == expected
        check_scan(body)


ODD_PAIRS = {
    "value first": (wire.chunk(2, wire.chunk(1, b"v")), wire.chunk(1, b"session.id")),
    "key twice": (wire.chunk(1, b"x"), wire.chunk(1, b"session.id"), wire.chunk(2, b"\x0a\x01v")),
    "wide tags": (
        wire.chunk(1, b"session.id", tag_width=5, width=5),
        wire.chunk(2, wire.chunk(1, b"v", tag_width=2, width=4), tag_width=3, width=2),
    ),
    "value in parts": (
        wire.chunk(2, wire.chunk(1, b"x")),
        wire.chunk(1, b"session.id"),
        wire.chunk(2, wire.chunk(5, b"")),
        wire.chunk(2, wire.chunk(1, b"v")),
        wire.chunk(2, b""),
    ),
    "value twice": (
        wire.chunk(1, b"session.id"),
        wire.chunk(2, wire.chunk(1, b"x") + wire.number(3, 5) + wire.chunk(1, b"v")),
    ),
    "strangers": (
        wire.group(9, wire.number(1, 1)),
        wire.chunk(1, b"session.id"),
        wire.number(1, 7),
        wire.number(2, 7),
        wire.chunk(2, wire.fixed32(1, 7) + wire.chunk(1, b"v") + wire.chunk(2, b"true")),
        wire.fixed64(50, 1),
    ),
}


@pytest.mark.parametrize("name", ODD_PAIRS)
def test_odd_pairs(name: str) -> None:
    """
    Scenario: an attribute written as nobody writes it.
    Guarantees: it says what the library reads from it.
    """
    body = one_span(*IDS, wire.chunk(9, b"".join(ODD_PAIRS[name])))
    assert text_of(body, row_of(body), SESSION) == "v"
    check_scan(body)


def test_the_last_member_of_a_value_wins() -> None:
    """
    Scenario: a value with text and then a member of each other type, and the other way round.
    Guarantees: the last counts, also if it names nobody.
    """
    text = wire.chunk(1, b"v")
    others = {
        "true": wire.number(2, 1),
        "7": wire.number(3, 7),
        None: wire.fixed64(4, 0),
        (): wire.chunk(5, b""),
        (1,): wire.chunk(6, b""),
        (2,): wire.chunk(7, b""),
        (3,): wire.number(8, 1),
    }
    for expected, other in others.items():
        for members, found in ((text + other, expected), (other + text, "v")):
            pair = wire.chunk(1, b"session.id") + wire.chunk(2, members)
            body = one_span(*IDS, wire.chunk(9, pair))
            row = row_of(body)
            assert text_of(body, row, SESSION) == (found if isinstance(found, str) else None)


def test_what_is_a_call() -> None:
    """
    Scenario: spans that are nearly tool calls.
    Guarantees: the operation said last must be exactly the text; the span that merges parallel
    calls is none; what the tool is called last decides that, whatever its type.
    """

    def is_call(*pairs: tuple[str, Value]) -> bool:
        span = Span(**SOUND, attributes=traffic.attributes(pairs))
        return scan(traffic.request([span]), KEYS).call_count == 1

    operation, merged = "gen_ai.operation.name", ("gen_ai.tool.name", "(merged tools)")
    assert is_call(CALL)
    assert is_call((operation, "chat"), CALL)
    assert not is_call(CALL, (operation, "chat"))
    assert not is_call(CALL, (operation, ["execute_tool"]))
    assert not is_call(CALL, (operation, None))
    assert not is_call((operation, "execute_tool "))
    assert not is_call((operation, ""))
    assert not is_call(CALL, merged)
    assert not is_call(merged, CALL)
    assert is_call(merged, CALL, ("gen_ai.tool.name", "real"))
    assert is_call(CALL, merged, ("gen_ai.tool.name", 1.5))


def test_errors() -> None:
    """
    Scenario: statuses of every code, split, repeated, too wide; types of errors.
    Guarantees: an error is the code 2 said last, in 32 bits, or a type that is not empty.
    """

    def failed(*fields: bytes, error: Value = None) -> bool:
        pairs = [CALL] if error is None else [CALL, ("error.type", error)]
        span = Span(attributes=traffic.attributes(pairs)).SerializeToString()
        body = one_span(span, *fields)
        check_scan(body)
        return bool(row_of(body)["flags"] & IS_ERROR)

    assert int(Status.STATUS_CODE_ERROR) == 2
    for code in (0, 1, 2, 3, -1, 2 + (1 << 32), (1 << 33), 2 - (1 << 63)):
        assert failed(wire.chunk(15, wire.number(3, code))) == (code & 0xFFFFFFFF == 2)
    two, one, silent = wire.number(3, 2), wire.number(3, 1), wire.chunk(2, b"text")
    assert failed(wire.chunk(15, one + two))
    assert not failed(wire.chunk(15, two + one))
    assert failed(wire.chunk(15, two), wire.chunk(15, silent))
    assert not failed(wire.chunk(15, two), wire.chunk(15, one))
    assert not failed(wire.chunk(15, wire.chunk(3, b"2")))
    assert not failed(wire.number(15, 2))
    assert not failed(error="")
    assert failed(error="timeout")


def test_ids() -> None:
    """
    Scenario: ids of every length near the right one, all zero, missing, given twice.
    Guarantees: found where they are; a row with an unsound one is marked and hashes to nothing that
    a sound one has; the same ids hash the same, others do not.
    """
    hashes = set()
    for trace in (b"", b"T" * 15, b"T" * 16, b"T" * 17, bytes(16), b"U" + bytes(15)):
        for own in (b"", b"S" * 7, b"S" * 8, b"S" * 9, bytes(8), bytes(7) + b"S"):
            span = Span(trace_id=trace, span_id=own, attributes=traffic.attributes([CALL]))
            body = traffic.request([span])
            check_scan(body)
            row = row_of(body)
            sound = len(trace) == 16 and any(trace) and len(own) == 8 and any(own)
            assert (row["flags"] & BAD_ID == 0) == sound
            if sound:
                hashes |= {int(row["trace"]), int(row["identity"])}
    assert len(hashes) == 2 + 4
    attribute = Span(attributes=traffic.attributes([CALL])).SerializeToString()
    twice = one_span(
        wire.chunk(1, b"x"),
        wire.chunk(2, b"S" * 8),
        attribute,
        wire.chunk(1, b"T" * 16),
        wire.chunk(2, b"x"),
        wire.chunk(2, b"S" * 8),
        wire.number(1, 5),
    )
    row = row_of(twice)
    assert int(row["trace"]) in hashes
    assert row["flags"] & BAD_ID == 0
    assert twice[row["trace_at"] :].startswith(b"T" * 16)


def test_times() -> None:
    """
    Scenario: start and end in every combination, repeated, with other wire types, beyond 2^63.
    Guarantees: the end said last, else the start; unsigned 64 bits kept as signed ones.
    """
    attribute = Span(attributes=traffic.attributes([CALL])).SerializeToString()
    for start in traffic.TIMES_NS:
        for end in traffic.TIMES_NS:
            fields = (wire.fixed64(7, start), wire.fixed64(8, end))
            for ordered in (fields, fields[::-1], (*fields, wire.number(8, 3), *fields)):
                row = row_of(one_span(*ordered, attribute))
                assert row["end_ns"] == signed(end or start)
                assert row["start_ns"] == signed(start)
    row = row_of(one_span(attribute))
    assert row["start_ns"] == row["end_ns"] == 0
    for cut in range(1, 8):
        assert try_scan(one_span(attribute, wire.fixed64(8, 1)[: cut + 1])) is None


def test_which_spans_get_a_row() -> None:
    """
    Scenario: spans of all sorts in one request, with valid ids and without.
    Guarantees: a row for all with valid ids; without them for calls and for those with forged
    verdicts; numbers count all spans; flags say what they are.
    """
    pairs: list[list[tuple[str, Value]]] = [
        [("http.method", "GET")],
        [CALL],
        [("user.id", "u")],
        [("service.name", "weak"), ("error.type", "x")],
        [("anomaly.action", "allow")],
        [("user.id", ""), ("anomaly", "x"), ("anomalyx.y", 1)],
        [("user.id", 5), CALL, ("anomaly.", None)],
    ]
    spans = [Span(**SOUND, attributes=traffic.attributes(own)) for own in pairs]
    columns = scan(traffic.request(spans), KEYS)
    assert columns.span_count == 7
    assert columns.call_count == 2
    assert columns.rows["index"].tolist() == list(range(7))
    flags = [0, IS_CALL, IS_HINT, IS_ERROR, 0, 0, IS_CALL | IS_HINT]
    assert columns.rows["flags"].tolist() == flags
    assert columns.rows["forged_count"].tolist() == [0, 0, 0, 0, 1, 0, 1]
    columns = scan(traffic.request([Span(attributes=span.attributes) for span in spans]), KEYS)
    assert columns.rows["index"].tolist() == [1, 4, 6]
    assert columns.rows["flags"].tolist() == [IS_CALL | BAD_ID, BAD_ID, IS_CALL | BAD_ID]
