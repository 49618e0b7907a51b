"""Log records: read and annotated with the same exactness as spans, and which of them are calls."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp.conventions import DIALECTS
from otel_anomaly.otlp.dialects import ARGUMENTS, CALL_ID, RESULT, SESSION, TOOL
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    IS_LOG,
    LOGS,
    TRACES,
    MalformedRequest,
    scan,
)
from tests import naive, recognition_traffic, traffic
from tests import wire_writer as wire
from tests.scan_rigs import (
    KEYS,
    TANGLED,
    check_logs,
    check_splice,
    encoded,
    random_verdicts,
    text_of,
    try_scan,
)
from tests.sizes import COMPILED, scaled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_anomaly.kernels import Record
    from tests.traffic import Value

Pairs = list[tuple[str, "Value"]]
PLACE: dict[str, Any] = {"trace_id": b"T" * 16, "span_id": b"S" * 8, "time_unix_nano": 7}
CODEX: Pairs = [("event.name", "codex.tool_result"), ("call_id", "c-1")]
VERDICT: Pairs = [("anomaly.action", "warn"), ("anomaly.score", 0.25)]


def request_of(*records: LogRecord, resource: traffic.Attributes = ()) -> bytes:
    """A request of these log records."""
    message = ExportLogsServiceRequest()
    place = message.resource_logs.add()
    place.resource.attributes.extend(traffic.attributes(resource))
    place.scope_logs.add(log_records=records)
    return message.SerializeToString()


def record_of(pairs: Iterable[tuple[str, Value]], **fields: Any) -> LogRecord:
    """One log record, in a trace unless the fields say otherwise."""
    return LogRecord(**{**PLACE, **fields, "attributes": traffic.attributes(list(pairs))})


def row_of(pairs: Iterable[tuple[str, Value]], **fields: Any) -> Record:
    """The row of a record, about which twin and scan agree."""
    columns = check_logs(request_of(record_of(pairs, **fields)))
    assert columns is not None
    (row,) = columns.rows
    return row


# --- Against the twins --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_hostile_logs(seed: int) -> None:
    """
    Scenario: records with the words of all conventions, in every form the wire allows; verdicts for
    some of them.
    Guarantees: rows, facts, identities and annotated bytes are the twins'.
    """
    plain = recognition_traffic.random_request(seed, logs=True, tricks=())
    hostile = recognition_traffic.random_request(seed, logs=True)
    for body in (plain, hostile):
        assert check_logs(body, TANGLED) is not None
        columns = check_logs(body)
        assert columns is not None
        check_splice(columns, random_verdicts(random.Random(seed), columns))
        check_splice(columns, {})


def test_hostile_logs_have_all_kinds_of_rows() -> None:
    """
    Scenario: the same requests together.
    Guarantees: each flag is seen and missed, and records without a row: nothing is tested in vain.
    """
    flags, none, rows, records = 0, IS_CALL | IS_HINT | IS_ERROR, 0, 0
    for seed in range(20):
        columns = scan(recognition_traffic.random_request(seed, logs=True), KEYS, LOGS)
        for row in columns.rows:
            flags, none = flags | row["flags"], none & row["flags"]
        rows, records = rows + columns.rows.size, records + columns.span_count
    assert flags & (IS_CALL | IS_HINT | IS_ERROR | IS_LOG) == IS_CALL | IS_HINT | IS_ERROR | IS_LOG
    assert flags & BAD_ID == 0
    assert none == 0
    assert 0 < rows < records


@pytest.mark.parametrize("seed", range(2))
def test_every_truncation(seed: int) -> None:
    """
    Scenario: a request cut at every byte.
    Guarantees: refused, or read exactly as the library reads what is left.
    """
    body = recognition_traffic.random_request(seed, logs=True, children=2)
    for cut in range(0, len(body), 1 if COMPILED else 13):
        check_logs(body[:cut])


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_changed_bytes(seed: int) -> None:
    """
    Scenario: a request with bytes replaced, dropped, doubled at random.
    Guarantees: accepted or refused as the library has it, and read as the twin reads it.
    """
    rng = random.Random(seed)
    body = recognition_traffic.random_request(seed, logs=True, children=3)
    for _ in range(20):
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        check_logs(bytes(changed))


@given(st.binary(max_size=200))
def test_random_bytes(body: bytes) -> None:
    """
    Scenario: any bytes, bare and as the content of each envelope.
    Guarantees: as the library has it.
    """
    for number in (1, 2, 2, 6, 2, 5, 1):
        accepted = try_scan(body, KEYS, LOGS) is not None
        assert accepted == naive.accepts(body, ExportLogsServiceRequest)
        body = wire.chunk(number, body)


def one_record(*fields: bytes) -> bytes:
    """A request with one log record of these encoded fields."""
    return wire.chunk(1, wire.chunk(2, wire.chunk(2, b"".join(fields))))


@pytest.mark.parametrize("number", [3, 5, 12])
def test_texts_must_be_text(number: int) -> None:
    """
    Scenario: severity, body and event name that are not UTF-8; then ids that are not.
    Guarantees: the first are refused, as the library does; ids may be any bytes.
    """
    for content in (b"\xff", b"\xc3", b"fine"):
        value = wire.chunk(1, content) if number == 5 else content
        body = one_record(wire.chunk(number, value))
        assert (try_scan(body, KEYS, LOGS) is not None) == (content == b"fine")
        assert naive.accepts(body, ExportLogsServiceRequest) == (content == b"fine")
    assert try_scan(one_record(wire.chunk(9, b"\xff" * 16)), KEYS, LOGS) is not None


@pytest.mark.parametrize("way", [(), (1,), (1, 2), (1, 2, 2), (1, 2, 2, 5), (1, 2, 2, 6)])
def test_nesting_up_to_the_bound(way: tuple[int, ...]) -> None:
    """
    Scenario: groups nested around the bound, directly in each kind of message.
    Guarantees: accepted up to the level where the library stops.
    """
    answers = []
    for levels in range(92, 103):
        body = b""
        for _ in range(levels):
            body = wire.group(77, body)
        for number in reversed(way):
            body = wire.chunk(number, body)
        accepted = try_scan(body, KEYS, LOGS) is not None
        assert accepted == naive.accepts(body, ExportLogsServiceRequest)
        answers.append(accepted)
    assert answers.count(True) == 100 - len(way) - 91


def test_refusal_names_the_request() -> None:
    """
    Scenario: broken bytes given as logs and as traces.
    Guarantees: the error says which kind of request they are not.
    """
    for signal, name in ((LOGS, "ExportLogsServiceRequest"), (TRACES, "ExportTraceServiceRequest")):
        with pytest.raises(MalformedRequest, match=f"not an {name}"):
            scan(b"\xff", KEYS, signal)


# --- Calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dialect",
    [d for d in DIALECTS if d.logs and d.when[0][0] == "event.name"],
    ids=lambda dialect: dialect.name,
)
def test_each_dialect(dialect: Any) -> None:
    """
    Scenario: a record that names its event in an attribute, in its own field, in its body.
    Guarantees: a call in each case; not without the event, not as a span.
    """
    pairs: Pairs = []
    for key, values in dialect.when:
        value = values if isinstance(values, str) else values[0]
        pairs.append((key, "x" if value == "*" else value))
    name = str(pairs[0][1])
    assert row_of(pairs)["flags"] & IS_CALL
    assert row_of(pairs[1:], event_name=name)["flags"] & IS_CALL
    assert row_of(pairs[1:], body=traffic.any_value(name))["flags"] & IS_CALL
    assert scan(request_of(record_of(pairs[1:])), KEYS, LOGS).call_count == 0
    span = Span(attributes=traffic.attributes(pairs), name=name)
    assert scan(traffic.request([span]), KEYS).call_count == 0


def test_what_is_no_call() -> None:
    """
    Scenario: decisions about calls, requests of a model, a span's words in a record.
    Guarantees: none is a call, and none gets a row but for what it says of its trace.
    """
    for pairs in (
        [("event.name", "tool_decision"), ("tool_name", "x")],
        [("event.name", "codex.tool_decision"), ("call_id", "c")],
        [("event.name", "gen_ai.client.inference.operation.details")],
        [("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "x")],
    ):
        assert scan(request_of(record_of(pairs)), KEYS, LOGS).rows.size == 0
        row = row_of([*pairs, ("session.id", "s")])
        assert row["flags"] == IS_HINT | IS_LOG
        outside = request_of(record_of([*pairs, ("session.id", "s")], trace_id=b""))
        assert scan(outside, KEYS, LOGS).rows.size == 0


def test_what_a_call_says() -> None:
    """
    Scenario: the result of a tool as Codex and Claude Code write it.
    Guarantees: tool, arguments, session, failure and time; the time observed where none is given.
    """
    pairs: Pairs = [
        *CODEX,
        ("tool_name", "exec"),
        ("arguments", '{"cmd": "ls"}'),
        ("conversation.id", "s-1"),
        ("success", "false"),
    ]
    body = request_of(record_of(pairs, time_unix_nano=0, observed_time_unix_nano=9))
    row = row_of(pairs, time_unix_nano=0, observed_time_unix_nano=9)
    assert row["flags"] == IS_CALL | IS_HINT | IS_ERROR | IS_LOG
    assert (row["start_ns"], row["end_ns"]) == (9, 9)
    assert [text_of(body, row, role) for role in (TOOL, SESSION)] == ["exec", "s-1"]
    assert body[row["at"][ARGUMENTS] :][: row["length"][ARGUMENTS]] == b'{"cmd": "ls"}'
    claude = [("event.name", "tool_result"), ("tool_name", "mcp__files__read")]
    row = row_of(claude)
    assert text_of(request_of(record_of(claude)), row, TOOL) == "read"


def test_a_tool_of_a_server() -> None:
    """
    Scenario: Claude Code's record of a call of a server's tool, bare and with its parameters, as
    JSON and as a map; a tool of its own.
    Guarantees: the name that it uses for all of them is none; the parameters tell the right one.
    """
    said: Pairs = [("event.name", "tool_result"), ("tool_name", "mcp_tool")]
    told = {"mcp_server_name": "files", "mcp_tool_name": "read"}
    own: Pairs = [said[0], ("tool_name", "Bash"), ("tool_parameters", {"mcp_tool_name": "x"})]
    for pairs, tool in (
        (said, None),
        ([*said, ("tool_parameters", json.dumps(told))], "read"),
        ([*said, ("tool_parameters", told)], "read"),
        ([*said, ("mcp_tool_name", "read")], "read"),
        ([*said, ("tool_parameters", '{"mcp_tool_name": "mcp__files__read"}')], "read"),
        (own, "Bash"),
    ):
        row = row_of(pairs)
        assert row["flags"] & IS_CALL
        assert text_of(request_of(record_of(pairs)), row, TOOL) == tool


def adot(**changes: Any) -> dict[str, Any]:
    """The body in which a tool's arguments and its answer were taken out of their span."""
    asked = {"role": "tool", "content": '{"a": 1}', "id": "c-1", **changes}
    answered = {"message": "done", "id": "c-1"}
    return {
        "output": {"messages": [{"content": answered, "role": "assistant"}]},
        "input": {"messages": [{"content": asked, "role": "tool"}]},
    }


