"""Acceptance cases I1-I3, C1-C14 and C25: the learned profile of an agent and its one risk.

By the ids the issue tracker uses. What that system called a user is an agent here, what it called
its pre and post hooks is one span; its scores add up otherwise, so that each threshold can be
reached (`detectors/risk.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.cli import main
from tests.habits import (
    NOON,
    WARM_S,
    actions,
    calm,
    fork,
    one,
    only,
    rig_of,
    signals,
    text,
    warm_rig,
)
from tests.rig import Calls, Rig
from tests.snapshot_rigs import restarted, save

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = {"tool": "db_query", "arguments": text(url="https://api.example.com/v1/items", page=7)}
NOVEL = {"tool": "delete_records", "arguments": text(table="customers")}
NIGHT_S = NOON + 12 * 3600
BLOCKING = {"risk": {"action": "block", "warn": 0.1, "block": 0.3}}


def test_i1() -> None:
    """
    Scenario: alice is known for `db_query` and calls it with her usual arguments.
    Guarantees: allowed, risk below 0.5.
    """
    rig, calls = warm_rig()
    verdict = one(rig, calls.at(WARM_S, **KNOWN))
    assert (verdict.action, verdict.mode, verdict.score) == ("allow", "active", 0.0)


def test_i2() -> None:
    """
    Scenario: alice never used `delete_records`, and does, in working hours, with default settings.
    Guarantees: the risk is elevated, the verdict warns and says why, and an episode is told.
    """
    rig, calls = warm_rig()
    verdict = one(rig, calls.at(WARM_S, **NOVEL))
    assert (verdict.action, verdict.score, verdict.types) == ("warn", 0.6, ("risk",))
    assert "a tool this agent has not used lately, after 60 calls" in (verdict.reason or "")
    assert rig.steps() == [("start", "risk")]


def test_i3() -> None:
    """
    Scenario: burst threshold 20 in 60 s (the default), 25 calls in 30 s.
    Guarantees: from the 20th on the burst score is over its threshold, and the last one warns.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(WARM_S + 1.2 * i, tool="db_query", arguments=text(url="/v1", page=i))
        for i in range(25)
    ]
    verdicts = rig.send(spans)
    bursts = [signals(verdict).get("burst", 0.0) for verdict in verdicts]
    assert [burst >= 0.5 for burst in bursts] == [False] * 19 + [True] * 6
    assert (verdicts[-1].action, verdicts[-1].types) == ("warn", ("risk",))


def test_c1() -> None:
    """
    Scenario: the learning time is 9999 s; calls of ever new tools for 9998 s, then one later.
    Guarantees: all continue in mode learning; then the mode is active.
    """
    rig, calls = rig_of({"learning": {"time": "9999s"}}), Calls()
    spans = [calls.at(NOON + i * 166, tool=f"t{i % 60}") for i in range(60)]
    verdicts = rig.send([*spans, calls.at(NOON + 9998, tool="t_new")])
    assert {(verdict.action, verdict.mode) for verdict in verdicts} == {("allow", "learning")}
    assert one(rig, calls.at(NOON + 9999, tool="t1")).mode == "active"


def test_c2() -> None:
    """
    Scenario: while learning, which two calls end, a call of `tool_a`, then one of `tool_b`.
    Guarantees: afterwards both are known, and a third tool is new after two calls in total.
    """
    rig, calls = rig_of({"learning": {"samples": 2, "time": "0s"}}), Calls()
    learned = rig.send([calls.at(NOON, tool="tool_a"), calls.at(NOON + 1, tool="tool_b")])
    assert [(v.mode, v.signals) for v in learned] == [("learning", ())] * 2
    for tool in ("tool_a", "tool_b"):
        verdict = one(fork(rig), calls.at(NOON + 2, tool=tool))
        assert (verdict.action, signals(verdict)) == ("allow", {})
    verdict = one(rig, calls.at(NOON + 2, tool="tool_c"))
    assert signals(verdict)["novelty"] == 1.0
    assert "a tool this agent has not used lately, after 2 calls" in (verdict.reason or "")


def test_c3() -> None:
    """
    Scenario: three tools with 50 calls each and argument names that are known; then `db_query`, in
    hours and off hours.
    Guarantees: risk below 0.5: 0 in hours, 0.15 off hours.
    """
    rig, calls = warm_rig(count=150)
    assert one(rig, calls.at(NOON + 150 * 70 + 120, **KNOWN)).score == 0.0
    assert one(rig, calls.at(NIGHT_S, **KNOWN)).score == pytest.approx(0.15)


