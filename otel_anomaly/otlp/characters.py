"""Classes of bytes, and sets of short words: what the readers of argument text look things up in.

A class is a bit in `KINDS[byte]`. A word of up to eight letters is a number, its bytes as they lie
in memory (`packed`), so that comparing it is one instruction, and finding it in a set a few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from otel_anomaly.kernels import (
    BLOCK,
    Array,
    Int,
    between,
    bit_length,
    fold,
    inlined,
    kernel,
    load1,
)
from otel_anomaly.otlp.hashing import K2, load_rest

(
    DIGIT,
    UPPER,
    LOWER,
    HEX,
    UNDERSCORE,
    DASH,
    DOT,
    BASE64,
    HIGH,
    LOCAL,
    HARD,
    SOFT,
    QUOTE,
    SPACE,
    RUN,
) = (1 << bit for bit in range(15))
"""HEX: lower-case only. BASE64: its `+/=`. HIGH: above ASCII. LOCAL: other bytes of a mail name.
HARD: ends the host part of a URL. SOFT: ends it in running text. QUOTE: of these, the ones around
a URL. RUN: part of any kind of key."""
LETTER: Final = UPPER | LOWER
ALNUM: Final = LETTER | DIGIT
WORD: Final = ALNUM | UNDERSCORE
URL_SAFE: Final = WORD | DASH

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"
_MEMBERS: Final = {
    DIGIT: b"0123456789",
    UPPER: _LETTERS.upper(),
    LOWER: _LETTERS,
    HEX: b"0123456789abcdef",
    UNDERSCORE: b"_",
    DASH: b"-",
    DOT: b".",
    BASE64: b"+/=",
    HIGH: bytes(range(128, 256)),
    LOCAL: b"+%",
    HARD: b"/?#\\",
    SOFT: bytes(range(33)) + b"\"'<>`{}|^,;()\x7f",
    QUOTE: b'"<>`',
    SPACE: bytes(range(33)) + b"\x7f",
    RUN: _LETTERS + _LETTERS.upper() + b"0123456789_-.+/=~$%",
}


def _kinds() -> Array:
    """The table of classes, built once."""
    kinds = np.zeros(256, np.uint16)
    for bit, members in _MEMBERS.items():
        kinds[np.frombuffer(members, np.uint8)] |= bit
    return kinds


KINDS: Final = _kinds()

_LOWER_BITS: Final = 0x2020202020202020


@inlined
def kind_at(text: Array, at: Int) -> Int:
    """The class bits of one byte. Needs `0 <= at < size`."""
    return load1(KINDS, load1(text, at))


@inlined
def lower_at(text: Array, at: Int) -> Int:
    """One byte, ASCII letters in lower case. Needs `0 <= at < size`."""
    byte = load1(text, at)
    return byte + 32 if 65 <= byte <= 90 else byte


@kernel
def word_at(text: Array, at: Int, end: Int) -> Int:
    """The last (up to) eight bytes of [at, end) as `packed` has them, letters in lower case."""
    count = min(end - at, 8)
    word = load_rest(text, end - count, count)
    if count < 8:
        return word | (_LOWER_BITS & ((np.int64(1) << (count * 8)) - 1))
    return word | _LOWER_BITS


def packed(word: str) -> int:
    """An ASCII word of at most eight bytes as a number."""
    assert len(word) <= 8, f"{word}: more than a machine word"
    return int.from_bytes(word.encode("ascii"), "little")


def word_set(words: Iterable[str]) -> Array:
    """An open-addressed set of words, for `holds`. At most half full; 0 marks a free slot."""
    numbers = {packed(word) for word in words}
    slots = np.zeros(1 << (2 * len(numbers) - 1).bit_length(), np.int64)
    for number in sorted(numbers):
        at = fold(number, K2) & (slots.size - 1)
        while slots[at] != 0:
            at = (at + 1) & (slots.size - 1)
        slots[at] = number
    return slots


@kernel
def holds(slots: Array, word: Int) -> bool:
    """Whether a set of words holds this one."""
    at = fold(word, K2) & (slots.size - 1)
    while slots[at] != 0:
        if slots[at] == word:
            return True
        at = (at + 1) & (slots.size - 1)
    return False


@inlined
def span_of(text: Array, at: Int, end: Int, kinds: Int) -> Int:
    """The position behind the bytes from `at` that are of these classes."""
    while at < end and kind_at(text, at) & kinds != 0:
        at += 1
    return at


_ALL: Final = (1 << BLOCK) - 1


@inlined
def lowest(bits: Int) -> Int:
    """The place of the lowest bit of a number above 0."""
    return bit_length(bits & -bits) - 1


@inlined
def digits_end(text: Array, at: Int, end: Int) -> Int:
    """`span_of` digits, a block at a time."""
    while at < end and at + BLOCK <= text.size:
        others = between(text, at, 48, 57) ^ _ALL
        if others != 0:
            return min(at + lowest(others), end)
        at = min(at + BLOCK, end)
    return span_of(text, at, end, DIGIT)


@inlined
def alnum_end(text: Array, at: Int, end: Int) -> Int:
    """`span_of` letters and digits, a block at a time."""
    while at < end and at + BLOCK <= text.size:
        others = _alnum(text, at) ^ _ALL
        if others != 0:
            return min(at + lowest(others), end)
        at = min(at + BLOCK, end)
    return span_of(text, at, end, ALNUM)


@inlined
def word_end(text: Array, at: Int, end: Int) -> Int:
    """`span_of` letters, digits and underscores, a block at a time."""
    while at < end and at + BLOCK <= text.size:
        others = (_alnum(text, at) | between(text, at, 95, 95)) ^ _ALL
        if others != 0:
            return min(at + lowest(others), end)
        at = min(at + BLOCK, end)
    return span_of(text, at, end, WORD)


@inlined
def label_end(text: Array, at: Int, end: Int) -> Int:
    """`span_of` what a label of a host is made of, a block at a time."""
    while at < end and at + BLOCK <= text.size:
        labels = _alnum(text, at) | between(text, at, 45, 45) | between(text, at, 128, 255)
        if labels != _ALL:
            return min(at + lowest(labels ^ _ALL), end)
        at = min(at + BLOCK, end)
    return span_of(text, at, end, ALNUM | DASH | HIGH)


@inlined
def _alnum(text: Array, at: Int) -> Int:
    """Which bytes of a block are letters and digits."""
    letters = between(text, at, 97, 122) | between(text, at, 65, 90)
    return letters | between(text, at, 48, 57)
