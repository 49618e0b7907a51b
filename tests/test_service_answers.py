"""Open answers in the whole service: disk queues, `ack: sent`, and requests that are held back."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly import service
from otel_anomaly.exporters.contract import Kind, SendResult
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.otlp.json import encode
from otel_anomaly.otlp.scan import scan
from otel_anomaly.receivers.grpc import SERVICES
from tests.service_rigs import calls, running
from tests.test_hold import silent
from tests.traffic import request

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.otlp.scan import Columns
    from tests.service_rigs import Place

DISK = {"storage": "disk", "batch": {"flush_timeout": "1ms"}}
NOWHERE = {
    "endpoint": "http://127.0.0.1:9",
    "sending_queue": {"batch": {"flush_timeout": "1ms"}},
    "retry_on_failure": {"enabled": False},
}


@pytest.mark.usefixtures("patient_disk")
def test_ok_from_a_disk_queue_and_across_a_restart(tmp_path: Path) -> None:
    """
    Scenario: calls come over both doors while the next hop is away and its queue is on disk; the
    service stops and starts again.
    Guarantees: clients hear OK; nothing is dropped at the stop; the ledger of the second run starts
    with what the first one held.
    """
    away = {**NOWHERE, "sending_queue": DISK, "retry_on_failure": {"enabled": True}}

    async def play() -> None:
        sections: dict[str, Any] = {
            "exporters": {"otlp_http": away},
            "service": {"drain_timeout": "10ms"},
        }
        async with running(tmp_path, **sections) as at:
            assert await at.http(calls(4)) == 200
            assert (await at.grpc(calls(3, seed=1))).value[0] == 0
        first = at.service.telemetry.ledger("otlp_http")
        assert (first.accepted, first.held, first.dropped, first.recovered) == (7, 7, 0, 0)
        async with running(tmp_path, **sections) as at:
            assert await at.http(calls(2, seed=2)) == 200
        second = at.service.telemetry.ledger("otlp_http")
        assert (second.accepted, second.recovered, second.held) == (2, 7, 9)
        assert second.sentence().startswith("accepted 2 spans + recovered 7 = ")

    asyncio.run(play())


@pytest.mark.usefixtures("patient_disk")
def test_sent_again_is_judged_once(tmp_path: Path) -> None:
    """
    Scenario: with `ack: sent` one of two exporters gives up; the client sends the same again.
    Guarantees: it hears 503 both times; the calls are counted once, the second time as duplicates,
    and are delivered again by the exporter that works.
    """

    async def play() -> None:
        exporters = {"file": {"sending_queue": DISK}, "otlp_http": NOWHERE}
        async with running(tmp_path, ack="sent", exporters=exporters) as at:
            assert [await at.http(calls(3)) for _ in range(2)] == [503, 503]
            assert at.metric("duplicates_total") == 3
            assert at.metric("tool_calls_total") == 3
            outcome = {"transport": "http", "signal": "traces", "outcome": "unavailable"}
            assert at.metric("receiver_requests_total", **outcome) == 2
        assert len(at.actions()) == 6

    asyncio.run(play())


@pytest.mark.parametrize("read_s", [0.0, 1.0])
def test_the_answer_comes_before_the_deadline_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_s: float
) -> None:
    """
    Scenario: with `ack: sent` the next hop takes its time; a gRPC client waits for five seconds at
    the most, less than `ack_timeout`. The same with a large request that takes long to be read.
    Guarantees: it is told to send again, and when; it does not find out by its own clock. What it
    sent is delivered all the same.
    """

    def slowly(*arguments: Any) -> Columns:
        time.sleep(read_s)
        return scan(*arguments)

    monkeypatch.setattr(service, "INLINE_BYTES_MAX", 0)
    monkeypatch.setattr(service, "scan", slowly)

    async def play() -> None:
        slow = asyncio.Event()

        async def send(_body: bytes, _signal: Signal, _items: int) -> SendResult:
            await slow.wait()
            return SendResult(Kind.SENT)

        async with running(tmp_path, ack="sent") as at:
            (queue,) = at.service._fanout._queues
            queue._exporter.send = send
            assert at.service.doors.grpc is not None
            port = at.service.doors.grpc.port
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                export = channel.unary_unary(f"/{SERVICES[Signal.TRACES]}/Export")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await export(calls(3), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "deadline" in (caught.value.details() or "")
            assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata() or ())
            slow.set()
        assert at.service.telemetry.ledger("file").sent == 3

    asyncio.run(play())


def test_who_is_held_back_waits_for_the_answer(tmp_path: Path) -> None:
    """
    Scenario: `identity.hold` keeps calls that name nobody, the queue is on disk or `ack` is `sent`;
    one client waits, one goes away.
    Guarantees: no answer before they are judged and written or delivered; then OK; nothing breaks
    for the client that is gone.
    """

    async def play(**sections: Any) -> None:
        async with running(tmp_path, identity={"hold": "60s"}, **sections) as at:
            waits = asyncio.create_task(at.consume(request(silent(2))))
            gone = asyncio.create_task(at.consume(request(silent(1))))
            await asyncio.sleep(0.05)
            assert not waits.done()
            gone.cancel()
            at.service.processor.release_all()
            assert (await waits).outcome is Outcome.ACCEPTED
        assert at.service.telemetry.ledger("file").held == 0
        assert at.service.telemetry.ledger("file").sent == 3

    asyncio.run(play(exporters={"file": {"sending_queue": DISK}}))
    asyncio.run(play(ack="sent"))


def test_what_a_next_hop_left_out_is_told(tmp_path: Path) -> None:
    """
    Scenario: with `ack: sent` the next hop keeps two of three spans and says why, over both doors
    and in both encodings.
    Guarantees: the client's answer is success, with the same words as partial success.
    """

    async def play() -> None:
        async with running(tmp_path, ack="sent") as at:
            (queue,) = at.service._fanout._queues
            queue._exporter.send = left_out
            status, body = await answered(at, calls(3), "application/x-protobuf")
            told = ExportTraceServiceResponse.FromString(body).partial_success
            assert (status, told.rejected_spans, told.error_message) == (200, 2, "too old")
            status, body = await answered(at, b'{"resourceSpans":[]}', "application/json")
            assert (status, json.loads(body)) == (200, {})
            line = encode(calls(3, seed=1), Signal.TRACES)
            status, body = await answered(at, line, "application/json")
            partly = {"rejectedSpans": "2", "errorMessage": "too old"}
            assert (status, json.loads(body)) == (200, {"partialSuccess": partly})
            target = f"127.0.0.1:{at.service.doors.grpc.port}"
            async with grpc.aio.insecure_channel(target) as channel:
                export = channel.unary_unary(f"/{SERVICES[Signal.TRACES]}/Export")
                told = ExportTraceServiceResponse.FromString(await export(calls(3, seed=2)))
            assert told.partial_success.rejected_spans == 2

    asyncio.run(play())


async def left_out(_body: bytes, _signal: Signal, _items: int) -> SendResult:
    """A next hop that is choosy."""
    return SendResult(Kind.SENT, "too old", rejected=2)


async def answered(at: Place, body: bytes, media: str) -> tuple[int, bytes]:
    """Status and body of the answer over HTTP."""
    url = f"http://127.0.0.1:{at.service.doors.http.port}/v1/traces"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers={"Content-Type": media}) as answer,
    ):
        return answer.status, await answer.read()
