"""What the spans of a request say of each other, taken in before any of them is judged.

    who is at work in a trace  ->  who is above whom  ->  calls that wait are woken, and moved
    ->  the spans of one call give what they tell to its outermost  ->  who, and by which plan

So the order of spans within a request makes no difference.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.ahead import FAR_AHEAD
from otel_anomaly.correction import settle_trace, wake
from otel_anomaly.entities.identity import note_own, remember_name, remember_trace, resolve
from otel_anomaly.entities.links import (
    IS_TOOL,
    KNOWN,
    PART_FAILED,
    STEPS_MAX,
    STOPS,
    find_link,
    find_or_make_link,
    outermost,
    prefetch_link,
    short_id,
    steps_to,
)
from otel_anomaly.entities.table import find, prefetch_slot
from otel_anomaly.gathering import choose_plan
from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel
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
from otel_anomaly.state import (
    Plans,
    Scratch,
    State,
    borrow_plans,
    borrow_scratch,
    borrow_state,
)

BORROWED: Final = ABSENT - STEPS_MAX - 1
"""Order of what an outer span has from an inner one, with the steps between them added."""

NOT_LOOKED: Final = -2
"""In `above` of a verdict: to be looked for when it is needed."""


@inlined
def tool_of(row: Record) -> Int:
    """Hash of the tool's name, 0: not told."""
    return np.int64(row["hash"][TOOL] if row["order"][TOOL] != ABSENT else 0)


@inlined
def call_id_of(row: Record) -> Int:
    """`short_id` of the call's id, 0: not told. MCP numbers its requests without regard to it."""
    told = row["order"][CALL_ID] != ABSENT and row["flags"] & IS_MCP == 0
    return short_id(row["hash"][CALL_ID]) if told else np.int64(0)


@inlined
def key_of_id(row: Record, seed: Int) -> Int:
    """Key of a call by its id: call ids are only good within a trace."""
    return hash_two(row["trace"], row["hash"][CALL_ID], seed)


@inlined
def _request(state: State) -> Int:
    """Number of the request that is looked at, 31 bits."""
    return state.watermark[2] & 0x7FFFFFFF


@inlined
def _link_span(
    data: Array, row: Record, number: Int, verdict: Record, seed: Int, state: State, now_ns: Int
) -> Int:
    """Note where a span stands: whose child it is, and what it is to the calls below.

    Returns 1 when calls wait for it.
    """
    flags = row["flags"]
    if flags & IS_CALL == 0 and find(state.traces, row["trace"]) == 0:
        return np.int64(0)  # Nobody calls tools in this trace.
    verdict["link"] = place = find_or_make_link(state.links, row["identity"])
    link = state.links.spans[place]
    link["flags"] |= KNOWN
    link["parent"] = row["parent"]
    link["request"], link["row"] = _request(state), number
    waited = np.int64(1 if link["waiting"] != 0 else 0)
    if flags & IS_CALL != 0:
        link["flags"] = link["flags"] & ~STOPS | IS_TOOL
        link["name"], link["call_id"] = tool_of(row), call_id_of(row)
        if row["order"][CALL_ID] != ABSENT:
            verdict["id_link"] = told = find_or_make_link(state.links, key_of_id(row, seed))
            state.links.spans[told]["flags"] |= KNOWN
    elif flags & IS_BOUNDARY != 0:
        link["flags"] = link["flags"] & ~IS_TOOL | STOPS
        link["name"] = 0
        if row["order"][AGENT] < WEAK and row["hash"][AGENT] != 0:
            link["name"] = row["hash"][AGENT]
            remember_name(state.names, data, row, now_ns)
    if flags & IS_PART != 0 and flags & IS_ERROR != 0 and row["parent"] != 0:
        above = find_or_make_link(state.links, row["parent"])
        state.links.spans[above]["flags"] |= PART_FAILED
    return waited


