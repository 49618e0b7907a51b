"""One span on the wire: checked, and noted in a row."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1, load8
from otel_anomaly.otlp.attributes import read_pair, read_unusual_pair
from otel_anomaly.otlp.facts import find_key, settle, take, take_event
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.rows import (
    BAD_ID,
    IN_ATTRIBUTE,
    IN_SPAN,
    IS_ERROR,
    IS_SERVER,
    SPAN_LEVEL,
)
from otel_anomaly.otlp.wire import (
    BYTES,
    EVENT,
    FIXED64,
    LINK,
    STATUS,
    VARINT,
    check_message,
    is_utf8,
    read_length,
    read_tag,
    read_varint,
    skip,
)

STATUS_CODE_ERROR: Final = 2
SPAN_KIND_SERVER: Final = 2
_ENUM: Final = 0xFFFFFFFF
"""An enum is 32 bits: protobuf cuts what is longer."""

ATTRIBUTES_OF_SPAN = np.int64(9 << 3 | BYTES)
_NAME_OF_EVENT = np.int64(2 << 3 | BYTES)


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


@inlined
def read_attribute(
    data: Array,
    tag_at: Int,
    start: Int,
    stop: Int,
    marks: Int,
    keys: Record,
    row: Record,
    notes: Record,
) -> tuple[bool, Int]:
    """One attribute of a span or record, whose tag stands at `tag_at`. Returns (ok, marks)."""
    ok, key, key_end, kind, value_at, length = read_pair(data, start, stop, IN_ATTRIBUTE)
    if not ok:
        return False, marks
    hashed, place = find_key(data, key, key_end, keys)
    if place >= 0:
        clear, bits = take(
            data, hashed, place, kind, value_at, length, SPAN_LEVEL, keys, row, notes
        )
        marks = (marks & ~clear) | bits
    if _is_forged(data, key, key_end, keys):
        row["forged"] += stop - tag_at
        row["forged_count"] += 1
    return True, marks


@kernel
def read_span(data: Array, at: Int, end: Int, keys: Record, row: Record, notes: Record) -> bool:
    """Check one span and note it in `row`, which holds what it inherits."""
    marks = np.int64(0)
    trace_bytes, span_bytes = 0, 0
    parent_at = np.int64(-1)
    name_at, name_length = np.int64(0), np.int64(0)
    while at < end:
        tag_at = at
        tag, at = read_tag(data, at, end)
        if at < 0:
            return False
        if tag == (7 << 3 | FIXED64) and end - at >= 8:
            row["start_ns"] = load8(data, at)
            at += 8
            continue
        if tag == (8 << 3 | FIXED64) and end - at >= 8:
            row["end_ns"] = load8(data, at)
            at += 8
            continue
        if tag & 7 != BYTES:
            if tag == (6 << 3 | VARINT):
                _note_kind(data, at, end, row)
            at = skip(data, at, end, tag, IN_SPAN)
            if at < 0:
                return False
            continue
        start, at = read_length(data, at, end)
        if at < 0:
            return False
        field = tag >> 3
        if field == 9:
            ok, marks = read_attribute(data, tag_at, start, at, marks, keys, row, notes)
            if not ok:
                return False
        elif field == 1:
            row["trace_at"], trace_bytes = start, at - start
        elif field == 2:
            row["span_at"], span_bytes = start, at - start
        elif field == 4:
            parent_at = start if at - start == 8 else np.int64(-1)
        elif field == 5:
            if not is_utf8(data, start, at):
                return False
            name_at, name_length = start, at - start
        elif start != at and not _check_other(data, start, at, field, keys, row, notes):
            return False
    _close_span(data, keys["seed"], trace_bytes, span_bytes, parent_at, row)
    settle(data, marks, name_at, name_length, keys, row, notes)
    return True


@inlined
def _note_kind(data: Array, at: Int, end: Int, row: Record) -> None:
    """Note the span's kind, of which a later one overrides an earlier one."""
    kind, _ = read_varint(data, at, end)
    serves = kind & _ENUM == SPAN_KIND_SERVER
    row["flags"] = (row["flags"] & ~IS_SERVER) | (IS_SERVER if serves else 0)


@kernel
def _read_status(data: Array, at: Int, end: Int, row: Record) -> None:
    """Note the code of a checked Status, which a later one overrides."""
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (3 << 3 | VARINT):
            code, _ = read_varint(data, at, end)
            failed = code & _ENUM == STATUS_CODE_ERROR
            row["flags"] = (row["flags"] & ~IS_ERROR) | (IS_ERROR if failed else 0)
        at = skip(data, at, end, tag, IN_ATTRIBUTE)


@kernel
def _check_other(
    data: Array, start: Int, stop: Int, field: Int, keys: Record, row: Record, notes: Record
) -> bool:
    """A length-delimited field of a span, neither id nor attribute: check it, note what it says."""
    if field == 3:
        return is_utf8(data, start, stop)
    if field == 15:
        if not check_message(data, start, stop, STATUS, IN_ATTRIBUTE):
            return False
        _read_status(data, start, stop, row)
        return True
    if field == 11:
        if not check_message(data, start, stop, EVENT, IN_ATTRIBUTE):
            return False
        take_event(data, start, stop, _NAME_OF_EVENT, keys, row, notes)
        return True
    if field == 13:
        return check_message(data, start, stop, LINK, IN_ATTRIBUTE)
    return True


@inlined
def note_trace(data: Array, seed: Int, row: Record) -> bool:
    """Hash the trace id that stands at `trace_at`. Returns whether it is one."""
    high, low = load8(data, row["trace_at"]), load8(data, row["trace_at"] + 8)
    row["trace"] = hash_two(high, low, seed)
    return (high | low) != 0


@kernel
def _close_span(
    data: Array, seed: Int, trace_bytes: Int, span_bytes: Int, parent_at: Int, row: Record
) -> None:
    """Hash the ids and settle the end time, once the whole span is read."""
    if row["end_ns"] == 0:
        row["end_ns"] = row["start_ns"]
    sound = trace_bytes == 16 and span_bytes == 8
    if sound:
        sound = note_trace(data, seed, row)
        span = load8(data, row["span_at"])
        sound = sound and span != 0
        row["identity"] = hash_two(row["trace"], span, seed)
        if sound and parent_at >= 0:
            parent = load8(data, parent_at)
            row["parent"] = hash_two(row["trace"], parent, seed) if parent != 0 else 0
    if not sound:
        row["flags"] |= BAD_ID
        row["trace_at"] = -1 if trace_bytes != 16 else row["trace_at"]
        row["span_at"] = -1 if span_bytes != 8 else row["span_at"]
