"""Protobuf framing: varints, tags, lengths, and the schema of trace and metrics requests.

The only place that knows protobuf's rules. What is accepted here is exactly what Google's own
parser (upb) accepts for an `ExportTraceServiceRequest`; a property test holds the two together.
It must be so: requests of several clients are merged on the way out, and one that the next hop
cannot parse would take its neighbours with it. One exception: the field number 0 in an unknown
group, which the format forbids and upb refused until protobuf 7 let it pass, is refused here.

Every reader takes `end` and returns the next position, or -1 when the bytes are broken. A
position is never past `end`, a length is checked against what is left before it is used.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1, load8

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
"""Wire types."""

DEPTH_MAX: Final = 100
"""Messages and groups nested deeper are refused, as upb does. The request itself is not counted."""
LENGTH_MAX: Final = (1 << 31) - 1
TAG_MAX: Final = (1 << 32) - 1
_HIGH_BITS: Final = -0x7F7F7F7F7F7F7F80  # 0x8080808080808080 as a signed number.

# Kinds of a field, from here on numbers of messages.
UNKNOWN, NUMBER, DOUBLE, SINGLE, OPAQUE, TEXT, NUMBERS, DOUBLES, FIRST_MESSAGE = np.arange(9)
(
    REQUEST,
    RESOURCE_SPANS,
    RESOURCE,
    ENTITY_REF,
    SCOPE_SPANS,
    SCOPE,
    SPAN,
    EVENT,
    LINK,
    STATUS,
    KEY_VALUE,
    ANY_VALUE,
    ARRAY_VALUE,
    KEY_VALUE_LIST,
    METRICS_REQUEST,
    RESOURCE_METRICS,
    SCOPE_METRICS,
    METRIC,
    GAUGE,
    SUM,
    HISTOGRAM,
    EXPONENTIAL_HISTOGRAM,
    SUMMARY,
    NUMBER_POINT,
    HISTOGRAM_POINT,
    EXPONENTIAL_POINT,
    BUCKETS,
    SUMMARY_POINT,
    VALUE_AT_QUANTILE,
    EXEMPLAR,
) = np.arange(FIRST_MESSAGE, FIRST_MESSAGE + 30)
# numpy numbers, here and below where a constant is handed to a kernel: numba compiles a kernel
# anew for every Python literal it is called with.

# opentelemetry-proto 1.11: message -> {field number: kind}. A field not here is unknown.
_FIELDS: dict[np.int64, dict[int, int | np.int64]] = {
    REQUEST: {1: RESOURCE_SPANS},
    RESOURCE_SPANS: {1: RESOURCE, 2: SCOPE_SPANS, 3: TEXT},
    RESOURCE: {1: KEY_VALUE, 2: NUMBER, 3: ENTITY_REF},
    ENTITY_REF: {1: TEXT, 2: TEXT, 3: TEXT, 4: TEXT},
    SCOPE_SPANS: {1: SCOPE, 2: SPAN, 3: TEXT},
    SCOPE: {1: TEXT, 2: TEXT, 3: KEY_VALUE, 4: NUMBER},
    SPAN: {
        1: OPAQUE,
        2: OPAQUE,
        3: TEXT,
        4: OPAQUE,
        5: TEXT,
        6: NUMBER,
        7: DOUBLE,
        8: DOUBLE,
        9: KEY_VALUE,
        10: NUMBER,
        11: EVENT,
        12: NUMBER,
        13: LINK,
        14: NUMBER,
        15: STATUS,
        16: SINGLE,
    },
    EVENT: {1: DOUBLE, 2: TEXT, 3: KEY_VALUE, 4: NUMBER},
    LINK: {1: OPAQUE, 2: OPAQUE, 3: TEXT, 4: KEY_VALUE, 5: NUMBER, 6: SINGLE},
    STATUS: {2: TEXT, 3: NUMBER},
    KEY_VALUE: {1: TEXT, 2: ANY_VALUE, 3: NUMBER},
    ANY_VALUE: {
        1: TEXT,
        2: NUMBER,
        3: NUMBER,
        4: DOUBLE,
        5: ARRAY_VALUE,
        6: KEY_VALUE_LIST,
        7: OPAQUE,
        8: NUMBER,
    },
    ARRAY_VALUE: {1: ANY_VALUE},
    KEY_VALUE_LIST: {1: KEY_VALUE},
    METRICS_REQUEST: {1: RESOURCE_METRICS},
    RESOURCE_METRICS: {1: RESOURCE, 2: SCOPE_METRICS, 3: TEXT},
    SCOPE_METRICS: {1: SCOPE, 2: METRIC, 3: TEXT},
    METRIC: {
        1: TEXT,
        2: TEXT,
        3: TEXT,
        5: GAUGE,
        7: SUM,
        9: HISTOGRAM,
        10: EXPONENTIAL_HISTOGRAM,
        11: SUMMARY,
        12: KEY_VALUE,
    },
    GAUGE: {1: NUMBER_POINT},
    SUM: {1: NUMBER_POINT, 2: NUMBER, 3: NUMBER},
    HISTOGRAM: {1: HISTOGRAM_POINT, 2: NUMBER},
    EXPONENTIAL_HISTOGRAM: {1: EXPONENTIAL_POINT, 2: NUMBER},
    SUMMARY: {1: SUMMARY_POINT},
    NUMBER_POINT: {
        **dict.fromkeys((2, 3, 4, 6), DOUBLE),
        5: EXEMPLAR,
        7: KEY_VALUE,
        8: NUMBER,
    },
    HISTOGRAM_POINT: {
        **dict.fromkeys((2, 3, 4, 5, 11, 12), DOUBLE),
        6: DOUBLES,
        7: DOUBLES,
        8: EXEMPLAR,
        9: KEY_VALUE,
        10: NUMBER,
    },
    EXPONENTIAL_POINT: {
        **dict.fromkeys((2, 3, 4, 5, 7, 12, 13, 14), DOUBLE),
        1: KEY_VALUE,
        6: NUMBER,
        8: BUCKETS,
        9: BUCKETS,
        10: NUMBER,
        11: EXEMPLAR,
    },
    BUCKETS: {1: NUMBER, 2: NUMBERS},
    SUMMARY_POINT: {
        **dict.fromkeys((2, 3, 4, 5), DOUBLE),
        6: VALUE_AT_QUANTILE,
        7: KEY_VALUE,
        8: NUMBER,
    },
    VALUE_AT_QUANTILE: {1: DOUBLE, 2: DOUBLE},
    EXEMPLAR: {**dict.fromkeys((2, 3, 6), DOUBLE), 4: OPAQUE, 5: OPAQUE, 7: KEY_VALUE},
}
FIELD_MAX: Final = 16

SCHEMA: Final = np.zeros((EXEMPLAR + 1, FIELD_MAX + 1), np.int64)
for _message, _fields in _FIELDS.items():
    for _number, _kind in _fields.items():
        SCHEMA[_message, _number] = _kind

# The wire type a kind must come with; with another one the field counts as unknown.
WIRE_OF: Final = np.array(
    [-1, VARINT, FIXED64, FIXED32, *[BYTES] * (4 + len(_FIELDS))], dtype=np.int64
)
assert WIRE_OF.size == SCHEMA.shape[0]


@inlined
def read_varint(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Returns (value, next): 64 bits, signed; next is -1 when cut or longer than ten bytes.

    Bits beyond the 64th are lost without a complaint, as in upb.
    """
    if at < end:
        byte = load1(data, at)
        if byte < 128:
            return byte, at + 1
        if at + 1 < end and load1(data, at + 1) < 128:
            return (byte & 127) | load1(data, at + 1) << 7, at + 2
    return _read_long_varint(data, at, end)


