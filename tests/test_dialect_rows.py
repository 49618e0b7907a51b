"""Every row of the dialects known, in the smallest payload that is honest: what is got out of it.

A case is one tool call as its framework writes it, with the spans above it that say who made it.
What is expected is what a reader of the payload would say, not what the table of conventions says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.dialects import (
    AGENT,
    ARGUMENTS,
    CALL_ID,
    RESULT,
    SESSION,
    TENANT,
    TOOL,
    USER,
    WEAK,
)
from otel_anomaly.otlp.json import decode
from otel_anomaly.otlp.scan import ABSENT, IS_CALL, IS_ERROR, scan
from tests import naive, traffic
from tests.argument_rigs import read
from tests.scan_rigs import KEYS, check_scan, text_of

if TYPE_CHECKING:
    from otel_anomaly.kernels import Record
    from tests.traffic import Value

Pairs = dict[str, "Value"]
TEXT = json.dumps({"order_id": "A17"})
KWARGS = json.dumps({"args": [], "kwargs": {"order_id": "A17"}})
GENAI: Pairs = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "lookup"}
CALLED: Pairs = {**GENAI, "gen_ai.tool.call.id": "c-1"}
OI: Pairs = {"openinference.span.kind": "TOOL", "tool.name": "lookup"}
OPERATION = "gen_ai.operation.name"
INVOKED: Pairs = {OPERATION: "invoke_agent", "gen_ai.agent.name": "helper"}


class Row(NamedTuple):
    """One dialect: a tool's span, what is above it, and what a reader gets out of both."""

    dialect: str
    pairs: Pairs
    name: str = "execute_tool lookup"
    above: Pairs | None = None
    above_name: str = "x"
    scope: str = ""
    resource: Pairs = {}  # noqa: RUF012 - never changed.
    events: tuple[tuple[str, Pairs], ...] = ()
    tool: str = "lookup"
    has_arguments: bool = False
    has_result: bool = False
    call_id: str | None = None
    agent: str | None = None
    session: str | None = None
    user: str | None = None
    tenant: str | None = None
    error: bool = False


