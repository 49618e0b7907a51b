"""Groups of digits with one sign between them: how people write long numbers.

    4111 1111-1111       lengths 4, 4, 4; signs " " and "-"
    (555) 123-4567       lengths 3, 3, 4; signs "(" and "-": a bracket and what is around it is one

Lengths are one number, five bits each, and signs another, eight bits each, the first lowest: so a
form is compared in one step. At most eight groups are read, and none behind as many digits as a
number may have, in the 62 bytes that one look tells digits and signs of.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import BLOCK, Array, Int, between, bit_count, inlined, kernel, load1
from otel_anomaly.otlp.characters import DIGIT, WORD, kind_at, lowest, span_of
from otel_anomaly.otlp.check_digits import next_digit

_GROUPS_MAX: Final = 8
_DIGITS_MAX: Final = 19
"""Of the longest number that is known: what stands behind that many is not read."""
LENGTH_BITS: Final = 5
LENGTH_MASK: Final = 31
_WINDOW: Final = 62
_REST: Final = (1 << (_WINDOW - BLOCK)) - 1
_BLOCK_BITS: Final = (1 << BLOCK) - 1
_ALL: Final = (1 << 63) - 1

BLANK, DASH, DOT, SLASH, BRACKET = (ord(sign) for sign in " -./(")


def shape_of(*lengths: int) -> int:
    """Lengths of groups as one number, five bits each, the first lowest."""
    return sum(length << LENGTH_BITS * i for i, length in enumerate(lengths))


def signs_of(signs: str) -> int:
    """Signs behind groups as one number, eight bits each, the first lowest."""
    return int.from_bytes(signs.encode(), "little")


@inlined
def digits_and_joints(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Which bytes of a block are digits, and which are signs that may stand between groups.

    Bit i for the byte at `at + i`; none from `end` on.
    """
    digits, joints = np.int64(0), np.int64(0)
    if at + BLOCK <= text.size:
        digits = between(text, at, 48, 57)
        joints = between(text, at, 45, 47) | between(text, at, 40, 41)  # - . / ( )
        joints |= between(text, at, BLANK, BLANK)
        if end - at < BLOCK:
            inside = (np.int64(1) << (end - at)) - 1
            digits, joints = digits & inside, joints & inside
        return digits, joints
    for i in range(at, min(end, at + BLOCK)):
        byte, bit = load1(text, i), np.int64(1) << (i - at)
        if 48 <= byte <= 57:
            digits |= bit
        elif byte == BLANK or 45 <= byte <= 47 or 40 <= byte <= 41:
            joints |= bit
    return digits, joints


@inlined
def with_next_block(text: Array, at: Int, end: Int, digits: Int, joints: Int) -> tuple[Int, Int]:
    """`digits_and_joints` of the first 62 bytes, those of the first block known.

    Nothing that is known here is longer.
    """
    if digits | joints != _BLOCK_BITS or at + BLOCK >= end:
        return digits, joints
    more_digits, more_joints = digits_and_joints(text, at + BLOCK, end)
    return digits | (more_digits & _REST) << BLOCK, joints | (more_joints & _REST) << BLOCK


@inlined
def next_group(at: Int, digits: Int, joints: Int) -> tuple[Int, Int]:
    """(where the group behind the one that ends at bit `at` begins, its length); 0: none."""
    begin = at + lowest(joints >> at & 7 ^ 15)
    return begin, lowest((digits >> begin) ^ _ALL) if begin > at else np.int64(0)


@inlined
def few_digits(digits: Int, joints: Int, least: Int) -> bool:
    """Whether fewer digits than `least` stand here, with signs between them or without."""
    others = (digits | joints) ^ _ALL
    return bit_count(digits & ((others & -others) - 1)) < least


@inlined
def read_groups(
    text: Array, at: Int, end: Int, digits: Int, joints: Int
) -> tuple[Int, Int, Int, Int]:
    """Groups of digits with a sign between them: (lengths, signs, how many, digits in all).

    `digits` and `joints`: what `with_next_block` says of `at`.
    """
    shape, signs, count, total = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    place = np.int64(0)
    while True:
        length = lowest((digits >> place) ^ _ALL)
        stop = place + length
        if length > LENGTH_MASK or stop >= _WINDOW:
            break  # A longer number than any.
        if at + stop < end and kind_at(text, at + stop) & WORD != 0:
            break
        shape |= length << LENGTH_BITS * count
        total += length
        count += 1
        gap = lowest(joints >> stop & 7 ^ 15)
        if gap == 0 or digits >> (stop + gap) & 1 == 0:
            break
        sign = _sign_of(text, at + stop, gap)
        if sign == 0 or count == _GROUPS_MAX or total > _DIGITS_MAX:
            break
        signs |= sign << 8 * (count - 1)
        place = stop + gap
    return shape, signs, count, total


@inlined
def _sign_of(text: Array, at: Int, gap: Int) -> Int:
    """The sign that one to three bytes between two groups are; 0: none."""
    bracket = False
    for i in range(at, at + gap):
        bracket = bracket or load1(text, i) | 1 == 41
    if bracket:
        return np.int64(BRACKET)
    return load1(text, at) if gap == 1 else np.int64(0)


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
