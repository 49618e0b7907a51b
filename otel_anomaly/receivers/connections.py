"""The connections of an HTTP door: how many, how long, and what each may take its time for.

    accepted --> waiting for a head --> handler at work --> waiting ...
       |            |          |              |
     limits      idle_s    header_s from     slow reader: answers not taken for SLOW_READER_S
     503         (aiohttp)  its first byte

aiohttp closes a connection that is idle, but knows no time for headers that trickle: it would wait
as long as for an idle one. The rules that take time are applied once a second to all connections
in one pass, because a timer for each request costs more than a look at each connection.

Nor does it know a sum of headers, and its parser keeps a head until the next one begins: without a
bound of our own each idle connection could hold megabytes. So a head is fed to it in pieces of the
most that a whole one may have, and what has not become a request after that is refused.

Requests that a client sends behind one that is not answered lie in memory that nothing counts, and
aiohttp would take 32 of half a MiB. So the socket is not read while one waits behind another: what
waits is what came in a read or two. OTLP clients do not do that, and who does loses nothing by it.

To close a connection is to wait until the client has taken what is written, and aiohttp waits for
ever. So that time is bounded as every other is, and the connection remembers its transport, which
aiohttp forgets at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

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
HEAD_LINES: Final = 2
"""Longest lines that a whole head may weigh: an honest one has many headers, but no two like it."""
BODY_PIECE_BYTES: Final = 1 << 16
"""Fed to the parser at a time while a body comes. What of the next head comes in one piece with the
end of a body is not counted, so the pieces are short."""
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
    faults = (HttpProcessingError, web.RequestPayloadError)
    return not (record.exc_info and isinstance(record.exc_info[1], faults))


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
    makes_room: bool = False
    """With no connection left, the one that is idle longest goes for the new one."""

    @property
    def head_bytes(self) -> int:
        """Request line and headers of one request, together."""
        return HEAD_LINES * self.line_bytes


class Connection(web.RequestHandler):
    """One of them: aiohttp's, with what the rules need to know."""

    __slots__ = (
        "_broken",
        "_census",
        "_head_bytes",
        "_line",
        "_newest",
        "client",
        "counted",
        "expired",
        "head_since_s",
        "made_s",
        "stuck_s",
    )

    def __init__(self, census: Census, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        self._census = census
        self._broken = False
        """What it sends is not looked at any more."""
        self._line: asyncio.Transport | None = None
        """The transport, to the end of it: aiohttp's own is None when it has asked for that."""
        self._msg_queue_resume_size = 0
        self._head_bytes = 0
        """Of a head that is not whole yet."""
        self._newest: StreamReader = EMPTY_PAYLOAD
        """The body of the newest request: until its end, what comes is no head."""
        self.client = ""
        self.counted = False
        self.expired = False
        """Old: its next answer is its last."""
        self.made_s = 0.0
        self.head_since_s = 0.0
        """When the first byte of a head came that is not whole yet; 0 for none."""
        self.stuck_s = 0.0
        """Since when it has not taken our answers, or not let itself be closed; 0 while it does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or tell it that the house is full."""
        peer = transport.get_extra_info("peername")
        self.client = client_of(peer[0]) if isinstance(peer, tuple) else "unix"
        self.made_s = self._loop.time()
        self._line = cast("asyncio.Transport", transport)  # uvloop's is none.
        reason = self._census.enter(self)
        if reason is None:
            super().connection_made(transport)
            return
        self.force_close()  # Whatever it sends is not looked at.
        self._census.turn_away(self._line)

    async def start(self) -> None:
        """Answer requests until it ends. However that comes, nobody would answer afterwards."""
        try:
            await super().start()
        finally:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Gone."""
        self._census.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; afterwards either a head is whole or its time runs."""
        head_max, begin = self._census.limits.head_bytes, 0
        while len(data) - begin > head_max:
            size = head_max if self._newest.is_eof() else max(head_max, BODY_PIECE_BYTES)
            self._feed(data[begin : begin + size], head_max)
            begin += size
        self._feed(data[begin:], head_max)
        if not self._buffer_paused and len(self._messages) + self._request_in_progress > 1:
            self._pause_reading_for_buffer()  # aiohttp goes on when the last that waits is taken.
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.head_since_s = 0.0
        elif not self.head_since_s:
            self.head_since_s = self._loop.time()

    def _feed(self, data: bytes, head_max: int) -> None:
        """A piece for the parser, and what came of it."""
        if self._broken:
            return
        messages, body, before = self._messages, self._newest, self._request_count
        was_head = body.is_eof()
        super().data_received(data)
        if new := self._request_count - before:
            self._newest = messages[-1][1]
            if isinstance(messages[-1][0], _ErrInfo):
                self._break_off(body)
            elif self._head_bytes + len(data) > head_max:
                self._weigh_heads(new, head_max)
            # With so many requests waiting that the parser pauses, what comes lies unparsed in it.
            self._head_bytes = self._head_bytes + len(data) if self._buffer_paused else 0
        elif was_head:
            self._head_bytes += len(data)
            if self._head_bytes > head_max and not self._buffer_paused:
                self._refuse_head(StreamReader(self, 1, loop=self._loop))
        else:
            self._head_bytes = 0
        if self._upgraded:
            # Never to what was asked for. What follows would be kept until it was parsed again.
            self._message_tail = b""
            self.close()

    def _weigh_heads(self, new: int, head_max: int) -> None:
        """The newest requests came with more bytes than a head may have: look at each."""
        messages = self._messages
        for index in range(len(messages) - new, len(messages)):
            message, payload = messages[index]
            assert not isinstance(message, _ErrInfo), "that one comes alone"
            fields = sum(len(name) + len(value) for name, value in message.raw_headers)
            if len(message.path) + fields > head_max:
                while len(messages) > index:
                    messages.pop()
                self._refuse_head(payload)
                return

    def _refuse_head(self, payload: StreamReader) -> None:
        """Answer 431 after the requests that wait. aiohttp waits a moment for the end of `payload`,
        and we let what comes fall: the client reads our answer and not a reset."""
        self._broken = True
        self._messages.append((_error(431, "the headers are too large"), payload))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break_off(self, body: StreamReader) -> None:
        """Not HTTP. The parser would say so for every further read, each time with what it read;
        and it does not tell whoever waits for the rest of a body."""
        self._broken = True
        self._messages[-1] = (_error(400, "not HTTP"), EMPTY_PAYLOAD)
        if not body.is_eof():
            self.expired = True
            body.set_exception(web.RequestPayloadError("the body's framing is broken"))
            body.feed_eof()
            if self._current_request is None and len(self._messages) == 1:
                self.close()  # It was answered before: no second word about it.

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

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has waited for its client; None while its client waits for us."""
        if (self._request_in_progress or self._messages) and not self.stuck_s:
            return None
        return self.stuck_s or self._next_keepalive_close_time - self._keepalive_timeout

    def overdue(self, now_s: float, limits: Limits) -> str | None:
        """Why it must go; None when it may stay. Marks one whose time is nearly over."""
        assert self._line is not None, "counted when it was made"
        is_closing = self._line.is_closing()
        if is_closing and not self.stuck_s:
            self.stuck_s = now_s
        if self.stuck_s and now_s - self.stuck_s > SLOW_READER_S:
            return "slow_reader"
        if is_closing:
            return None  # The reason has been told.
        if self.head_since_s and now_s - self.head_since_s > limits.header_s:
            return "slow_headers"
        if limits.age_s:
            spread = (hash(self) // 64 % (2 * AGE_SPREAD + 1) - AGE_SPREAD) / 100
            over_s = now_s - self.made_s - limits.age_s * (1 + spread)
            self.expired = over_s > 0
            if over_s > limits.age_grace_s:
                return "aged"
        return None

    def end(self, reason: str) -> None:
        """Close it, with a word where one is due."""
        assert self._line is not None, "counted when it was made"
        if reason in {"slow_reader", "limit"}:
            self._line.abort()
            return
        if reason == "slow_headers":
            self._line.write(TOO_SLOW)
        self.force_close()


def _error(status: int, message: str) -> _ErrInfo:
    """What aiohttp answers in the place of a request."""
    error = HttpProcessingError(code=status, message=message)
    return _ErrInfo(status=status, exc=error, message=message)


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

    def held_by(self, client: str) -> int:
        """How many of them are one client's."""
        return self._per_client.get(client, 0)

    def note(self, reason: str) -> None:
        """Count one that was refused or ended."""
        self._telemetry.refused_connections.labels(self._transport, reason).inc()

    def enter(self, connection: Connection) -> str | None:
        """Why it may not; None when it may, and is counted."""
        limits, client = self.limits, connection.client
        reason = None
        if limits.per_client and self.held_by(client) >= limits.per_client:
            reason = "per_client"
        elif len(self._open) >= limits.connections and not self._make_room():
            reason = "limit"
        if reason is not None:
            self.note(reason)
            return reason
        connection.counted = True
        self._open.add(connection)
        self._per_client[client] = self.held_by(client) + 1
        self._gauge.inc()
        return None

    def _make_room(self) -> bool:
        """Cut off the longest idle connection of the client that has most. False when that is not
        the rule here, or all are at work."""
        if not self.limits.makes_room:
            return False
        idle = [
            (-self._per_client[each.client], since_s, id(each), each)
            for each in self._open
            if (since_s := each.idle_since_s) is not None
        ]
        if not idle:
            return False
        *_, longest = min(idle)
        self.leave(longest)
        self.note("limit")
        longest.end("limit")
        return True

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
