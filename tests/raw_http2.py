"""A client of gRPC made of bare HTTP/2 frames, for what no library would send (RFC 9113).

Keeps to flow control, answers settings and pings, and notes what ends a stream or the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, Self

from tests.door_rigs import TRACE_SERVICE

if TYPE_CHECKING:
    from types import TracebackType

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
CANCEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def literal(name: str, value: str) -> bytes:
    """A header that enters no table (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in (name, value))


def message_head(size: int) -> bytes:
    """What stands before a gRPC message: not compressed, and its length."""
    return b"\0" + size.to_bytes(4, "big")


EXPORT = f"/{TRACE_SERVICE}/Export"


class RawClient:
    """One connection with stream 1 as an Export under way, or as another method."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._windows = {0: 65535, 1: 65535}
        self._initial = 65535
        self._changed = asyncio.Event()
        self.ended: list[int] = []
        """Kinds of frames that ended something."""
        self.is_closed = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(PREFACE + frame(SETTINGS, 0, 0))
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()
        self._listener.cancel()
        await asyncio.wait({self._listener})

    def open(self, *headers: tuple[str, str], path: str = EXPORT) -> None:
        """The headers of a request, and no message."""
        named = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *headers,
        ]
        block = b"".join(literal(name, value) for name, value in named)
        self._writer.write(frame(HEADERS, END_HEADERS, 1, block))

    async def send(self, data: bytes, frame_bytes: int = 16384) -> int:
        """As much as is let in: how much went before the stream or the connection ended."""
        sent = 0
        while sent < len(data) and not self.ended and not self.is_closed:
            size = min(len(data) - sent, *self._windows.values())
            if size <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            size = min(size, 1 << 18)
            part = data[sent : sent + size]
            cut = range(0, size, frame_bytes)
            self._writer.write(b"".join(frame(DATA, 0, 1, part[i : i + frame_bytes]) for i in cut))
            for stream in self._windows:
                self._windows[stream] -= size
            sent += size
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
        return sent

    async def _listen(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                self._changed.set()
        self.is_closed = True
        self._changed.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    self._windows[1] += value - self._initial
                    self._initial = value
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind in {HEADERS, RST_STREAM, GOAWAY}:
            self.ended.append(kind)
