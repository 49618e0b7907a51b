"""Numbers by their exact decimal value: 1, 1.0, 1e0 and 10e-1 get one hash, 0.1 and 0.10 too.

    -120.50e3  ->  sign -, digits 1205, exponent 2      digits without zeros at either end
    0, -0, 0.0e9  ->  digits 0, exponent 0

Up to 18 digits are one machine number; longer ones are hashed as text. An exponent beyond
`POWER_MAX` is not computed with: such a number is told apart by its spelling.

A double stands for the shortest decimal that reads back as the same double, closest to it where
several are as short: what Python, JavaScript and Java write into JSON. Found with one table and
three multiplications, by Raffaello Giulietti, "The Schubfach way to render doubles" (2020).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, copy, inlined, kernel, load1
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.hashing import hash_bytes, hash_two

DIGITS_MAX: Final = 18
"""Digits that fit a signed number of 64 bits whatever they are."""
_MANTISSA_MAX: Final = 10**DIGITS_MAX
POWER_MAX: Final = 999_999_999

# What keeps the hashes of different kinds of numbers apart: mixed into the seed.
_NUMBER: Final = 0x5D1C8A6F2B94E703
_LONG: Final = 0x1B7F03D95CE8A264
_SPELT: Final = 0x39E6B1D4078AF25C
_NO_NUMBER: Final = 0x74A2C95E1D3F860B

_LOW31: Final = (1 << 31) - 1
_MAX: Final = (1 << 63) - 1
_POWER_LEAST: Final = -324
_POWER_MOST: Final = 292


@inlined
def hash_decimal(mantissa: Int, exponent: Int, seed: Int) -> Int:
    """Hash of mantissa * 10 ** exponent. The mantissa does not end with the digit 0."""
    return hash_two(mantissa, exponent, seed ^ _NUMBER)


@inlined
def _hash_long(digits: Int, exponent: Int, negative: Int, seed: Int) -> Int:
    """The same for more digits: `digits` is the hash of their text."""
    return hash_two(digits, exponent * 2 + negative, seed ^ _LONG)


@inlined
def _read_digits(
    data: Array, at: Int, end: Int, mantissa: Int, digits: Int, zeros: Int
) -> tuple[Int, Int, Int, Int]:
    """Read on through digits: (next, mantissa, digits that count, zeros behind the last of them).

    Beyond `DIGITS_MAX` the mantissa stays behind, only the count goes on.
    """
    while at < end:
        digit = load1(data, at) - 48
        if digit < 0 or digit > 9:
            break
        at += 1
        if digit == 0:
            if digits > 0:
                zeros += 1
            continue
        digits += zeros + 1
        if digits <= DIGITS_MAX:
            for _ in range(zeros + 1):
                mantissa *= 10
            mantissa += digit
        zeros = np.int64(0)
    return at, mantissa, digits, zeros


@kernel
def _read_power(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """What follows an `e`: (next, power); next is -1 without a digit. Too large stays too large."""
    data = borrow(data)
    negative = False
    if at < end and (load1(data, at) == 43 or load1(data, at) == 45):
        negative = load1(data, at) == 45
        at += 1
    start = at
    power = np.int64(0)
    while at < end and 48 <= load1(data, at) <= 57:
        if power <= POWER_MAX:
            power = power * 10 + load1(data, at) - 48
        at += 1
    if at == start:
        return np.int64(-1), power
    return at, -power if negative else power


@kernel
def _hash_digits(data: Array, at: Int, count: Int, scratch: Array, room: Int, seed: Int) -> Int:
    """Hash of the `count` digits from the first that is not 0; a point among them is left out."""
    data, scratch = borrow(data), borrow(scratch)
    while load1(data, at) == 48 or load1(data, at) == 46:
        at += 1
    before = np.int64(0)
    while before < count and load1(data, at + before) != 46:
        before += 1
    copy(scratch, room, data, at, before)
    copy(scratch, room + before, data, at + before + 1, count - before)
    return hash_bytes(scratch, room, count, seed ^ _LONG)


@inlined
def read_plain(data: Array, at: Int, end: Int, seed: Int) -> tuple[Int, Int]:
    """`read_number` of most numbers: up to 18 digits and nothing else. Next is -1 for others."""
    start, mantissa, zeros = at, np.int64(0), np.int64(0)
    limit = min(end, at + DIGITS_MAX)
    while at < limit:
        digit = load1(data, at) - 48
        if digit < 0 or digit > 9:
            break
        mantissa = mantissa * 10 + digit
        at += 1
    if at == start or load1(data, start) == 48:
        return np.int64(0), np.int64(-1)
    if at < end:
        byte = load1(data, at)
        if byte == 46 or byte | 32 == 101 or 48 <= byte <= 57:
            return np.int64(0), np.int64(-1)
    while mantissa % 10 == 0:
        mantissa //= 10
        zeros += 1
    return hash_decimal(mantissa, zeros, seed), at


@kernel
def read_number(
    data: Array, at: Int, end: Int, scratch: Array, room: Int, seed: Int
) -> tuple[Int, Int]:
    """A JSON number at `at`, below `end`: (hash, next); next is -1 when it is none (RFC 8259, 6).

    Writes to `scratch` from `room` on, no more bytes than it reads.
    """
    data, scratch = borrow(data), borrow(scratch)
    start = at
    negative = np.int64(load1(data, at) == 45)
    first = at + negative
    at, mantissa, digits, zeros = _read_digits(
        data, first, end, np.int64(0), np.int64(0), np.int64(0)
    )
    if at == first or (at - first > 1 and load1(data, first) == 48):
        return np.int64(0), np.int64(-1)
    fraction = np.int64(0)
    if at < end and load1(data, at) == 46:
        point = at + 1
        at, mantissa, digits, zeros = _read_digits(data, point, end, mantissa, digits, zeros)
        fraction = at - point
        if fraction == 0:
            return np.int64(0), np.int64(-1)
    power = np.int64(0)
    if at < end and load1(data, at) | 32 == 101:
        at, power = _read_power(data, at + 1, end)
        if at < 0:
            return np.int64(0), np.int64(-1)
    if digits == 0:
        return hash_decimal(np.int64(0), np.int64(0), seed), at
    if power > POWER_MAX or power < -POWER_MAX:
        return hash_bytes(data, start, at - start, seed ^ _SPELT), at
    exponent = power + zeros - fraction
    if digits <= DIGITS_MAX:
        return hash_decimal(-mantissa if negative else mantissa, exponent, seed), at
    text = _hash_digits(data, first, digits, scratch, room, seed)
    return _hash_long(text, exponent, negative, seed), at


@kernel
def hash_int(number: Int, seed: Int) -> Int:
    """Hash of a signed number of 64 bits: that of the JSON number of the same value."""
    exponent = np.int64(0)
    while number != 0 and number % 10 == 0:
        number //= 10
        exponent += 1
    if -_MANTISSA_MAX < number < _MANTISSA_MAX:
        return hash_decimal(number, exponent, seed)
    digits = np.empty(20, np.uint8)
    start = decimal(number, digits)
    negative = np.int64(number < 0)
    start += negative
    text = hash_bytes(digits, start, 20 - start, seed ^ _LONG)
    return _hash_long(text, exponent, negative, seed)


@kernel
def hash_double(bits: Int, seed: Int) -> Int:
    """Hash of an IEEE 754 double: that of the JSON number a program writes for it.

    JSON has no infinities and no NaN; each of them equals itself only.
    """
    biased = (bits >> 52) & 0x7FF
    fraction = bits & ((1 << 52) - 1)
    if biased == 0x7FF:
        return hash_two(np.int64(fraction != 0), np.int64(bits < 0), seed ^ _NO_NUMBER)
    if biased == 0 and fraction == 0:
        return hash_decimal(np.int64(0), np.int64(0), seed)
    if biased == 0:
        digits, exponent = shortest(fraction, np.int64(-1074))
    else:
        digits, exponent = shortest(fraction | (1 << 52), biased - 1075)
    while digits % 10 == 0:
        digits //= 10
        exponent += 1
    return hash_decimal(-digits if bits < 0 else digits, exponent, seed)


def _powers() -> tuple[Array, Array]:
    """10 ** -k rounded up to 126 bits, for every k that a double can need: upper and lower 63."""
    upper, lower = [], []
    for k in range(_POWER_LEAST, _POWER_MOST + 1):
        shift = 125 - ((-k * 913_124_641_741) >> 38)
        if k <= 0:
            value = 10**-k
            scaled = (value << shift if shift >= 0 else value >> -shift) + 1
        else:
            scaled = (1 << shift) // 10**k + 1
        upper.append(scaled >> 63)
        lower.append(scaled & _MAX)
    return np.array(upper, np.int64), np.array(lower, np.int64)


_UPPER, _LOWER = _powers()


@inlined
def _product(a: Int, b: Int) -> tuple[Int, Int]:
    """(the upper 64 bits of a * b, the lower 64 without the last). 0 <= a < 2**63, b < 2**61.

    In pieces of 31 bits, so that no intermediate result needs a sign.
    """
    a1, a0 = a >> 31, a & _LOW31
    b1, b0 = b >> 31, b & _LOW31
    low = a0 * b0
    mid = a1 * b0 + (low >> 31)
    more = a0 * b1 + (mid & _LOW31)
    high = a1 * b1 + (mid >> 31) + (more >> 31)  # In units of 2**62.
    rest = ((more & _LOW31) << 30) | ((low & _LOW31) >> 1)
    return high >> 2, ((high & 3) << 61) | rest


@inlined
def _rounded(k: Int, value: Int) -> Int:
    """`value` * 10 ** -k, scaled by the table, rounded to odd: the last bit tells of any rest."""
    place = k - _POWER_LEAST
    carry, _ = _product(_LOWER[place], value)
    high, low = _product(_UPPER[place], value)
    if low > _MAX - carry:
        high += 1
        rest = low - (_MAX - carry) - 1
    else:
        rest = low + carry
    return high | np.int64(rest != 0)


@kernel
def shortest(significand: Int, power: Int) -> tuple[Int, Int]:
    """(digits, exponent) of the shortest decimal that rounds to significand * 2 ** power."""
    odd = significand & 1
    middle = significand << 2
    left = middle - 2
    k = (power * 661_971_961_083) >> 41
    if significand == 1 << 52 and power != -1074:
        # The neighbour below is half as far away as the one above.
        left = middle - 1
        k = (power * 661_971_961_083 - 274_743_187_321) >> 41
    shift = power + ((-k * 913_124_641_741) >> 38) + 2
    value = _rounded(k, middle << shift)
    least = _rounded(k, left << shift) + odd  # An even one is what its own borders round to.
    most = _rounded(k, (middle + 2) << shift) - odd
    below = value >> 2
    if below >= 10:
        tens = below // 10 * 10
        down, up = least <= tens << 2, (tens + 10) << 2 <= most
        if down != up:
            return (tens if down else tens + 10), k
    down, up = least <= below << 2, (below + 1) << 2 <= most
    if down != up:
        return (below if down else below + 1), k
    beyond = value - ((below << 1 | 1) << 1)
    if beyond < 0 or (beyond == 0 and below & 1 == 0):
        return below, k
    return below + 1, k
