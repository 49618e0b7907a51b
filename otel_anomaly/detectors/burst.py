"""`burst`: calls of an agent in the last window, graded, against a limit or its own busy hours.

Sees: many calls within a minute, from an agent's first minute on.
Blind to: bursts under half the limit; bursts as high as the agent's busy hours usually are;
which tools are called (`novelty`), and whether they are the same call (`loop`).

    r     = calls in (newest second - window, newest second], this one included
    limit = max(`threshold`, habit)
    habit = 1.5 * usual, once 8 busy hours were seen
    usual = median of the highest r of each of the last 24 busy hours
    score = 0                         r < limit / 2
            r / (4 * limit)           r < limit
            min(1, r / (2 * limit))   from there: 0.5 at the limit, 1 at twice the limit

An hour is busy when its highest r reaches `threshold`. Nobody makes a habit of alarms: an hour in
which a verdict reached `pause` does not count, nor does an r that holds such a call; and the median
keeps a few wild hours from setting the standard. An agent that is busy every hour of the day is
thus not told of every day; the first hours of its life it is. Without a busy hour for 28 days the
habit is forgotten.

Tools that the policy exempts (polling, batch) are not counted. A call late by less than the window
goes to its own second. By itself it asks for no action: it goes into `risk`.

Source: ContextForge PR 3846. Not taken over: a score that jumps to 1 at the threshold, so that 25
calls and 2500 are alike, and a walk through the history on every call.

>>> from otel_anomaly.detectors.call import CALL
>>> state, call, sign = (np.zeros(1, dtype)[0] for dtype in (STATE, CALL, SIGN))
>>> plan = make_plan(BurstConfig())[0]
>>> call["time_ns"], call["fresh"] = 1000 * SECOND_NS, 1
>>> for r in range(1, 51):
...     score(state, plan, call, sign)
...     learn(state, plan, call, False)
...     if r in (9, 10, 19, 20, 25, 40, 50):
...         print(r, float(sign["score"]))
9 0.0
10 0.125
19 0.2375
20 0.5
25 0.625
40 1.0
50 1.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import BurstConfig
from otel_anomaly.detectors.call import BATCH, POLLING
from otel_anomaly.detectors.finding import EXEMPT, JUDGED, LATE, SECOND_NS, SIGN
from otel_anomaly.detectors.ring import COUNT_MAX, RING, add, bring_up, holds, take_back
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Array, Int, Record, inlined, kernel

__all__ = ["CLAUSES", "NAME", "PLAN", "SIGN", "STATE", "learn", "make_plan", "score", "unlearn"]

NAME: Final = "burst"
CLAUSES: Final = (
    "{observed} calls in {window} s, limit {limit}",
    "{observed} calls in {window} s, limit {limit}, usual {usual} in its busy hours",
)
HABIT_HOURS: Final = 8
HABIT_RATIO: Final = 1.5
HOURS_KEPT: Final = 24
FORGET_HOURS: Final = 28 * 24
HOUR_S: Final = 3600

PLAN = np.dtype([("enabled", "i8"), ("threshold", "i8"), ("seconds", "i8")])
STATE = np.dtype(
    [
        ("hour", "i8"),  # Number of the open hour since 1970.
        ("alarm", "i8"),  # Second of the last call whose verdict reached pause; 0: none.
        ("busy_hour", "i8"),  # Number of the last busy hour.
        ("usual", "f8"),  # Median of `peaks`.
        ("busy", "i4"),  # How many busy hours.
        ("peak", "i4"),  # Highest r of the open hour.
        ("spoilt", "i4"),  # A verdict in the open hour reached pause.
        ("ring", RING),
        ("peaks", "u2", (HOURS_KEPT,)),  # Of the last busy hours.
    ],
    align=True,
)


def make_plan(config: BurstConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["threshold"] = config.enabled, config.threshold
    plan["seconds"] = config.window // SECOND_NS
    return plan


@inlined
def _has_habit(state: Record, plan: Record) -> bool:
    """Whether the agent's own busy hours lift its limit."""
    return bool(state["busy"] >= HABIT_HOURS and HABIT_RATIO * state["usual"] > plan["threshold"])


