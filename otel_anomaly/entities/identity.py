"""Who made a call: from the span, its resource and its trace to typed, tenant-scoped keys.

    span > resource > scope > nearest agent above > other spans of the trace > weak keys

A key is the hash of its kind, the tenant and the value, so a session named like a tenant, or like
a session of another tenant, never shares its row. For `rate`, a call without a session is counted
with its user; without a user, with its tenant or `anon`. These two say nothing about who is at
work, so they are kept apart by agent: a fleet that sends no session ids is not added up into one
rate. Whatever else looks at a session takes the trace for it; the server's side of a call, whose
every call may be a trace of its own, takes what `rate` takes.

What a trace is said to be: for each identity the word of the span that started first, ties by the
smaller hash. That choice does not depend on the order of arrival, so spans of one request may come
in any order. The nearest agent above a call, where the spans between are known, counts more than
what the trace says: a trace may hold several agents. A server's own span borrows no agent: the
caller's name is not the server's.

Records of the trace table keep the text as well, for the audit trail: the span that brought it is
long gone. The text of agents above is kept by its hash in a table of names.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.entities.links import Links, agent_above
from otel_anomaly.entities.table import (
    OF_ROW,
    SOON,
    Table,
    find,
    find_or_make,
    in_lines,
    make,
    touch,
)
from otel_anomaly.kernels import Array, Int, Record, copy, inlined, kernel, prefetch_part
from otel_anomaly.otlp.dialects import AGENT, SESSION, TENANT, USER, WEAK, WHO
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.scan import ABSENT, BAD_ID, IS_CALL, IS_HINT, IS_SERVER, RESOURCE_LEVEL

OF_TENANT, OF_AGENT, OF_SESSION, OF_USER, OF_ANYONE, OF_TRACE, OF_SERVICE = np.arange(1, 8)
"""Kinds of a key."""
NAMES_OF_KINDS: Final = ("", "tenant", "agent", "session", "user", "anon", "trace", "service")

NAME_BYTES: Final = 96
"""Text kept of an identity that came from another span; the hash is of all of it."""

FROM_NOBODY, FROM_SPAN, FROM_TRACE, FROM_WEAK, FROM_ABOVE = range(5)
"""Where an identity came from. FROM_SPAN: from the span, its resource or its scope."""

TRACE = in_lines(
    [
        *OF_ROW,
        ("last", "i8"),  # Serial number of the last call judged in it, 0: none.
        ("changed", "i8"),  # What it says changed, and its calls were not looked at since.
        ("start_ns", "i8", (len(WHO),)),
        ("hash", "i8", (len(WHO),)),  # 0: not said yet.
        ("kind", "i1", (len(WHO),)),
        ("length", "u1", (len(WHO),)),
    ],
    [("text", "u1", (len(WHO), NAME_BYTES))],
)
assert np.iinfo(np.uint8).max > NAME_BYTES

_TEXT: Final = int(TRACE.fields["text"][1])  # type: ignore[index]  # It has fields.
TRACE_STATE_BYTES: Final = _TEXT
"""The texts come last, and mean something only up to their lengths."""

NAME = np.dtype(
    [*OF_ROW, ("kind", "i8"), ("length", "i8"), ("text", "u1", (NAME_BYTES,))], align=True
)
"""The text of an agent's name, by its hash."""

OWN = np.dtype(
    [
        ("flags", "i8"),
        ("trace", "i8"),
        ("parent", "i8"),
        ("service", "i8"),
        ("order", "i8", (len(WHO),)),
        ("hash", "i8", (len(WHO),)),
    ],
    align=True,
)
"""What a span says of itself, without its text: enough to settle later who made the call."""

PERSON = np.dtype(
    [
        ("hash", "i8", (len(WHO),)),
        ("source", "i1", (len(WHO),)),
        ("order", "i2", (len(WHO),)),  # Of the key that told it, where the span did.
        ("trace", "i4"),  # Row of the trace table that FROM_TRACE speaks of.
        ("agent_key", "i8"),  # 0 when no agent is known.
        ("service_key", "i8"),  # Of the agent's peers, 0 when no service is known.
        ("rate_key", "i8"),
        ("session_key", "i8"),
        ("rate_kind", "i1"),
        ("session_kind", "i1"),
    ],
    align=True,
)
"""Who made a call, resolved."""


@inlined
def scoped_key(kind: Int, tenant: Int, value: Int, seed: Int) -> Int:
    """Key of an entity: typed, and inside its tenant (0: none)."""
    return hash_two(hash_two(kind, tenant, seed), value, seed)


@inlined
def note_own(row: Record, own: Record) -> None:
    """What the span of `row` says of itself."""
    own["flags"], own["trace"] = row["flags"], row["trace"]
    own["parent"], own["service"] = row["parent"], row["service"]
    for who in range(len(WHO)):
        own["order"][who], own["hash"][who] = row["order"][who], row["hash"][who]


@kernel
def remember_name(names: Table, data: Array, row: Record, now_ns: Int) -> None:
    """Keep the text of the agent that a span above calls names."""
    number = find_or_make(names, row["hash"][AGENT], now_ns)
    if number != 0:
        name = names.rows[number]
        name["kind"] = row["kind"][AGENT]
        name["length"] = min(row["length"][AGENT], NAME_BYTES + 1)
        copy(name["text"], 0, data, row["at"][AGENT], min(row["length"][AGENT], NAME_BYTES))


