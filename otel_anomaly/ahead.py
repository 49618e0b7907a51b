"""Memory is asked for some calls before it is used: a look-up is mostly waiting for it."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.detectors.past import PAST, SHAPES, TOOLS, home_of
from otel_anomaly.entities.table import find
from otel_anomaly.kernels import Record, inlined, prefetch_part
from otel_anomaly.otlp.dialects import TOOL
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.state import AGENT as AGENT_RECORD
from otel_anomaly.state import SESSION, State

AHEAD: Final = 6
"""Calls between asking for memory and using it: far enough to arrive, near enough to stay."""


def _starts(record: np.dtype, *names: str) -> tuple[int, ...]:
    """Where fields of a record begin, bytes."""
    fields = record.fields
    assert fields is not None
    return tuple(int(fields[name][1]) for name in names)


LINE: Final = 64
"""Bytes of a cache line."""
_PAST: Final = _starts(AGENT_RECORD, "past")[0]
_ENTRIES: Final = _PAST + _starts(PAST, "entry")[0]
_AGENT_LINES: Final = (
    0,
    *(_starts(AGENT_RECORD, "shift")[0] + line * LINE for line in range(3)),
    *(_starts(AGENT_RECORD, "burst")[0] + line * LINE for line in range(3)),
    *_starts(AGENT_RECORD, "leak"),
)
_SESSION_LINES: Final = tuple(range(0, SESSION.itemsize, LINE))


@inlined
def prefetch_entities(row: Record, person: Record, arguments: Record, state: State) -> None:
    """Ask for the records of a call's agent and session, where its detectors will look."""
    agent = find(state.agents, person["agent_key"])
    for offset in _AGENT_LINES:
        prefetch_part(state.agents.rows, agent, offset)
    tool = row["hash"][TOOL]
    prefetch_part(state.agents.rows, agent, _ENTRIES + 8 * home_of(TOOLS, tool))
    shape = hash_two(tool, arguments["names"], np.int64(0))
    prefetch_part(state.agents.rows, agent, _ENTRIES + 8 * home_of(SHAPES, shape))
    session = find(state.sessions, person["session_key"])
    for offset in _SESSION_LINES:
        prefetch_part(state.sessions.rows, session, offset)
