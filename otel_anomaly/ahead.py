"""Memory is asked for some calls before it is used: a look-up is mostly waiting for it."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.detectors import burst, loop, rate_shift
from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.detectors.past import PAST, SHAPES, TOOLS, home_of
from otel_anomaly.detectors.ring import RING, SECONDS
from otel_anomaly.entities.links import prefetch_link
from otel_anomaly.entities.table import LINE, guess, prefetch_slot
from otel_anomaly.kernels import Record, inlined, prefetch, prefetch_part
from otel_anomaly.otlp.dialects import TOOL
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.state import AGENT as AGENT_RECORD
from otel_anomaly.state import ENTRY, SESSION, State

AHEAD: Final = 2
"""Calls between asking for memory and using it: far enough to arrive, near enough to stay."""
FAR_AHEAD: Final = 8
"""The same for what says where that memory is."""


def _starts(record: np.dtype, *names: str) -> tuple[int, ...]:
    """Where fields of a record begin, bytes."""
    fields = record.fields
    assert fields is not None
    return tuple(int(fields[name][1]) for name in names)


_BURST, _SHIFT, _PAST = _starts(AGENT_RECORD, "burst", "shift", "past")
_AGENT_LINES: Final = (0, _BURST, _SHIFT, _SHIFT + LINE, _PAST)
_BURST_COUNTS: Final = _BURST + _starts(burst.STATE, "ring")[0] + _starts(RING, "counts")[0]
_SHIFT_COUNTS: Final = _SHIFT + _starts(rate_shift.STATE, "counts")[0]
_SHIFT_MINUTES: Final = _SHIFT_COUNTS + 2 * rate_shift.BUCKETS
_SHIFT_PEAKS: Final = _SHIFT + _starts(rate_shift.STATE, "peaks")[0]
_ENTRIES: Final = _PAST + _starts(PAST, "entry")[0]
_RATE, _LOOP = _starts(SESSION, "rate", "loop")
_RATE_COUNTS: Final = _RATE + _starts(RING, "counts")[0]
_LOOP_COUNTS: Final = _LOOP + _starts(loop.STATE, "counts")[0]
_SESSION_LINES: Final = (0, *range(_LOOP, _LOOP_COUNTS, LINE))
_ENTRY_LINES: Final = tuple(range(0, ENTRY.itemsize, LINE))


@inlined
def prefetch_slots(verdict: Record, state: State) -> None:
    """Ask for the slots of a call's agent and session, and for those of its links."""
    person = verdict["person"]
    prefetch_slot(state.agents, person["agent_key"])
    prefetch_slot(state.sessions, person["rate_key"])
    if verdict["missing"] != 0:
        prefetch_link(state.links, verdict["missing"])


@inlined
def prefetch_agent(row: Record, verdict: Record, arguments: Record, state: State) -> None:
    """Ask for the links of a call and the record of its agent, where detectors will look."""
    person = verdict["person"]
    if verdict["link"] >= 0:
        prefetch(state.links.spans, np.int64(verdict["link"]))
    if verdict["id_link"] >= 0:
        prefetch(state.links.spans, np.int64(verdict["id_link"]))
    rows, agent = state.agents.rows, guess(state.agents, person["agent_key"])
    for offset in _AGENT_LINES:
        prefetch_part(rows, agent, offset)
    second = 2 * (row["end_ns"] // SECOND_NS % SECONDS)
    prefetch_part(rows, agent, _BURST_COUNTS + second)
    prefetch_part(rows, agent, _SHIFT_COUNTS + second)
    minute = 2 * (row["end_ns"] // rate_shift.MINUTE_NS % rate_shift.BUCKETS)
    prefetch_part(rows, agent, _SHIFT_MINUTES + minute)
    prefetch_part(rows, agent, _SHIFT_PEAKS + minute)
    tool = row["hash"][TOOL]
    prefetch_part(rows, agent, _ENTRIES + 8 * home_of(TOOLS, tool))
    shape = hash_two(tool, arguments["names"], np.int64(0))
    prefetch_part(rows, agent, _ENTRIES + 8 * home_of(SHAPES, shape))


@inlined
def prefetch_session(row: Record, verdict: Record, state: State) -> None:
    """Ask for the record of a call's session and for its place in the journal."""
    rows, session = state.sessions.rows, guess(state.sessions, verdict["person"]["session_key"])
    for offset in _SESSION_LINES:
        prefetch_part(rows, session, offset)
    second = 2 * (row["end_ns"] // SECOND_NS % SECONDS)
    prefetch_part(rows, session, _RATE_COUNTS + second)
    for offset in _ENTRY_LINES:
        prefetch_part(state.journal, state.watermark[3] + AHEAD, offset)


@inlined
def prefetch_loop(verdict: Record, state: State) -> None:
    """Ask for the counts of the slot that a call takes if it is new to its session."""
    rows, session = state.sessions.rows, guess(state.sessions, verdict["person"]["session_key"])
    slot = (np.int64(rows[session]["loop"]["hand"]) + 1) % loop.SLOTS
    prefetch_part(rows, session, _LOOP_COUNTS + 2 * loop.SUBWINDOWS * slot)
