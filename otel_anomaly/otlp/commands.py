r"""Hosts in command lines, `cd /x && curl -sS -o out evil.com/a`, and behind `"//`.

A bare name in running text is no destination: every second word with a dot would be one. Behind a
program that takes hosts it is. `_PROGRAMS` is data: which programs these are, where each of them
expects a host, and which letters of its options take a value (`-o out.sh` names a file).

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

from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel, load1
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
    span_of,
    word_at,
    word_set,
)
from otel_anomaly.otlp.found import ASIDE
from otel_anomaly.otlp.hashing import load_rest
from otel_anomaly.otlp.host_names import HOST_BYTES, normal_host
from otel_anomaly.otlp.mails import FILES, is_quad
from otel_anomaly.otlp.top_levels import is_top_level
from otel_anomaly.otlp.urls import add_host, read_port

_NAME_MAX: Final = 253
_DOMAIN: Final = ALNUM | DASH | DOT | HIGH
_USER: Final = ALNUM | DOT | UNDERSCORE | DASH | LOCAL | HIGH

EVERY, FIRST, REMOTE, OPTION = range(4)
_SSH: Final = "bcDeEFiIlLmoOpQRSwW"
_PROGRAMS: Final = (
    ("curl", EVERY, "AbcCdDeEFhHKmoPQrtTuUwXyYz", "x", 80),
    ("wget", EVERY, "aABDeGHiIlOopPQRtTUwX", "", 80),
    ("xh", EVERY, "os", "", 80),
    ("aria2c", EVERY, "dijkosTx", "", 80),
    ("axel", EVERY, "nosHT", "", 80),
    ("lynx", EVERY, "", "", 80),
    ("w3m", EVERY, "TIo", "", 80),
    *((word, EVERY, "cegiImMoOpPqsTVwW", "x", 0) for word in ("nc", "ncat", "netcat")),
    ("telnet", EVERY, "belnSX", "", 23),
    ("ftp", EVERY, "PsT", "", 21),
    *((word, EVERY, "cFiIlmMpQsStTwW", "", 0) for word in ("ping", "ping6", "fping")),
    *((word, EVERY, "fgimNpqstwzP", "", 0) for word in ("mtr", "tracert", "nmap")),
    ("traceroute"[-8:], EVERY, "fgimNpqstwzP", "", 0),
    *((word, EVERY, "bcfkpty", "", 0) for word in ("dig", "drill", "nslookup")),
    ("whois", EVERY, "pT", "h", 43),
    ("openssl", EVERY, "", "", 443),
    ("mongosh", EVERY, "up", "", 27017),
    ("ssh", FIRST, _SSH, "J", 22),
    ("autossh", FIRST, _SSH + "M", "J", 22),
    ("mosh", FIRST, "p", "", 22),
    ("sftp", FIRST, "bBcDFiloPRsSX", "J", 22),
    ("ssh-copy-id"[-8:], FIRST, "ip", "", 22),
    ("scp", REMOTE, "cDFiloPSX", "J", 22),
    ("rsync", REMOTE, "BefMT", "", 22),
    ("git", REMOTE, "cC", "", 22),
    ("psql", OPTION, "cdfFLopPRTUv", "h", 5432),
    ("pg_dump", OPTION, "fFnNpStTUZ", "h", 5432),
    *((word, OPTION, "DeuP", "h", 3306) for word in ("mysql", "mariadb", "ysqldump")),
    ("edis-cli", OPTION, "anpru", "h", 6379),
)
"""(the last eight letters, where a host stands, options that take a value, that take a host, port
that goes without saying)."""
_LONG_NAMES: Final = {"traceroute": 10, "ssh-copy-id": 11, "mysqldump": 9, "redis-cli": 9}
_WRAPPERS: Final = """
sudo doas env exec nice ionice stdbuf timeout nohup setsid command builtin eval busybox xargs watch
sh bash dash zsh ksh ash fish su cmd docker podman kubectl sshpass strace parallel find torsocks
flock chroot proxychains
"""
_KEYWORDS: Final = "if then elif else do while until ! { time $ %"


def _packed(word: str) -> int:
    return int.from_bytes(word.encode(), "little")


def _letters(letters: str) -> int:
    return sum(1 << (ord(letter) - 64) for letter in set(letters))


def _full_length(word: str) -> int:
    return next((n for name, n in _LONG_NAMES.items() if name[-8:] == word), len(word))


# Columns of the table; row 0 is no program.
_HEADS: Final = np.array([0, *(_packed(word) for word, *_ in _PROGRAMS)], np.int64)
_LENGTHS: Final = np.array([0, *(_full_length(word) for word, *_ in _PROGRAMS)], np.int64)
_WHERE: Final = np.array([-1, *(where for _, where, *_ in _PROGRAMS)], np.int64)
_VALUED: Final = np.array([0, *(_letters(row[2]) for row in _PROGRAMS)], np.int64)
_HOSTED: Final = np.array([0, *(_letters(row[3]) for row in _PROGRAMS)], np.int64)
_PORTS: Final = np.array([0, *(row[4] for row in _PROGRAMS)], np.int64)
_WRAPS: Final = word_set(word[-8:] for word in _WRAPPERS.split())
_KEYS: Final = word_set(_KEYWORDS.split())
_KNOWN: Final = word_set(
    [row[0] for row in _PROGRAMS] + [word[-8:] for word in _WRAPPERS.split()] + _KEYWORDS.split()
)
_DIG: Final = next(row for row, program in enumerate(_PROGRAMS, 1) if program[0] == "dig")

PLAIN, BLANK, NEWLINE, BREAK, QUOTE, TICK, ARROW, AND, OPEN, BACKSLASH = range(10)
_SORTS: Final = np.zeros(256, np.uint8)
for _sort, _bytes in (
    (BLANK, b"\t\r )\x00"),
    (NEWLINE, b"\n"),
    (BREAK, b";|"),
    (QUOTE, b"'\""),
    (TICK, b"`"),
    (ARROW, b"<>"),
    (AND, b"&"),
    (OPEN, b"("),
    (BACKSLASH, b"\\"),
):
    _SORTS[np.frombuffer(_bytes, np.uint8)] = _sort

# What is known where the reading stands. EXPECTS: a program comes next; LOOSE: it may still come,
# behind a wrapper; FRESH: it may begin here, in a quoted text; NESTED: it did. Of SKIP (the value
# of an option), HOST (one that is a host) and LONG (the word behind a long option), NOW is this
# word, NEXT the following one.
(
    EXPECTS,
    LOOSE,
    SKIP_NOW,
    SKIP_NEXT,
    HOST_NOW,
    HOST_NEXT,
    LONG_NOW,
    LONG_NEXT,
    IN_WORD,
    FRESH,
    NESTED,
) = (1 << bit for bit in range(11))
_NOW: Final = SKIP_NOW | HOST_NOW | LONG_NOW
_NEXT: Final = SKIP_NEXT | HOST_NEXT | LONG_NEXT
_FLAGS: Final = (1 << 12) - 1
_ROW_SHIFT, _OUTER_SHIFT, _QUOTE_SHIFT, _AT_SHIFT = 12, 18, 24, 32
assert len(_PROGRAMS) < 63

NOT_BEGUN, NOTHING = np.int64(-1), np.int64(-2)
"""`reading` of a value of which nothing is read, and of one with nothing to be read."""


def _beginnings() -> Array:
    """The first letter of a word, five bits -> the letters that may follow it in a program."""
    following = np.zeros(32, np.uint32)
    for word, *_ in _PROGRAMS:
        name = next((name for name in _LONG_NAMES if name[-8:] == word), word)
        following[ord(name[0]) & 31] |= np.uint32(1 << (ord(name[1]) & 31))
    return following


_BEGINNINGS: Final = _beginnings()
_NAMES: Final = word_set(word for word, *_ in _PROGRAMS)
_PROGRAM_MAX: Final = 16
"""No name of a program is longer, so that words with dashes are not read again and again."""


@kernel
def _may_lead(text: Array, low: Int, end: Int) -> bool:
    """Whether a value holds the name of a program that takes hosts, or `"//`.

    Source code is full of words that look like hosts, and read as commands it would cost five
    times what this does.
    """
    text = borrow(text)
    inside = False
    for i in range(low, end - 1):
        byte = load1(text, i)
        kind = kind_at(text, i)
        if kind & LETTER != 0:
            second = load1(text, i + 1) & 31
            if not inside and load1(_BEGINNINGS, byte & 31) >> second & 1 != 0:
                stop = span_of(text, i, min(end, i + _PROGRAM_MAX), WORD | DASH)
                if holds(_NAMES, word_at(text, i, stop)):
                    return True
        elif byte == 47 and load1(text, i + 1) == 47 and _is_slashed(text, low, i + 2):
            return True
        inside = kind & WORD != 0
    return False


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
        return dot + 1 < end
    if dot == low or dot + 1 >= end or kind_at(text, dot - 1) & (ALNUM | HIGH) == 0:
        return False
    kind = kind_at(text, dot + 1)
    if kind & DIGIT == 0:
        return kind & (LETTER | HIGH) != 0
    limit = min(end, dot + 5)
    i = dot + 2
    while i < limit and load1(text, i) != 46:
        i += 1
    return i < limit


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
    if before == 47 and not _is_slashed(text, low, begin):
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
    if load1(text, begin - 1) == 47:
        if _end_of_host(text, begin, stop, end, strict=True) < 0:
            return np.int64(0), stop, reading
        _add(text, begin, stop, end, np.int64(0), np.int64(ASIDE), plan, found)
        return stop, stop, reading
    word, reading = _read_to(text, low, begin, end, reading)
    behind = max(stop, _end_of_word(text, word, end))
    if not _is_meant(text, word, begin, stop, end, reading):
        return np.int64(0), behind, reading
    port = _PORTS[(reading >> _ROW_SHIFT) & 63]
    _add(text, begin, stop, end, port, np.int64(ASIDE), plan, found)
    return stop, behind, reading


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
    host = np.empty(HOST_BYTES, np.uint8)
    length, what, high, low_half = normal_host(text, at, stop, host)
    add_host(host, length, what, high, low_half, port, aside, plan, found)


@kernel
def _is_meant(text: Array, word: Int, at: Int, stop: Int, end: Int, reading: Int) -> bool:
    """Whether the host [at, stop) in the word that begins at `word` is where the command goes."""
    text = borrow(text)
    row, flags = (reading >> _ROW_SHIFT) & 63, reading & _FLAGS
    if row == 0 or flags & SKIP_NOW != 0:
        return False
    quoted = reading >> _QUOTE_SHIFT & 255 != 0 and flags & (NESTED | FRESH) == 0
    if quoted:
        return False
    where, named = _WHERE[row], np.int64(0)
    if at - word == 7 and load_rest(text, word, np.int64(7)) == _HOST_IS:
        return True
    if at > word:
        if load1(text, at - 1) != 64 or (at - word == 1 and row != _DIG):
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


_HOST_IS: Final = int.from_bytes(b"--host=", "little")
_HOST_OPTION: Final = int.from_bytes(b"--host", "little")


@inlined
def _is_escape(text: Array, at: Int, end: Int) -> bool:
    """Whether the backslash at `at` hides a quote or a line end."""
    if at + 1 >= end:
        return False
    following = load1(text, at + 1)
    return following == 10 or following == 34 or following == 39


@kernel
def _end_of_word(text: Array, at: Int, end: Int) -> Int:
    """The position behind a run of bytes that part nothing."""
    text = borrow(text)
    while at < end:
        sort = load1(_SORTS, load1(text, at))
        if sort != PLAIN and (sort != BACKSLASH or _is_escape(text, at, end)):
            return at
        at += 1
    return at


@kernel
def _read_to(text: Array, low: Int, goal: Int, end: Int, reading: Int) -> tuple[Int, Int]:
    """Read on, up to the word that holds `goal`: (where it begins, the reading)."""
    text = borrow(text)
    at, state = low, np.int64(EXPECTS)
    if reading != NOT_BEGUN:
        at, state = low + (reading >> _AT_SHIFT), reading & ((np.int64(1) << _AT_SHIFT) - 1)
    while at <= goal:
        sort = load1(_SORTS, load1(text, at))
        if sort == BACKSLASH and _is_escape(text, at, end):
            at += 2
        elif sort == PLAIN or sort == BACKSLASH:
            stop = _end_of_word(text, at, end)
            if stop > goal:
                break
            state = _take(text, at, stop, state)
            at = stop
        else:
            state = _part(text, low, at, end, sort, state)
            at += 1
    return at, (at - low) << _AT_SHIFT | state


@kernel
def _part(text: Array, low: Int, at: Int, end: Int, sort: Int, state: Int) -> Int:
    """The state behind a byte that parts words, commands or quoted texts."""
    text = borrow(text)
    flags, row = state & _FLAGS, (state >> _ROW_SHIFT) & 63
    outer, quote = (state >> _OUTER_SHIFT) & 63, (state >> _QUOTE_SHIFT) & 255
    byte = load1(text, at)
    beside = at + 1 < end and load1(text, at + 1) == 62
    beside = beside or (at > low and load1(_SORTS, load1(text, at - 1)) == ARROW)
    if sort == QUOTE and (quote == 0 or quote == byte):
        if quote == 0:
            quote, outer = byte, row
            flags |= FRESH | IN_WORD
        else:
            if flags & NESTED != 0:
                row, flags = outer, flags & _NOW
            quote, flags = np.int64(0), flags & ~(FRESH | NESTED) | IN_WORD
    elif sort == TICK or (sort == OPEN and at > low and load1(text, at - 1) == 36):
        flags |= FRESH
    elif sort == BREAK or sort == NEWLINE or sort == OPEN or (sort == AND and not beside):
        if quote != 0:
            flags |= FRESH
        else:
            row, flags = np.int64(0), np.int64(EXPECTS)
    elif quote == 0 or flags & NESTED != 0:
        if flags & IN_WORD != 0:
            flags = flags & ~(IN_WORD | _NOW | _NEXT) | (flags & _NEXT) >> 1
        flags |= SKIP_NOW if sort == ARROW else 0
    return flags | row << _ROW_SHIFT | outer << _OUTER_SHIFT | quote << _QUOTE_SHIFT


@kernel
def _take(text: Array, at: Int, end: Int, state: Int) -> Int:
    """The state behind a word: a program, a wrapper, an option, or anything else."""
    text = borrow(text)
    flags, row = state & _FLAGS | IN_WORD, (state >> _ROW_SHIFT) & 63
    rest = state >> _OUTER_SHIFT << _OUTER_SHIFT
    quoted = (state >> _QUOTE_SHIFT) & 255 != 0
    if flags & (EXPECTS | LOOSE | FRESH) != 0:
        program, wraps, passes = _word_is(text, at, end)
        if program > 0:
            row, flags = program, flags & ~(EXPECTS | LOOSE | FRESH)
            flags |= NESTED if quoted else 0
            flags &= ~(_NOW | _NEXT) if quoted else _FLAGS
            return rest | row << _ROW_SHIFT | flags
        if not passes:
            flags &= ~FRESH
            if flags & EXPECTS != 0 or wraps:
                flags = flags & ~EXPECTS | (LOOSE if wraps else 0)
            if row == 0:
                return rest | flags
        else:
            return rest | row << _ROW_SHIFT | flags
    if row > 0 and (not quoted or flags & NESTED != 0):
        if load1(text, at) == 45 and end - at > 1:
            flags |= _option(text, at, end, row)
        elif _WHERE[row] == FIRST and flags & _NOW == 0:
            row, flags = np.int64(0), flags | EXPECTS | LOOSE
    return rest | row << _ROW_SHIFT | flags


@kernel
def _option(text: Array, at: Int, end: Int, row: Int) -> Int:
    """What an option says of the word behind it."""
    text = borrow(text)
    if load1(text, at + 1) == 45:
        if end - at == 6 and load_rest(text, at, np.int64(6)) == _HOST_OPTION:
            return np.int64(HOST_NEXT)
        for i in range(at, end):
            if load1(text, i) == 61:
                return np.int64(0)
        return np.int64(LONG_NEXT if end - at > 2 else 0)
    for i in range(at + 1, end):
        letter = load1(text, i) - 64
        if 0 < letter < 63:
            if (_HOSTED[row] >> letter) & 1 == 1:
                return np.int64(HOST_NEXT if i + 1 == end else 0)
            if (_VALUED[row] >> letter) & 1 == 1:
                return np.int64(SKIP_NEXT if i + 1 == end else 0)
    return np.int64(0)


@kernel
def _word_is(text: Array, at: Int, end: Int) -> tuple[Int, bool, bool]:
    """(row of the program, whether it wraps one, whether one may still come) of a word."""
    text = borrow(text)
    start = at
    for i in range(at, end - 1):
        byte = load1(text, i)
        if byte == 47 or byte == 92:
            start = i + 1
        elif byte == 61 and start == at:
            return np.int64(0), False, True  # A=b in front of a program.
    name = load_rest(text, max(start, end - 8), min(end - start, np.int64(8)))
    if end - start > 4 and word_at(text, end - 4, end) == _EXE:
        end -= 4
        name = word_at(text, start, end)
    length = end - start
    if not holds(_KNOWN, name):
        return np.int64(0), False, False
    for row in range(1, _HEADS.size):
        if _HEADS[row] == name and _LENGTHS[row] == length:
            return np.int64(row), False, False
    return np.int64(0), holds(_WRAPS, name), length <= 5 and holds(_KEYS, name)


_EXE: Final = _packed(".exe")
