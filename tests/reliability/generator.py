"""The load generator: a process that sends numbered spans at a rate and knows what became of each.

Open loop: requests fall due by the clock, whether or not the ones before are answered. A client of
OTLP repeats what may be repeated, with the wait it is asked for, and gives up when its patience is
over. For each request it is recorded whether it was accepted, refused, or cut off unanswered.

Orders come as JSON lines on standard input: `{"do": "stop"}` (no new ones; answers when the last is
settled), `{"do": "rate", "value": 500}`, `{"do": "totals"}`, `{"do": "save", "path": "..."}`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import uvloop

from tests.bench.peers import HTTP_PATH, TRACE_METHOD
from tests.reliability.numbers import NumberedBodies
from tests.reliability.wire import RESPONSE, Parser

if TYPE_CHECKING:
    from collections.abc import Callable

UNSENT, ACCEPTED, REFUSED, GIVEN_UP, UNKNOWN = range(5)
RETRYABLE_HTTP = frozenset({429, 502, 503, 504})
RETRYABLE_GRPC = frozenset({1, 4, 10, 11, 14, 15})
TICK_S = 0.002
BACKLOG_MAX = 5_000
"""Requests due and not sent; beyond this the clients would need more memory, so none is made."""
RECONNECT_S = 0.05
TIMEOUT_S = 30.0


@dataclass
class Plan:
    """What to send where."""

    transport: str
    port: int
    rate: float
    """Requests a second."""
    spans: int = 10
    connections: int = 16
    """Over gRPC: calls under way at once, on a quarter as many channels."""
    agents: int = 10_000
    all_new: bool = False
    patience_s: float = 120.0
    requests_max: int = 100_000
    seed: int = 1


class Job:
    """One request on its way."""

    __slots__ = ("body", "cut", "give_up_s", "number", "wait_s")

    def __init__(self, number: int, body: bytes, give_up_s: float) -> None:
        self.number, self.body, self.give_up_s = number, body, give_up_s
        self.wait_s = 0.25
        self.cut = False


@dataclass
class Record:
    """What became of each request, by its number."""

    size: int
    status: np.ndarray = field(init=False)
    cuts: np.ndarray = field(init=False)
    """How often each was cut off unanswered: as many copies may have been taken unknown to us."""
    sent_s: np.ndarray = field(init=False)
    """When it was first sent, monotonic."""
    answer_s: np.ndarray = field(init=False)
    """How long the answer to the accepted attempt took."""

    def __post_init__(self) -> None:
        self.status = np.zeros(self.size, np.uint8)
        self.cuts = np.zeros(self.size, np.uint8)
        self.sent_s = np.zeros(self.size)
        self.answer_s = np.zeros(self.size, np.float32)


class Generator:
    """Makes requests fall due and keeps the books; a `Lane` sends them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = Record(plan.requests_max)
        self.due: deque[Job] = deque()
        self.wake: Callable[[], None] = lambda: None
        self._bodies = NumberedBodies(plan.spans, agents=plan.agents, all_new=plan.all_new)
        self._rng = random.Random(plan.seed)
        self.made = self.unsettled = self.skipped = 0
        self._owed = 0.0
        self._last_s = time.monotonic()
        self.stopped = False
        self.settled = asyncio.Event()

    async def make_forever(self) -> None:
        """Requests fall due."""
        while not self.stopped:
            now_s = time.monotonic()
            self._owed += (now_s - self._last_s) * self.plan.rate
            self._last_s = now_s
            while self._owed >= 1:
                self._owed -= 1
                if len(self.due) >= BACKLOG_MAX or self.made >= self.plan.requests_max:
                    self.skipped += 1
                    continue
                body = self._bodies.make(self.made)
                self.due.append(Job(self.made, body, now_s + self.plan.patience_s))
                self.made += 1
                self.unsettled += 1
            self.wake()
            await asyncio.sleep(TICK_S)

    async def expire_forever(self) -> None:
        """Requests that wait for a connection are given up like those that wait for an answer."""
        while True:
            await asyncio.sleep(0.2)
            now_s = time.monotonic()
            expired = [job for job in self.due if job.give_up_s < now_s]
            if expired:
                self.due = deque(job for job in self.due if job.give_up_s >= now_s)
            for job in expired:
                sent = self.record.sent_s[job.number] > 0
                self._settle(job, (UNKNOWN if job.cut else GIVEN_UP) if sent else UNSENT)

    def starts(self, job: Job) -> float:
        """A job goes onto the wire."""
        now_s = time.monotonic()
        if self.record.sent_s[job.number] == 0:
            self.record.sent_s[job.number] = now_s
        return now_s

    def accepted(self, job: Job, started_s: float) -> None:
        self.record.answer_s[job.number] = time.monotonic() - started_s
        self._settle(job, ACCEPTED)

    def refused(self, job: Job) -> None:
        """For good."""
        self._settle(job, REFUSED)

    def cut(self, job: Job) -> None:
        """No answer came: it may have been taken or not."""
        self.record.cuts[job.number] += 1
        job.cut = True
        self.again(job, 0.0)

    def again(self, job: Job, hint_s: float) -> None:
        """A request that may be repeated, not before `hint_s`."""
        wait_s = max(job.wait_s * (0.5 + self._rng.random()), hint_s)
        job.wait_s = min(job.wait_s * 1.5, 5.0)
        if time.monotonic() + wait_s > job.give_up_s:
            self._settle(job, UNKNOWN if job.cut else GIVEN_UP)
        else:
            asyncio.get_running_loop().call_later(wait_s, self._due_again, job)

    def _due_again(self, job: Job) -> None:
        self.due.append(job)
        self.wake()

    def _settle(self, job: Job, status: int) -> None:
        self.record.status[job.number] = status
        self.unsettled -= 1
        if self.stopped and not self.unsettled:
            self.settled.set()

    async def stop(self) -> None:
        """No new requests; wait for what is under way."""
        self.stopped = True
        if self.unsettled:
            await self.settled.wait()

    def totals(self) -> dict[str, float]:
        counts = np.bincount(self.record.status[: self.made], minlength=5).tolist()
        names = ("unsent", "accepted", "refused", "given_up", "unknown")
        return {
            "made": self.made,
            "under_way": self.unsettled,
            "skipped": self.skipped,
            "spans": self.made * self.plan.spans,
            "cpu_s": time.process_time(),
            **dict(zip(names, counts, strict=True)),
        }


