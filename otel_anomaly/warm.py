"""Compile every kernel into the cache: `python -m otel_anomaly.warm`.

The service does it at start, before it is ready; an image does it when it is built.
"""

from __future__ import annotations

from otel_anomaly.config import Config
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.processor import Processor
from otel_anomaly.telemetry import Telemetry


def _chunk(field: int, payload: bytes) -> bytes:
    return bytes([field << 3 | 2, len(payload)]) + payload


def _attribute(key: bytes, value: bytes) -> bytes:
    return _chunk(9, _chunk(1, key) + _chunk(2, _chunk(1, value)))


_CALL = _chunk(1, b"\1" * 16) + _chunk(2, b"\1" * 8)
_CALL += _attribute(b"gen_ai.operation.name", b"execute_tool")
_REQUEST = _chunk(1, _chunk(2, _chunk(2, _CALL)))
"""A request with one tool call: kernels compile by the types they are given, not by the values."""


class _Nowhere:
    """Takes everything and keeps nothing."""

    def reserve(self, bytes_needed: int) -> Outcome:
        assert bytes_needed > 0
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        assert len(payload.body) <= bytes_reserved

    def retry_after_s(self) -> float:
        return 1.0


def warm() -> None:
    """Run one call through a processor of its own, with room for next to nothing."""
    limits = {"agents": 1, "sessions": 1, "traces": 1, "spans": 1}
    config = Config.model_validate(
        {"identity": {"limits": limits}, "detectors": {"rate": {"warn": 1, "block": 2}}}
    )
    processor = Processor(config, _Nowhere(), Telemetry(), seed=0)
    for received_ns in (1, 0):
        reply = processor.process(Batch(_REQUEST, Signal.TRACES, "grpc", received_ns))
        assert reply.outcome is Outcome.ACCEPTED
    processor.sweep(1)
    assert processor.healthy, "the kernels do not run on this machine"


if __name__ == "__main__":
    warm()
