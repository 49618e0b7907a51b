"""A listening socket with aiohttp's low-level server behind it: opened, changed, closed, drained.

The low-level server because the doors know three paths by heart: an aiohttp Application would
resolve, wrap and sign every request anew.

New certificates come in by a new TLS context: the listening socket is doubled, the new context
accepts on the double, then the old one stops accepting. No moment without an open port, and
connections that stand keep what they began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from aiohttp import web
from yarl import URL

from otel_anomaly.receivers.connections import HTTP_LOG, Census, Connection, Limits
from otel_anomaly.receivers.handshakes import Handshakes, TlsServer
from otel_anomaly.receivers.sockets import (
    host_and_port,
    owner_only,
    remove_socket,
    remove_stale,
    unix_path,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader
    from aiohttp.web import RequestHandler

LINGER_S: Final = 3.0
"""After an early refusal, the time in which the rest of the body is read and thrown away, so that
the client reads our answer and not a reset."""
SWEEP_S: Final = 1.0
LOG_EVERY_S: Final = 60.0
BACKLOG: Final = 4096
"""Connections the kernel completes before we accept: a restart brings all clients at once."""


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """aiohttp's own, for its parser lets targets through that no request can be made of: a CONNECT
    to nowhere, a host that is no name (`http://xn--a/`). They become requests for nothing."""
    loop = asyncio.get_running_loop()
    try:
        return web.BaseRequest(message, payload, protocol, writer, task, loop)
    except Exception:  # noqa: BLE001 - The connection's task would end with it.
        message = message._replace(path="", url=URL())
        return web.BaseRequest(message, payload, protocol, writer, task, loop)


class Listener:
    """One endpoint. `port` is known after `start`."""

    def __init__(
        self,
        endpoint: str,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        census: Census,
    ) -> None:
        self._endpoint = endpoint
        self._handler = handler
        self.census = census
        self._http: web.Server | None = None
        self._handshakes = Handshakes(census, self._connection)
        self._accepting: list[asyncio.Server | TlsServer] = []
        self._sweeper: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        """Listen.

        Raises
        ------
        OSError
            The address is taken or not ours. The message names it.
        """
        self.make_server()
        try:
            await self._listen(context)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"cannot listen on {self._endpoint}: {reason}") from error
        self._sweeper = asyncio.create_task(self._sweep_forever())

    def make_server(self) -> None:
        """What answers on connections, whoever accepts them."""
        self._http = web.Server(self._handler, request_factory=_request)

    async def _listen(self, context: ssl.SSLContext | None) -> None:
        loop, path = asyncio.get_running_loop(), unix_path(self._endpoint)
        if path is not None:
            remove_stale(path)
            bound = socket.socket(socket.AF_UNIX)
            try:
                with owner_only():
                    bound.bind(path)
            except OSError:
                bound.close()
                raise
            server = await loop.create_unix_server(self._connection, sock=bound, backlog=BACKLOG)
            self._accepting = [server]
            return
        host, port = host_and_port(self._endpoint)
        server = await loop.create_server(
            self._connection, host, port, backlog=BACKLOG, start_serving=context is None
        )
        self._accepting = [server]
        self.port = server.sockets[0].getsockname()[1]
        if context is not None:
            await self.use_tls(context)

    async def use_tls(self, context: ssl.SSLContext | None) -> None:
        """Accept with another context from now on, or without one."""
        assert unix_path(self._endpoint) is None, "refused by the configuration"
        before = self._accepting
        doubles = [
            socket.socket(fileno=os.dup(each.fileno()))
            for server in before
            for each in server.sockets
        ]
        accepting: list[asyncio.Server | TlsServer] = []
        try:
            for double in doubles:
                accepting.append(await self._accept_on(double, context))  # noqa: PERF401 - closed.
        except BaseException:
            for server in accepting:
                server.close()
            for double in doubles[len(accepting) :]:
                double.close()
            raise
        self._accepting = accepting
        for server in before:
            server.close()

    async def _accept_on(
        self, bound: socket.socket, context: ssl.SSLContext | None
    ) -> asyncio.Server | TlsServer:
        if context is not None:
            return TlsServer(bound, BACKLOG, self._handshakes, context)
        loop = asyncio.get_running_loop()
        return await loop.create_server(self._connection, sock=bound, backlog=BACKLOG)

    def _connection(self) -> Connection:
        assert self._http is not None
        limits: Limits = self.census.limits
        return Connection(
            self.census,
            self._http,
            loop=asyncio.get_running_loop(),
            auto_decompress=False,
            access_log=None,
            logger=HTTP_LOG,
            keepalive_timeout=limits.idle_s,
            lingering_time=LINGER_S,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
        )

    async def _sweep_forever(self) -> None:
        loop = asyncio.get_running_loop()
        logged_s = -LOG_EVERY_S
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.census.sweep(loop.time)
            except Exception:  # noqa: BLE001 - Without a next round no rule of time would hold.
                if loop.time() - logged_s >= LOG_EVERY_S:
                    logged_s = loop.time()
                    HTTP_LOG.exception("the connections could not be looked through")

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        if self._http is None or not self._accepting:
            return
        for server in self._accepting:
            server.close()
        await self._handshakes.stop()
        with contextlib.suppress(OSError):
            remove_socket(self._endpoint)
        self._http.pre_shutdown()
        await self._http.shutdown(grace_s)
        self._http, self._accepting = None, []
