"""R1-R18: what a receiver owes, on both transports, in both encodings, plain and compressed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers.grpc import SERVICES
from tests.conformance.doors import CODED, FEW_WAYS, LIMIT, REQUEST_OF, WAYS, Doors, Way, as_json
from tests.conformance.requests import (
    SPAN_ID,
    TRACE_ID,
    UNKNOWN_FIELD,
    full,
    messages_in,
    nested,
    traces,
    with_unknown_fields,
)
from tests.door_rigs import connect
from tests.traffic import attributes, request, tool_span

if TYPE_CHECKING:
    from google.protobuf.message import Message

every_way = pytest.mark.parametrize("way", WAYS, ids=str)
few_ways = pytest.mark.parametrize("way", FEW_WAYS, ids=str)
every_signal = pytest.mark.parametrize("signal", Signal, ids=lambda signal: signal.value)

TOO_LARGE = {True: grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], False: 413}
INVALID = {True: grpc.StatusCode.INVALID_ARGUMENT.value[0], False: 400}


def parsed(doors: Doors, signal: Signal = Signal.TRACES) -> Message:
    """What was passed on last."""
    return REQUEST_OF[signal].FromString(doors.passed_on())


def call_span(**more: Any) -> Any:
    """A tool call, which is judged."""
    known = {"trace_id": TRACE_ID, "span_id": SPAN_ID, "start_ns": 1, "end_ns": 2, "tool": "sh"}
    return tool_span(**{**known, **more})


@every_way
@every_signal
def test_R1_codings(doors: Doors, way: Way, signal: Signal) -> None:  # noqa: N802 - the row.
    """
    Scenario: each signal, with every kind of field, by each way.
    Guarantees: taken, and passed on as it was sent; in protobuf, to the byte.
    """
    sent = full(signal)
    assert doors.send(way, sent.SerializeToString(), signal).ok
    assert parsed(doors, signal) == sent
    if way.encoding == "proto":
        assert doors.passed_on() == sent.SerializeToString()


@every_way
def test_R2_the_limit_holds_after_decompression(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a request of the limit to the byte, and one of a byte more, both of zeros, so that
    what is compressed is small on the wire.
    Guarantees: the first is taken; the second is too large for good, and nothing of it goes on.
    """
    assert doors.send_raw(way, sized(way, LIMIT)).ok
    before = doors.count()
    answer = doors.send_raw(way, sized(way, LIMIT + 1))
    assert answer.code == TOO_LARGE[way.is_grpc]
    assert answer.retry_s is None
    assert doors.count() == before


