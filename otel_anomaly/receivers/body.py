"""Request bodies of the HTTP door: read and inflated piece by piece, held against the limits.

    socket -> aiohttp's buffer -> [ receive: wire bytes ] -> [ inflate: 1 MiB pieces ] -> body
                                    <= limit                   <= limit
                                    `------------ held, all requests together: <= 4 limits -----'

A small body lies whole in aiohttp's buffer when the handler is called and skips all of this. What
is refused costs at most the limit and one piece, however far it would have inflated.
"""

from __future__ import annotations

import asyncio
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs

from otel_anomaly.handoff import Outcome, Reply
from otel_anomaly.receivers.zstd import inflate_zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.web import BaseRequest

BODY_TIMEOUT_S: Final = 60.0
"""For one whole body, not between two bytes of it: a client that trickles would never meet the
latter. SDKs give up after 10 s and the Collector after 30 s, so nobody waits any longer."""
BODIES_HELD_MAX: Final = 4
"""Largest bodies that may be under way at once, on all connections together."""
PIECE_BYTES: Final = 1 << 20
"""Inflated at a time. The first so many bytes in the event loop, about 3 ms; more in a thread."""
SLICE_BYTES: Final = 1 << 18
"""Compressed bytes given to zlib at a time: it copies what is left of them for every piece."""
MEMBERS_MAX: Final = 1024
"""Gzip members of one body. More are an attack: an empty member is 20 bytes and costs a call."""
CHUNKS_MAX: Final = 256
"""Received chunks kept apart. A bytes object of one byte weighs 34, so more are merged."""

GZIP_WBITS: Final = 16 + zlib.MAX_WBITS
ZSTD: Final = -1
CODINGS: Final = {
    "identity": 0,
    "none": 0,
    "gzip": GZIP_WBITS,
    "x-gzip": GZIP_WBITS,
    "deflate": zlib.MAX_WBITS,
    "zstd": ZSTD,
}
"""Content-Encoding -> zlib's window bits; 0 is not compressed, ZSTD is not zlib's."""


class Refused(Exception):
    """The door refuses a request. Carries the answer."""

    def __init__(self, reply: Reply, http_status: HTTPStatus | None = None) -> None:
        super().__init__(reply.message)
        self.reply = reply
        self.http_status = http_status
        """Set where HTTP knows a finer number than the outcome's own."""


def malformed(message: str, http_status: HTTPStatus | None = None) -> Refused:
    """A refusal for good."""
    return Refused(Reply(Outcome.MALFORMED, message), http_status)


def inflate(wire: bytes, wbits: int) -> Iterator[bytes]:
    """Pieces of at most `PIECE_BYTES`; concatenated members are one body (RFC 1952, 2.2).

    Raises
    ------
    ValueError
        The compressed data is broken, cut short or followed by something else.
    """
    view, offset = memoryview(wire), 0
    for _ in range(MEMBERS_MAX):
        stream, pending = zlib.decompressobj(wbits), memoryview(b"")
        while not stream.eof:
            if not pending:
                pending = view[offset : offset + SLICE_BYTES]
                offset += len(pending)
            had_input = bool(pending)
            try:
                piece = stream.decompress(pending, PIECE_BYTES)
            except zlib.error as error:
                raise ValueError("the compressed body is broken") from error
            pending = memoryview(stream.unconsumed_tail)
            if piece:
                yield piece
            elif not had_input and not stream.eof:
                raise ValueError("the compressed body is cut short")
        offset -= len(stream.unused_data)
        if offset == len(view):
            return
    raise ValueError(f"the compressed body has more than {MEMBERS_MAX} members")


class BodyReader:
    """Reads the bodies of one door. Used from its event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._held_max = BODIES_HELD_MAX * limit
        self._deadlines: set[asyncio.Timeout] = set()
        self._stopping = False

    @property
    def held(self) -> int:
        """Bytes of unfinished bodies."""
        return self._held

    def stop(self) -> None:
        """Refuse the bodies that are still under way: their requests have not been taken over."""
        self._stopping = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0)

    async def read(self, request: BaseRequest) -> bytes:
        """The body, uncompressed.

        Raises
        ------
        Refused
            Too large, broken, too slow, no room, or stopping.
        """
        coding = request.headers.get(hdrs.CONTENT_ENCODING)
        wbits = 0 if coding is None else _wbits(coding)
        content = request.content
        wire = content.read_nowait() if content.is_eof() else await self._receive(request)
        if len(wire) > self._limit:
            raise self._too_large("the request body")
        return await self._inflate(wire, wbits) if wbits else wire

    async def _receive(self, request: BaseRequest) -> bytes:
        """A body that arrives in several reads of the socket."""
        length = request.content_length
        if length is not None and length > self._limit:
            raise self._too_large(f"the request body of {length} bytes")
        if self._stopping:
            raise self._out_of_time()
        if request.transport is None:
            raise ConnectionResetError  # Gone before this ran: aiohttp tells only who is reading.
        _continue_if_asked(request)
        content, chunks, merged, held = request.content, list[bytes](), bytearray(), 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as deadline:
                self._deadlines.add(deadline)
                while chunk := await content.readany():
                    self._hold(len(chunk))
                    held += len(chunk)
                    if held > self._limit:
                        raise self._too_large("the request body")
                    chunks.append(chunk)
                    if len(chunks) == CHUNKS_MAX:
                        merged += b"".join(chunks)
                        chunks.clear()
        except TimeoutError as error:
            raise self._out_of_time() from error
        finally:
            self._deadlines.discard(deadline)
            self._held -= held
        return b"".join((merged, *chunks)) if merged else b"".join(chunks)

    async def _inflate(self, wire: bytes, wbits: int) -> bytes:
        source = inflate_zstd(wire, PIECE_BYTES) if wbits == ZSTD else inflate(wire, wbits)
        pieces, held = list[bytes](), 0
        try:
            piece = next(source, None)
            while piece is not None:
                self._hold(len(piece))
                held += len(piece)
                if held > self._limit:
                    raise self._too_large("the request body, decompressed,")
                pieces.append(piece)
                if held < PIECE_BYTES:
                    piece = next(source, None)
                else:
                    piece = await asyncio.to_thread(next, source, None)
        except ValueError as error:
            raise malformed(str(error)) from error
        finally:
            self._held -= held
        return b"".join(pieces)

    def _hold(self, size: int) -> None:
        """Make room, or refuse. The caller gives back what it was granted, also on refusal."""
        if self._held + size > self._held_max:
            raise Refused(Reply(Outcome.MEMORY, "too many large requests at once", 1.0))
        self._held += size

    def _too_large(self, what: str) -> Refused:
        return Refused(
            Reply(Outcome.TOO_LARGE, f"{what} is larger than the limit of {self._limit} bytes")
        )

    def _out_of_time(self) -> Refused:
        if self._stopping:
            return Refused(Reply(Outcome.STOPPING, "the service is stopping", 1.0))
        return malformed(
            f"the request body did not arrive within {BODY_TIMEOUT_S:.0f} s",
            HTTPStatus.REQUEST_TIMEOUT,
        )


def _wbits(coding: str) -> int:
    wbits = CODINGS.get(coding.strip().lower())
    if wbits is None:
        raise malformed(
            "Content-Encoding must be gzip, zstd, deflate or identity",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    return wbits


def _continue_if_asked(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue`, which curl sends with large bodies and waits a second for."""
    transport = request.transport
    if transport is not None and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
