"""What one configuration left in the state that another would misread, put right.

    policy, patterns    labels: what the old patterns said of a name     forgotten
                        journal: which override a call was judged by     the base, 0
    rate, burst window  rings: seconds that the new window does not hold emptied, totals anew
    rate_shift limits   which rules a limit was worked out by            none: anew at the next call
    identity.limits     how long rows are kept                           as the new ones say

Everything else is read the same by any configuration: loop and credential_leak note in their rings
what these are cut into, and times, counts and names mean what they say. The number of an override
in the journal is an index into arrays of the new configuration, so a stale one would be read
beyond their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from otel_anomaly.config import SECOND_NS, effective_detectors
from otel_anomaly.detectors.rate_shift import rules_of
from otel_anomaly.detectors.ring import SECONDS

if TYPE_CHECKING:
    from otel_anomaly.config import Config
    from otel_anomaly.entities.table import Table
    from otel_anomaly.state import State

NO_RULES: Final = 255
"""The number of no rules: there are at most so many as overrides, and the base."""
ROWS_AT_ONCE: Final = 4096


def refit(state: State, old: Config | None, new: Config) -> None:
    """Make `state`, filled under `old`, fit for `new`, in place. None: under an unknown one."""
    _keep_as_told(state, new)
    if old is None or _patterns(old) != _patterns(new):
        forget_all(state.labels)
        state.journal["plan"] = 0
    if old is None or old.detectors.rate.window != new.detectors.rate.window:
        rings, head = state.sessions.rows["rate"], state.sessions.head[0]
        trim_rings(rings[: int(head["used"]) + 1], new.detectors.rate.window // SECOND_NS)
    if old is None or old.detectors.burst.window != new.detectors.burst.window:
        rings, head = state.agents.rows["burst"]["ring"], state.agents.head[0]
        trim_rings(rings[: int(head["used"]) + 1], new.detectors.burst.window // SECOND_NS)
    if old is None or _shift_rules(old) != _shift_rules(new):
        used = int(state.agents.head[0]["used"])
        state.agents.rows["shift"]["rules"][: used + 1] = NO_RULES


def _keep_as_told(state: State, config: Config) -> None:
    """How long silent rows are kept."""
    limits = config.identity.limits
    for table in (state.agents, state.services):
        table.head["idle_ns"], table.head["keep_ns"] = limits.agent_idle, limits.agent_keep
    sessions = state.sessions.head
    sessions["idle_ns"], sessions["keep_ns"] = limits.session_idle, limits.session_keep


def _patterns(config: Config) -> object:
    """All that a label or the number of an override rests on."""
    policy = config.policy
    tools = [section.child_process.tools for section in effective_detectors(config)]
    who = [(item.tenant, item.agent, item.tool) for item in policy.overrides]
    return who, tools, policy.polling_tools, policy.batch_tools


def _shift_rules(config: Config) -> object:
    return [rules_of(section.rate_shift) for section in effective_detectors(config)]


def forget_all(table: Table) -> None:
    """Empty a table."""
    head = table.head[0]
    table.rows[: int(head["used"]) + 1] = table.blank[0]
    table.slots[:] = 0
    head["used"], head["in_use"], head["free"], head["hand"] = 0, 0, 0, 1


def trim_rings(rings: np.ndarray, seconds: int) -> None:
    """Empty the counters of seconds that a window of `seconds` does not hold. `rings`: RING [n]."""
    places = np.arange(SECONDS)
    for first in range(0, rings.size, ROWS_AT_ONCE):
        part = rings[first : first + ROWS_AT_ONCE]
        ages = (part["head"][:, None] - places) % SECONDS
        part["counts"][ages >= seconds] = 0
        part["total"] = part["counts"].sum(axis=1)
