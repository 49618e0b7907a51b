"""Loops that try not to look like one, each with the detector that catches it.

`test_blind_*`: nothing does; see `docs/blind-spots.md`.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.habits import HOME, NOON, WARM_S, actions, only, rig_of, signals, text, warm_rig
from tests.rig import Calls

if TYPE_CHECKING:
    from tests.rig import Rig, Verdict

LOOP = only("loop")


def run(texts: list[str], step_s: float = 4, rig: Rig | None = None, **more: Any) -> list[Verdict]:
    """Calls with these arguments, one every four seconds, so that 75 are in the window."""
    calls = Calls()
    spans = [
        calls.at(NOON + i * step_s, tool="fetch", arguments=arguments, **more)
        for i, arguments in enumerate(texts)
    ]
    return (rig or rig_of(LOOP)).send(spans)


def spelling(rng: random.Random) -> str:
    """One of very many ways to write the same arguments."""
    members = [
        ('"path"', rng.choice(('"a/b"', '"a\\/b"', '"\\u0061/b"'))),
        ('"depth"', rng.choice(("2", "2.0", "2e0", "20e-1", "0.2E+1"))),
        ('"options"', rng.choice(('{"x": null, "y": []}', '{"y":[],"x":null}'))),
    ]
    rng.shuffle(members)

    def space() -> str:
        return rng.choice(("", " ", "\n", "\t  "))

    joined = f",{space()}".join(f"{name}{space()}:{space()}{value}" for name, value in members)
    return f"{{{space()}{joined}{space()}}}"


def test_key_order_and_white_space_are_caught_by_loop() -> None:
    """
    Scenario: the same call sixty times, never written the same way twice.
    Guarantees: paused at the fiftieth, as if it were.
    """
    rng = random.Random(1)
    texts = list(dict.fromkeys(spelling(rng) for _ in range(99)))[:60]
    assert len(texts) == 60
    assert len({json.dumps(json.loads(item)["path"]) for item in texts}) == 1
    found = [verdict.action for verdict in run(texts)]
    assert found == ["allow"] * 49 + ["pause"] * 11


@pytest.mark.parametrize("letters", ["AB", "ABC", "AABB", "ABAC", "ABCDE", "ABCDEFGH"])
def test_cycles_are_caught_by_loop(letters: str) -> None:
    """
    Scenario: two calls in turn, three, and longer ones, a second apart.
    Guarantees: paused when a call of the cycle was made as often as the limit says, and not before.
    """
    rig = rig_of(only("loop", loop={"threshold": 10, "repeat": 10}))
    texts = [text(page=letter) for letter in letters * 10]
    found = [verdict.action for verdict in run(texts, 1, rig)]
    calls_each = max(letters.count(letter) for letter in letters)
    assert "pause" not in found[: 10 * len(letters) // calls_each - len(letters)]
    assert found[-1] == "pause"


def test_a_loop_among_other_calls_is_caught_by_loop() -> None:
    """
    Scenario: the same call once between five different ones, on and on.
    Guarantees: paused when it was made as often as the limit says.
    """
    rig = rig_of(only("loop", loop={"threshold": 10, "repeat": 10}))
    texts = [text(page=-1 if i % 6 == 0 else i) for i in range(60)]
    assert run(texts, 1, rig)[54].action == "pause"


def test_changing_ids_are_caught_as_volatile() -> None:
    """
    Scenario: every call has a new request id, nonce and progress token, at any depth.
    Guarantees: they make no difference: paused at the fiftieth.
    """
    texts = [
        json.dumps(
            {"q": 1, "request_id": str(i), "_meta": {"progressToken": i}, "deep": [{"nonce": i}]}
        )
        for i in range(50)
    ]
    assert run(texts)[-1].action == "pause"


def test_one_below_the_limit_is_caught_by_its_results() -> None:
    """
    Scenario: 49 equal calls in every window of 300 s, which is one below the limit, with the result
    each time the same but for how long it took; the same, failing.
    Guarantees: both are warned of from the tenth on.
    """
    for failing in (False, True):
        calls = Calls()
        spans = [
            calls.at(
                NOON + i * 300 / 49,
                arguments=text(job=7),
                result=None if failing else text(status="pending", took_ms=i),
                error=failing,
            )
            for i in range(49)
        ]
        found = [verdict.action for verdict in rig_of(LOOP).send(spans)]
        assert found == ["allow"] * 9 + ["warn"] * 40


def test_paraphrases_in_haste_are_caught_by_burst() -> None:
    """
    Scenario: the same question in ever new words, every second.
    Guarantees: no call repeats, but there are too many: `risk` warns by `burst`.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(WARM_S + i, tool="db_query", arguments=text(url=HOME, page=f"in words {i}"))
        for i in range(40)
    ]
    verdicts = rig.send(spans)
    assert verdicts[-1].types == ("risk",)
    assert "loop" not in signals(verdicts[-1])


