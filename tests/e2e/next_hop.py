"""The far end: a back end that keeps every request it gets, byte for byte.

Built on the synchronous grpcio server and the standard library, not on what the service uses, so
that a fault in one of those does not hide itself.
"""

from __future__ import annotations

import gzip
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

SERVICES = {
    signal: f"opentelemetry.proto.collector.{package}.v1.{name}Service"
    for signal, package, name in (
        ("traces", "trace", "Trace"),
        ("metrics", "metrics", "Metrics"),
        ("logs", "logs", "Logs"),
    )
}


class Received(NamedTuple):
    """One request as it came, uncompressed."""

    transport: str
    signal: str
    body: bytes


class NextHop:
    """Both doors on 127.0.0.1, each on the given port or any free one."""

    def __init__(self, grpc_port: int = 0, http_port: int = 0) -> None:
        self._lock = threading.Lock()
        self._received: list[Received] = []
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 << 20)]
        )
        for signal, service in SERVICES.items():
            self._server.add_generic_rpc_handlers((self._grpc_handler(signal, service),))
        self.grpc_port = self._server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._http = _HttpServer(("127.0.0.1", http_port), _HttpHandler)
        self._http.hop = self
        self.http_port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._server.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def take(self, transport: str, signal: str, body: bytes) -> None:
        with self._lock:
            self._received.append(Received(transport, signal, body))

    def received(self, signal: str) -> list[Received]:
        """What has come of one signal so far."""
        with self._lock:
            return [item for item in self._received if item.signal == signal]

    def spans(self) -> list[Span]:
        """Every span that has come so far, in order of arrival."""
        return [
            span
            for item in self.received("traces")
            for resource in ExportTraceServiceRequest.FromString(item.body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def _grpc_handler(self, signal: str, service: str) -> grpc.GenericRpcHandler:
        def export(body: bytes, _context: grpc.ServicerContext) -> bytes:
            self.take("grpc", signal, body)
            return b""

        method = grpc.unary_unary_rpc_method_handler(export)
        return grpc.method_handlers_generic_handler(service, {"Export": method})


class _HttpServer(ThreadingHTTPServer):
    hop: NextHop


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An exporter keeps its connection open; one that is gone must not hold up the end of a test.
    timeout = 5

    def do_POST(self) -> None:
        assert isinstance(self.server, _HttpServer)
        body = self._body()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.hop.take("http", self.path.rpartition("/")[2], body)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *_arguments: object) -> None:
        """Tests read what came, not a log."""
