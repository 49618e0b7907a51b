"""What is written on a judged span, and what is taken off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.detectors.finding import ACTIONS, ALLOW
from otel_anomaly.entities.identity import FROM_SPAN, OF_SESSION
from otel_anomaly.otlp.dialects import AGENT, RANKS_MAX, SESSION, TENANT, USER
from otel_anomaly.scoring import CLAUSES, DETECTORS, PARTS_OF_RISK
from otel_anomaly.state import FINDING, VERDICT
from otel_anomaly.verdict import (
    LINE_BYTES,
    blob_bytes,
    encode,
    is_told_by_span,
    make_texts,
    put_number,
)
from tests import naive
from tests.rig import Calls, Rig, Verdict, read_verdict
from tests.sizes import scaled
from tests.traffic import random_request, request

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_PREFIX = "a" * 32


def test_a_plain_verdict() -> None:
    """
    Scenario: the first call of an agent, and one ten seconds and ten calls later.
    Guarantees: action, score and mode in this order, with these types, and nothing else; the mode
    goes from learning to active.
    """
    rig, calls = Rig(), Calls()
    verdicts = rig.send(calls.many(12, 1000, 1))
    assert verdicts[0] == Verdict("allow", 0.0, "learning")
    assert verdicts[11] == Verdict("allow", 0.0, "active")
    assert [v.mode for v in verdicts] == ["learning"] * 10 + ["active"] * 2


BY_SESSION = "session=gen_ai.conversation.id, rate=session"
BY_NOBODY = "session=trace (weak), rate=anon (weak)"
BY_USER = "session=trace (weak), rate=user, tenant=tenant.id, user=user.id"


def test_an_agent_unknown_has_nothing_to_learn() -> None:
    """
    Scenario: a call that names no agent; one whose agent is not learned, as its detector is off.
    Guarantees: mode active: `learning` promises that something is being learned; who is not known
    is told.
    """
    plain = Verdict("allow", 0.0, "active")
    nobody = plain._replace(identity=f"agent=none (weak), {BY_SESSION}")
    assert Rig().send([Calls().at(1000, agent=None)]) == [nobody]
    assert Rig(shift={"enabled": False}).send([Calls().at(1000)]) == [plain]


def test_a_finding() -> None:
    """
    Scenario: the second and third call of a session that warns at 2 and blocks at 4.
    Guarantees: types and reason stand between mode and signals; the signal is the score.
    """
    verdicts = Rig(rate={"warn": 2, "block": 4}).send(Calls().many(4, 1000))
    assert verdicts[2] == Verdict(
        "warn",
        0.75,
        "learning",
        ("rate",),
        "rate: 3 calls in 60 s, limit 2",
        (("rate", 0.75),),
    )
    assert verdicts[3][:5] == (
        "block",
        1.0,
        "learning",
        ("rate",),
        "rate: 4 calls in 60 s, limit 4",
    )


def test_two_findings() -> None:
    """
    Scenario: a burst that is over the hard limit and a shift at once.
    Guarantees: both are told, joined by a semicolon; the stronger action and the higher score
    stand for the span; each signal is its own.
    """
    rig, calls = Rig(rate={"warn": 30, "block": 90}), Calls()
    rig.send(calls.many(20, 1000, 1, session="before"))
    verdict = rig.send(calls.many(60, 1020))[-1]
    assert verdict.action == "pause"
    assert verdict.types == ("rate", "rate_shift")
    assert verdict.reason == (
        "rate: 60 calls in 60 s, limit 30; rate_shift: 60 calls in 1 s, limit 30, usual 1"
    )
    assert verdict.signals == (("rate", 0.75), ("rate_shift", 0.75))
    assert verdict.score == 0.75
    stronger = rig.send(calls.many(30, 1020))[-1]
    assert (stronger.action, stronger.score) == ("block", 1.0)
    assert stronger.signals == (("rate", 1.0), ("rate_shift", 1 - 30 / 180))


def test_all_signals() -> None:
    """
    Scenario: `signals: all`, a plain call and one with a finding.
    Guarantees: every detector's score is there, in order, zero or not.
    """
    rig = Rig(rate={"warn": 2, "block": 4}, annotate={"signals": "all"})
    verdicts = rig.send(Calls().many(2, 1000))
    zeros = dict.fromkeys(DETECTORS, 0.0)
    assert list(verdicts[0].signals) == list(zeros.items())
    assert list(verdicts[1].signals) == list((zeros | {"rate": 0.5}).items())


@pytest.mark.parametrize("prefix", ["a", "security.tool_calls.anomaly", LONGEST_PREFIX])
def test_the_prefix_is_configurable(prefix: str) -> None:
    """
    Scenario: another prefix; a call carries attributes under it, under ours and under near misses.
    Guarantees: verdicts stand under it; only what came under it is removed.
    """
    rig = Rig(rate={"warn": 1, "block": 4}, annotate={"prefix": prefix, "signals": "all"})
    kept = [("anomaly.action", "mine"), (prefix, "x"), (prefix + "x.score", 1.0)]
    (verdict,) = rig.send([Calls().at(1000, extra=[(f"{prefix}.action", "forged"), *kept])])
    assert verdict.action == "warn"
    keys = [pair.key for pair in rig.spans_out()[0].attributes]
    assert set(keys) >= {key for key, _ in kept}
    assert rig.counts("forged_attributes") == 1


def test_a_forged_verdict_is_removed() -> None:
    """
    Scenario: a call and a chat span that carry verdicts already, the latter without any call in
    the request; a verdict of exactly the bytes that ours will have, as from another of us.
    Guarantees: none survives, every one is counted, ours stands alone on the calls.
    """
    calls, rig = Calls(), Rig()
    forged = [("anomaly.action", "allow"), ("anomaly.", 1), ("anomaly.signal.rate", "x")]
    chat = calls.at(1000, extra=forged)
    chat.attributes[0].value.string_value = "chat"
    (verdict,) = rig.send([calls.at(1000, extra=forged), chat])
    assert verdict == Verdict("allow", 0.0, "learning")
    assert rig.read()[1] is None
    assert rig.counts("forged_attributes") == 6
    rig.send([chat])
    assert rig.read() == [None]
    assert rig.counts("forged_attributes") == 9
    first, second = Rig(), Rig()
    first.send([calls.at(1000)])
    body = first.room.payloads[-1].body
    second.send(body)
    assert second.room.payloads[-1].body == body
    assert second.counts("forged_attributes") == 3


@pytest.mark.parametrize("signals", ["nonzero", "all"])
@pytest.mark.parametrize("seed", range(scaled(30)))
def test_nothing_else_changes(seed: int, signals: str) -> None:
    """
    Scenario: hostile requests, annotated.
    Guarantees: what comes out is, as a message, what went in without the forged keys and with our
    attributes at the end of the judged spans.
    """
    rig = Rig(annotate={"signals": signals}, rate={"warn": 1, "block": 3})
    body = random_request(seed)
    rig.send(body)
    if not body:
        return
    ours: dict[int, Sequence[Any]] = {}
    for index, span in enumerate(rig.spans_out()):
        ours[index] = [p for p in span.attributes if p.key.startswith("anomaly.")]
    out = ExportTraceServiceRequest.FromString(rig.room.payloads[-1].body)
    assert out == naive.annotate(body, ours, "anomaly")
    calls = {call["index"] for call in naive.tool_calls(body, rig.config.identity)}
    assert {index for index, pairs in ours.items() if pairs} <= calls


@settings(max_examples=scaled(200))
@example(0.0)
@example(0.5)
@example(10.05)
@example(99.999)
@given(value=st.floats(0, 1e12) | st.integers(0, 10**9).map(float))
def test_numbers_read_well(value: float) -> None:
    """
    Scenario: any number that a reason may tell.
    Guarantees: rounded to hundredths, without needless zeros.
    """
    out = np.zeros(40, np.uint8)
    size = put_number(value, out, 0)
    assert out[:size].tobytes().decode() == number(value)


def number(value: float) -> str:
    """A number as a reason tells it."""
    whole, rest = divmod(round(min(value, 9e15) * 100), 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") if rest else str(whole)


def clause(finding: np.void) -> str:
    """What a finding is told as: the detector's name and its text, with the numbers put in."""
    detector, sign = int(finding["detector"]), finding["sign"]
    told = {name: number(sign[name]) for name in ("observed", "limit", "usual")}
    text = CLAUSES[detector][sign["variant"]].format(**told, window=number(sign["window_s"]))
    return f"{DETECTORS[detector]}: {text}"


