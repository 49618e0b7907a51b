"""Where words and numbers end: a block of bytes at a time against byte by byte."""

from __future__ import annotations

import random

import numpy as np
import pytest

from otel_anomaly.kernels import Array, Int, kernel
from otel_anomaly.otlp.characters import (
    ALNUM,
    DASH,
    DIGIT,
    HIGH,
    WORD,
    alnum_end,
    digits_end,
    kind_at,
    label_end,
    word_end,
)
from tests.sizes import scaled

ENDS = ((digits_end, DIGIT), (alnum_end, ALNUM), (word_end, WORD), (label_end, ALNUM | DASH | HIGH))


@kernel
def _ends(text: Array, at: Int, end: Int) -> tuple[Int, Int, Int, Int]:
    return (
        digits_end(text, at, end),
        alnum_end(text, at, end),
        word_end(text, at, end),
        label_end(text, at, end),
    )


def _end(text: Array, at: int, end: int, kinds: int) -> int:
    """The same byte by byte."""
    while at < end and kind_at(text, at) & kinds:
        at += 1
    return at


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_ends_equal_byte_by_byte(seed: int) -> None:
    """
    Scenario: runs of one kind of byte, of any length, between any other bytes; parts of the text.
    Guarantees: each ends where the first byte of another kind stands, and never behind the part.
    """
    rng = random.Random(seed)
    alphabets = (b"0123456789", b"abcXYZ0189", b"az_AZ09", b"a-z0\x80\xff", bytes(range(256)))
    data = b"".join(
        bytes(rng.choices(rng.choice(alphabets), k=rng.choice((1, 3, 31, 32, 33, 70))))
        for _ in range(4)
    )
    text = np.frombuffer(data, np.uint8)
    for _ in range(20):
        at, end = sorted(rng.choices(range(text.size + 1), k=2))
        expected = tuple(_end(text, at, end, kinds) for _, kinds in ENDS)
        assert _ends(text, np.int64(at), np.int64(end)) == expected
