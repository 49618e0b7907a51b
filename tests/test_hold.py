"""Holding back: a call that does not say who made it waits a little for the span that does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly import service
from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.processor import Processor
from otel_anomaly.replay import Replay
from otel_anomaly.telemetry import Ledger, Telemetry
from tests.book_rigs import LOW_LIMITS
from tests.door_rigs import NOW_NS
from tests.log_traffic import log_request, tool_record
from tests.rig import ROOMY, Calls, Verdict, arrays_of, read_verdict
from tests.service_rigs import running
from tests.traffic import request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.handoff import Reply

HOLD_NS = 8 * SECOND_NS
NOW_S = NOW_NS // SECOND_NS
TRACE = b"T" * 16


class Queue:
    """Room for so many bytes; what is committed stays in it until it is drained."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity, self.taken = capacity, 0
        self.payloads: list[Payload] = []

    def reserve(self, bytes_needed: int) -> Outcome:
        if self.taken + bytes_needed > self.capacity:
            return Outcome.QUEUE_FULL
        self.taken += bytes_needed
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        assert len(payload.body) <= bytes_reserved
        self.taken -= bytes_reserved
        self.payloads.append(payload)

    def retry_after_s(self) -> float:
        return 2.5


class Held:
    """A processor that holds back, and its queue."""

    def __init__(self, hold: str = "8s", capacity: int = 1 << 30, **sections: Any) -> None:
        self.queue = Queue(capacity)
        config = Config.model_validate(
            {
                "identity": {"hold": hold, "limits": ROOMY},
                "detectors": LOW_LIMITS,
                **sections,
            }
        )
        self.processor = Processor(config, self.queue, Telemetry(), seed=1)

    def offer(
        self, what: bytes | list[Span], at_s: float = 0.0, signal: Signal = Signal.TRACES
    ) -> Reply:
        """Hand a request in, so many seconds from now."""
        body = what if isinstance(what, bytes) else request(what, scope=None)
        return self.processor.process(Batch(body, signal, "grpc", time_ns(at_s)))

    def release(self, at_s: float) -> int:
        """What the service does at that time. Returns how many requests have gone on."""
        self.processor.release(time_ns(at_s))
        return len(self.queue.payloads)

    def verdicts(self, number: int = -1) -> list[Verdict | None]:
        """The verdicts on the spans of a request that has gone on."""
        message = ExportTraceServiceRequest.FromString(self.queue.payloads[number].body)
        return [
            read_verdict(span.attributes)
            for resource_spans in message.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def state(self) -> bytes:
        return b"".join(array.tobytes() for array in arrays_of(self.processor.state))

    def count(self, name: str, *labels: str) -> int:
        return self.processor.counts()[name, labels]


def time_ns(at_s: float) -> int:
    return NOW_NS + round(at_s * SECOND_NS)


def silent(count: int = 1, calls: Calls | None = None, **more: Any) -> list[Span]:
    """Calls that tell neither agent nor session, of one trace, below the agent's span."""
    who = {"agent": None, "session": None, "trace_id": TRACE, **more}
    made = (calls or Calls()).many(count, NOW_S, **who)
    for span in made:
        span.parent_span_id = b"above-it"
    return made


def above() -> Span:
    """The agent's span that tells all."""
    span = Calls().at(NOW_S, agent="planner", session="s", trace_id=TRACE, span_id=b"above-it")
    span.attributes[0].value.string_value = "invoke_agent"
    return span


def test_a_call_waits_its_time() -> None:
    """
    Scenario: a call that names nobody arrives, and nothing else.
    Guarantees: the client is told that it is accepted; nothing goes on before `hold` is over, then
    it goes on with a verdict, and says that nobody was known.
    """
    rig = Held()
    assert rig.offer(silent()).outcome is Outcome.ACCEPTED
    assert [rig.release(at_s) for at_s in (0, 4, 7.999)] == [0, 0, 0]
    assert rig.count("tool_calls") == 0
    assert rig.release(8) == 1
    (verdict,) = rig.verdicts()
    assert verdict is not None
    assert verdict.identity == "agent=none (weak), session=trace (weak), rate=anon (weak)"
    assert rig.release(100) == 1


def test_the_same_as_if_the_ancestor_had_come_first() -> None:
    """
    Scenario: five silent calls, then the span above them within `hold`; and the same with the span
    above first, without holding back.
    Guarantees: the span above goes on at once; the calls have the same verdicts to the byte, under
    the right agent and session, none is moved.
    """
    calls = silent(5)
    waiting, ideal = Held(), Held(hold="0s")
    waiting.offer(calls)
    assert waiting.offer([above()], at_s=3).outcome is Outcome.ACCEPTED
    assert len(waiting.queue.payloads) == 1
    assert waiting.release(8) == 2
    ideal.offer([above()])
    ideal.offer(calls, at_s=3)
    assert waiting.queue.payloads == ideal.queue.payloads
    verdicts = [verdict for verdict in waiting.verdicts() if verdict is not None]
    assert [verdict.action for verdict in verdicts] == ["allow", "allow", "warn", "warn", "warn"]
    assert {verdict.identity for verdict in verdicts} == {
        "agent=the agent above, session=another span of the trace, rate=session"
    }
    assert waiting.count("moved") == 0


def test_spans_between_count_while_a_call_waits() -> None:
    """
    Scenario: a silent call waits; a plain span above it comes, then the agent above that.
    Guarantees: the plain span goes on at once, but is remembered, so that the call finds its agent
    through it.
    """
    rig, calls = Held(), Calls()
    (call,) = silent(1, calls)
    between = calls.at(NOW_S, trace_id=TRACE)
    del between.attributes[:]
    call.parent_span_id, between.parent_span_id = between.span_id, b"above-it"
    for at_s, span in enumerate((call, between, above())):
        rig.offer([span], at_s=at_s)
    assert rig.release(8) == 3
    (verdict,) = rig.verdicts()
    assert verdict is not None
    assert (verdict.identity or "").startswith("agent=the agent above, ")


def test_without_holding_back_counts_move() -> None:
    """
    Scenario: the same silent calls and the span above after them, without holding back.
    Guarantees: the verdicts are written on what was known; the counts move, so that the next call
    of the session is judged with them.
    """
    rig = Held(hold="0s")
    rig.offer(silent(5))
    assert [v and v.identity for v in rig.verdicts()] == [
        "agent=none (weak), session=trace (weak), rate=anon (weak)"
    ] * 5
    rig.offer([above()], at_s=3)
    assert rig.count("moved") == 5
    (last,) = Calls().many(1, NOW_S, agent="planner", session="s")
    rig.offer([last], at_s=4)
    (verdict,) = rig.verdicts()
    assert verdict is not None
    assert verdict.reason == "rate: 6 calls in 60 s, limit 6"


def test_calls_that_tell_all_are_not_held() -> None:
    """
    Scenario: calls that name agent and session, on the span or its resource; spans that are no
    calls; metrics; logs of no call.
    Guarantees: all go on at once.
    """
    rig, calls = Held(), Calls()
    who = [("gen_ai.agent.name", "a"), ("session.id", "s")]
    nobody = calls.many(1, NOW_S, agent=None, session=None)
    chat = silent()
    chat[0].attributes[0].value.string_value = "chat"
    log = b"\x0a\x00"
    for number, (body, signal) in enumerate(
        (
            (request(calls.many(2, NOW_S), scope=None), Signal.TRACES),
            (request(nobody, scope=None, resource=who), Signal.TRACES),
            (request(chat, scope=None), Signal.TRACES),
            (b"\x7a\x03any", Signal.METRICS),
            (log, Signal.LOGS),
        ),
        start=1,
    ):
        assert rig.offer(body, signal=signal).outcome is Outcome.ACCEPTED
        assert len(rig.queue.payloads) == number


@pytest.mark.parametrize("missing", ["agent", "session"])
def test_one_call_that_does_not_is_enough(missing: str) -> None:
    """
    Scenario: a request of three calls, one of which lacks the agent, or the session; and one whose
    agent is only told by a weak key.
    Guarantees: the request is held back as a whole.
    """
    rig, calls = Held(), Calls()
    spans = calls.many(2, NOW_S)
    rig.offer([*spans, calls.at(NOW_S, **{missing: None})])
    weak = calls.many(1, NOW_S, agent=None)
    rig.offer(request(weak, scope=None, resource=[("service.name", "x")]))
    assert rig.release(7) == 0
    assert rig.release(8) == 2


def test_logs_are_held_too() -> None:
    """
    Scenario: a call told by a log record whose agent stands on a span of its trace that comes
    later.
    Guarantees: it waits, and is judged under that agent.
    """
    rig = Held()
    record = tool_record(time_ns=NOW_NS, tool="t", trace_id=TRACE, call_id="c")
    rig.offer(log_request([record]), signal=Signal.LOGS)
    rig.offer([above()], at_s=1)
    assert [payload.signal for payload in rig.queue.payloads] == [Signal.TRACES]
    assert rig.release(8) == 2
    agents = rig.processor.state.agents.rows
    assert [row["past"]["total"] for row in agents if row["key"]] == [1]


def test_requests_go_on_in_order() -> None:
    """
    Scenario: four requests a second apart; the service looks only now and then.
    Guarantees: they go on in the order they came, each not before its time.
    """
    rig, calls = Held(), Calls()
    bodies = [request(silent(1, calls, tool=f"t-{i}"), scope=None) for i in range(4)]
    for i, body in enumerate(bodies):
        rig.offer(body, at_s=i)
    assert [rig.release(at_s) for at_s in (7, 8, 10.5, 60)] == [0, 1, 3, 4]
    for payload, body in zip(rig.queue.payloads, bodies, strict=True):
        assert payload.body.startswith(body[:1])
        assert f"t-{bodies.index(body)}".encode() in payload.body


def test_what_is_refused_leaves_no_trace() -> None:
    """
    Scenario: no room for a request that would be held back; it is sent again when there is.
    Guarantees: it is refused to be sent again; not a bit of the state changes; the second time all
    is as if it had come once.
    """
    rig, once = Held(capacity=10), Held()
    before = rig.state()
    reply = rig.offer(silent(2))
    assert (reply.outcome, reply.retry_after_s) == (Outcome.QUEUE_FULL, 2.5)
    assert rig.state() == before
    assert rig.release(100) == 0
    rig.queue.capacity = 1 << 30
    for each in (rig, once):
        each.offer(silent(2), at_s=1)
        each.release(9)
    assert rig.queue.payloads == once.queue.payloads
    assert rig.state() == once.state()


def test_what_is_held_is_bounded_by_the_queue() -> None:
    """
    Scenario: silent calls without end, faster than their time is over.
    Guarantees: what is held takes its room in the queue, so the rest is refused; when it has gone
    on the room is free, all of it.
    """
    rig, calls = Held(capacity=20_000), Calls()
    replies = [rig.offer(silent(1, calls), at_s=i / 100).outcome for i in range(50)]
    accepted = replies.count(Outcome.ACCEPTED)
    assert 0 < accepted < 50
    assert replies == [Outcome.ACCEPTED] * accepted + [Outcome.QUEUE_FULL] * (50 - accepted)
    assert rig.queue.taken <= 20_000
    assert rig.release(9) == accepted
    assert rig.queue.taken == 0
    assert rig.offer(silent(1, calls), at_s=9).outcome is Outcome.ACCEPTED


def test_a_span_sent_twice_while_it_waits() -> None:
    """
    Scenario: a request is sent again while it is held back, as a client does that had no answer.
    Guarantees: both go on, both with a verdict; the call counts once.
    """
    rig = Held()
    spans = silent(1)
    rig.offer(spans)
    rig.offer(spans, at_s=1)
    assert rig.release(9) == 2
    assert (rig.count("tool_calls"), rig.count("duplicates")) == (1, 1)
    assert None not in [*rig.verdicts(0), *rig.verdicts(1)]


def test_a_clock_that_is_set_back() -> None:
    """
    Scenario: the machine's clock goes back by an hour while a request is held back.
    Guarantees: it goes on at the next look, instead of an hour later.
    """
    rig = Held()
    rig.offer(silent(), at_s=3600)
    assert rig.release(0) == 1


@pytest.mark.parametrize("fails", ["when it comes", "when its time is over"])
def test_detection_that_fails_on_what_is_held(
    fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a kernel raises when a request comes, or when its time is over.
    Guarantees: the request goes on all the same, with its verdict if the kernel works again by
    then; health says so.
    """

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    rig = Held()
    with monkeypatch.context() as patch:
        if fails == "when it comes":
            patch.setattr("otel_anomaly.processor.look_at", broken)
        assert rig.offer(silent()).outcome is Outcome.ACCEPTED
    with monkeypatch.context() as patch:
        if fails == "when its time is over":
            patch.setattr("otel_anomaly.processor.judge", broken)
        assert rig.release(8) == 1
    assert not rig.processor.healthy
    assert "detection failed" in caplog.text
    assert (rig.verdicts() == [None]) == (fails == "when its time is over")
    assert rig.queue.taken == 0


def test_a_replay_never_waits() -> None:
    """
    Scenario: silent calls in a recording, with `hold` set.
    Guarantees: all are judged: a replay has read the whole trace before.
    """
    replay = Replay(Config.model_validate({"identity": {"hold": "60s"}}), calls=True, writer=None)
    replay.processor.process(Batch(request(silent(3), scope=None), Signal.TRACES, "http", 0))
    assert len(replay.calls) == 3


class Sleeps:
    """Stands in for `asyncio.sleep`: moves the clock by hand, and stops after a while."""

    def __init__(self, clock: Any, looks: Callable[[], None], count: int) -> None:
        self.clock, self.looks, self.left = clock, looks, count
        self.steps: set[float] = set()

    async def __call__(self, seconds: float) -> None:
        self.looks()
        self.steps.add(seconds)
        self.clock.wall_ns += round(seconds * SECOND_NS)
        self.left -= 1
        if self.left < 0:
            raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("hold", "step_s"), [("1s", 0.25), ("8s", 1.0), ("60s", 1.0), ("1us", 0.01), ("0s", 1.0)]
)
def test_the_service_looks_often_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: str, step_s: float
) -> None:
    """
    Scenario: a silent call arrives at any time between two looks, for several lengths of `hold`.
    Guarantees: it goes on after `hold`, and at most a quarter of it later (or one look, at least a
    hundredth of a second apart: no length makes the service spin); what time brings beside that
    still comes once a second.
    """

    async def play() -> None:
        async with running(tmp_path, identity={"hold": hold}) as at:
            begun_ns, gone_ns, ticks = at.clock.wall_ns, [], []

            def looks() -> None:
                if at.metric("tool_calls_total") and not gone_ns:
                    gone_ns.append(at.clock.wall_ns - begun_ns)

            at.service._ticker.cancel()
            at.service.tick = lambda _: ticks.append(at.clock.wall_ns)
            await at.consume(request(silent()))
            sleeps = Sleeps(at.clock, looks, round(70 / step_s))
            with monkeypatch.context() as patch:
                patch.setattr(service.asyncio, "sleep", sleeps)
                with pytest.raises(asyncio.CancelledError):
                    await at.service._tick_forever()
            assert sleeps.steps == {step_s}
            hold_ns = at.service._config.identity.hold
            slack_ns = max(hold_ns // 4, round(step_s * SECOND_NS)) if hold_ns else 0
            assert hold_ns <= gone_ns[0] <= hold_ns + slack_ns
            assert 69 <= len(ticks) <= 71

    asyncio.run(play())


def test_the_service_stops_while_calls_wait(tmp_path: Path) -> None:
    """
    Scenario: calls wait for a minute when the service stops; then a request comes too late.
    Guarantees: they are judged and delivered before it ends, their episode is told and ended; the
    ledger adds up.
    """

    async def play() -> None:
        async with running(tmp_path, identity={"hold": "60s"}) as at:
            assert await at.http(request(silent(3))) == 200
            assert at.metric("tool_calls_total") == 0
            assert at.metric("exporter_sent_spans_total", exporter="file") == 0
        assert at.actions() == ["allow", "allow", "warn"]
        assert at.lines() == ["WARN", "END"]
        assert at.service.telemetry.ledger() == Ledger(3, 3, 0, 0)
        assert (await at.consume(request(silent(1)))).outcome is Outcome.STOPPING

    asyncio.run(play())


def test_a_span_above_that_comes_by_another_door(tmp_path: Path) -> None:
    """
    Scenario: silent calls over HTTP wait; the span above them comes over gRPC.
    Guarantees: the episode names the agent and the session of the span above.
    """

    async def play() -> None:
        async with running(tmp_path, identity={"hold": "60s"}) as at:
            await at.http(request(silent(3)))
            await at.grpc(request([above()]))
        start = next(record for record in at.audit() if record["type"] == "episode.start")
        assert (start["agent"], start["session"]) == ("planner", "s")

    asyncio.run(play())