ROWS = (
    Row(
        "util-genai",
        {
            **CALLED,
            "gen_ai.agent.name": "helper",
            "gen_ai.tool.call.arguments": TEXT,
            "gen_ai.tool.call.result": "{}",
            "gen_ai.tool.type": "function",
            "error.type": "KeyError",
        },
        above={**INVOKED, "gen_ai.conversation.id": "s-1"},
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        error=True,
    ),
    Row(
        "genai-langchain",
        {**CALLED, "gen_ai.agent.name": "helper"},
        above={OPERATION: "invoke_agent", "gen_ai.conversation.id": "thread-1"},
        call_id="c-1",
        agent="helper",
        session="thread-1",
    ),
    Row(
        "genai-openai-agents",
        GENAI,
        above={**INVOKED, "gen_ai.conversation.id": "group-1"},
        agent="helper",
        session="group-1",
    ),
    Row(
        "openai-agents-v2",
        {
            **GENAI,
            "gen_ai.agent.name": "OpenAI Agent",
            "gen_ai.agent.id": "agent",
            "gen_ai.tool.call.arguments": TEXT,
        },
        above={OPERATION: "invoke_agent"},
        above_name="invoke_agent helper",
        has_arguments=True,
        agent="helper",
    ),
    Row(
        "openinference spec",
        {
            **OI,
            "input.value": TEXT,
            "input.mime_type": "application/json",
            "tool_call.id": "c-1",
            "session.id": "s-1",
            "user.id": "u-1",
        },
        name="x",
        has_arguments=True,
        call_id="c-1",
        session="s-1",
        user="u-1",
    ),
    Row("openinference tool.id", {**OI, "tool.id": "c-1"}, name="x", call_id="c-1"),
    Row("openinference, lower case", {**OI, "openinference.span.kind": "tool"}),
    Row(
        "openinference openai-agents",
        {**OI, "input.value": TEXT, "output.value": "done"},
        name="lookup",
        above={"openinference.span.kind": "AGENT", "agent.name": "helper"},
        has_arguments=True,
        has_result=True,
        agent="helper",
    ),
    Row(
        "openinference langchain",
        {
            **OI,
            "input.value": TEXT,
            "metadata": '{"lc_agent_name": "helper", "thread_id": "t-1", "user_id": "u-1"}',
        },
        name="lookup",
        has_arguments=True,
        agent="helper",
        session="t-1",
        user="u-1",
    ),
    Row(
        "openinference metadata as a map",
        {**OI, "metadata": {"lc_agent_name": "helper", "thread_id": "t-1", "user_id": 7}},
        name="lookup",
        agent="helper",
        session="t-1",
        user="7",
    ),
    Row(
        "openinference crewai",
        {**OI, "input.value": TEXT, "session.id": "s-1"},
        name="lookup.run",
        above={"openinference.span.kind": "AGENT", "graph.node.id": "helper"},
        has_arguments=True,
        agent="helper",
        session="s-1",
    ),
    Row(
        "openinference smolagents",
        {
            **OI,
            "input.value": json.dumps(
                {"args": [], "sanitize_inputs_outputs": True, "kwargs": {"order_id": "A17"}}
            ),
        },
        name="SimpleTool",
        above={"openinference.span.kind": "AGENT"},
        above_name="helper.run",
        has_arguments=True,
        agent="helper",
    ),
    Row(
        "openinference llama-index",
        {**OI, "input.value": json.dumps({"kwargs": {"order_id": "A17"}})},
        name="FunctionTool.acall",
        has_arguments=True,
    ),
    Row(
        "traceloop sdk",
        {
            "traceloop.span.kind": "tool",
            "traceloop.entity.name": "lookup",
            "gen_ai.tool.name": "lookup",
            "traceloop.entity.input": KWARGS,
            "traceloop.entity.output": "1",
            "gen_ai.agent.name": "helper",
            "traceloop.association.properties.session_id": "s-1",
            "traceloop.association.properties.user_id": "u-1",
            "traceloop.association.properties.tenant_id": "acme",
        },
        name="lookup.tool",
        has_arguments=True,
        has_result=True,
        agent="helper",
        session="s-1",
        user="u-1",
        tenant="acme",
    ),
    Row(
        "traceloop langchain",
        {
            **GENAI,
            "traceloop.span.kind": "tool",
            "gen_ai.tool.call.arguments": json.dumps(
                {
                    "input_str": "{'order_id': 'A17'}",
                    "tags": ["seq:step:1"],
                    "metadata": {"langgraph_step": 2},
                    "inputs": {"order_id": "A17"},
                    "kwargs": {"tool_call_id": "c-1"},
                }
            ),
            "traceloop.association.properties.lc_agent_name": "helper",
            "traceloop.association.properties.thread_id": "t-1",
        },
        has_arguments=True,
        agent="helper",
        session="t-1",
    ),
    Row(
        "traceloop openai-agents",
        {**GENAI, "traceloop.span.kind": "tool", "gen_ai.tool.call.arguments": TEXT},
        name="lookup.tool",
        above={"traceloop.span.kind": "agent", "gen_ai.agent.name": "helper"},
        has_arguments=True,
        agent="helper",
    ),
    Row(
        "traceloop mcp",
        {
            "traceloop.span.kind": "tool",
            "traceloop.entity.name": "lookup",
            "traceloop.entity.input": json.dumps(
                {"tool_name": "lookup", "arguments": {"order_id": "A17"}}
            ),
        },
        name="lookup.tool",
        has_arguments=True,
    ),
    Row(
        "vercel 5",
        {
            "operation.name": "ai.toolCall helper",
            "ai.operationId": "ai.toolCall",
            "ai.toolCall.name": "lookup",
            "ai.toolCall.id": "c-1",
            "ai.toolCall.args": TEXT,
            "ai.toolCall.result": "{}",
            "ai.telemetry.functionId": "helper",
            "ai.telemetry.metadata.sessionId": "s-1",
            "ai.telemetry.metadata.userId": "u-1",
            "ai.telemetry.metadata.tenant": "acme",
        },
        name="ai.toolCall",
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="u-1",
        tenant="acme",
    ),
    Row(
        "vercel 7, legacy",
        {
            "ai.toolCall.name": "lookup",
            "ai.toolCall.id": "c-1",
            "ai.toolCall.args": TEXT,
            "ai.telemetry.functionId": "helper",
            "ai.settings.context.sessionId": "s-1",
            "ai.settings.context.userId": "u-1",
        },
        name="ai.toolCall",
        has_arguments=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="u-1",
    ),
    Row(
        "vercel 7, gen_ai",
        {**CALLED, "gen_ai.tool.call.arguments": TEXT},
        scope="gen_ai",
        above={
            **INVOKED,
            "gen_ai.request.model": "gpt-4o",
            "ai.settings.context.sessionId": "s-1",
            "ai.settings.context.userId": "u-1",
        },
        above_name="invoke_agent gpt-4o",
        has_arguments=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="u-1",
    ),
    Row(
        "pydantic-ai 2",
        {
            **CALLED,
            "gen_ai.tool.call.arguments": TEXT,
            "gen_ai.agent.name": "helper",
            "gen_ai.conversation.id": "s-1",
            "gen_ai.agent.call.id": "run-1",
        },
        has_arguments=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
    ),
    Row(
        "pydantic-ai 1",
        {
            "gen_ai.tool.name": "lookup",
            "gen_ai.tool.call.id": "c-1",
            "tool_arguments": TEXT,
            "tool_response": "1",
        },
        name="running tool",
        above={"agent_name": "helper", "model_name": "gpt-4o"},
        above_name="agent run",
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "langsmith",
        {
            **CALLED,
            "langsmith.span.kind": "tool",
            "gen_ai.prompt": TEXT,
            "gen_ai.completion": "{}",
            "langsmith.trace.session_name": "project",
            "langsmith.metadata.lc_agent_name": "helper",
            "langsmith.metadata.session_id": "s-1",
            "langsmith.metadata.thread_id": "t-1",
            "langsmith.metadata.user_id": "u-1",
        },
        name="lookup",
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="u-1",
    ),
    Row(
        "claude code",
        {
            "span.type": "tool",
            "tool_name": "mcp__demo__lookup",
            "tool_name_safe": "mcp_other",
            **CALLED,
            "gen_ai.conversation.id": "s-1",
            "session.id": "s-1",
            "anthropic.mcp.server.name": "demo",
            "tool_use_id": "c-1",
            "user.id": "installation",
            "user.email": "a@example.com",
            "organization.id": "acme",
        },
        name="claude_code.tool",
        call_id="c-1",
        session="s-1",
        user="installation",
        tenant="acme",
    ),
    Row(
        "claude code of May 2026",
        {
            "span.type": "tool",
            "tool_name": "mcp__demo__lookup",
            "session.id": "s-1",
            "user.account_uuid": "u-1",
        },
        name="claude_code.tool",
        session="s-1",
        user="u-1",
    ),
    Row(
        "claude code, Bash with details",
        {"span.type": "tool", "tool_name": "Bash", "full_command": TEXT, "session.id": "s-1"},
        name="claude_code.tool",
        events=(("tool.output", {"output": "x"}),),
        tool="Bash",
        has_arguments=True,
        has_result=True,
        session="s-1",
    ),
    Row(
        "google adk 2",
        {**CALLED, "gen_ai.agent.name": "helper", "gen_ai.tool.type": "FunctionTool"},
        above={**INVOKED, "gen_ai.conversation.id": "s-1"},
        call_id="c-1",
        agent="helper",
        session="s-1",
    ),
    Row(
        "google adk, schema 1",
        {
            **CALLED,
            "gen_ai.agent.name": "helper",
            "gcp.vertex.agent.tool_call_args": TEXT,
            "gcp.vertex.agent.tool_response": "{}",
        },
        above={OPERATION: "chat", "gcp.vertex.agent.session_id": "s-1"},
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
    ),
    Row(
        "google adk, schema 1 without content",
        {**CALLED, "gcp.vertex.agent.tool_call_args": "N/A"},
        call_id="c-1",
    ),
    Row(
        "google adk 1.14",
        {**CALLED, "gcp.vertex.agent.tool_call_args": TEXT},
        above={"gen_ai.system": "gcp.vertex.agent"},
        above_name="agent_run [helper]",
        has_arguments=True,
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "agent framework",
        {**CALLED, "gen_ai.tool.call.arguments": TEXT, "error.type": "ValueError"},
        above={**INVOKED, "gen_ai.agent.id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
        has_arguments=True,
        call_id="c-1",
        agent="helper",
        error=True,
    ),
    Row(
        "agent 365",
        {
            **CALLED,
            "gen_ai.agent.id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "microsoft.a365.agent.blueprint.id": "blueprint",
            "microsoft.session.id": "s-1",
            "microsoft.agent.user.id": "u-1",
            "microsoft.tenant.id": "acme",
        },
        call_id="c-1",
        agent="blueprint",
        session="s-1",
        user="u-1",
        tenant="acme",
    ),
    Row(
        "foundry's main agent",
        CALLED,
        resource={"microsoft.gen_ai.main_agent.name": "helper", "service.name": "app"},
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "the convention's main agent",
        CALLED,
        resource={"gen_ai.main_agent.name": "helper", "service.name": "app"},
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "semantic kernel",
        {**CALLED, "gen_ai.tool.name": "orders-lookup", "gen_ai.tool.call.arguments": TEXT},
        name="execute_tool orders-lookup",
        scope="semantic_kernel.functions.kernel_function",
        above=INVOKED,
        has_arguments=True,
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "autogen",
        {**CALLED, "gen_ai.system": "autogen"},
        above=INVOKED,
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "strands",
        {
            **CALLED,
            "session.id": "s-1",
            "user.id": "u-1",
            "tenant.id": "acme",
            "gen_ai.tool.status": "error",
        },
        events=(
            ("gen_ai.tool.message", {"role": "tool", "content": TEXT, "id": "c-1"}),
            ("gen_ai.choice", {"message": "[]", "id": "c-1"}),
        ),
        above=INVOKED,
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="u-1",
        tenant="acme",
        error=True,
    ),
    Row(
        "strands, latest",
        {**CALLED, "gen_ai.tool.call.arguments": TEXT, "gen_ai.tool.status": "success"},
        above=INVOKED,
        has_arguments=True,
        call_id="c-1",
        agent="helper",
    ),
    Row(
        "langfuse",
        {
            "langfuse.observation.type": "tool",
            "langfuse.observation.input": KWARGS,
            "langfuse.observation.output": "1",
            "langfuse.observation.level": "ERROR",
            "session.id": "s-1",
            "user.id": "u-1",
            "langfuse.trace.metadata.tenant": '"acme"',
        },
        name="lookup",
        above={"langfuse.observation.type": "agent"},
        above_name="helper",
        has_arguments=True,
        has_result=True,
        agent="helper",
        session="s-1",
        user="u-1",
        tenant="acme",
        error=True,
    ),
    Row(
        "mastra",
        {
            **CALLED,
            "mastra.span.type": "tool_call",
            "gen_ai.tool.call.arguments": TEXT,
            "gen_ai.conversation.id": "s-1",
        },
        above={**INVOKED, "mastra.span.type": "agent_run"},
        has_arguments=True,
        call_id="c-1",
        agent="helper",
        session="s-1",
    ),
    Row(
        "mastra without attributes",
        {"mastra.span.type": "mcp_tool_call"},
        name="lookup",
    ),
    Row(
        "spring ai 2",
        {
            OPERATION: "execute_tool",
            "spring.ai.kind": "tool_call",
            "spring.ai.tool.definition.name": "lookup",
            "spring.ai.tool.call.arguments": TEXT,
            "spring.ai.tool.call.result": "1",
            "spring.ai.tool.call.id": "c-1",
        },
        above={"spring.ai.kind": "chat_client", "spring.ai.chat.client.conversation.id": "s-1"},
        has_arguments=True,
        has_result=True,
        call_id="c-1",
        session="s-1",
    ),
    Row(
        "spring ai 1",
        {
            OPERATION: "framework",
            "spring.ai.kind": "tool_call",
            "spring.ai.tool.definition.name": "lookup",
            "spring.ai.tool.call.arguments": TEXT,
        },
        name="tool_call lookup",
        has_arguments=True,
    ),
    Row("mcp sdk, server", {**GENAI, "mcp.method.name": "tools/call"}, name="tools/call lookup"),
    Row("mcp sdk, client", {"mcp.method.name": "tools/call"}, name="MCP send tools/call lookup"),
    Row(
        "fastmcp",
        {
            "mcp.method.name": "tools/call",
            "gen_ai.tool.name": "lookup",
            "mcp.session.id": "new each call",
            "enduser.id": "client",
            "error.type": "tool_error",
        },
        name="tools/call lookup",
        user="client",
        error=True,
    ),
    Row(
        "codex",
        {
            "codex.tool.phase": "dispatch",
            "tool_name": "lookup",
            "call_id": "c-1",
            "conversation.id": "s-1",
            "user.account_id": "u-1",
            "thread.id": 4,
        },
        name="lookup",
        call_id="c-1",
        session="s-1",
        user="u-1",
    ),
    Row(
        "gemini cli",
        {
            "gen_ai.tool.name": "lookup",
            "gen_ai.tool.call_id": "c-1",
            "gen_ai.conversation.id": "s-1",
            "gen_ai.agent.name": "helper",
            "user.email": "a@example.com",
        },
        name="tool_call",
        call_id="c-1",
        agent="helper",
        session="s-1",
        user="a@example.com",
    ),
)

WHO = {"agent": AGENT, "session": SESSION, "user": USER, "tenant": TENANT}
every_row = pytest.mark.parametrize("case", ROWS, ids=[row.dialect for row in ROWS])


def body_of(case: Row, pairs: Pairs) -> bytes:
    """A request with the call, and under the same resource the span above it."""
    call = Span(
        trace_id=b"T" * 16,
        span_id=b"S" * 8,
        parent_span_id=b"P" * 8,
        name=case.name,
        attributes=traffic.attributes(pairs.items()),
    )
    for name, told in case.events:
        call.events.add(name=name, attributes=traffic.attributes(told.items()))
    above = Span(
        trace_id=b"T" * 16,
        span_id=b"P" * 8,
        name=case.above_name,
        attributes=traffic.attributes((case.above or {}).items()),
    )
    scope = InstrumentationScope(name=case.scope)
    return traffic.request([call, above], scope=scope, resource=case.resource.items())


def fingerprint(body: bytes, row: Record, role: int) -> int | None:
    """Of what lies in a role, out of its envelope; None where nothing does."""
    if row["order"][role] == ABSENT:
        return None
    at, length = int(row["at"][role]), int(row["length"][role])
    return read(body[at : at + length], int(row["kind"][role])).fingerprint


def strong(body: bytes, row: Record, role: int) -> str | None:
    """Who is meant, by what is not weak."""
    return text_of(body, row, role) if row["order"][role] < WEAK else None


def check_row(case: Row, pairs: Pairs) -> None:
    """The call of a row is read as a reader would, from these attributes."""
    body = body_of(case, pairs)
    columns = check_scan(body)
    assert columns is not None
    call, above = columns.rows
    assert call["flags"] & IS_CALL
    assert above["flags"] & IS_CALL == 0
    assert text_of(body, call, TOOL) == case.tool
    assert text_of(body, call, CALL_ID) == case.call_id
    expected = read(TEXT).fingerprint if case.has_arguments else None
    assert fingerprint(body, call, ARGUMENTS) == expected
    assert (fingerprint(body, call, RESULT) is not None) == case.has_result
    assert bool(call["flags"] & IS_ERROR) == case.error
    for who, role in WHO.items():
        said = strong(body, call, role)
        assert (strong(body, above, role) if said is None else said) == getattr(case, who), who


@every_row
def test_each_row(case: Row) -> None:
    """
    Scenario: a call as one framework writes it, in its smallest form, and the span above it.
    Guarantees: tool, call id, arguments, result, failure and all identities are what it says.
    """
    check_row(case, case.pairs)


@every_row
def test_each_row_in_another_order(case: Row) -> None:
    """
    Scenario: the same, its attributes the other way round and among others that mean nothing.
    Guarantees: the same.
    """
    other: Pairs = {"thread.id": 7, "code.function": "call", "empty": "", "list": ["a"]}
    check_row(case, {**dict(reversed(case.pairs.items())), **other})


@every_row
def test_each_row_through_the_json_door(case: Row) -> None:
    """
    Scenario: the same request as OTLP/JSON, its attributes as JSON has them.
    Guarantees: the bytes it is turned into are read the same.
    """
    body = body_of(case, case.pairs)
    document = naive.otlp_json(ExportTraceServiceRequest.FromString(body))
    turned = decode(json.dumps(document).encode(), Signal.TRACES)
    assert scan(turned, KEYS).rows["flags"].tolist() == scan(body, KEYS).rows["flags"].tolist()
    assert ExportTraceServiceRequest.FromString(turned) == ExportTraceServiceRequest.FromString(
        body
    )
