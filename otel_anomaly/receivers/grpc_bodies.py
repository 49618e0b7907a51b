"""Messages at the gRPC door: read under a deadline, inflated by us, bounded in sum.

grpcio tells nothing of a message until it is whole, and lets every stream of every connection fill
up to the limit: 64 connections hold 64 limits. So the bytes of those that take long are asked of
the kernel, by connection. Each answer begins a new group of messages:

    received   0 ......... 700 ......... 900 ......... 1000 now
    messages   | a B c       | D e         | F                 capitals are under way

    under way <= received now - received when the oldest group with one under way began
                              - bytes of messages that came whole, of that group and younger ones

A request counts for no more than it has at least (REQUEST_OVERHEAD), so the sum is too small only
by what had come of messages that began here just after the kernel was asked: a window of each. It
is too large by longer headers, framing, and messages that were cancelled, cut or refused unread,
all that until the oldest message under way has ended: no longer than the time for one.

It is looked at every LOOK_S, and only while a message is older than that: small requests cost a
dict entry. Beyond the bound the oldest message of the heaviest client is given up (unfinished.py).
What can come in between two looks is bounded by what one process reads in that time. A stream of
which only headers come weighs next to nothing, so those that take long are bounded in number too.

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
REST_S_MAX: Final = 1.0
"""Between two looks, whatever held up the last one."""
PEERS_AT_ONCE: Final = 32
"""Asked about before others have their turn: half a millisecond."""
CONNECTIONS_REMEMBERED: Final = 16384
REQUEST_OVERHEAD: Final = 26
"""Wire bytes of a request that are no message, at least: heads of two frames and of the message,
and three headers by reference."""
DONE_SHARE_MAX: Final = 1 / 64
"""Of the limit. When so much came whole since the kernel was asked, it is asked again."""


def rest_after(look_s: float) -> float:
    """Seconds between two looks, when one took so long; the event loop may have done other things.

    >>> rest_after(0.0), round(rest_after(0.01), 2), rest_after(2.0)
    (0.05, 0.2, 1.0)
    """
    return min(max(LOOK_S, look_s / LOOK_SHARE), REST_S_MAX)


class Group:
    """Messages of a connection that began between two answers of the kernel."""

    __slots__ = ("base", "done", "reading")

    def __init__(self, base: int) -> None:
        self.base = base
        """Bytes received before the first of them, or more that are known to be none of theirs."""
        self.done = 0
        """Bytes of those that came whole."""
        self.reading = 0
        """How many are under way."""


class Peer:
    """What is remembered of one connection."""

    __slots__ = ("address", "client", "groups", "is_known", "is_unsure")

    def __init__(self, text: str) -> None:
        self.address = address_of(text)
        self.client = client_of(self.address[0]) if self.address is not None else "unix"
        self.groups = [Group(0)]
        """The oldest first; a message that begins is one of the last."""
        self.is_known = True
        """Whether the kernel said how much came, when it was asked last."""
        self.is_unsure = False
        """Whether bytes came since that belong to no message, so that it is worth asking."""

    def reading(self) -> int:
        """Messages that are under way."""
        return sum(group.reading for group in self.groups)

    def look(self, received: int) -> int:
        """Bytes of its messages that are under way, of so many received in all; begins a group."""
        kept: list[Group] = []
        settled = 0
        for group in self.groups:
            # What is settled of older groups stays so: of two sums the smaller one holds.
            group.base = max(group.base, settled)
            if group.reading:
                kept.append(group)
            elif kept:
                kept[-1].done += group.done
            else:
                settled = group.base + group.done
        self.groups = [*kept, Group(received)]
        if not kept:
            return 0
        beyond = kept[0].base + sum(group.done for group in kept) - received
        if beyond > 0:  # The port belongs to another connection now.
            kept[0].base -= beyond
        return max(0, -beyond)


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
        if peer.is_unsure and peer.is_known:
            self._look(peer)
        cut = Cut(task)
        body = self.bodies.begin(peer.client, cut, loop.time())
        body.owner = peer
        group = peer.groups[-1]
        group.reading += 1
        came_whole = False
        if self._watcher is None:
            self._watcher = loop.create_task(self._watch())
        try:
            wire = await context.read()
            if wire is EOF:
                # So grpcio also tells that the client has gone, or that it refused the message
                # itself. It cancels this task then, at the latest when it is asked once more.
                await context.read()
                raise malformed("the request has no message")
            came_whole = True
            group.done += len(wire) + REQUEST_OVERHEAD
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
            group.reading -= 1
            if not came_whole:
                peer.is_unsure = True
            if peer.is_known and peer.groups[-1].done > self.bodies.limit * DONE_SHARE_MAX:
                self._look(peer)

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

    def _look(self, peer: Peer) -> int | None:
        """Bytes of its messages that are under way; None when nobody knows."""
        peer.is_unsure = False
        received = None
        if peer.address is not None and self._received is not None:
            received = self._received(*peer.address)
        peer.is_known = received is not None
        return None if received is None else peer.look(received)

    async def _watch(self) -> None:
        """Look while something is under way."""
        loop = asyncio.get_running_loop()
        rest_s = LOOK_S
        while True:
            await asyncio.sleep(rest_s)
            if not len(self.bodies):
                break
            began_s = loop.time()
            try:
                await self._keep_bounds(began_s)
            except Exception as error:  # noqa: BLE001 - the door would have no bounds any more.
                self._log(error, began_s)
            rest_s = rest_after(loop.time() - began_s)
        self._watcher = None

    async def _keep_bounds(self, now_s: float) -> None:
        """What needs no answer of the kernel comes first."""
        self.bodies.thin_out(now_s - LOOK_S)
        self._give_up_the_late(now_s)
        await self._weigh_the_slow(now_s)
        self.bodies.relieve(now_s)

    def _log(self, error: Exception, now_s: float) -> None:
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOG.error("OTLP/grpc: messages under way could not be looked at", exc_info=error)

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
        limit, under_way = self.bodies.limit, self._look(peer)
        if under_way is None:
            for body in waiting:
                self.bodies.weigh(body, limit if now_s - body.since_s >= UNKNOWN_S else 0)
            return
        self.bodies.weigh(waiting[0], min(under_way, limit * peer.reading()))
        for body in waiting[1:]:
            self.bodies.weigh(body, 0)

    def _give_up_the_late(self, now_s: float) -> None:
        for body in self.bodies:
            if now_s - body.since_s < self.timeout_s:
                break
            if not body.deadline.expired():
                body.deadline.reschedule(0)
