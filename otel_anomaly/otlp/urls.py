"""The hosts of the URLs in a string.

A URL's host is found as the WHATWG URL standard finds it, because that is where the connection
goes: `http:\\\\host`, `https:host.x`, `http:///host`, userinfo, any port. Running text has rules of
its own, and the two may differ about where the host ends; then both readings count:

    running text      the host ends at white space, quotes, brackets, commas as well
    a value that is   only / ? # \\ end it; tabs and line ends in it are left out, and what stands
    a URL             before the last @ is userinfo, whatever it is

    http://listed.com)@evil.com/            listed.com, evil.com
    http://listed.com<newline>.evil.com/    listed.com, listed.com.evil.com

Behind the schemes of storage services (`s3://bucket/key`) stands the name of a bucket, which
anybody may own: it counts as public, and is told by scheme and name (`s3://bucket`), other
spellings of the scheme (`s3a`) folded. `abfss://box@account.host/` names a host, and counts as one.

The port decides whether a host is listed, so one that goes without saying is filled in. A password
in front of the host is a secret.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1, room
from otel_anomaly.otlp.characters import (
    ALNUM,
    DASH,
    DIGIT,
    DOT,
    HARD,
    HIGH,
    LETTER,
    QUOTE,
    SOFT,
    SPACE,
    UNDERSCORE,
    holds,
    kind_at,
    lower_at,
    packed,
    span_of,
    word_at,
    word_set,
)
from otel_anomaly.otlp.found import (
    HOST,
    LINK,
    LISTED,
    OUTSIDE,
    PUBLIC,
    add_destination,
    range_hash,
)
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.host_names import HOST_BYTES, normal_host
from otel_anomaly.otlp.hosts import STORES, allowed, is_bucket_of, is_public
from otel_anomaly.otlp.opaque import add_password
from otel_anomaly.otlp.paths import add_path

URL_MAX: Final = 2048
"""Of a value that is read as one URL, tabs and line ends left out."""
_SCHEME_MAX: Final = 32
_BUCKET_MAX: Final = 255
_HOST_TEXT: Final = ALNUM | DASH | DOT | UNDERSCORE | HIGH

# Schemes whose host may follow any number of slashes, in either direction.
_SPECIAL: Final = word_set(["http", "https", "ws", "wss", "ftp"])
_FILE: Final = packed("file")
_WWW: Final = packed("www")
_OCALHOST: Final = packed("ocalhost")  # The last eight letters.
SMB_PORT: Final = np.int64(445)
_PORT_OF: Final = {
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
    "ftp": 21,
    "ssh": 22,
    "sftp": 22,
    "smtp": 25,
    "smtps": 465,
    "ldap": 389,
    "ldaps": 636,
    "redis": 6379,
    "rediss": 6379,
    "mysql": 3306,
    "postgres": 5432,
    "stgresql": 5432,  # The last eight letters.
    "mongodb": 27017,
    "amqp": 5672,
    "amqps": 5671,
    "git": 9418,
    "telnet": 23,
}
_STORE_WORDS: Final = np.array([packed(name) for name in STORES], np.int64)
_STORE_NAMES: Final = np.array([packed(name) for name in STORES.values()], np.int64)
_NO_STORE: Final = np.int64(0)

_SCHEMES: Final = np.array([packed(name) for name in _PORT_OF], np.int64)
_PORTS: Final = np.array(list(_PORT_OF.values()), np.int64)


@kernel
def add_host(
    host: Array,
    length: Int,
    what: Int,
    high: Int,
    low: Int,
    port: Int,
    aside: Int,
    plan: Record,
    found: Record,
) -> None:
    """Add a host in its normal form. `port` 0: not known. `aside`: ASIDE or 0."""
    seed = plan["seed"]
    kinds = HOST | aside
    if is_public(host, length, what, high, low):
        kinds |= PUBLIC
        if not allowed(plan["inside"], host, length, what, high, low, port, seed):
            kinds |= OUTSIDE
    if allowed(plan["allow"], host, length, what, high, low, port, seed):
        kinds |= LISTED
    key = hash_two(np.int64(HOST), range_hash(host, np.int64(0), length, seed), seed)
    add_destination(found, key, kinds)


@inlined
def may_be_url(text: Array, low: Int, colon: Int, end: Int) -> bool:
    """Whether a slash follows the colon, or a special scheme stands before it."""
    if colon + 1 >= end:
        return False
    following = load1(text, colon + 1)
    if following == 47 or following == 92:
        return True
    if following == 32 or following == 34 or colon - low < 2:
        return False
    last = lower_at(text, colon - 1)
    return last == 112 or last == 115  # http, https, ws, wss, ftp.


@kernel
def url(
    text: Array,
    low: Int,
    colon: Int,
    end: Int,
    mention: Int,
    plan: Record,
    found: Record,
    before: Int,
) -> Int:
    """The URL whose scheme ends at `colon`: adds its host; returns the position behind it.

    `colon` itself when there is none. `low` is where the value begins. `mention`: what a host is
    that is not the value itself, ASIDE, and LINK where links only say where to read on.
    """
    begin = colon
    while begin > low and colon - begin < _SCHEME_MAX and _in_scheme(text, begin - 1):
        begin -= 1
    tail = colon
    while tail > begin and kind_at(text, tail - 1) & ALNUM != 0:
        tail -= 1
    scheme = word_at(text, tail, colon)
    special = colon - tail <= 5 and holds(_SPECIAL, scheme)
    start = _behind_slashes(text, colon + 1, end, special)
    whole = begin == span_of(text, low, end, SPACE)
    aside = np.int64(0) if whole else mention
    if aside & LINK != 0 and carries(text, colon + 1, end):
        aside ^= LINK
    if scheme == _FILE and colon - tail == 4:
        return _file(text, start if start > 0 else colon + 1, end, aside, plan, found)
    if start < 0 and special:
        start = _without_slashes(text, colon + 1, end)
    if start < 0 or start >= end:
        return colon
    if not special:
        store = _store_of(scheme, colon - tail)
        if store != _NO_STORE:
            stop = _bucket(text, start, end, store, aside, plan, found)
            if stop > start:
                return stop
    port = _port_of(scheme)
    stop = start
    while stop < end and kind_at(text, stop) & (HARD | SPACE | QUOTE) == 0:
        stop += 1
    _authority(text, start, stop, port, aside, plan, found, before)
    if special and stop < end and load1(text, stop) == 92:
        _behind_backslash(text, stop, end, port, aside, plan, found)
    if whole and special and stop < end and kind_at(text, stop) & HARD == 0:
        _strict(text, start, end, port, plan, found)
    return stop


_CARRIED_MAX: Final = 512
_CARRIED_DIGITS: Final = 9
_CARRIED_RUN: Final = 16


@kernel
def carries(text: Array, at: Int, end: Int) -> bool:
    """Whether a link may take data along: a query, an @ or many digits, or a long run of letters.

    A picture in a message, `![](https://evil.com/?q=..)`, is fetched by whoever shows it. The part
    in front of a host is no such data, and a link longer than `_CARRIED_MAX` may hold anything.
    """
    digits, run, longest, slashes = 0, 0, 0, 0
    limit = min(end, at + _CARRIED_MAX)
    while at < limit and kind_at(text, at) & (SPACE | QUOTE) == 0:
        byte, kind = load1(text, at), kind_at(text, at)
        slashes += 1 if byte == 47 or byte == 92 else 0
        if byte == 64 and slashes <= 2:
            digits, run, longest = 0, 0, 0
        elif byte == 63 or byte == 64:
            return True
        else:
            digits += 1 if kind & DIGIT != 0 else 0
            run = run + 1 if kind & ALNUM != 0 else 0
            longest = max(longest, run)
        at += 1
    return at == limit < end or digits >= _CARRIED_DIGITS or longest >= _CARRIED_RUN


@inlined
def _in_scheme(text: Array, at: Int) -> bool:
    """Whether a byte may stand in a scheme."""
    byte = load1(text, at)
    return kind_at(text, at) & (ALNUM | DASH | DOT) != 0 or byte == 43


@inlined
def _port_of(scheme: Int) -> Int:
    """The port that goes without saying, or 0."""
    for i in range(_SCHEMES.size):
        if _SCHEMES[i] == scheme:
            return _PORTS[i]
    return np.int64(0)


@kernel
def _store_of(scheme: Int, length: Int) -> Int:
    """The scheme that counts for a storage service, or _NO_STORE."""
    if length > 8:
        return _NO_STORE
    for i in range(_STORE_WORDS.size):
        if _STORE_WORDS[i] == scheme:
            return np.int64(_STORE_NAMES[i])
    return _NO_STORE


@kernel
def _bucket(
    text: Array, at: Int, end: Int, store: Int, aside: Int, plan: Record, found: Record
) -> Int:
    """Add the bucket that begins at `at`; returns the position behind it, or `at`: none."""
    stop = span_of(text, at, end, _HOST_TEXT)
    while stop > at and load1(text, stop - 1) == 46:
        stop -= 1
    if stop - at > _BUCKET_MAX or stop == at:
        return at
    if stop < end and load1(text, stop) == 64:
        return at  # box@account.host
    name = np.empty(_BUCKET_MAX + 16, np.uint8)
    size = 0
    while store != 0:
        name[size] = store & 255
        store >>= 8
        size += 1
    name[size], name[size + 1], name[size + 2] = 58, 47, 47
    size += 3
    for i in range(at, stop):
        name[size] = lower_at(text, i)
        size += 1
    seed = plan["seed"]
    kinds = HOST | aside | PUBLIC
    if not is_bucket_of(plan["inside"], name, size, seed):
        kinds |= OUTSIDE
    if is_bucket_of(plan["allow"], name, size, seed):
        kinds |= LISTED
    key = hash_two(np.int64(HOST), range_hash(name, np.int64(0), size, seed), seed)
    add_destination(found, key, kinds)
    return stop


@inlined
def _behind_slashes(text: Array, at: Int, end: Int, special: bool) -> Int:
    """Where the host begins: behind //, or behind any slashes of a special scheme; -1: no host."""
    if not special:
        both = end - at >= 2 and load1(text, at) == 47 and load1(text, at + 1) == 47
        return at + 2 if both else -1
    slashes = 0
    while at < end:
        byte = load1(text, at)
        if byte == 47 or byte == 92:
            slashes += 1
        elif byte != 9 and byte != 10 and byte != 13:
            break
        at += 1
    return at if slashes > 0 else -1


