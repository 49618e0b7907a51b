"""Doors without sockets, and clients that behave as the OTLP specification asks of them.

A door maps outcomes by the real tables. The network between may be slow, lose the answer, or hang
up on a request that is being handled: over gRPC the handler is cancelled then, over HTTP it is not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers.gate import Gate
from otel_anomaly.receivers.intake import Intake
from otel_anomaly.receivers.status import GRPC_STATUS, HTTP_STATUS, retry_after_s

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from otel_anomaly.handoff import Admit, Clock, Consume
    from otel_anomaly.telemetry import Telemetry
    from tests.simulation.numbered import Request

RETRYABLE: frozenset[object] = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
UNREAD: frozenset[object] = frozenset(
    {None, grpc.StatusCode.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE}
)
"""Said without a look at the request: the service is stopping, or short of memory."""
OK: frozenset[object] = frozenset({grpc.StatusCode.OK, HTTPStatus.OK})


class Answer(NamedTuple):
    """What a client reads off the wire."""

    code: object
    retry_after_s: float = 0.0


class Cut(Exception):
    """The connection ended before an answer came: the client cannot know what happened."""


class Door:
    """Stands where a receiver stands."""

    port = 0

    def __init__(
        self, transport: str, consume: Consume, telemetry: Telemetry, clock: Clock, admit: Admit
    ) -> None:
        self.transport = transport
        self._tables = GRPC_STATUS if transport == "grpc" else HTTP_STATUS
        self._gate = Gate(admit, clock)
        self.intakes = {
            signal: Intake(
                transport=transport,
                signal=signal,
                consume=consume,
                telemetry=telemetry,
                clock=clock,
            )
            for signal in Signal
        }
        self.answers: Counter[tuple[Signal, Outcome]] = Counter()
        """What was said, whether or not anybody heard it."""
        self._handlers: dict[asyncio.Task[Reply], None] = {}
        """In order of arrival: a set of tasks has another order in every process."""
        self.is_open = False

    shown = None

    def read(self, section: object) -> None:
        """There are no files here, and no limits."""

    async def reconfigure(self, section: object, shown: object) -> None:
        """So nothing changes."""

    async def start(self) -> None:
        self.is_open = True

    async def set_serving(self, *, serving: bool) -> None:
        """Health checks have no clients here."""

    async def stop(self, grace_s: float) -> None:
        """As the doors do: no new requests, some time for those that are being handled."""
        self.is_open = False
        if self._handlers:
            await asyncio.wait(list(self._handlers), timeout=grace_s)
        for handler in list(self._handlers):
            handler.cancel()

    async def handle(self, request: Request, hang_up: float | None) -> Answer:
        """One request. `hang_up`: seconds after which the connection breaks.

        Raises
        ------
        Cut
            The door is shut, or the connection broke.
        """
        if not self.is_open:
            raise Cut
        handler = asyncio.ensure_future(self._take(request))
        self._handlers[handler] = None
        handler.add_done_callback(self._handlers.pop)
        done, _ = await asyncio.wait({handler}, timeout=hang_up)
        if not done or handler.cancelled():
            if self.transport == "grpc":
                handler.cancel()
            raise Cut
        reply = handler.result()
        wait_s = retry_after_s(reply) if reply.outcome.retryable else 0.0
        return Answer(self._tables[reply.outcome], wait_s)

    async def _take(self, request: Request) -> Reply:
        """As the doors do: what must not come in is refused on its headers alone."""
        intake = self.intakes[request.signal]
        reply = self._gate.refusal([], "a client", len(request.body))
        if reply is None:
            reply = await intake.take(request.body)
        else:
            intake.count(reply.outcome)
        self.answers[request.signal, reply.outcome] += 1
        return reply


class Books:
    """What the clients know."""

    def __init__(self) -> None:
        self.told_ok: set[int] = set()
        self.maybe: set[int] = set()
        """Of a request that was cut at least once."""
        self.refused_for_good: set[int] = set()
        self.given_up: set[int] = set()


class Client:
    """One client: sends its requests one after the other, and each again while it may succeed."""

    def __init__(
        self,
        rng: random.Random,
        books: Books,
        doors: Callable[[], list[Door]],
        log: list[str],
    ) -> None:
        self._rng, self._books, self._doors, self._log = rng, books, doors, log
        self.patience_s = rng.choice((5.0, 60.0))

    async def send(self, request: Request) -> None:
        """Until it is taken, refused for good, or the client's patience is over."""
        rng, books, loop = self._rng, self._books, asyncio.get_running_loop()
        give_up_s, wait_s = loop.time() + self.patience_s, 0.5
        while True:
            try:
                answer = await self._attempt(request)
            except asyncio.CancelledError:  # The machine at the other end is gone.
                books.maybe.update(request.numbers)
                raise
            except Cut:
                books.maybe.update(request.numbers)
                answer = Answer(None)
            self._log.append(f"client {len(request.body)} {answer.code}")
            if answer.code in OK:
                assert not request.broken
                books.told_ok.update(request.numbers)
                return
            if answer.code is not None and answer.code not in RETRYABLE:
                books.refused_for_good.update(request.numbers)
                return
            assert not request.broken or answer.code in UNREAD
            pause_s = max(answer.retry_after_s, wait_s * (0.5 + rng.random()))
            if loop.time() + pause_s > give_up_s:
                books.given_up.update(request.numbers)
                return
            await asyncio.sleep(pause_s)
            wait_s *= 1.5

    async def _attempt(self, request: Request) -> Answer:
        rng = self._rng
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.2)))
        hang_up = rng.choice((None, None, None, 0.0, 0.01, 1.0))
        answer = await rng.choice(self._doors()).handle(request, hang_up)
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.2)))
        if rng.random() < 0.05:
            raise Cut  # The answer got lost on its way.
        return answer


def door_classes(doors: dict[str, Door]) -> dict[str, Any]:
    """What to put in place of the receivers' classes: makes doors and keeps them by transport."""

    def maker(transport: str) -> Callable[..., Door]:
        def make(
            _config: object,
            consume: Consume,
            telemetry: Telemetry,
            clock: Clock,
            *more: Any,
        ) -> Door:
            doors[transport] = Door(transport, consume, telemetry, clock, admit=more[-1])
            return doors[transport]

        return make

    return {"GrpcReceiver": maker("grpc"), "HttpReceiver": maker("http")}
