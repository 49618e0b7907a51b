"""A line per request on standard error, to see that something flows."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, TextIO

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.exporters.contract import SENT, SendResult, rejected
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

TEXT_CHARS_MAX = 200
"""Of a name or a value."""


class DebugExporter:
    """Writes for people; what it writes is no promise."""

    serial = True

    def __init__(self, stream: TextIO, *, detailed: bool, prefix: str) -> None:
        """`prefix` is that of the attributes shown; without the dot."""
        self._stream = stream
        self._detailed = detailed
        self._prefix = f"{prefix}."

    async def start(self) -> None:
        """Nothing to open."""

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """Write about one request. In a thread: a terminal that is halted must not halt us."""
        return await asyncio.to_thread(self._write, body, signal, items)

    async def close(self) -> None:
        """Leave the stream open: it is not ours."""

    def _write(self, body: bytes, signal: Signal, items: int) -> SendResult:
        unit = "span" if signal is Signal.TRACES else "request"
        plural = "" if items == 1 else "s"
        lines = [f"{signal.value}: {items} {unit}{plural}, {_size(len(body))}"]
        try:
            if self._detailed and signal is Signal.TRACES:
                lines += _judged_spans(body, self._prefix)
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (DecodeError, OSError, ValueError) as error:
            return rejected(f"not written: {type(error).__name__}", about_data=False)
        return SENT


def _judged_spans(body: bytes, prefix: str) -> Iterator[str]:
    """A line for each span with attributes under `prefix`."""
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                found = [
                    f"{pair.key}={_value(pair.value)}"
                    for pair in span.attributes
                    if pair.key.startswith(prefix)
                ]
                if found:
                    yield f"  {_quoted(span.name)} {' '.join(found)}"


def _value(value: AnyValue) -> str:
    """The types that verdicts are written in; anything else by its type's name."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return _quoted(value.string_value)
    if kind == "array_value":
        return f"[{', '.join(_value(item) for item in value.array_value.values)}]"
    if kind == "double_value":
        return f"{value.double_value:g}"
    return str(kind)


def _quoted(text: str) -> str:
    """Text from a client, short, on one line and without control sequences."""
    return json.dumps(text[:TEXT_CHARS_MAX])


def _size(count: int) -> str:
    """Bytes, for people.

    >>> _size(999), _size(270_400), _size(1_500_000)
    ('999 B', '270 kB', '1.5 MB')
    """
    if count < 1000:  # noqa: PLR2004
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"  # noqa: PLR2004
