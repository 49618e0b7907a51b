"""Connections that begin a TLS handshake and say nothing more: not too many, and not for long."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop

from otel_anomaly.receivers import grpc as grpc_module
from otel_anomaly.receivers import handshakes
from otel_anomaly.receivers.handshakes import HANDSHAKES_MIN, Handshakes, TlsServer
from tests.certificates import make_certificates
from tests.door_rigs import (
    PROTOBUF,
    connect,
    grpc_door,
    http_door,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from otel_anomaly.telemetry import Telemetry

LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 unasked")


class Door:
    """Keys of a door with TLS and time for everything, and a client's side of it."""

    def __init__(self, folder: Path) -> None:
        files = make_certificates(folder)
        self.tls = {"cert_file": str(files.cert), "key_file": str(files.key)}
        self.keys: dict[str, Any] = {"tls": self.tls, "read_header_timeout": "1h"}
        self.context = ssl.create_default_context(cafile=files.ca)

    async def post(self, port: int, host: str = "127.0.0.1") -> int:
        """The status of an honest request."""
        streams = await asyncio.open_connection(
            "127.0.0.1", port, ssl=self.context, local_addr=(host, 0)
        )
        return await asked(*streams)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The status of a request; the connection is closed then."""
    writer.write(request_head("POST", "/v1/traces", content_type=PROTOBUF))
    answer = await read_answer(reader)
    writer.close()
    return answer.status


def refused(telemetry: Telemetry, reason: str) -> float | None:
    """What a scrape says."""
    name = "otel_anomaly_receiver_refused_connections_total"
    labels = {"transport": "http", "reason": reason}
    return telemetry.registry.get_sample_value(name, labels)


def ended(streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """How many of them the door has closed."""
    return sum(reader.at_eof() for reader, _ in streams)


@LOOPS
def test_silent_handshakes_are_bounded(run: Callable[[Any], None], door: Door) -> None:
    """
    Scenario: a door with room for 20 connections; one host opens 300 and says nothing on them, then
    sends an honest request.
    Guarantees: as many stay as a full house has beside it, the others are closed long before their
    time is over, and counted; the request is answered.
    """

    async def scenario() -> None:
        async with http_door(max_connections=20, **door.keys) as rig, AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connect(rig.door.port)) for _ in range(300)]
            await until(lambda: ended(silent) == 300 - HANDSHAKES_MIN)
            assert refused(rig.telemetry, "handshakes") == 300 - HANDSHAKES_MIN
            assert await door.post(rig.door.port) == 200
            await until(lambda: ended(silent) == 301 - HANDSHAKES_MIN)

    run(scenario())


@linux
@LOOPS
def test_a_flood_costs_others_no_handshake(run: Callable[[Any], None], door: Door) -> None:
    """
    Scenario: a client has connected and is slow to begin its handshake; another opens more than
    there is room for; then the first goes on.
    Guarantees: those of the other are closed; the first, though older than all of them, is served.
    """

    async def scenario() -> None:
        async with http_door(max_connections=20, **door.keys) as rig, AsyncExitStack() as stack:
            slow = await asyncio.open_connection(
                "127.0.0.1", rig.door.port, local_addr=("127.0.0.2", 0)
            )
            flood = [await stack.enter_async_context(connect(rig.door.port)) for _ in range(100)]
            await until(lambda: ended(flood) == 101 - HANDSHAKES_MIN)
            await slow[1].start_tls(door.context, server_hostname="localhost")
            assert await asked(*slow) == 200

    run(scenario())


@linux
@LOOPS
@pytest.mark.parametrize("hosts", [range(2, 7), [2] * 5], ids=["each its own", "behind a proxy"])
def test_many_clients_at_once_wait_for_each_other(
    run: Callable[[Any], None], door: Door, monkeypatch: pytest.MonkeyPatch, hosts: Sequence[int]
) -> None:
    """
    Scenario: a door with room for four handshakes and an hour for each; four clients are slow to
    begin theirs, and a fifth comes; then the first goes on. The same behind one address.
    Guarantees: none is closed for another; the first is served, and its place is the fifth's.
    """
    addresses = [f"127.0.0.{number}" for number in hosts]
    monkeypatch.setattr(handshakes, "HANDSHAKES_MAX", 4)
    monkeypatch.setattr(handshakes, "PATIENCE_S", 3600)

    async def scenario() -> None:
        async with http_door(**door.keys) as rig, AsyncExitStack() as stack:
            slow = [
                await asyncio.open_connection("127.0.0.1", rig.door.port, local_addr=(address, 0))
                for address in addresses[:4]
            ]
            for _, writer in slow:
                stack.callback(writer.close)
            await until(rig.door._listener._handshakes.are_full)
            fifth = asyncio.create_task(door.post(rig.door.port, addresses[4]))
            server = cast("TlsServer", rig.door._listener._accepting[0])
            await until(lambda: server._pause is not None)
            first_reader, first_writer = slow[0]
            await first_writer.start_tls(door.context, server_hostname="localhost")
            assert await asked(first_reader, first_writer) == 200
            assert await fifth == 200
            assert not refused(rig.telemetry, "handshakes")

    run(scenario())


@linux
@LOOPS
def test_handshakes_count_to_their_client(run: Callable[[Any], None], door: Door) -> None:
    """
    Scenario: a door with room for three connections of a client; one begins five handshakes and
    says nothing more, and another client comes.
    Guarantees: the last two are closed and counted long before their time is over; the other
    client is let in.
    """
    keys = {**door.keys, "per_client": {"connections": 3}}

    async def scenario() -> None:
        async with http_door(**keys) as rig, AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connect(rig.door.port)) for _ in range(5)]
            await until(lambda: ended(silent[3:]) == 2)
            assert await door.post(rig.door.port, "127.0.0.2") == 200
            assert ended(silent) == 2
            assert refused(rig.telemetry, "per_client") == 2

    run(scenario())


async def deaf(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
) -> None:
    """A handshake, after which nothing that comes is answered, not even the end."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            piece = await reader.read(1 << 16)
            assert piece, "the door went in the middle of it"
            incoming.write(piece)
        else:
            writer.write(outgoing.read())
            return


