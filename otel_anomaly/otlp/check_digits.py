"""Numbers that prove themselves: check digits of cards, accounts and citizens' numbers.

Every function reads the digits from where the number begins in the text, and passes over the signs
between them, so that a number in groups is checked as it stands. The caller knows that there are
as many digits as it asks for.

Sources: ISO/IEC 7812 (Luhn), ISO 13616 and the SWIFT registry (IBAN), ISO 7064 (mod 11,10),
Verhoeff (1969), and the publications of the issuing offices.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.characters import (
    ALNUM,
    DIGIT,
    LETTER,
    UPPER,
    WORD,
    kind_at,
    lower_at,
    span_of,
)

IBAN_MAX: Final = 34

_IBAN_LENGTHS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)


def _iban_lengths() -> Array:
    """Length by country, the two letters as a number of five bits each; 0: no such country."""
    lengths = np.zeros(1 << 10, np.int64)
    for entry in _IBAN_LENGTHS.split():
        lengths[(ord(entry[0]) & 31) << 5 | ord(entry[1]) & 31] = int(entry[2:])
    return lengths


_LENGTHS: Final = _iban_lengths()


@inlined
def next_digit(text: Array, at: Int) -> Int:
    """Where the next digit stands, `at` included. The caller knows that there is one."""
    while kind_at(text, at) & DIGIT == 0:
        at += 1
    return at


@kernel
def number_of(text: Array, at: Int, count: Int) -> Int:
    """The next `count` digits as a number; at most 18."""
    value = np.int64(0)
    for _ in range(count):
        at = next_digit(text, at)
        value = value * 10 + load1(text, at) - 48
        at += 1
    return value


@kernel
def is_luhn(text: Array, at: Int, count: Int) -> bool:
    """Whether every second digit from the right, doubled, makes a sum that 10 divides."""
    total = np.int64(0)
    for i in range(count):
        at = next_digit(text, at)
        digit = load1(text, at) - 48
        at += 1
        if (count - i) % 2 == 0:
            digit = digit * 2 - (9 if digit > 4 else 0)
        total += digit
    return total % 10 == 0


@kernel
def is_card(text: Array, at: Int, count: Int) -> bool:
    """Whether `count` digits are the number of a payment card: prefix, length, Luhn."""
    if count < 13 or count > 19:
        return False
    first4 = number_of(text, at, 4)
    first2 = first4 // 100
    if first4 // 1000 == 4:
        known = count == 13 or count == 16 or count == 19
    elif 51 <= first2 <= 55 or 2221 <= first4 <= 2720:
        known = count == 16
    elif first2 == 34 or first2 == 37:
        known = count == 15
    elif first2 == 36 or first2 == 38 or first2 == 39 or 3000 <= first4 <= 3059:
        known = count == 14 or count >= 16
    elif first2 == 62 or first2 == 65 or first4 == 6011 or 6440 <= first4 <= 6499:
        known = count >= 16
    else:
        known = count >= 16 and (3528 <= first4 <= 3589 or 2200 <= first4 <= 2204)
    return known and is_luhn(text, at, count)


@kernel
def iban_end(text: Array, at: Int, end: Int, out: Array) -> Int:
    """The position behind the IBAN at `at`, written to `out` (uint8 [34]) without signs, or -1."""
    if end - at < 15 or kind_at(text, at) & kind_at(text, at + 1) & LETTER == 0:
        length = np.int64(0)
    else:
        length = _LENGTHS[(load1(text, at) & 31) << 5 | (load1(text, at + 1) & 31)]
    if length == 0 or kind_at(text, at + 2) & kind_at(text, at + 3) & DIGIT == 0:
        return np.int64(-1)
    size = 0
    while size < length:
        if at == end:
            return np.int64(-1)
        byte = load1(text, at)
        if kind_at(text, at) & ALNUM != 0:
            out[size] = byte - 32 if byte >= 97 else byte
            size += 1
        elif (byte != 32 and byte != 45) or kind_at(text, at - 1) & ALNUM == 0:
            return np.int64(-1)
        at += 1
    if at < end and kind_at(text, at) & WORD != 0:
        return np.int64(-1)
    rest = np.int64(0)
    for i in range(size):
        byte = load1(out, (i + 4) % size)
        rest = (rest * 10 + byte - 48 if byte < 65 else rest * 100 + byte - 55) % 97
    return at if rest == 1 else np.int64(-1)


@kernel
def is_ssn(text: Array, at: Int) -> bool:
    """Nine digits in the ranges that the US Social Security Administration gives out."""
    number = number_of(text, at, 9)
    area, group, serial = number // 1_000_000, number // 10_000 % 100, number % 10_000
    return 0 < area < 900 and area != 666 and group != 0 and serial != 0


@kernel
def is_cpf(text: Array, at: Int) -> bool:
    """Eleven digits with the two check digits of a Brazilian CPF, not all the same."""
    number = number_of(text, at, 11)
    if number % 11_111_111_111 == 0:
        return False
    return _cpf_digit(number // 100, 9) == number // 10 % 10 and (
        _cpf_digit(number // 10, 10) == number % 10
    )


@kernel
def _cpf_digit(number: Int, count: Int) -> Int:
    """The check digit behind `count` digits, weighted 2, 3, ... from the right."""
    total = np.int64(0)
    for i in range(count):
        total += number % 10 * (i + 2)
        number //= 10
    return total * 10 % 11 % 10


@kernel
def is_nir(text: Array, at: Int) -> bool:
    """Fifteen digits with the sex, the month and the key of a French NIR."""
    number, key = number_of(text, at, 15) // 100, number_of(text, at, 15) % 100
    sex, month = number // 10**12, number // 10**8 % 100
    return 1 <= sex <= 2 and (1 <= month <= 12 or 20 <= month <= 42) and key == 97 - number % 97


@kernel
def is_tax_id(text: Array, at: Int) -> bool:
    """Eleven digits of a German Steuer-ID: one of the first ten twice or thrice, mod 11,10."""
    if load1(text, at) == 48:
        return False
    seen, number = np.int64(0), number_of(text, at, 11)
    product = 10
    for i in range(10):
        digit = number // 10 ** (10 - i) % 10
        seen += np.int64(1) << digit * 4
        total = (digit + product) % 10
        product = (10 if total == 0 else total) * 2 % 11
    repeated = 0
    for digit in range(10):
        times = (seen >> digit * 4) & 15
        if times > 3:
            return False
        repeated += 1 if times > 1 else 0
    return repeated == 1 and (11 - product) % 10 == number % 10


@kernel
def is_bsn(text: Array, at: Int) -> bool:
    """Nine digits that pass the eleven-test of a Dutch BSN."""
    number = number_of(text, at, 9)
    total, rest = np.int64(0), number
    for weight in (-1, 2, 3, 4, 5, 6, 7, 8, 9):  # From the right.
        total += rest % 10 * weight
        rest //= 10
    return number != 0 and total % 11 == 0


# The dihedral group of order ten, and the permutation that each place applies once more.
_TIMES: Final = np.array(
    [
        [(i + j) % 5 + (j // 5 * 5) if i < 5 else (i - j) % 5 + (5 - j // 5 * 5) for j in range(10)]
        for i in range(10)
    ],
    np.int64,
)
_TURN: Final = np.array([1, 5, 7, 6, 2, 8, 3, 0, 9, 4], np.int64)


@kernel
def is_aadhaar(text: Array, at: Int) -> bool:
    """Twelve digits that pass Verhoeff's check, the first 2 to 9."""
    number = number_of(text, at, 12)
    if number < 200_000_000_000:
        return False
    check = np.int64(0)
    for place in range(12):
        digit = number % 10
        number //= 10
        for _ in range(place % 8):
            digit = _TURN[digit]
        check = _TIMES[check, digit]
    return check == 0


