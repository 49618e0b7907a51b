"""Seeded OTLP trace traffic, built with the protobuf classes: the same arguments, the same bytes.

Three kinds: spans and requests put together by hand (`tool_span`, `Agent`, `request`), what a busy
fleet sends (`benchmark_request`), and what only a hostile client sends (`random_request`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from tests.hostile import TRICKS, HostileWriter

Value: TypeAlias = "str | bool | int | float | bytes | Sequence[Value] | Mapping[str, Value] | None"
Attributes: TypeAlias = "Iterable[KeyValue | tuple[str, Value]]"

START_NS = 1_790_000_000_000_000_000
"""September 2026: where traffic begins when the caller does not say."""

SDK_RESOURCE: tuple[tuple[str, Value], ...] = (
    ("telemetry.sdk.language", "python"),
    ("telemetry.sdk.name", "opentelemetry"),
    ("telemetry.sdk.version", "1.45.2"),
    ("service.name", "support-desk"),
    ("service.instance.id", "6f0d5b0e-4d5c-4c0e-9a55-0f5f3a1b7c21"),
)
SDK_SCOPE = InstrumentationScope(name="opentelemetry.util.genai.handler", version="1.3b0")


def any_value(value: Value) -> AnyValue:
    """`value` as OTLP has it; None is the empty value."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=attributes(value.items())))
        case _:
            return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))


def attributes(pairs: Attributes) -> list[KeyValue]:
    """Attributes from pairs of key and Python value; ready ones pass."""
    return [
        pair if isinstance(pair, KeyValue) else KeyValue(key=pair[0], value=any_value(pair[1]))
        for pair in pairs
    ]


def tool_span(
    *,
    trace_id: bytes,
    span_id: bytes,
    start_ns: int,
    end_ns: int,
    tool: str | None,
    agent: str | None = None,
    session: str | None = None,
    user: str | None = None,
    tenant: str | None = None,
    call_id: str | None = None,
    arguments: str | None = None,
    result: str | None = None,
    error: bool = False,
    extra: Attributes = (),
) -> Span:
    """One executed tool call, as the OpenTelemetry GenAI conventions write it."""
    known = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": call_id,
        "gen_ai.agent.name": agent,
        "gen_ai.conversation.id": session,
        "user.id": user,
        "tenant.id": tenant,
        "gen_ai.tool.call.arguments": arguments,
        "gen_ai.tool.call.result": result,
        "error.type": "ToolError" if error else None,
    }
    said = [(key, value) for key, value in known.items() if value is not None]
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        name=f"execute_tool {tool}" if tool else "execute_tool",
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
        attributes=[*attributes(said), *attributes(extra)],
        status=Status(code=Status.STATUS_CODE_ERROR) if error else None,
    )


def request(
    spans: Iterable[Span],
    *,
    resource: Attributes = (),
    scope: InstrumentationScope | None = SDK_SCOPE,
) -> bytes:
    """An encoded ExportTraceServiceRequest with one resource and one scope."""
    scope_spans = ScopeSpans(scope=scope, spans=spans)
    resource_spans = ResourceSpans(
        resource=Resource(attributes=attributes(resource)), scope_spans=[scope_spans]
    )
    return ExportTraceServiceRequest(resource_spans=[resource_spans]).SerializeToString()


class Agent:
    """One simulated agent: it knows its name and never uses an id twice."""

    def __init__(
        self,
        name: str | None,
        *,
        session: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
        seed: int = 0,
    ) -> None:
        self.name, self.session, self.user, self.tenant = name, session, user, tenant
        self._random = random.Random(f"{seed}/{name}/{session}/{user}/{tenant}")
        self.trace_id = self._random.randbytes(16)

    def call(
        self,
        end_ns: int,
        tool: str | None = "lookup_order",
        *,
        duration_ns: int = 1_000_000,
        error: bool = False,
        extra: Attributes = (),
    ) -> Span:
        """A tool call that ends at `end_ns`, in the agent's one trace."""
        return tool_span(
            trace_id=self.trace_id,
            span_id=self._random.randbytes(8),
            start_ns=max(end_ns - duration_ns, 0),
            end_ns=end_ns,
            tool=tool,
            agent=self.name,
            session=self.session,
            user=self.user,
            tenant=self.tenant,
            error=error,
            extra=extra,
        )


