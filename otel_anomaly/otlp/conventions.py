"""The table: which attribute of which instrumentation means what. Data only, one row a dialect.

A row says which marks a tool call carries, and which keys name the tool, its arguments, result,
call id and failure. The order of the rows is the order in which their keys are preferred. Grounds:
captured payloads of the packages named, their sources, and the GenAI and MCP conventions (1.41).

    mark        (key, value), (key, (value, value, ..)) or (key, "*"): any value but an empty one;
                a value also counts in lower case, in upper case and with a capital
    SPAN_NAME   in place of a key: the span's name; a trailing `*` stands for any text
    EventKey    an attribute of a span event
    BodyKey     a value inside the body of a log record
    derived     a fact that stands inside another: `invoke_agent X` names the agent X

A call is what fits one row. Spans that name another operation are none, whatever else they carry:
`chain` or `agent_step` may hold the definitions of tools.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SPAN_NAME: Final = "(span name)"
ANY_TEXT: Final = "*"


class EventKey(NamedTuple):
    """An attribute of a span event."""

    event: str
    key: str


class BodyKey(NamedTuple):
    """A value inside a log record's body: names on the way to it, numbers for items of lists."""

    path: tuple[str | int, ...]


Key = str | EventKey | BodyKey
Mark = tuple[str | BodyKey, str | tuple[str, ...]]


class Dialect(NamedTuple):
    """How one convention tells of a tool call."""

    name: str
    when: tuple[Mark, ...]
    """All must be there."""
    unless: tuple[Mark, ...] = ()
    """None may be."""
    tool: tuple[Key, ...] = ()
    """Keys of the tool's name, in order of preference; so are those of the others."""
    arguments: tuple[Key, ...] = ()
    result: tuple[Key, ...] = ()
    call_id: tuple[Key, ...] = ()
    error: tuple[Key, ...] = ()
    """Keys whose presence with a value says that the call failed."""
    logs: bool = False
    """Told by log records, not by spans."""
    lenient: bool = False
    """Only where the configuration asks for it: may take for a call what is none."""


class Derived(NamedTuple):
    """A fact inside another: the text between `prefix` and `suffix`."""

    role: str
    """Of `dialects.ROLES`."""
    source: str
    """A key, or SPAN_NAME."""
    prefix: str = ""
    suffix: str = ""
    when: tuple[Mark, ...] = ()
    of_calls: bool = False
    """Only where the span is a tool call; a tool's name always is."""


_OPERATION = "gen_ai.operation.name"
_NO_OPERATION: tuple[Mark, ...] = ((_OPERATION, ANY_TEXT),)
_ASKED: tuple[str | int, ...] = ("input", "messages", 0)
_ANSWERED: tuple[str | int, ...] = ("output", "messages", 0)
_MESSAGES = "gen_ai.client.inference.operation.details"

