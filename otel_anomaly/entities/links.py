"""Spans lately seen: which are counted, which belong to one call, and who is above whom.

    span id -> its parent, its end, the call it belongs to, the calls that wait for it

One call is often several spans, one inside the other: the framework's, the MCP client's, the
transport's, the server's. They are one event, and the outermost speaks for it. Children end and
arrive first, so a call whose ancestors are not known yet leaves a note at the first of them that
is missing: when that span comes, the calls that wait for it find out whether they are part of it,
and wait at the next one if it is neither a call nor an agent.

    execute_tool X            <- counts; what is below folds into it
      '- HTTP POST            <- any other span: looked through
           '- tools/call X    <- the same call
    execute_tool ask_expert
      '- invoke_agent expert  <- a boundary: what is below is another call
           '- execute_tool search

Two generations of open addressing: when one is full, the older is emptied and takes over. Between
`capacity` and twice as many spans are known, at two look-ups and no deletions.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import Int, Record, borrow, copy_record, inlined, kernel, prefetch

KNOWN, IS_TOOL, STOPS, PART_FAILED, COUNTED, FOLDED, SPOKEN = 1, 2, 4, 8, 16, 32, 64
"""Flags of a link. KNOWN: the span itself was seen, not only told of by a child. STOPS: an agent
or a model. COUNTED: it was judged as a call of its own. FOLDED: it is part of another. SPOKEN: it
is an outer span of a call judged before, and has spoken for it."""

LINK = np.dtype(
    [
        ("parent", "i8"),  # Identity of the span above, 0: none.
        ("start_ns", "i8"),
        ("end_ns", "i8"),  # With the identity it tells a copy from an id used again.
        ("tool", "i8"),  # Hash of the tool's name.
        ("call_id", "i8"),  # Hash of the call's id; 0 of MCP, which numbers its requests itself.
        ("agent", "i8"),  # Hash of the agent's name that stands on a span that STOPS.
        ("event", "i8"),  # Serial number of the call it belongs to, 0: none.
        ("waiting", "i8"),  # Serial number of the first call that waits for it, 0: none.
        ("waiters", "i4"),
        ("folded", "i4"),  # Spans that it speaks for.
        ("flags", "i8"),
        ("request", "i8"),  # Number of the request that brought it, and its row in that.
        ("row", "i8"),
    ],
    align=True,
)
HEAD = np.dtype([("mask", "i8"), ("capacity", "i8"), ("used", "i8"), ("current", "i8")])

STEPS_MAX: Final = 32
"""Ancestors looked through: hostile parents may form a circle."""
WAITERS_MAX: Final = 64
"""Calls that may wait for one span; more are calls of their own."""
FOLDED_MAX: Final = 7
"""Spans that one call may stand for: four kinds are known, and some send again. An agent that puts
a thousand calls under one gets them counted."""


class Links(NamedTuple):
    """The arrays of the memory of spans."""

    head: np.ndarray
    """HEAD [1]."""
    keys: np.ndarray
    """int64 [2 * 2^n]: identities, 0 is free; the first half is one generation."""
    spans: np.ndarray
    """LINK [2 * 2^n]."""
    blank: np.ndarray
    """LINK [1], zeros."""


def make_links(capacity: int) -> Links:
    """An empty memory of at least the last `capacity` spans."""
    size = 1 << (2 * capacity).bit_length()
    head = np.zeros(1, HEAD)
    head["mask"], head["capacity"] = size - 1, capacity
    return Links(head, np.zeros(2 * size, np.int64), np.zeros(2 * size, LINK), np.zeros(1, LINK))


@inlined
def borrow_links(links: Links) -> Links:
    """`borrow` for all arrays."""
    return Links(borrow(links.head), borrow(links.keys), borrow(links.spans), borrow(links.blank))


@inlined
def prefetch_link(links: Links, key: Int) -> None:
    """Ask for the places where a span may lie."""
    size = links.head[0]["mask"] + 1
    place = key & links.head[0]["mask"]
    prefetch(links.keys, place)
    prefetch(links.keys, size + place)
    prefetch(links.spans, links.head[0]["current"] * size + place)


@inlined
def find_link(links: Links, key: Int) -> Int:
    """Where the link of a span lies, or -1."""
    mask, current = links.head[0]["mask"], links.head[0]["current"]
    for generation in range(2):
        base = (current ^ generation) * (mask + 1)
        place = key & mask
        while links.keys[base + place] != 0:
            if links.keys[base + place] == key:
                return base + place
            place = (place + 1) & mask
    return np.int64(-1)


@inlined
def find_or_make_link(links: Links, key: Int) -> Int:
    """Where the link of a span lies; a new one is blank.

    May turn the generations over: places found before are no longer true.
    """
    found = find_link(links, key)
    if found >= 0:
        return found
    head = links.head[0]
    if head["used"] >= head["capacity"]:
        _turn_over(head, links)
    base = head["current"] * (head["mask"] + 1)
    place = key & head["mask"]
    while links.keys[base + place] != 0:
        place = (place + 1) & head["mask"]
    links.keys[base + place] = key
    copy_record(links.spans[base + place], links.blank[0])
    head["used"] += 1
    return base + place


@kernel
def _turn_over(head: Record, links: Links) -> None:
    """Empty the older generation; it becomes the current one."""
    size = head["mask"] + 1
    head["current"] = 1 - head["current"]
    head["used"] = 0
    base = head["current"] * size
    for place in range(base, base + size):
        links.keys[place] = 0


@inlined
def same_call(tool: Int, call_id: Int, outer: Record) -> bool:
    """Whether a call inside another is the same one: no name and no id says otherwise."""
    if tool != outer["tool"] and tool != 0 and outer["tool"] != 0:
        return False
    return bool(call_id == outer["call_id"] or call_id == 0 or outer["call_id"] == 0)


@inlined
def outermost(links: Links, parent: Int, tool: Int, call_id: Int) -> tuple[Int, Int]:
    """Who speaks for a call with this `parent`: (place of the outermost span of the call or -1,
    identity of the first ancestor that is not known yet or 0).

    Ancestors are looked through until one is another call, an agent or a model. Parents that form
    a circle lead to no end: then every span speaks for itself.
    """
    best = np.int64(-1)
    for _ in range(STEPS_MAX):
        if parent == 0:
            return best, np.int64(0)
        place = find_link(links, parent)
        if place < 0 or links.spans[place]["flags"] & KNOWN == 0:
            return best, parent
        link = links.spans[place]
        if link["flags"] & STOPS != 0:
            return best, np.int64(0)
        if link["flags"] & IS_TOOL != 0:
            if not same_call(tool, call_id, link):
                return best, np.int64(0)
            best = place
            tool = np.int64(link["tool"]) if tool == 0 else tool
            call_id = np.int64(link["call_id"]) if call_id == 0 else call_id
        parent = np.int64(link["parent"])
    return np.int64(-1), np.int64(0)


@inlined
def steps_to(links: Links, parent: Int, place: Int) -> Int:
    """How many spans up from a child of `parent` the span at `place` is, which is above it."""
    for step in range(1, STEPS_MAX):
        above = find_link(links, parent)
        if above == place or above < 0:
            return np.int64(step)
        parent = np.int64(links.spans[above]["parent"])
    return np.int64(STEPS_MAX)


@inlined
def first_unknown(links: Links, parent: Int) -> Int:
    """Identity of the first ancestor that is not known yet, 0: there is none below the nearest
    agent that has a name."""
    for _ in range(STEPS_MAX):
        if parent == 0:
            return np.int64(0)
        place = find_link(links, parent)
        if place < 0 or links.spans[place]["flags"] & KNOWN == 0:
            return parent
        if links.spans[place]["agent"] != 0:
            return np.int64(0)
        parent = np.int64(links.spans[place]["parent"])
    return np.int64(0)


@inlined
def agent_above(links: Links, parent: Int) -> Int:
    """Hash of the name of the nearest agent above, 0: none in reach."""
    for _ in range(STEPS_MAX):
        if parent == 0:
            return np.int64(0)
        place = find_link(links, parent)
        if place < 0:
            return np.int64(0)
        if links.spans[place]["agent"] != 0:
            return np.int64(links.spans[place]["agent"])
        parent = np.int64(links.spans[place]["parent"])
    return np.int64(0)
