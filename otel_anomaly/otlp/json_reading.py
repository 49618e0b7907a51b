"""OTLP/JSON text to protobuf bytes, in one pass and a copy.

A message goes onto the wire with its length in front, which is known only behind it. So the first
pass leaves one byte for it:

    text    {"key":"k","value":{"stringValue":"v"}}
    bytes   0a 01 'k'  12 .. 0a 01 'v'

Nearly all messages are shorter than 128 bytes, and the byte is enough. For each that is not, a
mark says where and how long; the copy writes these lengths in full. Marks lie in the order of
their places: one is set when a message begins, and taken back when it ends and was short, for then
all that it holds was short as well.

A member that comes twice counts the last time (so do the members of one oneof). What it said
before is a hole, which the copy leaves out. So every byte is written once and copied once, and
what is worked with is bounded: `capacity_of` says how much each byte of text can take.

Nothing recurses: `frames` has a row for every open message, `spots` tells for each of its slots
where the value lies.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel, load1
from otel_anomaly.otlp.json_decimals import BEGUN_AT
from otel_anomaly.otlp.json_scalars import (
    NOT_A_LIST,
    NOT_AN_OBJECT,
    NOT_UTF8,
    TOO_NESTED,
    put_number,
    put_varint,
    read_numeric,
    read_text,
)
from otel_anomaly.otlp.json_skipping import BROKEN, NULL, is_word, skip_value
from otel_anomaly.otlp.json_tables import (
    BOOL,
    KIND,
    MESSAGE,
    OWNER,
    PRESENCE,
    REPEATED,
    SLOT,
    TAG,
    TARGET,
    find_member,
)
from otel_anomaly.otlp.json_text import (
    BRACE,
    BRACKET,
    COLON,
    COMMA,
    QUOTE,
    either,
    read_string,
    skip_space,
    skip_string,
)
from otel_anomaly.otlp.splice import varint_size
from otel_anomaly.otlp.wire import is_utf8

DEPTH_MAX: Final = 100
"""Messages inside one another, the request being the first."""
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

_FIRST, _NEXT, _ITEM, _BEHIND = range(4)
"""What comes: a member or the end, a member, an item of a list of messages, a comma or the end."""


def capacity_of(size: int) -> tuple[int, int, int]:
    """Bytes, marks and holes that a text of so many bytes can need.

    The densest is a list of numbers, `1,1,1`: eight bytes for two. A mark needs a bracket and what
    closes it, a hole a name in quotes, a colon, a value and a comma.
    """
    assert size <= LINE_BYTES_MAX
    return 4 * size + 64, size // 2 + 2, size // 6 + 2


@inlined
def _open(put: Int, out: Array, marks: Array, desk: Array) -> tuple[Int, Int]:
    """Leave a byte for a length: (put, the mark)."""
    mark = desk[MARKS]
    marks[mark, 0] = put
    out[put] = 0
    desk[MARKS] = mark + 1
    return put + 1, mark


@inlined
def _close(start: Int, length: Int, mark: Int, out: Array, marks: Array, desk: Array) -> Int:
    """Write a length, or mark it. Returns by how much what is around grows."""
    if length < 128 and mark == desk[MARKS] - 1:
        out[start - 1] = length
        desk[MARKS] = mark
        return np.int64(0)
    marks[mark, 1] = length
    return varint_size(length) - 1


@inlined
def _enter(
    frames: Array, depth: Int, message: Int, put: Int, out: Array, marks: Array, desk: Array
) -> Int:
    """Open the frame of a message whose tag is written. Returns the new put."""
    put, mark = _open(put, out, marks, desk)
    frames[depth, OF], frames[depth, START], frames[depth, MARK] = message, put, mark
    frames[depth, EXTRA], frames[depth, SEEN] = 0, 0
    frames[depth, MEMBER], frames[depth, INDEX], frames[depth, LAST_SLOT] = -1, -1, -1
    return put


@inlined
def _leave(frames: Array, depth: Int, put: Int, out: Array, marks: Array, desk: Array) -> None:
    """Close the frame at `depth`, which is not the request's."""
    start, extra = frames[depth, START], frames[depth, EXTRA]
    extra += _close(start, put - start + extra, frames[depth, MARK], out, marks, desk)
    frames[depth - 1, EXTRA] += extra
    if frames[depth - 1, INDEX] >= 0:
        frames[depth - 1, INDEX] += 1


