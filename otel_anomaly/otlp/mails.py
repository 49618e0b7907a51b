"""Mail addresses in a string, and bare host names: what stands around an @, or is a whole value.

An address is a destination. It is personal data as well, unless the value holds nothing but
addresses (`Ann <ann@x.org>, bob@y.net`): those say where the call leads.

`user@host:path`, `user@host/path` and `user@10.0.0.7` are no addresses: scp, git and rsync write
hosts so. And `api.example.com@evil.net` is both, for that is how a URL without its scheme hides
its host.

A bare name (`api.example.com:443/v1`) counts only as the whole value, for in running text every
second word with a dot would, and only with an ending that is a top-level domain, unless a port or
a path follows; a file name (`notes.txt`) is none. Those in command lines: `commands`.
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
    HIGH,
    LETTER,
    LOCAL,
    SOFT,
    SPACE,
    UNDERSCORE,
    holds,
    kind_at,
    label_end,
    lower_at,
    packed,
    span_of,
    word_at,
    word_set,
)
from otel_anomaly.otlp.found import (
    ASIDE,
    MAIL,
    MAILS,
    OUTSIDE,
    PUBLIC,
    add_destination,
    range_hash,
    set_mark,
)
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.otlp.host_names import ADDRESS4, BROKEN, HOST_BYTES, normal_host, normal_ipv6
from otel_anomaly.otlp.hosts import allowed, is_public
from otel_anomaly.otlp.top_levels import is_top_level
from otel_anomaly.otlp.urls import URL_MAX, add_host, end_of_name, read_port

_LOCAL_MAX: Final = 64
_DOMAIN_MAX: Final = 253
_DISPLAY_MAX: Final = 128
_ADDRESS_MAX: Final = 48
_MAILTO: Final = packed("mailto")

_DOMAIN: Final = ALNUM | DASH | DOT | HIGH
_NAME: Final = ALNUM | DOT | UNDERSCORE | DASH | LOCAL | HIGH
_SSH_PORT: Final = np.int64(22)
_NO_PORT: Final = np.int64(0)

_FILE_ENDINGS: Final = """
7z aac aiff apk arrow asm aux avi avif avro bak bash bat bib bin bmp bz2 cc cert cfg cjs class cls
cmake cmd conf config cpp crt cs csproj css csv cts cu cuh dart data dat db deb der diff dll dmg doc
docx dot drawio dylib ejs el elm env eot epub erl err ex exe exs fish flac fs gem gif go gpg gql
gradle graphql groovy gz hbs hcl hpp hs htm html ico ics ini ino ipynb iso jar java jl jpeg jpg js
json json5 jsonl jsx key kt kts lean less lib liquid lock log lua lz lz4 make map md mdx mjs mk ml
mli mm mov mp3 mp4 mpg mts ndjson nim nix npy npz o1 obj odp ods odt ogg old onnx orc orig otf out
parquet patch pcap pdf pem pfx php pickle pid pkl plist png pom ppt pptx prisma proto ps1 psd pt pth
pub py pyc pyi pyx rar rb rej rels reg rpm rs rst rtf sarif sass scala scss sed service sh sln so
sock sol sql sqlite sqlite3 srt ssml svelte svg swift swp sys tar tbz tcl tex tf tfstate tfvars tgz
thrift tiff tmp toml ts tsv tsx ttf txt vb vcf vim vue wasm wav webm webp wat whl woff woff2 wsdl
xcf xhtml xls xlsx xml xsd xsl xslt xz yaml yml zig zip zsh zst
"""
FILES: Final = word_set(_FILE_ENDINGS.split())
"""Endings of files; some of them are top-level domains as well."""
_ENDINGS: Final = "com org net io ai dev app edu gov cloud"
_WELL_KNOWN: Final = word_set(_ENDINGS.split())
"""Endings by which the name of a mail address looks like a host itself."""


@inlined
def may_be_mail(text: Array, low: Int, at: Int, end: Int) -> bool:
    """Whether what stands on both sides of an @ can belong to an address.

    Behind it a label and a full stop, or a bracket.
    """
    if at == low or at + 1 >= end or kind_at(text, at - 1) & _NAME == 0:
        return False
    if load1(text, at + 1) == 91:
        return True
    return kind_at(text, at + 1) & (ALNUM | HIGH) != 0 and begins_name(text, at + 1, end)


@inlined
def begins_name(text: Array, at: Int, end: Int) -> bool:
    """Whether a label and a full stop stand here."""
    at = label_end(text, at, end)
    return at < end and load1(text, at) == 46


@inlined
def may_be_host(text: Array, at: Int, end: Int) -> bool:
    """Whether a value begins with what can be the first label of a host."""
    at = label_end(text, at, end)
    return at < end and (load1(text, at) == 46 or load1(text, at) == 58 or load1(text, at) == 91)


@kernel
def mail(
    text: Array, low: Int, at: Int, end: Int, aside: Int, plan: Record, found: Record
) -> tuple[Int, Int]:
    """The address around the @ at `at`: adds where it leads. `aside`: ASIDE, DATUM or 0.

    Returns (the position behind it, 1 when it is an address of mail), or (`at`, 0): none.
    """
    begin = at
    while begin > low and at - begin < _LOCAL_MAX and kind_at(text, begin - 1) & _NAME != 0:
        begin -= 1
    while begin < at and kind_at(text, begin) & (ALNUM | HIGH | UNDERSCORE) == 0:
        begin += 1
    stop = _end_of_domain(text, at + 1, end)
    if begin == at or stop < 0:
        return at, np.int64(0)
    host = room(HOST_BYTES)
    length, what, high, low_half = normal_host(text, at + 1, stop, host)
    if what == ADDRESS4 or _is_remote_path(text, stop, end):
        add_host(host, length, what, high, low_half, _SSH_PORT, aside & ASIDE, plan, found)
        return stop, np.int64(0)
    if _ends_well_known(text, begin, at):
        add_host(host, length, what, high, low_half, _NO_PORT, aside & ASIDE, plan, found)
    seed = plan["seed"]
    kinds = MAIL | aside
    if is_public(host, length, what, high, low_half):
        kinds |= PUBLIC
    if not allowed(plan["inside"], host, length, what, high, low_half, _NO_PORT, seed):
        kinds |= OUTSIDE
    name = room(_LOCAL_MAX)
    for i in range(begin, at):
        name[i - begin] = lower_at(text, i)
    key = hash_two(
        range_hash(name, np.int64(0), at - begin, seed),
        range_hash(host, np.int64(0), length, seed),
        seed,
    )
    add_destination(found, hash_two(np.int64(MAIL), key, seed), kinds)
    set_mark(found, begin, stop, MAILS)
    return stop, np.int64(1)


@kernel
def _end_of_domain(text: Array, at: Int, end: Int) -> Int:
    """The position behind the domain of an address, or -1 when there is none."""
    limit = min(end, at + _DOMAIN_MAX)
    if at < end and load1(text, at) == 91:
        stop = at
        while stop < limit and load1(text, stop) != 93 and kind_at(text, stop) & SPACE == 0:
            stop += 1
        is_address = stop < limit and load1(text, stop) == 93 and stop - at > 3
        return stop + 1 if is_address else -1
    stop = span_of(text, at, limit, _DOMAIN)
    while stop > at and kind_at(text, stop - 1) & (ALNUM | HIGH) == 0:
        stop -= 1
    stop = end_of_name(text, at, stop)
    last = stop
    while last > at and load1(text, last - 1) != 46:
        last -= 1
    if last - at < 2 or kind_at(text, at) & (ALNUM | HIGH) == 0:
        return -1
    if _is_ending(text, last, stop):
        return -1 if _is_scale(text, at, last) else stop
    return stop if is_quad(text, at, stop) else -1


@kernel
def is_quad(text: Array, at: Int, end: Int) -> bool:
    """Whether a name is four numbers: an IPv4 address, for none is a version of that many."""
    dots = 0
    for i in range(at, end):
        dots += 1 if load1(text, i) == 46 else 0
    return dots == 3 and span_of(text, at, end, DIGIT | DOT) == end


@kernel
def _is_ending(text: Array, at: Int, end: Int) -> bool:
    """Whether a label has the shape of a top-level domain."""
    letters = span_of(text, at, end, LETTER | HIGH)
    if letters == end:
        return end - at >= 2
    return end - at > 4 and load1(text, at + 2) == 45 and load1(text, at + 3) == 45


@kernel
def _is_scale(text: Array, at: Int, end: Int) -> bool:
    """Whether digits and an x stand before the dot: logo@2x.png is a picture."""
    digits = span_of(text, at, end, DIGIT)
    return digits > at and end - digits == 2 and load1(text, digits) == 120


@kernel
def _is_remote_path(text: Array, at: Int, end: Int) -> bool:
    """Whether :path or /path follows a domain."""
    if end - at < 2:
        return False
    byte = load1(text, at)
    return byte == 47 or (byte == 58 and kind_at(text, at + 1) & SOFT == 0)


@kernel
def _ends_well_known(text: Array, at: Int, end: Int) -> bool:
    """Whether the last label of a mail name is a well-known top-level domain."""
    last = end
    while last > at and load1(text, last - 1) != 46:
        last -= 1
    return last > at and end - last <= 5 and holds(_WELL_KNOWN, word_at(text, last, end))


@kernel
def only_addresses(text: Array, at: Int, end: Int) -> bool:
    """Whether a value is a list of mail addresses, each with a display name or not."""
    while True:
        while at < end and (kind_at(text, at) & SPACE != 0 or _parts_addresses(text, at)):
            at += 1
        if at == end:
            return True
        at = _one_address(text, at, end)
        if at < 0:
            return False


@kernel
def _parts_addresses(text: Array, at: Int) -> bool:
    """Whether a comma or a semicolon stands here."""
    byte = load1(text, at)
    return byte == 44 or byte == 59


@kernel
def _one_address(text: Array, at: Int, end: Int) -> Int:
    """The position behind `a@b.c`, `<a@b.c>` or `Name <a@b.c>`, or -1."""
    limit = min(end, at + _DISPLAY_MAX)
    mark = at
    if end - at > 7 and load1(text, at + 6) == 58 and word_at(text, at, at + 6) == _MAILTO:
        mark = at + 7
    start = mark
    while mark < limit and load1(text, mark) != 64 and not _parts_addresses(text, mark):
        if load1(text, mark) == 60:
            start = mark + 1
        elif load1(text, mark) < 32:
            return -1
        mark += 1
    if mark == limit or load1(text, mark) != 64 or mark == start:
        return -1
    if span_of(text, start, mark, _NAME) != mark:
        return -1
    stop = _end_of_domain(text, mark + 1, end)
    if stop < 0:
        return -1
    if start > 0 and load1(text, start - 1) == 60:
        if stop == end or load1(text, stop) != 62:
            return -1
        stop += 1
    if stop < end and kind_at(text, stop) & SPACE == 0 and not _parts_addresses(text, stop):
        return -1
    return stop


@kernel
def bare_host(text: Array, at: Int, end: Int, plan: Record, found: Record) -> None:
    """Add the host that a value, white space cut off, is: `host`, `host:port`, `host/path`."""
    if end - at > URL_MAX or _bare_ipv6(text, at, end, plan, found):
        return
    stop = span_of(text, at, min(end, at + _DOMAIN_MAX + 1), _DOMAIN)
    follows = load1(text, stop) if stop < end else np.int64(0)
    if not _is_bare_name(text, at, stop, follows):
        return
    port, behind = _NO_PORT, stop
    if follows == 58:
        port = read_port(text, stop + 1, end, _NO_PORT)
        behind = span_of(text, stop + 1, end, DIGIT)
        if port == 0 or (behind < end and not _starts_path(load1(text, behind))):
            return
    for i in range(behind, end):
        if kind_at(text, i) & SPACE != 0:
            return
    host = room(HOST_BYTES)
    length, what, high, low = normal_host(text, at, stop, host)
    if what == BROKEN and kind_at(text, stop - 1) & DIGIT != 0:
        return  # Four numbers that are no address: a version, or a number of somebody.
    add_host(host, length, what, high, low, port, np.int64(0), plan, found)


@inlined
def _starts_path(byte: Int) -> bool:
    """Whether a byte ends the host part of a URL."""
    return byte == 47 or byte == 63 or byte == 35


@kernel
def _bare_ipv6(text: Array, at: Int, end: Int, plan: Record, found: Record) -> bool:
    """Add the host when the value is an IPv6 address, with brackets and port or without."""
    bracket = 1 if load1(text, at) == 91 else 0
    stop, colons, digits = at + bracket, 0, 0
    limit = min(end, at + _ADDRESS_MAX)
    while stop < limit:
        byte, kind = load1(text, stop), kind_at(text, stop)
        if byte == 58:
            colons += 1
        elif kind & DIGIT != 0:
            digits += 1
        elif byte | 32 < 97 or byte | 32 > 102:
            break
        stop += 1
    if colons < 2 or digits == 0:
        return False
    port = _NO_PORT
    if bracket == 1:
        if stop == end or load1(text, stop) != 93:
            return False
        if end - stop > 2 and load1(text, stop + 1) == 58:
            port = read_port(text, stop + 2, end, _NO_PORT)
    elif stop < end:
        return False
    host = room(HOST_BYTES)
    length, what, high, low = normal_ipv6(text, at + bracket, stop, host)
    if what != BROKEN:
        add_host(host, length, what, high, low, port, np.int64(0), plan, found)
    return what != BROKEN


@kernel
def _is_bare_name(text: Array, at: Int, end: Int, follows: Int) -> bool:
    """Whether a value, or what is before a port or path, is a host by its look."""
    if follows != 0 and follows != 58 and not _starts_path(follows):
        return False
    if end > at and load1(text, end - 1) == 46:
        end -= 1
    last = at
    for i in range(at, end):
        if load1(text, i) == 46:
            if i == at or load1(text, i - 1) == 46:
                return False
            last = i + 1
    if last == at or kind_at(text, at) & (ALNUM | HIGH) == 0:
        return False
    if kind_at(text, end - 1) & DIGIT != 0:
        return is_quad(text, at, end)
    if follows == 47:
        return _is_ending(text, last, end)
    if holds(FILES, word_at(text, last, end)):
        return False
    return _is_ending(text, last, end) if follows != 0 else is_top_level(text, last, end)
