"""The real doors with a processor behind them, and every way to send a request to them.

One event loop serves all tests of a module: gRPC's own threads belong to one loop at a time.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import sys
import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.config import GrpcReceiverConfig, HttpReceiverConfig
from otel_anomaly.handoff import Batch, Reply, Signal
from otel_anomaly.otlp.json import decode
from otel_anomaly.receivers.grpc import SERVICES, GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from tests.door_rigs import StandingClock, connect, read_answer, request_head
from tests.rig import Rig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from google.protobuf.message import Message

LIMIT = 1 << 20
REQUEST_OF: dict[Signal, type[Message]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}
CODED: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
GRPC_CODINGS = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
ID_NAMES = frozenset({"traceId", "spanId", "parentSpanId"})


class Way(NamedTuple):
    """How a request travels."""

    transport: str
    encoding: str
    coding: str

    @property
    def is_grpc(self) -> bool:
        return self.transport == "grpc"

    @property
    def content_type(self) -> str:
        return "application/json" if self.encoding == "json" else "application/x-protobuf"

    def __str__(self) -> str:
        return "-".join(self)


WAYS = [
    *(Way("grpc", "proto", coding) for coding in ("none", "gzip", "deflate")),
    *(
        Way("http", encoding, coding)
        for encoding in ("proto", "json")
        for coding in ("none", "gzip", "deflate", "zstd")
    ),
]
FEW_WAYS = [way for way in WAYS if way.coding in {"none", "gzip"}]
"""Where the coding cannot matter but by a bug: each transport and encoding, plain and gzipped."""


class Answer(NamedTuple):
    """What the client is told, on either transport."""

    code: int
    """gRPC's number, or HTTP's."""
    body: bytes = b""
    """The response message, or the encoded Status."""
    message: str = ""
    retry_s: float | None = None
    """RetryInfo, or Retry-After."""
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def ok(self) -> bool:
        return self.code in {0, 200}


class Doors:
    """Both doors, open on loopback, a processor behind them."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.clock = StandingClock()
        self.answer: Reply | Exception | None = None
        """What is answered instead of asking the processor."""
        self._runner = asyncio.Runner()
        telemetry = self.rig.telemetry
        self.grpc = GrpcReceiver(
            GrpcReceiverConfig(endpoint="127.0.0.1:0", max_recv_msg_size_mib=LIMIT >> 20),
            self._consume,
            telemetry,
            self.clock,
        )
        self.http = HttpReceiver(
            HttpReceiverConfig(endpoint="127.0.0.1:0", max_request_body_size=LIMIT),
            self._consume,
            telemetry,
            self.clock,
            decode,
        )
        self.run(self._open())

    async def _open(self) -> None:
        await self.grpc.start()
        await self.http.start()
        self._channels = {
            name: grpc.aio.insecure_channel(
                f"127.0.0.1:{self.grpc.port}",
                compression=coding,
                options=(("grpc.max_send_message_length", -1),),
            )
            for name, coding in GRPC_CODINGS.items()
        }

    async def _shut(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self.http.stop(0.2)
        await self.grpc.stop(0.2)

    async def _consume(self, batch: Batch) -> Reply:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.rig.processor.process(batch) if self.answer is None else self.answer

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the doors' loop."""
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._shut())
        self._runner.close()

    def passed_on(self) -> bytes:
        """What went to the exporters last."""
        return self.rig.room.payloads[-1].body

    def count(self) -> int:
        """Requests handed on so far."""
        return len(self.rig.room.payloads)

    def send(self, way: Way, body: bytes, signal: Signal = Signal.TRACES) -> Answer:
        """Send an encoded request, of protobuf, by `way`."""
        if way.encoding == "json":
            body = as_json(REQUEST_OF[signal].FromString(body))
        return self.send_raw(way, body, signal)

    def send_raw(self, way: Way, body: bytes, signal: Signal = Signal.TRACES) -> Answer:
        """Send bytes as they are but for the coding."""
        if way.is_grpc:
            return self.call(f"/{SERVICES[signal]}/Export", body, way.coding)
        return self.post(way, CODED[way.coding](body), f"/v1/{signal.value}")

    def call(self, method: str, body: bytes, coding: str = "none") -> Answer:
        """A gRPC call."""
        return self.run(self._call(method, body, coding))

    async def _call(self, method: str, body: bytes, coding: str) -> Answer:
        export = self._channels[coding].unary_unary(method)
        try:
            return Answer(0, await export(body, timeout=120, wait_for_ready=True))
        except grpc.aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
            return Answer(
                error.code().value[0], details, error.details() or "", retry_info_s(details)
            )

    def post(
        self, way: Way, wire: bytes, path: str = "/v1/traces", method: str = "POST", **more: str
    ) -> Answer:
        """An HTTP request whose body is `wire` as it is."""
        coding = {} if way.coding == "none" else {"content_encoding": way.coding}
        headers = {"content_type": way.content_type, **coding, **more}
        head = request_head(method, path, content_length=str(len(wire)), **headers)
        return self.run(self._post(head + wire))

    async def _post(self, raw: bytes) -> Answer:
        async with connect(self.http.port) as (reader, writer):
            writer.write(raw)
            got = await read_answer(reader)
        if got.status == 200:
            return Answer(200, got.body, headers=got.headers)
        status = status_in(got.body, got.headers["content-type"])
        hint = got.headers.get("retry-after")
        return Answer(
            got.status, got.body, status.message, float(hint) if hint else None, got.headers
        )


def retry_info_s(details: bytes) -> float | None:
    """The RetryInfo of encoded status details, seconds."""
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None


def status_in(body: bytes, content_type: str) -> status_pb2.Status:
    """The google.rpc.Status that every refusal of the HTTP door must hold."""
    if content_type == "application/json":
        return json_format.Parse(body, status_pb2.Status())
    assert content_type == "application/x-protobuf"
    return status_pb2.Status.FromString(body)


def as_json(message: Message) -> bytes:
    """OTLP/JSON by Google's codec and the one rule that it does not know. Not by ours."""
    plain = json_format.MessageToDict(message, use_integers_for_enums=True)
    return json.dumps(_hex_ids(plain)).encode()


def _hex_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_hex_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64decode(item).hex() if name in ID_NAMES else _hex_ids(item)
        for name, item in value.items()
    }
