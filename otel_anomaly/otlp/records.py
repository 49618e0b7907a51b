"""One log record on the wire: checked, and noted in a row.

Some agents tell of their tool calls in log events. Such a record has no id of its own, so one is
made from what a delivery repeated by a retry has in common with the first:

    trace (else tenant and session), call id, time    where it names its call
    all of its bytes                                  where it does not

The time is part of it, because call ids are not to be trusted: some frameworks count them anew from
`call_0`, and a repeated id must not hide a call. Its parent is the span it was written in.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load8
from otel_anomaly.otlp.attributes import ANY, NONE, STRING, read_value
from otel_anomaly.otlp.bodies import take_body
from otel_anomaly.otlp.dialects import CALL_ID, OF_LOG, SESSION, STAMP, TENANT
from otel_anomaly.otlp.facts import event_bits, settle
from otel_anomaly.otlp.hashing import hash_bytes, hash_two
from otel_anomaly.otlp.rows import (
    ABSENT,
    IN_ATTRIBUTE,
    IN_SPAN,
    IS_CALL,
    IS_HINT,
    IS_LOG,
)
from otel_anomaly.otlp.spans import note_trace, read_attribute
from otel_anomaly.otlp.timestamps import read_time
from otel_anomaly.otlp.wire import (
    ANY_VALUE,
    BYTES,
    FIXED64,
    check_message,
    is_utf8,
    read_length,
    read_tag,
    skip,
)

ATTRIBUTES_OF_RECORD = np.int64(6 << 3 | BYTES)


@kernel
def read_record(data: Array, at: Int, end: Int, keys: Record, row: Record, notes: Record) -> bool:
    """Check one log record and note it in `row`, which holds what it inherits."""
    first, marks = at, OF_LOG
    trace_bytes, span_bytes = 0, 0
    observed_ns = np.int64(0)
    event_at, event_length = np.int64(0), np.int64(0)
    body_kind, body_at, body_length = NONE, np.int64(0), np.int64(0)
    while at < end:
        tag_at = at
        tag, at = read_tag(data, at, end)
        if at < 0:
            return False
        if tag == (1 << 3 | FIXED64) and end - at >= 8:
            row["end_ns"] = load8(data, at)
        elif tag == (11 << 3 | FIXED64) and end - at >= 8:
            observed_ns = load8(data, at)
        if tag & 7 != BYTES:
            at = skip(data, at, end, tag, IN_SPAN)
            if at < 0:
                return False
            continue
        start, at = read_length(data, at, end)
        if at < 0:
            return False
        field = tag >> 3
        if field == 6:
            ok, marks = read_attribute(data, tag_at, start, at, marks, keys, row, notes)
            if not ok:
                return False
        elif field == 9:
            row["trace_at"], trace_bytes = start, at - start
        elif field == 10:
            row["span_at"], span_bytes = start, at - start
        elif field == 5:
            if not check_message(data, start, at, ANY_VALUE, IN_ATTRIBUTE):
                return False
            body_kind, body_at, body_length = read_value(
                data, start, at, body_kind, body_at, body_length
            )
        elif field == 3 or field == 12:
            if not is_utf8(data, start, at):
                return False
            if field == 12:
                event_at, event_length = start, at - start
    if row["end_ns"] == 0:
        row["end_ns"] = observed_ns if observed_ns != 0 else _told_ns(data, notes)
    row["start_ns"] = row["end_ns"]
    _close_ids(data, keys["seed"], trace_bytes, span_bytes, row)
    if body_kind == ANY:
        marks |= take_body(data, body_at, body_at + body_length, keys, row, notes)
    # The event's name may stand in any of three places.
    marks |= event_bits(data, event_at, event_length, keys)
    if body_kind == STRING:
        marks |= event_bits(data, body_at, body_length, keys)
    settle(data, marks, np.int64(0), np.int64(0), keys, row, notes)
    _close_record(data, first, end, keys["seed"], row)
    return True


@kernel
def _told_ns(data: Array, notes: Record) -> Int:
    """The time that an attribute tells as text, 0 for none."""
    if (notes["told"] >> STAMP) & 1 == 0 or notes["kind"][STAMP] != STRING:
        return np.int64(0)
    at = notes["at"][STAMP]
    return read_time(data, at, at + notes["length"][STAMP])


@inlined
def _close_ids(data: Array, seed: Int, trace_bytes: Int, span_bytes: Int, row: Record) -> None:
    """Hash the trace id, and that of the span the record was written in, where they are there."""
    if trace_bytes != 16:
        row["trace_at"] = -1
    elif not note_trace(data, seed, row):
        row["trace"], row["trace_at"] = 0, -1
    if span_bytes != 8:
        row["span_at"] = -1
    elif row["trace"] != 0:
        span = load8(data, row["span_at"])
        row["parent"] = hash_two(row["trace"], span, seed) if span != 0 else 0


@kernel
def _close_record(data: Array, first: Int, end: Int, seed: Int, row: Record) -> None:
    """Settle the identity of a record that tells of a call. Without a trace none is spoken for."""
    row["flags"] |= IS_LOG
    if row["trace"] == 0:
        row["flags"] &= ~IS_HINT
    if row["flags"] & IS_CALL == 0:
        return
    place = row["trace"]
    if place == 0 and row["order"][SESSION] != ABSENT:
        place = hash_two(row["hash"][TENANT], row["hash"][SESSION], seed)
    if place != 0 and row["order"][CALL_ID] != ABSENT:
        call = hash_two(place, row["hash"][CALL_ID], seed)
        row["identity"] = hash_two(call, row["end_ns"], seed)
    else:
        row["identity"] = hash_bytes(data, first, end - first, seed)
