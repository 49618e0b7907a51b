"""IP addresses in every spelling that URL libraries take: numbers of any base, gaps, mixed forms.

Source: the WHATWG URL standard, "IPv4 parser" and "IPv6 parser".
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from otel_anomaly.otlp.characters import DIGIT, kind_at


@inlined
def hex_digit(byte: Int) -> Int:
    """The value of a hex digit, or -1."""
    if 48 <= byte <= 57:
        return byte - 48
    if 65 <= byte <= 70 or 97 <= byte <= 102:
        return (byte & 15) + 9
    return -1


@kernel
def is_number(out: Array, at: Int, end: Int) -> bool:
    """Whether a label makes the host an IPv4 address, right or wrong: digits, or 0x and hex."""
    if end - at >= 2 and out[at] == 48 and out[at + 1] == 120:
        for i in range(at + 2, end):
            if hex_digit(load1(out, i)) < 0:
                return False
        return True
    for i in range(at, end):
        if kind_at(out, i) & DIGIT == 0:
            return False
    return end > at


@kernel
def read_ipv4(out: Array, count: Int) -> Int:
    """The address that one to four numbers make, or -1."""
    address = np.int64(0)
    parts = 0
    at = 0
    while at < count:
        stop = at
        while stop < count and out[stop] != 46:
            stop += 1
        value = _ipv4_number(out, at, stop)
        parts += 1
        if parts > 4:
            return -1
        last = stop == count
        room = (1 << 8 * (5 - parts)) if last else 256
        if value < 0 or value >= room:
            return -1
        address |= value if last else value << 8 * (4 - parts)
        at = stop + 1
    return address


@kernel
def _ipv4_number(out: Array, at: Int, end: Int) -> Int:
    """Decimal, 0x hex or octal with a leading 0; -1 when it is none, or above 32 bits."""
    base = 10
    if end - at >= 2 and out[at] == 48:
        base = 16 if out[at + 1] == 120 else 8
        at += 2 if base == 16 else 1
    elif at == end:
        return -1
    value = np.int64(0)
    for i in range(at, end):
        digit = hex_digit(load1(out, i))
        if digit < 0 or digit >= base:
            return -1
        value = value * base + digit
        if value >> 32 != 0:
            return -1
    return value


@kernel
def write_ipv4(out: Array, address: Int) -> Int:
    """The dotted form; returns its length."""
    at = 0
    for shift in range(24, -8, -8):
        part = (address >> shift) & 255
        if part >= 100:
            out[at] = 48 + part // 100
            at += 1
        if part >= 10:
            out[at] = 48 + part // 10 % 10
            at += 1
        out[at] = 48 + part % 10
        out[at + 1] = 46
        at += 2
    return at - 1


@kernel
def read_ipv6(text: Array, at: Int, end: Int, pieces: Array) -> bool:
    """Fill the eight pieces. Whether the text is an address."""
    count, gap = 0, -1
    if end - at >= 2 and load1(text, at) == 58:
        if load1(text, at + 1) != 58:
            return False
        at += 2
        gap = 0
    while at < end:
        if load1(text, at) == 58 and gap < 0:
            gap = count
            at += 1
            continue
        stop, value = at, np.int64(0)
        while stop < end and stop - at < 4 and hex_digit(load1(text, stop)) >= 0:
            value = value * 16 + hex_digit(load1(text, stop))
            stop += 1
        if stop < end and load1(text, stop) == 46:
            count = _ipv4_pieces(text, at, end, pieces, count)
            break
        if stop == at or count == 8:
            return False
        pieces[count] = value
        count += 1
        at = stop + 1
        if stop < end and (load1(text, stop) != 58 or at == end):
            return False
    return _close_gap(pieces, count, gap)


@kernel
def _ipv4_pieces(text: Array, at: Int, end: Int, pieces: Array, count: Int) -> Int:
    """The two last pieces, written as four decimals; returns the pieces so far, or 9: broken."""
    if count > 6:
        return 9
    address, parts = np.int64(0), 0
    while at < end:
        stop, value = at, np.int64(0)
        while stop < end and stop - at < 4 and kind_at(text, stop) & DIGIT != 0:
            value = value * 10 + load1(text, stop) - 48
            stop += 1
        leading_zero = stop - at > 1 and load1(text, at) == 48
        if stop == at or value > 255 or leading_zero or parts == 4:
            return 9
        address = address << 8 | value
        parts += 1
        at = stop + 1
        if stop < end and (load1(text, stop) != 46 or at == end):
            return 9
    if parts != 4:
        return 9
    pieces[count] = address >> 16
    pieces[count + 1] = address & 65535
    return count + 2


@kernel
def _close_gap(pieces: Array, count: Int, gap: Int) -> bool:
    """Move what stands behind `::` to the end. Whether there are eight pieces then."""
    if gap < 0 or count > 7:
        return count == 8 and gap < 0
    moved = count - gap
    for i in range(moved):
        pieces[7 - i] = pieces[count - 1 - i]
        if count - 1 - i < 8 - moved:
            pieces[count - 1 - i] = 0
    return True
