"""Secrets without a form of their own: opaque values behind a name that announces one.

The name is the argument's own, or stands in the text: `password=...`, `"api_key": "..."`,
`Authorization: Bearer ...`. A value is opaque when it looks drawn at random:

    16 bytes and more    3.0 bits of entropy a byte; two of: lower case, upper case, digits, others
    8 to 15 bytes        2.5 bits; three of them, digits among them

and when it is nothing that stands for a secret elsewhere: `${VAR}`, `<redacted>`, `{{ x }}`,
`process.env.API_KEY`, `API_KEY_2`, `YourApiKeyHere`, a path or a URL.

Source: Shannon (1948), A Mathematical Theory of Communication, for entropy.

Blind to: a pass phrase of several words, a short or a simple password.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log2
from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1
from otel_anomaly.otlp.characters import (
    BASE64,
    DASH,
    DIGIT,
    DOT,
    HIGH,
    LETTER,
    LOWER,
    QUOTE,
    SPACE,
    UNDERSCORE,
    UPPER,
    URL_SAFE,
    WORD,
    kind_at,
    packed,
    word_at,
)
from otel_anomaly.otlp.found import add_secret
from otel_anomaly.otlp.paths import has_drive

SECRETIVE, ACCOUNTISH, CITIZEN, ADDRESSEE, TEXTUAL, LOGIN, SOCIAL, PHONE, CPF = (
    1 << bit for bit in range(9)
)
"""What a name says of its value: a secret, an account number, a citizen's number, somebody the call
is for or from, a text to be read or written down, what a call logs in with, a US
social security number, a phone's, a CPF."""

_LETTER_BITS: Final = 5
_LETTERS_KEPT: Final = 12
_KEPT: Final = (1 << _LETTER_BITS * _LETTERS_KEPT) - 1


def _spelt(word: str) -> int:
    """Up to twelve letters as a number, five bits each, the last letter lowest."""
    assert len(word) <= _LETTERS_KEPT
    number = 0
    for letter in word:
        number = number << _LETTER_BITS | ord(letter) & 31
    return number


# Words a name may hold, and what it then says. `_ENDS`: only where a word of the name ends, so
# that an author, a tokenizer or a number of tokens says nothing.
_WORDS: Final = {
    "password": SECRETIVE,
    "passwd": SECRETIVE,
    "passphrase": SECRETIVE,
    "passcode": SECRETIVE,
    "secret": SECRETIVE,
    "apikey": SECRETIVE,
    "accesskey": SECRETIVE,
    "accountkey": SECRETIVE,
    "privatekey": SECRETIVE,
    "signingkey": SECRETIVE,
    "cryptionkey": SECRETIVE,
    "credential": SECRETIVE,
    "authorizatio": SECRETIVE | LOGIN,
    "authorisatio": SECRETIVE | LOGIN,
    "iban": ACCOUNTISH,
    "account": ACCOUNTISH,
    "recipient": ACCOUNTISH | ADDRESSEE,
    "beneficiary": ACCOUNTISH | ADDRESSEE,
    "payee": ACCOUNTISH | ADDRESSEE,
    "routing": ACCOUNTISH,
    "citizen": CITIZEN,
    "burgerservic": CITIZEN,
    "personnummer": CITIZEN,
    "pesel": CITIZEN,
    "socialsecuri": SOCIAL,
    "attendee": ADDRESSEE,
    "invitee": ADDRESSEE,
    "participant": ADDRESSEE,
    "assignee": ADDRESSEE,
    "sender": ADDRESSEE,
    "committer": ADDRESSEE,
    "organizer": ADDRESSEE,
    "organiser": ADDRESSEE,
    "username": ADDRESSEE,
}
_ENDS: Final = {
    "pwd": SECRETIVE,
    "token": SECRETIVE,
    "auth": SECRETIVE,
    "bearer": SECRETIVE,
    "authkey": SECRETIVE,
    "sshkey": SECRETIVE,
    "bsn": CITIZEN,
    "nationalid": CITIZEN,
    "to": ADDRESSEE,
    "cc": ADDRESSEE,
    "bcc": ADDRESSEE,
    "from": ADDRESSEE,
    "login": ADDRESSEE,
    "author": ADDRESSEE,
    "authors": ADDRESSEE,
    "content": TEXTUAL,
    "contents": TEXTUAL,
    "text": TEXTUAL,
    "body": TEXTUAL,
    "prompt": TEXTUAL,
    "markdown": TEXTUAL,
    "newstring": TEXTUAL,
    "oldstring": TEXTUAL,
    "newstr": TEXTUAL,
    "oldstr": TEXTUAL,
    "newsource": TEXTUAL,
    "xapikey": LOGIN,
    "cpf": CPF,
    "ssn": SOCIAL,
    "phone": PHONE,
    "phonenumber": PHONE,
    "mobile": PHONE,
    "mobilenumber": PHONE,
    "telephone": PHONE,
    "privatetoken": LOGIN,
    "xauthtoken": LOGIN,
}
_ROWS: Final = sorted(
    [(word, meaning, 0) for word, meaning in _WORDS.items()]
    + [(word, meaning, 1) for word, meaning in _ENDS.items()],
    key=lambda row: row[0][-1],
)
_SPELT: Final = np.array([_spelt(word) for word, _, _ in _ROWS], np.int64)
_SPELT_MASKS: Final = np.array([(1 << _LETTER_BITS * len(word)) - 1 for word, _, _ in _ROWS])
_MEANINGS: Final = np.array([meaning for _, meaning, _ in _ROWS], np.int64)
_AT_END: Final = np.array([at_end for _, _, at_end in _ROWS], np.int64)
_FIRST: Final = np.array(
    [sum(ord(word[-1]) & 31 < letter for word, _, _ in _ROWS) for letter in range(33)], np.int64
)
"""Last letter -> where the words that end with it begin in the table."""


