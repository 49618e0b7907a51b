"""What the tests of scan and splice share: keys to scan with, and comparison with the slow twins.

`check_scan` and `check_splice` hold for any bytes at all. The tests give them traffic, broken
requests and captures; the fuzzer gives them whatever it thinks of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.config import IdentityConfig
from otel_anomaly.kernels import signed
from otel_anomaly.otlp.attributes import ANY, BOOL, INT, STRING
from otel_anomaly.otlp.dialects import (
    ARGUMENTS,
    CALL_ID,
    ERROR,
    MODEL,
    RANKS_MAX,
    RESULT,
    ROLES,
    SESSION,
    TENANT,
    TOOL,
    WEAK,
    WHO,
    compile_keys,
)
from otel_anomaly.otlp.hashing import hash_bytes, hash_text, hash_two
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    END,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    IS_LOG,
    IS_MCP,
    IS_PART,
    IS_SERVER,
    LENGTH_AT,
    LOGS,
    NAMES_PLUGIN,
    PARENT,
    START,
    TRACES,
    MalformedRequest,
    scan,
)
from otel_anomaly.otlp.splice import splice
from tests import naive, naive_recognition, traffic, wire_reader
from tests import wire_writer as wire
from tests.naive_recognition import Table, Told, recognise

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from google.protobuf.message import Message
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    from otel_anomaly.otlp.scan import Columns
    from tests.traffic import Value

REQUESTS = (ExportTraceServiceRequest, ExportLogsServiceRequest)
SEED = -0x123456789ABCDEF
PREFIX = "anomaly"
IDENTITY = IdentityConfig(owner=("organization.id", "user.id"))
"""The defaults, and an owner whose keys have other roles as well."""
TANGLED = IdentityConfig(
    tenant=("user.id", "gen_ai.tool.name"),
    agent=("service.name", "gen_ai.agent.id"),
    session=("session.id", "error.type", "user.id"),
    user=("user.id", "anomaly.action"),
    owner=("gen_ai.operation.name",),
    weak=("user.id", "gen_ai.agent.id"),
)
"""Keys with many roles, weak ones before strong ones, one under our prefix."""


def keys_of(identity: IdentityConfig, *, prefix: str = PREFIX, seed: int = SEED) -> np.ndarray:
    """The compiled table of an identity configuration."""
    named = [getattr(identity, who) for who in WHO]
    return compile_keys(
        named, identity.weak, prefix=prefix, seed=seed, placeholders=identity.placeholders
    )


KEYS = keys_of(IDENTITY)
TANGLED_KEYS = keys_of(TANGLED)


def try_scan(body: bytes, keys: np.ndarray = KEYS, signal: np.int64 = TRACES) -> Columns | None:
    """The columns, or None when the scan refuses the bytes."""
    try:
        return scan(body, keys, signal)
    except MalformedRequest:
        return None


def check_scan(body: bytes, identity: IdentityConfig = IDENTITY) -> Columns | None:
    """Whatever `body` is, scan and twin say the same about it. Returns the columns, if any."""
    return _check(body, identity, TRACES)


def check_logs(body: bytes, identity: IdentityConfig = IDENTITY) -> Columns | None:
    """`check_scan` for a request of log records."""
    return _check(body, identity, LOGS)


def _check(body: bytes, identity: IdentityConfig, signal: np.int64) -> Columns | None:
    columns = try_scan(body, KEYS if identity is IDENTITY else keys_of(identity), signal)
    cls = REQUESTS[signal]
    assert (columns is not None) == naive.accepts(body, cls)
    if columns is None:
        return None
    assert columns.body is body
    assert columns.signal == signal
    message = cls.FromString(body)
    check_frames(columns, message)
    check_rows(columns, message, identity)
    return columns


def bare(message: Message) -> bytes:
    """What two equal messages have in common: `==` is false where a NaN is in them."""
    return message.SerializeToString(deterministic=True)


def framed(body: bytes, at: int, start: int, end: int) -> bytes:
    """What lies in a frame, whose length stands at `at`."""
    assert wire_reader.varint(body, at) == (end - start, start)
    return body[start:end]


def check_frames(columns: Columns, message: Any) -> None:
    """Frames lie where the messages lie, children within their parents."""
    body, scopes = columns.body, columns.scopes
    logs = columns.signal == LOGS
    twins = message.resource_logs if logs else message.resource_spans
    for frame, resource in zip(columns.resources, twins, strict=True):
        inner = framed(body, frame[LENGTH_AT], frame[START], frame[END])
        assert bare(type(resource).FromString(inner)) == bare(resource)
    below = [
        (number, scope)
        for number, twin in enumerate(twins)
        for scope in (twin.scope_logs if logs else twin.scope_spans)
    ]
    for frame, (number, scope) in zip(scopes, below, strict=True):
        parent = columns.resources[frame[PARENT]]
        assert frame[PARENT] == number
        assert parent[START] <= frame[LENGTH_AT]
        assert frame[END] <= parent[END]
        inner = framed(body, frame[LENGTH_AT], frame[START], frame[END])
        assert bare(type(scope).FromString(inner)) == bare(scope)


def check_rows(columns: Columns, message: Any, identity: IdentityConfig) -> None:
    """Rows are the spans that matter and no others, in order, and say what the twin says."""
    children = list(naive.children_with_place(message))
    raws = [columns.body]
    for number in naive.WAY_TO_SPANS:
        raws = [part for raw in raws for part in chunks_of(raw, number)]
    assert columns.span_count == len(children) == len(raws)
    rows = {int(row["index"]): row for row in columns.rows}
    assert list(rows) == sorted(rows)
    assert len(rows) == columns.rows.size
    table = Table(identity, placeholders=identity.placeholders)
    calls = forged_count = 0
    for index, (child, resource, scope) in enumerate(children):
        forged = sum(naive.is_forged(pair, PREFIX) for pair in child.attributes)
        told = recognise(table, as_read(raws[index], child), resource, scope)
        hint = has_trace(child) and any(name is not None for name in told.own.values())
        kept = isinstance(child, Span) and is_sound(child)
        assert (index in rows) == (forged > 0 or hint or told.is_call or kept)
        calls, forged_count = calls + told.is_call, forged_count + forged
        if index in rows:
            row = rows[index]
            check_place(columns, row, child)
            assert row["forged_count"] == forged
            assert (row["forged"] > 0) == (forged > 0)
            assert row["flags"] == flags_of(child, told, hint=hint)
            assert row["service"] == service_of(resource)
            check_told(columns.body, row, told)
            if isinstance(child, Span):
                check_ids(columns.body, row, child)
            else:
                check_record(columns.body, row, child)
    assert (columns.call_count, columns.forged_count) == (calls, forged_count)


def chunks_of(raw: bytes, number: int) -> list[bytes]:
    """What the length-delimited fields of this number hold, in the order of the wire."""
    return [
        raw[field.start : field.end]
        for field in wire_reader.fields(raw)
        if (field.number, field.wire_type) == (number, wire.BYTES)
    ]


def as_read(raw: bytes, child: Span | LogRecord) -> Span | LogRecord:
    """A span or record with the lists and maps in it as the scan reads them: see `_value_read`."""
    read = type(child).FromString(raw)
    pairs = chunks_of(raw, child.DESCRIPTOR.fields_by_name["attributes"].number)
    for part, pair in zip(pairs, read.attributes, strict=True):
        pair.value.CopyFrom(_value_read(chunks_of(part, 2), pair.value))
    if isinstance(read, LogRecord):
        read.body.CopyFrom(_value_read(chunks_of(raw, 5), read.body))
    return read


def _value_read(parts: Sequence[bytes], merged: AnyValue) -> AnyValue:
    """What the scan reads of an AnyValue, written in these parts.

    It looks into a list or map only in the form that encoders write, a single member. Of several
    parts it looks into the last one with a member, while the library merges them.
    """
    which = merged.WhichOneof("value")
    if which not in {"array_value", "kvlist_value"}:
        return merged
    # The last member is a list or map: scalars before it count for nothing.
    last = next(part for part in reversed(parts) if chunks_of(part, 5) or chunks_of(part, 6))
    read = AnyValue.FromString(last)
    items = getattr(read, which).values
    if len(list(wire_reader.fields(last))) != 1:
        del items[:]
        return read
    (inside,) = chunks_of(last, 5) or chunks_of(last, 6)
    for raw, item in zip(chunks_of(inside, 1), items, strict=True):
        if which == "array_value":
            item.CopyFrom(_value_read([raw], item))
        else:
            item.value.CopyFrom(_value_read(chunks_of(raw, 2), item.value))
    return read


def check_place(columns: Columns, row: np.void, child: Span | LogRecord) -> None:
    """A row knows where its span is on the wire, inside its scope."""
    inner = framed(columns.body, row["length_at"], row["start"], row["end"])
    assert bare(type(child).FromString(inner)) == bare(child)
    scope = columns.scopes[row["scope"]]
    assert scope[START] <= row["length_at"]
    assert row["end"] <= scope[END]


def is_sound(span: Span) -> bool:
    """Whether both ids are of the right length and not all zero."""
    return has_trace(span) and len(span.span_id) == 8 and any(span.span_id)


def has_trace(child: Span | LogRecord) -> bool:
    """Whether it belongs to a trace: of a span both ids must be valid for that."""
    if isinstance(child, Span) and not (len(child.span_id) == 8 and any(child.span_id)):
        return False
    return len(child.trace_id) == 16 and any(child.trace_id)


def flags_of(child: Span | LogRecord, told: Told, *, hint: bool) -> int:
    """The flags that the row of a span or record must have."""
    span = child if isinstance(child, Span) else None
    return (
        IS_CALL * told.is_call
        | IS_HINT * hint
        | IS_ERROR * told.error
        | BAD_ID * (span is not None and not is_sound(span))
        | IS_PART * told.is_part
        | IS_BOUNDARY * told.is_boundary
        | IS_SERVER * (span is not None and span.kind == Span.SPAN_KIND_SERVER)
        | IS_MCP * told.is_mcp
        | IS_LOG * (span is None)
        | NAMES_PLUGIN * told.names_plugin
    )


def hash_of_trace(trace: bytes) -> int:
    """The hash of a trace id."""
    high, low = np.frombuffer(trace, np.int64).tolist()
    return int(hash_two(high, low, SEED))


def hash_of_span(trace: int, span: bytes) -> int:
    """The hash of a span id in a trace."""
    return int(hash_two(trace, int(np.frombuffer(span, np.int64)[0]), SEED))


def check_ids(body: bytes, row: np.void, span: Span) -> None:
    """Ids are where they are on the wire; the hashes are of the ids; unsound ones are marked."""
    trace, own, parent = span.trace_id, span.span_id, span.parent_span_id
    for at, value, size in ((row["trace_at"], trace, 16), (row["span_at"], own, 8)):
        assert at == -1 if len(value) != size else body[at : at + size] == value
    assert row["start_ns"] == signed(span.start_time_unix_nano)
    assert row["end_ns"] == signed(span.end_time_unix_nano or span.start_time_unix_nano)
    has_parent = is_sound(span) and len(parent) == 8 and any(parent)
    if is_sound(span):
        assert row["trace"] == hash_of_trace(trace)
        assert row["identity"] == hash_of_span(int(row["trace"]), own)
    trace_hash = int(row["trace"])
    expected = hash_of_span(trace_hash, parent) if has_parent else 0
    assert row["parent"] == expected


def check_record(body: bytes, row: np.void, record: LogRecord) -> None:
    """A record's time, its trace, the span it was written in, and an identity that repeats."""
    trace, own = record.trace_id, record.span_id
    assert (row["trace_at"] >= 0) == has_trace(record)
    assert row["trace"] == (hash_of_trace(trace) if has_trace(record) else 0)
    assert row["span_at"] == -1 if len(own) != 8 else body[row["span_at"] :][:8] == own
    inside = has_trace(record) and len(own) == 8 and any(own)
    trace_hash = int(row["trace"])
    assert row["parent"] == (hash_of_span(trace_hash, own) if inside else 0)
    told = record.time_unix_nano or record.observed_time_unix_nano
    assert row["end_ns"] == signed(told or naive_recognition.time_of_event(record))
    assert row["start_ns"] == row["end_ns"]
    if row["flags"] & IS_CALL:
        tenant, session, call = (int(row["hash"][role]) for role in (TENANT, SESSION, CALL_ID))
        place = trace_hash or (hash_two(tenant, session, SEED) if session else 0)
        if place and call:
            expected = hash_two(hash_two(place, call, SEED), int(row["end_ns"]), SEED)
        else:
            inner = np.frombuffer(body[row["start"] : row["end"]], np.uint8)
            expected = hash_bytes(inner, 0, inner.size, SEED)
        assert row["identity"] == expected


