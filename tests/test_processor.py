"""One batch through: what goes on, what is counted, and what happens when detection fails."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_anomaly.detectors.finding import ACTIONS, SKIP_REASONS
from otel_anomaly.handoff import Batch, Outcome, Signal
from otel_anomaly.otlp.scan import scan
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import AGENT, SESSION
from otel_anomaly.verdict import room_for
from tests.fleet_traffic import Fleet
from tests.habits import NOON
from tests.judge_rigs import KEEN
from tests.log_traffic import log_request
from tests.naive_judge import NaiveJudge
from tests.rig import Calls, Rig
from tests.sizes import scaled
from tests.test_judge import EAGER, Stream
from tests.traffic import request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet_traffic import Delivery


def broken(*_: object) -> None:
    raise ZeroDivisionError("a bug of ours")


@pytest.fixture
def _quiet_log() -> Iterator[None]:
    log = logging.getLogger("otel_anomaly")
    before, log.disabled = log.disabled, True
    yield
    log.disabled = before


@pytest.mark.usefixtures("_quiet_log")
@pytest.mark.parametrize("part", ["judge", "encode", "splice"])
def test_detection_that_fails(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a bug in each step of detection, after calls were learned; then it works again.
    Guarantees: the batch goes on as it came and is counted; the state is empty, all agents cold;
    health says so for a minute; what was counted stays; the next batch is judged.
    """
    rig, calls = Rig(rate={"warn": 4, "block": 9}), Calls()
    rig.send(calls.many(3, 1000))
    body = request(calls.many(2, 1000), scope=None)
    with monkeypatch.context() as patch:
        patch.setattr(f"otel_anomaly.processor.{part}", broken)
        reply = rig.offer(body)
    assert reply.outcome is Outcome.ACCEPTED
    assert rig.room.payloads[-1] == (body, Signal.TRACES, 2)
    assert not rig.processor.healthy
    assert rig.digest(counters=False) == Rig(rate={"warn": 4, "block": 9}).digest(counters=False)
    assert rig.counts("entities", "session") == 0
    assert rig.counts("tool_calls") >= 3
    assert rig.counts("spans") == 5
    assert b"otel_anomaly_detection_failures_total 1.0" in rig.telemetry.render()
    rig.processor.sweep(60_000_000_000)
    assert not rig.processor.healthy
    rig.processor.sweep(60_000_000_001)
    assert rig.processor.healthy
    verdicts = rig.send(calls.many(4, 1000))
    assert [verdict.action for verdict in verdicts] == ["allow"] * 3 + ["warn"]


