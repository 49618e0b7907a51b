"""The two readers of values: JSON text, and the AnyValue messages of OpenTelemetry.

Both walk from left to right with a stack of frames, never by recursion, and tell `canonical` what
they meet; the same value gets the same hash from either. False from a reader: cannot be read, or
is ambiguous, and its bytes must count as they are.

Here, and in what is called from here, every kernel borrows its arrays: counting references from
step to step made half of the time.

An AnyValue is read in the one form that every encoder writes: a single member, keys before their
values, nothing unknown. Protobuf allows more (a member repeated is merged or replaced), which
nobody sends but to have two readers understand two things.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel, load1, load8
from otel_anomaly.otlp.canonical import (
    AS_BYTES,
    AS_STRING,
    DEPTH_MAX,
    FALSE,
    NULL,
    TRUE,
    begin,
    close_frame,
    open_frame,
    put,
    take_literal,
    take_name,
    take_number,
    take_text,
)
from otel_anomaly.otlp.hashing import load_rest
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
from otel_anomaly.otlp.numbers import hash_double, hash_int, read_number, read_plain
from otel_anomaly.otlp.wire import BYTES, FIXED64, VARINT, read_length, read_tag, read_varint

NOTHING, TEXT, TRUTH, WHOLE, REAL, LIST, MAP, BLOB = range(8)
"""Members of AnyValue, by field number."""


@kernel
def read_text(
    data: Array,
    at: Int,
    end: Int,
    room: Int,
    desk: Record,
    plan: Record,
    looking: Int,
    scratch: Array,
) -> bool:
    """One JSON value in [at, end). Strings with escapes are decoded to scratch[room:]."""
    data, scratch = borrow(data), borrow(scratch)
    begin(desk, plan, looking)
    level = np.int64(0)
    while True:
        at = skip_space(data, at, end)
        if at == end:
            return False
        byte = load1(data, at)
        if byte == BRACE or byte == BRACKET:
            if level == DEPTH_MAX:
                return False
            level += 1
            open_frame(level, byte, desk)
            desk["start"][level] = at
            at = skip_space(data, at + 1, end)
            if at == end:
                return False
            if load1(data, at) != byte + 2:
                if byte == BRACE:
                    at = _read_name(data, at, end, level, room, desk, plan, scratch)
                    if at < 0:
                        return False
                continue
        else:
            start = at
            at = _read_scalar(data, at, end, level, room, desk, plan, scratch)
            if at < 0:
                return False
            put(level, start, at, desk, plan)
        level, at = _read_behind(data, at, end, level, room, desk, plan, scratch)
        if level <= 0:
            return level == 0 and at == end


@inlined
def _read_behind(
    data: Array,
    at: Int,
    end: Int,
    level: Int,
    room: Int,
    desk: Record,
    plan: Record,
    scratch: Array,
) -> tuple[Int, Int]:
    """What follows a value, or opens what is empty, up to the next value: (level, next).

    Level 0: the value as a whole is read. Level -1: this is not JSON.
    """
    while level > 0:
        at = skip_space(data, at, end)
        if at == end:
            return np.int64(-1), at
        byte, shape = load1(data, at), desk["shape"][level]
        at += 1
        if byte == COMMA:
            if shape == BRACE:
                at = skip_space(data, at, end)
                at = _read_name(data, at, end, level, room, desk, plan, scratch)
            return (level if at >= 0 else np.int64(-1)), at
        if byte != shape + 2 or not close_frame(level, desk, plan):
            return np.int64(-1), at
        level -= 1
        put(level, desk["start"][level + 1], at, desk, plan)
    return level, skip_space(data, at, end)


@inlined
def _read_name(
    data: Array,
    at: Int,
    end: Int,
    level: Int,
    room: Int,
    desk: Record,
    plan: Record,
    scratch: Array,
) -> Int:
    """A member's name at `at` and the colon: where the value begins, or -1."""
    if at == end or load1(data, at) != QUOTE:
        return np.int64(-1)
    at, start, stop, decoded = read_string(data, at, end, scratch, room)
    if at < 0 or not take_name(either(data, scratch, decoded), start, stop, level, desk, plan):
        return np.int64(-1)
    at = skip_space(data, at, end)
    if at == end or load1(data, at) != COLON:
        return np.int64(-1)
    return at + 1


@inlined
def _read_scalar(
    data: Array,
    at: Int,
    end: Int,
    level: Int,
    room: Int,
    desk: Record,
    plan: Record,
    scratch: Array,
) -> Int:
    """A string, number or literal at `at`: where it ends, or -1."""
    byte = load1(data, at)
    if byte == QUOTE:
        at, start, stop, decoded = read_string(data, at, end, scratch, room)
        if at >= 0:
            take_text(either(data, scratch, decoded), start, stop, AS_STRING, level, desk, plan)
        return at
    if byte == 45 or 48 <= byte <= 57:
        value, stop = read_plain(data, at, end, plan["seed"])
        if stop < 0:
            value, stop = read_number(data, at, end, scratch, room, plan["seed"])
        take_number(value, desk, plan)
        return stop
    return _read_literal(data, at, end, level, desk, plan)


