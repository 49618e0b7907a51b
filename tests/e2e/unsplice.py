"""Takes our attributes out of an annotated request again, touching no other byte.

Works on the wire, not on messages: parsing and writing again would hide a changed order or a
length written another way. Emitters write lengths with as few bytes as possible; so does this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Field numbers on the way down: request.resource_spans, .scope_spans, .spans, then .attributes;
# of logs they are the same but for the last.
_WAY_DOWN = (1, 2, 2)
_ATTRIBUTES = {"traces": 9, "logs": 6}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def unsplice(body: bytes, prefix: bytes = b"anomaly.", signal: str = "traces") -> bytes:
    """`body` without the attributes of spans, or log records, whose key starts with `prefix`."""
    return _strip(body, (*_WAY_DOWN, _ATTRIBUTES[signal]), prefix)


def _strip(message: bytes, way_down: tuple[int, ...], prefix: bytes) -> bytes:
    wanted, *further = way_down
    out = []
    for number, start, content, end in _fields(message):
        if number != wanted or content is None:
            out.append(message[start:end])
        elif further:
            inner = _strip(message[content:end], tuple(further), prefix)
            out.append(bytes([wanted << 3 | _LENGTH]) + _varint(len(inner)) + inner)
        elif not _key(message[content:end]).startswith(prefix):
            out.append(message[start:end])
    return b"".join(out)


def _key(pair: bytes) -> bytes:
    return b"".join(
        pair[content:end]
        for number, _start, content, end in _fields(pair)
        if number == 1 and content is not None
    )


def _fields(message: bytes) -> Iterator[tuple[int, int, int | None, int]]:
    """(field number, start, start of the content when it has a length, end) of each field."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        content = None
        if tag & 7 == _VARINT:
            _value, at = _read_varint(message, at)
        elif tag & 7 == _LENGTH:
            size, content = _read_varint(message, at)
            at = content + size
        else:
            at += {_FIXED64: 8, _FIXED32: 4}[tag & 7]
        assert at <= len(message)
        yield tag >> 3, start, content, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
