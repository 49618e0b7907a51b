"""The detector `burst` by itself: one agent's window, and the habit of its busy hours."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import BurstConfig
from otel_anomaly.detectors import burst
from otel_anomaly.detectors.finding import ALLOW, EXEMPT, JUDGED, LATE, SECOND_NS
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import NOON_S, blank_sign, fields_of, record_of
from tests.sizes import scaled

HOUR_S = 3600


class Agent:
    """One agent's state."""

    def __init__(self, **config: Any) -> None:
        self.config = BurstConfig.model_validate(config)
        self.plan = burst.make_plan(self.config)[0]
        self.state = np.zeros(1, burst.STATE)[0]

    def look(self, told: Told) -> dict[str, Any]:
        sign = blank_sign()
        burst.score(self.state, self.plan, record_of(told), sign)
        return fields_of(sign)

    def learn(self, told: Told, *, alarmed: bool = False) -> None:
        burst.learn(self.state, self.plan, record_of(told), alarmed)

    def unlearn(self, told: Told) -> None:
        burst.unlearn(self.state, self.plan, record_of(told))

    def calls(self, at_s: float, count: int = 1, *, alarmed: bool = False) -> dict[str, Any]:
        """Judge and count calls of one second. What is said of the last."""
        for _ in range(count):
            told = Told(int(at_s * SECOND_NS))
            sign = self.look(told)
            self.learn(told, alarmed=alarmed)
        return sign

    def busy_hours(self, hours: int, count: int, *, alarmed: bool = False) -> int:
        """`count` calls a minute, once an hour. The second after them."""
        for hour in range(hours):
            self.calls(NOON_S + hour * HOUR_S, count, alarmed=alarmed)
        return NOON_S + hours * HOUR_S


@pytest.mark.parametrize(("window", "threshold"), [(60, 3), (7, 2), (1, 5)])
@pytest.mark.parametrize("seed", range(scaled(8)))
def test_burst_equals_dicts(seed: int, window: int, threshold: int) -> None:
    """
    Scenario: calls that crowd, jump over hours and weeks, come late, twice, exempt, refused, and
    are handed over to another agent afterwards.
    Guarantees: every field of every sign is that of the twin, and the state that it judges by.
    """
    pick, now_s = random.Random(seed), NOON_S
    agent = Agent(window=f"{window}s", threshold=threshold)
    twin = naive.Burst(agent.config)
    learned: list[Told] = []
    for _ in range(scaled(1500)):
        now_s += pick.choices((0, 1, 30, HOUR_S, 29 * 86400), (40, 20, 3, 6, 0.05))[0]
        late_s = pick.choices((0, 1, window - 1, window, 4000), (40, 2, 1, 1, 1))[0]
        call = Told((now_s - late_s) * SECOND_NS, exempt=pick.random() < 0.05)
        call = call._replace(fresh=pick.random() < 0.9)
        assert agent.look(call) == twin.score(call).fields()
        if learned and pick.random() < 0.05:
            other = learned.pop(pick.randrange(len(learned)))
            agent.unlearn(other)
            twin.unlearn(other)
        if call.fresh:
            alarmed = pick.random() < 0.005
            agent.learn(call, alarmed=alarmed)
            twin.learn(call, alarmed=alarmed)
            learned = [*learned[-20:], call]
        assert agent.state["peak"] == twin.peak
        assert agent.state["ring"]["total"] == twin.window()


def test_the_score_is_graded() -> None:
    """
    Scenario: 100 calls in a minute with the limit at 20 (defect 16: 25 and 2500 scored alike).
    Guarantees: nothing below 10; never falling; 0.5 at 20; below 1 before 40; no action by itself.
    """
    agent = Agent()
    signs = [agent.calls(NOON_S + i * 0.5) for i in range(100)]
    scores = [sign["score"] for sign in signs]
    assert scores[:9] == [0.0] * 9
    assert scores == sorted(scores)
    assert [scores[i] for i in (9, 18, 19, 24, 38, 39, 99)] == [
        0.125, 0.2375, 0.5, 0.625, 0.975, 1.0, 1.0,
    ]  # fmt: skip
    assert len(set(scores[9:40])) == 31
    assert {sign["action"] for sign in signs} == {ALLOW}
    assert [signs[24][name] for name in ("observed", "limit", "ratio")] == [25, 20, 1.25]


