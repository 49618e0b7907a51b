"""Request bytes to columns of what matters, in one pass; offsets kept, all checked.

    request --- ResourceSpans --- ScopeSpans --- Span --- attributes
                 |  resource       |  scope       |
                 '- its identity --'- its own ----'- its own      best of all three wins

A row comes out for every span with valid ids, because a tool call may be part of another one any
number of spans above it; for one without them when it is a tool call or carries attributes under
our prefix. Of log records only those get a row that tell of a call, name somebody of a known trace
or carry such attributes. All others are checked and left alone. The two kinds of request have the
same frames, so "span" below also means a log record.

The resource may stand behind the spans on the wire, so each level is walked twice: once for what
describes it, once for its children. The first walk over spans only hops from length to length.

What is refused is exactly what protobuf refuses (see `wire`). Well-formed attributes take a short
way; anything unusual (fields out of order or repeated, nested values) goes through
`check_message` first and is then read at leisure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy_record, inlined, kernel, prefetch
from otel_anomaly.otlp.attributes import read_unusual_pair
from otel_anomaly.otlp.dialects import AGENT
from otel_anomaly.otlp.facts import find_key, names_its_model, take
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.records import read_record
from otel_anomaly.otlp.rows import (
    ABSENT,
    BAD_ID,
    BLANK,
    IN_REQUEST,
    IN_RESOURCE,
    IN_RESOURCE_SPANS,
    IN_SCOPE,
    IN_SCOPE_SPANS,
    IS_BOUNDARY,
    IS_CALL,
    IS_ERROR,
    IS_HINT,
    IS_LOG,
    IS_MCP,
    IS_PART,
    IS_SERVER,
    NAMES_PLUGIN,
    NOTES,
    RESOURCE_LEVEL,
    ROW,
    SCOPE_LEVEL,
    SPAN_LEVEL,
)
from otel_anomaly.otlp.spans import read_span
from otel_anomaly.otlp.tool_names import note_scope
from otel_anomaly.otlp.wire import (
    BYTES,
    RESOURCE,
    SCOPE,
    TEXT,
    check_message,
    is_utf8,
    read_length,
    read_tag,
    skip,
)

__all__ = (
    "ABSENT",
    "BAD_ID",
    "BLANK",
    "END",
    "IS_BOUNDARY",
    "IS_CALL",
    "IS_ERROR",
    "IS_HINT",
    "IS_LOG",
    "IS_MCP",
    "IS_PART",
    "IS_SERVER",
    "LENGTH_AT",
    "LOGS",
    "NAMES_PLUGIN",
    "PARENT",
    "RESOURCE_LEVEL",
    "ROW",
    "SCOPE_LEVEL",
    "SPAN_LEVEL",
    "START",
    "TRACES",
    "Columns",
    "MalformedRequest",
    "OversizedRequest",
    "scan",
)

ATTRIBUTES_OF_RESOURCE, ATTRIBUTES_OF_SCOPE = np.int64(1 << 3 | 2), np.int64(3 << 3 | 2)

TRACES, LOGS = np.arange(2)
"""Which kind of request."""
_REQUESTS: Final = ("ExportTraceServiceRequest", "ExportLogsServiceRequest")

SPANS_PER_REQUEST_MAX: Final = 1 << 18
"""Each may cost a row of memory, and empty ones are two bytes on the wire. Spans that say who and
what are over 250 bytes, so 64 MiB of them fit."""
assert np.iinfo(np.int32).max >= SPANS_PER_REQUEST_MAX
REQUEST_BYTES_MAX: Final = 1 << 30
assert np.iinfo(np.int32).max >= REQUEST_BYTES_MAX  # Offsets are int32 columns.

# What the scan counts.
USED, SPANS, SCOPES, CALLS, FORGED = range(5)

# Columns of a frame: a message with children, for the splice to mend its length.
LENGTH_AT, START, END, PARENT = range(4)


class MalformedRequest(Exception):
    """The bytes are not an export request. Carries no part of the data."""


class OversizedRequest(MalformedRequest):
    """More than a request may hold, well-formed or not."""


class Columns(NamedTuple):
    """What `scan` found. `body` is the request the offsets are true for."""

    body: bytes
    data: np.ndarray
    """uint8 view of `body`."""
    rows: np.ndarray
    """ROW [n]: the spans that matter, in document order."""
    resources: np.ndarray
    """int64 [n, 4]: frames of the ResourceSpans."""
    scopes: np.ndarray
    """int64 [n, 4]: frames of the ScopeSpans; PARENT is the row in `resources`."""
    span_count: int
    """All spans, also those without a row."""
    call_count: int
    """Rows that are tool calls."""
    forged_count: int
    """Attributes under our prefix that came with the spans."""
    signal: np.int64 = TRACES
    redacted: bytes | None = None
    """What is forwarded instead of `body`: as long, with secrets covered. None: not looked at."""


@kernel
def _count(data: Array, counts: Array) -> bool:
    """Count ResourceSpans, ScopeSpans and spans into `counts`. False when framing is broken."""
    at = np.int64(0)
    while at < data.size:
        tag, at = read_tag(data, at, data.size)
        if at < 0:
            return False
        if tag != (1 << 3 | BYTES):
            at = skip(data, at, data.size, tag, IN_REQUEST)
            if at < 0:
                return False
            continue
        start, stop = read_length(data, at, data.size)
        if stop < 0 or not _count_spans(data, start, stop, counts):
            return False
        counts[0] += 1
        at = stop
    return True


@kernel
def _count_spans(data: Array, at: Int, end: Int, counts: Array) -> bool:
    """The ScopeSpans of one ResourceSpans, and the spans in them."""
    while at < end:
        tag, at = read_tag(data, at, end)
        if at < 0:
            return False
        if tag != (2 << 3 | BYTES):
            at = skip(data, at, end, tag, IN_RESOURCE_SPANS)
            if at < 0:
                return False
            continue
        inner, stop = read_length(data, at, end)
        if stop < 0:
            return False
        counts[1] += 1
        while inner < stop:
            tag, inner = read_tag(data, inner, stop)
            if inner < 0:
                return False
            if tag == (2 << 3 | BYTES):
                counts[2] += 1
                before = inner
                _, inner = read_length(data, inner, stop)
                if 2 * inner - before < data.size:
                    # The next span is there; the one after it is likely as long as this one.
                    prefetch(data, 2 * inner - before)
            else:
                inner = skip(data, inner, stop, tag, IN_SCOPE_SPANS)
            if inner < 0:
                return False
        at = stop
    return True


@kernel
def _take_all(
    data: Array,
    at: Int,
    end: Int,
    attributes: Int,
    depth: Int,
    level: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> None:
    """Take the attributes of a checked Resource or Scope: `attributes` is their tag."""
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == attributes:
            start, stop = read_length(data, at, end)
            _, key, key_end, kind, value_at, length = read_unusual_pair(data, start, stop, depth)
            hashed, place = find_key(data, key, key_end, keys)
            if place >= 0:
                take(data, hashed, place, kind, value_at, length, level, keys, row, notes)
        at = skip(data, at, end, tag, IN_REQUEST)


@inlined
def _read_child(
    data: Array,
    start: Int,
    stop: Int,
    signal: Int,
    keys: Record,
    inherited: Record,
    row: Record,
    notes: Record,
) -> bool:
    """Check one span or log record and note it in `row`."""
    copy_record(row, inherited)
    notes["told"] = 0
    if signal == LOGS:
        return read_record(data, start, stop, keys, row, notes)
    return read_span(data, start, stop, keys, row, notes)


@inlined
def _matters(row: Record) -> bool:
    """Whether a span or record gets a row."""
    flags = row["flags"]
    if flags & (IS_CALL | IS_HINT) != 0 or row["forged"] != 0:
        return True
    return flags & (BAD_ID | IS_LOG) == 0


@kernel
def _scan_scope(
    data: Array,
    frame: Array,
    scope: Int,
    signal: Int,
    keys: Record,
    rows: Array,
    notes: Record,
    state: Array,
) -> bool:
    """One ScopeSpans: its scope, then its spans."""
    inherited = rows[rows.size - 2]
    copy_record(inherited, rows[rows.size - 1])
    at, end = frame[START], frame[END]
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (2 << 3 | BYTES):
            _, at = read_length(data, at, end)
            continue
        if tag & 7 == BYTES:
            start, stop = read_length(data, at, end)
            if tag >> 3 == 1:
                if not check_message(data, start, stop, SCOPE, IN_SCOPE):
                    return False
                _take_all(
                    data,
                    start,
                    stop,
                    ATTRIBUTES_OF_SCOPE,
                    IN_SCOPE + 1,
                    SCOPE_LEVEL,
                    keys,
                    inherited,
                    notes,
                )
                note_scope(data, start, stop, keys, inherited)
            elif tag >> 3 == 3 and not is_utf8(data, start, stop):
                return False
        at = skip(data, at, end, tag, IN_SCOPE_SPANS)
    at = frame[START]
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag != (2 << 3 | BYTES):
            at = skip(data, at, end, tag, IN_SCOPE_SPANS)
            continue
        start, stop = read_length(data, at, end)
        row = rows[state[USED]]
        while True:  # Once, or twice: a second call of so large a kernel costs a third more.
            if not _read_child(data, start, stop, signal, keys, inherited, row, notes):
                return False
            if notes["banned"] != 0 or not names_its_model(row):
                break
            notes["banned"] = row["hash"][AGENT]
        notes["banned"] = 0
        row["index"], row["scope"] = state[SPANS], scope
        row["length_at"], row["start"], row["end"] = at, start, stop
        if _matters(row):
            state[USED] += 1
            state[CALLS] += row["flags"] & IS_CALL
            state[FORGED] += row["forged_count"]
        state[SPANS] += 1
        at = stop
    return True


@kernel
def _scan_resource(
    data: Array,
    frame: Array,
    number: Int,
    signal: Int,
    keys: Record,
    blank: Array,
    rows: Array,
    scopes: Array,
    notes: Record,
    state: Array,
) -> bool:
    """One ResourceSpans: its resource, then its ScopeSpans."""
    inherited = rows[rows.size - 1]
    copy_record(inherited, blank[0])
    notes["service"] = notes["namespace"] = 0
    first_scope = state[SCOPES]
    at, end = frame[START], frame[END]
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag & 7 == BYTES:
            start, stop = read_length(data, at, end)
            field = tag >> 3
            if field == 1:
                if not check_message(data, start, stop, RESOURCE, IN_RESOURCE):
                    return False
                _take_all(
                    data,
                    start,
                    stop,
                    ATTRIBUTES_OF_RESOURCE,
                    IN_RESOURCE + 1,
                    RESOURCE_LEVEL,
                    keys,
                    inherited,
                    notes,
                )
            elif field == 2:
                scope = scopes[state[SCOPES]]
                scope[LENGTH_AT], scope[START], scope[END], scope[PARENT] = at, start, stop, number
                state[SCOPES] += 1
            elif field == 3 and not is_utf8(data, start, stop):
                return False
        at = skip(data, at, end, tag, IN_RESOURCE_SPANS)
    if notes["service"] != 0:
        inherited["service"] = notes["service"]
        if notes["namespace"] != 0:
            inherited["service"] = hash_two(notes["namespace"], notes["service"], keys["seed"])
    for scope in range(first_scope, state[SCOPES]):
        if not _scan_scope(data, scopes[scope], scope, signal, keys, rows, notes, state):
            return False
    return True


@kernel
def _scan(
    data: Array,
    table: Array,
    signal: Int,
    blank: Array,
    rows: Array,
    resources: Array,
    scopes: Array,
    all_notes: Array,
    state: Array,
) -> bool:
    """Fill the columns of a request whose frames were counted. Returns whether it is well-formed.

    `state` (zeros) counts rows USED, SPANS, SCOPES, CALLS and FORGED. The last two rows are what
    the spans of a scope and the scopes of a resource start from.
    """
    data, blank, rows = borrow(data), borrow(blank), borrow(rows)
    resources, scopes, state = borrow(resources), borrow(scopes), borrow(state)
    keys, notes = table[0], all_notes[0]
    number = np.int64(0)
    at = np.int64(0)
    while at < data.size:
        tag, at = read_tag(data, at, data.size)
        if tag != (1 << 3 | BYTES):
            at = skip(data, at, data.size, tag, IN_REQUEST)
            continue
        start, stop = read_length(data, at, data.size)
        frame = resources[number]
        frame[LENGTH_AT], frame[START], frame[END], frame[PARENT] = at, start, stop, -1
        if not _scan_resource(data, frame, number, signal, keys, blank, rows, scopes, notes, state):
            return False
        number += 1
        at = stop
    return True


def scan(body: bytes, keys: np.ndarray, signal: np.int64 = TRACES) -> Columns:
    """Read one request into columns: an ExportTraceServiceRequest, or for LOGS one of logs.

    Raises
    ------
    MalformedRequest
        Protobuf would not parse it either.
    OversizedRequest
        More than REQUEST_BYTES_MAX bytes or SPANS_PER_REQUEST_MAX spans.
    """
    if len(body) > REQUEST_BYTES_MAX:
        raise OversizedRequest(f"request of {len(body)} bytes, at most {REQUEST_BYTES_MAX}")
    data = np.frombuffer(body, np.uint8)
    counts = np.zeros(3, np.int64)
    if not _count(data, counts):
        raise MalformedRequest(f"not an {_REQUESTS[signal]}: its framing is broken")
    resource_count, scope_count, span_count = counts.tolist()
    if span_count > SPANS_PER_REQUEST_MAX:
        raise OversizedRequest(f"{span_count} spans, at most {SPANS_PER_REQUEST_MAX} in a request")
    # Three rows more: a span is read into a row before it is known to matter, and see `_scan`.
    rows = np.empty(span_count + 3, ROW)
    resources = np.empty((resource_count, 4), np.int64)
    scopes = np.empty((scope_count, 4), np.int64)
    state = np.zeros(5, np.int64)
    notes = np.zeros(1, NOTES)
    if not _scan(data, keys, signal, BLANK, rows, resources, scopes, notes, state):
        raise MalformedRequest(f"not an {_REQUESTS[signal]}: a message in it is broken")
    used, _, _, calls, forged = state.tolist()
    return Columns(body, data, rows[:used], resources, scopes, span_count, calls, forged, signal)


assert TEXT < RESOURCE  # Kinds of fields and numbers of messages share one range.
