"""The kernel: for each tool call in turn, score -> decide -> learn.

    who -> known already? -> when -> each detector scores -> strongest action -> each one learns

One call is finished before the next begins, so a verdict never depends on how the stream was cut
into requests. Only three things come from outside: the columns of the scan, the state, and the
arrival time, which bounds a clock that runs ahead and stands in where a span has no time.

Before its calls are judged, a request is looked at as a whole: its spans say who is at work in
their traces and who is above whom, calls judged before are moved where that is news
(`correction`), and the spans of one call are gathered into its outermost (`entities.links`).
So the order of spans within a request makes no difference.

A span seen before is judged against the state as it is, and changes nothing; the same goes for an
outer span of a call that was judged already. A span whose ids are not valid cannot be told from its
copies and is left alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.ahead import AHEAD, prefetch_entities
from otel_anomaly.correction import (
    entry_of,
    find_places,
    learn_call,
    note_entry,
    relearn,
    settle_trace,
    wait_above,
    wake,
)
from otel_anomaly.detectors.finding import ALLOW, OFF, PAUSE, WARN
from otel_anomaly.entities.identity import note_own, remember_name, remember_trace, resolve
from otel_anomaly.entities.links import (
    COUNTED,
    FOLDED,
    FOLDED_MAX,
    IS_TOOL,
    KNOWN,
    PART_FAILED,
    SPOKEN,
    STEPS_MAX,
    STOPS,
    find_link,
    find_or_make_link,
    outermost,
    prefetch_link,
    steps_to,
)
from otel_anomaly.entities.table import find, prefetch_slot
from otel_anomaly.episode_steps import note_episodes
from otel_anomaly.gathering import choose_plan, complete, gather
from otel_anomaly.kernels import (
    Array,
    Int,
    Record,
    borrow,
    copy_record,
    inlined,
    kernel,
)
from otel_anomaly.otlp.dialects import AGENT, ARGUMENTS, CALL_ID, RESULT, TOOL, WEAK
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_LOG,
    IS_MCP,
    IS_PART,
)
from otel_anomaly.scoring import (
    DETECTORS,
    SPEAKS_FOR_ITSELF,
    is_late,
    is_learning,
    score_all,
)
from otel_anomaly.state import (
    _ACTIONS,
    _REASONS,
    BAD_IDS,
    CALLS,
    CLAMPED,
    DUPLICATES,
    FINDINGS,
    FOLDED_CALLS,
    LATE_CALLS,
    NO_TIME,
    SKIPPED,
    VERDICTS,
    Plans,
    Scratch,
    State,
    borrow_plans,
    borrow_scratch,
    borrow_state,
)

BORROWED: Final = ABSENT - STEPS_MAX - 1
"""Order of what an outer span has from an inner one, with the steps between them added."""


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


@inlined
def _tool_of(row: Record) -> Int:
    """Hash of the tool's name, 0: not told."""
    return np.int64(row["hash"][TOOL] if row["order"][TOOL] != ABSENT else 0)


@inlined
def _call_id_of(row: Record) -> Int:
    """Hash of the call's id, 0: not told. MCP numbers its requests without regard to it."""
    told = row["order"][CALL_ID] != ABSENT and row["flags"] & IS_MCP == 0
    return np.int64(row["hash"][CALL_ID] if told else 0)


@inlined
def _key_of_id(row: Record, seed: Int) -> Int:
    """Key of a call by its id: call ids are only good within a trace."""
    return hash_two(row["trace"], row["hash"][CALL_ID], seed)


