"""One attribute: where its key and its value lie, and the value's hash.

Almost every KeyValue is a key, then one AnyValue with one scalar. `read_pair` takes that short way
and leaves anything unusual (fields out of order or repeated, unknown ones, nested values) to
`read_unusual_pair`, which checks the whole message first and then reads it at leisure.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.hashing import hash_bytes
from otel_anomaly.otlp.wire import (
    BYTES,
    FIXED64,
    KEY_VALUE,
    VARINT,
    check_message,
    is_utf8,
    read_length,
    read_tag,
    read_varint,
    skip,
)

NONE, STRING, BOOL, INT, ANY = range(5)
"""Kinds of a value. NONE: absent. ANY: a list, a map, bytes or a double, which name nobody; its
range is that of the whole AnyValue."""

IN_NOTHING = np.int64(0)
"""Depth for walking what is checked already."""


@kernel
def _last_key(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the last key of a checked KeyValue begins and ends; both `at` when it has none."""
    found, found_end = at, at
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (1 << 3 | BYTES):
            found, found_end = read_length(data, at, end)
        at = skip(data, at, end, tag, IN_NOTHING)
    return found, found_end


@kernel
def read_value(
    data: Array, at: Int, end: Int, kind: Int, value_at: Int, length: Int
) -> tuple[Int, Int, Int]:
    """What an AnyValue ends up with: (kind, where, length). The range is checked.

    The members are one oneof: the last on the wire wins, also over one of another type. What
    comes in is what an earlier AnyValue of the same pair left, for protobuf merges them; but of
    lists and maps in several such parts only the last part is told.
    """
    first = at
    while at < end:
        tag, at = read_tag(data, at, end)
        field, wire = tag >> 3, tag & 7
        if field == 1 and wire == BYTES:
            value_at, stop = read_length(data, at, end)
            kind, length = STRING, stop - value_at
        elif (field == 2 or field == 3) and wire == VARINT:
            kind, value_at, length = BOOL if field == 2 else INT, at, end - at
        elif (field == 4 and wire == FIXED64) or (5 <= field <= 7 and wire == BYTES):
            kind, value_at, length = ANY, first, end - first
        elif field == 8 and wire == VARINT:
            kind = NONE  # An index into a table that only profiles have.
        at = skip(data, at, end, tag, IN_NOTHING)
    return kind, value_at, length


@kernel
def read_unusual_pair(
    data: Array, at: Int, end: Int, depth: Int
) -> tuple[bool, Int, Int, Int, Int, Int]:
    """`read_pair` for a KeyValue in any form that protobuf accepts."""
    if not check_message(data, at, end, KEY_VALUE, depth):
        return False, at, at, NONE, at, 0
    key, key_end = _last_key(data, at, end)
    kind, value_at, length = NONE, at, 0
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (2 << 3 | BYTES):
            start, stop = read_length(data, at, end)
            kind, value_at, length = read_value(data, start, stop, kind, value_at, length)
        at = skip(data, at, end, tag, IN_NOTHING)
    return True, key, key_end, kind, value_at, length


@inlined
def read_pair(data: Array, at: Int, end: Int, depth: Int) -> tuple[bool, Int, Int, Int, Int, Int]:
    """A KeyValue in [at, end): (ok, key start, key end, kind of value, where it is, its length)."""
    if end - at < 4 or load1(data, at) != 10 or load1(data, at + 1) > 127:
        return read_unusual_pair(data, at, end, depth)
    key = at + 2
    key_end = key + load1(data, at + 1)
    if end - key_end < 2 or load1(data, key_end) != 18:
        return read_unusual_pair(data, at, end, depth)
    start, stop = read_length(data, key_end + 1, end)
    if stop != end or start == stop:
        return read_unusual_pair(data, at, end, depth)
    member = load1(data, start)
    if member == 10:
        text, text_end = read_length(data, start + 1, stop)
        if text_end == stop:
            ok = is_utf8(data, key, key_end) and is_utf8(data, text, text_end)
            return ok, key, key_end, STRING, text, text_end - text
    elif member == 16 or member == 24:
        _, after = read_varint(data, start + 1, stop)
        if after == stop:
            kind = BOOL if member == 16 else INT
            return is_utf8(data, key, key_end), key, key_end, kind, start + 1, stop - start - 1
    return read_unusual_pair(data, at, end, depth)


@kernel
def decimal(number: Int, digits: Array) -> Int:
    """Write a signed number as ASCII at the end of `digits` (uint8 [20]); returns the start."""
    at = 20
    rest = number if number < 0 else -number  # The negative side holds one number more.
    while True:
        tens = (rest + 9) // 10
        at -= 1
        digits[at] = 48 + tens * 10 - rest
        rest = tens
        if rest == 0:
            break
    if number < 0:
        at -= 1
        digits[at] = 45
    return at


@kernel
def _hash_number(data: Array, kind: Int, at: Int, length: Int, seed: Int) -> Int:
    """Hash of a bool or an int as the text a person would write."""
    number, _ = read_varint(data, at, at + length)
    digits = np.empty(20, np.uint8)
    if kind == INT:
        start = decimal(number, digits)
    elif number != 0:
        start = 16
        digits[16], digits[17], digits[18], digits[19] = 116, 114, 117, 101  # true
    else:
        start = 15
        digits[15], digits[16], digits[17] = 102, 97, 108  # false
        digits[18], digits[19] = 115, 101
    return hash_bytes(digits, start, 20 - start, seed)


@inlined
def hash_value(data: Array, kind: Int, at: Int, length: Int, seed: Int) -> Int:
    """Hash of the value as text, or 0 when it names nothing: empty, or not of a scalar type."""
    if kind == STRING and length > 0:
        return hash_bytes(data, at, length, seed)
    if kind == BOOL or kind == INT:
        return _hash_number(data, kind, at, length, seed)
    return np.int64(0)
