"""Who made a call: from the span, its resource and its trace to typed, tenant-scoped keys.

    span > resource > scope > what other spans of the trace said > weak keys (service.name)

A key is the hash of its kind, the tenant and the value, so a session named like a tenant, or like
a session of another tenant, never shares its row. A call without a session is counted with its
user; without a user, with its tenant or `anon`. These two say nothing about who is at work, so they
are kept apart by agent: a fleet that sends no session ids is not added up into one rate.

What a trace is said to be: for each identity the word of the span that started first, ties by the
smaller hash. That choice does not depend on the order of arrival, so spans of one request may come
in any order. Records of the trace table keep the text as well, for the audit trail: the span that
brought it is long gone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.entities.table import OF_ROW, Table, find, find_or_make
from otel_anomaly.kernels import Array, Int, Record, copy, inlined
from otel_anomaly.otlp.dialects import AGENT, SESSION, TENANT, USER, WEAK, WHO
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.scan import ABSENT, BAD_ID, IS_HINT, RESOURCE_LEVEL

OF_TENANT, OF_AGENT, OF_SESSION, OF_USER, OF_ANYONE = np.arange(1, 6)
"""Kinds of a key."""
NAMES_OF_KINDS: Final = ("", "tenant", "agent", "session", "user", "anon")

NAME_BYTES: Final = 96
"""Text kept of an identity that came from another span; the hash is of all of it."""

FROM_NOBODY, FROM_SPAN, FROM_TRACE, FROM_WEAK = range(4)
"""Where an identity came from."""

TRACE = np.dtype(
    [
        *OF_ROW,
        ("start_ns", "i8", (len(WHO),)),
        ("hash", "i8", (len(WHO),)),  # 0: not said yet.
        ("kind", "i1", (len(WHO),)),
        ("length", "u1", (len(WHO),)),
        ("text", "u1", (len(WHO), NAME_BYTES)),
    ],
    align=True,
)
assert np.iinfo(np.uint8).max >= NAME_BYTES

TRACE_STATE_BYTES: Final = TRACE.fields["text"][1]  # type: ignore[index]  # It has fields.
"""The texts come last, and mean something only up to their lengths."""

PERSON = np.dtype(
    [
        ("hash", "i8", (len(WHO),)),
        ("source", "i1", (len(WHO),)),
        ("trace", "i4"),  # Row of the trace table that FROM_TRACE speaks of.
        ("agent_key", "i8"),  # 0 when no agent is known.
        ("rate_key", "i8"),
        ("rate_kind", "i1"),
    ],
    align=True,
)
"""Who made a call, resolved."""


@inlined
def scoped_key(kind: Int, tenant: Int, value: Int, seed: Int) -> Int:
    """Key of an entity: typed, and inside its tenant (0: none)."""
    return hash_two(hash_two(kind, tenant, seed), value, seed)


@inlined
def remember_trace(table: Table, data: Array, row: Record, now_ns: Int) -> None:
    """Let a span's own identity speak for its trace."""
    if row["flags"] & IS_HINT == 0 or row["flags"] & BAD_ID != 0:
        return
    number = find_or_make(table, row["trace"], now_ns)
    if number == 0:
        return
    trace = table.rows[number]
    for who in range(len(WHO)):
        if row["order"][who] >= RESOURCE_LEVEL:
            continue
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
            trace["kind"][who] = row["kind"][who]
            # A length above NAME_BYTES says that the text was cut.
            trace["length"][who] = min(row["length"][who], NAME_BYTES + 1)
            kept = min(row["length"][who], NAME_BYTES)
            copy(trace["text"][who], 0, data, row["at"][who], kept)


@inlined
def resolve(table: Table, row: Record, scope_kind: Int, seed: Int, person: Record) -> None:
    """Settle who made the call of `row` and under which keys it is counted, into `person`."""
    known = np.int64(0)
    if row["flags"] & BAD_ID == 0:
        known = find(table, row["trace"])
    person["trace"] = known
    for who in range(len(WHO)):
        order = row["order"][who]
        if order < WEAK:
            person["hash"][who] = row["hash"][who]
            person["source"][who] = FROM_SPAN
        elif known != 0 and table.rows[known]["hash"][who] != 0:
            person["hash"][who] = table.rows[known]["hash"][who]
            person["source"][who] = FROM_TRACE
        elif order != ABSENT:
            person["hash"][who] = row["hash"][who]
            person["source"][who] = FROM_WEAK
        else:
            person["hash"][who] = 0
            person["source"][who] = FROM_NOBODY
    tenant, agent = person["hash"][TENANT], person["hash"][AGENT]
    agent_key = np.int64(0)
    if agent != 0:
        agent_key = scoped_key(OF_AGENT, tenant, agent, seed)
    person["agent_key"] = agent_key
    _choose_rate_key(person, scope_kind, tenant, agent_key, seed)


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