def _endings(words: Iterable[str]) -> Array:
    """The last two letters of a word, five bits each -> the letters that may stand before them.

    Before a word of two letters any may stand, or none.
    """
    before = np.zeros(1 << 2 * _LETTER_BITS, np.uint32)
    for word in words:
        third = 1 << _spelt(word[-3]) if len(word) > 2 else 0xFFFFFFFF
        before[_spelt(word[-2:])] |= np.uint32(third)
    return before


_BEFORE_LAST: Final = _endings([*_WORDS, *_ENDS])
_TWO: Final = (1 << 2 * _LETTER_BITS) - 1

# A token that says where a list goes on is opaque, and no secret: the last letters before it.
_CURSOR_WORDS: Final = """
page next nuation ination ontinue sync resume cursor delta skip marker llation
"""
_CURSORS: Final = np.array([_spelt(word) for word in _CURSOR_WORDS.split()], np.int64)
_CURSOR_MASKS: Final = np.array(
    [(1 << _LETTER_BITS * len(word)) - 1 for word in _CURSOR_WORDS.split()], np.int64
)
_TOKEN: Final = _spelt("token")
_TOKEN_BITS: Final = _LETTER_BITS * len("token")


@kernel
def name_hints(text: Array, at: Int, end: Int) -> Int:
    """What the name of a member says of its value: SECRETIVE, ACCOUNTISH, ... or several.

    Case, digits and the signs between words make no difference.
    """
    letters, hints = np.int64(0), np.int64(0)
    while at < end:
        if kind_at(text, at) & LETTER != 0:
            letter = load1(text, at) & 31
            letters = letters << _LETTER_BITS & _KEPT | letter
            third = letters >> 2 * _LETTER_BITS & 31
            if load1(_BEFORE_LAST, letters & _TWO) >> third & 1 == 0:
                at += 1
                continue
            for row in range(_FIRST[letter], _FIRST[letter + 1]):
                if letters & _SPELT_MASKS[row] == _SPELT[row] and (
                    _AT_END[row] == 0 or _ends_word(text, at, end)
                ):
                    cursor = _SPELT[row] == _TOKEN and _is_cursor(letters >> _TOKEN_BITS)
                    hints |= 0 if cursor else _MEANINGS[row]
        at += 1
    return hints


@inlined
def _ends_word(text: Array, at: Int, end: Int) -> bool:
    """Whether the letter at `at` is the last of a word: no letter follows, or a capital does."""
    if at + 1 == end:
        return True
    following = kind_at(text, at + 1)
    return following & LETTER == 0 or (following & UPPER != 0 and kind_at(text, at) & LOWER != 0)


@kernel
def _is_cursor(letters: Int) -> bool:
    """Whether the (at most seven) letters before `token` make it a place in a list."""
    for i in range(_CURSORS.size):
        if letters & _CURSOR_MASKS[i] == _CURSORS[i]:
            return True
    return False


@kernel
def secretive_name(text: Array, at: Int, end: Int) -> bool:
    """Whether the name of a member announces a secret."""
    return name_hints(text, at, end) & SECRETIVE != 0


