"""Lengths in front of messages, where they are known only behind them: marks and holes.

The first pass leaves one byte for a length:

    text    {"key":"k","value":{"stringValue":"v"}}
    bytes   0a 01 'k'  12 .. 0a 01 'v'

Nearly all messages are shorter than 128 bytes, and the byte is enough. For each that is not, a
mark says where and how long; `compact` copies what was read and writes these lengths in full.
Marks lie in the order of their places: one is set when a message begins, and taken back when it
ends and was short, for then all that it holds was short as well.

A value that a later one replaces becomes a hole, which the copy leaves out. So every byte is
written once and copied once, and what is worked with is bounded: `capacity_of` says how much each
byte of text can take.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel
from otel_anomaly.otlp.json_scalars import put_varint
from otel_anomaly.otlp.splice import varint_size

LINE_BYTES_MAX: Final = 1 << 28
"""Places in what is worked with are numbers of 31 bits."""

# What is known of an open message, and of a slot of it.
OF, START, EXTRA, MARK, SEEN, MEMBER, INDEX, LAST_SLOT, FRAME_SIZE = range(9)
"""Its number; where its content begins; how much longer that gets when it is copied; its mark; its
slots that have a value; the member being read; the place in its list, or -1; the slot of the last
member, or -1."""
_FROM, _TO, _EXTRA_FROM, _EXTRA_TO = range(4)
SPOT_SIZE: Final = 4

# What `read_request` tells beside the frames.
DEPTH, MARKS, HOLES, EXTRA_ALL, DESK_SIZE = range(5)


def capacity_of(size: int) -> tuple[int, int, int]:
    """Bytes, marks and holes that a text of so many bytes can need.

    The densest is a list of numbers, `1,1,1`: eight bytes for two. A mark needs a bracket and what
    closes it, a hole a name in quotes, a colon, a value and a comma.
    """
    assert size <= LINE_BYTES_MAX
    return 4 * size + 64, size // 2 + 2, size // 6 + 2


@inlined
def open_length(put: Int, out: Array, marks: Array, desk: Array) -> tuple[Int, Int]:
    """Leave a byte for a length: (put, the mark)."""
    mark = desk[MARKS]
    marks[mark, 0] = put
    out[put] = 0
    desk[MARKS] = mark + 1
    return put + 1, mark


@inlined
def close_length(start: Int, length: Int, mark: Int, out: Array, marks: Array, desk: Array) -> Int:
    """Write a length, or mark it. Returns by how much what is around grows."""
    if length < 128 and mark == desk[MARKS] - 1:
        out[start - 1] = length
        desk[MARKS] = mark
        return np.int64(0)
    marks[mark, 1] = length
    return varint_size(length) - 1


@inlined
def enter(
    frames: Array, depth: Int, message: Int, put: Int, out: Array, marks: Array, desk: Array
) -> Int:
    """Open the frame of a message whose tag is written. Returns the new put."""
    put, mark = open_length(put, out, marks, desk)
    frames[depth, OF], frames[depth, START], frames[depth, MARK] = message, put, mark
    frames[depth, EXTRA], frames[depth, SEEN] = 0, 0
    frames[depth, MEMBER], frames[depth, INDEX], frames[depth, LAST_SLOT] = -1, -1, -1
    return put


@inlined
def leave(frames: Array, depth: Int, put: Int, out: Array, marks: Array, desk: Array) -> None:
    """Close the frame at `depth`, which is not the request's."""
    start, extra = frames[depth, START], frames[depth, EXTRA]
    extra += close_length(start, put - start + extra, frames[depth, MARK], out, marks, desk)
    frames[depth - 1, EXTRA] += extra
    if frames[depth - 1, INDEX] >= 0:
        frames[depth - 1, INDEX] += 1


@inlined
def take_slot(
    frames: Array, depth: Int, slot: Int, put: Int, spots: Array, holes: Array, desk: Array
) -> None:
    """A member begins: note where it lies, and make a hole of what its slot held before."""
    last = frames[depth, LAST_SLOT]
    if last >= 0:
        spots[depth, last, _TO] = put
        spots[depth, last, _EXTRA_TO] = frames[depth, EXTRA]
    if frames[depth, SEEN] >> slot & 1 != 0:
        start, end = spots[depth, slot, _FROM], spots[depth, slot, _TO]
        if end > start:
            hole = desk[HOLES]
            holes[hole, 0], holes[hole, 1] = start, end
            desk[HOLES] = hole + 1
            grown = spots[depth, slot, _EXTRA_TO] - spots[depth, slot, _EXTRA_FROM]
            frames[depth, EXTRA] -= end - start + grown
    frames[depth, SEEN] |= np.int64(1) << slot
    frames[depth, LAST_SLOT] = slot
    spots[depth, slot, _FROM], spots[depth, slot, _EXTRA_FROM] = put, frames[depth, EXTRA]


@kernel
def compact(
    raw: Array, size: Int, marks: Array, mark_count: Int, holes: Array, hole_count: Int, out: Array
) -> Int:
    """Copy what was read, lengths written in full and holes left out. Returns the size.

    Holes come in the order of their places; one may lie in another.
    """
    raw, marks, holes, out = borrow(raw), borrow(marks), borrow(holes), borrow(out)
    at, put, mark, hole = np.int64(1), np.int64(0), np.int64(0), np.int64(0)
    while True:
        next_mark = np.int64(marks[mark, 0]) if mark < mark_count else size
        next_hole = np.int64(holes[hole, 0]) if hole < hole_count else size
        if next_hole < at:
            hole += 1
        elif next_mark < at:
            mark += 1
        else:
            stop = min(next_mark, next_hole)
            copy(out, put, raw, at, stop - at)
            put += stop - at
            if stop == size:
                return put
            if stop == next_hole:
                at = np.int64(holes[hole, 1])
            else:
                put = put_varint(out, put, np.int64(marks[mark, 1]))
                at = stop + 1
