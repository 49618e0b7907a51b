"""The kernel: for each tool call in turn, score -> decide -> learn.

    who -> known already? -> when -> each detector scores -> strongest action -> each one learns

One call is finished before the next begins, so a verdict never depends on how the stream was cut
into requests. Only three things come from outside: the columns of the scan, the state, and the
arrival time, which bounds a clock that runs ahead and stands in where a span has no time.

Before its calls are judged, a request is looked at as a whole (`looking`).

A span seen before is judged against the state as it is, and changes nothing; the same goes for an
outer span of a call that was judged already. A span whose ids are not valid cannot be told from its
copies and is left alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.ahead import (
    AHEAD,
    FAR_AHEAD,
    prefetch_agent,
    prefetch_loop,
    prefetch_session,
    prefetch_slots,
)
from otel_anomaly.correction import (
    entry_of,
    find_places,
    leading,
    learn_call,
    note_entry,
    relearn,
    wait_above,
)
from otel_anomaly.detectors.finding import ALLOW, OFF, PAUSE, WARN
from otel_anomaly.entities.identity import note_own
from otel_anomaly.entities.links import (
    COUNTED,
    FOLDED,
    FOLDED_MAX,
    KNOWN,
    PART_FAILED,
    SPOKEN,
    find_link,
    find_or_make_link,
    link_at,
    make_link,
)
from otel_anomaly.episode_steps import note_episodes
from otel_anomaly.gathering import complete, gather
from otel_anomaly.kernels import (
    Array,
    Int,
    Record,
    borrow,
    copy_record,
    inlined,
    kernel,
)
from otel_anomaly.looking import NOT_LOOKED, call_id_of, key_of_id, look_above, tool_of
from otel_anomaly.otlp.dialects import ARGUMENTS, CALL_ID
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    IS_CALL,
    IS_ERROR,
    IS_LOG,
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
def _decide(
    plans: Plans, signs: Array, number: Int, verdict: Record, findings: Array, used: Array
) -> tuple[Int, Int]:
    """All findings are kept, the strongest action is the verdict. Returns it, mode left aside, and
    whose findings ask for warn or more: bit a detector."""
    action, worst, found = ALLOW, 0.0, np.int64(0)
    verdict["finding"] = used[0]
    strongest = plans.judge[0]["action_max"]
    for detector in range(len(DETECTORS)):
        sign = signs[detector]
        verdict["skipped"][detector] = sign["skipped"]
        if sign["score"] > 0.0:
            action = max(action, np.int64(sign["action"]))
            found |= np.int64(sign["action"] >= WARN) << detector
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
    return action, found


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
def _event_of_id(row: Record, place: Int, seed: Int, state: State) -> tuple[Int, Int]:
    """The call judged before under the same trace and call id: (its serial number, the key).

    0 when there is none. A provider may number its calls anew with every turn, so two spans must
    overlap in time and name the same tool; a log record and a span need not.
    """
    if row["order"][CALL_ID] == ABSENT or row["trace"] == 0:
        return np.int64(0), np.int64(0)
    key = key_of_id(row, seed)
    place = link_at(state.links, place, key)
    if place < 0 or state.links.spans[place]["event"] == 0:
        return np.int64(0), key
    link = state.links.spans[place]
    at = entry_of(state, np.int64(link["event"]))
    if at < 0:
        return np.int64(0), key
    log = row["flags"] & IS_LOG != 0
    apart = (state.journal[at]["own"]["flags"] & IS_LOG != 0) != log
    entry = state.journal[at]
    overlaps = row["start_ns"] < entry["end_ns"] and entry["start_ns"] < row["end_ns"]
    same = overlaps and tool_of(row) == state.journal[at]["call"]["tool"]
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
def _place_of(
    row: Record, verdict: Record, plan: Record, state: State
) -> tuple[Int, Int, Int, Int]:
    """What a call's row is: (COUNTS.., the event it belongs to, ancestor to wait for, id's key)."""
    links = state.links
    mine = link_at(links, np.int64(verdict["link"]), row["identity"])
    none = np.int64(0)
    counted = mine >= 0 and links.spans[mine]["flags"] & COUNTED != 0
    if counted and links.spans[mine]["end_ns"] == row["end_ns"]:
        return np.int64(COPY), none, none, none
    if verdict["above"] == NOT_LOOKED or links.head[0]["turns"] != links.head[0]["looked"]:
        look_above(row, verdict, state)
    above, missing = np.int64(verdict["above"]), np.int64(verdict["missing"])
    outer = np.int64(links.spans[above]["event"]) if above >= 0 and above != mine else none
    tells = _tells_arguments(row, mine, outer, state)
    if above >= 0 and above != mine and not tells:
        folded = mine >= 0 and links.spans[mine]["flags"] & FOLDED != 0
        if folded or links.spans[above]["folded"] < FOLDED_MAX:
            links.spans[above]["folded"] += 0 if folded else 1
            return np.int64(PART), np.int64(links.spans[above]["event"]), missing, none
    event, key = _event_of_id(row, np.int64(verdict["id_link"]), plan["seed"], state)
    if tells and entry_of(state, outer) >= 0:
        event = outer  # Ids are used again: the span it was written in says more.
    if mine >= 0 and not counted:
        waited = np.int64(links.spans[mine]["event"])
        event = waited if entry_of(state, waited) >= 0 else event
    if event == 0:
        told = np.int64(-1)
        if key != 0:
            told = link_at(links, np.int64(verdict["id_link"]), key)
        log = row["flags"] & IS_LOG != 0
        if log and told >= 0 and links.spans[told]["flags"] & KNOWN != 0:
            return np.int64(PART), none, none, none  # A span tells of the same call.
        return np.int64(COUNTS), none, missing, key
    event = leading(state, event)
    if event == 0:
        return np.int64(PART), none, none, none
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
    kind, event, missing, id_key = _place_of(row, verdict, plan, state)
    if kind == PART:
        counters[FOLDED_CALLS] += _note_part(row, event, state)
        return
    fresh = kind == COUNTS
    _settle_time(row, plan, state, received_ns, fresh, verdict)
    time_ns = verdict["time_ns"]
    verdict["judged"], verdict["duplicate"] = 1, 0 if fresh else 1
    call, places, signs = scratch.work[0]["call"], scratch.work[0]["places"], scratch.signs
    mine = link_at(state.links, np.int64(verdict["link"]), row["identity"])
    if mine >= 0 and state.links.spans[mine]["flags"] & PART_FAILED != 0:
        row["flags"] |= IS_ERROR
    gather(row, verdict, scratch.read[2 * ordinal], scratch.read[2 * ordinal + 1], plan, call)
    spoke = np.int64(0)
    if kind == SPEAKS:
        complete(call, state.journal[entry_of(state, event)]["call"], plan["seed"])
        verdict["failed"] = call["failed"]
        spoke = _speak_for(row, event, verdict, plans, state, scratch)
        counters[FOLDED_CALLS] += spoke
    if kind != SPEAKS or spoke == 0:
        find_places(person, time_ns, state, places)
        call["fresh"] = 1 if fresh else 0
        _score(plans.limits[verdict["plan"]], state, places, call, signs)
    if plan["explain"] != 0 and (
        plan["explain"] == row["identity"]
        or (spoke != 0 and _is_of_span(event, np.int64(plan["explain"]), state))
    ):
        _note_explained(verdict, number, places, state, scratch)
    action, found = _decide(plans, signs, number, verdict, findings, used)
    if not fresh:
        counters[DUPLICATES] += kind == COPY
        if spoke != 0 and found != 0:
            used[1] = _tell_more(
                event, found, places, signs, findings, verdict, number, plan, state, steps, used[1]
            )
        return
    note_own(row, scratch.work[0]["own"])
    entry = state.journal[
        note_entry(row, scratch.work[0]["own"], verdict, call, call_id_of(row), state)
    ]
    entry["alarmed"], entry["found"] = 1 if action >= PAUSE else 0, found
    learn_call(entry, places, plans, state, scratch)
    if _concerns_episodes(places, verdict, state):
        used[1] = note_episodes(
            state, places, signs, _ALL, findings, verdict, number, plan, steps, used[1]
        )
    _count_call(counters, signs, verdict)
    _link_event(row, verdict, entry, missing, id_key, state)


@kernel
def _is_of_span(event: Int, span: Int, state: State) -> bool:
    """Whether an event is the call that a span tells of."""
    place = find_link(state.links, span)
    return place >= 0 and state.links.spans[place]["event"] == event


@kernel
def _note_explained(
    verdict: Record, number: Int, places: Record, state: State, scratch: Scratch
) -> None:
    """Keep what a call was just judged by: it is the one to be explained."""
    explained = scratch.explained[0]
    explained["row"] = number
    explained["plan"] = verdict["plan"]
    copy_record(explained["call"], scratch.work[0]["call"])
    for detector in range(len(DETECTORS)):
        copy_record(explained["signs"][detector], scratch.signs[detector])
    copy_record(explained["agent"], state.agents.rows[places["agent"]])
    copy_record(explained["service"], state.services.rows[places["service"]])


_ALL: Final = np.int64(-1)
"""Bits of all detectors."""


@kernel
def _tell_more(
    event: Int,
    found: Int,
    places: Record,
    signs: Array,
    findings: Array,
    verdict: Record,
    number: Int,
    plan: Record,
    state: State,
    steps: Array,
    used: Int,
) -> Int:
    """Count and raise what is found only now that more is known of a call. Returns the steps in
    use. The call itself keeps the verdict it was counted with."""
    entry = state.journal[entry_of(state, event)]
    news = found & ~entry["found"]
    entry["found"] |= found
    for detector in range(len(DETECTORS)):
        if news >> detector & 1 != 0:
            action = np.int64(signs[detector]["action"])
            state.counters[FINDINGS + detector * _ACTIONS + action] += 1
    if news == 0:
        return used
    return note_episodes(state, places, signs, news, findings, verdict, number, plan, steps, used)


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
    row: Record, event: Int, verdict: Record, plans: Plans, state: State, scratch: Scratch
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
    person, plan = verdict["person"], np.int64(verdict["plan"])
    relearn(entry, scratch.work[0]["call"], person, plan, plans, state, scratch, np.int64(1))
    return np.int64(1)


@inlined
def _link_event(
    row: Record, verdict: Record, entry: Record, missing: Int, id_key: Int, state: State
) -> None:
    """Let copies and other spans of a call that was just judged find it."""
    serial = entry["serial"]
    mine = link_at(state.links, np.int64(verdict["link"]), row["identity"])
    link = state.links.spans[mine if mine >= 0 else make_link(state.links, row["identity"])]
    link["flags"] |= COUNTED
    link["event"], link["end_ns"] = serial, row["end_ns"]
    if id_key != 0:
        told = link_at(state.links, np.int64(verdict["id_link"]), id_key)
        link = state.links.spans[told if told >= 0 else make_link(state.links, id_key)]
        link["event"] = serial
    wait_above(entry, missing, state)


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
    ordinal = np.int64(0)
    for number in range(rows.size):
        row = rows[number]
        if number + FAR_AHEAD < rows.size and rows[number + FAR_AHEAD]["flags"] & IS_CALL != 0:
            prefetch_slots(verdicts[number + FAR_AHEAD], state)
        if number + 1 < rows.size and rows[number + 1]["flags"] & IS_CALL != 0:
            prefetch_loop(verdicts[number + 1], state)
        if number + AHEAD < rows.size and rows[number + AHEAD]["flags"] & IS_CALL != 0:
            prefetch_session(rows[number + AHEAD], verdicts[number + AHEAD], state)
        if number + AHEAD + 1 < rows.size and rows[number + AHEAD + 1]["flags"] & IS_CALL != 0:
            # Which arguments are meant is a guess: right while all rows are calls.
            guess: Int = min(2 * (ordinal + AHEAD + 1), scratch.read.size - 1)
            prefetch_agent(
                rows[number + AHEAD + 1], verdicts[number + AHEAD + 1], scratch.read[guess], state
            )
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
