"""Secrets and personal data of a request covered with stars, each by as many bytes as it had.

    {"to": "ann@example.com", "card": 4111111111111111}
    {"to": "***************", "card": 9999999999999999}

What is found, and how, is what `content` finds in arguments, here in every string of the request
(`leaves`). JSON text stays JSON: strings with escapes are read decoded, an escape is covered whole,
names count as hints, and JSON within a string is read as such again, `NESTING_MAX` deep. A number
becomes nines; an integer of OpenTelemetry zero. Numbers are looked at from `DIGITS_LEAST` digits
on, or behind a name that says what they are: identifiers often pass the weaker checks.

A string is read again until nothing is found in it, `PASSES_MAX` times at most; then all of it is
covered. So what comes out holds nothing that is found, and doing it twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy, inlined, kernel, load1
from otel_anomaly.otlp.arguments import HASHING, compile_arguments
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.canonical import DEPTH_MAX, DESK
from otel_anomaly.otlp.characters import DIGIT, span_of
from otel_anomaly.otlp.content import (
    FOUND,
    SECRETIVE,
    cover_all,
    is_plain,
    make_content_plan,
    name_hints,
)
from otel_anomaly.otlp.covering import fill
from otel_anomaly.otlp.found import MAILS, NUMBERS, PHONES, SECRETS
from otel_anomaly.otlp.json_text import (
    BACKSLASH,
    BRACE,
    BRACKET,
    COLON,
    QUOTE,
    either,
    read_string,
    skip_mark,
    skip_space,
    unescape,
)
from otel_anomaly.otlp.leaves import (
    LOGS,
    NAME,
    NO_LEAF,
    NUMBER,
    TRACES,
    WALK,
    begin_walk,
    next_leaf,
)
from otel_anomaly.otlp.opaque import CITIZEN, CPF, PHONE, SOCIAL
from otel_anomaly.otlp.values import read_text
from otel_anomaly.otlp.wire import read_varint

__all__ = ["LOGS", "MAILS", "NUMBERS", "PHONES", "SECRETS", "TRACES", "Redaction", "redact"]

PASSES_MAX: Final = 4
LOOKS_MAX: Final = 4
"""At a request, each at what the one before has covered."""
NESTING_MAX: Final = 3
"""JSON text within strings of JSON text."""
DIGITS_LEAST: Final = 13
"""Of a number that is looked at whatever its name: the shortest card number."""
_NAMED_LEAST: Final = 8
_SAYS_NUMBER: Final = CITIZEN | SOCIAL | PHONE | CPF
_NINE: Final = np.int64(57)
_LEVELS: Final = DEPTH_MAX + 2
NOT_DECODED: Final = np.int64(-1)
NOT_INNER: Final = False

NEST = np.dtype(
    [
        ("at", "i8", (NESTING_MAX + 1,)),
        ("end", "i8", (NESTING_MAX + 1,)),
        ("level", "i8", (NESTING_MAX + 1,)),
        ("room", "i8", (NESTING_MAX + 1,)),
        ("hints", "i8", ((NESTING_MAX + 1) * _LEVELS,)),
        # Where the string that holds a nested text begins in scratch, and lies around it.
        ("first", "i8", (NESTING_MAX + 1,)),
        ("raw_at", "i8", (NESTING_MAX + 1,)),
        ("raw_end", "i8", (NESTING_MAX + 1,)),
    ],
    align=True,
)
"""JSON texts that are being read, each in a string of the one before."""


class Redaction(NamedTuple):
    """What is to be covered, and room to work in, for one thread."""

    what: np.int64
    kept: Array
    """Keys of attributes that are left alone, as `leaves.is_kept` reads them."""
    plan: Array
    found: Array
    desk: Array
    nest: Array
    walk: Array


def make_redaction(what: int, keep: Sequence[str] = ()) -> Redaction:
    """`what`: SECRETS, MAILS, PHONES, NUMBERS. Keys to keep have at most 255 bytes."""
    kept = b"".join(bytes([len(key.encode())]) + key.encode() for key in keep)
    return Redaction(
        np.int64(what),
        np.frombuffer(kept, np.uint8),
        compile_arguments(seed=0, content=make_content_plan(0)),
        np.zeros(1, FOUND),
        np.zeros(1, DESK),
        np.zeros(1, NEST),
        np.zeros(1, WALK),
    )


def redact(body: bytes, message: np.int64, redaction: Redaction) -> tuple[bytes, int]:
    """The request with what was found in it covered, and in how many strings and numbers.

    0: `body` itself. `message`: TRACES or LOGS. The request was checked by `scan`.

    What is covered is looked at again: it may have been what kept the text around it from being
    JSON, in which more is found than in text.
    """
    out = np.frombuffer(body, np.uint8).copy()
    view = out.view()
    view.flags.writeable = False
    scratch = np.empty(_room_for(len(body)), np.uint8)
    count = 0
    for _ in range(LOOKS_MAX):
        found = _redact(
            view,
            out,
            message,
            redaction.what,
            redaction.kept,
            redaction.plan,
            redaction.found,
            redaction.desk,
            redaction.nest,
            redaction.walk,
            scratch,
        )
        count += int(found)
        if found == 0:
            break
    return (out.tobytes() if count > 0 else body), count


def _room_for(size: int) -> int:
    """Bytes that the longest string of a request may need to be worked on.

    The text that holds it for each nesting, then itself and a copy.
    """
    return (NESTING_MAX + 2) * size + 256


@kernel
def _redact(
    view: Array,
    out: Array,
    message: Int,
    what: Int,
    kept: Array,
    plans: Array,
    all_found: Array,
    desks: Array,
    nests: Array,
    walks: Array,
    scratch: Array,
) -> Int:
    """Redact `out`, of which `view` is a view, in place. Returns how many strings changed."""
    view, out, kept, scratch = borrow(view), borrow(out), borrow(kept), borrow(scratch)
    plan, found, desk, nest, walk = plans[0], all_found[0], desks[0], nests[0], walks[0]
    begin_walk(view, message, walk)
    count = np.int64(0)
    while True:
        kind = next_leaf(view, kept, walk)
        if kind == NO_LEAF:
            return count
        at, end = np.int64(walk["leaf_at"]), np.int64(walk["leaf_end"])
        level = walk["level"]
        key, key_end = np.int64(walk["key_at"][level]), np.int64(walk["key_end"][level])
        if kind == NUMBER:
            count += _redact_integer(view, out, at, end, key, key_end, what, plan, found, scratch)
            continue
        hints = np.int64(0)
        if kind != NAME and key < key_end and end - at >= _NAMED_LEAST:
            hints = name_hints(view, key, key_end)
        count += _redact_leaf(view, out, at, end, hints, what, plan, found, desk, nest, scratch)


@kernel
def _redact_integer(
    view: Array,
    out: Array,
    at: Int,
    end: Int,
    key: Int,
    key_end: Int,
    what: Int,
    plan: Record,
    found: Record,
    scratch: Array,
) -> Int:
    """An integer becomes zero, of as many bytes, when its digits are somebody's number."""
    number, _ = read_varint(view, at, end)
    if number < 10 ** (_NAMED_LEAST - 1):
        return np.int64(0)
    start = decimal(number, scratch)
    hints = name_hints(view, key, key_end)
    if not _is_number_of_somebody(
        either(view, scratch, decoded=True),
        start,
        np.int64(20),
        hints,
        what,
        plan,
        found,
        scratch,
        np.int64(32),
    ):
        return np.int64(0)
    for i in range(at, end - 1):
        out[i] = 128
    out[end - 1] = 0
    return np.int64(1)


