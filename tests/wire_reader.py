"""A tiny protobuf reader for tests: where each field of a message begins and ends.

For bytes that protobuf has already accepted; what is broken makes it raise, or read on wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.wire_writer import BYTES, FIXED32, FIXED64, GROUP_END, GROUP_START, VARINT

if TYPE_CHECKING:
    from collections.abc import Iterator


class Field(NamedTuple):
    """One field of a message; positions count from the beginning of the message."""

    number: int
    wire_type: int
    at: int
    """Where its tag begins."""
    value_at: int
    """Where what follows the tag begins: of a length-delimited field, the length."""
    start: int
    """Where its content begins."""
    end: int


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, next position)."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message in the order of the wire."""
    at = 0
    while at < len(data):
        field = _field(data, at)
        yield field
        at = field.end


def _field(data: bytes, at: int) -> Field:
    tag, value_at = varint(data, at)
    number, wire_type = tag >> 3, tag & 7
    start = value_at
    match wire_type:
        case 0:
            end = varint(data, value_at)[1]
        case 1:
            end = value_at + 8
        case 2:
            length, start = varint(data, value_at)
            end = start + length
        case 3:
            end = _group_end(data, value_at)
        case 5:
            end = value_at + 4
        case _:
            raise ValueError(f"wire type {wire_type} at {at}")
    if end > len(data):
        raise ValueError(f"field at {at} is cut")
    return Field(number, wire_type, at, value_at, start, end)


def _group_end(data: bytes, at: int) -> int:
    while True:
        tag, after = varint(data, at)
        if tag & 7 == GROUP_END:
            return after
        at = _field(data, at).end


def numbers_in_group(data: bytes) -> set[int]:
    """The field numbers used in a group, groups in it included. `data` begins after its tag."""
    numbers, at, open_count = set(), 0, 1
    while open_count:
        tag, after = varint(data, at)
        numbers.add(tag >> 3)
        if tag & 7 in {GROUP_START, GROUP_END}:
            open_count += 1 if tag & 7 == GROUP_START else -1
            at = after
        else:
            at = _field(data, at).end
    return numbers


assert (VARINT, FIXED64, BYTES, GROUP_START, FIXED32) == (0, 1, 2, 3, 5)
