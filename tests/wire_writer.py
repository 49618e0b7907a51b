"""A tiny protobuf writer for what the generated classes cannot say.

The classes write every message one way. The wire allows more, and a client may send it: fields
in any order, groups, numbers nobody knows, varints longer than needed, a field written twice.
"""

from __future__ import annotations

VARINT, FIXED64, BYTES, GROUP_START, GROUP_END, FIXED32 = range(6)

VARINT_BYTES_MAX = 10
TAG_BYTES_MAX = 5
"""Of a tag and of a length, over-long ones included. The protobuf library refuses more."""


def varint(value: int, width: int = 1) -> bytes:
    """`value` as a varint of at least `width` bytes; a negative one as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F or len(out) + 1 < width:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire_type: int, width: int = 1) -> bytes:
    """The tag before a field."""
    return varint(number << 3 | wire_type, width)


def number(field: int, value: int, *, tag_width: int = 1, width: int = 1) -> bytes:
    """A varint field."""
    return tag(field, VARINT, tag_width) + varint(value, width)


def chunk(field: int, payload: bytes, *, tag_width: int = 1, width: int = 1) -> bytes:
    """A length-delimited field: string, bytes or message. `width` is that of the length."""
    return tag(field, BYTES, tag_width) + varint(len(payload), width) + payload


def fixed64(field: int, value: int, *, tag_width: int = 1) -> bytes:
    """An eight-byte field."""
    return tag(field, FIXED64, tag_width) + (value % (1 << 64)).to_bytes(8, "little")


def fixed32(field: int, value: int, *, tag_width: int = 1) -> bytes:
    """A four-byte field."""
    return tag(field, FIXED32, tag_width) + (value % (1 << 32)).to_bytes(4, "little")


def group(field: int, payload: bytes = b"", *, tag_width: int = 1) -> bytes:
    """A group: fields between a start and an end tag, with no length. Obsolete, still legal."""
    return tag(field, GROUP_START, tag_width) + payload + tag(field, GROUP_END, tag_width)