@kernel
def _is_number_of_somebody(
    text: Array,
    at: Int,
    end: Int,
    hints: Int,
    what: Int,
    plan: Record,
    found: Record,
    scratch: Array,
    room: Int,
) -> bool:
    """Whether the digits in [at, end) are to be covered: tried out in scratch[room:]."""
    if end - at < DIGITS_LEAST and hints & _SAYS_NUMBER == 0:
        return False
    found["marked"] = 0
    cover_all(text, at, end, hints, plan["content"], found, what, scratch, room - at)
    return found["marked"] != 0


@inlined
def _opens_json(text: Array, at: Int, end: Int) -> Int:
    """Where JSON text begins that is an array, an object or a string; -1 for any other text."""
    at = skip_space(text, skip_mark(text, at, end), end)
    if at == end:
        return np.int64(-1)
    byte = load1(text, at)
    return at if byte == BRACE or byte == BRACKET or byte == QUOTE else np.int64(-1)


@kernel
def _redact_leaf(
    view: Array,
    out: Array,
    at: Int,
    end: Int,
    hints: Int,
    what: Int,
    plan: Record,
    found: Record,
    desk: Record,
    nest: Record,
    scratch: Array,
) -> Int:
    """Redact one string of the request in place. Returns whether it changed."""
    view, out, scratch = borrow(view), borrow(out), borrow(scratch)
    if hints & SECRETIVE == 0 and is_plain(view, at, end):
        return np.int64(0)
    start = _opens_json(view, at, end)
    if start >= 0 and read_text(view, start, end, np.int64(0), desk, plan, HASHING, scratch):
        return _redact_json(view, out, start, end, hints, what, plan, found, desk, nest, scratch)
    return _redact_text(
        view, out, at, end, hints, what, plan, found, scratch, np.int64(0), NOT_INNER, NOT_DECODED
    )


