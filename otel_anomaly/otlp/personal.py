"""Personal data written with digits: phone and card numbers, accounts, numbers of citizens.

    phone           +49 30 123456, (212) 555-0123, 212-555-0123, 01 23 45 67 89, 020 7946 0958
    card            13 to 19 digits, in groups or not, an issuer's prefix, Luhn
    IBAN            length of the country, remainder 1 by 97
    US  SSN         AAA-GG-SSSS in the ranges that are given out
    GB  NINO        AB 12 34 56 C
    DE  Steuer-ID   11 digits, one of them repeated, ISO 7064 mod 11,10
    FR  NIR         15 digits, sex and month, key by 97 (without Corsica's letters)
    ES  DNI, NIE    the letter is the number's remainder by 23
    IT  codice fiscale   16 places, check letter (without the forms for namesakes)
    NL  BSN         9 digits with the weights of the eleven-test, only behind such a name
    BR  CPF         ddd.ddd.ddd-dd, both check digits
    IN  Aadhaar     dddd dddd dddd, Verhoeff
    CH  AHV/AVS     756.dddd.dddd.dd, 13 digits with the check digit of an EAN
    SE  personnummer     yymmdd-dddd, yyyymmdd-dddd, a date and Luhn; bare only behind such a name
    PL  PESEL       11 digits, a date and a check digit, only behind such a name or `PESEL`

Cards, IBANs and numbers of citizens are *strong*: one is enough to harm. A bare run of digits is a
phone number only behind a plus, so a timestamp, a version and an id are none.

An IBAN is a destination too, and so is a plain number when the argument's name says account. As
the whole value it says where money goes, and is no personal data; in running text it is personal
data, and not outside.

Digits are read in groups: words of digits with one sign between them. Every group starts an
attempt, which looks at no more than eight groups, so time stays linear.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import (
    Array,
    Int,
    Record,
    inlined,
    kernel,
    load1,
)
from otel_anomaly.otlp.characters import (
    ALNUM,
    DIGIT,
    LETTER,
    WORD,
    digits_end,
    kind_at,
    packed,
    span_of,
    word_at,
    word_end,
)
from otel_anomaly.otlp.check_digits import (
    IBAN_MAX,
    iban_end,
    is_aadhaar,
    is_ahv,
    is_bsn,
    is_card,
    is_cpf,
    is_fiscal,
    is_nino,
    is_nir,
    is_personnummer,
    is_pesel,
    is_spanish,
    is_ssn,
    is_tax_id,
)
from otel_anomaly.otlp.digit_groups import (
    BLANK,
    BRACKET,
    DASH,
    DOT,
    LENGTH_BITS,
    LENGTH_MASK,
    behind_groups,
    digits_and_joints,
    few_digits,
    goes_on,
    has_form,
    next_group,
    read_groups,
    same_signs,
    shape_of,
    signs_of,
    with_next_block,
)
from otel_anomaly.otlp.found import (
    ACCOUNT,
    ASIDE,
    DATUM,
    NUMBERS,
    OUTSIDE,
    PHONES,
    add_destination,
    range_hash,
    set_mark,
)
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.opaque import ADDRESSEE, CITIZEN, CPF, PHONE, SOCIAL
from otel_anomaly.otlp.phones import phone_groups

_TOKEN_MAX: Final = 40
DIGITS_LEAST: Final = 6
"""Nothing written in groups of digits has fewer."""
_CARD_LEAST: Final = 13
"""Digits of the shortest card number."""
CODE_LEAST: Final = 9
"""No code of letters and digits is shorter."""


@inlined
def plain_number_end(text: Array, first: Int, at: Int, end: Int) -> Int:
    """The position behind the digits at `at` when they can be nothing but a plain number, else -1.

    That is up to eight of them, in no word, without a plus, and no group follows.
    """
    if at > first and (kind_at(text, at - 1) & WORD != 0 or load1(text, at - 1) == 43):
        return np.int64(-1)
    stop = digits_end(text, at, min(end, at + 8))
    if stop == end:
        return stop
    byte = load1(text, stop)
    if byte == 44 or byte == 34 or byte == 58 or byte == 10 or byte == 93 or byte == 125:
        return stop
    ends = byte == BLANK and stop + 1 < end and kind_at(text, stop + 1) & LETTER != 0
    return stop if ends else np.int64(-1)


@inlined
def find_number(
    text: Array, first: Int, last: Int, at: Int, hints: Int, seed: Int, found: Record
) -> Int:
    """Look at the word around the digit at `at`, and at the groups that follow it.

    The value lies in [first, last). Adds what it finds, and returns from where to go on.
    """
    start = at
    while start > first and at - start < _TOKEN_MAX and kind_at(text, start - 1) & WORD != 0:
        start -= 1
    stop = word_end(text, at, last)
    if start > first and kind_at(text, start - 1) & WORD != 0:
        return stop
    if start < at or digits_end(text, at, stop) < stop:
        if _may_be_coded(text, start, stop):
            return _coded(text, first, last, start, stop, hints, seed, found)
        return stop
    before = load1(text, at - 1) if at > first else np.int64(0)
    if (before == DOT or before == 44) and at - 1 > first and kind_at(text, at - 2) & DIGIT != 0:
        return stop  # The rest of a longer number.
    digits, joints = digits_and_joints(text, at, last)
    if few_digits(digits, joints, DIGITS_LEAST):
        return stop
    if before != 43 and not _may_begin(text, first, at, stop, digits, joints, before):
        return stop
    return _grouped(text, first, last, at, before, digits, joints, hints, found)


@inlined
def _may_be_coded(text: Array, at: Int, stop: Int) -> bool:
    """Whether a word of letters and digits has the length of a code, or the form of an IBAN."""
    length = stop - at
    if length == CODE_LEAST or length == 16:
        return True
    if length > _TOKEN_MAX or length < 4:
        return False
    digits = kind_at(text, at + 2) & kind_at(text, at + 3) & DIGIT
    return digits != 0 and kind_at(text, at) & LETTER != 0


@kernel
def _coded(
    text: Array, first: Int, last: Int, at: Int, stop: Int, hints: Int, seed: Int, found: Record
) -> Int:
    """A word of letters and digits: an IBAN, which may go on behind it, or a citizen's number."""
    length = stop - at
    if length > _TOKEN_MAX or length < 4:
        return stop
    if kind_at(text, at) & LETTER != 0 and kind_at(text, at + 2) & kind_at(text, at + 3) & DIGIT:
        iban = np.empty(IBAN_MAX, np.uint8)
        behind = iban_end(text, at, last, iban)
        if behind > 0:
            whole = at == first and behind == last
            datum = whole and hints & ADDRESSEE == 0
            _add_iban(text, at, behind, iban, whole, datum, seed, found)
            return behind
    strong = length == 16 and is_fiscal(text, at)
    if length == 9:
        strong = is_spanish(text, at)
        if span_of(text, at + 2, at + 8, DIGIT) == at + 8:
            strong = strong or is_nino(text, at, at + 2, at + 8)
    if strong:
        _count(found, at, stop, 1)
    return stop


