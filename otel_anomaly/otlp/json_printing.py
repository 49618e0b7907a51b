"""Values of OTLP/JSON that are no messages, written from protobuf's form.

Each writer takes `put` and returns the position behind what it wrote; that there is room was
proved before (`room_for_json`). Doubles are written as Python has them: the shortest digits that
read back as the same double.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel, load1, load8, room
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.json_tables import (
    BOOL,
    DOUBLE,
    ENUM,
    ID,
    INT32,
    RANGE_OF_KIND,
    SFIXED_32,
    SIGNED_64,
    SINT32,
    SINT64,
    TEXT,
    UINT32,
    UNSIGNED_64,
    WIRE_OF_KIND,
)
from otel_anomaly.otlp.json_text import BACKSLASH, QUOTE, plain_until
from otel_anomaly.otlp.numbers import shortest
from otel_anomaly.otlp.wire import FIXED32, VARINT, read_varint

_DIGITS: Final = np.frombuffer(b"0123456789abcdef", np.uint8).copy()
_BASE64: Final = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8
).copy()
_ESCAPES: Final = np.zeros(256, np.int64)
for _letter, _byte in zip(b'"\\bfnrt', b'"\\\b\f\n\r\t', strict=True):
    _ESCAPES[_byte] = _letter
_NOT_FINITE: Final = np.frombuffer(b'"-Infinity""NaN"', np.uint8).copy()
_TRUE_FALSE: Final = np.frombuffer(b"truefalse", np.uint8).copy()
_POINT_MIN, _POINT_MAX = -4, 16
"""A double is written without an exponent when its point lies behind more digits than -4, and
behind no more than 16: as `repr` has it."""


@kernel
def print_text(data: Array, at: Int, end: Int, out: Array, put: Int) -> Int:
    """A string in quotes, escaped where JSON needs it and nowhere else."""
    data, out = borrow(data), borrow(out)
    out[put] = QUOTE
    put += 1
    while True:
        stop = plain_until(data, at, end)
        copy(out, put, data, at, stop - at)
        put += stop - at
        if stop == end:
            break
        byte = load1(data, stop)
        out[put] = BACKSLASH
        if _ESCAPES[byte] != 0:
            out[put + 1] = _ESCAPES[byte]
            put += 2
        else:
            out[put + 1], out[put + 2], out[put + 3] = 117, 48, 48
            out[put + 4], out[put + 5] = _DIGITS[byte >> 4], _DIGITS[byte & 15]
            put += 6
        at = stop + 1
    out[put] = QUOTE
    return put + 1


@kernel
def _print_hex(data: Array, at: Int, end: Int, out: Array, put: Int) -> Int:
    """Bytes as hex digits in quotes."""
    data, out = borrow(data), borrow(out)
    out[put] = QUOTE
    put += 1
    for i in range(at, end):
        byte = load1(data, i)
        out[put], out[put + 1] = _DIGITS[byte >> 4], _DIGITS[byte & 15]
        put += 2
    out[put] = QUOTE
    return put + 1


@kernel
def _print_base64(data: Array, at: Int, end: Int, out: Array, put: Int) -> Int:
    """Bytes as base64 in quotes."""
    data, out = borrow(data), borrow(out)
    out[put] = QUOTE
    put += 1
    while at < end:
        count = min(end - at, 3)
        bits = load1(data, at) << 16
        if count > 1:
            bits |= load1(data, at + 1) << 8
        if count > 2:
            bits |= load1(data, at + 2)
        for i in range(4):
            out[put + i] = _BASE64[bits >> 18 - 6 * i & 63] if i <= count else 61
        at += count
        put += 4
    out[put] = QUOTE
    return put + 1


@inlined
def print_bytes(data: Array, at: Int, end: Int, kind: Int, out: Array, put: Int) -> Int:
    """A value of a field of text, of ids or of other bytes."""
    if kind == TEXT:
        return print_text(data, at, end, out, put)
    if kind == ID:
        return _print_hex(data, at, end, out, put)
    return _print_base64(data, at, end, out, put)


@kernel
def read_wire_number(data: Array, at: Int, end: Int, kind: Int) -> tuple[Int, Int]:
    """A number as it lies on the wire: (64 bits, next). Checked to be there."""
    data = borrow(data)
    wire = WIRE_OF_KIND[kind]
    if wire == VARINT:
        value, at = read_varint(data, at, end)
        if kind == BOOL:
            return np.int64(value != 0), at
        if kind == INT32 or kind == ENUM:
            return ((value & 0xFFFFFFFF) ^ 1 << 31) - (1 << 31), at
        if kind == UINT32:
            return value & 0xFFFFFFFF, at
        if kind == SINT32:
            value &= 0xFFFFFFFF
        if kind == SINT32 or kind == SINT64:
            return (value >> 1 & (1 << 63) - 1) ^ -(value & 1), at
        return value, at
    if wire == FIXED32:
        value = np.int64(0)
        for i in range(4):
            value |= load1(data, at + i) << 8 * i
        if kind == SFIXED_32:
            value = (value ^ 1 << 31) - (1 << 31)
        return value, at + 4
    return load8(data, at), at + 8


@inlined
def _print_whole(value: Int, out: Array, put: Int) -> Int:
    """A signed number as decimal digits."""
    digits = room(20)
    start = decimal(value, digits)
    copy(out, put, digits, start, 20 - start)
    return put + 20 - start


@kernel
def print_number(value: Int, kind: Int, out: Array, put: Int) -> Int:
    """64 bits as the JSON value of a kind."""
    out = borrow(out)
    if kind == DOUBLE:
        return _print_double(value, out, put)
    if kind == BOOL:
        copy(out, put, _TRUE_FALSE, 0 if value != 0 else 4, 4 if value != 0 else 5)
        return put + 4 if value != 0 else put + 5
    range_ = RANGE_OF_KIND[kind]
    if range_ != SIGNED_64 and range_ != UNSIGNED_64:
        return _print_whole(value, out, put)
    out[put] = QUOTE
    if range_ == SIGNED_64 or value >= 0:
        put = _print_whole(value, out, put + 1)
    else:
        half = value >> 1 & (1 << 63) - 1  # As a number without a sign: a tenth, and the rest.
        put = _print_whole(half // 5, out, put + 1)
        out[put] = 48 + half % 5 * 2 + (value & 1)
        put += 1
    out[put] = QUOTE
    return put + 1


@kernel
def _print_double(bits: Int, out: Array, put: Int) -> Int:
    """A double as Python's `repr` has it; what is not finite in quotes."""
    out = borrow(out)
    biased, fraction = bits >> 52 & 0x7FF, bits & (1 << 52) - 1
    if biased == 0x7FF and fraction != 0:
        copy(out, put, _NOT_FINITE, 11, 5)
        return put + 5
    if biased == 0x7FF:
        out[put] = QUOTE
        size = 10 if bits < 0 else 9
        copy(out, put + 1, _NOT_FINITE, 11 - size, size)
        return put + 1 + size
    if bits < 0:
        out[put] = 45
        put += 1
    digits, power = np.int64(0), np.int64(0)
    if biased != 0:
        digits, power = shortest(fraction | 1 << 52, biased - 1075)
    elif fraction != 0:
        digits, power = shortest(fraction, np.int64(-1074))
    while digits != 0 and digits % 10 == 0:
        digits //= 10
        power += 1
    return _print_decimal(digits, power, out, put)


