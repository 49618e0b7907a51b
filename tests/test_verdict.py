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
from otel_anomaly.judge import DETECTORS, FINDING, VERDICT
from otel_anomaly.verdict import (
    LINE_BYTES,
    annotation_bytes_max,
    encode,
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


def test_an_agent_unknown_has_nothing_to_learn() -> None:
    """
    Scenario: a call that names no agent; one whose agent is not learned, as its detector is off.
    Guarantees: mode active: `learning` promises that something is being learned.
    """
    for rig, who in ((Rig(), {"agent": None}), (Rig(shift={"enabled": False}), {})):
        assert rig.send([Calls().at(1000, **who)]) == [Verdict("allow", 0.0, "active")]


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
    assert verdicts[0].signals == (("rate", 0.0), ("rate_shift", 0.0))
    assert verdicts[1].signals == (("rate", 0.5), ("rate_shift", 0.0))


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
    whole, rest = divmod(round(value * 100), 100)
    expected = f"{whole}.{rest:02}".rstrip("0").rstrip(".") if rest else str(whole)
    assert out[:size].tobytes().decode() == expected


extreme = st.floats(0, allow_nan=False) | st.sampled_from([0.0, 0.005, 1e300, math.inf, 5e-324])


@settings(max_examples=scaled(200))
@given(data=st.data())
def test_the_room_asked_for_is_enough(data: st.DataObject) -> None:
    """
    Scenario: verdicts with findings of every detector and any numbers, under the longest prefix.
    Guarantees: never more bytes than `annotation_bytes_max`; they parse, and say what they were
    made from.
    """
    texts = make_texts(LONGEST_PREFIX, all_signals=data.draw(st.booleans()))
    count = data.draw(st.integers(0, len(DETECTORS)))
    verdicts, findings = np.zeros(1, VERDICT), np.zeros(len(DETECTORS), FINDING)
    verdict = verdicts[0]
    verdict["judged"], verdict["findings"] = 1, count
    verdict["learning"] = data.draw(st.integers(0, 1))
    for detector in range(count):
        findings[detector]["detector"] = detector
        sign = findings[detector]["sign"]
        for name in ("score", "observed", "limit", "usual", "window_s"):
            sign[name] = data.draw(extreme)
        sign["action"] = data.draw(st.integers(0, 3))
    actions = findings["sign"]["action"][:count]
    verdict["action"], verdict["score"] = max(actions, default=ALLOW), data.draw(extreme)
    limit = annotation_bytes_max(texts)
    out, ends = np.zeros(limit, np.uint8), np.zeros(1, np.int64)
    line, scratch = np.zeros(LINE_BYTES, np.uint8), np.zeros(1, np.float64)
    encode(texts, verdicts, findings, scratch, line, out, ends)
    assert ends[0] <= limit
    written = Span.FromString(out[: ends[0]].tobytes())
    read = read_verdict(written.attributes, LONGEST_PREFIX)
    assert read is not None
    assert read.action == ACTIONS[verdict["action"]]
    assert read.score == (verdict["score"] if count else 0.0)
    types = [name for name, action in zip(DETECTORS, actions, strict=False) if action > 0]
    assert list(read.types) == types
    assert (read.reason or "").count(" calls in ") == len(types)
    told = {name: findings[i]["sign"]["score"] for i, name in enumerate(DETECTORS[:count])}
    shown = {name: told.get(name, 0.0) for name in DETECTORS}
    if not texts[0]["all_signals"]:
        shown = {name: score for name, score in shown.items() if score}
    assert dict(read.signals) == shown


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
