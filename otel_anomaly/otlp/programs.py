"""Which program a command line starts: `git` in `cd /repo && sudo -u build /usr/bin/git pull`.

The first simple command that starts a program counts, without its folder and without `.exe`.
Words are cut and unquoted as a shell does it. Looked through are

    A=b X                   an assignment in front
    sudo -u build X         a wrapper with its options
    cd /repo && X           what runs inside the shell and starts nothing
    bash -lc "X ..."        a shell that is handed a line; `bash X` runs the script X

A list of arguments is read alike: its first element is a line, every further one a word.

Blind to: the programs behind the first one, in a pipe or after `&&`; what variables, aliases and
`$(...)` stand for; options of wrappers written out with their value apart (`--user build`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, inlined, kernel, load1
from otel_anomaly.otlp.hashing import hash_bytes, load_rest
from otel_anomaly.otlp.json_text import either

SEARCH = np.dtype([("state", "i8"), ("row", "i8"), ("skip", "i8"), ("program", "i8")])
"""How far the search has come. `program` is the best answer so far, 0 for none."""

START, PROGRAM, OPTIONS, SHELL_OPTIONS, LINE, PASSING, FOUND = np.arange(7)
"""What is expected next: a line; a program; options of a wrapper, of a shell; the line a shell is
handed; nothing until the next command; nothing any more."""
KEYWORD, INSIDE, WRAPPER, SHELL = range(4)

LINES_MAX: Final = 4
"""Lines within lines. Deeper, the shell itself is the answer."""
_PROGRAM: Final = 0x2E9B64C7F1508A3D
_NO_QUOTE: Final = np.int64(-1)

_KEYWORDS: Final = ("if", "then", "elif", "else", "do", "while", "until", "!", "{", "time")
_INSIDE: Final = (
    *("cd", "pushd", "popd", "export", "set", "unset", "alias", "source", ".", "umask", "ulimit"),
    *("shopt", "declare", "local", "for", "true", ":"),
)
_WRAPPERS: Final = ("command", "builtin", "eval", "nohup", "setsid", "busybox")
_WORDS: Final = (
    *((word, KEYWORD, "", 0) for word in _KEYWORDS),
    *((word, INSIDE, "", 0) for word in _INSIDE),
    *((word, WRAPPER, "", 0) for word in _WRAPPERS),
    ("sudo", WRAPPER, "ugpChDTRrtU", 0),
    ("doas", WRAPPER, "uC", 0),
    ("env", WRAPPER, "uC", 0),
    ("exec", WRAPPER, "a", 0),
    ("nice", WRAPPER, "n", 0),
    ("ionice", WRAPPER, "cnpPu", 0),
    ("stdbuf", WRAPPER, "ioe", 0),
    ("timeout", WRAPPER, "ks", 1),
    *((word, SHELL, "oO", 0) for word in ("sh", "bash", "dash", "zsh", "ksh", "ash", "fish")),
    *((word, SHELL, "", 0) for word in ("cmd", "powershell", "pwsh")),
)
"""(word, what it is, letters of its options that take a value, words before the program)."""


def _packed(word: str) -> int:
    return int.from_bytes(word.encode()[:8], "little")


_HEADS: Final = np.array([_packed(word) for word, *_ in _WORDS], np.int64)
_LENGTHS: Final = np.array([len(word) for word, *_ in _WORDS], np.int64)
_KINDS: Final = np.array([kind for _, kind, *_ in _WORDS], np.int64)
_SKIPS: Final = np.array([skip for *_, skip in _WORDS], np.int64)
_VALUED: Final = np.array(
    [sum(1 << (ord(letter) - 64) for letter in letters) for _, _, letters, _ in _WORDS], np.int64
)

_NO_SKIP: Final = np.int64(next(row for row, word in enumerate(_WORDS) if word[0] == "command"))
"""A wrapper without a word before the program: what `timeout` is like once it has its time."""


@inlined
def _row_of(text: Array, at: Int, count: Int) -> Int:
    """The row of a word in the table, or -1."""
    head = load_rest(text, at, min(count, np.int64(8)))
    for row in range(_HEADS.size):
        if _HEADS[row] == head and _LENGTHS[row] == count:
            return np.int64(row)
    return np.int64(-1)


@inlined
def _is_blank(byte: Int) -> bool:
    return byte == 32 or byte == 9 or byte == 13


@inlined
def _separates(byte: Int) -> bool:
    """Whether a command ends here: newline ; & | ( )."""
    return byte == 10 or byte == 59 or byte == 38 or byte == 124 or byte == 40 or byte == 41


@kernel
def _next_word(text: Array, at: Int, end: Int, out: Array, room: Int) -> tuple[Int, Int, bool]:
    """The next word, unquoted into out[room:]: (next, where it stops, whether it is one).

    No word: a command ended, or the line did. `text` may be `out` itself if `at >= room`: a word
    is never longer than what was read of it.
    """
    text, out = borrow(text), borrow(out)
    while at < end and _is_blank(load1(text, at)):
        at += 1
    if at == end:
        return at, room, False
    if load1(text, at) == 35:  # A comment.
        while at < end and load1(text, at) != 10:
            at += 1
        return at, room, False
    if _separates(load1(text, at)):
        return at + 1, room, False
    put = room
    quote = _NO_QUOTE
    while at < end:
        byte = load1(text, at)
        if quote == _NO_QUOTE and (_is_blank(byte) or _separates(byte)):
            break
        at += 1
        if byte == quote:
            quote = _NO_QUOTE
        elif quote == _NO_QUOTE and (byte == 34 or byte == 39):
            quote = byte
        else:
            if byte == 92 and at < end and _hides(load1(text, at), quote):
                byte = load1(text, at)
                at += 1
            out[put] = byte
            put += 1
    return at, put, True


@inlined
def _hides(byte: Int, quote: Int) -> bool:
    """Whether a backslash before this byte is taken away.

    Before letters and digits it stays: there it is more often a Windows path than an escape.
    """
    if quote == 39:
        return False
    if quote == 34:
        return byte == 34 or byte == 92 or byte == 36 or byte == 96
    letter = byte | 32
    return not (48 <= byte <= 57 or 97 <= letter <= 122 or byte > 127)


@kernel
def _name_of(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the name of a program begins and ends: no folder, no `.exe`, if that leaves any."""
    text = borrow(text)
    start = at
    for i in range(at, end):
        byte = load1(text, i)
        if (byte == 47 or byte == 92) and i + 1 < end:
            start = i + 1
    if end - start > 4:
        suffix = load_rest(text, end - 4, np.int64(4)) | 0x20202000
        if suffix == 0x6578652E:
            return start, end - 4
    return start, end