def test_twenty_five_calls_in_thirty_seconds() -> None:
    """
    Scenario: threshold 20 in 60 s, 25 calls in 30 s (seed I3); threshold 5, 6 calls (seed C6).
    Guarantees: over the limit both times.
    """
    agent = Agent()
    for i in range(25):
        sign = agent.calls(NOON_S + i * 30 / 25)
    assert sign["score"] == 0.625
    assert Agent(threshold=5).calls(NOON_S, 6)["score"] == 0.6


def test_a_busy_agent_is_not_woken_for() -> None:
    """
    Scenario: 50 calls in one minute of every hour.
    Guarantees: told of for eight hours; then the limit is half above its usual; twice its usual is
    told of against that.
    """
    agent = Agent()
    for hour in range(20):
        sign = agent.calls(NOON_S + hour * HOUR_S, 50)
        if hour < 8:
            assert (sign["limit"], sign["score"], sign["variant"]) == (20, 1.0, 0)
        else:
            assert sign["score"] < 0.25
            assert sign["variant"] == 1
    assert (sign["usual"], sign["limit"]) == (50, 75)
    assert agent.calls(NOON_S + 20 * HOUR_S, 120)["score"] > 0.5


def test_a_short_test_makes_no_habit() -> None:
    """
    Scenario: 500 calls a minute for an hour, touching two hours of the clock.
    Guarantees: the fixed limit stands to the end.
    """
    agent = Agent()
    for minute in range(60):
        sign = agent.calls(NOON_S + 1800 + minute * 60, 50)
        assert (sign["limit"], sign["score"]) == (20, 1.0)


def test_alarms_make_no_habit() -> None:
    """
    Scenario: 30 busy hours whose calls were refused; 30 in which only the first call was; then an
    hour that begins right behind such a call.
    Guarantees: the limit is the fixed one.
    """
    agent = Agent()
    after_s = agent.busy_hours(30, 50, alarmed=True)
    assert agent.calls(after_s)["limit"] == 20
    agent = Agent()
    for hour in range(30):
        agent.calls(NOON_S + hour * HOUR_S, 1, alarmed=True)
        agent.calls(NOON_S + hour * HOUR_S + 300, 50)
    assert agent.calls(NOON_S + 30 * HOUR_S)["limit"] == 20
    agent = Agent()
    for hour in range(30):
        agent.calls(NOON_S + hour * HOUR_S - 10, 50, alarmed=True)
        agent.calls(NOON_S + hour * HOUR_S + 10, 1)
    assert agent.calls(NOON_S + 40 * HOUR_S)["limit"] == 20


def test_a_few_wild_hours_set_no_standard() -> None:
    """
    Scenario: three hours of 3 000 calls a minute among eight of 30; then five more wild ones.
    Guarantees: the limit is that of the 30 as long as they are more than the wild ones.
    """
    agent = Agent()
    after_s = agent.busy_hours(5, 30)
    for hour in range(3):
        agent.calls(after_s + hour * HOUR_S, 3000)
    after_s += 3 * HOUR_S
    assert [agent.calls(after_s)[name] for name in ("usual", "limit")] == [30, 45]
    for hour in range(5):
        agent.calls(after_s + hour * HOUR_S, 3000)
    assert agent.calls(after_s + 5 * HOUR_S)["usual"] == 3000


