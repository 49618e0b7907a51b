"""Inflation: equal to the standard library's on what is whole, refused where that is not."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.receivers.body import (
    GZIP_WBITS,
    INLINE_WIRE_BYTES_MAX,
    MEMBERS_MAX,
    PIECE_BYTES,
    SLICE_BYTES,
    inflate,
    inflate_whole,
)
from otel_anomaly.receivers.unfinished import Unfinished
from tests.door_rigs import gzip_bomb

if TYPE_CHECKING:
    from collections.abc import Callable


def whole(wire: bytes, wbits: int = GZIP_WBITS) -> bytes:
    return b"".join(inflate(wire, wbits))


def text(seed: int, size: int) -> bytes:
    """Half noise, half repetition: compresses about two to one."""
    source = random.Random(seed)
    return b"".join(source.randbytes(500) + bytes(500) for _ in range(size // 1000 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 1000, SLICE_BYTES * 2, PIECE_BYTES, PIECE_BYTES * 3 + 7])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_inflate_equals_the_standard_library(size: int, level: int) -> None:
    """
    Scenario: texts on both sides of slice and piece sizes, stored, fast and small.
    Guarantees: what gzip and zlib made comes back, in pieces that are not too large.
    """
    sent = text(size, size)
    assert whole(gzip.compress(sent, level)) == sent
    assert whole(zlib.compress(sent, level), zlib.MAX_WBITS) == sent
    pieces = list(inflate(gzip.compress(sent, level), GZIP_WBITS))
    assert all(len(piece) <= PIECE_BYTES for piece in pieces)


def test_members_are_one_body() -> None:
    """
    Scenario: gzip members one after the other, empty ones among them (RFC 1952, 2.2).
    Guarantees: one body; and an end to it when there are absurdly many.
    """
    assert whole(gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b")) == b"ab"
    assert whole(gzip.compress(b"a") * MEMBERS_MAX) == b"a" * MEMBERS_MAX
    with pytest.raises(ValueError, match="members"):
        whole(gzip.compress(b"a") * (MEMBERS_MAX + 1))


def test_cut_at_every_byte_is_refused() -> None:
    """
    Scenario: a small body of two members, cut at each of its bytes.
    Guarantees: only the whole, and the first member alone, are bodies.
    """
    first = gzip.compress(b"first member")
    wire = first + gzip.compress(b"second member")
    for end in range(len(wire)):
        if end != len(first):
            with pytest.raises(ValueError, match="the compressed body is"):
                whole(wire[:end])


@pytest.mark.parametrize("rest", [b"\0", b"garbage after the end", b"\x1f\x8b"])
def test_something_after_the_end_is_refused(rest: bytes) -> None:
    """
    Scenario: bytes behind the last member.
    Guarantees: refused: a proxy that sees another body than we do is an attack.
    """
    with pytest.raises(ValueError, match="the compressed body is"):
        whole(gzip.compress(b"body") + rest)


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_refused(seed: int) -> None:
    """
    Scenario: one bit of the checksum or of the data flipped.
    Guarantees: refused, never another body. The header's time and system byte are not checked.
    """
    sent = text(seed, 5000)
    wire = bytearray(gzip.compress(sent))
    bit = random.Random(seed).randrange(10 * 8, len(wire) * 8)
    wire[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="the compressed body"):
        whole(bytes(wire))


def test_bomb_costs_a_piece_at_a_time() -> None:
    """
    Scenario: a gibibyte in one mebibyte, of which the reader takes eight pieces and stops.
    Guarantees: memory for a piece three times (the last one, the next in parts, and joined) and
    for slices, no more.
    """
    wire = gzip_bomb(1024)
    assert len(wire) < 2 << 20
    tracemalloc.start()
    try:
        source = inflate(wire, GZIP_WBITS)
        for _ in range(8):
            assert len(next(source)) == PIECE_BYTES
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * PIECE_BYTES + 4 * SLICE_BYTES


def work_for_nothing(size: int) -> bytes:
    """A gzip body of about so many bytes that inflates to one: empty deflate blocks before it."""
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    tail = end.compress(b"x") + end.flush()
    sums = zlib.crc32(b"x").to_bytes(4, "little") + (1).to_bytes(4, "little")
    return gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * (size // 5) + tail + sums


def test_each_step_takes_little_input() -> None:
    """
    Scenario: a MiB that inflates to nothing but a byte.
    Guarantees: a step for each slice of it.
    """
    pieces = list(inflate(work_for_nothing(SLICE_BYTES * 4), GZIP_WBITS))
    assert (len(pieces) >= 4, b"".join(pieces)) == (True, b"x")


@pytest.mark.parametrize(
    ("size", "in_threads"), [(INLINE_WIRE_BYTES_MAX // 2, 0), (SLICE_BYTES * 4, 4)]
)
def test_what_is_long_is_inflated_in_threads(
    size: int, in_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a small and a long body that inflate to nothing but a byte.
    Guarantees: the small one in the event loop, of the long one each slice in a thread.
    """
    calls, to_thread = list[Any](), asyncio.to_thread

    async def counted(function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(function)
        return await to_thread(function, *arguments)

    async def scenario() -> bytes:
        monkeypatch.setattr(asyncio, "to_thread", counted)
        bodies = Unfinished(1 << 20)
        body = bodies.begin("client", asyncio.timeout(None), 0.0)
        return await inflate_whole(work_for_nothing(size), GZIP_WBITS, bodies, body)

    assert asyncio.run(scenario()) == b"x"
    assert min(len(calls), 4) == in_threads
