"""Keyed hashes of byte ranges: how keys, names and ids become numbers in columns.

    start:           h = fold(seed ^ K0, length ^ K1)
    up to 7 bytes:   h = fold(h ^ rest, h ^ K2)          the bytes, zero-padded
    from 8 bytes:    h = fold(h ^ word, h ^ K2 ^ next)   16 at a time, the last 16 overlapping
                                                         (up to 16: the first 8 and the last 8)

The scheme is wyhash's (Wang Yi, public domain) without its unrolling: names are short. The seed is
secret in a running service, so that an agent cannot choose a name that collides with another's.
0 is never returned: in every table it means "none". With a million keys the chance that any two
of them collide is 3e-8.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, fold, inlined, load1, load8

K0: Final = -0x5F89E29B87429BD1
K1: Final = 0x2D358DCCAA6C78A5
K2: Final = -0x74432C3C0A1B3F3B


@inlined
def load_rest(data: Array, at: Int, count: Int) -> Int:
    """The 0..8 bytes at `at` as a number, zero-padded. Needs `at + count <= size`."""
    if at + 8 <= data.size and count > 0:
        word = load8(data, at)
        if count == 8:
            return word
        return word & ((np.int64(1) << (count * 8)) - 1)
    word = np.int64(0)
    for i in range(count):
        word |= np.int64(load1(data, at + i)) << (i * 8)
    return word


@inlined
def hash_bytes(data: Array, at: Int, count: Int, seed: Int) -> Int:
    """Hash of `count` bytes at `at`: int64, never 0. Needs `at + count <= size`."""
    value = fold(seed ^ K0, count ^ K1)
    if count < 8:
        value = fold(value ^ load_rest(data, at, count), value ^ K2)
        return value if value != 0 else np.int64(1)
    last = at + count - 8
    if count > 16:
        while last - at > 8:
            value = fold(value ^ load8(data, at), value ^ K2 ^ load8(data, at + 8))
            at += 16
        at = last - 8
    value = fold(value ^ load8(data, at), value ^ K2 ^ load8(data, last))
    return value if value != 0 else np.int64(1)


@inlined
def hash_two(a: Int, b: Int, seed: Int) -> Int:
    """Hash of two numbers: int64, never 0. `hash_two(a, b)` and `hash_two(b, a)` differ."""
    value = fold(fold(a ^ seed ^ K0, K1) ^ b, K2 ^ seed)
    return value if value != 0 else np.int64(1)


def hash_text(text: str, seed: int) -> int:
    """Hash of a string as `hash_bytes` sees it on the wire."""
    data = np.frombuffer(text.encode(), np.uint8)
    return int(hash_bytes(data, 0, data.size, seed))
