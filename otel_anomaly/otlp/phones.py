"""Phone numbers as people write them: with a plus, or in groups the way a country writes them.

    +49 30 123456  +491701234567       a plus, 8 to 15 digits (ITU-T E.164)
    0049 30 1234567                    00 for the plus, in groups
    (212) 555-0123  212-555-0123  1-212-555-0123    North America: area and exchange from 2 up
    01 23 45 67 89                     France: five pairs
    020 7946 0958  030/1234567         a 0 and the area in three to five digits, 9 to 12 in all
    (11) 91234-5678                    the area in brackets, 9 to 12 digits in all

A bare run of digits is no phone number, nor is a date (`01-02-2026 10:30`) or a version.
"""

from __future__ import annotations

from typing import Final

from otel_anomaly.kernels import Array, Int, kernel, load1
from otel_anomaly.otlp.check_digits import number_of
from otel_anomaly.otlp.digit_groups import (
    BLANK,
    BRACKET,
    DASH,
    DOT,
    LENGTH_BITS,
    LENGTH_MASK,
    goes_on,
    has_form,
    same_signs,
    shape_of,
)

_E164_LEAST, _E164_MOST = 8, 15
_PREFIXED_LEAST, _PREFIXED_MOST = 10, 17
_NATIONAL_LEAST, _NATIONAL_MOST = 9, 12
_AMERICAN: Final = shape_of(3, 3, 4)
_AMERICAN_LONG: Final = shape_of(1, 3, 3, 4)
_FRENCH: Final = shape_of(2, 2, 2, 2, 2)


@kernel
def phone_groups(
    text: Array, at: Int, shape: Int, signs: Int, count: Int, plus: bool, bracket: bool
) -> Int:
    """How many groups make a phone number; 0: none. `plus`, `bracket`: what stands before."""
    first, second = load1(text, at) - 48, load1(text, at + 1) - 48
    if plus:
        return 0 if first == 0 else _most_groups(shape, count, _E164_LEAST, _E164_MOST, 0)
    sign = signs & 127
    if sign == BRACKET and bracket:
        american = has_american(text, at, shape, signs, count)
        if american > 0:
            return american
        length = shape & LENGTH_MASK
        if length < 2 or length > 5:
            return 0
        return _most_groups(shape, count, _NATIONAL_LEAST, _NATIONAL_MOST, 2)
    if first != 0:
        return has_american(text, at, shape, signs, count)
    length = shape & LENGTH_MASK
    paired = sign == BLANK or sign == DOT or sign == DASH
    if paired and second != 0 and has_form(shape, signs, count, _FRENCH, same_signs(sign, 4), 5):
        return 5
    if sign == DOT or sign == BRACKET or length < 3:
        return 0
    if second == 0:
        return _most_groups(shape, count, _PREFIXED_LEAST, _PREFIXED_MOST, 2)
    if length > 5:
        return 0
    return _most_groups(shape, count, _NATIONAL_LEAST, _NATIONAL_MOST, 2)


@kernel
def _most_groups(shape: Int, count: Int, least: Int, most: Int, groups: Int) -> Int:
    """The most groups, at least `groups`, whose digits are `least` to `most`; 0: none do."""
    total, used = 0, 0
    for group in range(count):
        total += (shape >> LENGTH_BITS * group) & LENGTH_MASK
        if total > most:
            break
        if total >= least and group + 1 >= groups:
            used = group + 1
    return used


@kernel
def has_american(text: Array, at: Int, shape: Int, signs: Int, count: Int) -> Int:
    """How many groups make a North American number: 3, 4 with the leading 1, or 0."""
    lead = 1 if shape & LENGTH_MASK == 1 and load1(text, at) == 49 else 0
    wanted = _AMERICAN_LONG if lead == 1 else _AMERICAN
    if count < 3 + lead or shape & ((1 << LENGTH_BITS * (3 + lead)) - 1) != wanted:
        return 0
    before, between = (signs >> 8 * lead) & 127, (signs >> 8 * (lead + 1)) & 127
    if between != DASH and between != DOT and not (between == BLANK and before == BRACKET):
        return 0
    if before != between and before != BRACKET and before != BLANK:
        return 0
    if count > 3 + lead and goes_on(signs, 3 + lead) and between != BLANK:
        return 0
    number = number_of(text, at, 10 + lead)
    if lead == 1:
        number %= 10_000_000_000
    return 3 + lead if number >= 2_000_000_000 and number // 10_000 % 1_000 >= 200 else 0
