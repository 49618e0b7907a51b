"""The console: a line when an episode starts, one when it gets worse, one when it is over.

    TIME WARN  rate session:s-1 agent=support tool=search: 100 calls in 60 s  [ep 3f2a91c04b1d]
    TIME BLOCK rate session:s-1 agent=support tool=search: 500 calls in 60 s  [ep 3f2a91c04b1d]
    TIME END   rate session:s-1 agent=support tool=search: block from TIME to TIME, peak 600 ...

Agents choose their names: whatever could steer a terminal or pass for a second line is escaped,
what is long is cut. People read this: beyond `LINES_PER_SECOND` lines are left out and counted,
and one line says how many. The audit trail has them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from typing import TYPE_CHECKING, TextIO

from otel_anomaly.handoff import EpisodeEvent
from otel_anomaly.sinks.queue import RETRY_S, Gap, Item, SinkWorker
from otel_anomaly.sinks.text import printable, quoted, rfc3339, trimmed

if TYPE_CHECKING:
    from otel_anomaly.config import AlertsConfig
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

NAME = "console"
LINES_PER_SECOND = 50
WORD_CHARS_MAX = 64
REASON_CHARS_MAX = 300
EPISODE_CHARS_MAX = 12
READY_MS = 500
"""How long one attempt waits for a console that takes nothing."""

LINE_BYTES_MAX = 4096  # Linux: a pipe takes so much as a whole or not at all.

# Five words, a reason or two times and four numbers, at four bytes a character: such a line goes
# out whole or not at all, so trying again never repeats half of one.
assert 4 * (5 * (WORD_CHARS_MAX + 10) + REASON_CHARS_MAX + EPISODE_CHARS_MAX + 150) < LINE_BYTES_MAX


class ConsoleSink:
    """Tells people, one line at a time."""

    def __init__(
        self,
        stream: TextIO,
        telemetry: Telemetry,
        config: AlertsConfig,
        clock: Clock,
        *,
        idle_s: float = 1.0,
        retry_s: tuple[float, float] = RETRY_S,
    ) -> None:
        """Once built it must be closed: its thread keeps the process alive.

        A stream with a descriptor is written through that, so that a console that stands still (a
        stopped terminal, a full pipe) is an attempt that failed and not a thread that hangs.
        """
        self._stream, self._clock = stream, clock
        self._descriptor = _descriptor(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._second, self._lines, self._left_out = -1, 0, 0
        self._worker = SinkWorker(
            NAME,
            self._write,
            capacity=config.queue_records,
            telemetry=telemetry,
            group_max=1,
            idle_s=idle_s,
            retry_s=retry_s,
            finish=self._finish,
        )

    @property
    def problem(self) -> str | None:
        """Why lines cannot be written just now; None when they can."""
        return self._worker.problem

    def retune(self, config: AlertsConfig) -> None:
        """Go by another configuration from now on."""
        self._worker.retune(config.queue_records)

    def offer(self, events: list[EpisodeEvent]) -> None:
        """Take the events over, or drop and count them. Never blocks, never raises."""
        self._worker.put([trimmed(event) for event in events])

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, at most so long; drop and count the rest. Whether all got out."""
        return self._worker.close(timeout_s)

    def _write(self, items: list[Item]) -> int:
        """Write at most one line, or leave it out. An empty group is a tick."""
        second = int(self._clock.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second, self._lines = second, 0
        for item in items:
            if isinstance(item, Gap):
                self._left_out += item.records
            elif isinstance(item, EpisodeEvent):
                if self._lines >= LINES_PER_SECOND:
                    self._left_out += 1
                    return 1
                self._put_line(episode_line(item))
                self._lines += 1
        return 0

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._put_line(
                f"... {self._left_out} further episode lines left out, see the audit trail"
            )
            self._left_out = 0

    def _finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # Nobody is left to be told.
            self._tell_left_out()

    def _put_line(self, line: str) -> None:
        if self._descriptor is None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return
        data = (line + "\n").encode(self._encoding, "backslashreplace")
        while data:
            _wait_ready(self._descriptor)
            data = data[os.write(self._descriptor, data) :]


def episode_line(event: EpisodeEvent) -> str:
    """One step of an episode, for people."""
    level = "END" if event.step == "end" else printable(event.action.upper(), WORD_CHARS_MAX)
    who = [quoted(event.detector, WORD_CHARS_MAX), quoted(event.entity, WORD_CHARS_MAX)]
    for name, value in (("agent", event.agent), ("tool", event.tool)):
        if value is not None:
            who.append(f"{name}={quoted(value, WORD_CHARS_MAX)}")
    time = rfc3339(event.time_ns, fraction=False)
    what = _summary(event, time) if event.step == "end" else _sign(event)
    episode = printable(event.episode[:EPISODE_CHARS_MAX], EPISODE_CHARS_MAX)
    return f"{time} {level:<5} {' '.join(who)}: {what}  [ep {episode}]"


def _sign(event: EpisodeEvent) -> str:
    if event.reason:
        reason = event.reason.removeprefix(f"{event.detector}: ")  # The line has that already.
        return printable(reason, REASON_CHARS_MAX)
    return _figures(event)


def _summary(event: EpisodeEvent, time: str) -> str:
    start = rfc3339(event.start_ns, fraction=False)
    action = printable(event.action, WORD_CHARS_MAX)
    return f"{action} from {start} to {time}, peak {_figures(event)}, {event.count} calls"


def _figures(event: EpisodeEvent) -> str:
    return f"{event.observed:.10g} in {event.window_s:.10g} s, limit {event.limit:.10g}"


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # Not on a file: held in memory.
        return None


def _wait_ready(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(READY_MS):
        raise BlockingIOError(errno.EAGAIN, "the console takes nothing")
