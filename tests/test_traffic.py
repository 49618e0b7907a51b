"""The test traffic is what it says, and the slow twins are right on cases small enough to see."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.config import IdentityConfig
from tests import naive, traffic
from tests import wire_writer as wire
from tests.hostile import TRICKS

IDENTITY = IdentityConfig(owner=("organization.id",))


def spans_of(body: bytes) -> list[Span]:
    message = ExportTraceServiceRequest.FromString(body)
    return [span for span, _, _ in naive.spans_with_place(message)]


def test_benchmark_request() -> None:
    """
    Scenario: the request that the benchmarks are measured with.
    Guarantees: 512 tool calls of 530 bytes, no id twice, the same bytes for the same seed, other
    ids but the same agents for another.
    """
    body = traffic.benchmark_request()
    assert 525 <= len(body) / 512 <= 535
    assert body == traffic.benchmark_request(512, 10_000, 1)
    calls = naive.tool_calls(body, IDENTITY)
    assert len(calls) == 512
    assert len({call["span_id"] for call in calls}) == 512
    for call in calls:
        number = call["strong"]["agent"].removeprefix("agent-")
        assert 0 <= int(number) < 10_000
        assert call["strong"]["session"] == f"conv-{number}"
    others = naive.tool_calls(traffic.benchmark_request(100, 2, seed=2), IDENTITY)
    assert {call["strong"]["agent"] for call in others} == {"agent-0000000", "agent-0000001"}
    assert not {call["span_id"] for call in calls} & {call["span_id"] for call in others}


@pytest.mark.parametrize("seed", range(40))
def test_random_request_is_valid(seed: int) -> None:
    """
    Scenario: hostile requests with all tricks, and the same messages with none.
    Guarantees: protobuf reads each; the same seed gives the same bytes; the size is bounded.
    """
    body = traffic.random_request(seed)
    assert naive.accepts(body)
    assert body == traffic.random_request(seed)
    assert len(spans_of(body)) <= 9 * 8
    plain = traffic.random_request(seed, tricks=())
    assert ExportTraceServiceRequest.FromString(plain).SerializeToString() == plain


@pytest.mark.parametrize("trick", sorted(TRICKS))
def test_each_trick_changes_the_bytes(trick: str) -> None:
    """
    Scenario: one trick alone.
    Guarantees: it leaves valid requests, and bytes that are not those of the plain writer.
    """
    changed = 0
    for seed in range(20):
        body = traffic.random_request(seed, tricks={trick})
        assert naive.accepts(body)
        message = ExportTraceServiceRequest.FromString(body)
        message.DiscardUnknownFields()
        changed += message.SerializeToString() != body
    assert changed >= 5


def test_random_requests_have_variety() -> None:
    """
    Scenario: a hundred hostile requests together.
    Guarantees: tool calls with and without each fact, all value types, forged keys, late resources.
    """
    bodies = [traffic.random_request(seed) for seed in range(100)]
    calls = [call for body in bodies for call in naive.tool_calls(body, IDENTITY)]
    for name in naive.IDENTITIES:
        assert {call["strong"][name] is None for call in calls} == {True, False}
    assert {call["error"] for call in calls} == {True, False}
    assert {call["tool"] is None for call in calls} == {True, False}
    spans = [span for body in bodies for span in spans_of(body)]
    pairs = [pair for span in spans for pair in span.attributes]
    kinds = {pair.value.WhichOneof("value") for pair in pairs}
    assert kinds >= {None, "array_value", "kvlist_value", "bytes_value", "int_value", "bool_value"}
    assert any(pair.key.startswith("anomaly.") for pair in pairs)
    assert {len(span.trace_id) for span in spans} >= {0, 15, 16, 17}


def test_an_agent_never_repeats_itself() -> None:
    """
    Scenario: one agent makes many calls, another agent with other names makes some.
    Guarantees: span ids are unique, traces differ, every name given is on the span.
    """
    agent = traffic.Agent("a", session="s", user="u", tenant="t")
    calls = [agent.call(traffic.START_NS + index, error=index == 0) for index in range(100)]
    assert len({span.span_id for span in calls}) == 100
    assert traffic.Agent("b").trace_id != agent.trace_id
    found = naive.tool_calls(traffic.request(calls), IDENTITY)
    assert [call["error"] for call in found] == [True] + [False] * 99
    named = {"tenant": "t", "agent": "a", "session": "s", "user": "u", "owner": None}
    assert found[1]["strong"] == named
    assert found[1]["end_ns"] == traffic.START_NS + 1


@pytest.mark.parametrize(
    "value", [None, True, -5, 0.5, "x", b"\x00", ["a", [1]], {"a": {"b": None}}]
)
def test_values(value: traffic.Value) -> None:
    """
    Scenario: each type a Python value can have.
    Guarantees: the OTLP value holds it, and nothing else.
    """

    def python(any_value: AnyValue) -> Any:
        kind = any_value.WhichOneof("value")
        if kind == "array_value":
            return [python(item) for item in any_value.array_value.values]
        if kind == "kvlist_value":
            return {pair.key: python(pair.value) for pair in any_value.kvlist_value.values}
        return getattr(any_value, kind) if kind else None

    found = python(traffic.any_value(value))
    assert found == value
    assert type(found) is type(value)


def test_wire_writer() -> None:
    """
    Scenario: each kind of field, with needless bytes.
    Guarantees: protobuf reads what was written; at the widest it still does, beyond it does not.
    """
    span = Span.FromString(
        wire.chunk(5, b"name", tag_width=5, width=5)
        + wire.number(6, 3, tag_width=2, width=10)
        + wire.fixed64(7, 2**64 - 1, tag_width=3)
        + wire.fixed32(16, 9)
        + wire.group(5, wire.group(1) + wire.number(77, -1))
    )
    assert (span.name, span.kind, span.start_time_unix_nano, span.flags) == (
        "name",
        3,
        2**64 - 1,
        9,
    )
    assert wire.varint(300) == b"\xac\x02"
    assert wire.varint(1, 3) == b"\x81\x80\x00"
    assert AnyValue.FromString(wire.number(3, -1)).int_value == -1
    assert not naive.accepts(wire.chunk(1, b"", tag_width=6))
    assert not naive.accepts(wire.chunk(1, b"", width=6))
    assert not naive.accepts(wire.number(99, 0, width=11))


def one_call(extra: traffic.Attributes, resource: traffic.Attributes = ()) -> dict[str, Any]:
    span = Span(attributes=traffic.attributes([("gen_ai.operation.name", "execute_tool"), *extra]))
    (call,) = naive.tool_calls(traffic.request([span], resource=resource), IDENTITY)
    return call


def test_naive_identity() -> None:
    """
    Scenario: the same identity said twice, in several places, by weak keys, in odd types.
    Guarantees: the span wins over the resource, the earlier key over the later, the last usable
    duplicate over the others; a weak key stands apart; numbers and truth values count as text.
    """
    call = one_call(
        [("user.id", "u"), ("tenant.id", 7)], [("enduser.id", "e"), ("service.name", "s")]
    )
    nobody = dict.fromkeys(naive.IDENTITIES)
    assert call["strong"] == {**nobody, "tenant": "7", "user": "u"}
    assert call["weak"] == {**nobody, "agent": "s"}
    assert one_call([("user.id", "u"), ("enduser.id", True)])["strong"]["user"] == "true"
    assert one_call([("user.id", "u"), ("user.id", "v")])["strong"]["user"] == "v"
    assert (
        one_call([("user.id", ""), ("enduser.id", 1.5)], [("user.id", "r")])["strong"]["user"]
        == "r"
    )
    assert one_call([("user.id", "u"), ("user.id", ["x"])])["strong"]["user"] == "u"


def test_naive_facts() -> None:
    """
    Scenario: spans that are nearly tool calls, and tool calls that say little.
    Guarantees: only the string `execute_tool`, said last, makes a call of one tool; end falls back
    to start; an error is a status or a type that is not empty.
    """
    spans = [
        Span(attributes=traffic.attributes(pairs), start_time_unix_nano=5)
        for pairs in (
            [("gen_ai.operation.name", "chat")],
            [("gen_ai.operation.name", ["execute_tool"])],
            [("gen_ai.operation.name", "execute_tool"), ("gen_ai.operation.name", "chat")],
            [("gen_ai.operation.name", "chat"), ("gen_ai.operation.name", "execute_tool")],
            [("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "(merged tools)")],
        )
    ]
    (call,) = naive.tool_calls(traffic.request(spans), IDENTITY)
    assert (call["index"], call["end_ns"], call["tool"], call["error"]) == (3, 5, None, False)
    assert not one_call([("error.type", "")])["error"]
    assert one_call([("error.type", "timeout")])["error"]


def test_naive_annotate() -> None:
    """
    Scenario: forged verdicts on two spans, a verdict of ours for the second.
    Guarantees: only keys under the prefix go, on all spans; ours comes last on its own span.
    """
    forged: traffic.Attributes = [
        ("anomaly.x", 1),
        ("anomaly", 2),
        ("anomalyx.y", 3),
        ("anomaly.", 4),
    ]
    spans = [Span(attributes=traffic.attributes(forged)) for _ in range(2)]
    body = traffic.request(spans, resource=forged)
    message = naive.annotate(body, {1: [("anomaly.score", 0.5)]}, "anomaly")
    first, second = (span for span, _, _ in naive.spans_with_place(message))
    assert [pair.key for pair in first.attributes] == ["anomaly", "anomalyx.y"]
    assert [pair.key for pair in second.attributes] == ["anomaly", "anomalyx.y", "anomaly.score"]
    assert second.attributes[2] == KeyValue(key="anomaly.score", value=AnyValue(double_value=0.5))
    resource = message.resource_spans[0].resource
    assert resource == Resource(attributes=traffic.attributes(forged))
