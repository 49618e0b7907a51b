"""The table of entities against a dict, and what it promises when it is full."""

from __future__ import annotations

import os
import random

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from otel_anomaly.entities.table import (
    LINE,
    OF_ROW,
    Table,
    find,
    find_or_make,
    guess,
    make_table,
    release,
    sweep,
    zeros,
)
from otel_anomaly.kernels import Array, Int, kernel
from otel_anomaly.state import AGENT
from tests.sizes import COMPILED, scaled

RECORD = np.dtype([*OF_ROW, ("state", "i8")], align=True)
IDLE_NS, KEEP_NS = 100, 30


def small_table(capacity: int, sample: int = 16) -> Table:
    return make_table(capacity, RECORD, idle_ns=IDLE_NS, keep_ns=KEEP_NS, sample=sample)


def touch(table: Table, key: int, now_ns: int) -> int:
    """Find or make a row and leave a mark in its state. Returns the row."""
    row = int(find_or_make(table, key, now_ns))
    if row != 0:
        table.rows[row]["state"] += 1
    return row


def head(table: Table, name: str) -> int:
    return int(table.head[0][name])


class NaiveTable:
    """What the table is: a dict with a longest-silent rule."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.overflow, self.evicted = capacity, 0, 0
        self.seen: dict[int, int] = {}
        self.state: dict[int, int] = {}

    def touch(self, key: int, now_ns: int) -> bool:
        if key in self.seen:
            if now_ns - self.seen[key] > IDLE_NS:
                self.state[key] = 0
            self.seen[key] = max(self.seen[key], now_ns)
        elif not self.make(key, now_ns):
            return False
        self.state[key] += 1
        return True

    def make(self, key: int, now_ns: int) -> bool:
        if len(self.seen) == self.capacity:
            longest = min(self.seen, key=lambda known: self.seen[known])
            if now_ns - self.seen[longest] < KEEP_NS:
                self.overflow += 1
                return False
            self.forget(longest)
        self.seen[key], self.state[key] = now_ns, 0
        return True

    def forget(self, key: int) -> None:
        del self.seen[key]
        del self.state[key]
        self.evicted += 1

    def sweep(self, now_ns: int) -> None:
        for key in [key for key, seen in self.seen.items() if now_ns - seen > IDLE_NS]:
            self.forget(key)


def check_same(table: Table, twin: NaiveTable, keys: list[int]) -> None:
    rows = {key: int(find(table, key)) for key in keys}
    known = {key: row for key, row in rows.items() if row != 0}
    assert set(known) == set(twin.seen)
    assert len(set(known.values())) == len(known), "a row of its own for each"
    for key, row in known.items():
        record = table.rows[row]
        assert record.item() == (key, twin.seen[key], twin.state[key])
    assert head(table, "in_use") == len(twin.seen)
    assert head(table, "overflow") == twin.overflow
    assert head(table, "evicted") == twin.evicted
    assert 1 <= head(table, "hand") <= twin.capacity, "the hand stays on the rows"


def colliding_keys(pick: random.Random, table: Table, count: int) -> list[int]:
    """Keys of both signs that all begin in one of two places, some with the same tag."""
    size = head(table, "mask") + 1
    tags = [pick.randrange(-3, 3) * size + pick.choice((0, size - 1)) for _ in range(count)]
    return [tag << 32 | pick.randrange(1, 1 << 32) for tag in tags]


@pytest.mark.parametrize("capacity", [1, 2, 5, 13])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_table_equals_dict(seed: int, capacity: int) -> None:
    """
    Scenario: keys that collide, more than there are rows; time steps on, sometimes back; sweeps.
    Guarantees: who is known, with which state, who was evicted for whom and who got no row is what
    a dict with the longest-silent rule says, as long as the sample covers the table.
    """
    pick, now_ns = random.Random(seed), 1000
    table, twin = small_table(capacity), NaiveTable(capacity)
    keys = colliding_keys(pick, table, 2 * capacity + 2)
    used_ns = set()
    for _ in range(scaled(400)):
        now_ns += pick.choice((1, 2, 5, 5, 40 // capacity, 150)) * 10
        if pick.random() < 0.1:
            count = pick.choice((capacity, 10 * capacity))
            sweep(table, now_ns, count)
            twin.sweep(now_ns)
        else:
            time_ns = now_ns - pick.choice((0, 0, 0, 13, 57))
            time_ns += time_ns in used_ns
            used_ns.add(time_ns)
            key = pick.choice(keys)
            assert (touch(table, key, time_ns) != 0) == twin.touch(key, time_ns)
        check_same(table, twin, keys)


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_removing_keeps_every_other_key_findable(seed: int) -> None:
    """
    Scenario: keys that collide and wrap around the end of the slots come and go at random.
    Guarantees: every key that is there is found in its row, every other is not; no slot leaks.
    """
    pick = random.Random(seed)
    table = small_table(12)
    keys = colliding_keys(pick, table, 20)
    rows: dict[int, int] = {}
    for _ in range(scaled(300)):
        key = pick.choice(keys)
        if key in rows:
            release(table, rows.pop(key))
        elif len(rows) < 12:
            rows[key] = touch(table, key, 1000)
        assert {key: int(find(table, key)) for key in keys} == {k: rows.get(k, 0) for k in keys}
        assert np.count_nonzero(table.slots) == len(rows) == head(table, "in_use")


def test_the_hand_never_leaves_the_table() -> None:
    """
    Scenario: a full table is swept to its last row, where nothing is idle; then a newcomer comes.
    Guarantees: the newcomer takes the row of the longest silent; no row beyond the last is read.
    """
    table = small_table(3, sample=1)
    for key in (11, 12, 13):
        touch(table, key, 1000 + key)
    sweep(table, 1000, 3)
    assert head(table, "hand") == 1
    assert touch(table, 14, 1000 + IDLE_NS) == 1
    assert find(table, 11) == 0


def test_rows_at_work_are_never_evicted() -> None:
    """
    Scenario: a full table at work, sampled three rows at a time, and a flood of 500 new names,
    each once; then the flood goes on after one row fell silent.
    Guarantees: nobody at work loses state, every newcomer gets row 0 and is counted; then one of
    them takes the silent row and no other.
    """
    table = small_table(8, sample=3)
    workers = [17 * i for i in range(1, 9)]
    for now_ns in range(1000, 1500):
        for key in workers:
            touch(table, key, now_ns)
        assert touch(table, 10_000 + now_ns, now_ns) == 0
    assert head(table, "overflow") == 500
    assert head(table, "evicted") == 0
    assert {int(table.rows[find(table, key)]["state"]) for key in workers} == {500}
    for now_ns in range(1500, 1600):
        for key in workers[1:]:
            touch(table, key, now_ns)
        touch(table, 20_000 + now_ns, now_ns)
    assert head(table, "evicted") >= 1
    assert find(table, workers[0]) == 0
    assert {int(table.rows[find(table, key)]["state"]) for key in workers[1:]} == {600}


def test_an_idle_entity_comes_back_as_new() -> None:
    """
    Scenario: an entity silent for exactly the idle time, and one silent for a nanosecond more;
    the second is swept before it comes back, or not.
    Guarantees: the first keeps its state; the second starts from nothing either way.
    """
    for swept in (False, True):
        table = small_table(4)
        touch(table, 5, 1000)
        touch(table, 5, 1000 + IDLE_NS)
        assert table.rows[find(table, 5)]["state"] == 2
        now_ns = 1000 + 2 * IDLE_NS + 1
        if swept:
            assert sweep(table, now_ns, 100) == 1
            assert find(table, 5) == 0
        touch(table, 5, now_ns)
        assert table.rows[find(table, 5)]["state"] == 1
        assert head(table, "in_use") == 1


def test_nobody_has_key_0() -> None:
    """
    Scenario: key 0, which marks free slots, is looked for in a table with and without entries.
    Guarantees: it is never found.
    """
    table = small_table(4)
    assert find(table, 0) == 0
    for key in (1, (head(table, "mask") + 1) << 32):
        touch(table, key, 1000)
    assert find(table, 0) == 0


@kernel
def _fill(table: Table, keys: Array, now_ns: Int, rows: Array) -> None:
    for i in range(keys.size):
        rows[i] = find_or_make(table, keys[i], now_ns)


def test_a_million_rows() -> None:
    """
    Scenario: a table for a million entities is made and filled; one more comes.
    Guarantees: a million distinct rows, all found again; the one more gets row 0.
    """
    capacity = 1_000_000 if COMPILED else 1000
    table = small_table(capacity)
    keys = np.arange(1, capacity + 1) * np.int64(0x5DEECE66D)
    rows, again = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
    _fill(table, keys, 1000, rows)
    assert np.unique(rows).size == capacity
    assert (rows.min(), rows.max()) == (1, capacity)
    _fill(table, keys, 1001, again)
    assert np.array_equal(rows, again)
    assert touch(table, -1, 1002) == 0
    assert head(table, "in_use") == capacity


def test_memory_is_touched_as_rows_are_used() -> None:
    """
    Scenario: a table for four million agents is made and ten agents come.
    Guarantees: the address space is as large as asked for, resident memory is not.
    """
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    table = make_table(4_000_000, AGENT, idle_ns=IDLE_NS, keep_ns=KEEP_NS)
    for key in range(1, 11):
        assert find_or_make(table, key, 1000) == key
    assert table.rows.nbytes > 1 << 30
    # The rest of the process breathes too: an eighth is far from all, and far from nothing.
    assert process.memory_info().rss - before < table.rows.nbytes // 8


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_a_guess_is_wrong_only_where_tags_agree(seed: int) -> None:
    """
    Scenario: keys that collide, some with equal tags, half of them in the table and many deleted.
    Guarantees: a guess is the row of the key, unless another key in the table has its tag: then it
    may be that one's. Nothing is changed by guessing, and a key that is not there leads to a row
    of the table all the same.
    """
    pick = random.Random(seed)
    table = small_table(12)
    keys = list(dict.fromkeys(colliding_keys(pick, table, 24)))
    rows = {key: touch(table, key, 1000) for key in keys[:12]}
    for key in pick.sample(keys[:12], 4):
        release(table, rows.pop(key))
    before = table.slots.tobytes(), table.rows.tobytes()
    for key in keys:
        row = int(guess(table, key))
        same = {known: place for known, place in rows.items() if known >> 32 == key >> 32}
        assert row in (same.values() or {0})
        if len(same) == 1 and key in same:
            assert row == find(table, key)
    assert (table.slots.tobytes(), table.rows.tobytes()) == before


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
@pytest.mark.parametrize("record", [np.dtype(np.int64), RECORD, AGENT, np.dtype("V17")])
def test_records_begin_with_a_cache_line(record: np.dtype, count: int) -> None:
    """
    Scenario: arrays of records of all sizes, also of none and of odd ones.
    Guarantees: so many records, all zeros, that can be written to, the first at the start of a line
    of the cache.
    """
    for _ in range(5):
        made = zeros(count, record)
        assert (made.shape, made.dtype) == ((count,), record)
        assert count == 0 or made.ctypes.data % LINE == 0
        assert not any(made.tobytes())
        assert made.flags.writeable