def in_body(body: Value) -> tuple[int, list[str | None]]:
    """(flags, tool, call id, arguments and result) of a record with this body."""
    said: Pairs = [("event.name", "strands.telemetry.tracer"), ("session.id", "s")]
    request = request_of(record_of(said, body=traffic.any_value(body)))
    row = row_of(said, body=traffic.any_value(body))
    found = [text_of(request, row, role) for role in (TOOL, CALL_ID)]
    for role in (ARGUMENTS, RESULT):
        there = row["order"][role] != ABSENT
        at, length = int(row["at"][role]), int(row["length"][role])
        found.append(request[at : at + length].decode() if there else None)
    return row["flags"], found


def test_content_taken_out_of_its_span() -> None:
    """
    Scenario: a record of the AWS distribution with one message to a tool and the tool's answer.
    Guarantees: a call with its id, its arguments and its result; the tool's name is the span's.
    """
    flags, found = in_body(adot())
    assert flags == IS_CALL | IS_HINT | IS_LOG
    assert found == [None, "c-1", '{"a": 1}', "done"]
    whole = traffic.any_value({"a": 1}).SerializeToString().decode()
    assert in_body(adot(content={"a": 1}))[1][2] == whole


def test_bodies_of_other_records() -> None:
    """
    Scenario: what a model was told of a tool's answer: several messages, one with a reason to end;
    messages of others; without an id; bodies of other forms; nested without end.
    Guarantees: none is a call.
    """
    several = adot()
    several["input"]["messages"].append({"role": "user", "content": {}})
    model = adot()
    model["output"]["messages"][0]["content"]["finish_reason"] = "end_turn"
    user = adot()
    user["input"]["messages"][0]["role"] = "user"
    shifted = adot()
    shifted["input"]["messages"].insert(0, {"role": "user", "content": {}})
    deep: Any = "x"
    for _ in range(40):
        deep = {"input": deep, "messages": [deep]} if len(str(deep)) < 500 else [deep]
    others: tuple[Value, ...] = (
        {},
        [],
        {"input": "x"},
        {"input": {"messages": {}}},
        [adot()],
        {"x": adot()},
        deep,
    )
    for body in (several, model, user, shifted, adot(id=""), *others):
        flags, found = in_body(body)
        assert flags == IS_HINT | IS_LOG
        assert found[0] is None


