"""Request bytes to columns of the spans that matter, in one pass; offsets kept, all checked.

    request --- ResourceSpans --- ScopeSpans --- Span --- attributes
                 |  resource       |  scope       |
                 '- its identity --'- its own ----'- its own      best of all three wins

A row comes out for a span that is a tool call, that names an identity of its own (other spans of
its trace may borrow it), or that carries attributes under our prefix. All other spans are checked
and left alone.

The resource may stand behind the spans on the wire, so each level is walked twice: once for what
describes it, once for its children. The first walk over spans only hops from length to length.

What is refused is exactly what protobuf refuses (see `wire`). Well-formed attributes take a short
way; anything unusual (fields out of order or repeated, nested values) goes through
`check_message` first and is then read at leisure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import (
    Array,
    Int,
    Record,
    borrow,
    copy_record,
    inlined,
    kernel,
    load1,
    load8,
)
from otel_anomaly.otlp.attributes import STRING, hash_value, read_pair, read_unusual_pair
from otel_anomaly.otlp.dialects import ERROR, FACTS, MARK, RANKS_MAX, WEAK, WHO
from otel_anomaly.otlp.hashing import hash_bytes, hash_two
from otel_anomaly.otlp.wire import (
    BYTES,
    EVENT,
    FIXED64,
    LINK,
    RESOURCE,
    SCOPE,
    STATUS,
    TEXT,
    VARINT,
    check_message,
    is_utf8,
    read_length,
    read_tag,
    read_varint,
    skip,
)

ABSENT: Final = 1 << 14
"""Order of a fact that is not there; real ones are below."""
SPAN_LEVEL, RESOURCE_LEVEL, SCOPE_LEVEL = np.arange(3) * RANKS_MAX
"""Added to the rank of a key by where it was found. Weak keys come 256 behind (`dialects.WEAK`)."""
assert SCOPE_LEVEL + RANKS_MAX <= WEAK
assert WEAK + SCOPE_LEVEL + RANKS_MAX <= ABSENT

ATTRIBUTES_OF_RESOURCE, ATTRIBUTES_OF_SCOPE = np.int64(1 << 3 | 2), np.int64(3 << 3 | 2)

# How deep a message lies, as protobuf counts: for the bound on nesting.
IN_REQUEST, IN_RESOURCE_SPANS, IN_SCOPE_SPANS, IN_SPAN, IN_ATTRIBUTE = np.arange(5)
IN_RESOURCE, IN_SCOPE = np.int64(2), np.int64(3)

IS_CALL, IS_HINT, IS_ERROR, BAD_ID = 1, 2, 4, 8
assert IS_CALL == 1  # The scan adds it up.
"""Flags of a row. BAD_ID: trace or span id not 16 or 8 bytes, or all zero."""

STATUS_CODE_ERROR: Final = 2
SPANS_PER_REQUEST_MAX: Final = 1 << 18
"""Each may cost a row of memory, and empty ones are two bytes on the wire. Spans that say who and
what are over 250 bytes, so 64 MiB of them fit."""
assert np.iinfo(np.int32).max >= SPANS_PER_REQUEST_MAX
REQUEST_BYTES_MAX: Final = 1 << 30
assert np.iinfo(np.int32).max >= REQUEST_BYTES_MAX  # Offsets are int32 columns.

ROW = np.dtype(
    [
        ("flags", "i4"),
        ("index", "i4"),  # Number of the span in the request, in document order.
        ("scope", "i4"),  # Row of its ScopeSpans in `scopes`.
        ("length_at", "i4"),  # Where the length in front of the span stands.
        ("start", "i4"),
        ("end", "i4"),
        ("forged", "i4"),  # Bytes of attributes under our prefix, with tag and length.
        ("forged_count", "i4"),
        ("trace_at", "i4"),  # -1 when absent.
        ("span_at", "i4"),
        ("start_ns", "i8"),
        ("end_ns", "i8"),  # Of the end, else of the start; 0 when neither is there.
        ("trace", "i8"),  # Hash of the trace id.
        ("identity", "i8"),  # Hash of trace id and span id.
        # The best value seen for each role of `dialects`: where from, what, and its hash.
        ("order", "i2", (FACTS,)),
        ("kind", "i2", (FACTS,)),
        ("at", "i4", (FACTS,)),
        ("length", "i4", (FACTS,)),
        ("hash", "i8", (FACTS,)),
    ],
    align=True,
)

BLANK = np.zeros(1, ROW)
"""What a resource inherits: nothing."""
BLANK["order"] = ABSENT
BLANK["trace_at"] = BLANK["span_at"] = -1

# What the scan counts.
USED, SPANS, SCOPES, CALLS, FORGED = range(5)

# Columns of a frame: a message with children, for the splice to mend its length.
LENGTH_AT, START, END, PARENT = range(4)


class MalformedRequest(Exception):
    """The bytes are not an ExportTraceServiceRequest. Carries no part of the data."""


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
                _, inner = read_length(data, inner, stop)
            else:
                inner = skip(data, inner, stop, tag, IN_SCOPE_SPANS)
            if inner < 0:
                return False
        at = stop
    return True


@inlined
def _find_key(data: Array, key: Int, key_end: Int, keys: Record) -> tuple[Int, Int]:
    """Returns (hash of the key, its slot), slot -1 when it means nothing to us."""
    hashed = hash_bytes(data, key, key_end - key, keys["seed"])
    mask = keys["slot_mask"]
    place = hashed & mask
    while keys["slots"][place, 0] != hashed:
        if keys["slots"][place, 0] == 0:
            return hashed, -1
        place = (place + 1) & mask
    return hashed, place


@kernel
def _take(
    data: Array,
    hashed: Int,
    place: Int,
    kind: Int,
    at: Int,
    length: Int,
    level: Int,
    keys: Record,
    row: Record,
) -> tuple[Int, Int]:
    """Note in `row` what an attribute says. Returns (marks to clear, marks to set)."""
    seed = keys["seed"]
    value_hash = hash_value(data, kind, at, length, seed)
    clear, bits = np.int64(0), np.int64(0)
    first = keys["slots"][place, 1] >> 8
    for i in range(first, first + (keys["slots"][place, 1] & 255)):
        role = keys["roles"][i, 0]
        if role == MARK:
            clear = keys["roles"][i, 1]
            pair = hash_two(hashed, value_hash, seed)
            for j in range(keys["value_count"]):
                if keys["values"][j, 0] == pair and kind == STRING:
                    bits |= keys["values"][j, 1]
            continue
        if role >= len(WHO) and level != SPAN_LEVEL:
            continue  # Only an identity is inherited: names and errors are the span's own.
        order = keys["roles"][i, 2] + level
        # Of equal keys the last that says something wins.
        if value_hash != 0 and order <= row["order"][role]:
            row["order"][role] = order
            row["kind"][role] = kind
            row["at"][role] = at
            row["length"][role] = length
            row["hash"][role] = value_hash
    return clear, bits


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
) -> None:
    """Take the attributes of a checked Resource or Scope: `attributes` is their tag."""
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == attributes:
            start, stop = read_length(data, at, end)
            _, key, key_end, kind, value_at, length = read_unusual_pair(data, start, stop, depth)
            hashed, place = _find_key(data, key, key_end, keys)
            if place >= 0:
                _take(data, hashed, place, kind, value_at, length, level, keys, row)
        at = skip(data, at, end, tag, IN_REQUEST)


@inlined
def _is_forged(data: Array, key: Int, key_end: Int, keys: Record) -> bool:
    """Whether a key stands under our prefix."""
    if key_end - key < keys["prefix_size"]:
        return False
    for i in range(keys["prefix_size"]):
        if load1(data, key + i) != keys["prefix"][i]:
            return False
    return True


@kernel
def is_forged_pair(data: Array, at: Int, end: Int, keys: Record) -> bool:
    """Whether a checked KeyValue stands under our prefix."""
    _, key, key_end, _, _, _ = read_unusual_pair(data, at, end, IN_ATTRIBUTE)
    return _is_forged(data, key, key_end, keys)


@kernel
def _read_span(data: Array, at: Int, end: Int, keys: Record, row: Record) -> tuple[bool, Int]:
    """Check one span and note it in `row`, which holds what it inherits. Returns (ok, marks)."""
    marks = np.int64(0)
    trace_bytes, span_bytes = 0, 0
    while at < end:
        tag_at = at
        tag, at = read_tag(data, at, end)
        if at < 0:
            return False, marks
        if tag == (7 << 3 | FIXED64) and end - at >= 8:
            row["start_ns"] = load8(data, at)
            at += 8
            continue
        if tag == (8 << 3 | FIXED64) and end - at >= 8:
            row["end_ns"] = load8(data, at)
            at += 8
            continue
        if tag & 7 != BYTES:
            at = skip(data, at, end, tag, IN_SPAN)
            if at < 0:
                return False, marks
            continue
        start, at = read_length(data, at, end)
        if at < 0:
            return False, marks
        field = tag >> 3
        if field == 9:
            ok, key, key_end, kind, value_at, length = read_pair(data, start, at, IN_ATTRIBUTE)
            if not ok:
                return False, marks
            hashed, place = _find_key(data, key, key_end, keys)
            if place >= 0:
                clear, bits = _take(
                    data, hashed, place, kind, value_at, length, SPAN_LEVEL, keys, row
                )
                marks = (marks & ~clear) | bits
            if _is_forged(data, key, key_end, keys):
                row["forged"] += at - tag_at
                row["forged_count"] += 1
        elif field == 1:
            row["trace_at"], trace_bytes = start, at - start
        elif field == 2:
            row["span_at"], span_bytes = start, at - start
        elif field == 5:
            if not is_utf8(data, start, at):
                return False, marks
        elif start != at and not _check_other(data, start, at, field, row):
            return False, marks
    _close_span(data, keys["seed"], trace_bytes, span_bytes, row)
    return True, marks


@kernel
def _read_status(data: Array, at: Int, end: Int, row: Record) -> None:
    """Note the code of a checked Status, which a later one overrides."""
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (3 << 3 | VARINT):
            code, _ = read_varint(data, at, end)
            # An enum is 32 bits: protobuf cuts what is longer.
            failed = code & 0xFFFFFFFF == STATUS_CODE_ERROR
            row["flags"] = (row["flags"] & ~IS_ERROR) | (IS_ERROR if failed else 0)
        at = skip(data, at, end, tag, IN_ATTRIBUTE)


@kernel
def _check_other(data: Array, start: Int, stop: Int, field: Int, row: Record) -> bool:
    """A length-delimited field of a span, neither id nor attribute: check it, note errors."""
    if field == 3 or field == 5:
        return is_utf8(data, start, stop)
    if field == 15:
        if not check_message(data, start, stop, STATUS, IN_ATTRIBUTE):
            return False
        _read_status(data, start, stop, row)
        return True
    if field == 11:
        return check_message(data, start, stop, EVENT, IN_ATTRIBUTE)
    if field == 13:
        return check_message(data, start, stop, LINK, IN_ATTRIBUTE)
    return True


@kernel
def _close_span(data: Array, seed: Int, trace_bytes: Int, span_bytes: Int, row: Record) -> None:
    """Hash the ids and settle the end time, once the whole span is read."""
    if row["end_ns"] == 0:
        row["end_ns"] = row["start_ns"]
    sound = trace_bytes == 16 and span_bytes == 8
    if sound:
        high, low = load8(data, row["trace_at"]), load8(data, row["trace_at"] + 8)
        span = load8(data, row["span_at"])
        sound = (high | low) != 0 and span != 0
        row["trace"] = hash_two(high, low, seed)
        row["identity"] = hash_two(row["trace"], span, seed)
    if not sound:
        row["flags"] |= BAD_ID
        row["trace_at"] = -1 if trace_bytes != 16 else row["trace_at"]
        row["span_at"] = -1 if span_bytes != 8 else row["span_at"]


@kernel
def _matters(row: Record, marks: Int, keys: Record) -> bool:
    """Set the flags of a finished row and say whether the span matters."""
    flags = row["flags"]
    for i in range(keys["rule_count"]):
        if marks & keys["rules"][i, 0] == keys["rules"][i, 0] and marks & keys["rules"][i, 1] == 0:
            flags |= IS_CALL
            break
    for who in range(len(WHO)):
        # Without sound ids there is no trace to speak for.
        if row["order"][who] < RESOURCE_LEVEL and flags & BAD_ID == 0:
            flags |= IS_HINT
    if row["order"][ERROR] != ABSENT:
        flags |= IS_ERROR
    row["flags"] = flags
    return flags & (IS_CALL | IS_HINT) != 0 or row["forged"] != 0


@kernel
def _scan_scope(
    data: Array, frame: Array, scope: Int, keys: Record, rows: Array, state: Array
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
                )
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
        copy_record(rows[state[USED]], inherited)
        row = rows[state[USED]]
        ok, marks = _read_span(data, start, stop, keys, row)
        if not ok:
            return False
        row["index"], row["scope"] = state[SPANS], scope
        row["length_at"], row["start"], row["end"] = at, start, stop
        if _matters(row, marks, keys):
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
    keys: Record,
    blank: Array,
    rows: Array,
    scopes: Array,
    state: Array,
) -> bool:
    """One ResourceSpans: its resource, then its ScopeSpans."""
    inherited = rows[rows.size - 1]
    copy_record(inherited, blank[0])
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
                )
            elif field == 2:
                scope = scopes[state[SCOPES]]
                scope[LENGTH_AT], scope[START], scope[END], scope[PARENT] = at, start, stop, number
                state[SCOPES] += 1
            elif field == 3 and not is_utf8(data, start, stop):
                return False
        at = skip(data, at, end, tag, IN_RESOURCE_SPANS)
    for scope in range(first_scope, state[SCOPES]):
        if not _scan_scope(data, scopes[scope], scope, keys, rows, state):
            return False
    return True


@kernel
def _scan(
    data: Array,
    table: Array,
    blank: Array,
    rows: Array,
    resources: Array,
    scopes: Array,
    state: Array,
) -> bool:
    """Fill the columns of a request whose frames were counted. Returns whether it is well-formed.

    `state` (zeros) counts rows USED, SPANS, SCOPES, CALLS and FORGED. The last two rows are what
    the spans of a scope and the scopes of a resource start from.
    """
    data, blank, rows = borrow(data), borrow(blank), borrow(rows)
    resources, scopes, state = borrow(resources), borrow(scopes), borrow(state)
    keys = table[0]
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
        if not _scan_resource(data, frame, number, keys, blank, rows, scopes, state):
            return False
        number += 1
        at = stop
    return True


def scan(body: bytes, keys: np.ndarray) -> Columns:
    """Read one ExportTraceServiceRequest into columns.

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
        raise MalformedRequest("not an ExportTraceServiceRequest: its framing is broken")
    resource_count, scope_count, span_count = counts.tolist()
    if span_count > SPANS_PER_REQUEST_MAX:
        raise OversizedRequest(f"{span_count} spans, at most {SPANS_PER_REQUEST_MAX} in a request")
    # Three rows more: a span is read into a row before it is known to matter, and see `_scan`.
    rows = np.empty(span_count + 3, ROW)
    resources = np.empty((resource_count, 4), np.int64)
    scopes = np.empty((scope_count, 4), np.int64)
    state = np.zeros(5, np.int64)
    if not _scan(data, keys, BLANK, rows, resources, scopes, state):
        raise MalformedRequest("not an ExportTraceServiceRequest: a message in it is broken")
    used, _, _, calls, forged = state.tolist()
    return Columns(body, data, rows[:used], resources, scopes, span_count, calls, forged)


assert TEXT < RESOURCE  # Kinds of fields and numbers of messages share one range.