def test_c4() -> None:
    """
    Scenario: the same past, and a tool never used, in hours and off hours.
    Guarantees: novelty 1.0, risk at least 0.35 (0.6, and 0.66 at night), and it continues.
    """
    for at, risk in ((WARM_S, 0.6), (NIGHT_S, 0.66)):
        rig, calls = warm_rig()
        verdict = one(rig, calls.at(at, **NOVEL))
        assert signals(verdict)["novelty"] == 1.0
        assert signals(verdict)["risk"] == pytest.approx(risk)
        assert verdict.action == "warn"


def test_c5() -> None:
    """
    Scenario: the same past, and a known tool with argument names never used with it.
    Guarantees: novelty 0.5, risk 0.3, allowed.
    """
    rig, calls = warm_rig()
    verdict = one(rig, calls.at(WARM_S, tool="db_query", arguments=text(sql="select 1")))
    assert signals(verdict) == {"novelty": 0.5, "risk": pytest.approx(0.3)}
    assert verdict.action == "allow"


def test_c6() -> None:
    """
    Scenario: burst threshold 5 in 60 s, 6 calls.
    Guarantees: burst above 0: at the limit 0.5, on the sixth 0.6.
    """
    rig, calls = rig_of({"burst": {"threshold": 5, "window": "60s"}}), Calls()
    bursts = [signals(verdict).get("burst") for verdict in rig.send(calls.many(6, NOON, 1))]
    assert bursts[4:] == [0.5, 0.6]


def test_c7() -> None:
    """
    Scenario: action block, block 0.3, warn 0.1, a tool never used.
    Guarantees: the verdict is block, its type is risk, and it says what was observed.
    """
    rig, calls = warm_rig(BLOCKING)
    verdict = one(rig, calls.at(WARM_S, **NOVEL))
    assert (verdict.action, verdict.types) == ("block", ("risk",))
    assert "risk: weak signs add up to 0.6 on a scale to 1, limit 0.3" in (verdict.reason or "")


def test_c8() -> None:
    """
    Scenario: action warn, warn 0.1, a tool never used.
    Guarantees: it continues, with a risk of at least 0.1.
    """
    rig, calls = warm_rig({"risk": {"warn": 0.1}})
    verdict = one(rig, calls.at(WARM_S, **NOVEL))
    assert verdict.action == "warn"
    assert verdict.score >= 0.1


def test_c9() -> None:
    """
    Scenario: a finished call: its span carries arguments and result.
    Guarantees: the risk stands on that span, once, beside its result.
    """
    rig, calls = warm_rig()
    rig.send([calls.at(WARM_S, **NOVEL, result='{"deleted": 3}')])
    (span,) = rig.spans_out()
    keys = [pair.key for pair in span.attributes]
    assert keys.count("anomaly.signal.risk") == 1
    assert keys.count("gen_ai.tool.call.result") == 1
    assert rig.counts("tool_calls") == 61


def test_c10() -> None:
    """
    Scenario: off-hours are the whole day.
    Guarantees: every call is told to be off hours, at each hour of the day.
    """
    rig, calls = rig_of({"off_hours": {"start": 0, "end": 24}}), Calls()
    for hour in range(24):
        assert signals(one(rig, calls.at(NOON + hour * 3600)))["off_hours"] == 1.0


def test_c11() -> None:
    """
    Scenario: the user's keys are a mail address, then a subject. Calls carry both, the address
    alone, the subject alone, an empty address and the subject, and neither.
    Guarantees: counted by the address, where there is one; else by the subject; else by `anon`; the
    span says how many, and by which key.
    """
    identity = {"user": ["user.email", "sub"]}
    rig, calls = rig_of(only("rate", rate={"warn": 1}), identity=identity), Calls()
    unknown = "agent=none (weak), session=trace (weak), "

    def counted(email: str | None, sub: str | None) -> tuple[str | None, str]:
        said = [("user.email", email), ("sub", sub)]
        extra = [(key, value) for key, value in said if value is not None]
        verdict = one(rig, calls.at(NOON, agent=None, session=None, extra=extra))
        return verdict.reason, (verdict.identity or "").removeprefix(unknown)

    once, twice = (f"rate: {count} calls in 60 s, limit 1" for count in (1, 2))
    assert counted("bob@co.com", "7") == (once, "rate=user, user=user.email")
    assert counted("bob@co.com", None) == (twice, "rate=user, user=user.email")
    assert counted(None, "7") == (once, "rate=user, user=sub")
    assert counted("", "7") == (twice, "rate=user, user=sub")
    assert counted(None, None) == (once, "rate=anon (weak)")
    assert counted("", "") == (twice, "rate=anon (weak)")
    assert {caller.user for caller in rig.callers} == {"bob@co.com", "7", None}


