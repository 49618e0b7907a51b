"""The counting next hop: a process that remembers how often each numbered span came, and when.

It speaks OTLP/HTTP by a protocol of its own, so that it can answer anything, and OTLP/gRPC by
grpcio. What it does is told line by line on standard input, as JSON; it ends when that closes:

    {"do": "mood", "transport": "http", "mood": {"kind": "status", "code": 503}}
    {"do": "totals"}
    {"do": "save", "path": "..."}

Moods: `ok`, `down`, `flap` (s), `slow` (s), `silent`, `reset` (before it takes), `forget` (takes,
then resets), `status` (code, retry_after), `garbage`, `huge` (bytes), `partial`, `mixed` (a mood
drawn for each request).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import uvloop
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.bench.peers import TRACE_SERVICE
from tests.reliability.numbers import numbers_in
from tests.reliability.wire import REQUEST, Parser

if TYPE_CHECKING:
    from collections.abc import Callable

Mood = dict[str, Any]
OK: Mood = {"kind": "ok"}
HUGE_PIECE = bytes(1 << 20)
MIXED = ("ok", "ok", "slow", "reset", "forget", "status", "garbage", "partial")
MIXED_CODES = {"http": (429, 502, 503, 504, 400, 413), "grpc": (14, 4, 10, 3, 8)}


class Tally:
    """What came over one transport."""

    def __init__(self, spans_per_request: int) -> None:
        self._per = spans_per_request
        self.counts = np.zeros(1 << 16, np.uint8)
        """How often each span was taken."""
        self.forgotten = np.zeros(1 << 16, np.uint8)
        """How often of these whoever sent it heard nothing."""
        self.first_s = np.zeros(1 << 12)
        """When the first span of each request was taken, monotonic seconds."""
        self.attempts = self.requests = self.spans = self.spans_ok = 0

    def take(self, body: bytes, *, forget: bool = False) -> int:
        """Count the spans of a request. Returns how many they are."""
        numbers = numbers_in(body)
        self.requests += 1
        self.spans += numbers.size
        if not numbers.size:
            return 0
        last = int(numbers.max())
        self.counts = _grown(self.counts, last + 1)
        self.first_s = _grown(self.first_s, last // self._per + 1)
        np.add.at(self.counts, numbers, 1)
        if forget:
            self.forgotten = _grown(self.forgotten, last + 1)
            np.add.at(self.forgotten, numbers, 1)
        requests = numbers // self._per
        fresh = requests[self.first_s[requests] == 0]
        self.first_s[fresh] = time.monotonic()
        return int(numbers.size)

    def totals(self) -> dict[str, int]:
        return {
            "attempts": self.attempts,
            "requests": self.requests,
            "spans": self.spans,
            "spans_ok": self.spans_ok,
            "distinct": int(np.count_nonzero(self.counts)),
        }


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    if size <= array.size:
        return array
    return np.concatenate((array, np.zeros(max(size, 2 * array.size) - array.size, array.dtype)))


class Face:
    """One transport: its port, its mood, its tally."""

    def __init__(self, transport: str, spans_per_request: int, seed: int) -> None:
        self.transport, self.tally = transport, Tally(spans_per_request)
        self.port = 0
        self.is_up = False
        self._mood = OK
        self._rng = random.Random(seed)
        self._flapping: asyncio.Task[None] | None = None

    async def set_mood(self, mood: Mood) -> None:
        """Behave so from now on."""
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        self._mood = mood
        await (self.shut() if mood["kind"] == "down" else self.open())
        if mood["kind"] == "flap":
            self._flapping = asyncio.create_task(self._flap(float(mood["s"])))

    def mood(self) -> Mood:
        """The mood for one request."""
        if self._mood["kind"] != "mixed":
            return self._mood
        kind = self._rng.choice(MIXED)
        code = self._rng.choice(MIXED_CODES[self.transport])
        return {"kind": kind, "code": code, "s": self._rng.random() * 0.5}

    async def _flap(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(self._rng.random() * 2 * seconds)
            await self.shut()
            await asyncio.sleep(self._rng.random() * 2 * seconds)
            await self.open()

    async def open(self) -> None:
        """Listen, on the port of the first time."""
        raise NotImplementedError

    async def shut(self) -> None:
        """Listen no more and break what is under way."""
        raise NotImplementedError


class HttpFace(Face):
    """OTLP/HTTP."""

    async def open(self) -> None:
        if not self.is_up:
            self.connections: set[HttpConnection] = set()
            loop = asyncio.get_running_loop()
            make: Callable[[], HttpConnection] = lambda: HttpConnection(self)  # noqa: E731
            self._server = await loop.create_server(make, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]
            self.is_up = True

    async def shut(self) -> None:
        if self.is_up:
            self.is_up = False
            self._server.close()
            for connection in list(self.connections):
                connection.transport.abort()


class HttpConnection(asyncio.Protocol):
    """One connection. Requests come one after the other, as HTTP/1.1 clients send them."""

    transport: asyncio.Transport

    def __init__(self, face: HttpFace) -> None:
        self._face = face
        self._parser = Parser(REQUEST)
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own kind.
        self._face.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._resumed.set()
        self._face.connections.discard(self)

    def pause_writing(self) -> None:
        self._resumed.clear()

    def resume_writing(self) -> None:
        self._resumed.set()

    def data_received(self, data: bytes) -> None:
        for head, body in self._parser.feed(data):
            if b"\r\ncontent-encoding: gzip" in head.lower():
                body = zlib.decompress(body, 31)  # noqa: PLW2901 - the same, read.
            self._face.tally.attempts += 1
            self._behave(self._face.mood(), body)

    def _behave(self, mood: Mood, body: bytes) -> None:
        match mood["kind"]:
            case "reset":
                self.transport.abort()
            case "silent":
                pass
            case "garbage":
                self.transport.write(bytes(range(256)) * 8)
                self.transport.close()
            case "status":
                self._say(mood["code"], b"", mood.get("retry_after"))
            case "forget":
                self._face.tally.take(body, forget=True)
                self.transport.abort()
            case "slow":
                loop = asyncio.get_running_loop()
                loop.call_later(mood["s"], self._take, body)
            case "huge":
                self._face.tally.take(body)
                task = asyncio.ensure_future(self._flood(int(mood["bytes"])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "partial":
                self._take(body, partial=True)
            case _:
                self._take(body)

    def _take(self, body: bytes, *, partial: bool = False) -> None:
        if self.transport.is_closing():
            return
        spans = self._face.tally.take(body)
        self._face.tally.spans_ok += spans
        self._say(200, _partial(spans) if partial else b"")

    def _say(self, code: int, body: bytes, retry_after: int | None = None) -> None:
        hint = f"Retry-After: {retry_after}\r\n" if retry_after is not None else ""
        head = (
            f"HTTP/1.1 {code} x\r\nContent-Type: application/x-protobuf\r\n"
            f"{hint}Content-Length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)

    async def _flood(self, size: int) -> None:
        """An answer as long as asked for, as fast as it is read."""
        self.transport.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // len(HUGE_PIECE)):
            await self._resumed.wait()
            if self.transport.is_closing():
                return
            self.transport.write(HUGE_PIECE)


def _partial(spans: int) -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = spans // 2
    response.partial_success.error_message = "half of it"
    return response.SerializeToString()


class GrpcFace(Face):
    """OTLP/gRPC."""

    async def open(self) -> None:
        if self.is_up:
            return
        options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        self._server = grpc.aio.server(options=(*options, ("grpc.so_reuseport", 1)))
        export = grpc.unary_unary_rpc_method_handler(self._export)
        handler = grpc.method_handlers_generic_handler(TRACE_SERVICE, {"Export": export})
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        self.is_up = True

    async def shut(self) -> None:
        if self.is_up:
            self.is_up = False
            await self._server.stop(0)

    async def _export(self, body: bytes, context: Any) -> bytes:
        self.tally.attempts += 1
        mood = self.mood()
        match mood["kind"]:
            case "status":
                await _abort(context, mood)
            case "reset" | "forget" as kind:
                if kind == "forget":
                    self.tally.take(body, forget=True)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case "silent":
                await asyncio.sleep(3600)
            case "slow":
                await asyncio.sleep(mood["s"])
        spans = self.tally.take(body)
        self.tally.spans_ok += spans
        return {
            "garbage": bytes(range(255, 0, -1)),
            "huge": bytes(min(int(mood.get("bytes", 0)), 64 << 20)),
            "partial": _partial(spans),
        }.get(mood["kind"], b"")


async def _abort(context: Any, mood: Mood) -> None:
    code = next(each for each in grpc.StatusCode if each.value[0] == mood["code"])
    metadata: tuple[tuple[str, bytes], ...] = ()
    if mood.get("retry_after") is not None:
        status = status_pb2.Status(code=mood["code"])
        delay = Duration(seconds=mood["retry_after"])
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, "as told", metadata)


async def serve(spans_per_request: int, seed: int) -> None:
    """Both faces, until standard input closes."""
    http = HttpFace("http", spans_per_request, seed)
    grpc_face = GrpcFace("grpc", spans_per_request, seed + 1)
    faces: dict[str, Face] = {"http": http, "grpc": grpc_face}
    for face in faces.values():
        await face.open()
    print(json.dumps({name: face.port for name, face in faces.items()}), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await _obey(json.loads(line), faces)), flush=True)
    for face in faces.values():
        await face.shut()


async def _obey(order: dict[str, Any], faces: dict[str, Face]) -> object:
    match order["do"]:
        case "mood":
            await faces[order["transport"]].set_mood(order["mood"])
        case "save":
            arrays: dict[str, Any] = {}
            for name, face in faces.items():
                arrays[f"{name}_counts"] = face.tally.counts
                arrays[f"{name}_forgotten"] = face.tally.forgotten
                arrays[f"{name}_first_s"] = face.tally.first_s
            np.savez(order["path"], **arrays)
    return {name: face.tally.totals() for name, face in faces.items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.hop")
    parser.add_argument("--spans", type=int, required=True, help="spans per request")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    uvloop.run(serve(options.spans, options.seed))


if __name__ == "__main__":
    main(sys.argv[1:])
