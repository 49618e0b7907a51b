"""The defects listed of the systems this one replaces, each shown to be absent.

`grob`: a hard rate limit per session. `assembly`: a spike of an agent against its own past.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.handoff import Outcome
from tests.rig import Calls, Rig
from tests.sizes import scaled
from tests.traffic import request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.rig import Verdict

NO_RATE: dict[str, Any] = {"rate": {"enabled": False}}
NO_SHIFT: dict[str, Any] = {"shift": {"enabled": False}}


def actions(verdicts: Iterable[Verdict]) -> Counter[str]:
    return Counter(verdict.action for verdict in verdicts)


def test_grob_01_history_sent_again_is_not_counted_again() -> None:
    """
    Scenario: 22 round trips in a minute; each request carries all calls made so far.
    Guarantees: 22 calls are counted, not 253 (or 506 with the results), and nothing warns.
    """
    rig, calls = Rig(), Calls()
    spans = calls.many(22, 1000, 2)
    for turn in range(1, 23):
        assert actions(rig.send(spans[:turn])) == {"allow": turn}
    assert rig.sign("rate")["observed"] == 22
    assert rig.counts("duplicates") == 22 * 21 // 2


def test_grob_02_a_call_and_its_result_are_one() -> None:
    """
    Scenario: 50 calls, each span with its arguments and its result.
    Guarantees: 50 are counted.
    """
    rig, calls = Rig(), Calls()
    rig.send([calls.at(1000, arguments='{"id": 1}', result="done", call_id="c") for _ in range(50)])
    assert rig.sign("rate")["observed"] == 50


def test_grob_03_a_busy_agent_has_a_past_of_its_own() -> None:
    """
    Scenario: without hard limits, one agent at 40 calls a second and one at 1 a second; then both
    make 60 in one second.
    Guarantees: for the busy one this is normal, for the quiet one a shift. (And one past its
    ceiling is never normal: assembly 5.)
    """
    rig, calls = Rig(shift={"min_calls_minute": 60000, "ceiling": 0}, **NO_RATE), Calls()
    for agent, pace in (("busy", 40), ("quiet", 1)):
        past = calls.many(12 * pace, 1000, 1 / pace, agent=agent)
        assert set(actions(rig.send(past))) == {"allow"}
    assert set(actions(rig.send(calls.many(60, 1012, agent="busy")))) == {"allow"}
    assert actions(rig.send(calls.many(60, 1012, agent="quiet"))) == {"allow": 29, "pause": 31}


def test_grob_04_keys_are_typed_and_scoped() -> None:
    """
    Scenario: a tenant, a session of it, a session of another tenant, a user and an agent all named
    `acme`, 60 calls each.
    Guarantees: none reaches 100: nobody shares a counter.
    """
    rig, calls = Rig(), Calls()
    nobody: dict[str, Any] = {"agent": None, "session": None}
    everybody: list[dict[str, Any]] = [
        {"tenant": "acme"},
        {"tenant": "acme", "session": "acme"},
        {"tenant": "other", "session": "acme"},
        {"session": "acme"},
        {"user": "acme"},
        {"agent": "acme"},
    ]
    for who in everybody:
        assert actions(rig.send(calls.many(60, 1000, **{**nobody, **who}))) == {"allow": 60}


def test_grob_05_a_client_that_sends_again_is_not_punished() -> None:
    """
    Scenario: a session at its block limit; requests refused by full queues and copies of old calls
    keep coming for a minute; then it makes a call again.
    Guarantees: what was refused or came twice did not count: the call is allowed.
    """
    rig, calls = Rig(rate={"warn": 5, "block": 10}, **NO_SHIFT), Calls()
    spans = calls.many(10, 1000)
    assert rig.send(spans)[-1].action == "block"
    for second in range(1, 61):
        rig.room.script = [Outcome.QUEUE_FULL]
        body = request(calls.many(20, 1000 + second), scope=None)
        reply = rig.offer(body)
        assert (reply.outcome, reply.retry_after_s) == (Outcome.QUEUE_FULL, 2.5)
        rig.send(spans)
    (verdict,) = rig.send([calls.at(1060)])
    assert verdict.action == "allow"
    assert rig.sign("rate")["observed"] == 1


def test_grob_05_the_clear_level_is_below_the_trip_level() -> None:
    """
    Scenario: a session crosses its line of 5 in 10 s up and down for five minutes, never below 4,
    which is 0.8 of it; then it calls every five seconds; then it crosses the line again.
    Guarantees: the crossings are one episode; it ends when the session was below the clear level
    for the hold time; the next crossing starts another.
    """
    rate = {"window": "10s", "warn": 5, "block": 100}
    rig, calls = Rig(rate=rate, alerts={"hold": "20s"}, **NO_SHIFT), Calls()
    hovering = [1000 + 25 * i + s for i in range(12) for s in (0, 2, 4, 6, 8, 10, 13, 16, 19, 22)]
    found = [verdict.action for verdict in rig.send([calls.at(at) for at in hovering])]
    assert sum(a + b == "allowwarn" for a, b in itertools.pairwise(found)) == 12
    assert rig.steps() == [("start", "rate")]
    rig.send(calls.many(6, 1310, 5))
    assert rig.steps() == [("start", "rate"), ("end", "rate")]
    rig.send(calls.many(5, 1400))
    assert rig.steps()[2:] == [("start", "rate")]


def test_grob_06_one_episode_for_a_minute_above_the_line() -> None:
    """
    Scenario: a session makes ten calls a second for two minutes, then is quiet, then calls once.
    Guarantees: one start, one escalation from warn to block, one end; the end knows the peak, the
    highest score and how many calls were above the line.
    """
    rig, calls = Rig(rate={"warn": 100, "block": 300}, **NO_SHIFT), Calls()
    verdicts = rig.send(calls.many(1200, 1000, 0.1))
    above = sum(verdict.action != "allow" for verdict in verdicts)
    assert above == 1101
    rig.send([calls.at(2000)])
    assert rig.steps() == [("start", "rate"), ("escalate", "rate"), ("end", "rate")]
    _, _, (start_ns, last_ns, peak, score, count, action) = rig.told[-1].steps[0]  # type: ignore[union-attr]
    assert (start_ns, last_ns) == (1_009_900_000_000, 1_119_900_000_000)
    assert (peak, score, count, action) == (600, 1.0, above, 3)


def test_grob_06_an_episode_lasts_until_it_was_quiet_for_the_hold_time() -> None:
    """
    Scenario: a session above its line is quiet for exactly the hold time, then for a nanosecond
    more, and is above the line each time it comes back.
    Guarantees: the first pause is part of the episode, the second is the end of it.
    """
    rate = {"window": "1s", "warn": 2, "block": 9}
    rig, calls = Rig(rate=rate, alerts={"hold": "30s"}, **NO_SHIFT), Calls()
    for at in (1000, 1030):
        rig.send(calls.many(2, at))
    assert rig.steps() == [("start", "rate")]
    end_ns = 1060 * 10**9 + 1
    rig.send([calls.at(0, end_ns=end_ns), calls.at(0, end_ns=end_ns)])
    assert rig.steps() == [("start", "rate"), ("end", "rate"), ("start", "rate")]


def test_grob_07_a_client_that_rotates_its_session_is_seen() -> None:
    """
    Scenario: an agent makes 200 calls within a second, each in a session of its own; first with a
    past, then without one up to the ceiling; and under scope `tenant`.
    Guarantees: no session is above its limit, but the agent is; the ceiling needs no past; a limit
    for the tenant adds up all of its sessions.
    """
    calls = Calls()

    def rotating(count: int, start_s: float, step_s: float = 0.0) -> list[Any]:
        return [calls.at(start_s + i * step_s, session=f"s{i}", tenant="T") for i in range(count)]

    rig = Rig(rate={"warn": 2, "block": 3})
    rig.send(rotating(20, 1000, 1))
    verdicts = rig.send(rotating(200, 1300))
    assert {verdict.types for verdict in verdicts if verdict.action != "allow"} == {("rate_shift",)}
    assert actions(verdicts)["pause"] > 150
    newcomer = Rig(shift={"min_calls_minute": 100, "ceiling": 150})
    assert actions(newcomer.send(rotating(200, 1300))) == {"allow": 149, "pause": 51}
    tenant = Rig(rate={"scope": "tenant"}, **NO_SHIFT)
    assert actions(tenant.send(rotating(200, 1300))) == {"allow": 99, "warn": 101}


def test_grob_08_memory_is_bounded_and_eviction_counted() -> None:
    """
    Scenario: 300 sessions of 300 agents in as many seconds, where 16 of each fit, idle ones among
    them; and 300 at the same moment.
    Guarantees: never more than 16 rows; those that gave way and those that got none are counted.
    """
    limits = {"agents": 16, "sessions": 16, "traces": 16, "agent_keep": "5s", "session_keep": "5s"}
    rig, calls = Rig(limits=limits), Calls()
    for second in range(300):
        rig.send([calls.at(1000 + second, agent=f"a{second}", session=f"s{second}")])
    rig.send([calls.at(2000, agent=f"b{i}", session=f"t{i}") for i in range(300)])
    for scope in ("agent", "session"):
        assert rig.counts("entities", scope) == 16
        assert rig.counts("entities_evicted", scope) == 300
        assert rig.counts("entities_overflow", scope) == 284
    assert rig.counts("entities", "trace") == 16


def test_grob_09_no_name_is_a_label() -> None:
    """
    Scenario: calls of many sessions, agents, users and tenants, some of them above the line.
    Guarantees: no metric carries any of their names, and there are no more time series than before.
    """
    rig, calls = Rig(rate={"warn": 1, "block": 2}), Calls()
    before = rig.telemetry.render().count(b"\n")
    names = [f"zanzibar{i}" for i in range(20)]
    rig.send([calls.at(1000, agent=n, session=n, user=n, tenant=n, tool=n) for n in names])
    rig.send([calls.at(1000, agent=n, session=n, user=n, tenant=n, tool=n) for n in names])
    text = rig.telemetry.render()
    assert b"zanzibar" not in text
    assert b'findings_total{action="block",detector="rate"} 20.0' in text
    assert text.count(b"\n") <= before + 2  # The transport's counter, now that it is used.


def test_grob_10_the_total_told_is_the_total_judged() -> None:
    """
    Scenario: 120 calls in one request.
    Guarantees: the reason of each call tells the count that it was itself judged by.
    """
    verdicts = Rig(**NO_SHIFT).send(Calls().many(120, 1000))
    told = [verdict.reason for verdict in verdicts[99:]]
    assert told == [f"rate: {total} calls in 60 s, limit 100" for total in range(100, 121)]


def test_grob_11_the_time_is_that_of_the_call() -> None:
    """
    Scenario: 200 calls a second apart arrive all at once; 200 within a second arrive over an hour,
    each late by up to 50 s.
    Guarantees: the first never warn; the second do from the 100th on, whenever they arrive.
    """
    spread, dense, calls = Rig(**NO_SHIFT), Rig(**NO_SHIFT), Calls()
    now_ns = 10_000 * 10**9
    verdicts = spread.send(calls.many(200, 9800, 1), now_ns)
    assert actions(verdicts) == {"allow": 200}
    found = []
    for i, span in enumerate(calls.many(200, 9900)):
        found += dense.send(
            [calls.at(9900 + i % 50, session="other"), span], now_ns + i * 18 * 10**9
        )
    assert actions(found[1::2]) == {"allow": 99, "warn": 101}


def test_grob_12_nothing_depends_on_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the same requests with the machine's clocks as they are and with clocks that fail.
    Guarantees: the same bytes come out.
    """

    def fail(*_: object) -> float:
        raise AssertionError("a clock was read")

    def run(rig: Rig) -> list[bytes]:
        calls = Calls()
        for second in range(5):
            rig.send(calls.many(2, 1000 + second), (1001 + second) * 10**9)
        return [payload.body for payload in rig.room.payloads]

    first, second = Rig(rate={"warn": 2, "block": 3}), Rig(rate={"warn": 2, "block": 3})
    with_clocks = run(first)
    with monkeypatch.context() as patch:
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"):
            patch.setattr(time, name, fail)
        without_clocks = run(second)
    assert without_clocks == with_clocks