DIALECTS: Final[tuple[Dialect, ...]] = (
    # The conventions, and all who follow them: OpenTelemetry's own, Google ADK, Agent Framework,
    # Semantic Kernel, AutoGen, Strands, Pydantic AI, Vercel AI 7, Mastra, Traceloop, Claude Code.
    Dialect(
        name="otel_genai",
        when=((_OPERATION, "execute_tool"),),
        tool=("gen_ai.tool.name",),
        arguments=("gen_ai.tool.call.arguments",),
        result=("gen_ai.tool.call.result",),
        call_id=("gen_ai.tool.call.id",),
        error=("error.type",),
    ),
    Dialect(
        name="openinference",
        when=(("openinference.span.kind", "TOOL"),),
        unless=_NO_OPERATION,
        tool=("tool.name",),
        arguments=("input.value",),
        result=("output.value",),
        call_id=("tool_call.id", "tool.id"),
    ),
    Dialect(
        name="vercel_ai",
        when=(("ai.operationId", "ai.toolCall"),),
        unless=_NO_OPERATION,
        tool=("ai.toolCall.name",),
        arguments=("ai.toolCall.args", "ai.toolCall.input"),
        result=("ai.toolCall.result", "ai.toolCall.output"),
        call_id=("ai.toolCall.id",),
    ),
    Dialect(name="vercel_ai_name", when=((SPAN_NAME, "ai.toolCall"),), unless=_NO_OPERATION),
    Dialect(
        name="spring_ai",
        when=(("spring.ai.kind", "tool_call"),),
        unless=_NO_OPERATION,
        tool=("spring.ai.tool.definition.name",),
        arguments=("spring.ai.tool.call.arguments",),
        result=("spring.ai.tool.call.result",),
        call_id=("spring.ai.tool.call.id",),
    ),
    Dialect(
        name="spring_ai_1",
        when=(("spring.ai.kind", "tool_call"), (_OPERATION, "framework")),
    ),
    # Pydantic AI 1.0: `running tool`, no operation.
    Dialect(
        name="pydantic_ai_1",
        when=(("gen_ai.tool.name", ANY_TEXT), ("tool_arguments", ANY_TEXT)),
        unless=_NO_OPERATION,
        arguments=("tool_arguments",),
        result=("tool_response",),
    ),
    Dialect(
        name="named_with_call_id",
        when=(("gen_ai.tool.name", ANY_TEXT), ("gen_ai.tool.call.id", ANY_TEXT)),
        unless=_NO_OPERATION,
    ),
    Dialect(
        name="gemini_cli",
        when=(("gen_ai.tool.name", ANY_TEXT), ("gen_ai.tool.call_id", ANY_TEXT)),
        unless=_NO_OPERATION,
        call_id=("gen_ai.tool.call_id",),
    ),
    Dialect(
        name="claude_code",
        when=(("span.type", "tool"), ("tool_name", ANY_TEXT)),
        unless=_NO_OPERATION,
        tool=("tool_name",),
        call_id=("tool_use_id",),
        error=("error_type",),
    ),
    Dialect(
        name="codex",
        when=(("codex.tool.phase", "dispatch"),),
        unless=_NO_OPERATION,
        tool=("tool_name",),
        call_id=("call_id",),
    ),
    # Schema 1 of Google ADK: the arguments of what `otel_genai` finds.
    Dialect(
        name="google_adk",
        when=((_OPERATION, "execute_tool"),),
        arguments=("gcp.vertex.agent.tool_call_args",),
        result=("gcp.vertex.agent.tool_response",),
    ),
    Dialect(
        name="langfuse",
        when=(("langfuse.observation.type", "tool"),),
        unless=_NO_OPERATION,
        arguments=("langfuse.observation.input",),
        result=("langfuse.observation.output",),
    ),
    Dialect(
        name="traceloop",
        when=(("traceloop.span.kind", "tool"),),
        unless=_NO_OPERATION,
        tool=("traceloop.entity.name",),
        arguments=("traceloop.entity.input",),
        result=("traceloop.entity.output",),
    ),
    Dialect(
        name="mcp",
        when=(("mcp.method.name", "tools/call"),),
        unless=_NO_OPERATION,
        error=("rpc.response.status_code",),
    ),
    Dialect(name="langsmith", when=(("langsmith.span.kind", "tool"),), unless=_NO_OPERATION),
    Dialect(
        name="mastra",
        when=(
            (
                "mastra.span.type",
                ("tool_call", "mcp_tool_call", "provider_tool_call", "client_tool_call"),
            ),
        ),
        unless=_NO_OPERATION,
    ),
    # Content that stands in events of the span: Strands, ADOT; then Claude Code's, by its tools.
    Dialect(
        name="span_events",
        when=((_OPERATION, "execute_tool"),),
        arguments=(
            EventKey("gen_ai.tool.message", "content"),
            EventKey(_MESSAGES, "gen_ai.input.messages"),
            "full_command",
        ),
        result=(
            EventKey("gen_ai.choice", "message"),
            EventKey(_MESSAGES, "gen_ai.output.messages"),
            EventKey("tool.output", "output"),
            EventKey("tool.output", "content"),
        ),
        call_id=(EventKey("gen_ai.tool.message", "id"),),
        # An exception that the tool caught, or a framework for it: the status may say OK.
        error=(
            EventKey("exception", "exception.type"),
            EventKey("exception", "exception.message"),
            EventKey("gen_ai.choice", "status"),
        ),
    ),
    # Log records. A decision about a call is not the call.
    Dialect(
        name="claude_code_log",
        when=(
            ("event.name", ("tool_result", "claude_code.tool_result")),
            ("tool_name", ANY_TEXT),
        ),
        tool=("mcp_tool_name", "tool_parameters.mcp_tool_name"),
        arguments=("tool_input", "tool_parameters"),
        logs=True,
    ),
    Dialect(
        name="codex_log",
        when=(("event.name", "codex.tool_result"),),
        arguments=("arguments",),
        result=("output",),
        logs=True,
    ),
    Dialect(
        name="gemini_cli_log",
        when=(("event.name", ("gemini_cli.tool_call", "qwen-code.tool_call")),),
        tool=("function_name",),
        arguments=("function_args",),
        logs=True,
    ),
    # What the AWS distribution takes out of the spans of Strands, in records joined by their ids.
    # One message to a tool is a call; among others it is what a model is told of an earlier one.
    Dialect(
        name="adot_log",
        when=(
            (BodyKey((*_ASKED, "role")), "tool"),
            (BodyKey((*_ASKED, "content", "id")), ANY_TEXT),
        ),
        unless=(
            (BodyKey(("input", "messages", 1, "role")), ANY_TEXT),
            (BodyKey((*_ANSWERED, "content", "finish_reason")), ANY_TEXT),
        ),
        arguments=(BodyKey((*_ASKED, "content", "content")),),
        result=(BodyKey((*_ANSWERED, "content", "message")),),
        call_id=(BodyKey((*_ASKED, "content", "id")),),
        logs=True,
    ),
    Dialect(
        name="named",
        when=(("gen_ai.tool.name", ANY_TEXT),),
        unless=_NO_OPERATION,
        lenient=True,
    ),
    Dialect(
        name="span_named",
        when=((SPAN_NAME, "execute_tool *"),),
        unless=_NO_OPERATION,
        lenient=True,
    ),
    Dialect(
        name="anthropic",
        when=((SPAN_NAME, "anthropic.tool_use *"),),
        unless=_NO_OPERATION,
        lenient=True,
    ),
)

