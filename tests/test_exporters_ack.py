"""`ack: sent`: what a client is told, and when, in virtual time against scripted next hops."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly.config import MIB, SECOND_NS
from otel_anomaly.exporters import Fanout
from otel_anomaly.exporters import fanout as fanout_module
from otel_anomaly.exporters.contract import SENT, Kind, SendResult, rejected, retry, too_large
from otel_anomaly.exporters.queue import INT64_MAX, MERGED_TOLD
from otel_anomaly.exporters.splitting import Splitting
from otel_anomaly.handoff import Outcome, Payload, Reply, Signal
from otel_anomaly.receivers.status import partial_success, partial_success_as_json
from otel_anomaly.telemetry import Telemetry
from tests.disk_world import SimDisk
from tests.exporters_world import Books, ScriptedExporter, queue_of
from tests.test_exporters_disk import Rig, record
from tests.test_exporters_splitting import spans_of
from tests.virtual_time import play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

PARTLY = SendResult(Kind.SENT, "3 are too old", rejected=3)
AWAY = retry("away")


class Bench:
    """Some exporters behind one fan-out that tells when all have delivered."""

    def __init__(self, *results: SendResult, ack_timeout_s: int = 8, **keys: object) -> None:
        self.telemetry = Telemetry()
        self.hops = [ScriptedExporter() for _ in results]
        for hop, result in zip(self.hops, results, strict=True):
            hop.judge = lambda _, result=result: result  # type: ignore[misc]
        self.queues = [
            queue_of(hop, self.telemetry, name=str(number), **keys)
            for number, hop in enumerate(self.hops)
        ]
        self.fanout = Fanout(self.queues, "sent", ack_timeout_s * SECOND_NS)

    def send(self, body: bytes, items: int = 5) -> Awaitable[Reply]:
        """Hand a request over; the open answer."""
        assert self.fanout.reserve(len(body)) is Outcome.ACCEPTED
        answer = self.fanout.commit(Payload(body, Signal.TRACES, items), len(body))
        assert answer is not None
        return answer

    def play(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            await self.fanout.start()
            await scenario()
            if not self.hops[0].closed:
                await self.fanout.stop(0)

        play(whole())


@pytest.mark.parametrize(
    ("results", "outcome", "left_out"),
    [
        ((SENT, SENT), Outcome.ACCEPTED, 0),
        ((SENT, PARTLY), Outcome.ACCEPTED, 3),
        ((PARTLY, rejected("bad")), Outcome.REJECTED, 0),
        ((too_large("big"), SENT), Outcome.REJECTED, 0),
        ((AWAY, SENT), Outcome.UNAVAILABLE, 0),
        ((rejected("bad"), AWAY), Outcome.UNAVAILABLE, 0),
        ((AWAY, PARTLY), Outcome.UNAVAILABLE, 0),
    ],
)
def test_the_worst_wins(results: tuple[SendResult, ...], outcome: Outcome, left_out: int) -> None:
    """
    Scenario: two exporters come to two ends: delivered, delivered in part, refused for good, and
    given up after retries.
    Guarantees: accepted < accepted in part < rejected < unavailable: the client hears the worst,
    once, with a time to come back where it is to send again.
    """
    bench = Bench(*results, retry={"max_elapsed_time": "1s", "initial_interval": "1s"})

    async def scenario() -> None:
        reply = await bench.send(b"x" * MIB)
        assert (reply.outcome, reply.rejected) == (outcome, left_out)
        assert (reply.retry_after_s > 0) == outcome.retryable
        assert bool(reply.message) == (outcome is not Outcome.ACCEPTED or left_out > 0)

    bench.play(scenario)


def test_nobody_hears_ok_before_it_is_delivered() -> None:
    """
    Scenario: one exporter takes a second, the other two; a third is optional and away.
    Guarantees: the answer comes after two seconds, not before, and does not wait for the third.
    """
    bench = Bench(SENT, SENT, AWAY)
    bench.hops[0].script = [asyncio.sleep(1)]
    bench.hops[1].script = [asyncio.sleep(2)]
    bench.queues[2].required = False
    bench.fanout = Fanout(bench.queues, "sent")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        assert (await bench.send(b"x" * MIB)).outcome is Outcome.ACCEPTED
        assert loop.time() - start_s == pytest.approx(2, abs=0.01)

    bench.play(scenario)


def test_a_wait_is_bounded_and_the_data_stays() -> None:
    """
    Scenario: the next hop comes back after a minute; the client may wait for 8 s.
    Guarantees: after 8 s it is told to send again; the data is delivered all the same, and the
    client's repetition too.
    """
    bench = Bench(AWAY)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        reply = await bench.send(b"x" * MIB)
        assert reply.outcome is Outcome.UNAVAILABLE
        assert "still queued" in reply.message
        assert loop.time() - start_s == pytest.approx(8, abs=0.01)
        await asyncio.sleep(52)
        bench.hops[0].judge = lambda _: SENT
        await bench.fanout.stop(60)
        assert Books(bench.telemetry, "0").sent == 5

    bench.play(scenario)


def test_a_client_that_goes_leaves_no_trace() -> None:
    """
    Scenario: a client gives up while it waits, before the request is delivered.
    Guarantees: the request is delivered and counted; nobody is counted as waiting.
    """
    bench = Bench(SENT)
    bench.hops[0].script = [asyncio.sleep(3)]

    async def scenario() -> None:
        answer = bench.send(b"x" * MIB)
        client = asyncio.ensure_future(answer)
        await asyncio.sleep(1)
        client.cancel()
        await asyncio.sleep(5)
        assert Books(bench.telemetry, "0").sent == 5
        assert not bench.fanout._open

    bench.play(scenario)


def test_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the next hop hangs, and more clients come than may wait.
    Guarantees: the others are refused like by a full queue, before anything is taken; when those
    who wait were answered there is room again.
    """
    monkeypatch.setattr(fanout_module, "WAITING_MAX", 3)
    bench = Bench(AWAY)

    async def scenario() -> None:
        answers = [bench.send(b"x") for _ in range(3)]
        assert bench.fanout.reserve(1) is Outcome.QUEUE_FULL
        assert {reply.outcome for reply in await asyncio.gather(*answers)} == {Outcome.UNAVAILABLE}
        bench.send(b"x")

    bench.play(scenario)


