"""Records: what is remembered between requests, and what is said of one.

    agents    past, rings        key: tenant and agent
    services  past               key: tenant and service; the peers of an agent
    sessions  counters, loops    key: session, or what stands in for it
    traces    who is at work, and the last call judged in it
    links     spans lately seen: copies, parts of one call
    journal   the last calls judged, so that they can be moved when their agent's name arrives
    episodes  what is being alarmed about

Every array is bounded and of fixed shape. All that is kept of one entity is one record, so it can
be handed over without the others.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.detectors import burst, credential_leak, loop, rate, rate_shift
from otel_anomaly.detectors.call import CALL
from otel_anomaly.detectors.finding import ACTIONS, SIGN, SKIP_REASONS
from otel_anomaly.detectors.past import PAST
from otel_anomaly.entities.identity import OWN, PERSON
from otel_anomaly.entities.links import Links, borrow_links
from otel_anomaly.entities.table import OF_ROW, Table, borrow_table, in_lines
from otel_anomaly.kernels import borrow, inlined
from otel_anomaly.otlp.arguments import ARGUMENTS
from otel_anomaly.scoring import DETECTORS

_DETECTORS, _ACTIONS, _REASONS = len(DETECTORS), len(ACTIONS), len(SKIP_REASONS)

PLAN = np.dtype(
    [
        ("seed", "i8"),
        ("scope", "i8"),  # Kind of key that `rate` adds up by.
        ("skew_ns", "i8"),
        ("hold_ns", "i8"),
        ("clear", "f8"),
        ("action_max", "i8"),  # WARN when only observing.
        ("overrides", "i8"),  # How many there are.
        ("explain", "i8"),  # Identity of the span that is to be explained, 0: none.
    ]
)
VERDICT = np.dtype(
    [
        ("judged", "i1"),  # 0: no tool call, part of another, or its ids are not valid.
        ("duplicate", "i1"),  # Counted already: a copy, or another span of a call judged before.
        ("late", "i1"),
        ("action", "i1"),
        ("asked", "i1"),  # The action before the mode caps it.
        ("learning", "i1"),
        ("failed", "i1"),
        ("exempt", "i1"),  # Bits POLLING and BATCH of its tool.
        ("starts_program", "i1"),
        ("plan", "i2"),  # Whose limits apply: 0 the base, 1 + i override i.
        ("skipped", "i1", (_DETECTORS,)),
        ("finding", "i4"),  # First row in the findings.
        ("findings", "i4"),
        ("link", "i4"),  # Where the links of its span and of its call's id lie, -1: not known.
        ("id_link", "i4"),
        ("above", "i4"),  # Where the link of the outermost span of its call lies, -1: none.
        ("missing", "i8"),  # Identity of the first span above that is not known yet, 0: none.
        ("time_ns", "i8"),
        ("score", "f8"),
        ("fingerprint", "i8"),  # Of the tool and its arguments; 0: none carried.
        ("person", PERSON),
    ],
    align=True,
)
FINDING = np.dtype(
    [
        ("row", "i4"),
        ("detector", "i2"),
        ("asked", "i2"),  # The action before the mode caps that of the sign.
        ("sign", SIGN),
    ],
    align=True,
)

EPISODE = np.dtype(
    [
        *OF_ROW,
        ("start_ns", "i8"),
        ("last_ns", "i8"),
        ("peak", "f8"),
        ("score", "f8"),
        ("count", "i4"),
        ("action", "i4"),
    ]
)
START, ESCALATE, END = range(3)
STEPS: Final = ("start", "escalate", "end")
STEP = np.dtype(
    [
        ("step", "i4"),
        ("row", "i4"),  # Row of the scan that made it; at END, of the call that found it over.
        ("detector", "i4"),
        ("entity", "i4"),  # Row in the table of episodes.
        ("finding", "i4"),  # -1 at END.
        ("episode", EPISODE),
    ],
    align=True,
)
STEPS_PER_FINDING: Final = 2  # An old episode ends and a new one starts.

# Places in the counters.
CALLS, DUPLICATES, LATE_CALLS, CLAMPED, NO_TIME, BAD_IDS, FOLDED_CALLS, MOVED = range(8)
VERDICTS = 8
FINDINGS = VERDICTS + _ACTIONS
SKIPPED = FINDINGS + _DETECTORS * _ACTIONS
COUNTERS: Final = SKIPPED + _DETECTORS * _REASONS

_OF_ENTITY: Final = (*OF_ROW, ("open", "i8"))  # Bit a detector: an episode is open.
# What every call reads stands together in few cache lines; asking for memory is most of the work.
AGENT = in_lines(
    [*_OF_ENTITY, ("leak", credential_leak.STATE)],
    [("burst", burst.STATE)],
    [("shift", rate_shift.STATE)],
    [("past", PAST)],
)
SERVICE = np.dtype([*OF_ROW, ("past", PAST)], align=True)
SESSION = in_lines([*_OF_ENTITY, ("rate", rate.STATE)], [("loop", loop.STATE)])
LABEL = np.dtype([*OF_ROW, ("bits", "i8"), ("programs", "i8")], align=True)
"""What the patterns of the policy say of a name; `programs` only of a tool's."""

