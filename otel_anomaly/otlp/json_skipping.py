"""JSON that nobody looks into: members with unknown names, checked to the last byte all the same.

What is let pass is what Python's own reader lets pass: RFC 8259, bare NaN and infinities, halves
of surrogate pairs; not whole numbers of more than 4300 digits. Brackets nest `NESTING_MAX` deep.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, inlined, kernel, load1
from otel_anomaly.otlp.json_decimals import (
    BEGUN_AT,
    DIGITS,
    INT_DIGITS_MAX,
    WHOLE,
    is_digit,
    read_decimal,
)
from otel_anomaly.otlp.json_text import BRACE, BRACKET, COLON, COMMA, QUOTE, skip_space, skip_string

NESTING_MAX: Final = 1000

# What a reader returns instead of a position.
BROKEN, TOO_DEEP, MORE_BEHIND = np.int64(-1), np.int64(-2), np.int64(-3)

_MINUS: Final = 45
_WORDS: Final = tuple(
    np.frombuffer(word, np.uint8).copy()
    for word in (b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity")
)
NULL, TRUE, FALSE, NAN, INFINITY, MINUS_INFINITY = _WORDS


@inlined
def is_word(text: Array, at: Int, end: Int, word: Array) -> bool:
    """Whether a word stands there."""
    if end - at < word.size:
        return False
    for i in range(word.size):
        if load1(text, at + i) != word[i]:
            return False
    return True


@inlined
def is_number(text: Array, at: Int, end: Int) -> bool:
    """Whether a number begins there."""
    byte = load1(text, at)
    if byte == _MINUS:
        return at + 1 < end and load1(text, at + 1) != 73
    return 48 <= byte <= 57


@inlined
def read_bare_number(text: Array, at: Int, end: Int, number: Array) -> Int:
    """Read a JSON number (RFC 8259, 6) into `number`; next, or BROKEN."""
    digits_at = at + np.int64(load1(text, at) == _MINUS)
    next_ = read_decimal(text, at, end, number)
    if next_ < 0:
        return BROKEN
    if load1(text, digits_at) == 48 and is_digit(text, digits_at + 1, end):
        return BROKEN
    if number[WHOLE] != 0 and number[DIGITS] > INT_DIGITS_MAX:
        return BROKEN
    return next_


@kernel
def skip_scalar(text: Array, at: Int, end: Int, number: Array) -> Int:
    """The position behind a string, number or word, or BROKEN. Needs `at < end`."""
    text, number = borrow(text), borrow(number)
    if load1(text, at) == QUOTE:
        return skip_string(text, at, end)
    if is_number(text, at, end):
        return read_bare_number(text, at, end, number)
    if is_word(text, at, end, NULL) or is_word(text, at, end, TRUE):
        return at + 4
    if is_word(text, at, end, FALSE):
        return at + 5
    if is_word(text, at, end, NAN):
        return at + 3
    if is_word(text, at, end, INFINITY):
        return at + 8
    return at + 9 if is_word(text, at, end, MINUS_INFINITY) else BROKEN


@inlined
def _skip_name(text: Array, at: Int, end: Int) -> Int:
    """The position behind a name, its colon and the space around them, or BROKEN."""
    at = skip_space(text, at, end)
    if at >= end or load1(text, at) != QUOTE:
        return BROKEN
    at = skip_string(text, at, end)
    if at < 0:
        return BROKEN
    at = skip_space(text, at, end)
    return at + 1 if at < end and load1(text, at) == COLON else BROKEN


@inlined
def _skip_closed(text: Array, at: Int, end: Int, opened: Array, depth: Int) -> tuple[Int, Int]:
    """Behind a value: past what is closed there and on to the next value.

    Returns (next, depth). At depth 0 next is behind it all; BROKEN is possible anywhere.
    """
    while depth > 0:
        at = skip_space(text, at, end)
        if at >= end:
            return BROKEN, depth
        byte = load1(text, at)
        at += 1
        if byte == COMMA:
            return (_skip_name(text, at, end) if opened[depth - 1] == BRACE else at), depth
        if byte != opened[depth - 1] + 2:
            return BROKEN, depth
        depth -= 1
    return at, depth


@kernel
def skip_value(text: Array, at: Int, end: Int, number: Array) -> Int:
    """The position behind any JSON value, space in front of it included, or BROKEN or TOO_DEEP."""
    text, number = borrow(text), borrow(number)
    opened = np.empty(NESTING_MAX, np.int64)
    depth = np.int64(0)
    while True:
        number[BEGUN_AT] = at
        at = skip_space(text, at, end)
        if at >= end:
            return BROKEN
        byte = load1(text, at)
        if byte == BRACE or byte == BRACKET:
            if depth == NESTING_MAX:
                return TOO_DEEP
            opened[depth] = byte
            depth += 1
            inner = skip_space(text, at + 1, end)
            if inner < end and load1(text, inner) == byte + 2:
                at = inner
            else:
                at = _skip_name(text, inner, end) if byte == BRACE else inner
                if at < 0:
                    return BROKEN
                continue
        else:
            at = skip_scalar(text, at, end, number)
            if at < 0:
                return BROKEN
        at, depth = _skip_closed(text, at, end, opened, depth)
        if at < 0 or depth == 0:
            return at


@kernel
def check_json(text: Array, number: Array) -> Int:
    """Whether a text is one JSON value: its size, or BROKEN, TOO_DEEP or MORE_BEHIND."""
    text, number = borrow(text), borrow(number)
    at = skip_value(text, np.int64(0), text.size, number)
    if at < 0:
        return at
    number[BEGUN_AT] = at
    at = skip_space(text, at, text.size)
    return at if at == text.size else MORE_BEHIND
