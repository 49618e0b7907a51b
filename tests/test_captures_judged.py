"""What real agent frameworks sent, through the whole judge: read at once, and as it arrived.

`test_captures` asks what the scan reads; here it is what a call is reported as. Read as a whole, a
recording tells each call with all that any of its spans says. Live, a call is judged by what has
arrived: its name and its number must be right at once, who made it may come later.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config
from otel_anomaly.handoff import Signal
from otel_anomaly.recordings import Recorded
from otel_anomaly.replay import Replay
from tests.test_captures import (
    ASKED,
    FLOORS,
    NO_TOOL_SPANS,
    agreeing,
    every_capture,
    expected_of,
)

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = {
    "traces": 64,
    "spans": 8192,
    "agents": 64,
    "services": 16,
    "sessions": 256,
    "moves": 1024,
    "episodes": 64,
    "labels": 64,
}
NAMES_COME_LATER = frozenset({"claude-code"})
"""Its log records come first and call a server's tool no name; the span that does comes later."""


def requests_of(folder: Path) -> list[Recorded]:
    """The requests of a capture in the order of their arrival."""
    return [
        Recorded(path.read_bytes(), Signal.LOGS if "-logs-" in path.name else Signal.TRACES, "x")
        for path in sorted(folder.glob("*.bin"))
    ]


def calls_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> list[dict[str, Any]]:
    """The calls of a capture as they are reported."""
    monkeypatch.setattr("otel_anomaly.replay.TRACES_MIN", 64)
    monkeypatch.setattr("otel_anomaly.replay.SPANS_MIN", 8192)
    config = Config.model_validate({"identity": {"limits": LIMITS}})
    replay = Replay(config, calls=True, writer=None)
    requests = requests_of(folder)
    for request in requests if whole else ():
        replay.remember(request)
    for request in requests:
        replay.request(request)
    assert replay.processor.healthy
    return replay.calls


def tools_in(calls: list[dict[str, Any]]) -> Counter[str | None]:
    return Counter(call["tool"] for call in calls)


@every_capture
def test_read_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: all requests of one framework's run, its spans and its log records, read twice.
    Guarantees: every executed call once, under its name; agent, session, user and failure right at
    least as often as the payload allows, failures told inside of results too; arguments
    wherever its spans carry them.
    """
    calls, expected = calls_of(folder, monkeypatch, whole=True), expected_of(folder)
    if folder.name in NO_TOOL_SPANS:
        assert calls == []
        return
    assert tools_in(calls) == tools_in(expected)
    floors = dict(zip(ASKED, FLOORS[folder.name], strict=True))
    for what in ("agent", "session", "user", "error"):
        right = agreeing(calls, expected, what)
        assert right >= floors[what], what
    if floors["arguments"] and folder.name != "codex-cli":
        assert all(call["arguments"] is not None for call in calls)


@every_capture
def test_request_by_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the same requests as they arrived, one after the other, ancestors last.
    Guarantees: every executed call is reported once, under its name; no name is wrong, and one is
    missing only where nothing that has arrived tells it. Failures are right as often as before.
    """
    calls, expected = calls_of(folder, monkeypatch, whole=False), expected_of(folder)
    if folder.name in NO_TOOL_SPANS:
        assert calls == []
        return
    assert len(calls) == len(expected)
    missing = tools_in(calls)[None]
    assert tools_in(calls) - Counter({None: missing}) <= tools_in(expected)
    assert (missing > 0) == (folder.name in NAMES_COME_LATER)
    floor = dict(zip(ASKED, FLOORS[folder.name], strict=True))["error"]
    assert agreeing(calls, expected, "error") >= floor - missing