def test_blind_paraphrases_at_a_calm_pace() -> None:
    """
    Scenario: the same, every five seconds; with the same result each time.
    Guarantees: nothing is said: by their arguments these are different calls.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(
            WARM_S + 5 * i,
            tool="db_query",
            arguments=text(url=HOME, page=f"in words {i}"),
            result="nothing found",
        )
        for i in range(60)
    ]
    assert actions(rig.send(spans)) == {"allow"}


def test_blind_a_cycle_of_more_calls_than_slots() -> None:
    """
    Scenario: a cycle of twenty calls, which is more than a session has slots, fifty rounds of it.
    Guarantees: nothing is said by `loop`; a cycle of sixteen is found. A loop of so many calls is
    rarely one of a machine that is stuck.
    """
    few = only("loop", loop={"threshold": 5, "repeat": 5, "window": "3600s"})
    found = []
    for period in (20, 16):
        texts = [text(page=i % period) for i in range(period * 8)]
        found.append("pause" in actions(run(texts, 1, rig_of(few))))
    assert found == [False, True]


def test_blind_a_loop_that_changes_its_session() -> None:
    """
    Scenario: the same call every five seconds, in a new session each time.
    Guarantees: nothing is said: repetition is looked for within a session. In haste it is a burst
    of the agent (`test_evasion`).
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(WARM_S + 5 * i, tool="db_query", session=f"r{i}", arguments=text(url=HOME, page=1))
        for i in range(60)
    ]
    assert actions(rig.send(spans)) == {"allow"}


def test_blind_a_loop_of_traces_without_a_session() -> None:
    """
    Scenario: the same call every five seconds without a session id, each a trace of its own; then
    all of them in one trace.
    Guarantees: in traces of their own nothing is said: nothing ties one to another but the agent,
    whom many users may ask the same. In one trace it is a loop.
    """
    same = {"tool": "db_query", "session": None, "arguments": text(url=HOME, page=1)}
    rig, calls = warm_rig()
    assert actions(rig.send(calls.many(60, WARM_S, 5, **same))) == {"allow"}
    rig, calls = warm_rig()
    together = calls.many(60, WARM_S, 5, trace_id=b"one trace of all", **same)
    assert rig.send(together)[-1].types == ("loop",)


def test_blind_a_stamp_that_nobody_named_volatile() -> None:
    """
    Scenario: a client stamps every call with the time, in a member the configuration does not name;
    then it does.
    Guarantees: no loop; with the name in `volatile` there is.
    """
    texts = [text(q=1, ts=i) for i in range(50)]
    assert actions(run(texts)) == {"allow"}
    named = only("loop", loop={"volatile": ["ts"]})
    assert run(texts, rig=rig_of(named))[-1].action == "pause"


def test_blind_a_loop_without_arguments_on_its_spans() -> None:
    """
    Scenario: the same call again and again; its spans carry no arguments, as is usual.
    Guarantees: nothing is said, and it is counted why. In haste `burst` and `rate` see it.
    """
    rig, calls = warm_rig()
    verdicts = rig.send(calls.many(60, WARM_S, 4, tool="db_query"))
    assert actions(verdicts) == {"allow"}
    assert rig.counts("detector_skipped", "loop", "no_arguments") == 60


def test_errors_that_read_differently_are_caught_by_loop() -> None:
    """
    Scenario: the same call fails sixty times, each time with another error text; then it works, and
    comes back with something new each time.
    Guarantees: warned of from the tenth on, paused from the fiftieth; calls that work are counted
    apart, and progress is no loop.
    """
    calls, rig = Calls(), rig_of(LOOP)
    failing = [
        calls.at(
            NOON + i * 4,
            tool="fetch",
            arguments=text(page="a"),
            error=True,
            result=f"no answer, try {i}",
        )
        for i in range(60)
    ]
    found = [verdict.action for verdict in rig.send(failing)]
    assert found == ["allow"] * 9 + ["warn"] * 40 + ["pause"] * 11
    working = [
        calls.at(NOON + 240 + i, tool="fetch", arguments=text(page="a"), result=f"page {i}")
        for i in range(60)
    ]
    assert actions(rig.send(working)) == {"allow"}
