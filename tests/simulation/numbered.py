"""Requests whose spans carry numbers, so that each span can be told wherever it turns up again."""

from __future__ import annotations

import random
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.handoff import Signal
from tests.log_traffic import log_request, tool_record
from tests.traffic import request, tool_span

AGENTS = ("planner", "support", "billing", None, None)
TOOLS = ("lookup_order", "send_email", "web_search")
ID_BYTES = 8


class Request(NamedTuple):
    """What one client sends, again and again until it is told what became of it."""

    body: bytes
    signal: Signal
    numbers: tuple[int, ...] = ()
    """Of its spans, each a tool call; empty for what is not traces and for what is broken."""
    broken: bool = False
    """No answer but a permanent refusal is right."""


def spans_in(body: bytes) -> list[int]:
    """The numbers of the spans in an encoded request, as a next hop reads them."""
    message = ExportTraceServiceRequest.FromString(body)
    return [
        int.from_bytes(span.span_id, "big")
        for resource_spans in message.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


class Numbering:
    """Makes requests; no number is given twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = 1

    def traces(self, now_ns: int, *, padding: int = 0) -> Request:
        """One to four calls that ended just now; some do not say who made them."""
        rng = self._rng
        numbers = tuple(range(self._next, self._next + rng.choice((1, 1, 2, 4))))
        self._next += len(numbers)
        spans = [
            tool_span(
                trace_id=rng.randrange(1, 6).to_bytes(16, "big"),
                span_id=number.to_bytes(ID_BYTES, "big"),
                start_ns=now_ns - 1_000_000,
                end_ns=now_ns,
                tool=rng.choice(TOOLS),
                agent=rng.choice(AGENTS),
                session=rng.choice(("s-1", "s-2", None)),
                extra=[("note", "x" * padding)] if padding else (),
            )
            for number in numbers
        ]
        return Request(request(spans), Signal.TRACES, numbers)

    def other(self, now_ns: int) -> Request:
        """Logs, metrics, an empty request or one that is no OTLP."""
        rng = self._rng
        match rng.randrange(4):
            case 0:
                told = tool_record(time_ns=now_ns, tool="shell", call_id=f"c-{rng.random()}")
                return Request(log_request([told]), Signal.LOGS)
            case 1:
                size = rng.randrange(128, 400)  # Of a field that nobody knows.
                head = bytes([15 << 3 | 2, size & 127 | 128, size >> 7])
                return Request(head + rng.randbytes(size), Signal.METRICS)
            case 2:
                return Request(b"", Signal.TRACES)
            case _:
                return Request(self.traces(now_ns).body[:-1], Signal.TRACES, broken=True)
