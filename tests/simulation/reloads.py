"""Somebody changes the files of the configuration and sends SIGHUP, at any moment.

Limits grow and shrink, next hops get other addresses, the optional exporter comes and goes, agents'
memory gets other sizes. Some files are nonsense, some ask for what needs a restart, and some
exporters cannot start.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from otel_anomaly.config import Config, ConfigError
from tests.simulation.settings import HOPS, changed

if TYPE_CHECKING:
    import random

    from otel_anomaly.service import Service

RESULTS = ("applied", "unchanged", "refused")


class Unstartable:
    """An exporter that finds out when it starts that it never can."""

    serial = False

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        raise OSError("no such certificate")


class Files:
    """What the service reads, as a `Readable`, and who changes it."""

    def __init__(self, rng: random.Random, lasting: dict[str, Any]) -> None:
        self._rng, self._lasting = rng, lasting
        self._next: Config | None = None
        """None: nonsense."""
        self.breaks_starts = False
        """Whether some exporters of it cannot start."""
        self.room = dict.fromkeys(HOPS, 0)
        self.consumers = dict.fromkeys(HOPS, 0)
        """The largest limits so far: what was held or begun under them may stay."""

    def put(self, config: Config) -> None:
        """What they say from now on."""
        self._next = config
        for name, section in config.exporters.items():
            queue = section.sending_queue
            self.room[name] = max(self.room[name], queue.queue_size)
            self.consumers[name] = max(self.consumers[name], queue.num_consumers)

    def load(self) -> Config:
        """What the service reads."""
        if self._next is None:
            raise ConfigError("nonsense")
        return self._next

    def fingerprint(self) -> bytes:
        """Nobody watches here."""
        return b""

    def shuffle(self, service: Service) -> None:
        """Other files, then SIGHUP, once or several times."""
        rng = self._rng
        self.breaks_starts = rng.random() < 0.2
        match rng.randrange(20):
            case 0:
                self._next = None
            case 1:
                elsewhere = self._lasting["storage"] | {"directory": "elsewhere"}
                self.put(changed(rng, self._lasting | {"storage": elsewhere}))
            case _:
                self.put(changed(rng, self._lasting))
        for _ in range(rng.choice((1, 1, 5))):
            service.reloads.request()

    def can_start(self) -> bool:
        """Whether the exporter that is made now will start."""
        return not (self.breaks_starts and self._rng.random() < 0.5)


def results(service: Service) -> Counter[str]:
    """How the reloads of a service went so far."""
    reloads = service.telemetry.config_reloads
    return Counter({one: int(reloads.labels(one)._value.get()) for one in RESULTS})
