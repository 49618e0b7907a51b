"""Tables and links without their empty places: to be kept elsewhere, or put into other capacities.

    table   its rows in use, in place, and its head; slots are worked out anew from the keys
    links   the spans of the older generation, then those of the newer, in the order they came

Put back into the same capacity, every row stands where it stood: who is evicted next does not
change. A larger one keeps the places as well. In a smaller one the rows seen last move together, in
the order in which the hand would have come to them, and the others are evicted.

Only numpy, no kernel: it runs a few times in the life of a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from otel_anomaly.entities.links import LINK, SLOTS_TOGETHER, Links
from otel_anomaly.entities.table import TAG, Table

if TYPE_CHECKING:
    from collections.abc import Callable

PROBES_MAX: Final = 4096
"""Places that a key is looked for at. Hashes in a table at most half full need some hundred; keys
that need more are none, and would make every look-up as long."""
STEPS_MEAN_MAX: Final = 32
"""The same for the mean of all keys. Hashes need one or two; up to 65 keys can never need more."""


class NotHashes(ValueError):
    """Keys that crowd together: they are no hashes."""


class KeptTable(NamedTuple):
    """What is kept of a table."""

    head: np.ndarray
    """HEAD [1] of `table`."""
    rows: np.ndarray
    """[used + 1]; row 0 is the overflow row."""


class KeptLinks(NamedTuple):
    """What is kept of the links."""

    head: np.ndarray
    """HEAD [1] of `links`."""
    older: np.ndarray
    """LINK [n]."""
    newer: np.ndarray
    """LINK [m]."""


def raw(records: np.ndarray) -> np.ndarray:
    """Records [n] as bytes [n, size]: copied so, what lies between the fields comes along."""
    return records.view(np.uint8).reshape(records.size, records.dtype.itemsize)


def copy_rows(target: np.ndarray, source: np.ndarray) -> None:
    """Copy records, all of their bytes."""
    raw(target)[:] = raw(source)


def _put(
    slots: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    home: Callable[[np.ndarray], np.ndarray],
    slot_of: Callable[[np.ndarray], np.ndarray],
    mask: int,
) -> None:
    """Enter numbers by their keys, by linear probing: all at once, one place further each time.

    Whoever comes to a taken place goes on; none is ever given back, so what lies between the home
    of a key and its place is full, as one after the other would have made it.
    """
    waiting, places = np.arange(keys.size), home(keys)
    _check_spread(places)
    for _ in range(PROBES_MAX):
        if waiting.size == 0:
            return
        at = slot_of(places[waiting])
        free = np.flatnonzero(slots[at] == 0)
        first = free[np.unique(at[free], return_index=True)[1]]
        chosen = waiting[first]
        slots[at[first]] = (keys[chosen] & TAG) | numbers[chosen]
        waiting = np.delete(waiting, first)
        places[waiting] = (places[waiting] + 1) & mask
    raise NotHashes(f"{waiting.size} keys have no place within {PROBES_MAX} of their own")


def _check_spread(homes: np.ndarray) -> None:
    """Raises NotHashes, before the many steps are done: their number depends on no order, so it is
    that of keys entered by their homes. (What goes round the end of the slots is counted short.)"""
    homes, order = np.sort(homes), np.arange(homes.size)
    steps = int((np.maximum.accumulate(homes - order) + order - homes).sum())
    if steps > STEPS_MEAN_MAX * homes.size:
        raise NotHashes(f"{homes.size} keys are {steps} places from their own")


def _records(spans: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(spans).reshape(-1).view(LINK)


def keep_table(table: Table) -> KeptTable:
    """The rows in use: views, not copies."""
    return KeptTable(table.head, table.rows[: int(table.head["used"][0]) + 1])


def restore_table(kept: KeptTable, empty: Table) -> Table:
    """Fill an empty table with what was kept of another, whatever the capacity of that was.

    Rows evicted for want of room are counted on. Raises NotHashes.
    """
    head, capacity = empty.head, int(empty.head["capacity"][0])
    head["evicted"], head["overflow"] = kept.head["evicted"], kept.head["overflow"]
    count = kept.rows.size - 1
    if count <= capacity:
        copy_rows(empty.rows[: count + 1], kept.rows)
        head["used"], head["free"] = count, kept.head["free"]
        head["hand"] = min(max(int(kept.head["hand"][0]), 1), capacity)
    else:
        _move_together(kept, empty, capacity)
    keys = empty.rows["key"][: int(head["used"][0]) + 1]
    numbers = np.flatnonzero(keys)
    mask = int(head["mask"][0])
    _put(
        empty.slots,
        keys[numbers],
        numbers,
        lambda found: (found >> 32) & mask,
        lambda places: places,
        mask,
    )
    head["in_use"] = numbers.size
    return empty


def _move_together(kept: KeptTable, empty: Table, capacity: int) -> None:
    """The rows seen last, from the hand on, without holes."""
    count = kept.rows.size - 1
    hand = int(kept.head["hand"][0]) if 1 <= int(kept.head["hand"][0]) <= count else 1
    order = np.roll(np.arange(1, count + 1), 1 - hand)
    order = order[kept.rows["key"][order] != 0]
    if order.size > capacity:
        seen = np.argsort(kept.rows["seen_ns"][order], kind="stable")
        empty.head["evicted"] += order.size - capacity
        order = order[np.sort(seen[order.size - capacity :])]
    raw(empty.rows)[0] = raw(kept.rows)[0]
    raw(empty.rows)[1 : order.size + 1] = raw(kept.rows)[order]
    empty.head["used"], empty.head["free"], empty.head["hand"] = order.size, 0, 1


def keep_links(links: Links) -> KeptLinks:
    """The spans known: views, not copies."""
    head = links.head[0]
    capacity, used, current = int(head["capacity"]), int(head["used"]), int(head["current"])
    older = (1 - current) * capacity
    size = capacity if head["turns"] > 0 else 0
    return KeptLinks(
        links.head,
        links.spans[older : older + size],
        links.spans[current * capacity : current * capacity + used],
    )


def _slots_of(generation: int) -> Callable[[np.ndarray], np.ndarray]:
    """Where the slots of a generation lie, as `links` has them."""
    return lambda at: (at >> 2) << 3 | generation << 2 | (at & 3)


def restore_links(kept: KeptLinks, empty: Links) -> Links:
    """Fill empty links with what was kept of others; the last spans, if it cannot be all.

    Raises NotHashes.
    """
    head, capacity = empty.head, int(empty.head["capacity"][0])
    older, newer = kept.older, kept.newer
    current = int(kept.head["current"][0])
    if older.size not in {0, capacity} or newer.size > capacity:
        spans = np.concatenate([raw(older), raw(newer)])[-2 * capacity :]
        split = capacity if len(spans) > capacity else 0
        older, newer = (
            part.reshape(-1).view(older.dtype) for part in (spans[:split], spans[split:])
        )
        current = 0
    head["current"], head["used"] = current, newer.size
    head["turns"] = 1 if older.size else 0
    head["looked"] = head["turns"]
    mask = int(head["mask"][0])
    for generation, spans in ((1 - current, older), (current, newer)):
        start = generation * capacity
        copy_rows(empty.spans[start : start + spans.size], spans)
        _put(
            empty.slots,
            spans["key"].copy(),
            np.arange(start + 1, start + spans.size + 1),
            lambda found: (found >> 32) & mask & ~(SLOTS_TOGETHER - 1),
            _slots_of(generation),
            mask,
        )
    return empty