@inlined
def _without_slashes(text: Array, at: Int, end: Int) -> Int:
    """`at` when a name with a dot stands right behind the colon, or -1: `http: 200` is no URL."""
    stop = span_of(text, at, end, _HOST_TEXT)
    for i in range(at + 1, stop - 1):
        if load1(text, i) == 46 and kind_at(text, at) & (LETTER | HIGH) != 0:
            return at
    return -1


@kernel
def _file(text: Array, at: Int, end: Int, aside: Int, plan: Record, found: Record) -> Int:
    """file://host/path: the path, and the host when it is another."""
    stop = at
    while stop < end and kind_at(text, stop) & (SPACE | QUOTE) == 0:
        stop += 1
    slash = span_of(text, at, stop, _HOST_TEXT)
    local = slash - at == 9 and word_at(text, at, slash) == _OCALHOST
    if slash > at and load1(text, at - 1) == 47 and not local:
        _host_and_port(text, at, slash, SMB_PORT, aside, plan, found)
    add_path(text, slash, stop, aside, plan["seed"], found)
    return stop


@kernel
def _authority(
    text: Array, at: Int, end: Int, port: Int, aside: Int, plan: Record, found: Record, before: Int
) -> None:
    """Add the host of [at, end), which is everything up to the path, and its password."""
    cut, last_at, cut_at = end, at - 1, at - 1
    for i in range(at, end):
        if load1(text, i) == 64:
            last_at = i
            if cut == end:
                cut_at = i
        elif cut == end and kind_at(text, i) & SOFT != 0:
            cut = i
    if last_at >= at:
        colon = at
        while colon < last_at and load1(text, colon) != 58:
            colon += 1
        had = np.int64(found["secrets"])
        add_password(text, colon + 1, last_at, plan["seed"], found, before)
        found["credentials"] += found["secrets"] - had
    _host_and_port(text, cut_at + 1, cut, port, aside, plan, found)
    if last_at > cut:
        stop = last_at + 1
        while stop < end and kind_at(text, stop) & SOFT == 0:
            stop += 1
        _host_and_port(text, last_at + 1, stop, port, aside, plan, found)