class HttpLane(asyncio.Protocol):
    """One kept-alive connection with one request under way."""

    transport: asyncio.Transport

    def __init__(self, generator: Generator, idle: deque[HttpLane]) -> None:
        self._generator, self._idle = generator, idle
        self._job: Job | None = None
        self._started_s = 0.0
        self._parser = Parser(RESPONSE)

    async def connect(self) -> None:
        """Connect, again and again until somebody listens."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", self._generator.plan.port)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own kind.
        self._parser = Parser(RESPONSE)
        self._idle.append(self)
        self._generator.wake()

    def send(self, job: Job) -> None:
        self._job, self._started_s = job, self._generator.starts(job)
        head = (
            f"POST {HTTP_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            f"Content-Length: {len(job.body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + job.body)

    def data_received(self, data: bytes) -> None:
        for head, _body in self._parser.feed(data):
            job, self._job = self._job, None
            assert job is not None, "an answer to nothing"
            self._settle(job, int(head[9:12]), head)
            if b"\r\nconnection: close" in head.lower():
                self.transport.close()
            else:
                self._idle.append(self)
        self._generator.wake()

    def _settle(self, job: Job, status: int, head: bytes) -> None:
        if status == 200:
            self._generator.accepted(job, self._started_s)
        elif status in RETRYABLE_HTTP:
            _, found, rest = head.lower().partition(b"\r\nretry-after:")
            self._generator.again(job, float(rest.split(b"\r\n")[0]) if found else 0.0)
        else:
            self._generator.refused(job)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        job, self._job = self._job, None
        if job is not None:
            self._generator.cut(job)
        self._again = asyncio.ensure_future(self.connect())


async def run_http(generator: Generator) -> None:
    """All lanes; then requests go out as lanes are idle."""
    idle: deque[HttpLane] = deque()
    lanes = [HttpLane(generator, idle) for _ in range(generator.plan.connections)]
    connecting = [asyncio.ensure_future(lane.connect()) for lane in lanes]

    def wake() -> None:
        while idle and generator.due:
            lane = idle.popleft()
            if not lane.transport.is_closing():
                lane.send(generator.due.popleft())

    generator.wake = wake
    await asyncio.gather(generator.make_forever(), generator.expire_forever(), *connecting)


async def run_grpc(generator: Generator) -> None:
    """Calls under way at once share a few channels."""
    plan = generator.plan
    # A channel of its own for each: otherwise gRPC puts all of them on one connection.
    local = ("grpc.use_local_subchannel_pool", 1)
    quick = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{plan.port}", options=(local, *quick))
        for _ in range(max(1, plan.connections // 4))
    ]
    ready = asyncio.Semaphore(0)
    waiting = 0

    def wake() -> None:
        nonlocal waiting
        while waiting < len(generator.due):
            waiting += 1
            ready.release()

    async def lane(export: Callable[..., Any]) -> None:
        nonlocal waiting
        while True:
            await ready.acquire()
            waiting -= 1
            if generator.due:
                await _call(generator, export, generator.due.popleft())

    generator.wake = wake
    exports = [channel.unary_unary(TRACE_METHOD) for channel in channels]
    lanes = [lane(exports[index % len(exports)]) for index in range(plan.connections)]
    await asyncio.gather(generator.make_forever(), generator.expire_forever(), *lanes)


async def _call(generator: Generator, export: Callable[..., Any], job: Job) -> None:
    started_s = generator.starts(job)
    try:
        await export(job.body, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        code = error.code().value[0]
        details = [value for key, value in error.trailing_metadata() or () if "details" in key]
        if details and code in RETRYABLE_GRPC:
            generator.again(job, 0.5)  # Its RetryInfo is at least as long for a second try.
        elif code in RETRYABLE_GRPC:
            generator.cut(job)  # No word of the service itself.
        else:
            generator.refused(job)
    else:
        generator.accepted(job, started_s)


async def serve(plan: Plan) -> None:
    """Send until told to stop; obey until standard input closes."""
    generator = Generator(plan)
    sending = asyncio.ensure_future(
        run_grpc(generator) if plan.transport == "grpc" else run_http(generator)
    )
    print(json.dumps({"ready": True}), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if sending.done() and sending.exception() is not None:
            sending.result()
        await _obey(json.loads(line), generator)
        print(json.dumps(generator.totals()), flush=True)
    sending.cancel()


async def _obey(order: dict[str, Any], generator: Generator) -> None:
    match order["do"]:
        case "stop":
            await generator.stop()
        case "rate":
            generator.plan.rate = float(order["value"])
        case "save":
            record, made = generator.record, generator.made
            np.savez(
                order["path"],
                status=record.status[:made],
                cuts=record.cuts[:made],
                sent_s=record.sent_s[:made],
                answer_s=record.answer_s[:made],
            )


if __name__ == "__main__":
    uvloop.run(serve(Plan(**json.loads(sys.argv[1]))))