def sentence(findings: np.ndarray) -> str:
    """The reason that a verdict must give."""
    parts = [clause(f) for f in findings if DETECTORS[f["detector"]] in PARTS_OF_RISK]
    told = []
    for finding in findings[findings["sign"]["action"] > 0]:
        is_risk = DETECTORS[finding["detector"]] == "risk"
        brackets = f" ({', '.join(parts)})" if is_risk and parts else ""
        told.append(clause(finding) + brackets)
    return "; ".join(told)


class Told:
    """One verdict as `encode` writes it."""

    def __init__(self, texts: np.ndarray, count: int) -> None:
        self.texts = texts
        self.verdicts, self.findings = np.zeros(1, VERDICT), np.zeros(len(DETECTORS), FINDING)
        self.verdict = self.verdicts[0]
        self.verdict["judged"], self.verdict["findings"] = 1, count
        for who in (AGENT, SESSION):
            self.verdict["person"]["source"][who] = FROM_SPAN
        self.verdict["person"]["rate_kind"] = OF_SESSION

    def written(self, prefix: str) -> Verdict:
        """What stands on the span, and no more bytes than there is room for."""
        limit = blob_bytes(self.texts, 1)
        out, ends = np.zeros(limit, np.uint8), np.zeros(1, np.int64)
        line, scratch = np.zeros(LINE_BYTES, np.uint8), np.zeros(1, np.float64)
        encode(self.texts, self.verdicts, self.findings, scratch, line, out, ends)
        assert ends[0] <= int(self.texts["full_bytes"][0]) <= limit
        span = Span.FromString(out[: ends[0]].tobytes())
        read = read_verdict(span.attributes, prefix)
        assert read is not None
        return read


