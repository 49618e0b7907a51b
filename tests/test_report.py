"""Reports: judgements in words, true to the numbers."""

from __future__ import annotations

import itertools

from otel_anomaly.entities.names import Caller
from otel_anomaly.report import Call, Finding, episode_id
from tests.book_rigs import LOW_LIMITS, BookRig, at
from tests.traffic import Agent

BOTH = LOW_LIMITS | {
    "rate": {"warn": 2, "block": 4},
    "rate_shift": {"enabled": True, "min_calls_second": 3, "min_calls_minute": 3, "ceiling": 3},
}


def test_a_quiet_call() -> None:
    """
    Scenario: one call, which failed, far below every limit.
    Guarantees: who, which tool, which span, when and that it failed; allowed, no score, no types.
    """
    rig = BookRig()
    agent = Agent("support", session="s", user="u", tenant="t")
    span = agent.call(at(0), "get_customer", error=True)
    assert rig.send(span) == []
    assert rig.findings == []
    assert rig.calls == [
        Call(
            who=Caller("t", "support", "s", "u", None),
            tool="get_customer",
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            time_ns=at(0),
            error=True,
            arguments=None,
            signal="traces",
            identity="agent=gen_ai.agent.name, session=gen_ai.conversation.id, rate=session,"
            " tenant=tenant.id, user=user.id",
            action="allow",
            would_be="allow",
            mode="active",
            score=0.0,
            types=(),
        )
    ]


def test_findings_of_two_detectors() -> None:
    """
    Scenario: four calls in a second, over the limits of both detectors.
    Guarantees: each finding has its own numbers, entity and clause; the call has the strongest
    action, the highest score and both types.
    """
    rig = BookRig(detectors=BOTH)
    agent = Agent("a", session="s")
    rig.send(*(agent.call(at(i / 10)) for i in range(4)))
    last = rig.calls[-1]
    assert (last.action, last.score, last.types) == ("block", 1.0, ("rate", "rate_shift"))
    assert [call.types for call in rig.calls[:2]] == [(), ("rate",)]
    by_rate, by_shift = rig.findings[-2:]
    assert by_rate == Finding(
        detector="rate",
        action="block",
        would_be="block",
        score=1.0,
        observed=4.0,
        limit=4.0,
        usual=0.0,
        window_s=60.0,
        entity="session:s",
        reason="rate: 4 calls in 60 s, limit 4",
    )
    assert (by_shift.detector, by_shift.action, by_shift.entity) == (
        "rate_shift",
        "pause",
        "agent:a",
    )
    assert (by_shift.observed, by_shift.limit, by_shift.window_s) == (4, 3, 60)
    assert by_shift.score == 1 - 3 / 8
    assert by_shift.reason == "rate_shift: 4 calls in 60 s, ceiling 3 whatever is usual"


def test_a_reporter_keeps_nothing() -> None:
    """
    Scenario: a long reason is told, then a short one, by the same reporter.
    Guarantees: nothing of the first is left in the second.
    """
    rig = BookRig(detectors=BOTH)
    agent, other = Agent("a", session="s"), Agent("b", session="o")
    rig.send(*(agent.call(at(0)) for _ in range(4)))
    rig.send(*(other.call(at(0)) for _ in range(2)))
    assert rig.findings[-2].reason == "rate_shift: 4 calls in 60 s, ceiling 3 whatever is usual"
    assert rig.findings[-1].reason == "rate: 2 calls in 60 s, limit 2"


def test_episode_ids_are_framed() -> None:
    """
    Scenario: the parts of an id run into one another in every way, or are absent.
    Guarantees: each combination has an id of its own, sixteen hex digits, and always the same.
    """
    texts = ("", "a", "1:a", "a1:", "aa")
    ids = set()
    for entity, tenant, agent in itertools.product(texts, repeat=3):
        name = episode_id("rate", entity, Caller(tenant, agent, None, None, None), 1)
        assert len(name) == 16
        ids.add(name)
    assert len(ids) == len(texts) ** 3
    nobody = Caller(None, None, None, None, None)
    assert episode_id("rate", "anon", nobody, 7) == "9dd15b609a9ed2f4"
