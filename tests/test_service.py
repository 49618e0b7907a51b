"""The service as a whole: what goes in comes out, judged, counted and told, and all of it ends."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from otel_anomaly import __version__, service
from otel_anomaly.config import SECOND_NS, config_hash
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.otlp.metrics import is_metrics
from otel_anomaly.sinks import verify
from otel_anomaly.telemetry import Ledger
from tests.door_rigs import NOW_NS, until
from tests.service_rigs import (
    FREE,
    assert_free,
    calls,
    config_in,
    logged_calls,
    nothing_left,
    place,
    running,
)
from tests.sink_rigs import Gate, GatedStream

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.otlp.scan import Columns

OK = grpc.StatusCode.OK
NOWHERE = {
    "endpoint": "http://127.0.0.1:9",
    "sending_queue": {"batch": {"flush_timeout": "1ms"}},
}


def test_from_door_to_file(tmp_path: Path) -> None:
    """
    Scenario: seven calls of one session, over gRPC and HTTP, from start to stop.
    Guarantees: all are judged in the order they came and written; the console has the episode, the
    audit trail as well and is whole; the pages agree; the ledger adds up; nothing is left running.
    """

    async def play() -> None:
        with nothing_left():
            async with running(tmp_path) as at:
                assert await at.grpc(calls(4)) is OK
                assert await at.http(calls(3, seed=1)) == 200
                assert await at.page("/readyz") == (200, "ready\n")
                status, text = await at.page("/metrics")
                assert status == 200
                for line in (
                    'otel_anomaly_receiver_accepted_spans_total{transport="grpc"} 4.0',
                    'otel_anomaly_receiver_accepted_spans_total{transport="http"} 3.0',
                    "otel_anomaly_tool_calls_total 7.0",
                    'otel_anomaly_verdicts_total{action="warn"} 3.0',
                    'otel_anomaly_verdicts_total{action="block"} 2.0',
                    "otel_anomaly_ready 1.0",
                ):
                    assert line in text.splitlines()
        assert at.actions() == [*["allow"] * 2, *["warn"] * 3, *["block"] * 2]
        assert at.lines() == ["WARN", "BLOCK", "END"]
        assert [record["type"] for record in at.audit()] == [
            "service.start",
            "episode.start",
            "episode.escalate",
            "episode.end",
            "service.stop",
        ]
        assert len({record["config_hash"] for record in at.audit()}) == 1
        assert at.audit()[-1]["reason"] == "accepted 7, sent 7, held 0, dropped 0"
        assert verify(tmp_path / "audit.jsonl").ok
        assert at.service.telemetry.ledger() == Ledger(7, 7, 0, 0)
        assert at.metric("ready") == 0

    asyncio.run(play())


def test_metrics_and_logs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: metrics, and logs that tell of no call, over both doors, larger than what is scanned
    in the loop.
    Guarantees: each is written; nothing is judged; logs do not count as spans.
    """
    monkeypatch.setattr(service, "INLINE_BYTES_MAX", 10)
    body = b"\x7a\x80\x08" + bytes(1024)  # Field 15 is unknown to all, so every receiver takes it.

    async def play() -> None:
        async with running(tmp_path) as at:
            for signal in (Signal.METRICS, Signal.LOGS):
                assert await at.http(body, signal) == 200
                assert await at.grpc(body, signal) is OK
            assert (await at.consume(b"", Signal.LOGS)).outcome is Outcome.ACCEPTED
            assert at.metric("spans_total") == 0
        for signal in ("metrics", "logs"):
            sent = {"exporter": "file", "signal": signal}
            assert at.metric("exporter_sent_requests_total", **sent) == 2

    asyncio.run(play())
    for signal in ("metrics", "logs"):
        assert (tmp_path / f"{signal}.jsonl").read_text() == "{}\n{}\n"