@inlined
def _link_span(data: Array, row: Record, number: Int, seed: Int, state: State, now_ns: Int) -> Int:
    """Note where a span stands: whose child it is, and what it is to the calls below.

    Returns 1 when calls wait for it.
    """
    flags = row["flags"]
    if flags & IS_CALL == 0 and find(state.traces, row["trace"]) == 0:
        return np.int64(0)  # Nobody calls tools in this trace.
    link = state.links.spans[find_or_make_link(state.links, row["identity"])]
    link["flags"] |= KNOWN
    link["parent"] = row["parent"]
    link["request"], link["row"] = state.watermark[2], number
    waited = np.int64(1 if link["waiting"] != 0 else 0)
    if flags & IS_CALL != 0:
        link["flags"] |= IS_TOOL
        link["tool"], link["call_id"] = _tool_of(row), _call_id_of(row)
        if row["order"][CALL_ID] != ABSENT:
            key = _key_of_id(row, seed)
            state.links.spans[find_or_make_link(state.links, key)]["flags"] |= KNOWN
    elif flags & IS_BOUNDARY != 0:
        link["flags"] |= STOPS
        if row["order"][AGENT] < WEAK and row["hash"][AGENT] != 0:
            link["agent"] = row["hash"][AGENT]
            remember_name(state.names, data, row, now_ns)
    if flags & IS_PART != 0 and flags & IS_ERROR != 0 and row["parent"] != 0:
        above = find_or_make_link(state.links, row["parent"])
        state.links.spans[above]["flags"] |= PART_FAILED
    return waited


@inlined
def _is_linked(row: Record) -> bool:
    """Whether a row takes part in who is above whom."""
    return row["flags"] & (BAD_ID | IS_LOG) == 0 and row["identity"] != 0


@inlined
def _look_at_all(
    data: Array, rows: Array, plans: Plans, state: State, scratch: Scratch, arrival_ns: Int
) -> None:
    """Take in what the spans of a request say of each other, before any of them is judged."""
    state.watermark[2] += 1
    seed = plans.judge[0]["seed"]
    for number in range(rows.size):
        row = rows[number]
        prefetch_slot(state.traces, row["trace"])
        prefetch_link(state.links, row["identity"])
        if row["flags"] & IS_CALL != 0:
            prefetch_link(state.links, row["parent"])
            prefetch_link(state.links, _key_of_id(row, seed))
    if arrival_ns == 0 and rows.size > 0:
        # A replay that has just begun. Times beyond 2262 are negative.
        arrival_ns = max(np.int64(rows[0]["end_ns"]), np.int64(0))
    news, woken = np.int64(0), np.int64(0)
    for number in range(rows.size):
        news |= remember_trace(state.traces, data, rows[number], arrival_ns)
    for number in range(rows.size):
        if _is_linked(rows[number]):
            woken |= _link_span(data, rows[number], np.int64(number), seed, state, arrival_ns)
    for number in range(rows.size if woken != 0 else 0):
        if _is_linked(rows[number]):
            mine = find_link(state.links, rows[number]["identity"])
            if mine >= 0 and state.links.spans[mine]["waiting"] != 0:
                wake(rows[number]["identity"], plans, state, scratch)
    for number in range(rows.size if news | woken != 0 else 0):
        row = rows[number]
        told = row["trace"] != 0 and row["flags"] & BAD_ID == 0
        known = find(state.traces, row["trace"]) if told else np.int64(0)
        if known != 0 and state.traces.rows[known]["changed"] != 0:
            settle_trace(state.traces.rows[known], plans, state, scratch)
    for number in range(rows.size):
        row = rows[number]
        if row["flags"] & (IS_CALL | IS_LOG) == IS_CALL and row["parent"] != 0:
            place, _ = outermost(state.links, row["parent"], _tool_of(row), _call_id_of(row))
            if place >= 0:
                _give_to_outer(data, rows, row, place, state)


@kernel
def _tells_more(data: Array, row: Record, role: Int, order: Int, outer: Record) -> bool:
    """Whether `row` is to speak in a role rather than who spoke for `outer` so far.

    The nearest speaks, of equally near ones the longest, then the smallest in bytes: not the first
    to arrive.
    """
    if outer["order"][role] != order:
        return bool(order < outer["order"][role])
    size = row["length"][role]
    if size != outer["length"][role]:
        return bool(size > outer["length"][role])
    at, there = row["at"][role], outer["at"][role]
    for i in range(size):
        if data[at + i] != data[there + i]:
            return bool(data[at + i] < data[there + i])
    return False


