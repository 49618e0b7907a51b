"""The whole service in a test's own loop: free ports, a clock by hand, clients of both doors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import grpc.aio

from otel_anomaly.config import Config
from otel_anomaly.handoff import Batch, Reply, Signal
from otel_anomaly.receivers.grpc import SERVICES
from otel_anomaly.service import Service
from otel_anomaly.telemetry import PREFIX
from tests.book_rigs import LOW_LIMITS
from tests.door_rigs import NOW_NS, PROTOBUF, StandingClock
from tests.log_traffic import log_request, tool_record
from tests.traffic import Agent, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FREE = {"endpoint": "127.0.0.1:0"}


def config_in(folder: Path, **sections: Any) -> Config:
    """All parts on free ports, files in `folder`, limits that a handful of calls reach; what is
    learned ends with the service. How full the machine is does not matter."""
    return Config.model_validate({
        "receivers": {"otlp": {"protocols": {"grpc": FREE, "http": FREE}}},
        "detectors": LOW_LIMITS,
        "audit": {"fsync": False},
        "telemetry": {"metrics": FREE},
        "storage": {"directory": str(folder), "snapshots": {"enabled": False}},
        "exporters": {"file": {"sending_queue": {"batch": {"flush_timeout": "1ms"}}}},
        **sections,
        "service": {"memory": {"limit_percentage": 0}, **sections.get("service", {})},
    })  # fmt: skip


class Place(NamedTuple):
    """A running service and what it leaves behind."""

    service: Service
    clock: StandingClock
    console: io.StringIO
    folder: Path

    async def grpc(self, body: bytes, signal: Signal = Signal.TRACES) -> grpc.StatusCode:
        """One request through the gRPC door; its status."""
        assert self.service.doors.grpc is not None
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{self.service.doors.grpc.port}"
        ) as channel:
            try:
                await channel.unary_unary(f"/{SERVICES[signal]}/Export")(body)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

    async def http(self, body: bytes, signal: Signal = Signal.TRACES) -> int:
        """One request through the HTTP door; its status."""
        assert self.service.doors.http is not None
        url = f"http://127.0.0.1:{self.service.doors.http.port}/v1/{signal.value}"
        headers = {"Content-Type": PROTOBUF}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            return answer.status

    async def page(self, path: str) -> tuple[int, str]:
        """A page of the monitoring door: status and text."""
        url = f"http://127.0.0.1:{self.service.doors.monitoring.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def consume(self, body: bytes, signal: Signal = Signal.TRACES) -> Reply:
        """What the doors do with a request."""
        return await self.service.consume(Batch(body, signal, "http", self.clock.now_ns()))

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the service's own metrics."""
        value = self.service.telemetry.registry.get_sample_value(f"{PREFIX}_{name}", labels)
        assert value is not None, name
        return value

    def lines(self) -> list[str]:
        """What people have seen on the console, the words only."""
        return [line.split()[1] for line in self.console.getvalue().splitlines()]

    def actions(self) -> list[str]:
        """The action on each span in spans.jsonl; empty for one that was not judged."""
        return self._actions("spans.jsonl", "resourceSpans", "scopeSpans", "spans")

    def logged_actions(self) -> list[str]:
        """The same for each log record in logs.jsonl."""
        return self._actions("logs.jsonl", "resourceLogs", "scopeLogs", "logRecords")

    def _actions(self, file: str, resources: str, scopes: str, children: str) -> list[str]:
        return [
            _action(child)
            for line in (self.folder / file).read_text().splitlines()
            for resource in json.loads(line)[resources]
            for scope in resource[scopes]
            for child in scope[children]
        ]

    def audit(self) -> list[dict[str, Any]]:
        """The audit trail."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


def _action(span: dict[str, Any]) -> str:
    said = {pair["key"]: pair["value"] for pair in span["attributes"]}
    return str(said.get("anomaly.action", {}).get("stringValue", ""))


def place(folder: Path, **sections: Any) -> Place:
    """A service that is built, but not started."""
    clock, console = StandingClock(), io.StringIO()
    config = config_in(folder, **sections)
    return Place(Service(config, clock, console, seed=1), clock, console, folder)


@contextlib.asynccontextmanager
async def running(folder: Path, **sections: Any) -> AsyncIterator[Place]:
    """A service from start to stop."""
    built = place(folder, **sections)
    await built.service.start()
    try:
        yield built
    finally:
        await built.service.stop()


def calls(count: int, session: str = "s-1", seed: int = 0) -> bytes:
    """`count` tool calls of one session that end now."""
    agent = Agent("support", session=session, seed=seed)
    return request([agent.call(NOW_NS) for _ in range(count)])


def logged_calls(count: int, session: str = "s-1", first: int = 0) -> bytes:
    """The same told by log records, numbered from `first`."""
    numbers = range(first, first + count)
    told = [
        tool_record(time_ns=NOW_NS, tool="shell", session=session, call_id=f"call-{number}")
        for number in numbers
    ]
    return log_request(told, resource=[("service.name", "support")])


def assert_free(port: int) -> None:
    """Nobody listens on `port`: we could."""
    socket.create_server(("127.0.0.1", port)).close()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fails when a thread, or a task of the running loop, is there that was not before."""
    before = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    yield
    # The pool of `asyncio.to_thread` ends with the loop; grpcio keeps its poller for the process.
    left = [
        thread.name
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith("asyncio_") and not thread.daemon
    ]
    assert left == []
    assert asyncio.all_tasks() <= tasks
