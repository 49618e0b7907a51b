"""Defects 1-25 listed of the learned profile this one replaces (ContextForge), each shown absent.

`docs/defects.md` has the table. The defects of the other two systems stand in `test_defects` and
`test_defects_assembly`.
"""

from __future__ import annotations

import io
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.config.summary import summary
from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import SKIP_REASONS
from otel_anomaly.handoff import Batch, Outcome, Signal
from otel_anomaly.otlp.scan import scan
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.sinks import ConsoleSink
from otel_anomaly.telemetry import Telemetry
from tests.book_rigs import BookRig
from tests.habits import (
    DAY,
    HOUR,
    NOON,
    WARM_S,
    actions,
    calm,
    one,
    only,
    rig_of,
    signals,
    text,
    the_agent,
    warm_rig,
)
from tests.rig import ROOMY, Calls, arrays_of
from tests.sink_rigs import StoppedClock
from tests.sizes import scaled
from tests.snapshot_rigs import restarted, save
from tests.traffic import request

if TYPE_CHECKING:
    from tests.rig import Rig

ROOT = Path(__file__).resolve().parent.parent
NOVEL: dict[str, Any] = {"tool": "delete_records", "arguments": text(table="customers")}
KNOWN: dict[str, Any] = {"tool": "db_query", "arguments": text(url="/v1", page=7)}
QUICK = {"learning": {"samples": 10, "time": "0s"}}
"""Warm after ten calls, where a test is not about learning."""


def skipped(rig: Rig, detector: str) -> str:
    """Why a detector did not judge the last call; "" when it did."""
    told = rig.told[-1]
    assert told is not None
    return SKIP_REASONS[told.skipped[DETECTORS.index(detector)]]


def size_of(rig: Rig) -> int:
    """Bytes of everything remembered."""
    return sum(array.nbytes for array in arrays_of(rig.state))


def test_contextforge_01_everything_is_bounded() -> None:
    """
    Scenario: more agents, services, sessions, tools, argument names, destinations and calls than
    there is room for, all different.
    Guarantees: not a byte more is held than before; what gave way is counted; who is full of names
    in use says `memory_full` and stays silent.
    """
    limits = {
        **ROOMY,
        "agents": 8,
        "sessions": 8,
        "services": 4,
        "agent_keep": "1s",
        "session_keep": "1s",
    }
    rig, calls = rig_of(QUICK, limits=limits), Calls()
    before = size_of(rig)
    for i in range(60):
        who = {"agent": f"a{i}", "session": f"s{i}"}
        rig.send([calls.at(NOON + 2 * i, **who)], resource=[("service.name", f"x{i}")])
    for i in range(120):
        arguments = text(**{f"name{i}": f"https://h{i}.example.com"})
        rig.send([calls.at(NOON + 1000 + 30 * i, tool=f"t{i}", arguments=arguments)])
    assert size_of(rig) == before
    for scope, room in (("agent", 8), ("session", 8), ("service", 4)):
        assert rig.counts("entities", scope) == room
        assert rig.counts("entities_evicted", scope) >= 50
    (row,) = (row for row in rig.state.agents.rows if row["past"]["calls"] > 10)
    for kind, room in zip(range(3), past.SIZES, strict=False):
        assert past.known(row["past"], np.int64(kind)) == room
    for detector in ("novelty", "new_destination"):
        assert skipped(rig, detector) == "memory_full"


def test_contextforge_02_a_blocked_call_teaches_nothing() -> None:
    """
    Scenario: calls of a new tool, to a new host, of a new program, with new argument names, all
    blocked; then the same without whatever blocked them.
    Guarantees: the past is bit for bit what it was; all of it is still new.
    """
    blocks = {"unknown_connection": {"allow": ["*.example.com"]}}
    rig, calls = warm_rig(blocks)
    before = the_agent(rig)["past"].tobytes()
    for i in range(3):
        arguments = text(command="nmap", target="https://evil.net", path="/opt/secret/x")
        verdict = one(rig, calls.at(WARM_S + 100 * i, tool="bash", arguments=arguments))
        assert verdict.action == "block"
    assert the_agent(rig)["past"].tobytes() == before
    arguments = text(command="nmap", path="/opt/secret/x")
    verdict = one(rig, calls.at(WARM_S + 400, tool="bash", arguments=arguments))
    assert verdict.types == ("risk", "new_destination", "child_process")
    assert signals(verdict)["novelty"] == 1.0