@kernel
def _give_to_outer(data: Array, rows: Array, row: Record, place: Int, state: State) -> None:
    """What the inner span of a call tells and the outer one of the same request does not."""
    link = state.links.spans[place]
    if link["request"] != state.watermark[2]:
        if row["flags"] & IS_ERROR != 0:
            link["flags"] |= PART_FAILED
        return
    outer = rows[link["row"]]
    order = BORROWED + steps_to(state.links, row["parent"], place)
    for role in (ARGUMENTS, RESULT, TOOL, CALL_ID):
        if row["order"][role] < BORROWED and _tells_more(data, row, role, order, outer):
            outer["order"][role], outer["kind"][role] = order, row["kind"][role]
            outer["at"][role], outer["length"][role] = row["at"][role], row["length"][role]
            outer["hash"][role] = row["hash"][role]
    if row["flags"] & IS_ERROR != 0:
        outer["flags"] |= IS_ERROR


@inlined
def _decide(
    plans: Plans, signs: Array, number: Int, verdict: Record, findings: Array, used: Array
) -> Int:
    """All findings are kept, the strongest action is the verdict. Returns it, mode left aside."""
    action, worst = ALLOW, 0.0
    verdict["finding"] = used[0]
    strongest = plans.judge[0]["action_max"]
    for detector in range(len(DETECTORS)):
        sign = signs[detector]
        verdict["skipped"][detector] = sign["skipped"]
        if sign["score"] > 0.0:
            action = max(action, np.int64(sign["action"]))
            if SPEAKS_FOR_ITSELF[detector]:
                worst = max(worst, sign["score"])
            finding = findings[used[0]]
            finding["row"], finding["detector"] = number, detector
            finding["asked"] = sign["action"]
            sign["action"] = min(np.int64(sign["action"]), strongest)
            copy_record(finding["sign"], sign)
            used[0] += 1
    verdict["findings"] = used[0] - verdict["finding"]
    verdict["action"], verdict["score"] = min(action, strongest), worst
    verdict["asked"] = action
    verdict["learning"] = is_learning(signs)
    verdict["late"] = is_late(signs)
    return action


@inlined
def _score(limits: Record, state: State, places: Record, call: Record, signs: Array) -> None:
    """Let every detector speak of a call."""
    score_all(
        call,
        limits,
        state.agents.rows[places["agent"]],
        state.services.rows[places["service"]]["past"],
        state.sessions.rows[places["rate"]],
        state.sessions.rows[places["session"]],
        signs,
    )


@inlined
def _event_of_id(row: Record, seed: Int, state: State) -> tuple[Int, Int]:
    """The call judged before under the same trace and call id: (its serial number, the key).

    0 when there is none. A provider may number its calls anew with every turn, so two spans must
    overlap in time and name the same tool; a log record and a span need not.
    """
    if row["order"][CALL_ID] == ABSENT or row["trace"] == 0:
        return np.int64(0), np.int64(0)
    key = _key_of_id(row, seed)
    place = find_link(state.links, key)
    if place < 0:
        return np.int64(0), key
    link = state.links.spans[place]
    at = entry_of(state, np.int64(link["event"]))
    if at < 0:
        return np.int64(0), key
    log = row["flags"] & IS_LOG != 0
    apart = (state.journal[at]["own"]["flags"] & IS_LOG != 0) != log
    overlaps = row["start_ns"] < link["end_ns"] and link["start_ns"] < row["end_ns"]
    same = overlaps and _tool_of(row) == state.journal[at]["call"]["tool"]
    return (np.int64(link["event"]) if apart or same else np.int64(0)), key


COUNTS, COPY, PART, SPEAKS = range(4)
"""What a row is: a call of its own; a copy of one; part of another; the outer span, or the span
beside a log record, of a call that was judged before."""


