"""`loop`: a session makes the same call again and again, alone or in a cycle.

Sees: equal calls (tool and canonical arguments) in the last `window`, with other calls between them
or not; cycles of 2 to 4 calls; sooner, as a warning, when the results repeat as well or the calls
fail. Blind to: calls without arguments on the span; arguments that differ in a member nobody named
volatile, and paraphrases; a loop with sixteen or more other new calls between its first two turns;
loops slower than `threshold` a window; whoever takes a new session for every few calls.

    slot     | A    | B    | -    | C    |        16 calls, each by 32 bits of its fingerprint
    result   | r1   | r7   |      | r2   |        what it came back with last
    counts   | 3 2  | 1 0  |      | 1 1  |        calls in 10 sub-windows, like a ring of `rate`

    recent   | B | A | B | A |                    the last 4 calls, newest first, result included
    runs     p=2: 6   p=3: 0   p=4: 4             how long each call equals the one p before it

    same   = this call's count in the window, this one included
    rounds = ceil((run of p + p) / p)             how often the cycle came round to this call
    observed = max(same, rounds);  observed >= threshold -> action

A cycle of A-B made three times is 3, not 6: what repeats is the whole of it. Only calls inside the
window are in a run.

Results decide where telemetry carries them. A call that comes back with another result than last
time starts again at 1: polling that makes progress is no loop. One that comes back with the same
is warned of from `repeat` on, with a score from 0.25 up to 0.5 at `threshold`; so is a call that
fails, whatever its error says (a time, a number of the request), which is counted apart from the
same call that does not fail. Where no result is carried every repetition counts, towards
`threshold` alone. From there on the score is 1 - threshold / (2 * observed). Tools that poll by
nature are exempt by configuration.

A new call takes the slot with the smallest count, the oldest among equals, and starts at 1. So a
flood of calls that differ moves through the slots of calls made once, and a loop that has come
round twice keeps its slot.

Taking a call back (it was another session's) takes its count back and forgets the order of calls:
a run that a foreign call was part of proves nothing.

Counters are 16 bits and stay at 65535. Sources: Metwally, Agrawal, El Abbadi (2005), Efficient
computation of frequent and top-k elements in data streams, ICDT (which entry gives way; theirs
hands its count on, which would make a newcomer a loop). What differs from the detector this
replaces (Agent Assembly `LoopRunaway`): a window that moves (its `loop_window_secs` was read by
nothing, so fifty polls spread over hours fired); canonical arguments in place of their text;
cycles; results; bounded memory.

>>> from otel_anomaly.config import LoopConfig
>>> from otel_anomaly.detectors.call import CALL
>>> from otel_anomaly.detectors.finding import ACTIONS, SECOND_NS, SIGN
>>> plan, state = make_plan(LoopConfig(threshold=4, repeat=4))[0], np.zeros(1, STATE)[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> call["has_arguments"] = call["fresh"] = 1
>>> for now_s, fingerprint in enumerate((7, 8, 7, 8, 7, 8, 7)):
...     call["time_ns"], call["fingerprint"] = (1000 + now_s) * SECOND_NS, fingerprint
...     score(state, plan, call, sign)
...     learn(state, plan, call, False)
>>> float(sign["observed"]), ACTIONS[sign["action"]], float(sign["score"]), float(sign["usual"])
(4.0, 'pause', 0.5, 2.0)
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import LoopConfig
from otel_anomaly.detectors.call import POLLING
from otel_anomaly.detectors.finding import (
    ACTIONS,
    EXEMPT,
    JUDGED,
    LATE,
    NO_ARGUMENTS,
    OFF,
    SECOND_NS,
    WARN,
)
from otel_anomaly.detectors.measure import measure
from otel_anomaly.detectors.silence import silence
from otel_anomaly.detectors.subwindows import number_of
from otel_anomaly.kernels import Int, Record, inlined, kernel

NAME: Final = "loop"
CLAUSES: Final = (
    "the same call {observed} times in {window} s, limit {limit}",
    "the same call with the same result {observed} times in {window} s, limit {limit}",
    "the same failing call {observed} times in {window} s, limit {limit}",
    "the same cycle of {usual} calls {observed} times in {window} s, limit {limit}",
)
SAME_CALL, SAME_RESULT, FAILING, CYCLE = np.arange(4)

SLOTS: Final = 16
SUBWINDOWS: Final = 10
PERIOD_MAX: Final = 4
COUNT_MAX: Final = 65535

PLAN = np.dtype(
    [
        ("enabled", "i8"),
        ("threshold", "i8"),
        ("repeat", "i8"),
        ("action", "i8"),
        ("subwindow_ns", "i8"),
        ("window_s", "f8"),
    ]
)
STATE = np.dtype(
    [
        ("subwindow_ns", "i8"),  # What the ring is cut into.
        ("head", "i8"),  # Number of the newest sub-window seen.
        ("tag", "u4", (SLOTS,)),  # Which call; 0: none yet.
        ("recent", "u4", (PERIOD_MAX,)),  # The last calls with their results, newest first.
        ("result", "u2", (SLOTS,)),  # Of the last call that carried one; 0: none did.
        ("total", "u2", (SLOTS,)),  # Sum of the slot's counts.
        ("calls", "u2", (SUBWINDOWS,)),  # All calls of the session.
        ("runs", "u2", (PERIOD_MAX - 1,)),  # Of the periods 2, 3, 4.
        ("hand", "u2"),  # Slot taken last.
        ("counts", "u2", (SLOTS, SUBWINDOWS)),
    ],
    align=True,
)
assert STATE.itemsize <= 512
_FAILED: Final = 0x5BD1E995
"""Turns the tag of a call into that of the same call failing."""


def make_plan(config: LoopConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["action"] = config.enabled, ACTIONS.index(config.action)
    plan["threshold"], plan["repeat"] = config.threshold, config.repeat
    plan["subwindow_ns"] = config.window // SUBWINDOWS
    plan["window_s"] = config.window / SECOND_NS
    return plan


@inlined
def _tag(call: Record) -> Int:
    """Which call this is, 32 bits, never 0."""
    tag = (call["fingerprint"] ^ (call["fingerprint"] >> 32)) & 0xFFFFFFFF
    if call["failed"] != 0:
        tag ^= _FAILED
    return tag if tag != 0 else np.int64(1)


@inlined
def _result(call: Record) -> Int:
    """What the call came back with, 16 bits; 0: not carried, or that it failed."""
    if call["result"] == 0 or call["failed"] != 0:
        return np.int64(0)
    result = call["result"] & 0xFFFF
    return result if result != 0 else np.int64(1)


@inlined
def _mark(tag: Int, result: Int) -> Int:
    """A call together with its result, 32 bits, never 0: what a cycle repeats."""
    mark = tag ^ (result << 16) ^ result
    return mark if mark != 0 else np.int64(1)


@inlined
def _bring_up(state: Record, plan: Record, call: Record) -> Int:
    """Move the ring up to a call, if that is newer. Returns the number of the call's sub-window."""
    if state["subwindow_ns"] != plan["subwindow_ns"]:
        # Cut for another window, before the configuration changed: it says nothing here.
        subwindow = call["time_ns"] // plan["subwindow_ns"]
        state["subwindow_ns"], state["head"] = plan["subwindow_ns"], subwindow - SUBWINDOWS
    subwindow = number_of(call["time_ns"], plan["subwindow_ns"], state["head"])
    if subwindow > state["head"]:
        _advance(state, subwindow)
    return subwindow


