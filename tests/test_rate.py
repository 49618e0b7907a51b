"""The detector `rate` by itself: one ring, one call after the other."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import RateConfig
from otel_anomaly.detectors import rate
from otel_anomaly.detectors.finding import ALLOW, BLOCK, LATE, SECOND_NS, SIGN, WARN
from tests import naive_rates
from tests.sizes import scaled

FRESH = True


class Session:
    """One session's ring."""

    def __init__(self, **config: Any) -> None:
        self.config = RateConfig.model_validate(config)
        self.plan = rate.make_plan(self.config)[0]
        self.state = rate.make_state(1)[1]
        self._sign = np.zeros(1, SIGN)[0]

    def look(self, time_s: float, *, fresh: bool = False) -> dict[str, Any]:
        """Judge a call without counting it; by default one that is counted already."""
        rate.score(self.state, self.plan, int(time_s * SECOND_NS), fresh, self._sign)
        return dict(zip(SIGN.names or (), self._sign.item(), strict=True))

    def call(self, time_s: float, count: int = 1) -> dict[str, Any]:
        """Judge and count calls. What is said of the last."""
        for _ in range(count):
            sign = self.look(time_s, fresh=True)
            if sign["skipped"] != LATE:
                rate.learn(self.state, int(time_s * SECOND_NS))
        return sign


@pytest.mark.parametrize("window", [1, 2, 7, 59, 60])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_ring_equals_dict(seed: int, window: int) -> None:
    """
    Scenario: calls that step on, stand, jump over the ring and fall behind, in every window.
    Guarantees: all numbers are those of a dict of seconds; the total is the sum of the counters.
    """
    session = Session(window=f"{window}s", warn=4, block=9)
    twin = naive_rates.Rate(session.config)
    pick, now_s = random.Random(seed), 1_790_000_000
    for _ in range(scaled(300)):
        now_s += pick.choices((0, 1, 3, window, 61, 1000), (20, 8, 4, 1, 1, 1))[0]
        time_ns = (now_s - pick.choice((0, 0, 0, 1, window - 1, window, 60))) * SECOND_NS
        expected = twin.score(time_ns, fresh=True)
        sign = session.call(time_ns / SECOND_NS)
        if expected.skipped != LATE:
            twin.learn(time_ns)
        assert sign == {name: getattr(expected, name) for name in sign}
        assert session.state["total"] == session.state["counts"].sum()


def test_score_grows_from_warn_to_block() -> None:
    """
    Scenario: 120 calls with warn 20 and block 100.
    Guarantees: 0 below warn, a half at warn, linear in between, 1 from block on; never falling.
    """
    session = Session(warn=20, block=100)
    signs = [session.call(100) for _ in range(120)]
    scores = [sign["score"] for sign in signs]
    assert scores[:19] == [0.0] * 19
    assert scores[19] == 0.5
    assert scores[59] == 0.75
    assert scores[98] < scores[99] == scores[119] == 1.0
    assert scores == sorted(scores)
    assert [sign["action"] for sign in signs] == [ALLOW] * 19 + [WARN] * 80 + [BLOCK] * 21
    assert [signs[i]["limit"] for i in (0, 19, 99)] == [20, 20, 100]
    assert [sign["observed"] for sign in signs] == list(range(1, 121))


def test_each_limit_is_off_at_0() -> None:
    """
    Scenario: warn alone, block alone, none.
    Guarantees: what is off never acts; warn alone grows towards 1; none scores nothing.
    """
    warn, block, none = Session(warn=5, block=0), Session(warn=0, block=5), Session(warn=0, block=0)
    assert warn.call(100, 5)["score"] == 0.5
    sign = warn.call(100, 15)
    assert (sign["action"], sign["score"]) == (WARN, 1 - 0.5 * 5 / 20)
    assert block.call(100, 4)["action"] == ALLOW
    assert (block.call(100)["action"], block.call(100)["score"]) == (BLOCK, 1.0)
    sign = none.call(100, 300)
    assert (sign["action"], sign["score"], sign["observed"]) == (ALLOW, 0.0, 300)


def test_a_late_call_goes_to_its_own_second() -> None:
    """
    Scenario: window 10 s, head at 100: calls of 95, of 91, of 90.
    Guarantees: the first two count, and leave the window with their seconds; the third is late,
    counts nowhere and finds nothing.
    """
    session = Session(window="10s", warn=2, block=4)
    session.call(100)
    assert session.call(95)["observed"] == 2
    assert session.call(91)["observed"] == 3
    late = session.call(90)
    assert (late["skipped"], late["action"], late["score"]) == (LATE, ALLOW, 0.0)
    assert [session.look(at)["observed"] for at in (100, 101, 104, 105, 110)] == [3, 2, 2, 1, 0]


def test_the_window_is_seconds_not_calls() -> None:
    """
    Scenario: one call a second for five minutes, window 60 s; then silence of 59 s and 60 s.
    Guarantees: never more than 60 are counted; the last is in the window for 60 seconds.
    """
    session = Session()
    seen = [session.call(1000 + i)["observed"] for i in range(300)]
    assert seen == [min(i, 60) for i in range(1, 301)]
    assert session.look(1299 + 59)["observed"] == 1
    assert session.look(1299 + 60)["observed"] == 0


def test_counters_stay_at_their_end() -> None:
    """
    Scenario: a second that holds 65535 calls gets more, with the highest limit there is.
    Guarantees: the counter stays, the limit is reached, and the total stays the sum.
    """
    session = Session(warn=0, block=65535)
    session.call(100)
    session.state["counts"][100 % 60] = session.state["total"] = 65534
    assert session.look(100, fresh=True)["action"] == BLOCK
    session.call(100, 3)
    assert session.state["counts"].max() == session.state["total"] == 65535
    assert session.look(160)["observed"] == 0


@settings(max_examples=scaled(100))
@given(times=st.lists(st.integers(1, (1 << 63) - 1), max_size=30), window=st.integers(1, 60))
def test_any_times_leave_a_sound_ring(times: list[int], window: int) -> None:
    """
    Scenario: calls at any times a clock can show, in any order.
    Guarantees: the total is the sum of the counters and never more than the calls made.
    """
    session = Session(window=f"{window}s")
    for number, time_ns in enumerate(times, start=1):
        rate.score(session.state, session.plan, time_ns, FRESH, session._sign)
        if session._sign["skipped"] != LATE:
            rate.learn(session.state, time_ns)
        assert 0 <= session.state["total"] == session.state["counts"].sum() <= number