@inlined
def _tells_arguments(row: Record, mine: Int, outer: Int, state: State) -> bool:
    """Whether a log record brings, or brought before, what the span it was written in, of the call
    `outer`, does not tell: some agents take the content out of their spans."""
    if row["flags"] & IS_LOG == 0 or row["order"][ARGUMENTS] == ABSENT:
        return False
    if mine >= 0 and state.links.spans[mine]["flags"] & SPOKEN != 0:
        return bool(entry_of(state, np.int64(state.links.spans[mine]["event"])) >= 0)
    at = entry_of(state, outer)
    return bool(at >= 0 and state.journal[at]["call"]["has_arguments"] == 0)


@inlined
def _place_of(row: Record, plan: Record, state: State) -> tuple[Int, Int, Int, Int]:
    """What a call's row is: (COUNTS.., the event it belongs to, ancestor to wait for, id's key)."""
    links, identity = state.links, row["identity"]
    mine = find_link(links, identity)
    none = np.int64(0)
    counted = mine >= 0 and links.spans[mine]["flags"] & COUNTED != 0
    if counted and links.spans[mine]["end_ns"] == row["end_ns"]:
        return np.int64(COPY), none, none, none
    above, missing = outermost(links, row["parent"], _tool_of(row), _call_id_of(row))
    outer = np.int64(links.spans[above]["event"]) if above >= 0 and above != mine else none
    tells = _tells_arguments(row, mine, outer, state)
    if above >= 0 and above != mine and not tells:
        folded = mine >= 0 and links.spans[mine]["flags"] & FOLDED != 0
        if folded or links.spans[above]["folded"] < FOLDED_MAX:
            links.spans[above]["folded"] += 0 if folded else 1
            return np.int64(PART), np.int64(links.spans[above]["event"]), missing, none
    event, key = _event_of_id(row, plan["seed"], state)
    if tells and entry_of(state, outer) >= 0:
        event = outer  # Ids are used again: the span it was written in says more.
    if mine >= 0 and not counted:
        waited = np.int64(links.spans[mine]["event"])
        event = waited if entry_of(state, waited) >= 0 else event
    if event == 0:
        told = find_link(links, key) if key != 0 else np.int64(-1)
        log = row["flags"] & IS_LOG != 0
        if log and told >= 0 and links.spans[told]["flags"] & KNOWN != 0:
            return np.int64(PART), none, none, none  # A span tells of the same call.
        return np.int64(COUNTS), none, missing, key
    known = entry_of(state, event)
    spoken = mine >= 0 and links.spans[mine]["flags"] & SPOKEN != 0
    if not spoken and state.journal[known]["folded"] >= FOLDED_MAX:
        # The id stays with the call that is full, so that all further ones count.
        return np.int64(COUNTS), none, missing, none
    from_log = state.journal[known]["own"]["flags"] & IS_LOG != 0
    tells_more = row["order"][ARGUMENTS] != ABSENT
    tells_more = tells_more and state.journal[known]["call"]["has_arguments"] == 0
    if row["flags"] & IS_LOG != 0 and not from_log and not tells_more:
        return np.int64(COPY), event, none, key
    return np.int64(SPEAKS), event, missing, key


@inlined
def _concerns_episodes(places: Record, verdict: Record, state: State) -> bool:
    """Whether a call may begin, prolong or end an episode: mostly not, which saves the call."""
    masks = state.agents.rows[places["agent"]]["open"] | state.sessions.rows[places["rate"]]["open"]
    masks |= state.sessions.rows[places["session"]]["open"]
    return bool(verdict["action"] >= WARN or masks != 0)