def test_contextforge_03_tenants_do_not_mix() -> None:
    """
    Scenario: `alice` of tenant A has a past; an agent of the same name and service, of tenant B,
    calls what A's alice never used, and A's does the same.
    Guarantees: B's is cold and nothing is said of her; A's is warned of.
    """
    rig, calls = rig_of(), Calls()
    service = [("service.name", "desk")]
    rig.send(calm(calls, tenant="A", agent="alice"), resource=service)
    other = one(rig, calls.at(WARM_S, tenant="B", agent="alice", **NOVEL), resource=service)
    assert (other.action, other.mode, other.signals) == ("allow", "learning", ())
    own = one(rig, calls.at(WARM_S, tenant="A", agent="alice", **NOVEL), resource=service)
    assert (own.action, own.mode) == ("warn", "active")


def test_contextforge_04_one_owner_of_the_state() -> None:
    """
    Scenario: requests are scanned by eight threads at once, and judged as the service judges: one
    after the other.
    Guarantees: the same verdicts and the same state as when one thread does it all. What runs in
    several threads has no state; what has state runs in one.
    """
    bodies = [request(calm(Calls(), 20, NOON + 100 * i, 5, agent=f"a{i}")) for i in range(8)]
    alone, shared = rig_of(), rig_of()
    for body in bodies:
        alone.offer(body)
    with ThreadPoolExecutor(8) as threads:
        scanned = list(threads.map(lambda body: scan(body, shared.processor.keys), bodies))
    for body, columns in zip(bodies, scanned, strict=True):
        reply = shared.processor.process_columns(Batch(body, Signal.TRACES, "grpc", 0), columns)
        assert reply.outcome is Outcome.ACCEPTED
    assert shared.told == alone.told
    assert shared.digest() == alone.digest()


@pytest.mark.parametrize(
    "risk", [{"action": "blocked"}, {"action": "BLOCK"}, {"warn": 0.8}, {"block": 0.4}]
)
def test_contextforge_05_actions_and_ladders_are_checked(risk: dict[str, Any]) -> None:
    """
    Scenario: actions that do not exist, thresholds that are not ordered.
    Guarantees: none of them is accepted.
    """
    with pytest.raises(ValidationError):
        Config.model_validate({"detectors": {"risk": risk}})


def test_contextforge_06_one_setting_decides() -> None:
    """
    Scenario: a grave risk with the default action, and with action block; nothing else is set.
    Guarantees: warn; block. The line the service starts with says the action it will take.
    """
    found = []
    for action in ("warn", "block"):
        rig, calls = warm_rig({"risk": {"action": action, "block": 0.55}})
        found.append(one(rig, calls.at(WARM_S, **NOVEL)).action)
        assert f"action {action}" in summary(rig.config)
        assert "enforce: actions are written as decided" in summary(rig.config)
    assert found == ["warn", "block"]


def test_contextforge_07_a_call_is_recorded_when_the_docs_say() -> None:
    """
    Scenario: a call with its result, judged; the same span again.
    Guarantees: learned once, with the span of the finished call, as `detectors/past.py` says. (The
    tables of the README are generated from the code: `test_docs`.)
    """
    rig, calls = rig_of(), Calls()
    span = calls.at(NOON, **KNOWN, result="{}")
    for _ in range(2):
        rig.send([span])
        assert the_agent(rig)["past"]["calls"] == 1
    assert "Only calls whose\nverdict is below `pause` are learned" in (past.__doc__ or "")


def test_contextforge_08_what_is_emitted_is_documented() -> None:
    """
    Scenario: a verdict with everything in it: types, a reason, a weak identity, all signals.
    Guarantees: every attribute written stands in the table of the README, and no other does.
    """
    rig, calls = warm_rig(annotate={"signals": "all"})
    rig.send([calls.at(WARM_S, session=None, **NOVEL)])
    (span,) = rig.spans_out()
    keys = {pair.key for pair in span.attributes if pair.key.startswith("anomaly.")}
    per_detector = {f"anomaly.signal.{detector}" for detector in DETECTORS}
    assert keys >= per_detector
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = [line.split("`")[1] for line in readme.splitlines() if line.startswith("| `anomaly.")]
    assert set(rows) == keys - per_detector | {"anomaly.signal.<detector>"}