@kernel
def _behind_backslash(
    text: Array, at: Int, end: Int, port: Int, aside: Int, plan: Record, found: Record
) -> None:
    """Add the host behind the last @ where a backslash is no slash, as RFC 3986 reads it."""
    last, stop = at, at
    limit = min(end, at + _CARRIED_MAX)
    while stop < limit and kind_at(text, stop) & (SPACE | QUOTE) == 0:
        byte = load1(text, stop)
        if byte == 47 or byte == 63 or byte == 35:
            break
        last = stop if byte == 64 else last
        stop += 1
    if last > at:
        _host_and_port(text, last + 1, stop, port, aside, plan, found)


@kernel
def _host_and_port(
    text: Array, at: Int, end: Int, port: Int, aside: Int, plan: Record, found: Record
) -> None:
    """Add the host of `host:port`; nothing when there is no name in it."""
    stop = at
    if at < end and load1(text, at) == 91:
        while stop < end and load1(text, stop) != 93:
            stop += 1
        stop = min(stop + 1, end)
    else:
        while stop < end and load1(text, stop) != 58:
            stop += 1
    if end - stop >= 2 and load1(text, stop) == 58:
        port = read_port(text, stop + 1, end, port)
    while stop > at and kind_at(text, stop - 1) & _HOST_TEXT == 0 and load1(text, stop - 1) != 93:
        stop -= 1
    stop = end_of_name(text, at, stop)
    if span_of(text, at, stop, DOT) == stop:
        return
    host = room(HOST_BYTES)
    length, what, high, low = normal_host(text, at, stop, host)
    add_host(host, length, what, high, low, port, aside, plan, found)


