"""Who is connected to a door: asked of the kernel, and not too many of one client."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from otel_anomaly.receivers import client_connections, tcp_bytes
from otel_anomaly.receivers.client_connections import ClientConnections, shut
from otel_anomaly.receivers.tcp_bytes import Connected, connected_to
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import grpc_door, until
from tests.raw_http2 import RawClient

if TYPE_CHECKING:
    from tests.door_rigs import GrpcRig

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is connected")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a second."""
    monkeypatch.setattr(client_connections, "LOOK_S", 0.02)
    monkeypatch.setattr(client_connections, "LOOKS_WITHOUT_LIMIT", 1)


def open_now(telemetry: Telemetry) -> float | None:
    """What a scrape says."""
    labels = {"transport": "grpc"}
    return telemetry.registry.get_sample_value("otel_anomaly_receiver_connections", labels)


def shut_so_far(telemetry: Telemetry) -> float | None:
    """The same of those that were too many."""
    name = "otel_anomaly_receiver_refused_connections_total"
    labels = {"transport": "grpc", "reason": "per_client"}
    return telemetry.registry.get_sample_value(name, labels)


@linux
def test_one_client_does_not_hold_them_all() -> None:
    """
    Scenario: room for three connections of a client; one sends, then opens five more and leaves
    them idle, and another client comes; then the limit is taken away by a reload.
    Guarantees: what came last of the first client is closed, down to three, and counted; what it
    had before goes on, and so does the other client; the gauge follows; without a limit all stay.
    """

    async def scenario() -> None:
        keys = {"per_client": {"connections": 3}}
        async with grpc_door(**keys) as rig, AsyncExitStack() as stack:
            await rig.export(b"first")
            await until(lambda: open_now(rig.telemetry) == 1)
            idle = await opened(rig, stack, 5)
            await until(lambda: sum(each.is_closed for each in idle) == 3)
            await until(lambda: shut_so_far(rig.telemetry) == 3)
            there = await asyncio.open_connection(
                "127.0.0.1", rig.door.port, local_addr=("127.0.0.2", 0)
            )
            await until(lambda: open_now(rig.telemetry) == 4)
            await rig.export(b"second")
            assert sum(each.is_closed for each in idle) == 3
            assert shut_so_far(rig.telemetry) == 3
            there[1].close()
            config = rig.door._config
            no_limit = config.per_client.model_copy(update={"connections": 0})
            await rig.door.reconfigure(config.model_copy(update={"per_client": no_limit}))
            more = await opened(rig, stack, 5)
            await until(lambda: open_now(rig.telemetry) == 8)
            assert not any(each.is_closed for each in more)
            assert len(rig.consumer.batches) == 2
        assert shut_so_far(rig.telemetry) == 3

    asyncio.run(scenario())


async def opened(rig: GrpcRig, stack: AsyncExitStack, count: int) -> list[RawClient]:
    """Connections that send nothing but the beginning of the protocol."""
    return [await stack.enter_async_context(RawClient(rig.door.port)) for _ in range(count)]


def test_where_nobody_knows_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the kernel does not say who is connected; without a limit, then with one, for long.
    Guarantees: nobody is shut out; one line says that the limit has no effect, when there is one.
    """
    asked = 0

    def nobody_knows(_port: int) -> list[Connected] | None:
        nonlocal asked
        asked += 1
        return None

    async def scenario() -> None:
        connections = ClientConnections(Telemetry(), nobody_knows)
        connections.start(1)
        await until(lambda: asked > 2)
        assert not caplog.messages
        connections.limit(1)
        seen = asked
        await until(lambda: asked > seen + 3)
        await connections.stop()

    asyncio.run(scenario())
    (line,) = caplog.messages
    assert line.startswith("OTLP/grpc: per_client.connections does not hold for all")


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no thread")])
def test_looks_go_on_when_one_fails(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a client has more connections than it may; there is no file or no thread left to shut
    them with, for two looks; then there is.
    Guarantees: one line says so, and the look after that shuts what is too much.
    """
    found = [Connected(bytes([n]), bytes([127, 0, 0, 1]), 1000 + n) for n in range(3)]
    asked: list[set[int]] = []

    def shuts(inodes: set[int]) -> int:
        asked.append(inodes)
        if len(asked) <= 2:
            raise error
        return len(inodes)

    async def scenario() -> None:
        telemetry = Telemetry()
        monkeypatch.setattr(client_connections, "shut", shuts)
        connections = ClientConnections(telemetry, lambda _port: found)
        connections.limit(2)
        connections.start(1)
        await until(lambda: bool(shut_so_far(telemetry)))
        await connections.stop()

    asyncio.run(scenario())
    assert asked[:3] == [{1002}] * 3
    (line,) = caplog.messages
    assert line.startswith("OTLP/grpc: per_client.connections does not hold for all")


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_lists_who_was_accepted(host: str) -> None:
    """
    Scenario: two clients of a port, one of them accepted; a client of another port; then the
    accepted one goes.
    Guarantees: the accepted one alone is listed, with its address and the number of its file.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"there is no {host} here")
    with listening, socket.create_server(("127.0.0.1", 0)) as other:
        port = listening.getsockname()[1]
        with (
            closing(socket.create_connection((host, port))),
            closing(socket.create_connection((host, port))),
            closing(socket.create_connection(other.getsockname())),
            closing(other.accept()[0]),
        ):
            accepted, _ = listening.accept()
            with accepted:
                (found,) = connected_to(port) or []
                assert found.host() == host
                assert found.inode == os.fstat(accepted.fileno()).st_ino
            assert connected_to(port) == []


@pytest.mark.parametrize("answer", [b"", b"\2", bytes(16), b"\x10\0\0\0\2\0" + bytes(10)])
def test_answers_that_are_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: something else answers where netlink should, or nothing, or an error.
    Guarantees: nobody knows; no endless wait, no exception.
    """

    class Odd:
        """A socket that says one thing."""

        def __init__(self, *_arguments: object) -> None:
            self.left = [answer, b""]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_arguments: object) -> None:
            return None

        def settimeout(self, _seconds: float) -> None:
            return None

        def send(self, _question: bytes) -> None:
            return None

        def recv(self, _size: int) -> bytes:
            if not self.left:
                raise TimeoutError
            return self.left.pop(0)

    monkeypatch.setattr(tcp_bytes.socket, "socket", Odd)
    assert connected_to(1) is None


def open_files() -> int:
    """Of this process."""
    return sum(1 for _ in Path(client_connections.OPEN_FILES).iterdir())


@linux
def test_only_the_connection_that_is_meant_is_shut(tmp_path: Path) -> None:
    """
    Scenario: two pairs of sockets and a file; one end is to be shut, by its number; then a number
    that nobody has.
    Guarantees: its other end sees the end, the other pair goes on, its file stays open.
    """
    meant, there = socket.socketpair()
    spared, elsewhere = socket.socketpair()
    with meant, there, spared, elsewhere, (tmp_path / "file").open("w") as file:
        files = open_files()
        numbers = {os.fstat(each.fileno()).st_ino for each in (meant, file)}
        assert shut(numbers) == 1
        there.settimeout(5)
        assert there.recv(1) == b""
        spared.send(b"x")
        assert elsewhere.recv(1) == b"x"
        file.write("still open")
        assert shut({0}) == 0
        assert open_files() <= files