@kernel
def _read_literal(data: Array, at: Int, end: Int, level: Int, desk: Record, plan: Record) -> Int:
    """`null`, `true` or `false` at `at`: where it ends, or -1."""
    data = borrow(data)
    if end - at < 4:
        return np.int64(-1)
    word = load_rest(data, at, np.int64(4))
    if word == 0x6C6C756E:
        take_literal(NULL, level, desk, plan)
        return at + 4
    if word == 0x65757274:
        take_literal(TRUE, level, desk, plan)
        return at + 4
    if word == 0x736C6166 and end - at > 4 and load1(data, at + 4) == 101:
        take_literal(FALSE, level, desk, plan)
        return at + 5
    return np.int64(-1)


@kernel
def any_member(data: Array, at: Int, end: Int) -> tuple[Int, Int, Int]:
    """(member, where its value begins, ends) of an AnyValue; member -1 for an unusual form."""
    data = borrow(data)
    if at == end:
        return np.int64(NOTHING), at, end
    tag, start = read_tag(data, at, end)
    if start < 0:
        return np.int64(-1), at, end
    field, wire = tag >> 3, tag & 7
    stop = np.int64(-1)
    if wire == BYTES and (field == TEXT or LIST <= field <= BLOB):
        start, stop = read_length(data, start, end)
    elif wire == VARINT and (field == TRUTH or field == WHOLE):
        _, stop = read_varint(data, start, end)
    elif wire == FIXED64 and field == REAL:
        stop = start + 8
    return (field if stop == end else np.int64(-1)), start, end


@kernel
def read_any(data: Array, at: Int, end: Int, desk: Record, plan: Record, looking: Int) -> bool:
    """The AnyValue whose checked message is [at, end)."""
    data = borrow(data)
    begin(desk, plan, looking)
    level = np.int64(0)
    while True:
        member, start, stop = any_member(data, at, end)
        if member < 0 or level == DEPTH_MAX:
            return False
        if member == LIST or member == MAP:
            level += 1
            open_frame(level, BRACE if member == MAP else BRACKET, desk)
            desk["start"][level], desk["end"][level] = at, end
            desk["at"][level], desk["stop"][level] = start, stop
        else:
            _take_scalar(data, member, start, stop, level, desk, plan)
            put(level, at, end, desk, plan)
        while level > 0 and desk["at"][level] == desk["stop"][level]:
            if not close_frame(level, desk, plan):
                return False
            level -= 1
            put(level, desk["start"][level + 1], desk["end"][level + 1], desk, plan)
        if level == 0:
            return True
        at, end = _next_item(data, level, desk, plan)
        if at < 0:
            return False


@inlined
def _take_scalar(
    data: Array, member: Int, at: Int, end: Int, level: Int, desk: Record, plan: Record
) -> None:
    """The value of an AnyValue that holds no others."""
    if member == TEXT or member == BLOB:
        take_text(data, at, end, AS_STRING if member == TEXT else AS_BYTES, level, desk, plan)
    elif member == TRUTH:
        number, _ = read_varint(data, at, end)
        take_literal(TRUE if number != 0 else FALSE, level, desk, plan)
    elif member == WHOLE:
        number, _ = read_varint(data, at, end)
        take_number(hash_int(number, plan["seed"]), desk, plan)
    elif member == REAL:
        take_number(hash_double(load8(data, at), plan["seed"]), desk, plan)
    else:
        take_literal(NULL, level, desk, plan)


@kernel
def _next_item(data: Array, level: Int, desk: Record, plan: Record) -> tuple[Int, Int]:
    """Where the next AnyValue of the frame lies; at -1 for an unusual form."""
    data = borrow(data)
    tag, at = read_tag(data, desk["at"][level], desk["stop"][level])
    if at < 0 or tag != (1 << 3 | BYTES):
        return np.int64(-1), at
    at, stop = read_length(data, at, desk["stop"][level])
    if stop < 0:
        return np.int64(-1), at
    desk["at"][level] = stop
    if desk["shape"][level] == BRACKET:
        return at, stop
    name, name_end = at, at
    tag, after = read_tag(data, at, stop)
    if after >= 0 and tag == (1 << 3 | BYTES):
        name, name_end = read_length(data, after, stop)
        at = name_end
    if name_end < 0 or not take_name(data, name, name_end, level, desk, plan):
        return np.int64(-1), at
    if at == stop:
        return at, stop
    tag, after = read_tag(data, at, stop)
    if after < 0 or tag != (2 << 3 | BYTES):
        return np.int64(-1), at
    at, value_end = read_length(data, after, stop)
    return (at if value_end == stop else np.int64(-1)), stop
