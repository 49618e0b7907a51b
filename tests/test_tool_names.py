"""A tool's name without what it belongs to: spans, servers, plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp.dialects import TOOL
from tests import traffic
from tests import wire_writer as wire
from tests.scan_rigs import check_scan, text_of

if TYPE_CHECKING:
    from tests.traffic import Value

Pairs = list[tuple[str, "Value"]]
SOUND: dict[str, Any] = {"trace_id": b"T" * 16, "span_id": b"S" * 8}
CALL: Pairs = [("gen_ai.operation.name", "execute_tool")]


def tools_in(body: bytes) -> list[str | None]:
    """The tool that each span names; twin and scan agree about it."""
    columns = check_scan(body)
    assert columns is not None
    return [text_of(body, row, TOOL) for row in columns.rows]


def tool_of(pairs: Pairs, scope: str = "", **fields: Any) -> str | None:
    """The tool that a span with these attributes names."""
    span = Span(**SOUND, attributes=traffic.attributes(pairs), **fields)
    (tool,) = tools_in(traffic.request([span], scope=InstrumentationScope(name=scope)))
    return tool


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("execute_tool lookup", "lookup"),
        ("tools/call lookup", "lookup"),
        ("MCP send tools/call lookup", "lookup"),
        ("tool_call lookup", "lookup"),
        ("lookup.tool", "lookup"),
        ("lookup", "lookup"),
        ("execute_tool ", "execute_tool "),
        (".tool", ".tool"),
        ("execute_tool mcp__files__read", "read"),
        ("", None),
    ],
)
def test_tools_named_by_their_span(name: str, tool: str | None) -> None:
    """
    Scenario: calls whose tool stands in the span's name only; then a key that tells it.
    Guarantees: the name without what is around it; never the span's name where a key is there.
    """
    assert tool_of(CALL, name=name) == tool
    assert tool_of([*CALL, ("tool_name", "key")], name=name) == "key"
    assert tool_of([], name=name) is None


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("mcp__files__read_file", "read_file"),
        ("mcp__files__read__file", "read__file"),
        ("mcp__files__", "mcp__files__"),
        ("mcp____read", "mcp____read"),
        ("mcp__files", "mcp__files"),
        ("mcp_files__read", "mcp_files__read"),
        ("plugin-function", "plugin-function"),
    ],
)
def test_one_name_for_a_tool(name: str, tool: str) -> None:
    """
    Scenario: a tool's name with the server it belongs to in front, and names that only look so.
    Guarantees: the same name as where the server is told apart; all others stay as they are.
    """
    assert tool_of([*CALL, ("gen_ai.tool.name", name)]) == tool


PYTHON, DOTNET = "semantic_kernel.functions.kernel_function", "Microsoft.SemanticKernel"


@pytest.mark.parametrize(
    ("scope", "name", "tool"),
    [
        (PYTHON, "support-lookup_order", "lookup_order"),
        (DOTNET, "support-lookup_order", "lookup_order"),
        ("semantic_kernel", "support-find-all", "find-all"),
        (PYTHON, "lookup_order", "lookup_order"),
        (PYTHON, "mcp__files__support-read", "read"),
        (PYTHON, "-lookup", "-lookup"),
        (PYTHON, "support-", "support-"),
        (PYTHON, "support--", "-"),
        (PYTHON, "-a-b", "b"),
        (PYTHON, "-", "-"),
        (PYTHON, "a-\u00fc", "\u00fc"),
        (PYTHON, -12, "-12"),
        (PYTHON, "", None),
        ("", "plugin-function", "plugin-function"),
        ("semantic_kerne", "plugin-function", "plugin-function"),
        ("my.semantic_kernel", "plugin-function", "plugin-function"),
    ],
)
def test_tools_named_with_their_plugin(scope: str, name: Value, tool: str | None) -> None:
    """
    Scenario: tools named with a plugin in front, without one, and names that only look so; in the
    key and in the span's name; on a call and on a span that is none; under other scopes.
    Guarantees: under a scope that names tools so, a call's tool is the function; nothing else is
    cut, and nothing is cut to nothing.
    """

    assert tool_of([*CALL, ("gen_ai.tool.name", name)], scope) == tool
    if isinstance(name, str):
        assert tool_of(CALL, scope, name=f"execute_tool {name}") == (tool or "execute_tool ")
        whole = name.removeprefix("mcp__files__") or None
        assert tool_of([("gen_ai.tool.name", name)], scope) == whole


def test_a_number_is_not_cut() -> None:
    """
    Scenario: a tool named by a number, with an unknown field behind it that reads like a plugin.
    Guarantees: the tool is the number.
    """
    value = wire.number(3, 5) + wire.chunk(99, b"plugin-function")
    name = wire.chunk(9, wire.chunk(1, b"gen_ai.tool.name") + wire.chunk(2, value))
    span = Span(**SOUND, attributes=traffic.attributes(CALL)).SerializeToString() + name
    scope = wire.chunk(1, wire.chunk(1, PYTHON.encode()))
    body = wire.chunk(1, wire.chunk(2, scope + wire.chunk(2, span)))
    assert tools_in(body) == ["5"]


def test_a_scope_in_parts() -> None:
    """
    Scenario: a scope written in several parts, before and behind its spans, with other names in
    them or none; behind it a scope without a name, in the same resource and in another.
    Guarantees: the last name counts, as for protobuf, and for its own spans only.
    """
    span = Span(**SOUND, attributes=traffic.attributes([*CALL, ("gen_ai.tool.name", "a-b")]))
    spans = wire.chunk(2, span.SerializeToString())
    yes, no, empty = (
        wire.chunk(1, wire.chunk(1, name)) for name in (PYTHON.encode(), b"other", b"")
    )
    version = wire.chunk(1, wire.chunk(2, PYTHON.encode()))
    for parts, tool in (
        ((yes, spans), "b"),
        ((spans, yes), "b"),
        ((no, spans, yes), "b"),
        ((yes, no, spans), "a-b"),
        ((yes, spans, empty), "a-b"),
        ((yes, version, spans), "b"),
        ((version, spans), "a-b"),
    ):
        scopes = wire.chunk(2, b"".join(parts)) + wire.chunk(2, spans)
        body = wire.chunk(1, scopes) + wire.chunk(1, wire.chunk(2, spans))
        assert tools_in(body) == [tool, "a-b", "a-b"]