@inlined
def _judge_call(
    number: Int,
    ordinal: Int,
    row: Record,
    plans: Plans,
    state: State,
    received_ns: Int,
    verdict: Record,
    findings: Array,
    steps: Array,
    used: Array,
    scratch: Scratch,
) -> None:
    """The `ordinal`-th tool call. `used`: rows in use of findings and steps."""
    plan, counters, person = plans.judge[0], state.counters, verdict["person"]
    kind, event, missing, id_key = _place_of(row, plan, state)
    if kind == PART:
        counters[FOLDED_CALLS] += _note_part(row, event, state)
        return
    fresh = kind == COUNTS
    _settle_time(row, plan, state, received_ns, fresh, verdict)
    time_ns = verdict["time_ns"]
    verdict["judged"], verdict["duplicate"] = 1, 0 if fresh else 1
    call, places, signs = scratch.work[0]["call"], scratch.work[0]["places"], scratch.signs
    mine = find_link(state.links, row["identity"])
    if mine >= 0 and state.links.spans[mine]["flags"] & PART_FAILED != 0:
        row["flags"] |= IS_ERROR
    gather(row, verdict, scratch.read[2 * ordinal], scratch.read[2 * ordinal + 1], plan, call)
    if kind == SPEAKS:
        complete(call, state.journal[entry_of(state, event)]["call"], plan["seed"])
        verdict["failed"] = call["failed"]
        counters[FOLDED_CALLS] += _speak_for(row, event, person, plans, state, scratch)
    find_places(person, time_ns, state, places)
    call["fresh"] = 1 if fresh else 0
    _score(plans.limits[verdict["plan"]], state, places, call, signs)
    if plan["explain"] == row["identity"]:
        _note_explained(verdict, places, state, scratch)
    action = _decide(plans, signs, number, verdict, findings, used)
    if not fresh:
        counters[DUPLICATES] += kind == COPY
        return
    note_own(row, scratch.work[0]["own"])
    serial = note_entry(scratch.work[0]["own"], verdict, call, _call_id_of(row), state)
    entry = state.journal[entry_of(state, serial)]
    entry["alarmed"] = 1 if action >= PAUSE else 0
    learn_call(entry, places, plans, state, scratch)
    if _concerns_episodes(places, verdict, state):
        used[1] = note_episodes(
            state, places, signs, findings, verdict, number, plan, steps, used[1]
        )
    _count_call(counters, signs, verdict)
    _link_event(row, serial, missing, id_key, state)


@kernel
def _note_explained(verdict: Record, places: Record, state: State, scratch: Scratch) -> None:
    """Keep what a call was just judged by: it is the one to be explained."""
    explained = scratch.explained[0]
    explained["plan"] = verdict["plan"]
    copy_record(explained["call"], scratch.work[0]["call"])
    for detector in range(len(DETECTORS)):
        copy_record(explained["signs"][detector], scratch.signs[detector])
    copy_record(explained["agent"], state.agents.rows[places["agent"]])
    copy_record(explained["service"], state.services.rows[places["service"]])


@kernel
def _note_part(row: Record, event: Int, state: State) -> Int:
    """A span that is part of another's call. Returns 1 when it was not known as such."""
    place = find_or_make_link(state.links, row["identity"])
    link = state.links.spans[place]
    news = link["flags"] & FOLDED == 0
    link["flags"] |= FOLDED
    if link["event"] == 0:
        link["event"] = event
    return np.int64(1 if news else 0)


@kernel
def _speak_for(
    row: Record, event: Int, person: Record, plans: Plans, state: State, scratch: Scratch
) -> Int:
    """An outer span takes the place of an inner one that was judged. Returns 1 the first time."""
    link = state.links.spans[find_or_make_link(state.links, row["identity"])]
    if link["flags"] & SPOKEN != 0:
        return np.int64(0)
    link["flags"] |= SPOKEN
    link["event"] = event
    entry = state.journal[entry_of(state, event)]
    entry["folded"] += 1
    note_own(row, entry["own"])
    relearn(entry, scratch.work[0]["call"], person, plans, state, scratch)
    return np.int64(1)


