"""The kernel: for each tool call in turn, score -> decide -> learn.

    who -> known already? -> when -> each detector scores -> strongest action -> each one learns

One call is finished before the next begins, so a verdict never depends on how the stream was cut
into requests. Only three things come from outside: the columns of the scan, the state, and the
arrival time, which bounds a clock that runs ahead and stands in where a span has no time.

A span seen before is judged against the state as it is, and changes nothing. A span whose ids are
not valid cannot be told from its copies and is left alone.

Episodes: a finding of warn or more opens one for its detector and entity; it stays open while the
observed value is at least `clear` times the limit, and ends when it has not been so for `hold`.
Only the steps (start, a stronger action, end) leave the kernel, so that a session above the line
for a minute costs one line, not a thousand.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.detectors import rate, rate_shift
from otel_anomaly.detectors.finding import (
    ACTIONS,
    ALLOW,
    COLD,
    JUDGED,
    LATE,
    NO_ENTITY,
    PAUSE,
    SIGN,
    SKIP_REASONS,
    WARN,
)
from otel_anomaly.entities.identity import PERSON, remember_trace, resolve
from otel_anomaly.entities.table import (
    OF_ROW,
    Table,
    borrow_table,
    find_or_make,
    prefetch_row,
    prefetch_slot,
)
from otel_anomaly.kernels import Array, Int, Record, borrow, copy_record, inlined, kernel, prefetch
from otel_anomaly.otlp.scan import BAD_ID, IS_CALL

DETECTORS: Final = ("rate", "rate_shift")
RATE, RATE_SHIFT = np.arange(len(DETECTORS))
CLAUSES: Final = (rate.CLAUSE, rate_shift.CLAUSE)
_DETECTORS, _ACTIONS, _REASONS = len(DETECTORS), len(ACTIONS), len(SKIP_REASONS)

PLAN = np.dtype(
    [
        ("seed", "i8"),
        ("scope", "i8"),  # Kind of key that `rate` adds up by.
        ("skew_ns", "i8"),
        ("hold_ns", "i8"),
        ("clear", "f8"),
    ]
)
VERDICT = np.dtype(
    [
        ("judged", "i1"),  # 0: no tool call, or its ids are not valid.
        ("duplicate", "i1"),
        ("late", "i1"),
        ("action", "i1"),
        ("learning", "i1"),
        ("skipped", "i1", (_DETECTORS,)),
        ("finding", "i4"),  # First row in the findings.
        ("findings", "i4"),
        ("time_ns", "i8"),
        ("score", "f8"),
        ("person", PERSON),
    ],
    align=True,
)
FINDING = np.dtype(
    [("row", "i4"), ("detector", "i4"), ("entity", "i4"), ("sign", SIGN)], align=True
)
"""`entity` is a row of the detector's own table."""

EPISODE = np.dtype(
    [
        ("start_ns", "i8"),  # 0: none open.
        ("last_ns", "i8"),
        ("peak", "f4"),
        ("score", "f4"),
        ("count", "i4"),
        ("action", "i4"),
    ]
)
START, ESCALATE, END = range(3)
STEPS: Final = ("start", "escalate", "end")
STEP = np.dtype(
    [
        ("step", "i4"),
        ("row", "i4"),  # Row of the scan that made it; at END, of the call that found it over.
        ("detector", "i4"),
        ("entity", "i4"),
        ("finding", "i4"),  # -1 at END.
        ("episode", EPISODE),
    ],
    align=True,
)
STEPS_PER_FINDING: Final = 2  # An old episode ends and a new one starts.

# Places in the counters.
CALLS, DUPLICATES, LATE_CALLS, CLAMPED, NO_TIME, BAD_IDS = range(6)
VERDICTS = 6
FINDINGS = VERDICTS + _ACTIONS
SKIPPED = FINDINGS + _DETECTORS * _ACTIONS
COUNTERS: Final = SKIPPED + _DETECTORS * _REASONS

SEEN = np.dtype([("mask", "i8"), ("capacity", "i8"), ("used", "i8"), ("current", "i8")])


AGENT = np.dtype([*OF_ROW, ("episode", EPISODE), ("shift", rate_shift.STATE)], align=True)
SESSION = np.dtype([*OF_ROW, ("episode", EPISODE), ("rate", rate.STATE)], align=True)
"""All that is kept of one entity, in one piece: it can be handed over without the others."""


