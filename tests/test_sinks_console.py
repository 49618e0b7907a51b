"""The console: what people read, how much of it, and consoles that take nothing."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import AlertsConfig
from otel_anomaly.sinks import ConsoleSink, console
from otel_anomaly.telemetry import Telemetry
from tests.sink_rigs import (
    HOSTILE_NAMES,
    NOW_NS,
    PLAIN,
    QUICK_S,
    StoppedClock,
    counted,
    events,
    until,
)

if TYPE_CHECKING:
    from typing import TextIO

MINUTE_NS = 60_000_000_000


def build(stream: TextIO, clock: StoppedClock | None = None, **options: object) -> ConsoleSink:
    telemetry = Telemetry(sinks=["console"])
    options = {"retry_s": QUICK_S} | options
    sink = ConsoleSink(stream, telemetry, AlertsConfig(), clock or StoppedClock(), **options)
    sink.telemetry = telemetry
    return sink


def test_the_life_of_an_episode() -> None:
    """
    Scenario: an episode starts with a warning, reaches block, ends.
    Guarantees: three lines, each with the episode; the last has start, end, peak and count.
    """
    stream = io.StringIO()
    sink = build(stream)
    block = PLAIN._replace(
        step="escalate",
        action="block",
        time_ns=NOW_NS + MINUTE_NS,
        reason="rate: 500 calls in 60 s, limit 500",
    )
    end = block._replace(
        step="end", time_ns=NOW_NS + 3 * MINUTE_NS, observed=600.0, limit=500.0, count=501
    )
    sink.offer([PLAIN, block, end])
    assert sink.close(10)
    who, episode = "rate session:s-1 agent=support tool=lookup_order", "[ep 3f2a91c04b1d]"
    ending = (
        f"2026-11-21T10:03:00Z END   {who}: block from 2026-11-21T10:00:00Z to "
        f"2026-11-21T10:03:00Z, peak 600 in 60 s, limit 500, 501 calls  {episode}"
    )
    assert stream.getvalue().splitlines() == [
        f"2026-11-21T10:00:00Z WARN  {who}: 100 calls in 60 s, limit 100  {episode}",
        f"2026-11-21T10:01:00Z BLOCK {who}: 500 calls in 60 s, limit 500  {episode}",
        ending,
    ]


def test_what_is_not_known_is_left_out() -> None:
    """
    Scenario: an event without agent, tool and reason, of seven digits.
    Guarantees: the line has what is known, the figures in place of the reason, all digits.
    """
    event = PLAIN._replace(agent=None, tool=None, reason="", observed=1234567.0, entity="anon")
    assert console.episode_line(event) == (
        "2026-11-21T10:00:00Z WARN  rate anon: 1234567 in 60 s, limit 100  [ep 3f2a91c04b1d]"
    )


@pytest.mark.parametrize("name", HOSTILE_NAMES[1:], ids=range(1, len(HOSTILE_NAMES)))
def test_a_name_cannot_forge_a_line(name: str) -> None:
    """
    Scenario: the agent is named like a line of ours, an escape sequence, or an override.
    Guarantees: the name stands in quotes where it is more than a word; the line ends as ours do.
    """
    line = console.episode_line(PLAIN._replace(agent=name))
    assert line.isprintable()
    assert line.endswith("  [ep 3f2a91c04b1d]")
    assert line.startswith("2026-11-21T10:00:00Z WARN  rate session:s-1 agent=")
    assert ' agent="' in line or " agent=aaa" in line


def test_a_flood_is_cut_to_lines_a_second() -> None:
    """
    Scenario: 200 events in one second, 10 in the next, then silence.
    Guarantees: 50 lines and a notice of 150, then 10 lines; what is left out is counted.
    """
    stream, clock = io.StringIO(), StoppedClock()
    sink = build(stream, clock)
    sink.offer(events(200))
    until(lambda: counted(sink.telemetry, "console") == (50, 150))
    clock.seconds = 1.0
    sink.offer(events(10))
    assert sink.close(10)
    lines = stream.getvalue().splitlines()
    assert lines[50] == "... 150 further episode lines left out, see the audit trail"
    assert [line.endswith("]") for line in lines] == [True] * 50 + [False] + [True] * 10
    assert counted(sink.telemetry, "console") == (60, 150)


@pytest.mark.parametrize("closing", [False, True], ids=["silence", "close"])
def test_a_flood_is_told_without_a_further_event(*, closing: bool) -> None:
    """
    Scenario: nothing follows a flood but silence, or the end.
    Guarantees: the notice comes by itself.
    """
    stream, clock = io.StringIO(), StoppedClock()
    sink = build(stream, clock, idle_s=60.0 if closing else 0.001)
    sink.offer(events(60))
    until(lambda: counted(sink.telemetry, "console") == (50, 10))
    if not closing:
        clock.seconds = 1.0
        until(lambda: "... 10 further" in stream.getvalue())
    assert sink.close(10)
    assert stream.getvalue().count("... 10 further") == 1


def test_a_full_pipe_holds_lines_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: standard output is a pipe that nobody reads for a while.
    Guarantees: the sink says that it is stuck, its thread does not hang in the write; every line
    arrives whole and once when the reader comes back.
    """
    monkeypatch.setattr(console, "READY_MS", 1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    with os.fdopen(reader, "rb") as read_end, os.fdopen(writer, "w", encoding="utf-8") as stream:
        sink = build(stream)
        sink.offer(events(20))
        until(lambda: sink.problem is not None)
        assert sink.problem == "console: [Errno 11] the console takes nothing"
        assert read_end.read(filled) == b"." * filled
        assert sink.close(10)
        lines = [read_end.readline() for _ in range(20)]
    assert lines == [console.episode_line(event).encode() + b"\n" for event in events(20)]
    assert counted(sink.telemetry, "console") == (20, 0)


def test_a_shut_pipe_and_a_full_disk_are_problems() -> None:
    """
    Scenario: the reader of the pipe is gone; standard output is a full device.
    Guarantees: the process lives, the problem is named, the lines are counted as dropped.
    """
    reader, writer = os.pipe()
    os.close(reader)
    with (
        os.fdopen(writer, "w", encoding="utf-8") as shut,
        Path("/dev/full").open("w", encoding="utf-8") as full,
    ):
        for stream, cause in ((shut, "Broken pipe"), (full, "No space left on device")):
            sink = build(stream)
            sink.offer(events(2))
            until(lambda sink=sink: sink.problem is not None)
            assert cause in sink.problem
            assert not sink.close(0.01)
            assert counted(sink.telemetry, "console") == (0, 2)


def test_a_closed_stream_is_counted() -> None:
    """
    Scenario: the stream is closed under the sink.
    Guarantees: the lines are dropped and counted; close gets to the end.
    """
    stream = io.StringIO()
    sink = build(stream)
    stream.close()
    sink.offer(events(60))
    assert sink.close(10)
    assert counted(sink.telemetry, "console") == (0, 60)


def test_a_console_that_knows_little(tmp_path: Path) -> None:
    """
    Scenario: the console's encoding is ASCII and the agent's name is not.
    Guarantees: the line is written, with escapes.
    """
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stream:
        sink = build(stream)
        sink.offer([PLAIN._replace(agent="b\u00fcro")])
        assert sink.close(10)
    assert b"agent=b\\xfcro" in path.read_bytes()