OPAQUE_MAX: Final = 512
"""A longer value is a document, not a secret."""
_LONG: Final = 16
_SHORT: Final = 8
_BITS_LONG: Final = 3.0
_BITS_SHORT: Final = 2.5
_HUMP_LETTERS: Final = 3.5
"""Letters a word of camel case has at least, on average: what is drawn at random has two."""
_NO_SIGN: Final = WORD | DASH | DOT | BASE64
_N_LOG_N: Final = np.array([n * log2(n) if n else 0.0 for n in range(OPAQUE_MAX + 1)])


@kernel
def is_opaque(text: Array, at: Int, end: Int) -> bool:
    """Whether a value looks drawn at random, and like nothing that only stands for a secret."""
    length = end - at
    if length < _SHORT or length > OPAQUE_MAX or _stands_for(text, at, end):
        return False
    seen, letters, humps, signs = np.int64(0), 0, 0, 0
    counts = np.zeros(256, np.int64)
    before = np.int64(0)
    for i in range(at, end):
        kind = kind_at(text, i)
        if kind & SPACE != 0:
            return False
        if kind & LETTER != 0:
            letters += 1
            if before & LETTER == 0 or (kind & UPPER != 0 and before & LOWER != 0):
                humps += 1
        elif kind & _NO_SIGN == 0:
            signs = 1
        counts[load1(text, i)] += 1
        seen |= kind
        before = kind
    if seen & DIGIT == 0 and letters >= _HUMP_LETTERS * humps:
        return False  # Words.
    if seen & (LOWER | QUOTE | HIGH | BASE64 | DASH | DOT) == 0 and seen & UNDERSCORE != 0:
        return False  # The name of a variable.
    classes = (1 if seen & LOWER != 0 else 0) + (1 if seen & UPPER != 0 else 0)
    classes += (1 if seen & DIGIT != 0 else 0) + signs
    bits = _entropy(text, at, end, counts)
    if length >= _LONG:
        return classes >= 2 and bits >= _BITS_LONG
    return classes >= 3 and seen & DIGIT != 0 and bits >= _BITS_SHORT


@kernel
def _entropy(text: Array, at: Int, end: Int, counts: Array) -> float:
    """Bits of Shannon entropy a byte. Empties `counts`, so that each byte is told once."""
    total = _N_LOG_N[end - at]
    for i in range(at, end):
        byte = load1(text, i)
        total -= _N_LOG_N[counts[byte]]
        counts[byte] = 0
    return total / (end - at)


@kernel
def _stands_for(text: Array, at: Int, end: Int) -> bool:
    """Whether a value names a place where a secret lies, or shows that one was taken out."""
    first, last = load1(text, at), load1(text, end - 1)
    if first == 36 or (first == 60 and last == 62) or (first == 91 and last == 93):
        return True  # $VAR ${VAR} <redacted> [redacted]
    if (first == 123 and last == 125) or (first == 37 and last == 37):
        return True  # {{var}} %VAR%
    if first == 47 or first == 126 or has_drive(text, at, end):
        return True
    if word_at(text, at, at + 4) == _ARN:
        return True
    for i in range(at, end - 2):
        if load1(text, i) == 58 and load1(text, i + 1) == 47 and load1(text, i + 2) == 47:
            return True
    return first == 46 and load1(text, at + 1) == 47


_ARN: Final = packed("arn:")
_BEARER: Final = packed("bearer")
_BASIC: Final = packed("basic")
_MARGIN_MAX: Final = 4
_NAME_MAX: Final = 40

_ANNOUNCING: Final = """
password passwd passphrase passcode secret secrets key credential credentials authorization
authorisation pwd token auth bearer
"""


_BEFORE: Final = _endings(_ANNOUNCING.split())


@kernel
def behind_scheme(text: Array, at: Int, end: Int) -> Int:
    """The position behind `Bearer ` or `Basic `, or `at`."""
    if end - at > 7 and load1(text, at + 6) == 32 and word_at(text, at, at + 6) == _BEARER:
        return at + 7
    if end - at > 6 and load1(text, at + 5) == 32 and word_at(text, at, at + 5) == _BASIC:
        return at + 6
    return at