def test_the_time_of_an_event() -> None:
    """
    Scenario: a call whose record has a time, only that of its observation, only an attribute that
    tells it as text, one that tells none; twice.
    Guarantees: the first of these that is there; of two attributes the last; else none.
    """
    noon = 1_795_255_200_000_000_000
    told: Pairs = [*CODEX, ("event.timestamp", "2026-11-21T10:00:00Z")]
    bare = {"time_unix_nano": 0}
    assert row_of(told)["end_ns"] == 7
    assert row_of(told, **bare, observed_time_unix_nano=9)["end_ns"] == 9
    row = row_of(told, **bare)
    assert (row["start_ns"], row["end_ns"]) == (noon, noon)
    assert row_of([("event.timestamp", "x"), *told], **bare)["end_ns"] == noon
    for odd in ("yesterday", noon, b"2026-11-21T10:00:00Z"):
        assert row_of([*told, ("event.timestamp", odd)], **bare)["end_ns"] == 0
    assert row_of(CODEX, **bare)["end_ns"] == 0


# --- Ids ----------------------------------------------------------------------------------------


def identity_of(pairs: Pairs, **fields: Any) -> int:
    """The identity of a call's record."""
    return int(row_of(pairs, **fields)["identity"])


def test_the_same_record_again() -> None:
    """
    Scenario: a record delivered twice, the second time with another severity and observed later.
    Guarantees: one identity where it names its call; where it does not, its bytes must be the same.
    """
    for fields in ({}, {"trace_id": b""}):
        pairs = [*CODEX, ("session.id", "s")]
        first = identity_of(pairs, **fields)
        assert identity_of(pairs, **fields) == first
        assert (
            identity_of(pairs, severity_text="INFO", observed_time_unix_nano=9, **fields) == first
        )
        nameless = [*CODEX[:1], ("session.id", "s")]
        assert identity_of(nameless, **fields) == identity_of(nameless, **fields)
        assert identity_of(nameless, severity_text="INFO", **fields) != identity_of(
            nameless, **fields
        )


