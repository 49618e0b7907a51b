"""`frequency`: a known tool that makes up far less of the agent's calls than its fair share.

Sees: the tool an agent has but all but never uses, when it uses it again.
Blind to: tools never used (`novelty`'s business), an agent that uses all its tools alike, and a
rare tool that becomes usual: each of its calls is learned.

    share = uses of this tool / uses of all tools       of the agent, before this call
    limit = min(`share`, half of 1 / tools in use)
    share < limit -> 0.6;  else 0

Counts are those of `past`: calls whose verdict was below `pause`, without tools that were not used
for `forget_after`, and weighing less the older they are. The agent must be warm and have at least
`min_calls` of them. By itself it asks for no action: it goes into `risk`.

Source: ContextForge PR 3846. Not taken over: a share of 1 % alone, by which over a hundred evenly
used tools all look rare, and counts of a lifetime.

>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import DAY_NS
>>> from otel_anomaly.detectors.past import LEARNING, PAST, learn
>>> past, learning, call, sign = (np.zeros(1, dtype)[0] for dtype in (PAST, LEARNING, CALL, SIGN))
>>> plan = make_plan(FrequencyConfig())[0]
>>> learning["forget_days"], call["time_ns"] = 28, 100 * DAY_NS
>>> for call["tool"] in [1] * 149 + [2] + [1] * 50:
...     learn(past, learning, call)
>>> for call["tool"] in (1, 2, 3):
...     score(past, learning, plan, call, sign)
...     print(*(float(sign[name]) for name in ("score", "observed", "limit")))
0.0 99.5 1.0
0.6 0.5 1.0
0.0 0.0 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import FrequencyConfig
from otel_anomaly.detectors.finding import COLD, FULL, JUDGED, NOT_TOLD, SIGN
from otel_anomaly.detectors.past import NO_ROOM, TOOLS, find, is_cold, uses
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Record, inlined

__all__ = ["CLAUSES", "NAME", "PLAN", "SIGN", "make_plan", "score"]

NAME: Final = "frequency"
CLAUSES: Final = ("this tool makes up {observed} % of the agent's calls, rare below {limit} %",)
SCORE: Final = 0.6

PLAN = np.dtype([("enabled", "i8"), ("min_calls", "i8"), ("share", "f8")])


def make_plan(config: FrequencyConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["min_calls"], plan["share"] = (
        config.enabled,
        config.min_calls,
        config.share,
    )
    return plan


@inlined
def score(own: Record, learning: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call by the counts of its agent's tools."""
    silence(sign, JUDGED)
    if call["tool"] == 0:
        sign["skipped"] = NOT_TOLD
        return
    if is_cold(own, learning, call["time_ns"]):
        sign["skipped"] = COLD
        return
    tool = find(own, TOOLS, call["tool"], call["time_ns"], learning["forget_days"])
    if tool == NO_ROOM:
        sign["skipped"] = FULL
    if tool < 0:
        return
    if own["total"] < plan["min_calls"]:
        sign["skipped"] = COLD
        return
    share = uses(own, tool) / own["total"]
    limit = min(plan["share"], 0.5 / own["tools"])
    sign["observed"], sign["limit"] = 100.0 * share, 100.0 * limit
    sign["ratio"] = share / limit if limit > 0.0 else 0.0
    if share < limit:
        sign["score"] = SCORE
