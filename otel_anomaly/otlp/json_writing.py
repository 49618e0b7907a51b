"""Protobuf bytes to OTLP/JSON text, in the order of field numbers.

Serialisers write the fields of a message by their numbers, and a list in one piece: such a message
is written as it is read. The wire allows more, and a span that got our verdict has its attributes
in two pieces. So the fields of every message are looked at before it is written; where they do not
come in order, each is looked for in turn:

    a list                     all its pieces, one after the other
    a message                  its parts, read as if they were one: so protobuf merges them
    any other value            the last
    members of a oneof         what the last one says, from where the others had their say

That takes as many walks over the fields of the message as it has different ones, not over what is
in them: at most 16, whatever the bytes are. A frame is an open message; its pieces lie on a stack
of ranges. The bytes have been checked: see `room_for_json`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel
from otel_anomaly.otlp.json_printing import print_bytes, print_number, read_wire_number
from otel_anomaly.otlp.json_tables import (
    BOOL,
    FIRST_ROW,
    KIND,
    MESSAGE,
    NAME,
    NAME_AT,
    NAME_SIZE,
    OWNER,
    PACKED,
    PRESENCE,
    REPEATED,
    SLOT,
    SLOTS_MAX,
    row_of,
)
from otel_anomaly.otlp.json_text import BRACE, BRACKET, COMMA
from otel_anomaly.otlp.wire import BYTES, DEPTH_MAX, read_length, read_tag, skip

BODY_BYTES_MAX: Final = (1 << 31) - 1
"""Protobuf's own limit: places are numbers of 31 bits."""

# What is known of an open message.
OF, PIECE, PIECES, AT, MISSING, LIST, WRITTEN, FRAME_SIZE = range(8)
"""Its number; the piece being read; where its pieces end on the stack; where in the piece to read
on; the fields still to be looked for, as a set, or -1 when they come in order; the row of the list
being written, or -1; how many members are."""


def pieces_of(size: int) -> int:
    """Pieces that can be open at once: each has a tag and a length of its own."""
    return size // 2 + DEPTH_MAX + 2


@kernel
def _survey(data: Array, pieces: Array, first: Int, last: Int, message: Int) -> Int:
    """The fields that the pieces of a message hold, as a set; -1 when they come in order."""
    data, pieces = borrow(data), borrow(pieces)
    seen: Int = np.int64(0)
    slots: Int = np.int64(0)
    highest, in_order = np.int64(-1), last - first == 1
    for piece in range(first, last):
        at, end = np.int64(pieces[piece, 0]), np.int64(pieces[piece, 1])
        while at < end:
            tag, at = read_tag(data, at, end)
            row = row_of(tag, message)
            at = skip(data, at, end, tag, np.int64(0))
            if row < 0:
                continue
            place, slot = row - FIRST_ROW[message], np.int64(1) << SLOT[row]
            if place < highest or (slots & slot != 0 and REPEATED[row] == 0):
                in_order = False
            highest = place
            seen |= np.int64(1) << place
            slots |= slot
    return np.int64(-1) if in_order else seen


@inlined
def _enter(
    data: Array, frames: Array, depth: Int, message: Int, pieces: Array, first: Int, last: Int
) -> None:
    """Open the frame of a message that lies in pieces[first:last]."""
    frames[depth, OF], frames[depth, PIECE], frames[depth, PIECES] = message, first, last
    frames[depth, AT] = pieces[first, 0]
    frames[depth, MISSING] = _survey(data, pieces, first, last, message)
    frames[depth, LIST], frames[depth, WRITTEN] = -1, 0


@inlined
def _field(data: Array, at: Int, end: Int, message: Int) -> tuple[Int, Int, Int, Int]:
    """The next field: (its row or -1, where its value begins and ends, next)."""
    tag, at = read_tag(data, at, end)
    row = row_of(tag, message)
    if tag & 7 == BYTES:
        start, stop = read_length(data, at, end)
        return row, start, stop, stop
    next_ = skip(data, at, end, tag, np.int64(0))
    return row, at, next_, next_


@inlined
def _next_piece(
    data: Array, frames: Array, depth: Int, first: Int, pieces: Array, wanted: Int
) -> Int:
    """The row of the next value of a field, or of any if -1 is wanted; -1 when there is none.

    The range of the value is put on the stack of pieces. Reads on where the frame says; `first`
    is the first of its pieces.
    """
    last, at = frames[depth, PIECES], frames[depth, AT]
    for piece in range(frames[depth, PIECE], last):
        if piece > frames[depth, PIECE]:
            at = np.int64(pieces[piece, 0])
        end = np.int64(pieces[piece, 1])
        while at < end:
            row, start, stop, at = _field(data, at, end, frames[depth, OF])
            if row >= 0 and (row == wanted or wanted < 0):
                frames[depth, PIECE], frames[depth, AT] = piece, at
                pieces[last, 0], pieces[last, 1] = start, stop
                return row
    frames[depth, PIECE], frames[depth, AT] = first, pieces[first, 0]
    return np.int64(-1)


