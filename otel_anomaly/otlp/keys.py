"""Keys that can be told by their printed form: a prefix of the issuer, and what follows it.

`_FORMS` is data: a prefix, the classes of the bytes behind it, and how many there must be. A form
is looked for where a word begins inside a long run of key-like bytes, so running text costs
nothing. What Azure calls AccountKey and SharedAccessKey is found by these names (`opaque`). Forms
without a prefix of letters (JSON web tokens, private keys, client secrets and shared access
signatures of Azure, Telegram bots) have a few lines of their own. Test keys count like live ones.

Sources: the issuers' documentation, as collected in the rules of gitleaks (MIT) and in GitHub's
list of secret scanning patterns; RFC 7468 (private keys), RFC 7519 (JSON web tokens).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1, load8, load_word
from otel_anomaly.otlp.characters import (
    ALNUM,
    BASE64,
    DIGIT,
    DOT,
    HEX,
    KINDS,
    LOWER,
    RUN,
    SPACE,
    UNDERSCORE,
    UPPER,
    URL_SAFE,
    WORD,
    alnum_end,
    kind_at,
    span_of,
)
from otel_anomaly.otlp.found import add_secret
from otel_anomaly.otlp.hashing import load_rest


class _Form(NamedTuple):
    """A prefix, and how many bytes of which classes follow it."""

    prefix: str
    kinds: int
    least: int
    most: int = 1 << 30
    """Bounded only where the classes cannot hold a second prefix: so time stays linear."""


_FORMS: Final = (
    # Clouds.
    _Form("AKIA", UPPER | DIGIT, 16, 16),
    _Form("ASIA", UPPER | DIGIT, 16, 16),
    _Form("ABIA", UPPER | DIGIT, 16, 16),
    _Form("ACCA", UPPER | DIGIT, 16, 16),
    _Form("AIza", URL_SAFE, 35),
    _Form("ya29.", URL_SAFE | DOT, 20),
    _Form("GOCSPX-", URL_SAFE, 28),
    _Form("LTAI", ALNUM, 12, 26),
    _Form("AKID", ALNUM, 32, 36),
    _Form("dop_v1_", HEX, 64, 64),
    _Form("doo_v1_", HEX, 64, 64),
    _Form("dor_v1_", HEX, 64, 64),
    _Form("dapi", HEX, 32, 32),
    _Form("HRKU-", URL_SAFE, 36),
    _Form("sbp_", HEX, 40, 40),
    _Form("sb_secret_", URL_SAFE, 20),
    _Form("nfp_", ALNUM, 36, 40),
    _Form("pscale_tkn_", URL_SAFE | DOT, 32),
    _Form("pscale_pw_", URL_SAFE | DOT, 32),
    _Form("dt0c01.", ALNUM | DOT, 80),
    # Git hosts and package registries.
    _Form("ghp_", ALNUM, 36, 255),
    _Form("gho_", ALNUM, 36, 255),
    _Form("ghu_", ALNUM, 36, 255),
    _Form("ghs_", ALNUM, 36, 255),
    _Form("ghr_", ALNUM, 36, 255),
    _Form("github_pat_", WORD, 36),
    _Form("glpat-", URL_SAFE | DOT, 20),
    _Form("gldt-", URL_SAFE | DOT, 20),
    _Form("glrt-", URL_SAFE | DOT, 20),
    _Form("glcbt-", URL_SAFE | DOT, 20),
    _Form("glptt-", HEX, 40, 40),
    _Form("glsoat-", URL_SAFE, 20),
    _Form("glimt-", URL_SAFE, 20),
    _Form("glft-", URL_SAFE, 20),
    _Form("glagent-", URL_SAFE, 40),
    _Form("gloas-", HEX, 64, 64),
    _Form("ATBB", ALNUM, 24, 40),
    _Form("ATATT3", URL_SAFE | BASE64, 50),
    _Form("ATCTT3", URL_SAFE | BASE64, 50),
    _Form("npm_", ALNUM, 36, 36),
    _Form("pypi-", URL_SAFE, 50),
    _Form("dckr_pat_", URL_SAFE, 20),
    _Form("rubygems_", HEX, 48, 48),
    _Form("oy2", LOWER | DIGIT, 43, 43),
    # Payment and shops.
    _Form("sk_live_", ALNUM, 16, 255),
    _Form("rk_live_", ALNUM, 16, 255),
    _Form("sk_test_", ALNUM, 16, 255),
    _Form("rk_test_", ALNUM, 16, 255),
    *(_Form(f"AQE{letter}hm", ALNUM | BASE64, 80) for letter in "lmnopqrstuvwxyz"),
    _Form("whsec_", ALNUM | BASE64, 24),
    _Form("sq0atp-", URL_SAFE, 22),
    _Form("sq0csp-", URL_SAFE, 43),
    _Form("EAAA", URL_SAFE, 60, 60),
    _Form("access_token$pro", RUN, 55),
    _Form("access_token$san", RUN, 52),
    _Form("shpat_", HEX, 32, 32),
    _Form("shpss_", HEX, 32, 32),
    _Form("shpca_", HEX, 32, 32),
    _Form("shppa_", HEX, 32, 32),
    # Providers of models.
    _Form("sk-proj-", URL_SAFE, 20),
    _Form("sk-svcacct-", URL_SAFE, 20),
    _Form("sk-admin-", URL_SAFE, 20),
    _Form("sk-ant-", URL_SAFE, 20),
    _Form("sk-or-v1-", HEX, 64, 64),
    _Form("sk-lf-", URL_SAFE, 20),
    _Form("sk-", ALNUM, 20, 64),
    _Form("hf_", ALNUM, 30, 64),
    _Form("gsk_", ALNUM, 40, 64),
    _Form("pplx-", ALNUM, 40, 64),
    _Form("xai-", ALNUM, 60, 100),
    _Form("AQ.Ab", URL_SAFE, 40),
    _Form("api_org_", ALNUM, 30, 64),
    _Form("nvapi-", URL_SAFE, 60),
    _Form("csk-", ALNUM, 40, 64),
    _Form("tgp_v1_", URL_SAFE, 40),
    _Form("jina_", ALNUM, 40, 100),
    _Form("sk_", HEX, 48, 48),
    _Form("r8_", ALNUM, 37, 37),
    _Form("tvly-", URL_SAFE, 20),
    _Form("lsv2_", WORD, 40),
    _Form("pcsk_", WORD, 40),
    # Messages and mail.
    _Form("xoxb-", URL_SAFE, 20),
    _Form("xoxp-", URL_SAFE, 20),
    _Form("xoxa-", URL_SAFE, 20),
    _Form("xoxr-", URL_SAFE, 20),
    _Form("xoxs-", URL_SAFE, 20),
    _Form("xoxe-", URL_SAFE, 20),
    _Form("xoxe.xox", URL_SAFE | DOT, 20),
    _Form("xapp-", URL_SAFE, 20),
    _Form("SG.", URL_SAFE | DOT, 60),
    _Form("SK", HEX, 32, 32),
    _Form("key-", HEX, 32, 32),
    # Operations.
    _Form("hvs.", URL_SAFE, 24),
    _Form("hvb.", URL_SAFE, 24),
    _Form("glsa_", WORD, 32),
    _Form("glc_", ALNUM | BASE64, 32),
    _Form("NRAK-", UPPER | DIGIT, 27, 27),
    _Form("sntrys_", ALNUM | BASE64 | UNDERSCORE, 40),
    _Form("sntryu_", HEX, 64, 64),
    _Form("dp.pt.", ALNUM, 40, 44),
    _Form("PMAK-", URL_SAFE, 50),
    _Form("lin_api_", ALNUM, 40, 40),
    _Form("ntn_", ALNUM, 40, 50),
    _Form("secret_", ALNUM, 43, 43),
    _Form("figd_", URL_SAFE, 40),
    _Form("AGE-SECRET-KEY-1", UPPER | DIGIT, 58, 58),
)

KEY_LEAST: Final = 16
"""No form is shorter: in a shorter run there is none."""
_PREFIX_MAX: Final = 16


def _two(prefix: str) -> int:
    """The first two bytes of a prefix as a number, five bits each."""
    return (ord(prefix[0]) & 31) << 5 | ord(prefix[1]) & 31


_ORDERED: Final = sorted(_FORMS, key=lambda form: (_two(form.prefix), -len(form.prefix)))
assert all(len(form.prefix) <= _PREFIX_MAX for form in _FORMS)
assert all(len(form.prefix) + form.least >= KEY_LEAST for form in _FORMS)


def _words(text: bytes) -> list[int]:
    """Sixteen bytes as two numbers."""
    padded = text.ljust(_PREFIX_MAX, b"\0")
    return [int.from_bytes(padded[at : at + 8], "little") for at in (0, 8)]


# Columns of the table, forms that begin alike together, longer prefixes first.
_PREFIXES: Final = np.array([_words(form.prefix.encode()) for form in _ORDERED], np.int64)
_MASKS: Final = np.array([_words(b"\x7f" * len(form.prefix)) for form in _ORDERED], np.int64)
_LENGTHS: Final = np.array([len(form.prefix) for form in _ORDERED], np.int64)
_KINDS: Final = np.array([form.kinds for form in _ORDERED], np.int64)
_LEAST: Final = np.array([form.least for form in _ORDERED], np.int64)
_MOST: Final = np.array([form.most for form in _ORDERED], np.int64)
_FIRST: Final = np.array(
    [sum(_two(form.prefix) < two for form in _ORDERED) for two in range((1 << 10) + 1)], np.int64
)
"""Two bytes, five bits each -> where the forms that begin with them begin in the table."""
_SECONDS: Final = np.zeros(256, np.uint32)
"""Byte -> the last five bits of what follows it in a form: most words end here."""
for _prefix in (*(form.prefix for form in _FORMS), "sig="):
    _SECONDS[ord(_prefix[0])] |= np.uint32(1 << (ord(_prefix[1]) & 31))


@kernel
def find_keys(text: Array, at: Int, end: Int, seed: Int, found: Record, before: Int) -> None:
    """Count the keys in a run of key-like bytes. `before`: secrets before this value."""
    begin, jwt_from = at, at
    while True:
        start, stop, at, jwt_from = next_key(text, begin, at, end, jwt_from)
        if stop < 0:
            return
        add_secret(found, text, start, stop, seed, before)


@inlined
def next_key(
    text: Array, begin: Int, at: Int, end: Int, jwt_from: Int
) -> tuple[Int, Int, Int, Int]:
    """The next key from `at` on in a run that starts at `begin`, and how to go on behind it.

    (where it begins, ends; then `at` and `jwt_from` for the next one). It ends at -1: no more.
    """
    while end - at >= KEY_LEAST:
        if kind_at(text, at) & ALNUM == 0:
            stop = _azure(text, begin, at, end) if load1(text, at) == 126 else np.int64(-1)
            at += 1
            if stop > 0:
                return at - 6, stop, at, jwt_from
            continue
        stop = np.int64(-1)
        if load1(_SECONDS, load1(text, at)) >> (load1(text, at + 1) & 31) & 1 != 0:
            stop = _formed(text, at, end)
            if stop < 0 and load_rest(text, at, 4) == _SIG:
                stop = _shared_signature(text, at + 4, end)
            if stop < 0 and load8(text, at) == _SERVICES:
                stop = _slack_hook(text, begin, at, end)
        if stop < 0 and at >= jwt_from and load_rest(text, at, 3) == _EYJ:
            stop, jwt_from = _web_token(text, at, end)
        if stop > 0:
            return at, stop, stop, jwt_from
        at = alnum_end(text, at, end)
    return at, np.int64(-1), at, jwt_from


@kernel
def _formed(text: Array, at: Int, end: Int) -> Int:
    """The position behind the key of a known form at `at`, or -1. Needs 16 bytes."""
    two = (load1(text, at) & 31) << 5 | (load1(text, at + 1) & 31)
    row, last = load_word(_FIRST, two), load_word(_FIRST, two + 1)
    head, tail = load8(text, at), load8(text, at + 8)
    while row < last:
        if (head ^ _PREFIXES[row, 0]) & _MASKS[row, 0] == 0 and (
            (tail ^ _PREFIXES[row, 1]) & _MASKS[row, 1] == 0
        ):
            start = at + _LENGTHS[row]
            stop = span_of(text, start, min(end, start + _MOST[row] + 1), _KINDS[row])
            if _LEAST[row] <= stop - start <= _MOST[row]:
                return stop
        row += 1
    return np.int64(-1)


_SIG: Final = int.from_bytes(b"sig=", "little")
_SERVICES: Final = int.from_bytes(b"services", "little")
_LACK_COM: Final = int.from_bytes(b"lack.com", "little")
_EYJ: Final = int.from_bytes(b"eyJ", "little")
_BEGIN: Final = (int.from_bytes(b"-----BEG", "little"), int.from_bytes(b"IN ", "little"))
_VATE_KEY: Final = int.from_bytes(b"VATE KEY", "little")
_EY_BLOCK: Final = int.from_bytes(b"EY BLOCK", "little")
_HEADER_MAX: Final = 48
_KEY_SAMPLE: Final = 256
"""Bytes of a private key by which it is told from others."""
_PART_LEAST: Final = 10
_SIGNATURE_LEAST: Final = 20


@kernel
def _shared_signature(text: Array, at: Int, end: Int) -> Int:
    """The position behind the signature of an Azure SAS, or -1: 32 bytes in base 64, for URLs.

    Sign bytes may be escaped as %2B, %2F and %3D. It ends with one `=`: other signatures do not.
    """
    signs = 0
    while at < end and signs < 44:
        byte = load1(text, at)
        if byte == 37 and end - at >= 3:
            byte, at = _escaped(text, at), at + 2
        is_last = byte == 61
        if is_last != (signs == 43):
            return np.int64(-1)
        if not is_last and load1(KINDS, byte) & ALNUM == 0 and byte != 43 and byte != 47:
            return np.int64(-1)
        signs += 1
        at += 1
    ends = at == end or kind_at(text, at) & ALNUM == 0
    return at if signs == 44 and ends else np.int64(-1)


@kernel
def _slack_hook(text: Array, low: Int, at: Int, end: Int) -> Int:
    """The position behind the `services/T../B../..` of a web hook of Slack at `at`, or -1."""
    if at - low < 9 or load8(text, at - 9) != _LACK_COM:
        return np.int64(-1)
    stop = at + 8
    for letter in range(2):
        if end - stop < 3 or load1(text, stop) != 47 or load1(text, stop + 1) != 84 - 18 * letter:
            return np.int64(-1)
        stop = span_of(text, stop + 1, end, UPPER | DIGIT)
    if stop == end or load1(text, stop) != 47:
        return np.int64(-1)
    last = span_of(text, stop + 1, end, ALNUM)
    return last if last - stop > 16 else np.int64(-1)


@kernel
def _escaped(text: Array, at: Int) -> Int:
    """The byte that %2B, %2F or %3D stands for, 0 for any other. Needs three bytes."""
    high, low = load1(text, at + 1), load1(text, at + 2) | 32
    if high == 50 and low == 98:
        return np.int64(43)
    if high == 50 and low == 102:
        return np.int64(47)
    return np.int64(61) if high == 51 and low == 100 else np.int64(0)


@kernel
def _web_token(text: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """The position behind the JSON web token at `at`, or -1, and where its first part ends."""
    first = span_of(text, at, end, URL_SAFE)
    if first - at < _PART_LEAST or end - first < 4 or load1(text, first) != 46:
        return np.int64(-1), first
    if load_rest(text, first + 1, 3) != _EYJ:
        return np.int64(-1), first
    second = span_of(text, first + 1, end, URL_SAFE)
    if second - first <= _PART_LEAST or second == end or load1(text, second) != 46:
        return np.int64(-1), first
    third = span_of(text, second + 1, end, URL_SAFE)
    return third if third - second > _SIGNATURE_LEAST else np.int64(-1), first


@kernel
def _azure(text: Array, low: Int, at: Int, end: Int) -> Int:
    """The position behind an Azure client secret (abc8Q~ and 31 to 34 more), or -1."""
    if at - low < 5 or load1(text, at - 1) != 81 or kind_at(text, at - 2) & DIGIT == 0:
        return np.int64(-1)
    for i in range(at - 5, at - 2):
        if kind_at(text, i) & (WORD | DOT) == 0 and load1(text, i) != 126:
            return np.int64(-1)
    stop = at + 1
    limit = min(end, at + 36)
    while stop < limit and (
        kind_at(text, stop) & (URL_SAFE | DOT) != 0 or load1(text, stop) == 126
    ):
        stop += 1
    return stop if 31 <= stop - at - 1 <= 34 else np.int64(-1)


@kernel
def find_private_key(text: Array, at: Int, end: Int, seed: Int, found: Record, before: Int) -> Int:
    """Count the private key whose first line begins at `at`; returns the position behind it.

    `at` itself when there is none.
    """
    if end - at < 11 or load8(text, at) != _BEGIN[0] or load_rest(text, at + 8, 3) != _BEGIN[1]:
        return at
    stop = span_of(text, at + 11, min(end, at + _HEADER_MAX), UPPER | DIGIT | SPACE)
    if end - stop < 5 or load1(text, stop) != 45 or stop - at < 22:
        return at
    last = load8(text, stop - 8)
    if last != _VATE_KEY and last != _EY_BLOCK:
        return at
    start = stop + 5
    add_secret(found, text, start, min(end, start + _KEY_SAMPLE), seed, before)
    return start


@kernel
def find_bot_token(
    text: Array, low: Int, colon: Int, end: Int, seed: Int, found: Record, before: Int
) -> None:
    """Count the token of a Telegram bot around a colon: eight to ten digits, 35 more bytes."""
    begin = colon
    while begin > low and colon - begin <= 10 and kind_at(text, begin - 1) & WORD != 0:
        begin -= 1
    if not 8 <= colon - begin <= 10 or span_of(text, begin, colon, DIGIT) != colon:
        return
    stop = span_of(text, colon + 1, min(end, colon + 37), URL_SAFE)
    if stop - colon - 1 == 35:
        add_secret(found, text, begin, stop, seed, before)
