"""OTLP/JSON text to protobuf bytes: one pass over the text, and a copy (see `json_lengths`).

A member that comes twice counts the last time, and so do the members of one oneof. Nothing
recurses: `frames` has a row for every open message, `spots` tells for each slot of it where the
value lies.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, inlined, kernel, load1
from otel_anomaly.otlp.json_decimals import BEGUN_AT
from otel_anomaly.otlp.json_lengths import (
    DEPTH,
    EXTRA,
    EXTRA_ALL,
    INDEX,
    MARKS,
    MEMBER,
    OF,
    close_length,
    enter,
    leave,
    open_length,
    take_slot,
)
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
from otel_anomaly.otlp.json_skipping import BROKEN, MORE_BEHIND, NULL, is_word, skip_value
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
)
from otel_anomaly.otlp.wire import is_utf8

DEPTH_MAX: Final = 100
"""Messages inside one another, the request being the first."""

_FIRST, _NEXT, _ITEM, _BEHIND = range(4)
"""What comes: a member or the end, a member, an item of a list of messages, a comma or the end."""


@inlined
def _read_name(text: Array, at: Int, end: Int, scratch: Array, owner: Int) -> tuple[Int, Int]:
    """A member's name and colon: (where its value begins, which name it is or -1)."""
    if at >= end or load1(text, at) != QUOTE:
        return BROKEN, np.int64(-1)
    next_, start, stop, decoded = read_string(text, at, end, scratch, np.int64(0))
    if next_ < 0:
        return BROKEN, np.int64(-1)
    member = find_member(either(text, scratch, decoded), start, stop, owner)
    at = skip_space(text, next_, end)
    if at >= end or load1(text, at) != COLON:
        return BROKEN, member
    return skip_space(text, at + 1, end), member


@inlined
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
        put, mark = open_length(put_varint(out, put, TAG[field]), out, marks, desk)
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
        frames[depth, EXTRA] += close_length(start, put - start, mark, out, marks, desk)
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
    put = enter(frames, np.int64(0), message, np.int64(0), out, marks, desk)
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
                leave(frames, depth, put, out, marks, desk)
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
    number[BEGUN_AT] = at
    return put if skip_space(text, at, end) == end else MORE_BEHIND


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
    put = enter(frames, depth + 1, OWNER[field], put, out, marks, desk)
    return at + 1, put, depth + 1, np.int64(_FIRST)


@inlined
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
    behind = np.int64(_BEHIND)
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
    take_slot(frames, depth, SLOT[field], put, spots, holes, desk)
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
