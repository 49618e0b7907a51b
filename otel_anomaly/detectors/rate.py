"""`rate`: calls of a session in the last window against two fixed limits.

Sees: a runaway or hijacked session, from its first minute on; nothing needs to be learned.
Blind to: a session that stays under the limits, and a client that takes a new session for every
few calls. The agent's own past (`rate_shift`, with its ceiling) is the answer to the second.

    total = calls in (newest second - window, newest second], the call being judged included
    total >= block -> block;  else total >= warn -> warn;  each off when 0

A call late by less than the window goes to its own second; a later one is not counted. The score
is 0 below warn, 0.5 at warn, and grows linearly to 1 at block.

A call whose verdict is `block` counts all the same: its span says that it was made, and on
telemetry the action is advice. What was refused at our door, or delivered twice, does not count, so
a client that sends again is not punished for it, and a session is below the line one window after
it slows.

Counters stay at 65535 (`ring`); limits are bounded to match. Source: Grob's tool-spike detector
(azerozero/grob, `src/security/tool_spike.rs`).

>>> from otel_anomaly.config import RateConfig
>>> plan, state = make_plan(RateConfig(warn=2, block=3)), make_state(1)
>>> sign = np.zeros(1, SIGN)
>>> for now_s in (100, 101, 102, 170):
...     score(state[1], plan[0], now_s * SECOND_NS, True, sign[0])
...     learn(state[1], now_s * SECOND_NS)
...     print(float(sign[0]["observed"]), ACTIONS[sign[0]["action"]], float(sign[0]["score"]))
1.0 allow 0.0
2.0 warn 0.5
3.0 block 1.0
1.0 allow 0.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import RateConfig
from otel_anomaly.detectors.finding import (
    ACTIONS,
    ALLOW,
    BLOCK,
    JUDGED,
    LATE,
    SECOND_NS,
    SIGN,
    WARN,
)
from otel_anomaly.detectors.ring import RING, add, bring_up, holds, take_back
from otel_anomaly.kernels import Int, Record, inlined

__all__ = [
    "ACTIONS",
    "CLAUSES",
    "SECOND_NS",
    "SIGN",
    "STATE",
    "learn",
    "make_plan",
    "make_state",
    "score",
    "unlearn",
]

PLAN = np.dtype([("enabled", "i8"), ("seconds", "i8"), ("warn", "i8"), ("block", "i8")])
STATE = RING
CLAUSES: Final = ("{observed} calls in {window} s, limit {limit}",)


def make_plan(config: RateConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["seconds"] = config.enabled, config.window // SECOND_NS
    plan["warn"], plan["block"] = config.warn, config.block
    return plan


def make_state(capacity: int) -> np.ndarray:
    """Empty rings, STATE [capacity + 1]; a row of zeros is an empty ring."""
    return np.zeros(capacity + 1, STATE)


@inlined
def score(state: Record, plan: Record, now_ns: Int, fresh: bool, sign: Record) -> None:
    """Judge one call that ended at `now_ns`; `fresh`: it is not counted yet (no duplicate)."""
    second = now_ns // SECOND_NS
    bring_up(state, second, plan["seconds"])
    sign["skipped"] = JUDGED if holds(state, second, plan["seconds"]) else LATE
    sign["score"], sign["action"], sign["limit"], sign["variant"] = 0.0, ALLOW, 0.0, 0
    sign["usual"], sign["window_s"], sign["ratio"] = 0.0, plan["seconds"], 0.0
    total = state["total"] + (1 if fresh else 0)
    sign["observed"] = total
    warn, block = plan["warn"], plan["block"]
    first = warn if warn > 0 else block
    if sign["skipped"] != JUDGED or first == 0:
        return
    sign["limit"], sign["ratio"] = first, total / first
    if block > 0 and total >= block:
        sign["limit"], sign["action"], sign["score"] = block, BLOCK, 1.0
    elif warn > 0 and total >= warn:
        sign["action"] = WARN
        if block > 0:
            sign["score"] = 0.5 + 0.5 * (total - warn) / (block - warn)
        else:
            sign["score"] = 1.0 - 0.5 * warn / total


@inlined
def learn(state: Record, now_ns: Int) -> None:
    """Count a call that `score` has just judged and that is not late."""
    add(state, now_ns // SECOND_NS)


@inlined
def unlearn(state: Record, plan: Record, now_ns: Int) -> None:
    """Undo `learn`, unless the call has left the window since."""
    take_back(state, now_ns // SECOND_NS, plan["seconds"])