@kernel
def _last_value(
    data: Array, pieces: Array, first: Int, last: Int, message: Int, wanted: Int
) -> Int:
    """How many parts the value of a field has that is no list, put on the stack of pieces.

    0 when another member of its oneof came later.
    """
    data, pieces = borrow(data), borrow(pieces)
    count = np.int64(0)
    for piece in range(first, last):
        at, end = np.int64(pieces[piece, 0]), np.int64(pieces[piece, 1])
        while at < end:
            row, start, stop, at = _field(data, at, end, message)
            if row < 0 or SLOT[row] != SLOT[wanted]:
                continue
            if row != wanted or KIND[row] != MESSAGE:
                count = np.int64(0)
            if row == wanted:
                pieces[last + count, 0], pieces[last + count, 1] = start, stop
                count += 1
    return count


@inlined
def _next_value(
    data: Array, frames: Array, depth: Int, first: Int, pieces: Array
) -> tuple[Int, Int]:
    """The next value to write: (the row of its field or -1, how many parts it is in).

    The parts are put on the stack of pieces, behind those of the frame.
    """
    if frames[depth, MISSING] < 0:
        return _next_piece(data, frames, depth, first, pieces, np.int64(-1)), np.int64(1)
    return _next_missing(data, frames, depth, first, pieces)


@kernel
def _next_missing(
    data: Array, frames: Array, depth: Int, first: Int, pieces: Array
) -> tuple[Int, Int]:
    """`_next_value` where the fields do not come in order."""
    data, frames, pieces = borrow(data), borrow(frames), borrow(pieces)
    message = frames[depth, OF]
    for place in range(SLOTS_MAX):
        if frames[depth, MISSING] >> place & 1 == 0:
            continue
        wanted = FIRST_ROW[message] + place
        if REPEATED[wanted] != 0:
            if _next_piece(data, frames, depth, first, pieces, wanted) >= 0:
                return wanted, np.int64(1)
            frames[depth, MISSING] ^= np.int64(1) << place
        else:
            frames[depth, MISSING] ^= np.int64(1) << place
            count = _last_value(data, pieces, first, frames[depth, PIECES], message, wanted)
            if count > 0:
                return wanted, count
    return np.int64(-1), np.int64(0)


@inlined
def _write_name(frames: Array, depth: Int, row: Int, out: Array, put: Int) -> Int:
    """What stands in front of a value: an end of a list, a comma, a name, the start of a list."""
    list_ = frames[depth, LIST]
    if list_ >= 0 and list_ == row:
        out[put] = COMMA
        return put + 1
    if list_ >= 0:
        out[put] = BRACKET + 2
        put += 1
    if frames[depth, WRITTEN] > 0:
        out[put] = COMMA
        put += 1
    copy(out, put, NAME, NAME_AT[row], NAME_SIZE[row])
    put += NAME_SIZE[row]
    frames[depth, WRITTEN] += 1
    frames[depth, LIST] = -1
    if REPEATED[row] != 0:
        frames[depth, LIST] = row
        out[put] = BRACKET
        put += 1
    return put


@inlined
def _write_scalar(
    data: Array, start: Int, stop: Int, row: Int, frames: Array, depth: Int, out: Array, put: Int
) -> Int:
    """A member that is no message, or items of a list: behind them. What is not set is left out."""
    kind = KIND[row]
    if kind < BOOL:
        if start == stop and PRESENCE[row] == 0 and REPEATED[row] == 0:
            return put
        put = _write_name(frames, depth, row, out, put)
        return print_bytes(data, start, stop, kind, out, put)
    while start < stop:
        value, start = read_wire_number(data, start, stop, kind)
        if value == 0 and PRESENCE[row] == 0 and PACKED[row] == 0:
            return put
        put = _write_name(frames, depth, row, out, put)
        put = print_number(value, kind, out, put)
    return put


@kernel
def write_json(data: Array, message: Int, pieces: Array, frames: Array, out: Array) -> Int:
    """Write a request that `room_for_json` has let pass. Returns the size of its JSON.

    `pieces` is int32 [`pieces_of(size)`, 2], `frames` int64 [DEPTH_MAX + 1, FRAME_SIZE].
    """
    data, pieces, frames, out = borrow(data), borrow(pieces), borrow(frames), borrow(out)
    pieces[0, 0], pieces[0, 1] = 0, data.size
    _enter(data, frames, np.int64(0), message, pieces, np.int64(0), np.int64(1))
    out[0] = BRACE
    put, depth = np.int64(1), np.int64(0)
    while depth >= 0:
        first = frames[depth - 1, PIECES] if depth > 0 else np.int64(0)
        row, count = _next_value(data, frames, depth, first, pieces)
        last = frames[depth, PIECES]
        if row < 0:
            if frames[depth, LIST] >= 0:
                out[put] = BRACKET + 2
                put += 1
            out[put] = BRACE + 2
            put += 1
            depth -= 1
        elif KIND[row] == MESSAGE:
            put = _write_name(frames, depth, row, out, put)
            out[put] = BRACE
            put += 1
            depth += 1
            _enter(data, frames, depth, OWNER[row], pieces, last, last + count)
        else:
            start, stop = np.int64(pieces[last, 0]), np.int64(pieces[last, 1])
            put = _write_scalar(data, start, stop, row, frames, depth, out, put)
    return put