PARTS: Final[tuple[Mark, ...]] = (("span.type", ("tool.execution", "tool.blocked_on_user")),)
"""Marks of a span that is a part of a tool's span, and never a call."""

NO_CALLS: Final[tuple[Mark, ...]] = (
    *PARTS,
    # Google ADK adds a span for parallel calls that is not a call itself.
    ("gen_ai.tool.name", "(merged tools)"),
)
"""Marks of what looks like a call and is none."""

MCP: Final[tuple[Mark, ...]] = (("mcp.method.name", ANY_TEXT),)

FAILURES: Final[tuple[Mark, ...]] = (
    ("gen_ai.tool.status", "error"),
    ("langfuse.observation.level", "ERROR"),
    ("success", "false"),
)
"""Marks of a failure, beside the span's own status and the keys of errors."""

BOUNDARIES: Final[tuple[Mark, ...]] = (
    (
        _OPERATION,
        (
            "invoke_agent",
            "create_agent",
            "invoke_workflow",
            "chat",
            "generate_content",
            "text_completion",
        ),
    ),
    ("openinference.span.kind", ("AGENT", "LLM")),
    ("traceloop.span.kind", ("agent", "workflow")),
    ("langsmith.span.kind", "llm"),
    ("langfuse.observation.type", ("agent", "generation")),
    ("span.type", ("interaction", "llm_request")),
    (
        "ai.operationId",
        (
            "ai.generateText",
            "ai.generateText.doGenerate",
            "ai.streamText",
            "ai.streamText.doStream",
            "ai.generateObject",
            "ai.generateObject.doGenerate",
            "ai.streamObject",
            "ai.streamObject.doStream",
        ),
    ),
    ("mastra.span.type", ("agent_run", "workflow_run", "model_generation", "llm_generation")),
    ("spring.ai.kind", "chat_client"),
    ("llm.request.type", ANY_TEXT),
    (SPAN_NAME, "invoke_agent *"),
    (SPAN_NAME, "agent_run [*"),
    (SPAN_NAME, "agent run"),
)
"""Marks of an agent or a model: a call of a tool below it is a call of its own."""

