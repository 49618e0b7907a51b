"""The whole service in one thread under a seed: clients, doors, judge, queues, next hops, a stop.

    clients --doors--> Service.consume -> Processor -> Fanout -> hops
       |                   real            real         real       |
       `---- what they were told ---- compared with ---- what they took

Real are the service, the processor with its kernels, the queues, the life cycle and the status
tables. Played are time, the network, the clients, the next hops, the wall clock, and chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

from otel_anomaly import doors as doors_module
from otel_anomaly import service as service_module
from otel_anomaly import snapshots as snapshots_module
from otel_anomaly.exporters import registry
from otel_anomaly.handoff import Signal
from otel_anomaly.memory import MemoryLimiter
from otel_anomaly.service import Service
from tests.exporters_world import Books as ExporterBooks
from tests.simulation.clients import Books, Client, Door, door_classes
from tests.simulation.disks import Disks, NoDisks
from tests.simulation.hops import CALM, STORM, SUNSHINE, Hop
from tests.simulation.loop import play
from tests.simulation.memory import Readings
from tests.simulation.numbered import Numbering, Request
from tests.simulation.past import Past
from tests.simulation.reloads import Files, Unstartable, results
from tests.simulation.settings import HOPS, OPTIONAL, config_for, hop_of
from tests.simulation.witness import Witness, numbers_of
from tests.traffic import START_NS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence


PADDINGS = (0, 0, 0, 900, 9_000, 40_000)
"""Bytes added to a span, so that queues of 100 KB fill up."""


class WallClock:
    """Follows the loop, but for the jumps that it is told to make."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ahead_ns: int) -> None:
        self._loop = loop
        self.ahead_ns = ahead_ns

    def now_ns(self) -> int:
        return START_NS + round(self._loop.time() * 1e9) + self.ahead_ns

    def monotonic(self) -> float:
        return self._loop.time()


