"""Decimal text to numbers, exactly: whole numbers of 64 bits, and the nearest double.

    -0012.50e3  ->  sign -, word 125, exponent 2     up to 18 digits are one machine number

A double is found by one multiplication with a power of five of 128 bits (D. Lemire, "Number
Parsing at a Gigabyte per Second", 2021; N. Mushtak and D. Lemire, "Fast Number Parsing Without
Fallback", 2023). What has more digits lies between `word` and `word + 1`: nearly always both are
nearest to the same double. Where not, all digits are compared with the middle between the two, in
whole numbers as long as it takes; beyond 770 digits it only counts whether one is not zero, for no
middle has more.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, bit_length, borrow, inlined, kernel, load1, multiply

DIGITS_MAX: Final = 18
INT_DIGITS_MAX: Final = 4300
"""Of a whole number in JSON, as in Python: more are refused (CVE-2020-10735)."""
INFINITE: Final = 0x7FF << 52
NOT_A_NUMBER: Final = 0x7FF8 << 48

# What is known of a number: places in an int64 array.
WORD, EXPONENT, NEGATIVE, WHOLE, DIGITS, FIRST, STOP, CUT, BEGUN_AT, NUMBER_SIZE = range(10)
"""The first 18 digits that count; the power of ten; the sign; whether neither point nor exponent
was there; how many digits count, zeros at the end included; where in the text they begin; where
they end; whether one that is not zero lies behind the first 18. And where the value or member that
was read last begins, of whatever type."""

_POWER_LEAST: Final = -342
_POWER_MOST: Final = 308
_EXPONENT_MAX: Final = 1 << 40
"""An exponent is read up to here: the digits of no text are so many."""
_LONG_DIGITS: Final = 770
_LIMB_BITS: Final = 30
_LIMB_MASK: Final = (1 << _LIMB_BITS) - 1
_LIMBS: Final = 160
assert _LIMBS * _LIMB_BITS > 3.33 * (_LONG_DIGITS - _POWER_LEAST) + 1075, "the longest fits"


def _power_of_five(power: int) -> int:
    """5 ** power times a power of two, in 128 bits.

    Cut off; rounded up where a number of 64 bits may be a multiple of 5 ** -power, for else it
    would come out a little less than it is.
    """
    value = 5 ** abs(power)
    if power >= 0:
        shift = 128 - value.bit_length()
        return value << shift if shift >= 0 else value >> -shift
    return (1 << (value.bit_length() + 127)) // value + (power >= -27)


def _signed(value: int) -> int:
    """The low 64 bits as a signed number."""
    return (value & ((1 << 64) - 1)) - ((value >> 63 & 1) << 64)


_FIVES: Final = [_power_of_five(power) for power in range(_POWER_LEAST, _POWER_MOST + 1)]
_UPPER: Final = np.array([_signed(five >> 64) for five in _FIVES], np.int64)
_LOWER: Final = np.array([_signed(five) for five in _FIVES], np.int64)


@inlined
def is_digit(text: Array, at: Int, end: Int) -> bool:
    """Whether there is a decimal digit."""
    return at < end and 48 <= load1(text, at) <= 57


@kernel
def read_decimal(text: Array, at: Int, end: Int, number: Array) -> Int:
    """Read `-?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?` into `number`; next, or -1 where it is none."""
    text, number = borrow(text), borrow(number)
    negative = np.int64(at < end and load1(text, at) == 45)
    at += negative
    if not is_digit(text, at, end):
        return np.int64(-1)
    word, digits, exponent, first = np.int64(0), np.int64(0), np.int64(0), at
    cut, whole = np.int64(0), np.int64(1)
    while True:
        while is_digit(text, at, end):
            digit = load1(text, at) - 48
            if digits < DIGITS_MAX:
                word = word * 10 + digit
                if word != 0:
                    digits += 1
                else:
                    first = at + 1
                exponent += whole - 1
            else:
                digits += 1
                cut |= digit
                exponent += whole
            at += 1
        if whole == 0 or at >= end or load1(text, at) != 46:
            break
        whole = np.int64(0)
        at += 1
        if not is_digit(text, at, end):
            return np.int64(-1)
    number[STOP] = at
    if at < end and load1(text, at) | 32 == 101:
        whole = np.int64(0)
        at, power = _read_power(text, at + 1, end)
        exponent += power
    number[WORD], number[EXPONENT], number[NEGATIVE] = word, exponent, negative
    number[WHOLE], number[DIGITS], number[FIRST], number[CUT] = whole, digits, first, cut
    return at


@inlined
def _read_power(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """What follows an `e`: (next, power); next is -1 without a digit."""
    negative = False
    if at < end and (load1(text, at) == 43 or load1(text, at) == 45):
        negative = load1(text, at) == 45
        at += 1
    if not is_digit(text, at, end):
        return np.int64(-1), np.int64(0)
    power = np.int64(0)
    while is_digit(text, at, end):
        if power < _EXPONENT_MAX:
            power = power * 10 + load1(text, at) - 48
        at += 1
    return at, -power if negative else power


@kernel
def nearest_double(text: Array, number: Array) -> Int:
    """The double nearest to a number, as its bits; infinite when it is beyond all of them."""
    text, number = borrow(text), borrow(number)
    sign = np.int64(-1) << 63 if number[NEGATIVE] != 0 else np.int64(0)
    below = _nearest(number[WORD], number[EXPONENT])
    if number[CUT] == 0:
        return below | sign
    above = _nearest(number[WORD] + 1, number[EXPONENT])
    if below == above:
        return below | sign
    side = _side_of_middle(text, number, below)
    if side > 0 or (side == 0 and below & 1 != 0):
        return above | sign
    return below | sign


@kernel
def _nearest(word: Int, exponent: Int) -> Int:
    """The bits of the double nearest to word * 10 ** exponent. 0 <= word <= 10 ** 18."""
    if word == 0 or exponent < _POWER_LEAST:
        return np.int64(0)
    if exponent > _POWER_MOST:
        return np.int64(INFINITE)
    place = exponent - _POWER_LEAST
    zeros = 64 - bit_length(word)
    high, _ = multiply(word << zeros, _LOWER[place], 0)
    high, low = multiply(word << zeros, _UPPER[place], high)
    top = high >> 63 & 1
    shift = 9 + top
    significand = (high >> shift) & ((1 << (64 - shift)) - 1)  # One bit more than a double has.
    power = (217706 * exponent >> 16) + 63 + top - zeros + 1023
    if power <= 0:
        if power <= -63:
            return np.int64(0)
        significand >>= 1 - power
        return (significand + (significand & 1)) >> 1
    # A tie goes to the even one; it is exact only where the power of five is small.
    exact = 0 <= low <= 1 and high & ((1 << shift) - 1) == 0
    if exact and -4 <= exponent <= 23 and significand & 3 == 1:
        significand -= 1
    significand = (significand + (significand & 1)) >> 1
    if significand >> 53 != 0:
        significand >>= 1
        power += 1
    if power >= 2047:
        return np.int64(INFINITE)
    return power << 52 | (significand & ((1 << 52) - 1))


@inlined
def _grow(limbs: Array, count: Int, factor: Int, more: Int) -> Int:
    """limbs * factor + more, with factor and more below 2 ** 30. Returns the count of limbs."""
    carry = more
    for i in range(count):
        carry += limbs[i] * factor
        limbs[i] = carry & _LIMB_MASK
        carry >>= _LIMB_BITS
    if carry != 0:
        limbs[count] = carry
        count += 1
    return count


@kernel
def _grow_often(limbs: Array, count: Int, factor: Int, times: Int, step: Int) -> Int:
    """limbs * factor ** times, `step` factors at once."""
    limbs = borrow(limbs)
    large = np.int64(1)
    for _ in range(step):
        large *= factor
    for _ in range(times // step):
        count = _grow(limbs, count, large, np.int64(0))
    for _ in range(times % step):
        count = _grow(limbs, count, factor, np.int64(0))
    return count


@kernel
def _side_of_middle(text: Array, number: Array, below: Int) -> Int:
    """Whether a number is less than (-1), equal to or more than (1) the middle between a double and
    the next one.
    """
    text, number = borrow(text), borrow(number)
    left, right = np.zeros(_LIMBS, np.int64), np.zeros(_LIMBS, np.int64)
    lefts, taken, rest, at = np.int64(0), np.int64(0), np.int64(0), number[FIRST]
    while at < number[STOP]:
        digit = load1(text, at) - 48
        at += 1
        if digit < 0:
            continue  # The point.
        if taken < _LONG_DIGITS:
            lefts = _grow(left, lefts, np.int64(10), digit)
            taken += 1
        else:
            rest |= digit
    biased = below >> 52
    significand = below & ((1 << 52) - 1) | (np.int64(biased != 0) << 52)
    middle = significand << 1 | 1
    rights = _grow(right, np.int64(0), np.int64(1), middle & _LIMB_MASK)
    right[1] = middle >> _LIMB_BITS
    rights = np.int64(2)
    tens = number[EXPONENT] - (taken - DIGITS_MAX)
    twos = max(biased, np.int64(1)) - 1076
    if tens >= 0:
        lefts = _grow_often(left, lefts, np.int64(10), tens, np.int64(9))
    else:
        rights = _grow_often(right, rights, np.int64(10), -tens, np.int64(9))
    if twos >= 0:
        rights = _grow_often(right, rights, np.int64(2), twos, np.int64(29))
    else:
        lefts = _grow_often(left, lefts, np.int64(2), -twos, np.int64(29))
    for i in range(_LIMBS - 1, -1, -1):
        if left[i] != right[i]:
            return np.int64(1) if left[i] > right[i] else np.int64(-1)
    return np.int64(rest != 0)


@inlined
def whole_of_digits(text: Array, number: Array) -> tuple[Int, bool]:
    """The size of a whole number without its sign: (64 bits, whether it fits them)."""
    digits, word = number[DIGITS], number[WORD]
    if digits <= DIGITS_MAX:
        return word, True
    # Less 2 ** 63, which is then put in as the highest bit: so nothing overflows.
    last = load1(text, number[STOP] - 1) - 48
    if digits == DIGITS_MAX + 1:
        if word < 922337203685477580 or (word == 922337203685477580 and last <= 7):
            return word * 10 + last, True
        return (word - 922337203685477580) * 10 + (last - 8) | np.int64(-1) << 63, True
    if digits > DIGITS_MAX + 2:
        return np.int64(0), False
    rest = (load1(text, number[STOP] - 2) - 48) * 10 + last
    if word > 184467440737095516 or (word == 184467440737095516 and rest > 15):
        return np.int64(0), False
    return (word - 92233720368547758) * 100 + (rest - 8) | np.int64(-1) << 63, True


@inlined
def whole_of_double(bits: Int) -> tuple[Int, bool, bool]:
    """The size of a double without its sign: (64 bits, whether it is whole, whether it fits)."""
    biased = (bits >> 52) & 0x7FF
    significand = bits & ((1 << 52) - 1)
    if biased == 0x7FF or biased < 1023:
        return np.int64(0), biased == 0 and significand == 0, True
    significand |= 1 << 52
    power = biased - 1075
    if power <= 0:
        return significand >> -power, significand & ((1 << -power) - 1) == 0, True
    if power < 11:
        return significand << power, True, True
    if power > 11:
        return np.int64(0), True, False
    return (significand - (1 << 52)) << 11 | np.int64(-1) << 63, True, True
