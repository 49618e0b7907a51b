"""Small clients on raw bytes, for what no SDK would send."""

from __future__ import annotations

import contextlib
import http.client
from typing import TYPE_CHECKING

import grpc

from tests.e2e.next_hop import SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROTOBUF = {"Content-Type": "application/x-protobuf"}
TIMEOUT_SECONDS = 60


@contextlib.contextmanager
def http_connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """One kept-alive connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def http_export(
    port: int, body: bytes, signal: str = "traces", headers: Mapping[str, str] | None = None
) -> int:
    """The HTTP status of one request on a connection of its own."""
    with http_connection(port) as connection:
        connection.request("POST", f"/v1/{signal}", body, {**PROTOBUF, **(headers or {})})
        with connection.getresponse() as answer:
            answer.read()
            return answer.status


@contextlib.contextmanager
def grpc_channel(port: int) -> Iterator[grpc.Channel]:
    """A channel that takes bodies of any size we send."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel


def grpc_export(
    channel: grpc.Channel, body: bytes, signal: str = "traces", **options: object
) -> grpc.StatusCode:
    """The gRPC status of one request."""
    export = channel.unary_unary(f"/{SERVICES[signal]}/Export")
    try:
        export(body, timeout=TIMEOUT_SECONDS, **options)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def export(transport: str, port: int, body: bytes, signal: str = "traces") -> bool:
    """Whether one request over `grpc` or `http` was accepted."""
    if transport == "http":
        return http_export(port, body, signal) == 200
    with grpc_channel(port) as channel:
        return grpc_export(channel, body, signal) is grpc.StatusCode.OK