@inlined
def _zeros(out: Array, put: Int, count: Int) -> Int:
    """So many zeros."""
    for i in range(count):
        out[put + i] = 48
    return put + count


@inlined
def _print_decimal(digits: Int, power: Int, out: Array, put: Int) -> Int:
    """digits * 10 ** power, neither below 0 nor with a zero at the end of the digits."""
    text = room(20)
    start = decimal(digits, text)
    count = 20 - start
    point = count + power  # So many digits stand in front of it.
    if point <= _POINT_MIN or point > _POINT_MAX:
        return _print_power(text, start, count, point - 1, out, put)
    if point <= 0:
        out[put], out[put + 1] = 48, 46
        put = _zeros(out, put + 2, -point)
        copy(out, put, text, start, count)
        return put + count
    before = min(point, count)
    copy(out, put, text, start, before)
    put = _zeros(out, put + before, point - before)
    out[put] = 46
    put += 1
    if before == count:
        out[put] = 48
        return put + 1
    copy(out, put, text, start + before, count - before)
    return put + count - before


@inlined
def _print_power(text: Array, start: Int, count: Int, power: Int, out: Array, put: Int) -> Int:
    """One digit, a point and the others if there are any, and the power of ten."""
    out[put] = load1(text, start)
    put += 1
    if count > 1:
        out[put] = 46
        copy(out, put + 1, text, start + 1, count - 1)
        put += count
    out[put], out[put + 1] = 101, 45 if power < 0 else 43
    put += 2
    power = abs(power)
    if power < 10:
        out[put] = 48
        put += 1
    return _print_whole(power, out, put)