@inlined
def _prefetch_links(row: Record, seed: Int, state: State) -> None:
    """Ask for the slots that tell of a span, of its call's id and of the span above."""
    prefetch_link(state.links, row["identity"])
    if row["flags"] & IS_CALL != 0:
        prefetch_link(state.links, row["parent"])
        prefetch_link(state.links, key_of_id(row, seed))


@inlined
def _is_linked(row: Record) -> bool:
    """Whether a row takes part in who is above whom."""
    return bool(row["flags"] & (BAD_ID | IS_LOG) == 0 and row["identity"] != 0)


@inlined
def look_above(row: Record, verdict: Record, state: State) -> None:
    """Find the outermost span of a row's call, and the first ancestor that is not known yet."""
    tool, call_id = tool_of(row), call_id_of(row)
    verdict["above"], verdict["missing"] = outermost(state.links, row["parent"], tool, call_id)


@inlined
def _look_at_all(
    data: Array,
    rows: Array,
    plans: Plans,
    state: State,
    scratch: Scratch,
    arrival_ns: Int,
    verdicts: Array,
) -> None:
    """Take in what the spans of a request say of each other, before any of them is judged."""
    state.watermark[2] += 1
    state.links.head[0]["looked"] = state.links.head[0]["turns"]
    seed = plans.judge[0]["seed"]
    if arrival_ns == 0 and rows.size > 0:
        # A replay that has just begun. Times beyond 2262 are negative.
        arrival_ns = max(np.int64(rows[0]["end_ns"]), np.int64(0))
    news, woken = np.int64(0), np.int64(0)
    for number in range(rows.size):
        if number + FAR_AHEAD < rows.size:
            prefetch_slot(state.traces, rows[number + FAR_AHEAD]["trace"])
        news |= remember_trace(state.traces, data, rows[number], arrival_ns)
    for number in range(rows.size):
        if number + FAR_AHEAD < rows.size:
            _prefetch_links(rows[number + FAR_AHEAD], seed, state)
        row, verdict = rows[number], verdicts[number]
        verdict["link"] = verdict["id_link"] = -1
        if _is_linked(row):
            woken |= _link_span(data, row, np.int64(number), verdict, seed, state, arrival_ns)
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
        row, verdict = rows[number], verdicts[number]
        verdict["above"] = NOT_LOOKED
        if row["flags"] & (IS_CALL | IS_LOG) == IS_CALL:
            look_above(row, verdict, state)
            if verdict["above"] >= 0:
                _give_to_outer(data, rows, row, verdicts, np.int64(verdict["above"]), state)


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
def _give_to_outer(
    data: Array, rows: Array, row: Record, verdicts: Array, place: Int, state: State
) -> None:
    """What the inner span of a call tells and the outer one of the same request does not."""
    link = state.links.spans[place]
    if link["request"] != _request(state):
        if row["flags"] & IS_ERROR != 0:
            link["flags"] |= PART_FAILED
        return
    outer = rows[link["row"]]
    verdicts[link["row"]]["above"] = NOT_LOOKED  # Its tool may be told only now.
    order = BORROWED + steps_to(state.links, row["parent"], place)
    for role in (ARGUMENTS, RESULT, TOOL, CALL_ID):
        if row["order"][role] < BORROWED and _tells_more(data, row, role, order, outer):
            outer["order"][role], outer["kind"][role] = order, row["kind"][role]
            outer["at"][role], outer["length"][role] = row["at"][role], row["length"][role]
            outer["hash"][role] = row["hash"][role]
    if row["flags"] & IS_ERROR != 0:
        outer["flags"] |= IS_ERROR


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
    _look_at_all(data, rows, plans, state, scratch, arrival_ns, verdicts)
    plan, own = plans.judge[0], scratch.work[0]["own"]
    for number in range(rows.size):
        row, verdict = rows[number], verdicts[number]
        verdict["judged"], verdict["findings"] = 0, 0
        if row["flags"] & IS_CALL != 0:
            note_own(row, own)
            resolve(state.traces, state.links, own, plan["scope"], plan["seed"], verdict["person"])
            choose_plan(data, row, verdict, plans, state, arrival_ns)