extreme = st.floats(0, allow_nan=False) | st.sampled_from([0.0, 0.005, 1e300, math.inf, 5e-324])
NUMBERS = ("score", "observed", "limit", "usual", "window_s")


@settings(max_examples=scaled(200))
@given(data=st.data())
def test_the_room_asked_for_is_enough(data: st.DataObject) -> None:
    """
    Scenario: verdicts with findings of every detector in every wording, any numbers, any caller,
    under the longest prefix and with the longest keys.
    Guarantees: never more bytes than are set aside; they parse, and say what they were made from.
    """
    keys = ["k" * 300] * data.draw(st.integers(1, 48))
    texts = make_texts(LONGEST_PREFIX, all_signals=data.draw(st.booleans()), keys=[keys] * 4)
    count = data.draw(st.integers(0, len(DETECTORS)))
    told = Told(texts, count)
    told.verdict["learning"] = data.draw(st.integers(0, 1))
    person = told.verdict["person"]
    for who in (TENANT, AGENT, SESSION, USER):
        person["source"][who] = data.draw(st.integers(0, 4))
        person["order"][who] = data.draw(st.integers(0, 2)) * RANKS_MAX + len(keys) - 1
    person["session_kind"] = data.draw(st.integers(1, 7))
    person["rate_kind"] = data.draw(st.integers(1, 7))
    for detector in range(count):
        told.findings[detector]["detector"] = detector
        sign = told.findings[detector]["sign"]
        for name in NUMBERS:
            sign[name] = data.draw(extreme)
        sign["action"] = data.draw(st.integers(0, 3))
        sign["variant"] = data.draw(st.integers(0, len(CLAUSES[detector]) - 1))
    findings = told.findings[:count]
    actions = findings["sign"]["action"]
    told.verdict["action"], told.verdict["score"] = max(actions, default=ALLOW), data.draw(extreme)
    read = told.written(LONGEST_PREFIX)
    assert read.action == ACTIONS[told.verdict["action"]]
    own = is_told_by_span(person)
    assert read.score == (told.verdict["score"] if count or not own else 0.0)
    assert list(read.types) == [DETECTORS[i] for i, action in enumerate(actions) if action > 0]
    assert (read.reason or "") == sentence(findings)
    assert (read.identity is None) == own
    shown = dict.fromkeys(DETECTORS, 0.0) | {
        DETECTORS[f["detector"]]: f["sign"]["score"] for f in findings
    }
    if not texts[0]["all_signals"]:
        shown = {name: score for name, score in shown.items() if score}
    assert dict(read.signals) == shown