@LOOPS
def test_who_is_turned_away_and_stays_is_bounded(
    run: Callable[[Any], None], door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a full house; five more finish their handshake and do not take part in the end of
    their connection, for which they have an hour; there is room for two such; then the door stops.
    Guarantees: three are closed at once, and the others with the door.
    """
    monkeypatch.setattr(handshakes, "HANDSHAKES_MIN", 2)
    monkeypatch.setattr(handshakes, "TURNED_AWAY_S", 3600)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            async with http_door(max_connections=1, **door.keys) as rig:
                one = await stack.enter_async_context(connect(rig.door.port))
                await deaf(*one, door.context)
                await until(lambda: len(rig.door._listener.census) == 1)
                more = []
                for _ in range(5):
                    more.append(await stack.enter_async_context(connect(rig.door.port)))
                    await deaf(*more[-1], door.context)
                    await more[-1][0].read(1 << 16)  # "The house is full."
                await until(lambda: ended(more) == 3)
                assert refused(rig.telemetry, "limit") == 5
                assert refused(rig.telemetry, "handshakes") == 3
            await asyncio.gather(*(reader.read() for reader, _ in more))

    run(scenario())


@LOOPS
def test_a_door_without_files_to_accept_with_goes_on(
    run: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a client connects while the process has no file left; later it has; then once more
    there is none, and the door closes.
    Guarantees: it says so and accepts the client at the next try; a closed one does not try again.
    """
    monkeypatch.setattr(handshakes, "PAUSE_S", 0.01)
    hosts: list[str] = []

    class Full(socket.socket):
        """Sometimes there is no file."""

        is_full = True
        asked = 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.asked += 1
            if self.is_full:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    class Begun:
        """Instead of handshakes."""

        def begin(self, accepted: socket.socket, host: str, _context: object) -> None:
            accepted.close()
            hosts.append(host)

        def are_full(self) -> bool:
            return False

    async def scenario() -> None:
        listening = Full()
        listening.bind(("127.0.0.1", 0))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server = TlsServer(listening, 8, cast("Handshakes", Begun()), context)
        with closing(socket.create_connection(listening.getsockname())):
            await until(lambda: listening.asked == 3)
            assert not hosts
            listening.is_full = False
            await until(lambda: hosts == ["127.0.0.1"])
        listening.is_full, before = True, listening.asked
        with closing(socket.create_connection(listening.getsockname())):
            await until(lambda: listening.asked > before)
            server.close()
            before = listening.asked
            await asyncio.sleep(3 * handshakes.PAUSE_S)
            assert listening.asked == before

    run(scenario())
    assert set(caplog.messages) == {"OTLP/http: cannot accept a connection: Too many open files"}


def test_grpc_counts_handshakes_as_connections(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a gRPC door with TLS, an hour for handshakes and room for three connections; ten that
    say nothing.
    Guarantees: seven are closed at once.
    """
    options = dict(grpc_module.TRANSPORT_OPTIONS)
    options["grpc.server_handshake_timeout_ms"] = 3_600_000
    monkeypatch.setattr(grpc_module, "TRANSPORT_OPTIONS", tuple(options.items()))

    async def scenario() -> None:
        async with grpc_door(max_connections=3, tls=door.tls) as rig, AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(connect(rig.door.port)) for _ in range(10)]
            await until(lambda: ended(silent) == 7)

    asyncio.run(scenario())