def test_c12() -> None:
    """
    Scenario: a history of ten seconds and of ten calls: 20 calls, one a second.
    Guarantees: no more than ten are counted; what is kept of an agent has the same size as before.
    """
    windows = {"rate": {"window": "10s", "warn": 1}, "burst": {"window": "10s", "threshold": 10}}
    rig, calls = rig_of(windows), Calls()
    before = rig.state.agents.rows.nbytes + rig.state.sessions.rows.nbytes
    verdicts = rig.send(calls.many(20, NOON, 1))
    counted = [(verdict.reason or "").partition(" calls")[0] for verdict in verdicts]
    assert counted == [f"rate: {min(i + 1, 10)}" for i in range(20)]
    assert [signals(verdict).get("burst") for verdict in verdicts[9:]] == [0.5] * 11
    assert rig.state.agents.rows.nbytes + rig.state.sessions.rows.nbytes == before


def test_c13() -> None:
    """
    Scenario: a tool never used is blocked, and called again and again.
    Guarantees: it stays as new as it was, and is blocked each time: none of these calls is learned.
    """
    rig, calls = warm_rig(BLOCKING)
    for i in range(5):
        verdict = one(rig, calls.at(WARM_S + 100 * i, **NOVEL))
        assert (verdict.action, signals(verdict)["novelty"]) == ("block", 1.0)
        assert "a tool this agent has not used lately, after 60 calls" in (verdict.reason or "")
    assert rig.counts("verdicts", "block") == 5


@pytest.mark.parametrize(
    ("risk", "says"),
    [
        ("action: blok", "detectors.risk.action"),
        ("action: pause", "detectors.risk.action"),
        ("{warn: 0.9, block: 0.8}", "warn (0.9) must be below block (0.8)"),
    ],
    ids=["misspelt", "not an action of risk", "ladder"],
)
def test_c14(tmp_path: Path, capsys: pytest.CaptureFixture[str], risk: str, says: str) -> None:
    """
    Scenario: an action that does not exist; a warning above the block.
    Guarantees: the configuration is refused with exit code 2, naming the key and the line.
    """
    path = tmp_path / "config.yaml"
    path.write_text(f"detectors:\n  risk:\n    {risk}\n", "utf-8")
    assert main(["validate", "--config", str(path)]) == 2
    said = "".join(capsys.readouterr())
    assert says in said
    assert ":3: " in said


def test_c25(tmp_path: Path) -> None:
    """
    Scenario: defect 25, state lost at a restart: alice is known; the service stops and another
    process starts in its place.
    Guarantees: it is not learning anew: what she knows is allowed as before, what is new to her is
    warned of at once.
    """
    rig, calls = warm_rig()
    again = restarted(rig, save(rig, tmp_path / "state.snapshot"))
    verdict = one(again, calls.at(WARM_S, **KNOWN))
    assert (verdict.action, verdict.mode, verdict.score) == ("allow", "active", 0.0)
    verdict = one(again, calls.at(WARM_S + 1, **NOVEL))
    assert (verdict.action, verdict.score, verdict.types) == ("warn", 0.6, ("risk",))
    assert "after 61 calls" in (verdict.reason or "")


def test_the_past_of_these_cases_is_the_default_one() -> None:
    """
    Scenario: the calm past that most cases start from, on defaults, one call less than needed.
    Guarantees: the agent is still learning, so warm is what the cases begin with and not before.
    """
    rig, calls = Rig(detectors={}), Calls()
    verdicts = rig.send(calm(calls, 49))
    assert actions(verdicts) == {"allow"}
    late: dict[str, Any] = {**NOVEL}
    assert one(rig, calls.at(WARM_S, **late)).mode == "learning"
