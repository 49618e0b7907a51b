"""What a string among the arguments of a call gives away: destinations, secrets, personal data.

`look` is called for every string value, so ordinary text must cost next to nothing. It compares 32
bytes at a time with what may begin something, one bit a byte:

    digits                          maybe a number of somebody
    @ : = and . in a name           maybe an address, a host, a URL, an assignment
    five dashes                     maybe a private key
    bytes that keys are made of     in a long run: maybe a key

Only where a bit is set is the byte looked at, by the room that knows the sign: `urls`, `mails`,
`commands`, `keys`, `opaque`, `personal`, `paths`. Each says how far it read, and what is read is
not read again, so time is linear in the length, whatever the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from otel_anomaly.kernels import (
    BLOCK,
    Array,
    Int,
    Record,
    between,
    bit_count,
    bit_length,
    borrow,
    inlined,
    kernel,
    load1,
)
from otel_anomaly.otlp.characters import DIGIT, QUOTE, RUN, SPACE, kind_at, lowest
from otel_anomaly.otlp.command_lines import NOT_BEGUN, NOTHING
from otel_anomaly.otlp.commands import (
    host_around,
    in_command,
    may_name_host,
    read_command,
    slashed_host,
)
from otel_anomaly.otlp.covering import NO_COVER, cover, cover_if, cover_key, cover_keys
from otel_anomaly.otlp.credentials import find_login, mark_credentials, of_committer
from otel_anomaly.otlp.found import (
    ACCOUNT,
    ASIDE,
    DATUM,
    DESTINATIONS_MAX,
    FOUND,
    HOST,
    LINK,
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
    LOGIN,
    SECRETIVE,
    TEXTUAL,
    add_opaque,
    announces,
    find_assigned,
    find_bearer,
    name_hints,
    secretive_name,
)
from otel_anomaly.otlp.paths import add_path, is_path, may_be_path
from otel_anomaly.otlp.personal import (
    CODE_LEAST,
    DIGITS_LEAST,
    find_account,
    find_number,
    plain_number_end,
)
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
    "LINK",
    "LISTED",
    "LOGIN",
    "MAIL",
    "OUTSIDE",
    "PATH",
    "PUBLIC",
    "SECRETIVE",
    "TEXTUAL",
    "cover_all",
    "is_plain",
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


_AT, _COLON, _EQUALS, _STOP, _MINUS, _W = (ord(mark) for mark in "@:=.-w")


@inlined
def is_plain(text: Array, at: Int, end: Int) -> bool:
    """Whether a short value of no special name is so plain that `look` finds nothing in it.

    No sign by which anything begins, too few digits for a number of somebody, and too short for a
    key. Most values are.
    """
    length = end - at
    if length >= KEY_LEAST or at + BLOCK > text.size:
        return length == 0
    inside = (np.int64(1) << length) - 1
    signs = between(text, at, 46, 47) | between(text, at, _COLON, _COLON)  # ./:
    signs |= between(text, at, _AT, _AT) | between(text, at, _EQUALS, _EQUALS)
    signs |= between(text, at, 91, 92) | between(text, at, 126, 126)  # [\~
    if signs & inside != 0:
        return False
    digits = between(text, at, 48, 57) & inside
    return digits == 0 or (length < CODE_LEAST and bit_count(digits) < DIGITS_LEAST)


@kernel
def look(text: Array, at: Int, end: Int, hints: Int, plan: Record, found: Record) -> None:
    """Add to `found` what the string value in [at, end) holds.

    `hints`: what `name_hints` says of the member's name; 0 when it has none.
    """
    text = borrow(text)
    while at < end and load1(text, at) <= 32:
        at += 1
    while end > at and load1(text, end - 1) <= 32:
        end -= 1
    if at == end:
        return
    before, known = np.int64(found["secrets"]), np.int64(found["credentials"])
    if may_be_path(text, at, end):
        _whole_path(text, at, end, plan, found)
    elif may_be_host(text, at, end):
        bare_host(text, at, end, plan, found)
    mails = _sweep(text, at, end, hints, plan, found, before, NO_COVER, text, np.int64(0))
    found["personal"] += mails
    if hints & SECRETIVE != 0 and found["secrets"] == before:
        add_opaque(text, at, end, plan["seed"], found, before)
    if hints & LOGIN != 0 and found["secrets"] == before + 1:
        found["credentials"] = known + 1
    if hints & ACCOUNTISH != 0:
        find_account(text, at, end, plan["seed"], found)


@kernel
def cover_all(
    text: Array,
    at: Int,
    end: Int,
    hints: Int,
    plan: Record,
    found: Record,
    what: Int,
    to: Array,
    shift: Int,
) -> None:
    """Cover with stars what a string value holds of what is told, in a copy of it.

    The value is [at, end) of `text`, the copy [at + shift, end + shift) of `to`. `what`: SECRETS,
    MAILS, PHONES, NUMBERS. What was covered is counted in `found["marked"]`.
    """
    text, to = borrow(text), borrow(to)
    while at < end and load1(text, at) <= 32:
        at += 1
    while end > at and load1(text, end - 1) <= 32:
        end -= 1
    found["secrets"], found["destinations"], found["beyond"] = 0, 0, 0
    found["mark_end"] = 0
    _sweep(text, at, end, hints, plan, found, np.int64(0), what, to, shift)
    if hints & SECRETIVE != 0 and found["secrets"] == 0 and at < end:
        add_opaque(text, at, end, plan["seed"], found, np.int64(0))
        cover(text, at, end, found, what, to, shift)


@kernel
def _whole_path(text: Array, at: Int, end: Int, plan: Record, found: Record) -> None:
    """Add the root of the path that a value is, and the server it lies on; or the host alone."""
    if slashed_host(text, at, end, plan, found):
        return
    if is_path(text, at, end):
        add_server(text, at, end, plan, found)
        add_path(text, at, end, np.int64(0), plan["seed"], found)


_UNKNOWN: Final = np.int64(-1)
_ALL: Final = (1 << BLOCK) - 1
_BEYOND: Final = 15 << BLOCK


@inlined
def _digits_and_marks(text: Array, at: Int, end: Int, reading: Int) -> tuple[Int, Int]:
    """Which of the bytes from `at` on are digits, and which are signs that may mean something.

    Bit i for the byte at `at + i`; none from `end` on.
    """
    digits, marks = np.int64(0), np.int64(0)
    if at + BLOCK <= text.size:
        digits = between(text, at, 48, 57)
        marks = between(text, at, _AT, _AT)
        marks |= between(text, at, _COLON, _COLON) | between(text, at, _EQUALS, _EQUALS)
        stops = between(text, at, _STOP, _STOP)
        if stops != 0:
            marks |= stops & _in_names(text, at, stops, digits, reading)
        if end - at < BLOCK:
            inside = (np.int64(1) << (end - at)) - 1
            digits, marks = digits & inside, marks & inside
        return digits, marks
    for i in range(at, end):
        byte, bit = load1(text, i), np.int64(1) << (i - at)
        if 48 <= byte <= 57:
            digits |= bit
        elif byte == _AT or byte == _COLON or byte == _EQUALS or byte == _STOP:
            marks |= bit
    return digits, marks


@inlined
def _in_names(text: Array, at: Int, stops: Int, digits: Int, reading: Int) -> Int:
    """Where in a block a full stop may belong to a host: behind a w, and between two names.

    The latter only as long as hosts in command lines are looked for. Of numbers there are more than
    two. What lies in the blocks beside this one may be anything.
    """
    small, large = between(text, at, 97, 122), between(text, at, 65, 90)
    behind_w = (between(text, at, _W, _W) | between(text, at, _W - 32, _W - 32)) << 1 | 1
    if reading == NOTHING:
        return behind_w
    letters = small | large | between(text, at, 128, 255)
    before = (letters | digits) << 1 | 1
    more, in_name = stops | _BEYOND, between(text, at, 33, 255) | _BEYOND
    number = digits >> 1 & (more >> 2 | in_name >> 2 & (more >> 3 | in_name >> 3 & more >> 4))
    behind = (letters | _BEYOND) >> 1 | number
    return behind_w | before & behind


@inlined
def _dashes_and_gaps(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Which of the bytes from `at` on are dashes, and which are no part of any key.

    Bit i for the byte at `at + i`. What lies from `end` on is no part of a key, and no dash.
    """
    dashes, run = np.int64(0), np.int64(0)
    if at + BLOCK <= text.size:
        dashes = between(text, at, _MINUS, _MINUS)
        run = between(text, at, 97, 122) | between(text, at, 65, 90) | between(text, at, 45, 57)
        run |= between(text, at, 95, 95) | between(text, at, 43, 43) | between(text, at, 61, 61)
        run |= between(text, at, 126, 126) | between(text, at, 36, 37)  # -./0-9 _ + = ~ $%
        if end - at < BLOCK:
            inside = (np.int64(1) << (end - at)) - 1
            dashes, run = dashes & inside, run & inside
        return dashes, run ^ _ALL
    for i in range(at, end):
        bit = np.int64(1) << (i - at)
        dashes |= bit if load1(text, i) == _MINUS else np.int64(0)
        run |= bit if kind_at(text, i) & RUN != 0 else np.int64(0)
    return dashes, run ^ _ALL


