"""The detector `rate_shift` by itself: one agent, one call after the other."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import RateShiftConfig
from otel_anomaly.config.detectors import DetectorsConfig
from otel_anomaly.detectors import rate_shift
from otel_anomaly.detectors.finding import ALLOW, COLD, JUDGED, LATE, PAUSE, SECOND_NS, SIGN
from otel_anomaly.scoring import make_limits
from tests.rig import Calls, Rig
from tests.sizes import scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

FRESH = ALARMED = True
START_S = 1_790_000_040
"""The first second of a minute."""
assert START_S % 60 == 0


Said = dict[str, Any]
"""What is said of one call: the fields of SIGN."""


class Agent:
    """One agent's rings."""

    def __init__(self, **config: Any) -> None:
        self.config = RateShiftConfig.model_validate(config)
        self.plan = rate_shift.make_plan(self.config)[0]
        self.state = rate_shift.make_state(1)[1]
        self._sign = np.zeros(1, SIGN)[0]

    def call(self, time_s: float, count: int = 1) -> list[Said]:
        """Judge and learn calls, seconds from the start. What is said of each."""
        time_ns = START_S * SECOND_NS + round(time_s * SECOND_NS)
        signs = []
        for _ in range(count):
            rate_shift.score(self.state, self.plan, time_ns, FRESH, self._sign)
            sign = dict(zip(SIGN.names or (), self._sign.item(), strict=True))
            if sign["skipped"] != LATE:
                rate_shift.learn(self.state, time_ns, sign["action"] >= PAUSE)
            signs.append(sign)
        return signs

    def steady(self, start_s: int, seconds: int, each: int = 1) -> list[Said]:
        """`each` calls in every second."""
        return [s for t in range(start_s, start_s + seconds) for s in self.call(t, each)]


def fired(signs: Sequence[Said]) -> int:
    """How many calls raised an alarm."""
    return sum(1 for sign in signs if sign["action"] >= PAUSE)


@settings(max_examples=scaled(200))
@given(
    past=st.lists(st.integers(0, 65535), max_size=59),
    peaks=st.lists(st.integers(0, 65535), max_size=60),
    k=st.floats(0.1, 1000),
    ratio=st.floats(1, 1000),
    floor=st.integers(1, 65535),
)
def test_baseline_is_what_it_says(
    past: list[int], peaks: list[int], k: float, ratio: float, floor: int
) -> None:
    """
    Scenario: any closed buckets and peaks.
    Guarantees: to the bit max(floor, median + k * scale, ratio * third largest), with a scale of
    1.4826 MAD that is never below that of a Poisson count.
    """
    values = np.array(past + [0] * (60 - len(past)), np.int64)
    found = rate_shift.baseline(
        values, len(past), np.array(peaks, np.int64), k, ratio, np.int64(floor)
    )
    median = statistics.median(past) if past else 0.0
    spread = statistics.median(abs(x - median) for x in past) if past else 0.0
    scale = max(1.4826 * spread, math.sqrt(max(median, 1.0)))
    level = sorted([*past, *peaks, 0, 0, 0])[-3]
    assert found == (max(float(floor), median + k * scale, ratio * level), median)


def test_a_burst_is_seen_at_the_limit() -> None:
    """
    Scenario: one call a second for 20 s, then 100 in one second.
    Guarantees: limit 30, the floor; the 30th call is the first alarm with a score of a half, which
    grows; the baseline told is 1 a second.
    """
    agent = Agent()
    assert fired(agent.steady(0, 20)) == 0
    signs = agent.call(20, 100)
    assert [sign["action"] for sign in signs] == [ALLOW] * 29 + [PAUSE] * 71
    first, last = signs[29], signs[99]
    assert (first["score"], first["observed"], first["limit"]) == (0.5, 30, 30)
    assert (first["usual"], first["window_s"]) == (1, 1)
    assert last["score"] == 1 - 30 / 200
    assert [sign["score"] for sign in signs] == sorted(sign["score"] for sign in signs)


def test_limit_follows_the_agent() -> None:
    """
    Scenario: agents of 1, 10, 50 and 400 calls a second for 15 s; then a busy second.
    Guarantees: limits 30 (the floor), 30 (above 10 + 3 * sqrt(10) and 2 * 10), 100 (twice the
    level) and 800, and calls below them raise nothing.
    """
    for pace, limit in ((1, 30), (10, 30), (50, 100), (400, 800)):
        agent = Agent(ceiling=0)
        past = agent.steady(0, 15, pace)
        signs = agent.call(15, limit)
        assert fired(past) == fired(signs[:-1]) == 0, pace
        assert (signs[-1]["action"], signs[-1]["limit"]) == (PAUSE, limit)


def test_cold_is_silent() -> None:
    """
    Scenario: bursts of an agent that is known for 9 s, of one that made 9 calls before, and of one
    with enough of both.
    Guarantees: the first is learning; it and the second raise nothing, the third does. Calls of
    the burst itself are not past.
    """
    young, quiet, known = Agent(), Agent(), Agent()
    young.steady(0, 9, 2)
    signs = young.call(9, 60)
    assert fired(signs) == 0
    assert {sign["skipped"] for sign in signs} == {COLD}
    quiet.steady(0, 9)
    assert fired(quiet.call(40, 31)) == 0
    known.steady(0, 10)
    signs = known.call(10, 31)
    assert fired(signs) == 2
    assert {sign["skipped"] for sign in signs} == {JUDGED}