def service_of(resource: Iterable[KeyValue]) -> int:
    """The hash that a resource's service has."""
    told = naive_recognition.service_of(resource)
    if told is None:
        return 0
    space, name = told
    hashed = hash_text(name, SEED)
    return hashed if space is None else int(hash_two(hash_text(space, SEED), hashed, SEED))


def check_told(body: bytes, row: np.void, told: Told) -> None:
    """What a row says of each role, weak or not, is what the twin says."""
    for role, who in enumerate(WHO):
        strong, weak = told.strong[who], told.weak[who]
        assert text_of(body, row, role) == (weak if strong is None else strong)
        if strong is not None:
            assert row["order"][role] < WEAK
            assert (row["order"][role] < RANKS_MAX) == (told.own[who] is not None)
        elif weak is not None:
            assert WEAK <= row["order"][role] < ABSENT
    for role in (TOOL, ERROR, CALL_ID, MODEL):
        assert text_of(body, row, role) == told.facts[ROLES[role]]
    for role in (ARGUMENTS, RESULT):
        check_content(body, row, role, told.facts[ROLES[role]])


def check_content(body: bytes, row: np.void, role: int, value: Any) -> None:
    """Arguments and results lie where the twin has them from; they are not hashed."""
    assert row["hash"][role] == 0
    assert (row["order"][role] == ABSENT) == (value is None)
    if value is None:
        return
    kind, at, length = (int(row[name][role]) for name in ("kind", "at", "length"))
    raw = body[at : at + length]
    if kind == ANY:
        # A list or map in several parts is merged by the library; of those the last is told.
        assert AnyValue.FromString(raw).WhichOneof("value") == value.WhichOneof("value")
    else:
        assert scalar(kind, raw) == (
            value if isinstance(value, str) else naive_recognition.text(value)
        )