class State(NamedTuple):
    """All that is remembered between requests. Every array is bounded and of fixed shape."""

    counters: np.ndarray
    """int64 [COUNTERS]."""
    watermark: np.ndarray
    """int64 [1]: latest time judged, nanoseconds."""
    seen: np.ndarray
    """SEEN [1]."""
    seen_spans: np.ndarray
    """int64 [2, 2^n]: hashes of the last spans, in two generations."""
    traces: Table
    """Of TRACE."""
    agents: Table
    """Of AGENT."""
    sessions: Table
    """Of SESSION: what `rate` counts by."""


class Plans(NamedTuple):
    """The configuration as the kernels read it: one record each."""

    judge: np.ndarray
    rate: np.ndarray
    rate_shift: np.ndarray


@inlined
def borrow_state(state: State) -> State:
    """`borrow` for all arrays of the state."""
    return State(
        borrow(state.counters),
        borrow(state.watermark),
        borrow(state.seen),
        borrow(state.seen_spans),
        borrow_table(state.traces),
        borrow_table(state.agents),
        borrow_table(state.sessions),
    )


@inlined
def borrow_plans(plans: Plans) -> Plans:
    """`borrow` for all arrays of the configuration."""
    return Plans(borrow(plans.judge), borrow(plans.rate), borrow(plans.rate_shift))


class Judgement(NamedTuple):
    """What the judge says of one request. The arrays may be views of reused ones: copy to keep."""

    verdicts: np.ndarray
    """VERDICT [rows]."""
    findings: np.ndarray
    """FINDING [n]."""
    steps: np.ndarray
    """STEP [n]."""


@inlined
def _remember_span(seen: Record, spans: Array, identity: Int) -> bool:
    """Whether this span was met among the last `capacity` ones; if not, it is remembered.

    Two generations of open addressing: when one is full, the older is emptied and takes over, so
    between `capacity` and twice as many spans are known, at two look-ups and no deletions.
    """
    current = seen["current"]
    place = identity & seen["mask"]
    while spans[1 - current, place] != 0:
        if spans[1 - current, place] == identity:
            return True
        place = (place + 1) & seen["mask"]
    place = identity & seen["mask"]
    while spans[current, place] != 0:
        if spans[current, place] == identity:
            return True
        place = (place + 1) & seen["mask"]
    spans[current, place] = identity
    seen["used"] += 1
    if seen["used"] >= seen["capacity"]:
        seen["used"] = 0
        seen["current"] = 1 - current
        spans[1 - current, :] = 0
    return False


@inlined
def _settle_time(
    row: Record, plan: Record, state: State, received_ns: Int, fresh: bool, verdict: Record
) -> None:
    """Event time, bounded by arrival. `received_ns` 0: a replay, whose clock is the stream.

    What has to be mended is counted once a span, like the span itself.
    """
    time_ns = row["end_ns"]
    now_ns = received_ns if received_ns > 0 else state.watermark[0]
    if time_ns == 0:
        state.counters[NO_TIME] += fresh
        time_ns = max(now_ns, np.int64(1))
    elif received_ns > 0 and (time_ns < 0 or time_ns - received_ns > plan["skew_ns"]):
        # Negative: beyond 2262, for OTLP times are unsigned.
        state.counters[CLAMPED] += fresh
        time_ns = received_ns
    elif time_ns < 0:
        state.counters[CLAMPED] += fresh
        time_ns = max(now_ns, np.int64(1))
    state.watermark[0] = max(state.watermark[0], time_ns)
    verdict["time_ns"] = time_ns


@kernel
def _note_episode(
    episode: Record,
    sign: Record,
    time_ns: Int,
    row: Int,
    detector: Int,
    entity: Int,
    finding: Int,
    plan: Record,
    steps: Array,
    used: Int,
) -> Int:
    """Open, prolong, raise or end the episode of one detector about one entity.

    Returns how many rows of `steps` are in use. `finding` is -1 when there is none of warn or more.
    """
    is_open = episode["start_ns"] != 0
    if is_open and time_ns - episode["last_ns"] > plan["hold_ns"]:
        step = steps[used]
        step["step"], step["row"], step["detector"], step["entity"] = END, row, detector, entity
        step["finding"] = -1
        copy_record(step["episode"], episode)
        used += 1
        episode["start_ns"] = 0
        is_open = False
    if is_open and sign["ratio"] >= plan["clear"] and time_ns > episode["last_ns"]:
        episode["last_ns"] = time_ns
    if finding < 0:
        return used
    kind = -1
    if not is_open:
        kind = START
        episode["start_ns"], episode["last_ns"] = time_ns, time_ns
        episode["peak"], episode["score"], episode["count"] = 0.0, 0.0, 0
        episode["action"] = ALLOW
    elif sign["action"] > episode["action"]:
        kind = ESCALATE
    episode["count"] += 1
    episode["action"] = max(episode["action"], np.int32(sign["action"]))
    episode["peak"] = max(episode["peak"], np.float32(sign["observed"]))
    episode["score"] = max(episode["score"], np.float32(sign["score"]))
    if kind >= 0:
        step = steps[used]
        step["step"], step["row"], step["detector"], step["entity"] = kind, row, detector, entity
        step["finding"] = finding
        copy_record(step["episode"], episode)
        used += 1
    return used


