"""Reading the configuration again while the service runs: one at a time, the bad ones refused.

    SIGHUP, or a file that changed --> wanted --> load, check --> go over to it --> applied
                                         ^             |              |
                                         |          refused        refused: all is as before
                        asked again meanwhile: once more, however often it was asked

A refusal is told in the log, in the metrics and by health, and changes nothing. Its text names
keys and places; values that are secret are not in it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from otel_anomaly.config import SECOND_NS, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_anomaly.config import Config
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

LOG = logging.getLogger("otel_anomaly")


class Readable(Protocol):
    """Where a configuration comes from."""

    loaded: bytes
    """The fingerprint of what was loaded last, taken before it was read."""

    def load(self) -> Config:
        """Read it. Raises ConfigError."""

    def fingerprint(self) -> bytes:
        """The same as long as it says the same."""


class Fixed:
    """A configuration that came from nowhere and stays."""

    loaded = b""

    def __init__(self, config: Config) -> None:
        self._config = config

    def load(self) -> Config:
        """The same again."""
        return self._config

    def fingerprint(self) -> bytes:
        """Always the same."""
        return b""


def check_can_change(old: Config, new: Config) -> None:
    """Raise ValueError naming what cannot change while the service runs.

    Parts that can tell what they cannot change, doors and exporters, say so themselves.
    """
    if old.storage.directory != new.storage.directory:
        raise ValueError("storage.directory: cannot change at run time: needs a restart")


class Reloads:
    """Reads and applies configurations, one after the other."""

    def __init__(
        self,
        source: Readable,
        apply: Callable[[Config], Awaitable[bool]],
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """`apply` goes over to a configuration and says whether it differs from the one before.

        It raises OSError or ValueError when that cannot be, and has changed nothing then.
        """
        self._source, self._apply = source, apply
        self._telemetry, self._clock = telemetry, clock
        self._wanted = asyncio.Event()
        self.problem: str | None = None
        """Why the last one was refused; None when it was not."""

    def request(self) -> None:
        """Read again as soon as may be. Any number of requests at once is one."""
        self._wanted.set()

    async def serve(self) -> None:
        """Do what is requested, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.reload()

    async def watch(self, interval_ns: Callable[[], int]) -> None:
        """Request a reload when a file has changed, and does not change any more.

        `interval_ns` is asked before every look; 0: not to be watched just now.
        """
        seen = b""
        while True:
            pause_ns = interval_ns()
            await asyncio.sleep((pause_ns or SECOND_NS) / SECOND_NS)
            if not pause_ns or self._wanted.is_set():
                continue
            before, seen = seen, await asyncio.to_thread(self._source.fingerprint)
            # A file that is written in place is half a file for a moment, and half may be valid.
            if seen == before and seen != self._source.loaded:
                LOG.info("configuration: a file has changed")
                self.request()

    async def reload(self) -> None:
        """Read and apply once. Never raises on what is in a file."""
        try:
            config = await asyncio.to_thread(self._source.load)
            changed = await self._apply(config)
        except (ConfigError, OSError, ValueError) as error:
            self._refused(str(error))
        except Exception as error:
            LOG.exception("configuration: a reload failed by a mistake of ours")
            self._refused(f"a mistake of ours: {type(error).__name__}")
        else:
            self._applied(changed=changed)

    def _refused(self, why: str) -> None:
        self.problem = why
        self._telemetry.config_reloads.labels("refused").inc()
        self._telemetry.config_reload_ok.set(0)
        LOG.error("configuration: refused, the one before goes on: %s", why)

    def _applied(self, *, changed: bool) -> None:
        self.problem = None
        self._telemetry.config_reloads.labels("applied" if changed else "unchanged").inc()
        self._telemetry.config_reload_ok.set(1)
        self.note_loaded()
        LOG.info("configuration: read again, %s", "applied" if changed else "nothing has changed")

    def note_loaded(self) -> None:
        """The configuration is in force from now on."""
        self._telemetry.config_loaded.set(self._clock.now_ns() / SECOND_NS)
