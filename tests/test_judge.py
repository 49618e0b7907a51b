"""The judge: against its slow twin, and the promises it keeps for any stream."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.processor import REFUSALS
from tests.fleet_traffic import Fleet
from tests.judge_rigs import KEEN, OBSERVING, check_state, feed
from tests.naive_judge import NaiveJudge
from tests.naive_rates import COLD, EXEMPT, JUDGED, LATE, NO_ARGUMENTS, NO_ENTITY, NOT_TOLD, OFF
from tests.naive_scoring import DETECTORS
from tests.rig import Calls, Rig, Told
from tests.sizes import scaled
from tests.traffic import START_NS, request, tool_span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

EAGER: dict[str, Any] = {
    "rate": {"window": "10s", "warn": 6, "block": 12},
    "shift": {
        "min_calls_second": 3,
        "min_calls_minute": 9,
        "min_buckets": 3,
        "min_samples": 5,
        "ceiling": 60,
    },
    "alerts": {"hold": "5s"},
}
"""Limits so low that a short stream meets all of them."""
LAZY: dict[str, Any] = {
    "rate": {"warn": 0, "block": 25, "scope": "agent"},
    "shift": {"k": 1.5, "ratio": 1.2, "min_calls_second": 4, "min_calls_minute": 5, "ceiling": 0},
    "limits": {"session_idle": "40s", "session_keep": "0s", "agent_idle": "1h"},
    "alerts": {"clear": 0.3, "hold": "90s"},
}
STEPS_S = {
    "calm": ((0.3, 0.9, 1.0, 2.0), (1, 1, 1, 1)),
    "burst": ((0.0, 0.001, 0.02, 0.1), (1, 4, 4, 1)),
    "rare": ((4.0, 31.0, 60.0, 700.0, 5000.0), (20, 8, 8, 2, 1)),
}
"""Seconds between two calls of the fleet, by mood, with their weights."""


class Stream:
    """Spans as a careless fleet sends them, by seed: late, ahead, twice, without a time."""

    def __init__(self, seed: int, *, alone: bool = False) -> None:
        """`alone`: each span has a trace of its own, so it borrows no identity."""
        self.random, self.alone = random.Random(seed), alone
        self.now_ns = START_NS
        self.sent: list[Span] = []
        self.number = 0
        self.mood = "calm"

    def requests(self, count: int, size_max: int = 12) -> list[tuple[list[Span], int]]:
        """Spans and arrival, request by request."""
        made = []
        for _ in range(count):
            spans = [self.span() for _ in range(self.random.randint(1, size_max))]
            self.sent += spans
            made.append((spans, self.now_ns + self.random.choice((1, SECOND_NS))))
        return made

    def span(self) -> Span:
        pick = self.random
        if pick.random() < 0.03:
            self.mood = pick.choices(("calm", "burst", "rare"), (10, 7, 1))[0]
        self.now_ns += int(pick.choices(*STEPS_S[self.mood])[0] * SECOND_NS)
        if self.sent and pick.random() < 0.08:
            return pick.choice(self.sent[-40:])
        self.number += 1
        trace = pick.randrange(1, 6)
        # A trace belongs to one tenant; half of its spans leave out who they are.
        who: dict[str, Any] = {"tenant": ("acme", "beta", None)[trace % 3]}
        if pick.random() < 0.7:
            who |= {"agent": f"a{trace % 2}", "session": pick.choice(("s1", "s2", None))}
            who["user"] = pick.choice(("u1", None))
        own = self.number * 8 if self.alone or pick.random() < 0.5 else 0
        span = tool_span(
            trace_id=(trace + own).to_bytes(16, "big"),
            span_id=self.number.to_bytes(8, "big"),
            start_ns=self.number,
            end_ns=self.end_ns(),
            tool="t",
            **who,
        )
        if pick.random() < 0.03:
            span.span_id = pick.choice((bytes(8), b"short", b""))
        if pick.random() < 0.1:
            span.attributes[0].value.string_value = "chat"
        return span

    def end_ns(self) -> int:
        """Mostly now; else late by a little or a lot, ahead, absurd, or nothing."""
        pick = self.random
        kind = pick.random()
        if kind < 0.8:
            return self.now_ns
        if kind < 0.92:
            return self.now_ns - int(pick.choice((1, 8, 12, 59, 61, 3000, 4000)) * SECOND_NS)
        if kind < 0.96:
            return self.now_ns + int(pick.choice((3, 10, 11, 90000)) * SECOND_NS)
        return pick.choice((0, 1 << 63, (1 << 64) - 1, 1))


@pytest.mark.parametrize("replayed", [False, True], ids=["live", "replayed"])
@pytest.mark.parametrize("settings_of_rig", [EAGER, LAZY], ids=["eager", "lazy"])
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_judge_equals_naive(seed: int, settings_of_rig: dict[str, Any], *, replayed: bool) -> None:
    """
    Scenario: random fleets over two hours: bursts, pauses, late, skewed, repeated, timeless calls.
    Guarantees: the kernel and plain Python tell the same of every call, to the bit: action, score,
    findings with all numbers, reasons to skip, time, and the steps of episodes.
    """
    rig = Rig(**settings_of_rig)
    twin = NaiveJudge(rig.config)
    for spans, received_ns in Stream(seed).requests(60):
        body, arrival_ns = request(spans, scope=None), 0 if replayed else received_ns
        rig.told.clear()
        rig.send(body, arrival_ns)
        assert rig.told == twin.judge(body, arrival_ns)


def test_the_streams_meet_everything() -> None:
    """
    Scenario: what the twin tells of ten streams, live and replayed, under both settings.
    Guarantees: every action, every reason to skip, every step of each detector is among it: the
    comparison above is about something.
    """
    told: list[Told | None] = []
    for seed, settings_of_rig in itertools.product(range(10), (EAGER, LAZY)):
        twin = NaiveJudge(Rig(**settings_of_rig).config)
        for spans, received_ns in Stream(seed).requests(60):
            told += twin.judge(request(spans, scope=None), received_ns * (seed % 2))
    judged = [call for call in told if call is not None]
    assert None in told
    assert {call.action for call in judged} == {0, 1, 2, 3}
    assert {call.duplicate for call in judged} == {True, False}
    skipped = {call.skipped[:2] for call in judged}
    assert skipped == set(itertools.product((JUDGED, LATE), (JUDGED, LATE, COLD, NO_ENTITY)))
    assert {len(call.findings) for call in judged} == {0, 1, 2}
    steps = Counter(step[:2] for call in judged for step in call.steps)
    assert set(steps) >= {("start", name) for name in ("rate", "rate_shift")}
    assert set(steps) >= {("end", name) for name in ("rate", "rate_shift")}
    assert steps["escalate", "rate"] > 5


@pytest.mark.parametrize("replayed", [False, True], ids=["live", "replayed"])
@pytest.mark.parametrize("settings_of_rig", [KEEN, OBSERVING], ids=["keen", "observing"])
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_fleet_equals_naive(seed: int, settings_of_rig: dict[str, Any], *, replayed: bool) -> None:
    """
    Scenario: a fleet as frameworks report it: calls of up to four nested spans and log records,
    several agents in a trace, ancestors and servers that come in later requests, in any order,
    some twice; arguments with destinations, secrets and programs; overrides and exemptions.
    Guarantees: all detectors on, the kernel and plain Python tell the same of every call, to the
    bit, and of the last of each request what every detector says; who made each call; the
    counters; and in the end what every agent, service and session has learned.
    """
    rig = Rig(**settings_of_rig)
    twin = NaiveJudge(rig.config)
    for delivery in Fleet(seed).deliveries(40):
        feed(rig, twin, delivery, replayed=replayed)
    for name in ("tool_calls", "duplicates", "folded", "moved", "late", "invalid_ids"):
        assert rig.counts(name) == twin.counts[name, ()], name
    check_state(rig, twin)


def test_the_fleet_meets_everything() -> None:
    """
    Scenario: what the twin tells of a few fleets.
    Guarantees: findings of every detector, of warn or more of each that asks for an action; every
    clause but a few; every reason to skip; moves and folds: the comparison above is about
    something.
    """
    told: list[Told | None] = []
    counts: Counter[Any] = Counter()
    for seed, settings_of_rig in itertools.product(range(12), (KEEN, OBSERVING)):
        twin = NaiveJudge(Rig(**settings_of_rig).config)
        for received_ns, signal, body in Fleet(seed).deliveries(40):
            told += twin.judge(body, received_ns, logs=signal is Signal.LOGS)
        counts += twin.counts
    judged = [call for call in told if call is not None]
    found = {(name, *values[-2:]) for call in judged for name, values in call.findings}
    assert {name for name, _, _ in found} == set(DETECTORS)
    quiet = {"novelty", "burst", "frequency", "off_hours"}
    assert {name for name, action, _ in found if action} == set(DETECTORS) - quiet
    assert {v for name, _, v in found if name == "novelty"} == {0, 1, 2, 3}
    assert {v for name, _, v in found if name == "loop"} >= {1, 2, 3}
    skipped = {reason for call in judged for reason in call.skipped}
    reasons = {JUDGED, LATE, COLD, NO_ENTITY, NO_ARGUMENTS, NOT_TOLD, EXEMPT, OFF}
    assert skipped == reasons
    assert {step[0] for call in judged for step in call.steps} == {"start", "escalate", "end"}
    assert counts["moved", ()] > 200
    assert counts["folded", ()] > 200


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_a_fleet_delivered_twice_changes_nothing(seed: int) -> None:
    """
    Scenario: every request of a fleet arrives twice, spans of one call and log records among them.
    Guarantees: the state is the same to the bit as after the first: nothing is counted, moved or
    folded again.
    """
    rig = Rig(**KEEN)
    for received_ns, signal, body in Fleet(seed).deliveries(20):
        rig.offer(body, received_ns, signal)
        before, counted = rig.digest(counters=False), rig.processor.counts()
        rig.offer(body, received_ns, signal)
        assert rig.digest(counters=False) == before
        changed = {k[0] for k, n in rig.processor.counts().items() if n != counted[k]}
        assert changed <= {"spans", "duplicates", "invalid_ids", "forged_attributes"}


def told_of(requests: Iterable[tuple[Iterable[Span], int]], **settings_of_rig: Any) -> list[Any]:
    """All that a fresh judge tells of a stream."""
    rig = Rig(**settings_of_rig)
    for spans, received_ns in requests:
        rig.send(spans, received_ns)
    return rig.told


@settings(max_examples=scaled(25))
@given(
    seed=st.integers(0, 1000),
    cuts=st.sets(st.integers(1, 79), max_size=12),
    live=st.booleans(),
)
def test_any_split_gives_the_same_verdicts(seed: int, cuts: set[int], *, live: bool) -> None:
    """
    Scenario: a stream in one request, and the same spans in the same order cut into many.
    Guarantees: all that is told of each call is the same to the bit; steps of episodes as well.
    """
    stream = Stream(seed, alone=True)
    spans = [span for part, _ in stream.requests(80, size_max=1) for span in part]
    received_ns = stream.now_ns if live else 0
    edges = [0, *sorted(cuts), len(spans)]
    parts = [spans[a:b] for a, b in itertools.pairwise(edges)]
    whole = told_of([(spans, received_ns)], **EAGER)
    assert told_of([(part, received_ns) for part in parts], **EAGER) == whole


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_others_make_no_difference(seed: int) -> None:
    """
    Scenario: an agent's calls alone, and the same with a fleet of others in every request.
    Guarantees: what is told of its calls is the same to the bit, whatever the rows it gets.
    """
    calls, pick = Calls(), random.Random(seed)
    fleet = Stream(seed).requests(40)
    alone, together = [], []
    for others, received_ns in fleet:
        time_s = received_ns / SECOND_NS
        mine = calls.many(pick.choice((0, 1, 1, 5)), time_s, 0.01, agent="me", session="mine")
        mixed = [*mine, *others]
        order = sorted(range(len(mixed)), key=lambda i: pick.random() if i >= len(mine) else 0)
        alone.append((mine, received_ns))
        together.append(([mixed[i] for i in order], received_ns))
    rig = Rig(**EAGER)
    mine_told = []
    for spans, received_ns in together:
        rig.told.clear()
        rig.callers.clear()
        rig.send(spans, received_ns)
        mine_told += [t for t, c in zip(rig.told, rig.callers, strict=True) if c.agent == "me"]
    assert mine_told == told_of([part for part in alone if part[0]], **EAGER)
    assert len(mine_told) > 10


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_delivered_twice_changes_nothing(seed: int) -> None:
    """
    Scenario: every request arrives twice, as after an answer that was lost.
    Guarantees: the state is the same to the bit as after the first; each copy is told to be one,
    and the counters count it as a duplicate and as nothing else.
    """
    rig = Rig(**EAGER)
    for spans, received_ns in Stream(seed).requests(40):
        rig.send(spans, received_ns)
        before, counted = rig.digest(counters=False), rig.processor.counts()
        rig.told.clear()
        rig.send(spans, received_ns)
        assert rig.digest(counters=False) == before
        judged = [call for call in rig.told if call is not None]
        assert all(call.duplicate and not call.steps for call in judged)
        changed = {k[0] for k, n in rig.processor.counts().items() if n != counted[k]}
        assert changed <= {"spans", "duplicates", "invalid_ids"}
        assert rig.counts("duplicates") == counted["duplicates", ()] + len(judged)


@pytest.mark.parametrize("outcome", [*REFUSALS, Outcome.MALFORMED])
def test_refused_leaves_no_trace(outcome: Outcome) -> None:
    """
    Scenario: a request is refused, for each reason there is; then it comes again.
    Guarantees: the state, counters of the judge included, is untouched to the bit; the verdicts
    of the second attempt are those of a service that never refused.
    """
    rig, untouched = Rig(**EAGER), Rig(**EAGER)
    *before, (spans, received_ns) = Stream(3).requests(30)
    for part in before:
        rig.send(*part)
        untouched.send(*part)
    body, state = request(spans, scope=None), rig.digest()
    rig.room.script = [outcome]
    malformed = outcome is Outcome.MALFORMED
    reply = rig.offer(body[:-1] if malformed else body, received_ns)
    assert reply.outcome is outcome
    assert reply.message
    assert reply.retry_after_s == (2.5 if outcome.retryable else 0.0)
    assert rig.digest() == state
    rig.room.script.clear()
    assert rig.send(body, received_ns) == untouched.send(body, received_ns)
    assert rig.told == untouched.told


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_order_inside_a_request_says_nothing_about_who(seed: int) -> None:
    """
    Scenario: one trace; some of its spans say who is at work, two of them at the same instant
    and differently; the spans of the request come in any order.
    Guarantees: every call is given to the same agent, session and user each time.
    """
    calls = Calls()
    trace = {"trace_id": b"one trace of all"}
    spans = [
        calls.at(100, agent=agent, session=session, user=user, start_ns=start_ns, **trace)
        for agent, session, user, start_ns in (
            *((None, None, None, 1), (None, "s2", None, 5), (None, "s1", None, 7)),
            *(("a1", None, None, 6), ("a2", None, None, 6), (None, None, "u", 9)),
        )
    ]
    found = set()
    pick = random.Random(seed)
    for _ in range(12):
        pick.shuffle(spans)
        rig = Rig()
        rig.send(spans)
        ids = [span.span_id for span in spans]
        found.add(tuple(caller for _, caller in sorted(zip(ids, rig.callers, strict=True))))
    (callers,) = found
    assert callers[0].agent in {"a1", "a2"}
    assert (callers[0].session, callers[0].user) == ("s2", "u")


def test_identity_that_comes_later_moves_the_calls_before() -> None:
    """
    Scenario: two calls of a trace arrive; the span that names agent and session comes in the next
    request, as parents do; two more calls follow.
    Guarantees: the verdicts of the first stand on the weak key; but they are counted for the
    agent and the session of the trace by then: four, and none for the weak key.
    """
    rig, calls = Rig(), Calls()
    nameless: dict[str, Any] = {"agent": None, "session": None, "trace_id": b"the one trace id"}
    weak = [("service.name", "desk")]
    rig.send(calls.many(2, 100, **nameless), resource=weak)
    parent = calls.at(101, agent="billing", session="s-1", trace_id=nameless["trace_id"])
    parent.attributes[0].value.string_value = "invoke_agent"
    rig.send([parent], resource=weak)
    rig.send(calls.many(2, 102, **nameless), resource=weak)
    agents = [(caller.agent, caller.session) for caller in rig.callers]
    assert agents == [("desk", None)] * 2 + [("billing", "s-1")] * 2
    assert rig.sign("rate")["observed"] == 4
    assert rig.counts("moved") == 2
    known = rig.state.agents.rows[rig.state.agents.rows["key"] != 0]
    assert sorted(known["past"]["calls"].tolist()) == [0, 4]
    assert sorted(known["shift"]["samples"].tolist()) == [0, 4]


def test_a_span_is_remembered_for_as_long_as_configured() -> None:
    """
    Scenario: memory of 8 spans; a span comes again after 8 others, and again after 30.
    Guarantees: it is known after 8; what is remembered stays bounded, so after 30 it counts anew.
    """
    rig, calls = Rig(limits={"spans": 8}), Calls()
    first = calls.at(100)
    rig.send([first, *calls.many(7, 100), first])
    assert rig.counts("duplicates") == 1
    rig.send([*calls.many(30, 100), first])
    assert rig.counts("duplicates") == 1
    assert rig.counts("tool_calls") == 39


def test_a_copy_is_judged_by_the_state_as_it_is() -> None:
    """
    Scenario: the third call of a session that warns from 3 on comes again, twice.
    Guarantees: each copy gets the verdict of a session with three calls, and is not counted.
    """
    rig, calls = Rig(rate={"warn": 3, "block": 4}), Calls()
    spans = calls.many(3, 100)
    verdicts = rig.send([*spans, spans[2], spans[2]])
    assert [verdict.action for verdict in verdicts] == ["allow", "allow", "warn", "warn", "warn"]
    assert (rig.counts("tool_calls"), rig.counts("duplicates")) == (3, 2)


@pytest.mark.parametrize(
    "ids",
    [
        {"trace_id": bytes(16)},
        {"span_id": bytes(8)},
        {"trace_id": b""},
        {"span_id": b"seven b"},
        {"trace_id": b"seventeen bytes!!"},
    ],
    ids=["zero trace", "zero span", "no trace", "short span", "long trace"],
)
def test_invalid_ids_are_not_judged(ids: dict[str, Any]) -> None:
    """
    Scenario: a call whose ids are not valid, between two that are.
    Guarantees: it passes without a verdict, is counted as such and learned by nobody.
    """
    rig, calls = Rig(), Calls()
    rig.send([calls.at(100), calls.at(100, **ids), calls.at(100)])
    assert [verdict is None for verdict in rig.read()] == [False, True, False]
    assert rig.told[1] is None
    assert rig.sign("rate")["observed"] == 2
    assert (rig.counts("invalid_ids"), rig.counts("tool_calls")) == (1, 2)
    assert rig.counts("entities", "trace") == 2