@kernel
def is_pesel(text: Array, at: Int) -> bool:
    """Eleven digits of a Polish PESEL: a date whose month tells the century, check digit."""
    number = number_of(text, at, 11)
    month, day = number // 10**7 % 100, number // 10**5 % 100
    if not _is_day(month % 20, day) or number == 0:
        return False
    total, rest = np.int64(0), number
    for weight in (1, 3, 1, 9, 7, 3, 1, 9, 7, 3, 1):  # From the right.
        total += rest % 10 * weight
        rest //= 10
    return total % 10 == 0


@kernel
def is_personnummer(text: Array, at: Int, count: Int) -> bool:
    """Ten or twelve digits of a Swedish personnummer, or samordningsnummer: a date, Luhn.

    The day of a samordningsnummer is 60 more.
    """
    if count == 12:
        century = number_of(text, at, 2)
        if century != 19 and century != 20:
            return False
        at = next_digit(text, next_digit(text, at) + 1) + 1
    number = number_of(text, at, 10)
    month, day = number // 10**6 % 100, number // 10**4 % 100
    return _is_day(month, day - 60 if day > 60 else day) and is_luhn(text, at, np.int64(10))


@inlined
def _is_day(month: Int, day: Int) -> bool:
    """Whether there may be such a day."""
    return 1 <= month <= 12 and 1 <= day <= 31


