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
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

from otel_anomaly import doors as doors_module
from otel_anomaly import service as service_module
from otel_anomaly.config import Config
from otel_anomaly.exporters import registry
from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.service import Service
from tests.exporters_world import Books as ExporterBooks
from tests.rig import ROOMY, arrays_of
from tests.simulation.clients import Books, Client, Door, door_classes
from tests.simulation.hops import CALM, STORM, SUNSHINE, Hop
from tests.simulation.loop import play
from tests.simulation.numbered import Numbering, Request, spans_in
from tests.traffic import START_NS

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from otel_anomaly.config.exporters import QueueConfig

HOPS = {
    "otlp_http/first": {"endpoint": "http://127.0.0.1:1"},
    "otlp_grpc/second": {"endpoint": "127.0.0.1:2"},
    "otlp_http/optional": {"endpoint": "http://127.0.0.1:3", "required": False},
}
QUEUE_SIZES = (100_000, 200_000)
CONSUMERS = (1, 2, 4)
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


class Disks(Protocol):
    """What the queues lie on, and what an end of the process makes of it."""

    def config(self) -> dict[str, Any]:
        """What stands in every `sending_queue`."""

    def parts(self) -> dict[str, Any]:
        """What stands in place of files and threads, by its name in `exporters.registry`."""

    def die(self, how: str) -> None:
        """`kill` or `power`."""

    def promise(self, queue: QueueConfig, how: str) -> bool:
        """Whether such a queue keeps over such an end what was accepted."""


class NoDisks:
    """Queues in memory."""

    def config(self) -> dict[str, Any]:
        return {}

    def parts(self) -> dict[str, Any]:
        return {}

    def die(self, how: str) -> None:
        """Nothing lasts."""

    def promise(self, queue: QueueConfig, how: str) -> bool:
        return False


def config_for(rng: random.Random, storage: dict[str, Any]) -> Config:
    """Small queues, any mood of batching, retrying, holding back and answering."""
    queue: dict[str, Any] = {
        "queue_size": rng.choice(QUEUE_SIZES),
        "num_consumers": rng.choice(CONSUMERS),
        "batch": {
            "max_size": rng.choice((500, 20_000, 60_000)),
            "flush_timeout": rng.choice(("0s", "200ms", "3s")),
        },
    }
    queue |= storage
    retry = {"max_elapsed_time": rng.choice((0, "30s")), "enabled": rng.random() < 0.9}
    headers = {"x-version": rng.choice("ab")}
    shared = {"sending_queue": queue, "retry_on_failure": retry, "headers": headers}
    return Config.model_validate(
        {
            "exporters": {name: {**section, **shared} for name, section in HOPS.items()},
            "ack": rng.choice(("queued", "queued", "sent")),
            "identity": {"hold": rng.choice(("0s", "0s", "400ms", "5s")), "limits": ROOMY},
            "audit": {"enabled": False},  # The sinks have threads of their own, and own tests.
            "alerts": {"console": False},
            "storage": {"snapshots": {"enabled": False}},  # Each world begins with nothing.
            "service": {"drain_timeout": rng.choice(("0s", "5s", "1h"))},
        }
    )


