"""The start of the whole service: what cannot start, and a stop in the middle of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly import doors, service
from otel_anomaly.sinks import verify
from tests.service_rigs import FREE, assert_free, calls, nothing_left, place, running

if TYPE_CHECKING:
    from pathlib import Path


def taken(folder: Path, port: int, part: str) -> dict[str, Any]:
    """A configuration one of whose parts cannot start."""
    endpoint = {"endpoint": f"127.0.0.1:{port}"}
    (folder / "file").touch()
    return {
        "metrics": {"telemetry": {"metrics": endpoint}},
        "grpc": {"receivers": {"otlp": {"protocols": {"grpc": endpoint, "http": FREE}}}},
        "http": {"receivers": {"otlp": {"protocols": {"grpc": FREE, "http": endpoint}}}},
        "exporter": {"exporters": {"debug": {}, "file": {"path": f"{folder}/file/spans.jsonl"}}},
        "audit": {"audit": {"path": f"{folder}/file/audit.jsonl"}},
    }[part]


@pytest.mark.parametrize("part", ["metrics", "grpc", "http", "exporter", "audit"])
def test_a_part_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """
    Scenario: a port is taken; a folder is a file. Kernels would compile if they were asked to.
    Guarantees: an OSError that names the address or the file, before anything is compiled; what
    was started is stopped: no thread, no task, no port, and the service is not ready.
    """

    def compiles() -> None:
        raise AssertionError("the kernels compile before it is known that the start can work")

    monkeypatch.setattr(service, "warm", compiles)

    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, nothing_left():
            port = listening.getsockname()[1]
            at = place(tmp_path, **taken(tmp_path, port, part))
            with pytest.raises(OSError, match=r"file'|file/|127\.0\.0\.1") as caught:
                await at.service.start()
            assert (f"127.0.0.1:{port}" if port_of(part) else str(tmp_path)) in str(caught.value)
            assert not at.service.is_ready
            assert_free(at.service.doors.monitoring.port)

    def port_of(name: str) -> bool:
        return name in {"metrics", "grpc", "http"}

    asyncio.run(play())


def test_a_stop_during_the_start_does_not_wait_for_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a run leaves spans on disk, the next hop is away; the next run is told to stop while
    its kernels compile, with a whole hour to deliver.
    Guarantees: it does not wait for the next hop; the spans stay on disk and in the ledger; the
    trail says that it stopped.
    """
    away = {
        "endpoint": "http://127.0.0.1:9",
        "sending_queue": {"storage": "disk", "batch": {"flush_timeout": "1ms"}},
    }
    sections: dict[str, Any] = {"exporters": {"otlp_http": away}}
    compiling, go = threading.Event(), threading.Event()

    def compiles(**_: bool) -> None:
        compiling.set()
        go.wait()

    async def play() -> None:
        first = {**sections, "service": {"drain_timeout": "10ms"}}
        async with running(tmp_path, **first) as at:
            assert await at.http(calls(7)) == 200
        monkeypatch.setattr(service, "warm", compiles)
        with nothing_left():
            at = place(tmp_path, **sections, service={"drain_timeout": "1h"})
            start = asyncio.create_task(at.service.start())
            await asyncio.to_thread(compiling.wait)
            start.cancel()
            async with asyncio.timeout(60):
                await asyncio.wait({start})
            go.set()
        ledger = at.service.telemetry.ledger("otlp_http")
        assert (ledger.recovered, ledger.held, ledger.dropped) == (7, 7, 0)
        assert [record["type"] for record in at.audit()][-2:] == ["service.start", "service.stop"]

    asyncio.run(play())


@pytest.mark.parametrize("door", ["grpc", "http"])
def test_a_door_that_is_taken_while_we_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """
    Scenario: the port of a door is free when it is looked at, and taken when it is to be opened,
    last of all.
    Guarantees: everything that ran by then is stopped, the trail is whole and says so.
    """
    monkeypatch.setattr(doors.Doors, "check_free", lambda _: None)

    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening, nothing_left():
            port = listening.getsockname()[1]
            at = place(tmp_path, **taken(tmp_path, port, door))
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
                await at.service.start()
            assert not at.service.is_ready
            assert_free(at.service.doors.monitoring.port)
            if door == "http":
                assert at.service.doors.grpc is not None
                assert_free(at.service.doors.grpc.port)
        assert [record["type"] for record in at.audit()] == ["service.start", "service.stop"]
        assert verify(tmp_path / "audit.jsonl").ok

    asyncio.run(play())
