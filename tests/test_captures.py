"""What real agent frameworks sent, against what their tools say was executed.

Each folder of captures holds requests in the order of their arrival and `expected.json`, written by
the tool functions themselves. Some lie in this repository; all are run where the full collection is
at hand. The floors are what the payloads hold at all, as its README has it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from otel_anomaly.entities.names import decode
from otel_anomaly.otlp.attributes import STRING
from otel_anomaly.otlp.dialects import (
    AGENT,
    ARGUMENTS,
    CALL_ID,
    SESSION,
    TOOL,
    USER,
    WEAK,
)
from otel_anomaly.otlp.scan import (
    ABSENT,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_LOG,
    IS_PART,
    LOGS,
    TRACES,
    scan,
)
from tests.scan_rigs import KEYS, check_logs, check_scan

ROOT = Path(__file__).resolve().parent
CAPTURES = ROOT / "data" / "captures"
ALL_CAPTURES = Path(
    os.environ.get("OTEL_ANOMALY_CAPTURES", ROOT.parent.parent / "shared" / "captures")
)

ASKED = ("arguments", "agent", "session", "user", "error")
FLOORS: dict[str, tuple[int, ...]] = {
    # How many of the calls: arguments, agent, session, user, error.
    "agent-framework": (0, 14, 0, 0, 14),
    "autogen": (0, 14, 0, 0, 14),
    "claude-code": (0, 0, 17, 17, 17),
    "codex-cli": (4, 0, 4, 0, 4),
    "crewai-openinference": (14, 14, 14, 14, 14),
    "google-adk-content": (14, 14, 14, 0, 14),
    "google-adk": (0, 14, 14, 0, 10),
    "langfuse": (14, 14, 14, 14, 14),
    "langgraph-langsmith": (14, 14, 14, 14, 14),
    "langgraph-openinference": (2, 14, 14, 14, 14),
    "langgraph-otel-genai": (14, 14, 14, 0, 10),
    "langgraph-traceloop": (14, 14, 14, 14, 14),
    "mcp-fastmcp": (0, 0, 0, 0, 14),
    "mcp-sdk-native-streams": (0, 0, 0, 0, 14),
    "openai-agents-openinference": (14, 14, 14, 14, 14),
    "openai-agents-otel-contrib": (14, 14, 0, 0, 14),
    "openai-client-otel-genai": (0, 0, 0, 0, 0),
    "otel-util-genai-content": (14, 14, 14, 0, 14),
    "pydantic-ai-1.0": (14, 14, 0, 0, 14),
    "pydantic-ai-fastmcp": (14, 14, 14, 0, 14),
    "pydantic-ai": (14, 14, 14, 0, 14),
    "semantic-kernel": (0, 14, 0, 0, 14),
    "strands": (14, 14, 14, 14, 14),
    "traceloop-sdk": (14, 14, 14, 14, 14),
    "vercel-ai-v5": (14, 14, 14, 14, 14),
    "vercel-ai-v7": (14, 14, 14, 14, 14),
}
TOLD_IN_RESULT = frozenset(
    {
        "google-adk-content",
        "langgraph-langsmith",
        "langgraph-openinference",
        "langgraph-otel-genai",
        "langgraph-traceloop",
    }
)
"""Captures where some failures stand only inside of results, which the scan does not read."""
NO_TOOL_SPANS = frozenset({"openai-client-otel-genai"})


class Seen(NamedTuple):
    """One row and the bytes it stands for."""

    data: np.ndarray
    row: np.void

    @property
    def flags(self) -> int:
        return int(self.row["flags"])

    def said(self, role: int, *, weak: bool = True) -> str | None:
        """The text of a role; without `weak` only what the span itself says."""
        row = self.row
        if row["order"][role] >= (ABSENT if weak else WEAK):
            return None
        kind, at, length = (int(row[name][role]) for name in ("kind", "at", "length"))
        if role == ARGUMENTS:
            assert kind == STRING
            return bytes(self.data[at : at + length]).decode()
        return decode(self.data, kind, at, length)


def folders() -> list[Path]:
    """Each capture once: those at hand in full, or the ones of this repository."""
    found = {path.parent.name: path.parent for path in CAPTURES.glob("*/expected.json")}
    found |= {path.parent.name: path.parent for path in ALL_CAPTURES.glob("*/expected.json")}
    return [found[name] for name in sorted(found)]


def seen(folder: Path, signal: np.int64) -> list[Seen]:
    """All rows of a capture's requests of one kind."""
    pattern = "*-logs-*.bin" if signal == LOGS else "*-traces-*.bin"
    rows = []
    for path in sorted(folder.glob(pattern)):
        columns = scan(path.read_bytes(), KEYS, signal)
        rows += [Seen(columns.data, row) for row in columns.rows]
    return rows


class Trace:
    """Spans by identity, for the fold that the judge does while they stream by."""

    def __init__(self, spans: list[Seen]) -> None:
        self.spans = {int(span.row["identity"]): span for span in spans}
        self.of_trace: dict[int, list[Seen]] = {}
        for span in spans:
            self.of_trace.setdefault(int(span.row["trace"]), []).append(span)

    def above(self, span: Seen) -> list[Seen]:
        """Ancestors, the nearest first."""
        found = []
        while (parent := self.spans.get(int(span.row["parent"]))) is not None:
            found.append(parent)
            span = parent
        return found

    def outermost(self, span: Seen) -> Seen:
        """The tool span a call belongs to."""
        for parent in self.above(span):
            if parent.flags & IS_BOUNDARY:
                break
            if parent.flags & IS_CALL:
                span = parent
        return span

    def calls(self) -> list[list[Seen]]:
        """The spans of each call, the outermost first."""
        calls: dict[int, list[Seen]] = {}
        for span in self.spans.values():
            if span.flags & (IS_CALL | IS_PART):
                first = self.outermost(span)
                calls.setdefault(int(first.row["identity"]), [first]).append(span)
        return list(calls.values())

    def who(self, span: Seen, role: int) -> str | None:
        """An identity from the span, its ancestors, then any span of the trace."""
        near = [span, *self.above(span)]
        for other in [*near, *self.of_trace[int(span.row["trace"])]]:
            if (said := other.said(role, weak=False)) is not None:
                return said
        return None