@inlined
def _is_assignment(text: Array, at: Int, end: Int) -> bool:
    """Whether the word begins like `NAME=`."""
    i = at
    while i < end:
        byte = load1(text, i)
        if byte == 61:
            return i > at
        letter = byte | 32
        if not (97 <= letter <= 122 or byte == 95 or (48 <= byte <= 57 and i > at)):
            return False
        i += 1
    return False


@kernel
def _take_program(text: Array, at: Int, end: Int, search: Record, seed: Int) -> None:
    """A word where a program may stand."""
    text = borrow(text)
    if at == end or _is_assignment(text, at, end):
        return
    start, stop = _name_of(text, at, end)
    row = _row_of(text, start, stop - start)
    if row >= 0 and _KINDS[row] == KEYWORD:
        return
    search["program"] = hash_bytes(text, start, stop - start, seed ^ _PROGRAM)
    if row < 0:
        search["state"] = FOUND
        return
    search["row"] = row
    search["skip"] = 0
    if _KINDS[row] == INSIDE:
        search["state"] = PASSING
    elif _KINDS[row] == SHELL:
        search["state"] = SHELL_OPTIONS
    else:
        search["state"] = OPTIONS


@inlined
def _takes_value(text: Array, at: Int, end: Int, row: Int) -> bool:
    """Whether the option is a letter whose value is the next word."""
    if end - at != 2:
        return False
    letter = load1(text, at + 1) - 64
    return 0 < letter < 63 and (_VALUED[row] >> letter) & 1 == 1