@inlined
def remember_trace(table: Table, data: Array, row: Record, now_ns: Int) -> Int:
    """Let a span's own identity speak for its trace; a call makes its trace known.

    Returns 1 when that is news for calls judged before.
    """
    if row["flags"] & (IS_HINT | IS_CALL) == 0 or row["flags"] & BAD_ID != 0:
        return np.int64(0)
    if row["trace"] == 0:
        return np.int64(0)  # A log record outside of any.
    number = find(table, row["trace"])
    # Most traces are new, and a kernel that is handed a table is dear to call.
    number = (
        touch(table, number, row["trace"], now_ns)
        if number != 0
        else make(table, row["trace"], now_ns)
    )
    if number == 0:
        return np.int64(0)
    trace = table.rows[number]
    for who in range(len(WHO)):
        if row["order"][who] >= RESOURCE_LEVEL:
            continue
        # The next new trace takes the row under the hand, and is mostly told the same.
        prefetch_part(table.rows, table.head[0]["hand"] + SOON, _TEXT + who * NAME_BYTES)
        said = trace["hash"][who]
        start = row["start_ns"]
        if said != 0 and (
            start > trace["start_ns"][who]
            or (start == trace["start_ns"][who] and row["hash"][who] >= said)
        ):
            continue
        trace["start_ns"][who] = start
        trace["hash"][who] = row["hash"][who]
        if said != row["hash"][who]:
            if trace["last"] != 0:
                trace["changed"] = 1
            trace["kind"][who] = row["kind"][who]
            # A length above NAME_BYTES says that the text was cut.
            trace["length"][who] = min(row["length"][who], NAME_BYTES + 1)
            kept = min(row["length"][who], NAME_BYTES)
            copy(trace["text"][who], 0, data, row["at"][who], kept)
    return np.int64(trace["changed"])


@inlined
def resolve(
    table: Table, links: Links, own: Record, scope_kind: Int, seed: Int, person: Record
) -> None:
    """Settle who made the call and under which keys it is counted, into `person`."""
    known = np.int64(0)
    if own["flags"] & BAD_ID == 0 and own["trace"] != 0:
        known = find(table, own["trace"])
    person["trace"] = known
    for who in range(len(WHO)):
        order = own["order"][who]
        person["order"][who] = order
        if order < WEAK:
            person["hash"][who] = own["hash"][who]
            person["source"][who] = FROM_SPAN
        elif known != 0 and table.rows[known]["hash"][who] != 0:
            person["hash"][who] = table.rows[known]["hash"][who]
            person["source"][who] = FROM_TRACE
        elif order != ABSENT:
            person["hash"][who] = own["hash"][who]
            person["source"][who] = FROM_WEAK
        else:
            person["hash"][who] = 0
            person["source"][who] = FROM_NOBODY
    if own["order"][AGENT] >= WEAK:
        _borrow_agent(links, own, person)
    tenant, agent = person["hash"][TENANT], person["hash"][AGENT]
    person["agent_key"] = scoped_key(OF_AGENT, tenant, agent, seed) if agent != 0 else 0
    service = own["service"]
    person["service_key"] = scoped_key(OF_SERVICE, tenant, service, seed) if service != 0 else 0
    _choose_rate_key(person, scope_kind, tenant, person["agent_key"], seed)
    _choose_session_key(own, person, tenant, seed)


@inlined
def _borrow_agent(links: Links, own: Record, person: Record) -> None:
    """The nearest agent above, where the span names none; a server borrows nobody's name."""
    if own["flags"] & IS_SERVER != 0:
        told = own["order"][AGENT] != ABSENT
        person["hash"][AGENT] = own["hash"][AGENT] if told else 0
        person["source"][AGENT] = FROM_WEAK if told else FROM_NOBODY
        return
    above = agent_above(links, own["parent"])
    if above != 0:
        person["hash"][AGENT] = above
        person["source"][AGENT] = FROM_ABOVE


@inlined
def _choose_session_key(own: Record, person: Record, tenant: Int, seed: Int) -> None:
    """Within what repetition is looked for: the session, else the trace, else as `rate` adds up."""
    session = person["hash"][SESSION]
    if session != 0:
        person["session_kind"] = OF_SESSION
        same = person["rate_kind"] == OF_SESSION
        person["session_key"] = (
            person["rate_key"] if same else scoped_key(OF_SESSION, tenant, session, seed)
        )
    elif own["trace"] != 0 and own["flags"] & IS_SERVER == 0:
        person["session_kind"] = OF_TRACE
        person["session_key"] = scoped_key(OF_TRACE, tenant, own["trace"], seed)
    else:
        person["session_kind"] = person["rate_kind"]
        person["session_key"] = person["rate_key"]


@inlined
def _choose_rate_key(
    person: Record, scope_kind: Int, tenant: Int, agent_key: Int, seed: Int
) -> None:
    """Whose calls are added up: the scope asked for, or what stands in for it."""
    session, user = person["hash"][SESSION], person["hash"][USER]
    if scope_kind == OF_AGENT and agent_key != 0:
        person["rate_kind"], person["rate_key"] = OF_AGENT, agent_key
    elif scope_kind == OF_SESSION and session != 0:
        person["rate_kind"] = OF_SESSION
        person["rate_key"] = scoped_key(OF_SESSION, tenant, session, seed)
    elif (scope_kind == OF_SESSION or scope_kind == OF_USER) and user != 0:
        person["rate_kind"] = OF_USER
        person["rate_key"] = scoped_key(OF_USER, tenant, user, seed)
    elif tenant != 0:
        person["rate_kind"] = OF_TENANT
        inside = np.int64(0) if scope_kind == OF_TENANT else agent_key
        person["rate_key"] = scoped_key(OF_TENANT, tenant, inside, seed)
    else:
        person["rate_kind"] = OF_ANYONE
        person["rate_key"] = scoped_key(OF_ANYONE, np.int64(0), agent_key, seed)
