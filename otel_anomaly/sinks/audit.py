"""The audit trail: every step of every episode as a line that cannot be changed unseen.

`chain` has the theory of the hash chain, `trail` the file. Here is what a record says. Every
record has every field, null where it does not apply, so that a reader needs no case for a missing
one. None is argument text. `time` is the event's own, `recorded` is when the line was made.
"""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING

from otel_anomaly import __version__
from otel_anomaly.sinks.queue import RETRY_S, Gap, Item, LifeCycle, SinkWorker
from otel_anomaly.sinks.text import REASON_BYTES_MAX, cut, rfc3339, trimmed
from otel_anomaly.sinks.trail import Fields, Trail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otel_anomaly.config import AuditConfig
    from otel_anomaly.handoff import Clock, EpisodeEvent
    from otel_anomaly.sinks.chain import Head, Value
    from otel_anomaly.telemetry import Telemetry

NAME = "audit"
_WHOLE_MAX = (1 << 53) - 1
_CLEAN_ENDS = {"", "service.stop", "trail.close"}
_NO_END = "the run before did not record its stop"
EMPTY: Fields = dict.fromkeys(
    (
        *("time", "recorded", "type", "action", "score", "reason", "tenant", "agent", "session"),
        *("user", "tool", "trace_id", "span_id", "detector", "observed", "limit", "window_s"),
        *("count", "entity", "start", "episode", "config_hash", "version"),
    )
)
"""All fields but those of the chain: `seq`, `prev`, `hash`."""


class AuditSink:
    """Writes episode events and the service's life cycle to one trail.

    A full queue drops; where it did, the trail has a record of type `gap` with their `count`.
    """

    def __init__(
        self,
        path: Path,
        config_hash: str,
        config: AuditConfig,
        telemetry: Telemetry,
        clock: Clock,
        *,
        sync: Callable[[int], None] = os.fsync,
        retry_s: tuple[float, float] = RETRY_S,
    ) -> None:
        """Open the trail, or continue it. Raises OSError when it cannot be written or is in use.

        Once built it must be closed: its thread keeps the process alive.
        """
        self._config_hash, self._clock = cut(config_hash), clock
        self._records = telemetry.sink_records.labels(NAME)
        self._writing = threading.Lock()
        self._sync = sync
        self._trail = Trail(path, clock, sync if config.fsync else None)
        try:
            self._write([])
        except BaseException:
            self._trail.close()
            raise
        self._worker = SinkWorker(
            NAME,
            self._write,
            capacity=config.queue_records,
            telemetry=telemetry,
            retry_s=retry_s,
            finish=self._trail.close,
        )

    @property
    def problem(self) -> str | None:
        """Why records cannot be written just now; None when they can."""
        return self._worker.problem

    @property
    def head(self) -> Head:
        """The last record written: its `hash`, kept elsewhere, proves the trail up to here."""
        return self._trail.head

    def offer(self, events: list[EpisodeEvent]) -> None:
        """Take the events over, or drop and count them. Never blocks, never raises."""
        self._worker.put([trimmed(event) for event in events])

    def service_started(self) -> None:
        """Write `service.start` here and now: an OSError comes while the start can be refused."""
        self._begun("service.start", "")

    def trail_opened(self, config_hash_before: str) -> None:
        """The same for a trail that a running service begins, because its configuration changed."""
        self._begun("trail.open", f"the configuration was {cut(config_hash_before)} before")

    def _begun(self, kind: str, reason: str) -> None:
        last = self._trail.head.type
        clean = last in _CLEAN_ENDS or (last == "gap" and self._trail.head.seq == 1)
        reason = reason if clean else "; ".join(filter(None, (reason, _NO_END)))
        self._write([LifeCycle(kind, self._clock.now_ns(), reason)])
        self._records.inc()

    def config_reloaded(self, config_hash: str, config: AuditConfig) -> None:
        """Another configuration is in force, which keeps this trail: from here on it is named."""
        self._worker.retune(config.queue_records)
        self._trail.sync = self._sync if config.fsync else None
        self._note("config.reloaded", "", cut(config_hash))

    def trail_closed(self, config_hash: str) -> None:
        """Another configuration is in force, and this trail ends with it. `close` comes next."""
        self._note("trail.close", f"the configuration is {cut(config_hash)} from here on")

    def _note(self, kind: str, reason: str, config_hash: str = "") -> None:
        note = LifeCycle(kind, self._clock.now_ns(), reason, config_hash)
        self._worker.put([note], must=True)

    def service_stopped(
        self, *, accepted: int, sent: int, held: int, dropped: int, recovered: int = 0
    ) -> None:
        """Queue `service.stop` with the ledger, in spans. `close` comes next."""
        reason = f"accepted {accepted}, sent {sent}, held {held}, dropped {dropped}"
        if recovered:
            reason += f", recovered {recovered}"
        self._note("service.stop", reason)

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, at most so long; drop and count the rest. Whether all got out."""
        return self._worker.close(timeout_s)

    def _write(self, items: list[Item]) -> int:
        with self._writing:
            self._trail.reopen_if_moved()
            records = [self._gap(note, None) for note in self._trail.notes]
            config_hash = self._config_hash
            for item in items:
                fields = self._fields(item)
                if isinstance(item, LifeCycle) and item.config_hash:
                    fields["reason"] = f"the configuration was {config_hash} before"
                    config_hash = item.config_hash
                records.append(fields | {"config_hash": config_hash})
            if records:
                self._trail.append(records)
                self._trail.notes.clear()
            self._config_hash = config_hash  # Now, for a group that failed is written again.
        return 0

    def _fields(self, item: Item) -> Fields:
        if isinstance(item, Gap):
            return self._gap(f"records were dropped: {item.reason}", item.records)
        if isinstance(item, LifeCycle):
            return self._record(item.type, item.time_ns, item.reason)
        fields = self._record(f"episode.{item.step}", item.time_ns, item.reason)
        return fields | _episode_fields(item)

    def _gap(self, reason: str, count: int | None) -> Fields:
        fields = self._record("gap", self._clock.now_ns(), reason)
        return fields | {"count": _whole(count) if count is not None else None}

    def _record(self, kind: str, time_ns: int, reason: str) -> Fields:
        return EMPTY | {
            "type": cut(kind),
            "time": rfc3339(time_ns),
            "recorded": rfc3339(self._clock.now_ns()),
            "reason": cut(reason, REASON_BYTES_MAX),
            "config_hash": self._config_hash,
            "version": __version__,
        }


def _episode_fields(event: EpisodeEvent) -> Fields:
    texts = {
        name: None if (value := getattr(event, name)) is None else cut(value)
        for name in (
            *("action", "tenant", "agent", "session", "user", "tool"),
            *("trace_id", "span_id", "detector", "entity", "episode"),
        )
    }
    return texts | {
        "score": _number(event.score),
        "observed": _number(event.observed),
        "limit": _number(event.limit),
        "window_s": _number(event.window_s),
        "count": _whole(event.count),
        "start": rfc3339(event.start_ns),
    }


def _number(value: float) -> Value:
    """A number that JSON can hold: not-a-number becomes null, an infinity its name."""
    value = float(value)
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _whole(value: int) -> Value:
    """A whole number; beyond what a double holds exactly, its digits."""
    value = int(value)
    return value if abs(value) <= _WHOLE_MAX else str(value)
