"""From the columns of the scan to one call as the detectors see it.

Also which plan applies: the patterns of the policy are matched once for each name and the answer
is kept, so that a call costs one look-up for its tool, and one for its agent and its tenant where
overrides go by them.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.entities.identity import (
    FROM_ABOVE,
    FROM_NOBODY,
    FROM_TRACE,
    NAME_BYTES,
    OF_AGENT,
    OF_TENANT,
)
from otel_anomaly.entities.table import find, find_or_make
from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel
from otel_anomaly.otlp.arguments import ARGUMENT_PLAN, DESK, HASHING, LOOKING, read_value
from otel_anomaly.otlp.arguments import ARGUMENTS as ARGUMENTS_READ
from otel_anomaly.otlp.attributes import NONE
from otel_anomaly.otlp.content import DESTINATIONS_MAX
from otel_anomaly.otlp.dialects import AGENT, ARGUMENTS, OWNER, RESULT, TENANT, TOOL
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.scan import ABSENT, IS_CALL, IS_ERROR, ROW
from otel_anomaly.policy import exemptions, match_all, starts_program, which_override
from otel_anomaly.state import VERDICT, Plans, State

TENANTS, AGENTS, TOOLS, PROGRAMS = range(4)
"""Places of the patterns in `Plans.patterns`."""
OF_TOOL = np.int64(64)
"""Kind of the key of a tool's label, beside the kinds of entities."""


@kernel
def _label(
    state: State,
    patterns: Record,
    kind: Int,
    name: Int,
    data: Array,
    at: Int,
    length: Int,
    now_ns: Int,
) -> Int:
    """What the patterns say of a name, remembered by its hash."""
    key = hash_two(kind, name, np.int64(0))
    row = find(state.labels, key)
    if row == 0:
        bits = match_all(patterns, data, at, length)
        row = find_or_make(state.labels, key, now_ns)
        if row == 0:
            return bits
        state.labels.rows[row]["bits"] = bits
    return np.int64(state.labels.rows[row]["bits"])


@inlined
def _label_tool(
    data: Array, row: Record, plans: Plans, state: State, now_ns: Int
) -> tuple[Int, Int]:
    """What the patterns say of a tool: (overrides and exemptions, plans it starts programs in)."""
    key = hash_two(OF_TOOL, row["hash"][TOOL], np.int64(0))
    label = find(state.labels, key)
    if label == 0:
        at, length = np.int64(row["at"][TOOL]), np.int64(row["length"][TOOL])
        bits = match_all(plans.patterns[TOOLS], data, at, length)
        programs = match_all(plans.patterns[PROGRAMS], data, at, length)
        label = find_or_make(state.labels, key, now_ns)
        if label == 0:
            return bits, programs
        state.labels.rows[label]["bits"], state.labels.rows[label]["programs"] = bits, programs
    elif now_ns > state.labels.rows[label]["seen_ns"]:
        state.labels.rows[label]["seen_ns"] = now_ns
    known = state.labels.rows[label]
    return np.int64(known["bits"]), np.int64(known["programs"])


@kernel
def _label_of(
    data: Array, row: Record, person: Record, who: Int, patterns: Record, state: State, now_ns: Int
) -> Int:
    """The label of an agent or a tenant, wherever its name was found."""
    kind = OF_AGENT if who == AGENT else OF_TENANT
    source, name = person["source"][who], person["hash"][who]
    if source == FROM_NOBODY:
        return match_all(patterns, data, np.int64(0), np.int64(0))
    if source == FROM_TRACE:
        trace = state.traces.rows[person["trace"]]
        length = min(np.int64(trace["length"][who]), np.int64(NAME_BYTES))
        return _label(state, patterns, kind, name, trace["text"][who], np.int64(0), length, now_ns)
    if source == FROM_ABOVE:
        known = find(state.names, name)
        text = state.names.rows[known]
        length = min(np.int64(text["length"]), np.int64(NAME_BYTES))
        return _label(state, patterns, kind, name, text["text"], np.int64(0), length, now_ns)
    at, length = np.int64(row["at"][who]), np.int64(row["length"][who])
    return _label(state, patterns, kind, name, data, at, length, now_ns)


@inlined
def choose_plan(
    data: Array, row: Record, verdict: Record, plans: Plans, state: State, now_ns: Int
) -> None:
    """Settle whose limits apply to a call, and what the patterns say of its tool."""
    if row["order"][TOOL] != ABSENT:
        bits, programs = _label_tool(data, row, plans, state, now_ns)
    else:
        bits = match_all(plans.patterns[TOOLS], data, np.int64(0), np.int64(0))
        programs = np.int64(0)
    plan = np.int64(0)
    if plans.judge[0]["overrides"] != 0:
        person = verdict["person"]
        tenants, agents = plans.patterns[TENANTS], plans.patterns[AGENTS]
        tenant = _label_of(data, row, person, np.int64(TENANT), tenants, state, now_ns)
        agent = _label_of(data, row, person, np.int64(AGENT), agents, state, now_ns)
        plan = which_override(tenant, agent, bits)
    verdict["plan"], verdict["exempt"] = plan, exemptions(bits)
    verdict["starts_program"] = starts_program(programs, plan)


