"""Whether bytes are an OTLP request, for all signals, and how much room it takes as JSON.

What is accepted is what the protobuf library accepts, as `wire` has it for traces and logs. Every
byte is looked at once, so whoever writes JSON afterwards reads without asking again.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, inlined, kernel
from otel_anomaly.otlp.json_tables import KIND, MESSAGE, NAME_SIZE, OWNER, TEXT, WIRE, row_of
from otel_anomaly.otlp.wire import (
    BYTES,
    DEPTH_MAX,
    FIXED64,
    VARINT,
    is_utf8,
    read_length,
    read_tag,
    read_varint,
    skip,
)

ITEM_BYTES_MAX: Final = 32
"""Of a number with its quotes and comma; of what stands around any other value."""
LETTER_BYTES_MAX: Final = 6
"""Of a control character, which needs the longest escape."""


@inlined
def _packed_room(data: Array, at: Int, end: Int, wire: Int) -> Int:
    """Bytes of JSON that a chunk of numbers can take, or -1 where it is broken."""
    if wire != VARINT:
        size = 8 if wire == FIXED64 else 4
        count = (end - at) // size
        return count * ITEM_BYTES_MAX if count * size == end - at else np.int64(-1)
    count = np.int64(0)
    while at < end:
        _, at = read_varint(data, at, end)
        if at < 0:
            return np.int64(-1)
        count += 1
    return count * ITEM_BYTES_MAX


@kernel
def _check_value(data: Array, at: Int, end: Int, tag: Int, row: Int, depth: Int) -> tuple[Int, Int]:
    """A value of a known field that is no message: (next or -1, bytes of JSON at most)."""
    data = borrow(data)
    if tag & 7 != BYTES:
        return skip(data, at, end, tag, depth), np.int64(ITEM_BYTES_MAX)
    start, stop = read_length(data, at, end)
    if stop < 0:
        return np.int64(-1), np.int64(0)
    if WIRE[row] != BYTES:
        room = _packed_room(data, start, stop, WIRE[row])
        return (stop if room >= 0 else np.int64(-1)), room + ITEM_BYTES_MAX
    if KIND[row] == TEXT and not is_utf8(data, start, stop):
        return np.int64(-1), np.int64(0)
    return stop, (stop - start) * LETTER_BYTES_MAX + ITEM_BYTES_MAX


@kernel
def room_for_json(data: Array, message: Int) -> Int:
    """More bytes than the JSON of a request takes, or -1 when it is none."""
    data = borrow(data)
    ends, messages = np.empty(DEPTH_MAX + 1, np.int64), np.empty(DEPTH_MAX + 1, np.int64)
    level, at = np.int64(0), np.int64(0)
    total: Int = np.int64(ITEM_BYTES_MAX)
    ends[0], messages[0] = data.size, message
    while True:
        if at == ends[level]:
            if level == 0:
                return total
            level -= 1
            continue
        tag, at = read_tag(data, at, ends[level])
        if at < 0:
            return np.int64(-1)
        row = row_of(tag, messages[level])
        if row < 0:
            at = skip(data, at, ends[level], tag, level)
        elif KIND[row] == MESSAGE:
            at, stop = read_length(data, at, ends[level])
            if stop < 0 or level == DEPTH_MAX:
                return np.int64(-1)
            level += 1
            ends[level], messages[level] = stop, OWNER[row]
            total += NAME_SIZE[row] + ITEM_BYTES_MAX
        else:
            at, room = _check_value(data, at, ends[level], tag, row, level)
            total += NAME_SIZE[row] + room
        if at < 0:
            return np.int64(-1)
