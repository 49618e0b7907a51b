"""Random spans and log records in the words of every convention, right and slightly wrong.

Beside `traffic`, whose requests are hostile to the wire: these are hostile to recognition. Keys,
values and names come from the table itself, so a new row of it is tested by being there.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from otel_anomaly.config import IdentityConfig
from otel_anomaly.otlp import conventions
from otel_anomaly.otlp.conventions import (
    ANY_TEXT,
    DERIVED,
    DIALECTS,
    SPAN_NAME,
    BodyKey,
    EventKey,
    Key,
)
from tests import traffic
from tests.hostile import TRICKS, HostileWriter

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.traffic import Value

_MARKS = tuple(
    mark
    for marks in (
        *(dialect.when + dialect.unless for dialect in DIALECTS),
        *(rule.when for rule in DERIVED),
        conventions.NO_CALLS,
        conventions.FAILURES,
        conventions.BOUNDARIES,
        conventions.MCP,
    )
    for mark in marks
)
_KEYS = tuple(
    dict.fromkeys(
        [
            *(
                key
                for dialect in DIALECTS
                for key in (
                    *dialect.tool,
                    *dialect.arguments,
                    *dialect.result,
                    *dialect.call_id,
                    *dialect.error,
                )
            ),
            *(rule.source for rule in DERIVED if rule.source != SPAN_NAME),
            *conventions.MODELS,
        ]
    )
)
_BODY_KEYS = tuple(
    dict.fromkeys(key for key in (*_KEYS, *dict(_MARKS)) if isinstance(key, BodyKey))
)


def _parts(key: Key) -> tuple[str, ...]:
    """The texts that a key is made of."""
    if isinstance(key, BodyKey):
        return tuple(step for step in key.path if isinstance(step, str))
    return (key,) if isinstance(key, str) else key


_IDENTITIES = IdentityConfig()
_WHO = tuple(
    key
    for keys in (_IDENTITIES.tenant, _IDENTITIES.agent, _IDENTITIES.session, _IDENTITIES.user)
    for key in keys
)
WORDS: tuple[str, ...] = (
    "",
    "a",
    "x-agent",
    "gpt-4o",
    "gpt-4o",
    '"gpt-4o"',
    '"quoted"',
    '""',
    '"',
    "Agent",
    "openai agent",
    "unknown",
    "UNKNOWN",
    "None",
    "n/a",
    "N/A",
    "NULL",
    "call_0",
    "mcp__server__tool",
    "mcp__a__b__c",
    "mcp____x",
    "mcp__a__",
    "mcp___x__y",
    "mcp_",
    "mcp__",
    "plugin-function",
    "mcp__server__plugin-function",
    "-a-b-c",
    "a--",
    "a-",
    "(merged tools)",
    '{"a": 1}',
    "true",
    "false",
    "\u00fcber",
    "w" * 300,
    "agent" + " " * 60,
    " default ",
    " \n",
    "unknown_service",
    "unknown_service:python",
    " unknown_service:x",
    "unknown_servic",
    "success",
    "OK",
    "0",
)
SCOPES = (
    "",
    "x",
    "semantic_kernel",
    "semantic_kernel.functions.kernel_function",
    "Microsoft.SemanticKernel",
    "semantic_kerne",
    "semantic-kernel",
    "a.semantic_kernel",
)
NAMES = (
    *WORDS,
    "ai.toolCall",
    "ai.toolCal",
    "ai.toolCalls",
    "execute_tool x",
    "execute_tool ",
    "execute_tool mcp__s__t",
    "execute_tool plugin-function",
    "MCP send tools/call x",
    "tools/call x",
    "tool_call x",
    "x.tool",
    ".tool",
    "x.run",
    ".run",
    "agent_run [x]",
    "agent_run []",
    "agent_run [x",
    "invoke_agent x",
    "invoke_agent gpt-4o",
    "invoke_agent ",
    "invoke_agent agent",
    "agent run",
    "anthropic.tool_use x",
)
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *(part for key in _KEYS for part in _parts(key)),
            *_WHO,
            *(part for key, _ in _MARKS if key != SPAN_NAME for part in _parts(key)),
            *(
                value
                for _, values in _MARKS
                for value in ((values,) if isinstance(values, str) else values)
            ),
            *SCOPES,
            *NAMES,
        ]
    )
)
"""Every text that means something, and some that nearly do."""


MEMBERS = tuple(
    key.partition(".")[2]
    for key in (*_WHO, *(key for key in _KEYS if isinstance(key, str)))
    if key.partition(".")[0] in conventions.DOCUMENTS
)
"""Members of documents that mean something."""


def _document(rng: random.Random) -> Value:
    """An object as JSON or as a map."""
    if rng.random() < 0.7:
        return json_text(rng)
    return {rng.choice((*MEMBERS, "other", "")): rng.choice((*WORDS, 1, True)) for _ in range(3)}


def json_text(rng: random.Random) -> str:
    """JSON as in `metadata`: members of all kinds, white space, at times cut or spoilt."""
    names = [*MEMBERS]
    values: list[Any] = [*WORDS[:12], 1, 1.5, None, True, {"user_id": "in"}, ["]", "}"], "\u00e9"]
    document = {
        rng.choice([*names, "other", "k\u00e9y", "k" * 400]): rng.choice(values)
        for _ in range(rng.randrange(6))
    }
    said = json.dumps(
        document,
        indent=rng.choice((None, 2)),
        ensure_ascii=rng.random() < 0.5,
        separators=rng.choice((None, (",", ":"), (" ,", ": "))),
    )
    match rng.randrange(8):
        case 0:
            return said[: rng.randrange(len(said) + 1)]
        case 1:
            at = rng.randrange(len(said))
            return said[:at] + rng.choice('{}[]",:\\ nx') + said[at + rng.randrange(2) :]
        case _:
            return said


def _value(rng: random.Random) -> Value:
    return rng.choice(WORDS) if rng.random() < 0.8 else traffic.random_value(rng, 2)


def _of_mark(rng: random.Random) -> tuple[str, Value]:
    mark, values = rng.choice(_MARKS)
    key = _parts(mark)[-1]
    value = values if isinstance(values, str) else rng.choice(values)
    if value == ANY_TEXT or rng.random() < 0.1:
        return key, _value(rng)
    return key, (value == "true" if value in {"true", "false"} and rng.random() < 0.5 else value)


def _pair(rng: random.Random) -> tuple[str, Value]:
    match rng.randrange(8):
        case 0 | 1 | 2:
            return _of_mark(rng)
        case 3 | 4:
            return _parts(rng.choice(_KEYS))[-1], _value(rng)
        case 5:
            return rng.choice(_WHO), _value(rng)
        case 6:
            return rng.choice(conventions.DOCUMENTS), _document(rng)
        case _:
            return rng.choice((*traffic.KEYS, "service.namespace")), _value(rng)


def _pairs(rng: random.Random, most: int) -> list[tuple[str, Value]]:
    pairs = [_pair(rng) for _ in range(rng.randrange(most))]
    return [(key, value) for key, value in pairs if key != SPAN_NAME]


def _whole(rng: random.Random, *, logs: bool) -> list[tuple[str, Value]]:
    """The marks of one dialect, so that some are calls, and more."""
    dialect = rng.choice([dialect for dialect in DIALECTS if dialect.logs == logs])
    pairs: list[tuple[str, Value]] = []
    for key, values in dialect.when:
        value = values if isinstance(values, str) else rng.choice(values)
        if isinstance(key, str) and key != SPAN_NAME:
            pairs.append((key, "x" if value == ANY_TEXT else value))
    more = _pairs(rng, 8) if rng.random() < 0.8 else []
    pairs += more if rng.random() < 0.5 else [p for p in more if "operation" not in p[0]]
    rng.shuffle(pairs)
    return pairs


def random_pairs(rng: random.Random, *, logs: bool) -> list[tuple[str, Value]]:
    """Attributes of a span or a log record, often those of a tool call."""
    return _whole(rng, logs=logs) if rng.random() < 0.5 else _pairs(rng, 4)


def _id(rng: random.Random, length: int) -> bytes:
    return rng.randbytes(length) if rng.random() < 0.9 else rng.choice((b"", bytes(length), b"x"))


def _span(rng: random.Random) -> Span:
    pairs = _whole(rng, logs=rng.random() < 0.1) if rng.random() < 0.6 else _pairs(rng, 10)
    span = Span(
        trace_id=_id(rng, 16),
        span_id=_id(rng, 8),
        parent_span_id=_id(rng, 8),
        name=rng.choice(NAMES),
        kind=rng.randrange(6),  # type: ignore[arg-type]  # Any number is a legal enum.
        start_time_unix_nano=rng.choice(traffic.TIMES_NS),
        attributes=traffic.attributes(pairs),
    )
    for _ in range(rng.choice((0, 0, 1, 2))):
        known = [key for key in _KEYS if isinstance(key, EventKey)]
        event, key = rng.choice(known)
        said = traffic.attributes([(key, _value(rng)), (rng.choice(known).key, _value(rng))])
        span.events.add(name=event if rng.random() < 0.8 else key, attributes=said)
    return span


def _body(rng: random.Random) -> Value:
    """A body with some of the values that the table looks for, in the place of one that is not."""
    told = dict(mark for mark in _MARKS if isinstance(mark[0], BodyKey))
    body: Value = rng.choice(("", {}, {"input": {"messages": []}}))
    for key in rng.sample(_BODY_KEYS, rng.randrange(len(_BODY_KEYS) + 1)):
        said = told.get(key, ANY_TEXT)
        assert isinstance(said, str)
        body = _put(body, key.path, _value(rng) if said == ANY_TEXT else said)
    return body


def _put(inside: Any, path: tuple[str | int, ...], value: Value) -> Value:
    """`inside` with a value at the end of a way, whatever stood there."""
    if not path:
        return value
    step, *rest = path
    if isinstance(step, int):
        items = list(inside) if isinstance(inside, list) else []
        items += [None] * (step + 1 - len(items))
        items[step] = _put(items[step], tuple(rest), value)
        return items
    members = dict(inside) if isinstance(inside, dict) else {}
    return {**members, step: _put(members.get(step), tuple(rest), value)}


def _record(rng: random.Random) -> LogRecord:
    pairs = _whole(rng, logs=rng.random() < 0.9) if rng.random() < 0.7 else _pairs(rng, 10)
    record = LogRecord(
        time_unix_nano=rng.choice(traffic.TIMES_NS),
        observed_time_unix_nano=rng.choice(traffic.TIMES_NS),
        severity_number=rng.randrange(30),  # type: ignore[arg-type]
        severity_text=rng.choice(WORDS),
        trace_id=_id(rng, 16),
        span_id=_id(rng, 8),
        flags=rng.choice((0, 1, 2**32 - 1)),
        dropped_attributes_count=rng.choice((0, 1, 2**32 - 1)),
    )
    if rng.random() < 0.3:
        times = ("2026-11-21T09:14:56.721Z", "2026-11-21 10:14:56+01:00", "2026-11-21", "")
        pairs.insert(0, (conventions.EVENT_TIME, rng.choice(times)))
    events = ["claude_code.tool_result", "codex.tool_result", "tool_decision", ""]
    if rng.random() < 0.5:
        said = rng.choice((rng.choice(events), traffic.random_value(rng, 2), _body(rng)))
        record.body.CopyFrom(traffic.any_value(said))
    if rng.random() < 0.3:
        record.event_name = rng.choice(events)
        pairs = [pair for pair in pairs if pair[0] != "event.name"]
    record.attributes.extend(traffic.attributes(pairs))
    return record


def random_request(
    seed: int, *, logs: bool, children: int = 8, tricks: Collection[str] = TRICKS
) -> bytes:
    """A request of spans or of log records."""
    rng = random.Random(f"{seed}/{logs}")
    message = ExportLogsServiceRequest() if logs else ExportTraceServiceRequest()
    for _ in range(rng.randrange(1, 3)):
        count = rng.randrange(children + 1)
        place: ResourceSpans | ResourceLogs
        scope: ScopeSpans | ScopeLogs
        if isinstance(message, ExportLogsServiceRequest):
            place = message.resource_logs.add()
            scope = place.scope_logs.add(log_records=[_record(rng) for _ in range(count)])
        else:
            place = message.resource_spans.add()
            scope = place.scope_spans.add(spans=[_span(rng) for _ in range(count)])
        place.schema_url = rng.choice(WORDS)
        scope.schema_url = rng.choice(WORDS)
        if rng.random() < 0.8:
            scope.scope.name = rng.choice(SCOPES)
        if rng.random() < 0.7:
            said = [*_pairs(rng, 4), ("service.name", _value(rng))]
            place.resource.attributes.extend(traffic.attributes(said))
            scope.scope.attributes.extend(traffic.attributes(_pairs(rng, 3)))
    return HostileWriter(rng, tricks).message(message)
