"""Next hops over both transports that answer by a script, and a queue with the real exporter."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
from aiohttp import web
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly.config import Config
from otel_anomaly.exporters import Fanout, build
from otel_anomaly.handoff import Payload, Signal
from otel_anomaly.otlp.json import decode
from otel_anomaly.telemetry import Telemetry
from tests.exporters_world import Books, FixedClock
from tests.test_exporters_grpc import Hop as GrpcHop
from tests.test_exporters_grpc import serving as serving_grpc
from tests.test_exporters_http import serving as serving_http

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Code = grpc.StatusCode
NAME = "next"
_LARGE = 1 << 20


class Answer(NamedTuple):
    """What the next hop says to one request."""

    code: int = 0
    """0 is success; gRPC's number or HTTP's."""
    body: bytes = b""
    delay_s: int | None = None
    """RetryInfo, or Retry-After in seconds."""
    date: str = ""
    """Retry-After as a date."""


class Out(NamedTuple):
    """How requests leave."""

    transport: str
    encoding: str
    coding: str

    def __str__(self) -> str:
        return "-".join(self)

    @property
    def is_grpc(self) -> bool:
        return self.transport == "grpc"


OUTS = [
    *(Out("grpc", "proto", coding) for coding in ("none", "gzip")),
    *(
        Out("http", encoding, coding)
        for encoding in ("proto", "json")
        for coding in ("none", "gzip", "zstd")
    ),
]
PLAIN = [out for out in OUTS if out.coding == "none"]


class NextHop:
    """Takes requests by one way, as their exporter sends them, and answers by the script."""

    def __init__(self, out: Out, *script: Answer) -> None:
        self.out = out
        self.script = list(script)
        self.bodies: list[bytes] = []
        """In protobuf, uncompressed, whatever way they came."""
        self.wire_sizes: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[object] = set()
        self.under_way = self.most_under_way = 0
        self.gate: asyncio.Event | None = None
        self.hang_up = 0
        """So many of the next requests are taken and not answered: the connection breaks."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """The hop at a port."""
        if self.out.is_grpc:
            async with serving_grpc(_RawGrpc(self)) as port:
                yield port
            return
        async with serving_http(_RawHttp(self)) as port:  # type: ignore[arg-type]
            yield port

    async def take(self, body: bytes, headers: dict[str, str]) -> Answer | None:
        """Note a request and wait for the gate. None: hang up."""
        self.bodies.append(body)
        self.headers.append(headers)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.hang_up:
            self.hang_up -= 1
            return None
        return self.script.pop(0) if self.script else Answer()


class _RawGrpc(GrpcHop):
    def __init__(self, hop: NextHop) -> None:
        super().__init__(self._answer)
        self._hop = hop

    async def _answer(self, context: Any) -> bytes:
        _, body, metadata = self.calls[-1]
        self._hop.connections.add(context.peer())
        answer = await self._hop.take(body, metadata)
        if answer is None:
            # What a client sees of a connection that breaks.
            await context.abort(Code.UNAVAILABLE, "connection reset")
        elif answer.code:
            code = next(each for each in Code if each.value[0] == answer.code)
            await context.abort(code, "because", _details(answer))
        assert answer is not None
        return answer.body


class _RawHttp:
    def __init__(self, hop: NextHop) -> None:
        self._hop = hop

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        hop = self._hop
        hop.connections.add(request.transport)
        # aiohttp has inflated gzip and zstd by itself.
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        if hop.out.encoding == "json":
            body = decode(body, Signal(request.path.rpartition("/")[2]))
        answer = await hop.take(body, {name.lower(): v for name, v in request.headers.items()})
        if answer is None:
            assert request.transport is not None
            request.transport.abort()  # type: ignore[attr-defined]
            return web.Response()
        headers = {"Retry-After": str(answer.delay_s)} if answer.delay_s is not None else {}
        headers |= {"Retry-After": answer.date} if answer.date else {}
        if hop.out.encoding == "json" and len(answer.body) < _LARGE:
            headers["Content-Type"] = "application/json"
            response = ExportTraceServiceResponse.FromString(answer.body)
            body = json_format.MessageToJson(response).encode()
            return web.Response(status=answer.code or 200, body=body, headers=headers)
        return web.Response(status=answer.code or 200, body=answer.body, headers=headers)


def _details(answer: Answer) -> tuple[tuple[str, bytes], ...]:
    if answer.delay_s is None:
        return ()
    status = status_pb2.Status(code=answer.code)
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromSeconds(answer.delay_s)
    status.details.add().Pack(info)
    return (("grpc-status-details-bin", status.SerializeToString()),)


class Sender:
    """A queue and the real exporter behind it, built from a configuration as the service does."""

    def __init__(self, fanout: Fanout, telemetry: Telemetry) -> None:
        self.fanout = fanout
        self.books = Books(telemetry, "")

    def put(self, body: bytes, items: int = 1, signal: Signal = Signal.TRACES) -> None:
        self.fanout.reserve(len(body))
        self.fanout.commit(Payload(body, signal, items), len(body))


def exporter_name(out: Out) -> str:
    return f"otlp_{out.transport}/{NAME}"


def exporter_keys(out: Out, port: int, **more: Any) -> dict[str, Any]:
    """The block of the exporter: small waits, nothing merged unless asked for."""
    keys: dict[str, Any] = {
        "endpoint": f"http://127.0.0.1:{port}",
        "compression": out.coding,
        "retry_on_failure": {"initial_interval": "10ms", "max_interval": "20ms"},
        "sending_queue": {"batch": {"flush_timeout": "1ms", "max_size": 1}},
        **more,
    }
    return keys if out.is_grpc else {**keys, "encoding": out.encoding}


def configured(exporters: dict[str, Any]) -> Config:
    return Config.model_validate({"exporters": exporters})


@asynccontextmanager
async def sending(out: Out, port: int, chance: random.Random, **more: Any) -> AsyncIterator[Sender]:
    """A sender towards the hop; what it holds at the end is delivered or dropped at once."""
    name = exporter_name(out)
    config = configured({name: exporter_keys(out, port, **more)})
    telemetry = Telemetry([name])
    fanout = build(config, telemetry, FixedClock(), chance)
    await fanout.start()
    sender = Sender(fanout, telemetry)
    sender.books.exporter = name
    try:
        yield sender
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await fanout.stop(0)


async def until(true: Callable[[], bool]) -> None:
    """Wait for the other side; two minutes mean that it never comes."""
    async with asyncio.timeout(120):
        while not true():  # noqa: ASYNC110 - what is waited for has no event to wait on.
            await asyncio.sleep(0.002)


def play(out: Out, script: tuple[Answer, ...], work: Any, **more: Any) -> NextHop:
    """Have `work(hop, sender)` done between a scripted hop and a sender."""
    hop = NextHop(out, *script)

    async def main() -> None:
        async with hop.serving() as port, sending(out, port, random.Random(1), **more) as sender:
            await work(hop, sender)

    asyncio.run(main())
    return hop