WORDINGS = [(d, v) for d in range(len(DETECTORS)) for v in range(len(CLAUSES[d]))]


@pytest.mark.parametrize(
    ("detector", "variant"), WORDINGS, ids=[f"{DETECTORS[d]}-{v}" for d, v in WORDINGS]
)
def test_every_wording_is_a_sentence(detector: int, variant: int) -> None:
    """
    Scenario: one finding of a detector, in each of its wordings.
    Guarantees: the reason is its name, then its text with the numbers in their places, once; plain
    printable words, nothing left of a place, no double blank, no full stop.
    """
    told = Told(make_texts("anomaly", all_signals=False), 1)
    told.findings[0]["detector"], told.verdict["action"] = detector, 1
    sign = told.findings[0]["sign"]
    sign["action"], sign["variant"] = 1, variant
    for value, name in enumerate(NUMBERS, start=1):
        sign[name] = value + 0.25
    reason = told.written("anomaly").reason
    assert reason is not None
    assert reason == sentence(told.findings[:1])
    assert reason.count(f"{DETECTORS[detector]}: ") == 1
    assert reason.isprintable()
    assert not set("{}") & set(reason)
    assert "  " not in reason
    assert not reason.endswith(".")


def test_risk_is_told_with_its_parts() -> None:
    """
    Scenario: a call that is novel, in a burst and at night, and over the line of `rate`; novelty
    and the others only ever speak through `risk`.
    Guarantees: one clause a finding of warn or more; the parts of risk stand in its brackets, each
    once; types name only who reached warn.
    """
    learned = {"learning": {"samples": 5, "time": "0s"}, "burst": {"threshold": 2}}
    rig, calls = (
        Rig(rate={"warn": 4, "block": 0}, shift={"enabled": False}, detectors=learned),
        Calls(),
    )
    night_s = 100 * 86_400 + 23 * 3600
    rig.send(calls.many(6, night_s - 600, 90, tool="known"))
    *_, last = rig.send([*calls.many(3, night_s, tool="known"), calls.at(night_s, tool="new")])
    assert last.types == ("rate", "risk")
    assert last.reason is not None
    by_rate, by_risk = last.reason.split("; ")
    assert by_rate == "rate: 4 calls in 60 s, limit 4"
    head, _, rest = by_risk.partition(" (")
    assert head.startswith("risk: ")
    names = [part.partition(": ")[0] for part in rest.removesuffix(")").split(", ") if ": " in part]
    assert names == ["novelty", "burst", "off_hours"]
    assert [name for name, _ in last.signals] == ["rate", "novelty", "burst", "off_hours", "risk"]