MODELS: Final = (
    "gen_ai.request.model",
    "gen_ai.response.model",
    "llm.model_name",
    "ai.model.id",
    "model",
)
"""Keys of the model's name, which some frameworks also write where the agent's belongs."""

_TOOL_KIND: tuple[Mark, ...] = (("langsmith.span.kind", "tool"),)
_AGENT_KIND: tuple[Mark, ...] = (("openinference.span.kind", "AGENT"),)

DERIVED: Final[tuple[Derived, ...]] = (
    # LangSmith writes a tool's input and output under the names of a model's.
    Derived("arguments", "gen_ai.prompt", when=_TOOL_KIND),
    Derived("result", "gen_ai.completion", when=_TOOL_KIND),
    Derived("agent", "graph.node.id", when=_AGENT_KIND),
    Derived("agent", "traceloop.entity.name", when=(("traceloop.span.kind", "agent"),)),
    Derived("agent", SPAN_NAME, when=(("langfuse.observation.type", "agent"),)),
    Derived("agent", SPAN_NAME, "agent_run [", "]"),
    Derived("agent", SPAN_NAME, suffix=".run", when=_AGENT_KIND),
    Derived("agent", SPAN_NAME, "invoke_agent "),
    Derived("tool", SPAN_NAME, "execute_tool ", of_calls=True),
    Derived("tool", SPAN_NAME, "MCP send tools/call ", of_calls=True),
    Derived("tool", SPAN_NAME, "tools/call ", of_calls=True),
    Derived("tool", SPAN_NAME, "tool_call ", of_calls=True),
    Derived("tool", SPAN_NAME, "anthropic.tool_use ", of_calls=True),
    Derived("tool", SPAN_NAME, suffix=".tool", of_calls=True),
    # Langfuse, and whoever tells a call and no name.
    Derived("tool", SPAN_NAME, of_calls=True),
)

PLACEHOLDERS: Final = ("OpenAI Agent", "agent", "unknown", "default")
"""Texts that stand where an agent's name belongs and name none, in any case.

White space around them does not count.
"""
NO_SERVICE: Final = "unknown_service"
"""What SDKs write for the name of a service that has none, also with `:` and a program behind."""

PLUGIN_SCOPES: Final = ("semantic_kernel", "Microsoft.SemanticKernel")
"""Scopes whose name begins so name a tool `plugin-function`: the tool that runs is the function.

A plugin's name has no `-` in it. A function without a plugin that has one loses what is before it.
"""

NO_TOOL: Final = ("mcp_tool",)
"""Claude Code's log records call every tool of every MCP server so, unless told to say more."""
NO_CALL_ID: Final = ("unknown", "none", "null", "n/a")
NO_ARGUMENTS: Final = ("n/a",)
NO_ERROR: Final = ("ok", "success", "0", "false", "none", "null")
"""Values, also numbers and booleans, that stand where an error is told and tell of none."""

SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
DOCUMENTS: Final = ("metadata", "tool_parameters")
"""Attributes that hold an object, as JSON or as a map: its members are keys `<attribute>.<name>`.

OpenInference tells there what the application knows; Claude Code which tool of which server.
"""
EVENT_TIME: Final = "event.timestamp"
"""The time of a log record (RFC 3339), for one whose own fields hold none."""
