"""Examples of the README, as the code itself prints them: one busy session at noon."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_anomaly.config import Config
from otel_anomaly.handoff import Signal
from otel_anomaly.replay import replay_command
from tests.traffic import START_NS, Agent, request

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
NOON_NS = START_NS // DAY_NS * DAY_NS + DAY_NS // 2
SPAN_ID = "5b7d7a1f0c2e9d34"


def _calls(count: int) -> list[Span]:
    """Calls of one session within a minute; the last one's id is SPAN_ID."""
    agent = Agent("support", session="s-1")
    calls = [agent.call(NOON_NS + i * 59 * SECOND_NS // count) for i in range(count)]
    calls[-1].span_id = bytes.fromhex(SPAN_ID)
    return calls


def _replay(count: int, explain: str | None = None) -> tuple[str, bytes]:
    """What is printed, and what goes on as JSON lines, on the defaults."""
    stdout = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        recording, out = Path(folder, "spans.bin"), Path(folder, "out.jsonl")
        recording.write_bytes(request(_calls(count)))
        replay_command(
            Config(),
            [recording],
            out=out,
            output_format="table",
            calls=False,
            signal=Signal.TRACES,
            explain=explain,
            stdout=stdout,
        )
        return stdout.getvalue(), out.read_bytes()


def span_example() -> str:
    """The 100th call of a session within a minute, its own attributes left out."""
    _, written = _replay(100)
    (line,) = written.splitlines()
    spans: list[dict[str, Any]] = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    pairs = [pair for pair in spans[-1]["attributes"] if pair["key"].startswith("anomaly.")]
    attributes = ",\n".join(f"    {json.dumps(pair)}" for pair in pairs)
    name = json.dumps(spans[-1]["name"])
    return f'```json\n{{\n  "name": {name},\n  "attributes": [\n{attributes}\n  ]\n}}\n```\n'


def explain_example() -> str:
    """What is said of the 31st call of a session within a minute."""
    printed, _ = _replay(31, explain=SPAN_ID)
    return f"```text\n$ otel-anomaly replay spans.jsonl --explain {SPAN_ID}\n{printed}```\n"
