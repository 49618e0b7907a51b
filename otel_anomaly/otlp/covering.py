"""Covering with stars what was found in a string, in a copy of it, byte for byte.

The recognisers note where lies what they find (`found.set_mark`); here the copy is written. A
character is never cut in two. Of a private key all is covered, from its first line to its last.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, copy, inlined, kernel, load1, load8
from otel_anomaly.otlp.characters import ALNUM, BASE64, DASH, DOT, HARD, SPACE, span_of
from otel_anomaly.otlp.found import SECRETS, set_mark
from otel_anomaly.otlp.keys import find_private_key, next_key
from otel_anomaly.otlp.opaque import find_bearer

NO_COVER: Final = np.int64(0)
STAR: Final = np.int64(42)
_STARS: Final = np.full(256, 42, np.uint8)
_LAST_LINE: Final = int.from_bytes(b"-----END", "little")
_KEY_MAX: Final = 1 << 14
"""Bytes of the longest private key that ends with a line of its own: of 16384 bits, or a ring."""
_FIRST_LINE: Final = int.from_bytes(b"-----BEG", "little")
_IN_KEY: Final = ALNUM | BASE64 | DASH | DOT | SPACE | HARD
_BACKSLASHES_MAX: Final = 16


@kernel
def fill(to: Array, at: Int, end: Int) -> None:
    """Write stars."""
    while at < end:
        count = min(end - at, 256)
        copy(to, at, _STARS, np.int64(0), count)
        at += count


@inlined
def _is_inside(text: Array, at: Int) -> bool:
    """Whether a byte is not the first of its character."""
    return load1(text, at) & 0xC0 == 0x80


@kernel
def _open_escape(text: Array, first: Int, at: Int) -> Int:
    """1 when a backslash before `at` makes an escape of what stands there, else 0.

    In JSON that cannot be read as such, because its end is cut off, none may be torn.
    """
    begin = at
    while begin > first and at - begin < _BACKSLASHES_MAX and load1(text, begin - 1) == 92:
        begin -= 1
    return (at - begin) & 1


@kernel
def cover(
    text: Array, first: Int, last: Int, found: Record, what: Int, to: Array, shift: Int
) -> None:
    """Cover what was marked last, if it is of these kinds. The value is [first, last)."""
    at, end = np.int64(found["mark_at"]), np.int64(found["mark_end"])
    found["mark_end"] = 0
    if end <= at or found["mark_is"] & what == 0:
        return
    while at > first and _is_inside(text, at):
        at -= 1
    while end < last and _is_inside(text, end):
        end += 1
    at -= _open_escape(text, first, at)
    end += _open_escape(text, at, end) if end < last else 0
    fill(to, at + shift, end + shift)
    found["marked"] += 1


@inlined
def cover_if(
    text: Array, first: Int, last: Int, found: Record, what: Int, to: Array, shift: Int
) -> None:
    """`cover`, unless nothing is to be covered: nothing of it is left in who only looks."""
    if what != NO_COVER:
        cover(text, first, last, found, what, to, shift)


@kernel
def cover_keys(
    text: Array,
    first: Int,
    begin: Int,
    end: Int,
    seed: Int,
    found: Record,
    what: Int,
    to: Array,
    shift: Int,
) -> None:
    """Cover the secrets in a long run of key-like bytes, of a value that begins at `first`."""
    find_bearer(text, first, begin, end, seed, found, np.int64(0))
    cover(text, first, end, found, what, to, shift)
    at, jwt_from = begin, begin
    while True:
        start, stop, at, jwt_from = next_key(text, begin, at, end, jwt_from)
        if stop < 0:
            return
        found["secrets"] += 1
        set_mark(found, start, stop, SECRETS)
        cover(text, first, end, found, what, to, shift)


@kernel
def cover_key(
    text: Array,
    begin: Int,
    last: Int,
    seed: Int,
    found: Record,
    what: Int,
    to: Array,
    shift: Int,
    key_end: Int,
) -> Int:
    """Cover the private key that begins here; returns up to where such keys are covered.

    Without a last line, all that may belong to it: an instrumentation may have cut it off.
    """
    start = find_private_key(text, begin, last, seed, found, np.int64(0))
    if start == begin:
        return key_end
    stop = span_of(text, start, last, _IN_KEY)
    at, limit = start, min(last - 8, start + _KEY_MAX)
    while at < limit and load8(text, at) != _FIRST_LINE:
        if load8(text, at) == _LAST_LINE:
            stop = span_of(text, at + 8, last, ALNUM | SPACE)
            stop = span_of(text, stop, last, DASH)
            break
        at += 1
    set_mark(found, begin, stop, SECRETS)
    cover(text, begin, last, found, what, to, shift)
    return stop
