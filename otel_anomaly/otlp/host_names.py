"""One spelling for every spelling of a host: what may be compared, hashed and looked up.

An agent that wants to reach a forbidden host writes it so that it does not look like it. What a
browser or an HTTP library makes of the spelling decides where the connection goes, so we follow
the WHATWG URL standard ("host parsing"), whose forms are the widest:

    EXAMPLE.com.  %65xample.com  example<U+3002>com     example.com
    b<U+00FC>cher.example                               xn--bcher-kva.example    (RFC 3492)
    0x7f.1  2130706433  0177.0.0.1                      127.0.0.1
    [::FFFF:7f00:1]  ::ffff:127.0.0.1                   127.0.0.1
    [2001:DB8::1]                                       [20010db8000000000000000000000001]

Left out of the standard's mapping of names: normalisation (NFC), and lower case beyond Greek,
Cyrillic and Armenian. A name spelt with those becomes a name of its own: it is equal to no entry
of any list, which is the safe side.

What is no host (a forbidden byte, too long, numbers that are no address) is BROKEN: it keeps its
bytes, so that it can be told from others, and is on no list.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.addresses import hex_digit, is_number, read_ipv4, read_ipv6, write_ipv4
from otel_anomaly.otlp.characters import (
    ALNUM,
    DASH,
    DOT,
    HARD,
    KINDS,
    SOFT,
    UNDERSCORE,
    kind_at,
    lower_at,
)
from otel_anomaly.otlp.punycode import LABEL_MAX, NAME_MAX, ROOM, write_punycode

NAME, ADDRESS4, ADDRESS6, BROKEN = np.arange(4)
"""What a host is."""

HOST_BYTES: Final = ROOM
"""Room for a normal form."""
_ENCODED_MAX: Final = 1024
_MAPPED: Final = 0xFFFF
"""The third quarter of an IPv4 address written as IPv6."""

_PLAIN: Final = ALNUM | DASH | DOT | UNDERSCORE
_NEVER: Final = HARD | SOFT

_FOLDED_BELOW: Final = 0x600


def _lower_case() -> Array:
    """Code point -> its lower case, where that is one code point."""
    table = np.arange(_FOLDED_BELOW, dtype=np.int64)
    for point in range(_FOLDED_BELOW):
        folded = chr(point).lower()
        if len(folded) == 1:
            table[point] = ord(folded)
    return table


_FOLDED: Final = _lower_case()


@inlined
def escaped_byte(text: Array, at: Int, end: Int) -> Int:
    """The byte that %XX at `at` stands for, or -1."""
    if end - at < 3 or load1(text, at) != 37:
        return -1
    high = hex_digit(load1(text, at + 1))
    low = hex_digit(load1(text, at + 2))
    return high * 16 + low if high >= 0 and low >= 0 else -1


@kernel
def normal_host(text: Array, at: Int, end: Int, out: Array) -> tuple[Int, Int, Int, Int]:
    """The host in [at, end), without port, as (length in `out`, what it is, high, low).

    `out` is uint8 [HOST_BYTES]. `high` and `low` are the halves of an address, an IPv4 one as
    ::ffff:a.b.c.d; 0 for a name.
    """
    if at < end and load1(text, at) == 91:
        return _bracketed(text, at, end, out)
    if end - at <= NAME_MAX + 1:
        for i in range(at, end):
            if kind_at(text, i) & _PLAIN == 0:
                return _unusual_host(text, at, end, out)
            out[i - at] = lower_at(text, i)
        return _finished(out, end - at)
    return _unusual_host(text, at, end, out)


@kernel
def _kept(text: Array, at: Int, end: Int, out: Array) -> tuple[Int, Int, Int, Int]:
    """What is no host, as it stands, as far as there is room."""
    count = min(end - at, HOST_BYTES)
    for i in range(count):
        out[i] = lower_at(text, at + i)
    return count, BROKEN, np.int64(0), np.int64(0)


@kernel
def _finished(out: Array, count: Int) -> tuple[Int, Int, Int, Int]:
    """The last step for a name in lower-case ASCII: root dot, then numbers."""
    if count > 0 and out[count - 1] == 46:
        count -= 1
    if count == 0 or count > NAME_MAX:
        return count, BROKEN, np.int64(0), np.int64(0)
    last = count
    while last > 0 and out[last - 1] != 46:
        last -= 1
    if not is_number(out, last, count):
        return count, NAME, np.int64(0), np.int64(0)
    address = read_ipv4(out, count)
    if address < 0:
        return count, BROKEN, np.int64(0), np.int64(0)
    low = _MAPPED << 32 | address
    return write_ipv4(out, address), ADDRESS4, np.int64(0), low


@kernel
def _bracketed(text: Array, at: Int, end: Int, out: Array) -> tuple[Int, Int, Int, Int]:
    """An IPv6 address in brackets, a zone left out."""
    stop = at + 1
    while stop < end and load1(text, stop) != 93 and load1(text, stop) != 37:
        stop += 1
    if load1(text, end - 1) != 93:
        return _kept(text, at, end, out)
    return normal_ipv6(text, at + 1, stop, out)


@kernel
def normal_ipv6(text: Array, at: Int, end: Int, out: Array) -> tuple[Int, Int, Int, Int]:
    """`normal_host` for an IPv6 address without brackets."""
    pieces = np.zeros(8, np.int64)
    if not read_ipv6(text, at, end, pieces):
        return _kept(text, at, end, out)
    high, low = np.int64(0), np.int64(0)
    for i in range(4):
        # The first piece carries the sign: these are signed numbers of 64 bits.
        high |= (pieces[i] - 65536 if i == 0 and pieces[i] > 32767 else pieces[i]) << (48 - 16 * i)
        piece = pieces[i + 4]
        low |= (piece - 65536 if i == 0 and piece > 32767 else piece) << (48 - 16 * i)
    if high == 0 and low >> 32 == _MAPPED:
        return write_ipv4(out, low & 0xFFFFFFFF), ADDRESS4, high, low
    out[0], out[33] = 91, 93
    for i in range(32):
        digit = (pieces[i // 4] >> (12 - i % 4 * 4)) & 15
        out[i + 1] = digit + (48 if digit < 10 else 87)
    return 34, ADDRESS6, high, low


@kernel
def _unusual_host(text: Array, at: Int, end: Int, out: Array) -> tuple[Int, Int, Int, Int]:
    """A host with escapes, or with bytes above ASCII: decoded, mapped, then label by label."""
    if end - at > _ENCODED_MAX:
        return _kept(text, at, end, out)
    decoded = np.empty(_ENCODED_MAX, np.uint8)
    size = 0
    from_at = at
    while from_at < end:
        escaped = escaped_byte(text, from_at, end)
        decoded[size] = load1(text, from_at) if escaped < 0 else escaped
        size += 1
        from_at += 1 if escaped < 0 else 3
    points = np.empty(_ENCODED_MAX, np.int64)
    count = _mapped_points(decoded, size, points)
    length = 0
    start = 0
    while start <= count and count > 0:
        stop = start
        while stop < count and points[stop] != 46:
            stop += 1
        length = _write_label(points, start, stop, out, length)
        if length < 0:
            break
        if stop < count:
            out[length] = 46
            length += 1
        start = stop + 1
    if count <= 0 or length < 0:
        return _kept(text, at, end, out)
    return _finished(out, length)


@kernel
def _mapped_points(decoded: Array, size: Int, points: Array) -> Int:
    """Decode UTF-8 and map as for domain names; returns how many, or -1 where that is no name."""
    count = 0
    at = 0
    while at < size:
        first = load1(decoded, at)
        more = 0 if first < 128 else 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        if 128 <= first < 0xC2 or first > 0xF4 or size - at <= more:
            return -1
        point = first if more == 0 else first & (0x3F >> more)
        for i in range(at + 1, at + 1 + more):
            point = point << 6 | (load1(decoded, i) & 63)
            if load1(decoded, i) & 192 != 128:
                return -1
        at += 1 + more
        point = _mapped_point(point)
        if point < 0:
            continue  # It is not seen, and does not count.
        if point < 128 and _is_forbidden(point):
            return -1
        points[count] = point
        count += 1
    return count


@inlined
def _is_forbidden(byte: Int) -> bool:
    """Whether a host may not hold it: % : @ [ ] here, the others by their class."""
    if byte == 37 or byte == 58 or byte == 64 or byte == 91 or byte == 93:
        return True
    return load1(KINDS, byte) & _NEVER != 0


@inlined
def _mapped_point(point: Int) -> Int:
    """Lower case; wide forms as their plain ones; -1 for what names ignore."""
    if point == 0xAD or point == 0x200B or point == 0x2060 or point == 0xFEFF:
        return -1
    if 0xFE00 <= point <= 0xFE0F:
        return -1
    if point == 0x3002 or point == 0xFF61:
        return 46
    if 0xFF01 <= point <= 0xFF5E:
        point -= 0xFEE0
    return _FOLDED[point] if point < _FOLDED_BELOW else point


@kernel
def _write_label(points: Array, at: Int, end: Int, out: Array, length: Int) -> Int:
    """Append one label, in punycode where it is not ASCII; returns the length, -1: no room."""
    plain = True
    for i in range(at, end):
        plain = plain and points[i] < 128
    if not plain:
        if end - at > LABEL_MAX:
            return -1
        return write_punycode(points, at, end, out, length)
    if length + end - at > NAME_MAX + 1:
        return -1
    for i in range(at, end):
        out[length + i - at] = points[i]
    return length + end - at
