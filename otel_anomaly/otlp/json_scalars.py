"""Values of OTLP/JSON that are no messages, read into protobuf's form.

Numbers of every kind become 64 bits first (of a double its bits, of an unsigned number those of
the signed one that has them), then lie on the wire as their field wants it. Texts go there at
once. Whoever calls has made sure that there is room: nothing takes more than four times the bytes
that it has in JSON.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel, load1
from otel_anomaly.otlp.json_decimals import (
    INFINITE,
    NEGATIVE,
    NOT_A_NUMBER,
    WHOLE,
    WORD,
    nearest_double,
    read_decimal,
    whole_of_digits,
    whole_of_double,
)
from otel_anomaly.otlp.json_skipping import (
    BROKEN,
    FALSE,
    INFINITY,
    MINUS_INFINITY,
    NAN,
    TRUE,
    is_number,
    is_word,
    read_bare_number,
)
from otel_anomaly.otlp.json_tables import (
    BASE64,
    BOOL,
    DOUBLE,
    ENUM,
    FIXED_32,
    FIXED_64,
    ID,
    KIND,
    OWNER,
    RANGE_OF_KIND,
    SFIXED_32,
    SFIXED_64,
    SIGNED_32,
    SINT32,
    SINT64,
    TARGET,
    TEXT,
    UNSIGNED_32,
    UNSIGNED_64,
    find_member,
)
from otel_anomaly.otlp.json_text import QUOTE, either, read_string

# What a reader returns instead of a position when a value does not fit its field. Whether it is
# JSON at all is not looked at then, nor what comes behind it: the caller asks `check_json`.
(
    NOT_AN_OBJECT,
    NOT_A_LIST,
    NOT_A_STRING,
    NOT_HEX,
    NOT_BASE64,
    NOT_A_BOOL,
    NOT_A_DOUBLE,
    BEYOND_DOUBLES,
    NOT_WHOLE,
    OUT_OF_RANGE,
    TOO_NESTED,
    NOT_UTF8,
) = np.arange(-10, -22, -1)

_MISFIT_OF_KIND: Final = np.full(KIND.max() + 1, NOT_WHOLE, np.int64)
_MISFIT_OF_KIND[[TEXT, ID, BASE64]] = NOT_A_STRING, NOT_HEX, NOT_BASE64
_MISFIT_OF_KIND[[BOOL, DOUBLE]] = NOT_A_BOOL, NOT_A_DOUBLE

_VARINT_SIZE_MAX: Final = 10
_INT_DIGITS_MAX: Final = 20
_HEX: Final = np.full(256, -1, np.int64)
_BASE64: Final = np.full(256, -1, np.int64)
for _value, _byte in enumerate(b"0123456789abcdef"):
    _HEX[_byte] = _HEX[ord(chr(_byte).upper())] = _value
for _value, _byte in enumerate(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"):
    _BASE64[_byte] = _value
_BASE64[ord("-")], _BASE64[ord("_")] = 62, 63


# --- Texts -----------------------------------------------------------------------------------


@inlined
def put_varint(out: Array, put: Int, value: Int) -> Int:
    """Write 64 bits as a varint. Returns the position behind it."""
    if value < 0:
        return _put_long_varint(out, put, value)
    while value > 127:
        out[put] = value & 127 | 128
        value >>= 7
        put += 1
    out[put] = value
    return put + 1


@kernel
def _put_long_varint(out: Array, put: Int, value: Int) -> Int:
    """`put_varint` of a number whose highest bit is set: ten bytes."""
    out = borrow(out)
    for _ in range(_VARINT_SIZE_MAX - 1):
        out[put] = value & 127 | 128
        value >>= 7
        put += 1
    out[put] = 1
    return put + 1


@kernel
def read_text(
    text: Array, at: Int, end: Int, scratch: Array, kind: Int, out: Array, put: Int
) -> tuple[Int, Int]:
    """A string of a field of text, of hex or of base64, with its length: (next, put)."""
    text, scratch, out = borrow(text), borrow(scratch), borrow(out)
    if at >= end or load1(text, at) != QUOTE:
        return _MISFIT_OF_KIND[kind], put
    next_, start, stop, decoded = read_string(text, at, end, scratch, np.int64(0))
    if next_ < 0:
        return _MISFIT_OF_KIND[kind], put
    source = either(text, scratch, decoded)
    if kind == TEXT:
        put = put_varint(out, put, stop - start)
        copy(out, put, source, start, stop - start)
        return next_, put + stop - start
    if kind == ID:
        put = _put_hex(source, start, stop, out, put)
        return (next_ if put >= 0 else NOT_HEX), put
    put = _put_base64(source, start, stop, out, put)
    return (next_ if put >= 0 else NOT_BASE64), put


@kernel
def _put_hex(text: Array, at: Int, stop: Int, out: Array, put: Int) -> Int:
    """The bytes that hex digits in either case say, behind their length; -1 when they do not."""
    text, out = borrow(text), borrow(out)
    if stop - at & 1 != 0:
        return np.int64(-1)
    put = put_varint(out, put, stop - at >> 1)
    odd: Int = np.int64(0)
    while at < stop:
        value = _HEX[load1(text, at)] << 4 | _HEX[load1(text, at + 1)]
        odd |= value
        out[put] = value & 255
        at += 2
        put += 1
    return put if odd >= 0 else np.int64(-1)


@kernel
def _put_base64(text: Array, at: Int, stop: Int, out: Array, put: Int) -> Int:
    """The same for base64: either alphabet, any padding."""
    text, out = borrow(text), borrow(out)
    while stop > at and load1(text, stop - 1) == 61:
        stop -= 1
    rest = stop - at & 3
    if rest == 1:
        return np.int64(-1)
    put = put_varint(out, put, (stop - at) * 3 >> 2)
    odd: Int = np.int64(0)
    while stop - at >= 4:
        value = _BASE64[load1(text, at)] << 18 | _BASE64[load1(text, at + 1)] << 12
        value |= _BASE64[load1(text, at + 2)] << 6 | _BASE64[load1(text, at + 3)]
        odd |= value
        out[put] = value >> 16 & 255
        out[put + 1] = value >> 8 & 255
        out[put + 2] = value & 255
        at += 4
        put += 3
    if rest >= 2:
        value = _BASE64[load1(text, at)] << 18 | _BASE64[load1(text, at + 1)] << 12
        if rest == 3:
            value |= _BASE64[load1(text, at + 2)] << 6
            out[put + 1] = value >> 8 & 255
        odd |= value
        out[put] = value >> 16 & 255
        put += rest - 1
    return put if odd >= 0 else np.int64(-1)


# --- Numbers ---------------------------------------------------------------------------------


@kernel
def put_number(kind: Int, value: Int, out: Array, put: Int) -> Int:
    """Write 64 bits as a kind lies on the wire. Returns the position behind."""
    out = borrow(out)
    if kind == DOUBLE or kind == FIXED_64 or kind == SFIXED_64:
        for i in range(8):
            out[put + i] = value >> 8 * i & 255
        return put + 8
    if kind == FIXED_32 or kind == SFIXED_32:
        for i in range(4):
            out[put + i] = value >> 8 * i & 255
        return put + 4
    if kind == SINT32 or kind == SINT64:
        value = value << 1 if value >= 0 else ~(value << 1)
    return put_varint(out, put, value)


@kernel
def read_numeric(
    text: Array, at: Int, end: Int, scratch: Array, field: Int, number: Array
) -> tuple[Int, Int]:
    """A number, a truth or a name of a field's enum: (next, 64 bits)."""
    text, scratch, number = borrow(text), borrow(scratch), borrow(number)
    kind = KIND[field]
    if at >= end:
        return BROKEN, np.int64(0)
    if kind == BOOL:
        if is_word(text, at, end, TRUE):
            return at + 4, np.int64(1)
        if is_word(text, at, end, FALSE):
            return at + 5, np.int64(0)
        return _MISFIT_OF_KIND[kind], np.int64(0)
    if load1(text, at) == QUOTE:
        next_, start, stop, decoded = read_string(text, at, end, scratch, np.int64(0))
        if next_ < 0:
            return _MISFIT_OF_KIND[kind], np.int64(0)
        source = either(text, scratch, decoded)
        if kind == DOUBLE:
            why, value = _double_in_string(source, start, stop, number)
        else:
            why, value = _whole_in_string(source, start, stop, field, number)
        return (next_ if why >= 0 else why), value
    if is_number(text, at, end):
        next_ = read_bare_number(text, at, end, number)
        if next_ < 0:
            return next_, np.int64(0)
        why, value = _double(text, number) if kind == DOUBLE else _whole(text, number, kind)
        return (next_ if why >= 0 else why), value
    if kind == DOUBLE:
        return _special_double(text, at, end)
    return _MISFIT_OF_KIND[kind], np.int64(0)