def burst_after(past: list[int], burst: int, **shift: Any) -> list[Verdict]:
    """Verdicts on `burst` calls within a second, after seconds of so many calls each."""
    rig, calls = Rig(shift={"ceiling": 0, "min_calls_minute": 65535, **shift}, **NO_RATE), Calls()
    for second, count in enumerate(past):
        verdicts = rig.send(calls.many(count, 1000 + second))
        assert set(actions(verdicts)) == {"allow"}
    return rig.send(calls.many(burst, 1000 + len(past)))


@pytest.mark.parametrize("k", [3.0, 3.32, 10.0, 100.0])
def test_assembly_01_every_multiplier_is_reachable(k: float) -> None:
    """
    Scenario: twelve seconds of ten calls, then one busy enough: 11 + k * sqrt(10).
    Guarantees: it fires for every k, also beyond sqrt(11), and not a call earlier.
    """
    limit = max(30, int(10 + k * 10**0.5) + 1)
    verdicts = burst_after([10] * 12, limit, k=k)
    assert actions(verdicts) == {"allow": limit - 1, "pause": 1}


@pytest.mark.parametrize("pace", [10, scaled(1000)])
def test_assembly_02_one_call_more_is_no_spike(pace: int) -> None:
    """
    Scenario: eleven seconds of 10 calls, then 11; of 1000 calls, then 1001.
    Guarantees: none fires, however even the past was.
    """
    assert set(actions(burst_after([pace] * 11, pace + 1, min_calls_second=5))) == {"allow"}


