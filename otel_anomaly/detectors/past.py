"""What an agent did before: names it used, each with when and how often; bounded, in the row.

    entry  | h.7 | h.2 |  0  | h.1 | ..    64 bits: 32 of the hash of a name, the day it was used
                                           last, how often. 0: free. Count 0: forgotten, its place
                                           is free, but those who had to go past it go on past it

One region for each kind of name (tools, argument shapes, destinations, programs), open addressing
within it. A region that is full of names in use remembers no new one: a flood of new names cannot
push out old ones. Whoever asks then learns that it is full, and stays silent instead of calling
everything new that there was no room for. Filling a region takes that many names that were told as
new, each a finding of its own.

Learning is by samples and time: an agent is cold until it has `samples` learned calls and is
`age_ns` old. Peers: every agent also teaches the row of its service. While an agent is cold its
service speaks for it, so the hundredth replica is judged from its first call. Only calls whose
verdict is below `pause` are learned: who is refused does not become usual by asking again.

Ageing: with the first call of a new day (UTC) every name that was not used for `forget_days` is
forgotten: it is new again. Days never go back, so a late call forgets and revives nothing. And
counts are halved, rounded up, when those of the tools add up to TOTAL_MAX: what was long ago weighs
less.

Blind to: an agent that stops its own clock never gets old, and stays cold (its service speaks for
it); two names whose 32 bits agree (once in 2^26 for a full region, with a secret seed).

>>> past, learning, call = (np.zeros(1, dtype)[0] for dtype in (PAST, LEARNING, CALL))
>>> learning["samples"], learning["forget_days"] = 2, 28
>>> call["time_ns"], call["tool"] = 100 * DAY_NS, 4711
>>> learn(past, learning, call)
>>> is_cold(past, learning, call["time_ns"])
True
>>> learn(past, learning, call)
>>> is_cold(past, learning, call["time_ns"])
False
>>> int(uses(past, find(past, TOOLS, call["tool"], 128 * DAY_NS, 28)))
2
>>> int(find(past, TOOLS, call["tool"], 129 * DAY_NS, 28)) == NOT_KNOWN
True
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.detectors.call import CALL
from otel_anomaly.detectors.finding import DAY_NS
from otel_anomaly.kernels import Int, Record, inlined, kernel
from otel_anomaly.otlp.hashing import hash_two

__all__ = ["CALL"]

TOOLS, SHAPES, DESTINATIONS, PROGRAMS = np.arange(4)
"""Kinds of names."""
SIZES: Final = (64, 64, 96, 32)
_FIRST: Final = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int64)
ENTRIES: Final = int(_FIRST[-1])
TOTAL_MAX: Final = 16384
COUNT_MAX: Final = 65535
DAY_MAX: Final = 65535  # In the year 2149.

# A bit of `shaped` for every tool.
assert SIZES[0] <= 64
# The share of a tool is exact: its count never stays at its end.
assert TOTAL_MAX < COUNT_MAX

PAST = np.dtype(
    [
        ("born_ns", "i8"),  # First learned call; 0: none yet.
        ("calls", "i8"),  # Calls learned, ever.
        ("total", "i8"),  # Sum of the counts of the tools.
        ("shaped", "i8"),  # Bit a tool's place: its argument names were seen.
        ("day", "i4"),  # The newest seen.
        ("tools", "i4"),  # How many tools are in use.
        ("entry", "i8", (ENTRIES,)),
    ],
    align=True,
)
LEARNING = np.dtype([("samples", "i8"), ("age_ns", "i8"), ("forget_days", "i8")])
"""When an agent is warm, and when a name is forgotten."""

NOT_KNOWN, NO_ROOM = -1, -2


@inlined
def is_cold(past: Record, learning: Record, now_ns: Int) -> bool:
    """Whether too little is known to judge by: too few learned calls, or too young."""
    if past["born_ns"] == 0 or past["calls"] < learning["samples"]:
        return True
    return bool(now_ns - past["born_ns"] < learning["age_ns"])


@inlined
def shape_of(call: Record) -> Int:
    """The name of a set of argument names: that of another tool is another one."""
    return np.int64(hash_two(call["tool"], call["names"], np.int64(0)))


@inlined
def _tag(name: Int) -> Int:
    """32 bits of a hash, signed and never 0."""
    tag = (name ^ (name << 32)) >> 32
    return tag if tag != 0 else np.int64(1)


@inlined
def uses(past: Record, entry: Int) -> Int:
    """How often the name was used that `find` found at `entry`; halved now and then."""
    return past["entry"][entry] & COUNT_MAX


@inlined
def is_shaped(past: Record, tool: Int) -> bool:
    """Whether any set of argument names is known of the tool that `find` found at `tool`."""
    return bool(past["shaped"] >> tool & 1)


@inlined
def _put(past: Record, at: Int, tag: Int, count: Int) -> None:
    """Write an entry, used today, and keep the sums over the tools true."""
    old = past["entry"][at] & COUNT_MAX
    past["entry"][at] = tag << 32 | np.int64(past["day"]) << 16 | count
    if at < _FIRST[1]:
        past["total"] += count - old
        past["tools"] += np.int64(count > 0) - np.int64(old > 0)
        if count == 0:
            past["shaped"] &= ~(np.int64(1) << at)


@kernel
def _forget(past: Record, today: Int, forget_days: Int) -> None:
    """Open a new day: what was not used for long is new again."""
    past["day"] = today
    for at in range(ENTRIES):
        entry = past["entry"][at]
        if entry & COUNT_MAX > 0 and today - (entry >> 16 & DAY_MAX) > forget_days:
            _put(past, at, entry >> 32, np.int64(0))


@inlined
def _bring_up(past: Record, now_ns: Int, forget_days: Int) -> None:
    """Open the day of a call, if it is a new one."""
    today = min(now_ns // DAY_NS, np.int64(DAY_MAX))
    if today > past["day"]:
        _forget(past, today, forget_days)


@inlined
def home_of(kind: Int, name: Int) -> Int:
    """The entry where the search for a name begins."""
    first, size = _FIRST[kind], _FIRST[kind + 1] - _FIRST[kind]
    return first + ((_tag(name) & 0xFFFFFFFF) * size >> 32)


@kernel
def find(past: Record, kind: Int, name: Int, now_ns: Int, forget_days: Int) -> Int:
    """The entry of a name, else NOT_KNOWN, else NO_ROOM when its region is full."""
    _bring_up(past, now_ns, forget_days)
    first, size = _FIRST[kind], _FIRST[kind + 1] - _FIRST[kind]
    tag = _tag(name)
    place = (tag & 0xFFFFFFFF) * size >> 32
    room = False
    for _ in range(size):
        entry = past["entry"][first + place]
        if entry == 0:
            return np.int64(NOT_KNOWN)
        in_use = entry & COUNT_MAX > 0
        if entry >> 32 == tag:
            return first + place if in_use else np.int64(NOT_KNOWN)
        room = room or not in_use
        place = place + 1 if place + 1 < size else np.int64(0)
    return np.int64(NOT_KNOWN) if room else np.int64(NO_ROOM)


@kernel
def _note(past: Record, kind: Int, name: Int) -> Int:
    """Remember that a name was used today. Returns its entry, or NO_ROOM.

    The place of a forgotten name may be taken, but only when the name itself stands nowhere else.
    """
    first, size = _FIRST[kind], _FIRST[kind + 1] - _FIRST[kind]
    tag = _tag(name)
    place = (tag & 0xFFFFFFFF) * size >> 32
    free = np.int64(NO_ROOM)
    for _ in range(size):
        at = first + place
        entry = past["entry"][at]
        count = entry & COUNT_MAX
        if entry >> 32 == tag:
            _put(past, at, tag, min(count + 1, np.int64(COUNT_MAX)))
            return at
        if count == 0 and free < 0:
            free = at
        if entry == 0:
            break
        place = place + 1 if place + 1 < size else np.int64(0)
    if free >= 0:
        _put(past, free, tag, np.int64(1))
    return free


@kernel
def _halve(past: Record) -> None:
    """Let what was long ago weigh less. A name in use stays in use."""
    past["total"] = 0
    for at in range(ENTRIES):
        entry = past["entry"][at]
        count = ((entry & COUNT_MAX) + 1) >> 1
        past["entry"][at] = entry & ~np.int64(COUNT_MAX) | count
        if at < _FIRST[1]:
            past["total"] += count


@kernel
def learn(past: Record, learning: Record, call: Record) -> None:
    """Take a call whose verdict is below `pause` into the agent's past."""
    _bring_up(past, call["time_ns"], learning["forget_days"])
    if past["born_ns"] == 0:
        past["born_ns"] = call["time_ns"]
    past["calls"] += 1
    if call["tool"] != 0:
        tool = _note(past, TOOLS, call["tool"])
        if call["has_arguments"] != 0:
            _note(past, SHAPES, shape_of(call))
            if tool >= 0:
                past["shaped"] |= np.int64(1) << tool
    for i in range(call["destinations"]):
        _note(past, DESTINATIONS, call["destination"][i])
    if call["program"] != 0:
        _note(past, PROGRAMS, call["program"])
    if past["total"] >= TOTAL_MAX:
        _halve(past)


