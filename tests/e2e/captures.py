"""Recorded requests of real agent frameworks, each folder with the calls that were really made.

Small ones lie in `tests/data/captures`. The full collection is read from the folder that the
environment variable OTEL_ANOMALY_CAPTURES names, else from `../shared/captures` where it exists.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json
from tests.e2e.service_process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

SMALL = ROOT / "tests" / "data" / "captures"
FULL = Path(os.environ.get("OTEL_ANOMALY_CAPTURES", ROOT.parent / "shared" / "captures"))
PSEUDO_TOOL = "(merged tools)"
"""Google ADK's span for parallel calls: not a call, the conventions' readers leave it out."""


def folders() -> list[Path]:
    """Every capture with its answer, the full ones before the small copies of the same name."""
    found = {
        path.parent.name: path.parent
        for root in (SMALL, FULL)
        for path in sorted(root.glob("*/expected.json"))
    }
    return [found[name] for name in sorted(found)]


def request_files(folder: Path, signal: str = "traces") -> list[Path]:
    """The recorded requests of one signal, in order."""
    return sorted(folder.glob(f"*-{signal}-*.bin"))


def requests(folder: Path) -> list[ExportTraceServiceRequest]:
    return [
        ExportTraceServiceRequest.FromString(path.read_bytes()) for path in request_files(folder)
    ]


def json_lines(folder: Path) -> bytes:
    """All requests of traces and logs in the order they arrived, as OTLP JSON lines."""
    signals = (Signal.TRACES, Signal.LOGS)
    return b"".join(
        otlp_json.encode(path.read_bytes(), signal) + b"\n"
        for path in sorted(folder.glob("*.bin"))
        for signal in signals
        if f"-{signal.value}-" in path.name
    )


def executed(folder: Path) -> list[dict[str, Any]]:
    """The calls that were really made, as the tools themselves wrote down."""
    calls: list[dict[str, Any]] = json.loads((folder / "expected.json").read_bytes())
    return calls


def executed_tools(folder: Path) -> Counter[str]:
    """How often each tool was really called."""
    return Counter(call["tool"] for call in executed(folder))


def spans_of(
    parsed: Iterable[ExportTraceServiceRequest],
) -> Iterator[tuple[ResourceSpans, ScopeSpans, Span]]:
    """Every span with what holds it, in order."""
    for request in parsed:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield resource, scope, span


def text(pairs: Iterable[KeyValue], key: str) -> str | None:
    """A string attribute, the last of that key; None when there is none."""
    found = [pair.value.string_value for pair in pairs if pair.key == key]
    return found[-1] if found else None


def tool_call_spans(folder: Path) -> list[Span]:
    """Spans that say of themselves that they execute a tool."""
    return [
        span
        for _resource, _scope, span in spans_of(requests(folder))
        if text(span.attributes, "gen_ai.operation.name") == "execute_tool"
        and text(span.attributes, "gen_ai.tool.name") != PSEUDO_TOOL
    ]


def one_span_each(folder: Path) -> list[bytes]:
    """The same spans, each in a request of its own with its resource and scope."""
    cut = []
    for resource, scope, span in spans_of(requests(folder)):
        alone = ExportTraceServiceRequest()
        in_resource = alone.resource_spans.add()
        in_resource.CopyFrom(resource)
        del in_resource.scope_spans[:]
        in_scope = in_resource.scope_spans.add()
        in_scope.CopyFrom(scope)
        del in_scope.spans[:]
        in_scope.spans.append(span)
        cut.append(alone.SerializeToString())
    return cut