def test_a_request_of_many_findings() -> None:
    """
    Scenario: every verdict of a large request has several findings, more than its share of room.
    Guarantees: each call has its action, score and mode, within the room set aside; the first is
    told in full, and so are others while there is room, the rest without reason.
    """
    texts = make_texts(LONGEST_PREFIX, all_signals=True)
    rows = 40
    verdicts, findings = np.zeros(rows, VERDICT), np.zeros(len(DETECTORS), FINDING)
    findings["detector"] = np.arange(len(DETECTORS))
    findings["sign"]["action"], findings["sign"]["score"] = 3, 0.5
    verdicts["judged"], verdicts["findings"], verdicts["action"] = 1, len(DETECTORS), 3
    verdicts["score"] = 0.5
    out, ends = np.zeros(blob_bytes(texts, rows), np.uint8), np.zeros(rows, np.int64)
    line, scratch = np.zeros(LINE_BYTES, np.uint8), np.zeros(1, np.float64)
    encode(texts, verdicts, findings, scratch, line, out, ends)
    told = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        span = Span.FromString(out[start:end].tobytes())
        keys = [pair.key.removeprefix(LONGEST_PREFIX) for pair in span.attributes]
        assert keys[:3] == [".action", ".score", ".mode"]
        assert span.attributes[0].value.string_value == "block"
        assert span.attributes[1].value.double_value == 0.5
        told.append(len(keys) > 3)
    assert told[0]
    assert 0 < sum(told) < rows


CONVERSATION = ("gen_ai.conversation.id", "s")


@pytest.mark.parametrize(
    ("who", "extra", "resource", "expected"),
    [
        ({}, [], [], None),
        ({"agent": None}, [], [("gen_ai.agent.name", "r")], None),
        (
            {"agent": None},
            [],
            [("service.name", "r")],
            f"agent=service.name (weak), {BY_SESSION}",
        ),
        (
            {"agent": None},
            [("gen_ai.agent.id", "7")],
            [("service.name", "r")],
            f"agent=service.name (weak), {BY_SESSION}",
        ),
        (
            {"agent": None},
            [("gen_ai.agent.id", "7")],
            [],
            f"agent=none (weak), {BY_SESSION}",
        ),
        (
            {"agent": None},
            [],
            [],
            f"agent=none (weak), {BY_SESSION}",
        ),
        (
            {"session": None},
            [],
            [],
            f"agent=gen_ai.agent.name, {BY_NOBODY}",
        ),
        (
            {"session": None, "agent": None, "user": "u"},
            [("agent.name", "x")],
            [],
            "agent=agent.name, session=trace (weak), rate=user, user=user.id",
        ),
    ],
)
def test_which_key_was_used(
    who: dict[str, Any],
    extra: list[tuple[str, str]],
    resource: list[tuple[str, str]],
    expected: str | None,
) -> None:
    """
    Scenario: agent and session are told by the span, by its resource, by a weak key, by nobody.
    Guarantees: nothing is said where both are told by a strong key; else the keys that were used,
    and which of them are weak.
    """
    (verdict,) = Rig().send([Calls().at(1000, extra=extra, **who)], resource=resource)
    assert verdict.identity == expected


STRONG = "agent=gen_ai.agent.name, session=gen_ai.conversation.id"


@pytest.mark.parametrize(
    ("scope", "who", "resource", "expected"),
    [
        ("session", {"tenant": "t", "user": "u"}, [], None),
        ("agent", {}, [], None),
        ("user", {"user": "u"}, [], f"{STRONG}, rate=user, user=user.id"),
        ("user", {}, [], f"{STRONG}, rate=anon (weak)"),
        ("user", {"tenant": "t"}, [], f"{STRONG}, rate=tenant (weak), tenant=tenant.id"),
        ("session", {}, [("service.namespace", "n")], f"{STRONG}, rate=session, {{weak}}"),
        (
            "session",
            {"session": None, "tenant": "t", "user": "u"},
            [],
            f"agent=gen_ai.agent.name, {BY_USER}",
        ),
        (
            "session",
            {"session": None, "tenant": "t"},
            [],
            "agent=gen_ai.agent.name, session=trace (weak), rate=tenant (weak), tenant=tenant.id",
        ),
        (
            "agent",
            {"agent": None, "session": None},
            [("service.name", "s")],
            "agent=service.name (weak), session=trace (weak), rate=agent (weak)",
        ),
    ],
)
def test_what_each_part_was_counted_by(
    scope: str, who: dict[str, Any], resource: list[tuple[str, str]], expected: str | None
) -> None:
    """
    Scenario: `rate` adds up by session, agent or user, each told, not told, or by a weak key; the
    tenant is told by the span, by a weak key of the resource.
    Guarantees: silence where all that the call is judged by is told by the span; else what `rate`
    counted by, and tenant and user where they are known, with their keys.
    """
    rig = Rig(rate={"scope": scope})
    (verdict,) = rig.send([Calls().at(1000, **who)], resource=resource)
    told = expected.format(weak="tenant=service.namespace (weak)") if expected else None
    assert verdict.identity == told


