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

    slots   | tag and place | 0 | ..    open addressing; the tag is the upper half of a key
    spans   | link | link | ..          in the order they came: a new one costs no cache miss

Two generations of both: when one is full, the slots of the older are emptied and it takes over.
Between `capacity` and twice as many spans are known, at two look-ups and no deletions.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.entities.table import LINE, TAG, zeros
from otel_anomaly.kernels import (
    Int,
    Record,
    borrow,
    copy_record,
    inlined,
    kernel,
    load_word,
    prefetch,
)

KNOWN, IS_TOOL, STOPS, PART_FAILED, COUNTED, FOLDED, SPOKEN = 1, 2, 4, 8, 16, 32, 64
"""Flags of a link. KNOWN: the span itself was seen, not only told of by a child. STOPS: an agent
or a model. COUNTED: it was judged as a call of its own. FOLDED: it is part of another. SPOKEN: it
is an outer span of a call judged before, and has spoken for it."""

LINK = np.dtype(
    [
        ("key", "i8"),  # Identity of the span, or of a call by its id.
        ("parent", "i8"),  # Identity of the span above, 0: none.
        ("end_ns", "i8"),  # With the identity it tells a copy from an id used again.
        ("name", "i8"),  # Hash: of the tool of a call; of the agent that STOPS; 0: not told.
        ("event", "i8"),  # Serial number of the call it belongs to, 0: none.
        ("waiting", "i8"),  # Serial number of the first call that waits for it, 0: none.
        ("call_id", "i4"),  # As `short_id` has it.
        ("request", "i4"),  # Number of the request that brought it, and its row in that.
        ("row", "i4"),
        ("waiters", "i2"),
        ("folded", "i1"),  # Spans that it speaks for.
        ("flags", "i1"),
    ],
    align=True,
)
assert LINK.itemsize == LINE
HEAD = np.dtype(
    [
        ("mask", "i8"),
        ("capacity", "i8"),
        ("used", "i8"),
        ("current", "i8"),
        ("turns", "i8"),  # How often the generations were turned over,
        ("looked", "i8"),  # and how often when the request was looked at that is judged now.
    ]
)
SLOTS_TOGETHER: Final = 4
"""Slots of one generation in a cache line."""
_SOON: Final = 6
"""Links between asking for memory and using it."""
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
    slots: np.ndarray
    """int64 [2 * 2^n]: 0 is free; a cache line holds four of either generation."""
    spans: np.ndarray
    """LINK [2 * capacity], likewise."""
    blank: np.ndarray
    """LINK [1], zeros."""


def make_links(capacity: int) -> Links:
    """An empty memory of at least the last `capacity` spans."""
    size = max(4, 1 << (2 * capacity - 1).bit_length())
    head = np.zeros(1, HEAD)
    head["mask"], head["capacity"] = size - 1, capacity
    spans = zeros(2 * capacity, LINK)
    slots = zeros(2 * size, np.dtype(np.int64))
    return Links(head, slots, spans, np.zeros(1, LINK))


@inlined
def borrow_links(links: Links) -> Links:
    """`borrow` for all arrays."""
    return Links(borrow(links.head), borrow(links.slots), borrow(links.spans), borrow(links.blank))


@inlined
def _slot(at: Int, generation: Int) -> Int:
    """Where the `at`-th slot of a generation lies."""
    return (at >> 2) << 3 | generation << 2 | (at & 3)


@inlined
def _home(links: Links, key: Int) -> Int:
    """The slot of either generation where the search for a key begins: the first of its line."""
    return (key >> 32) & links.head[0]["mask"] & ~np.int64(3)


@inlined
def prefetch_link(links: Links, key: Int) -> None:
    """Ask for the slots where a span may be told of."""
    prefetch(links.slots, _slot(_home(links, key), np.int64(0)))


@inlined
def find_link(links: Links, key: Int) -> Int:
    """Where the link of a span lies, or -1."""
    current = links.head[0]["current"]
    place = _find_in(links, key, current)
    return place if place >= 0 else _find_in(links, key, current ^ 1)


