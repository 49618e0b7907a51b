"""What the tests of scan and splice share: keys to scan with, and comparison with the slow twins.

`check_scan` and `check_splice` hold for any bytes at all. The tests give them traffic, broken
requests and captures; the fuzzer gives them whatever it thinks of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from otel_anomaly.config import IdentityConfig
from otel_anomaly.kernels import signed
from otel_anomaly.otlp.attributes import BOOL, INT, STRING
from otel_anomaly.otlp.dialects import TOOL, WEAK, WHO, compile_keys
from otel_anomaly.otlp.hashing import hash_text, hash_two
from otel_anomaly.otlp.scan import (
    ABSENT,
    BAD_ID,
    END,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    LENGTH_AT,
    PARENT,
    START,
    MalformedRequest,
    scan,
)
from otel_anomaly.otlp.splice import splice
from tests import naive, traffic, wire_reader
from tests import wire_writer as wire

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

    from otel_anomaly.otlp.scan import Columns
    from tests.traffic import Value

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
    return compile_keys(named, identity.weak, prefix=prefix, seed=seed)


KEYS = keys_of(IDENTITY)
TANGLED_KEYS = keys_of(TANGLED)


def try_scan(body: bytes, keys: np.ndarray = KEYS) -> Columns | None:
    """The columns, or None when the scan refuses the bytes."""
    try:
        return scan(body, keys)
    except MalformedRequest:
        return None


def check_scan(body: bytes, identity: IdentityConfig = IDENTITY) -> Columns | None:
    """Whatever `body` is, scan and twin say the same about it. Returns the columns, if any."""
    columns = try_scan(body, KEYS if identity is IDENTITY else keys_of(identity))
    assert (columns is not None) == naive.accepts(body)
    if columns is None:
        return None
    assert columns.body is body
    message = ExportTraceServiceRequest.FromString(body)
    check_frames(columns, message)
    check_rows(columns, message, identity)
    calls = naive.tool_calls(body, identity)
    assert columns.call_count == len(calls)
    found = columns.rows[columns.rows["flags"] & IS_CALL != 0]
    for row, call in zip(found, calls, strict=True):
        check_call(body, row, call)
    return columns


def bare(message: Message) -> bytes:
    """What two equal messages have in common: `==` is false where a NaN is in them."""
    return message.SerializeToString(deterministic=True)


def framed(body: bytes, at: int, start: int, end: int) -> bytes:
    """What lies in a frame, whose length stands at `at`."""
    assert wire_reader.varint(body, at) == (end - start, start)
    return body[start:end]


def check_frames(columns: Columns, message: ExportTraceServiceRequest) -> None:
    """Frames lie where the messages lie, children within their parents."""
    body, scopes = columns.body, columns.scopes
    twins = message.resource_spans
    for frame, resource in zip(columns.resources, twins, strict=True):
        inner = framed(body, frame[LENGTH_AT], frame[START], frame[END])
        assert bare(ResourceSpans.FromString(inner)) == bare(resource)
    below = [(number, scope) for number, twin in enumerate(twins) for scope in twin.scope_spans]
    for frame, (number, scope) in zip(scopes, below, strict=True):
        parent = columns.resources[frame[PARENT]]
        assert frame[PARENT] == number
        assert parent[START] <= frame[LENGTH_AT]
        assert frame[END] <= parent[END]
        inner = framed(body, frame[LENGTH_AT], frame[START], frame[END])
        assert bare(ScopeSpans.FromString(inner)) == bare(scope)


def check_rows(
    columns: Columns, message: ExportTraceServiceRequest, identity: IdentityConfig
) -> None:
    """Rows are the spans that matter and no others, in order, where they are on the wire."""
    spans = [span for span, _, _ in naive.spans_with_place(message)]
    assert columns.span_count == len(spans)
    rows = {int(row["index"]): row for row in columns.rows}
    assert list(rows) == sorted(rows)
    assert len(rows) == columns.rows.size
    for index, span in enumerate(spans):
        forged = sum(naive.is_forged(pair, PREFIX) for pair in span.attributes)
        hint, call = is_hint(span, identity), naive.is_tool_call(naive.by_key(span.attributes))
        assert (index in rows) == (forged > 0 or hint or call)
        if index in rows:
            row = rows[index]
            inner = framed(columns.body, row["length_at"], row["start"], row["end"])
            assert bare(Span.FromString(inner)) == bare(span)
            scope = columns.scopes[row["scope"]]
            assert scope[START] <= row["length_at"]
            assert row["end"] <= scope[END]
            assert row["forged_count"] == forged
            assert (row["forged"] > 0) == (forged > 0)
            assert (row["flags"] & IS_HINT != 0, row["flags"] & IS_CALL != 0) == (hint, call)
            check_ids(columns.body, row, span)


def is_sound(span: Span) -> bool:
    """Whether both ids are of the right length and not all zero."""
    trace, own = span.trace_id, span.span_id
    return len(trace) == 16 and len(own) == 8 and any(trace) and any(own)


def is_hint(span: Span, identity: IdentityConfig) -> bool:
    """Whether the span itself names somebody by a key that is not weak, for a trace to know."""
    if not is_sound(span):
        return False
    own = naive.usable(span.attributes)
    keys = {key for who in WHO for key in getattr(identity, who)} - set(identity.weak)
    return not keys.isdisjoint(own)


def check_ids(body: bytes, row: np.void, span: Span) -> None:
    """Ids are where they are on the wire; the hashes are of the ids; unsound ones are marked."""
    trace, own = span.trace_id, span.span_id
    sound = is_sound(span)
    assert (row["flags"] & BAD_ID == 0) == sound
    for at, value, size in ((row["trace_at"], trace, 16), (row["span_at"], own, 8)):
        assert at == -1 if len(value) != size else body[at : at + size] == value
    if sound:
        high, low, number = np.frombuffer(trace + own, np.int64).tolist()
        assert row["trace"] == hash_two(high, low, SEED)
        assert row["identity"] == hash_two(int(row["trace"]), number, SEED)


def check_call(body: bytes, row: np.void, call: Mapping[str, Any]) -> None:
    """One tool call: the time, the facts and who made it, weak or not."""
    assert row["index"] == call["index"]
    assert row["end_ns"] == signed(call["end_ns"])
    assert (row["flags"] & IS_ERROR != 0) == call["error"]
    assert text_of(body, row, TOOL) == call["tool"]
    for role, who in enumerate(WHO):
        strong, weak = call["strong"][who], call["weak"][who]
        assert text_of(body, row, role) == (weak if strong is None else strong)
        if strong is not None:
            assert row["order"][role] < WEAK
        elif weak is not None:
            assert WEAK <= row["order"][role] < ABSENT


def text_of(body: bytes, row: np.void, role: int) -> str | None:
    """The best value of a role as text; None when absent. Its hash is checked on the way."""
    if row["order"][role] == ABSENT:
        return None
    kind, at, length = (int(row[name][role]) for name in ("kind", "at", "length"))
    raw = body[at : at + length]
    if kind == STRING:
        found = raw.decode()
    else:
        assert kind in {BOOL, INT}
        number = signed(wire_reader.varint(raw, 0)[0])
        found = str(number) if kind == INT else ("true" if number else "false")
    assert row["hash"][role] == hash_text(found, SEED)
    return found


def encoded(pairs: Sequence[tuple[str, Value]]) -> bytes:
    """Attributes as they stand in a span on the wire: fields with tag and length."""
    return Span(attributes=traffic.attributes(pairs)).SerializeToString()


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
    assert out == naive.splice(body, blobs, PREFIX)
    twin = naive.annotate(body, verdicts, PREFIX)
    assert bare(ExportTraceServiceRequest.FromString(out)) == bare(twin)
    if not verdicts and not columns.rows["forged"].any():
        assert out is body
    return out


def pair_field(content: bytes) -> bytes:
    """A KeyValue of any form as an attribute of a span."""
    return wire.chunk(9, content)


def one_span(*fields: bytes) -> bytes:
    """A request with one span of these encoded fields."""
    return wire.chunk(1, wire.chunk(2, wire.chunk(2, b"".join(fields))))