@kernel
def _redact_text(
    view: Array,
    out: Array,
    at: Int,
    end: Int,
    hints: Int,
    what: Int,
    plan: Record,
    found: Record,
    scratch: Array,
    room: Int,
    inner: bool,
    decoded: Int,
) -> Int:
    """Redact the text in [at, end), of the request or, `inner`, of scratch. Returns if it changed.

    `decoded`: bytes in scratch[room:] where it was decoded to already, or NOT_DECODED.
    """
    view, out, scratch = borrow(view), borrow(out), borrow(scratch)
    first, size = room, end - at
    if decoded != NOT_DECODED:
        size = decoded
    else:
        copy(scratch, first, either(view, scratch, inner), at, size)
    second, count = first + size, np.int64(0)
    copy(scratch, second, scratch, first, size)
    for turn in range(PASSES_MAX + 1):
        found["marked"] = 0
        if turn == PASSES_MAX:
            fill(scratch, second, second + size)
            break
        text = either(view, scratch, decoded=True)
        cover_all(
            text, first, first + size, hints, plan["content"], found, what, scratch, second - first
        )
        if found["marked"] == 0:
            break
        count += 1
        copy(scratch, first, scratch, second, size)
    if count == 0:
        return np.int64(0)
    if decoded != NOT_DECODED:
        _write_escaped(scratch if inner else out, at, end, scratch, second, second + size)
    elif inner:
        copy(scratch, at, scratch, second, size)
    else:
        copy(out, at, scratch, second, size)
    return np.int64(1)


@kernel
def _write_escaped(to: Array, at: Int, end: Int, scratch: Array, covered: Int, room: Int) -> None:
    """Cover in a JSON string with escapes what is covered in scratch[covered:], its decoded text.

    scratch[room:] is free.
    """
    to, scratch = borrow(to), borrow(scratch)
    while at < end:
        if load1(to, at) != BACKSLASH:
            to[at] = scratch[covered]
            at += 1
            covered += 1
            continue
        after, stop = unescape(to, at + 1, end, scratch, room)
        changed = False
        for i in range(stop - room):
            changed = changed or scratch[room + i] != scratch[covered + i]
        if changed:
            byte = scratch[covered]
            for i in range(at, after):
                to[i] = byte
        at = after
        covered += stop - room


@kernel
def _redact_json(
    view: Array,
    out: Array,
    at: Int,
    end: Int,
    hints: Int,
    what: Int,
    plan: Record,
    found: Record,
    desk: Record,
    nest: Record,
    scratch: Array,
) -> Int:
    """Redact the strings and numbers of a JSON text, which can be read. Returns how many changed.

    A string that holds JSON again is decoded, read as such and written back when it is done.
    """
    view, out, scratch = borrow(view), borrow(out), borrow(scratch)
    depth, count = np.int64(0), np.int64(0)
    _open_nested(nest, depth, at, end, np.int64(0), hints)
    while True:
        at, end = np.int64(nest["at"][depth]), np.int64(nest["end"][depth])
        if at >= end:
            if depth == 0:
                return count
            _close_nested(out, scratch, nest, depth)
            depth -= 1
            continue
        inner = bool(depth > 0)
        text = either(view, scratch, inner)
        byte = load1(text, at)
        if byte == QUOTE:
            opened, changed = _redact_string(
                view, out, depth, what, plan, found, desk, nest, scratch, inner
            )
            depth, count = depth + opened, count + changed
            continue
        stop = _step(text, at, end, byte, depth, nest)
        nest["at"][depth] = stop
        if byte == 45 or 48 <= byte <= 57:
            mine = np.int64(nest["hints"][depth * _LEVELS + nest["level"][depth]])
            room = np.int64(nest["room"][depth])
            count += _redact_digits(
                view, out, at, stop, mine, what, plan, found, scratch, room, inner
            )


