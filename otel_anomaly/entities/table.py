"""Key to row: open addressing over arrays, bounded, with idle and least-recently-seen eviction.

    slots   [ key | row ]   linear probing, a power of two, at most half full; key 0 is free
    rows    1 .. capacity   one record for each entity: its key, when it was seen, its state
    row 0                   the overflow row: shared by whoever got none, never judged by its past

A new key takes a free row, else that of the longest silent among `sample` rows under a moving
hand (Redis evicts the same way; an exact order would cost two cache misses a call; a sample of 1 is
first in, first out). A row seen
within `keep_ns` is never taken: a flood of new names cannot push out those who are at work, the
newcomers share row 0 instead. An entity silent for more than `idle_ns` is a new one when it comes
back, so what is remembered of it does not depend on when its row was swept.

Deleting moves later keys of the same run back (Knuth, The Art of Computer Programming 3, 6.4,
algorithm R), so no tombstones gather and a look-up stays short.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import Int, borrow, copy_start, inlined, kernel, prefetch

KEY, ROW_NUMBER = range(2)
HEAD = np.dtype(
    [
        ("mask", "i8"),
        ("capacity", "i8"),
        ("used", "i8"),  # Rows ever handed out, free ones included.
        ("in_use", "i8"),
        ("free", "i8"),  # First row of the free list, 0: none. Linked through `seen_ns`.
        ("hand", "i8"),
        ("idle_ns", "i8"),
        ("keep_ns", "i8"),
        ("sample", "i8"),
        ("state_bytes", "i8"),  # First bytes of a record: emptied for a new entity.
        ("evicted", "i8"),
        ("overflow", "i8"),  # Look-ups that were answered with row 0.
    ]
)
OF_ROW: Final = (("key", "i8"), ("seen_ns", "i8"))
"""First fields of every record."""


class Table(NamedTuple):
    """The arrays of one kind of entity."""

    head: np.ndarray
    """HEAD [1]."""
    slots: np.ndarray
    """int64 [2^n, 2]."""
    rows: np.ndarray
    """[capacity + 1] of a record that begins with OF_ROW."""
    blank: np.ndarray
    """[1] of the same: what a new entity starts from, all zeros."""


def make_table(
    capacity: int,
    record: np.dtype,
    *,
    idle_ns: int,
    keep_ns: int,
    sample: int = 16,
    state_bytes: int | None = None,
) -> Table:
    """An empty table of `capacity` rows. Pages of memory are used as rows are.

    Only the first `state_bytes` of a record are emptied for a new entity: what lies behind them
    counts only where the state says so.
    """
    size = 1 << (2 * capacity).bit_length()
    head = np.zeros(1, HEAD)
    head["mask"], head["capacity"], head["hand"] = size - 1, capacity, 1
    head["idle_ns"], head["keep_ns"] = idle_ns, keep_ns
    head["sample"] = min(sample, capacity)
    head["state_bytes"] = record.itemsize if state_bytes is None else state_bytes
    rows = np.zeros(capacity + 1, record)
    return Table(head, np.zeros((size, 2), np.int64), rows, np.zeros(1, record))


@inlined
def borrow_table(table: Table) -> Table:
    """`borrow` for all arrays of a table."""
    return Table(borrow(table.head), borrow(table.slots), borrow(table.rows), borrow(table.blank))


@inlined
def find(table: Table, key: Int) -> Int:
    """The row of `key`, or 0."""
    mask = table.head[0]["mask"]
    place = key & mask
    while table.slots[place, KEY] != 0:
        if table.slots[place, KEY] == key:
            return table.slots[place, ROW_NUMBER]
        place = (place + 1) & mask
    return np.int64(0)


@inlined
def find_or_make(table: Table, key: Int, now_ns: Int) -> Int:
    """The row of `key`, its state empty when it is new; 0 when there is no room."""
    row = find(table, key)
    if row == 0:
        return _make(table, key, now_ns)
    seen_ns = table.rows[row]["seen_ns"]
    if now_ns - seen_ns > table.head[0]["idle_ns"]:
        copy_start(table.rows[row], table.blank[0], table.head[0]["state_bytes"])
        table.rows[row]["key"] = key
    if now_ns > seen_ns:
        table.rows[row]["seen_ns"] = now_ns
    return row


@kernel
def _make(table: Table, key: Int, now_ns: Int) -> Int:
    """A row for a key that is not in the table; 0 when there is no room."""
    head = table.head[0]
    row = _take_row(table, now_ns)
    if row == 0:
        head["overflow"] += 1
        return row
    place = key & head["mask"]
    while table.slots[place, KEY] != 0:
        place = (place + 1) & head["mask"]
    table.slots[place, KEY] = key
    table.slots[place, ROW_NUMBER] = row
    copy_start(table.rows[row], table.blank[0], table.head[0]["state_bytes"])
    table.rows[row]["key"] = key
    table.rows[row]["seen_ns"] = now_ns
    head["in_use"] += 1
    return row


@inlined
def prefetch_slot(table: Table, key: Int) -> None:
    """Ask for the slot of a key ahead of time: look-ups are mostly waiting for memory."""
    prefetch(table.slots[:, KEY], key & table.head[0]["mask"])


SOON: Final = 4
"""Rows under the hand between asking for memory and using it."""


@inlined
def _prefetch_victim(table: Table) -> None:
    """Ask for the rows that the hand comes to next, and for the slots of those that have come."""
    head = table.head[0]
    row = head["hand"] + 2 * SOON * head["sample"]
    if row <= head["capacity"]:
        prefetch(table.rows, row)
        near = head["hand"] + SOON * head["sample"]
        prefetch_slot(table, np.int64(table.rows[near]["key"]))


@kernel
def _take_row(table: Table, now_ns: Int) -> Int:
    """A row for a newcomer: a free one, one never used, or that of the longest silent. Else 0."""
    head = table.head[0]
    row = head["free"]
    if row != 0:
        head["free"] = table.rows[row]["seen_ns"]
        return row
    if head["used"] < head["capacity"]:
        head["used"] += 1
        return head["used"]
    _prefetch_victim(table)
    best = np.int64(0)
    for _ in range(head["sample"]):
        row = head["hand"]
        head["hand"] = row + 1 if row < head["capacity"] else 1
        if best == 0 or table.rows[row]["seen_ns"] < table.rows[best]["seen_ns"]:
            best = row
    if now_ns - table.rows[best]["seen_ns"] < head["keep_ns"]:
        return np.int64(0)
    remove(table, table.rows[best]["key"])
    head["evicted"] += 1
    return best


@kernel
def remove(table: Table, key: Int) -> None:
    """Forget a key that is in the table. Its row belongs to the caller."""
    slots, mask = table.slots, table.head[0]["mask"]
    hole = key & mask
    while slots[hole, KEY] != key:
        hole = (hole + 1) & mask
    place = hole
    while True:
        place = (place + 1) & mask
        if slots[place, KEY] == 0:
            break
        # Move a later key into the hole unless its own place lies behind the hole.
        home = slots[place, KEY] & mask
        if (place - home) & mask >= (place - hole) & mask:
            slots[hole, KEY] = slots[place, KEY]
            slots[hole, ROW_NUMBER] = slots[place, ROW_NUMBER]
            hole = place
    slots[hole, KEY] = 0
    slots[hole, ROW_NUMBER] = 0
    table.head[0]["in_use"] -= 1


@kernel
def release(table: Table, row: Int) -> None:
    """Give back a row that is in use; its record stays readable until the row is taken again."""
    remove(table, table.rows[row]["key"])
    table.rows[row]["key"] = 0
    table.rows[row]["seen_ns"] = table.head[0]["free"]
    table.head[0]["free"] = row


@kernel
def sweep(table: Table, now_ns: Int, count: Int) -> Int:
    """Free the rows among the next `count` under the hand that are idle. Returns how many.

    Changes no verdict of a call that is on time: an idle entity is a new one when it comes back,
    swept or not. A call that ended before this and comes after it may find its entity gone.
    """
    head = table.head[0]
    freed = 0
    for _ in range(min(count, head["used"])):
        row = head["hand"] if head["hand"] <= head["used"] else np.int64(1)
        head["hand"] = row + 1 if row < head["used"] else 1
        entity = table.rows[row]
        if entity["key"] != 0 and now_ns - entity["seen_ns"] > head["idle_ns"]:
            release(table, row)
            head["evicted"] += 1
            freed += 1
    return freed
