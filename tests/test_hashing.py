"""Keyed hashes: the compiled form against plain Python, and what tables rely on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.kernels import fold, signed
from otel_anomaly.otlp import hashing
from otel_anomaly.otlp.hashing import K0, K1, K2, hash_bytes, hash_text, hash_two, load_rest
from tests.sizes import scaled

SEEDS = (0, 1, -1, K0, K1, (1 << 63) - 1, -(1 << 63), 0x0123456789ABCDEF)
SECRETS = (0x0123456789ABCDEF, -0x7766554433221101, 3)
"""Seeds as a service draws them: none that undoes a constant of the mixing."""


def view(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def naive_hash(data: bytes, seed: int) -> int:
    """The definition in the module's docstring, written down once more from it."""
    value = fold(seed ^ K0, len(data) ^ K1)

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 8], "little", signed=True)

    if len(data) < 8:
        return fold(value ^ int.from_bytes(data, "little"), value ^ K2) or 1
    for at in range(0, len(data) - 16, 16):
        value = fold(value ^ word(at), value ^ K2 ^ word(at + 8))
    first = max(len(data) - 16, 0)
    return fold(value ^ word(first), value ^ K2 ^ word(len(data) - 8)) or 1


@pytest.mark.parametrize("count", range(9))
def test_load_rest(count: int) -> None:
    """
    Scenario: up to eight bytes, at every distance from the end of the array.
    Guarantees: the bytes as a little-endian number, zero-padded, whatever stands around them.
    """
    data = random.Random(count).randbytes(20)
    for at in range(len(data) - count + 1):
        expected = signed(int.from_bytes(data[at : at + count], "little"))
        assert load_rest(view(data), at, count) == expected


@pytest.mark.parametrize("count", [*range(27), 64, 100, 255, 1000])
def test_hash_bytes(count: int) -> None:
    """
    Scenario: every length around the words of eight, at every place of the word, many seeds.
    Guarantees: as the docstring defines it; where the bytes stand makes no difference.
    """
    data = random.Random(count).randbytes(count)
    for seed in SEEDS:
        expected = naive_hash(data, seed)
        for before in range(9):
            for behind in (0, 1, 8):
                around = view(b"\xa5" * before + data + b"\x5a" * behind)
                assert hash_bytes(around, before, count, seed) == expected


@pytest.mark.parametrize("function", ["load_rest", "hash_bytes"])
@pytest.mark.parametrize("seed", range(scaled(20)))
def test_compiled_like_python(function: str, seed: int) -> None:
    """
    Scenario: random bytes, lengths, places and seeds.
    Guarantees: compiled and plain Python agree to the bit.
    """
    kernel: Any = getattr(hashing, function)
    rng = random.Random(seed)
    data = view(rng.randbytes(rng.randrange(1, 60)))
    at = rng.randrange(data.size)
    count = rng.randrange(min(9, data.size - at + 1))
    rest = (signed(rng.getrandbits(64)),) if function == "hash_bytes" else ()
    # Without compilation there is only the one form.
    python = getattr(kernel, "py_func", kernel)
    assert kernel(data, at, count, *rest) == python(data, at, count, *rest)


def test_hash_two() -> None:
    """
    Scenario: pairs of numbers, in both orders, with several seeds.
    Guarantees: compiled and plain Python agree; order and seed matter; nothing collides.
    """
    python = getattr(hash_two, "py_func", hash_two)
    numbers = (0, 1, 2, -1, K0, K1, K2, (1 << 63) - 1, -(1 << 63))
    seen = set()
    for a in numbers:
        for b in numbers:
            for seed in SEEDS:
                assert hash_two(a, b, seed) == python(a, b, seed)
            seen |= {int(hash_two(a, b, seed)) for seed in SECRETS}
    assert len(seen) == len(numbers) ** 2 * len(SECRETS)


def test_zero_is_never_returned() -> None:
    """
    Scenario: numbers chosen so that a product of the mixing is 0.
    Guarantees: 1 instead, for 0 means "none" in every table.
    """
    seed = K2  # hash_two folds with K2 ^ seed: 0 times anything.
    assert hash_two(5, 7, seed) == 1
    # Eight bytes that cancel what the seed and the length made.
    value = fold(0 ^ K0, 8 ^ K1)
    zero = (value & ((1 << 64) - 1)).to_bytes(8, "little")
    assert hash_bytes(view(zero), 0, 8, 0) == 1
    assert naive_hash(zero, 0) == 1


def test_different_bytes_different_hashes() -> None:
    """
    Scenario: texts that differ in one bit, in length, in zeros at either end, in order of words.
    Guarantees: no two have one hash, and none has the same with another seed.
    """
    texts = [b"\0" * count for count in range(40)]
    for size in (1, 7, 8, 9, 16, 17, 24):
        whole = bytearray(range(1, size + 1))
        texts += [bytes(whole), b"\0" + whole, bytes(whole) + b"\0"]
        for bit in range(size * 8):
            whole[bit // 8] ^= 1 << bit % 8
            texts.append(bytes(whole))
            whole[bit // 8] ^= 1 << bit % 8
    texts += [b"A" * 8 + b"B" * 8, b"B" * 8 + b"A" * 8]
    texts = list(dict.fromkeys(texts))
    hashes = {int(hash_bytes(view(data), 0, len(data), seed)) for data in texts for seed in SECRETS}
    assert len(hashes) == len(texts) * len(SECRETS)
    assert 0 not in hashes


def test_hashes_are_spread() -> None:
    """
    Scenario: numbered names, as agents have them, and their places in a table of 4096.
    Guarantees: no place has far more than its share, neither by low bits nor by high ones.
    """
    count = scaled(40_000)
    hashes = np.array([hash_text(f"agent-{n:07d}", 42) for n in range(count)])
    assert np.unique(hashes).size == count
    share = count / 4096
    for places in (hashes & 4095, hashes >> 52 & 4095):
        # Six standard deviations of a Poisson count, and a little for small shares.
        assert np.bincount(places, minlength=4096).max() <= share + 6 * share**0.5 + 8


def test_hash_text() -> None:
    """
    Scenario: a string with characters of several bytes, and the empty one.
    Guarantees: the hash of its UTF-8 bytes, as a plain number.
    """
    for text in ("", "a", "\u00fcber-agent \U0001f916"):
        found = hash_text(text, 7)
        assert found == naive_hash(text.encode(), 7)
        assert type(found) is int