def test_other_records() -> None:
    """
    Scenario: records that differ in trace, call id, session, tenant or only in time.
    Guarantees: each is a call of its own: a call id used again hides no call, a neighbour tenant's
    session and call ids hide none either.
    """
    session: Pairs = [*CODEX, ("session.id", "s")]
    found = [
        identity_of(CODEX),
        identity_of(CODEX, trace_id=b"U" * 16),
        identity_of([CODEX[0], ("call_id", "c-2")]),
        identity_of(CODEX, time_unix_nano=8),
        identity_of(session, trace_id=b""),
        identity_of([*CODEX, ("session.id", "t")], trace_id=b""),
        identity_of([*session, ("tenant.id", "a")], trace_id=b""),
        identity_of([*session, ("tenant.id", "b")], trace_id=b""),
        identity_of(session, trace_id=b"", time_unix_nano=8),
        identity_of(CODEX, trace_id=b""),
        identity_of(CODEX, trace_id=bytes(16)),
        identity_of([CODEX[0], ("call_id", "unknown")]),
    ]
    assert len(set(found)) == len(found)


def test_the_span_it_was_written_in() -> None:
    """
    Scenario: records inside of a span, with ids that are none, and outside of any.
    Guarantees: the parent is that span's identity; without a trace there is none.
    """
    trace = traffic.request([Span(trace_id=b"T" * 16, span_id=b"S" * 8)])
    (span,) = scan(trace, KEYS).rows
    row = row_of(CODEX)
    assert (row["trace"], row["parent"]) == (span["trace"], span["identity"])
    assert row["identity"] != span["identity"]
    for fields in ({"span_id": b""}, {"span_id": bytes(8)}, {"trace_id": b"T"}):
        assert row_of(CODEX, **fields)["parent"] == 0
    row = row_of(CODEX, trace_id=b"")
    assert (row["trace"], row["trace_at"]) == (0, -1)


