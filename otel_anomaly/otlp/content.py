"""What a string among the arguments of a call gives away: destinations, secrets, personal data.

`look` is called for every string value, so ordinary text must cost next to nothing. It reads the
value eight bytes at a time, adding up one table entry a byte. An entry holds four counters of four
bits, none of which can run over:

    bits 0-3     digits                            one: maybe a number of somebody
    bits 4-7     bytes that keys are made of       all eight: maybe a long run of them
    bits 8-11    dashes                            three: maybe a private key
    bits 12-15   @ : = .                           one: maybe an address, a URL, an assignment

Only where the sum reaches a limit are the eight bytes looked at one by one, each sign by the room
that knows it: `urls`, `mails`, `keys`, `opaque`, `personal`, `paths`. Each of them says how far it
read, and what is read is not read again, so time is linear in the length, whatever the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1
from otel_anomaly.otlp.characters import (
    DASH,
    DIGIT,
    RUN,
    kind_at,
    span_of,
)
from otel_anomaly.otlp.commands import (
    NOT_BEGUN,
    NOTHING,
    host_around,
    may_name_host,
    slashed_host,
)
from otel_anomaly.otlp.found import (
    ACCOUNT,
    ASIDE,
    DATUM,
    DESTINATIONS_MAX,
    FOUND,
    HOST,
    LISTED,
    MAIL,
    OUTSIDE,
    PATH,
    PUBLIC,
)
from otel_anomaly.otlp.hosts import HOSTS, compile_hosts
from otel_anomaly.otlp.keys import KEY_LEAST, find_bot_token, find_keys, find_private_key
from otel_anomaly.otlp.mails import bare_host, mail, may_be_host, may_be_mail, only_addresses
from otel_anomaly.otlp.opaque import (
    ACCOUNTISH,
    ADDRESSEE,
    CITIZEN,
    SECRETIVE,
    add_opaque,
    announces,
    find_assigned,
    find_bearer,
    name_hints,
    secretive_name,
)
from otel_anomaly.otlp.paths import add_path, is_path, may_be_path
from otel_anomaly.otlp.personal import find_account, find_number, plain_number_end
from otel_anomaly.otlp.urls import add_server, bare_www, may_be_url, url

__all__ = [
    "ACCOUNT",
    "ACCOUNTISH",
    "ADDRESSEE",
    "ASIDE",
    "CITIZEN",
    "CONTENT_PLAN",
    "DATUM",
    "DESTINATIONS_MAX",
    "FOUND",
    "HOST",
    "LISTED",
    "MAIL",
    "OUTSIDE",
    "PATH",
    "PUBLIC",
    "SECRETIVE",
    "look",
    "make_content_plan",
    "name_hints",
    "secretive_name",
]

CONTENT_PLAN = np.dtype([("seed", "i8"), ("allow", HOSTS), ("inside", HOSTS)], align=True)
"""What `look` holds hosts against: `unknown_connection.allow` and `data_exfiltration.inside`."""


def make_content_plan(seed: int, allow: Sequence[str] = (), inside: Sequence[str] = ()) -> Array:
    """A CONTENT_PLAN [1]. Raises ValueError for an entry that is no host, naming it."""
    plan = np.zeros(1, CONTENT_PLAN)
    plan["seed"] = seed
    plan["allow"] = compile_hosts(allow, seed)
    plan["inside"] = compile_hosts(inside, seed)
    return plan


_MARKS: Final = b"@:=."


def _counters() -> Array:
    """Byte -> what it adds to the sum over eight bytes."""
    counters = np.zeros(256, np.uint16)
    for byte in range(256):
        kind = kind_at(np.array([byte], np.uint8), 0)
        counters[byte] |= 1 if kind & DIGIT else 0
        counters[byte] |= 1 << 4 if kind & RUN else 0
        counters[byte] |= 1 << 8 if kind & DASH else 0
        counters[byte] |= 1 << 12 if byte in _MARKS else 0
    return counters


_COUNTERS: Final = _counters()
# Each counter goes from 0 to 8; what is added here lifts it to 8 where it reaches its limit.
_LIFT: Final = 8 - 1 | (8 - 8) << 4 | (8 - 3) << 8 | (8 - 1) << 12
_REACHED: Final = 0x8888
_REACHED_RUN: Final = 0x80
_REACHED_DASHES: Final = 0x800
_DIGIT: Final = 1
_MARK: Final = 1 << 12


@inlined
def _sum(text: Array, at: Int) -> Int:
    """The counters of eight bytes. Needs `at + 8 <= size`."""
    return (
        load1(_COUNTERS, load1(text, at))
        + load1(_COUNTERS, load1(text, at + 1))
        + load1(_COUNTERS, load1(text, at + 2))
        + load1(_COUNTERS, load1(text, at + 3))
        + load1(_COUNTERS, load1(text, at + 4))
        + load1(_COUNTERS, load1(text, at + 5))
        + load1(_COUNTERS, load1(text, at + 6))
        + load1(_COUNTERS, load1(text, at + 7))
    )


@kernel
def look(text: Array, at: Int, end: Int, hints: Int, plan: Record, found: Record) -> None:
    """Add to `found` what the string value in [at, end) holds.

    `hints`: what `name_hints` says of the member's name; 0 when it has none.
    """
    while at < end and load1(text, at) <= 32:
        at += 1
    while end > at and load1(text, end - 1) <= 32:
        end -= 1
    if at == end:
        return
    before = found["secrets"]
    if may_be_path(text, at, end):
        _whole_path(text, at, end, plan, found)
    elif may_be_host(text, at, end):
        bare_host(text, at, end, plan, found)
    mails = _sweep(text, at, end, hints, plan, found, before)
    found["personal"] += mails
    if hints & SECRETIVE != 0 and found["secrets"] == before:
        add_opaque(text, at, end, plan["seed"], found, before)
    if hints & ACCOUNTISH != 0:
        find_account(text, at, end, plan["seed"], found)


@kernel
def _whole_path(text: Array, at: Int, end: Int, plan: Record, found: Record) -> None:
    """Add the root of the path that a value is, and the server it lies on; or the host alone."""
    if slashed_host(text, at, end, plan, found):
        return
    if is_path(text, at, end):
        add_server(text, at, end, plan, found)
        add_path(text, at, end, np.int64(0), plan["seed"], found)


_AT, _COLON, _STOP, _MINUS, _W = (ord(mark) for mark in "@:.-w")
_UNKNOWN: Final = np.int64(-1)


@inlined
def _lifted(text: Array, at: Int, end: Int) -> Int:
    """The counters of up to eight bytes, lifted so that a set bit tells which one matters."""
    if end - at == 8:
        return _sum(text, at) + _LIFT
    lifted = np.int64(_LIFT)
    for i in range(at, end):
        lifted += load1(_COUNTERS, load1(text, i))
    return lifted


@inlined
def _four(text: Array, at: Int) -> Int:
    """The entries of four bytes, joined."""
    return (
        load1(_COUNTERS, load1(text, at))
        | load1(_COUNTERS, load1(text, at + 1))
        | load1(_COUNTERS, load1(text, at + 2))
        | load1(_COUNTERS, load1(text, at + 3))
    )


@kernel
def _run(text: Array, first: Int, end: Int, at: Int, seed: Int, found: Record, before: Int) -> Int:
    """The run of key-like bytes around `at`: counts the keys in it, returns where it ends."""
    begin = at
    while begin > first and kind_at(text, begin - 1) & RUN != 0:
        begin -= 1
    stop = span_of(text, at, end, RUN)
    if stop - begin >= KEY_LEAST:
        find_bearer(text, first, begin, stop, seed, found, before)
        find_keys(text, begin, stop, seed, found, before)
    return stop


@kernel
def _private_keys(
    text: Array, at: Int, stop: Int, end: Int, seed: Int, found: Record, before: Int
) -> None:
    """Count the private keys whose first line begins in [at, stop)."""
    for i in range(at, stop):
        if load1(text, i) == _MINUS:
            find_private_key(text, i, end, seed, found, before)


@kernel
def _sweep(
    text: Array, at: Int, end: Int, hints: Int, plan: Record, found: Record, before: Int
) -> Int:
    """Look at every place where something may stand; returns the mail addresses in running text.

    What is cheap to rule out is ruled out here, what is left goes to the room that knows.
    """
    # How far links, numbers, assignments and runs of key-like bytes are read.
    link_end, number_end, value_end, run_end = at, at, at, at
    mails, aside = np.int64(0), _UNKNOWN
    # Up to where words were held against command lines, and how far these were read.
    word_end, reading = at, NOT_BEGUN
    has_room = end - at >= KEY_LEAST
    for word in range(at, end, 8):
        stop = min(word + 8, end)
        lifted = _lifted(text, word, stop)
        if lifted & _REACHED == 0:
            continue
        if lifted & _REACHED_RUN != 0 and has_room and word >= run_end:
            run_end = _run(text, at, end, word, plan["seed"], found, before)
        if lifted & _REACHED_DASHES != 0 and has_room:
            _private_keys(text, word, stop, end, plan["seed"], found, before)
        i = word
        while i < stop:
            if stop - i >= 4 and _four(text, i) & (_DIGIT | _MARK) == 0:
                i += 4
                continue
            byte = load1(text, i)
            entry = load1(_COUNTERS, byte)
            if entry & _DIGIT != 0:
                if i >= number_end:
                    number_end = plain_number_end(text, at, i, end)
                    if number_end < 0:
                        number_end = find_number(text, at, end, i, hints, plan["seed"], found)
            elif byte == _STOP or byte == _AT:
                if byte == _STOP and i >= link_end and i > at and load1(text, i - 1) | 32 == _W:
                    link_end = max(link_end, bare_www(text, at, i, end, plan, found))
                free = reading != NOTHING and i >= link_end and i >= word_end
                if free and may_name_host(text, at, i, end):
                    link, word_end, reading = host_around(text, at, i, end, reading, plan, found)
                    link_end = max(link_end, link)
                if byte == _AT and i >= link_end and may_be_mail(text, link_end, i, end):
                    if aside == _UNKNOWN:
                        aside = np.int64(DATUM if hints & ADDRESSEE == 0 else 0)
                        aside = aside if only_addresses(text, at, end) else np.int64(ASIDE)
                    link_end, is_mail = mail(text, link_end, i, end, aside, plan, found)
                    mails += is_mail
            elif entry & _MARK != 0:
                behind = i
                if byte == _COLON and i >= link_end and may_be_url(text, at, i, end):
                    behind = url(text, at, i, end, plan, found, before)
                if behind > i:
                    link_end, number_end = behind, max(number_end, behind)
                else:
                    if byte == _COLON and i > at and kind_at(text, i - 1) & DIGIT != 0:
                        find_bot_token(text, at, i, end, plan["seed"], found, before)
                    if i >= value_end and announces(text, at, i):
                        value_end = find_assigned(text, at, i, end, plan["seed"], found, before)
            i += 1
    return mails if aside == ASIDE else np.int64(0)
