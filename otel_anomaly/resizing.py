"""The state of a configuration: new, or with what another one remembers.

`keep` gives what is worth keeping of a state, without its empty places; `restore` puts that into a
state of any capacities; `resize` does both, for a running processor. What does not fit is what was
seen least recently: it is evicted, and counted.

What is only worked out from the configuration is worked out anew: the labels of names, and limits
that hold for the open bucket. A call in the journal whose override is gone goes by the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from otel_anomaly.config import effective_detectors
from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.detectors.ring import SECONDS
from otel_anomaly.entities import identity
from otel_anomaly.entities.links import LINK, make_links
from otel_anomaly.entities.packing import (
    KeptLinks,
    KeptTable,
    copy_rows,
    keep_links,
    keep_table,
    restore_links,
    restore_table,
)
from otel_anomaly.entities.table import Table, make_table, zeros
from otel_anomaly.state import (
    AGENT,
    COUNTERS,
    ENTRY,
    EPISODE,
    LABEL,
    SERVICE,
    SESSION,
    State,
)

if TYPE_CHECKING:
    from otel_anomaly.config import Config

FOR_EVER_NS: Final = 1 << 62
TRACE_IDLE_NS: Final = 86_400_000_000_000
"""A trace silent for a day is over: its id, used again, is another trace."""
AT_ONCE: Final = 4096
"""Rows worked on together, so that no column of all of them is needed."""
TABLES: Final = ("traces", "names", "agents", "services", "sessions", "episodes")
"""Tables that are kept. Labels are not: they are matched anew when they are asked for."""


class Kept(NamedTuple):
    """What is kept of a state."""

    watermark: np.ndarray
    """int64 [4], as the state has it."""
    journal: np.ndarray
    """ENTRY [n]: its places in use."""
    links: KeptLinks
    traces: KeptTable
    names: KeptTable
    agents: KeptTable
    services: KeptTable
    sessions: KeptTable
    episodes: KeptTable


def make_state(config: Config) -> State:
    """Nothing learned yet. Memory is taken up as rows are used."""
    limits = config.identity.limits
    agent = {"idle_ns": limits.agent_idle, "keep_ns": limits.agent_keep}
    passing = {"idle_ns": TRACE_IDLE_NS, "keep_ns": 0}
    traces = passing | {"sample": 1, "state_bytes": identity.TRACE_STATE_BYTES}
    session = {"idle_ns": limits.session_idle, "keep_ns": limits.session_keep}
    lasting = {"idle_ns": FOR_EVER_NS, "keep_ns": 0}
    return State(
        np.zeros(COUNTERS, np.int64),
        np.zeros(4, np.int64),
        make_links(limits.spans),
        zeros(limits.moves, ENTRY),
        make_table(limits.traces, identity.TRACE, **traces),
        make_table(limits.labels, identity.NAME, **passing),
        make_table(limits.agents, AGENT, **agent),
        make_table(limits.services, SERVICE, **agent),
        make_table(limits.sessions, SESSION, **session),
        make_table(limits.labels, LABEL, **lasting),
        make_table(limits.episodes, EPISODE, **lasting),
    )


def bytes_of(config: Config) -> int:
    """Bytes that a state of `config` has room for."""
    limits = config.identity.limits
    rows = (
        (limits.moves, ENTRY),
        (2 * limits.spans, LINK),
        (limits.traces, identity.TRACE),
        (limits.labels, identity.NAME),
        (limits.agents, AGENT),
        (limits.services, SERVICE),
        (limits.sessions, SESSION),
        (limits.episodes, EPISODE),
    )
    return sum(count * record.itemsize for count, record in rows)


def keep(state: State) -> Kept:
    """What is worth keeping: views of the state's own arrays, not copies."""
    written = np.flatnonzero(state.journal["serial"])
    used = int(written[-1]) + 1 if written.size else 0
    tables = (keep_table(getattr(state, name)) for name in TABLES)
    return Kept(state.watermark, state.journal[:used], keep_links(state.links), *tables)


