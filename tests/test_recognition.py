"""Tool calls, names and identities in the words of every convention, case by case."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_anomaly.kernels import Record
from otel_anomaly.otlp.attributes import ANY, STRING
from otel_anomaly.otlp.conventions import DIALECTS, SPAN_NAME
from otel_anomaly.otlp.dialects import (
    AGENT,
    ARGUMENTS,
    CALL_ID,
    RESULT,
    SESSION,
    TENANT,
    USER,
    WHO,
    compile_keys,
)
from otel_anomaly.otlp.hashing import hash_text, hash_two
from otel_anomaly.otlp.json_members import COMMA, OPENING, read_member
from otel_anomaly.otlp.scan import (
    ABSENT,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_MCP,
    IS_PART,
    IS_SERVER,
    NAMES_PLUGIN,
    scan,
)
from tests import naive_recognition, recognition_traffic, traffic
from tests import wire_writer as wire
from tests.scan_rigs import IDENTITY, KEYS, SEED, TANGLED, check_scan, one_span, text_of
from tests.sizes import scaled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.traffic import Value

Pairs = list[tuple[str, "Value"]]
SOUND: dict[str, Any] = {"trace_id": b"T" * 16, "span_id": b"S" * 8}
IDS = (wire.chunk(1, b"T" * 16), wire.chunk(2, b"S" * 8))
CALL: Pairs = [("gen_ai.operation.name", "execute_tool")]
MCP_CALL: Pairs = [("mcp.method.name", "tools/call")]
LENIENT = compile_keys(
    [getattr(IDENTITY, who) for who in WHO], IDENTITY.weak, prefix="p", seed=SEED, lenient=True
)


def request_of(pairs: Iterable[tuple[str, Value]], **fields: Any) -> bytes:
    """A request with one span."""
    return traffic.request([Span(**SOUND, attributes=traffic.attributes(list(pairs)), **fields)])


def row_of(pairs: Iterable[tuple[str, Value]], **fields: Any) -> Record:
    """The row of a span with these attributes; twin and scan agree about it."""
    body = request_of(pairs, **fields)
    columns = check_scan(body)
    assert columns is not None
    (row,) = columns.rows
    return row


def said(role: int, pairs: Iterable[tuple[str, Value]], **fields: Any) -> str | None:
    """What such a span says in one role."""
    return text_of(request_of(pairs, **fields), row_of(pairs, **fields), role)


# --- Against the twin ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_every_convention_at_once(seed: int) -> None:
    """
    Scenario: spans with keys, marks and names of all conventions mixed, whole and broken, written
    plainly and with every trick the wire allows.
    Guarantees: flags, ids, times, every fact and where it lies are the twin's.
    """
    plain = recognition_traffic.random_request(seed, logs=False, tricks=())
    hostile = recognition_traffic.random_request(seed, logs=False)
    for body in (plain, hostile):
        assert check_scan(body) is not None
        assert check_scan(body, TANGLED) is not None


def test_every_flag_is_met() -> None:
    """
    Scenario: the same requests together.
    Guarantees: each flag is seen and missed: nothing is tested in vain.
    """
    every = IS_CALL | IS_ERROR | IS_PART | IS_BOUNDARY | IS_SERVER | IS_MCP | NAMES_PLUGIN
    flags, none = 0, every
    for seed in range(30):
        body = recognition_traffic.random_request(seed, logs=False)
        for row in scan(body, KEYS).rows:
            flags, none = flags | row["flags"], none & row["flags"]
    assert flags & every == every
    assert none == 0


@pytest.mark.parametrize("seed", range(2))
def test_every_truncation(seed: int) -> None:
    """
    Scenario: a request cut at every byte.
    Guarantees: refused, or read exactly as the library reads what is left.
    """
    body = recognition_traffic.random_request(seed, logs=False, children=2)
    for cut in range(0, len(body), max(1, len(body) // scaled(600))):
        check_scan(body[:cut])


# --- Calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dialect", [d for d in DIALECTS if not d.logs], ids=lambda dialect: dialect.name
)
def test_each_dialect(dialect: Any) -> None:
    """
    Scenario: a span with just what one row of the table asks for, then without one of it, then with
    what it forbids.
    Guarantees: a call, no call, no call; rows that take too much only where that is asked for.
    """
    pairs: Pairs = []
    name = "x"
    for key, values in dialect.when:
        value = values if isinstance(values, str) else values[0]
        if key == SPAN_NAME:
            name = value.replace("*", "x")
        else:
            pairs.append((key, "v" if value == "*" else value))
    table = LENIENT if dialect.lenient else KEYS
    body = request_of(pairs, name=name)
    assert scan(body, table).call_count == 1
    assert not dialect.lenient or row_of(pairs, name=name)["flags"] & IS_CALL == 0
    assert scan(request_of([]), table).call_count == 0
    for i in range(len(pairs)):
        # Without an operation one dialect is another one.
        if dialect.name != "spring_ai_1":
            assert row_of(pairs[:i] + pairs[i + 1 :])["flags"] & IS_CALL == 0
    for key, _ in dialect.unless:
        other = request_of([*pairs, (key, "chain")], name=name)
        assert scan(other, table).call_count == 0


@pytest.mark.parametrize(
    ("pairs", "flags"),
    [
        ([("span.type", "tool.execution"), ("success", False)], IS_PART | IS_ERROR),
        ([("span.type", "tool.blocked_on_user"), *CALL], IS_PART),
        ([("gen_ai.tool.name", "(merged tools)"), *CALL], 0),
        ([("gen_ai.operation.name", "invoke_agent")], IS_BOUNDARY),
        ([("openinference.span.kind", "LLM")], IS_BOUNDARY),
        ([("openinference.span.kind", "CHAIN")], 0),
        ([("openinference.span.kind", "TOOL"), ("gen_ai.operation.name", "chain")], 0),
        ([("traceloop.span.kind", "tool"), ("gen_ai.operation.name", "execute_task")], 0),
        ([("mcp.method.name", "tools/call")], IS_CALL | IS_MCP),
        ([("mcp.method.name", "tools/list")], IS_MCP),
        ([("ai.operationId", "ai.generateText.doGenerate")], IS_BOUNDARY),
        ([("span.type", "llm_request")], IS_BOUNDARY),
        ([*CALL, ("gen_ai.tool.status", "error")], IS_CALL | IS_ERROR),
        ([*CALL, ("gen_ai.tool.status", "success")], IS_CALL),
        ([*CALL, ("success", "false")], IS_CALL | IS_ERROR),
        ([*CALL, ("success", True)], IS_CALL),
        ([*CALL, ("langfuse.observation.level", "ERROR")], IS_CALL | IS_ERROR),
        ([*CALL, ("error.type", "")], IS_CALL),
        ([*MCP_CALL, ("rpc.response.status_code", "-32602")], IS_CALL | IS_MCP | IS_ERROR),
        ([*MCP_CALL, ("rpc.response.status_code", -32602)], IS_CALL | IS_MCP | IS_ERROR),
        ([*MCP_CALL, ("rpc.response.status_code", "OK")], IS_CALL | IS_MCP),
        ([*MCP_CALL, ("rpc.response.status_code", "0")], IS_CALL | IS_MCP),
        ([*MCP_CALL, ("rpc.response.status_code", 0)], IS_CALL | IS_MCP),
        ([*CALL, ("error.type", False)], IS_CALL),
        ([*CALL, ("success", "False")], IS_CALL | IS_ERROR),
        ([*CALL, ("gen_ai.tool.status", "ERROR")], IS_CALL | IS_ERROR),
        ([("openinference.span.kind", "tool")], IS_CALL),
        ([("openinference.span.kind", "Agent")], IS_BOUNDARY),
        ([("langfuse.observation.type", "TOOL")], IS_CALL),
        ([("traceloop.span.kind", "Tool")], IS_CALL),
    ],
)
def test_flags(pairs: Pairs, flags: int) -> None:
    """
    Scenario: spans that are calls, parts of calls, agents, models, and what only looks like them.
    Guarantees: each is what it is; failures are seen where the telemetry tells them.
    """
    assert row_of(pairs)["flags"] == flags


@pytest.mark.parametrize(
    ("event", "told", "failed"),
    [
        ("exception", {"exception.type": "KeyError", "exception.escaped": "false"}, True),
        ("exception", {"exception.message": "no order"}, True),
        ("exception", {"exception.type": ""}, False),
        ("log", {"exception.type": "KeyError"}, False),
        ("gen_ai.choice", {"message": "[]", "status": "error"}, True),
        ("gen_ai.choice", {"message": "[]", "status": "Success"}, False),
        ("gen_ai.choice", {"message": "[]", "finish_reason": "error"}, False),
    ],
)
@pytest.mark.parametrize("status", [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_OK])
def test_failures_in_events(
    event: str, told: dict[str, str], *, failed: bool, status: Status.StatusCode.ValueType
) -> None:
    """
    Scenario: calls whose span is not in error, with an event that may tell of one.
    Guarantees: an exception, escaped or not, and a choice whose status is no success are failures.
    """
    span = Span(**SOUND, attributes=traffic.attributes(CALL), status=Status(code=status))
    span.events.add(name=event, attributes=traffic.attributes(told.items()))
    columns = check_scan(traffic.request([span]))
    assert columns is not None
    assert columns.rows[0]["flags"] == (IS_CALL | IS_ERROR if failed else IS_CALL)


@pytest.mark.parametrize("kind", [2, 3, 2 + (1 << 32), 2 + (1 << 31)])
def test_kind_on_the_wire(kind: int) -> None:
    """
    Scenario: a span's kind written twice, also with more bits than it has.
    Guarantees: the last one counts, in 32 bits, as the library has it.
    """
    for other in (2, 3):
        columns = check_scan(one_span(wire.number(6, other), wire.number(6, kind), *IDS))
        assert columns is not None
        assert bool(columns.rows[0]["flags"] & IS_SERVER) == (kind & 0xFFFFFFFF == 2)


def test_kind_and_parent() -> None:
    """
    Scenario: a server's span under another one.
    Guarantees: it is told as such; the parent's hash is the identity that the parent has.
    """
    span = Span(**SOUND, parent_span_id=b"P" * 8, kind=Span.SPAN_KIND_SERVER)
    parent = Span(trace_id=b"T" * 16, span_id=b"P" * 8)
    rows = scan(traffic.request([span, parent]), KEYS).rows
    assert rows[0]["flags"] == IS_SERVER
    assert rows["parent"].tolist() == [rows[1]["identity"], 0]
    assert row_of([], parent_span_id=bytes(8))["parent"] == 0
    assert row_of([], parent_span_id=b"P" * 7)["parent"] == 0


def test_service() -> None:
    """
    Scenario: spans of services with and without a namespace, and a span that names a service.
    Guarantees: only the resource tells the service; the namespace is part of it; what an SDK
    writes for want of a name is none.
    """
    span = Span(**SOUND, attributes=traffic.attributes([("service.name", "own")]))

    def service(*resource: tuple[str, Value]) -> int:
        (row,) = scan(traffic.request([span], resource=resource), KEYS).rows
        return int(row["service"])

    name, space = hash_text("s", SEED), hash_text("n", SEED)
    assert service() == 0
    assert service(("service.name", "s")) == name
    assert service(("service.namespace", "n")) == 0
    assert service(("service.name", "unknown_service")) == 0
    assert service(("service.name", "unknown_service:node"), ("service.namespace", "n")) == 0
    assert service(("service.name", "s"), ("service.name", "unknown_service:node")) == name
    assert service(("service.name", "unknown_services")) == hash_text("unknown_services", SEED)
    assert service(("service.name", "s"), ("service.namespace", "n")) == hash_two(space, name, SEED)


# --- Call ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call_id", ["unknown", "Unknown", "NONE", "null", "N/A", "n/a", ""], ids=repr
)
def test_no_call_id(call_id: str) -> None:
    """
    Scenario: call ids that say that there is none.
    Guarantees: there is none, or the next key's.
    """
    pairs = [*CALL, ("gen_ai.tool.call.id", call_id)]
    assert said(CALL_ID, pairs) is None
    assert said(CALL_ID, [*pairs, ("tool_use_id", "t-1")]) == "t-1"
    assert said(CALL_ID, [*CALL, ("gen_ai.tool.call.id", f"{call_id}1")]) == f"{call_id}1"


# --- Arguments and results ----------------------------------------------------------------------


def content(role: int, pairs: Pairs, **fields: Any) -> tuple[int, bytes] | None:
    """Kind and bytes of arguments or result."""
    row = row_of(pairs, **fields)
    if row["order"][role] == ABSENT:
        return None
    at, length = int(row["at"][role]), int(row["length"][role])
    return int(row["kind"][role]), request_of(pairs, **fields)[at : at + length]


def test_content_of_every_type() -> None:
    """
    Scenario: arguments as text, as a map, a list, bytes, a number; none; the text for none.
    Guarantees: text lies where it is, everything composite as the whole value; none is none.
    """
    key = "gen_ai.tool.call.arguments"
    assert content(ARGUMENTS, [*CALL, (key, '{"a": 1}')]) == (STRING, b'{"a": 1}')
    for value in ({"a": 1}, ["a"], b"a", 1.5):
        whole = traffic.any_value(value).SerializeToString()
        assert content(ARGUMENTS, [*CALL, (key, value)]) == (ANY, whole)
    for nothing in ("", None, "n/a", "N/A"):
        assert content(ARGUMENTS, [*CALL, (key, nothing)]) is None
        pairs = [*CALL, (key, nothing), ("input.value", "next")]
        assert content(ARGUMENTS, pairs) == (STRING, b"next")


def test_content_in_events() -> None:
    """
    Scenario: arguments, result and call id in events of the span; events of other names.
    Guarantees: taken from the events that are known by name, behind the span's own attributes.
    """
    span = Span(**SOUND, attributes=traffic.attributes(CALL))
    span.events.add(name="other", attributes=traffic.attributes([("content", "no")]))
    own = traffic.attributes([("content", '{"a": 1}'), ("id", "c-1"), ("message", "no")])
    span.events.add(name="gen_ai.tool.message", attributes=own)
    answer = traffic.attributes([("message", "done"), ("content", "no")])
    span.events.add(name="gen_ai.choice", attributes=answer)
    body = traffic.request([span])
    columns = check_scan(body)
    assert columns is not None
    (row,) = columns.rows
    found = [body[row["at"][role] :][: row["length"][role]] for role in (ARGUMENTS, RESULT)]
    assert found == [b'{"a": 1}', b"done"]
    assert text_of(body, row, CALL_ID) == "c-1"
    span.attributes.extend(traffic.attributes([("input.value", "own")]))
    body = traffic.request([span])
    (row,) = scan(body, KEYS).rows
    assert body[row["at"][ARGUMENTS] :][:3] == b"own"


def test_content_of_another_mark() -> None:
    """
    Scenario: what a model was asked, on a tool's span of LangSmith and on that of a model.
    Guarantees: it is the tool's arguments only on the first.
    """
    pairs: Pairs = [("gen_ai.prompt", '{"a": 1}'), ("gen_ai.completion", "done")]
    tool: Pairs = [*CALL, ("langsmith.span.kind", "tool")]
    assert content(ARGUMENTS, pairs + tool) == content(ARGUMENTS, tool + pairs)
    assert content(ARGUMENTS, pairs + tool) == (STRING, b'{"a": 1}')
    assert content(RESULT, pairs + tool) == (STRING, b"done")
    assert content(ARGUMENTS, [*pairs, *CALL]) is None


# --- Identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "placeholder",
    [
        *("OpenAI Agent", "agent", "Unknown", "DEFAULT"),
        *(" default ", "\tAgent\r\n", " ", '" agent"'),
        *("unknown_service", "unknown_service:python", " unknown_service:"),
    ],
)
def test_false_friends(placeholder: str) -> None:
    """
    Scenario: a text that names nobody where the agent's name belongs.
    Guarantees: the next key counts, or nobody, under a weak key as well; it may be a user's name.
    """
    assert said(AGENT, [("gen_ai.agent.name", placeholder)]) is None
    pairs: Pairs = [("gen_ai.agent.name", placeholder), ("agent_name", "true name")]
    assert said(AGENT, pairs) == "true name"
    assert said(AGENT, [("service.name", placeholder)]) is None
    if not placeholder.startswith('"'):
        assert said(USER, [("user.id", placeholder)]) == placeholder
    for name in (" defaults ", "unknown_services", "unknown_service-x", " x "):
        assert said(AGENT, [("gen_ai.agent.name", name)]) == name


def test_an_agent_named_like_its_model() -> None:
    """
    Scenario: the model's name where the agent's belongs: in the key, in the span's name; before
    and after the key of the model.
    Guarantees: it names no agent; the next best that says something does.
    """
    model: Pairs = [("gen_ai.request.model", "gpt-4o")]
    for pairs in ([("gen_ai.agent.name", "gpt-4o"), *model], [*model, ("agent.name", "gpt-4o")]):
        assert said(AGENT, pairs) is None
        assert said(AGENT, [*pairs, ("ai.telemetry.functionId", "helper")]) == "helper"
        assert said(AGENT, pairs, name="invoke_agent helper") == "helper"
        assert said(AGENT, pairs, name="invoke_agent gpt-4o") is None
        assert said(AGENT, [*pairs, ("service.name", "gpt-4o")]) == "gpt-4o"
    assert said(AGENT, model, name="invoke_agent gpt-4o") is None
    assert said(AGENT, [], name="invoke_agent gpt-4o") == "gpt-4o"


@pytest.mark.parametrize(
    ("pairs", "name", "agent"),
    [
        ([("openinference.span.kind", "AGENT"), ("graph.node.id", "writer")], "x", "writer"),
        ([("graph.node.id", "writer")], "x", None),
        ([("openinference.span.kind", "AGENT")], "Writer.run", "Writer"),
        ([("openinference.span.kind", "TOOL")], "lookup.run", None),
        ([("traceloop.entity.name", "a"), ("traceloop.span.kind", "agent")], "x", "a"),
        ([("traceloop.entity.name", "a"), ("traceloop.span.kind", "tool")], "x", None),
        ([("langfuse.observation.type", "agent")], "helper", "helper"),
        ([("langfuse.observation.type", "tool")], "helper", None),
        ([], "agent_run [helper]", "helper"),
        ([], "agent_run []", None),
        ([], "invoke_agent helper", "helper"),
        ([("agent.name", "key")], "invoke_agent helper", "key"),
    ],
)
def test_agents_told_in_other_ways(pairs: Pairs, name: str, agent: str | None) -> None:
    """
    Scenario: agents named by a node, an entity or the span's name, and the same on other spans.
    Guarantees: taken where the span's kind makes it the agent's name, behind any key for it.
    """
    assert said(AGENT, pairs, name=name) == agent


def test_quoted_identities() -> None:
    """
    Scenario: identities that their instrumentation wrote as JSON.
    Guarantees: without the quotes, so that they are the same as elsewhere.
    """
    assert said(TENANT, [("langfuse.trace.metadata.tenant", '"acme"')]) == "acme"
    assert said(TENANT, [("tenant.id", '""')]) == '""'
    assert said(TENANT, [("tenant.id", '"acme')]) == '"acme'
    assert said(SESSION, [("session.id", '"')]) == '"'


def test_nothing_leaks_into_the_next() -> None:
    """
    Scenario: spans whose agent is named like the model, by a node, in metadata; behind each a span,
    a scope and a resource for which that text would count.
    Guarantees: each is read as if it stood alone.
    """
    message = ExportTraceServiceRequest()
    agent = ("openinference.span.kind", "AGENT")
    for pairs in (
        [("gen_ai.agent.name", "m"), ("model", "m"), ("agent.name", "a")],
        [("gen_ai.agent.name", "m")],
        [agent, ("graph.node.id", "n"), ("metadata", '{"user_id": "u"}')],
        [agent],
        [("gen_ai.agent.name", "m"), ("model", "m")],
    ):
        for _ in range(2):
            place = message.resource_spans.add()
            place.resource.attributes.extend(traffic.attributes([("gen_ai.agent.name", "m")]))
            for _ in range(2):
                span = Span(**SOUND, attributes=traffic.attributes(pairs))
                place.scope_spans.add(spans=[span, span])
    body = message.SerializeToString()
    columns = check_scan(body)
    assert columns is not None
    told = [(text_of(body, row, AGENT), text_of(body, row, USER)) for row in columns.rows]
    for i, expected in enumerate([("a", None), ("m", None), ("n", "u"), ("m", None), ("m", None)]):
        assert set(told[8 * i : 8 * i + 8]) == {expected}


def test_metadata_as_a_map() -> None:
    """
    Scenario: `metadata` as a map; as bytes, a list, a number; as a map whose members are of all
    types, nested, without a name; twice.
    Guarantees: the members of a map are read like those of a JSON object, of nothing else; the last
    `metadata` counts.
    """
    assert said(USER, [("metadata", {"user_id": "u"})]) == "u"
    assert said(USER, [("metadata", {"user_id": 42, "": "x"})]) == "42"
    assert said(AGENT, [("metadata", {"lc_agent_name": '"a"', "user_id": "u"})]) == "a"
    pairs: Pairs = [("metadata", {"user_id": "u"}), ("metadata", '{"thread_id": "t"}')]
    assert said(USER, pairs) is None
    assert said(SESSION, pairs) == "t"
    assert said(USER, pairs[::-1]) == "u"
    for odd in (None, "", 1.5, b"", {}, {"user_id": {"user_id": "u"}}, {"user_id": ["u"]}):
        assert said(USER, [("metadata", odd)]) is None
    for odd in (b'{"user_id": "u"}', ['{"user_id": "u"}'], [{"user_id": "u"}], 7, True):
        assert said(USER, [("metadata", odd)]) is None
    assert said(USER, [("metadata", {"k" * 400: "x", "user_id": "u"})]) == "u"


def test_maps_in_unusual_forms() -> None:
    """
    Scenario: `metadata` as a map behind a text in one value, which counts for protobuf alone; with
    fields that nobody knows in the map; cut off.
    Guarantees: read in the one form that encoders write, else left alone; never beyond its end.
    """
    pair = wire.chunk(1, b"user_id") + wire.chunk(2, wire.chunk(1, b"u"))
    members = wire.chunk(6, wire.chunk(1, pair))
    for value, user in (
        (members, "u"),
        (wire.chunk(6, wire.number(9, 1) + wire.chunk(1, pair)), "u"),
        (members + members, None),
        (wire.chunk(1, b"x") + members, None),
        (wire.chunk(6, b""), None),
    ):
        attribute = wire.chunk(1, b"metadata") + wire.chunk(2, value)
        body = one_span(wire.chunk(9, attribute), *IDS)
        (row,) = scan(body, KEYS).rows
        assert text_of(body, row, USER) == user


def test_metadata() -> None:
    """
    Scenario: identities inside of the JSON object in `metadata`.
    Guarantees: taken from its members, also from numbers; not from nested ones, not from what is no
    object; a key of its own comes first.
    """
    document = {"nested": {"user_id": "in"}, "lc_agent_name": "a", "user_id": 42, "thread_id": None}
    for indent in (None, 2):
        pairs: Pairs = [("metadata", json.dumps(document, indent=indent))]
        assert said(AGENT, pairs) == "a"
        assert said(USER, pairs) == "42"
        assert said(SESSION, pairs) is None
        assert said(USER, [*pairs, ("user.id", "own")]) == "own"
    for odd in ('["user_id"]', '"user_id"', '{"user_id" "u"}', '{"user_id":', "{", "", "u"):
        assert said(USER, [("metadata", odd)]) is None
    assert said(USER, [("metadata", '{"user_id":"u"}')]) == "u"
    assert said(USER, [("metadata", '{"user_id":"u","cut')]) == "u"


NAMES = st.text(max_size=6)
DOCUMENTS = st.dictionaries(
    NAMES,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)


def members(text: str) -> list[tuple[str, str | None]]:
    """Names and texts as the kernel reads them."""
    data = np.frombuffer(text.encode(), np.uint8)
    found: list[tuple[str, str | None]] = []
    at, separator = np.int64(0), OPENING
    while True:
        key, key_end, kind, value, length, at = read_member(
            data, at, np.int64(data.size), separator
        )
        if at < 0:
            return found
        assert 0 <= key <= key_end <= at <= data.size
        assert value + length <= data.size
        said_here = bytes(data[value : value + length]).decode() if kind == STRING else None
        found.append((bytes(data[key:key_end]).decode(), said_here))
        separator = COMMA


@given(DOCUMENTS, st.sampled_from((None, 1)), st.booleans())
def test_members_of_json(
    document: dict[str, Any],
    indent: int | None,
    ascii_only: bool,  # noqa: FBT001 - drawn, not passed.
) -> None:
    """
    Scenario: any JSON object, written in several ways.
    Guarantees: each member with its name and its text as spelled; nested ones stepped over.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    expected = []
    for name, value in document.items():
        spelled = json.dumps(value, ensure_ascii=ascii_only)
        if isinstance(value, str):
            spelled = spelled[1:-1]
        has_text = value is not None and not isinstance(value, dict | list)
        key = json.dumps(name, ensure_ascii=ascii_only)[1:-1]
        expected.append((key, spelled if has_text else None))
    assert members(text) == expected


@given(st.text(alphabet='{}[]",:\\ \nnatx\u00e9', max_size=40))
def test_members_of_anything(text: str) -> None:
    """
    Scenario: any text that looks a little like JSON.
    Guarantees: read as far as the twin reads it, and never beyond its end.
    """
    told = [(name, value) for name, value in members(text) if value]
    assert told == [(name, value) for name, value in naive_recognition.members(text)]
