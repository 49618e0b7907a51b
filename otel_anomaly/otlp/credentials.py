"""Secrets that log in where a call goes: those in a header, of basic authentication, in a URL.

They leave the house as well, but to whom they belong: `data_exfiltration` does not count them when
the call leads to one host only. They are secrets like all others, and counted among them.

    curl -H 'Authorization: Bearer X'    a quoted header behind -H or --header, X all of its value
    curl -u name:X                       behind -u, --user or --user=, when X looks drawn at random
    https://name:X@host, https://X@host  in front of a host
    {"Authorization": "Bearer X"}        a member that is called like such a header

Blind to: a stolen secret that is sent to one stranger in the place of his own.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1
from otel_anomaly.otlp.characters import LETTER, QUOTE, SPACE, kind_at, packed, word_at
from otel_anomaly.otlp.found import add_secret
from otel_anomaly.otlp.opaque import SECRETIVE, is_opaque, name_hints

_HEADER_MAX: Final = 64
_SCHEME_MAX: Final = 8
"""Letters of the longest scheme, `Bearer`, and blanks."""
_NAME_MAX: Final = 64
_PASSWORD_MAX: Final = 128

_SHORT_HEADER: Final = packed("-h")
_LONG_HEADER: Final = packed("--header")
_SHORT_USER: Final = packed("-u")
_LONG_USER: Final = packed("--user")


@kernel
def mark_credentials(text: Array, low: Int, at: Int, end: Int, found: Record, had: Int) -> None:
    """Of the secrets counted since there were `had`, which stand in [at, end): those that log in.

    More than one at once is no credential.
    """
    if found["secrets"] != had + 1:
        return
    if _in_header(text, low, at) or _before_host(text, low, at, end):
        found["credentials"] += 1


@kernel
def _in_header(text: Array, low: Int, at: Int) -> bool:
    """Whether `-H 'Name: ` or `-H 'Name: Scheme ` stands before `at`, the name one of a secret."""
    colon = at
    while colon > low and at - colon <= _SCHEME_MAX and load1(text, colon - 1) != 58:
        if kind_at(text, colon - 1) & LETTER == 0 and load1(text, colon - 1) != 32:
            return False
        colon -= 1
    colon -= 1
    if colon < low or load1(text, colon) != 58:
        return False
    name = colon
    while name > low and colon - name < _HEADER_MAX and not _is_quote(text, name - 1):
        name -= 1
    if name <= low or not _is_quote(text, name - 1) or not _behind_header(text, low, name - 1):
        return False
    return name_hints(text, name, colon) & SECRETIVE != 0


@inlined
def _is_quote(text: Array, at: Int) -> bool:
    """Whether a quote stands here, of either kind."""
    return load1(text, at) == 34 or load1(text, at) == 39


@inlined
def _behind_header(text: Array, low: Int, quote: Int) -> bool:
    """Whether -H or --header stands before a quote, and a blank or `=` between."""
    begin, stop = _word_before(text, low, quote)
    word = word_at(text, begin, stop)
    if stop - begin == 2:
        return word == _SHORT_HEADER
    return stop - begin == 8 and word == _LONG_HEADER


@kernel
def _word_before(text: Array, low: Int, at: Int) -> tuple[Int, Int]:
    """The word before `at`, which a blank or `=` ends; up to nine letters of it. Empty: none."""
    stop = at
    if stop > low and (load1(text, stop - 1) == 32 or load1(text, stop - 1) == 61):
        stop -= 1
    begin = stop
    while begin > low and stop - begin < 9 and kind_at(text, begin - 1) & (SPACE | QUOTE) == 0:
        begin -= 1
    return (begin, stop) if stop < at else (at, at)


@kernel
def _before_host(text: Array, low: Int, at: Int, end: Int) -> bool:
    """Whether [at, end), with its user name, stands between `://` and an `@`. Needs `text[end]`."""
    if end >= text.size or load1(text, end) != 64:
        return False
    begin = min(at + 2, end - 1)
    while begin > low and at - begin < _NAME_MAX and kind_at(text, begin) & (SPACE | QUOTE) == 0:
        if load1(text, begin) == 47 and load1(text, begin - 1) == 47:
            return begin - 2 >= low and load1(text, begin - 2) == 58
        begin -= 1
    return False


@kernel
def find_login(
    text: Array, low: Int, colon: Int, end: Int, seed: Int, found: Record, before: Int
) -> None:
    """Count the password behind the colon of `-u name:password`, or of `--user`."""
    name = colon
    while name > low and colon - name < _NAME_MAX and _in_login(text, name - 1):
        name -= 1
    if name == colon:
        return
    if name > low and _is_quote(text, name - 1):
        name -= 1
    begin, stop = _word_before(text, low, name)
    word = word_at(text, begin, stop)
    short = stop - begin == 2 and word == _SHORT_USER
    if not short and not (stop - begin == 6 and word == _LONG_USER):
        return
    last = colon + 1
    while last < end and last - colon <= _PASSWORD_MAX and kind_at(text, last) & SPACE == 0:
        if _is_quote(text, last):
            break
        last += 1
    if not is_opaque(text, colon + 1, last):
        return
    had = np.int64(found["secrets"])
    add_secret(found, text, colon + 1, last, seed, before)
    found["credentials"] += found["secrets"] - had


@inlined
def _in_login(text: Array, at: Int) -> bool:
    """Whether a byte may stand in a user's name."""
    return kind_at(text, at) & (SPACE | QUOTE) == 0 and load1(text, at) != 61


_US: Final = packed("us")
_EMAIL: Final = packed("er.email")
_SCOPES: Final = (packed("config"), packed("--global"), packed("--local"), packed("--system"))


@kernel
def of_committer(text: Array, low: Int, sign: Int) -> bool:
    """Whether the mail around the @ at `sign` is who commits: `git config user.email X`."""
    begin = sign
    while begin > low and sign - begin < _NAME_MAX and _in_login(text, begin - 1):
        begin -= 1
    if begin > low and _is_quote(text, begin - 1):
        begin -= 1
    if begin - low < 18 or load1(text, begin - 1) != 32 or load1(text, begin - 12) != 32:
        return False
    if word_at(text, begin - 9, begin - 1) != _EMAIL or word_at(text, begin - 11, begin - 9) != _US:
        return False
    start, stop = _word_before(text, low, begin - 11)
    word = word_at(text, start, stop)
    for scope in _SCOPES:
        if word == scope:
            return True
    return False