def test_assembly_03_a_burst_does_not_mask_the_next() -> None:
    """
    Scenario: 20 calm seconds, a burst of 60, ten calm seconds, the same burst again.
    Guarantees: the second fires exactly as the first.
    """
    rig, calls = Rig(shift={"ceiling": 0, "min_calls_minute": 65535}, **NO_RATE), Calls()
    rig.send(calls.many(20, 1000, 1))
    first = rig.send(calls.many(60, 1020))
    rig.send(calls.many(10, 1021, 1))
    assert rig.send(calls.many(60, 1031)) == first
    assert actions(first) == {"allow": 29, "pause": 31}


def test_assembly_03_what_another_detector_stopped_is_not_learned() -> None:
    """
    Scenario: an agent's calls are blocked by the hard limit of its session; others are allowed.
    Guarantees: the seconds with a blocked call are kept out of the baseline, the others are not.
    """
    rig, calls = Rig(rate={"warn": 0, "block": 3}), Calls()
    rig.send([*calls.many(2, 1000), *calls.many(3, 1001, session="t"), calls.at(1002, session="u")])
    (shift,) = (row["shift"] for row in rig.state.agents.rows if row["key"] != 0)
    flagged = [second for second in range(1000, 1003) if shift["flagged"][0] >> (second % 60) & 1]
    assert flagged == [1001]
    assert shift["samples"] == 5