def test_idle_time_is_part_of_the_past() -> None:
    """
    Scenario: 20 calls in one second every ten seconds; another agent 20 calls every second.
    Guarantees: the usual of the first is 0 a second, of the second 20.
    """
    bursty, busy = Agent(), Agent()
    for i in range(6):
        bursty.call(10 * i, 20)
    busy.steady(0, 60, 20)
    assert bursty.call(60, 60)[-1]["usual"] == 0
    assert busy.call(60, 60)[-1]["usual"] == 20


def test_a_quiet_minute_is_held_against_the_bursts_of_the_hour() -> None:
    """
    Scenario: a burst of 25 in one second of each of eight minutes, then a silent minute and a
    burst of 40; another agent without the bursts.
    Guarantees: 40 is under twice the usual peak for the first, and a shift for the other.
    """
    bursty, calm = Agent(), Agent()
    for minute in range(8):
        bursty.call(60 * minute, 25)
        calm.call(60 * minute, 2)
    assert fired(bursty.call(60 * 9 + 30, 40)) == 0
    assert fired(calm.call(60 * 9 + 30, 40)) == 11


def test_bursts_are_remembered_for_an_hour() -> None:
    """
    Scenario: bursts of 25 in three minutes; then one call a minute, or silence; then a burst of 40.
    Guarantees: within the hour 40 is under twice the level, after it 40 is a shift; an hour of
    silence leaves no peak at all.
    """
    for minute, alarms in ((50, 0), (64, 11)):
        agent = Agent(min_calls_minute=60000, ceiling=0)
        for at in range(minute):
            agent.call(60 * at, 25 if at < 3 else 1)
        assert fired(agent.call(60 * minute + 30, 40)) == alarms
    agent = Agent()
    agent.call(0, 25)
    agent.call(60 * 130)
    assert not agent.state["peaks"].any()


def test_the_ceiling_is_of_a_minute() -> None:
    """
    Scenario: an agent with no past makes 150 calls in one second, ceiling 120; then a few in
    the next minute.
    Guarantees: from the 120th on they are over the limit of a minute; the next minute is not.
    """
    agent = Agent(ceiling=120, min_calls_minute=120)
    signs = agent.call(0, 150)
    assert [sign["action"] for sign in signs] == [ALLOW] * 119 + [PAUSE] * 31
    assert {(sign["limit"], sign["window_s"], sign["usual"]) for sign in signs[119:]} == {
        (120, 60, 0)
    }
    assert fired(agent.call(60, 20)) == 0


def test_minutes_see_what_seconds_do_not() -> None:
    """
    Scenario: one call every two seconds for 15 minutes, then ten a second.
    Guarantees: no second is a shift, but the minute is, from its 500th call on.
    """
    agent = Agent()
    for i in range(450):
        assert fired(agent.call(2 * i)) == 0
    signs = agent.steady(900, 60, 10)
    assert [sign["action"] for sign in signs] == [ALLOW] * 499 + [PAUSE] * 101
    assert {sign["window_s"] for sign in signs[499:]} == {60}
    assert signs[499]["usual"] == 30


def test_what_raised_an_alarm_is_not_learned() -> None:
    """
    Scenario: an agent at 1 a second bursts 50 times in every fifth second for five minutes.
    Guarantees: the last burst is judged as the first: same limit, same usual, same score.
    """
    agent = Agent(min_calls_minute=60000, ceiling=0)
    agent.steady(0, 15)
    bursts = []
    for second in range(15, 315):
        signs = agent.call(second, 50 if second % 5 == 0 else 1)
        if second % 5 == 0:
            bursts.append(signs[-1])
    assert bursts == [bursts[0]] * 60
    assert bursts[0]["action"] == PAUSE


@pytest.mark.parametrize("unit_s", [1, 60], ids=["seconds", "minutes"])
def test_an_attack_that_lasts_is_not_learned(unit_s: int) -> None:
    """
    Scenario: after a past of 15 closed buckets, an attack in every bucket for three whole rings.
    Guarantees: each bucket raises alarms, by the limit of before; nobody teaches the detector by
    attacking it. When the attack is over for a while, the limit is worked out anew.
    """
    seconds = 30 if unit_s == 1 else 65535
    agent = Agent(min_calls_second=seconds, min_calls_minute=60, ceiling=0)
    for i in range(15):
        agent.call(unit_s * i, 10)
    for i in range(15, 195):
        signs = agent.call(unit_s * i, 70)
        assert fired(signs) >= 10, i
        assert signs[-1]["usual"] == 10
    for i in range(195, 245):
        agent.call(unit_s * i, 20)
    assert agent.call(unit_s * 245, 90)[-1]["usual"] == 20