def sized(way: Way, size: int) -> bytes:
    """An encoded request of exactly so many bytes."""
    if way.encoding == "json":
        frame = '{"x":""}'
        return frame.replace('""', f'"{"0" * (size - len(frame))}"').encode()
    # Number 999, length-delimited: three bytes of length reach a MiB.
    length = size - 5
    head = bytes([0xBA, 0x3E, length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    return head + bytes(length)


@pytest.mark.parametrize("way", [way for way in WAYS if way.coding != "none"], ids=str)
def test_R2_bombs_are_not_inflated(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: 64 times the limit in a small body, over each coding.
    Guarantees: too large, for good; the doors serve the next request. What it costs is measured
    by the tests of the doors, in a process of its own.
    """
    assert doors.send_raw(way, bytes(64 * LIMIT)).code == TOO_LARGE[way.is_grpc]
    assert doors.send(way, traces().SerializeToString()).ok


@few_ways
def test_R3_responses_are_small(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a reason of ten million characters to refuse a request, for good and for now.
    Guarantees: the client gets the code and the beginning of it, in a few kilobytes.
    """
    for outcome in (Outcome.MALFORMED, Outcome.MEMORY):
        doors.answer = Reply(outcome, "\u00e4" * 10_000_000, 1.0)
        answer = doors.send(way, b"")
        assert not answer.ok
        assert answer.message.startswith("\u00e4" * 100)
        assert len(answer.body) + len(answer.message.encode()) < 8 << 10


@every_way
@every_signal
def test_R4_empty_requests(doors: Doors, way: Way, signal: Signal) -> None:  # noqa: N802
    """
    Scenario: a request of no bytes, of no blocks, and in JSON without its one name.
    Guarantees: success; nothing is passed on, for there is nothing.
    """
    empty = b"{}" if way.encoding == "json" else b""
    assert doors.send_raw(way, empty, signal).ok
    assert doors.count() == 0


def test_R4_zero_bytes_over_http(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: POST without a body, in protobuf.
    Guarantees: success: it is the encoding of the empty request.
    """
    assert doors.post(Way("http", "proto", "none"), b"").ok


@every_way
@every_signal
def test_R5_full_success_is_bare(doors: Doors, way: Way, signal: Signal) -> None:  # noqa: N802
    """
    Scenario: a good request of each signal.
    Guarantees: the response message has no field set.
    """
    answer = doors.send(way, full(signal).SerializeToString(), signal)
    assert answer.body == (b"{}" if way.encoding == "json" else b"")


@few_ways
def test_R6_all_or_nothing(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a good span before one that is broken; then a good one before one with wrong ids.
    Guarantees: the first request is refused whole; the second is taken whole, nothing rejected.
    """
    before = doors.count()
    answer = doors.send_raw(way, spoiled(way))
    assert answer.code == INVALID[way.is_grpc]
    assert doors.count() == before
    good = traces()
    good.resource_spans[0].scope_spans[0].spans.add(name="no ids")
    answer = doors.send(way, good.SerializeToString())
    assert answer.ok
    assert answer.body in {b"", b"{}"}
    assert len(parsed(doors).resource_spans[0].scope_spans[0].spans) == 2  # type: ignore[attr-defined]


def spoiled(way: Way) -> bytes:
    """A good span, then one whose name is not text."""
    two = traces()
    two.resource_spans[0].scope_spans[0].spans.add(name="spoil me")
    if way.encoding == "json":
        return as_json(two).replace(b'"spoil me"', b"[1]")
    return two.SerializeToString().replace(b"spoil me", b"spoil \xff\xff")


@few_ways
def test_R7_no_warnings(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a request of which verdicts, forged by an agent, are removed.
    Guarantees: taken without a word: a warning would be a line in the client's log for each of its
    requests, and tell the forger. The counter has it.
    """
    before = doors.rig.counts("forged_attributes")
    span = call_span(extra=[("anomaly.action", "allow")])
    answer = doors.send(way, request([span], scope=None))
    assert answer.ok
    assert answer.body in {b"", b"{}"}
    assert doors.rig.counts("forged_attributes") == before + 1


@few_ways
@pytest.mark.parametrize("outcome", [Outcome.QUEUE_FULL, Outcome.STOPPING], ids=lambda x: x.value)
def test_R8_backpressure_says_when(doors: Doors, way: Way, outcome: Outcome) -> None:  # noqa: N802
    """
    Scenario: the queue of an exporter has no room; the service stops.
    Guarantees: UNAVAILABLE or 503, with a delay; nothing is passed on; the next one is taken.
    """
    doors.rig.room.script.append(outcome)
    before = doors.count()
    answer = doors.send(way, traces().SerializeToString())
    assert answer.code == (grpc.StatusCode.UNAVAILABLE.value[0] if way.is_grpc else 503)
    assert answer.retry_s is not None
    assert answer.retry_s > 0
    assert doors.count() == before
    assert doors.send(way, traces().SerializeToString()).ok


BAD_PROTOBUF = {
    "truncated": traces().SerializeToString()[:-1],
    "not-protobuf": b"\xff" * 40,
    "bad-utf-8": traces().SerializeToString().replace(b"GET /", b"GET\xff\xfe"),
    "too-deep": nested(200),
    "group-open": b"\x0b\x0b",
}
BAD_JSON = {
    "truncated": as_json(traces())[:-1],
    "not-json": b"\xff" * 40,
    "bad-utf-8": as_json(traces()).replace(b"GET /", b"GET\xff\xfe"),
    "too-deep": b'{"resourceSpans":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "wrong-type": b'{"resourceSpans":7}',
}


@pytest.mark.parametrize(
    ("way", "what"),
    [
        (way, what)
        for way in FEW_WAYS
        for what in (BAD_JSON if way.encoding == "json" else BAD_PROTOBUF)
    ],
    ids=str,
)
def test_R9_bad_data_is_final(doors: Doors, way: Way, what: str) -> None:  # noqa: N802
    """
    Scenario: requests that no patience makes good: cut, noise, bad text, nested without end.
    Guarantees: INVALID_ARGUMENT or 400, no delay, the reason without any of the data; nothing is
    passed on.
    """
    before = doors.count()
    answer = doors.send_raw(way, (BAD_JSON if way.encoding == "json" else BAD_PROTOBUF)[what])
    assert answer.code == INVALID[way.is_grpc]
    assert answer.retry_s is None
    assert answer.message
    assert "GET" not in answer.message
    assert doors.count() == before


@pytest.mark.parametrize("signal", [Signal.METRICS, Signal.LOGS], ids=lambda signal: signal.value)
@few_ways
def test_R9_of_other_signals(doors: Doors, way: Way, signal: Signal) -> None:  # noqa: N802
    """
    Scenario: metrics and logs that are cut short, and with text that is not UTF-8.
    Guarantees: refused for good, as traces are.
    """
    whole = full(signal).SerializeToString()
    bad = [whole[:-1], whole.replace(b"desk", b"d\xffsk")]
    if way.encoding == "json":
        whole = as_json(full(signal))
        bad = [whole[:-1], whole.replace(b"desk", b"d\xffsk")]
    for body in bad:
        assert doors.send_raw(way, body, signal).code == INVALID[way.is_grpc]
    assert doors.count() == 0


@few_ways
@every_signal
def test_R10_unknown_fields(doors: Doors, way: Way, signal: Signal) -> None:  # noqa: N802
    """
    Scenario: a field of a later version in every message, in every object.
    Guarantees: taken; all that is known is passed on, and in protobuf what is unknown as well.
    """
    if way.encoding == "json":
        plain = json.loads(as_json(full(signal)), object_hook=lambda x: {**x, "later": [{"a": 1}]})
        assert doors.send_raw(way, json.dumps(plain).encode(), signal).ok
        assert parsed(doors, signal) == full(signal)
        return
    body = with_unknown_fields(full(signal))
    assert body.count(UNKNOWN_FIELD) > 10
    assert doors.send(way, body, signal).ok
    assert doors.passed_on() == body


@few_ways
def test_R11_flags_survive(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: every bit of the flags of a span and of a link is set, on a span that is judged.
    Guarantees: they are passed on as they are.
    """
    span = call_span()
    span.flags = 0xFFFFFFFF
    span.links.add(trace_id=TRACE_ID, span_id=SPAN_ID, flags=0xDEADBEEF)
    assert doors.send(way, request([span], scope=None)).ok
    out = doors.rig.spans_out()[0]
    assert any(pair.key.startswith("anomaly.") for pair in out.attributes)
    assert (out.flags, out.links[0].flags) == (0xFFFFFFFF, 0xDEADBEEF)


@few_ways
def test_R12_any_attribute_value(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: empty, bytes, mixed and nested values on a span that is judged, its resource and an
    event.
    Guarantees: all are passed on as they came.
    """
    values = full(Signal.TRACES).resource_spans[0].scope_spans[0].spans[0].attributes  # type: ignore[attr-defined]
    span = call_span(extra=values)
    span.events.add(name="e", attributes=values)
    assert doors.send(way, request([span], scope=None, resource=values)).ok
    block = parsed(doors).resource_spans[0]  # type: ignore[attr-defined]
    assert list(block.resource.attributes) == list(values)
    assert list(block.scope_spans[0].spans[0].events[0].attributes) == list(values)
    kept = [
        pair
        for pair in block.scope_spans[0].spans[0].attributes
        if not pair.key.startswith(("anomaly.", "gen_ai."))
    ]
    assert kept == list(values)


@few_ways
def test_R13_string_indexes(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: an attribute by index, as profiles have them, and a value by index, on a tool call.
    Guarantees: no error; passed on; the key and the value are read as absent.
    """
    span = call_span()
    pair = span.attributes.add(key_strindex=3)
    pair.value.string_value = "by index"
    span.attributes.add(key="gen_ai.agent.name").value.string_value_strindex = 5
    sent = list(span.attributes)
    assert doors.send(way, request([span], scope=None)).ok
    out = [pair for pair in doors.rig.spans_out()[0].attributes if "anomaly." not in pair.key]
    assert out == sent
    assert doors.rig.callers[-1].agent is None


@few_ways
@every_signal
@pytest.mark.parametrize("what", ["key", "value"])
def test_R13_string_indexes_are_warned_of(  # noqa: N802
    doors: Doors, way: Way, signal: Signal, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: requests of each signal without string indexes, then with one, far inside; two with
    one at once; and one more an hour later.
    Guarantees: taken; one line in the log an hour, with nothing of the data, and none before.
    """
    good, odd = full(signal), full(signal)
    pair = [part for part in messages_in(odd) if isinstance(part, KeyValue)][-1]
    if what == "key":
        pair.key_strindex = 3
    else:
        pair.value.string_value_strindex = 0
    hour_ns = 3_600_000_000_000
    doors.clock.wall_ns += 2 * hour_ns
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        for message, wait_ns, told in (
            (good, 0, 0),
            (odd, hour_ns // 100, 1),
            (odd, 0, 1),
            (odd, hour_ns // 100, 1),
            (odd, hour_ns, 2),
        ):
            doors.clock.wall_ns += wait_ns
            assert doors.send(way, message.SerializeToString(), signal).ok
            lines = [line for line in caplog.messages if "table of strings" in line]
            assert len(lines) == told
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"{signal.value} over {way.transport} ")
    assert "desk" not in caplog.text


@few_ways
def test_R14_duplicate_keys(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a tool call that names its agent twice.
    Guarantees: both are passed on, in order; the last one is who is judged.
    """
    pairs = attributes([("gen_ai.agent.name", "first"), ("gen_ai.agent.name", "last")])
    assert doors.send(way, request([call_span(extra=pairs)], scope=None)).ok
    out = [p for p in doors.rig.spans_out()[0].attributes if p.key == "gen_ai.agent.name"]
    assert out == pairs
    assert doors.rig.callers[-1].agent == "last"


@few_ways
@pytest.mark.parametrize(
    ("trace_id", "span_id"),
    [
        (b"", SPAN_ID),
        (bytes(16), SPAN_ID),
        (TRACE_ID[:15], SPAN_ID),
        (TRACE_ID + b"x", SPAN_ID),
        (TRACE_ID, b""),
        (TRACE_ID, bytes(8)),
        (TRACE_ID, SPAN_ID[:7]),
        (TRACE_ID, SPAN_ID + b"x"),
    ],
)
def test_R15_invalid_ids(  # noqa: N802
    doors: Doors, way: Way, trace_id: bytes, span_id: bytes
) -> None:
    """
    Scenario: a tool call whose ids are missing, zero, short or long.
    Guarantees: passed on untouched, counted, not judged.
    """
    before = doors.rig.counts("invalid_ids")
    body = request([call_span(trace_id=trace_id, span_id=span_id)], scope=None)
    assert doors.send(way, body).ok
    assert parsed(doors) == ExportTraceServiceRequest.FromString(body)
    assert doors.rig.counts("invalid_ids") == before + 1


@few_ways
def test_R16_empty_envelopes(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a resource without scopes, and a scope without spans.
    Guarantees: taken and passed on as they are.
    """
    hollow = ExportTraceServiceRequest()
    hollow.resource_spans.add(schema_url="no scopes")
    hollow.resource_spans.add(schema_url="one").scope_spans.add(schema_url="no spans")
    assert doors.send(way, hollow.SerializeToString()).ok
    assert parsed(doors) == hollow


def test_R17_one_port_for_both_encodings(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: protobuf and JSON to the same port, each with parameters and in odd case; then each
    under the name of the other.
    Guarantees: read and answered by what Content-Type says, and by nothing else.
    """
    proto, plain = traces().SerializeToString(), as_json(traces())
    way = Way("http", "proto", "none")
    for content_type, body, response in (
        ("application/x-protobuf", proto, b""),
        ("application/json; charset=utf-8", plain, b"{}"),
        ("Application/JSON ;charset=UTF-8", plain, b"{}"),
        ("application/x-protobuf; v=1", proto, b""),
    ):
        answer = doors.post(way, body, content_type=content_type)
        assert (answer.code, answer.body) == (200, response)
        assert answer.headers["content-type"] == content_type.partition(";")[0].strip().lower()
    assert doors.post(way, proto, content_type="application/json").code == 400
    assert doors.post(way, plain, content_type="application/x-protobuf").code == 400


def test_R18_each_transport_has_its_port(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: a gRPC client at the HTTP port, an HTTP client at the gRPC port.
    Guarantees: each is refused at once, and both doors serve on.
    """

    async def grpc_at_http() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{doors.http.port}") as channel:
            export = channel.unary_unary(f"/{SERVICES[Signal.TRACES]}/Export")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await export(b"", timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    async def http_at_grpc() -> bytes:
        async with connect(doors.grpc.port) as (reader, writer):
            writer.write(b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                async with asyncio.timeout(20):  # What comes by then is all that a client sees.
                    return await reader.read()
        return b""

    doors.run(grpc_at_http())
    assert b"200 OK" not in doors.run(http_at_grpc())
    for way in FEW_WAYS:
        assert doors.send(way, traces().SerializeToString()).ok


def test_the_suite_compresses() -> None:
    """
    Scenario: what the suite calls gzip.
    Guarantees: it is.
    """
    assert gzip.decompress(CODED["gzip"](b"x")) == b"x"
    assert KeyValue(key="x").key == "x"