@inlined
def _count(found: Record, at: Int, end: Int, strong: Int) -> None:
    """Count one personal datum."""
    set_mark(found, at, end, NUMBERS if strong != 0 else PHONES)
    found["personal"] += 1
    found["personal_strong"] += strong


@kernel
def _add_iban(
    text: Array,
    at: Int,
    end: Int,
    iban: Array,
    whole: bool,
    datum: bool,
    seed: Int,
    found: Record,
) -> None:
    """Add an account: where money goes when it is the whole value, else personal data."""
    size = 0
    for i in range(at, end):
        size += 1 if kind_at(text, i) & ALNUM != 0 else 0
    kinds = ACCOUNT | (OUTSIDE if whole else ASIDE) | (DATUM if datum else 0)
    _add_account(iban, size, kinds, seed, found)
    set_mark(found, at, end, NUMBERS)
    if not whole:
        _count(found, at, end, 1)


@kernel
def _add_account(number: Array, size: Int, kinds: Int, seed: Int, found: Record) -> None:
    """Add the account with this number, without signs."""
    key = hash_two(np.int64(ACCOUNT), range_hash(number, np.int64(0), size, seed), seed)
    add_destination(found, key, np.int64(kinds))


@kernel
def find_account(text: Array, at: Int, end: Int, seed: Int, found: Record) -> None:
    """Add the plain number of 8 to 17 digits that a value is whose name says account."""
    if end - at > _TOKEN_MAX:
        return
    number = np.empty(_TOKEN_MAX, np.uint8)
    size = 0
    for i in range(at, end):
        byte = load1(text, i)
        if kind_at(text, i) & DIGIT != 0:
            number[size] = byte
            size += 1
        elif byte != BLANK and byte != DASH:
            return
    if 8 <= size <= 17:
        _add_account(number, size, ACCOUNT | OUTSIDE, seed, found)


def _openings(*lengths: tuple[int, ...]) -> Array:
    """How groups may begin: the first three lengths, three bits each behind the first, as a set."""
    openings = np.zeros(1 << 10, np.uint8)
    for first, second, *third in lengths:
        for last in third or range(8):
            openings[first << 6 | second << 3 | last] = 1
    return openings


