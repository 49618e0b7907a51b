"""Messages at the gRPC door: bounded in sum and in time, inflated by us, whatever clients do."""

from __future__ import annotations

import asyncio
import gzip
import sys
import zlib
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from otel_anomaly.config import GrpcReceiverConfig
from otel_anomaly.handoff import Outcome
from otel_anomaly.receivers import grpc_bodies, unfinished
from otel_anomaly.receivers.grpc_bodies import GrpcBodies, address_of
from otel_anomaly.receivers.unfinished import BODIES_HELD_MAX
from tests.door_rigs import GrpcRig, grpc_door, gzip_bomb, until
from tests.raw_http2 import (
    CANCEL,
    DATA,
    END_STREAM,
    EXPORT,
    GOAWAY,
    RST_STREAM,
    RawClient,
    frame,
    message_head,
)

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells bytes received")


async def many(
    rig: GrpcRig, stack: AsyncExitStack, count: int, size: int, path: str = EXPORT
) -> list[RawClient]:
    """Clients that each send `size` bytes of a message of a MiB, then nothing."""
    clients = [await stack.enter_async_context(RawClient(rig.door.port)) for _ in range(count)]
    for client in clients:
        client.open(path=path)
    await asyncio.gather(*(client.send(message_head(MIB) + bytes(size)) for client in clients))
    return clients


