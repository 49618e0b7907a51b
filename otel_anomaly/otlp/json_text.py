"""JSON text (RFC 8259) byte by byte: white space, strings, escapes.

A string without a backslash is read where it lies: a block of bytes at a time is searched for what
ends it. One with escapes is decoded into a scratch array, never to more bytes than it had. What is
not strict JSON (a control character in a string, half of a surrogate pair) is broken.

The bytes are UTF-8 already: every string of a request is checked when it is scanned.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import (
    BLOCK,
    Array,
    Int,
    between,
    bit_length,
    borrow,
    copy,
    inlined,
    kernel,
    load1,
)

QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
BRACKET, BRACE = np.int64(91), np.int64(123)
"""What opens an array, an object. Either is closed by the byte two above."""

_ESCAPED: Final = np.zeros(128, np.int64)
for _letter, _byte in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _ESCAPED[_letter] = _byte
_HEX: Final = np.full(256, -1, np.int64)
for _value, _byte in enumerate(b"0123456789abcdef"):
    _HEX[_byte] = _HEX[ord(chr(_byte).upper())] = _value


@inlined
def either(data: Array, scratch: Array, decoded: bool) -> Array:
    """The array a text lies in, of one type in both cases: else all that reads it compiles twice.

    What arrives is an array that may only be read, the scratch array is not.
    """
    if decoded:
        return borrow(scratch)
    return borrow(data)


@inlined
def skip_space(data: Array, at: Int, end: Int) -> Int:
    """The first byte from `at` on that is no white space, or `end`."""
    while at < end:
        byte = load1(data, at)
        if byte > 32 or (byte != 32 and byte != 10 and byte != 13 and byte != 9):
            return at
        at += 1
    return at


@inlined
def skip_mark(data: Array, at: Int, end: Int) -> Int:
    """Where a text begins behind the byte order mark that some writers put in front of JSON."""
    if end - at < 3 or load1(data, at) != 0xEF:
        return at
    return at + 3 if load1(data, at + 1) == 0xBB and load1(data, at + 2) == 0xBF else at


@inlined
def plain_until(data: Array, at: Int, end: Int) -> Int:
    """The first quote, backslash or control character from `at` on, or `end`.

    May look at bytes behind `end`, inside the array, and then forgets what it saw there.
    """
    while at < end and at + BLOCK <= data.size:
        stops = between(data, at, 0, 31) | between(data, at, QUOTE, QUOTE)
        stops |= between(data, at, BACKSLASH, BACKSLASH)
        if stops != 0:
            return min(at + bit_length(stops & -stops) - 1, end)
        at += BLOCK
    while at < end:
        byte = load1(data, at)
        if byte == QUOTE or byte == BACKSLASH or byte < 32:
            return at
        at += 1
    return end


@inlined
def read_string(
    data: Array, at: Int, end: Int, scratch: Array, room: Int
) -> tuple[Int, Int, Int, bool]:
    """The string whose opening quote is at `at`: (next, start, stop, whether in `scratch`).

    next is -1 when it is broken. With escapes, the decoded text is written to scratch[room:].
    """
    stop = plain_until(data, at + 1, end)
    if stop < end:
        if load1(data, stop) == QUOTE:
            return stop + 1, at + 1, stop, False
        if load1(data, stop) == BACKSLASH:
            return _read_escaped(data, at + 1, stop, end, scratch, room)
    return np.int64(-1), at, at, False


@kernel
def _read_escaped(
    data: Array, start: Int, at: Int, end: Int, scratch: Array, room: Int
) -> tuple[Int, Int, Int, bool]:
    """`read_string` with escapes, the first of them at `at`."""
    data, scratch = borrow(data), borrow(scratch)
    put = room
    while True:
        if at > start:
            copy(scratch, put, data, start, at - start)
            put += at - start
        if at < end and load1(data, at) == QUOTE:
            return at + 1, room, put, True
        if at >= end or load1(data, at) != BACKSLASH:
            return np.int64(-1), room, room, True
        at, put = unescape(data, at + 1, end, scratch, put)
        if at < 0:
            return np.int64(-1), room, room, True
        start = at
        if at < end and load1(data, at) != BACKSLASH:
            at = plain_until(data, at, end)


@inlined
def unescape(data: Array, at: Int, end: Int, scratch: Array, put: Int) -> tuple[Int, Int]:
    """What follows a backslash, written out: (next, where the text goes on); next -1: broken."""
    if at >= end:
        return np.int64(-1), put
    letter = load1(data, at)
    if letter == 117:
        return _unescape_unicode(data, at + 1, end, scratch, put)
    if letter > 127 or _ESCAPED[letter] == 0:
        return np.int64(-1), put
    scratch[put] = _ESCAPED[letter]
    return at + 1, put + 1


@inlined
def _hex4(data: Array, at: Int, end: Int) -> Int:
    """The number that four hexadecimal digits spell, or -1."""
    if end - at < 4:
        return np.int64(-1)
    high = _HEX[load1(data, at)] << 12 | _HEX[load1(data, at + 1)] << 8
    value = high | _HEX[load1(data, at + 2)] << 4 | _HEX[load1(data, at + 3)]
    return value if value >= 0 else np.int64(-1)


@inlined
def _unescape_unicode(data: Array, at: Int, end: Int, scratch: Array, put: Int) -> tuple[Int, Int]:
    """`unescape` behind a \\u: one character, or two halves of one, as UTF-8.

    For a half alone stands U+FFFD: JavaScript cuts texts in the middle of a character and writes
    what is left, and a batch is not to be lost for that.
    """
    code = _hex4(data, at, end)
    at += 4
    if 0xD800 <= code <= 0xDBFF and end - at >= 6:
        half = np.int64(-1)
        if load1(data, at) == BACKSLASH and load1(data, at + 1) == 117:
            half = _hex4(data, at + 2, end)
        if 0xDC00 <= half <= 0xDFFF:
            at += 6
            code = 0x10000 + ((code - 0xD800) << 10) + (half - 0xDC00)
    if code < 0:
        return np.int64(-1), put
    if 0xD800 <= code <= 0xDFFF:
        code = 0xFFFD
    return at, write_utf8(scratch, put, code)


@inlined
def write_utf8(scratch: Array, put: Int, code: Int) -> Int:
    """Write a character as UTF-8; returns where the text goes on."""
    if code < 0x80:
        scratch[put] = code
        return put + 1
    if code < 0x800:
        scratch[put] = 0xC0 | code >> 6
        scratch[put + 1] = 0x80 | code & 63
        return put + 2
    if code < 0x10000:
        scratch[put] = 0xE0 | code >> 12
        scratch[put + 1] = 0x80 | code >> 6 & 63
        scratch[put + 2] = 0x80 | code & 63
        return put + 3
    scratch[put] = 0xF0 | code >> 18
    scratch[put + 1] = 0x80 | code >> 12 & 63
    scratch[put + 2] = 0x80 | code >> 6 & 63
    scratch[put + 3] = 0x80 | code & 63
    return put + 4


@kernel
def skip_string(data: Array, at: Int, end: Int) -> Int:
    """The position behind the string whose opening quote is at `at`, or -1 where it is broken."""
    data = borrow(data)
    at += 1
    while True:
        at = plain_until(data, at, end)
        if at >= end or load1(data, at) < 32:
            return np.int64(-1)
        if load1(data, at) == QUOTE:
            return at + 1
        if at + 1 >= end:
            return np.int64(-1)
        letter = load1(data, at + 1)
        at += 2
        if letter == 117:
            if _hex4(data, at, end) < 0:
                return np.int64(-1)
            at += 4
        elif letter > 127 or _ESCAPED[letter] == 0:
            return np.int64(-1)
