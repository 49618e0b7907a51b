"""Groups of digits with one sign between them: how people write long numbers.

    4111 1111-1111       lengths 4, 4, 4; signs " " and "-"
    (555) 123-4567       lengths 3, 3, 4; signs "(" and "-": a bracket and what is around it is one

Lengths are one number, five bits each, and signs another, eight bits each, the first lowest: so a
form is compared in one step. At most eight groups and some two dozen digits are read.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.characters import DIGIT, WORD, digits_end, kind_at, span_of
from otel_anomaly.otlp.check_digits import next_digit

_GROUPS_MAX: Final = 8
_DIGITS_MAX: Final = 24
LENGTH_BITS: Final = 5
LENGTH_MASK: Final = 31

BLANK, DASH, DOT, SLASH, BRACKET = (ord(sign) for sign in " -./(")


def shape_of(*lengths: int) -> int:
    """Lengths of groups as one number, five bits each, the first lowest."""
    return sum(length << LENGTH_BITS * i for i, length in enumerate(lengths))


def signs_of(signs: str) -> int:
    """Signs behind groups as one number, eight bits each, the first lowest."""
    return int.from_bytes(signs.encode(), "little")


@inlined
def read_groups(text: Array, at: Int, end: Int) -> tuple[Int, Int, Int, Int]:
    """Groups of digits with a sign between them: (lengths, signs, how many, digits in all)."""
    shape, signs, count, digits = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    while True:
        stop = digits_end(text, at, min(end, at + LENGTH_MASK))
        if stop < end and kind_at(text, stop) & WORD != 0:
            break  # A word, or a longer number than any.
        shape |= (stop - at) << LENGTH_BITS * count
        digits += stop - at
        count += 1
        following, sign = behind_sign(text, stop, end)
        if sign == 0 or count == _GROUPS_MAX or digits > _DIGITS_MAX:
            break
        signs |= sign << 8 * (count - 1)
        at = following
    return shape, signs, count, digits


@inlined
def behind_sign(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """(where the next group begins, the sign before it): one sign, or up to three with a bracket.

    The sign is 0 when no group follows.
    """
    bracket = False
    limit = min(at + 3, end)
    stop = at
    while stop < limit:
        byte = load1(text, stop)
        if byte == 40 or byte == 41:
            bracket = True
        elif byte != BLANK and byte != DASH and byte != DOT and byte != SLASH:
            break
        stop += 1
    if stop == at or stop == end or kind_at(text, stop) & DIGIT == 0:
        return at, np.int64(0)
    if bracket:
        return stop, np.int64(BRACKET)
    return stop, load1(text, at) if stop == at + 1 else np.int64(0)


@kernel
def behind_groups(text: Array, at: Int, end: Int, count: Int) -> Int:
    """The position behind `count` groups, which lie in [at, end)."""
    for _ in range(count):
        at = span_of(text, next_digit(text, at), end, DIGIT)
    return at


@inlined
def has_form(
    shape: Int, signs: Int, count: Int, wanted: Int, wanted_signs: Int, groups: Int
) -> bool:
    """Whether the first groups have these lengths, and these signs between them."""
    if count < groups or shape & ((np.int64(1) << LENGTH_BITS * groups) - 1) != wanted:
        return False
    return signs & ((np.int64(1) << 8 * (groups - 1)) - 1) == wanted_signs


@inlined
def goes_on(signs: Int, groups: Int) -> bool:
    """Whether the group behind these is joined by the sign between the last two of them."""
    return (signs >> 8 * (groups - 1)) & 127 == (signs >> 8 * (groups - 2)) & 127


@inlined
def same_signs(sign: Int, count: Int) -> Int:
    """The same sign `count` times."""
    signs = np.int64(0)
    for _ in range(count):
        signs = signs << 8 | sign
    return signs