def scalar(kind: int, raw: bytes) -> str:
    """A value that is no list or map, as text."""
    if kind == STRING:
        return raw.decode()
    assert kind in {BOOL, INT}
    number = signed(wire_reader.varint(raw, 0)[0])
    return str(number) if kind == INT else ("true" if number else "false")


def text_of(body: bytes, row: np.void, role: int) -> str | None:
    """The best value of a role as text; None when absent. Its hash is checked on the way."""
    if row["order"][role] == ABSENT:
        return None
    kind, at, length = (int(row[name][role]) for name in ("kind", "at", "length"))
    found = scalar(kind, body[at : at + length])
    assert row["hash"][role] == hash_text(found, SEED)
    return found


def encoded(pairs: Sequence[tuple[str, Value]], *, logs: bool = False) -> bytes:
    """Attributes as they stand in a span or log record: fields with tag and length."""
    cls = LogRecord if logs else Span
    return cls(attributes=traffic.attributes(pairs)).SerializeToString()


VERDICTS: tuple[Value, ...] = ("", "warn", "x" * 100, 0.25, True, ["rate", "rate_shift"], "y" * 500)


def random_verdicts(rng: random.Random, columns: Columns) -> dict[int, list[tuple[str, Value]]]:
    """Attributes for some of the rows' spans, by span number; the sizes straddle 127 and 16383."""
    share = rng.choice((0.0, 0.1, 0.5, 1.0))
    return {
        int(index): [
            (f"{PREFIX}.{name}", rng.choice(VERDICTS)) for name in "abc"[: rng.randrange(1, 4)]
        ]
        for index in columns.rows["index"]
        if rng.random() < share
    }


