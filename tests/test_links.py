"""The memory of spans against two dicts: two generations, places that stay true or are found anew.

What is made of it, one call of several spans, is in `test_correction`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from otel_anomaly.correction import entry_of
from otel_anomaly.entities import links as module
from otel_anomaly.entities.links import (
    COUNTED,
    Links,
    find_link,
    find_or_make_link,
    link_at,
    make_link,
    make_links,
    short_id,
)
from otel_anomaly.entities.table import LINE, TAG
from otel_anomaly.otlp.scan import scan
from tests.rig import Rig, Verdict
from tests.sizes import scaled
from tests.traffic import START_NS, request, tool_span

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

STEP_NS = 1_000_000


class NaiveLinks:
    """What the memory is: the current dict and the one before, each of so many keys."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.turns = capacity, 0
        self.current: dict[int, int] = {}
        self.older: dict[int, int] = {}

    def get(self, key: int) -> int | None:
        return self.current.get(key, self.older.get(key))

    def mark(self, key: int, event: int) -> int:
        """Write on a key's link, a new one when there is none. Returns what stood there before."""
        home = self.older if key in self.older else self.current
        if key not in home:
            if len(home) >= self.capacity:
                self.older, self.current = self.current, {}
                self.turns += 1
            home = self.current
        before = home.get(key, 0)
        home[key] = event
        return before


def known(links: Links, key: int) -> int | None:
    """What stands on a key's link, None when it is not known."""
    place = int(find_link(links, key))
    if place < 0:
        return None
    assert links.spans[place]["key"] == key
    return int(links.spans[place]["event"])


def colliding_keys(pick: random.Random, links: Links, count: int) -> list[int]:
    """Keys of both signs that all begin in one of two lines, some with the same tag."""
    size = int(links.head[0]["mask"]) + 1
    tags = [pick.randrange(-2, 2) * size + pick.choice((0, size - 1)) for _ in range(count)]
    return list({tag << 32 | pick.randrange(1, 1 << 32) for tag in tags})


