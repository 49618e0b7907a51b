"""`rate_shift`: an agent's open bucket far above its own closed ones, at two resolutions.

Sees: an agent that suddenly calls much more than it ever did, whatever its usual pace is.
Blind to: a rise so slow that the past rises with it (a ramp of less than `ratio` at a time); an
agent still cold, up to the ceiling; a burst cut in two by the edge of a bucket, which may show
half its height; the distribution of tools (novelty's business).

    seconds   | 4 | 5 | 3 | .. | 4 | 41 |     60 buckets of 1 s
                                     ^ open: never part of its own baseline
    minutes   | 190 | 210 | .. | 201 | 88 |   60 buckets of 60 s
    peaks     |   6 |   7 | .. |   6 |  6 |   busiest second of each of these minutes

    limit = max(floor, median + k * scale, ratio * level)

over the closed buckets x of a resolution (idle ones count as 0), where

    scale = max(1.4826 * MAD(x), sqrt(max(median, 1)))   robust, never under that of a Poisson count
    level = the third largest of x, for seconds: of x and peaks together
    floor = min_calls_second or min_calls_minute

A minute needs as many calls as one session may make (`rate.block`): the nightly batch of a quiet
agent is unusual and no attack, so below that `burst` and `rate` warn of it and nothing is stopped.
What is left is whoever spreads more than that over sessions, and any second above its limit.

so an agent that was quiet for a minute is still held against the bursts of its last hour, and one
single burst in the past does not hide the next. A minute is also over the limit at `ceiling`,
even for an agent that has no past. A bucket in which a verdict reached `pause` is left out of every
baseline: nobody teaches the detector by attacking it. A resolution judges when it has `min_buckets`
such closed buckets and the agent `min_samples` earlier calls without an alarm; before that it is
cold and silent. When alarms leave fewer than `min_buckets`, the last limit stands until calm
returns: an attack that lasts does not become normal.

A limit is worked out once a bucket. Where overrides give the tools of one agent different rules, it
is worked out anew for a call whose rules are others, so no tool is held to another's limit.

The score is 1 - limit / (2 * observed): 0.5 at the limit, towards 1 above.

What differs from the detector this replaces (Agent Assembly `BehaviorSpike`, mean + k * standard
deviation of twelve buckets over the observed span): the open bucket is not in its own baseline, so
no multiplier is out of reach; buckets are of fixed width, so the age of the first call does not
matter; median and MAD take the place of mean and standard deviation, so one burst does not mask
the next; 120 calls 100 ms apart have a median of 10 a second (its mean: 10) and a scale of
sqrt(10); ten calls in 10 ms and one 12 s later have a median of 0 and a scale of 1 (its: mean and
deviation above 0), and are under the floor.

Counters are 16 bits and stay at 65535. Sources: Hampel, F. R. (1974), The influence curve and its
role in robust estimation, JASA 69 (median and MAD; 1.4826 makes it the standard deviation of a
normal sample); Montgomery, Introduction to Statistical Quality Control (c chart: sqrt of a count).

>>> past = np.array([10] * 20, np.int64)
>>> limit, median = baseline(past, past.size, np.empty(0, np.int64), 3.0, 2.0, 5)
>>> float(limit), float(median)
(20.0, 10.0)
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from otel_anomaly.config import RateShiftConfig
from otel_anomaly.detectors.finding import ALLOW, BLOCK, COLD, JUDGED, LATE, PAUSE, SECOND_NS, WARN
from otel_anomaly.kernels import Array, Int, Record, inlined, kernel

BUCKETS: Final = 60
COUNT_MAX: Final = 65535
LEVEL_RANK: Final = 3
"""The level is the third largest: one burst in the past does not lift the limit. (Of seconds, one
of the last minute counts twice: as a bucket and as that minute's peak.)"""
OF_SECONDS, OF_MINUTES = np.arange(2)
MINUTE_NS: Final = 60 * SECOND_NS
_ACTION = {"warn": WARN, "pause": PAUSE, "block": BLOCK}

PLAN = np.dtype(
    [
        ("enabled", "i8"),
        ("rules", "i8"),  # The same in all plans whose limits are worked out alike.
        ("k", "f8"),
        ("ratio", "f8"),
        ("floor", "i8", (2,)),  # Of a second, of a minute.
        ("min_buckets", "i8"),
        ("min_samples", "i8"),
        ("ceiling", "i8"),
        ("action", "i8"),
    ]
)
# Seconds come first, minutes second. What every call reads stands together, in front.
STATE = np.dtype(
    [
        ("first_ns", "i8"),  # Of the first call; 0: none yet.
        ("samples", "i8"),  # Calls counted that raised no alarm, ever.
        ("earlier", "i8", (2,)),  # The same when the open bucket began.
        ("head", "i8", (2,)),  # Number of the open bucket since 1970.
        ("flagged", "i8", (2,)),  # Bit a place: a verdict in that bucket reached pause.
        # For the open bucket; infinite: cold. Not above 0: not worked out yet, less the last one.
        ("limit", "f4", (2,)),
        ("usual", "f4", (2,)),
        ("counts", "u2", (2, BUCKETS)),
        ("peaks", "u2", (BUCKETS,)),  # Place of a minute -> its busiest second.
        ("rules", "u1", (2,)),  # By which the limit was worked out.
    ],
    align=True,
)
CLAUSES: Final = (
    "{observed} calls in {window} s, limit {limit}, usual {usual}",
    "{observed} calls in {window} s, ceiling {limit} whatever is usual",
)
BY_PAST, BY_CEILING = np.arange(2)


def rules_of(config: RateShiftConfig) -> tuple[float, ...]:
    """What a limit is worked out by: the rest of the section can differ from call to call."""
    floors = config.min_calls_second, config.min_calls_minute
    return (config.k, config.ratio, *floors, config.min_buckets, config.min_samples)


def make_plan(config: RateShiftConfig, rules: int = 0) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]. `rules`: a number for `rules_of` it."""
    plan = np.zeros(1, PLAN)
    plan["rules"] = rules
    plan["enabled"], plan["k"], plan["ratio"] = config.enabled, config.k, config.ratio
    plan["floor"] = config.min_calls_second, config.min_calls_minute
    plan["min_buckets"], plan["min_samples"] = config.min_buckets, config.min_samples
    plan["ceiling"], plan["action"] = config.ceiling, _ACTION[config.action]
    return plan


def make_state(capacity: int) -> np.ndarray:
    """Empty rings, STATE [capacity + 1]; a row of zeros is an agent never seen."""
    return np.zeros(capacity + 1, STATE)


@kernel
def _median(values: Array, count: Int) -> float:
    """Median of the first `count` values, which are sorted. 0 for none."""
    if count == 0:
        return 0.0
    return (values[(count - 1) // 2] + values[count // 2]) / 2.0


@kernel
def _sort(values: Array, count: Int) -> None:
    """Insertion sort of the first `count` values: at most 119 of them, mostly in runs."""
    for i in range(1, count):
        value = values[i]
        place = i
        while place > 0 and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@kernel
def baseline(
    past: Array, count: Int, peaks: Array, k: float, ratio: float, floor: Int
) -> tuple[float, float]:
    """Returns (limit, median) for the first `count` closed buckets in `past`, int64.

    `peaks` (int64 [m]) only add to the level. `past` is sorted in place.
    """
    _sort(past, count)
    median = _median(past, count)
    distances = np.empty(count, np.float64)
    for i in range(count):
        distances[i] = abs(past[i] - median)
    _sort(distances, count)
    scale = max(1.4826 * _median(distances, count), np.sqrt(max(median, 1.0)))
    top = np.zeros(LEVEL_RANK, np.int64)
    for i in range(count + peaks.size):
        value = past[i] if i < count else peaks[i - count]
        for rank in range(LEVEL_RANK):
            if value > top[rank]:
                top[rank], value = value, top[rank]
    return max(float(floor), median + k * scale, ratio * top[LEVEL_RANK - 1]), median


@kernel
def _work_out(state: Record, which: Int, plan: Record) -> None:
    """Settle limit and usual of a ring for its open bucket, from its closed ones."""
    span = SECOND_NS if which == 0 else MINUTE_NS
    closed = min(state["head"][which] - state["first_ns"] // span, np.int64(BUCKETS - 1))
    past = np.empty(BUCKETS, np.int64)
    count = 0
    for back in range(1, closed + 1):
        place = (state["head"][which] - back) % BUCKETS
        if state["flagged"][which] >> place & 1 == 0:
            past[count] = state["counts"][which, place]
            count += 1
    peaks = np.zeros(BUCKETS if which == 0 else 0, np.int64)
    for i in range(peaks.size):
        peaks[i] = state["peaks"][i]
    # Calls of the open bucket are not yet past; some may be taken back that were.
    samples = min(state["earlier"][which], state["samples"])
    state["rules"][which] = plan["rules"]
    if count < plan["min_buckets"] or samples < plan["min_samples"]:
        if state["flagged"][which] != 0 and state["limit"][which] != 0.0:
            # Alarms left too few, not youth: the last limit stands, by whatever rules, or they
            # would wear it out.
            state["limit"][which] = abs(state["limit"][which])
            return
        state["limit"][which], state["usual"][which] = np.inf, 0.0
        return
    state["limit"][which], state["usual"][which] = baseline(
        past, count, peaks, plan["k"], plan["ratio"], plan["floor"][which]
    )


def held_against(state: Record, plan: Record, which: int, call: Record) -> dict[str, Any]:
    """What the open bucket of a ring is held against, for people. Writes to `state`: give a copy.

    `limit` and `usual` are None while the ring has no limit of its own.
    """
    span = (SECOND_NS, MINUTE_NS)[which]
    head, first = int(state["head"][which]), int(state["first_ns"]) // span
    if state["limit"][which] <= 0.0 or state["rules"][which] != plan["rules"]:
        _work_out(state, np.int64(which), plan)
    limit, bucket = float(state["limit"][which]), int(call["time_ns"]) // span
    held = head - BUCKETS < bucket <= head
    known = range(max(first, head - BUCKETS + 1), head)
    alarmed = sum(int(state["flagged"][which]) >> n % BUCKETS & 1 for n in known)
    ceiling = float(plan["ceiling"]) if which == 1 and plan["ceiling"] > 0 else np.inf
    return {
        "window_s": span / SECOND_NS,
        "calls": int(state["counts"][which, bucket % BUCKETS]) * held + int(call["fresh"] != 0),
        "limit": min(limit, ceiling) if min(limit, ceiling) < np.inf else None,
        "usual": float(state["usual"][which]) if limit < np.inf else None,
        "buckets": len(known) - alarmed,
        "samples": int(min(state["earlier"][which], state["samples"])),
    }


@inlined
def _note_peak(state: Record) -> None:
    """A second closes: it may be the busiest of its minute."""
    place = state["head"][0] % BUCKETS
    minute = state["head"][0] // 60
    if state["flagged"][0] >> place & 1 == 0 and minute > state["head"][1] - BUCKETS:
        count = state["counts"][0, place]
        state["peaks"][minute % BUCKETS] = max(state["peaks"][minute % BUCKETS], count)


@kernel
def _advance(state: Record, which: Int, bucket: Int) -> None:
    """Open a newer bucket of a ring; what was skipped was idle, and counts as 0."""
    passed = bucket - state["head"][which]
    state["head"][which], state["earlier"][which] = bucket, state["samples"]
    if state["limit"][which] > 0.0:
        state["limit"][which] = -state["limit"][which]
    if passed >= BUCKETS:
        state["flagged"][which] = 0
        for slot in range(BUCKETS):
            state["counts"][which, slot] = 0
            if which == 1:
                state["peaks"][slot] = 0
        return
    place = bucket % BUCKETS
    for _ in range(passed):
        state["counts"][which, place] = 0
        state["flagged"][which] &= ~(np.int64(1) << place)
        if which == 1:
            state["peaks"][place] = 0
        place = place - 1 if place > 0 else np.int64(BUCKETS - 1)


@kernel
def _judge_ring(
    state: Record, which: Int, plan: Record, bucket: Int, fresh: bool, sign: Record
) -> None:
    """Hold the open bucket of one ring against its limit; the worse of two findings stays."""
    if bucket != state["head"][which]:
        return
    count = np.int64(state["counts"][which, bucket % BUCKETS]) + (1 if fresh else 0)
    if count < plan["floor"][which]:
        return
    if state["limit"][which] <= 0.0 or state["rules"][which] != plan["rules"]:
        _work_out(state, which, plan)
    limit, capped = float(state["limit"][which]), False
    if which == 1 and plan["ceiling"] > 0:
        capped = limit > plan["ceiling"]
        limit = min(limit, float(plan["ceiling"]))
    sign["ratio"] = max(sign["ratio"], count / limit)
    if count < limit:
        return
    score = 1.0 - limit / (2.0 * count)
    if score > sign["score"]:
        sign["score"], sign["action"] = score, plan["action"]
        sign["observed"], sign["limit"], sign["usual"] = count, limit, state["usual"][which]
        sign["window_s"] = 1.0 if which == 0 else 60.0
        sign["variant"] = BY_CEILING if capped else BY_PAST


@inlined
def score(state: Record, plan: Record, now_ns: Int, fresh: bool, sign: Record) -> None:
    """Judge one call that ended at `now_ns`; `fresh`: it is not counted yet (no duplicate)."""
    sign["score"], sign["action"], sign["observed"], sign["limit"] = 0.0, ALLOW, 0.0, 0.0
    sign["usual"], sign["window_s"], sign["ratio"], sign["variant"] = 0.0, 0.0, 0.0, 0
    second, minute = now_ns // SECOND_NS, now_ns // MINUTE_NS
    if state["first_ns"] == 0:
        state["first_ns"] = now_ns
    if minute > state["head"][1]:
        _advance(state, OF_MINUTES, minute)
    if second > state["head"][0]:
        _note_peak(state)
        _advance(state, OF_SECONDS, second)
    if minute <= state["head"][1] - BUCKETS:
        sign["skipped"] = LATE
        return
    sign["skipped"] = COLD if is_cold(state, plan, now_ns) else JUDGED
    _judge_ring(state, OF_SECONDS, plan, second, fresh, sign)
    _judge_ring(state, OF_MINUTES, plan, minute, fresh, sign)


@inlined
def is_cold(state: Record, plan: Record, now_ns: Int) -> bool:
    """Whether the agent is still learning: too few calls, or known for too short a time."""
    age = now_ns // SECOND_NS - state["first_ns"] // SECOND_NS
    return state["samples"] < plan["min_samples"] or age < plan["min_buckets"]


@inlined
def learn(state: Record, now_ns: Int, alarmed: Int) -> None:
    """Count a call that `score` has just judged and that is not late.

    `alarmed`: its verdict reached pause, so its buckets are kept out of the baselines.
    """
    for which in range(2):
        bucket = now_ns // (SECOND_NS if which == 0 else MINUTE_NS)
        if bucket <= state["head"][which] - BUCKETS:
            continue
        place = bucket % BUCKETS
        if state["counts"][which, place] < COUNT_MAX:
            state["counts"][which, place] += 1
        if alarmed:
            state["flagged"][which] |= np.int64(1) << place
    if not alarmed:
        state["samples"] += 1


@inlined
def unlearn(state: Record, now_ns: Int, alarmed: Int) -> None:
    """Undo `learn`, as far as the rings still reach: the call turned out to be another agent's."""
    for which in range(2):
        bucket = now_ns // (SECOND_NS if which == 0 else MINUTE_NS)
        place = bucket % BUCKETS
        held = state["head"][which] - BUCKETS < bucket <= state["head"][which]
        if held and state["counts"][which, place] > 0:
            state["counts"][which, place] -= 1
    if not alarmed and state["samples"] > 0:
        state["samples"] -= 1