class World:
    """One service, in one life or in several, and everybody around it."""

    def __init__(
        self, rng: random.Random, ends: Sequence[str] = ("stop",), disks: Disks | None = None
    ) -> None:
        """`ends`: how each life ends: `stop`, `kill`, `power` or `drain`."""
        self.rng = rng
        self.ends = ends
        self.now_s = 1000.0
        self.log: list[str] = []
        """What happened, in order. The same for the same seed."""
        self.disks: Disks = disks or NoDisks()
        self.storage = self.disks.config()
        self.config = config_for(rng, self.storage)
        self.hops = {name: Hop(rng, self.log, name) for name in self.config.exporters}
        self.doors: dict[str, Door] = {}
        self.books = Books()
        self.numbering = Numbering(rng)
        self.clients: list[asyncio.Task[None]] = []
        self.wrong: list[str] = []
        self.dropped: Counter[str] = Counter()
        """Spans reported as given up, by exporter, over all lives."""
        self.promise_nothing: set[str] = set()
        """Exporters whose queue may have lost what it held, by its configuration."""
        self.all_taken: list[Batch] = []
        self._reset()

    def _reset(self) -> None:
        """What is counted anew in every life."""
        self.taken: list[Batch] = []
        """Requests that the service took over, whether or not a client heard of it."""
        self.clients = []
        self.acknowledged = {name: hop.acknowledged for name, hop in self.hops.items()}

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        """Sockets and exporters are ours."""
        doors: dict[str, Any] = {
            **door_classes(self.doors),
            "Monitoring": lambda *_: mock.AsyncMock(),  # Nobody asks for a page here.
        }
        hops = {HOPS[name]["endpoint"]: hop for name, hop in self.hops.items()}

        def exporter(section: Any, *_: object) -> Hop:
            return hops[section.endpoint]

        with (
            mock.patch.multiple(doors_module, **doors),
            mock.patch.object(service_module, "warm"),
            mock.patch.multiple(registry, _exporter=exporter, **self.disks.parts()),
            mock.patch.object(doors_module.Doors, "check_free"),
        ):
            yield

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self.clock = WallClock(loop)
        seed = self.rng.getrandbits(31)
        self.service = Service(self.config, self.clock, io.StringIO(), seed=seed)
        self._inner = self.service.consume
        self._judged = self.service.processor.process
        self.service.processor.process = self._process  # type: ignore[method-assign]
        for door in self.doors.values():
            for intake in door._intakes.values():
                intake._consume = self._consume
        await self.service.start()
        telemetry = self.service.telemetry
        self.exporters = {name: ExporterBooks(telemetry, name) for name in self.config.exporters}

    async def _consume(self, batch: Batch) -> Reply:
        """The service's own, with a witness of what was told after it was taken."""
        before = len(self.taken)
        try:
            reply = await self._inner(batch)
        except asyncio.CancelledError:
            self.books.maybe.update(numbers_of(batch))
            raise
        if reply.outcome is not Outcome.ACCEPTED and batch in self.taken[before:]:
            self.books.maybe.update(numbers_of(batch))
        return reply

    def _process(self, batch: Batch) -> Reply:
        """The processor's own, with a witness of what it takes over."""
        before = self._learned() if self.rng.random() < 0.5 else None
        reply = self._judged(batch)
        if reply.outcome is Outcome.ACCEPTED:
            self.taken.append(batch)
        elif before is not None and before != self._learned():
            # Not an assertion: the door would take it for a bug of the service and go on.
            self.wrong.append("a refusal left a trace in the state")
        return reply

    def _learned(self) -> int:
        """A digest of all that the judge knows."""
        digest = 0
        for array in arrays_of(self.service.processor.state):
            digest = zlib.crc32(array.tobytes(), digest)
        return digest

    def accepted(self) -> int:
        """Spans that the service says it took over."""
        grpc, http = self.service.processor._accepted.values()
        return int(grpc._value.get() + http._value.get())

    def _recovered(self, books: ExporterBooks) -> int:
        """Spans that the exporter found on its disk; none where there is no such thing."""
        found = getattr(self.service.telemetry, "recovered_spans", None)
        return 0 if found is None else books.read(found)

    def check(self) -> None:
        """The books of every exporter, and its bounds."""
        assert self.wrong == []
        accepted = self.accepted()
        for name, books in self.exporters.items():
            gone = books.sent + books.dropped() + books.held
            assert gone == accepted + self._recovered(books), name
            # After a reload to a smaller queue there may be more in it than it takes now.
            assert 0 <= books.size <= max(books.capacity, *QUEUE_SIZES)
            sent = self.hops[name].acknowledged - self.acknowledged[name]
            assert books.rejected <= books.sent == sent
            assert self.hops[name].under_way <= max(CONSUMERS)

    def play(self) -> int:
        """All lives, one after the other. Returns the digest of what happened."""
        for end in self.ends:
            self._reset()
            play(self._live(end), self.rng, self.now_s)
            self.all_taken += self.taken
        self.check_end()
        return zlib.crc32("\n".join(self.log).encode())

    async def _live(self, end: str) -> None:
        """Calm, storm, calm, and an end."""
        with self._replaced():
            await self._go_through(end)
        for name, books in self.exporters.items():
            self.dropped[name] += books.dropped()
        self.now_s = asyncio.get_running_loop().time()

    async def _go_through(self, end: str) -> None:
        rng = self.rng
        await self._start()
        self.log.append(f"ends by {end}")
        for _ in range(0 if end == "drain" else rng.choice((20, 60))):
            self._step()
            if rng.random() < 0.05:
                await self._reload()
            self.check()
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.5, 3)))
            self.check()
        if end in {"kill", "power"}:
            self._die(end)
        else:
            await self._stop(drained=end == "drain")

    async def _reload(self) -> None:
        """Another configuration: other limits, now and then another connection to each hop."""
        config = config_for(self.rng, self.storage)
        self.log.append("reload")
        await self.service.reconfigure(config)
        self.config = config

    def _die(self, how: str) -> None:
        """The end of the process, or of the machine. Whoever waits for it hears nothing."""
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
                self._send()
            await asyncio.sleep(rng.choice((0, 0.1, 1, 30)))
            self.check()
        await stop
        await asyncio.gather(*self.clients)
        self.check()
        self._check_judge()

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
        """Nothing is held, and the clients' books agree with the hops'."""
        taken = Counter(number for batch in self.all_taken for number in numbers_of(batch))
        assert self.books.told_ok <= taken.keys()
        never = self.books.refused_for_good | self.books.given_up
        assert not (never - self.books.maybe) & taken.keys(), "what was refused was not taken"
        for name, books in self.exporters.items():
            hop = self.hops[name]
            assert hop.spans.keys() <= taken.keys(), "what was refused went nowhere"
            assert books.held == 0
            if isinstance(self.disks, NoDisks):
                self._check_room(name, books)
            if name not in self.promise_nothing:
                lost = self.books.told_ok - hop.spans.keys()
                assert len(lost) <= self.dropped[name], (name, sorted(lost))

    def _check_room(self, name: str, books: ExporterBooks) -> None:
        """All of it is back, and every request came to one end."""
        assert books.size == 0
        assert self.hops[name].opened == self.hops[name].closed
        for signal in Signal:
            taken = sum(1 for batch in self.taken if batch.signal is signal and batch.body)
            assert books.requests(signal) == taken

    def _check_judge(self) -> None:
        """Every call was counted once, whatever was refused, repeated or held back on its way."""
        counts = self.service.processor.counts()
        calls: Counter[object] = Counter(
            number for batch in self.taken for number in numbers_of(batch)
        )
        calls.update(batch.body for batch in self.taken if batch.signal is Signal.LOGS)
        assert counts["tool_calls", ()] == len(calls)
        assert counts["duplicates", ()] == calls.total() - len(calls)


def numbers_of(batch: Batch) -> list[int]:
    """Of the spans in a batch."""
    return spans_in(batch.body) if batch.signal is TRACES else []
