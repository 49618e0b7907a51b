"""The slow twin of recognition: what a span or a log record tells, by dicts, loops and `json`-like
regular expressions over the same table of conventions.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_anomaly.otlp import conventions
from otel_anomaly.otlp.conventions import (
    ANY_TEXT,
    DERIVED,
    DIALECTS,
    PLACEHOLDERS,
    SPAN_NAME,
    BodyKey,
    Derived,
    Dialect,
    EventKey,
    Key,
    Mark,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue

    from otel_anomaly.config import IdentityConfig

IDENTITIES = ("tenant", "agent", "session", "user", "owner")
CONTENT = ("arguments", "result")

Said = list[tuple[Key, Any]]
"""Keys and values in the order in which they count: AnyValue, or text from inside of JSON."""


class Table(NamedTuple):
    """What recognition goes by."""

    identity: IdentityConfig
    dialects: Sequence[Dialect] = DIALECTS
    derived: Sequence[Derived] = DERIVED
    placeholders: Sequence[str] = PLACEHOLDERS
    lenient: bool = False

    def keys(self, role: str) -> list[Key]:
        """Keys of a role, best first."""
        if role in IDENTITIES:
            return list(getattr(self.identity, role))
        if role == "model":
            return list(conventions.MODELS)
        rows = (d for d in self.dialects if self.lenient or not d.lenient)
        return list(dict.fromkeys(key for row in rows for key in getattr(row, _FIELDS[role])))

    def absent(self, role: str) -> set[str]:
        """Texts that say nothing."""
        texts = {
            "agent": self.placeholders,
            "tool": conventions.NO_TOOL,
            "call_id": conventions.NO_CALL_ID,
            "arguments": conventions.NO_ARGUMENTS,
            "error": conventions.NO_ERROR,
        }
        return {_lower(text) for text in texts.get(role, ())}


_FIELDS = {
    "tool": "tool",
    "error": "error",
    "call_id": "call_id",
    "arguments": "arguments",
    "result": "result",
}


class Told(NamedTuple):
    """All that one span or record tells."""

    is_call: bool
    is_part: bool
    is_boundary: bool
    is_mcp: bool
    names_plugin: bool
    error: bool
    strong: dict[str, str | None]
    """Identities by what is not weak, from span, resource and scope."""
    weak: dict[str, str | None]
    own: dict[str, str | None]
    """Identities the span itself tells by what is not weak."""
    facts: dict[str, Any]
    """The other roles: text, or for content the value; None where it is not told."""


def names_no_service(told: str) -> bool:
    """Whether a name is the one of a service without any."""
    return told.strip(" \t\n\v\f\r").partition(":")[0] == "unknown_service"


def service_of(resource: Iterable[KeyValue]) -> tuple[str | None, str] | None:
    """The service that a resource names: (namespace, name)."""
    said = [(pair.key, text(pair.value)) for pair in resource]
    names = [value for key, value in said if key == "service.name" and value]
    named = [value for value in names if value.partition(":")[0] != "unknown_service"]
    spaces = [value for key, value in said if key == "service.namespace" and value]
    return (spaces[-1] if spaces else None, named[-1]) if named else None


def _lower(text: str) -> str:
    return "".join(chr(ord(c) | 32) if "A" <= c <= "Z" else c for c in text)


def text(value: Any) -> str | None:
    """What a value counts as where a name is asked for: nothing for empty and other types."""
    if value is None or isinstance(value, str):
        return value or None
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value or None
        case "int_value":
            return str(value.int_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case _:
            return None


def _plain(role: str, value: Any) -> str | None:
    """The text of a value in the form that counts for a role."""
    said = text(value)
    if said is None or not (isinstance(value, str) or value.HasField("string_value")):
        return said
    if role in IDENTITIES and re.fullmatch(r'".+"', said, re.DOTALL):
        return said[1:-1]
    if role == "tool":
        server = re.match(r"mcp__.+?__(?=.)", said, re.DOTALL)
        return said[server.end() :] if server else said
    return said


def _holds_content(value: Any) -> bool:
    """Whether a value is anything at all; text must not be empty."""
    if isinstance(value, str):
        return bool(value)
    which = value.WhichOneof("value")
    if which == "string_value":
        return bool(value.string_value)
    return which not in {None, "string_value_strindex"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or value.WhichOneof("value") == "string_value"


MEMBER = re.compile(rb'[ \t\r\n]*"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
TEXT = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
WORD = re.compile(rb"[^\x00-\x20,}\]]+")
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]|[^][{}"]+', re.DOTALL)
SPACE = re.compile(rb"[ \t\r\n]*")


def members(json: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the members of a JSON object, as far as it reads as one."""
    data = json.encode()
    at = _after(SPACE, data, 0)
    separator = b"{"
    while data[at : at + 1] == separator:
        name = MEMBER.match(data, at + 1)
        if name is None:
            return
        found, at = _member_value(data, name.end())
        if at < 0:
            return
        separator = b","
        if found:
            yield name[1].decode(errors="surrogateescape"), found.decode(errors="surrogateescape")
        at = _after(SPACE, data, at)


