"""A crowd of connections: idle ones, and clients that write a request a byte at a time.

`python -m tests.reliability.crowd HTTP_PORT GRPC_PORT`; orders come as JSON lines: gather, turns
(1: all slow writers write in the same instant), count.
Half of the idle ones are at each door; those at the gRPC door have said that they speak HTTP/2, or
it would not keep them. A slow writer is at the HTTP door, in the middle of a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from typing import Any

import uvloop

AT_ONCE = 200
"""Connections made at a time, fewer than a listener's backlog."""
BYTE_EVERY_S = 1.0
TURNS = 100
"""Within that time, so many groups take turns: clients that nobody has set to the same clock."""
SLOW_HEAD = (
    b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    b"Content-Length: 100000\r\n\r\n\x0a"
)
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_ACK = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS + _SETTINGS_ACK
"""The door's settings are agreed to before they are known: they are the first it sends."""


class Crowd:
    """Those who are connected."""

    def __init__(self, http_port: int, grpc_port: int) -> None:
        self._ports = (http_port, grpc_port)
        self.idle: list[asyncio.Transport] = []
        self.slow: list[asyncio.Transport] = []
        self.turns = TURNS
        self.cut = 0
        """Slow writers that were cut off, and came again."""
        self._coming: set[asyncio.Task[None]] = set()

    async def gather(self, idle: int, slow: int) -> None:
        """Connect them all."""
        for first in range(0, idle, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, idle))
            made = len(self.idle)
            await asyncio.gather(*(self._join(self.idle, self._ports[i % 2]) for i in numbers))
            for each in self.idle[made:]:
                if each.get_extra_info("peername")[1] == self._ports[1]:
                    each.write(GREETING)
        for first in range(0, slow, AT_ONCE):
            count = min(AT_ONCE, slow - first)
            came = list[asyncio.Transport]()
            await asyncio.gather(*(self._join(came, self._ports[0]) for _ in range(count)))
            for writer in came:  # At once: a door does not wait long for a head.
                if not writer.is_closing():
                    writer.write(SLOW_HEAD)
            self.slow += came

    async def _join(self, group: list[Any], port: int) -> None:
        with contextlib.suppress(OSError):
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
            group.append(transport)

    async def drip(self) -> None:
        """A byte of each slow writer, now and then. Who was cut off comes again."""
        for turn in itertools.count():
            await asyncio.sleep(BYTE_EVERY_S / self.turns)
            for at in range(turn % self.turns, len(self.slow), self.turns):
                if not self.slow[at].is_closing():
                    self.slow[at].write(b"\x00")
                elif len(self._coming) < AT_ONCE:
                    task = asyncio.create_task(self._come_again(at))
                    self._coming.add(task)
                    task.add_done_callback(self._coming.discard)

    async def _come_again(self, at: int) -> None:
        group = list[asyncio.Transport]()
        await self._join(group, self._ports[0])
        for writer in group:
            if not writer.is_closing():
                writer.write(SLOW_HEAD)
            self.slow[at] = writer
            self.cut += 1

    def count(self) -> dict[str, int]:
        """Those who are still connected, and how often one was cut off."""
        groups = {"idle": self.idle, "slow": self.slow}
        left = {name: sum(not each.is_closing() for each in of) for name, of in groups.items()}
        return left | {"cut": self.cut}


async def serve(http_port: int, grpc_port: int) -> None:
    """Obey until standard input closes."""
    crowd = Crowd(http_port, grpc_port)
    dripping = asyncio.ensure_future(crowd.drip())
    print(json.dumps(crowd.count()), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        if order["do"] == "gather":
            await crowd.gather(order["idle"], order["slow"])
        if order["do"] == "turns":
            crowd.turns = int(order["value"])
        print(json.dumps(crowd.count()), flush=True)
    dripping.cancel()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