def restore(kept: Kept, config: Config) -> State:
    """A state of `config` that remembers what was kept of another.

    Its counters start at zero. Raises `NotHashes` for keys that no state of ours has.
    """
    state = make_state(config)
    state.watermark[:] = kept.watermark
    restore_links(kept.links, state.links)
    for name in TABLES:
        restore_table(getattr(kept, name), getattr(state, name))
    _restore_journal(kept.journal, state)
    return state


def resize(state: State, config: Config) -> State:
    """The same memory under another configuration. The old state is used up by it.

    Arrays whose capacity stays are taken over as they are.
    """
    empty, kept = make_state(config), keep(state)
    tables = {
        name: _resize_table(getattr(state, name), getattr(kept, name), getattr(empty, name))
        for name in TABLES
    }
    links, journal = state.links, state.journal
    watermark = state.watermark.copy()
    if links.head["capacity"][0] != empty.links.head["capacity"][0]:
        links = restore_links(kept.links, empty.links)
    resized = empty._replace(
        counters=state.counters, watermark=watermark, links=links, journal=journal, **tables
    )
    if journal.size != empty.journal.size:
        resized = resized._replace(journal=empty.journal)
        _restore_journal(kept.journal, resized)
    adapt(resized, config)
    return resized


def _resize_table(table: Table, kept: KeptTable, empty: Table) -> Table:
    if table.head["capacity"][0] != empty.head["capacity"][0]:
        return restore_table(kept, empty)
    head = table.head.copy()
    for name in ("idle_ns", "keep_ns"):
        head[name] = empty.head[name]
    return table._replace(head=head)


def _restore_journal(kept: np.ndarray, state: State) -> None:
    """Fill an empty journal with the last calls of another.

    A larger one reaches further back than there is anything written, and calls that fell out would
    be taken for known again. So all that is still written gets later serial numbers, here and
    wherever it is spoken of, and the rest stays out of reach.
    """
    journal, size = state.journal, state.journal.size
    last, newest = int(state.watermark[1]), int(state.watermark[3])
    if kept.size == size or (kept.size < size and newest == last):  # It never wrapped.
        copy_rows(journal[: kept.size], kept)
        return
    order = np.roll(np.arange(kept.size), -1 - newest)
    order = order[kept["serial"][order] != 0][-size:]
    copy_rows(journal[: order.size], kept[order])
    state.watermark[3] = max(order.size - 1, 0)
    later = size - order.size if last > order.size else 0
    if later > 0:
        _renumber(state, last - order.size, later)


def _renumber(state: State, after: int, later: int) -> None:
    """Make all serial numbers above `after` so much larger."""
    state.watermark[1] += later
    numbers = [state.journal[name] for name in ("serial", "before", "next_waiting", "into")]
    numbers += [state.links.spans[name] for name in ("event", "waiting")]
    numbers.append(state.traces.rows["last"])
    for column in numbers:
        column[column > after] += later


def adapt(state: State, config: Config) -> None:
    """Undo what an earlier configuration left in a state and this one has to work out anew."""
    sections = effective_detectors(config)
    plans = state.journal["plan"]
    plans[plans >= len(sections)] = 0
    agents = state.agents.rows[: int(state.agents.head["used"][0]) + 1]
    sessions = state.sessions.rows[: int(state.sessions.head["used"][0]) + 1]
    limit = agents["shift"]["limit"]
    limit[:] = -np.abs(limit)
    _cut(sessions["rate"], max(section.rate.window for section in sections) // SECOND_NS)
    _cut(agents["burst"]["ring"], max(section.burst.window for section in sections) // SECOND_NS)


def _cut(rings: np.ndarray, seconds: int) -> None:
    """Forget what a ring holds beyond the longest window: no second of it would leave in time.

    A ring that is held to a shorter window, of an override that was longer, counts high for at most
    a minute.
    """
    for start in range(0, rings.size if seconds < SECONDS else 0, AT_ONCE):
        some = rings[start : start + AT_ONCE]
        ages = (some["head"][:, None] - np.arange(SECONDS)) % SECONDS
        counts = some["counts"]
        counts[ages >= seconds] = 0
        some["total"] = counts.sum(axis=1, dtype=np.int64)