@linux
def test_unfinished_messages_share_a_bound() -> None:
    """
    Scenario: twelve clients send most of a message of the limit and stop; then an honest one sends
    a message of the limit.
    Guarantees: so many are given up that the rest fits under the bound; they are told to come
    again; the honest one is served; when all have gone, nothing is held.
    """

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            bodies = rig.door._bodies.bodies
            clients = await many(rig, stack, 12, MIB * 9 // 10)
            await until(lambda: 0 < bodies.held <= bodies.bytes_max and len(bodies) <= 4)
            assert len(bodies) == BODIES_HELD_MAX
            await until(lambda: sum(bool(client.ended) for client in clients) == 8)
            await until(lambda: rig.counted(Outcome.MEMORY) == 8)
            assert await rig.export(bytes(MIB)) == b""
            await stack.aclose()
            await until(lambda: len(bodies) == 0)
            assert bodies.held == 0

    asyncio.run(scenario())


@linux
@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_checks_are_under_the_same_bound(method: str) -> None:
    """
    Scenario: twelve clients without any credential send most of a message of the limit to the
    health service and stop.
    Guarantees: so many are given up that the rest fits under the bound of all requests; a real
    check is answered; when all have gone, nothing is held and nobody is counted as watching.
    """
    auth = {"bearer": {"tokens": ["a-token-of-somebody"]}}

    async def scenario() -> None:
        async with grpc_door(auth=auth) as rig, AsyncExitStack() as stack:
            bodies = rig.door._bodies.bodies
            path = f"/grpc.health.v1.Health/{method}"
            clients = await many(rig, stack, 12, MIB * 9 // 10, path)
            await until(lambda: sum(bool(client.ended) for client in clients) == 8)
            assert len(bodies) == BODIES_HELD_MAX
            assert 0 < bodies.held <= bodies.bytes_max
            check = health_pb2_grpc.HealthStub(rig.channel).Check
            await check(health_pb2.HealthCheckRequest())
            await stack.aclose()
            await until(lambda: len(bodies) == 0)
            assert bodies.held == 0
            await until(lambda: not rig.door._health._watching)

    asyncio.run(scenario())


@linux
def test_slow_writers_do_not_count_for_more_than_they_hold() -> None:
    """
    Scenario: 60 clients that have sent a few bytes of a large message and wait; honest ones.
    Guarantees: nobody is given up for room; the honest ones are served.
    """

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            clients = await many(rig, stack, 60, 100)
            bodies = rig.door._bodies.bodies
            await until(lambda: len(bodies) == 60 and bodies.held > 0)
            for _ in range(20):
                assert await rig.export(bytes(10_000)) == b""
                await asyncio.sleep(0.01)
            assert len(bodies) == 60
            assert bodies.held < 60 * 2000
            assert not any(client.ended for client in clients)

    asyncio.run(scenario())


def test_streams_of_headers_alone_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: room for eight slow messages; twelve clients open an Export and send nothing of it.
    Guarantees: four are told to come again and counted, the rest stay; when one leaves there is
    room for an honest request, however long it takes.
    """
    monkeypatch.setattr(unfinished, "BODIES_MAX", 8)

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            bodies = rig.door._bodies.bodies
            clients = [await stack.enter_async_context(RawClient(rig.door.port)) for _ in range(12)]
            for client in clients:
                client.open()
            await until(lambda: rig.counted(Outcome.MEMORY) == 4)
            await until(lambda: sum(bool(client.ended) for client in clients) == 4)
            assert len(bodies) == 8
            next(client for client in clients if not client.ended)._writer.transport.abort()
            await until(lambda: len(bodies) == 7)
            assert await rig.export(bytes(10_000)) == b""

    asyncio.run(scenario())


def test_messages_run_out_of_time() -> None:
    """
    Scenario: a message that stops half-way, with little time to arrive.
    Guarantees: given up for good, counted, nothing consumed; the next is served.
    """

    async def scenario() -> None:
        async with grpc_door(read_timeout="1s") as rig, AsyncExitStack() as stack:
            (client,) = await many(rig, stack, 1, 1000)
            await until(lambda: bool(client.ended))
            assert rig.counted(Outcome.MALFORMED) == 1
            assert rig.consumer.batches == []
            assert await rig.export(b"x") == b""

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["reset", "drop", "too large"])
def test_clients_that_go_away_send_no_garbage(way: str) -> None:
    """
    Scenario: a client resets its stream in the middle of a message, or its connection breaks there,
    or the message is too large and grpcio refuses it; afterwards one ends its stream without one.
    Guarantees: only the last is counted, as malformed.
    """

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            bodies = rig.door._bodies.bodies
            if way == "too large":
                error = await rig.refusal(bytes(MIB + 1))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            else:
                (client,) = await many(rig, stack, 1, 1000)
                await until(lambda: len(bodies) == 1)
                if way == "reset":
                    client._writer.write(frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4, "big")))
                else:
                    client._writer.transport.abort()
            await until(lambda: len(bodies) == 0)
            async with RawClient(rig.door.port) as client:
                client.open()
                client._writer.write(frame(DATA, END_STREAM, 1, message_head(1000) + bytes(100)))
                await until(lambda: bool(client.ended))
            counts = {each: rig.counted(each) for each in Outcome if rig.counted(each)}
            assert counts == {Outcome.MALFORMED: 1}

    asyncio.run(scenario())


def test_a_failing_look_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: asking how much came fails in a way that nobody thought of, every time, with a
    message under way; when it has failed, there is little time for messages to arrive.
    Guarantees: it is told once, and the message is given up.
    """
    asked = 0

    def fail(_host: str, _port: int) -> int | None:
        nonlocal asked
        asked += 1
        raise ZeroDivisionError

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            rig.door._bodies._received = fail
            (client,) = await many(rig, stack, 1, 1000)
            await until(lambda: asked > 1)
            rig.door._bodies.timeout_s = 0.1
            await until(lambda: bool(client.ended))

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "OTLP/grpc: messages under way could not be looked at"
    ]


def test_where_nobody_knows_a_slow_message_counts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the kernel does not say how much came; six messages take their time.
    Guarantees: each counts as a whole limit: four stay.
    """
    monkeypatch.setattr(grpc_bodies, "UNKNOWN_S", 0.1)

    async def scenario() -> None:
        async with grpc_door() as rig, AsyncExitStack() as stack:
            rig.door._bodies._received = lambda _host, _port: None
            await many(rig, stack, 6, 100)
            bodies = rig.door._bodies.bodies
            await until(lambda: (len(bodies), bodies.held) == (BODIES_HELD_MAX, bodies.bytes_max))
            await until(lambda: rig.counted(Outcome.MEMORY) == 2)

    asyncio.run(scenario())


def test_gzip_is_inflated_under_the_limit() -> None:
    """
    Scenario: gzip messages of the limit, beyond it, broken, and a bomb; many at once.
    Guarantees: the body, RESOURCE_EXHAUSTED, INVALID_ARGUMENT; of many at once some may be asked
    to come again; nothing is held afterwards.
    """

    async def send(rig: GrpcRig, wire: bytes) -> grpc.StatusCode:
        code = await rig.channel.unary_unary(f"/{grpc_door_service()}/Export")(wire).code()
        assert isinstance(code, grpc.StatusCode)
        return code

    async def scenario() -> None:
        async with grpc_door() as rig:
            body = bytes(range(256)) * 40
            assert await send(rig, gzip.compress(body)) is grpc.StatusCode.OK
            assert rig.consumer.batches[0].body == body
            over, bomb = gzip.compress(bytes(MIB + 1)), gzip_bomb(512)
            codes = await asyncio.gather(*(send(rig, wire) for wire in (over, bomb) * 8))
            final, later = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
            assert final in codes
            assert set(codes) <= {final, later}
            assert await send(rig, bomb) is final
            broken = gzip.compress(body)[:-9]
            assert await send(rig, broken) is grpc.StatusCode.INVALID_ARGUMENT
            assert await send(rig, b"\x1f\x8b") is grpc.StatusCode.INVALID_ARGUMENT
            assert rig.counted(Outcome.TOO_LARGE) + rig.counted(Outcome.MEMORY) == 17
            assert rig.door._bodies.bodies.held == 0

    asyncio.run(scenario())


def grpc_door_service() -> str:
    return "opentelemetry.proto.collector.trace.v1.TraceService"


def test_deflate_is_told_by_its_first_bytes() -> None:
    """
    Scenario: deflate messages of the limit and of a bomb; a plain one that begins like deflate;
    one byte of it.
    Guarantees: the body, RESOURCE_EXHAUSTED, and what is not compressed as it came.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            body = bytes(range(256)) * 4096
            assert await rig.export(body, compression=grpc.Compression.Deflate) == b""
            error = await rig.refusal(bytes(MIB + 1), compression=grpc.Compression.Deflate)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            alike = [b"x\x9cplain", b"x\x9c", b"x", b"x\x9d", zlib.compress(body)[:-5]]
            for plain in alike:
                assert await rig.export(plain) == b""
            assert [batch.body for batch in rig.consumer.batches] == [body, *alike]
            assert rig.door._bodies.bodies.held == 0

    asyncio.run(scenario())


def test_frames_of_one_byte() -> None:
    """
    Scenario: a message of 20 000 bytes in frames of one byte.
    Guarantees: it arrives whole, or the connection is ended by grpcio's own guard; either way
    nothing is held and others are served.
    """

    async def scenario() -> None:
        async with grpc_door() as rig, RawClient(rig.door.port) as client:
            client.open()
            await client.send(message_head(20_000) + bytes(range(256)) * 78 + bytes(32), 1)
            await until(lambda: bool(rig.consumer.batches) or bool(client.ended))
            if rig.consumer.batches:
                assert len(rig.consumer.batches[0].body) == 20_000
            assert await rig.export(b"x") == b""
            await until(lambda: rig.door._bodies.bodies.held == 0)

    asyncio.run(scenario())


def test_too_much_metadata() -> None:
    """
    Scenario: a request with more metadata than is allowed.
    Guarantees: refused by grpcio before it reaches us; the next is served.
    """

    async def scenario() -> None:
        async with grpc_door(max_header_size="4KiB") as rig:
            error = await rig.refusal(b"x", metadata=(("x", "y" * 5000),))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await rig.export(b"x", metadata=(("x", "y" * 500),)) == b""

    asyncio.run(scenario())


def test_old_connections_are_told_to_go() -> None:
    """
    Scenario: a connection that lives longer than the age allowed, idle.
    Guarantees: GOAWAY.
    """
    keys: dict[str, Any] = {"keepalive": {"server_parameters": {"max_connection_age": "300ms"}}}

    async def scenario() -> None:
        async with grpc_door(**keys) as rig, RawClient(rig.door.port) as client:
            await until(lambda: GOAWAY in client.ended)

    asyncio.run(scenario())


def test_connections_beyond_the_limit() -> None:
    """
    Scenario: room for one connection; a second one comes.
    Guarantees: it is closed without an answer; the first goes on.
    """

    async def scenario() -> None:
        async with grpc_door(max_connections=1) as rig:
            assert await rig.export(b"x") == b""
            async with RawClient(rig.door.port) as second:
                await until(lambda: second.is_closed)
            assert await rig.export(b"x") == b""

    asyncio.run(scenario())


def test_limits_change_while_it_runs() -> None:
    """
    Scenario: the limit of a message goes up and down again, with a request being judged meanwhile;
    then another endpoint is asked for.
    Guarantees: each limit holds on the same port; the request is answered; one sent in the moment
    of the exchange may be told CANCELLED, which OTLP clients send again; the last raises and
    changes nothing.
    """

    async def comes_to(code: grpc.StatusCode, rig: GrpcRig, size: int) -> None:
        """Until that is the answer: a server that was replaced goes on for a moment."""
        export = rig.channel.unary_unary(f"/{grpc_door_service()}/Export")
        async with asyncio.timeout(60):
            while await export(bytes(size)).code() is not code:
                pass

    async def change(rig: GrpcRig, **update: Any) -> None:
        config: GrpcReceiverConfig = rig.door._config
        await rig.door.reconfigure(config.model_copy(update=update))

    async def scenario() -> None:
        async with grpc_door() as rig:
            rig.consumer.gate = asyncio.Event()
            judged = asyncio.create_task(rig.export(b"judged"))
            await rig.consumer.entered.wait()
            rig.consumer.gate, gate = None, rig.consumer.gate
            await change(rig, max_recv_msg_size_mib=2)
            await comes_to(grpc.StatusCode.OK, rig, MIB + 1)
            await change(rig, max_recv_msg_size_mib=1)
            await comes_to(grpc.StatusCode.RESOURCE_EXHAUSTED, rig, MIB + 1)
            gate.set()
            assert await judged == b""
            with pytest.raises(ValueError, match="needs a restart"):
                await change(rig, endpoint="127.0.0.1:1")
            await comes_to(grpc.StatusCode.OK, rig, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4317", ("10.0.0.1", 4317)),
        ("ipv6:%5B::1%5D:4317", ("::1", 4317)),
        ("ipv6:[fe80::1%25eth0]:1", ("fe80::1", 1)),
        ("unix:", None),
        ("unix:/run/a.sock", None),
    ],
)
def test_names_of_peers(peer: str, address: tuple[str, int] | None) -> None:
    """
    Scenario: peers as grpcio names them.
    Guarantees: host and port; None for what has none.
    """
    assert address_of(peer) == address


def test_connections_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: more connections than are remembered.
    Guarantees: the table keeps its size.
    """
    monkeypatch.setattr(grpc_bodies, "CONNECTIONS_REMEMBERED", 10)
    bodies = GrpcBodies(MIB, 60)
    for port in range(1, 50):
        bodies.peer(f"ipv4:10.0.0.1:{port}")
    assert len(bodies._peers) == 10


def test_connections_in_use_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a connection that goes on sending while more come than are remembered.
    Guarantees: it is the same to us all the time, and so is what it has sent.
    """
    monkeypatch.setattr(grpc_bodies, "CONNECTIONS_REMEMBERED", 10)
    bodies = GrpcBodies(MIB, 60)
    first = bodies.peer("ipv4:10.0.0.1:1")
    for port in range(2, 50):
        bodies.peer(f"ipv4:10.0.0.1:{port}")
        assert bodies.peer("ipv4:10.0.0.1:1") is first