def test_assembly_04_an_even_past_has_a_scale() -> None:
    """
    Scenario: a perfectly even past, then 40 in one second; all calls in one millisecond, and 1100
    within 11 ms, of an agent with a past; the same of one without.
    Guarantees: each is seen: by the shift with a past, by the hard limit or the ceiling without.
    """
    assert actions(burst_after([2] * 15, 40))["pause"] == 11
    count = 1100
    rig, calls = Rig(), Calls()
    rig.send(calls.many(15, 1000, 1))
    assert rig.send(calls.many(200, 1015))[-1].action == "pause"
    rig.send(calls.many(15, 2000, 1, agent="b"))
    assert rig.send(calls.many(count, 2015, 1e-5, agent="b"))[-1].types == ("rate", "rate_shift")
    new = Rig()
    assert new.send(calls.many(count, 1000, 1e-5, agent="c"))[-1].action == "block"


def test_assembly_05_a_constant_flood_is_not_normal() -> None:
    """
    Scenario: an agent makes ten calls a second from its first second on, for five minutes, in ever
    new sessions, and the ceiling is 500 a minute.
    Guarantees: however even it is, every minute raises alarms from its 500th call on.
    """
    rig, calls = Rig(shift={"ceiling": 500}), Calls()
    for minute in range(17, 22):
        spans = [calls.at(60 * minute + i / 10, session=f"s{i}") for i in range(600)]
        assert actions(rig.send(spans)) == {"allow": 499, "pause": 101}


@pytest.mark.parametrize("age_s", [12, 40, 600, 3000])
def test_assembly_06_buckets_do_not_follow_the_age(age_s: int) -> None:
    """
    Scenario: the same calm minute and the same burst, by agents whose first call was longer and
    longer ago; and ten calls in one second by an agent with no past.
    Guarantees: the same verdicts and the same limit at every age; too few calls are no spike.
    """
    rig, calls = Rig(**NO_RATE), Calls()
    rig.send([calls.at(5000 - age_s)])
    assert set(actions(rig.send(calls.many(11, 4989, 1)))) == {"allow"}
    verdicts = rig.send(calls.many(50, 5000))
    assert actions(verdicts) == {"allow": 29, "pause": 21}
    assert verdicts[-1].reason == f"rate_shift: 50 calls in 1 s, limit 30, usual {int(age_s < 20)}"
    assert set(actions(Rig(**NO_RATE).send(calls.many(60, 5000)))) == {"allow"}