@inlined
def _row_of(table: Table, key: Int, time_ns: Int) -> Int:
    """The row of an entity; 0 when it has no key or no room."""
    if key == 0:
        return np.int64(0)
    return find_or_make(table, key, time_ns)


@inlined
def _keep_finding(
    findings: Array, used: Int, row: Int, detector: Int, entity: Int, sign: Record
) -> Int:
    """Append a finding. Returns its number."""
    finding = findings[used]
    finding["row"], finding["detector"], finding["entity"] = row, detector, entity
    copy_record(finding["sign"], sign)
    return used


@inlined
def _judge_call(
    number: Int,
    row: Record,
    plans: Plans,
    state: State,
    received_ns: Int,
    signs: Array,
    verdict: Record,
    findings: Array,
    steps: Array,
    used: Array,
) -> None:
    """One tool call. `used`: rows in use of findings and steps."""
    plan, counters = plans.judge[0], state.counters
    person = verdict["person"]
    fresh = not _remember_span(state.seen[0], state.seen_spans, row["identity"])
    _settle_time(row, plan, state, received_ns, fresh, verdict)
    time_ns = verdict["time_ns"]
    verdict["judged"], verdict["duplicate"] = 1, 0 if fresh else 1
    session = _row_of(state.sessions, person["rate_key"], time_ns)
    agent = _row_of(state.agents, person["agent_key"], time_ns)
    counts, shift = state.sessions.rows[session]["rate"], state.agents.rows[agent]["shift"]
    # Score.
    for detector in range(_DETECTORS):
        signs[detector]["skipped"] = NO_ENTITY
        signs[detector]["score"], signs[detector]["action"] = 0.0, ALLOW
    if plans.rate[0]["enabled"] and session != 0:
        rate.score(counts, plans.rate[0], time_ns, fresh, signs[RATE])
    if plans.rate_shift[0]["enabled"] and agent != 0:
        rate_shift.score(shift, plans.rate_shift[0], time_ns, fresh, signs[RATE_SHIFT])
    # Decide: all findings are kept, the strongest action is the verdict.
    action, worst = ALLOW, 0.0
    verdict["finding"] = used[0]
    for detector in range(_DETECTORS):
        sign = signs[detector]
        verdict["skipped"][detector] = sign["skipped"]
        if sign["score"] > 0.0:
            entity = session if detector == RATE else agent
            used[0] = 1 + _keep_finding(findings, used[0], number, detector, entity, sign)
            worst = max(worst, sign["score"])
            action = max(action, np.int64(sign["action"]))
    verdict["findings"] = used[0] - verdict["finding"]
    verdict["action"], verdict["score"] = action, worst
    verdict["learning"] = signs[RATE_SHIFT]["skipped"] == COLD
    verdict["late"] = signs[RATE]["skipped"] == LATE or signs[RATE_SHIFT]["skipped"] == LATE
    if not fresh:
        counters[DUPLICATES] += 1
        return
    # Learn.
    if session != 0 and plans.rate[0]["enabled"]:
        if signs[RATE]["skipped"] == JUDGED:
            rate.learn(counts, time_ns)
        used[1] = _note_episode(
            state.sessions.rows[session]["episode"], signs[RATE], time_ns, number, RATE, session,
            _finding_of(findings, verdict, RATE), plan, steps, used[1],
        )  # fmt: skip
    if agent != 0 and plans.rate_shift[0]["enabled"]:
        if signs[RATE_SHIFT]["skipped"] != LATE:
            rate_shift.learn(shift, time_ns, action >= PAUSE)
        episode = state.agents.rows[agent]["episode"]
        used[1] = _note_episode(
            episode, signs[RATE_SHIFT], time_ns, number, RATE_SHIFT, agent,
            _finding_of(findings, verdict, RATE_SHIFT), plan, steps, used[1],
        )  # fmt: skip
    _count_call(counters, plans, signs, verdict)


