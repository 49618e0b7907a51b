"""Connections by client, as the kernel tells them: not too many of one, whoever accepts them.

grpcio accepts by itself, tells nothing of its connections, and has one limit for all: one client
could hold them all and send nothing. So the kernel is asked who is connected, and the newest
connections of a client that has too many are shut down, which to the server looks as if the client
had gone. What was under way on them gets no answer, and OTLP clients send it again.

    every LOOK_S   the kernel's list -> by client, in the order first seen -> beyond the limit: shut

Between two looks a client may hold more. Where the kernel does not say (other systems, some
sandboxes), nobody is counted; a limit that is set is then told to be without effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING, Final

from otel_anomaly.receivers.gate import client_of
from otel_anomaly.receivers.tcp_bytes import connected_to

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from otel_anomaly.receivers.tcp_bytes import Connected
    from otel_anomaly.telemetry import Telemetry

    Ask = Callable[[int], list[Connected] | None]

LOG: Final = logging.getLogger("otel_anomaly")
LOOK_S: Final = 1.0
LOOKS_WITHOUT_LIMIT: Final = 30
"""One of so many is taken while there is no limit: for the gauge alone."""
LOOK_SHARE: Final = 0.05
"""Of the time, at most so much is spent on looking: with many connections the looks are rarer."""
OPEN_FILES: Final = "/proc/self/fd"


class ClientConnections:
    """All connections of the gRPC door. Used from its event loop only; it looks in a thread."""

    def __init__(self, telemetry: Telemetry, ask: Ask = connected_to) -> None:
        """`ask` lists who is connected to a port."""
        self._per_client = 0
        self._ask = ask
        self._gauge = telemetry.connections.labels("grpc")
        self._refused = telemetry.refused_connections.labels("grpc", "per_client")
        self._clients: dict[bytes, str] = {}
        self._is_told = False
        self._task: asyncio.Task[None] | None = None

    def limit(self, per_client: int) -> None:
        """So many of one client from now on; 0 is no limit."""
        self._per_client, self._is_told = per_client, False

    def start(self, port: int) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._look_forever(port))

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _look_forever(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            began_s = loop.time()
            if self._per_client or number % LOOKS_WITHOUT_LIMIT == 0:
                await self._look(port)
            await asyncio.sleep(max(LOOK_S, (loop.time() - began_s) / LOOK_SHARE))

    async def _look(self, port: int) -> None:
        limit = self._per_client
        try:
            is_known = await self._hold(port, limit)
        except (OSError, RuntimeError):  # No file or no thread is left; the next look may have one.
            is_known = False
        if not is_known and limit and not self._is_told:
            self._is_told = True
            LOG.warning(
                "OTLP/grpc: per_client.connections does not hold for all: this system does not"
                " say who is connected, or has no file or thread left to ask with"
            )

    async def _hold(self, port: int, limit: int) -> bool:
        """Shut what is beyond the limit. Returns whether anybody knows who is connected."""
        found = await asyncio.to_thread(self._ask, port)
        if found is None:
            return False
        self._gauge.set(len(found))
        beyond = await asyncio.to_thread(self._beyond, found, limit) if limit else None
        if beyond:
            self._refused.inc(await asyncio.to_thread(shut, beyond))
        return True

    def _beyond(self, found: list[Connected], limit: int) -> set[int]:
        """Inodes of those that are too many: what came last goes first."""
        now = {each.cookie: each for each in found}
        clients = {cookie: name for cookie, name in self._clients.items() if cookie in now}
        for cookie, each in now.items():
            if cookie not in clients:
                clients[cookie] = client_of(each.host())
        self._clients = clients
        held: Counter[str] = Counter()
        beyond = set[int]()
        for cookie, client in clients.items():
            held[client] += 1
            if held[client] > limit:
                beyond.add(now[cookie].inode)
        return beyond


def shut(inodes: Collection[int]) -> int:
    """Shut connections of this process down, whoever uses them. Returns how many were found.

    Each is looked at again under a number of our own: by then the other may mean something else.
    """
    count = 0
    for name in os.listdir(OPEN_FILES):  # noqa: PTH208 - names are all that is needed.
        with contextlib.suppress(OSError):
            number = int(name)
            if _socket_inode(number) not in inodes:
                continue
            ours = os.dup(number)
            if _socket_inode(ours) not in inodes:
                os.close(ours)
                continue
            with socket.socket(fileno=ours) as connection:
                connection.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def _socket_inode(number: int) -> int:
    """Of an open file that is a socket; -1 for others, which may have the same number."""
    found = os.fstat(number)
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else -1