@kernel
def _take_option(text: Array, at: Int, end: Int, search: Record, seed: Int) -> None:
    """A word behind a wrapper."""
    text = borrow(text)
    if search["skip"] > 0:
        search["skip"] -= 1
    elif end - at > 1 and load1(text, at) == 45:
        if _takes_value(text, at, end, search["row"]):
            search["skip"] = 1
    elif not _is_assignment(text, at, end):
        if _SKIPS[search["row"]] > 0:
            search["row"] = _NO_SKIP
            return
        search["state"] = PROGRAM
        _take_program(text, at, end, search, seed)


@kernel
def _take_shell_option(text: Array, at: Int, end: Int, search: Record, seed: Int) -> None:
    """A word behind a shell: `-c`, `-lc`, `/c`, `-Command` announce a line."""
    text = borrow(text)
    if search["skip"] > 0:
        search["skip"] -= 1
        return
    sign = load1(text, at) if end > at else np.int64(0)
    if sign != 45 and not (sign == 47 and end - at == 2):
        search["state"] = FOUND  # The script it runs.
        start, stop = _name_of(text, at, end)
        if stop > start:
            search["program"] = hash_bytes(text, start, stop - start, seed ^ _PROGRAM)
        return
    announces = end - at > 5 and load_rest(text, at + 1, np.int64(4)) | 0x20202020 == 0x6D6D6F63
    if end - at <= 5 and not (sign == 45 and end - at > 1 and load1(text, at + 1) == 45):
        for i in range(at + 1, end):
            letter = load1(text, i) | 32
            announces = announces or letter == 99 or (sign == 47 and letter == 107)
    if announces:
        search["state"] = LINE
    elif _takes_value(text, at, end, search["row"]):
        search["skip"] = 1
    elif end - at > 5 and load1(text, at + 1) != 45:
        search["skip"] = 1  # `-ExecutionPolicy Bypass`


@kernel
def _take_word(text: Array, at: Int, end: Int, search: Record, seed: Int) -> None:
    """Any word that is not the line of a shell."""
    text = borrow(text)
    if search["state"] == PROGRAM:
        _take_program(text, at, end, search, seed)
    elif search["state"] == OPTIONS:
        _take_option(text, at, end, search, seed)
    elif search["state"] == SHELL_OPTIONS:
        _take_shell_option(text, at, end, search, seed)


@kernel
def read_line(
    text: Array, at: Int, end: Int, search: Record, scratch: Array, room: Int, seed: Int
) -> None:
    """Search a command line. Writes to scratch[room:], where the line itself may lie."""
    text, scratch = borrow(text), borrow(scratch)
    line = text
    words = either(text, scratch, decoded=True)
    lines = np.int64(1)
    search["state"] = PROGRAM
    while at < end and search["state"] != FOUND:
        at, stop, is_word = _next_word(line, at, end, scratch, room)
        if not is_word:
            if search["state"] == PASSING or search["state"] == PROGRAM:
                search["state"] = PROGRAM
            elif at < end:
                search["state"] = FOUND  # The wrapper or the shell itself.
        elif search["state"] == LINE:
            if lines == LINES_MAX:
                search["state"] = FOUND
                return
            line, at, end = scratch, room, stop
            lines += 1
            search["state"] = PROGRAM
        else:
            _take_word(words, room, stop, search, seed)


@kernel
def read_argument(
    text: Array, at: Int, end: Int, search: Record, scratch: Array, room: Int, seed: Int
) -> None:
    """Search the next element of a list of arguments."""
    text, scratch = borrow(text), borrow(scratch)
    if search["state"] == START or search["state"] == LINE:
        read_line(text, at, end, search, scratch, room, seed)
    elif search["state"] != FOUND:
        _take_word(text, at, end, search, seed)


def hash_program(name: str, seed: int) -> int:
    """What the search answers for a program of this name."""
    data = np.frombuffer(name.encode(), np.uint8)
    return int(hash_bytes(data, 0, data.size, seed ^ _PROGRAM))
