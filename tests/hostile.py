"""Writes a protobuf message in ways the wire allows and no library uses.

Each trick leaves valid protobuf; what it means is what the protobuf library reads from it, which
may be less or more than the message given (a decoy written after the true value wins).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor

from tests import wire_writer as wire

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection

    from google.protobuf.message import Message

TRICKS = frozenset({"shuffle", "unknown", "group", "mistyped", "overlong", "split", "decoy"})
"""shuffle: fields in any order, so also a resource after its scopes. unknown: numbers of no field.
group: unknown groups, nested. mistyped: a known number with another wire type, which makes it
unknown. overlong: varints with needless bytes, or more bits than the field has. split: one message
field written in parts, to be merged. decoy: a scalar or a oneof member written twice.
"""

_F = FieldDescriptor
_ZIGZAG = {_F.TYPE_SINT32, _F.TYPE_SINT64}
_FIXED: dict[int, Callable[[float], bytes]] = {
    _F.TYPE_FIXED64: struct.Struct("<Q").pack,
    _F.TYPE_SFIXED64: struct.Struct("<q").pack,
    _F.TYPE_DOUBLE: struct.Struct("<d").pack,
    _F.TYPE_FIXED32: struct.Struct("<I").pack,
}
_FAR_NUMBERS = (50, 99, 1000, 20_000, (1 << 29) - 1)


class HostileWriter:
    """Writes messages, drawing from one source of randomness."""

    def __init__(self, rng: random.Random, tricks: Collection[str] = TRICKS) -> None:
        assert TRICKS.issuperset(tricks), f"unknown tricks: {set(tricks) - TRICKS}"
        self._rng = rng
        self._tricks = frozenset(tricks)

    def message(self, message: Message) -> bytes:
        """The bytes of `message`, without a tag and length of its own."""
        records = self._records(message)
        if self._draw("unknown", 0.15):
            records.append(self._unknown(self._rng.choice(_FAR_NUMBERS)))
        if self._draw("group", 0.1):
            records.append(wire.group(self._rng.choice(_FAR_NUMBERS), self._group_content(2)))
        if self._draw("mistyped", 0.1):
            records.append(self._mistyped(message))
        if self._draw("shuffle", 0.5):
            self._rng.shuffle(records)
        return b"".join(records)

    def _draw(self, trick: str, chance: float) -> bool:
        return trick in self._tricks and self._rng.random() < chance

    def _width(self, limit: int) -> int:
        return self._rng.randint(2, limit) if self._draw("overlong", 0.1) else 1

    def _records(self, message: Message) -> list[bytes]:
        records = []
        for field, value in message.ListFields():
            for item in value if field.is_repeated else [value]:
                if field.message_type is None:
                    records += self._scalar(field, item)
                else:
                    records += self._child(field, item)
        return records

    def _child(self, field: FieldDescriptor, child: Message) -> list[bytes]:
        """The field as one record, or as two that a reader must merge."""
        if field.is_repeated or not self._draw("split", 0.2):
            return [self._chunk(field.number, self.message(child))]
        records = self._records(child)
        cut = self._rng.randint(0, len(records))
        return [
            self._chunk(field.number, b"".join(part)) for part in (records[:cut], records[cut:])
        ]

    def _scalar(self, field: FieldDescriptor, value: object) -> list[bytes]:
        records = [self._scalar_record(field, value)]
        if not field.is_repeated and self._draw("decoy", 0.05):
            decoy = "decoy" if isinstance(value, str) else b"decoy"
            records.insert(
                self._rng.randrange(2),
                self._scalar_record(field, decoy if isinstance(value, str | bytes) else 1),
            )
        return records

    def _scalar_record(self, field: FieldDescriptor, value: object) -> bytes:
        match value:
            case str():
                return self._chunk(field.number, value.encode())
            case bytes():
                return self._chunk(field.number, value)
            case int() | float() if field.type in _FIXED:
                packed = _FIXED[field.type](value)
                kind = wire.FIXED64 if len(packed) == 8 else wire.FIXED32
                return wire.tag(field.number, kind, self._width(wire.TAG_BYTES_MAX)) + packed
            case int():
                return self._varint(field, value)
        raise AssertionError(f"{field.full_name}: no record for {value!r}")

    def _varint(self, field: FieldDescriptor, value: int) -> bytes:
        if field.type in _ZIGZAG:
            value = value << 1 ^ value >> 63
        elif field.type == _F.TYPE_UINT32 and self._draw("overlong", 0.1):
            value |= self._rng.getrandbits(20) << 32  # A reader keeps the low 32 bits.
        tag_width = self._width(wire.TAG_BYTES_MAX)
        width = self._width(wire.VARINT_BYTES_MAX)
        return wire.number(field.number, value, tag_width=tag_width, width=width)

    def _chunk(self, number: int, payload: bytes) -> bytes:
        tag_width, width = self._width(wire.TAG_BYTES_MAX), self._width(wire.TAG_BYTES_MAX)
        return wire.chunk(number, payload, tag_width=tag_width, width=width)

    def _unknown(self, number: int) -> bytes:
        match self._rng.randrange(4):
            case 0:
                return wire.number(number, self._rng.getrandbits(64))
            case 1:
                return wire.fixed64(number, self._rng.getrandbits(64))
            case 2:
                return wire.fixed32(number, self._rng.getrandbits(32))
            case _:
                return self._chunk(number, self._rng.randbytes(self._rng.randrange(40)))

    def _group_content(self, depth: int) -> bytes:
        """Inside a group nothing is known, so any number will do."""
        content = b"".join(
            self._unknown(self._rng.randrange(1, 20)) for _ in range(self._rng.randrange(3))
        )
        if depth and self._rng.random() < 0.5:
            content += wire.group(self._rng.randrange(1, 20), self._group_content(depth - 1))
        return content

    def _mistyped(self, message: Message) -> bytes:
        """A number that the message knows, with a wire type that makes it unknown."""
        fields = [field for field in message.DESCRIPTOR.fields if field.type not in _FIXED]
        field = self._rng.choice(fields)
        if field.type in {_F.TYPE_STRING, _F.TYPE_BYTES, _F.TYPE_MESSAGE}:
            if self._rng.random() < 0.25:
                return wire.group(field.number, self._group_content(1))
            return self._rng.choice((wire.number, wire.fixed64, wire.fixed32))(field.number, 0x12)
        return wire.chunk(field.number, self._rng.randbytes(3))
