"""Messages at the gRPC door: read under a deadline, inflated by us, bounded in sum.

grpcio tells nothing of a message until it is whole, and lets every stream of every connection fill
up to the limit: 64 connections hold 64 limits. So the bytes of those that take long are asked of
the kernel, by connection:

    under way, about  =  (received - received when nothing was under way) / FRAMING
                         - bodies that came whole since, each with REQUEST_OVERHEAD

What is taken for the framing of small requests is an estimate, so the sum is begun anew before the
error can matter, and where it comes out below zero. It is looked at every LOOK_S, and only while a
message is older than that: small requests cost a dict entry. Beyond the bound the oldest message of
the heaviest client is given up (unfinished.py). What can come in between two looks is bounded by
what one process reads in that time. A stream of which only headers come weighs next to nothing, so
those that take long are bounded in number as well.

Where the kernel does not say, a message that takes longer than UNKNOWN_S counts as a whole limit.

grpcio could inflate as well, one message per stream at once before anybody is asked: a thousand
gzip bombs of 64 KiB would be 64 GiB. Its channel option turns that off; the flag and the header
that say how a message is compressed stay with grpcio, so its first bytes must tell. No message can
begin like gzip (field 3, wire type 7). One could begin like deflate (field 15, a number), though
none of OTLP's has such a field: what does not inflate then is taken as it is.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from grpc.aio import EOF

from otel_anomaly.handoff import Outcome
from otel_anomaly.receivers.body import (
    GZIP_WBITS,
    inflate_whole,
    malformed,
    out_of_time,
)
from otel_anomaly.receivers.gate import client_of
from otel_anomaly.receivers.tcp_bytes import TcpBytes
from otel_anomaly.receivers.unfinished import Body, Refused, Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable

LOG: Final = logging.getLogger("otel_anomaly")
LOG_EVERY_S: Final = 60.0
GZIP_MAGIC: Final = b"\x1f\x8b"
COMPRESSED_BEGIN: Final = (GZIP_MAGIC[:1], b"x")
ZLIB_CHECK: Final = 31
"""The first two bytes of a zlib stream, as a number, are a multiple of it (RFC 1950, 2.2)."""
LOOK_S: Final = 0.05
UNKNOWN_S: Final = 1.0
LOOK_SHARE: Final = 0.05
"""Of the time, at most so much is spent on looking: with many slow ones the looks are rarer."""
PEERS_AT_ONCE: Final = 32
"""Asked about before others have their turn: half a millisecond."""
CONNECTIONS_REMEMBERED: Final = 16384
REQUEST_OVERHEAD: Final = 64
"""Wire bytes of a request that are no message: headers, mostly by reference, and frame heads."""
DONE_SHARE_MAX: Final = 1 / 64
"""Of the limit. Beyond it `done` is too much of an estimate, and the kernel is asked anew."""
FRAMING: Final = 1.01
"""Wire bytes for one of a message: frames of 16 KiB with 9 bytes of head, and TLS records."""


class Peer:
    """What is remembered of one connection."""

    __slots__ = ("address", "base", "client", "done", "is_known", "reading", "was_asked")

    def __init__(self, text: str) -> None:
        self.address = address_of(text)
        self.client = client_of(self.address[0]) if self.address is not None else "unix"
        self.reading = 0
        """Messages that are under way."""
        self.base = 0
        """Bytes received when nothing was under way, as far as it was asked."""
        self.done = 0
        """Bytes of the requests that came whole since."""
        self.was_asked = False
        self.is_known = True
        """Whether the kernel said how much came, when it was asked at the end of a request."""

    def under_way(self, received: int) -> int:
        """Bytes of its messages that are not whole, of so many received in all."""
        if received < self.base + self.done:
            # The requests were shorter than they are taken for, or the port belongs to another
            # connection now. What came before this look is not counted; the next is right again.
            self.base, self.done = received, 0
            return 0
        return max(0, int((received - self.base) / FRAMING) - self.done)


def address_of(peer: str) -> tuple[str, int] | None:
    """`ipv4:10.0.0.1:4317`, `ipv6:%5B::1%5D:4317` -> host and port; None for a unix socket."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return None
    host, _, port = urllib.parse.unquote(rest).rpartition(":")
    return host.removeprefix("[").removesuffix("]").partition("%")[0], int(port)


class Cut:
    """Ends the task that reads. An `asyncio.Timeout` would do: this is a third of its cost."""

    __slots__ = ("_task", "fired")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.fired = False

    def expired(self) -> bool:
        """Whether it has."""
        return self.fired

    def reschedule(self, _when: float, /) -> None:
        """Now."""
        self.fired = True
        self._task.cancel()

    def is_ours(self) -> bool:
        """Asked when the task is cancelled: whether by us alone, and then it goes on."""
        return self.fired and self._task.uncancel() == 0


