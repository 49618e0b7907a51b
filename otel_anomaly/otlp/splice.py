"""Received bytes plus attributes per span: the same request, annotated, without parsing it again.

    ... | tag | length | ScopeSpans: ... | tag | length | Span ............ | ...
              ^ mended                         ^ mended   ^ forged cut out   ^ attributes appended

Only lengths in front of changed messages are written anew, and only what lies under our prefix is
left out. All other bytes are copied as they came, unknown fields and odd encodings included.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy, inlined, kernel
from otel_anomaly.otlp.records import ATTRIBUTES_OF_RECORD
from otel_anomaly.otlp.rows import IN_ATTRIBUTE, IN_SPAN
from otel_anomaly.otlp.scan import END, LENGTH_AT, LOGS, PARENT, START, Columns
from otel_anomaly.otlp.spans import ATTRIBUTES_OF_SPAN, is_forged_pair
from otel_anomaly.otlp.wire import read_length, read_tag, skip

VARINT_MAX: Final = 10
"""Most bytes that a length can grow by: an empty span is one byte, its new length at most five."""

assert IN_ATTRIBUTE == IN_SPAN + 1


@inlined
def varint_size(value: Int) -> Int:
    """Bytes that `value`, not negative, takes as a varint."""
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size


@inlined
def write_varint(out: Array, at: Int, value: Int) -> Int:
    """Write a number that is not negative. Returns the position behind it."""
    while value > 127:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@inlined
def _grown(length_at: Int, start: Int, end: Int, growth: Array) -> Int:
    """How much longer a message with its length gets when its content grows by `growth`."""
    size = end - start + growth
    return growth + varint_size(size) - (start - length_at)


@kernel
def _sizes(rows: Array, resources: Array, scopes: Array, ends: Array, growth: Array) -> Int:
    """Fill `growth` [resources + scopes]: by how much the content of each changes. Returns all.

    A row's attributes are `ends[row - 1]:ends[row]` of what is to be appended.
    """
    rows, ends, growth = borrow(rows), borrow(ends), borrow(growth)
    resources, scopes = borrow(resources), borrow(scopes)
    growth[:] = 0
    first = resources.shape[0]
    before = np.int64(0)
    for i in range(rows.size):
        row = rows[i]
        added = ends[i] - before
        before = ends[i]
        if added == 0 and row["forged"] == 0:
            continue
        growth[first + row["scope"]] += _grown(
            row["length_at"], row["start"], row["end"], added - row["forged"]
        )
    changed = np.zeros(growth.size, np.bool_)
    for i in range(rows.size):
        if ends[i] - (ends[i - 1] if i > 0 else 0) != 0 or rows[i]["forged"] != 0:
            changed[first + rows[i]["scope"]] = True
    for i in range(scopes.shape[0]):
        if changed[first + i]:
            scope = scopes[i]
            changed[scope[PARENT]] = True
            growth[scope[PARENT]] += _grown(
                scope[LENGTH_AT], scope[START], scope[END], growth[first + i]
            )
    total = np.int64(0)
    for i in range(first):
        if changed[i]:
            frame = resources[i]
            total += _grown(frame[LENGTH_AT], frame[START], frame[END], growth[i])
    return total


@inlined
def _open(
    data: Array, out: Array, at: Int, done: Int, frame: Array, growth: Array
) -> tuple[Int, Int]:
    """Copy up to a frame and write its new length. Returns (at, done)."""
    copy(out, at, data, done, frame[LENGTH_AT] - done)
    at += frame[LENGTH_AT] - done
    return write_varint(out, at, frame[END] - frame[START] + growth), frame[START]


@kernel
def _copy_unforged(
    data: Array, at: Int, end: Int, attributes: Int, keys: Record, out: Array, to: Int
) -> Int:
    """Copy the fields of a span but for attributes under our prefix. Returns the new position.

    `attributes` is the tag of a span's or a log record's attributes.
    """
    while at < end:
        field_at = at
        tag, at = read_tag(data, at, end)
        forged = False
        if tag == attributes:
            start, stop = read_length(data, at, end)
            forged = is_forged_pair(data, start, stop, keys)
        at = skip(data, at, end, tag, IN_SPAN)
        if not forged:
            copy(out, to, data, field_at, at - field_at)
            to += at - field_at
    return to


@kernel
def _retag(out: Array, at: Int, end: Int, attributes: Int) -> None:
    """Make the appended `Span.attributes` fields in the range those of a log record."""
    while at < end:
        out[at] = attributes
        _, at = read_length(out, at + 1, end)


@kernel
def _splice(
    data: Array,
    attributes: Int,
    rows: Array,
    resources: Array,
    scopes: Array,
    table: Array,
    blob: Array,
    ends: Array,
    growth: Array,
    out: Array,
) -> Int:
    """Write the annotated request to `out`. Returns its size."""
    data, rows, blob, ends = borrow(data), borrow(rows), borrow(blob), borrow(ends)
    resources, scopes = borrow(resources), borrow(scopes)
    growth, out, keys = borrow(growth), borrow(out), table[0]
    first = resources.shape[0]
    resource, scope = np.int64(-1), np.int64(-1)
    at, done, before = np.int64(0), np.int64(0), np.int64(0)
    for i in range(rows.size):
        row = rows[i]
        blob_at, added = before, ends[i] - before
        before = ends[i]
        if added == 0 and row["forged"] == 0:
            continue
        if row["scope"] != scope:
            scope = np.int64(row["scope"])
            if scopes[scope, PARENT] != resource:
                resource = scopes[scope, PARENT]
                at, done = _open(data, out, at, done, resources[resource], growth[resource])
            at, done = _open(data, out, at, done, scopes[scope], growth[first + scope])
        copy(out, at, data, done, row["length_at"] - done)
        at += row["length_at"] - done
        at = write_varint(out, at, row["end"] - row["start"] + added - row["forged"])
        if row["forged"] == 0:
            copy(out, at, data, row["start"], row["end"] - row["start"])
            at += row["end"] - row["start"]
        else:
            start, stop = np.int64(row["start"]), np.int64(row["end"])
            at = _copy_unforged(data, start, stop, attributes, keys, out, at)
        copy(out, at, blob, blob_at, added)
        if attributes != ATTRIBUTES_OF_SPAN:
            _retag(out, at, at + added, attributes)
        at += added
        done = np.int64(row["end"])
    copy(out, at, data, done, data.size - done)
    return at + data.size - done


def splice(columns: Columns, keys: np.ndarray, blob: np.ndarray, ends: np.ndarray) -> bytes:
    """Append to each row's span the encoded attributes `blob[ends[row - 1]:ends[row]]`.

    `blob` is uint8 and holds whole `Span.attributes` fields, tag and length included, also for log
    records, whose own tag they get; `ends` is int64 [rows]. Attributes under our prefix that came
    with a span are left out. Returns `body` itself when nothing changes, or what stands for it.
    """
    rows = columns.rows
    assert ends.size == rows.size
    if rows.size == 0 or (ends[-1] == 0 and columns.forged_count == 0):
        return columns.body if columns.redacted is None else columns.redacted
    data = columns.data
    if columns.redacted is not None:
        data = np.frombuffer(columns.redacted, np.uint8)
    growth = np.empty(len(columns.resources) + len(columns.scopes), np.int64)
    total = _sizes(rows, columns.resources, columns.scopes, ends, growth)
    out = np.empty(columns.data.size + total, np.uint8)
    attributes = ATTRIBUTES_OF_RECORD if columns.signal == LOGS else ATTRIBUTES_OF_SPAN
    written = _splice(
        data,
        attributes,
        rows,
        columns.resources,
        columns.scopes,
        keys,
        blob,
        ends,
        growth,
        out,
    )
    assert written == out.size
    return out.tobytes()
