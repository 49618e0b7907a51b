"""Who made a call: which word counts, and who shares a row with whom."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope

from otel_anomaly.entities.identity import NAMES_OF_KINDS
from otel_anomaly.entities.names import TEXT_BYTES_MAX, Caller
from tests.rig import Calls, Rig
from tests.traffic import attributes, request

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

AGENT_KEY, WEAK_KEY = "gen_ai.agent.name", "service.name"
TRACE = b"sixteen bytes id"


def rate_of(rig: Rig, span: Span) -> int:
    """How many calls are counted by the key of this call, itself included."""
    rig.send([span])
    return int(rig.sign("rate")["observed"])


def nobody(calls: Calls, **who: Any) -> Span:
    """A call that says nothing of who made it but what is given."""
    return calls.at(100, **{"agent": None, "session": None, **who})


PLACES = ("span", "resource", "scope", "trace", "weak")


@pytest.mark.parametrize("best", range(len(PLACES)))
def test_preference(best: int) -> None:
    """
    Scenario: the agent is named on span, resource, scope, by another span of the trace and by the
    weak key, each differently; the better places are emptied one after the other.
    Guarantees: span before resource before scope before trace before weak key.
    """
    there = PLACES[best:]
    calls = Calls()
    call = nobody(calls, trace_id=TRACE, agent="span" if "span" in there else None)
    other = calls.at(90, agent="trace", session=None, trace_id=TRACE)
    message = [call, other] if "trace" in there else [call]
    resource = [(WEAK_KEY, "weak")]
    if "resource" in there:
        resource.append((AGENT_KEY, "resource"))
    rig = Rig()
    body = with_scope(message, resource, [(AGENT_KEY, "scope")] if "scope" in there else [])
    rig.send(body)
    assert rig.callers[0].agent == PLACES[best]


def with_scope(
    spans: list[Span], resource: list[tuple[str, str]], scope: list[tuple[str, str]]
) -> bytes:
    named = InstrumentationScope(name="agents", attributes=attributes(scope))
    return request(spans, resource=resource, scope=named)


def test_keys_in_order_of_preference() -> None:
    """
    Scenario: a resource with the agent's best key, a span with a lesser one; then a span with both.
    Guarantees: a place beats a key, and in one place the better key counts.
    """
    rig, calls = Rig(), Calls()
    lesser = [("gen_ai.main_agent.name", "by-role")]
    rig.send([nobody(calls, extra=lesser)], resource=[(AGENT_KEY, "by-name")])
    rig.send([calls.at(100, agent="by-name", extra=lesser)])
    assert [caller.agent for caller in rig.callers] == ["by-role", "by-name"]


@pytest.mark.parametrize("name", ["acme", "", "x" * 200])
def test_one_name_in_every_role_shares_nothing(name: str) -> None:
    """
    Scenario: a session, a user, a tenant and an agent of the same name, each added up on its own.
    Guarantees: four counters of one call each; a session named like a tenant is not that tenant.
    A call without a session has a row for its trace beside the one it is added up in.
    """
    rig, calls = Rig(), Calls()
    roles = ("session", "user", "tenant", "agent")
    assert [rate_of(rig, nobody(calls, **{role: name or None})) for role in roles] == (
        [1, 1, 1, 1] if name else [1, 2, 3, 4]
    )
    assert rig.counts("entities", "session") == (4 + 3 if name else 1 + 4)


def test_everything_is_inside_its_tenant() -> None:
    """
    Scenario: the same session, user and agent names in tenant A, in tenant B and in none.
    Guarantees: three of each; within a tenant they add up.
    """
    rig, calls = Rig(), Calls()
    for tenant, role in itertools.product(("A", "B", None), ("session", "user")):
        assert rate_of(rig, nobody(calls, tenant=tenant, **{role: "one"})) == 1
        assert rate_of(rig, nobody(calls, tenant=tenant, **{role: "one"})) == 2
    for tenant in ("A", "B", None):
        rig.send([calls.at(100, tenant=tenant, agent="one")])
    assert rig.counts("entities", "agent") == 3


def test_agents_do_not_split_a_session() -> None:
    """
    Scenario: two agents take turns in one session.
    Guarantees: the session's calls are added up; each agent has a past of its own.
    """
    rig, calls = Rig(), Calls()
    rates = [rate_of(rig, calls.at(100, agent=agent)) for agent in ("a", "b", "a")]
    assert rates == [1, 2, 3]
    assert rig.counts("entities", "agent") == 2


FALLBACKS: tuple[tuple[str, dict[str, str], str], ...] = (
    ("session", {"session": "x", "user": "x", "tenant": "x", "agent": "x"}, "session"),
    ("session", {"user": "x", "tenant": "x", "agent": "x"}, "user"),
    ("session", {"tenant": "x", "agent": "x"}, "tenant"),
    ("session", {"agent": "x"}, "anon"),
    ("session", {}, "anon"),
    ("user", {"session": "x", "user": "x"}, "user"),
    ("user", {"session": "x", "tenant": "x"}, "tenant"),
    ("agent", {"session": "x", "user": "x", "agent": "x"}, "agent"),
    ("agent", {"session": "x", "user": "x"}, "anon"),
    ("agent", {"session": "x", "user": "x", "tenant": "x"}, "tenant"),
    ("tenant", {"session": "x", "user": "x", "tenant": "x", "agent": "x"}, "tenant"),
    ("tenant", {"session": "x", "user": "x"}, "anon"),
)


@pytest.mark.parametrize(("scope", "who", "kind"), FALLBACKS)
def test_what_stands_in_for_a_scope(scope: str, who: dict[str, str], kind: str) -> None:
    """
    Scenario: calls with less and less said of who made them, under each scope of `rate`.
    Guarantees: a session falls back to the user, the tenant, then `anon`; other scopes to the
    tenant, then `anon`. Never to something narrower than was asked for.
    """
    rig, calls = Rig(rate={"scope": scope}), Calls()
    rig.send([nobody(calls, **who)])
    assert NAMES_OF_KINDS[rig.processor._scratch.verdicts[0]["person"]["rate_kind"]] == kind


def test_who_says_nothing_is_kept_apart_by_agent() -> None:
    """
    Scenario: two agents without session and user, in a tenant and in none; then by tenant.
    Guarantees: they are not added up into one rate; scope `tenant` adds them up, as asked.
    """
    for tenant in ("T", None):
        rig, calls = Rig(), Calls()
        who = [{"agent": agent, "tenant": tenant} for agent in ("a", "b", "a", None)]
        assert [rate_of(rig, nobody(calls, **one)) for one in who] == [1, 1, 2, 1]
    rig, calls = Rig(rate={"scope": "tenant"}), Calls()
    assert [rate_of(rig, nobody(calls, agent=name, tenant="T")) for name in "abc"] == [1, 2, 3]


def test_numbers_are_names() -> None:
    """
    Scenario: sessions 42, "42", true, "true", -1 and "-1", as ints, bools and strings.
    Guarantees: a number is the text that a person would write: three sessions of two calls.
    """
    rig, calls = Rig(), Calls()
    for value in (42, "42", True, "true", -1, "-1"):
        rig.send([nobody(calls, extra=[("session.id", value)])])
    assert [caller.session for caller in rig.callers] == ["42"] * 2 + ["true"] * 2 + ["-1"] * 2
    assert rig.counts("entities", "session") == 3


@pytest.mark.parametrize("value", ["", None, 1.5, b"bytes", ["list"], {"k": "v"}])
def test_values_that_name_nobody(value: Any) -> None:
    """
    Scenario: a session that is empty, or of a type that is no name, above a resource that has one.
    Guarantees: it counts as absent: the resource's word is taken.
    """
    rig, calls = Rig(), Calls()
    rig.send([nobody(calls, extra=[("session.id", value)])], resource=[("session.id", "real")])
    assert rig.callers[0].session == "real"


def test_names_of_a_mebibyte() -> None:
    """
    Scenario: two sessions whose names are a MiB long and differ in the last byte, one of them
    twice; one such name for a whole trace.
    Guarantees: all of a name counts, little of it is told; nothing fails.
    """
    rig, calls = Rig(), Calls()
    long = "s" * (1 << 20)
    rates = [rate_of(rig, nobody(calls, session=long + end)) for end in "aba"]
    assert rates == [1, 1, 2]
    assert rig.callers[0].session == "s" * TEXT_BYTES_MAX + "..."
    rig.send([calls.at(1, agent=long, session=None, trace_id=TRACE), nobody(calls, trace_id=TRACE)])
    assert rig.counts("entities", "agent") == 1
    assert (rig.callers[-1].agent or "").startswith("sss")


def test_names_cut_inside_a_character() -> None:
    """
    Scenario: a name of three-byte characters, longer than what is told and what a trace keeps.
    Guarantees: the text is cut between characters.
    """
    rig, calls = Rig(), Calls()
    name = "\u20ac" * 200
    rig.send([calls.at(1, agent=name, session=None, trace_id=TRACE), nobody(calls, trace_id=TRACE)])
    for caller in rig.callers:
        assert name.startswith((caller.agent or "").removesuffix("..."))
        assert len(caller.agent or "") > 20


def test_the_earliest_span_speaks_for_the_trace() -> None:
    """
    Scenario: spans of a trace name the agent differently; the earliest comes last, and once more
    with an even later start.
    Guarantees: from its arrival on, the word of the span that started first counts.
    """
    rig, calls = Rig(), Calls()
    for start_ns, agent in ((50, "second"), (70, "third"), (30, "first"), (90, "fourth")):
        hint = calls.at(100, agent=agent, session=None, trace_id=TRACE, start_ns=start_ns)
        rig.send([hint, nobody(calls, trace_id=TRACE)])
    assert [caller.agent for caller in rig.callers[1::2]] == ["second", "second", "first", "first"]


def test_each_identity_of_a_trace_is_borrowed_on_its_own() -> None:
    """
    Scenario: a chat span names the user, an agent span the agent, a third the tenant; a call of
    the same trace names its session; a call of another trace nothing.
    Guarantees: the call is whole; the other trace borrows nothing.
    """
    rig, calls = Rig(), Calls()
    parts = [{"user": "u"}, {"agent": "a"}, {"tenant": "t"}]
    spans = [nobody(calls, trace_id=TRACE, **part) for part in parts]
    for span in spans:
        span.attributes[0].value.string_value = "chat"
    rig.send([nobody(calls, trace_id=TRACE, session="s"), *spans, nobody(calls)])
    assert rig.callers == [Caller("t", "a", "s", "u", None), Caller(None, None, None, None, None)]


def test_more_traces_than_are_remembered() -> None:
    """
    Scenario: memory for two traces; three name their agent, then each sends a call without one.
    Guarantees: the oldest trace is forgotten and counted, the younger ones are not.
    """
    rig, calls = Rig(limits={"traces": 2}), Calls()
    traces = [bytes([number]) * 16 for number in (1, 2, 3)]
    for number, trace_id in enumerate(traces):
        rig.send([calls.at(100 + number, agent=f"a{number}", trace_id=trace_id)])
    assert rig.counts("entities_evicted", "trace") == 1
    rig.callers.clear()
    for trace_id in reversed(traces):
        rig.send([nobody(calls, trace_id=trace_id)])
    assert [caller.agent for caller in rig.callers] == ["a2", "a1", None]


def test_a_clock_that_steps_back_costs_only_what_traces_say() -> None:
    """
    Scenario: memory for one trace is in use; the arrival clock steps back an hour, and a call of
    another trace comes, whose agent a second span names.
    Guarantees: the new trace is not remembered, and counted as such with each of its spans; its
    calls are judged all the same, by what they say themselves.
    """
    rig, calls = Rig(limits={"traces": 1}), Calls()
    rig.send([calls.at(5000)], 5000 * 10**9)
    named = calls.at(1000, agent="known", trace_id=TRACE)
    verdicts = rig.send([named, nobody(calls, trace_id=TRACE)], 1000 * 10**9)
    assert [verdict.action for verdict in verdicts] == ["allow", "allow"]
    assert [caller.agent for caller in rig.callers[1:]] == ["known", None]
    assert rig.counts("entities_overflow", "trace") == 2


def test_more_entities_than_rows() -> None:
    """
    Scenario: two agents and two sessions fit; a third of each comes while they are at work.
    Guarantees: its calls pass as normal, are not judged by those detectors, and are counted.
    """
    rig, calls = Rig(limits={"agents": 2, "sessions": 2}, rate={"warn": 3, "block": 4}), Calls()
    for name in ("x", "y"):
        rig.send(calls.many(2, 100, agent=name, session=name))
    verdicts = rig.send(calls.many(9, 101, agent="z", session="z"))
    assert {verdict.action for verdict in verdicts} == {"allow"}
    assert rig.counts("detector_skipped", "rate", "no_entity") == 9
    assert rig.counts("detector_skipped", "rate_shift", "no_entity") == 9
    assert rig.counts("entities_overflow", "session") == 9
    assert rig.counts("entities_overflow", "agent") == 9
    (verdict,) = rig.send([calls.at(102, agent="x", session="x")])
    assert verdict.action == "warn"