@inlined
def _special_double(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """NaN or an infinity, as Python writes them bare: (next, bits)."""
    if is_word(text, at, end, NAN):
        return at + 3, np.int64(NOT_A_NUMBER)
    if is_word(text, at, end, INFINITY):
        return at + 8, np.int64(INFINITE)
    if is_word(text, at, end, MINUS_INFINITY):
        return at + 9, np.int64(INFINITE) | np.int64(-1) << 63
    return _MISFIT_OF_KIND[DOUBLE], np.int64(0)


@inlined
def _double(text: Array, number: Array) -> tuple[Int, Int]:
    """A bare number as a double: (0 or why not, bits). A whole one has no sign when it is 0."""
    if number[WHOLE] != 0 and number[WORD] == 0:
        return np.int64(0), np.int64(0)
    bits = nearest_double(text, number)
    if number[WHOLE] != 0 and (bits >> 52) & 0x7FF == 0x7FF:
        return BEYOND_DOUBLES, bits
    return np.int64(0), bits


@inlined
def _double_in_string(text: Array, at: Int, stop: Int, number: Array) -> tuple[Int, Int]:
    """A double in a string: (0 or why not, bits)."""
    if at < stop and read_decimal(text, at, stop, number) == stop:
        return np.int64(0), nearest_double(text, number)
    next_, bits = _special_double(text, at, stop)
    return (np.int64(0) if next_ == stop else NOT_A_DOUBLE), bits


@inlined
def _signed_whole(size: Int, fits: bool, negative: bool, kind: Int) -> tuple[Int, Int]:
    """A whole number in the range of its kind: (0 or why not, 64 bits).

    `size` is that without the sign, 64 bits; below 0 it is one from 2 ** 63 on.
    """
    if not fits:
        return OUT_OF_RANGE, size
    range_ = RANGE_OF_KIND[kind]
    inside = size == 0
    if range_ == UNSIGNED_64:
        inside |= not negative
    elif range_ == UNSIGNED_32:
        inside |= not negative and 0 < size < 1 << 32
    elif range_ == SIGNED_32:
        inside |= 0 < size < (1 << 31) + np.int64(negative)
    else:
        inside |= size > 0 or (negative and size == np.int64(-1) << 63)
    if negative and size > 0:
        size = -size
    return (np.int64(0) if inside else OUT_OF_RANGE), size


@kernel
def _whole(text: Array, number: Array, kind: Int) -> tuple[Int, Int]:
    """A bare number as a whole one: (0 or why not, 64 bits)."""
    text, number = borrow(text), borrow(number)
    negative = number[NEGATIVE] != 0
    if number[WHOLE] != 0:
        size, fits = whole_of_digits(text, number)
        return _signed_whole(size, fits, negative, kind)
    size, is_whole, fits = whole_of_double(nearest_double(text, number))
    if not is_whole:
        return NOT_WHOLE, size
    return _signed_whole(size, fits, negative, kind)


@kernel
def _whole_in_string(text: Array, at: Int, stop: Int, field: Int, number: Array) -> tuple[Int, Int]:
    """A whole number or a name in a string: (0 or why not, 64 bits)."""
    text, number = borrow(text), borrow(number)
    kind = KIND[field]
    next_ = np.int64(-1)
    if at < stop:
        next_ = read_decimal(text, at, stop, number)
    if next_ == stop and number[WHOLE] != 0:
        if stop - at - number[NEGATIVE] > _INT_DIGITS_MAX:
            return NOT_WHOLE, np.int64(0)
        size, fits = whole_of_digits(text, number)
        return _signed_whole(size, fits, number[NEGATIVE] != 0, kind)
    if kind == ENUM:
        member = find_member(text, at, stop, OWNER[field])
        if member >= 0:
            return np.int64(0), TARGET[member]
    return NOT_WHOLE, np.int64(0)
