"""Inflates Content-Encoding: zstd, piece by piece, whatever the sender claims.

The library is the standard one (`compression.zstd`, Python 3.14) and, before that, its backport of
the same interface by the same hands: `max_length` bounds every piece of output, as zlib's does, and
nothing remains to depend on once 3.14 is the floor. `zstandard` would have to stay.

A frame names the window it must be inflated with, and memory for it is taken before a byte of data
is seen: without a limit of our own up to 128 MiB for a body of 20 bytes. RFC 9659 settles on 8 MiB
for HTTP. What libzstd sets aside is touched only as output fills it, so that a body never costs
more than twice what `BodyReader` counts of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW_LOG_MAX: Final = 23
"""8 MiB (RFC 9659, 3)."""
FRAMES_MAX: Final = 1024
"""Frames of one body. More are an attack: an empty frame is 9 bytes and costs a call."""
SLICE_BYTES: Final = 1 << 18
"""Compressed bytes given to the decompressor at a time: what it does not use it keeps a copy of."""
_OPTIONS: Final[dict[int, int]] = {DecompressionParameter.window_log_max: WINDOW_LOG_MAX}


def inflate_zstd(wire: bytes, piece_bytes: int) -> Iterator[bytes]:
    """Pieces of at most `piece_bytes`; concatenated frames are one body (RFC 8878, 3).

    A slice that inflates to nothing yields an empty piece: no step takes long.

    Raises
    ------
    ValueError
        The compressed data is broken, cut short, or wants a window that is too large.
    """
    view, offset = memoryview(wire), 0
    for _ in range(FRAMES_MAX):
        frame = ZstdDecompressor(options=_OPTIONS)
        while not frame.eof:
            pending = view[offset : offset + SLICE_BYTES] if frame.needs_input else b""
            offset += len(pending)
            if frame.needs_input and not pending:
                raise ValueError("the compressed body is cut short")
            try:
                piece = frame.decompress(pending, piece_bytes)
            except ZstdError as error:
                raise ValueError("the compressed body is broken") from error
            yield piece
        offset -= len(frame.unused_data)
        if offset == len(view):
            return
    raise ValueError(f"the compressed body has more than {FRAMES_MAX} frames")
