"""Annotated requests without their annotations: what must be left is what went in."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PREFIX = "anomaly."


def without_verdicts(body: bytes) -> tuple[bytes, list[str]]:
    """A request as it was, and the action of each span that was judged.

    By the protobuf classes, so `body` must be as these write it, but for what was appended.
    """
    message = ExportTraceServiceRequest.FromString(body)
    actions = []
    for resource_spans in message.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                kept = [pair for pair in span.attributes if not pair.key.startswith(PREFIX)]
                actions += [
                    pair.value.string_value
                    for pair in span.attributes
                    if pair.key == f"{PREFIX}action"
                ]
                del span.attributes[:]
                span.attributes.extend(kept)
    return message.SerializeToString(), actions