def test_keys_of_any_letters_are_told() -> None:
    """
    Scenario: the agent's key is long and holds letters beyond ASCII.
    Guarantees: it is cut between two letters, so that the attribute is a valid string.
    """
    key = "a" + "\u00fc" * 60
    rig = Rig(identity={"agent": [key], "weak": ["service.namespace"]})
    (verdict,) = rig.send([Calls().at(1000, agent=None, session=None, extra=[(key, "x")])])
    assert verdict.identity == f"agent={key[:48]}, session=trace (weak), rate=anon (weak)"


def test_an_identity_that_was_borrowed() -> None:
    """
    Scenario: a call without agent and session below an agent that has both; a call elsewhere in the
    trace, below a span that is not known.
    Guarantees: the first is told to be its agent's, the other to be borrowed from the trace.
    """
    rig, calls = Rig(), Calls()
    above = calls.at(1000, agent="planner", trace_id=b"T" * 16)
    above.attributes[0].value.string_value = "invoke_agent"
    below, beside = (calls.at(1000, agent=None, session=None, trace_id=b"T" * 16) for _ in range(2))
    below.parent_span_id = above.span_id
    rig.send([above, below, beside])
    borrowed = "another span of the trace"
    told = [verdict.identity for verdict in rig.read() if verdict is not None]
    assert told == [
        f"agent=the agent above, session={borrowed}, rate=session",
        f"agent={borrowed}, session={borrowed}, rate=session",
    ]


def test_observing() -> None:
    """
    Scenario: the same stream, far over every limit, with `mode: enforce` and with `observe`.
    Guarantees: observing writes, counts and tells nothing above warn; scores, types, reasons and
    all that is learned are the same.
    """
    shift = {"min_calls_minute": 4, "min_calls_second": 4, "ceiling": 4}
    limits = {"rate": {"warn": 3, "block": 6}, "shift": shift}
    both = [Rig(**limits, policy={"mode": mode}) for mode in ("enforce", "observe")]
    enforced, observed = (rig.send(Calls().many(40, 1000)) for rig in both)
    assert {verdict.action for verdict in enforced} == {"allow", "warn", "pause", "block"}
    assert {verdict.action for verdict in observed} == {"allow", "warn"}
    assert [v._replace(action="") for v in enforced] == [v._replace(action="") for v in observed]
    states = [rig.state.agents.rows.tobytes() for rig in both]
    assert states[0] == states[1]
    strict, mild = both
    assert mild.counts("verdicts", "warn") == sum(v.action == "warn" for v in observed)
    for action in ("pause", "block"):
        assert mild.counts("verdicts", action) == 0 < strict.counts("verdicts", action)
        assert all(mild.counts("findings", name, action) == 0 for name in DETECTORS)
    assert [step for step, _ in mild.steps()] == ["start"] * len(set(mild.steps()))


def test_a_request_without_calls_passes_as_it_is() -> None:
    """
    Scenario: a request of spans that are no calls.
    Guarantees: the same bytes object goes on: nothing is copied.
    """
    rig, calls = Rig(), Calls()
    chat = calls.at(1000)
    chat.attributes[0].value.string_value = "chat"
    body = request([chat], scope=None)
    assert rig.send(body) == []
    assert rig.room.payloads[-1].body is body
