"""The sinks of the service while they come and go."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from otel_anomaly.config import Config
from otel_anomaly.sinks.trail import Trail
from otel_anomaly.telemetry import Telemetry
from otel_anomaly.telling import Telling
from tests.door_rigs import StandingClock
from tests.service_rigs import nothing_left

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def config_of(folder: Path, *, audit: bool) -> Config:
    """With a trail in `folder`, or without."""
    return Config.model_validate({
        "storage": {"directory": str(folder)},
        "audit": {"enabled": audit, "fsync": False},
        "alerts": {"console": False},
    })  # fmt: skip


def test_a_stop_while_a_reload_opens_a_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a reload switches the audit trail on, on a disk that is slow; the service is told to
    stop before the trail is open.
    Guarantees: the reload ends at once; the stop waits for the trail and closes it; no thread is
    left that would keep the process alive; the trail has an end.
    """
    begun, go = threading.Event(), threading.Event()
    open_trail = Trail._open

    def slowly(trail: Trail) -> None:
        begun.set()
        go.wait()
        open_trail(trail)

    monkeypatch.setattr(Trail, "_open", slowly)
    old, new = config_of(tmp_path, audit=False), config_of(tmp_path, audit=True)

    async def reload(telling: Telling) -> None:
        async with AsyncExitStack() as undo:
            await telling.prepare(old, new, undo)

    async def scenario() -> None:
        telling = Telling(StandingClock(), Telemetry(), io.StringIO())
        telling.start(old)
        with nothing_left():
            task = asyncio.create_task(reload(telling))
            await asyncio.to_thread(begun.wait)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            go.set()
            await telling.settled()
            telling.close(Telemetry().ledger())

    asyncio.run(scenario())
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["trail.open", "trail.close"]


def test_a_trail_that_cannot_be_opened_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: as above, but in the end the trail cannot be opened.
    Guarantees: the stop goes on, and no thread is left.
    """
    begun, go = threading.Event(), threading.Event()

    def failing(_: Trail) -> None:
        begun.set()
        go.wait()
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Trail, "_open", failing)
    old, new = config_of(tmp_path, audit=False), config_of(tmp_path, audit=True)

    async def scenario() -> None:
        telling = Telling(StandingClock(), Telemetry(), io.StringIO())
        with nothing_left():
            async with AsyncExitStack() as undo:
                task = asyncio.create_task(telling.prepare(old, new, undo))
                await asyncio.to_thread(begun.wait)
                task.cancel()
                await asyncio.wait({task})
            go.set()
            await telling.settled()

    asyncio.run(scenario())


def test_a_problem_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a sink's thread takes its problem back between two looks at it.
    Guarantees: health has the problem with its reason, or none.
    """

    said: list[str | None] = ["the disk is full", None]

    class Recovering:
        @property
        def problem(self) -> str | None:
            return said.pop(0)

    telling = Telling(StandingClock(), Telemetry(), io.StringIO())
    monkeypatch.setattr(telling, "_audit", Recovering())
    assert telling.problems() == {"audit": "the disk is full"}
    assert telling.problems() == {}
