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
import io
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

from otel_anomaly import doors as doors_module
from otel_anomaly import service as service_module
from otel_anomaly.config import Config
from otel_anomaly.exporters import registry
from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.service import Service
from otel_anomaly.telemetry import DROP_REASONS, PREFIX
from tests.exporters_world import Books as ExporterBooks
from tests.rig import ROOMY, arrays_of
from tests.simulation.clients import Books, Client, Door, door_classes
from tests.simulation.hops import CALM, STORM, Hop
from tests.simulation.numbered import Numbering, Request, spans_in
from tests.traffic import START_NS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

HOPS = {
    "otlp_http/first": {"endpoint": "http://127.0.0.1:1"},
    "otlp_grpc/second": {"endpoint": "127.0.0.1:2"},
    "otlp_http/optional": {"endpoint": "http://127.0.0.1:3", "required": False},
}
PADDINGS = (0, 0, 0, 900, 9_000, 40_000)
"""Bytes added to a span, so that queues of 100 KB fill up."""
TRACES = Signal.TRACES


class WallClock:
    """Follows the loop, but for the jumps that it is told to make."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return START_NS + round(self._loop.time() * 1e9) + self.ahead_ns

    def monotonic(self) -> float:
        return self._loop.time()


def config_for(rng: random.Random) -> Config:
    """Small queues, any mood of batching, retrying and holding back."""
    queue = {
        "queue_size": rng.choice((100_000, 200_000)),
        "num_consumers": rng.choice((1, 2, 4)),
        "batch": {
            "max_size": rng.choice((500, 20_000, 60_000)),
            "flush_timeout": rng.choice(("0s", "200ms", "3s")),
        },
    }
    retry = {"max_elapsed_time": rng.choice((0, "30s")), "enabled": rng.random() < 0.9}
    shared = {"sending_queue": queue, "retry_on_failure": retry}
    return Config.model_validate(
        {
            "exporters": {name: {**section, **shared} for name, section in HOPS.items()},
            "identity": {"hold": rng.choice(("0s", "0s", "400ms", "5s")), "limits": ROOMY},
            "audit": {"enabled": False},  # The sinks have threads of their own, and own tests.
            "alerts": {"console": False},
            "service": {"drain_timeout": rng.choice(("0s", "5s", "1h"))},
        }
    )


class World:
    """One service from start to stop, and everybody around it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.log: list[str] = []
        """What happened, in order. The same for the same seed."""
        self.config = config_for(rng)
        self.hops = {name: Hop(rng, self.log, name) for name in self.config.exporters}
        self.doors: dict[str, Door] = {}
        self.books = Books()
        self.numbering = Numbering(rng)
        self.unsure: list[Batch] = []
        """Requests whose handler was cancelled before the service had said what became of them."""
        self.clients: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """Sockets and exporters are ours while the service is built."""
        doors: dict[str, Any] = {
            **door_classes(self.doors),
            "Monitoring": lambda *_: mock.AsyncMock(),  # Nobody asks for a page here.
        }
        hops = {section.model_dump_json(): self.hops[name] for name, section in self._sections()}

        def exporter(section: Any, *_: object) -> Hop:
            return hops[section.model_dump_json()]

        with (
            mock.patch.multiple(doors_module, **doors),
            mock.patch.object(service_module, "warm"),
            mock.patch.object(registry, "_exporter", exporter),
            mock.patch.object(doors_module.Doors, "check_free"),
        ):
            yield

    def _sections(self) -> Iterator[tuple[str, Any]]:
        yield from self.config.exporters.items()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self.clock = WallClock(loop)
        with self._replaced():
            seed = self.rng.getrandbits(31)
            self.service = Service(self.config, self.clock, io.StringIO(), seed=seed)
            self._inner = self.service.consume
            for door in self.doors.values():
                for intake in door._intakes.values():
                    intake._consume = self._consume
            await self.service.start()
        telemetry = self.service.telemetry
        self.exporters = {name: ExporterBooks(telemetry, name) for name in self.config.exporters}

    async def _consume(self, batch: Batch) -> Reply:
        """The service's own, with a witness."""
        before = self._learned() if self.rng.random() < 0.1 else None
        try:
            reply = await self._inner(batch)
        except asyncio.CancelledError:
            self.unsure.append(batch)
            raise
        if reply.outcome is Outcome.ACCEPTED:
            self.books.let_in.append(batch)
        else:
            self.books.refusals += 1
            assert before is None or before == self._learned(), "a refusal leaves no trace"
        self.check()
        return reply

    def _learned(self) -> int:
        """A digest of all that the judge knows."""
        digest = 0
        for array in arrays_of(self.service.processor.state):
            digest = zlib.crc32(array.tobytes(), digest)
        return digest

    def metric(self, name: str) -> int:
        """The sum of all samples of a metric of the service."""
        return sum(
            int(sample.value)
            for family in self.service.telemetry.registry.collect()
            for sample in family.samples
            if sample.name == f"{PREFIX}_{name}"
        )

    def accepted(self) -> int:
        """Spans that the service says it took over."""
        grpc, http = self.service.processor._accepted.values()
        return int(grpc._value.get() + http._value.get())

    def check(self) -> None:
        """The books of every exporter, and its bounds."""
        accepted = self.accepted()
        for name, section in self.config.exporters.items():
            books = self.exporters[name]
            assert books.sent + books.dropped() + books.held == accepted, name
            assert 0 <= books.size <= section.sending_queue.queue_size
            assert books.rejected <= books.sent == self.hops[name].acknowledged
            assert self.hops[name].under_way <= section.sending_queue.num_consumers

    async def play(self) -> int:
        """Calm, storm, calm, stop. Returns the digest of what happened."""
        rng = self.rng
        await self._start()
        for _ in range(rng.choice((20, 60))):
            self._step()
            self.check()
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.5, 3)))
            self.check()
        stop = asyncio.create_task(self.service.stop())
        while not stop.done():
            self._send()
            await asyncio.sleep(rng.choice((0, 0.1, 1, 30)))
            self.check()
        await stop
        await asyncio.gather(*self.clients)
        self.check_end()
        return zlib.crc32("\n".join(self.log).encode())

    def _step(self) -> None:
        """A client sends, the weather changes, the wall clock jumps."""
        rng = self.rng
        match rng.randrange(20):
            case 0:
                rng.choice(list(self.hops.values())).weights = rng.choice((CALM, STORM))
            case 1:
                self.clock.ahead_ns += rng.choice((-5, 1, 3600)) * 1_000_000_000
            case _:
                self._send()

    def _send(self) -> None:
        client = Client(self.rng, self.books, lambda: list(self.doors.values()), self.log)
        self.clients.append(asyncio.create_task(client.send(self._request())))

    def _request(self) -> Request:
        now_ns = self.clock.now_ns()
        if self.rng.random() < 0.1:
            return self.numbering.other(now_ns)
        return self.numbering.traces(now_ns, padding=self.rng.choice(PADDINGS))

    def check_end(self) -> None:
        """Nothing is held, all room is back, and the clients' books agree with the hops'."""
        self.check()
        let_in = self._let_in()
        told = self.books.told_ok
        assert told <= let_in.keys()
        never = self.books.refused_for_good | self.books.given_up - self.books.maybe
        assert not never & let_in.keys(), "what was refused was not taken"
        assert sum(let_in.values()) == self.accepted()
        for name, books in self.exporters.items():
            self._check_hop(name, books, let_in)
        self._check_judge(let_in)

    def _let_in(self) -> Counter[int]:
        bodies = [batch.body for batch in self.books.let_in if batch.signal is TRACES]
        return Counter(number for body in bodies for number in spans_in(body))

    def _check_hop(self, name: str, books: ExporterBooks, let_in: Counter[int]) -> None:
        hop = self.hops[name]
        assert (books.held, books.size) == (0, 0)
        assert hop.spans.keys() <= let_in.keys(), "what was refused went nowhere"
        lost = let_in.keys() - hop.spans.keys()
        assert len(lost) <= sum(books.dropped(reason) for reason in DROP_REASONS)
        assert (hop.opened, hop.closed) == (1, 1)
        for signal in Signal:
            taken = sum(1 for batch in self.books.let_in if batch.signal is signal and batch.body)
            assert books.requests(signal) == taken

    def _check_judge(self, let_in: Counter[int]) -> None:
        """Every call was counted once, whatever was refused, repeated or held back on its way."""
        counts = self.service.processor.counts()
        told = Counter(batch.body for batch in self.books.let_in if batch.signal is Signal.LOGS)
        assert counts["tool_calls", ()] == len(let_in) + len(told)
        again = sum(let_in.values()) - len(let_in) + sum(told.values()) - len(told)
        assert counts["duplicates", ()] == again
