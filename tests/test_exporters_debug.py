"""The debug exporter: what a person sees."""

from __future__ import annotations

import asyncio
import io

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.exporters.contract import SENT, Kind, SendResult
from otel_anomaly.exporters.debug import DebugExporter
from otel_anomaly.handoff import Signal


def judged_request() -> bytes:
    """A judged span with an unruly name, and one that is not judged."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    judged = spans.add(name="execute_tool \x1b[31m\n")
    spans.add(name="chat").attributes.add(key="anomaly_not").value.string_value = "x"
    add = judged.attributes.add
    add(key="anomaly.action").value.string_value = "block"
    add(key="anomaly.score").value.double_value = 1 / 3
    types = add(key="anomaly.types").value.array_value.values
    types.add(string_value="rate")
    types.add(string_value="rate_shift")
    add(key="anomaly.odd").value.bool_value = True
    add(key="gen_ai.tool.name").value.string_value = "secret"
    return request.SerializeToString()


def shown(*sends: tuple[bytes, Signal, int], detailed: bool) -> str:
    """What the exporter writes about some requests."""
    stream = io.StringIO()
    exporter = DebugExporter(stream, detailed=detailed, prefix="anomaly")

    async def main() -> None:
        await exporter.start()
        for send in sends:
            assert await exporter.send(*send) == SENT
        await exporter.close()

    asyncio.run(main())
    return stream.getvalue()


def test_basic_is_a_line_per_request() -> None:
    """
    Scenario: a request of each signal.
    Guarantees: one line with what it holds and its size; nothing of the content.
    """
    sends = [
        (b"x" * 270_000, Signal.TRACES, 512),
        (b"x" * 3_000, Signal.METRICS, 1),
        (b"", Signal.LOGS, 1),
        (b"x" * 2_500_000, Signal.TRACES, 1),
    ]
    assert shown(*sends, detailed=False).splitlines() == [
        "traces: 512 spans, 270 kB",
        "metrics: 1 request, 3 kB",
        "logs: 1 request, 0 B",
        "traces: 1 span, 2.5 MB",
    ]


def test_detailed_shows_verdicts() -> None:
    """
    Scenario: a judged span whose name holds an escape sequence and a line end, and another span.
    Guarantees: one line for the judged one, with our attributes only, and nothing that a terminal
    would obey.
    """
    request = judged_request()
    judged = r'  "execute_tool \u001b[31m\n" anomaly.action="block" anomaly.score=0.333333'
    judged += ' anomaly.types=["rate", "rate_shift"] anomaly.odd=bool_value'
    lines = shown((request, Signal.TRACES, 2), (b"", Signal.LOGS, 1), detailed=True).splitlines()
    assert lines == [
        f"traces: 2 spans, {len(request)} B",
        judged,
        "logs: 1 request, 0 B",
    ]


@pytest.mark.parametrize("broken", ["stream", "body"])
def test_what_cannot_be_shown_is_not_retried(broken: str) -> None:
    """
    Scenario: the terminal is gone, or the request cannot be read.
    Guarantees: rejected as a whole: showing it later helps nobody.
    """
    stream = io.StringIO()
    if broken == "stream":
        stream.close()
    exporter = DebugExporter(stream, detailed=True, prefix="anomaly")
    body = b"\xff\xff" if broken == "body" else b""
    result: SendResult = asyncio.run(exporter.send(body, Signal.TRACES, 1))
    assert (result.kind, result.about_data) == (Kind.REJECTED, False)
