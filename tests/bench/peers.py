"""The yardsticks: two proxies that only echo bytes onward, and a sink that only counts.

Run as a process of its own: `python -m tests.bench.peers grpc-echo --upstream 127.0.0.1:4317`.
Each prints one JSON line with its ports once it listens, and ends when its standard input closes,
so that none outlives the run that started it.

The proxies are written as the plain idiom of their library, with nothing that costs and is not
needed: raw bytes instead of messages, one channel or session for all requests, no access log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from concurrent import futures
from typing import TYPE_CHECKING

import aiohttp
import grpc
import uvloop
from aiohttp import web

from tests.bench.bodies import SPAN_MARK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
TRACE_METHOD = f"/{TRACE_SERVICE}/Export"
HTTP_PATH = "/v1/traces"
MESSAGE_BYTES_MAX = 64 << 20

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)


def _say(**ports: int) -> None:
    print(json.dumps(ports), flush=True)


def _handler(function: Callable[..., object]) -> grpc.GenericRpcHandler:
    method = grpc.unary_unary_rpc_method_handler(function)
    return grpc.method_handlers_generic_handler(TRACE_SERVICE, {"Export": method})


def grpc_echo(port: int, upstream: str) -> None:
    """A synchronous grpcio server on a pool of eight threads: blocking unary call, then answer."""
    with grpc.insecure_channel(upstream, options=_OPTIONS) as channel:
        export = channel.unary_unary(TRACE_METHOD)
        server = grpc.server(futures.ThreadPoolExecutor(8), options=_OPTIONS)
        server.add_generic_rpc_handlers((_handler(lambda body, _context: export(body)),))
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        _say(port=bound)
        sys.stdin.read()
        server.stop(None).wait()


async def _closed_stdin() -> None:
    """Return when standard input is closed. A daemon thread waits, so no executor has to end."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=wait, daemon=True).start()
    await closed.wait()


async def _listen(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], port: int
) -> tuple[web.ServerRunner, int]:
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, int(runner.addresses[0][1])


async def http_echo(port: int, upstream: str) -> None:
    """An aiohttp server that posts each body on with one shared session and returns the answer."""
    url = f"http://{upstream}{HTTP_PATH}"
    headers = {"Content-Type": "application/x-protobuf"}
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.BaseRequest) -> web.Response:
            body = await request.read()
            async with session.post(url, data=body, headers=headers) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type="application/x-protobuf",
                )

        runner, bound = await _listen(handle, port)
        _say(port=bound)
        await _closed_stdin()
        await runner.cleanup()


class Sink:
    """The far end of both kinds: swallows, counts, and tells the totals on `GET /count`."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.spans = 0

    def take(self, body: bytes) -> None:
        self.requests += 1
        self.bytes += len(body)
        self.spans += body.count(SPAN_MARK)

    async def on_grpc(self, body: bytes, _context: object) -> bytes:
        self.take(body)
        return b""

    async def on_http(self, request: web.BaseRequest) -> web.Response:
        if request.path == "/count":
            return web.json_response(vars(self))
        self.take(await request.read())
        return web.Response(body=b"", content_type="application/x-protobuf")


async def sink(port: int) -> None:
    """Both doors in one process; only one is under load at a time."""
    counts = Sink()
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(counts.on_grpc),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    runner, http_port = await _listen(counts.on_http, port)
    _say(grpc_port=grpc_port, http_port=http_port)
    await _closed_stdin()
    await server.stop(None)
    await runner.cleanup()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers")
    parser.add_argument("role", choices=("grpc-echo", "http-echo", "sink"))
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument("--upstream", default="", help="host:port the proxies send to")
    options = parser.parse_args(argv)
    if options.role == "grpc-echo":
        grpc_echo(options.port, options.upstream)
    elif options.role == "http-echo":
        uvloop.run(http_echo(options.port, options.upstream))
    else:
        uvloop.run(sink(options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