def unwrapped(text: str | None) -> Any:
    """Arguments without the envelopes that frameworks put around them."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if isinstance(found, dict):
        if "inputs" in found and "input_str" in found:
            return found["inputs"]
        if found.keys() <= {"args", "kwargs", "sanitize_inputs_outputs"}:
            return found["kwargs"]
        if found.keys() == {"tool_name", "arguments"}:
            return found["arguments"]
    return found


def told(trace: Trace, call: list[Seen]) -> dict[str, Any]:
    """What the spans of a call say together, in the words of `expected.json`."""
    texts = (span.said(ARGUMENTS) for span in call)
    return {
        "tool": call[0].said(TOOL),
        "arguments": unwrapped(next((text for text in texts if text is not None), None)),
        "agent": trace.who(call[0], AGENT),
        "session": trace.who(call[0], SESSION),
        "user": trace.who(call[0], USER),
        "error": any(span.flags & IS_ERROR for span in call),
    }


def agreeing(found: list[dict[str, Any]], expected: list[dict[str, Any]], what: str) -> int:
    """How many calls are told rightly: tool and one more thing."""

    def counted(calls: list[dict[str, Any]]) -> Counter[str]:
        return Counter(json.dumps([c["tool"], c[what]], sort_keys=True) for c in calls)

    return (counted(found) & counted(expected)).total()


def expected_of(folder: Path) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads((folder / "expected.json").read_text("utf-8"))
    return [{**call, "error": call["error"] is not None} for call in calls]


every_capture = pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)


def test_all_captures_are_at_hand() -> None:
    """
    Scenario: the full collection, which is not part of this repository.
    Guarantees: every capture in it has a floor here; said aloud where it is missing.
    """
    if not ALL_CAPTURES.is_dir():
        pytest.skip(f"no captures in {ALL_CAPTURES}: set OTEL_ANOMALY_CAPTURES to their folder")
    assert {folder.name for folder in folders()} == set(FLOORS)


@every_capture
def test_calls_and_names(folder: Path) -> None:
    """
    Scenario: all spans of one framework's run, in whatever request they came.
    Guarantees: after folding, each executed call is found once, under its name, and nothing else.
    """
    trace = Trace(seen(folder, TRACES))
    found = Counter(told(trace, call)["tool"] for call in trace.calls())
    expected = Counter(call["tool"] for call in expected_of(folder))
    assert found == (Counter() if folder.name in NO_TOOL_SPANS else expected)


@every_capture
def test_what_the_calls_say(folder: Path) -> None:
    """
    Scenario: the same, asked for arguments, agent, session, user and failure of each call.
    Guarantees: right at least as often as the payload allows.
    """
    trace = Trace(seen(folder, TRACES))
    found = [told(trace, call) for call in trace.calls()]
    for what, floor in zip(ASKED, FLOORS[folder.name], strict=True):
        right = agreeing(found, expected_of(folder), what)
        if (what, folder.name) == ("arguments", "codex-cli"):
            assert right == 0  # Told by its log records.
        elif what == "error" and folder.name in TOLD_IN_RESULT:
            assert right >= 10
        else:
            assert right >= floor, what


@every_capture
def test_calls_in_log_records(folder: Path) -> None:
    """
    Scenario: the log records of agents that tell of their calls there as well.
    Guarantees: one for each executed call, in the trace and with the call id of its span; no record
    of anything else is taken for a call.
    """
    calls = [seen for seen in seen(folder, LOGS) if seen.flags & IS_CALL]
    if not calls:
        assert folder.name not in {"claude-code", "codex-cli"}
        return
    assert folder.name in {"claude-code", "codex-cli"}
    assert all(call.flags & IS_LOG for call in calls)
    expected = expected_of(folder)
    assert len(calls) == len(expected)
    assert len({int(call.row["identity"]) for call in calls}) == len(calls)
    spans = [span for span in seen(folder, TRACES) if span.flags & IS_CALL]
    assert {joint(call) for call in calls} == {joint(span) for span in spans}
    assert {call.said(SESSION) for call in calls} == {call["session"] for call in expected}
    if folder.name == "codex-cli":
        found = [{"tool": c.said(TOOL), "arguments": unwrapped(c.said(ARGUMENTS))} for c in calls]
        assert agreeing(found, expected, "arguments") == len(calls)


def joint(seen: Seen) -> tuple[int, int]:
    """What the span and the log record of one call have in common."""
    assert seen.row["order"][CALL_ID] != ABSENT
    return int(seen.row["trace"]), int(seen.row["hash"][CALL_ID])


@every_capture
def test_as_the_twin_reads_them(folder: Path) -> None:
    """
    Scenario: each request of a capture.
    Guarantees: every row and every fact is the slow twin's.
    """
    for path in sorted(folder.glob("*.bin")):
        check = check_logs if "-logs-" in path.name else check_scan
        assert check(path.read_bytes()) is not None