@kernel
def _read_long_varint(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """`read_varint` of any length: most are one or two bytes long, and take the way above."""
    value = np.int64(0)
    shift = np.int64(0)
    while at < end and shift < 70:
        byte = load1(data, at)
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return np.int64(0), -1


@inlined
def read_tag(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Returns (field << 3 | wire type, next): at most five bytes and 32 bits, field not 0."""
    if at < end:
        byte = load1(data, at)
        if 8 <= byte < 128:
            return byte, at + 1
    return _read_long_tag(data, at, end)


@kernel
def _read_long_tag(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """`read_tag` for fields above 15 and for what is broken."""
    tag, after = _read_long_varint(data, at, end)
    if after < 0 or after - at > 5 or tag > TAG_MAX or tag < 8:
        return np.int64(0), -1
    return tag, after


@inlined
def read_length(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Returns (start, stop) of a length-delimited value; stop is -1 unless all of it is there."""
    length, start = read_varint(data, at, end)
    if start < 0 or start - at > 5 or length < 0 or length > end - start:
        return np.int64(0), -1
    return start, start + length


@kernel
def skip_group(data: Array, at: Int, end: Int, field: Int, depth: Int) -> Int:
    """The position behind the group whose start tag was just read, or -1."""
    fields = np.empty(DEPTH_MAX + 1, np.int64)
    fields[0] = field
    open_count = 1
    while open_count > 0:
        if depth + open_count > DEPTH_MAX:
            return -1
        tag, at = read_tag(data, at, end)
        if at < 0:
            return -1
        wire = tag & 7
        if wire == GROUP:
            fields[open_count] = tag >> 3
            open_count += 1
        elif wire == GROUP_END:
            open_count -= 1
            if fields[open_count] != tag >> 3:
                return -1
        else:
            at = skip_plain(data, at, end, wire)
            if at < 0:
                return -1
    return at


@inlined
def skip_plain(data: Array, at: Int, end: Int, wire: Int) -> Int:
    """The position behind a value that is not a group, or -1."""
    if wire == VARINT:
        _, at = read_varint(data, at, end)
        return at
    if wire == BYTES:
        _, at = read_length(data, at, end)
        return at
    if wire == FIXED64:
        return at + 8 if end - at >= 8 else -1
    if wire == FIXED32:
        return at + 4 if end - at >= 4 else -1
    return -1


@kernel
def skip(data: Array, at: Int, end: Int, tag: Int, depth: Int) -> Int:
    """The position behind any value, known or not, whose tag was just read, or -1."""
    if tag & 7 == GROUP:
        return skip_group(data, at, end, tag >> 3, depth)
    return skip_plain(data, at, end, tag & 7)


@inlined
def is_ascii(data: Array, at: Int, end: Int) -> bool:
    """Whether no byte in the range is above 127: sixteen at a time, the last ones overlapping."""
    if end - at < 8:
        bits = np.int64(0)
        while at < end:
            bits |= load1(data, at)
            at += 1
        return bits & 128 == 0
    bits = load8(data, at) | load8(data, end - 8)
    if end - at > 16:
        bits |= load8(data, at + 8) | load8(data, end - 16)
        at += 16
        while end - at > 16:
            bits |= load8(data, at) | load8(data, at + 8)
            at += 16
    return bits & _HIGH_BITS == 0


@inlined
def is_utf8(data: Array, at: Int, end: Int) -> bool:
    """Whether the range is well-formed UTF-8: as protobuf demands of every string."""
    return is_ascii(data, at, end) or _is_long_utf8(data, at, end)


@kernel
def _is_long_utf8(data: Array, at: Int, end: Int) -> bool:
    """`is_utf8` where not all is ASCII. Source: the Unicode Standard 15, table 3-7."""
    while at < end:
        first = load1(data, at)
        at += 1
        if first < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= first <= 0xDF:
            more = 1
        elif 0xE0 <= first <= 0xEF:
            more = 2
            if first == 0xE0:
                low = 0xA0  # Nothing that fits two bytes.
            elif first == 0xED:
                high = 0x9F  # No surrogates.
        elif 0xF0 <= first <= 0xF4:
            more = 3
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F  # Nothing above U+10FFFF.
        else:
            return False
        if end - at < more or load1(data, at) < low or load1(data, at) > high:
            return False
        for following in range(at + 1, at + more):
            if load1(data, following) < 0x80 or load1(data, following) > 0xBF:
                return False
        at += more
    return True


@kernel
def check_message(data: Array, at: Int, end: Int, message: Int, depth: Int) -> bool:
    """Whether the range is a well-formed `message`, all the way down. `depth` is its nesting."""
    while at < end:
        at, stop, kind = _check_field(data, at, end, message, depth)
        if at < 0:
            return False
        if kind != UNKNOWN:
            # Most messages hold no message: only these need a stack.
            if not _check_nested(data, at, stop, kind, depth + 1):
                return False
            at = stop
    return True


@kernel
def _check_field(data: Array, at: Int, end: Int, message: Int, depth: Int) -> tuple[Int, Int, Int]:
    """One field: (next, _, UNKNOWN) when done with it, or (start, stop, kind) of a message."""
    tag, at = read_tag(data, at, end)
    if at < 0:
        return -1, end, UNKNOWN
    field = tag >> 3
    kind = SCHEMA[message, field] if field <= FIELD_MAX else UNKNOWN
    if WIRE_OF[kind] != tag & 7:
        kind = UNKNOWN
    if kind < TEXT:
        return skip(data, at, end, tag, depth), end, UNKNOWN
    start, stop = read_length(data, at, end)
    if stop < 0:
        return -1, end, UNKNOWN
    if kind == TEXT:
        return stop if is_utf8(data, start, stop) else -1, end, UNKNOWN
    if kind < FIRST_MESSAGE:
        return stop if _is_packed(data, start, stop, kind) else -1, end, UNKNOWN
    return start, stop, kind


@kernel
def _is_packed(data: Array, at: Int, end: Int, kind: Int) -> bool:
    """Whether the range holds whole numbers, one behind the other, as protobuf packs them."""
    if kind == DOUBLES:
        return (end - at) & 7 == 0
    while 0 <= at < end:
        _, at = read_varint(data, at, end)
    return at == end


@kernel
def _check_nested(data: Array, at: Int, end: Int, message: Int, depth: Int) -> bool:
    """`check_message` for a message in a message.

    Iterative, with a stack of DEPTH_MAX: hostile nesting costs no call stack. Every byte is
    looked at once, so the time is linear in the length.
    """
    ends = np.empty(DEPTH_MAX + 1, np.int64)
    messages = np.empty(DEPTH_MAX + 1, np.int64)
    level = 0
    ends[0] = end
    messages[0] = message
    while depth + level <= DEPTH_MAX:
        if at == ends[level]:
            if level == 0:
                return True
            level -= 1
            continue
        at, stop, kind = _check_field(data, at, ends[level], messages[level], depth + level)
        if at < 0:
            return False
        if kind != UNKNOWN:
            level += 1
            ends[level] = stop
            messages[level] = kind
    return False