@inlined
def _read_runs(
    text: Array,
    first: Int,
    begin: Int,
    block: Int,
    gaps: Int,
    seed: Int,
    found: Record,
    before: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> Int:
    """Read the long runs of key-like bytes that end in a block; returns where the last begins.

    `begin` is where the one begins that goes on from the block before. Between two gaps of one
    block there is room for one long run.
    """
    if gaps == 0:
        return begin
    head = lowest(gaps)
    if block + head - begin >= KEY_LEAST:
        _read_run(text, first, begin, block + head, seed, found, before, what, to, shift)
    starts = gaps ^ _ALL
    starts &= starts >> 1
    starts &= starts >> 2
    starts &= starts >> 4
    starts &= starts >> 8
    starts = starts >> head << head
    if starts != 0:
        start = lowest(starts)
        if gaps >> start != 0:
            stop = start + lowest(gaps >> start)
            start, stop = block + start, block + stop
            _read_run(text, first, start, stop, seed, found, before, what, to, shift)
    return block + bit_length(gaps)


assert KEY_LEAST == BLOCK // 2, "what `_read_runs` counts on"


@inlined
def _read_run(
    text: Array,
    first: Int,
    begin: Int,
    end: Int,
    seed: Int,
    found: Record,
    before: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> None:
    """Count the secrets in a long run of key-like bytes, or cover them."""
    if what == NO_COVER:
        _count_run(text, first, begin, end, seed, found, before)
    else:
        cover_keys(text, first, begin, end, seed, found, what, to, shift)


@kernel
def _count_run(
    text: Array, first: Int, begin: Int, end: Int, seed: Int, found: Record, before: Int
) -> None:
    """Count the secrets in a long run of key-like bytes."""
    had = np.int64(found["secrets"])
    find_bearer(text, first, begin, end, seed, found, before)
    find_keys(text, begin, end, seed, found, before)
    if found["secrets"] != had:
        mark_credentials(text, first, begin, end, found, had)


@inlined
def _private_keys(
    text: Array,
    block: Int,
    dashes: Int,
    end: Int,
    seed: Int,
    found: Record,
    before: Int,
    key_end: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> Int:
    """Count the private keys whose first line begins in a block, or cover them.

    `key_end`: up to where one was covered; returns the same.
    """
    starts = _begins_of_keys(dashes)
    while starts != 0:
        begin = block + lowest(starts)
        starts &= starts - 1
        if what == NO_COVER:
            find_private_key(text, begin, end, seed, found, before)
        elif begin >= key_end:
            key_end = cover_key(text, begin, end, seed, found, what, to, shift, key_end)
    return key_end


@inlined
def _begins_of_keys(dashes: Int) -> Int:
    """Where in a block a private key may begin: five dashes, and no sixth.

    The dashes may go on in the next block.
    """
    dashes |= np.int64(31) << BLOCK
    starts = dashes & dashes >> 1
    starts = starts & starts >> 2 & dashes >> 4 & _ALL
    starts &= ~(dashes >> 5) | 31 << (BLOCK - 5)
    return starts


@inlined
def _from(bits: Int, place: Int) -> Int:
    """The bits from a place on."""
    return bits >> place << place


@inlined
def _mention(hints: Int) -> Int:
    """What is only mentioned in a value: a link in a text, else aside."""
    return np.int64(ASIDE | LINK if hints & TEXTUAL != 0 else ASIDE)


@inlined
def _role_of_link(
    text: Array, first: Int, at: Int, end: Int, hints: Int, reading: Int
) -> tuple[Int, Int]:
    """(what the host of the URL at `at` is, the reading): in a command it is no mere link."""
    if hints & TEXTUAL == 0:
        return np.int64(ASIDE), reading
    reading = read_command(text, first, at, end, reading)
    return (np.int64(ASIDE) if in_command(reading) else _mention(hints)), reading


@inlined
def _role_of_mails(text: Array, at: Int, end: Int, hints: Int) -> Int:
    """What the addresses in a value are: mentioned in a text, what the call carries, or 0."""
    if not only_addresses(text, at, end):
        return _mention(hints)
    return np.int64(DATUM if hints & ADDRESSEE == 0 else 0)


@inlined
def _around_sign(
    text: Array,
    first: Int,
    at: Int,
    end: Int,
    read: Int,
    seed: Int,
    found: Record,
    before: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> Int:
    """Count the secret around the `:` or `=` at `at`; returns how far assignments are read."""
    if load1(text, at) == _COLON and at > first:
        if kind_at(text, at - 1) & DIGIT != 0:
            find_bot_token(text, first, at, end, seed, found, before)
            cover_if(text, first, end, found, what, to, shift)
        if at + 1 < end and kind_at(text, at + 1) & (SPACE | QUOTE) == 0:
            find_login(text, first, at, end, seed, found, before)
            cover_if(text, first, end, found, what, to, shift)
    if at < read or not announces(text, first, at):
        return read
    had = np.int64(found["secrets"])
    read = find_assigned(text, first, at, end, seed, found, before)
    cover_if(text, first, end, found, what, to, shift)
    if found["secrets"] != had:
        mark_credentials(text, first, at + 1, end, found, had)
    return read


@inlined
def _read_number(
    text: Array,
    first: Int,
    last: Int,
    at: Int,
    hints: Int,
    seed: Int,
    found: Record,
    what: Int,
    to: Array,
    shift: Int,
) -> Int:
    """Read what stands around the digit at `at`; returns from where to go on."""
    stop = plain_number_end(text, first, at, last)
    if stop < 0:
        stop = find_number(text, first, last, at, hints, seed, found)
        cover_if(text, first, last, found, what, to, shift)
    return max(stop, at + 1)


@inlined
def _keys_in_block(
    text: Array,
    first: Int,
    block: Int,
    end: Int,
    run_begin: Int,
    key_end: Int,
    seed: Int,
    found: Record,
    before: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> tuple[Int, Int]:
    """(where a run of key-like bytes is open behind the block, how far private keys are read)."""
    dashes, gaps = _dashes_and_gaps(text, block, end)
    run_begin = _read_runs(
        text, first, run_begin, block, gaps, seed, found, before, what, to, shift
    )
    if dashes != 0:
        key_end = _private_keys(
            text, block, dashes, end, seed, found, before, key_end, what, to, shift
        )
    return run_begin, key_end


@inlined
def _sweep(
    text: Array,
    at: Int,
    end: Int,
    hints: Int,
    plan: Record,
    found: Record,
    before: Int,
    what: Int,
    to: Array,
    shift: Int,
) -> Int:
    """Look at every place where something may stand; returns the mail addresses in running text.

    What is cheap to rule out is ruled out here, what is left goes to the room that knows. `what`:
    what of it is to be covered in a copy, see `cover_all`.
    """
    # How far links, numbers and assignments are read, and where a run of key-like bytes begins.
    link_end, number_end, value_end, run_begin, key_end = at, at, at, at, at
    mails, aside = np.int64(0), _UNKNOWN
    # Up to where words were held against command lines, and how far these were read.
    word_end, reading = at, NOT_BEGUN
    has_room = end - at >= KEY_LEAST
    seed = plan["seed"]
    for block in range(at, end, BLOCK):
        digits, marks = _digits_and_marks(text, block, end, reading)
        if has_room:
            run_begin, key_end = _keys_in_block(
                text, at, block, end, run_begin, key_end, seed, found, before, what, to, shift
            )
        while digits | marks != 0:
            bit = (digits | marks) & -(digits | marks)
            i = block + bit_length(bit) - 1
            if digits & bit != 0:
                if i >= number_end:
                    number_end = _read_number(text, at, end, i, hints, seed, found, what, to, shift)
                digits = _from(digits, min(number_end - block, BLOCK))
                continue
            marks ^= bit
            byte = load1(text, i)
            if byte == _STOP or byte == _AT:
                if byte == _STOP and i >= link_end and i > at and load1(text, i - 1) | 32 == _W:
                    link_end = max(
                        link_end, bare_www(text, at, i, end, _mention(hints), plan, found)
                    )
                free = reading != NOTHING and i >= link_end and i >= word_end
                if free and may_name_host(text, at, i, end):
                    link, word_end, reading = host_around(text, at, i, end, reading, plan, found)
                    link_end = max(link_end, link)
                if byte == _AT and i >= link_end and may_be_mail(text, link_end, i, end):
                    if aside == _UNKNOWN:
                        aside = _role_of_mails(text, at, end, hints)
                    link_end, is_mail = mail(text, link_end, i, end, aside, plan, found)
                    mails += is_mail if not of_committer(text, at, i) else 0
                    cover_if(text, at, end, found, what, to, shift)
            else:
                behind = i
                if byte == _COLON and i >= link_end and may_be_url(text, at, i, end):
                    role, reading = _role_of_link(text, at, i, end, hints, reading)
                    behind = url(text, at, i, end, role, plan, found, before)
                    cover_if(text, at, end, found, what, to, shift)
                if behind > i:
                    link_end, number_end = behind, max(number_end, behind)
                else:
                    value_end = _around_sign(
                        text, at, i, end, value_end, seed, found, before, what, to, shift
                    )
    if has_room and end - run_begin >= KEY_LEAST:
        _read_run(text, at, run_begin, end, seed, found, before, what, to, shift)
    return mails if aside > 0 and aside & ASIDE != 0 else np.int64(0)