@pytest.mark.parametrize("hurried", [False, True])
def test_stop_answers_all_that_wait(hurried: bool) -> None:  # noqa: FBT001 - A case.
    """
    Scenario: five clients wait, the next hop is away, when the service stops with a second to
    drain; or it says beforehand that it is about to.
    Guarantees: each hears that it must send again, at the latest with the end of the drain; with
    the warning, within three seconds.
    """
    bench = Bench(AWAY, ack_timeout_s=600)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        answers = [bench.send(b"x" * 1000) for _ in range(5)]
        await asyncio.sleep(1)
        start_s = loop.time()
        if hurried:
            bench.fanout.hurry()
        else:
            await bench.fanout.stop(1)
        replies = await asyncio.gather(*answers)
        assert {reply.outcome for reply in replies} == {Outcome.UNAVAILABLE}
        assert loop.time() - start_s == pytest.approx(3 if hurried else 1, abs=0.01)
        assert not bench.fanout._open

    bench.play(scenario)


def test_merged_requests_share_a_fate() -> None:
    """
    Scenario: three small requests are merged; the next hop refuses whatever holds the middle one.
    Guarantees: each client hears what became of its own.
    """
    bench = Bench(SENT)
    bench.hops[0].judge = lambda body: rejected("bad") if b"B" in body else SENT

    async def scenario() -> None:
        replies = await asyncio.gather(*[bench.send(letter * 300) for letter in (b"a", b"B", b"c")])
        assert [reply.outcome for reply in replies] == [
            Outcome.ACCEPTED,
            Outcome.REJECTED,
            Outcome.ACCEPTED,
        ]

    bench.play(scenario)