@inlined
def _take_slot(
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


@inlined
def _read_name(text: Array, at: Int, end: Int, scratch: Array, owner: Int) -> tuple[Int, Int]:
    """A member's name and colon: (where its value begins, which name it is or -1)."""
    if at >= end or load1(text, at) != QUOTE:
        return BROKEN, np.int64(-1)
    member = np.int64(-1)
    next_, start, stop, decoded = read_string(text, at, end, scratch, np.int64(0))
    if next_ >= 0:
        member = find_member(either(text, scratch, decoded), start, stop, owner)
    else:
        next_ = skip_string(text, at, end)
        if next_ < 0:
            return BROKEN, member
    at = skip_space(text, next_, end)
    if at >= end or load1(text, at) != COLON:
        return BROKEN, member
    return skip_space(text, at + 1, end), member


@kernel
def _read_scalar(
    text: Array,
    at: Int,
    end: Int,
    scratch: Array,
    field: Int,
    out: Array,
    put: Int,
    number: Array,
) -> tuple[Int, Int]:
    """The value of a field that is neither a message nor a list: (next, put)."""
    text, scratch, out, number = borrow(text), borrow(scratch), borrow(out), borrow(number)
    tagged = put_varint(out, put, TAG[field])
    if KIND[field] < BOOL:
        next_, behind = read_text(text, at, end, scratch, KIND[field], out, tagged)
        is_default = behind == tagged + 1
    else:
        next_, value = read_numeric(text, at, end, scratch, field, number)
        if next_ < 0:
            return next_, put
        is_default = value == 0
        behind = put_number(KIND[field], value, out, tagged)
    # What is the default anyway is not written, as serialisers have it.
    return next_, put if is_default and PRESENCE[field] == 0 else behind


@kernel
def _read_list(
    text: Array,
    at: Int,
    end: Int,
    scratch: Array,
    field: Int,
    out: Array,
    put: Int,
    number: Array,
    marks: Array,
    frames: Array,
    depth: Int,
    desk: Array,
) -> tuple[Int, Int]:
    """The rest of a list of texts or numbers, behind its bracket: (next, put).

    Numbers lie in one chunk of bytes, texts each behind a tag.
    """
    text, scratch, out, number = borrow(text), borrow(scratch), borrow(out), borrow(number)
    marks, frames, desk = borrow(marks), borrow(frames), borrow(desk)
    at = skip_space(text, at, end)
    if at < end and load1(text, at) == BRACKET + 2:
        return at + 1, put
    packed, start, mark = KIND[field] >= BOOL, put, np.int64(0)
    if packed:
        put, mark = _open(put_varint(out, put, TAG[field]), out, marks, desk)
        start = put
    while True:
        at = skip_space(text, at, end)
        if packed:
            at, value = read_numeric(text, at, end, scratch, field, number)
            if at >= 0:
                put = put_number(KIND[field], value, out, put)
        else:
            put = put_varint(out, put, TAG[field])
            at, put = read_text(text, at, end, scratch, KIND[field], out, put)
        if at < 0:
            return at, put
        frames[depth, INDEX] += 1
        at = skip_space(text, at, end)
        if at >= end:
            return BROKEN, put
        byte = load1(text, at)
        at += 1
        if byte == BRACKET + 2:
            break
        if byte != COMMA:
            return BROKEN, put
    if packed:
        frames[depth, EXTRA] += _close(start, put - start, mark, out, marks, desk)
    return at, put


@inlined
def _is_null(text: Array, at: Int, end: Int) -> bool:
    """Whether there is a null."""
    return at < end and load1(text, at) == 110 and is_word(text, at, end, NULL)


@kernel
def read_request(
    text: Array,
    message: Int,
    scratch: Array,
    out: Array,
    marks: Array,
    holes: Array,
    frames: Array,
    spots: Array,
    number: Array,
    desk: Array,
) -> Int:
    """Read a text as a message: where its bytes in `out` end, or why it is none.

    The arrays are as large as `capacity_of` says. Where a value does not fit, `frames` tells the
    members that lead there.
    """
    text, scratch, out, marks = borrow(text), borrow(scratch), borrow(out), borrow(marks)
    holes, frames, spots = borrow(holes), borrow(frames), borrow(spots)
    number, desk = borrow(number), borrow(desk)
    end = text.size
    desk[:] = 0
    if not is_utf8(text, np.int64(0), end):
        return NOT_UTF8
    # The byte for a length of the request itself is the first, and not copied.
    put = _enter(frames, np.int64(0), message, np.int64(0), out, marks, desk)
    desk[MARKS] = 0
    at = skip_space(text, np.int64(0), end)
    if at >= end or load1(text, at) != BRACE:
        return NOT_AN_OBJECT
    at += 1
    comes, depth = _FIRST, np.int64(0)
    while depth >= 0:
        desk[DEPTH], number[BEGUN_AT] = depth, at
        at = skip_space(text, at, end)
        if at >= end:
            return BROKEN
        byte = load1(text, at)
        if comes == _BEHIND and byte == COMMA:
            comes = _NEXT if frames[depth, INDEX] < 0 else _ITEM
            at += 1
        elif comes == _BEHIND and frames[depth, INDEX] >= 0:
            if byte != BRACKET + 2:
                return BROKEN
            frames[depth, INDEX] = -1
            at += 1
        elif (comes == _BEHIND or comes == _FIRST) and byte == BRACE + 2:
            if depth > 0:
                _leave(frames, depth, put, out, marks, desk)
            depth -= 1
            at += 1
            comes = _BEHIND
        elif comes == _BEHIND:
            return BROKEN
        elif comes == _ITEM:
            at, put, depth, comes = _read_message(
                text, at, end, out, put, frames, depth, marks, desk
            )
        else:
            at, put, depth, comes = _read_member(
                text, at, end, scratch, out, put, frames, depth, marks, holes, spots, number, desk
            )
        if at < 0:
            return at
    desk[EXTRA_ALL] = frames[0, EXTRA]
    if skip_space(text, at, end) != end:
        return BROKEN
    return put


@inlined
def _read_message(
    text: Array,
    at: Int,
    end: Int,
    out: Array,
    put: Int,
    frames: Array,
    depth: Int,
    marks: Array,
    desk: Array,
) -> tuple[Int, Int, Int, Int]:
    """What should be an object begins: (next, put, depth, what comes).

    In a list null is an empty message.
    """
    field = TARGET[frames[depth, MEMBER]]
    put = put_varint(out, put, TAG[field])
    if depth + 1 == DEPTH_MAX:
        return TOO_NESTED, put, depth, np.int64(_BEHIND)
    if frames[depth, INDEX] >= 0 and _is_null(text, at, end):
        out[put] = 0
        frames[depth, INDEX] += 1
        return at + 4, put + 1, depth, np.int64(_BEHIND)
    if at >= end or load1(text, at) != BRACE:
        return NOT_AN_OBJECT, put, depth, np.int64(_BEHIND)
    put = _enter(frames, depth + 1, OWNER[field], put, out, marks, desk)
    return at + 1, put, depth + 1, np.int64(_FIRST)


@kernel
def _read_member(
    text: Array,
    at: Int,
    end: Int,
    scratch: Array,
    out: Array,
    put: Int,
    frames: Array,
    depth: Int,
    marks: Array,
    holes: Array,
    spots: Array,
    number: Array,
    desk: Array,
) -> tuple[Int, Int, Int, Int]:
    """A member, whole or up to where its first message begins: (next, put, depth, what comes)."""
    text, scratch, out, marks = borrow(text), borrow(scratch), borrow(out), borrow(marks)
    holes, frames, spots = borrow(holes), borrow(frames), borrow(spots)
    number, desk, behind = borrow(number), borrow(desk), np.int64(_BEHIND)
    owner = frames[depth, OF]
    at, member = _read_name(text, at, end, scratch, owner)
    if at < 0:
        return at, put, depth, behind
    if member < 0:
        return skip_value(text, at, end, number), put, depth, behind
    if _is_null(text, at, end):
        return at + 4, put, depth, behind
    field = TARGET[member]
    frames[depth, MEMBER] = member
    _take_slot(frames, depth, SLOT[field], put, spots, holes, desk)
    if REPEATED[field] == 0:
        if KIND[field] == MESSAGE:
            return _read_message(text, at, end, out, put, frames, depth, marks, desk)
        at, put = _read_scalar(text, at, end, scratch, field, out, put, number)
        return at, put, depth, behind
    if at >= end or load1(text, at) != BRACKET:
        return NOT_A_LIST, put, depth, behind
    frames[depth, INDEX] = 0
    if KIND[field] == MESSAGE:
        inner = skip_space(text, at + 1, end)
        if inner >= end or load1(text, inner) != BRACKET + 2:
            return inner, put, depth, np.int64(_ITEM)
        at = inner + 1
    else:
        at, put = _read_list(
            text, at + 1, end, scratch, field, out, put, number, marks, frames, depth, desk
        )
    if at >= 0:
        frames[depth, INDEX] = -1
    return at, put, depth, behind


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
