"""`novelty`: a tool this agent never used, or a known tool with argument names never used with it.

Sees: a hijacked or confused agent that reaches for a tool that is not its own; the look-alike name
of a known tool; a tool called in another way than ever before.
Blind to: misuse of known tools with known argument names (values are not looked at); an agent still
cold in a service still cold; what an agent does after 64 tools or 64 sets of argument names are in
use (it then says `memory_full`, not that all is new).

    1.0   the tool is not among those the agent used in the last `forget_after`
    0.5   the tool is; the set of its argument names is not, although some set of it is known
    0     else

judged against the calls before this one, and only against those whose verdict was below `pause`
(`past`). While the agent is cold, its service speaks for it: every agent of the service teaches it.
Where arguments are not carried, or never were with this tool, the names are not judged: that an
instrumentation begins to carry them is no change of the agent.

By itself it asks for no action: it goes into `risk`.

Source: the profile of ContextForge PR 3846 (tool sets and argument-name sets a user). Not taken
over: learning by elapsed time alone, sets without bound and without ageing, a blocked call that
teaches.

>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import DAY_NS
>>> from otel_anomaly.detectors.past import LEARNING, PAST, learn
>>> past, learning, call, sign = (np.zeros(1, dtype)[0] for dtype in (PAST, LEARNING, CALL, SIGN))
>>> plan = make_plan(NoveltyConfig())[0]
>>> learning["forget_days"], call["time_ns"], call["has_arguments"] = 28, 100 * DAY_NS, 1
>>> for call["tool"], call["names"] in ((1, 7), (1, 7), (1, 8), (2, 7)):
...     score(past, past, learning, plan, call, sign)
...     learn(past, learning, call)
...     print(SKIP_REASONS[sign["skipped"]] or float(sign["score"]), int(sign["observed"]))
learning 0
0.0 1
0.5 2
1.0 3
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import NoveltyConfig
from otel_anomaly.detectors.finding import COLD, FULL, JUDGED, NOT_TOLD, SIGN, SKIP_REASONS
from otel_anomaly.detectors.past import (
    NO_ROOM,
    SHAPES,
    TOOLS,
    find,
    is_cold,
    is_shaped,
    shape_of,
    uses,
)
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Int, Record, inlined

__all__ = ["CLAUSES", "NAME", "PLAN", "SIGN", "SKIP_REASONS", "make_plan", "score"]

NAME: Final = "novelty"
CLAUSES: Final = (
    "a tool this agent has not used lately, after {observed} calls",
    "argument names this agent has not used lately, after {observed} calls of this tool",
    "a tool no agent of this service has used lately, after {observed} calls",
    "argument names no agent of this service has used lately, after {observed} calls of this tool",
)
OF_SERVICE: Final = 2
"""First variant of what is judged against the service."""

PLAN = np.dtype([("enabled", "i8")])


def make_plan(config: NoveltyConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"] = config.enabled
    return plan


@inlined
def _compare(past: Record, learning: Record, call: Record, first: Int, sign: Record) -> None:
    """Judge a call by a past that is warm. `first`: the variant that words a new tool."""
    now_ns, forget_days = call["time_ns"], learning["forget_days"]
    tool = find(past, TOOLS, call["tool"], now_ns, forget_days)
    if tool == NO_ROOM:
        sign["skipped"] = FULL
        return
    if tool < 0:
        sign["score"], sign["observed"], sign["variant"] = 1.0, past["calls"], first
        return
    sign["observed"], sign["variant"] = uses(past, tool), first + 1
    if call["has_arguments"] == 0 or not is_shaped(past, tool):
        return
    shape = find(past, SHAPES, shape_of(call), now_ns, forget_days)
    if shape == NO_ROOM:
        sign["skipped"] = FULL
    elif shape < 0:
        sign["score"] = 0.5


@inlined
def score(
    own: Record,
    peers: Record,
    learning: Record,
    plan: Record,  # noqa: ARG001 -- every detector is handed its plan.
    call: Record,
    sign: Record,
) -> None:
    """Judge one call by the past of its agent, or of the agent's service (`peers`)."""
    silence(sign, JUDGED)
    if call["tool"] == 0:
        sign["skipped"] = NOT_TOLD
    elif not is_cold(own, learning, call["time_ns"]):
        _compare(own, learning, call, np.int64(0), sign)
    elif not is_cold(peers, learning, call["time_ns"]):
        _compare(peers, learning, call, np.int64(OF_SERVICE), sign)
    else:
        sign["skipped"] = COLD
