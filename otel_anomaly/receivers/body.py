"""Request bodies of the HTTP door: read and inflated piece by piece, held against the limits.

    socket -> aiohttp's buffer -> [ receive: wire bytes ] -> [ inflate: 1 MiB pieces ] -> body
                                    <= limit                   <= limit
                                    `------ held, all requests together, see unfinished.py -----'

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
from otel_anomaly.receivers.unfinished import Body, Refused, Unfinished
from otel_anomaly.receivers.zstd import inflate_zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp.web import BaseRequest

PIECE_BYTES: Final = 1 << 20
"""Inflated at a time. The first so many bytes of a small body in the event loop, about 3 ms; more
in a thread."""
INLINE_WIRE_BYTES_MAX: Final = 1 << 16
"""Compressed bodies up to this begin in the event loop. What bounds the output does not bound the
work: a MiB of empty deflate blocks inflates to nothing, in 75 ms."""
SLICE_BYTES: Final = 1 << 18
"""Compressed bytes given to zlib at a time: it copies what is left of them for every piece."""
MEMBERS_MAX: Final = 1024
"""Gzip members of one body. More are an attack: an empty member is 20 bytes and costs a call."""
CHUNKS_MAX: Final = 256
"""Received chunks kept apart. A bytes object of one byte weighs 34, so more are merged."""
GROWTH_MAX: Final = 4
"""Bytes of protobuf for one of JSON, at the most; see otlp/json.py. What is over the limit is
refused, so it is not there for long."""

BUSY: Final = Reply(Outcome.UNAVAILABLE, "no time to read this request now", 1.0)

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


def malformed(message: str, http_status: HTTPStatus | None = None) -> Refused:
    """A refusal for good."""
    return Refused(Reply(Outcome.MALFORMED, message), http_status)


def inflate(wire: bytes, wbits: int) -> Iterator[bytes]:
    """Pieces of at most `PIECE_BYTES`; concatenated members are one body (RFC 1952, 2.2).

    A slice that inflates to nothing yields an empty piece: no step takes long.

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
            if not (piece or had_input or stream.eof):
                raise ValueError("the compressed body is cut short")
            yield piece
        offset -= len(stream.unused_data)
        if offset == len(view):
            return
    raise ValueError(f"the compressed body has more than {MEMBERS_MAX} members")


async def inflate_whole(wire: bytes, wbits: int, bodies: Unfinished, body: Body) -> bytes:
    """The inflated body; what it holds meanwhile is counted to `body`.

    Raises
    ------
    Refused
        Over the limit, broken, or no room.
    """
    source = inflate_zstd(wire, PIECE_BYTES) if wbits == ZSTD else inflate(wire, wbits)
    loop = asyncio.get_running_loop()
    pieces, size = list[bytes](), 0
    most_inline = PIECE_BYTES if len(wire) <= INLINE_WIRE_BYTES_MAX else 0
    try:
        while True:
            if size < most_inline:
                piece = next(source, None)
            else:
                piece = await asyncio.to_thread(next, source, None)
            if piece is None:
                break
            bodies.grow(body, len(piece), loop.time())
            size += len(piece)
            if size > bodies.limit:
                raise too_large("the request body, decompressed,", bodies.limit)
            if piece:
                pieces.append(piece)
    except ValueError as error:
        raise malformed(str(error)) from error
    return b"".join(pieces)


def too_large(what: str, limit: int) -> Refused:
    """Over the limit: final."""
    return Refused(Reply(Outcome.TOO_LARGE, f"{what} is larger than the limit of {limit} bytes"))


def out_of_time(body: Body, timeout_s: float) -> Refused:
    """The body was too slow, or had to make room; or we were, once it was here."""
    if body.verdict is not None:
        return Refused(body.verdict)
    if body.is_whole:
        return Refused(BUSY)
    return malformed(
        f"the request body did not arrive within {timeout_s:g} s", HTTPStatus.REQUEST_TIMEOUT
    )