class GrpcBodies:
    """Reads the messages of the door. Used from its event loop only."""

    def __init__(
        self,
        limit: int,
        timeout_s: float,
        received: Callable[[str, int], int | None] | None = None,
    ) -> None:
        """`received` is asked how many bytes came from a host and port; the kernel by default."""
        self.bodies = Unfinished(limit)
        self.timeout_s = timeout_s
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._kernel: TcpBytes | None = None
        self._received = received
        self._watcher: asyncio.Task[None] | None = None
        self._logged_s = -LOG_EVERY_S

    def open(self, port: int) -> None:
        """The door's port is known."""
        if self._received is None:
            self._kernel = TcpBytes(port)
            self._received = self._kernel.received

    async def close(self) -> None:
        """After the last request."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
            self._watcher = None
        if self._kernel is not None:
            self._kernel.close()

    def peer(self, text: str) -> Peer:
        """The connection that grpcio calls `text`."""
        peer = self._peers.get(text)
        if peer is not None:
            self._peers.move_to_end(text)  # One that is in use is not the one to forget.
            return peer
        peer = self._peers[text] = Peer(text)
        if len(self._peers) > CONNECTIONS_REMEMBERED:
            self._peers.popitem(last=False)
        return peer

    async def read(self, context: Any, peer: Peer) -> bytes:  # noqa: ANN401 - grpcio has no types.
        """The message, uncompressed.

        Raises
        ------
        Refused
            Too large when inflated, broken, too slow, no room, or stopping.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cut = Cut(task)
        body = self.bodies.begin(peer.client, cut, loop.time())
        body.owner = peer
        peer.reading += 1
        if self._watcher is None:
            self._watcher = loop.create_task(self._watch())
        try:
            wire = await context.read()
            if wire is EOF:
                # So grpcio also tells that the client has gone, or that it refused the message
                # itself. It cancels this task then, at the latest when it is asked once more.
                await context.read()
                raise malformed("the request has no message")
            peer.done += len(wire) + REQUEST_OVERHEAD
            if wire[:1] not in COMPRESSED_BEGIN:
                return wire  # type: ignore[no-any-return] # bytes: there is no deserialiser.
            body.is_whole = True
            self.bodies.weigh(body, len(wire))
            return await self._inflated(wire, body)
        except asyncio.CancelledError:
            if cut.is_ours():
                raise out_of_time(body, self.timeout_s) from None
            raise
        finally:
            self.bodies.end(body)
            peer.reading -= 1
            if not peer.reading and (
                peer.was_asked or (peer.is_known and peer.done > self.bodies.limit * DONE_SHARE_MAX)
            ):
                self._begin_anew(peer)

    async def _inflated(self, wire: bytes, body: Body) -> bytes:
        if wire[:2] == GZIP_MAGIC:
            return await inflate_whole(wire, GZIP_WBITS, self.bodies, body)
        if int.from_bytes(wire[:2], "big") % ZLIB_CHECK:
            return wire
        try:
            return await inflate_whole(wire, zlib.MAX_WBITS, self.bodies, body)
        except Refused as refusal:
            if refusal.reply.outcome is not Outcome.MALFORMED:
                raise
            return wire

    def _begin_anew(self, peer: Peer) -> None:
        """Nothing is under way: what has been received up to now is done with."""
        peer.was_asked = False
        received = self._ask(peer)
        peer.is_known = received is not None
        if received is not None:
            peer.base, peer.done = received, 0

    async def _watch(self) -> None:
        """Look while something is under way."""
        loop = asyncio.get_running_loop()
        rest_s = LOOK_S
        while True:
            await asyncio.sleep(rest_s)
            if not len(self.bodies):
                break
            began_s = loop.time()
            self.bodies.thin_out(began_s - LOOK_S)
            self._give_up_the_late(began_s)
            try:
                await self._weigh_the_slow(began_s)
            except Exception:  # A watch that ends would leave the door without bounds.
                self._log_failure(began_s)
            self.bodies.relieve(loop.time())
            rest_s = max(LOOK_S, (loop.time() - began_s) / LOOK_SHARE)
        self._watcher = None

    def _log_failure(self, now_s: float) -> None:
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOG.exception("OTLP/grpc: what is under way could not be weighed")

    async def _weigh_the_slow(self, now_s: float) -> None:
        slow: dict[Peer, list[Body]] = {}
        for body in self.bodies:
            if now_s - body.since_s < LOOK_S:
                break  # They stand in the order in which they began.
            if not body.is_whole:
                slow.setdefault(body.owner, []).append(body)
        for i, (peer, waiting) in enumerate(slow.items()):
            if i % PEERS_AT_ONCE == PEERS_AT_ONCE - 1:
                await asyncio.sleep(0)
            self._weigh(peer, waiting, now_s)

    def _weigh(self, peer: Peer, waiting: list[Body], now_s: float) -> None:
        """All that is under way on a connection is the weight of its oldest message."""
        waiting = [body for body in waiting if body in self.bodies and not body.is_whole]
        if not waiting:
            return
        limit, received = self.bodies.limit, self._ask(peer)
        peer.was_asked = True
        if received is None:
            for body in waiting:
                self.bodies.weigh(body, limit if now_s - body.since_s >= UNKNOWN_S else 0)
            return
        self.bodies.weigh(waiting[0], min(peer.under_way(received), limit * peer.reading))
        for body in waiting[1:]:
            self.bodies.weigh(body, 0)

    def _ask(self, peer: Peer) -> int | None:
        if peer.address is None or self._received is None:
            return None
        return self._received(*peer.address)

    def _give_up_the_late(self, now_s: float) -> None:
        for body in self.bodies:
            if now_s - body.since_s < self.timeout_s:
                break
            if not body.deadline.expired():
                body.deadline.reschedule(0)