TOOLS = (
    ("lookup_order", "Finds one order and tells its state.", "order_id"),
    ("get_customer", "Reads a customer record by id.", "customer_id"),
    ("send_email", "Sends a mail on behalf of support.", "to"),
    ("web_search", "Returns the first ten hits of the web.", "query"),
    ("run_sql", "Runs a read-only statement.", "statement"),
)


BENCHMARK_ARGUMENT_BYTES = 60


def benchmark_request(
    spans: int = 512,
    agents: int = 10_000,
    seed: int = 1,
    *,
    start_ns: int = START_NS,
    argument_bytes: int = BENCHMARK_ARGUMENT_BYTES,
) -> bytes:
    """What a busy fleet sends: `spans` tool calls of agents drawn from `agents`, 530 B each.

    An agent's name and its one session depend on its number alone, so two seeds share agents but
    not ids. The calls end one after the other, a millisecond apart from `start_ns` on. Each has
    `argument_bytes` bytes of arguments: words, when there are more than the usual.
    """
    rng = random.Random(seed)
    calls = [
        _benchmark_span(rng, rng.randrange(agents), start_ns + index * 1_000_000, argument_bytes)
        for index in range(spans)
    ]
    return request(calls, resource=SDK_RESOURCE)


PROSE = (
    "please check whether the parcel that was ordered on Monday has left the warehouse, and if it"
    " has not, write to the customer that it will be sent to the new address within two days."
)


