"""Who is told of episodes: the audit trail and the console, behind one door.

Both have a thread of their own; whoever starts them must close them, or the process stays alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, TextIO

from otel_anomaly.config import audit_path, config_hash
from otel_anomaly.sinks import AuditSink, ConsoleSink

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AsyncExitStack

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
        self._closing: set[asyncio.Task[object]] = set()

    def start(self, config: Config) -> None:
        """Open what `config` asks for. Raises OSError when the trail cannot be written."""
        if config.audit.enabled:
            with _naming_the_key():
                self._audit = self._trail_of(config)
                self._audit.service_started()
        if config.alerts.console:
            self._console = self._console_of(config)

    async def prepare(self, old: Config, new: Config, undo: AsyncExitStack) -> Callable[[], None]:
        """Open what `new` needs beside what is open; `undo` closes it. Returns what goes over.

        Raises OSError when the new trail cannot be written.
        """
        await self.settled()  # What is closing still holds the lock of its trail.
        same = audit_path(old) == audit_path(new) and new.audit.enabled
        audit = self._audit if same else None
        if new.audit.enabled and audit is None:
            audit = await self._opened(old, new)
            undo.push_async_callback(asyncio.to_thread, _leave, audit, config_hash(old))
        return lambda: self._commit(audit, new)

    async def _opened(self, old: Config, new: Config) -> AuditSink:
        """A new trail. Whoever waits no longer leaves a thread that still makes one, with a thread
        of its own: `settled` then waits for it and closes what it made."""
        opening = asyncio.create_task(asyncio.to_thread(self._new_trail, old, new))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._let_go(_abandoned(opening, config_hash(old)))
            raise

    def _new_trail(self, old: Config, new: Config) -> AuditSink:
        with _naming_the_key():
            audit = self._trail_of(new)
            try:
                audit.trail_opened(config_hash(old))
            except BaseException:
                audit.close(0)
                raise
            return audit

    def _trail_of(self, config: Config) -> AuditSink:
        return AuditSink(
            audit_path(config), config_hash(config), config.audit, self._telemetry, self._clock
        )

    def _commit(self, audit: AuditSink | None, new: Config) -> None:
        former, self._audit = self._audit, audit
        if former is not None and former is audit:
            former.config_reloaded(config_hash(new), new.audit)
        elif former is not None:
            self._beside(_leave, former, config_hash(new))
        if self._console is not None and not new.alerts.console:
            self._beside(self._console.close, FLUSH_S)
            self._console = None
        elif self._console is not None:
            self._console.retune(new.alerts)
        elif new.alerts.console:
            self._console = self._console_of(new)

    def _console_of(self, config: Config) -> ConsoleSink:
        return ConsoleSink(self._out, self._telemetry, config.alerts, self._clock)

    def _beside(self, close: Callable[..., object], *arguments: object) -> None:
        """Write what a sink still holds and close it, in a thread of its own."""
        self._let_go(asyncio.to_thread(close, *arguments))

    def _let_go(self, closes: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(closes, name="sink closes")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def settled(self) -> None:
        """Wait for the sinks that were let go."""
        if self._closing:
            await asyncio.wait(self._closing)

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
            name: problem
            for name, sink in (("audit", self._audit), ("console", self._console))
            # Looked at once: the sink's thread may take it back meanwhile.
            if sink is not None and (problem := sink.problem)
        }

    def close(self, ledger: Ledger) -> None:
        """Write what is queued, the ledger last. Waits: call it off the event loop."""
        if self._audit is not None:
            self._audit.service_stopped(**ledger._asdict())
        for sink in (self._audit, self._console):
            if sink is not None:
                sink.close(FLUSH_S)


@contextlib.contextmanager
def _naming_the_key() -> Iterator[None]:
    """Say of which key an error of the trail speaks."""
    try:
        yield
    except OSError as error:
        raise OSError(f"audit.path: {error}") from error


async def _abandoned(opening: asyncio.Task[AuditSink], config_hash_after: str) -> None:
    """End a trail that nobody wants any more once it is open, if it comes to that."""
    with contextlib.suppress(OSError):
        await asyncio.to_thread(_leave, await opening, config_hash_after)


def _leave(audit: AuditSink, config_hash_after: str) -> None:
    """End a trail properly."""
    audit.trail_closed(config_hash_after)
    audit.close(FLUSH_S)