_OPENINGS: Final = _openings(
    (3, 2, 4),  # SSN
    (3, 3, 3),  # CPF
    (3, 3, 4),  # North America
    (1, 3, 3),
    (3, 4, 4),  # AHV
    (4, 4, 4),  # Cards, Aadhaar
    (4, 6, 4),
    (4, 6, 5),
    (1, 2, 2),  # NIR
    (2, 3, 3),  # Steuer-ID
    (6, 4),  # Personnummer
    (8, 4),
)


@inlined
def _may_begin(
    text: Array, first: Int, at: Int, stop: Int, digits: Int, joints: Int, before: Int
) -> bool:
    """Whether the first three groups have the lengths of anything: most numbers end here.

    The first group is [at, stop), without a plus before it.
    """
    length = stop - at
    if length >= CODE_LEAST:
        return True
    behind, second = next_group(length, digits, joints)
    zero = load1(text, at) == 48
    if second == 0 or (zero and length >= 3):
        return second > 0
    _, third = next_group(behind + second, digits, joints)
    if load1(_OPENINGS, length << 6 | min(second, 7) << 3 | min(third, 7)) != 0:
        return True
    if before == BRACKET and 2 <= length <= 5:
        return length != 4 or second == 4 or second == 6  # (2026) 123-45-67 is a year.
    if length != 2 or second != 2 or third != 2:
        return False
    return zero or (at - first >= 3 and before == BLANK and kind_at(text, at - 2) & LETTER != 0)


@kernel
def _grouped(
    text: Array,
    first: Int,
    last: Int,
    at: Int,
    before: Int,
    near: Int,
    joints: Int,
    hints: Int,
    found: Record,
) -> Int:
    """Groups of digits from `at` on: adds what the first ones are; returns where to go on."""
    near, joints = with_next_block(text, at, last, near, joints)
    shape, signs, count, digits = read_groups(text, at, last, near, joints)
    behind_first = at + (shape & LENGTH_MASK)
    if digits < DIGITS_LEAST or count == 0:
        return span_of(text, at, last, WORD)
    used = _strong_groups(text, first, last, at, shape, signs, count, hints)
    if used > 0:
        _count(found, at, behind_groups(text, at, last, used), 1)
    else:
        plus = before == 43 and (at - 1 == first or kind_at(text, at - 2) & WORD == 0)
        used = phone_groups(text, at, shape, signs, count, plus, before == BRACKET)
        if used == 0 and hints & PHONE != 0 and 10 <= shape & LENGTH_MASK <= 15 and count == 1:
            used = np.int64(1)
        if used > 0 and not _goes_before(text, first, at, signs):
            _count(found, at, behind_groups(text, at, last, used), 0)
    return max(behind_first, behind_groups(text, at, last, used)) if used > 0 else behind_first


_SSN, _SSN_SIGNS = shape_of(3, 2, 4), signs_of("--")
_CPF, _CPF_SIGNS = shape_of(3, 3, 3, 2), signs_of("..-")
_FOURS: Final = shape_of(4, 4, 4)
_NIR_SHORT, _NIR_LONG = shape_of(13, 2), shape_of(1, 2, 2, 2, 3, 3, 2)
_TAX: Final = shape_of(2, 3, 3, 3)
_AMEX: Final = shape_of(4, 6)
_PAIRS: Final = shape_of(2, 2, 2)
_AHV: Final = shape_of(3, 4, 4, 2)
_BORN_SHORT, _BORN_LONG = shape_of(6, 4), shape_of(8, 4)
_PESEL: Final = packed("pesel")


@inlined
def _goes_before(text: Array, first: Int, at: Int, signs: Int) -> bool:
    """Whether a group of digits and the sign between all groups stand before the first one."""
    if at - first < 2 or load1(text, at - 1) != signs & 127:
        return False
    return kind_at(text, at - 2) & DIGIT != 0


