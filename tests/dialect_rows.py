"""Calls as the conventions and their followers write them, in the smallest honest form.

A row is one tool call with the span above it that says who made it. What is expected is what a
reader of the payload would say, not what the table of conventions says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
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


CONVENTION_ROWS = (
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
)
