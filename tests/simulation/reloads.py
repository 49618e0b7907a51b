"""A world whose configuration changes all the time: between requests, during the stop, at once.

Limits grow and shrink, next hops get other addresses, the optional exporter comes and goes, agents'
memory gets other sizes. Some configurations are bad, and some exporters cannot start.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

from otel_anomaly.config import Config, ConfigError
from otel_anomaly.exporters import registry
from otel_anomaly.handoff import Signal
from otel_anomaly.telemetry import DROP_REASONS
from tests.rig import ROOMY
from tests.simulation.world import HOPS, World, config_for

if TYPE_CHECKING:
    import random

    from tests.exporters_world import Books as ExporterBooks
    from tests.simulation.hops import Hop

OPTIONAL = "otlp_http/optional"


class Unstartable:
    """An exporter that finds out when it starts that it never can."""

    serial = False

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        raise OSError("no such certificate")


class ReloadingWorld(World):
    """As its parent, and somebody sends SIGHUP."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.known = dict(self.config.exporters)
        self.next: Config | None = None
        """What the files say; None: nonsense."""
        self.unstartable = False
        self.results: Counter[str] = Counter()
        self.room = dict.fromkeys(HOPS, 0)
        self.consumers = dict.fromkeys(HOPS, 0)
        self._note_limits(self.config)

    def _note_limits(self, config: Config) -> None:
        """What was held or begun under larger limits may stay."""
        for name, section in config.exporters.items():
            queue = section.sending_queue
            self.room[name] = max(self.room[name], queue.queue_size)
            self.consumers[name] = max(self.consumers[name], queue.num_consumers)

    def load(self) -> Config:
        """What the service reads."""
        if self.next is None:
            raise ConfigError("nonsense")
        return self.next

    def fingerprint(self) -> bytes:
        """Nobody watches here."""
        return b""

    def _exporter_of(self, section: Any, *_: object) -> Hop | Unstartable:
        if self.unstartable and self.rng.random() < 0.5:
            return Unstartable()
        port = section.endpoint.rpartition(":")[2][0]
        number = {"1": 0, "2": 1, "3": 2}[port]
        return self.hops[list(HOPS)[number]]

    async def _start(self) -> None:
        await super()._start()
        self.service.reloads._source = self
        patch = mock.patch.object(registry, "_exporter", self._exporter_of)
        patch.start()
        self._unpatch = patch.stop

    async def play(self) -> int:
        try:
            return await super().play()
        finally:
            self._unpatch()

    def _step(self) -> None:
        if self.rng.random() < 0.3:
            self._reload()
        super()._step()

    def _send(self) -> None:
        if self.service._stopping and self.rng.random() < 0.3:
            self._reload()
        super()._send()

    def _reload(self) -> None:
        """Other files, then SIGHUP, once or several times."""
        rng = self.rng
        self.unstartable = rng.random() < 0.2
        self.next = None if rng.random() < 0.1 else self._other_config()
        if self.next is not None:
            self._note_limits(self.next)
        for _ in range(rng.choice((1, 1, 5))):
            self.service.reloads.request()

    def _other_config(self) -> Config:
        rng = self.rng
        plain = config_for(rng).model_dump(mode="json", exclude_none=True)
        for name, section in plain["exporters"].items():
            if rng.random() < 0.3:
                section["endpoint"] = f"{HOPS[name]['endpoint']}{rng.choice((0, 1))}"
        if rng.random() < 0.3:
            del plain["exporters"][OPTIONAL]
        plain["identity"]["limits"] = ROOMY | {"agents": rng.choice((64, 100, 300))}
        return Config.model_validate(plain)

    def check(self) -> None:
        telemetry = self.service.telemetry
        for name, books in self.exporters.items():
            there = telemetry.ledger(name).accepted
            assert books.sent + books.dropped() + books.held == there, name
            if name != OPTIONAL:
                assert there == self.accepted(), name
            assert 0 <= books.size <= self.room[name]
            assert books.rejected <= books.sent == self.hops[name].acknowledged
            assert self.hops[name].under_way <= self.consumers[name]
        for result in ("applied", "unchanged", "refused"):
            self.results[result] = int(telemetry.config_reloads.labels(result)._value.get())

    def check_end(self) -> None:
        self.exporters = dict(self.exporters)
        super().check_end()
        refused = self.results["refused"]
        assert (refused > 0) or self.service.reloads.problem is None

    def _check_hop(self, name: str, books: ExporterBooks, let_in: Counter[int]) -> None:
        hop = self.hops[name]
        assert (books.held, books.size) == (0, 0)
        assert hop.spans.keys() <= let_in.keys(), "what was refused went nowhere"
        lost = let_in.keys() - hop.spans.keys()
        not_there = self.accepted() - self.service.telemetry.ledger(name).accepted
        assert len(lost) <= sum(books.dropped(reason) for reason in DROP_REASONS) + not_there
        assert hop.opened == hop.closed > 0, "every exporter that was opened is closed"
        if name != OPTIONAL:
            for signal in Signal:
                taken = [x for x in self.books.let_in if x.signal is signal and x.body]
                assert books.requests(signal) == len(taken)
