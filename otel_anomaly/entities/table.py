"""Key to row: open addressing over arrays, bounded, with idle and least-recently-seen eviction.

    slots   [ tag | row ]   linear probing, a power of two, at most half full; 0 is free; the tag is
                            the upper half of a key, and the row says whether it is the one
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

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import (
    Int,
    borrow,
    copy_start,
    inlined,
    kernel,
    load_word,
    prefetch,
    prefetch_part,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG: Final = -1 << 32
"""Bits of a slot that are the key's."""
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
    """int64 [2^n]."""
    rows: np.ndarray
    """[capacity + 1] of a record that begins with OF_ROW."""
    blank: np.ndarray
    """[1] of the same: what a new entity starts from, all zeros."""


LINE: Final = 64
"""Bytes of a cache line."""


def in_lines(*groups: Sequence[tuple[Any, ...]]) -> np.dtype:
    """A record in which every group of fields begins a cache line, as the record itself does."""
    names: list[str] = []
    formats: list[np.dtype] = []
    offsets: list[int] = []
    at = 0
    for group in groups:
        fields = np.dtype(list(group), align=True)
        assert fields.names is not None
        assert fields.fields is not None
        names.extend(fields.names)
        formats.extend(fields.fields[name][0] for name in fields.names)
        offsets.extend(at + fields.fields[name][1] for name in fields.names)
        at += -(-fields.itemsize // LINE) * LINE
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": at}
    return np.dtype(layout, align=True)  # type: ignore[call-overload]  # Its stubs know no layouts.


def zeros(count: int, record: np.dtype) -> np.ndarray:
    """Records [count], all zeros, the first at the start of a cache line."""
    raw = np.zeros(count * record.itemsize + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + count * record.itemsize].view(record)


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
    size = 1 << (2 * capacity - 1).bit_length()
    head = np.zeros(1, HEAD)
    head["mask"], head["capacity"], head["hand"] = size - 1, capacity, 1
    head["idle_ns"], head["keep_ns"] = idle_ns, keep_ns
    head["sample"] = min(sample, capacity)
    head["state_bytes"] = record.itemsize if state_bytes is None else state_bytes
    rows = zeros(capacity + 1, record)
    return Table(head, zeros(size, np.dtype(np.int64)), rows, np.zeros(1, record))


@inlined
def borrow_table(table: Table) -> Table:
    """`borrow` for all arrays of a table."""
    return Table(borrow(table.head), borrow(table.slots), borrow(table.rows), borrow(table.blank))


@inlined
def _home(table: Table, key: Int) -> Int:
    """The slot where the search for a key, or for what is in a slot, begins."""
    return (key >> 32) & table.head[0]["mask"]


@inlined
def find(table: Table, key: Int) -> Int:
    """The row of `key`, or 0."""
    mask, place = table.head[0]["mask"], _home(table, key)
    slot = load_word(table.slots, place)
    while slot != 0:
        row = slot & ~TAG
        if (slot ^ key) & TAG == 0 and table.rows[row]["key"] == key:
            return row
        place = (place + 1) & mask
        slot = load_word(table.slots, place)
    return np.int64(0)


@inlined
def guess(table: Table, key: Int) -> Int:
    """The row that `find` probably finds; it is not looked at, so it can be asked for."""
    mask, place = table.head[0]["mask"], _home(table, key)
    slot = load_word(table.slots, place)
    while slot != 0 and (slot ^ key) & TAG != 0:
        place = (place + 1) & mask
        slot = load_word(table.slots, place)
    return slot & ~TAG


@inlined
def find_or_make(table: Table, key: Int, now_ns: Int) -> Int:
    """The row of `key`, its state empty when it is new; 0 when there is no room."""
    row = find(table, key)
    return _make(table, key, now_ns) if row == 0 else touch(table, row, key, now_ns)


@inlined
def touch(table: Table, row: Int, key: Int, now_ns: Int) -> Int:
    """Note that the key of a row was seen; its state is emptied if that was long ago."""
    seen_ns = table.rows[row]["seen_ns"]
    if now_ns - seen_ns > table.head[0]["idle_ns"]:
        copy_start(table.rows[row], table.blank[0], table.head[0]["state_bytes"])
        table.rows[row]["key"] = key
    if now_ns > seen_ns:
        table.rows[row]["seen_ns"] = now_ns
    return row


@kernel
def _make(table: Table, key: Int, now_ns: Int) -> Int:
    """`make`, where new keys are the rare case."""
    return make(table, key, now_ns)


@inlined
def make(table: Table, key: Int, now_ns: Int) -> Int:
    """A row for a key that is not in the table; 0 when there is no room."""
    head = table.head[0]
    row = _take_row(table, now_ns)
    if row == 0:
        head["overflow"] += 1
        return row
    place = _home(table, key)
    while load_word(table.slots, place) != 0:
        place = (place + 1) & head["mask"]
    table.slots[place] = (key & TAG) | row
    copy_start(table.rows[row], table.blank[0], table.head[0]["state_bytes"])
    table.rows[row]["key"] = key
    table.rows[row]["seen_ns"] = now_ns
    head["in_use"] += 1
    return row


@inlined
def prefetch_slot(table: Table, key: Int) -> None:
    """Ask for the slot of a key ahead of time: look-ups are mostly waiting for memory."""
    prefetch(table.slots, _home(table, key))


SOON: Final = 4
"""Rows under the hand between asking for memory and using it."""


@inlined
def _prefetch_victim(table: Table) -> None:
    """Ask for the rows that the hand comes to next, and for the slots of those that have come."""
    head = table.head[0]
    row = head["hand"] + 2 * SOON * head["sample"]
    if row <= head["capacity"]:
        prefetch(table.rows, row)
        if head["sample"] == 1:  # It is certain to be taken.
            prefetch_part(table.rows, row, LINE)
        near = head["hand"] + SOON * head["sample"]
        prefetch_slot(table, np.int64(table.rows[near]["key"]))


@inlined
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
    _free_slot(table, best)
    head["evicted"] += 1
    return best


@inlined
def _free_slot(table: Table, row: Int) -> None:
    """Forget the key of a row that is in use. The row belongs to the caller."""
    slots, mask, key = table.slots, table.head[0]["mask"], table.rows[row]["key"]
    mine = (key & TAG) | row
    hole = _home(table, key)
    while load_word(slots, hole) != mine:
        hole = (hole + 1) & mask
    place = hole
    while True:
        place = (place + 1) & mask
        slot = load_word(slots, place)
        if slot == 0:
            break
        # Move a later key into the hole unless its own place lies behind the hole.
        if (place - _home(table, slot)) & mask >= (place - hole) & mask:
            slots[hole] = slot
            hole = place
    slots[hole] = 0
    table.head[0]["in_use"] -= 1


@kernel
def release(table: Table, row: Int) -> None:
    """Give back a row that is in use; its record stays readable until the row is taken again."""
    _free_slot(table, row)
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
