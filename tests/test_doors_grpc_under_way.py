"""What is under way on a connection of the gRPC door: what the kernel says less what came whole."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from otel_anomaly.handoff import Outcome, Reply
from otel_anomaly.receivers.grpc_bodies import GrpcBodies, Peer
from tests.door_rigs import TRACE_SERVICE, grpc_door, until

MIB = 1 << 20


def test_what_is_under_way_on_a_connection() -> None:
    """
    Scenario: what the kernel says against what came whole; then a smaller number than that, of a
    port that belongs to somebody new; then more.
    Guarantees: the difference; of the smaller number nothing counts, and from there on what comes
    does.
    """
    peer = Peer("ipv4:10.0.0.1:1")
    assert peer.look(1000) == 0
    peer.groups[-1].reading = 1
    peer.groups[-1].done = 500
    assert peer.look(1500) == 0
    assert peer.look(MIB + 1500) == MIB
    assert peer.look(500) == 0
    assert peer.look(1500) == 1000


def test_what_does_not_come_whole_counts_as_long_as_the_oldest() -> None:
    """
    Scenario: three messages that began between different looks; a thousand bytes of another one
    that was given up come before the second begins, and one comes whole before the third does.
    Guarantees: the thousand count while the oldest is under way and no longer; what came whole does
    not count, whoever is the oldest; when all have ended nothing does.
    """
    peer = Peer("ipv4:10.0.0.1:1")
    oldest = peer.groups[-1]
    oldest.reading = 1
    assert peer.look(10 + 1000) == 1010
    second = peer.groups[-1]
    second.reading = 2
    second.done, second.reading = 200, 1
    assert peer.look(1010 + 200 + 20) == 1030
    third = peer.groups[-1]
    third.reading = 1
    oldest.reading = 0
    assert peer.look(1230 + 30) == 20 + 30
    second.reading = 0
    assert peer.look(1260) == 30
    third.reading = 0
    assert peer.look(1300) == 0
    assert len(peer.groups) == 1


class Wire:
    """A connection as the kernel and grpcio tell of it: requests of so many bytes beside their
    messages."""

    def __init__(self, overhead: int) -> None:
        self.overhead = overhead
        self.received = 0
        self.asked = 0
        self.is_known = True
        self._message = b""

    def ask(self, _host: str, _port: int) -> int | None:
        """As the kernel is asked."""
        self.asked += 1
        return self.received if self.is_known else None

    def comes(self, message: bytes) -> Wire:
        """A request is here."""
        self.received += len(message) + self.overhead
        self._message = message
        return self

    async def read(self) -> bytes:
        """As the context of a request."""
        return self._message


@pytest.mark.parametrize("overhead", [40, 200])
def test_small_requests_weigh_nothing_afterwards(overhead: int) -> None:
    """
    Scenario: a connection that brings a hundred thousand small requests, which are shorter or
    longer on the wire than they are taken for; then half a message of the limit, which stops.
    Guarantees: it weighs what has come of it, not what came in all, within a part of the limit;
    the kernel is asked about few of the requests.
    """

    async def scenario() -> None:
        wire = Wire(overhead)
        bodies = GrpcBodies(MIB, 60, wire.ask)
        peer = bodies.peer("ipv4:10.0.0.1:1")
        for _ in range(100_000):
            assert await bodies.read(wire.comes(b"abc"), peer) == b"abc"
        assert wire.asked < 1000
        wire.received += MIB // 2
        slow = bodies.bodies.begin(peer.client, asyncio.timeout(None), 0)
        peer.groups[-1].reading = 1
        bodies._weigh(peer, [slow], 10)
        assert 0.4 * MIB < slow.bytes < 0.6 * MIB
        await bodies.close()

    asyncio.run(scenario())


class Arriving:
    """The context of a message that is whole, or its client gone, when the test says so."""

    def __init__(self, bodies: GrpcBodies, peer: Peer) -> None:
        self._comes = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(bodies.read(self, peer))

    async def read(self) -> bytes:
        """As grpcio."""
        message = await self._comes
        assert isinstance(message, bytes)
        return message

    async def whole(self, message: bytes) -> None:
        self._comes.set_result(message)
        await self._reading

    async def cancelled(self) -> None:
        self._reading.cancel()
        await asyncio.wait({self._reading})


@pytest.mark.parametrize("ends", ["whole", "cancelled"])
def test_a_connection_that_is_never_idle_weighs_what_is_under_way(ends: str) -> None:
    """
    Scenario: a thousand messages of nearly the limit, each of which ends when the next one has
    begun: all come whole, or their client cancels all; then half of each of eight more comes.
    Guarantees: the fifteen and the last of the thousand weigh what has come of them, not more and
    not less, within a part of the limit.
    """

    async def scenario() -> None:
        wire = Wire(40)
        bodies = GrpcBodies(MIB, 60, wire.ask)
        peer = bodies.peer("ipv4:10.0.0.1:1")
        message = bytes(MIB * 15 // 16)
        last: Arriving | None = None
        for _ in range(1000):
            now = Arriving(bodies, peer)
            await asyncio.sleep(0)
            if last is not None:
                await (last.whole(message) if ends == "whole" else last.cancelled())
            wire.comes(message)
            last = now
        assert last is not None
        slow = [last, *(Arriving(bodies, peer) for _ in range(8))]
        await asyncio.sleep(0)
        wire.received += 8 * MIB // 2
        bodies._weigh(peer, list(bodies.bodies), 10)
        under_way = len(message) + 8 * MIB // 2
        assert under_way <= bodies.bodies.held < under_way + MIB // 16
        for each in slow:
            await each.cancelled()
        assert bodies.bodies.held == 0
        await bodies.close()

    asyncio.run(scenario())


def test_what_is_refused_unread_weighs_nothing_afterwards() -> None:
    """
    Scenario: a client whose requests are refused on their headers, with a message of nearly the
    limit in each; then one that is let in, slowly.
    Guarantees: it weighs what has come of it.
    """
    refusals = [Reply(Outcome.THROTTLED, "too many")] * 5

    def admit(_size: int) -> Reply | None:
        return refusals.pop() if refusals else None

    async def scenario() -> None:
        async with grpc_door(admit=admit) as rig, AsyncExitStack() as stack:
            received = 0
            rig.door._bodies._received = lambda _host, _port: received
            for _ in range(5):
                error = await rig.refusal(b"x")
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                received += MIB * 9 // 10
            call = rig.channel.stream_unary(f"/{TRACE_SERVICE}/Export")()
            stack.callback(call.cancel)
            bodies = rig.door._bodies.bodies
            await until(lambda: len(bodies) == 1)
            received += 1000
            await until(lambda: bodies.held > 0)
            assert bodies.held == 1000

    asyncio.run(scenario())


def test_where_nobody_knows_it_is_not_asked_again() -> None:
    """
    Scenario: the kernel does not say how much came; many small requests.
    Guarantees: it is asked once: where a sandbox never answers, each question takes its time.
    """

    async def scenario() -> None:
        wire = Wire(40)
        wire.is_known = False
        bodies = GrpcBodies(MIB, 60, wire.ask)
        peer = bodies.peer("ipv4:10.0.0.1:1")
        for _ in range(1000):
            await bodies.read(wire.comes(b"abc"), peer)
        assert wire.asked == 1
        await bodies.close()

    asyncio.run(scenario())
