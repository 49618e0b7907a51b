"""Room, merging, retry and drain, in virtual time against a scripted next hop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import MIB
from otel_anomaly.exporters import Fanout
from otel_anomaly.exporters.contract import (
    SENT,
    Kind,
    SendResult,
    rejected,
    retry,
    too_large,
)
from otel_anomaly.exporters.queue import CHARGE_BYTES_MIN, RETRY_AFTER_S_MAX
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests.exporters_world import Books, ScriptedExporter, hand_over, queue_of
from tests.virtual_time import VirtualLoop, play

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

KIB = 1 << 10


class Bench:
    """One queue under test, its next hop and its books."""

    def __init__(self, *script: object, **keys: object) -> None:
        self.telemetry = Telemetry(["next"])
        self.hop = ScriptedExporter(*script)  # type: ignore[arg-type]
        self.queue = queue_of(self.hop, self.telemetry, **keys)
        self.fanout = Fanout([self.queue])
        self.books = Books(self.telemetry)

    def play(self, scenario: Callable[[], Coroutine[object, object, None]]) -> None:
        """Start, play, and stop if the scenario has not."""

        async def whole() -> None:
            await self.fanout.start()
            await scenario()
            if not self.hop.closed:
                await self.fanout.stop(0)

        play(whole())


def spans(count: int, letter: bytes = b"s", size: int = 300) -> bytes:
    """A body of `count` pretended spans."""
    return letter * (count * size)


def test_reserve_is_bounded() -> None:
    """
    Scenario: reservations up to the last byte, one more, one that could never fit, and a release.
    Guarantees: each gets its outcome, a refusal changes nothing, and a release gives room back.
    """
    bench = Bench(queue={"queue_size": "1MiB"})

    async def scenario() -> None:
        reserve = bench.fanout.reserve
        assert reserve(MIB + 1) is Outcome.TOO_LARGE
        assert reserve(MIB) is Outcome.ACCEPTED
        assert reserve(0) is Outcome.QUEUE_FULL
        assert bench.books.size == MIB
        bench.fanout.release(MIB)
        assert bench.books.size == 0
        assert reserve(1) is Outcome.ACCEPTED
        assert bench.books.size == CHARGE_BYTES_MIN
        bench.fanout.release(1)
        assert bench.books.size == 0
        assert bench.books.capacity == MIB

    bench.play(scenario)


def test_empty_requests_take_room() -> None:
    """
    Scenario: requests without a byte, while the next hop hangs.
    Guarantees: they are bounded too, by what the smallest is charged.
    """
    bench = Bench(queue={"queue_size": "1KiB", "batch": {"max_size": "1KiB"}})
    bench.hop.judge = lambda _: retry("away")

    async def scenario() -> None:
        outcomes = [hand_over(bench.fanout, b"", Signal.LOGS) for _ in range(5)]
        assert outcomes == [Outcome.ACCEPTED] * 4 + [Outcome.QUEUE_FULL]

    bench.play(scenario)


def test_commit_gives_back_what_it_did_not_need() -> None:
    """
    Scenario: 10 KiB are reserved, 1 KiB is committed.
    Guarantees: 1 KiB is held; sending it gives all room back; committing more than reserved is an
    error of the caller.
    """
    bench = Bench()

    async def scenario() -> None:
        assert bench.fanout.reserve(10 * KIB) is Outcome.ACCEPTED
        bench.fanout.commit(Payload(b"x" * KIB, Signal.TRACES, 7), 10 * KIB)
        assert (bench.books.size, bench.books.held) == (KIB, 7)
        await asyncio.sleep(1)
        assert (bench.books.size, bench.books.held, bench.books.sent) == (0, 0, 7)
        with pytest.raises(AssertionError):
            bench.fanout.commit(Payload(b"too much", Signal.TRACES, 1), 4)

    bench.play(scenario)


def test_small_traces_merge_until_the_timeout() -> None:
    """
    Scenario: three small requests, the last just before the flush of the first; then one more.
    Guarantees: one request of three after 200 ms, in order; the latecomer gets its own 200 ms.
    """
    bench = Bench()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for letter in (b"a", b"b"):
            hand_over(bench.fanout, spans(1, letter), items=1)
        await asyncio.sleep(0.19)
        hand_over(bench.fanout, spans(2, b"c"), items=2)
        await asyncio.sleep(0.05)
        assert bench.hop.bodies == [spans(1, b"a") + spans(1, b"b") + spans(2, b"c")]
        assert bench.hop.attempts[0].items == 4
        assert bench.hop.attempts[0].at_s - start_s == pytest.approx(0.2)
        hand_over(bench.fanout, spans(1, b"d"))
        await asyncio.sleep(0.19)
        assert len(bench.hop.attempts) == 1
        await asyncio.sleep(0.02)
        assert bench.hop.bodies[1] == spans(1, b"d")
        assert bench.books.requests(Signal.TRACES) == 4

    bench.play(scenario)


def test_merging_stops_at_the_size() -> None:
    """
    Scenario: 1 KiB may merge; requests of 600, 600, 424, 424 and 1024 bytes.
    Guarantees: a merged request is never over 1 KiB, goes at once when it is exactly full, and
    one that is large by itself does not wait, nor is it copied.
    """
    bench = Bench(queue={"batch": {"max_size": "1KiB", "flush_timeout": "1h"}})
    large = b"L" * 1024

    async def scenario() -> None:
        for size in (600, 600, 424, 424):
            hand_over(bench.fanout, b"s" * size)
        hand_over(bench.fanout, large)
        await asyncio.sleep(0)
        assert [len(body) for body in bench.hop.bodies] == [600, 1024, 1024]
        assert bench.hop.bodies[2] is large
        assert bench.books.size == 424

    bench.play(scenario)


def test_the_timer_serves_latecomers() -> None:
    """
    Scenario: what the timer was set for goes early, for its size; one that came later is alone.
    Guarantees: it waits for its own timeout, not for the first one's and not for ever.
    """
    bench = Bench(queue={"batch": {"max_size": "1KiB", "flush_timeout": "200ms"}})

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        hand_over(bench.fanout, b"a" * 600)
        await asyncio.sleep(0.1)
        hand_over(bench.fanout, b"b" * 600)
        await asyncio.sleep(10)
        waits = [attempt.at_s - start_s for attempt in bench.hop.attempts]
        assert waits == pytest.approx([0.1, 0.3])

    bench.play(scenario)


def test_other_signals_never_merge() -> None:
    """
    Scenario: metrics and logs, small and alike, one after the other.
    Guarantees: each goes alone, at once, the very same bytes; none counts as a span.
    """
    bench = Bench()
    bodies = [bytes([number]) * 10 for number in range(4)]

    async def scenario() -> None:
        for body, signal in zip(bodies, [Signal.METRICS, Signal.LOGS] * 2, strict=True):
            hand_over(bench.fanout, body, signal)
        await asyncio.sleep(0)
        assert all(sent is body for sent, body in zip(bench.hop.bodies, bodies, strict=True))
        assert {attempt.items for attempt in bench.hop.attempts} == {1}
        assert (bench.books.sent, bench.books.held) == (0, 0)
        assert bench.books.requests(Signal.METRICS) == bench.books.requests(Signal.LOGS) == 2

    bench.play(scenario)


def test_all_queues_share_the_bytes() -> None:
    """
    Scenario: two exporters get a request.
    Guarantees: both send the same object; nothing was copied.
    """
    telemetry = Telemetry()
    hops = [ScriptedExporter(), ScriptedExporter()]
    fanout = Fanout([queue_of(hop, telemetry, name=str(n)) for n, hop in enumerate(hops)])
    body = b"b" * 2 * MIB

    async def scenario() -> None:
        await fanout.start()
        hand_over(fanout, body)
        await asyncio.sleep(0)
        assert hops[0].bodies[0] is hops[1].bodies[0] is body
        await fanout.stop(0)

    play(scenario())


def test_required_queues_refuse_together() -> None:
    """
    Scenario: of two required queues the second is full.
    Guarantees: nothing is set aside in the first either.
    """
    telemetry = Telemetry()
    sizes = {"wide": "4MiB", "tight": "1MiB"}
    queues = [
        queue_of(ScriptedExporter(retry("away")), telemetry, name=name, queue={"queue_size": size})
        for name, size in sizes.items()
    ]
    fanout = Fanout(queues)

    async def scenario() -> None:
        await fanout.start()
        assert fanout.reserve(2 * MIB) is Outcome.TOO_LARGE
        assert fanout.reserve(MIB) is Outcome.ACCEPTED
        assert fanout.reserve(MIB) is Outcome.QUEUE_FULL
        assert [queue.used for queue in queues] == [MIB, MIB]
        fanout.release(MIB)
        assert [queue.used for queue in queues] == [0, 0]
        await fanout.stop(0)

    play(scenario())


def test_an_optional_exporter_drops_alone() -> None:
    """
    Scenario: an optional exporter whose next hop is away, beside a required one that works.
    Guarantees: requests are accepted; the optional one drops what has no room and counts it, as
    `too_large` when it never could have had.
    """
    telemetry = Telemetry()
    away, works = ScriptedExporter(), ScriptedExporter()
    away.judge = lambda _: retry("away")
    slow = queue_of(away, telemetry, name="slow", required=False, queue={"queue_size": "1MiB"})
    fanout = Fanout([slow, queue_of(works, telemetry, name="works")])
    books = Books(telemetry, "slow")

    async def scenario() -> None:
        await fanout.start()
        for size, items in ((MIB, 3), (MIB, 4), (2 * MIB, 5)):
            assert hand_over(fanout, b"x" * size, items=items) is Outcome.ACCEPTED
        await asyncio.sleep(1)
        assert Books(telemetry, "works").sent == 12
        assert (books.held, books.dropped("queue_full"), books.dropped("too_large")) == (3, 4, 5)
        assert books.requests(Signal.TRACES) == 2
        assert await fanout.stop(0) == {"slow": 3, "works": 0}
        assert (books.held, books.size, books.dropped("shutdown")) == (0, 0, 3)

    play(scenario())


def test_transient_failures_are_retried() -> None:
    """
    Scenario: two failures, the second with a hint of 60 s, then success.
    Guarantees: the same bytes after 5 s and after 60 s more; held until then, then sent once.
    """
    bench = Bench(retry("busy"), retry("busy", 60.0))

    async def scenario() -> None:
        hand_over(bench.fanout, b"x" * MIB, items=9)
        await asyncio.sleep(64)
        assert (bench.books.held, bench.books.failed, bench.books.size) == (9, 18, MIB)
        await asyncio.sleep(2)
        start_s = bench.hop.attempts[0].at_s
        waits = [attempt.at_s - start_s for attempt in bench.hop.attempts]
        assert waits == pytest.approx([0, 5, 65])
        assert (bench.books.sent, bench.books.dropped(), bench.books.size) == (9, 0, 0)

    bench.play(scenario)


def test_retries_end() -> None:
    """
    Scenario: a next hop that is away for good, with one minute to retry.
    Guarantees: the data is dropped as `retries_exhausted` within the minute, and room is back.
    """
    bench = Bench(retry={"max_elapsed_time": "1m"})
    bench.hop.judge = lambda _: retry("away")

    async def scenario() -> None:
        hand_over(bench.fanout, spans(1), items=2)
        await asyncio.sleep(60)
        assert bench.hop.attempts[-1].at_s - bench.hop.attempts[0].at_s <= 60
        assert bench.books.dropped("retries_exhausted") == 2
        assert (bench.books.held, bench.books.size) == (0, 0)

    bench.play(scenario)


@pytest.mark.parametrize(
    ("result", "reason"), [(rejected("bad"), "rejected"), (too_large("big"), "too_large")]
)
def test_a_refused_request_is_dropped(result: SendResult, reason: str) -> None:
    """
    Scenario: a request that travelled alone is refused for good.
    Guarantees: one attempt, dropped under its reason, room back.
    """
    bench = Bench(result)

    async def scenario() -> None:
        hand_over(bench.fanout, b"x" * MIB, items=3)
        await asyncio.sleep(1)
        assert len(bench.hop.attempts) == 1
        assert (bench.books.dropped(reason), bench.books.failed) == (3, 3)
        assert (bench.books.held, bench.books.size) == (0, 0)

    bench.play(scenario)


def test_one_bad_request_does_not_doom_its_neighbours() -> None:
    """
    Scenario: three requests were merged, the next hop refuses whatever holds the middle one.
    Guarantees: the parts are sent one by one, once; only the bad one is lost.
    """
    bench = Bench()
    bench.hop.judge = lambda body: rejected("bad") if b"B" in body else SENT
    parts = [spans(1, b"a"), spans(1, b"B"), spans(1, b"c")]

    async def scenario() -> None:
        for part in parts:
            hand_over(bench.fanout, part)
        await asyncio.sleep(1)
        assert bench.hop.bodies == [b"".join(parts), *parts]
        assert (bench.books.sent, bench.books.dropped("rejected")) == (2, 1)
        assert bench.books.requests(Signal.TRACES) == 3
        assert bench.books.size == 0

    bench.play(scenario)


def test_a_refusal_of_everything_is_not_repeated_for_each_part() -> None:
    """
    Scenario: three merged requests are refused for a reason that is not in them.
    Guarantees: one attempt; all three are dropped.
    """
    bench = Bench(rejected("no credential", about_data=False))

    async def scenario() -> None:
        for _ in range(3):
            hand_over(bench.fanout, spans(1))
        await asyncio.sleep(1)
        assert len(bench.hop.attempts) == 1
        assert bench.books.dropped("rejected") == 3

    bench.play(scenario)


def test_a_mistake_of_an_exporter_is_survived() -> None:
    """
    Scenario: an exporter raises, over and over.
    Guarantees: counted as rejected; the queue goes on sending what comes after.
    """
    bench = Bench(*(ZeroDivisionError() for _ in range(9)))

    async def scenario() -> None:
        for _ in range(10):
            hand_over(bench.fanout, b"x" * MIB)
            await asyncio.sleep(1)
        assert (bench.books.dropped("rejected"), bench.books.sent) == (9, 1)

    bench.play(scenario)


@pytest.mark.parametrize(("answer", "counted"), [(2, 2), (1 << 62, 5), (-7, 0)])
def test_partial_success_is_counted_never_retried(answer: int, counted: int) -> None:
    """
    Scenario: the next hop says it left out 2 of 5 spans, more than there were, fewer than none.
    Guarantees: one attempt, all counted as sent, the rest counted within what was sent.
    """
    bench = Bench(SendResult(Kind.SENT, "no room", rejected=answer))

    async def scenario() -> None:
        hand_over(bench.fanout, b"x" * MIB, items=5)
        await asyncio.sleep(100)
        assert (bench.books.sent, len(bench.hop.attempts)) == (5, 1)
        assert bench.books.rejected == counted

    bench.play(scenario)


@pytest.mark.parametrize(("serial", "at_once"), [(False, 4), (True, 1)])
def test_so_many_are_under_way(serial: bool, at_once: int) -> None:  # noqa: FBT001 - A case.
    """
    Scenario: nine large requests, each takes a second; a serial exporter and one that is not.
    Guarantees: `num_consumers` at once, or one.
    """
    bench = Bench()
    bench.hop.serial = serial

    async def scenario() -> None:
        bench.hop.script = [asyncio.sleep(1) for _ in range(9)]  # type: ignore[misc]
        bench.queue = queue_of(bench.hop, bench.telemetry)
        bench.fanout = Fanout([bench.queue])
        await bench.fanout.start()
        for _ in range(9):
            hand_over(bench.fanout, b"x" * MIB)
        assert await bench.fanout.stop(60) == {"next": 0}
        assert bench.hop.under_way_max == at_once
        assert bench.books.sent == 9

    play(scenario())


def test_nothing_turns_while_there_is_nothing_to_do() -> None:
    """
    Scenario: an hour without a request, and an hour in which everything waits for a retry.
    Guarantees: the loop turns a handful of times.
    """
    bench = Bench(retry={"max_interval": "2h", "initial_interval": "1h", "max_elapsed_time": 0})
    bench.hop.judge = lambda _: retry("away")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        before = loop.turns
        await asyncio.sleep(3600)
        hand_over(bench.fanout, spans(1))
        await asyncio.sleep(3600)
        assert loop.turns - before < 10

    bench.play(scenario)


def test_the_hint_follows_the_drain() -> None:
    """
    Scenario: a queue that is empty, full and stuck, full and draining fast.
    Guarantees: a second, the longest wait, something between; always within the bounds.
    """
    bench = Bench(queue={"queue_size": "64MiB", "num_consumers": 1})

    async def scenario() -> None:
        assert bench.fanout.retry_after_s() == 1.0
        bench.hop.script = [asyncio.sleep(1) for _ in range(64)]  # type: ignore[misc]
        for _ in range(64):
            assert bench.fanout.reserve(MIB) is Outcome.ACCEPTED
            bench.fanout.commit(Payload(b"x" * MIB, Signal.TRACES, 1), MIB)
        assert bench.fanout.retry_after_s() == RETRY_AFTER_S_MAX
        for _ in range(20):
            await asyncio.sleep(1)
            while bench.fanout.reserve(MIB) is Outcome.ACCEPTED:
                pass
        assert 8 < bench.fanout.retry_after_s() < 12
        bench.fanout.release(20 * MIB)
        await bench.fanout.stop(1000)

    bench.play(scenario)


def test_no_required_exporter_refuses_nothing() -> None:
    """
    Scenario: every exporter is optional.
    Guarantees: reserve accepts whatever it is asked for, and there is nothing to wait for.
    """
    fanout = Fanout([queue_of(ScriptedExporter(), Telemetry(), required=False)])
    assert fanout.reserve(1 << 40) is Outcome.ACCEPTED
    assert fanout.retry_after_s() == 1.0


def test_stop_delivers_what_is_held() -> None:
    """
    Scenario: small requests that would wait an hour for company, and a reservation not yet filled,
    when the service stops.
    Guarantees: new ones are refused, all that was promised is delivered at once, the exporter is
    closed, nothing is held.
    """
    bench = Bench(queue={"batch": {"flush_timeout": "1h"}})

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        hand_over(bench.fanout, spans(1))
        assert bench.fanout.reserve(1000) is Outcome.ACCEPTED
        stopping = asyncio.create_task(bench.fanout.stop(20))
        await asyncio.sleep(1)
        assert bench.fanout.reserve(1) is Outcome.STOPPING
        bench.fanout.commit(Payload(spans(2), Signal.TRACES, 2), 1000)
        assert await stopping == {"next": 0}
        assert loop.time() - start_s < 2
        assert (bench.books.sent, bench.books.held, bench.books.size) == (3, 0, 0)
        assert bench.hop.closed

    bench.play(scenario)


def test_stop_keeps_to_its_time() -> None:
    """
    Scenario: one request hangs, one waits for its retry, one waits in the queue; two seconds are
    given.
    Guarantees: after two seconds the three are dropped as `shutdown` and told, and all room is
    back; what was promised and comes too late is dropped as well.
    """
    bench = Bench(retry("busy"), queue={"num_consumers": 2})

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        bench.hop.script.append(asyncio.sleep(3600))
        for items in (1, 2, 4):
            hand_over(bench.fanout, b"x" * MIB, items=items)
        assert bench.fanout.reserve(MIB) is Outcome.ACCEPTED
        start_s = loop.time()
        assert await bench.fanout.stop(2) == {"next": 7}
        assert loop.time() - start_s == pytest.approx(2, abs=0.01)
        assert (bench.books.dropped("shutdown"), bench.books.held) == (7, 0)
        assert bench.books.size == MIB
        bench.fanout.commit(Payload(b"late", Signal.TRACES, 8), MIB)
        assert (bench.books.dropped("shutdown"), bench.books.held) == (15, 0)
        assert bench.books.size == 0

    bench.play(scenario)


def test_start_is_all_or_nothing() -> None:
    """
    Scenario: the second of two exporters can never work.
    Guarantees: the error names it; the first is closed again.
    """

    class Broken(ScriptedExporter):
        async def start(self) -> None:
            raise PermissionError(13, "Permission denied")

    telemetry, good = Telemetry(), ScriptedExporter()
    fanout = Fanout(
        [queue_of(good, telemetry, name="good"), queue_of(Broken(), telemetry, name="file/bad")]
    )
    with pytest.raises(OSError, match=r"exporters\.file/bad: .*Permission denied"):
        play(fanout.start())
    assert good.closed


def test_the_log_tells_changes_of_state(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a next hop fails five times, works again, then refuses forty requests in a minute.
    Guarantees: a line for each change; losses are told at most every 30 s.
    """
    caplog.set_level(logging.INFO)
    bench = Bench(*(retry("away") for _ in range(5)))

    async def scenario() -> None:
        hand_over(bench.fanout, spans(1))
        await asyncio.sleep(600)
        bench.hop.judge = lambda _: rejected("bad")
        for _ in range(40):
            hand_over(bench.fanout, spans(1))
            await asyncio.sleep(1.5)

    bench.play(scenario)
    assert [record.getMessage() for record in caplog.records] == [
        "exporter next: fails, will retry: away",
        "exporter next: works again",
        "exporter next: rejected: bad",
        "exporter next: rejected: bad",
    ]