class BodyReader:
    """Reads the bodies of one door. Used from its event loop only."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self.bodies = Unfinished(limit)
        self.timeout_s = timeout_s
        """For one whole body, not between two bytes of it: a client that trickles would never meet
        the latter. SDKs give up after 10 s and the Collector after 30 s."""

    @property
    def held(self) -> int:
        """Bytes of unfinished bodies."""
        return self.bodies.held

    def stop(self) -> None:
        """Refuse the bodies that are still under way: their requests have not been taken over."""
        self.bodies.stop()

    async def read(self, request: BaseRequest, client: str) -> bytes:
        """The body, uncompressed.

        Raises
        ------
        Refused
            Too large, broken, too slow, no room, or stopping.
        """
        coding = request.headers.get(hdrs.CONTENT_ENCODING)
        wbits = 0 if coding is None else _wbits(coding)
        content = request.content
        if content.is_eof():
            wire = content.read_nowait()
            if len(wire) > self.bodies.limit:
                raise too_large("the request body", self.bodies.limit)
            if not wbits:
                return wire
            return await self._read_slowly(request, client, wire, wbits)
        return await self._read_slowly(request, client, None, wbits)

    async def _read_slowly(
        self, request: BaseRequest, client: str, wire: bytes | None, wbits: int
    ) -> bytes:
        """A body that arrives in several reads of the socket, or that is compressed."""
        deadline = asyncio.timeout(self.timeout_s)
        body = self.bodies.begin(client, deadline, asyncio.get_running_loop().time())
        try:
            async with deadline:
                if wire is None:
                    wire = await self._receive(request, body)
                if not wbits:
                    return wire
                body.is_whole = True
                return await inflate_whole(wire, wbits, self.bodies, body)
        except TimeoutError:
            raise out_of_time(body, self.timeout_s) from None
        finally:
            self.bodies.end(body)

    async def change(self, body: bytes, client: str, make: Callable[[], bytes]) -> bytes:
        """What `make` turns a large body into, in a thread. Meanwhile the body counts as under way,
        and so does the most that may come of it.

        Raises
        ------
        Refused
            Too slow, no room, or stopping; and whatever `make` raises.
        """
        loop, deadline = asyncio.get_running_loop(), asyncio.timeout(self.timeout_s)
        under_way = self.bodies.begin(client, deadline, loop.time())
        under_way.is_whole = True
        try:
            async with deadline:
                most = min(GROWTH_MAX * len(body), self.bodies.limit)
                self.bodies.grow(under_way, len(body) + most, loop.time())
                return await asyncio.to_thread(make)
        except TimeoutError:
            raise out_of_time(under_way, self.timeout_s) from None
        finally:
            self.bodies.end(under_way)

    async def _receive(self, request: BaseRequest, body: Body) -> bytes:
        limit, length = self.bodies.limit, request.content_length
        if length is not None and length > limit:
            raise too_large(f"the request body of {length} bytes", limit)
        if request.transport is None:
            raise ConnectionResetError  # Gone before this ran: aiohttp tells only who is reading.
        _continue_if_asked(request)
        loop, content = asyncio.get_running_loop(), request.content
        chunks, merged, size = list[bytes](), bytearray(), 0
        while chunk := await content.readany():
            self.bodies.grow(body, len(chunk), loop.time())
            size += len(chunk)
            if size > limit:
                raise too_large("the request body", limit)
            chunks.append(chunk)
            if len(chunks) == CHUNKS_MAX:
                merged += b"".join(chunks)
                chunks.clear()
        return b"".join((merged, *chunks)) if merged else b"".join(chunks)


def _wbits(codings: str) -> int:
    """Of the one coding in the list; an empty item, or one that changes nothing, is none."""
    names = [item.strip().lower() for item in codings.split(",")]
    applied = ",".join(name for name in names if name and CODINGS.get(name) != 0)
    wbits = CODINGS.get(applied or "identity")
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