def test_contextforge_09_frequency_means_rarer() -> None:
    """
    Scenario: a tool used once in 300 calls, and one used all the time; each is called.
    Guarantees: the rare one has the signal, the usual one has none.
    """
    rig, calls = rig_of({**only("frequency"), **QUICK}), Calls()
    rig.send([calls.at(NOON + i, tool="rare" if i == 5 else "usual") for i in range(300)])
    assert signals(one(rig, calls.at(NOON + 301, tool="rare")))["frequency"] == 0.6
    assert signals(one(rig, calls.at(NOON + 302, tool="usual"))) == {}


def test_contextforge_10_the_hour_is_looked_at_once() -> None:
    """
    Scenario: calls that end a nanosecond before the off hours begin, as they begin, and in their
    last nanosecond; each arrives on the other side.
    Guarantees: the signal and the risk made of it agree, and follow the time of the call.
    """
    rig, calls = rig_of(), Calls()
    for hour, before, after in ((22, 0.0, 1.0), (30, 1.0, 0.0)):
        edge_ns = (NOON + (hour - 12) * HOUR) * SECOND_NS
        for end_ns, night in ((edge_ns - 1, before), (edge_ns, after)):
            received_ns = 2 * edge_ns - end_ns + 5 * SECOND_NS
            span = calls.at(0, end_ns=end_ns, agent=f"a{end_ns}")
            (verdict,) = rig.send([span], received_ns)
            assert signals(verdict).get("off_hours", 0.0) == night
            assert signals(verdict).get("risk", 0.0) == pytest.approx(0.15 * night)


@pytest.mark.parametrize(
    ("start", "end"), [(22, 6), (9, 17), (0, 24), (0, 23), (23, 1), (5, 5), (0, 0), (24, 0)]
)
def test_contextforge_11_every_hour_of_the_day(start: int, end: int) -> None:
    """
    Scenario: a call in each of the 24 hours, for several settings, among them always and never.
    Guarantees: exactly the hours from `start` up to `end` are off hours, over midnight as well.
    """
    rig, calls = rig_of({"off_hours": {"start": start, "end": end}}), Calls()
    inside = {h for h in range(24) if start <= h < end} if start < end else set()
    if start > end:
        inside = {h for h in range(24) if h >= start or h < end}
    midnight = NOON - 12 * HOUR
    verdicts = rig.send([calls.at(midnight + h * HOUR + 1799, agent=f"a{h}") for h in range(24)])
    night = {h for h, verdict in enumerate(verdicts) if "off_hours" in signals(verdict)}
    assert night == inside


