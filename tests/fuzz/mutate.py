"""Changes to a request that a blind mutation would hardly ever make and leave it well-framed.

One turned bit in a message of five levels mostly breaks a length, and the rest is never read. So
most changes are made inside: a field is chosen on the way down, its content changed, and all
lengths around it written anew.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests import recognition_traffic, traffic, wire_reader
from tests import wire_writer as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.wire_reader import Field

LEVELS_MAX = 12
OF_RECORD = 6
ATTRIBUTES_AT = {2: (1,), 3: (3, OF_RECORD, 9), 4: (3,)}
"""Level -> numbers that attributes have: of a resource; a scope, a log record, a span; an event."""
WORDS = tuple(
    word.encode() for word in (*traffic.WORDS, *traffic.KEYS, *recognition_traffic.VOCABULARY)
)


def mutated(data: bytes, seed: int, blind: Callable[[bytes], bytes]) -> bytes:
    """`data` changed in one place, or other traffic. `blind` knows nothing of framing."""
    rng = random.Random(seed)
    draw = rng.random()
    if draw < 0.02:
        logs = rng.random() < 0.5
        return recognition_traffic.random_request(rng.randrange(1 << 16), logs=logs, children=2)
    if draw < 0.04:
        return traffic.random_request(rng.randrange(1 << 16), spans=2)
    if draw < 0.15:
        return blind(data)
    return _changed(data, rng, blind, 0)


def _changed(data: bytes, rng: random.Random, blind: Callable[[bytes], bytes], level: int) -> bytes:
    try:
        fields = list(wire_reader.fields(data))
    except (IndexError, ValueError):  # Text, or broken already.
        return rng.choice(WORDS) if rng.random() < 0.3 else blind(data)
    if not fields or level == LEVELS_MAX:
        return _grown(data, rng) if rng.random() < 0.3 else blind(data)
    if level in ATTRIBUTES_AT and rng.random() < 0.25:
        return data + _attributes(rng, level)
    field = rng.choice(fields)
    before, whole, behind = data[: field.at], data[field.at : field.end], data[field.end :]
    if field.wire_type == wire.BYTES and rng.random() < 0.75:
        content = _changed(data[field.start : field.end], rng, blind, level + 1)
        return before + _framed(field, content, rng) + behind
    match rng.randrange(6):
        case 0:
            return before + behind
        case 1:
            return before + whole * 2 + behind
        case 2:
            return whole + before + behind
        case 3:
            return before + behind + whole
        case 4:
            return before + _grown(whole, rng) + behind
        case _:
            return before + blind(whole) + behind


def _attributes(rng: random.Random, level: int) -> bytes:
    """Attributes that mean something, of a message at this level."""
    number = rng.choice(ATTRIBUTES_AT[level])
    pairs = recognition_traffic.random_pairs(rng, logs=number == OF_RECORD)
    ready = traffic.attributes(pairs)
    return b"".join(wire.chunk(number, pair.SerializeToString()) for pair in ready)


def _framed(field: Field, content: bytes, rng: random.Random) -> bytes:
    """The content with the tag of its field, at times wider than needed."""
    wide = rng.random() < 0.1
    widths = (rng.randint(1, 6), rng.randint(1, 6)) if wide else (1, 1)
    return wire.chunk(field.number, content, tag_width=widths[0], width=widths[1])


def _grown(data: bytes, rng: random.Random) -> bytes:
    """`data` with a field behind it, known or not."""
    number = rng.choice((*range(1, 17), 99))
    match rng.randrange(5):
        case 0:
            more = wire.number(number, rng.getrandbits(64), width=rng.randint(1, 11))
        case 1:
            more = wire.fixed64(number, rng.getrandbits(64))
        case 2:
            more = wire.fixed32(number, rng.getrandbits(32))
        case 3:
            more = wire.group(number, data if rng.random() < 0.5 else b"")
        case _:
            more = wire.chunk(number, rng.choice((b"", data, *WORDS)))
    return data + more