@kernel
def find_bearer(
    text: Array, low: Int, at: Int, end: Int, seed: Int, found: Record, before: Int
) -> None:
    """Count the run [at, end) when `Bearer ` or `Basic ` stands before it, and it is opaque."""
    if at - low >= 7 and behind_scheme(text, at - 7, end) == at:
        scheme = 7
    elif at - low >= 6 and behind_scheme(text, at - 6, end) == at:
        scheme = 6
    else:
        return
    if at - low > scheme and kind_at(text, at - scheme - 1) & LETTER != 0:
        return
    if is_opaque(text, at, end) or (scheme == 6 and _is_login(text, at, end)):
        add_secret(found, text, at, end, seed, before)


@kernel
def _is_login(text: Array, at: Int, end: Int) -> bool:
    """Whether [at, end) is `name:password` in base 64: printable, with a colon, and no more."""
    while end > at and load1(text, end - 1) == 61:
        end -= 1
    bits, count, colon = np.int64(0), 0, False
    for i in range(at, min(end, at + OPAQUE_MAX)):
        byte, kind = load1(text, i), kind_at(text, i)
        if kind & LETTER != 0:
            value = byte - 65 if kind & UPPER != 0 else byte - 71
        elif kind & DIGIT != 0:
            value = byte + 4
        elif byte == 43 or byte == 47:
            value = np.int64(62 if byte == 43 else 63)
        else:
            return False
        bits, count = (bits << 6 | value) & 0xFFFF, count + 6
        if count >= 8:
            count -= 8
            plain = bits >> count & 255
            if plain < 32 or plain > 126:
                return False
            colon = colon or plain == 58
    return colon


@inlined
def announces(text: Array, low: Int, sign: Int) -> bool:
    """Whether what is before the `=` or `:` at `sign` may be a name that announces a secret.

    A quick look at three letters: `find_assigned` makes sure.
    """
    at = sign
    while at > low and sign - at < _MARGIN_MAX and _is_margin(load1(text, at - 1)):
        at -= 1
    if at - low < 3:
        return False
    two = (load1(text, at - 2) & 31) << _LETTER_BITS | (load1(text, at - 1) & 31)
    return load1(_BEFORE, two) >> (load1(text, at - 3) & 31) & 1 != 0


@inlined
def _is_margin(byte: Int) -> bool:
    """Whether a byte may stand between a name, its sign and its value: quotes, blanks, = and >."""
    return byte == 32 or byte == 34 or byte == 39 or byte == 92 or byte == 61 or byte == 62


@kernel
def find_assigned(
    text: Array, low: Int, sign: Int, end: Int, seed: Int, found: Record, before: Int
) -> Int:
    """Count the value behind the `=` or `:` at `sign` when the name before it announces a secret.

    Returns how far the value was read: what stands in it is not looked at as another assignment.
    """
    stop = sign
    while stop > low and sign - stop < _MARGIN_MAX and _is_margin(load1(text, stop - 1)):
        stop -= 1
    begin = stop
    while begin > low and stop - begin < _NAME_MAX and kind_at(text, begin - 1) & URL_SAFE != 0:
        begin -= 1
    if name_hints(text, begin, stop) & SECRETIVE == 0:
        return sign
    at = sign + 1
    while at < end and at - sign <= _MARGIN_MAX and _is_margin(load1(text, at)):
        at += 1
    at = behind_scheme(text, at, end)
    stop = at
    limit = min(end, at + OPAQUE_MAX + 1)
    while stop < limit and not _ends_value(text, stop):
        stop += 1
    if is_opaque(text, at, stop):
        add_secret(found, text, at, stop, seed, before)
    return stop


@inlined
def _ends_value(text: Array, at: Int) -> bool:
    r"""Whether a value in running text ends here: white space, quotes, , ; & \ ) ] }."""
    byte = load1(text, at)
    if byte == 44 or byte == 59 or byte == 38 or byte == 92 or byte == 39:
        return True
    return kind_at(text, at) & (SPACE | QUOTE) != 0 or byte == 41 or byte == 93 or byte == 125


@kernel
def add_opaque(text: Array, at: Int, end: Int, seed: Int, found: Record, before: Int) -> None:
    """Count a value, white space cut off, whose name announces a secret, when it is opaque."""
    at = behind_scheme(text, at, end)
    if is_opaque(text, at, end):
        add_secret(found, text, at, end, seed, before)


@kernel
def add_password(text: Array, at: Int, end: Int, seed: Int, found: Record, before: Int) -> None:
    """Count the password of a URL, whatever it looks like, unless it stands for another."""
    if at >= end:
        return
    first = load1(text, at)
    if first == 36 or first == 60 or first == 123 or first == 42:  # $VAR <password> {x} ***
        return
    add_secret(found, text, at, end, seed, before)
