"""HTTP connections whose clients pipeline, do not read, or send what aiohttp trips over."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from otel_anomaly.receivers import connections, listener
from otel_anomaly.receivers.connections import Connection
from tests.door_rigs import (
    PROTOBUF,
    HttpRig,
    connect,
    http_door,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = request_head("POST", "/v1/traces", content_type=PROTOBUF)
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
READ_BYTES_MAX = 1 << 18
"""What either loop takes from a socket at once."""


@pytest.fixture(autouse=True)
def quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules that take time are looked at a hundred times a second."""
    monkeypatch.setattr(listener, "SWEEP_S", 0.01)


def cut_off(rig: HttpRig) -> float | None:
    """Connections counted as those of slow readers."""
    name = "otel_anomaly_receiver_refused_connections_total"
    labels = {"transport": "http", "reason": "slow_reader"}
    return rig.telemetry.registry.get_sample_value(name, labels)


async def stuck_client(rig: HttpRig) -> tuple[socket.socket, Connection]:
    """A client that has pipelined small requests and read nothing, until answers wait with us, few
    enough that nobody counts it as slow."""
    loop, before = asyncio.get_running_loop(), set(rig.door._listener.census._open)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(0)
    await loop.sock_connect(client, ("127.0.0.1", rig.door.port))
    await until(lambda: len(rig.door._listener.census) == len(before) + 1)
    (connection,) = rig.door._listener.census._open - before
    transport = connection.transport
    assert transport is not None
    while not transport.get_write_buffer_size():
        rig.consumer.batches.clear()
        await loop.sock_sendall(client, HEAD * 20)
        await until(lambda: len(rig.consumer.batches) == 20)
    assert not connection.stuck_s
    return client, connection


@LOOPS
@pytest.mark.parametrize("end", ["garbage", "idle", "half-closed"])
def test_a_close_does_not_wait_for_a_client(
    run: Callable[[Any], None], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a client takes no answer, some of them wait with us, and its connection is closed: for
    what it sends, for being idle, for its own half of it.
    Guarantees: it is cut off when it has not read for the time allowed, and counted once.
    """
    monkeypatch.setattr(connections, "SLOW_READER_S", 0.2)

    async def scenario() -> None:
        async with http_door(idle_timeout="1h") as rig:
            client, connection = await stuck_client(rig)
            with client:
                if end == "garbage":
                    await asyncio.get_running_loop().sock_sendall(client, b"GARBAGE\r\n\r\n")
                elif end == "half-closed":
                    client.shutdown(socket.SHUT_WR)
                else:
                    await until(lambda: connection._waiter is not None)
                    connection._next_keepalive_close_time = 0.0
                    connection._process_keepalive()
                await until(lambda: not len(rig.door._listener.census))
                assert connection._task_handler is None
                assert cut_off(rig) == 1

    run(scenario())


def test_a_round_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: looking through the connections fails a few times; then a head trickles.
    Guarantees: the rules hold again with the next round; the failure is logged once.
    """
    rounds = list[int]()
    overdue = Connection.overdue

    def fails(self: Connection, now_s: float, limits: connections.Limits) -> str | None:
        rounds.append(len(rounds))
        if len(rounds) <= 3:
            raise RuntimeError("a bug")
        return overdue(self, now_s, limits)

    monkeypatch.setattr(Connection, "overdue", fails)

    async def scenario() -> None:
        async with http_door(read_header_timeout="50ms") as rig, asyncio.timeout(60):
            assert (await rig.send(HEAD[:-1])).status == 408

    asyncio.run(scenario())
    assert len(rounds) > 3
    assert [record.message for record in caplog.records] == [
        "the connections could not be looked through"
    ]


@LOOPS
@pytest.mark.parametrize("target", ["http://xn--a/v1/traces", "http://xn--/", "http://xn--a-:80/"])
def test_a_target_that_no_request_can_be_made_of(run: Callable[[Any], None], target: str) -> None:
    """
    Scenario: the host of a request's target is no name, and 33 requests with large bodies come
    behind it; then the client leaves. aiohttp's request raises at such a target, in the task of
    the connection.
    Guarantees: a 4xx, the others are answered as ever; nothing stays of the connection.
    """
    body = bytes(100_000)
    good = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length=str(len(body)))

    async def scenario() -> None:
        async with http_door() as rig:
            async with connect(rig.door.port) as (reader, writer):
                writer.write(request_head("POST", target, content_type=PROTOBUF))
                writer.write((good + body) * 33)
                async with asyncio.timeout(60):
                    assert (await read_answer(reader)).status == 404
                    assert (await read_answer(reader)).status == 200
                writer.transport.abort()
            await until(lambda: not len(rig.door._listener.census))
            assert (await rig.post()).status == 200

    run(scenario())


def test_a_connection_does_not_outlive_its_task() -> None:
    """
    Scenario: the task that answers a connection's requests ends with an error, whatever it is.
    Guarantees: the connection ends with it, its room is there again, and the error is told.
    """

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        told = list[str]()
        asyncio.get_running_loop().set_exception_handler(lambda _, it: told.append(it["message"]))
        async with http_door(max_connections=1) as rig, connect(rig.door.port) as (reader, writer):
            writer.write(HEAD)
            assert (await read_answer(reader)).status == 200
            (connection,) = rig.door._listener.census._open
            connection._request_factory = fails  # type: ignore[assignment]
            writer.write(HEAD)
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            await until(lambda: not len(rig.door._listener.census))
            del connection
            assert (await rig.post()).status == 200
            gc.collect()
            assert told == ["Task exception was never retrieved"]

    asyncio.run(scenario())


@LOOPS
def test_what_waits_behind_a_request_is_bounded(run: Callable[[Any], None]) -> None:
    """
    Scenario: ten clients pipeline 40 requests of 500 KB each, and the first of each is not
    answered yet.
    Guarantees: what waits is not read, but for what came in two reads of a socket; in the end every
    request is answered.
    """
    body = bytes(500_000)
    head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length=str(len(body)))

    async def client(rig: HttpRig) -> None:
        async with connect(rig.door.port) as (reader, writer):
            sending = asyncio.ensure_future(send(writer))
            for _ in range(40):
                assert (await read_answer(reader)).status == 200
            await sending

    async def send(writer: asyncio.StreamWriter) -> None:
        for _ in range(40):
            writer.write(head + body)
            await writer.drain()

    async def scenario() -> None:
        async with http_door(limit=4 << 20) as rig:
            rig.consumer.gate = asyncio.Event()
            clients = [asyncio.create_task(client(rig)) for _ in range(10)]
            census = rig.door._listener.census
            await until(lambda: len(rig.consumer.batches) == 10)
            await until(lambda: all(each._buffer_paused for each in census._open))
            waiting = sum(body._size for each in census._open for _, body in each._messages)
            assert 0 < waiting <= 10 * 2 * READ_BYTES_MAX
            rig.consumer.gate.set()
            async with asyncio.timeout(120):
                await asyncio.gather(*clients)
            assert len(rig.consumer.batches) == 400

    run(scenario())
