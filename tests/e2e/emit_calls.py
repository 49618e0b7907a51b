"""What a user's script does: tool calls of one session, sent by the stock OpenTelemetry SDK.

Run: `python -m tests.e2e.emit_calls grpc http://127.0.0.1:4317 600`. The calls end evenly within
the 55 seconds before now, each at a time of its own.
"""

from __future__ import annotations

import sys
import time

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

SPREAD_NS = 55_000_000_000
DURATION_NS = 20_000_000


def exporter(transport: str, endpoint: str) -> SpanExporter:
    """The exporter of one transport; `endpoint` is the base URL."""
    if transport == "grpc":
        return GrpcSpanExporter(endpoint=endpoint, insecure=True)
    return HttpSpanExporter(endpoint=f"{endpoint}/v1/traces")


def emit(transport: str, endpoint: str, count: int) -> bool:
    """Send `count` tool calls. Returns whether the SDK got rid of all of them."""
    provider = TracerProvider(resource=Resource.create({"service.name": "support-desk"}))
    provider.add_span_processor(BatchSpanProcessor(exporter(transport, endpoint)))
    tracer = provider.get_tracer("emit_calls")
    first_ns = time.time_ns() - SPREAD_NS
    for number in range(count):
        end_ns = first_ns + SPREAD_NS * number // count
        span = tracer.start_span(
            "execute_tool lookup_order",
            start_time=end_ns - DURATION_NS,
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "lookup_order",
                "gen_ai.agent.name": "support-agent",
                "gen_ai.conversation.id": "sess-600",
            },
        )
        span.end(end_time=end_ns)
    flushed = provider.force_flush()
    provider.shutdown()
    return flushed


if __name__ == "__main__":
    sys.exit(0 if emit(sys.argv[1], sys.argv[2], int(sys.argv[3])) else 1)
