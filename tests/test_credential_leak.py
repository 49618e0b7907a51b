"""The detector `credential_leak` by itself: one agent, one call after the other."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import CredentialLeakConfig
from otel_anomaly.detectors import credential_leak
from otel_anomaly.detectors.finding import ALLOW, JUDGED, LATE, NO_ARGUMENTS, OFF, PAUSE, WARN
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, said, spoilt_sign
from tests.sizes import scaled


class Agent:
    """The secrets one agent let out."""

    def __init__(self, **config: Any) -> None:
        self.config = CredentialLeakConfig.model_validate(config)
        self.plan = credential_leak.make_plan(self.config)[0]
        self.state = np.zeros(1, credential_leak.STATE)[0]

    def look(self, call: np.void) -> Said:
        """What is said of a call that is not counted by this."""
        sign = spoilt_sign()
        credential_leak.score(self.state, self.plan, call, sign)
        return said(sign)

    def call(self, at_s: float, secrets: int = 1, **fields: Any) -> Said:
        """Judge and count one call."""
        call = call_of(at_s, secrets=secrets, **fields)
        sign = self.look(call)
        credential_leak.learn(self.state, self.plan, call, sign["action"] >= PAUSE)
        return sign


@pytest.mark.parametrize("window", ["12s", "60s", "3600s"])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_ring_equals_dict(seed: int, window: str) -> None:
    """
    Scenario: calls with and without secrets that step on, stand, jump over the ring and fall
    behind; copies; some are taken back.
    Guarantees: every number is that of a dict of sub-windows.
    """
    agent = Agent(window=window)
    twin, pick = naive.Leak(agent.config), random.Random(seed)
    step_s = agent.config.window / 12e9
    learned: list[np.void] = []
    now_s = 0.0
    for _ in range(scaled(400)):
        now_s += pick.choices((0, step_s / 3, step_s, 11 * step_s, 13 * step_s), (9, 9, 5, 1, 1))[0]
        back_s = pick.choice((0, 0, 0, step_s, 11 * step_s, 12 * step_s))
        fields = {"has_arguments": pick.random() < 0.9, "fresh": pick.random() < 0.9}
        secrets = pick.choice((0, 0, 1, 3)) * fields["has_arguments"]
        call = call_of(now_s - back_s, secrets=secrets, **fields)
        expected = twin.score(call)
        assert agent.look(call) == vars(expected)
        if call["fresh"]:
            credential_leak.learn(agent.state, agent.plan, call, expected.action >= PAUSE)
            twin.learn(call)
            learned.append(call)
        elif learned:
            moved = learned.pop(pick.randrange(len(learned)))
            credential_leak.unlearn(agent.state, agent.plan, moved)
            twin.unlearn(moved)


def test_the_third_secret_is_told() -> None:
    """
    Scenario: threshold 3: calls with one secret each, a call without, a call with three at once.
    Guarantees: two say nothing, the third warns with a half; the clean call says nothing though it
    is told the total; three at once suffice.
    """
    agent = Agent()
    signs = [agent.call(i) for i in range(4)]
    assert [sign["action"] for sign in signs] == [ALLOW, ALLOW, WARN, WARN]
    assert [sign["score"] for sign in signs] == [0, 0, 0.5, 1 - 3 / 8]
    clean = agent.call(5, secrets=0)
    assert (clean["observed"], clean["ratio"], clean["limit"]) == (4, 4 / 3, 3)
    assert (clean["action"], clean["score"]) == (ALLOW, 0)
    assert Agent().call(0, secrets=3)["score"] == 0.5


def test_two_calls_with_the_same_secret_warn() -> None:
    """
    Scenario: threshold 2, two calls.
    Guarantees: a warning, by default nothing stronger.
    """
    agent = Agent(threshold=2)
    assert [agent.call(i)["action"] for i in range(2)] == [ALLOW, WARN]
    agent = Agent(threshold=1, action="pause")
    assert agent.call(0)["action"] == PAUSE


def test_secrets_are_forgotten_after_the_window() -> None:
    """
    Scenario: an agent that is never idle lets out one secret every 40 minutes for ten hours.
    Guarantees: never more than two are counted, and nothing is found.
    """
    agent = Agent()
    signs = [agent.call(60 * i, secrets=i % 40 == 0) for i in range(600)]
    assert max(sign["observed"] for sign in signs) == 2
    assert {sign["action"] for sign in signs} == {ALLOW}


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: a call without arguments, a late one, the detector off.
    Guarantees: each is skipped with its reason; the late one changes nothing.
    """
    agent = Agent(window="12s", threshold=1)
    assert agent.call(100)["action"] == WARN
    bare = agent.call(101, secrets=0, has_arguments=0)
    assert (bare["skipped"], bare["observed"], bare["action"]) == (NO_ARGUMENTS, 1, ALLOW)
    late = agent.call(89)
    assert (late["skipped"], late["score"], late["action"]) == (LATE, 0, ALLOW)
    assert agent.look(call_of(101))["observed"] == 1
    off = Agent(enabled=False)
    assert (off.call(0)["skipped"], off.state["counts"].sum()) == (OFF, 0)


def test_a_copy_is_judged_and_not_counted() -> None:
    """
    Scenario: the third call is delivered again and again.
    Guarantees: each copy is told the same as the call.
    """
    agent = Agent()
    last = [agent.call(i) for i in range(3)][-1]
    for _ in range(5):
        assert agent.look(call_of(2, secrets=1, fresh=0)) == last


def test_another_window_starts_the_ring_again() -> None:
    """
    Scenario: the window is changed from a day to 12 seconds and back, between calls.
    Guarantees: no count is carried over, and no call is late for a ring cut otherwise.
    """
    agent = Agent(window="24h")
    agent.call(0)
    for window in ("12s", "24h"):
        agent.plan = credential_leak.make_plan(
            CredentialLeakConfig.model_validate({"window": window})
        )[0]
        sign = agent.call(3)
        assert (sign["skipped"], sign["observed"]) == (JUDGED, 1)


@settings(max_examples=scaled(100))
@given(
    calls=st.lists(
        st.tuples(st.integers(1, (1 << 63) - 1), st.integers(0, (1 << 31) - 1), st.booleans()),
        max_size=30,
    )
)
def test_any_calls_leave_a_sound_ring(calls: list[tuple[int, int, bool]]) -> None:
    """
    Scenario: any number of secrets at any times a clock can show, learned and taken back.
    Guarantees: counters stay at their end, nothing turns negative, scores are 0..1.
    """
    agent = Agent(window="12s")
    for time_ns, secrets, back in calls:
        call = call_of(secrets=secrets)
        call["time_ns"] = time_ns
        sign = agent.look(call)
        assert 0 <= sign["score"] <= 1
        assert sign["observed"] <= secrets + 12 * 65535
        credential_leak.learn(agent.state, agent.plan, call, False)  # noqa: FBT003 -- As kernels are called.
        if back:
            credential_leak.unlearn(agent.state, agent.plan, call)
