"""The strings of a request, one after the other: for redaction, which looks at every one of them.

    spans         name, attributes, status message; of events name and attributes, of links these
    log records   body, attributes, severity text, event name
    both          attributes of resources and scopes, a scope's name and version

with all that is nested in the values, names of map entries included; integers and bytes as well.
Left out are the keys of attributes, which are names of a schema, ids, trace states, schema URLs,
and fields that nobody knows. The request was checked by `scan`, so nothing is checked again.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel, load1
from otel_anomaly.otlp.wire import BYTES, DEPTH_MAX, VARINT, read_length, read_tag, skip

NO_LEAF, TEXT, NAME, NUMBER = np.arange(4)
"""What a leaf is. NAME: of an entry of a map. NUMBER: an integer."""
(
    TRACES,
    LOGS,
    _RESOURCE_SPANS,
    _RESOURCE_LOGS,
    _RESOURCE,
    _SCOPE_SPANS,
    _SCOPE_LOGS,
    _SCOPE,
    _SPAN,
    _RECORD,
    _EVENT,
    _LINK,
    _STATUS,
    _ATTRIBUTE,
    _ENTRY,
    _VALUE,
    _LIST,
    _MAP,
) = np.arange(4, 22)
"""Messages; requests first."""

_FIELDS: Final[dict[np.int64, dict[int, np.int64]]] = {
    TRACES: {1: _RESOURCE_SPANS},
    LOGS: {1: _RESOURCE_LOGS},
    _RESOURCE_SPANS: {1: _RESOURCE, 2: _SCOPE_SPANS},
    _RESOURCE_LOGS: {1: _RESOURCE, 2: _SCOPE_LOGS},
    _RESOURCE: {1: _ATTRIBUTE},
    _SCOPE_SPANS: {1: _SCOPE, 2: _SPAN},
    _SCOPE_LOGS: {1: _SCOPE, 2: _RECORD},
    _SCOPE: {1: TEXT, 2: TEXT, 3: _ATTRIBUTE},
    _SPAN: {5: TEXT, 9: _ATTRIBUTE, 11: _EVENT, 13: _LINK, 15: _STATUS},
    _RECORD: {3: TEXT, 5: _VALUE, 6: _ATTRIBUTE, 12: TEXT},
    _EVENT: {2: TEXT, 3: _ATTRIBUTE},
    _LINK: {4: _ATTRIBUTE},
    _STATUS: {2: TEXT},
    _ATTRIBUTE: {2: _VALUE},
    _ENTRY: {1: NAME, 2: _VALUE},
    _VALUE: {1: TEXT, 3: NUMBER, 5: _LIST, 6: _MAP, 7: TEXT},
    _LIST: {1: _VALUE},
    _MAP: {1: _ENTRY},
}
_FIELD_MAX: Final = 15
_KINDS: Final = np.zeros((int(_MAP) + 1, _FIELD_MAX + 1), np.int64)
for _message, _fields in _FIELDS.items():
    for _number, _kind in _fields.items():
        _KINDS[_message, _number] = _kind

_DEEP: Final = DEPTH_MAX + 2
WALK = np.dtype(
    [
        ("at", "i8"),
        ("level", "i8"),
        ("message", "i8", (_DEEP,)),
        ("length_at", "i8", (_DEEP,)),  # Of the message at each level.
        ("start", "i8", (_DEEP,)),
        ("end", "i8", (_DEEP,)),
        ("frame", "i8", (_DEEP,)),  # For whoever walks.
        ("key_at", "i8", (_DEEP,)),  # The key or name that the values at a level go by.
        ("key_end", "i8", (_DEEP,)),
        # Of the leaf told last.
        ("leaf_length_at", "i8"),
        ("leaf_at", "i8"),
        ("leaf_end", "i8"),
    ],
    align=True,
)
"""Where a walk is."""


@kernel
def begin_walk(data: Array, message: Int, walk: Record) -> None:
    """Start in front of a request."""
    walk["at"], walk["level"] = 0, 0
    walk["message"][0], walk["length_at"][0] = message, 0
    walk["start"][0], walk["end"][0], walk["frame"][0] = 0, data.size, -1
    walk["key_at"][0], walk["key_end"][0] = 0, 0


@kernel
def next_leaf(data: Array, kept: Array, walk: Record) -> Int:
    """Go to the next leaf: what it is, or NO_LEAF at the end of the request.

    Its place is told in `walk`. `kept`: keys of attributes that are passed over, see `is_kept`.
    """
    data, kept = borrow(data), borrow(kept)
    at, level = np.int64(walk["at"]), np.int64(walk["level"])
    while True:
        if at >= walk["end"][level]:
            if level == 0:
                return NO_LEAF
            level -= 1
            continue
        tag, at = read_tag(data, at, walk["end"][level])
        field, wire = tag >> 3, tag & 7
        kind = _KINDS[walk["message"][level], field] if field <= _FIELD_MAX else NO_LEAF
        if wire != (VARINT if kind == NUMBER else BYTES):
            kind = NO_LEAF
        if kind == NO_LEAF:
            at = skip(data, at, walk["end"][level], tag, np.int64(0))
            continue
        length_at = at
        if kind == NUMBER:
            start, stop = at, skip(data, at, walk["end"][level], tag, np.int64(0))
        else:
            start, stop = read_length(data, at, walk["end"][level])
        at = stop
        if kind <= NUMBER:
            walk["at"], walk["level"] = at, level
            walk["leaf_length_at"], walk["leaf_at"], walk["leaf_end"] = length_at, start, stop
            return np.int64(kind)
        if start < stop and _enter(data, kept, kind, start, stop, level, walk):
            level += 1
            walk["length_at"][level], at = length_at, start


@inlined
def _enter(
    data: Array, kept: Array, kind: Int, start: Int, stop: Int, level: Int, walk: Record
) -> bool:
    """Note a message one level deeper. False for an attribute that is kept as it is."""
    key, key_end = np.int64(walk["key_at"][level]), np.int64(walk["key_end"][level])
    if kind == _ATTRIBUTE or kind == _ENTRY:
        key, key_end = _key_of(data, start, stop)
        if kind == _ATTRIBUTE and is_kept(data, key, key_end, kept):
            return False
    level += 1
    walk["message"][level], walk["frame"][level] = kind, -1
    walk["start"][level], walk["end"][level] = start, stop
    walk["key_at"][level], walk["key_end"][level] = key, key_end
    return True


@kernel
def _key_of(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the last key of a KeyValue begins and ends; it is mostly the first field."""
    found, found_end = at, at
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (1 << 3 | BYTES):
            found, found_end = read_length(data, at, end)
        at = skip(data, at, end, tag, np.int64(0))
    return found, found_end


@kernel
def is_kept(data: Array, at: Int, end: Int, kept: Array) -> bool:
    """Whether a key is one of `kept`: each with a byte in front that tells its length."""
    place, size = np.int64(0), end - at
    while place < kept.size:
        length = load1(kept, place)
        same = length == size
        i = np.int64(0)
        while same and i < size:
            same = load1(kept, place + 1 + i) == load1(data, at + i)
            i += 1
        if same:
            return True
        place += length + 1
    return False
