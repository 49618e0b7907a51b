"""Acceptance cases of the three systems this one replaces, by the ids the issue tracker uses.

G: the hard limit per session (warn 100, block 500 unless said). A, B: the spike of an agent against
its own past. Where a case counts in steps of n, n single calls are made.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import RateConfig
from otel_anomaly.detectors import rate
from otel_anomaly.detectors.finding import ALLOW, SECOND_NS, SIGN
from tests.habits import fork
from tests.rig import Calls, Rig

NO_SHIFT = {"enabled": False}
FRESH = True


def limits_only(**rate_config: int) -> Rig:
    """A service that judges by the hard limits alone."""
    return Rig(rate=rate_config, shift=NO_SHIFT)


def total(rig: Rig) -> int:
    """The count that the last call was judged by."""
    return int(rig.sign("rate")["observed"])


def look(rig: Rig, calls: Calls, time_s: float) -> tuple[str, int]:
    """Action and total at a time, and no call added: it is made in a copy of the service."""
    twin = fork(rig)
    (verdict,) = twin.send([calls.at(time_s)])
    return verdict.action, total(twin) - 1


def test_g1() -> None:
    """
    Scenario: 50 calls.
    Guarantees: Allow, total 50.
    """
    rig = limits_only()
    verdicts = rig.send(Calls().many(50, 1000))
    assert {verdict.action for verdict in verdicts} == {"allow"}
    assert total(rig) == 50


def test_g2() -> None:
    """
    Scenario: 200 single calls.
    Guarantees: Warn at the end, total 200, never Block.
    """
    rig = limits_only()
    verdicts = rig.send(Calls().many(200, 1000, 0.01))
    assert [verdict.action for verdict in verdicts] == ["allow"] * 99 + ["warn"] * 101
    assert total(rig) == 200


def test_g3() -> None:
    """
    Scenario: 600 single calls of one session within a minute.
    Guarantees: the 100th is the first Warn, the 500th the first Block, the last is Block.
    """
    verdicts = limits_only().send(Calls().many(600, 1000, 0.09))
    actions = [verdict.action for verdict in verdicts]
    assert actions == ["allow"] * 99 + ["warn"] * 400 + ["block"] * 101


def test_g4() -> None:
    """
    Scenario: 200 calls at second 5; looked at in second 5 and in second 75.
    Guarantees: Warn; then Allow.
    """
    rig, calls = limits_only(), Calls()
    rig.send(calls.many(200, 5))
    assert look(rig, calls, 5) == ("warn", 200)
    assert look(rig, calls, 75) == ("allow", 0)


def test_g5() -> None:
    """
    Scenario: 60 calls at second 0, 60 at second 30; looked at in seconds 30 and 65.
    Guarantees: Warn with 120; then Allow with exactly 60.
    """
    rig, calls = limits_only(), Calls()
    rig.send(calls.many(60, 600) + calls.many(60, 630))
    assert look(rig, calls, 630) == ("warn", 120)
    assert look(rig, calls, 665) == ("allow", 60)


def test_g6() -> None:
    """
    Scenario: 120 calls of session a; one of session b.
    Guarantees: a is at Warn, b at Allow.
    """
    rig, calls = limits_only(), Calls()
    verdicts = rig.send([*calls.many(120, 1000, session="a"), calls.at(1000, session="b")])
    assert [verdict.action for verdict in verdicts[-2:]] == ["warn", "allow"]


def test_g7() -> None:
    """
    Scenario: 120 calls; everything remembered of the session is dropped; one call.
    Guarantees: Warn before, Allow after, with a total of 1.
    """
    rig, calls = limits_only(), Calls()
    assert rig.send(calls.many(120, 1000))[-1].action == "warn"
    rig.processor.sweep(1000 * SECOND_NS + rig.config.identity.limits.session_idle + 1)
    assert rig.send([calls.at(1000)])[0].action == "allow"
    assert total(rig) == 1


def test_g8() -> None:
    """
    Scenario: a session is idle for 120 s, which is more than it may be; the table is swept.
    Guarantees: its row is gone.
    """
    rig = Rig(limits={"session_idle": "100s"})
    rig.send([Calls().at(1000)])
    assert rig.counts("entities", "session") == 1
    rig.processor.sweep(1100 * SECOND_NS)
    assert rig.counts("entities", "session") == 1
    rig.processor.sweep(1120 * SECOND_NS)
    assert rig.counts("entities", "session") == 0


def test_g9() -> None:
    """
    Scenario: a request with two tool spans and a chat span, one with a tool span, one with none.
    Guarantees: 2, 3, 3: a call is one span, its result is part of it.
    """
    rig, calls = limits_only(), Calls()
    chat = [calls.at(1000), calls.at(1000)]
    for span in chat:
        span.attributes[0].value.string_value = "chat"
    totals = []
    for spans in ([*calls.many(2, 1000), chat[0]], [calls.at(1000, result="ok")], [chat[1]]):
        rig.send(spans)
        totals.append(total(rig))
    assert totals == [2, 3, 3]


@pytest.mark.parametrize(
    ("who", "same_as"),
    [
        ({"tenant": "T"}, {"tenant": "T"}),
        ({}, {}),
        ({"session": "S", "user": "U"}, {"session": "S"}),
        ({"user": "U"}, {"user": "U"}),
        ({"session": "", "user": "U"}, {"user": "U"}),
    ],
    ids=["tenant", "anon", "session", "user", "empty session"],
)
def test_g10(who: dict[str, str], same_as: dict[str, str]) -> None:
    """
    Scenario: a tenant alone; nothing; session and user; user alone; an empty session and a user.
    Guarantees: counted by tenant, anon, session, user, user, and by nothing else.
    """
    rig, calls = limits_only(), Calls()
    kinds: tuple[dict[str, str], ...] = ({"tenant": "T"}, {}, {"session": "S"}, {"user": "U"})
    nobody: dict[str, Any] = {"agent": None, "session": None}
    for kind in kinds:
        rig.send([calls.at(1000, **{**nobody, **kind})])
    rig.send([calls.at(1000, **{**nobody, **who})])
    assert total(rig) == 2
    rig.send([calls.at(1000, **{**nobody, **same_as})])
    assert total(rig) == 3


def test_g11() -> None:
    """
    Scenario: both limits 0; 100000 calls within a second; 300 through the whole service.
    Guarantees: Allow.
    """
    plan, state = rate.make_plan(RateConfig(warn=0, block=0)), rate.make_state(1)[1]
    sign = np.zeros(1, SIGN)[0]
    state["head"], state["total"] = 100, 99_999
    rate.score(state, plan[0], 100 * SECOND_NS, FRESH, sign)
    assert (sign["observed"], sign["action"], sign["score"]) == (100_000, ALLOW, 0)
    verdicts = limits_only(warn=0, block=0).send(Calls().many(300, 1000))
    assert {verdict.action for verdict in verdicts} == {"allow"}


def test_g12() -> None:
    """
    Scenario: warn 100, block 0, 1000 calls.
    Guarantees: Warn, never Block.
    """
    verdicts = limits_only(warn=100, block=0).send(Calls().many(1000, 1000))
    assert [verdict.action for verdict in verdicts] == ["allow"] * 99 + ["warn"] * 901


def test_g13() -> None:
    """
    Scenario: warn 10, block 20: 5 calls, 7 more, 9 more.
    Guarantees: Allow, Warn, Block.
    """
    rig, calls = limits_only(warn=10, block=20), Calls()
    ends = [rig.send(calls.many(count, 1000))[-1].action for count in (5, 7, 9)]
    assert ends == ["allow", "warn", "block"]


def test_g14() -> None:
    """
    Scenario: warn 5, block 10, two tenants without other ids: 10 calls of A, 4 of B.
    Guarantees: A at Block with 10, B at Allow with 4.
    """
    rig, calls = limits_only(warn=5, block=10), Calls()
    nobody: dict[str, Any] = {"agent": None, "session": None}
    assert rig.send(calls.many(10, 1000, tenant="A", **nobody))[-1].action == "block"
    assert total(rig) == 10
    assert rig.send(calls.many(4, 1000, tenant="B", **nobody))[-1].action == "allow"
    assert total(rig) == 4


def test_g15() -> None:
    """
    Scenario: the call that reaches block.
    Guarantees: action block with score 1, the type `rate`, a reason that names the spike, its
    limit and its window.
    """
    verdict = limits_only().send(Calls().many(500, 1000))[-1]
    assert (verdict.action, verdict.score, verdict.types) == ("block", 1.0, ("rate",))
    assert verdict.reason == "rate: 500 calls in 60 s, limit 500"


def spike(past: int, burst: int, burst_s: float, **shift: float) -> tuple[int, list[str]]:
    """Calls a second apart from second 1 on, then a burst, one millisecond apart.

    Returns how many of the first were not allowed, and the actions of the burst.
    """
    rig, calls = Rig(shift=shift, rate={"enabled": False}), Calls()
    before = rig.send(calls.many(past, 1, 1))
    after = rig.send(calls.many(burst, burst_s, 0.001)) if burst else []
    for verdict in after:
        if verdict.action != "allow":
            assert verdict.types == ("rate_shift",)
            assert re.search(r"limit [0-9.]+, usual [0-9.]+$", verdict.reason or "")
    return (
        sum(verdict.action != "allow" for verdict in before),
        [verdict.action for verdict in after],
    )


def test_a1() -> None:
    """
    Scenario: k 2.0; ten calls a second apart from 1 s on, 200 within a second at 11 s.
    Guarantees: a spike, Pause.
    """
    quiet, burst = spike(10, 200, 11, k=2.0)
    assert quiet == 0
    assert burst[-1] == "pause"


def test_a2() -> None:
    """
    Scenario: defaults, ten calls a second apart.
    Guarantees: no spike.
    """
    assert spike(10, 0, 0) == (0, [])


def test_a3() -> None:
    """
    Scenario: defaults, 100 calls a second apart; then 200 within 200 ms from 101 s on.
    Guarantees: none; then a spike, Pause, and the text names the limit.
    """
    quiet, burst = spike(100, 200, 101)
    assert quiet == 0
    assert burst == ["allow"] * 29 + ["pause"] * 171


def test_a4() -> None:
    """
    Scenario: defaults, 120 calls a second apart.
    Guarantees: none.
    """
    assert spike(120, 0, 0) == (0, [])


def test_b1() -> None:
    """
    Scenario: a window of 10 s; calls at 1 s, 5 s and 12 s.
    Guarantees: two are kept.
    """
    rig, calls = Rig(rate={"window": "10s"}), Calls()
    rig.send([calls.at(time_s) for time_s in (1, 5, 12)])
    assert total(rig) == 2


def test_b4() -> None:
    """
    Scenario: 120 calls 100 ms apart, then a burst.
    Guarantees: the usual of a second is 10, and its scale is that of a count of 10, not more: with
    k 10 the limit is 10 + 10 * sqrt(10). (The case as it was written asks for a mean of 10 and a
    deviation below 2; median and floored MAD take their places here.)
    """
    rig, calls = Rig(rate={"enabled": False}, shift={"k": 10, "ceiling": 0}), Calls()
    rig.send(calls.many(120, 1000, 0.1))
    verdict = rig.send(calls.many(60, 1012))[-1]
    assert verdict.reason == "rate_shift: 60 calls in 1 s, limit 41.62, usual 10"


def test_b5() -> None:
    """
    Scenario: ten calls within 10 ms and one 12 s later, then a burst.
    Guarantees: usual 0 with a scale of 1: one dense second is no baseline. With k 50 the limit is
    50. (The case as it was written asks for a mean above 0 and a deviation above 1.)
    """
    rig, calls = Rig(rate={"enabled": False}, shift={"k": 50}), Calls()
    rig.send([*calls.many(10, 1000, 0.001), calls.at(1012)])
    verdicts = rig.send(calls.many(50, 1012.5, 0.001))
    assert [verdict.action for verdict in verdicts[:48]] == ["allow"] * 48
    assert verdicts[48].reason == "rate_shift: 50 calls in 1 s, limit 50, usual 0"