@kernel
def read_calls(
    data: Array,
    rows: Array,
    verdicts: Array,
    plans: Array,
    read: Array,
    desk: Array,
    text: Array,
) -> None:
    """Read arguments and results of the calls of a request, in order: `read[2 * i]` and the next.

    `plans`: ARGUMENT_PLAN [n]. Needs no state, and is a kernel that Python calls, because what
    calls it is compiled together with all of it.
    """
    data, rows, verdicts, plans = borrow(data), borrow(rows), borrow(verdicts), borrow(plans)
    read, desk, text = borrow(read), borrow(desk), borrow(text)
    place = 0
    for i in range(rows.size):
        row = rows[i]
        if row["flags"] & IS_CALL == 0:
            continue
        plan = plans[verdicts[i]["plan"]]
        for role, looking in ((ARGUMENTS, LOOKING), (RESULT, HASHING)):
            kind = np.int64(row["kind"][role] if row["order"][role] != ABSENT else NONE)
            at, length = np.int64(row["at"][role]), np.int64(row["length"][role])
            read_value(data, kind, at, length, looking, plan, read[place], desk[0], text)
            place += 1


def read_nothing() -> None:
    """Compile `read_calls`."""
    read_calls(
        np.frombuffer(b"\0", np.uint8),
        np.empty(0, ROW),
        np.empty(0, VERDICT),
        np.empty(1, ARGUMENT_PLAN),
        np.empty(0, ARGUMENTS_READ),
        np.empty(1, DESK),
        np.empty(1, np.uint8),
    )


@inlined
def _of_tool(fingerprint: Int, tool: Int, seed: Int) -> Int:
    """The fingerprint of arguments to a tool; without the tool while that is not told."""
    return hash_two(fingerprint, tool, seed) if tool != 0 else np.int64(fingerprint)


@inlined
def gather(
    row: Record, verdict: Record, arguments: Record, result: Record, plan: Record, call: Record
) -> None:
    """Fill `call`, but for `fresh`, from a row and from what was read of it."""
    person = verdict["person"]
    call["time_ns"] = verdict["time_ns"]
    call["tool"] = row["hash"][TOOL] if row["order"][TOOL] != ABSENT else 0
    call["agent"], call["owner"] = person["hash"][AGENT], person["hash"][OWNER]
    call["exempt"], call["starts_program"] = verdict["exempt"], verdict["starts_program"]
    call["failed"] = 1 if row["flags"] & IS_ERROR != 0 or result["failed"] != 0 else 0
    call["result"] = result["fingerprint"]
    call["has_arguments"], call["names"] = arguments["known"], arguments["names"]
    call["fingerprint"] = 0
    if arguments["known"] != 0:
        call["fingerprint"] = _of_tool(arguments["fingerprint"], call["tool"], plan["seed"])
    call["program"] = arguments["program"] if verdict["starts_program"] != 0 else 0
    found = arguments["found"]
    call["secrets"], call["personal"] = found["secrets"], found["personal"]
    call["personal_strong"] = found["personal_strong"]
    call["credentials"] = found["credentials"]
    call["destinations"] = found["destinations"]
    for i in range(DESTINATIONS_MAX):
        call["destination"][i] = found["destination"][i]
        call["destination_is"][i] = found["destination_is"][i]
    verdict["failed"], verdict["fingerprint"] = call["failed"], arguments["fingerprint"]


@kernel
def complete(call: Record, earlier: Record, seed: Int) -> None:
    """What a span or record of the call told, which was judged before, and this one does not."""
    if call["tool"] == 0 and earlier["tool"] != 0:
        call["tool"] = earlier["tool"]
        if call["has_arguments"] != 0:
            call["fingerprint"] = _of_tool(call["fingerprint"], call["tool"], seed)
    if call["result"] == 0:
        call["result"] = earlier["result"]
    if earlier["failed"] != 0:
        call["failed"] = 1
    if call["has_arguments"] != 0 or earlier["has_arguments"] == 0:
        return
    call["has_arguments"], call["fingerprint"] = 1, earlier["fingerprint"]
    if earlier["tool"] == 0:
        call["fingerprint"] = _of_tool(earlier["fingerprint"], call["tool"], seed)
    call["names"], call["program"] = earlier["names"], earlier["program"]
    call["secrets"], call["personal"] = earlier["secrets"], earlier["personal"]
    call["personal_strong"] = earlier["personal_strong"]
    call["credentials"] = earlier["credentials"]
    call["destinations"] = earlier["destinations"]
    for i in range(DESTINATIONS_MAX):
        call["destination"][i] = earlier["destination"][i]
        call["destination_is"][i] = earlier["destination_is"][i]
