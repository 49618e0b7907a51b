"""What was judged on too little is put right when more arrives.

Identity is mostly on an ancestor span, which ends and is exported after the tool span, often in a
later request. A call is judged at once with what is known, and noted in the journal with all it
taught. When its trace learns a better name, the call is unlearned at the rows it went to and
learned at the right ones. Verdicts already written stay; the state converges to what it would be
had the name been known at once, but for the order of calls within a session.

The same is done when an outer span of a call arrives after an inner one: the outer one knows more
of the call, and takes its place.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.detectors import loop, rate
from otel_anomaly.detectors.finding import LATE, PAUSE
from otel_anomaly.entities.identity import resolve
from otel_anomaly.entities.links import (
    FOLDED_MAX,
    STEPS_MAX,
    WAITERS_MAX,
    find_link,
    find_or_make_link,
    first_unknown,
    outermost,
)
from otel_anomaly.entities.table import Table, find, find_or_make
from otel_anomaly.kernels import Array, Int, Record, copy_record, inlined, kernel
from otel_anomaly.otlp.dialects import AGENT, WEAK
from otel_anomaly.otlp.rows import IS_SERVER
from otel_anomaly.scoring import (
    DETECTORS,
    LEARNED_AGENT,
    LEARNED_RATE,
    LEARNED_SERVICE,
    LEARNED_SESSION,
    LEARNED_SHIFT,
    RATE,
    learn_agent,
    learn_service,
    score_all,
    unlearn_agent,
    unlearn_service,
)
from otel_anomaly.state import FOLDED_CALLS, MOVED, MOVED_MAX, Plans, Scratch, State


@inlined
def _row_of(table: Table, key: Int, time_ns: Int) -> Int:
    """The row of an entity; 0 when it has no key or no room."""
    if key == 0:
        return np.int64(0)
    return find_or_make(table, key, time_ns)


@inlined
def find_places(person: Record, time_ns: Int, state: State, places: Record) -> None:
    """The rows of all entities that a call concerns."""
    places["agent"] = _row_of(state.agents, person["agent_key"], time_ns)
    places["service"] = _row_of(state.services, person["service_key"], time_ns)
    places["rate"] = _row_of(state.sessions, person["rate_key"], time_ns)
    if person["session_key"] == person["rate_key"]:
        places["session"] = places["rate"]
    else:
        places["session"] = _row_of(state.sessions, person["session_key"], time_ns)


@inlined
def learn_call(entry: Record, places: Record, plans: Plans, state: State, scratch: Scratch) -> None:
    """Teach all rows a call that was just scored, and note in `entry` what it taught."""
    call, plan, signs = entry["call"], plans.limits[entry["plan"]], scratch.signs
    entry["learned"] = 0
    if places["rate"] != 0 and plan["rate"]["enabled"] != 0 and signs[RATE]["skipped"] != LATE:
        rate.learn(state.sessions.rows[places["rate"]]["rate"], call["time_ns"])
        entry["learned"] |= LEARNED_RATE
    if places["session"] != 0 and plan["loop"]["enabled"] != 0:
        session = state.sessions.rows[places["session"]]["loop"]
        loop.learn(session, plan["loop"], call, entry["alarmed"])
        entry["learned"] |= LEARNED_SESSION
    if places["agent"] != 0:
        agent = state.agents.rows[places["agent"]]
        entry["learned"] |= learn_agent(agent, plan, call, entry["alarmed"], signs)
    if places["service"] != 0:
        service = state.services.rows[places["service"]]
        entry["learned"] |= learn_service(service, plan, call, entry["alarmed"])


@kernel
def _unlearn(entry: Record, plans: Plans, state: State) -> None:
    """Undo what a call taught, where its rows are still there."""
    call, plan = entry["call"], plans.limits[entry["plan"]]
    if entry["learned"] & LEARNED_RATE != 0:
        row = find(state.sessions, entry["rate_key"])
        if row != 0:
            rate.unlearn(state.sessions.rows[row]["rate"], plan["rate"], call["time_ns"])
    if entry["learned"] & LEARNED_SESSION != 0:
        row = find(state.sessions, entry["session_key"])
        if row != 0:
            loop.unlearn(state.sessions.rows[row]["loop"], plan["loop"], call)
    if entry["learned"] & (LEARNED_AGENT | LEARNED_SHIFT) != 0:
        row = find(state.agents, entry["agent_key"])
        if row != 0:
            agent = state.agents.rows[row]
            unlearn_agent(agent, plan, call, entry["alarmed"], entry["learned"])
    if entry["learned"] & LEARNED_SERVICE != 0:
        row = find(state.services, entry["service_key"])
        if row != 0:
            unlearn_service(state.services.rows[row], plan, call)
    entry["learned"] = 0


@inlined
def _same_keys(entry: Record, person: Record) -> bool:
    return bool(
        entry["agent_key"] == person["agent_key"]
        and entry["service_key"] == person["service_key"]
        and entry["rate_key"] == person["rate_key"]
        and entry["session_key"] == person["session_key"]
    )


@inlined
def _set_keys(entry: Record, person: Record) -> None:
    entry["agent_key"], entry["service_key"] = person["agent_key"], person["service_key"]
    entry["rate_key"], entry["session_key"] = person["rate_key"], person["session_key"]


@inlined
def _is_alarming(signs: Array) -> bool:
    """Whether a detector asks for pause or more."""
    alarming = False
    for detector in range(len(DETECTORS)):
        sign = signs[detector]
        alarming = alarming or (sign["score"] > 0.0 and sign["action"] >= PAUSE)
    return alarming


@kernel
def relearn(
    entry: Record,
    call: Record,
    person: Record,
    plan: Int,
    plans: Plans,
    state: State,
    scratch: Scratch,
    told: Int,
) -> None:
    """Take back what a call taught and teach it as it is known now: `call`, made by `person`, whose
    limits are those of `plan`.

    The signs of the call, as if it had been known so at once, are left in `scratch`. When they are
    `told`, an alarm among them keeps the call out of what is usual.
    """
    _unlearn(entry, plans, state)
    copy_record(entry["call"], call)
    entry["call"]["fresh"], entry["plan"] = 1, plan
    _set_keys(entry, person)
    places = scratch.work[0]["places"]
    find_places(person, call["time_ns"], state, places)
    # Scoring also brings the rings of the new rows up to date.
    score_all(
        entry["call"],
        plans.limits[entry["plan"]],
        state.agents.rows[places["agent"]],
        state.services.rows[places["service"]]["past"],
        state.sessions.rows[places["rate"]],
        state.sessions.rows[places["session"]],
        scratch.signs,
    )
    if told != 0 and _is_alarming(scratch.signs):
        entry["alarmed"] = 1
    learn_call(entry, places, plans, state, scratch)
    state.counters[MOVED] += 1


@inlined
def entry_of(state: State, serial: Int) -> Int:
    """Where a call lies in the journal, or -1 when it fell out of it."""
    age = state.watermark[1] - serial
    if serial == 0 or age >= state.journal.size:
        return np.int64(-1)
    place = state.watermark[3] - age
    return place if place >= 0 else place + state.journal.size


@inlined
def leading(state: State, serial: Int) -> Int:
    """Serial number of the call that a judged one turned out to be part of, or its own; 0 when that
    fell out of the journal."""
    for _ in range(STEPS_MAX):
        place = entry_of(state, serial)
        if place < 0:
            return np.int64(0)
        if state.journal[place]["into"] == 0:
            return serial
        serial = np.int64(state.journal[place]["into"])
    return np.int64(0)


@inlined
def _next_entry(state: State) -> Int:
    """The place of a new call in the journal, in the ring after the newest."""
    place = state.watermark[3] + 1
    state.watermark[3] = place = place if place < state.journal.size else np.int64(0)
    state.watermark[1] += 1
    return np.int64(place)


@inlined
def note_entry(
    row: Record, own: Record, verdict: Record, call: Record, call_id: Int, state: State
) -> Int:
    """Write a call that is about to be learned into the journal. Returns its place there."""
    trace = verdict["person"]["trace"]
    place = _next_entry(state)
    serial = state.watermark[1]
    entry = state.journal[place]
    entry["serial"], entry["plan"] = serial, verdict["plan"]
    entry["start_ns"], entry["end_ns"] = row["start_ns"], row["end_ns"]
    entry["before"], entry["next_waiting"], entry["call_id"] = 0, 0, call_id
    entry["learned"], entry["alarmed"], entry["folded"] = 0, 0, 0
    entry["into"] = 0
    if trace != 0:
        entry["before"] = state.traces.rows[trace]["last"]
        state.traces.rows[trace]["last"] = serial
    _set_keys(entry, verdict["person"])
    copy_record(entry["own"], own)
    copy_record(entry["call"], call)
    return place


@kernel
def settle_trace(trace: Record, plans: Plans, state: State, scratch: Scratch) -> None:
    """Move the calls of a trace that now says something else, in the order they were judged."""
    trace["changed"] = 0
    plan, person = plans.judge[0], scratch.work[0]["person"]
    count = 0
    place = entry_of(state, trace["last"])
    while place >= 0 and count < MOVED_MAX:
        scratch.serials[count] = place
        count += 1
        place = entry_of(state, state.journal[place]["before"])
    for i in range(count - 1, -1, -1):
        entry = state.journal[scratch.serials[i]]
        resolve(state.traces, state.links, entry["own"], plan["scope"], plan["seed"], person)
        if entry["into"] == 0 and not _same_keys(entry, person):
            call = scratch.work[0]["call"]
            copy_record(call, entry["call"])
            call["agent"] = person["hash"][AGENT]
            same = np.int64(entry["plan"])
            relearn(entry, call, person, same, plans, state, scratch, np.int64(0))


@inlined
def _looks_for_an_agent(own: Record) -> bool:
    """Whether an agent above counts more than what the span says of its own."""
    return bool(own["order"][AGENT] >= WEAK and own["flags"] & IS_SERVER == 0)


@inlined
def wait_above(entry: Record, missing: Int, state: State) -> None:
    """Let a call wait for the first of its ancestors that is not known yet and may say something.

    `missing`: as `outermost` tells it. Beyond another call there may still be the agent's name.
    """
    if missing == 0 and _looks_for_an_agent(entry["own"]):
        missing = first_unknown(state.links, np.int64(entry["own"]["parent"]))
    if missing == 0:
        return
    link = state.links.spans[find_or_make_link(state.links, missing)]
    if link["waiters"] < WAITERS_MAX:
        entry["next_waiting"] = link["waiting"]
        link["waiting"] = entry["serial"]
        link["waiters"] += 1


@kernel
def _wake_one(entry: Record, plans: Plans, state: State, scratch: Scratch) -> None:
    """An ancestor of a judged call has come: is the call part of it, who made it, is that all?"""
    own, links, plan = entry["own"], state.links, plans.judge[0]
    tool, call_id = np.int64(entry["call"]["tool"]), np.int64(entry["call_id"])
    above, missing = outermost(links, np.int64(own["parent"]), tool, call_id)
    if above >= 0:
        outer = links.spans[above]
        if outer["folded"] < FOLDED_MAX:
            outer["folded"] += 1
            if entry_of(state, np.int64(outer["event"])) < 0:
                outer["event"] = entry["serial"]
            elif outer["event"] != entry["serial"]:
                # Both were judged before what joins them came: the inner one is taken back.
                _unlearn(entry, plans, state)
                entry["into"] = outer["event"]
                state.counters[FOLDED_CALLS] += 1
                return
    if _looks_for_an_agent(own):
        person = scratch.work[0]["person"]
        resolve(state.traces, links, own, plan["scope"], plan["seed"], person)
        if person["trace"] != 0 and not _same_keys(entry, person):
            state.traces.rows[person["trace"]]["changed"] = 1
    wait_above(entry, missing, state)


@kernel
def wake(identity: Int, plans: Plans, state: State, scratch: Scratch) -> None:
    """Look again at the calls that wait for a span that has come."""
    place = find_link(state.links, identity)
    if place < 0 or state.links.spans[place]["waiting"] == 0:
        return
    serial = np.int64(state.links.spans[place]["waiting"])
    state.links.spans[place]["waiting"] = 0
    state.links.spans[place]["waiters"] = 0
    for _ in range(WAITERS_MAX):
        at = entry_of(state, serial)
        if at < 0:
            return
        entry = state.journal[at]
        serial = np.int64(entry["next_waiting"])
        _wake_one(entry, plans, state, scratch)
