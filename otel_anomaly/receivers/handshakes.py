"""TLS handshakes of an HTTP door: how many at once, and whose.

An event loop that accepts by itself begins a handshake with everybody who connects, and tells of
the connection when it is over. Whoever says nothing costs a file and 50 KB (uvloop; asyncio 300)
until its time is over, counted by nobody. So a door with TLS takes connections over by itself:

    accepted --> shaking ----------> in the census
       |            |          |
    per_client   one too many  turned away: shaking still, for TURNED_AWAY_S at most

One too many is the oldest of the client that has most of them: an honest handshake is over after
three ways there and back, so it is hardly ever the oldest, and never goes for those of another.
When no client stands out, as after a restart, the newcomers wait a moment with the kernel instead.

Why not a refusal where the event loop asks for a protocol: uvloop would accept no more. Why not by
asking the kernel, as the gRPC door must: a second between two looks is time for thousands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from otel_anomaly.receivers.connections import TURNED_AWAY_S
from otel_anomaly.receivers.gate import client_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from otel_anomaly.receivers.connections import Census, Connection

LOG: Final = logging.getLogger("otel_anomaly")
HANDSHAKES_MAX: Final = 512
"""One core does some thousand handshakes a second: so many are under way when each takes half of
one."""
HANDSHAKES_MIN: Final = 64
"""Beside a full house, so that newcomers are told so."""
CLIENT_SHARE: Final = 4
"""A client with more than one part in so many of them stands out, unless all are its: then nobody
else has to wait for it, and a proxy may be all clients."""
PATIENCE_S: Final = 1.0
"""A handshake that is younger stays, unless its client stands out. Of 1500 clients at once, all in
one process that shares two cores with the door, 988 were closed with half a second, and none with
this."""
FULL_PAUSE_S: Final = 0.02
PAUSE_S: Final = 1.0
"""Before another try to accept, when there is no file for the connection."""


class Handshakes:
    """Those of one door, from the first moment of a connection."""

    def __init__(self, census: Census, make: Callable[[], Connection]) -> None:
        self._census = census
        self._make = make
        self._shaking: dict[str, dict[Connection, socket.socket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(each) for each in self._shaking.values())

    def are_full(self) -> bool:
        """Whether one more would cost another that has had no time yet."""
        if len(self) < self._room():
            return False
        most = max(self._shaking.values(), key=len)
        oldest = next(iter(most))
        age_s = asyncio.get_running_loop().time() - oldest.made_s
        stands_out = len(self) // CLIENT_SHARE < len(most) < len(self)
        return not stands_out and age_s < PATIENCE_S

    def begin(self, accepted: socket.socket, host: str, context: ssl.SSLContext) -> None:
        """With one more. One of those that were there before may have to go for it."""
        client, per_client = client_of(host), self._census.limits.per_client
        # One that is over may still be listed, and is in the census already.
        shaking = sum(not each.counted for each in self._shaking.get(client, ()))
        if per_client and self._census.held_by(client) + shaking >= per_client:
            self._census.note("per_client")
            accepted.close()
            return
        connection = self._make()
        connection.made_s = asyncio.get_running_loop().time()
        self._shaking.setdefault(client, {})[connection] = accepted
        task = asyncio.create_task(self._shake(connection, accepted, context))
        self._tasks.add(task)
        task.add_done_callback(partial(self._is_over, client, connection))
        while len(self) > self._room():
            self._shut_one()

    def _room(self) -> int:
        """What is left in the house, within bounds."""
        left = self._census.limits.connections - len(self._census)
        return min(HANDSHAKES_MAX, max(HANDSHAKES_MIN, left))

    def _shut_one(self) -> None:
        """The handshake then fails as if the client had gone."""
        client, _ = max(self._shaking.items(), key=lambda each: len(each[1]))
        connection = next(iter(self._shaking[client]))
        accepted = self._forget(client, connection)
        if accepted is not None and not connection.counted:
            self._census.note("handshakes")
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)

    def _forget(self, client: str, connection: Connection) -> socket.socket | None:
        mine = self._shaking.get(client, {})
        accepted = mine.pop(connection, None)
        if not mine:
            self._shaking.pop(client, None)
        return accepted

    async def _shake(
        self, connection: Connection, accepted: socket.socket, context: ssl.SSLContext
    ) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=self._census.limits.header_s,
            )
        except OSError:
            return  # Not TLS, a stranger, too slow, shut: no affair of ours.
        if not connection.counted:
            # Turned away. It closes when the client says so too, which may be never.
            try:
                await asyncio.sleep(TURNED_AWAY_S)
            finally:
                transport.abort()

    def _is_over(self, client: str, connection: Connection, task: asyncio.Task[None]) -> None:
        self._forget(client, connection)
        self._tasks.discard(task)

    async def stop(self) -> None:
        """End those that are under way."""
        await asyncio.sleep(0)  # One that has not begun would leave its socket behind.
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class TlsServer:
    """Accepts on a listening socket, with what of asyncio's Server the listener needs.

    One connection for each turn of the event loop: a flood of them does not hold up the others.
    """

    def __init__(
        self,
        listening: socket.socket,
        backlog: int,
        handshakes: Handshakes,
        context: ssl.SSLContext,
    ) -> None:
        """`listening` is bound; it belongs to this server from now on."""
        self.sockets = (listening,)
        self._listening = listening
        self._handshakes = handshakes
        self._context = context
        self._pause: asyncio.TimerHandle | None = None
        listening.settimeout(0)
        listening.listen(backlog)
        self._go_on()

    def _go_on(self) -> None:
        asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        if self._handshakes.are_full():
            self._rest(FULL_PAUSE_S)
            return
        try:
            accepted, address = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # It has gone again.
        except OSError as error:
            # It still waits: without a pause the event loop would do nothing but ask.
            LOG.warning("OTLP/http: cannot accept a connection: %s", error.strerror or error)
            self._rest(PAUSE_S)
            return
        accepted.settimeout(0)
        self._handshakes.begin(accepted, address[0], self._context)

    def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening)
        self._pause = loop.call_later(seconds, self._go_on)

    def close(self) -> None:
        """Accept nothing more."""
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
