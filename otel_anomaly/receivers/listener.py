"""A listening socket with aiohttp's low-level server behind it: opened, closed, drained.

The low-level server because the doors know three paths by heart: an aiohttp Application would
resolve, wrap and sign every request anew.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEEP_ALIVE_S: Final = 180.0
"""An idle connection is closed after this time. SDKs send every 5 s (spans) or 60 s (metrics), so
the client's next request does not cross the closing of its connection on the wire."""
LINGER_S: Final = 3.0
"""After an early refusal, the time in which the rest of the body is read and thrown away, so that
the client reads our answer and not a reset."""


def _not_the_clients_fault(record: logging.LogRecord) -> bool:
    """Bytes that are not HTTP are answered 400. They are the sender's business, not our log's."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


HTTP_LOG: Final = logging.getLogger("otel_anomaly.http")
HTTP_LOG.addFilter(_not_the_clients_fault)


def host_and_port(endpoint: str) -> tuple[str, int]:
    """`[::1]:80` -> (`::1`, 80)."""
    host, _, port = endpoint.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Listener:
    """One endpoint. `port` is known after `start`."""

    def __init__(
        self, endpoint: str, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> None:
        self._endpoint = endpoint
        self._handler = handler
        self._http: web.Server | None = None
        self._sockets: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises
        ------
        OSError
            The address is taken or not ours. The message names it.
        """
        self._http = web.Server(
            self._handler,
            auto_decompress=False,
            access_log=None,
            logger=HTTP_LOG,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
        )
        host, port = host_and_port(self._endpoint)
        try:
            self._sockets = await asyncio.get_running_loop().create_server(self._http, host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"cannot listen on {self._endpoint}: {reason}") from error
        self.port = self._sockets.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        if self._http is None or self._sockets is None:
            return
        self._sockets.close()
        self._http.pre_shutdown()
        await self._http.shutdown(grace_s)
        self._http = self._sockets = None