def spliced(columns: Columns, blobs: Mapping[int, bytes], keys: np.ndarray = KEYS) -> bytes:
    """`splice` with blobs by span number."""
    parts = [blobs.get(int(index), b"") for index in columns.rows["index"]]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return splice(columns, keys, np.frombuffer(b"".join(parts), np.uint8), ends)


def check_splice(columns: Columns, verdicts: Mapping[int, Sequence[tuple[str, Value]]]) -> bytes:
    """The annotated request is, to the byte, what the twins make of it. Returns it."""
    body = columns.body
    blobs = {index: encoded(pairs) for index, pairs in verdicts.items()}
    out = spliced(columns, blobs)
    logs = bool(columns.signal == LOGS)
    twins = blobs
    if logs:
        twins = {index: encoded(pairs, logs=True) for index, pairs in verdicts.items()}
    assert out == naive.splice(body, twins, PREFIX, logs=logs)
    twin = naive.annotate(body, verdicts, PREFIX, logs=logs)
    assert bare(type(twin).FromString(out)) == bare(twin)
    if not verdicts and not columns.rows["forged"].any():
        assert out is body
    return out


def pair_field(content: bytes) -> bytes:
    """A KeyValue of any form as an attribute of a span."""
    return wire.chunk(9, content)


def one_span(*fields: bytes) -> bytes:
    """A request with one span of these encoded fields."""
    return wire.chunk(1, wire.chunk(2, wire.chunk(2, b"".join(fields))))