@inlined
def _limit(state: Record, plan: Record) -> float:
    if _has_habit(state, plan):
        return float(HABIT_RATIO * state["usual"])
    return float(plan["threshold"])


@kernel
def _median(peaks: Array, count: Int) -> float:
    """Median of the first `count` peaks, at least one."""
    ordered = np.empty(HOURS_KEPT, np.int64)
    for i in range(count):
        place, peak = i, np.int64(peaks[i])
        while place > 0 and ordered[place - 1] > peak:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = peak
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2.0


@inlined
def _open_hour(state: Record, plan: Record, hour: Int) -> None:
    """Close the open hour, and take it into the habit if it was busy."""
    if hour <= state["hour"]:
        return
    if state["peak"] >= plan["threshold"] and state["spoilt"] == 0:
        state["peaks"][state["busy"] % HOURS_KEPT] = min(state["peak"], COUNT_MAX)
        state["busy"] += 1
        state["busy_hour"] = state["hour"]
        state["usual"] = _median(state["peaks"], min(state["busy"], HOURS_KEPT))
    if hour - state["busy_hour"] > FORGET_HOURS:
        state["busy"], state["usual"] = 0, 0.0
    state["hour"], state["peak"], state["spoilt"] = hour, 0, 0


@inlined
def _is_exempt(call: Record) -> bool:
    return bool(call["exempt"] & (POLLING | BATCH) != 0)


@inlined
def score(state: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call by the calls of its agent in the last window."""
    silence(sign, JUDGED)
    if _is_exempt(call):
        sign["skipped"] = EXEMPT
        return
    second, seconds = call["time_ns"] // SECOND_NS, plan["seconds"]
    bring_up(state["ring"], second, seconds)
    _open_hour(state, plan, second // HOUR_S)
    count = state["ring"]["total"] + (1 if call["fresh"] != 0 else 0)
    sign["observed"], sign["window_s"] = count, seconds
    if not holds(state["ring"], second, seconds):
        sign["skipped"] = LATE
        return
    limit = _limit(state, plan)
    sign["limit"], sign["ratio"] = limit, count / limit
    if _has_habit(state, plan):
        sign["usual"], sign["variant"] = state["usual"], 1
    if count >= limit:
        sign["score"] = min(1.0, count / (2.0 * limit))
    elif 2 * count >= limit:
        sign["score"] = count / (4.0 * limit)


@inlined
def learn(state: Record, plan: Record, call: Record, alarmed: Int) -> None:
    """Count one call, also one that was judged as another agent's and is now handed over.

    `alarmed`: its verdict reached pause. It counts in the window, but makes no habit.
    """
    if _is_exempt(call):
        return
    second, seconds = call["time_ns"] // SECOND_NS, plan["seconds"]
    bring_up(state["ring"], second, seconds)
    _open_hour(state, plan, second // HOUR_S)
    if not holds(state["ring"], second, seconds):
        return
    add(state["ring"], second)
    if alarmed:
        state["alarm"], state["spoilt"] = max(state["alarm"], second), 1
    elif state["alarm"] == 0 or not holds(state["ring"], state["alarm"], seconds):
        state["peak"] = max(state["peak"], state["ring"]["total"])


@inlined
def unlearn(state: Record, plan: Record, call: Record) -> None:
    """Undo `learn`: the call turned out to be another agent's.

    Which of an hour's calls made its peak is not kept. One is taken from it all the same: an agent
    whose calls are handed over does not make a habit of them.
    """
    second = call["time_ns"] // SECOND_NS
    if _is_exempt(call):
        return
    take_back(state["ring"], second, plan["seconds"])
    if second // HOUR_S == state["hour"] and state["peak"] > 0:
        state["peak"] -= 1