def test_large_metrics_are_checked_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: metrics of the size up to which they are checked in the loop, then of a byte more; a
    broken request of each.
    Guarantees: taken and refused alike; the larger ones were checked outside the loop.
    """
    threads: list[threading.Thread] = []

    def check(body: bytes) -> bool:
        threads.append(threading.current_thread())
        return is_metrics(body)

    monkeypatch.setattr(service, "is_metrics", check)
    monkeypatch.setattr(service, "METRICS_INLINE_BYTES_MAX", 1027)
    body = b"\x7a\x80\x08" + bytes(1024)

    async def play() -> None:
        async with running(tmp_path) as at:
            replies = [
                await at.consume(each, Signal.METRICS)
                for each in (body, body[:-1], body + b"\x78\x01", body + b"\x78")
            ]
            assert [reply.outcome for reply in replies] == [
                Outcome.ACCEPTED,
                Outcome.MALFORMED,
            ] * 2

    asyncio.run(play())
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_calls_told_by_logs(tmp_path: Path) -> None:
    """
    Scenario: four calls of a session told by log records over HTTP, three over gRPC, and two by
    spans in between.
    Guarantees: all count for the session, in the order they came; each record has its verdict in
    logs.jsonl; the console and the trail have the one episode; only spans are in the ledger.
    """

    async def play() -> None:
        async with running(tmp_path) as at:
            assert await at.http(logged_calls(4), Signal.LOGS) == 200
            assert await at.consume(calls(2)) is not None
            assert await at.grpc(logged_calls(3, first=4), Signal.LOGS) is OK
            assert at.metric("tool_calls_total") == 9
        assert at.logged_actions() == [*["allow"] * 2, *["warn"] * 2, *["block"] * 3]
        assert at.actions() == ["warn", "block"]
        assert at.lines() == ["WARN", "BLOCK", "END"]
        told = [record for record in at.audit() if record["type"] == "episode.start"]
        assert [(record["tool"], record["session"]) for record in told] == [("shell", "s-1")]
        assert at.service.telemetry.ledger() == Ledger(2, 2, 0, 0)

    asyncio.run(play())


def test_time_ends_episodes_and_frees_rows(tmp_path: Path) -> None:
    """
    Scenario: a session is over the line, then silent, while the clock goes on and ticks.
    Guarantees: the episode ends when `hold` is over, the row is freed when the session is idle, and
    the metrics say so at every step.
    """

    async def play() -> None:
        limits = {"session_idle": "300s"}
        async with running(tmp_path, identity={"limits": limits}) as at:
            await at.consume(calls(3))
            for wait_s, still_open, sessions in ((0, 1, 1), (60, 1, 1), (61, 0, 1), (301, 0, 0)):
                at.service.tick(NOW_NS + wait_s * SECOND_NS)
                assert at.metric("episodes_open") == still_open
                assert at.metric("entities", scope="session") == sessions
            await until(lambda: at.lines() == ["WARN", "END"])

    asyncio.run(play())


def test_the_service_ticks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the same, but nobody calls `tick`; the clock is moved by hand.
    Guarantees: the service does, by the clock it was given.
    """
    monkeypatch.setattr(service, "TICK_S", 0.001)

    async def play() -> None:
        async with running(tmp_path) as at:
            await at.consume(calls(3))
            await until(lambda: at.metric("episodes_open") == 1)
            at.clock.wall_ns += 61 * SECOND_NS
            await until(lambda: at.metric("episodes_open") == 0)
            await until(lambda: at.lines() == ["WARN", "END"])

    asyncio.run(play())