def test_contextforge_12_the_linter_is_strict() -> None:
    """
    Scenario: the settings of the linter, and what runs with every change.
    Guarantees: all rules are on, unused imports and variables are not exempt, and it is run.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert settings["select"] == ["ALL"]
    exempt = [*settings["ignore"], *chain(*settings.get("per-file-ignores", {}).values())]
    assert not [rule for rule in exempt if re.match(r"F\d", rule)]
    assert "\t$(BIN)/ruff check .\n" in (ROOT / "Makefile").read_text("utf-8")
    assert "\nmake lint\n" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_contextforge_13_what_cannot_be_reached_is_refused() -> None:
    """
    Scenario: weights by which no call can reach `block`; then the defaults, and a
    new tool in a burst, in working hours.
    Guarantees: the first is refused with the sum; by the second it can be blocked, and is.
    """
    weights = {"novelty": 0.35, "burst": 0.35, "frequency": 0.15, "off_hours": 0.15}
    with pytest.raises(ValidationError, match=r"block 0\.8 cannot be reached: at most 0\.6409"):
        Config.model_validate({"detectors": {"risk": {"weights": weights, "action": "block"}}})
    rig, calls = warm_rig({"risk": {"action": "block"}})
    rig.send(calls.many(30, WARM_S, **KNOWN))
    assert one(rig, calls.at(WARM_S, **NOVEL)).action == "block"


def test_contextforge_14_a_new_tool_alone_warns_by_day() -> None:
    """
    Scenario: defaults, working hours, a tool never used, no burst.
    Guarantees: warn.
    """
    rig, calls = warm_rig()
    assert one(rig, calls.at(WARM_S, **NOVEL)).types == ("risk",)


def test_contextforge_15_a_burst_alone_warns_by_day() -> None:
    """
    Scenario: defaults, working hours, known tools only, 25 calls in 30 s.
    Guarantees: warn.
    """
    rig, calls = warm_rig()
    spans = [
        calls.at(WARM_S + i, tool="db_query", arguments=text(url="/", page=i)) for i in range(25)
    ]
    verdict = rig.send(spans)[-1]
    assert (verdict.action, verdict.types) == ("warn", ("risk",))
    assert set(signals(verdict)) == {"burst", "risk"}


def test_contextforge_16_a_burst_is_graded() -> None:
    """
    Scenario: a hundred calls within a minute, where twenty are the threshold.
    Guarantees: the score never falls, takes many values beyond the threshold, and 25 calls and 40
    do not score alike.
    """
    rig, calls = rig_of(only("burst")), Calls()
    scores = [signals(verdict).get("burst", 0.0) for verdict in rig.send(calls.many(100, NOON))]
    assert scores == sorted(scores)
    assert len(set(scores[20:])) > 10
    assert (scores[19], scores[24], scores[39], scores[99]) == (0.5, 0.625, 1.0, 1.0)


def test_contextforge_17_no_history_is_too_short_for_its_limit() -> None:
    """
    Scenario: the smallest history there is, with thresholds above it; a limit that a counter cannot
    hold.
    Guarantees: the first is reached all the same, for calls are counted apart from what is learned;
    the second is refused.
    """
    rig, calls = rig_of({"learning": {"samples": 1}, "burst": {"threshold": 20}}), Calls()
    assert signals(rig.send(calls.many(20, NOON))[-1])["burst"] == 0.5
    with pytest.raises(ValidationError, match="its full score cannot be reached"):
        Config.model_validate({"detectors": {"burst": {"threshold": 40_000}}})


def test_contextforge_18_a_warning_is_told_as_a_warning() -> None:
    """
    Scenario: a verdict of warn, on the console.
    Guarantees: its line says WARN.
    """
    rig = BookRig(detectors={})
    calls, stream = Calls(), io.StringIO()
    rig.send(*calm(calls))
    rig.send(calls.at(WARM_S, **NOVEL))
    sink = ConsoleSink(stream, Telemetry(), rig.processor._config.alerts, StoppedClock())
    sink.offer(rig.events)
    assert sink.close(10.0)
    (line,) = stream.getvalue().splitlines()
    assert " WARN  risk agent:a " in line


def test_contextforge_19_learning_needs_samples_and_time() -> None:
    """
    Scenario: one call in the first hour, then new tools; fifty calls in the first minute, then new
    tools.
    Guarantees: both agents are still learning and nothing is called new; both conditions met, it
    is.
    """
    rig, calls = rig_of({"rate": {"enabled": False}, "rate_shift": {"enabled": False}}), Calls()
    rig.send([calls.at(NOON, agent="slow")])
    assert one(rig, calls.at(NOON + 2 * HOUR, agent="slow", **NOVEL)).mode == "learning"
    rig.send(calls.many(50, NOON, 1, agent="fast"))
    verdict = one(rig, calls.at(NOON + HOUR - 1, agent="fast", **NOVEL))
    assert (verdict.mode, signals(verdict)) == ("learning", {})
    verdict = one(rig, calls.at(NOON + HOUR, agent="fast", tool="drop_table"))
    assert (verdict.mode, signals(verdict)["novelty"]) == ("active", 1.0)


def test_contextforge_20_what_is_long_unused_is_new_again() -> None:
    """
    Scenario: a tool unused for 28 days, and for 29, while another is used every day; an agent that
    uses a hundred tools alike.
    Guarantees: known, then new again; none of the hundred is called rare.
    """
    rig, calls = warm_rig()
    rig.send([calls.at(WARM_S + day * DAY, tool="read_page") for day in range(1, 29)])
    first = {"tool": "db_query", "arguments": text(url="/v1", page=7)}
    fresh = one(rig, calls.at(NOON + 28 * DAY, **first))
    assert "novelty" not in signals(fresh)
    rig.send([calls.at(WARM_S + day * DAY, tool="read_page") for day in range(28, 58)])
    assert signals(one(rig, calls.at(NOON + 58 * DAY, **first)))["novelty"] == 1.0
    even, count = rig_of({**only("frequency"), **QUICK}), 100
    spans = [calls.at(NOON + i, tool=f"t{i % count}") for i in range(3 * count)]
    assert not [verdict for verdict in even.send(spans) if verdict.signals]


def test_contextforge_21_a_call_costs_the_same_after_a_long_history() -> None:
    """
    Scenario: an agent's record, new and after hundreds of calls; a limit for one tool.
    Guarantees: one record of fixed size, so no call walks through a history; and a limit can be one
    tool's own.
    """
    overrides = [{"tool": "delete_*", "detectors": {"burst": {"threshold": 3}}}]
    rig, calls = rig_of(only("burst"), policy={"overrides": overrides}), Calls()
    rig.send(calls.many(2, NOON))
    small = the_agent(rig).nbytes
    assert signals(one(rig, calls.at(NOON, tool="delete_records")))["burst"] == 0.5
    rig.send(calls.many(scaled(3000), NOON, 0.1))
    assert the_agent(rig).nbytes == small


def test_contextforge_22_an_identity_is_a_name_or_none() -> None:
    """
    Scenario: agents and users that are empty, null, of another type or placeholders; nobody at all.
    Guarantees: none of them is a key: detectors of an agent say `no_entity`, so nobody shares a
    past by having no name.
    """
    rig, calls = rig_of(), Calls()
    nobody: dict[str, Any] = {"agent": None, "session": None}
    for value in (None, "", "unknown", "OpenAI Agent"):
        extra = [("gen_ai.agent.name", value), ("user.email", None)]
        rig.send([calls.at(NOON, **nobody, extra=extra, **NOVEL)])
        assert {skipped(rig, d) for d in ("novelty", "burst", "new_destination")} == {"no_entity"}
    assert rig.counts("entities", "agent") == 0
    assert {(caller.agent, caller.user) for caller in rig.callers} == {(None, None)}


def test_contextforge_23_to_observe_is_to_learn_the_same() -> None:
    """
    Scenario: the same stream with blocked calls under mode enforce and mode observe.
    Guarantees: nothing above warn is written when observing; what is learned is bit for bit equal.
    """
    risk = {"action": "block", "warn": 0.1, "block": 0.3}
    found = []
    for mode in ("enforce", "observe"):
        rig, calls = rig_of({"risk": risk}, policy={"mode": mode}), Calls()
        rig.send(calm(calls))
        novel = rig.send([calls.at(WARM_S + 100 * i, **NOVEL) for i in range(5)])
        found.append((actions(novel), the_agent(rig).tobytes()))
    assert [found[0][0], found[1][0]] == [{"block"}, {"warn"}]
    assert found[0][1] == found[1][1]


def test_contextforge_24_results_errors_values_and_order_count() -> None:
    """
    Scenario: the same failing call; the same result again and again; two calls in turn; a secret.
    Guarantees: each is found, and each detector has its numbers among the metrics.
    """
    loop = {"loop": {"threshold": 20, "repeat": 5}}
    call: dict[str, Any] = {"tool": "fetch", "arguments": text(page=1)}
    for more in ({"error": True}, {"result": '{"status": "pending"}'}):
        rig, calls = rig_of(loop), Calls()
        verdicts = rig.send([calls.at(NOON + 5 * i, **call, **more) for i in range(5)])
        assert (verdicts[-1].action, verdicts[-1].types) == ("warn", ("loop",))
    rig, calls = rig_of({"loop": {"threshold": 5, "repeat": 5}}), Calls()
    pair = [calls.at(NOON + 5 * i, tool="fetch", arguments=text(page=i % 2)) for i in range(10)]
    assert rig.send(pair)[-1].types == ("loop",)
    leak = {"credential_leak": {"threshold": 1}}
    secret = text(key="ghp_abcdefghijklmnopqrstuvwxyz0123456789")
    assert one(rig_of(leak), calls.at(NOON, arguments=secret)).types == ("credential_leak",)
    metrics = rig.telemetry.render().decode()
    for detector in DETECTORS:
        assert f'detector_evaluated_total{{detector="{detector}"}}' in metrics


def test_contextforge_25_what_is_learned_outlives_the_process(tmp_path: Path) -> None:
    """
    Scenario: a service stops in the middle of a stream and writes its snapshot; another process
    starts with that, and judges the rest.
    Guarantees: every verdict is the one that the first would have given.
    """
    (whole, calls), (first, _) = warm_rig(), warm_rig()
    second = restarted(first, save(first, tmp_path / "state.snapshot"))
    whole.told.clear()
    after = [calls.at(WARM_S, **NOVEL), *calls.many(30, WARM_S + 1, 1, **KNOWN)]
    for rig in (whole, second):
        rig.send(after)
    assert second.told == whole.told
    assert any(told is not None and told.findings for told in second.told)
