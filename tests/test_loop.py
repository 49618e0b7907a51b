"""The detector `loop` by itself: one session, one call after the other."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import LoopConfig
from otel_anomaly.detectors import loop
from otel_anomaly.detectors.call import BATCH, POLLING
from otel_anomaly.detectors.finding import (
    ALLOW,
    BLOCK,
    EXEMPT,
    JUDGED,
    LATE,
    NO_ARGUMENTS,
    OFF,
    PAUSE,
    WARN,
)
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, said, spoilt_sign
from tests.sizes import scaled

CALM = False
"""The verdict stayed below pause."""


class Session:
    """What one session did."""

    def __init__(self, **config: Any) -> None:
        config.setdefault("repeat", min(10, config.get("threshold", 10)))
        self.config = LoopConfig.model_validate(config)
        self.plan = loop.make_plan(self.config)[0]
        self.state = np.zeros(1, loop.STATE)[0]

    def look(self, call: np.void) -> Said:
        """What is said of a call that is not counted by this."""
        sign = spoilt_sign()
        loop.score(self.state, self.plan, call, sign)
        return said(sign)

    def call(self, at_s: float, what: int = 7, **fields: Any) -> Said:
        """Judge and count one call."""
        call = call_of(at_s, fingerprint=what, **fields)
        sign = self.look(call)
        loop.learn(self.state, self.plan, call, sign["action"] >= PAUSE)
        return sign

    def calls(self, whats: Any, every_s: float = 1.0, **fields: Any) -> list[Said]:
        """Judge and count calls, one every so many seconds."""
        return [self.call(i * every_s, what, **fields) for i, what in enumerate(whats)]


def actions(signs: list[Said]) -> list[int]:
    return [sign["action"] for sign in signs]


def some_call(pick: random.Random, at_s: float, hashes: list[int]) -> np.void:
    """A call of a session that repeats itself now and then."""
    return call_of(
        at_s,
        fingerprint=pick.choice(hashes[:4] if pick.random() < 0.8 else hashes),
        result=pick.choice((0, 0, hashes[0], hashes[0], hashes[0], hashes[1])),
        failed=pick.random() < 0.1,
        fresh=pick.random() < 0.9,
        exempt=POLLING if pick.random() < 0.02 else 0,
        has_arguments=pick.random() < 0.97,
    )


@pytest.mark.parametrize("window", ["10s", "37s", "300s"])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_tables_equal_lists_of_all_calls(seed: int, window: str) -> None:
    """
    Scenario: calls of few and of many kinds, with results, failures, copies, cycles, pauses, late
    ones, and some that are taken back.
    Guarantees: every number is that of a twin that keeps all calls and looks through them.
    """
    session = Session(window=window, threshold=6, repeat=3)
    twin, pick = naive.Loop(session.config), random.Random(seed)
    hashes = [pick.getrandbits(63) | 1 for _ in range(24)]
    learned: list[np.void] = []
    pattern: list[int] = []
    now_s = 0.0
    step_s = session.config.window / 1e9 / 10
    for _ in range(scaled(400)):
        now_s += pick.choices((0, step_s / 3, step_s, 9 * step_s, 11 * step_s), (20, 40, 5, 1, 1))[
            0
        ]
        call = some_call(pick, now_s - pick.choice((0, 0, 0, step_s, 11 * step_s)), hashes)
        if pattern:
            call["fingerprint"], call["result"] = pattern.pop(), 0
        elif pick.random() < 0.05:
            pattern = pick.sample(hashes, pick.randint(2, 4)) * pick.randint(2, 8)
        assert session.look(call) == vars(twin.score(call))
        if call["fresh"]:
            loop.learn(session.state, session.plan, call, CALM)
            twin.learn(call)
            learned.append(call)
        elif learned and pick.random() < 0.3:
            back = learned.pop(pick.randrange(len(learned)))
            loop.unlearn(session.state, session.plan, back)
            twin.unlearn(back)


@pytest.mark.parametrize(
    ("whats", "expected"),
    [([1] * 5, PAUSE), ([1] * 4, ALLOW), ([1, 1, 1, 2, 2, 2], ALLOW), ([1, 2] * 3, ALLOW)],
)
def test_five_equal_calls(whats: list[int], expected: int) -> None:
    """
    Scenario: threshold 5: five equal calls, four, three each of two, in a row and in turn.
    Guarantees: only the five are paused, on the fifth; a cycle counts by rounds, not by calls.
    """
    signs = Session(threshold=5, repeat=5).calls(whats)
    assert actions(signs) == [ALLOW] * (len(whats) - 1) + [expected]


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_a_cycle_is_found_by_its_rounds(period: int) -> None:
    """
    Scenario: a cycle of 1 to 4 calls goes round 50 times within the window.
    Guarantees: nothing before the 50th round, then a pause; the words tell the period.
    """
    signs = Session().calls(list(range(1, period + 1)) * 50, every_s=1)
    assert set(actions(signs[: 49 * period])) == {ALLOW}
    assert signs[49 * period]["action"] == PAUSE
    last = signs[-1]
    assert (last["observed"], last["limit"], last["score"]) == (50, 50, 0.5)
    assert last["usual"] == (0 if period == 1 else period)
    assert last["variant"] == (loop.SAME_CALL if period == 1 else loop.CYCLE)


def test_a_cycle_with_results_that_come_in_turn() -> None:
    """
    Scenario: one call whose results are a, b, a, b, ...: no call gives what the last one gave.
    Guarantees: it is a cycle of two, warned of from ten rounds on.
    """
    session = Session()
    signs = [session.call(i, result=100 + i % 2) for i in range(20)]
    assert actions(signs) == [ALLOW] * 18 + [WARN] * 2
    assert (signs[-1]["variant"], signs[-1]["observed"]) == (loop.CYCLE, 10)


def test_slow_repetition_is_no_loop() -> None:
    """
    Scenario: 200 equal calls, one a minute; 200 rounds of a cycle, two calls a minute.
    Guarantees: never more than the window holds is observed, and nothing is found.
    """
    signs = Session().calls([1] * 200, every_s=60)
    assert max(sign["observed"] for sign in signs) == 5
    signs = Session().calls([1, 2] * 200, every_s=30)
    assert max(sign["observed"] for sign in signs) == 5
    assert set(actions(signs)) == {ALLOW}


def test_the_window_moves() -> None:
    """
    Scenario: 40 equal calls in 40 s, a pause of more than the window, 40 more; the same with a
    cycle; and with a shorter pause.
    Guarantees: what is older than the window does not count, in a cycle neither.
    """
    for whats, most in (([1] * 40, 40), ([1, 2] * 20, 20)):
        session = Session(threshold=60)
        session.calls(whats)
        again = [session.call(400 + i, what) for i, what in enumerate(whats)]
        assert again[0]["observed"] == 1
        assert again[-1]["observed"] == most
        assert session.call(400 + 300, whats[0])["observed"] < most


def test_polling_that_makes_progress_is_no_loop() -> None:
    """
    Scenario: a call every 5 s for an hour, each with another result.
    Guarantees: observed stays at 1; nothing is found.
    """
    session = Session()
    signs = [session.call(5 * i, result=1000 + i) for i in range(720)]
    assert {sign["observed"] for sign in signs} == {1}
    assert set(actions(signs)) == {ALLOW}


def test_results_that_repeat_are_warned_of() -> None:
    """
    Scenario: 49 equal calls with the same result, and one more; then another result.
    Guarantees: from the tenth on a warning whose score grows from 0.25 and stays below a half, the
    50th is paused, and the other result starts again at 1.
    """
    session = Session()
    signs = [session.call(i, result=5) for i in range(50)]
    assert actions(signs) == [ALLOW] * 9 + [WARN] * 40 + [PAUSE]
    scores = [sign["score"] for sign in signs]
    assert (scores[8], scores[9], scores[49]) == (0, 0.25, 0.5)
    assert scores == sorted(scores)
    assert scores[48] < 0.5
    assert [signs[i]["limit"] for i in (0, 9, 49)] == [10, 10, 50]
    assert [signs[i]["ratio"] for i in (4, 9, 49)] == [0.5, 1, 5]
    assert {sign["variant"] for sign in signs} == {loop.SAME_RESULT}
    after = session.call(50, result=6)
    assert (after["observed"], after["action"]) == (1, ALLOW)


def test_calls_that_fail_are_warned_of() -> None:
    """
    Scenario: a call that fails ten times without saying how, between it the same call without
    failing; and a tenth failure whose text is always another.
    Guarantees: the failures are counted by themselves and warned of; other texts are other results.
    """
    session = Session()
    signs = [session.call(i, failed=i % 2) for i in range(20)]
    assert actions(signs) == [ALLOW] * 19 + [WARN]
    assert signs[19]["observed"] == 10
    session = Session()
    signs = [session.call(i, failed=1) for i in range(10)]
    assert (signs[-1]["action"], signs[-1]["variant"]) == (WARN, loop.FAILING)
    signs = [Session().call(i, failed=1, result=100 + i) for i in range(10)]
    assert set(actions(signs)) == {ALLOW}


def test_tests_run_again_after_each_edit() -> None:
    """
    Scenario: edit, test, edit, test: 40 different edits in 300 s, the test with the same result
    each time, and with another.
    Guarantees: at most a warning; none where the results differ.
    """
    for results, expected in ((lambda _: 5, {ALLOW, WARN}), (lambda i: 100 + i, {ALLOW})):
        session, found = Session(), set()
        for i in range(40):
            found.add(session.call(7 * i, 1000 + i, result=4)["action"])
            found.add(session.call(7 * i + 3, 1, result=results(i))["action"])
        assert found == expected


def test_many_different_calls_are_no_loop() -> None:
    """
    Scenario: ten calls in one second and 3000 in ten minutes, all with other arguments.
    Guarantees: nothing is found.
    """
    assert set(actions(Session().calls(range(1, 11), every_s=0.1))) == {ALLOW}
    assert set(actions(Session().calls(range(1, 3001), every_s=0.2))) == {ALLOW}


def test_a_flood_does_not_push_out_a_loop() -> None:
    """
    Scenario: a call is made twice, then once after every 40 calls that never repeat.
    Guarantees: it keeps its slot, and is paused with the 50th.
    """
    session, other = Session(), iter(range(100, 10_000))
    session.calls([1, 1], every_s=0)
    for i in range(48):
        assert {session.call(i * 5, next(other))["action"] for _ in range(40)} == {ALLOW}
        sign = session.call(i * 5, 1)
    assert (sign["action"], sign["observed"]) == (PAUSE, 50)


def test_fifteen_new_calls_between_do_not_hide_a_loop() -> None:
    """
    Scenario: 15 calls that never repeat between any two of a loop, and 16.
    Guarantees: the first is found; the second is the blind spot that is written down.
    """
    for between, expected in ((15, 50), (16, 1)):
        session, other = Session(), iter(range(100, 10_000))
        for i in range(50):
            sign = session.call(i * 5, 1)
            for _ in range(between):
                session.call(i * 5, next(other))
        assert sign["observed"] == expected


def test_a_late_call_goes_to_its_own_time() -> None:
    """
    Scenario: window 100 s: calls at 200 s, then of 105 s, of 100 s, and a look 100 s later.
    Guarantees: a call in the window counts and leaves with its time; an older one is late.
    """
    session = Session(window="100s", threshold=9)
    session.call(200)
    assert session.call(110)["observed"] == 2
    late = session.call(109)
    assert (late["skipped"], late["score"], late["observed"]) == (LATE, 0, 0)
    assert session.call(209)["observed"] == 3
    assert session.call(210)["observed"] == 3


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: calls without arguments, of a polling tool, of a batch tool, with the detector off.
    Guarantees: each is skipped with its reason and not counted; batch tools are judged.
    """
    session = Session(threshold=2, repeat=2)
    for fields, reason in (({"has_arguments": 0}, NO_ARGUMENTS), ({"exempt": POLLING}, EXEMPT)):
        for i in range(5):
            sign = session.call(i, **fields)
            assert (sign["skipped"], sign["score"], sign["action"]) == (reason, 0, ALLOW)
    assert session.call(5, exempt=BATCH)["observed"] == 1
    assert session.call(6, exempt=BATCH)["action"] == PAUSE
    assert Session(enabled=False).call(0)["skipped"] == OFF