def test_an_alarm_of_another_detector_keeps_the_bucket_out() -> None:
    """
    Scenario: busy seconds whose verdict reached pause for another reason.
    Guarantees: they are not part of the baseline: usual and limit are those of the calm ones.
    """
    agent = Agent(min_calls_minute=60000, ceiling=0)
    agent.steady(0, 20)
    for second in range(20, 40):
        for _ in range(25):
            time_ns = (START_S + second) * SECOND_NS
            rate_shift.score(agent.state, agent.plan, time_ns, FRESH, agent._sign)
            rate_shift.learn(agent.state, time_ns, ALARMED)
    sign = agent.call(40, 40)[-1]
    assert (sign["usual"], sign["limit"]) == (1, 30)
    assert agent.state["samples"] == 20 + 29


def test_late_calls() -> None:
    """
    Scenario: head an hour on; calls 30 s, 90 s, 59 min and 60 min late.
    Guarantees: they go to their own buckets while a ring holds them, are never held against the
    open one, and the last is late and not counted.
    """
    agent = Agent()
    agent.call(3600)
    for late_s, in_ring in ((30, True), (90, False)):
        before = agent.state["counts"].sum(axis=1)
        (sign,) = agent.call(3600 - late_s)
        assert (sign["skipped"], sign["action"], sign["ratio"]) == (COLD, ALLOW, 0)
        grown = agent.state["counts"].sum(axis=1) - before
        assert grown.tolist() == [in_ring, True]
    agent.call(60)
    samples = int(agent.state["samples"])
    assert agent.call(59)[0]["skipped"] == LATE
    assert agent.state["samples"] == samples == 4


def test_counters_stay_at_their_end() -> None:
    """
    Scenario: a bucket that holds 65535 calls gets three more.
    Guarantees: it stays at 65535; no wrap to a quiet bucket.
    """
    agent = Agent(ceiling=65535)
    agent.call(0)
    agent.state["counts"][:] = 65534
    signs = agent.call(0, 3)
    assert agent.state["counts"].max() == 65535
    assert [sign["action"] for sign in signs] == [PAUSE] * 3


@settings(max_examples=scaled(100))
@given(times=st.lists(st.integers(1, (1 << 63) - 1), max_size=30), busy=st.booleans())
def test_any_times_leave_sound_rings(times: list[int], *, busy: bool) -> None:
    """
    Scenario: calls at any times a clock can show, in any order; limits low enough to be met.
    Guarantees: scores are in 0..1 and finite, no counter grows beyond the calls made, the heads
    are those of the latest time.
    """
    low = {"min_calls_second": 1, "min_calls_minute": 1, "min_buckets": 3, "min_samples": 1}
    agent = Agent(**(low if busy else {}))
    for number, time_ns in enumerate(times, start=1):
        rate_shift.score(agent.state, agent.plan, time_ns, FRESH, agent._sign)
        if agent._sign["skipped"] != LATE:
            rate_shift.learn(agent.state, time_ns, agent._sign["action"] >= PAUSE)
        assert 0.0 <= agent._sign["score"] < 1.0
        assert math.isfinite(agent._sign["ratio"])
        assert agent.state["counts"].sum() <= 2 * number
    if times:
        assert agent.state["head"].tolist() == [max(times) // 10**9, max(times) // (60 * 10**9)]


def test_tools_of_one_agent_may_have_limits_of_their_own() -> None:
    """
    Scenario: an agent's calm past; then a busy second of two tools in turn, one of which an
    override gives another `k`; the ordinary one begins, or the other.
    Guarantees: each call is held to the limit of its own tool, whichever came first in the second.
    """
    for turn in (("t", "slow"), ("slow", "t")):
        lax = {"tool": "slow", "detectors": {"rate_shift": {"k": 119.0}}}
        other = {"tool": "never", "detectors": {"rate": {"enabled": False}}}
        rig, calls = Rig(rate={"warn": 0, "block": 0}, policy={"overrides": [lax, other]}), Calls()
        rig.send(calls.many(20, START_S, 1))
        spans = [calls.at(START_S + 20, tool=turn[i % 2]) for i in range(160)]
        verdicts = rig.send(spans)
        fired_from = {
            tool: [i + 1 for i, v in enumerate(verdicts) if turn[i % 2] == tool and v.types]
            for tool in turn
        }
        assert min(fired_from["t"]) in (30, 31)
        assert min(fired_from["slow"]) in (120, 121)
        assert len(fired_from["t"]) in (65, 66)


def test_rules_are_numbered_by_what_they_are() -> None:
    """
    Scenario: overrides that change other detectors, the ceiling, the action, and `k`.
    Guarantees: only another `k` is another rule: nothing is worked out anew for the others.
    """
    sections: list[dict[str, Any]] = [
        {"rate": {"warn": 1}},
        {"rate_shift": {"ceiling": 777, "action": "warn"}},
        {"rate_shift": {"k": 4.0}},
        {"rate_shift": {"k": 4.0, "ceiling": 999}},
    ]
    configs = [DetectorsConfig.model_validate(section) for section in ({}, *sections)]
    assert make_limits(configs)["rate_shift"]["rules"].tolist() == [0, 0, 0, 3, 3]
