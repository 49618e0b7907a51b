"""What sinks need to be tested: events, a clock that stands, disks and consoles that misbehave."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from otel_anomaly.config import AlertsConfig, AuditConfig
from otel_anomaly.handoff import EpisodeEvent
from otel_anomaly.sinks import AuditSink, ConsoleSink
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW_NS = 1_795_255_200_000_000_000
QUICK_S = (0.001, 0.002)

PLAIN = EpisodeEvent(
    step="start",
    episode="3f2a91c04b1d77aa",
    time_ns=NOW_NS,
    start_ns=NOW_NS,
    detector="rate",
    action="warn",
    score=0.5,
    observed=100.0,
    limit=100.0,
    window_s=60.0,
    count=1,
    entity="session:s-1",
    reason="100 calls in 60 s, limit 100",
    tenant=None,
    agent="support",
    session="s-1",
    user=None,
    tool="lookup_order",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
)
HOSTILE_NAMES = (
    "",
    "\n2026-01-01T00:00:00Z WARN  forged  [ep 000000000000]",
    "\r\x1b[2J\x1b]0;title\x07",
    "\u202eevil\u2066",
    "\ud800 half a pair",
    '"}\\u0000\\',
    "\x00\x7f\x9b",
    "\U000e0001\U0001f600",
    "a" * (1 << 20),
    "\n" * 5000,
)


def events(count: int) -> list[EpisodeEvent]:
    """So many starts, told apart by their episode."""
    return [PLAIN._replace(episode=f"{number:012d}") for number in range(count)]


def until(reached: Callable[[], bool]) -> None:
    """Wait for another thread; fails instead of hanging."""
    for _ in range(5000):
        if reached():
            return
        time.sleep(0.002)
    raise AssertionError("the writer did not get there")


class StoppedClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now_ns(self) -> int:
        return NOW_NS + int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


class Gate:
    """Called with each write: lets it pass, holds it while shut, fails it when told to."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._lock = threading.Lock()
        self._failures = 0
        self.error: Exception = OSError(errno.ENOSPC, "No space left on device")

    def shut(self) -> None:
        self._free.clear()

    def open(self) -> None:
        self._free.set()

    def fail(self, times: int = 1 << 30) -> None:
        """Fail the next writes; 0 to stop failing."""
        with self._lock:
            self._failures = times

    def __call__(self, *_: object) -> None:
        self.entered.set()
        assert self._free.wait(30)
        with self._lock:
            if self._failures:
                self._failures -= 1
                raise self.error


class GatedStream(io.StringIO):
    """A console behind a gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def write(self, text: str, /) -> int:
        self._gate()
        return super().write(text)


def no_sync(_: int) -> None:
    """A disk that is trusted."""


def build_audit(path: Path, *, sync: Callable[[int], None] = no_sync, **config: Any) -> AuditSink:
    """An audit sink with its telemetry at `sink.telemetry`."""
    telemetry = Telemetry(sinks=["audit"])
    sink = AuditSink(
        path, "c0ffee", AuditConfig(**config), telemetry, StoppedClock(),
        sync=sync, retry_s=QUICK_S,
    )  # fmt: skip
    sink.telemetry = telemetry
    return sink


class AuditRig:
    """An audit sink whose disk is the gate."""

    name = "audit"

    def __init__(self, folder: Path, *, queue_records: int = 1000) -> None:
        self.gate = Gate()
        self.path = folder / "audit.jsonl"
        self.sink = build_audit(self.path, sync=self.gate, queue_records=queue_records)
        self.telemetry = self.sink.telemetry

    def told(self) -> list[str]:
        """The episodes in the order told."""
        return [record["episode"] for record in self.records() if record["episode"]]

    def missing(self) -> list[int]:
        """How many records each gap says are missing."""
        return [record["count"] for record in self.records() if record["type"] == "gap"]

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]


class ConsoleRig:
    """A console sink whose stream is the gate."""

    name = "console"

    def __init__(self, _folder: Path, *, queue_records: int = 1000) -> None:
        self.gate, self.telemetry = Gate(), Telemetry(sinks=[self.name])
        self.stream = GatedStream(self.gate)
        config = AlertsConfig(queue_records=queue_records)
        self.sink = ConsoleSink(
            self.stream, self.telemetry, config, StoppedClock(), retry_s=QUICK_S
        )

    def told(self) -> list[str]:
        """The episodes in the order told."""
        return [line[-13:-1] for line in self.lines() if line.endswith("]")]

    def missing(self) -> list[int]:
        """How many lines each notice says are missing."""
        return [int(line.split()[1]) for line in self.lines() if line.startswith("... ")]

    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]


def counted(telemetry: Telemetry, sink: str) -> tuple[int, int]:
    """(written, dropped)"""
    value = telemetry.registry.get_sample_value
    written = value("otel_anomaly_sink_records_total", {"sink": sink})
    dropped = value("otel_anomaly_sink_dropped_total", {"sink": sink})
    assert written is not None
    assert dropped is not None
    return int(written), int(dropped)