@pytest.mark.parametrize("what", ["release", "sweep"])
def test_a_tick_that_fails_is_not_the_last(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Scenario: a session is over the line; what releases spans meets a bug every time, or several
    ticks do and then no more.
    Guarantees: the bug is told once, and ticks end the episode in time.
    """
    monkeypatch.setattr(service, "TICK_S", 0.001)
    failed = 0

    def fails(_now_ns: int) -> None:
        nonlocal failed
        failed += 1
        raise KeyError

    async def play() -> None:
        async with running(tmp_path) as at:
            await at.consume(calls(3))
            with monkeypatch.context() as patch:
                patch.setattr(at.service.processor, what, fails)
                await until(lambda: failed >= 3)
                if what == "sweep":
                    patch.undo()
                at.clock.wall_ns += 61 * SECOND_NS
                await until(lambda: at.metric("episodes_open") == 0)

    asyncio.run(play())
    told = [record for record in caplog.records if "tick" in record.getMessage()]
    assert [record.exc_info[0] for record in told if record.exc_info] == [KeyError]


def test_a_large_body_is_scanned_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: every body counts as large; two arrive at once, then one that is broken, then logs.
    Guarantees: each is scanned outside the loop and judged inside it; the broken one is refused
    with the reason, counted, and nothing is learned from it; logs are judged as logs.
    """
    threads: list[threading.Thread] = []
    inside = service.scan

    def scan(body: bytes, keys: Any, signal: Any) -> Columns:
        threads.append(threading.current_thread())
        return inside(body, keys, signal)

    monkeypatch.setattr(service, "scan", scan)
    monkeypatch.setattr(service, "INLINE_BYTES_MAX", 10)

    async def play() -> None:
        async with running(tmp_path) as at:
            replies = await asyncio.gather(at.consume(calls(2)), at.consume(calls(2, seed=1)))
            assert [reply.outcome for reply in replies] == [Outcome.ACCEPTED] * 2
            broken = await at.consume(calls(2, seed=2)[:-1])
            assert (broken.outcome, broken.retry_after_s) == (Outcome.MALFORMED, 0)
            assert broken.message
            assert at.metric("tool_calls_total") == at.metric("spans_total") == 4
            await at.consume(b"")
            await at.consume(logged_calls(1, session="s-2"), Signal.LOGS)
            assert at.metric("tool_calls_total") == 5
        assert sorted(at.actions()) == ["allow", "allow", "warn", "warn"]

    asyncio.run(play())
    assert len(threads) == 4
    assert threading.main_thread() not in threads


def test_detection_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: an episode is open when a kernel raises; then all is well again.
    Guarantees: the batch goes on without a verdict and the client is told nothing; it is counted
    and health is degraded; the episode ends, for what is known of it is gone; what comes later is
    judged from nothing.
    """
    monkeypatch.setattr(service, "TICK_S", 3600)  # A tick would find out by itself.

    async def play() -> None:
        async with running(tmp_path) as at:
            await at.consume(calls(3))
            with monkeypatch.context() as patch:
                patch.setattr("otel_anomaly.processor.judge", lambda *_: 1 / 0)
                assert (await at.consume(calls(1, seed=1))).outcome is Outcome.ACCEPTED
            await until(lambda: at.lines() == ["WARN", "END"])
            await at.consume(calls(1, seed=2))
            health = json.loads((await at.page("/healthz"))[1])
            assert health["status"] == "degraded"
            assert "without a verdict" in health["problems"]["detection"]
            assert at.metric("detection_failures_total") == 1
            assert "detection failed" in caplog.text
        assert at.actions() == ["allow", "allow", "warn", "", "allow"]
        assert at.lines() == ["WARN", "END"]
        assert at.service.telemetry.ledger() == Ledger(5, 5, 0, 0)

    asyncio.run(play())


def test_health(tmp_path: Path) -> None:
    """
    Scenario: health is asked when all is well, and when the console cannot be written.
    Guarantees: `ok` with version and configuration; then `degraded`, naming the sink and why; data
    goes on all the same.
    """
    gate = Gate()
    config = config_in(tmp_path)

    async def play() -> None:
        at = place(tmp_path)
        rig = at._replace(
            service=service.Service(config, at.clock, GatedStream(gate), seed=1),
        )
        await rig.service.start()
        try:
            assert json.loads((await rig.page("/healthz"))[1]) == {
                "status": "ok",
                "ready": True,
                "version": __version__,
                "config_hash": config_hash(config),
                "problems": {},
                "state": {
                    "agents": 0,
                    "sessions": 0,
                    "loaded_from": None,
                    "loaded_age_s": None,
                    "age_s": 0.0,
                    "refused": {},
                },
            }
            gate.fail()
            await rig.consume(calls(3))
            await until(lambda: bool(rig.service.health()["problems"]))
            health = rig.service.health()
            assert health["status"] == "degraded"
            assert health["problems"] == {"console": "console: [Errno 28] No space left on device"}
            gate.fail(0)
            await until(lambda: rig.service.health()["status"] == "ok")
        finally:
            await rig.service.stop()
        assert rig.actions() == ["allow", "allow", "warn"]

    asyncio.run(play())


def test_what_comes_after_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a request that a door took arrives at the judge when the service has stopped.
    Guarantees: it is refused as `stopping`, to be sent again; nobody looks at it, and nothing is
    learned or written.
    """

    async def play() -> None:
        async with running(tmp_path) as at:
            await at.consume(calls(1))
        monkeypatch.setattr(at.service, "processor", None)
        late = await at.consume(calls(1, seed=1))
        assert (late.outcome, late.retry_after_s) == (Outcome.STOPPING, 1.0)
        assert at.metric("tool_calls_total") == 1
        assert at.actions() == ["allow"]

    asyncio.run(play())


def test_what_cannot_be_delivered_is_in_the_ledger(tmp_path: Path) -> None:
    """
    Scenario: one next hop is gone, the file is there; the service stops with no time to drain.
    Guarantees: accepted = sent + held + dropped at each exporter, and nothing is held at the end.
    """

    async def play() -> None:
        exporters = {"file": {}, "otlp_http/gone": NOWHERE}
        sections = {"exporters": exporters, "service": {"drain_timeout": "100ms"}}
        async with running(tmp_path, **sections) as at:
            assert await at.http(calls(5)) == 200
            assert at.service.telemetry.ledger().accepted == 5
            await until(lambda: at.metric("exporter_sent_spans_total", exporter="file") == 5)
        assert at.metric("exporter_sent_spans_total", exporter="file") == 5
        gone = {"exporter": "otlp_http/gone"}
        assert at.metric("exporter_sent_spans_total", **gone) == 0
        assert at.metric("exporter_held_spans", **gone) == 0
        assert at.metric("exporter_dropped_spans_total", **gone, reason="shutdown") == 5
        assert at.audit()[-1]["reason"] == "accepted 5, sent 5, held 0, dropped 5"

    asyncio.run(play())


def test_doors_and_queues_share_the_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the doors take a tenth of a second of the ten seconds to drain.
    Guarantees: they are told how long there is, and the queues get what they left of it.
    """
    told = list[float]()

    async def shut(grace_s: float) -> None:
        told.append(grace_s)
        await asyncio.sleep(0.1)

    async def drain(timeout_s: float) -> dict[str, int]:
        told.append(timeout_s)
        return {}

    async def play() -> None:
        async with running(tmp_path, service={"drain_timeout": "10s"}) as at:
            fanout, doors = at.service._fanout, at.service.doors
            really_drain, really_shut = fanout.stop, doors.shut
            monkeypatch.setattr(fanout, "stop", drain)
            monkeypatch.setattr(doors, "shut", shut)
            await at.service.stop()
            monkeypatch.setattr(fanout, "stop", really_drain)
            monkeypatch.setattr(doors, "shut", really_shut)

    asyncio.run(play())
    assert told[0] == 10
    assert told[1] < 9.95


@pytest.mark.parametrize("door", ["grpc", "http"])
def test_one_door_alone(tmp_path: Path, door: str) -> None:
    """
    Scenario: only one door is configured, no console and no trail.
    Guarantees: it works; the other is not listed; no file of a trail is made.
    """

    async def play() -> None:
        sections = {
            "receivers": {"otlp": {"protocols": {door: FREE}}},
            "audit": {"enabled": False},
            "alerts": {"console": False},
        }
        async with running(tmp_path, **sections) as at:
            sent = await (at.grpc(calls(3)) if door == "grpc" else at.http(calls(3)))
            assert sent in {OK, 200}
            names = {"grpc": "OTLP/gRPC", "http": "OTLP/HTTP"}
            assert list(at.service.places()) == [names[door], "metrics and health"]
        assert at.actions() == ["allow", "allow", "warn"]
        assert at.lines() == []

    asyncio.run(play())
    assert [path.name for path in tmp_path.iterdir()] == ["spans.jsonl"]


def test_places(tmp_path: Path) -> None:
    """
    Scenario: all doors are asked for any free port.
    Guarantees: the places name the ports that were found.
    """

    async def play() -> None:
        async with running(tmp_path) as at:
            places = at.service.places()
            assert list(places) == ["OTLP/gRPC", "OTLP/HTTP", "metrics and health"]
            ports = {int(found.removeprefix("127.0.0.1:")) for found in places.values()}
            assert len(ports) == 3
            assert 0 not in ports

    asyncio.run(play())


def test_an_exporter_that_fails_to_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: an exporter raises when it is closed.
    Guarantees: the error is told, but sinks and pages are closed before: their threads would keep
    the process alive for ever.
    """

    async def play() -> None:
        with nothing_left():
            at = place(tmp_path)
            await at.service.start()
            await at.consume(calls(3))
            stop = at.service._fanout.stop

            async def fails(drain_timeout_s: float) -> dict[str, int]:
                await stop(drain_timeout_s)
                raise OSError("the disk went away")

            monkeypatch.setattr(at.service._fanout, "stop", fails)
            with pytest.raises(OSError, match="the disk went away"):
                await at.service.stop()
            assert_free(at.service.doors.monitoring.port)
        assert at.audit()[-1]["type"] == "service.stop"
        assert at.lines() == ["WARN", "END"]

    asyncio.run(play())


def test_the_name_of_a_configuration(tmp_path: Path) -> None:
    """
    Scenario: two equal configurations, and one that differs in a number.
    Guarantees: the hash is that of the keys and values.
    """
    one, same = config_in(tmp_path), config_in(tmp_path)
    other = config_in(tmp_path, alerts={"clear": 0.9})
    assert config_hash(one) == config_hash(same) != config_hash(other)
    assert len(config_hash(one)) == 64