@inlined
def _finding_of(findings: Array, verdict: Record, detector: Int) -> Int:
    """Number of the detector's finding about this call if it reached warn, else -1."""
    for i in range(verdict["finding"], verdict["finding"] + verdict["findings"]):
        if findings[i]["detector"] == detector and findings[i]["sign"]["action"] >= WARN:
            return np.int64(i)
    return np.int64(-1)


@inlined
def _count_call(counters: Array, plans: Plans, signs: Array, verdict: Record) -> None:
    """Bring the counters up to date with one call that was new."""
    counters[CALLS] += 1
    counters[VERDICTS + verdict["action"]] += 1
    counters[LATE_CALLS] += verdict["late"]
    for detector in range(_DETECTORS):
        on = plans.rate[0]["enabled"] if detector == RATE else plans.rate_shift[0]["enabled"]
        if on == 0:
            continue
        sign = signs[detector]
        counters[SKIPPED + detector * _REASONS + sign["skipped"]] += 1
        if sign["action"] >= WARN:
            counters[FINDINGS + detector * _ACTIONS + sign["action"]] += 1


AHEAD: Final = 6
"""Calls between asking for memory and using it: far enough to arrive, near enough to stay."""


@inlined
def _resolve_all(rows: Array, plans: Plans, state: State, verdicts: Array) -> None:
    """Who made each call, and the first look at where their records lie."""
    plan = plans.judge[0]
    for number in range(rows.size):
        row, verdict = rows[number], verdicts[number]
        verdict["judged"], verdict["findings"] = 0, 0
        if row["flags"] & IS_CALL != 0:
            resolve(state.traces, row, plan["scope"], plan["seed"], verdict["person"])
            prefetch_slot(state.sessions, verdict["person"]["rate_key"])
            prefetch_slot(state.agents, verdict["person"]["agent_key"])
            place = row["identity"] & state.seen[0]["mask"]
            prefetch(state.seen_spans[0], place)
            prefetch(state.seen_spans[1], place)


@kernel
def remember_all(data: Array, rows: Array, state: State) -> None:
    """Let the spans of a request speak for their traces, and judge nothing."""
    data, rows, state = borrow(data), borrow(rows), borrow_state(state)
    for number in range(rows.size):
        remember_trace(state.traces, data, rows[number], rows[number]["end_ns"])


@kernel
def judge(
    data: Array,
    rows: Array,
    plans: Plans,
    state: State,
    received_ns: Int,
    signs: Array,
    verdicts: Array,
    findings: Array,
    steps: Array,
    used: Array,
) -> None:
    """Judge all tool calls of a request, in order. `used` (int64 [2]) counts findings and steps.

    Before that, the identities that its spans bring speak for their traces: within a request the
    order of spans makes no difference to who is meant.
    """
    data, rows, signs = borrow(data), borrow(rows), borrow(signs)
    verdicts, findings, steps, used = (
        borrow(verdicts),
        borrow(findings),
        borrow(steps),
        borrow(used),
    )
    plans, state = borrow_plans(plans), borrow_state(state)
    arrival_ns = received_ns if received_ns > 0 else state.watermark[0]
    used[0] = used[1] = 0
    for number in range(rows.size):
        prefetch_slot(state.traces, rows[number]["trace"])
    for number in range(rows.size):
        remember_trace(state.traces, data, rows[number], arrival_ns)
    _resolve_all(rows, plans, state, verdicts)
    for number in range(rows.size):
        row = rows[number]
        if number + AHEAD < rows.size and rows[number + AHEAD]["flags"] & IS_CALL != 0:
            person = verdicts[number + AHEAD]["person"]
            prefetch_row(state.sessions, person["rate_key"])
            prefetch_row(state.agents, person["agent_key"])
        if row["flags"] & IS_CALL == 0:
            continue
        if row["flags"] & BAD_ID != 0:
            state.counters[BAD_IDS] += 1
            continue
        _judge_call(
            number, row, plans, state, received_ns, signs, verdicts[number], findings, steps, used
        )


def make_seen(capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """An empty memory of at least the last `capacity` spans."""
    size = 1 << (2 * capacity).bit_length()
    seen = np.zeros(1, SEEN)
    seen["mask"], seen["capacity"] = size - 1, capacity
    return seen, np.zeros((2, size), np.int64)