PLACES = np.dtype([("agent", "i8"), ("service", "i8"), ("rate", "i8"), ("session", "i8")])
"""Rows of the entities of one call; 0: none, or no room."""

ENTRY = in_lines(
    [
        ("serial", "i8"),  # 0: free.
        ("before", "i8"),  # Serial number of the call judged before it in its trace.
        ("next_waiting", "i8"),  # Of the next that waits for the same span.
        ("learned", "i8"),  # Bits LEARNED_AGENT..: what was taught.
        ("alarmed", "i8"),
        ("folded", "i8"),  # Spans that came later and spoke for it.
        ("found", "i8"),  # Bit a detector: a finding of warn or more was told.
        ("call_id", "i8"),
        ("into", "i8"),  # Serial number of the call that it turned out to be part of, 0: none.
        ("start_ns", "i8"),  # As its span has them.
        ("end_ns", "i8"),
        ("agent_key", "i8"),
        ("service_key", "i8"),
        ("rate_key", "i8"),
        ("session_key", "i8"),
        ("plan", "i8"),
        ("own", OWN),
        ("call", CALL),
    ]
)
"""A call that was judged, with all it takes to undo what it taught."""


class Plans(NamedTuple):
    """The configuration as the kernels read it."""

    judge: np.ndarray
    """PLAN [1]."""
    limits: np.ndarray
    """LIMITS [overrides + 1]: the base, then each override."""
    arguments: np.ndarray
    """ARGUMENT_PLAN [overrides + 1]."""
    patterns: np.ndarray
    """PATTERNS [4]: of tenants, agents, tools, and tools that start programs."""


@inlined
def borrow_plans(plans: Plans) -> Plans:
    """`borrow` for all arrays of the configuration."""
    return Plans(
        borrow(plans.judge),
        borrow(plans.limits),
        borrow(plans.arguments),
        borrow(plans.patterns),
    )


class State(NamedTuple):
    """All that is remembered between requests. Every array is bounded and of fixed shape."""

    counters: np.ndarray
    """int64 [COUNTERS]."""
    watermark: np.ndarray
    """int64 [4]: latest time judged, nanoseconds; serial numbers of the last call judged and of the
    last request looked at; the place of that call in the journal."""
    links: Links
    journal: np.ndarray
    """ENTRY [n]."""
    traces: Table
    """Of TRACE."""
    names: Table
    """Of NAME."""
    agents: Table
    """Of AGENT."""
    services: Table
    """Of SERVICE."""
    sessions: Table
    """Of SESSION: what `rate` and `loop` count by."""
    labels: Table
    """Of LABEL."""
    episodes: Table
    """Of EPISODE: open ones."""


@inlined
def borrow_state(state: State) -> State:
    """`borrow` for all arrays of the state."""
    return State(
        borrow(state.counters),
        borrow(state.watermark),
        borrow_links(state.links),
        borrow(state.journal),
        borrow_table(state.traces),
        borrow_table(state.names),
        borrow_table(state.agents),
        borrow_table(state.services),
        borrow_table(state.sessions),
        borrow_table(state.labels),
        borrow_table(state.episodes),
    )


WORK = np.dtype([("call", CALL), ("places", PLACES), ("own", OWN), ("person", PERSON)], align=True)
"""What is worked out for one call at a time."""
EXPLAINED = np.dtype(
    [
        ("call", CALL),
        ("plan", "i8"),  # Whose limits applied.
        ("row", "i8"),  # Which of its request told of it.
        ("signs", SIGN, (_DETECTORS,)),
        ("agent", AGENT),
        ("service", SERVICE),
    ],
    align=True,
)
"""All that one call was judged by, for the explanation of it: copied before anybody learns it."""
MOVED_MAX: Final = 512
"""Calls of one trace that are moved at once: the last ones."""


class Scratch(NamedTuple):
    """Arrays that the kernels work in, reused from request to request."""

    signs: np.ndarray
    """SIGN [detectors]: of the call judged last."""
    work: np.ndarray
    """WORK [1]."""
    serials: np.ndarray
    """int64 [MOVED_MAX]."""
    read: np.ndarray
    """ARGUMENTS [2 * calls]: arguments and result of each call."""
    explained: np.ndarray
    """EXPLAINED [1]: of the span that is to be explained."""


@inlined
def borrow_scratch(scratch: Scratch) -> Scratch:
    """`borrow` for all arrays of the scratch."""
    return Scratch(
        borrow(scratch.signs),
        borrow(scratch.work),
        borrow(scratch.serials),
        borrow(scratch.read),
        borrow(scratch.explained),
    )


def make_scratch(calls: int) -> Scratch:
    """Scratch for requests of up to so many calls."""
    return Scratch(
        np.zeros(_DETECTORS, SIGN),
        np.zeros(1, WORK),
        np.empty(MOVED_MAX, np.int64),
        np.empty(2 * calls, ARGUMENTS),
        np.zeros(1, EXPLAINED),
    )


class Judgement(NamedTuple):
    """What the judge says of one request. The arrays may be views of reused ones: copy to keep."""

    verdicts: np.ndarray
    """VERDICT [rows]."""
    findings: np.ndarray
    """FINDING [n]."""
    steps: np.ndarray
    """STEP [n]."""