@kernel
def _advance(state: Record, subwindow: Int) -> None:
    """Open a newer sub-window, dropping what leaves the window."""
    passed = subwindow - state["head"]
    state["head"] = subwindow
    place = subwindow % SUBWINDOWS
    for _ in range(min(passed, np.int64(SUBWINDOWS))):
        state["calls"][place] = 0
        for slot in range(SLOTS):
            state["total"][slot] -= state["counts"][slot, place]
            state["counts"][slot, place] = 0
        place = place - 1 if place > 0 else np.int64(SUBWINDOWS - 1)


@inlined
def _slot_of(state: Record, tag: Int) -> Int:
    """The slot of a call, -1: it has none."""
    found = np.int64(-1)
    for slot in range(SLOTS):
        found = max(found, np.int64(slot if state["tag"][slot] == tag else -1))
    return found


@inlined
def _give_slot(state: Record, tag: Int) -> Int:
    """A newcomer takes the slot with the smallest count, the one taken longest ago among equals."""
    hand = np.int64(state["hand"])
    least = np.int64((COUNT_MAX + 1) * SLOTS)
    for slot in range(SLOTS):
        least = min(least, np.int64(state["total"][slot]) * SLOTS + (slot - hand - 1) % SLOTS)
    chosen = (hand + 1 + least) % SLOTS
    _empty(state, chosen)
    state["tag"][chosen], state["result"][chosen], state["hand"] = tag, 0, chosen
    return chosen


@inlined
def _empty(state: Record, slot: Int) -> None:
    """Start a slot again at none."""
    state["total"][slot] = 0
    for place in range(SUBWINDOWS):
        state["counts"][slot, place] = 0


@inlined
def _is_other(state: Record, slot: Int, result: Int) -> bool:
    """Whether a call came back with another result than last time, both known."""
    return result != 0 and state["result"][slot] != 0 and state["result"][slot] != result


@inlined
def _rounds(state: Record, mark: Int, fresh: bool) -> tuple[Int, Int]:
    """Returns (how often the present cycle came round to this call, its period); (0, 0): none."""
    best, period = np.int64(0), np.int64(0)
    inside = np.int64(fresh)
    for place in range(SUBWINDOWS):
        inside += state["calls"][place]
    for p in range(2, PERIOD_MAX + 1):
        run = np.int64(state["runs"][p - 2])
        if fresh:
            run = run + 1 if state["recent"][p - 1] == mark else np.int64(0)
        elif state["recent"][0] != mark:
            run = np.int64(0)
        rounds = (min(run + p, inside) + p - 1) // p if run > 0 else np.int64(0)
        if rounds > best:
            best, period = rounds, np.int64(p)
    return best, period