@inlined
def _link_event(row: Record, serial: Int, missing: Int, id_key: Int, state: State) -> None:
    """Let copies and other spans of a call that was just judged find it."""
    link = state.links.spans[find_or_make_link(state.links, row["identity"])]
    link["flags"] |= COUNTED
    link["event"], link["start_ns"], link["end_ns"] = serial, row["start_ns"], row["end_ns"]
    if id_key != 0:
        link = state.links.spans[find_or_make_link(state.links, id_key)]
        link["event"], link["start_ns"], link["end_ns"] = serial, row["start_ns"], row["end_ns"]
    wait_above(state.journal[entry_of(state, serial)], missing, state)


@inlined
def _count_call(counters: Array, signs: Array, verdict: Record) -> None:
    """Bring the counters up to date with one call that was new."""
    counters[CALLS] += 1
    counters[VERDICTS + np.int64(verdict["action"])] += 1
    counters[LATE_CALLS] += verdict["late"]
    for detector in range(len(DETECTORS)):
        sign = signs[detector]
        if sign["skipped"] != OFF:
            counters[SKIPPED + detector * _REASONS + np.int64(sign["skipped"])] += 1
        if sign["action"] >= WARN:
            counters[FINDINGS + detector * _ACTIONS + np.int64(sign["action"])] += 1


@kernel
def look_at(
    data: Array,
    rows: Array,
    plans: Plans,
    state: State,
    received_ns: Int,
    verdicts: Array,
    scratch: Scratch,
) -> None:
    """Before a request is judged: what its spans say of each other, who made each call, and whose
    limits apply. Fills `person` and `plan` of the verdicts.
    """
    data, rows, verdicts = borrow(data), borrow(rows), borrow(verdicts)
    plans, state, scratch = borrow_plans(plans), borrow_state(state), borrow_scratch(scratch)
    arrival_ns = received_ns if received_ns > 0 else state.watermark[0]
    _look_at_all(data, rows, plans, state, scratch, arrival_ns)
    plan, own = plans.judge[0], scratch.work[0]["own"]
    for number in range(rows.size):
        row, verdict = rows[number], verdicts[number]
        verdict["judged"], verdict["findings"] = 0, 0
        if row["flags"] & IS_CALL != 0:
            note_own(row, own)
            resolve(state.traces, state.links, own, plan["scope"], plan["seed"], verdict["person"])
            choose_plan(data, row, verdict, plans, state, arrival_ns)


@kernel
def judge(
    rows: Array,
    plans: Plans,
    state: State,
    received_ns: Int,
    verdicts: Array,
    findings: Array,
    steps: Array,
    used: Array,
    scratch: Scratch,
) -> None:
    """Judge all tool calls of a request, in order. `used` (int64 [2]) counts findings and steps.

    After `look_at` and `read_calls`.
    """
    rows, verdicts = borrow(rows), borrow(verdicts)
    findings, steps, used = borrow(findings), borrow(steps), borrow(used)
    plans, state, scratch = borrow_plans(plans), borrow_state(state), borrow_scratch(scratch)
    used[0] = used[1] = 0
    for number in range(rows.size):
        if rows[number]["flags"] & IS_CALL != 0:
            prefetch_slot(state.sessions, verdicts[number]["person"]["rate_key"])
            prefetch_slot(state.agents, verdicts[number]["person"]["agent_key"])
    ordinal = np.int64(0)
    for number in range(rows.size):
        row = rows[number]
        if number + AHEAD < rows.size and rows[number + AHEAD]["flags"] & IS_CALL != 0:
            # Which arguments are meant is a guess: right while all rows are calls.
            guess: Int = min(2 * (ordinal + AHEAD), scratch.read.size - 1)
            person = verdicts[number + AHEAD]["person"]
            prefetch_entities(rows[number + AHEAD], person, scratch.read[guess], state)
        if row["flags"] & IS_CALL == 0:
            continue
        if row["flags"] & BAD_ID != 0:
            state.counters[BAD_IDS] += 1
        else:
            _judge_call(
                np.int64(number), ordinal, row, plans, state, received_ns, verdicts[number],
                findings, steps, used, scratch,
            )  # fmt: skip
        ordinal += 1