@kernel
def is_ahv(text: Array, at: Int) -> bool:
    """Thirteen digits of a Swiss AHV/AVS number: 756, and the check digit of an EAN."""
    number = number_of(text, at, 13)
    total, rest = np.int64(0), number
    for place in range(13):
        total += rest % 10 * (1 if place % 2 == 0 else 3)
        rest //= 10
    return number // 10**10 == 756 and total % 10 == 0


_DNI_LETTERS: Final = np.frombuffer(b"TRWAGMYFPDXBNJZSQVHLCKE", np.uint8)


@kernel
def is_spanish(text: Array, at: Int) -> bool:
    """Nine places: a DNI (eight digits) or a NIE (X, Y or Z and seven), and the check letter."""
    first = load1(text, at) - 88
    if span_of(text, at + 1, at + 8, DIGIT) != at + 8:
        return False
    number = number_of(text, at + 1, 7)
    if 0 <= first <= 2:
        number += first * 10_000_000
    elif kind_at(text, at) & DIGIT != 0:
        number += (load1(text, at) - 48) * 10_000_000
    else:
        return False
    return load1(text, at + 8) == _DNI_LETTERS[number % 23]


@kernel
def is_nino(text: Array, at: Int, middle: Int, last: Int) -> bool:
    """The letters of a UK National Insurance number: two at `at`, one at `last`, as given out."""
    first, second = lower_at(text, at), lower_at(text, at + 1)
    if kind_at(text, at) & kind_at(text, at + 1) & UPPER == 0 or kind_at(text, last) & UPPER == 0:
        return False
    if number_of(text, middle, 2) < 0 or lower_at(text, last) > 100:
        return False
    if _NEVER_FIRST >> (first - 97) & 1 != 0 or _NEVER_SECOND >> (second - 97) & 1 != 0:
        return False
    for i in range(_NEVER_PAIRS.size):
        if _NEVER_PAIRS[i] == (first << 8 | second):
            return False
    return True


_NEVER_FIRST: Final = sum(1 << (ord(letter) - 97) for letter in "dfiquv")
_NEVER_SECOND: Final = sum(1 << (ord(letter) - 97) for letter in "dfioquv")
_NEVER_PAIRS: Final = np.array(
    [ord(a) << 8 | ord(b) for a, b in ("bg", "gb", "kn", "nk", "nt", "tn", "zz")], np.int64
)

# Codice fiscale: the value of a digit or letter at an odd place; at an even one it is its own.
_ODD: Final = np.array(
    [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23],
    np.int64,
)
_MONTHS: Final = sum(1 << (ord(letter) - 65) for letter in "ABCDEHLMPRST")
_FISCAL_SHAPE: Final = "aaaaaa00a00a000a"
_FISCAL_DIGITS: Final = sum(1 << i for i, place in enumerate(_FISCAL_SHAPE) if place == "0")


@kernel
def is_fiscal(text: Array, at: Int) -> bool:
    """Sixteen places of an Italian codice fiscale: letters, digits, a month and a check letter."""
    total = np.int64(0)
    for i in range(16):
        wanted = DIGIT if _FISCAL_DIGITS >> i & 1 != 0 else UPPER
        if kind_at(text, at + i) & wanted == 0:
            return False
        byte = load1(text, at + i)
        value = byte - 48 if wanted == DIGIT else byte - 65
        if i < 15:
            total += _ODD[value] if i % 2 == 0 else value
    if _MONTHS >> (load1(text, at + 8) - 65) & 1 == 0:
        return False
    return total % 26 == load1(text, at + 15) - 65