def test_a_copy_is_judged_and_not_counted() -> None:
    """
    Scenario: the fifth call is delivered ten times.
    Guarantees: each copy is told the same as the call, a cycle included.
    """
    for whats in ([1] * 5, [1, 2] * 5):
        session = Session(threshold=5)
        last = session.calls(whats)[-1]
        assert last["action"] == PAUSE
        at_s = len(whats) - 1
        for _ in range(10):
            assert session.look(call_of(at_s, fingerprint=whats[-1], fresh=0)) == last


def test_a_call_that_moves_takes_its_count_along() -> None:
    """
    Scenario: four calls are counted at a wrong session, taken back there and learned at the right
    one; then the fifth comes at each.
    Guarantees: the wrong one has nothing left, the right one pauses.
    """
    wrong, right = Session(threshold=5), Session(threshold=5)
    calls = [call_of(i, fingerprint=7) for i in range(4)]
    for call in calls:
        loop.learn(wrong.state, wrong.plan, call, CALM)
    for call in calls:
        loop.unlearn(wrong.state, wrong.plan, call)
        loop.learn(right.state, right.plan, call, CALM)
    assert wrong.state["total"].sum() == wrong.state["calls"].sum() == 0
    assert wrong.call(4)["observed"] == 1
    assert right.call(4)["action"] == PAUSE


