"""Compile every kernel into the cache: `python -m otel_anomaly.warm`.

The service does it at start, before it is ready; an image does it when it is built. Kernels compile
by the types they are given, not by the values, and with all that they call. So what has to be done
here is each thing that Python asks of them: scan, judge, hold back, write verdicts, name callers,
put reasons into words, end episodes, free rows, read and write JSON.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from otel_anomaly.config import Config
from otel_anomaly.episodes import EpisodeBook
from otel_anomaly.gathering import read_nothing
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.kernels import CACHED, cache_is_warm
from otel_anomaly.otlp import json as otlp_json
from otel_anomaly.processor import Processor
from otel_anomaly.report import Reporter, finding_numbers
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.report import Call
    from otel_anomaly.state import Judgement

_TRACE: Final = b"\1" * 16
_SPAN_ATTRIBUTES, _RECORD_ATTRIBUTES = 9, 6
_OPERATION, _AGENT = "gen_ai.operation.name", "gen_ai.agent.name"
_ARGUMENTS, _RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"


def _chunk(field: int, payload: bytes) -> bytes:
    size = len(payload)
    assert size < 1 << 14, "a length of two bytes at most"
    length = bytes([size]) if size < 1 << 7 else bytes([size & 0x7F | 0x80, size >> 7])
    return bytes([field << 3 | 2]) + length + payload


def _pair(key: str, value: str | int) -> bytes:
    any_value = bytes([3 << 3, value]) if isinstance(value, int) else _chunk(1, value.encode())
    return _chunk(1, key.encode()) + _chunk(2, any_value)


def _span(number: int, parent: int, told: Mapping[str, str | int]) -> bytes:
    """One span of the one trace."""
    fields = _chunk(1, _TRACE) + _chunk(2, bytes([number] * 8))
    if parent:
        fields += _chunk(4, bytes([parent] * 8))
    return fields + b"".join(_chunk(_SPAN_ATTRIBUTES, _pair(*pair)) for pair in told.items())


def _record(told: Mapping[str, str | int]) -> bytes:
    """One log record of the one trace."""
    pairs = (_chunk(_RECORD_ATTRIBUTES, _pair(*pair)) for pair in told.items())
    return b"".join(pairs) + _chunk(9, _TRACE)


def _request(*children: bytes) -> bytes:
    """Spans or log records with a resource and a scope around them."""
    return _chunk(1, _chunk(2, b"".join(_chunk(2, child) for child in children)))


_CALL = {_OPERATION: "execute_tool", "gen_ai.tool.name": "send_mail"}
_SAYS_MUCH = {_ARGUMENTS: '{"to": ["a@example.com"], "n": 1.5e0}', _RESULT: '{"ok": true}'}
_REQUESTS: Final = (
    (Signal.TRACES, _request(_span(1, 9, _CALL | _SAYS_MUCH | {"session.id": 1}))),
    (
        Signal.TRACES,
        _request(_span(2, 9, _CALL | {_ARGUMENTS: "mail -s hello a@example.com", _RESULT: "sent"})),
    ),
    (Signal.TRACES, _request(_span(9, 0, {_OPERATION: "invoke_agent", _AGENT: "above"}))),
    (
        Signal.LOGS,
        _request(_record({"event.name": "tool_result", "tool_name": "Bash", "tool_input": "{}"})),
    ),
)
"""A session that is a number, borrowed from its trace by the second call and the record; an agent
that stands on a span above, which comes when the calls are held back."""


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
        self.book = EpisodeBook(self._reporter, hold_ns=0)

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        state = self.processor.state
        for row in (judgement.verdicts["judged"] != 0).nonzero()[0].tolist():
            call = self._reporter.call(columns, judgement, state, row)
            self.told.append(call)
            for number in finding_numbers(judgement.verdicts[row]):
                self._reporter.finding(judgement, number, call.who)
        self.book.take(columns, judgement, state)


def _read_elsewhere() -> subprocess.Popen[bytes] | None:
    """Compile what needs no state in a process of its own, which leaves it in the cache.

    The reader of arguments is the largest kernel; with the codec of OTLP/JSON it is half of the
    work (60 of 120 s CPU).
    """
    if not CACHED or cache_is_warm():
        return None
    command = [sys.executable, "-m", "otel_anomaly.warm", _READ]
    return subprocess.Popen(command)  # noqa: S603 - our own interpreter and module.


_READ: Final = "read"


def _warm_codec() -> None:
    """Read and write a line, and have one refused for a value that does not fit."""
    for signal, request in _REQUESTS:
        line = otlp_json.encode(request, signal)
        assert otlp_json.decode(line, signal) == request, "the JSON kernels do not run here"
    with contextlib.suppress(ValueError):
        otlp_json.decode(b"[]", Signal.TRACES)


def warm(*, redacts: bool = True) -> None:
    """Run a few calls through a processor of its own, with room for next to nothing.

    Without `redacts`, what only redaction needs is left out: a third of the work.
    """
    elsewhere = _read_elsewhere()
    few = dict.fromkeys(
        ("agents", "services", "sessions", "traces", "spans", "moves", "episodes", "labels"), 8
    )
    config = Config.model_validate(
        {
            "identity": {"limits": few, "hold": "1s"},
            "detectors": {"rate": {"warn": 1, "block": 2}},
            "policy": {"overrides": [{"tool": "Bash", "detectors": {"loop": {"threshold": 20}}}]},
            "redact": {"enabled": redacts, "mode": "remove"},
        }
    )
    warming = _Warming(config)
    processor, book = warming.processor, warming.book
    if elsewhere is not None:
        processor.judge_nothing()
        elsewhere.wait()  # If it failed, the reader is compiled here.
    for signal, request in (*_REQUESTS, (Signal.METRICS, _chunk(1, b""))):
        reply = processor.process(Batch(request, signal, "grpc", received_ns=1))
        assert reply.outcome is Outcome.ACCEPTED
    processor.release_all()
    assert processor.healthy, "the kernels do not run on this machine"
    callers = [(call.tool, call.who.agent, call.who.session) for call in warming.told]
    assert callers == [("send_mail", "above", "1")] * 2 + [("Bash", "above", "1")]
    assert len(book) > 0
    for now_ns in (1, 2):
        book.tick(processor.state, now_ns)
    assert len(book) == 0
    processor.sweep(1)
    _warm_codec()


if __name__ == "__main__":
    if sys.argv[1:] == [_READ]:
        read_nothing()
        _warm_codec()
    else:
        warm()