class World:
    """One service, in one life or in several, and everybody around it."""

    def __init__(
        self,
        rng: random.Random,
        ends: Sequence[str] = ("stop",),
        disks: Disks | None = None,
        *,
        sighups: float = 0.05,
    ) -> None:
        """`ends`: how each life ends: `stop`, `kill`, `power` or `drain`. `sighups`: the share of
        steps at which the configuration is read again."""
        self.rng = rng
        self.ends = ends
        self.sighups = sighups
        self.now_s = 1000.0
        self.ahead_ns = 0
        self.log: list[str] = []
        """What happened, in order. The same for the same seed."""
        self.seen: Counter[str] = Counter()
        """How often what happened."""
        self.disks: Disks = disks or NoDisks()
        self.past = Past(rng)
        self.lasting: dict[str, Any] = {
            "storage": {"directory": self.past.directory, "snapshots": {}},
            "sending_queue": self.disks.config(),
        }
        self.hops = {name: Hop(rng, self.log, name) for name in HOPS}
        self.doors: dict[str, Door] = {}
        self.books = Books()
        self.numbering = Numbering(rng)
        self.sent: list[Request] = []
        self.dropped: Counter[str] = Counter()
        """Spans reported as given up, by exporter, over all lives."""
        self.missed: Counter[str] = Counter()
        """Spans accepted while the exporter was not in the configuration."""
        self.promise_nothing: set[str] = set()
        """Exporters whose queue may have lost what it held, by its configuration."""
        self.taken: Counter[int] = Counter()
        """Spans that the service took over, over all lives."""

    def play(self) -> int:
        """All lives, one after the other. Returns the digest of what happened."""
        try:
            for end in self.ends:
                play(self._live(end), self.rng, self.now_s)
        finally:
            self.past.close()
        self.check_end()
        return zlib.crc32("\n".join(self.log).encode())

    async def _live(self, end: str) -> None:
        """Calm, storm, calm, and an end."""
        self._begin()
        with self._replaced():
            await self._start()
            await self._go_through(end)
            await _cancel_the_rest()  # Here, where its files are ours.
        for name, books in self.exporters.items():
            self.dropped[name] += books.dropped()
            ledger = self.service.telemetry.ledger(name)
            self.missed[name] += self.witness.accepted() - ledger.accepted
        self.taken.update(number for batch in self.witness.taken for number in numbers_of(batch))
        self.seen += self.witness.seen + results(self.service)
        self.now_s, self.ahead_ns = asyncio.get_running_loop().time(), self.clock.ahead_ns
        self.past.damage()

    def _begin(self) -> None:
        """What is counted anew in every life, and what the files say."""
        rng = self.rng
        self.lasting["storage"]["snapshots"]["enabled"] = rng.random() < 0.85
        self.files = Files(rng, self.lasting)
        self.config = config_for(rng, self.lasting)
        self.files.put(self.config)
        loop = asyncio.get_running_loop()
        self.clock = WallClock(loop, self.ahead_ns)
        self.readings = Readings(rng, loop.time)
        self.clients: list[asyncio.Task[None]] = []
        for hop in self.hops.values():
            hop.opened = hop.closed = 0
        self.acknowledged = {name: hop.acknowledged for name, hop in self.hops.items()}
        self.past.begin()

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """Sockets, exporters, threads and memory are ours."""
        doors: dict[str, Any] = {
            **door_classes(self.doors),
            "Monitoring": lambda *_: mock.AsyncMock(),  # Nobody asks for a page here.
        }
        limiter = functools.partial(
            MemoryLimiter, files=self.readings, relieve=self.readings.relieve
        )
        with (
            mock.patch.multiple(doors_module, **doors),
            mock.patch.multiple(service_module, warm=mock.Mock(), MemoryLimiter=limiter),
            mock.patch.multiple(registry, _exporter=self._exporter, **self.disks.parts()),
            mock.patch.object(snapshots_module, "write", self.past.write),
            mock.patch.object(doors_module.Doors, "check_free"),
        ):
            yield

    def _exporter(self, section: Any, *_: object) -> Hop | Unstartable:
        return self.hops[hop_of(section.endpoint)] if self.files.can_start() else Unstartable()

    async def _start(self) -> None:
        seed = self.rng.getrandbits(31)
        self.service = Service(self.config, self.clock, io.StringIO(), seed=seed, source=self.files)
        self.witness = Witness(self.rng, self.books, self.past, self.readings, self.service)
        self.witness.check_start()
        self.witness.attach(self.doors.values())
        await self.service.start()
        telemetry = self.service.telemetry
        self.exporters = {name: ExporterBooks(telemetry, name) for name in HOPS}

    async def _go_through(self, end: str) -> None:
        rng = self.rng
        self.log.append(f"ends by {end}")
        for _ in range(0 if end == "drain" else rng.choice((20, 60))):
            self._step()
            self.check()
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.5, 3)))
            self.check()
        self.witness.check_judge()
        if end in {"kill", "power"}:
            self._die(end)
        else:
            await self._stop(drained=end == "drain")

    def _die(self, how: str) -> None:
        """The end of the process, or of the machine. Whoever waits for it hears nothing."""
        self.past.die()
        self.disks.die(how)
        for name, section in self.config.exporters.items():
            if not self.disks.promise(section.sending_queue, how):
                self.promise_nothing.add(name)

    async def _stop(self, *, drained: bool) -> None:
        """SIGTERM under load, or after everything was delivered."""
        rng = self.rng
        while drained and any(books.held for books in self.exporters.values()):
            for hop in self.hops.values():
                hop.weights = SUNSHINE
            await asyncio.sleep(60)
        stop = asyncio.create_task(self.service.stop())
        while not stop.done():
            if not drained:
                self._step()
            await asyncio.sleep(rng.choice((0, 0.1, 1, 30)))
            self.check()
        await stop
        await asyncio.gather(*self.clients)
        self.check()
        self.witness.check_judge()
        self.witness.check_stopped()
        self._check_stopped()

    def _step(self) -> None:
        """A client sends; the weather changes, the wall clock jumps, memory gets short, somebody
        asks for a snapshot or for a reload."""
        rng = self.rng
        if rng.random() < self.sighups:
            self.log.append("SIGHUP")
            self.files.shuffle(self.service)
        match rng.randrange(20):
            case 0:
                rng.choice(list(self.hops.values())).weights = rng.choice((CALM, STORM))
            case 1:
                self.clock.ahead_ns += rng.choice((-5, 1, 3600)) * 1_000_000_000
            case 2:
                self.readings.change()
            case 3:
                self.service.snapshots.ask()
            case _:
                self._send()

    def _send(self) -> None:
        client = Client(self.rng, self.books, lambda: list(self.doors.values()), self.log)
        self.clients.append(asyncio.create_task(client.send(self._request())))

    def _request(self) -> Request:
        """A new one, or one that was taken long ago, of a client that does not know it."""
        rng, now_ns = self.rng, self.clock.now_ns()
        if self.sent and rng.random() < 0.1:
            again = rng.choice(self.sent)
            if self.books.told_ok.issuperset(again.numbers):
                self.books.maybe.update(again.numbers)
                return again
        if rng.random() < 0.1:
            return self.numbering.other(now_ns)
        self.sent.append(self.numbering.traces(now_ns, padding=rng.choice(PADDINGS)))
        return self.sent[-1]

    def check(self) -> None:
        """The books of every exporter and of the doors, and their bounds."""
        self.witness.check()
        accepted, telemetry = self.witness.accepted(), self.service.telemetry
        for name, books in self.exporters.items():
            ledger = telemetry.ledger(name)
            gone = books.sent + books.dropped() + books.held
            assert gone == ledger.accepted + ledger.recovered, name
            assert name == OPTIONAL or ledger.accepted == accepted, name
            assert 0 <= books.size <= max(books.capacity, self.files.room[name])
            sent = self.hops[name].acknowledged - self.acknowledged[name]
            assert books.rejected <= books.sent == sent
            assert self.hops[name].under_way <= self.files.consumers[name]
        for transport, door in self.doors.items():
            for (signal, outcome), count in door.answers.items():
                told = telemetry.requests.labels(transport, signal.value, outcome.value)
                assert told._value.get() == count

    def _check_stopped(self) -> None:
        """Every exporter that was opened is closed; queues in memory have given all room back."""
        assert self.service.reloads.problem is None or results(self.service)["refused"] > 0
        for name, books in self.exporters.items():
            assert self.hops[name].opened == self.hops[name].closed > 0
            if not isinstance(self.disks, NoDisks):
                continue
            assert (books.held, books.size) == (0, 0)
            for signal in Signal if name != OPTIONAL else ():
                requests = [batch for batch in self.witness.taken if batch.signal is signal]
                assert books.requests(signal) == sum(1 for batch in requests if batch.body)

    def check_end(self) -> None:
        """Nothing is held, and the clients' books agree with the hops'."""
        assert self.books.told_ok <= self.taken.keys()
        never = self.books.refused_for_good | self.books.given_up
        assert not (never - self.books.maybe) & self.taken.keys(), "what was refused was not taken"
        for name, books in self.exporters.items():
            hop = self.hops[name]
            assert hop.spans.keys() <= self.taken.keys(), "what was refused went nowhere"
            assert books.held == 0
            if name not in self.promise_nothing:
                lost = self.books.told_ok - hop.spans.keys()
                assert len(lost) <= self.dropped[name] + self.missed[name], (name, sorted(lost))


async def _cancel_the_rest() -> None:
    """What a process that died leaves is not told of it, but comes to its end."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
