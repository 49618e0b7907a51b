"""Who is told of episodes: the audit trail and the console, behind one door.

Both have a thread of their own; whoever starts them must close them, or the process stays alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from otel_anomaly.config import audit_path, config_hash
from otel_anomaly.sinks import AuditSink, ConsoleSink

if TYPE_CHECKING:
    from otel_anomaly.config import Config
    from otel_anomaly.handoff import Clock, EpisodeEvent
    from otel_anomaly.telemetry import Ledger, Telemetry

FLUSH_S: Final = 5.0


def sink_names(config: Config) -> list[str]:
    """The sinks that a configuration asks for."""
    wanted = {"audit": config.audit.enabled, "console": config.alerts.console}
    return [name for name, on in wanted.items() if on]


class Telling:
    """The sinks of the service."""

    def __init__(self, clock: Clock, telemetry: Telemetry, out: TextIO) -> None:
        """`out` is where the console writes."""
        self._clock, self._telemetry, self._out = clock, telemetry, out
        self._audit: AuditSink | None = None
        self._console: ConsoleSink | None = None

    def start(self, config: Config) -> None:
        """Open what `config` asks for. Raises OSError when the trail cannot be written."""
        if config.audit.enabled:
            self._audit = AuditSink(
                audit_path(config), config_hash(config), config.audit, self._telemetry, self._clock
            )
            self._audit.service_started()
        if config.alerts.console:
            self._console = ConsoleSink(self._out, self._telemetry, config.alerts, self._clock)

    def tell(self, events: list[EpisodeEvent]) -> None:
        """Tell all sinks. Never blocks, never raises."""
        if not events:
            return
        for sink in (self._audit, self._console):
            if sink is not None:
                sink.offer(events)

    def problems(self) -> dict[str, str]:
        """Which sinks cannot write just now, and why."""
        return {
            name: sink.problem
            for name, sink in (("audit", self._audit), ("console", self._console))
            if sink is not None and sink.problem
        }

    def close(self, ledger: Ledger) -> None:
        """Write what is queued, the ledger last. Waits: call it off the event loop."""
        if self._audit is not None:
            self._audit.service_stopped(**ledger._asdict())
        for sink in (self._audit, self._console):
            if sink is not None:
                sink.close(FLUSH_S)
