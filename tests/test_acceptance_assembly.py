"""Acceptance cases A5-A13, B2, B3 and L1-L3: typed findings about single calls.

By the ids the issue tracker uses; A1-A4, B1, B4 and B5 stand in `test_acceptance_seeds`. What that
system called an alert is `warn` here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import AuditConfig
from otel_anomaly.sinks import AuditSink
from otel_anomaly.telemetry import Telemetry
from tests.book_rigs import BookRig
from tests.habits import NOON, fork, one, only, rig_of, signals, text
from tests.rig import Calls
from tests.sink_rigs import StoppedClock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig import Rig, Verdict

TEST_KEY = "AKIAIOSFODNN7EXAMPLE"
ALWAYS: dict[str, Any] = {"child_process": {"mode": "always"}}


def on(call: dict[str, Any], **detectors: Any) -> Verdict:
    """The verdict on the first call of a service."""
    return one(rig_of(detectors), Calls().at(NOON, **call))


def fetch(url: str) -> dict[str, Any]:
    return {"tool": "fetch", "arguments": text(url=url)}


@pytest.mark.parametrize(
    ("url", "allow", "action"),
    [
        ("evil.com", ["api.openai.com"], "block"),
        ("api.openai.com/v1", ["api.openai.com"], "allow"),
        ("evil.com", [], "allow"),
    ],
)
def test_a5(url: str, allow: list[str], action: str) -> None:
    """
    Scenario: the list allows `api.openai.com`; a call to another host, one to it; an empty list;
    each as a bare address and as a URL.
    Guarantees: Block; none; none.
    """
    for spelt in (url, f"https://{url}", f"http://{url}"):
        verdict = on(fetch(spelt), unknown_connection={"allow": allow})
        assert verdict.action == action
        assert verdict.types == (("unknown_connection",) if action == "block" else ())


@pytest.mark.parametrize(
    ("host", "action"), [("api.openai.com:443", "allow"), ("evil.com:8443", "block")]
)
def test_a6(host: str, action: str) -> None:
    """
    Scenario: hosts with ports, as an address and in a URL.
    Guarantees: the allowed one is none; the other is Block.
    """
    for spelt in (host, f"https://{host}/v1"):
        verdict = on(fetch(spelt), unknown_connection={"allow": ["api.openai.com"]})
        assert verdict.action == action


def test_a7() -> None:
    """
    Scenario: the threshold is 3; two calls with a secret, then a third.
    Guarantees: none; then Alert, which says how many.
    """
    rig, calls = rig_of(), Calls()
    spans = [calls.at(NOON + i, tool="run", arguments=text(key=TEST_KEY, n=i)) for i in range(3)]
    verdicts = rig.send(spans)
    assert [verdict.action for verdict in verdicts] == ["allow", "allow", "warn"]
    assert verdicts[2].types == ("credential_leak",)
    assert "secrets in the agent's arguments in 3600 s: 3, limit 3" in (verdicts[2].reason or "")


@pytest.mark.parametrize("command", ["ls", "cat README.md", "rm -rf /"])
def test_a8(command: str) -> None:
    """
    Scenario: mode `always`; a program is started, also one that only reads.
    Guarantees: Block.
    """
    verdict = on({"tool": "bash", "arguments": text(command=command)}, **ALWAYS)
    assert (verdict.action, verdict.types) == ("block", ("child_process",))


@pytest.mark.parametrize(
    ("card", "action"), [("4111 1111 1111 1111", "block"), ("4111 1111 1111 1112", "allow")]
)
def test_a9(card: str, action: str) -> None:
    """
    Scenario: a call to a public host that holds a card number, and one with a number that is none.
    Guarantees: Block; none.
    """
    arguments = text(url="https://files.example.net/upload", body=f"card {card}")
    verdict = on({"tool": "http_post", "arguments": arguments})
    assert verdict.action == action
    assert verdict.types == (("data_exfiltration",) if action == "block" else ())


@pytest.mark.parametrize(
    ("calls_made", "action"),
    [(["foo"] * 5, "pause"), (["foo"] * 4, "allow"), (["foo"] * 3 + ["bar"] * 3, "allow")],
    ids=["5 equal", "4 equal", "3 of each"],
)
def test_a10(calls_made: list[str], action: str) -> None:
    """
    Scenario: loop threshold 5; five equal calls, four equal ones, three of each of two.
    Guarantees: Pause; none; none for both.
    """
    rig, calls = rig_of({"loop": {"threshold": 5, "repeat": 5}}), Calls()
    arguments = text(path="a")
    spans = [
        calls.at(NOON + i, tool=tool, arguments=arguments) for i, tool in enumerate(calls_made)
    ]
    verdicts = rig.send(spans)
    assert [verdict.action for verdict in verdicts[:-1]] == ["allow"] * (len(spans) - 1)
    assert verdicts[-1].action == action


@pytest.mark.parametrize(("owner", "action"), [("billing", "warn"), ("a", "allow")])
def test_a11(owner: str, action: str) -> None:
    """
    Scenario: the owner of the presented credential is told; the agent claims another name, its own.
    Guarantees: Alert; none.
    """
    rig = rig_of(identity={"owner": ["credential.owner"]})
    span = Calls().at(NOON, agent="a", extra=[("credential.owner", owner)])
    verdict = one(rig, span)
    assert verdict.action == action
    assert verdict.types == (("identity_spoofing",) if action == "warn" else ())


def test_a12() -> None:
    """
    Scenario: a clean call: a tool, plain arguments, every detector on.
    Guarantees: nothing at all.
    """
    detectors = {"unknown_connection": {"allow": ["api.openai.com"]}}
    verdict = on({"tool": "search", "arguments": text(query="opening hours")}, **detectors)
    assert (verdict.action, verdict.score, verdict.types, verdict.signals) == ("allow", 0, (), ())


def test_a13() -> None:
    """
    Scenario: an agent far above its past starts a program with its last call.
    Guarantees: the program decides the action, and the spike is told as well.
    """
    rig, calls = rig_of({**only("rate_shift", "child_process"), **ALWAYS}), Calls()
    rig.send(calls.many(20, NOON, 1))
    verdicts = rig.send(calls.many(60, NOON + 20, 0.001))
    assert (verdicts[-1].action, verdicts[-1].types) == ("pause", ("rate_shift",))
    verdict = one(rig, calls.at(NOON + 20.5, tool="bash", arguments=text(command="ls")))
    assert (verdict.action, verdict.types) == ("block", ("rate_shift", "child_process"))
    assert (verdict.reason or "").count("; ") == 1


def held(rig: Rig, calls: Calls, time_s: float, detector: str, **call: Any) -> int:
    """What a call at this time, which is not made, is told to be counted with."""
    verdict = one(fork(rig), calls.at(time_s, **call))
    found = re.search(rf"{detector}: [^;]*?(\d+) (calls|times) in ", verdict.reason or "")
    assert (found is not None) == (detector in verdict.types)
    return int(found[1]) - 1 if found else 0


def test_b2() -> None:
    """
    Scenario: a window of 1 s; a call at second 1, looked at in second 10.
    Guarantees: nothing is counted any more, neither calls nor repetitions.
    """
    limits = {
        "rate": {"window": "1s", "warn": 1},
        "burst": {"window": "1s", "threshold": 2},
        "loop": {"window": "10s", "threshold": 2, "repeat": 2},
    }
    rig, calls = rig_of(limits), Calls()
    call = {"arguments": text(n=1)}
    rig.send([calls.at(1, **call)])
    assert held(rig, calls, 1, "rate", **call) == 1
    assert held(rig, calls, 10, "rate", **call) == 0
    assert held(rig, calls, 1, "loop", **call) == 1
    assert held(rig, calls, 12, "loop", **call) == 0
    bursts = [signals(one(fork(rig), calls.at(now_s, **call)))["burst"] for now_s in (1, 10)]
    assert bursts == [0.5, 0.125]


def test_b3() -> None:
    """
    Scenario: the calls 1, 1 and 2.
    Guarantees: counted 2, 1, and one never made 0.
    """
    rig, calls = rig_of({"loop": {"threshold": 2, "repeat": 2}}), Calls()
    rig.send([calls.at(NOON + i, arguments=text(n=n)) for i, n in enumerate((1, 1, 2))])
    counts = [held(rig, calls, NOON + 3, "loop", arguments=text(n=n)) for n in (1, 2, 3)]
    assert counts == [2, 1, 0]


def test_l1() -> None:
    """
    Scenario: nothing in the policy speaks against a call, but it starts a program.
    Guarantees: the verdict is block; types and reason name the kind of anomaly.
    """
    verdict = on({"tool": "bash", "arguments": text(command="whoami")}, **ALWAYS)
    assert (verdict.action, verdict.types) == ("block", ("child_process",))
    assert (
        verdict.reason == "child_process: the tool started a program, where none is to be started"
    )


def test_l2() -> None:
    """
    Scenario: threshold 2; two calls with the same test key.
    Guarantees: an alert is told, and the verdict does not refuse.
    """
    rig, calls = rig_of({"credential_leak": {"threshold": 2}}), Calls()
    spans = [calls.at(NOON + i, tool="run", arguments=text(key=TEST_KEY)) for i in range(2)]
    assert [verdict.action for verdict in rig.send(spans)] == ["allow", "warn"]
    assert rig.steps() == [("start", "credential_leak")]


def test_l3(tmp_path: Path) -> None:
    """
    Scenario: one anomaly in the service, with its audit trail.
    Guarantees: exactly one record of it is stored: the start of an episode, with the strongest
    action, the detector as its type, and who did it.
    """
    rig = BookRig(detectors=ALWAYS)
    rig.send(Calls().at(NOON, tool="bash", arguments=text(command="whoami")))
    path = tmp_path / "audit.jsonl"
    sink = AuditSink(path, "config", AuditConfig(), Telemetry(), StoppedClock())
    sink.offer(rig.events)
    assert sink.close(10.0)
    (record,) = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert (record["type"], record["action"]) == ("episode.start", "block")
    assert (record["detector"], record["agent"], record["tool"]) == ("child_process", "a", "bash")
    assert (
        record["reason"] == "child_process: the tool started a program, where none is to be started"
    )