def test_a_habit_is_forgotten() -> None:
    """
    Scenario: an agent was busy for ten hours; then it makes a call an hour for 29 days.
    Guarantees: its habit holds for 28 days after the last busy hour, to the hour.
    """
    agent = Agent()
    last_s = agent.busy_hours(10, 50) - HOUR_S
    limits = [agent.calls(last_s + hour * HOUR_S)["limit"] for hour in range(1, 29 * 24)]
    assert limits == [75.0] * 28 * 24 + [20.0] * 23


def test_exempt_tools_do_not_count() -> None:
    """
    Scenario: 3 000 calls of a batch tool in one minute, and one of another tool.
    Guarantees: exempt, nothing found, nothing counted.
    """
    agent = Agent()
    for _ in range(scaled(3000)):
        call = Told(NOON_S * SECOND_NS, exempt=True)
        sign = agent.look(call)
        assert (sign["skipped"], sign["score"]) == (EXEMPT, 0.0)
        agent.learn(call)
        agent.unlearn(call)
    assert agent.calls(NOON_S)["observed"] == 1


def test_a_copy_is_not_counted_again() -> None:
    """
    Scenario: 19 calls, then the last one once more, as a copy.
    Guarantees: the copy is judged by the 19.
    """
    agent = Agent()
    agent.calls(NOON_S, 19)
    assert agent.look(Told(NOON_S * SECOND_NS, fresh=False))["observed"] == 19
    assert agent.look(Told(NOON_S * SECOND_NS))["observed"] == 20


def test_a_late_call_goes_to_its_own_second() -> None:
    """
    Scenario: window 10 s, newest call at 100: calls of 95 and of 90.
    Guarantees: the first counts; the second is late, finds nothing and counts nowhere.
    """
    agent = Agent(window="10s", threshold=2)
    agent.calls(NOON_S + 100)
    assert agent.calls(NOON_S + 95)["observed"] == 2
    late = agent.calls(NOON_S + 90)
    assert (late["skipped"], late["score"], late["ratio"]) == (LATE, 0.0, 0.0)
    assert agent.calls(NOON_S + 100)["observed"] == 3


def test_calls_of_others_are_handed_over() -> None:
    """
    Scenario: 40 calls that turn out to be another agent's, every hour for a day.
    Guarantees: the first agent is as if they had never been, its habit too; the other has them.
    """
    first, other = Agent(), Agent()
    for hour in range(24):
        call = Told((NOON_S + hour * HOUR_S) * SECOND_NS)
        for _ in range(40):
            first.look(call)
            first.learn(call)
        for _ in range(40):
            first.unlearn(call)
            other.learn(call)  # Without a look before: the ring comes up by itself.
        assert first.look(call)["observed"] == 1
        assert other.look(call)["observed"] == 41
    end_s = NOON_S + 24 * HOUR_S
    assert (first.calls(end_s)["limit"], other.calls(end_s)["limit"]) == (20, 60)


@settings(max_examples=scaled(80), deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(1, (1 << 63) - 1), st.sampled_from(["learn", "alarm", "back"])),
        max_size=30,
    ),
    window=st.integers(1, 60),
)
def test_any_times_leave_a_sound_state(events: list[tuple[int, str]], window: int) -> None:
    """
    Scenario: calls at any times a clock can show, in any order, learned, alarmed and taken back.
    Guarantees: the total is the sum of the counters; numbers stay finite and in their limits.
    """
    agent = Agent(window=f"{window}s", threshold=2)
    for time_ns, what in events:
        call = Told(time_ns)
        assert agent.look(call)["skipped"] in {JUDGED, LATE}
        if what == "back":
            agent.unlearn(call)
        else:
            agent.learn(call, alarmed=what == "alarm")
        ring = agent.state["ring"]
        assert 0 <= ring["total"] == ring["counts"].sum() <= len(events)
        assert 0 <= agent.state["peak"] <= len(events)
        assert 0 <= agent.state["usual"] <= len(events)