@kernel
def read_port(text: Array, at: Int, end: Int, otherwise: Int) -> Int:
    """The port in [at, end); `otherwise` when there is none."""
    port = np.int64(0)
    for i in range(at, min(end, at + 6)):
        if kind_at(text, i) & DIGIT == 0:
            break
        port = port * 10 + load1(text, i) - 48
    return port if 0 < port < 65536 else otherwise


@kernel
def end_of_name(text: Array, at: Int, end: Int) -> Int:
    """Where a name ends when other script follows its last label without a space."""
    last = end
    while last > at and load1(text, last - 1) != 46:
        last -= 1
    letters = span_of(text, last, end, LETTER)
    if letters - last >= 2 and letters < end and kind_at(text, letters) & HIGH != 0:
        return letters
    return end


@kernel
def _strict(text: Array, at: Int, end: Int, port: Int, plan: Record, found: Record) -> None:
    """Add the host of a value that is nothing but a URL, read as a browser reads it."""
    kept = np.empty(URL_MAX, np.uint8)
    size, host_at = 0, 0
    while at < end and kind_at(text, at) & HARD == 0:
        byte = load1(text, at)
        if byte != 9 and byte != 10 and byte != 13:
            if size == URL_MAX:
                return
            kept[size] = byte
            size += 1
            if byte == 64:
                host_at = size
        at += 1
    if size > 0 and kept[size - 1] == 58 and at < end:
        return  # The scheme of the next URL in a list of them.
    while size > host_at and kept[size - 1] <= 32:
        size -= 1
    if span_of(kept, host_at, size, SOFT) > host_at or host_at == size:
        return
    stop = host_at
    while stop < size and kind_at(kept, stop) & SOFT == 0:
        stop += 1
    if stop == size:
        _host_and_port(kept, host_at, size, port, np.int64(0), plan, found)


@kernel
def bare_www(
    text: Array, low: Int, dot: Int, end: Int, mention: Int, plan: Record, found: Record
) -> Int:
    """Add the host whose `www` ends at `dot`; returns the position behind it, or 0."""
    if dot - low < 3 or word_at(text, dot - 3, dot) != _WWW:
        return np.int64(0)
    if dot - low > 3 and kind_at(text, dot - 4) & _HOST_TEXT != 0:
        return np.int64(0)
    stop = span_of(text, dot, end, _HOST_TEXT)
    while kind_at(text, stop - 1) & (ALNUM | HIGH) == 0 and stop > dot:
        stop -= 1
    if stop <= dot or (stop < end and load1(text, stop) == 64):
        return np.int64(0)  # Of a mail address, it is the name.
    behind = stop
    if end - stop > 1 and load1(text, stop) == 58:
        behind = span_of(text, stop + 1, end, DIGIT)
    aside = np.int64(0) if dot - 3 == low else mention
    if aside & LINK != 0 and carries(text, dot, end):
        aside ^= LINK
    _host_and_port(text, dot - 3, behind, np.int64(0), aside, plan, found)
    return behind


@kernel
def add_server(text: Array, at: Int, end: Int, plan: Record, found: Record) -> None:
    """Add the host of a share, \\\\server\\share: opening it is a connection."""
    if load1(text, at) != 92:
        return
    stop = span_of(text, at + 2, end, _HOST_TEXT)
    _host_and_port(text, at + 2, stop, SMB_PORT, np.int64(0), plan, found)
