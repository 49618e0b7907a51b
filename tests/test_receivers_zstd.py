"""Content-Encoding: zstd, inflated piece by piece: right where it is whole, refused where not."""

from __future__ import annotations

import random
import sys

import pytest

from otel_anomaly.receivers.zstd import FRAMES_MAX, SLICE_BYTES, WINDOW_LOG_MAX, inflate_zstd

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 << 16


def whole(wire: bytes) -> bytes:
    return b"".join(inflate_zstd(wire, PIECE))


def with_window(log: int, size: int = 100) -> bytes:
    """A frame that wants a window of 2 ** log bytes."""
    maker = zstd.ZstdCompressor(options={int(zstd.CompressionParameter.window_log): log})
    return maker.compress(bytes(size)) + maker.flush()


@pytest.mark.parametrize("size", [0, 1, 1000, SLICE_BYTES * 2, PIECE, PIECE * 3 + 7])
@pytest.mark.parametrize("level", [-5, 1, 19])
def test_inflate_equals_the_library(size: int, level: int) -> None:
    """
    Scenario: texts on both sides of slice and piece sizes, fast and small, half of it noise.
    Guarantees: what was compressed comes back, in pieces that are not too large.
    """
    sent = (random.Random(size).randbytes(size // 2) + bytes(size))[:size]
    pieces = list(inflate_zstd(zstd.compress(sent, level), PIECE))
    assert b"".join(pieces) == sent
    assert all(len(piece) <= PIECE for piece in pieces)


def test_frames_are_one_body() -> None:
    """
    Scenario: frames one after the other, empty ones and a skippable one among them.
    Guarantees: one body; and an end to it when there are absurdly many.
    """
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    frames = (b"a", b"", b"b")
    assert whole(skippable.join(zstd.compress(part) for part in frames)) == b"ab"
    assert whole(zstd.compress(b"a") * FRAMES_MAX) == b"a" * FRAMES_MAX
    with pytest.raises(ValueError, match="frames"):
        whole(zstd.compress(b"a") * (FRAMES_MAX + 1))


def test_cut_at_every_byte_is_refused() -> None:
    """
    Scenario: a small body of two frames, cut at each of its bytes.
    Guarantees: only the whole, and the first frame alone, are bodies.
    """
    first, second = zstd.compress(b"hello hello"), zstd.compress(b"again")
    wire = first + second
    for cut in range(len(wire)):
        if cut == len(first):
            continue
        with pytest.raises(ValueError, match=r"compressed body is (cut short|broken)"):
            whole(wire[:cut])
    assert whole(first) == b"hello hello"
    assert whole(wire) == b"hello helloagain"


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_refused_or_harmless(seed: int) -> None:
    """
    Scenario: a byte of a compressed text is changed.
    Guarantees: the error is the one that the door answers; nothing else comes out.
    """
    chance = random.Random(seed)
    wire = bytearray(zstd.compress(bytes(range(256)) * 40))
    wire[chance.randrange(len(wire))] ^= chance.randrange(1, 256)
    try:
        whole(bytes(wire))
    except ValueError as error:
        assert str(error).startswith("the compressed body")  # noqa: PT017 - may also pass.


def test_windows_are_limited() -> None:
    """
    Scenario: frames that want the largest window allowed, and one twice as large.
    Guarantees: the first is inflated, the second refused before memory is taken for it.
    """
    assert whole(with_window(WINDOW_LOG_MAX)) == bytes(100)
    with pytest.raises(ValueError, match="broken"):
        whole(with_window(WINDOW_LOG_MAX + 1))


def test_bomb_costs_a_piece_at_a_time() -> None:
    """
    Scenario: 256 MiB of zeros in some kilobytes; the reader leaves after the first pieces.
    Guarantees: what was not asked for was not made: pieces come one by one.
    """
    maker = zstd.ZstdCompressor()
    wire = b"".join(maker.compress(bytes(1 << 24)) for _ in range(16)) + maker.flush()
    assert len(wire) < 1 << 16
    source = inflate_zstd(wire, PIECE)
    assert [len(next(source)) for _ in range(3)] == [PIECE] * 3
