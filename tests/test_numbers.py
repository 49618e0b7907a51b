"""Numbers by their decimal value: the shortest decimal of a double against Python's own."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

from otel_anomaly.otlp.numbers import (
    DIGITS_MAX,
    POWER_MAX,
    hash_double,
    hash_int,
    read_number,
    read_plain,
    shortest,
)
from tests.naive_arguments import canonical_number
from tests.sizes import scaled

SEED = 0x5EED_0123


def bits_of(number: float) -> np.int64:
    return np.int64(struct.unpack("<q", struct.pack("<d", number))[0])


def hash_of(text: str) -> int:
    """The hash of a text that is one number and no more; what stands behind makes no difference."""
    data = np.frombuffer(text.encode() + b"9.e", np.uint8)
    scratch = np.zeros(len(text), np.uint8)
    value, after = read_number(data, 0, len(text), scratch, 0, SEED)
    assert after == len(text), text
    plain, behind = read_plain(data, 0, len(text), SEED)
    assert (plain, behind) == (value, after) or behind == -1, text
    assert behind == after or not (text.isdigit() and 0 < int(text) < 10**DIGITS_MAX), text
    return int(value)


def doubles(rng: random.Random) -> float:
    """Of all sizes, and close to where the spacing of doubles changes."""
    match rng.randrange(6):
        case 0:
            number = struct.unpack("<d", rng.randbytes(8))[0]
        case 1:
            number = 2.0 ** rng.randrange(-1074, 1024)
        case 2:
            number = np.nextafter(2.0 ** rng.randrange(-1070, 1023), rng.choice((0.0, np.inf)))
        case 3:
            number = round(rng.random() * 10 ** rng.randrange(6), rng.randrange(8))
        case 4:
            number = 5e-324 * rng.randrange(1, 3000)
        case _:
            number = float(rng.getrandbits(rng.randrange(1, 70)))
    return float(number) if np.isfinite(number) else 1.0


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_doubles(seed: int) -> None:
    """
    Scenario: doubles of every size: powers of two and their neighbours, subnormal ones, decimals.
    Guarantees: the hash of the number that Python writes for it.
    """
    rng = random.Random(seed)
    for _ in range(500):
        number = doubles(rng)
        assert hash_double(bits_of(number), SEED) == hash_of(repr(number)), number
        assert hash_double(bits_of(-number), SEED) == hash_of(repr(-number)), number


def test_shortest_at_the_edges() -> None:
    """
    Scenario: the smallest and the largest doubles, ties, and a power of two whose neighbour below
    is closer.
    Guarantees: digits and exponent of Python's repr, but for zeros at the end.
    """
    large = (1.7976931348623157e308, 9007199254740993.0, 1e23, 9e22, 2.0**-44)
    for number in (5e-324, 1e-323, 1.5e-323, 2.2250738585072014e-308, *large):
        power = max(math.frexp(number)[1] - 53, -1074)
        significand = int(Fraction(number) / Fraction(2) ** power)
        digits, exponent = shortest(np.int64(significand), np.int64(power))
        assert canonical_number(f"{digits}e{exponent}") == canonical_number(repr(number))


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_decimals(seed: int) -> None:
    """
    Scenario: numbers of a few and of very many digits, spelled in several ways.
    Guarantees: equal hashes where the digits and the exponent are equal, and only there.
    """
    rng, known = random.Random(seed), {}
    for _ in range(300):
        digits = "".join(rng.choices("0123456789", k=rng.choice((1, 2, DIGITS_MAX, 19, 20, 40))))
        digits = digits.lstrip("0") or "0"
        cut = rng.randrange(1, len(digits) + 1)
        power = rng.choice((0, 0, 1, -3, 17, -40, POWER_MAX, POWER_MAX + 1))
        text = digits[:cut] if cut == 1 or digits[0] != "0" else "0"
        text += f".{digits[cut:]}" if digits[cut:] else rng.choice(("", ".0", ".00"))
        text = rng.choice(("", "-")) + text + (f"e{power}" if power else "")
        name = canonical_number(text)
        assert known.setdefault(name, hash_of(text)) == hash_of(text), text
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("seed", range(scaled(5)))
def test_integers(seed: int) -> None:
    """
    Scenario: signed numbers of 64 bits, of every length, with zeros at the end.
    Guarantees: the hash of their decimal text.
    """
    rng = random.Random(seed)
    edges = (0, 1, -1, 10**18, -(10**18), 10**18 - 1, 2**63 - 1, -(2**63), 9 * 10**18)
    drawn = [rng.getrandbits(rng.randrange(1, 64)) * rng.choice((1, -1)) for _ in range(300)]
    for number in (*edges, *drawn, *(number // 1000 * 1000 for number in drawn)):
        assert hash_int(np.int64(number), SEED) == hash_of(str(number)) == hash_of(f"{number}.0")