def _benchmark_span(
    rng: random.Random, agent: int, end_ns: int, argument_bytes: int = BENCHMARK_ARGUMENT_BYTES
) -> Span:
    tool, description, argument = TOOLS[rng.randrange(len(TOOLS))]
    said = rng.randbytes(32).hex()
    if argument_bytes > BENCHMARK_ARGUMENT_BYTES:
        words = PROSE.split()
        said += "".join(f" {rng.choice(words)}" for _ in range(argument_bytes // 2))
    arguments = json.dumps({argument: said[: argument_bytes - len(json.dumps({argument: ""}))]})
    span = tool_span(
        trace_id=rng.randbytes(16),
        span_id=rng.randbytes(8),
        start_ns=end_ns - rng.randrange(1_000_000, 2_000_000_000),
        end_ns=end_ns,
        tool=tool,
        agent=f"agent-{agent:07d}",
        session=f"conv-{agent:07d}",
        call_id=f"call_{rng.randbytes(12).hex()}",
        arguments=arguments,
        extra=[
            ("gen_ai.tool.description", description),
            ("gen_ai.provider.name", "openai"),
        ],
    )
    # The Python SDK writes these three on every child span.
    span.parent_span_id, span.flags = rng.randbytes(8), 0x101
    span.status.SetInParent()
    return span


WORDS = (
    "",
    "a",
    "execute_tool",
    "lookup_order",
    "s-1",
    "s-2",
    "\u00fcber-agent",
    "\U0001f916",
    'quote " and \\ and \u2028',
    "\x00\x1f\x7f",
    "x" * 127,
    "x" * 128,
    "y" * 300,
)
KEYS = (
    "gen_ai.operation.name",
    "gen_ai.tool.name",
    "gen_ai.tool.call.id",
    "gen_ai.tool.call.arguments",
    "gen_ai.agent.name",
    "gen_ai.agent.id",
    "gen_ai.conversation.id",
    "session.id",
    "user.id",
    "enduser.id",
    "tenant.id",
    "organization.id",
    "service.name",
    "error.type",
    "anomaly.action",
    "anomaly.signal.rate",
    "anomaly.",
    "anomaly",
    "anomalyx.score",
    "gen_ai.operation.nam",
    "gen_ai.operation.name2",
    "http.method",
    "",
    "k" * 200,
)
EDGES = (0, 1, -1, 127, 128, 100, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))
TIMES_NS = (0, 1, START_NS, START_NS + 1, START_NS + 60_000_000_000, 2**63, 2**64 - 1)


def random_request(seed: int, *, spans: int = 8, tricks: Collection[str] = TRICKS) -> bytes:
    """A request that is valid protobuf and otherwise whatever a hostile client may send.

    All kinds of values, nested; duplicate keys; forged verdicts; broken ids and times; empty
    envelopes. On the wire, by `tricks` (see `hostile`): everything the format allows.
    At most nine scopes of at most `spans` spans.
    """
    rng = random.Random(seed)
    message = ExportTraceServiceRequest(
        resource_spans=[_random_resource_spans(rng, spans) for _ in range(rng.randrange(4))]
    )
    return HostileWriter(rng, tricks).message(message)


def random_value(rng: random.Random, depth: int = 3) -> Value:
    """A value of any OTLP type; lists and maps only while `depth` lasts."""
    match rng.randrange(9 if depth else 6):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice(EDGES)
        case 3:
            return rng.choice((0.0, -0.5, 1e300, float("inf"), float("-inf"), float("nan")))
        case 4:
            return rng.randbytes(rng.choice((0, 1, 5, 130)))
        case 5 | 6:
            return rng.choice(WORDS)
        case 7:
            return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            names = ("", "a", "gen_ai.tool.name", "session.id")
            return {name: random_value(rng, depth - 1) for name in rng.sample(names, 2)}


def _random_attributes(rng: random.Random, count_max: int) -> list[KeyValue]:
    pairs: list[KeyValue] = []
    for _ in range(rng.randrange(count_max + 1)):
        value = rng.choice(WORDS) if rng.random() < 0.6 else random_value(rng)
        pair = KeyValue(key=rng.choice(KEYS), value=any_value(value))
        if rng.random() < 0.05:
            pair.ClearField("value")
        pairs.append(pair)
    return pairs


def _random_id(rng: random.Random, length: int) -> bytes:
    if rng.random() < 0.8:
        return rng.randbytes(length)
    return rng.choice((b"", bytes(length), rng.randbytes(length - 1), rng.randbytes(length + 1)))


def _random_span(rng: random.Random) -> Span:
    pairs = _random_attributes(rng, 12)
    if rng.random() < 0.6:
        pairs += attributes([("gen_ai.operation.name", "execute_tool")])
    rng.shuffle(pairs)
    span = Span(
        trace_id=_random_id(rng, 16),
        span_id=_random_id(rng, 8),
        trace_state=rng.choice(WORDS),
        parent_span_id=_random_id(rng, 8),
        flags=rng.choice((0, 1, 0x101, 2**32 - 1)),
        name=rng.choice(WORDS),
        kind=rng.randrange(6),  # type: ignore[arg-type]  # Any number is a legal enum.
        start_time_unix_nano=rng.choice(TIMES_NS),
        end_time_unix_nano=rng.choice(TIMES_NS),
        attributes=pairs,
        dropped_attributes_count=rng.choice((0, 1, 2**32 - 1)),
    )
    if rng.random() < 0.5:
        span.status.code = rng.choice((0, 1, 2, 3, -1))  # type: ignore[assignment]
        span.status.message = rng.choice(WORDS)
    for _ in range(rng.choice((0, 0, 1, 2))):
        span.events.add(name=rng.choice(WORDS), attributes=_random_attributes(rng, 3))
        span.links.add(trace_id=_random_id(rng, 16), attributes=_random_attributes(rng, 3))
    return span


def _random_resource_spans(rng: random.Random, spans: int) -> ResourceSpans:
    message = ResourceSpans(schema_url=rng.choice(("", "https://opentelemetry.io/schemas/1.40.0")))
    if rng.random() < 0.8:
        message.resource.attributes.extend(_random_attributes(rng, 6))
    for _ in range(rng.randrange(4)):
        scope_spans = message.scope_spans.add(
            spans=[_random_span(rng) for _ in range(rng.randrange(spans + 1))]
        )
        if rng.random() < 0.7:
            scope_spans.scope.name = rng.choice(WORDS)
            scope_spans.scope.attributes.extend(_random_attributes(rng, 3))
    return message