def _after(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    found = pattern.match(data, at)
    assert found is not None
    return found.end()


def _member_value(data: bytes, at: int) -> tuple[bytes, int]:
    if data[at : at + 1] == b'"':
        found = TEXT.match(data, at)
        return (b"", -1) if found is None else (found[1], found.end())
    if data[at : at + 1] in {b"[", b"{"}:
        return b"", _nested_end(data, at)
    found = WORD.match(data, at)
    if found is None:
        return b"", -1
    return (b"" if found[0].startswith(b"n") else found[0]), found.end()


def _nested_end(data: bytes, at: int) -> int:
    depth = 0
    while True:
        token = TOKEN.match(data, at)
        if token is None:
            return -1
        at = token.end()
        depth += (token[0] in {b"[", b"{"}) - (token[0] in {b"]", b"}"})
        if depth == 0:
            return at


def said_by(pairs: Iterable[KeyValue], events: Iterable[Span.Event] = ()) -> Said:
    """Attributes, those of events, then the members of JSON in them."""
    said: Said = [(pair.key, pair.value) for pair in pairs]
    documents = {k: v for k, v in said if k in conventions.DOCUMENTS and _holds_content(v)}
    for event in events:
        said += [(EventKey(event.name, pair.key), pair.value) for pair in event.attributes]
    for document in sorted(documents, key=conventions.DOCUMENTS.index):
        for name, value in _inside(documents[document]):
            said.append((f"{document}.{name}", value))
    return said


def _inside(document: Any) -> Iterator[tuple[str, Any]]:
    """The members of an object, written as JSON or as a map."""
    if document.HasField("kvlist_value"):
        yield from ((pair.key, pair.value) for pair in document.kvlist_value.values)
    elif document.HasField("string_value"):
        yield from members(document.string_value)


MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def time_ns(said: str) -> int:
    """Nanoseconds since 1970 of a time by RFC 3339; 0 when the text is none."""
    found = MOMENT.fullmatch(said)
    if found is None or int(found[3]) > 60 or not "1970" <= found[1][:4] <= "2261":
        return 0
    try:
        moment = datetime.fromisoformat(f"{found[1]}T{found[2]}:00{found[5].upper()}")
    except ValueError:
        return 0
    seconds = int(moment.timestamp()) + int(found[3])
    return 0 if seconds < 0 else seconds * 10**9 + int((found[4] or "").ljust(9, "0")[:9])


def time_of_event(record: LogRecord) -> int:
    """The time that a record tells in an attribute."""
    told = [pair.value for pair in record.attributes if pair.key == conventions.EVENT_TIME]
    told = [value for value in told if _holds_content(value)]
    return time_ns(told[-1].string_value) if told else 0


def said_of(place: Iterable[KeyValue]) -> Said:
    """The attributes of a resource or a scope."""
    return [(pair.key, pair.value) for pair in place]


class Reader:
    """One span or record in the light of a table."""

    def __init__(self, table: Table, message: Span | LogRecord, said: Said) -> None:
        self.table = table
        self.said = said
        self.is_log = isinstance(message, LogRecord)
        self.name = message.name if isinstance(message, Span) else ""
        # Of two with one key the last counts, whatever its type.
        self.last: dict[Key, Any] = {pair.key: pair.value for pair in message.attributes}
        self.events = [text(self.last.get("event.name"))]
        if isinstance(message, LogRecord):
            self.events += [message.event_name, text_of_body(message)]
            self.last |= dict(inside_body(message.body))
        self.banned: str | None = None

    def has(self, mark: Mark) -> bool:
        """Whether the span carries a mark."""
        key, values = mark
        if key == SPAN_NAME:
            assert isinstance(values, str)
            return not self.is_log and (
                self.name.startswith(values[:-1]) if values.endswith("*") else self.name == values
            )
        if values == ANY_TEXT:
            return text(self.last.get(key)) is not None
        listed = (values,) if isinstance(values, str) else values
        wanted = {
            said for one in listed for said in (one, one.lower(), one.upper(), one.capitalize())
        }
        found = self.events if key == "event.name" else [text(self.last.get(key))]
        return not wanted.isdisjoint(found)

    def is_call(self) -> bool:
        """Whether some dialect takes it for a call."""
        return not any(map(self.has, conventions.NO_CALLS)) and any(
            dialect.logs == self.is_log
            and (self.table.lenient or not dialect.lenient)
            and all(map(self.has, dialect.when))
            and not any(map(self.has, dialect.unless))
            for dialect in self.table.dialects
        )

    def usable(self, role: str, value: Any, *, weak: bool = False) -> Any:
        """What a value says in a role, None for nothing."""
        if role in CONTENT:
            if not _holds_content(value):
                return None
            lowered = _lower(text(value) or "") if _is_text(value) else ""
            return None if lowered and lowered in self.table.absent(role) else value
        told = _plain(role, value)
        if told is None:
            return None
        compared = _lower(told.strip(" \t\n\v\f\r") if role == "agent" else told)
        if (_is_text(value) or role == "error") and compared in self.table.absent(role):
            return None
        if role == "agent" and _is_text(value) and (not compared or names_no_service(told)):
            return None
        return None if role == "agent" and told == self.banned and not weak else told

    def by_keys(self, role: str, said: Said, keys: Iterable[Key], *, weak: bool = False) -> Any:
        """The best key that says something; of equal ones the last."""
        for key in keys:
            for found, value in reversed(said):
                if found == key and (told := self.usable(role, value, weak=weak)) is not None:
                    return told
        return None

    def derived(self, role: str, *, is_call: bool) -> Any:
        """What stands inside of something else."""
        for rule in self.table.derived:
            if rule.role != role or (rule.of_calls and not is_call):
                continue
            if not all(map(self.has, rule.when)):
                continue
            told = self._between(rule, self._source(rule))
            if told is not None and (usable := self.usable(role, told)) is not None:
                return usable
        return None

    def _source(self, rule: Derived) -> Any:
        if rule.source == SPAN_NAME:
            return self.name or None
        found = [v for k, v in self.said if k == rule.source and _holds_content(v)]
        return found[-1] if found else None

    @staticmethod
    def _between(rule: Derived, value: Any) -> Any:
        if value is None or not (rule.prefix or rule.suffix):
            return value
        whole = text(value)
        if not _is_text(value) or whole is None:
            return None
        if len(whole) <= len(rule.prefix) + len(rule.suffix):
            return None
        if not (whole.startswith(rule.prefix) and whole.endswith(rule.suffix)):
            return None
        return whole[len(rule.prefix) : len(whole) - len(rule.suffix)]


def inside_body(value: Any, path: tuple[str | int, ...] = ()) -> Said:
    """Every value inside a body, with the way to it."""
    which = value.WhichOneof("value")
    if which == "kvlist_value":
        below = [((*path, pair.key), pair.value) for pair in value.kvlist_value.values]
    elif which == "array_value":
        below = [((*path, i), item) for i, item in enumerate(value.array_value.values)]
    else:
        return []
    said: Said = []
    for way, item in below:
        said += [(BodyKey(way), item), *inside_body(item, way)]
    return said


def text_of_body(record: LogRecord) -> str | None:
    """The body of a record, when it is text."""
    return record.body.string_value if record.body.HasField("string_value") else None


def recognise(
    table: Table,
    message: Span | LogRecord,
    resource: Iterable[KeyValue],
    scope: InstrumentationScope,
) -> Told:
    """All that a span or log record tells, with what it inherits."""
    events = message.events if isinstance(message, Span) else ()
    said = said_by(message.attributes, events)
    if isinstance(message, LogRecord):
        said += inside_body(message.body)
    farther = [said_of(place) for place in (resource, scope.attributes)]
    reader = Reader(table, message, said)
    is_call = reader.is_call()
    model = reader.by_keys("model", said, table.keys("model"))
    own = _own(reader, said, is_call=is_call)
    if own["agent"] is not None and own["agent"] == model:
        reader.banned = model
        own = _own(reader, said, is_call=is_call)
        reader.banned = None  # What the resource says is said with another intent.
    strong, weak = dict(own), {}
    for who in IDENTITIES:
        keys = table.keys(who)
        for place in farther:
            if strong[who] is None:
                strong[who] = reader.by_keys(who, place, _strong(table, keys))
        weak_keys: list[Key] = [key for key in keys if key in table.identity.weak]
        found = (reader.by_keys(who, p, weak_keys, weak=True) for p in (said, *farther))
        weak[who] = next((told for told in found if told is not None), None)
    facts = {"model": model}
    for role in _FIELDS:
        told = reader.by_keys(role, said, table.keys(role))
        facts[role] = reader.derived(role, is_call=is_call) if told is None else told
    names_plugin = scope.name.startswith(conventions.PLUGIN_SCOPES)
    if names_plugin and is_call:
        facts["tool"] = _without_plugin(facts["tool"])
    part = not is_call and any(map(reader.has, conventions.PARTS))
    failed = isinstance(message, Span) and message.status.code == Status.STATUS_CODE_ERROR
    return Told(
        is_call=is_call,
        is_part=part,
        is_boundary=not is_call and not part and any(map(reader.has, conventions.BOUNDARIES)),
        is_mcp=any(map(reader.has, conventions.MCP)),
        names_plugin=names_plugin,
        error=failed or facts["error"] is not None or any(map(reader.has, conventions.FAILURES)),
        strong=strong,
        weak=weak,
        own=own,
        facts=facts,
    )


def _without_plugin(tool: str | None) -> str | None:
    """The function of a `plugin-function`. A number has no `-` inside."""
    return tool and re.sub(r"\A.+?-(?=.)", "", tool, count=1, flags=re.DOTALL)


def _strong(table: Table, keys: Iterable[Key]) -> list[Key]:
    return [key for key in keys if key not in table.identity.weak]


def _own(reader: Reader, said: Said, *, is_call: bool) -> dict[str, str | None]:
    own = {}
    for who in IDENTITIES:
        keys = _strong(reader.table, reader.table.keys(who))
        told = reader.by_keys(who, said, keys)
        own[who] = reader.derived(who, is_call=is_call) if told is None else told
    return own