@kernel
def _redact_string(
    view: Array,
    out: Array,
    depth: Int,
    what: Int,
    plan: Record,
    found: Record,
    desk: Record,
    nest: Record,
    scratch: Array,
    inner: bool,
) -> tuple[Int, Int]:
    """Redact the string that a JSON text goes on with: (1 when it holds JSON, whether it changed).

    One that holds JSON is opened, and read next.
    """
    view, out, scratch = borrow(view), borrow(out), borrow(scratch)
    text = either(view, scratch, inner)
    at, end = np.int64(nest["at"][depth]), np.int64(nest["end"][depth])
    room, here = np.int64(nest["room"][depth]), depth * _LEVELS + nest["level"][depth]
    after, first, last, decoded = read_string(text, at, end, scratch, room)
    nest["at"][depth] = after
    content = either(view, scratch, bool(inner or decoded))
    hints = np.int64(nest["hints"][here])
    colon = skip_space(text, after, end)
    if colon < end and load1(text, colon) == COLON:
        hints = np.int64(0)
        nest["hints"][here] = name_hints(content, first, last)
    elif decoded and depth < NESTING_MAX:
        begin = _opens_json(content, first, last)
        if begin >= 0 and read_text(content, begin, last, last, desk, plan, HASHING, scratch):
            _open_nested(nest, depth + 1, begin, last, last, hints)
            nest["raw_at"][depth + 1], nest["raw_end"][depth + 1] = at + 1, after - 1
            nest["first"][depth + 1] = first
            return np.int64(1), np.int64(0)
    if hints & SECRETIVE == 0 and is_plain(content, first, last):
        return np.int64(0), np.int64(0)
    size = last - first if decoded else NOT_DECODED
    at, end = at + 1, after - 1
    return np.int64(0), _redact_text(
        view, out, at, end, hints, what, plan, found, scratch, room, inner, size
    )


@inlined
def _open_nested(nest: Record, depth: Int, at: Int, end: Int, room: Int, hints: Int) -> None:
    """A JSON text in [at, end) is read next; scratch[room:] is free."""
    nest["at"][depth], nest["end"][depth] = at, end
    nest["level"][depth], nest["room"][depth] = 0, room
    nest["hints"][depth * _LEVELS] = hints


@kernel
def _close_nested(out: Array, scratch: Array, nest: Record, depth: Int) -> None:
    """A nested text is done: cover in the string that holds it what is covered in it."""
    at, end = np.int64(nest["raw_at"][depth]), np.int64(nest["raw_end"][depth])
    first, room = np.int64(nest["first"][depth]), np.int64(nest["room"][depth])
    _write_escaped(scratch if depth > 1 else out, at, end, scratch, first, room)


@inlined
def _step(text: Array, at: Int, end: Int, byte: Int, depth: Int, nest: Record) -> Int:
    """The position behind what begins at `at` and is no string: a number, a bracket, a sign."""
    level = np.int64(nest["level"][depth])
    if byte == BRACE or byte == BRACKET:
        here = depth * _LEVELS + level
        nest["hints"][here + 1] = nest["hints"][here] if byte == BRACKET else 0
        nest["level"][depth] = level + 1
    elif byte == BRACE + 2 or byte == BRACKET + 2:
        nest["level"][depth] = level - 1
    elif byte == 45 or 48 <= byte <= 57:
        return span_of(text, at + 1, end, DIGIT)
    return at + 1


@kernel
def _redact_digits(
    view: Array,
    out: Array,
    at: Int,
    end: Int,
    hints: Int,
    what: Int,
    plan: Record,
    found: Record,
    scratch: Array,
    room: Int,
    inner: bool,
) -> Int:
    """The digits of a JSON number become nines when they are somebody's number."""
    text = either(view, scratch, inner)
    if load1(text, at) == 45 or (
        end < text.size and (load1(text, end) == 46 or load1(text, end) | 32 == 101)
    ):
        return np.int64(0)
    if not _is_number_of_somebody(text, at, end, hints, what, plan, found, scratch, room):
        return np.int64(0)
    changed = False
    to = scratch if inner else out
    for i in range(at, end):
        changed = changed or load1(text, i) != _NINE
        to[i] = _NINE
    return np.int64(1 if changed else 0)
