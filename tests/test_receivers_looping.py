"""What we sent ourselves and comes back is refused at the door, on both transports."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import (
    GrpcReceiverConfig,
    HttpReceiverConfig,
    OtlpGrpcExporterConfig,
    OtlpHttpExporterConfig,
)
from otel_anomaly.exporters.contract import Kind
from otel_anomaly.exporters.grpc import GrpcExporter
from otel_anomaly.exporters.http import HttpExporter
from otel_anomaly.handoff import INSTANCE, Outcome, Signal
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.receivers.looping import LOG_EVERY_S, LoopGuard
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import Consumer, StandingClock, counted

if TYPE_CHECKING:
    from otel_anomaly.exporters.contract import Exporter


def looped(telemetry: Telemetry, transport: str) -> int:
    return int(telemetry.looped_requests.labels(transport)._value.get())


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_our_own_exporter_is_refused(transport: str) -> None:
    """
    Scenario: an exporter sends to the door of its own process, three times.
    Guarantees: refused for good, so that nothing is sent again; counted; nothing is consumed.
    """
    consumer, telemetry, clock = Consumer(), Telemetry(), StandingClock()

    async def main() -> None:
        door: Any
        exporter: Exporter
        if transport == "grpc":
            grpc_config = GrpcReceiverConfig(endpoint="127.0.0.1:0")
            door = GrpcReceiver(grpc_config, consumer, telemetry, clock)
        else:
            http_config = HttpReceiverConfig(endpoint="127.0.0.1:0")
            door = HttpReceiver(http_config, consumer, telemetry, clock)
        await door.start()
        url = f"http://127.0.0.1:{door.port}"
        if transport == "grpc":
            exporter = GrpcExporter(OtlpGrpcExporterConfig(endpoint=url))
        else:
            exporter = HttpExporter(OtlpHttpExporterConfig(endpoint=url), clock)
        await exporter.start()
        try:
            for _ in range(3):
                result = await exporter.send(b"", Signal.TRACES, 1)
                assert result.kind is Kind.REJECTED
                assert "this service sent the request itself" in result.message
        finally:
            await exporter.close()
            await door.stop(0.2)

    asyncio.run(main())
    assert consumer.batches == []
    assert looped(telemetry, transport) == 3
    assert counted(telemetry, transport, Outcome.MALFORMED) == 3


def test_it_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a hundred requests come back, then one a minute later; others name somebody else.
    Guarantees: two lines in the log; others pass; every one is counted.
    """
    telemetry, clock = Telemetry(), StandingClock()
    guard = LoopGuard("http", telemetry, clock)
    with caplog.at_level(logging.ERROR, "otel_anomaly"):
        replies = [guard.check([INSTANCE]) for _ in range(100)]
        clock.steady_s += LOG_EVERY_S
        replies.append(guard.check([INSTANCE]))
    assert all(reply is not None and not reply.outcome.retryable for reply in replies)
    assert [guard.check([other]) for other in ("", INSTANCE[:-1], INSTANCE.upper() + "x")] == [
        None
    ] * 3
    assert guard.check([]) is None
    assert len(caplog.records) == 2
    assert looped(telemetry, "http") == 101