def test_detection_that_fails_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a bug in the judge.
    Guarantees: one record with the traceback and nothing of the data.
    """
    monkeypatch.setattr("otel_anomaly.processor.judge", broken)
    rig = Rig()
    rig.offer(request([Calls().at(1000, agent="secret")], scope=None))
    (record,) = caplog.records
    assert record.exc_info
    assert "secret" not in caplog.text


LOGS_WITHOUT_CALLS = log_request([LogRecord(body=AnyValue(string_value="hello"))])


@pytest.mark.parametrize(
    ("signal", "body"),
    [(Signal.METRICS, b"\x7a\x0ano metrics"), (Signal.LOGS, LOGS_WITHOUT_CALLS)],
    ids=["metrics", "logs"],
)
def test_metrics_and_logs_without_calls_pass_byte_for_byte(signal: Signal, body: bytes) -> None:
    """
    Scenario: metrics, which need not be a valid request; log records that tell of no tool; once
    with full queues.
    Guarantees: the same object goes on, with room for exactly its bytes, judged by nobody; refused
    when there is no room.
    """
    rig = Rig()
    state = rig.digest()
    rig.room.script = [Outcome.QUEUE_FULL]
    reply = rig.offer(body, signal=signal)
    assert (reply.outcome, reply.retry_after_s) == (Outcome.QUEUE_FULL, 2.5)
    assert reply.message
    assert rig.room.payloads == []
    assert rig.offer(body, signal=signal).outcome is Outcome.ACCEPTED
    assert rig.room.payloads == [(body, signal, 1)]
    assert rig.room.payloads[0].body is body
    assert rig.digest() == state


@pytest.mark.parametrize("signal", list(Signal))
def test_an_empty_body_is_accepted(signal: Signal) -> None:
    """
    Scenario: a request without a byte, which is a valid one without content, of each signal.
    Guarantees: accepted; nothing is passed on and no room asked for.
    """
    rig = Rig()
    rig.room.script = [Outcome.QUEUE_FULL]
    assert rig.offer(b"", signal=signal).outcome is Outcome.ACCEPTED
    assert rig.room.payloads == []
    assert rig.room.script == [Outcome.QUEUE_FULL]


@pytest.mark.parametrize(
    ("signal", "name"),
    [(Signal.TRACES, "ExportTraceServiceRequest"), (Signal.LOGS, "ExportLogsServiceRequest")],
    ids=["traces", "logs"],
)
def test_malformed(signal: Signal, name: str) -> None:
    """
    Scenario: bytes that are no request of their signal.
    Guarantees: refused for good, with a message that holds nothing of them; 0 spans are counted.
    """
    rig = Rig()
    reply = rig.offer(b"\x0a\x7fzanzibar", signal=signal)
    assert (reply.outcome, reply.retry_after_s) == (Outcome.MALFORMED, 0.0)
    assert name in reply.message
    assert "zanzibar" not in reply.message
    line = b'refused_spans_total{outcome="malformed",transport="grpc"} 0.0'
    assert line in rig.telemetry.render()


@pytest.mark.parametrize(
    "outcome", [Outcome.QUEUE_FULL, Outcome.TOO_LARGE, Outcome.MEMORY, Outcome.STOPPING]
)
def test_refused_spans_are_counted(outcome: Outcome) -> None:
    """
    Scenario: three spans refused, then accepted.
    Guarantees: each span in the ledger once for each answer, under its reason.
    """
    rig, spans = Rig(), Calls().many(3, 1000)
    rig.room.script = [outcome]
    rig.offer(request(spans, scope=None))
    rig.send(spans)
    text = rig.telemetry.render().decode()
    assert f'refused_spans_total{{outcome="{outcome.value}",transport="grpc"}} 3.0' in text
    assert 'accepted_spans_total{transport="grpc"} 3.0' in text


def test_the_room_asked_for() -> None:
    """
    Scenario: a request of two calls and a chat span.
    Guarantees: its bytes and the most that two verdicts can take are set aside: what is refused is
    known before anything is learned.
    """
    rig, calls = Rig(), Calls()
    chat = calls.at(1000)
    chat.attributes[0].value.string_value = "chat"
    body = request([*calls.many(2, 1000), chat], scope=None)
    rig.send(body)
    assert rig.room.asked[-1] == len(body) + room_for(rig.processor.texts, 2)
    assert rig.room.payloads[-1].items == 3


def expected_counts(rig: Rig, stream: list[Delivery]) -> dict[Any, int]:
    """What the counters must say of a stream, by the slow twin."""
    twin = NaiveJudge(rig.config)
    for received_ns, signal, body in stream:
        twin.judge(body, received_ns, logs=signal is Signal.LOGS)
    counts = Counter({key: n for key, n in twin.counts.items() if key[0] != "skipped"})
    for (_, detector, skipped), n in (item for item in twin.counts.items() if len(item[0]) == 3):
        name = "detector_skipped" if skipped else "detector_evaluated"
        counts[name, (detector, SKIP_REASONS[skipped])[: 1 + bool(skipped)]] = n
    for scope, table in twin.tables.items():
        counts["entities", (scope,)] = len(table)
    counts["entities", ("trace",)] = len(twin.traces.known)
    counts["entities", ("episode",)] = rig.counts("entities", "episode")
    return counts


@pytest.mark.parametrize("seed", range(scaled(5)))
def test_the_counters_are_what_was_sent(seed: int) -> None:
    """
    Scenario: a fleet with all detectors on, none switched off by an override.
    Guarantees: every counter is what the slow twin counts, all others are 0; for each detector
    evaluated and skipped add up to the calls, and so do the verdicts; metrics show the same.
    """
    rig = Rig(**{**KEEN, "policy": {}})
    stream = Fleet(seed).deliveries(40)
    for received_ns, signal, body in stream:
        rig.offer(body, received_ns, signal)
    counts, expected = rig.processor.counts(), expected_counts(rig, stream)
    assert {key: n for key, n in counts.items() if n} == {k: n for k, n in expected.items() if n}
    calls = counts["tool_calls", ()]
    assert sum(counts["verdicts", (action,)] for action in ACTIONS) == calls
    for detector in DETECTORS:
        skipped = sum(counts["detector_skipped", (detector, why)] for why in SKIP_REASONS[1:])
        assert counts["detector_evaluated", (detector,)] + skipped == calls
    text = rig.telemetry.render().decode()
    assert f"otel_anomaly_tool_calls_total {calls}.0" in text
    assert f'otel_anomaly_entities{{scope="agent"}} {counts["entities", ("agent",)]}.0' in text


@pytest.mark.parametrize("seed", range(scaled(5)))
def test_sweeping_changes_no_verdict(seed: int) -> None:
    """
    Scenario: a stream of calls on time with short idle times, and the same with the tables swept
    before each request.
    Guarantees: the same bytes go on, the same findings are told.
    """
    idle = {"session_idle": "70s", "agent_idle": "90s", "session_keep": "1s", "agent_keep": "1s"}
    still, swept = (Rig(**{**EAGER, "limits": idle}) for _ in range(2))
    for spans, received_ns in Stream(seed).requests(60):
        for span in spans:
            span.end_time_unix_nano = received_ns
        still.send(spans, received_ns)
        swept.processor.sweep(received_ns, count=64)
        swept.send(spans, received_ns)
    assert swept.room.payloads == still.room.payloads
    findings = [[told and told.findings for told in rig.told] for rig in (swept, still)]
    assert findings[0] == findings[1]
    assert swept.counts("entities_evicted", "session") > 0


def test_scanned_elsewhere() -> None:
    """
    Scenario: the same request, scanned by the processor and scanned before.
    Guarantees: the same bytes go on: a scan holds no state.
    """
    body = request(Calls().many(5, 1000), scope=None)
    here, elsewhere = Rig(), Rig()
    here.send(body)
    columns = scan(body, elsewhere.processor.keys)
    elsewhere.processor.process_columns(Batch(body, Signal.TRACES, "http", 0), columns)
    assert here.room.payloads == elsewhere.room.payloads


def test_a_large_request_after_small_ones() -> None:
    """
    Scenario: requests of 1, 700 and 1 calls: the arrays that are reused grow in between.
    Guarantees: every call of each has a verdict, none of another request.
    """
    rig, calls = Rig(rate={"warn": 0, "block": 0}), Calls()
    for count in (1, scaled(700), 1):
        verdicts = rig.send(calls.many(count, 1000))
        assert len(verdicts) == count
        assert all(verdict.action == "allow" for verdict in verdicts)
    assert rig.counts("tool_calls") == scaled(700) + 2


def test_memory_for_each_agent() -> None:
    """
    Scenario: the records of an agent with one session, and their share of slots.
    Guarantees: below 4 KiB.
    """
    slots_at_worst = 2 * 4 * 16  # Two tables, 2 to 4 slots a row, a key and a row each.
    assert AGENT.itemsize + SESSION.itemsize + slots_at_worst < 4096


def test_only_the_request_that_tells_of_the_span_counts() -> None:
    """
    Scenario: the span to be explained is the third of a request; requests of one other span follow.
    Guarantees: the first says in which row, those after it that it is in none, whatever the copies
    of records hold between their fields.
    """
    rig, calls = Rig(detectors={}), Calls()
    spans = calls.many(3, NOON)
    (wanted,) = scan(request(spans[2:]), rig.processor.keys).rows["identity"].tolist()
    rig.processor.explain(wanted)
    rig.send(spans)
    assert rig.processor.explained_now() == 2
    for _ in range(3):
        rig.send([calls.at(NOON + 1)])
        assert rig.processor.explained_now() == -1
