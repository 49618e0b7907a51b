"""Compile every kernel into the cache: `python -m otel_anomaly.warm`.

The service does it at start, before it is ready; an image does it when it is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.config import Config
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.processor import Processor
from otel_anomaly.report import Reporter
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from otel_anomaly.judge import Judgement
    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.report import Call


def _chunk(field: int, payload: bytes) -> bytes:
    assert len(payload) < 128, "a length of one byte"  # noqa: PLR2004 - protobuf's varint.
    return bytes([field << 3 | 2, len(payload)]) + payload


def _attribute(key: bytes, value: bytes) -> bytes:
    return _chunk(9, _chunk(1, key) + _chunk(2, value))


def _request(span_id: bytes, *attributes: bytes) -> bytes:
    """One tool call of the one trace."""
    call = _chunk(1, b"\1" * 16) + _chunk(2, span_id)
    call += _attribute(b"gen_ai.operation.name", _chunk(1, b"execute_tool"))
    return _chunk(1, _chunk(2, _chunk(2, call + b"".join(attributes))))


_REQUESTS = (
    _request(b"\1" * 8, _attribute(b"session.id", b"\x18\1")),
    _request(b"\2" * 8),
)
"""Kernels compile by the types they are given, not by the values, and a few of them run only for
what is told: a session that is a number, on the span itself and borrowed from its trace."""


class _Nowhere:
    """Takes everything and keeps nothing."""

    def reserve(self, bytes_needed: int) -> Outcome:
        assert bytes_needed > 0
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        assert len(payload.body) <= bytes_reserved

    def retry_after_s(self) -> float:
        return 1.0


class _Warming:
    """A processor of its own, whose every call is told."""

    def __init__(self, config: Config) -> None:
        self.told: list[Call] = []
        self.processor = Processor(
            config, _Nowhere(), Telemetry(), seed=0, on_judged=self._on_judged
        )
        self._reporter = Reporter(self.processor.texts)

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        traces = self.processor.state.traces
        call = self._reporter.call(columns, judgement, traces, row=0)
        self._reporter.finding(judgement, 0, call.who)
        self.told.append(call)


def warm() -> None:
    """Run two calls through a processor of its own, with room for next to nothing."""
    limits = {"agents": 1, "sessions": 1, "traces": 1, "spans": 1}
    config = Config.model_validate(
        {"identity": {"limits": limits}, "detectors": {"rate": {"warn": 1, "block": 2}}}
    )
    warming = _Warming(config)
    processor = warming.processor
    for request, received_ns in zip(_REQUESTS, (1, 0), strict=True):
        reply = processor.process(Batch(request, Signal.TRACES, "grpc", received_ns))
        assert reply.outcome is Outcome.ACCEPTED
    processor.remember_traces(_REQUESTS[0])
    processor.sweep(1)
    assert processor.healthy, "the kernels do not run on this machine"
    assert [call.who.session for call in warming.told] == ["1", "1"]


if __name__ == "__main__":
    warm()
