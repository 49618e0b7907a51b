"""Which kernels are compiled only after warming up: `python -m tests.compiled_kernels`.

Prints a line for each, so nothing when warming up does its work. A process of its own, because in
one that has run other tests everything is compiled.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numba.core.registry import CPUDispatcher

from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.episodes import EpisodeBook
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.otlp import json as otlp_json
from otel_anomaly.processor import Processor
from otel_anomaly.replay import Replay
from otel_anomaly.report import Reporter, finding_numbers
from otel_anomaly.telemetry import Telemetry
from otel_anomaly.warm import warm
from tests.log_traffic import log_request, tool_record
from tests.traffic import START_NS, Agent, attributes, random_request, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.state import Judgement

CAPTURES = Path(__file__).parent / "data" / "captures"


class _Sink:
    """Takes everything."""

    def reserve(self, bytes_needed: int) -> Outcome:
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        """Kept by nobody."""

    def retry_after_s(self) -> float:
        return 0.0


class _Traffic:
    """What a service does with all that may come."""

    def __init__(self) -> None:
        config = Config.model_validate(
            {
                "identity": {"hold": "1s", "owner": ["user.email"]},
                "detectors": {"rate": {"warn": 2, "block": 4}},
                "policy": {
                    "polling_tools": ["poll_*"],
                    "overrides": [
                        {
                            "tenant": ["t*"],
                            "agent": ["a*"],
                            "tool": ["*"],
                            "detectors": {"loop": {"threshold": 20}},
                        }
                    ],
                },
            }
        )
        self.processor = Processor(config, _Sink(), Telemetry(), seed=-3, on_judged=self._on_judged)
        self.reporter = Reporter(self.processor.texts)
        self.book = EpisodeBook(self.reporter, SECOND_NS)
        self.now_ns = START_NS

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        for row in (judgement.verdicts["judged"] != 0).nonzero()[0].tolist():
            call = self.reporter.call(columns, judgement, self.processor.state, row)
            for number in finding_numbers(judgement.verdicts[row]):
                self.reporter.finding(judgement, number, call.who)
        self.book.take(columns, judgement, self.processor.state)

    def send(self, body: bytes, signal: Signal) -> None:
        self.now_ns += SECOND_NS // 4
        self.processor.process(Batch(body, signal, "http", self.now_ns))
        self.processor.release(self.now_ns)
        self.book.tick(self.processor.state, self.now_ns)
        self.processor.sweep(self.now_ns)
        assert self.processor.healthy

    def end(self) -> None:
        self.processor.release_all()
        for hours in (1, 2):
            self.book.tick(self.processor.state, self.now_ns + hours * 3600 * SECOND_NS)
        self.book.end_all(self.processor.state)
        self.book.forget()
        self.processor.sweep(self.now_ns + 400 * 86400 * SECOND_NS)


def bodies() -> Iterator[tuple[bytes, Signal]]:
    """Requests of real emitters, of hostile ones, and ours."""
    for path in sorted(CAPTURES.glob("*/*.bin")):
        yield path.read_bytes(), Signal.LOGS if "-logs-" in path.name else Signal.TRACES
    for seed in range(20):
        yield random_request(seed), Signal.TRACES
    agent, silent = Agent("a", session="s", tenant="t"), Agent(None)
    above = silent.call(START_NS, None)
    above.attributes[0].value.string_value = "invoke_agent"
    above.attributes.extend(attributes([("gen_ai.agent.name", "above"), ("session.id", 7)]))
    below = silent.call(START_NS)
    below.parent_span_id = above.span_id
    yield (
        request([agent.call(START_NS + i, extra=[("anomaly.x", 1)]) for i in range(6)]),
        Signal.TRACES,
    )
    yield request([below]), Signal.TRACES
    yield request([above]), Signal.TRACES
    record = tool_record(time_ns=START_NS, tool="t", session="s", arguments="{}", result="[1, 2]")
    yield log_request([record]), Signal.LOGS
    yield b"", Signal.TRACES


def compiled() -> set[tuple[str, str]]:
    """Every kernel that Python has called, with the types it was called with."""
    entries = (thing for thing in gc.get_objects() if isinstance(thing, CPUDispatcher))
    found = [entry for entry in entries if hasattr(entry, "ingredient")]
    return {
        (f"{thing.py_func.__module__}.{thing.py_func.__name__}", str(signature))
        for thing in found
        for signature in thing.signatures
    }


def main() -> int:
    """The exit code: 1 when something was compiled late."""
    warm()
    before = compiled()
    assert before, "nothing is compiled in this process"
    traffic = _Traffic()
    for body, signal in bodies():
        traffic.send(body, signal)
        with contextlib.suppress(ValueError):
            otlp_json.decode(otlp_json.encode(body, signal), signal)
    otlp_json.decode(b'{"resourceSpans":[{},{}],"resource_spans":[]}', Signal.TRACES)
    for line in (b"", b"{", b'{"resourceSpans":7}'):
        with contextlib.suppress(ValueError):
            otlp_json.decode(line, Signal.TRACES)
    traffic.end()
    replay = Replay(Config(), calls=True, writer=None, explain="ab" * 8)
    replay.processor.process(Batch(request([Agent("a").call(1)]), Signal.TRACES, "grpc", 0))
    columns = replay.processor.remember_traces(request([Agent("a").call(1)]))
    replay.processor.explain(int(np.int64(columns.rows[0]["identity"])))
    late = sorted(compiled() - before)
    sys.stdout.writelines(f"{name} {signature}\n" for name, signature in late)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