# --- Verdicts -----------------------------------------------------------------------------------


def test_annotated_as_a_record() -> None:
    """
    Scenario: a verdict on a record that carries a forged one, among records without a row.
    Guarantees: the forged one is gone, ours is an attribute of the record, all else as it came.
    """
    forged = record_of([*CODEX, ("anomaly.action", "allow")])
    plain = record_of([("anomaly", "x")])
    body = request_of(plain, forged, plain)
    columns = check_logs(body)
    assert columns is not None
    assert columns.rows["index"].tolist() == [1]
    out = ExportLogsServiceRequest.FromString(check_splice(columns, {1: VERDICT}))
    expected = record_of([*CODEX, *VERDICT])
    assert list(out.resource_logs[0].scope_logs[0].log_records) == [plain, expected, plain]
    assert check_splice(scan(request_of(record_of(CODEX)), KEYS, LOGS), {})


def test_long_verdicts() -> None:
    """
    Scenario: verdicts so long that their lengths and those around them take more bytes.
    Guarantees: the twin's bytes.
    """
    columns = scan(request_of(record_of(CODEX)), KEYS, LOGS)
    for size in (*range(100, 150), 16_300, 16_384, 16_500):
        pairs: Pairs = [("anomaly.reason", "x" * size), *VERDICT]
        out = check_splice(columns, {0: pairs})
        assert encoded(pairs, logs=True) in out


def test_spans_are_no_records() -> None:
    """
    Scenario: what matters in a request of spans, read as one of logs, and the other way round.
    Guarantees: nothing is taken for a call; both are read without harm where the format allows.
    """
    spans = traffic.benchmark_request(3)
    columns = check_logs(spans)
    assert columns is None or columns.call_count == 0
    body = request_of(record_of(CODEX))
    assert try_scan(body, KEYS, TRACES) is None or scan(body, KEYS, TRACES).call_count == 0
    assert np.all(scan(body, KEYS, LOGS).rows["order"][:, ARGUMENTS] == ABSENT)
