"""The messages of OTLP as tables: made from the protobuf descriptors when the module is loaded.

A field that a newer opentelemetry-proto brings is covered without a change here. All of it is
numbers in arrays, which kernels read:

    field      a row, those of one message one after the other, by their numbers
    slot       what of its message can be there only once: a field, or all members of a oneof
    member     a name that a field or the value of an enum has in JSON; fields mostly have two
    owner      the number of a message, or of an enum behind all messages: whose name it is

A name is found by its hash and then compared. Floats of 32 bits, maps and groups do not occur in
OTLP; a field of such a type would count as unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.kernels import Array, Int, inlined, load8
from otel_anomaly.otlp.hashing import hash_bytes, hash_text, load_rest
from otel_anomaly.otlp.wire import BYTES, FIXED32, FIXED64, VARINT

if TYPE_CHECKING:
    from google.protobuf.message import Message

REQUESTS: Final[tuple[type[Message], ...]] = (
    ExportTraceServiceRequest,
    ExportMetricsServiceRequest,
    ExportLogsServiceRequest,
)
"""The messages that have the first numbers."""

# What a field is; of those behind DOUBLE, how a whole number lies on the wire.
MESSAGE, TEXT, ID, BASE64, BOOL, DOUBLE = range(6)
INT32, UINT32, SINT32, ENUM, INT64, UINT64, SINT64 = range(6, 13)
FIXED_32, SFIXED_32, FIXED_64, SFIXED_64 = range(13, 17)

_F = FieldDescriptor
_KINDS: Final = {
    _F.TYPE_MESSAGE: MESSAGE,
    _F.TYPE_STRING: TEXT,
    _F.TYPE_BYTES: BASE64,
    _F.TYPE_BOOL: BOOL,
    _F.TYPE_DOUBLE: DOUBLE,
    _F.TYPE_INT32: INT32,
    _F.TYPE_UINT32: UINT32,
    _F.TYPE_SINT32: SINT32,
    _F.TYPE_ENUM: ENUM,
    _F.TYPE_INT64: INT64,
    _F.TYPE_UINT64: UINT64,
    _F.TYPE_SINT64: SINT64,
    _F.TYPE_FIXED32: FIXED_32,
    _F.TYPE_SFIXED32: SFIXED_32,
    _F.TYPE_FIXED64: FIXED_64,
    _F.TYPE_SFIXED64: SFIXED_64,
}
_ID_FIELDS: Final = {"trace_id", "span_id", "parent_span_id"}

WIRE_OF_KIND: Final = np.array(
    [BYTES] * 4 + [VARINT, FIXED64] + [VARINT] * 7 + [FIXED32] * 2 + [FIXED64] * 2, np.int64
)
assert WIRE_OF_KIND.size == len(_KINDS) + 1

# Which whole numbers a kind holds, and whether they are written in quotes: those of 64 bits.
SIGNED_32, UNSIGNED_32, SIGNED_64, UNSIGNED_64 = range(4)
RANGES: Final = (
    (-(1 << 31), (1 << 31) - 1),
    (0, (1 << 32) - 1),
    (-(1 << 63), (1 << 63) - 1),
    (0, (1 << 64) - 1),
)
RANGE_OF_KIND: Final = np.zeros(len(_KINDS) + 1, np.int64)
RANGE_OF_KIND[[INT64, SINT64, SFIXED_64]] = SIGNED_64
RANGE_OF_KIND[[UINT64, FIXED_64]] = UNSIGNED_64
RANGE_OF_KIND[[UINT32, FIXED_32]] = UNSIGNED_32


def _is_repeated(field: FieldDescriptor) -> bool:
    """`label` is gone from new protobuf versions, `is_repeated` is not in old ones."""
    known = getattr(field, "is_repeated", None)
    return getattr(field, "label", None) == _F.LABEL_REPEATED if known is None else bool(known)


def _is_known(field: FieldDescriptor) -> bool:
    """Whether the field is of a type that OTLP uses."""
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return field.type in _KINDS and not is_map


def _fields_of(descriptor: Any) -> list[FieldDescriptor]:  # noqa: ANN401 - Stubs give it two types.
    return sorted(filter(_is_known, descriptor.fields), key=lambda field: field.number)


def _reach() -> list[Any]:
    """The descriptors of all messages, the requests first."""
    found = [kind.DESCRIPTOR for kind in REQUESTS]
    for descriptor in found:  # Grows while it is read.
        for field in _fields_of(descriptor):
            if field.message_type is not None and field.message_type not in found:
                found.append(field.message_type)
    return found


_MESSAGES: Final = _reach()
_FIELDS: Final = [(number, field) for number, m in enumerate(_MESSAGES) for field in _fields_of(m)]
_ENUMS: Final = list(dict.fromkeys(field.enum_type for _, field in _FIELDS if field.enum_type))

FIELD_NUMBER_MAX: Final = max(field.number for _, field in _FIELDS)
assert FIELD_NUMBER_MAX < 1 << 10, "the table of numbers is small, a tag takes two bytes at most"
SLOTS_MAX: Final = max(len(_fields_of(message)) for message in _MESSAGES)
assert SLOTS_MAX < 63, "a set of a message's fields is one number"


def _kind(field: FieldDescriptor) -> int:
    is_id = field.type == _F.TYPE_BYTES and field.name in _ID_FIELDS
    return ID if is_id else _KINDS[field.type]


def _owner(field: FieldDescriptor) -> int:
    """The message or enum that names are looked up in below the field."""
    if field.message_type is not None:
        return _MESSAGES.index(field.message_type)
    return len(_MESSAGES) + _ENUMS.index(field.enum_type) if field.enum_type else 0


KIND: Final = np.array([_kind(field) for _, field in _FIELDS], np.int64)
REPEATED: Final = np.array([_is_repeated(field) for _, field in _FIELDS], np.int64)
PRESENCE: Final = np.array([field.has_presence for _, field in _FIELDS], np.int64)
"""Whether a default value that is there differs from none."""
OWNER: Final = np.array([_owner(field) for _, field in _FIELDS], np.int64)
PACKED: Final = REPEATED & (KIND >= BOOL)
"""Lists of numbers: written as one chunk of bytes, read in either form."""
WIRE: Final = WIRE_OF_KIND[KIND]
TAG: Final = np.array(
    [
        field.number << 3 | (BYTES if packed else wire)
        for (_, field), packed, wire in zip(_FIELDS, PACKED, WIRE, strict=True)
    ],
    np.int64,
)
FIRST_ROW: Final = np.searchsorted([number for number, _ in _FIELDS], range(len(_MESSAGES)))
ROW_OF: Final = np.full((len(_MESSAGES), FIELD_NUMBER_MAX + 1), -1, np.int64)
SLOT: Final = np.zeros(len(_FIELDS), np.int64)
for _row, (_number, _field) in enumerate(_FIELDS):
    ROW_OF[_number, _field.number] = _row
    _oneof = _field.containing_oneof
    _least = min(each.number for each in _oneof.fields) if _oneof else _field.number
    SLOT[_row] = ROW_OF[_number, _least] - FIRST_ROW[_number]
assert SLOT.min() == 0

# --- Names -----------------------------------------------------------------------------------


def _names() -> list[tuple[str, int, int]]:
    """(name, whose it is, the row of its field or the number of its value)."""
    found = []
    for row, (number, field) in enumerate(_FIELDS):
        found += [(name, number, row) for name in dict.fromkeys((field.json_name, field.name))]
    for number, enum in enumerate(_ENUMS, start=len(_MESSAGES)):
        found += [(value.name, number, value.number) for value in enum.values]
    return found


_NAMES: Final = _names()
MEMBER_NAMES: Final = [name for name, _, _ in _NAMES]
_OWNERS: Final = np.array([owner for _, owner, _ in _NAMES], np.int64)
TARGET: Final = np.array([target for _, _, target in _NAMES], np.int64)
_LENGTHS: Final = np.array([len(name) for name in MEMBER_NAMES], np.int64)
_STARTS: Final = np.cumsum(_LENGTHS) - _LENGTHS
_LETTERS: Final = np.frombuffer("".join(MEMBER_NAMES).encode() + bytes(8), np.uint8).copy()
_HASHES: Final = np.array([hash_text(name, owner) for name, owner, _ in _NAMES], np.int64)
_PLACE_MASK: Final = (1 << (4 * len(_NAMES)).bit_length()) - 1
_PLACES: Final = np.full(_PLACE_MASK + 1, -1, np.int64)
for _member, _hash in enumerate(_HASHES.tolist()):
    _place = _hash & _PLACE_MASK
    while _PLACES[_place] >= 0:
        _place = (_place + 1) & _PLACE_MASK
    _PLACES[_place] = _member

_WRITTEN: Final = [f'"{field.json_name}":'.encode() for _, field in _FIELDS]
NAME: Final = np.frombuffer(b"".join(_WRITTEN), np.uint8).copy()
"""The names of all fields as they are written, quotes and colon included."""
NAME_SIZE: Final = np.array([len(name) for name in _WRITTEN], np.int64)
NAME_AT: Final = np.cumsum(NAME_SIZE) - NAME_SIZE


@inlined
def _is_same(data: Array, at: Int, name_at: Int, count: Int) -> bool:
    """Whether `count` bytes are those of a name."""
    while count > 8:
        if load8(data, at) != load8(_LETTERS, name_at):
            return False
        at += 8
        name_at += 8
        count -= 8
    return load_rest(data, at, count) == load_rest(_LETTERS, name_at, count)


@inlined
def find_member(data: Array, start: Int, stop: Int, owner: Int) -> Int:
    """Which name of its owner the bytes are, or -1."""
    value = hash_bytes(data, start, stop - start, owner)
    place = value & _PLACE_MASK
    while True:
        member = _PLACES[place]
        if member < 0:
            return np.int64(-1)
        if (
            _HASHES[member] == value
            and _OWNERS[member] == owner
            and _LENGTHS[member] == stop - start
            and _is_same(data, start, _STARTS[member], stop - start)
        ):
            return member
        place = (place + 1) & _PLACE_MASK


@inlined
def row_of(tag: Int, message: Int) -> Int:
    """The row of the field that a tag read from the wire means in a message, or -1.

    With another wire type than its own a field counts as unknown.
    """
    number, wire = tag >> 3, tag & 7
    if number > FIELD_NUMBER_MAX:
        return np.int64(-1)
    row = ROW_OF[message, number]
    if row < 0 or wire == WIRE[row] or (wire == BYTES and PACKED[row] != 0):
        return row
    return np.int64(-1)
