"""Keys and values by index into a table of strings, which only profiles have: somebody is told.

OTLP wants such an attribute read as absent, and a warning (`common.proto`, KeyValue and AnyValue).
To look for one in every attribute of every request would cost each of them a second reading; who
sends one sends many. So one request in LOOK_EVERY_NS is looked at, and a part of a large one.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.handoff import Signal

LOG = logging.getLogger("otel_anomaly")

_SECOND_NS: Final = 1_000_000_000
LOOK_EVERY_NS: Final = 10 * _SECOND_NS
LOG_EVERY_NS: Final = 3600 * _SECOND_NS
BODY_BYTES_MAX: Final = 1 << 17
"""A larger request is not looked at: reading it would hold up the loop."""
MESSAGES_MAX: Final = 500
"""Looked at in one request: about a millisecond."""
INDEXES: Final = {"key_strindex", "string_value_strindex"}
_REQUEST_OF: Final[dict[Signal, type[Message]]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
}
assert set(_REQUEST_OF) == set(Signal), "every signal has its request"


class IndexWatch:
    """Looks at a request of one signal at one door now and then."""

    def __init__(self, transport: str, signal: Signal) -> None:
        self._transport, self._signal = transport, signal
        self._looked_ns = self._logged_ns = -LOG_EVERY_NS

    def look(self, body: bytes, now_ns: int) -> None:
        """Called with every request that was accepted; nearly all are let by."""
        # Either way: a wall clock may be set back.
        if abs(now_ns - self._looked_ns) < LOOK_EVERY_NS or len(body) > BODY_BYTES_MAX:
            return
        self._looked_ns = now_ns
        if abs(now_ns - self._logged_ns) < LOG_EVERY_NS or not has_indexes(body, self._signal):
            return
        self._logged_ns = now_ns
        LOG.warning(
            "%s over %s have attributes by index into a table of strings, as only profiles have"
            " one: read as absent, and passed on as they are",
            self._signal.value,
            self._transport,
        )


def has_indexes(body: bytes, signal: Signal) -> bool:
    """Whether a key or a value by index is in a request, as far as MESSAGES_MAX messages tell."""
    try:
        waiting: list[Any] = [_REQUEST_OF[signal].FromString(body)]
    except DecodeError:
        return False  # Whether it is sound is for others to say.
    for _ in range(MESSAGES_MAX):
        if not waiting:
            return False
        for field, value in waiting.pop().ListFields():
            if field.name in INDEXES:
                return True
            if field.message_type is not None:
                waiting.extend((value,) if isinstance(value, Message) else value)
    return False
