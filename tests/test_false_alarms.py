"""Work that looks like an anomaly and is none: no `pause`, no `block`, on default settings.

Each by an agent that is known, where that makes a difference, and by one that is not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.habits import HOME, HOUR, NOON, WARM_S, actions, rig_of, text, warm_rig
from tests.rig import Calls, Rig
from tests.sizes import COMPILED

if TYPE_CHECKING:
    from tests.rig import Verdict

STOPPED = {"pause", "block"}
BATCH = 3000 if COMPILED else 600


def service(*, known: bool) -> tuple[Rig, Calls]:
    """A service on its defaults, which knows agent `a` or nobody."""
    return warm_rig() if known else (rig_of(), Calls())


def types(verdicts: list[Verdict]) -> set[str]:
    return {kind for verdict in verdicts for kind in verdict.types}


@pytest.mark.parametrize("known", [True, False])
def test_polling_for_an_hour(*, known: bool) -> None:
    """
    Scenario: the same call every five seconds for an hour; the result changes each time.
    Guarantees: nothing is said of it, from the first poll to the last, but that a tool is new.
    """
    rig, calls = service(known=known)
    spans = [
        calls.at(
            WARM_S + 5 * i,
            tool="get_status",
            arguments=text(job="7f3a"),
            result=json.dumps({"status": "running", "percent": round(i / 7.2, 1)}),
        )
        for i in range(720)
    ]
    verdicts = rig.send(spans)
    assert actions(verdicts[1:]) == {"allow"}
    assert verdicts[0].action == ("warn" if known else "allow")


def test_polling_that_does_not_tell_its_results() -> None:
    """
    Scenario: the same, with no result on the spans; and a tool named in `policy.polling_tools` with
    the same result every time.
    Guarantees: without results sixty equal calls in five minutes are a loop, and so the exemption
    is there: with it nothing is said.
    """
    call: dict[str, Any] = {"tool": "get_status", "arguments": text(job="7f3a")}
    rig, calls = rig_of(), Calls()
    assert "loop" in types(rig.send(calls.many(60, NOON, 5, **call)))
    rig = rig_of(policy={"polling_tools": ["get_*"]})
    same = {**call, "result": '{"status": "running"}'}
    assert actions(rig.send(calls.many(60, NOON, 5, **same))) == {"allow"}


def batch(calls: Calls, count: int, start_s: float, per_s: float, at_once: int = 1) -> list[Any]:
    """A batch: every call another target; so many of them end at the same time."""
    return [
        calls.at(
            start_s + i // at_once * at_once / per_s,
            tool="db_query",
            session="batch",
            arguments=text(url=HOME, page=10_000 + i),
            result=f"row {i}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("per_minute", "at_once", "spoke"),
    [
        (50, 1, {"risk"}),
        (100, 1, {"rate", "risk"}),
        (300, 20, {"rate", "risk"}),
        (480, 1, {"rate", "risk"}),
        (480, 16, {"rate", "risk"}),
    ],
    ids=["an hour", "half an hour", "ten minutes, in groups", "six minutes", "six, in groups"],
)
def test_a_batch_of_three_thousand(
    per_minute: int, at_once: int, spoke: set[str], *, known: bool
) -> None:
    """
    Scenario: 3000 calls on different targets by an agent that never was seen, or that made one a
    minute so far: within an hour, and as fast as a session may go; one by one and twenty at once.
    Guarantees: no `pause` and no `block`; no loop. It is warned of: that many are told to somebody.
    """
    rig, calls = service(known=known)
    verdicts = rig.send(batch(calls, BATCH, WARM_S, per_minute / 60, at_once))
    assert not actions(verdicts) & STOPPED
    assert types(verdicts) == spoke


def test_a_batch_faster_than_a_session_may_go() -> None:
    """
    Scenario: a known agent's 3000 calls within three minutes: on default settings; with an override
    that sets its tool free, and the tool named in `policy.batch_tools`; then other calls of the
    same session.
    Guarantees: more than 500 a minute are blocked by default, which is what the limit is for. With
    the settings that README gives nothing is said of the batch, and it is not counted against
    what else the session does.
    """
    rig, calls = warm_rig()
    verdicts = rig.send(batch(calls, 600, WARM_S, 1000 / 60))
    assert [v.action for v in verdicts].index("block") == 499
    free = {"rate": {"enabled": False}, "rate_shift": {"enabled": False}}
    policy = {"batch_tools": ["db_*"], "overrides": [{"tool": "db_*", "detectors": free}]}
    rig, calls = warm_rig(policy=policy)
    assert actions(rig.send(batch(calls, BATCH, WARM_S, 1000 / 60))) == {"allow"}
    beside = {"tool": "read_page", "session": "batch", "arguments": text(url=HOME, page=1)}
    (verdict,) = rig.send([calls.at(WARM_S + BATCH * 60 / 1000, **beside)])
    assert verdict.action == "allow"
    assert not {name for name, _ in verdict.signals} & {"rate", "rate_shift", "burst"}


def test_a_batch_tool_that_is_exempt() -> None:
    """
    Scenario: a known agent's batch at 90 a minute, with a tool named in `policy.batch_tools`.
    Guarantees: nothing is said at all.
    """
    rig, calls = warm_rig(policy={"batch_tools": ["db_*"]})
    assert actions(rig.send(batch(calls, 300, WARM_S, 1.5))) == {"allow"}


FILES = ("src/app.py", "src/model.py", "tests/test_app.py")


def edit_and_test(calls: Calls, start_s: float, rounds: int) -> list[Any]:
    """A coding agent: reads a file, edits it, runs the tests, whose output is another each time."""
    spans = []
    for i in range(rounds):
        path, at = f"/repo/{FILES[i % 3]}", start_s + 40 * i
        edit = {"file_path": path, "old": f"x = {i}", "new": f"x = {i + 1}"}
        run = {"command": "pytest -q", "description": "Run the tests"}
        failed = 30 - i % 30
        spans += [
            calls.at(at, tool="Read", arguments=text(file_path=path), result=f"x = {i}"),
            calls.at(at + 9, tool="Edit", arguments=text(**edit), result="ok"),
            calls.at(
                at + 30,
                tool="Bash",
                arguments=text(**run),
                result=f"{failed} failed, {100 - failed} passed in {3 + i % 5}.1s",
                error=failed > 0,
            ),
        ]
    return spans


def test_tests_run_again_after_each_edit() -> None:
    """
    Scenario: eighty rounds of reading, editing and running the same tests, most of which fail.
    Guarantees: nothing is said: each run says something else.
    """
    rig, calls = rig_of(), Calls()
    verdicts = rig.send(edit_and_test(calls, NOON, 80))
    assert actions(verdicts) == {"allow"}


def test_tests_run_again_with_the_same_output() -> None:
    """
    Scenario: the same, but the tests say the same each time, for what fails is not what is edited.
    Guarantees: no `pause` and no `block`: seven runs in five minutes are no loop.
    """
    rig, calls = rig_of(), Calls()
    spans = edit_and_test(calls, NOON, 40)
    for span in spans[2::3]:
        for pair in span.attributes:
            if pair.key == "gen_ai.tool.call.result":
                pair.value.string_value = "3 failed, 97 passed in 4.2s"
    assert not actions(rig.send(spans)) & STOPPED


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_ten_parallel_calls_in_a_second(*, known: bool, same: bool) -> None:
    """
    Scenario: ten calls at once, again and again each minute for ten minutes; on different targets,
    and the same one.
    Guarantees: nothing is said.
    """
    rig, calls = service(known=known)
    for turn in range(10):
        at = WARM_S + 60 * turn
        spans = [
            calls.at(
                at + 0.1 * i,
                start_ns=round(at * 10**9),
                trace_id=b"turn %11d" % turn,
                tool="read_page",
                session=f"turn{turn}",
                call_id=f"call_{turn}_{i}",
                arguments=text(url=HOME, page=0 if same else 10 * turn + i),
            )
            for i in range(10)
        ]
        assert actions(rig.send(spans)) == {"allow"}


def test_an_agent_that_starts_late_in_the_evening() -> None:
    """
    Scenario: a known agent's usual work, at midnight.
    Guarantees: being off hours is no alarm by itself.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(NOON + 12 * HOUR + 70 * i, tool="db_query", arguments=text(url=HOME, page=i))
        for i in range(40)
    ]
    assert actions(rig.send(spans)) == {"allow"}


def test_a_restart_and_a_new_version() -> None:
    """
    Scenario: a known agent is restarted with a new session, calls one tool it has with a new
    argument, and goes on.
    Guarantees: no alarm: new names of arguments are a sign, not a finding.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(
            WARM_S + 70 * i,
            session="after",
            tool="db_query",
            arguments=text(url=HOME, page=i, limit=10),
        )
        for i in range(30)
    ]
    verdicts = rig.send(spans)
    assert actions(verdicts) == {"allow"}
    assert verdicts[0].signals != ()