@inlined
def _strong_groups(
    text: Array, first: Int, last: Int, at: Int, shape: Int, signs: Int, count: Int, hints: Int
) -> Int:
    """How many groups make a card's or a citizen's number; 0: none."""
    length = shape & LENGTH_MASK
    if has_form(shape, signs, count, _SSN, _SSN_SIGNS, 3) and not goes_on(signs, 3):
        return 3 if is_ssn(text, at) else 0
    if has_form(shape, signs, count, _CPF, _CPF_SIGNS, 4):
        return 4 if is_cpf(text, at) else 0
    used = _card_groups(text, at, shape, signs, count)
    if used > 0:
        return used
    if has_form(shape, signs, count, _FOURS, same_signs(signs & 127, 2), 3) and not goes_on(
        signs, 3
    ):
        dashed = signs & 127 == DASH or signs & 127 == BLANK
        alone = not _goes_before(text, first, at, signs)
        return 3 if dashed and alone and is_aadhaar(text, at) else 0
    if length == 15 and is_nir(text, at):
        return 1
    if has_form(shape, signs, count, _NIR_SHORT, BLANK, 2) and is_nir(text, at):
        return 2
    if has_form(shape, signs, count, _NIR_LONG, same_signs(np.int64(BLANK), 6), 7) and is_nir(
        text, at
    ):
        return 7
    if length == 11 and is_tax_id(text, at):
        return 1
    if has_form(shape, signs, count, _TAX, same_signs(np.int64(BLANK), 3), 4) and is_tax_id(
        text, at
    ):
        return 4
    if length == 9 and hints & CITIZEN != 0 and is_bsn(text, at):
        return 1
    if has_form(shape, signs, count, _PAIRS, same_signs(np.int64(BLANK), 2), 3):
        return 3 if _spaced_nino(text, first, last, at) else 0
    return _newer_groups(text, first, at, shape, signs, count, hints)


@kernel
def _newer_groups(
    text: Array, first: Int, at: Int, shape: Int, signs: Int, count: Int, hints: Int
) -> Int:
    """`_strong_groups` for the numbers of Switzerland, Sweden and Poland."""
    length = shape & LENGTH_MASK
    if length == 13:
        return 1 if is_ahv(text, at) else 0
    if has_form(shape, signs, count, _AHV, same_signs(signs & 127, 3), 4) and not goes_on(signs, 4):
        signed = signs & 127 == DOT or signs & 127 == BLANK
        return 4 if signed and is_ahv(text, at) else 0
    if has_form(shape, signs, count, _BORN_SHORT, DASH, 2):
        return 2 if is_personnummer(text, at, np.int64(10)) else 0
    if has_form(shape, signs, count, _BORN_LONG, DASH, 2):
        return 2 if is_personnummer(text, at, np.int64(12)) else 0
    if hints & CITIZEN != 0 and (length == 10 or length == 12):
        return 1 if is_personnummer(text, at, length) else 0
    if length == 9 and hints & SOCIAL != 0:
        return 1 if is_ssn(text, at) else 0
    if length == 11 and hints & CPF != 0 and is_cpf(text, at):
        return 1
    if length == 11 and (hints & CITIZEN != 0 or _says_pesel(text, first, at)):
        return 1 if is_pesel(text, at) else 0
    return 0


@kernel
def _says_pesel(text: Array, first: Int, at: Int) -> bool:
    """Whether `PESEL` stands before a number, with up to three signs between."""
    stop = at
    while stop > first and at - stop < 3 and kind_at(text, stop - 1) & WORD == 0:
        stop -= 1
    return stop - first >= 5 and word_at(text, stop - 5, stop) == _PESEL


@kernel
def _spaced_nino(text: Array, first: Int, last: Int, at: Int) -> bool:
    """Whether `AB ` stands before, and ` C` behind, three pairs of digits."""
    if at - first < 3 or load1(text, at - 1) != BLANK:
        return False
    if at - first > 3 and kind_at(text, at - 4) & WORD != 0:
        return False
    behind = at + len("12 34 56 ")
    if (
        behind >= last
        or load1(text, behind - 1) != BLANK
        or (behind + 1 < last and kind_at(text, behind + 1) & WORD != 0)
    ):
        return False
    return is_nino(text, at - 3, at, behind)


@inlined
def _card_groups(text: Array, at: Int, shape: Int, signs: Int, count: Int) -> Int:
    """How many groups make a card number: one, fours with a shorter last, or 4-6-5 and 4-6-4."""
    total = np.int64(0)
    fours = True
    sign = signs & 127
    for group in range(count):
        length = (shape >> LENGTH_BITS * group) & LENGTH_MASK
        joint = (signs >> 8 * max(group - 1, 0)) & 127
        if group > 0 and (joint != sign or (sign != BLANK and sign != DASH)):
            return 0
        total += length
        amex = group == 2 and shape & 1023 == _AMEX and (length == 5 or length == 4)
        may_end = group == 0 or amex or (fours and group >= 3 and length <= 4)
        if may_end and total >= _CARD_LEAST and is_card(text, at, total):
            return group + 1
        fours = fours and length == 4
        if total > 19 or not (fours or shape & LENGTH_MASK == 4):
            return 0
    return 0