def test_nobody_hears_of_more_than_he_sent() -> None:
    """
    Scenario: requests of two, no and three spans are merged; the next hop says that it did not
    keep one span, then nine, then less than none.
    Guarantees: each client hears of at most its own spans, and of none without a word; the words
    of the next hop, which may be about another's spans, are told to none of them.
    """
    for told, expected in ((1, [1, 0, 1]), (9, [2, 0, 3]), (-7, [0, 0, 0])):
        bench = Bench(SendResult(Kind.SENT, "span 4711 is too old", rejected=told))

        async def scenario(bench: Bench = bench, expected: list[int] = expected) -> None:
            replies = await asyncio.gather(*[
                bench.send(letter * 300, items)
                for letter, items in ((b"a", 2), (b"b", 0), (b"c", 3))
            ])  # fmt: skip
            assert [reply.rejected for reply in replies] == expected
            words = [MERGED_TOLD * bool(count) for count in expected]
            assert [reply.message for reply in replies] == words
            assert len(bench.hops[0].attempts) == 1

        bench.play(scenario)


@pytest.mark.parametrize("signal", list(Signal))
def test_a_number_that_no_answer_can_say(signal: Signal) -> None:
    """
    Scenario: a request goes in three pieces, of which the next hop says that it did not keep the
    largest number there is, less than nothing, and one.
    Guarantees: both transports can tell the client; spans and records are those of the pieces.
    """
    hop = ScriptedExporter()
    told = iter([(1 << 63) - 1, -(1 << 63), 1])
    hop.judge = lambda _: SendResult(Kind.SENT, "too old", rejected=next(told))  # type: ignore[misc]
    queue = queue_of(Splitting(hop, 450), Telemetry(), name="0")
    fanout = Fanout([queue], "sent")
    body = spans_of(5)

    async def scenario() -> Reply:
        await fanout.start()
        assert fanout.reserve(len(body)) is Outcome.ACCEPTED
        items = 5 if signal is Signal.TRACES else 1
        answer = fanout.commit(Payload(body, signal, items), len(body))
        assert answer is not None
        reply = await answer
        await fanout.stop(0)
        return reply

    reply = play(scenario())
    assert reply.rejected == (INT64_MAX if signal is Signal.METRICS else 3)
    response = ExportTraceServiceResponse.FromString(partial_success(reply))
    assert response.partial_success.rejected_spans == reply.rejected
    assert str(reply.rejected).encode() in partial_success_as_json(reply, signal)


def test_no_required_exporter_nothing_to_wait_for() -> None:
    """
    Scenario: every exporter is optional.
    Guarantees: the answer is not open.
    """
    bench = Bench(AWAY, required=False)

    async def scenario() -> None:
        assert bench.fanout.reserve(1) is Outcome.ACCEPTED
        assert bench.fanout.commit(Payload(b"x", Signal.LOGS, 1), 1) is None

    bench.play(scenario)


def test_from_disk_as_well() -> None:
    """
    Scenario: more is waiting for delivery than fits in memory, so some of it lies on disk alone.
    Guarantees: every client hears OK, after its own request was delivered, and nobody before.
    """

    async def scenario() -> None:
        rig = Rig(SimDisk(random.Random(0)), queue_size="1MiB", batch={"max_size": "64KiB"})
        rig.fanout = Fanout([rig.queue], "sent", 600 * SECOND_NS)
        await rig.fanout.start()
        rig.hop.judge = lambda _: AWAY
        told: list[int] = []

        async def client(number: int) -> None:
            assert await rig.send(record(number, 1000)).outcome() is Outcome.ACCEPTED
            assert any(record(number) in body for body in arrived())
            told.append(number)

        def arrived() -> list[bytes]:
            return [one.body for one in rig.hop.attempts if one.at_s >= works_s]

        clients = []
        for number in range(100):
            clients.append(asyncio.create_task(client(number)))
            await asyncio.sleep(0.01)
        assert rig.queue._store.unread > 0
        works_s = asyncio.get_running_loop().time()
        assert told == []
        rig.hop.judge = lambda _: SENT
        await asyncio.gather(*clients)
        assert sorted(told) == list(range(100))
        assert rig.queue._spilled == {}
        await rig.fanout.stop(1)

    play(scenario())