@pytest.mark.parametrize("capacity", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_links_equal_two_dicts(seed: int, capacity: int) -> None:
    """
    Scenario: keys that collide, with equal tags among them, more than there is room for; each is
    found or made and written on.
    Guarantees: who is known, what stands on each link and how often the generations turned over is
    what two dicts say; a new link is blank, whatever lay there before.
    """
    pick = random.Random(seed)
    links, twin = make_links(capacity), NaiveLinks(capacity)
    keys = colliding_keys(pick, links, 3 * capacity + 2)
    for event in range(1, scaled(400)):
        key = pick.choice(keys)
        place = int(find_or_make_link(links, key))
        link = links.spans[place]
        assert (link["key"], link["event"]) == (key, twin.mark(key, event))
        if link["event"] == 0:
            assert not any(link[name].any() for name in link.dtype.names if name != "key")
        link["event"], link["parent"], link["waiters"] = event, -1, 1
        assert {k: known(links, k) for k in keys} == {k: twin.get(k) for k in keys}
        assert links.head[0]["turns"] == twin.turns


@pytest.mark.parametrize("capacity", [1, 3, 7])
def test_between_n_and_2n_are_known(capacity: int) -> None:
    """
    Scenario: ten times as many spans as there is room for come one after the other.
    Guarantees: the last `capacity` are always known, and never more than twice as many; no slot
    is left behind.
    """
    links, keys = make_links(capacity), [(i << 33) + 5 for i in range(1, 10 * capacity)]
    for count in range(1, len(keys) + 1):
        make_link(links, keys[count - 1])
        found = [find_link(links, key) >= 0 for key in keys[:count]]
        assert all(found[-capacity:])
        assert sum(found) <= 2 * capacity
        assert not any(found[: -sum(found)]), "the first to come are the first to go"
        assert np.count_nonzero(links.slots) == sum(found)


def test_equal_tags_are_told_apart() -> None:
    """
    Scenario: four keys that differ in their lower half alone, two in either generation.
    Guarantees: each has a link of its own; a fifth is not known.
    """
    links = make_links(2)
    keys = [(77 << 32) + i for i in range(1, 6)]
    places = [int(make_link(links, key)) for key in keys[:4]]
    assert len(set(places)) == 4
    assert [int(find_link(links, key)) for key in keys] == [*places, -1]


@pytest.mark.parametrize("capacity", [1, 2, 100, 1000])
def test_a_line_holds_four_slots_of_either_generation(capacity: int) -> None:
    """
    Scenario: the places of all slots, and where the search for keys of all sorts begins.
    Guarantees: every place is used once; the search begins at the first of four slots, which lie
    in one line of the cache with the same four of the other generation.
    """
    links = make_links(capacity)
    size = int(links.head[0]["mask"]) + 1
    assert size >= 2 * capacity
    assert links.slots.ctypes.data % LINE == 0
    places = [int(module._slot(at, older)) for at in range(size) for older in (0, 1)]
    assert sorted(places) == list(range(links.slots.size))
    for key in (0, 1, -1, 1 << 62, -(1 << 63), random.Random(1).getrandbits(62)):
        home = int(module._home(links, np.int64(key)))
        assert 0 <= home < size
        line = {int(module._slot(home + i, older)) // 8 for i in range(4) for older in (0, 1)}
        assert len(line) == 1


def test_places_stay_true_until_the_generations_turn_over() -> None:
    """
    Scenario: the place of a span is kept from when its request was looked at; then others come,
    until the place is another span's; and a span whose place was not known.
    Guarantees: before the turn-over the place is taken at its word; after it the span is looked for
    again, and not found where another one lies.
    """
    links = make_links(3)
    links.head["looked"] = links.head[0]["turns"]
    mine, later = 7 << 32, [(i << 40) + 1 for i in range(1, 7)]
    place = int(make_link(links, mine))
    assert link_at(links, np.int64(-1), mine) == place
    for key in later[:2]:
        make_link(links, key)
        assert link_at(links, place, mine) == place
    for key in later[2:5]:
        make_link(links, key)
        assert link_at(links, place, mine) == find_link(links, mine) == place
    make_link(links, later[5])
    assert links.spans[place]["key"] == later[5]
    assert link_at(links, place, mine) == find_link(links, mine) == -1
    again = int(find_or_make_link(links, mine))
    assert again != place
    assert link_at(links, place, mine) == again


def test_ids_of_calls_are_shortened_to_what_is_never_none() -> None:
    """
    Scenario: hashes of call ids at the edges, also one whose upper half is 0.
    Guarantees: 32 bits, signed, and never 0, which would be no id.
    """
    for call_id in (1, -1, (1 << 63) - 1, -(1 << 63), 5 << 32, 0xFFFFFFFF):
        short = int(short_id(np.int64(call_id)))
        assert -(1 << 31) <= short < 1 << 31
        assert short == (call_id >> 32 or 1)


def calls_of_one_trace(count: int) -> list[Span]:
    """Calls, two in three with an id, no two of which end at the same time."""
    return [
        tool_span(
            trace_id=b"one trace of all",
            span_id=(i + 1).to_bytes(8, "big"),
            start_ns=START_NS + i * STEP_NS,
            end_ns=START_NS + (i + 1) * STEP_NS,
            tool=f"tool {i % 5}",
            session="s",
            call_id=f"call {i}" if i % 3 else None,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("room", [8, 9, 16, 64])
def test_a_turn_over_in_the_middle_of_a_request(room: int) -> None:
    """
    Scenario: one request with many more spans than are remembered, most also known by their call's
    id; then the last ones again; the same spans one by one.
    Guarantees: every call counts once, what is remembered of a span is of its own call, copies of
    what is remembered are told as such, and the verdicts are those of the spans sent one by one.
    """
    spans = calls_of_one_trace(50)
    rig, single = Rig(limits={"spans": room}), Rig(limits={"spans": room})
    verdicts = rig.send(spans)
    one_by_one: list[Verdict] = [single.send([each])[0] for each in spans]
    assert verdicts == one_by_one
    assert rig.counts("tool_calls") == single.counts("tool_calls") == len(spans)
    rows = scan(request(spans, scope=None), rig.processor.keys).rows
    ends = {int(row["identity"]): int(row["end_ns"]) for row in rows}
    counted = [link for link in rig.state.links.spans if link["flags"] & COUNTED]
    assert len(counted) >= room // 2
    for link in counted:
        entry = rig.state.journal[entry_of(rig.state, np.int64(link["event"]))]
        assert link["end_ns"] == entry["end_ns"] == ends[int(link["key"])]
    rig.send(spans[-room // 4 :])
    assert rig.counts("tool_calls") == len(spans)
    assert rig.counts("duplicates") == len(spans[-room // 4 :])


def test_tags_and_places_share_a_slot() -> None:
    """
    Scenario: keys whose upper half is 0 or all ones, which leaves the place alone to tell a slot
    that is taken from a free one.
    Guarantees: both are found; key 0, which is nobody, is not.
    """
    links = make_links(4)
    for key in (1, -1):
        place = int(make_link(links, key))
        assert find_link(links, key) == place
        taken = links.slots[links.slots != 0]
        assert place + 1 in {int(slot) & ~TAG for slot in taken}
    assert find_link(links, 0) == -1