@kernel
def _take_back(past: Record, kind: Int, name: Int, now_ns: Int, forget_days: Int) -> None:
    """Undo one `_note`. A name that nobody else used is known no more."""
    at = find(past, kind, name, now_ns, forget_days)
    if at >= 0:
        entry = past["entry"][at]
        past["entry"][at] = entry - 1
        if at < _FIRST[1]:
            past["total"] -= 1
            if entry & COUNT_MAX == 1:
                past["tools"] -= 1
                past["shaped"] &= ~(np.int64(1) << at)


@kernel
def unlearn(past: Record, learning: Record, call: Record) -> None:
    """Undo `learn`: the call turned out to be another agent's."""
    now_ns, forget_days = call["time_ns"], learning["forget_days"]
    if past["calls"] == 0:
        return
    _bring_up(past, now_ns, forget_days)
    past["calls"] -= 1
    if past["calls"] == 0:
        past["born_ns"] = 0  # All it did was done by others.
    if call["tool"] != 0:
        _take_back(past, TOOLS, call["tool"], now_ns, forget_days)
        if call["has_arguments"] != 0:
            _take_back(past, SHAPES, shape_of(call), now_ns, forget_days)
    for i in range(call["destinations"]):
        _take_back(past, DESTINATIONS, call["destination"][i], now_ns, forget_days)
    if call["program"] != 0:
        _take_back(past, PROGRAMS, call["program"], now_ns, forget_days)


@kernel
def known(past: Record, kind: Int) -> Int:
    """How many names of a kind are in use."""
    count = np.int64(0)
    for at in range(_FIRST[kind], _FIRST[kind + 1]):
        count += np.int64(past["entry"][at] & COUNT_MAX > 0)
    return count
