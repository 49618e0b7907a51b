"""Punycode: the ASCII form of a label in another script (RFC 3492)."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, kernel

NAME_MAX: Final = 253
"""Bytes of a whole name, as DNS has it."""
LABEL_MAX: Final = 63
ROOM: Final = 384
"""Bytes to write names to: what is too long shows only when its last label is written."""
assert NAME_MAX + 1 + len("xn--") + LABEL_MAX + len("-") < ROOM


@kernel
def write_punycode(points: Array, at: Int, end: Int, out: Array, length: Int) -> Int:
    """Append xn-- and the label as RFC 3492 section 6.3 encodes it. At most 63 code points."""
    if length > NAME_MAX:
        return -1
    out[length], out[length + 1], out[length + 2], out[length + 3] = 120, 110, 45, 45
    length += 4
    handled = 0
    for i in range(at, end):
        if points[i] < 128:
            out[length] = points[i]
            length += 1
            handled += 1
    basic = handled
    if basic > 0:
        out[length] = 45
        length += 1
    smallest, delta, bias = np.int64(128), np.int64(0), np.int64(72)
    while handled < end - at:
        following = np.int64(0x110000)
        for i in range(at, end):
            if smallest <= points[i] < following:
                following = points[i]
        delta += (following - smallest) * (handled + 1)
        smallest = following
        for i in range(at, end):
            if points[i] < smallest:
                delta += 1
            elif points[i] == smallest:
                length = _write_delta(out, length, delta, bias)
                if length < 0:
                    return -1
                bias = _adapted(delta, handled + 1, handled == basic)
                delta = np.int64(0)
                handled += 1
        delta += 1
        smallest += 1
    return length


@kernel
def _write_delta(out: Array, length: Int, delta: Int, bias: Int) -> Int:
    """One generalised variable-length integer (RFC 3492 section 3.3); -1 when there is no room."""
    k = 36
    while True:
        if length >= NAME_MAX:
            return -1
        least = 1 if k <= bias else 26 if k >= bias + 26 else k - bias
        digit = delta if delta < least else least + (delta - least) % (36 - least)
        out[length] = digit + (97 if digit < 26 else 22)
        length += 1
        if delta < least:
            return length
        delta = (delta - least) // (36 - least)
        k += 36


@kernel
def _adapted(delta: Int, count: Int, first: bool) -> Int:
    """The next bias (RFC 3492 section 6.1)."""
    delta = delta // 700 if first else delta // 2
    delta += delta // count
    k = 0
    while delta > 455:
        delta //= 35
        k += 36
    return k + 36 * delta // (delta + 38)