@inlined
def _find_in(links: Links, key: Int, generation: Int) -> Int:
    """Where the link of a span lies in a generation, or -1.

    Four slots are looked at together: which of them it is, or how many are taken, is a matter of
    chance that no processor foretells; that it is in none of them is the usual case.
    """
    slots, home = links.slots, _home(links, key)
    while True:
        at = _slot(home, generation)
        last = load_word(slots, at + 3)
        place = np.int64(-1)
        for i in range(SLOTS_TOGETHER):
            slot = load_word(slots, at + i)
            place = (slot & ~TAG) - 1 if (slot ^ key) & TAG == 0 and slot != 0 else place
        if place >= 0:
            return _find_same(links, key, home, generation)
        if last == 0:
            return place
        home = (home + SLOTS_TOGETHER) & links.head[0]["mask"]


@inlined
def _find_same(links: Links, key: Int, at: Int, generation: Int) -> Int:
    """Where the link of a span lies, from a slot on; there is one with its tag."""
    slot = load_word(links.slots, _slot(at, generation))
    while slot != 0:
        place = (slot & ~TAG) - 1
        if (slot ^ key) & TAG == 0 and links.spans[place]["key"] == key:
            return place
        at = (at + 1) & links.head[0]["mask"]
        slot = load_word(links.slots, _slot(at, generation))
    return np.int64(-1)


@inlined
def link_at(links: Links, place: Int, key: Int) -> Int:
    """`find_link` for whoever knows where the link lay when the request was looked at, or -1."""
    if place >= 0 and links.head[0]["turns"] == links.head[0]["looked"]:
        return place
    return find_link(links, key)


@inlined
def find_or_make_link(links: Links, key: Int) -> Int:
    """Where the link of a span lies; a new one is blank.

    May turn the generations over: places found before are no longer true.
    """
    found = find_link(links, key)
    return found if found >= 0 else make_link(links, key)


@inlined
def make_link(links: Links, key: Int) -> Int:
    """A blank link for a key that has none."""
    head = links.head[0]
    if head["used"] >= head["capacity"]:
        _turn_over(head, links)
    at, current = _home(links, key), head["current"]
    while load_word(links.slots, _slot(at, current) + 3) != 0:
        at = (at + SLOTS_TOGETHER) & head["mask"]
    first = _slot(at, current)
    for i in range(SLOTS_TOGETHER - 1):  # They are taken one after the other.
        at += load_word(links.slots, first + i) != 0
    place = current * head["capacity"] + head["used"]
    links.slots[_slot(at, current)] = (key & TAG) | (place + 1)
    prefetch(links.spans, place + _SOON)
    copy_record(links.spans[place], links.blank[0])
    links.spans[place]["key"] = key
    head["used"] += 1
    return np.int64(place)


@kernel
def _turn_over(head: Record, links: Links) -> None:
    """Empty the older generation; it becomes the current one."""
    head["current"] = 1 - head["current"]
    head["used"] = 0
    head["turns"] += 1
    for at in range(head["mask"] + 1):
        links.slots[_slot(at, head["current"])] = 0


@inlined
def short_id(call_id: Int) -> Int:
    """32 bits of the hash of a call's id, never 0: they only tell spans of one branch apart."""
    short = call_id >> 32
    return short if short != 0 else np.int64(1)


@inlined
def same_call(tool: Int, call_id: Int, outer: Record) -> bool:
    """Whether a call inside another is the same one: no name and no id says otherwise."""
    if tool != outer["name"] and tool != 0 and outer["name"] != 0:
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
            tool = np.int64(link["name"]) if tool == 0 else tool
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
def _names_an_agent(link: Record) -> bool:
    return bool(link["flags"] & STOPS != 0 and link["name"] != 0)


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
        if _names_an_agent(links.spans[place]):
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
        if _names_an_agent(links.spans[place]):
            return np.int64(links.spans[place]["name"])
        parent = np.int64(links.spans[place]["parent"])
    return np.int64(0)