def test_action_is_configured() -> None:
    """
    Scenario: action block; threshold and repeat equal.
    Guarantees: the loop is blocked at the threshold, and there is no warning before.
    """
    session = Session(threshold=3, repeat=3, action="block")
    assert actions([session.call(i, result=1) for i in range(3)]) == [ALLOW, ALLOW, BLOCK]


def test_another_window_starts_the_ring_again() -> None:
    """
    Scenario: the window is changed from an hour to ten seconds and back, between calls.
    Guarantees: no count is carried over, and no call is late for a ring cut otherwise.
    """
    session = Session(window="1h", threshold=3)
    session.calls([7, 7])
    for window in ("10s", "1h"):
        session.plan = loop.make_plan(LoopConfig.model_validate({"window": window}))[0]
        sign = session.call(3)
        assert (sign["skipped"], sign["observed"]) == (JUDGED, 1)


def test_counters_stay_at_their_end() -> None:
    """
    Scenario: a slot that holds 65534 calls, in two sub-windows, gets more.
    Guarantees: it stays at 65535, the sum of its counts, and empties with the window.
    """
    session = Session()
    session.call(0)
    slot = int(session.state["hand"])
    place = int(session.state["head"]) % loop.SUBWINDOWS
    session.state["counts"][slot, place] = session.state["total"][slot] = 65534
    session.state["calls"][place] = session.state["runs"][0] = 65535
    for at_s in (0, 40, 40):
        session.call(at_s)
    assert session.state["total"][slot] == session.state["counts"][slot].sum() == 65535
    assert session.call(40)["observed"] == 65536
    assert session.call(1000)["observed"] == 1


@settings(max_examples=scaled(100))
@given(
    calls=st.lists(
        st.tuples(
            st.integers(1, (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1), st.booleans()
        ),
        max_size=40,
    )
)
def test_any_calls_leave_a_sound_state(calls: list[tuple[int, int, bool]]) -> None:
    """
    Scenario: calls of any hashes at any times a clock can show, learned and taken back.
    Guarantees: each total is the sum of its counts; scores are 0..1 and never fall below a limit.
    """
    session = Session(window="10s", threshold=2, repeat=2)
    for time_ns, hashed, back in calls:
        call = call_of(fingerprint=hashed, result=hashed)
        call["time_ns"] = time_ns
        sign = session.look(call)
        assert 0 <= sign["score"] <= 1
        loop.learn(session.state, session.plan, call, CALM)
        if back:
            loop.unlearn(session.state, session.plan, call)
        np.testing.assert_array_equal(session.state["total"], session.state["counts"].sum(axis=1))


def test_one_session_is_small() -> None:
    """
    Scenario: the record of one session.
    Guarantees: at most 512 bytes.
    """
    assert loop.STATE.itemsize <= 512
