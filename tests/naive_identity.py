"""The slow twin of identity: rows as the protobuf classes tell them, and who made each call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.entities.names import Caller
from otel_anomaly.kernels import signed
from otel_anomaly.otlp.hashing import hash_text
from tests import naive
from tests.naive_recognition import IDENTITIES, Table, recognise, service_of
from tests.rig import SEED

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    from otel_anomaly.config import Config
    from tests.naive_links import Links
    from tests.naive_recognition import Told

DAY_NS = 86_400 * 10**9
Key = tuple[Any, ...]


def number(text: str | None) -> int:
    """What stands for a name where names are compared; 0 for none."""
    return 0 if text is None else hash_text(text, SEED)


@dataclass
class Row:
    """What one span or log record says, as far as the judge looks at it."""

    is_call: bool
    is_part: bool
    is_boundary: bool
    is_server: bool
    is_mcp: bool
    is_log: bool
    is_sound: bool
    """Whether its ids are valid; those of a log record always are."""
    trace: bytes | None
    identity: Hashable
    parent: Hashable
    start_ns: int
    end_ns: int
    facts: dict[str, Any]
    """Tool and call id as text; arguments and result as values; None: not told."""
    error: bool
    own: dict[str, str | None]
    """Identities that the span itself tells."""
    strong: dict[str, str | None]
    """The same, or what its resource or scope tells."""
    weak: dict[str, str | None]
    service: Hashable
    told: dict[str, Any]
    """The facts as the span itself tells them."""
    inner: list[Row] = field(default_factory=list)
    """Spans of the same call and request inside of it."""

    @property
    def tool(self) -> str | None:
        tool: str | None = self.facts["tool"]
        return tool

    @property
    def own_id(self) -> str | None:
        """The id of the call, by which nested spans are told apart. MCP has numbers of its own."""
        own_id: str | None = self.facts["call_id"]
        return None if self.is_mcp else own_id

    @property
    def call_id(self) -> Hashable:
        """Call ids are only good within a trace."""
        if self.facts["call_id"] is None or self.trace is None:
            return None
        return ("id", self.trace, self.facts["call_id"])


def rows_of(body: bytes, config: Config, *, logs: bool = False) -> list[Row]:
    """Every span or log record of a request, in document order."""
    message = (ExportLogsServiceRequest if logs else ExportTraceServiceRequest).FromString(body)
    who = config.identity
    table = Table(who, placeholders=who.placeholders, lenient=config.dialects.lenient)
    rows = []
    for child, resource, scope in naive.children_with_place(message):
        told = recognise(table, child, resource, scope)
        service = service_of(resource)
        if isinstance(child, Span):
            rows.append(_span_row(child, told, service))
        else:
            rows.append(_record_row(child, told, service))
    return rows


def _is_id(value: bytes, size: int) -> bool:
    return len(value) == size and any(value)


def _span_row(span: Span, told: Told, service: Hashable) -> Row:
    sound = _is_id(span.trace_id, 16) and _is_id(span.span_id, 8)
    has_parent = sound and _is_id(span.parent_span_id, 8)
    return Row(
        is_log=False,
        is_server=span.kind == Span.SPAN_KIND_SERVER,
        is_sound=sound,
        trace=span.trace_id if sound else None,
        identity=("span", span.trace_id, span.span_id) if sound else None,
        parent=("span", span.trace_id, span.parent_span_id) if has_parent else None,
        start_ns=signed(span.start_time_unix_nano),
        end_ns=signed(span.end_time_unix_nano or span.start_time_unix_nano),
        service=service,
        **_said(told),
    )


def _record_row(record: LogRecord, told: Told, service: Hashable) -> Row:
    trace = record.trace_id if _is_id(record.trace_id, 16) else None
    time_ns = signed(record.time_unix_nano or record.observed_time_unix_nano)
    tenant, session = (told.strong[who] or told.weak[who] for who in ("tenant", "session"))
    place: Hashable = trace if trace is not None else session and (tenant, session)
    identity: Hashable = ("bytes", record.SerializeToString())
    if place and told.facts["call_id"] is not None:
        identity = ("record", place, told.facts["call_id"], time_ns)
    inside = trace is not None and _is_id(record.span_id, 8)
    return Row(
        is_log=True,
        is_server=False,
        is_sound=True,
        trace=trace,
        identity=identity,
        parent=("span", trace, record.span_id) if inside else None,
        start_ns=time_ns,
        end_ns=time_ns,
        service=service,
        **_said(told),
    )


def _said(told: Told) -> dict[str, Any]:
    roles = ("tool", "call_id", "arguments", "result")
    return {
        "is_call": told.is_call,
        "is_part": told.is_part,
        "is_boundary": told.is_boundary,
        "is_mcp": told.is_mcp,
        "facts": {role: told.facts[role] for role in roles},
        "told": {role: told.facts[role] for role in roles},
        "error": told.error,
        "own": told.own,
        "strong": told.strong,
        "weak": told.weak,
    }


class Hint(NamedTuple):
    """What a span says of its trace. The earliest counts; of equally early ones the smaller."""

    start_ns: int
    number: int
    value: str


@dataclass
class Trace:
    """What the spans of a trace said of who is at work, and the calls judged in it."""

    seen_ns: int
    hints: dict[str, Hint] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)
    changed: bool = False


class Person(NamedTuple):
    """Who made a call, and the keys it is counted under."""

    who: Caller
    agent: Key | None
    service: Key | None
    rate: Key
    session: Key

    @property
    def keys(self) -> tuple[Key | None, ...]:
        return self[1:]


@dataclass
class Traces:
    """What is known of each trace. Nothing is bounded."""

    known: dict[bytes, Trace] = field(default_factory=dict)

    def remember(self, row: Row, arrival_ns: int) -> None:
        """Let a span's own identity speak for its trace; a call makes its trace known."""
        hint = any(value is not None for value in row.own.values())
        if not row.is_sound or row.trace is None or not (hint or row.is_call):
            return
        trace = self.known.get(row.trace)
        if trace is None or arrival_ns - trace.seen_ns > DAY_NS:
            trace = self.known[row.trace] = Trace(arrival_ns)
        trace.seen_ns = max(trace.seen_ns, arrival_ns)
        for name, value in row.own.items():
            if value is not None:
                new = Hint(row.start_ns, number(value), value)
                before = trace.hints.get(name, new)
                best = trace.hints[name] = min(before, new)
                trace.changed |= best.value != before.value or before is new

    def resolve(self, row: Row, links: Links, scope: str) -> Person:
        """Who made the call of a row. See the docstring of `entities.identity`."""
        trace = self.known.get(row.trace) if row.trace is not None else None
        hints = trace.hints if trace else {}
        who = {
            name: row.strong[name] or (hints[name].value if name in hints else row.weak[name])
            for name in IDENTITIES
        }
        if row.strong["agent"] is None:
            who["agent"] = self._agent(row, links, who["agent"])
        tenant, agent, session = (who[name] for name in ("tenant", "agent", "session"))
        rate = rate_key(who, scope)
        at_work = rate
        if session:
            at_work = ("session", tenant, session)
        elif row.trace is not None and not row.is_server:
            at_work = ("trace", tenant, row.trace)
        return Person(
            Caller(**who),
            ("agent", tenant, agent) if agent else None,
            ("service", tenant, row.service) if row.service else None,
            rate,
            at_work,
        )

    @staticmethod
    def _agent(row: Row, links: Links, borrowed: str | None) -> str | None:
        """The nearest agent above; a server borrows nobody's name."""
        if row.is_server:
            return row.weak["agent"]
        return links.agent_above(row.parent) or borrowed


def rate_key(who: Mapping[str, str | None], scope: str) -> Key:
    """By what a call is added up. See the docstring of `entities.identity`."""
    tenant, agent, session, user = (who[name] for name in ("tenant", "agent", "session", "user"))
    if scope == "agent" and agent:
        return ("agent", tenant, agent)
    if scope == "session" and session:
        return ("session", tenant, session)
    if scope in {"session", "user"} and user:
        return ("user", tenant, user)
    if tenant:
        return ("tenant", tenant, None if scope == "tenant" else agent)
    return ("anon", agent)
