"""The body of a log record that is a map: what lies on the ways that the table knows.

    {"input": {"messages": [{"role": "tool", "content": {"content": .., "id": ..}}]}, ..}

A way is a chain of hashes, `hash_two(what is above, name or number of the item)`, and every step of
it has a slot in the table. Whatever has none is stepped over, so the time is linear in the body,
and the depth is that of the longest way.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, kernel
from otel_anomaly.otlp.attributes import ANY, NONE, read_unusual_pair, read_value
from otel_anomaly.otlp.dialects import BODY
from otel_anomaly.otlp.facts import find_slot, take
from otel_anomaly.otlp.hashing import hash_bytes, hash_two
from otel_anomaly.otlp.rows import IN_ATTRIBUTE, SPAN_LEVEL
from otel_anomaly.otlp.values import LIST, MAP, any_member
from otel_anomaly.otlp.wire import BYTES, read_length, read_tag, skip

_DEPTH_MAX: Final = 8
_AT, _END, _WAY, _ITEM = range(4)
"""Of a frame: what is left of a list or map, the hash of the way to it, the number of the next item
(-1 in a map)."""


@kernel
def _next_member(data: Array, frame: Array, seed: Int) -> tuple[Int, Int, Int, Int]:
    """(way, kind, where, length) of what comes next in a frame that has something left.

    Kind NONE also for fields that are no members.
    """
    tag, at = read_tag(data, frame[_AT], frame[_END])
    frame[_AT] = skip(data, at, frame[_END], tag, IN_ATTRIBUTE)
    if tag != (1 << 3 | BYTES):
        return np.int64(0), NONE, at, 0
    start, stop = read_length(data, at, frame[_END])
    if frame[_ITEM] >= 0:
        way = hash_two(frame[_WAY], frame[_ITEM], seed)
        frame[_ITEM] += 1
        kind, value_at, length = read_value(data, start, stop, NONE, start, 0)
        return way, kind, value_at, length
    _, key, key_end, kind, value_at, length = read_unusual_pair(data, start, stop, IN_ATTRIBUTE + 1)
    way = hash_two(frame[_WAY], hash_bytes(data, key, key_end - key, seed), seed)
    return way, kind, value_at, length


@kernel
def take_body(data: Array, at: Int, end: Int, keys: Record, row: Record, notes: Record) -> Int:
    """Take what a checked AnyValue holds. Returns the marks it sets."""
    frames = np.empty((_DEPTH_MAX, 4), np.int64)
    level, marks, way = np.int64(-1), np.int64(0), BODY
    while True:
        member, start, stop = any_member(data, at, end)
        if (member == MAP or member == LIST) and level + 1 < _DEPTH_MAX:
            level += 1
            frame = frames[level]
            frame[_AT], frame[_END], frame[_WAY] = start, stop, way
            frame[_ITEM] = 0 if member == LIST else -1
        inside = False
        while level >= 0 and not inside:
            frame = frames[level]
            if frame[_AT] >= frame[_END]:
                level -= 1
                continue
            way, kind, at, length = _next_member(data, frame, keys["seed"])
            place = find_slot(way, keys) if kind != NONE else np.int64(-1)
            if place >= 0:
                clear, bits = take(data, way, place, kind, at, length, SPAN_LEVEL, keys, row, notes)
                marks = (marks & ~clear) | bits
                inside, end = kind == ANY, at + length
        if not inside:
            return marks
