"""The time of a call: its own, bounded by arrival; the stream's where there is no arrival."""

from __future__ import annotations

import pytest

from otel_anomaly.detectors.finding import SECOND_NS
from tests.rig import Calls, Rig
from tests.traffic import START_NS

START_S = START_NS // SECOND_NS
SKEW_NS = 10 * SECOND_NS
FAR = (
    pytest.param(START_NS + 3600 * SECOND_NS, id="an hour ahead"),
    pytest.param((1 << 63) - 1, id="2262"),
    pytest.param(1 << 63, id="beyond signed"),
    pytest.param((1 << 64) - 1, id="the last"),
)


def times(rig: Rig) -> list[int | None]:
    return [told and told.time_ns for told in rig.told]


@pytest.mark.parametrize("end_ns", FAR)
def test_a_clock_ahead_cannot_wipe_a_ring(end_ns: int) -> None:
    """
    Scenario: 98 calls of a session with an open second of its agent; a call from the far future;
    one more call.
    Guarantees: the odd one is taken as ending at arrival and counted as clamped; nobody forgets
    anything: it is call 99, the next is 100.
    """
    rig, calls = Rig(), Calls()
    rig.send(calls.many(98, START_S), START_NS)
    odd, last = calls.at(START_S, end_ns=end_ns), calls.at(START_S)
    verdicts = rig.send([odd, last], START_NS)
    assert [verdict.action for verdict in verdicts] == ["allow", "warn"]
    assert times(rig)[-2:] == [START_NS, START_NS]
    assert (rig.counts("clamped"), rig.counts("no_time")) == (1, 0)
    agents = rig.state.agents.rows["shift"]
    assert agents["counts"].sum(axis=2).max() == 100


def test_the_skew_allowed() -> None:
    """
    Scenario: calls that end as far ahead of arrival as allowed, and a nanosecond further.
    Guarantees: the first keeps its time, the second is taken as ending at arrival.
    """
    rig, calls = Rig(), Calls()
    ends = [START_NS + SKEW_NS, START_NS + SKEW_NS + 1]
    rig.send([calls.at(START_S, end_ns=end) for end in ends], START_NS)
    assert times(rig) == [START_NS + SKEW_NS, START_NS]
    assert rig.counts("clamped") == 1


def test_a_call_without_times() -> None:
    """
    Scenario: a call without an end but with a start; one with neither; the latter once more.
    Guarantees: the start stands in, then the arrival; a copy is not counted as timeless again.
    """
    rig, calls = Rig(), Calls()
    started = calls.at(START_S, end_ns=0, start_ns=START_NS - 5)
    nothing = calls.at(START_S, end_ns=0, start_ns=0)
    rig.send([started, nothing], START_NS)
    rig.send([nothing], START_NS + 7)
    assert times(rig) == [START_NS - 5, START_NS, START_NS + 7]
    assert rig.counts("no_time") == 1


@pytest.mark.parametrize(
    ("late_s", "rate_late", "shift_late"),
    [(59, False, False), (60, True, False), (3540, True, False), (3541, True, True)],
)
def test_late_calls(late_s: int, *, rate_late: bool, shift_late: bool) -> None:
    """
    Scenario: a call at the start of a minute; then one of the same session, late by more and more.
    Guarantees: it goes to its own bucket while a ring holds it; a detector whose ring does not
    skips it as late. It gets a verdict in any case.
    """
    rig, calls = Rig(), Calls()
    head_s = START_S - START_S % 60
    rig.send([calls.at(head_s)], START_NS)
    (verdict,) = rig.send([calls.at(head_s - late_s)], START_NS)
    assert verdict.action == "allow"
    assert rig.counts("detector_skipped", "rate", "late") == rate_late
    assert rig.counts("detector_skipped", "rate_shift", "late") == shift_late
    assert rig.counts("late") == (rate_late or shift_late)
    counted = [rig.state.sessions.rows["rate"]["total"].max()]
    counted.append(rig.state.agents.rows["shift"]["counts"][:, 1].sum(axis=1).max())
    assert counted == [1 if rate_late else 2, 1 if shift_late else 2]


def test_a_replay_has_the_clock_of_its_stream() -> None:
    """
    Scenario: no arrival times: a call without time before all others, calls in disorder, one
    without time after them, one beyond 2262, one a year ahead.
    Guarantees: what has no usable time takes the latest time so far, at first the earliest there
    is; every usable time is believed.
    """
    rig, calls = Rig(), Calls()
    year = START_S + 365 * 86400
    ends = [0, START_S, START_S - 30, 0, None, year]
    spans = [calls.at(at or 0) for at in ends]
    spans[4].end_time_unix_nano = 1 << 63
    spans[0].start_time_unix_nano = spans[3].start_time_unix_nano = 0
    rig.send(spans)
    expected = [1, START_NS, START_NS - 30 * SECOND_NS, START_NS, START_NS, year * SECOND_NS]
    assert times(rig) == expected
    assert (rig.counts("no_time"), rig.counts("clamped")) == (2, 1)
    assert rig.state.watermark[0] == year * SECOND_NS


def test_a_replay_that_begins_beyond_all_time() -> None:
    """
    Scenario: the first span of a replay ends beyond 2262; a call of its trace that names nobody
    comes with a usable time.
    Guarantees: the trace is remembered: what the first span said of it counts for the second.
    """
    rig, calls = Rig(), Calls()
    trace_id = b"sixteen bytes id"
    first = calls.at(START_S, agent="known", trace_id=trace_id)
    first.end_time_unix_nano = 1 << 63
    rig.send([first])
    rig.send([calls.at(START_S, agent=None, trace_id=trace_id)])
    assert [caller.agent for caller in rig.callers] == ["known", "known"]


def test_arrival_bounds_the_stream_again_after_a_replay() -> None:
    """
    Scenario: a live call, far behind what was judged before.
    Guarantees: it keeps its own time, and one without a time takes its arrival, not the latest.
    """
    rig, calls = Rig(), Calls()
    rig.send([calls.at(START_S + 1000)])
    rig.send([calls.at(START_S), calls.at(0, end_ns=0, start_ns=0)], START_NS + 5)
    assert times(rig)[1:] == [START_NS, START_NS + 5]


def test_time_before_everything() -> None:
    """
    Scenario: calls in the first seconds after 1970, and a session of today that gets one of them.
    Guarantees: they are judged like others; the session of today loses nothing.
    """
    rig, calls = Rig(rate={"warn": 2, "block": 3}), Calls()
    early = [calls.at(at, session="old") for at in (1e-9, 0.5, 1)]
    assert [verdict.action for verdict in rig.send(early)] == ["allow", "warn", "block"]
    rig.send(calls.many(2, START_S, session="new"))
    assert rig.send([calls.at(1, session="new")])[0].action == "allow"
    assert rig.send([calls.at(START_S, session="new")])[0].action == "block"