@inlined
def _note_order(state: Record, mark: Int) -> None:
    """Append a call to the order of calls."""
    for p in range(2, PERIOD_MAX + 1):
        if state["recent"][p - 1] != mark:
            state["runs"][p - 2] = 0
        elif state["runs"][p - 2] < COUNT_MAX:
            state["runs"][p - 2] += 1
    for i in range(PERIOD_MAX - 1, 0, -1):
        state["recent"][i] = state["recent"][i - 1]
    state["recent"][0] = mark


@inlined
def _count(state: Record, call: Record, sign: Record) -> None:
    """Tell how often the call was made, alone or in a cycle, and how to word it."""
    fresh = call["fresh"] != 0
    tag, result = _tag(call), _result(call)
    slot = _slot_of(state, tag)
    same = np.int64(fresh)
    if slot >= 0 and not _is_other(state, slot, result):
        same += state["total"][slot]
    rounds, period = _rounds(state, _mark(tag, result), fresh)
    sign["observed"] = same
    if rounds > 1 and rounds >= same:
        sign["observed"], sign["usual"], sign["variant"] = rounds, period, CYCLE
    elif result != 0:
        sign["variant"] = SAME_RESULT
    elif call["failed"] != 0:
        sign["variant"] = FAILING


@inlined
def _why_not(plan: Record, call: Record) -> Int:
    """Reason why this call cannot repeat, or JUDGED."""
    if plan["enabled"] == 0:
        return np.int64(OFF)
    if call["has_arguments"] == 0 or call["fingerprint"] == 0:
        return np.int64(NO_ARGUMENTS)
    return np.int64(EXEMPT) if call["exempt"] & POLLING != 0 else np.int64(JUDGED)


@kernel
def score(state: Record, plan: Record, call: Record, sign: Record) -> None:
    """Judge one call of a session."""
    silence(sign, _why_not(plan, call))
    subwindow = _bring_up(state, plan, call)
    if sign["skipped"] != JUDGED:
        return
    sign["window_s"] = plan["window_s"]
    if subwindow <= state["head"] - SUBWINDOWS:
        sign["skipped"] = LATE
        return
    _count(state, call, sign)
    observed, threshold, repeat = sign["observed"], plan["threshold"], plan["repeat"]
    told = call["result"] != 0 or call["failed"] != 0
    first = min(repeat, threshold) if told else threshold
    measure(sign, observed, first)
    if observed >= threshold:
        sign["limit"], sign["action"] = threshold, plan["action"]
        sign["score"] = 1.0 - threshold / (2.0 * observed)
    elif observed >= first:
        sign["action"] = WARN
        sign["score"] = 0.25 + 0.25 * (observed - repeat) / (threshold - repeat)


@kernel
def learn(state: Record, plan: Record, call: Record, alarmed: bool) -> None:  # noqa: ARG001 -- Counts go on: a loop does not end by being seen.
    """Count a call, also one that another session was thought to have made."""
    if _why_not(plan, call) != JUDGED:
        return
    subwindow = _bring_up(state, plan, call)
    if subwindow <= state["head"] - SUBWINDOWS:
        return
    tag, result = _tag(call), _result(call)
    slot = _slot_of(state, tag)
    if slot < 0:
        slot = _give_slot(state, tag)
    elif _is_other(state, slot, result):
        _empty(state, slot)
    if result != 0:
        state["result"][slot] = result
    place = subwindow % SUBWINDOWS
    if state["total"][slot] < COUNT_MAX:
        state["counts"][slot, place] += 1
        state["total"][slot] += 1
    if state["calls"][place] < COUNT_MAX:
        state["calls"][place] += 1
    _note_order(state, _mark(tag, result))


@inlined
def _forget_order(state: Record) -> None:
    """No call came before the next one."""
    for i in range(PERIOD_MAX):
        state["recent"][i] = 0
    for i in range(PERIOD_MAX - 1):
        state["runs"][i] = 0


@kernel
def unlearn(state: Record, plan: Record, call: Record) -> None:
    """Take back a call that was counted here and is another session's."""
    subwindow = call["time_ns"] // plan["subwindow_ns"]
    outside = subwindow > state["head"] or subwindow <= state["head"] - SUBWINDOWS
    if outside or _why_not(plan, call) != JUDGED:
        return
    place, slot = subwindow % SUBWINDOWS, _slot_of(state, _tag(call))
    if slot >= 0 and state["counts"][slot, place] > 0:
        state["counts"][slot, place] -= 1
        state["total"][slot] -= 1
    if state["calls"][place] > 0:
        state["calls"][place] -= 1
    _forget_order(state)
