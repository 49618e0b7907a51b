"""The connections of an HTTP door: how many, how long, and what each may take its time for.

    accepted --> waiting for a head --> handler at work --> waiting ...
       |            |          |              |
     limits      idle_s    header_s from     slow reader: answers not taken for SLOW_READER_S
     503         (aiohttp)  its first byte

aiohttp closes a connection that is idle, but knows no time for headers that trickle: it would wait
as long as for an idle one. The rules that take time are applied once a second to all connections
in one pass, because a timer for each request costs more than a look at each connection.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from otel_anomaly.receivers.gate import client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.telemetry import Telemetry

SLOW_READER_S: Final = 30.0
"""A client that asks and does not take the answers keeps a handler waiting for so long."""
TURNED_AWAY_MAX: Final = 128
"""Connections beyond the limit that are told so at any time; more are closed without a word."""
TURNED_AWAY_S: Final = 1.0
SWEPT_AT_ONCE: Final = 64
"""A tenth of a millisecond or less; ten thousand at once would hold everybody up for several."""
AGE_SPREAD: Final = 10
"""Ages differ by up to so many percent, so that not all clients of a restart come back at once."""
FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/x-protobuf\r\n"
    b"Retry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/x-protobuf\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def _not_the_clients_fault(record: logging.LogRecord) -> bool:
    """Bytes that are not HTTP are answered 400. They are the sender's business, not our log's."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


HTTP_LOG: Final = logging.getLogger("otel_anomaly.http")
HTTP_LOG.addFilter(_not_the_clients_fault)


class Limits(NamedTuple):
    """What connections may do. Times in seconds; 0 for `age_s` and `per_client` is no limit."""

    connections: int = 1024
    per_client: int = 0
    header_s: float = 10.0
    idle_s: float = 180.0
    age_s: float = 0.0
    age_grace_s: float = 60.0
    line_bytes: int = 8190


class Connection(web.RequestHandler):
    """One of them: aiohttp's, with what the rules need to know."""

    __slots__ = ("_census", "client", "counted", "expired", "head_since_s", "made_s", "stuck_s")

    def __init__(self, census: Census, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        self._census = census
        self.client = ""
        self.counted = False
        self.expired = False
        """Old: its next answer is its last."""
        self.made_s = 0.0
        self.head_since_s = 0.0
        """When the first byte of a head came that is not whole yet; 0 for none."""
        self.stuck_s = 0.0
        """Since when it has not taken our answers; 0 while it does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or tell it that the house is full."""
        peer = transport.get_extra_info("peername")
        self.client = client_of(peer[0]) if isinstance(peer, tuple) else "unix"
        self.made_s = self._loop.time()
        reason = self._census.enter(self)
        if reason is None:
            super().connection_made(transport)
            return
        self.force_close()  # Whatever it sends is not looked at.
        self._census.turn_away(cast("asyncio.Transport", transport))  # uvloop's is none.

    def connection_lost(self, exc: BaseException | None) -> None:
        """Gone."""
        self._census.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; afterwards either a head is whole or its time runs."""
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.head_since_s = 0.0
        elif not self.head_since_s:
            self.head_since_s = self._loop.time()

    def pause_writing(self) -> None:
        """Answers pile up."""
        super().pause_writing()
        self.stuck_s = self._loop.time()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self.stuck_s = 0.0

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Not HTTP, or over a limit of the parser: aiohttp's answer would repeat what came."""
        self._census.note("malformed")
        super().handle_error(request, status, exc, message)  # Logs, unless the client's fault.
        answer = self._census.on_error(status)
        answer.force_close()
        return answer

    def is_idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._waiter is not None and not self._waiter.done() and not self.head_since_s

    def overdue(self, now_s: float, limits: Limits) -> str | None:
        """Why it must go; None when it may stay. Marks one whose time is nearly over."""
        if self.head_since_s and now_s - self.head_since_s > limits.header_s:
            return "slow_headers"
        if self.stuck_s and now_s - self.stuck_s > SLOW_READER_S:
            return "slow_reader"
        if limits.age_s:
            spread = (hash(self) // 64 % (2 * AGE_SPREAD + 1) - AGE_SPREAD) / 100
            over_s = now_s - self.made_s - limits.age_s * (1 + spread)
            self.expired = over_s > 0
            if over_s > limits.age_grace_s:
                return "aged"
        return None

    def end(self, reason: str) -> None:
        """Close it, with a word where one is due."""
        if self.transport is None:
            return
        if reason == "slow_reader":
            self.transport.abort()
            return
        if reason == "slow_headers":
            self.transport.write(TOO_SLOW)
        self.force_close()


class Census:
    """All connections of one door."""

    def __init__(
        self,
        transport: str,
        telemetry: Telemetry,
        on_error: Callable[[int], web.Response],
    ) -> None:
        self.limits = Limits()
        self.on_error = on_error
        """The answer to what is not HTTP; aiohttp's own would repeat it."""
        self._open: set[Connection] = set()
        self._per_client: dict[str, int] = {}
        self._turned_away = 0
        self._gauge = telemetry.connections.labels(transport)
        self._telemetry, self._transport = telemetry, transport

    def __len__(self) -> int:
        return len(self._open)

    def note(self, reason: str) -> None:
        """Count one that was refused or ended."""
        self._telemetry.refused_connections.labels(self._transport, reason).inc()

    def enter(self, connection: Connection) -> str | None:
        """Why it may not; None when it may, and is counted."""
        limits, client = self.limits, connection.client
        reason = None
        if len(self._open) >= limits.connections:
            reason = "limit"
        elif limits.per_client and self._per_client.get(client, 0) >= limits.per_client:
            reason = "per_client"
        if reason is not None:
            self.note(reason)
            return reason
        connection.counted = True
        self._open.add(connection)
        self._per_client[client] = self._per_client.get(client, 0) + 1
        self._gauge.inc()
        return None

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Tell it that the house is full, and let it read that before the connection ends.

        Closed at once, with a request of it unread, it would see a reset instead.
        """
        if self._turned_away >= TURNED_AWAY_MAX or not transport.can_write_eof():
            transport.write(FULL)
            transport.close()
            return
        self._turned_away += 1
        transport.write(FULL)
        transport.write_eof()
        asyncio.get_running_loop().call_later(TURNED_AWAY_S, self._let_go, transport)

    def _let_go(self, transport: asyncio.Transport) -> None:
        self._turned_away -= 1
        transport.abort()

    def leave(self, connection: Connection) -> None:
        """Counted back, once."""
        if not connection.counted:
            return
        connection.counted = False
        self._open.discard(connection)
        self._gauge.dec()
        left = self._per_client[connection.client] - 1
        if left:
            self._per_client[connection.client] = left
        else:
            del self._per_client[connection.client]

    async def sweep(self, now: Callable[[], float]) -> None:
        """Apply the rules that take time, to so many connections before others have their turn."""
        for number, connection in enumerate(list(self._open)):
            if number % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1:
                await asyncio.sleep(0)
            reason = connection.overdue(now(), self.limits)
            if reason is not None and connection.counted:
                self.note(reason)
                connection.end(reason)
