"""The members of a JSON object that stands in an attribute, one after the other.

Only as much of JSON as names need: the value of a member is a text, a number or a truth value; a
nested one is stepped over. Texts are told as they are spelled, escapes included: a name spelled in
one way by its emitter is always the same bytes. Reading stops where the text is no JSON.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.attributes import NONE, STRING

OPENING, COMMA = np.int64(ord("{")), np.int64(ord(","))
_QUOTE, _BACKSLASH, _COLON = np.int64(34), np.int64(92), np.int64(58)
_OPEN_LIST, _CLOSE_LIST, _CLOSE_MAP = np.int64(91), np.int64(93), np.int64(125)
_LETTER_N = np.int64(ord("n"))


@inlined
def _skip_space(data: Array, at: Int, end: Int) -> Int:
    while at < end:
        byte = load1(data, at)
        if byte != 32 and byte != 10 and byte != 13 and byte != 9:
            break
        at += 1
    return at


@inlined
def _text_end(data: Array, at: Int, end: Int) -> Int:
    """Where the closing quote of a text stands that begins at `at`; -1 when it has none."""
    while at < end:
        byte = load1(data, at)
        if byte == _QUOTE:
            return at
        at += 2 if byte == _BACKSLASH else 1
    return np.int64(-1)


@kernel
def _skip_nested(data: Array, at: Int, end: Int) -> Int:
    """The position behind a list or map that begins at `at`, or -1."""
    depth = np.int64(0)
    while at < end:
        byte = load1(data, at)
        if byte == _QUOTE:
            at = _text_end(data, at + 1, end)
            if at < 0:
                return np.int64(-1)
        elif byte == _OPEN_LIST or byte == OPENING:
            depth += 1
        elif byte == _CLOSE_LIST or byte == _CLOSE_MAP:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return np.int64(-1)


@inlined
def _word_end(data: Array, at: Int, end: Int) -> Int:
    """Where a number or a word ends."""
    while at < end:
        byte = load1(data, at)
        if byte <= 32 or byte == COMMA or byte == _CLOSE_MAP or byte == _CLOSE_LIST:
            break
        at += 1
    return at


@kernel
def _read_member_value(data: Array, at: Int, end: Int) -> tuple[Int, Int, Int, Int]:
    """(kind, where, length, next): next is -1 when there is none."""
    if at >= end:
        return NONE, at, 0, -1
    first = load1(data, at)
    if first == _QUOTE:
        stop = _text_end(data, at + 1, end)
        if stop < 0:
            return NONE, at, 0, -1
        return STRING, at + 1, stop - at - 1, stop + 1
    if first == _OPEN_LIST or first == OPENING:
        return NONE, at, 0, _skip_nested(data, at, end)
    stop = _word_end(data, at, end)
    if stop == at:
        return NONE, at, 0, -1
    return NONE if first == _LETTER_N else STRING, at, stop - at, stop


@kernel
def read_member(
    data: Array, at: Int, end: Int, separator: Int
) -> tuple[Int, Int, Int, Int, Int, Int]:
    """The member behind `separator`, which is to stand at `at`: OPENING first, then COMMA.

    Returns (key, its end, kind of value, where it is, its length, next); next is -1 when there is
    no member.
    """
    at = _skip_space(data, at, end)
    if at >= end or load1(data, at) != separator:
        return at, at, NONE, at, 0, -1
    key = _skip_space(data, at + 1, end) + 1
    if key > end or load1(data, key - 1) != _QUOTE:
        return at, at, NONE, at, 0, -1
    key_end = _text_end(data, key, end)
    if key_end < 0:
        return at, at, NONE, at, 0, -1
    at = _skip_space(data, key_end + 1, end)
    if at >= end or load1(data, at) != _COLON:
        return at, at, NONE, at, 0, -1
    kind, value_at, length, after = _read_member_value(data, _skip_space(data, at + 1, end), end)
    return key, key_end, kind, value_at, length, after
