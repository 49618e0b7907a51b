"""Command lines, read word by word: which program runs, and what its next word is.

A reading is one number, so that it can be gone on with from a later place of the same text: how far
it got, the program (its row in the table), what is known of this word and of the next one, and the
quotes around it. `commands` asks for it where a word looks like a host.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, inlined, kernel, load1, load_word
from otel_anomaly.otlp.characters import holds, word_at, word_set
from otel_anomaly.otlp.hashing import load_rest

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
WHERE: Final = np.array([-1, *(where for _, where, *_ in _PROGRAMS)], np.int64)
_VALUED: Final = np.array([0, *(_letters(row[2]) for row in _PROGRAMS)], np.int64)
_HOSTED: Final = np.array([0, *(_letters(row[3]) for row in _PROGRAMS)], np.int64)
PORTS: Final = np.array([0, *(row[4] for row in _PROGRAMS)], np.int64)
_WRAPS: Final = word_set(word[-8:] for word in _WRAPPERS.split())
_KEYS: Final = word_set(_KEYWORDS.split())
_KNOWN: Final = word_set(
    [row[0] for row in _PROGRAMS] + [word[-8:] for word in _WRAPPERS.split()] + _KEYWORDS.split()
)
DIG: Final = next(row for row, program in enumerate(_PROGRAMS, 1) if program[0] == "dig")

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
FLAGS: Final = (1 << 12) - 1
ROW_SHIFT, _OUTER_SHIFT, QUOTE_SHIFT, _AT_SHIFT = 12, 18, 24, 32
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


BEGINNINGS: Final = _beginnings()
NAMES: Final = word_set(word for word, *_ in _PROGRAMS)
PROGRAM_MAX: Final = 16
"""No name of a program is longer, so that words with dashes are not read again and again."""

_HOST_OPTION: Final = int.from_bytes(b"--host", "little")


@inlined
def _is_escape(text: Array, at: Int, end: Int) -> bool:
    """Whether the backslash at `at` hides a quote or a line end."""
    if at + 1 >= end:
        return False
    following = load1(text, at + 1)
    return following == 10 or following == 34 or following == 39


@inlined
def end_of_word(text: Array, at: Int, end: Int) -> Int:
    """The position behind a run of bytes that part nothing."""
    while at < end:
        sort = load1(_SORTS, load1(text, at))
        if sort != PLAIN and (sort != BACKSLASH or _is_escape(text, at, end)):
            return at
        at += 1
    return at


@kernel
def read_to(text: Array, low: Int, goal: Int, end: Int, reading: Int) -> tuple[Int, Int]:
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
            stop = end_of_word(text, at, end)
            if stop > goal:
                break
            if _says_nothing(text, at, state):
                state |= IN_WORD
            else:
                state = _take(text, at, stop, state)
            at = stop
        else:
            if sort == BLANK and state >> QUOTE_SHIFT & 255 == 0:
                state = _next_word(state)
            else:
                state = _part(text, low, at, end, sort, state)
            at += 1
    return at, (at - low) << _AT_SHIFT | state


@inlined
def _next_word(state: Int) -> Int:
    """The state behind white space: what was known of the word that follows is known of this."""
    if state & IN_WORD == 0:
        return state
    return state & ~(IN_WORD | _NOW | _NEXT) | (state & _NEXT) >> 1


@inlined
def _says_nothing(text: Array, at: Int, state: Int) -> bool:
    """Whether the word at `at` changes nothing: no program is expected, and it is no option."""
    if state & (EXPECTS | LOOSE | FRESH) != 0:
        return False
    row = state >> ROW_SHIFT & 63
    return row == 0 or (load1(text, at) != 45 and load_word(WHERE, row) != FIRST)


@kernel
def _part(text: Array, low: Int, at: Int, end: Int, sort: Int, state: Int) -> Int:
    """The state behind a byte that parts words, commands or quoted texts."""
    text = borrow(text)
    flags, row = state & FLAGS, (state >> ROW_SHIFT) & 63
    outer, quote = (state >> _OUTER_SHIFT) & 63, (state >> QUOTE_SHIFT) & 255
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
        flags = _next_word(flags)
        flags |= SKIP_NOW if sort == ARROW else 0
    return flags | row << ROW_SHIFT | outer << _OUTER_SHIFT | quote << QUOTE_SHIFT


@kernel
def _take(text: Array, at: Int, end: Int, state: Int) -> Int:
    """The state behind a word: a program, a wrapper, an option, or anything else."""
    text = borrow(text)
    flags, row = state & FLAGS | IN_WORD, (state >> ROW_SHIFT) & 63
    rest = state >> _OUTER_SHIFT << _OUTER_SHIFT
    quoted = (state >> QUOTE_SHIFT) & 255 != 0
    if flags & (EXPECTS | LOOSE | FRESH) != 0:
        program, wraps, passes = _word_is(text, at, end)
        if program > 0:
            row, flags = program, flags & ~(EXPECTS | LOOSE | FRESH)
            flags |= NESTED if quoted else 0
            flags &= ~(_NOW | _NEXT) if quoted else FLAGS
            return rest | row << ROW_SHIFT | flags
        if not passes:
            flags &= ~FRESH
            if flags & EXPECTS != 0 or wraps:
                flags = flags & ~EXPECTS | (LOOSE if wraps else 0)
            if row == 0:
                return rest | flags
        else:
            return rest | row << ROW_SHIFT | flags
    if row > 0 and (not quoted or flags & NESTED != 0):
        if load1(text, at) == 45 and end - at > 1:
            flags |= _option(text, at, end, row)
        elif WHERE[row] == FIRST and flags & _NOW == 0:
            row, flags = np.int64(0), flags | EXPECTS | LOOSE
    return rest | row << ROW_SHIFT | flags


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
