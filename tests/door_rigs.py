"""What the tests of the doors share: a consumer that remembers, a clock that stands, raw HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2

from otel_anomaly.config import GrpcReceiverConfig, HttpReceiverConfig
from otel_anomaly.handoff import Admit, Batch, Outcome, Reply, Signal, admit_all
from otel_anomaly.receivers.grpc import SERVICES, GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NOW_NS = 1_700_000_000_123_456_789
PROTOBUF = "application/x-protobuf"
TRACE_SERVICE = SERVICES[Signal.TRACES]
OK = Reply(Outcome.ACCEPTED)


async def until(true: Callable[[], bool]) -> None:
    """Wait for the other side of a socket; a minute means that it never comes."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for has no event to wait on.
            await asyncio.sleep(0.001)


class StandingClock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.wall_ns = NOW_NS
        self.steady_s = 0.0

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic(self) -> float:
        return self.steady_s


class Consumer:
    """Takes batches and answers as told. With a gate it waits inside, like a slow processor."""

    def __init__(self, answer: Reply | Exception = OK) -> None:
        self.answer = answer
        self.batches: list[Batch] = []
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def __call__(self, batch: Batch) -> Reply:
        self.batches.append(batch)
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def counted(telemetry: Telemetry, transport: str, outcome: Outcome, signal: str = "traces") -> int:
    """The request counter, as a scrape shows it."""
    labels = {"transport": transport, "signal": signal, "outcome": outcome.value}
    value = telemetry.registry.get_sample_value("otel_anomaly_receiver_requests_total", labels)
    assert value is not None
    return int(value)


class Answer(NamedTuple):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def status_message(self) -> status_pb2.Status:
        """The google.rpc.Status of a refusal."""
        assert self.headers["content-type"] == PROTOBUF
        return status_pb2.Status.FromString(self.body)


class HttpRig(NamedTuple):
    """A running HTTP door and what stands around it."""

    door: HttpReceiver
    consumer: Consumer
    telemetry: Telemetry
    clock: StandingClock

    async def post(
        self, body: bytes = b"", path: str = "/v1/traces", method: str = "POST", **headers: str
    ) -> Answer:
        """One request on a connection of its own. `content_type` means `Content-Type`."""
        named = {"content_type": PROTOBUF, **headers}
        raw = request_head(method, path, **{"content_length": str(len(body)), **named}) + body
        return await self.send(raw)

    async def send(self, raw: bytes) -> Answer:
        """Raw bytes on a connection of their own, and the response to them."""
        async with connect(self.door.port) as (reader, writer):
            writer.write(raw)
            return await read_answer(reader)

    def counted(self, outcome: Outcome, signal: str = "traces") -> int:
        return counted(self.telemetry, "http", outcome, signal)


@contextlib.asynccontextmanager
async def http_door(
    limit: int = 1 << 20,
    answer: Reply | Exception = OK,
    decode_json: Callable[[bytes, Signal], bytes] | None = None,
    admit: Admit = admit_all,
    **keys: Any,
) -> AsyncIterator[HttpRig]:
    """A door on a free port, closed at the end. `keys` are keys of its configuration."""
    consumer, telemetry, clock = Consumer(answer), Telemetry(), StandingClock()
    keys = {"endpoint": "127.0.0.1:0", "max_request_body_size": limit, **keys}
    door = HttpReceiver(HttpReceiverConfig(**keys), consumer, telemetry, clock, decode_json, admit)
    await door.start()
    try:
        yield HttpRig(door, consumer, telemetry, clock)
    finally:
        await door.stop(0.2)


class GrpcRig(NamedTuple):
    """A running gRPC door, a channel to it, and what stands around it."""

    door: GrpcReceiver
    channel: grpc.aio.Channel
    consumer: Consumer
    telemetry: Telemetry

    async def export(
        self, body: bytes, service: str = TRACE_SERVICE, method: str = "Export", **options: Any
    ) -> bytes:
        answer = await self.channel.unary_unary(f"/{service}/{method}")(body, **options)
        assert isinstance(answer, bytes)
        return answer

    async def refusal(self, body: bytes, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.export(body, **options)
        return caught.value

    def counted(self, outcome: Outcome, signal: str = "traces") -> int:
        return counted(self.telemetry, "grpc", outcome, signal)


@contextlib.asynccontextmanager
async def grpc_door(
    answer: Reply | Exception = OK,
    credentials: grpc.ChannelCredentials | None = None,
    admit: Admit = admit_all,
    **keys: Any,
) -> AsyncIterator[GrpcRig]:
    """A door with a limit of one MiB on a free port, closed at the end, and a channel to it."""
    consumer, telemetry = Consumer(answer), Telemetry()
    keys = {"endpoint": "127.0.0.1:0", "max_recv_msg_size_mib": 1, **keys}
    door = GrpcReceiver(GrpcReceiverConfig(**keys), consumer, telemetry, StandingClock(), admit)
    await door.start()
    try:
        async with grpc_channel(f"127.0.0.1:{door.port}", credentials) as channel:
            yield GrpcRig(door, channel, consumer, telemetry)
    finally:
        await door.stop(0.2)


def grpc_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """To a door, with TLS when there are credentials for it."""
    if credentials is None:
        return grpc.aio.insecure_channel(target)
    return grpc.aio.secure_channel(target, credentials)


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to loopback, closed at the end, also of a test that fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request_head(method: str, path: str, **headers: str) -> bytes:
    """Request line and headers. A header without a value is left out."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items() if value]
    return "\r\n".join([*lines, "", ""]).encode()


async def read_answer(reader: asyncio.StreamReader, method: str = "POST") -> Answer:
    """One response with a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
    return Answer(int(status_line.split()[1]), headers, await reader.readexactly(length))


def chunked(body: bytes, size: int) -> bytes:
    """A body in HTTP/1.1 chunks."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def gzip_bomb(mebibytes: int) -> bytes:
    """A small gzip body that inflates to so many MiB of zeros, made without inflating it.

    A full flush ends a deflate block on a byte, so one compressed MiB can be repeated. The checksum
    at the end is wrong: nobody who is careful gets that far.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    mebibyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    return gzip.compress(b"")[:10] + mebibyte * mebibytes + end + bytes(8)
