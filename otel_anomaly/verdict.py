"""Verdicts to attributes: the bytes that are appended to a judged span.

    anomaly.action   "warn"                          always
    anomaly.score    0.62                            always
    anomaly.mode     "learning" or "active"          always
    anomaly.types    ["rate"]                        when a detector reached warn
    anomaly.reason   "rate: 124 calls in 60 s, limit 100"
    anomaly.identity "agent=service.name (weak), session=trace (weak), rate=anon (weak)"
                                                     when not all of it is told by the span itself
    anomaly.signal.rate  0.62                        each detector's own score, not zero or all

Most calls are allowed with a score of 0: their attributes are one prepared piece, copied. All
texts are prepared once as pieces of one buffer; a clause holds the control characters 1 to 4
where the numbers go.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from otel_anomaly.detectors.finding import ACTIONS, WARN
from otel_anomaly.entities.identity import (
    FROM_ABOVE,
    FROM_NOBODY,
    FROM_SPAN,
    FROM_TRACE,
    FROM_WEAK,
    NAMES_OF_KINDS,
    OF_AGENT,
    OF_SESSION,
    OF_USER,
)
from otel_anomaly.kernels import Array, Int, Record, borrow, copy, inlined, kernel
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.dialects import AGENT, RANKS_MAX, SESSION, TENANT, USER, WHO
from otel_anomaly.otlp.splice import varint_size, write_varint
from otel_anomaly.scoring import CLAUSES, DETECTORS, PARTS_OF_RISK, RISK

MODES: Final = ("active", "learning")
_PLACES: Final = {"{observed}": "\x01", "{limit}": "\x02", "{window}": "\x03", "{usual}": "\x04"}
_COUNT: Final = len(DETECTORS)
_PARTS: Final = np.array([DETECTORS.index(name) for name in PARTS_OF_RISK])
_FIRST_CLAUSE: Final = np.concatenate([[0], np.cumsum([len(texts) for texts in CLAUSES])])
_SOURCES: Final = {
    FROM_NOBODY: "none",
    FROM_SPAN: "span",
    FROM_TRACE: "another span of the trace",
    FROM_WEAK: "a weak key",  # Its name is told instead.
    FROM_ABOVE: "the agent above",
}

WHO_IS_TOLD: Final = WHO[: USER + 1]

# Numbers of the pieces.
PLAIN = 0
ACTION = PLAIN + len(MODES)
MODE = ACTION + len(ACTIONS)
SCORE = MODE + len(MODES)
TYPES = SCORE + 1
REASON = TYPES + 1
IDENTITY = REASON + 1
SIGNAL = IDENTITY + 1
NAME = SIGNAL + _COUNT
CLAUSE = NAME + _COUNT
SOURCE = CLAUSE + int(_FIRST_CLAUSE[-1])
KIND = SOURCE + len(_SOURCES)
"""What stands in for a session that nobody tells, by kind of key."""
KEY = KIND + len(NAMES_OF_KINDS)
"""The configured keys of a tenant, an agent, a session and a user, by rank."""
IS = KEY + len(WHO_IS_TOLD) * RANKS_MAX
"""What stands before each of these."""
RATE_IS = IS + len(WHO_IS_TOLD)
IS_WEAK = RATE_IS + 1
PIECES = IS_WEAK + 1

TEXT_BYTES: Final = 1 << 15
LINE_BYTES: Final = 1 << 14
NUMBER_BYTES: Final = 24
CALL_BYTES: Final = 1024
LENGTHS_BYTES: Final = 32
"""Three lengths stand in front of an attribute, and each grows by less than ten bytes."""
KEY_BYTES_TOLD: Final = 96
IDENTITY_BYTES_MAX: Final = (len(WHO_IS_TOLD) + 1) * (KEY_BYTES_TOLD + 24)
CLAUSE_BYTES_MAX: Final = max(len(text) for texts in CLAUSES for text in texts) + 32
TEXTS = np.dtype(
    [
        ("all_signals", "i8"),
        ("full_bytes", "i8"),  # The most that a verdict takes,
        ("short_bytes", "i8"),  # and one without reason, or without anything to tell.
        ("ends", "i8", (PIECES + 1,)),  # Piece i is text[ends[i]:ends[i + 1]].
        ("text", "u1", (TEXT_BYTES,)),
    ],
    align=True,
)


def _chunk(tag: int, payload: bytes) -> bytes:
    """A length-delimited field; the lengths here are below 16384."""
    size = len(payload)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([tag]) + length + payload


def _key(name: str) -> bytes:
    return _chunk(0x0A, name.encode())


def _string(name: str, value: str) -> bytes:
    """A whole `Span.attributes` field with a string."""
    return _chunk(0x4A, _key(name) + _chunk(0x12, _chunk(0x0A, value.encode())))


def _double(name: str, value: float) -> bytes:
    """A whole `Span.attributes` field with a double; its last eight bytes are the value."""
    return _chunk(0x4A, _key(name) + _chunk(0x12, b"\x21" + struct.pack("<d", value)))


def _clause(text: str) -> bytes:
    for place, mark in _PLACES.items():
        text = text.replace(place, mark)
    return text.encode()


def _key_names(keys: Sequence[str]) -> list[bytes]:
    """The names of one role's keys by rank; what is no configured key stands on the span."""
    names = [key.encode()[:KEY_BYTES_TOLD].decode(errors="ignore").encode() for key in keys]
    return names + [b"span"] * (RANKS_MAX - len(names))


def make_texts(
    prefix: str, *, all_signals: bool, keys: Sequence[Sequence[str]] = ((), (), (), ())
) -> np.ndarray:
    """Prepare all pieces for attributes under `prefix`: TEXTS [1].

    `keys`: those of a tenant, an agent, a session and a user, each by rank.
    """
    score = _double(f"{prefix}.score", 0.0)
    actions = [_string(f"{prefix}.action", action) for action in ACTIONS]
    modes = [_string(f"{prefix}.mode", mode) for mode in MODES]
    signals = [_double(f"{prefix}.signal.{name}", 0.0) for name in DETECTORS]
    zeros = b"".join(signals) if all_signals else b""
    pieces = [
        *(actions[0] + score + mode + zeros for mode in modes),
        *actions,
        *modes,
        score[:-8],
        _key(f"{prefix}.types"),
        _key(f"{prefix}.reason"),
        _key(f"{prefix}.identity"),
        *(signal[:-8] for signal in signals),
        *(name.encode() for name in DETECTORS),
        *(_clause(clause) for clauses in CLAUSES for clause in clauses),
        *(_SOURCES[i].encode() for i in range(len(_SOURCES))),
        *((name or "none").encode() for name in NAMES_OF_KINDS),
        *(name for names in keys for name in _key_names(names)),
        *(f"{'' if name == WHO[AGENT] else ', '}{name}=".encode() for name in WHO_IS_TOLD),
        b", rate=",
        b" (weak)",
    ]
    assert len(pieces) == PIECES
    texts = np.zeros(1, TEXTS)
    texts["all_signals"] = all_signals
    texts["ends"][0] = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    joined = np.frombuffer(b"".join(pieces), np.uint8)
    texts["text"][0, : joined.size] = joined
    texts["full_bytes"] = annotation_bytes_max(texts)
    longest = max(map(len, ACTIONS)) - len(ACTIONS[0])
    texts["short_bytes"] = max(map(len, pieces[: len(MODES)])) + longest
    return texts


def annotation_bytes_max(texts: np.ndarray) -> int:
    """The most that is appended to one span."""
    pieces = int(texts["ends"][0, KIND])
    numbers = 2 * _COUNT * (len(_PLACES) * NUMBER_BYTES + 2 + 4 + 8) + 8
    framing = 64
    # The clauses of the parts of risk may be told twice.
    return pieces + len(_PARTS) * CLAUSE_BYTES_MAX + numbers + IDENTITY_BYTES_MAX + framing


def blob_bytes(texts: np.ndarray, calls: int) -> int:
    """Bytes that the attributes of so many calls take at most.

    A full verdict may take several times CALL_BYTES, but hardly every one of a request does. When
    a request's share is used up, the rest of its verdicts are told without reason and signals.
    """
    share = max(CALL_BYTES, int(texts["short_bytes"][0]))
    return int(texts["full_bytes"][0]) + calls * share if calls else 0


def room_for(texts: np.ndarray, calls: int) -> int:
    """The same with what the lengths in front of changed messages grow by."""
    return blob_bytes(texts, calls) + calls * LENGTHS_BYTES


@inlined
def _put(texts: Record, piece: Int, out: Array, at: Int) -> Int:
    """Copy a piece. Returns the position behind it."""
    start = texts["ends"][piece]
    count = texts["ends"][piece + 1] - start
    copy(out, at, texts["text"], start, count)
    return at + count


@kernel
def _put_double(
    texts: Record, piece: Int, value: float, scratch: Array, out: Array, at: Int
) -> Int:
    """A double attribute: the piece, then the value's eight bytes."""
    at = _put(texts, piece, out, at)
    scratch[0] = value
    copy(out, at, scratch.view(np.uint8), 0, 8)
    return at + 8


@kernel
def put_number(value: float, out: Array, at: Int) -> Int:
    """A number that is not negative, for people: whole, or with at most two decimals."""
    digits = np.empty(20, np.uint8)
    hundredths = np.int64(np.rint(min(value, 9e15) * 100.0))
    start = decimal(hundredths // 100, digits)
    copy(out, at, digits, start, 20 - start)
    at += 20 - start
    rest = hundredths % 100
    if rest != 0:
        out[at] = 46
        out[at + 1] = 48 + rest // 10
        at += 2
        if rest % 10 != 0:
            out[at] = 48 + rest % 10
            at += 1
    return at


@kernel
def _put_clause(texts: Record, finding: Record, out: Array, at: Int) -> Int:
    """What was observed, against which limit: the name, then the clause with its numbers."""
    detector, sign = finding["detector"], finding["sign"]
    at = _put(texts, NAME + detector, out, at)
    out[at], out[at + 1] = 58, 32
    at += 2
    piece = CLAUSE + _FIRST_CLAUSE[detector] + sign["variant"]
    for i in range(texts["ends"][piece], texts["ends"][piece + 1]):
        byte = texts["text"][i]
        if byte == 1:
            at = put_number(sign["observed"], out, at)
        elif byte == 2:
            at = put_number(sign["limit"], out, at)
        elif byte == 3:
            at = put_number(sign["window_s"], out, at)
        elif byte == 4:
            at = put_number(sign["usual"], out, at)
        else:
            out[at] = byte
            at += 1
    return at


@kernel
def _put_parts_of_risk(
    texts: Record, findings: Array, first: Int, count: Int, out: Array, at: Int
) -> Int:
    """What risk is made of, in brackets."""
    told = 0
    for i in range(first, first + count):
        for part in _PARTS:
            if findings[i]["detector"] == part:
                out[at], out[at + 1] = (44, 32) if told > 0 else (32, 40)
                at = _put_clause(texts, findings[i], out, at + 2)
                told += 1
    if told > 0:
        out[at] = 41
        at += 1
    return at


@kernel
def put_reason(
    prepared: Array, findings: Array, first: Int, count: Int, only: Int, line: Array
) -> Int:
    """The clauses of the findings of warn or more, joined by `; `. Returns the length.

    `only`: the number of the one finding to tell, whatever its action; -1: all.
    """
    texts = prepared[0]
    if only < 0:
        return _put_clauses(texts, findings, first, count, line)
    at = _put_clause(texts, findings[only], line, np.int64(0))
    if findings[only]["detector"] == RISK:
        at = _put_parts_of_risk(texts, findings, first, count, line, at)
    return at


@kernel
def _put_clauses(texts: Record, findings: Array, first: Int, count: Int, line: Array) -> Int:
    """`put_reason`, from a kernel."""
    at = np.int64(0)
    for i in range(first, first + count):
        if findings[i]["sign"]["action"] >= WARN:
            if at > 0:
                line[at], line[at + 1] = 59, 32
                at += 2
            at = _put_clause(texts, findings[i], line, at)
            if findings[i]["detector"] == RISK:
                at = _put_parts_of_risk(texts, findings, first, count, line, at)
    return at


@inlined
def _put_text(texts: Record, key: Int, line: Array, size: Int, out: Array, at: Int) -> Int:
    """A string attribute: the key's piece, and `size` bytes of `line`."""
    key_size = texts["ends"][key + 1] - texts["ends"][key]
    value = 1 + varint_size(size) + size
    out[at] = 0x4A
    at = write_varint(out, at + 1, key_size + 1 + varint_size(value) + value)
    at = _put(texts, key, out, at)
    out[at] = 0x12
    at = write_varint(out, at + 1, value)
    out[at] = 0x0A
    at = write_varint(out, at + 1, size)
    copy(out, at, line, 0, size)
    return at + size


@inlined
def is_told_by_span(person: Record) -> bool:
    """Whether all that the call is judged by is told by the span itself, by strong keys."""
    source, kind = person["source"], person["rate_kind"]
    return bool(
        source[AGENT] == FROM_SPAN
        and source[SESSION] == FROM_SPAN
        and (source[TENANT] == FROM_SPAN or source[TENANT] == FROM_NOBODY)
        and (kind == OF_SESSION or kind == OF_AGENT)
    )


@kernel
def _put_who(texts: Record, person: Record, who: Int, line: Array, at: Int) -> Int:
    """`agent=` and the key that told it, or whoever else did; whether that is weak."""
    source = person["source"][who]
    at = _put(texts, IS + who, line, at)
    if source == FROM_SPAN or source == FROM_WEAK:
        at = _put(texts, KEY + who * RANKS_MAX + person["order"][who] % RANKS_MAX, line, at)
    else:
        at = _put(texts, SOURCE + source, line, at)
    if source == FROM_WEAK or source == FROM_NOBODY:
        at = _put(texts, IS_WEAK, line, at)
    return at


@inlined
def _rate_is_weak(person: Record) -> bool:
    """Whether the calls that `rate` adds up may be of several, or of a part of one.

    What stands in for all who are not told is; of the others, what rests on a weak key.
    """
    kind, source = person["rate_kind"], person["source"]
    if kind == OF_SESSION:
        return bool(source[SESSION] == FROM_WEAK)
    if kind == OF_AGENT:
        return bool(source[AGENT] == FROM_WEAK)
    if kind == OF_USER:
        return bool(source[USER] == FROM_WEAK)
    return True


@kernel
def put_identity(texts: Record, person: Record, line: Array) -> Int:
    """Which keys a call was counted under, and whether they are weak. Returns the length."""
    at = _put_who(texts, person, np.int64(AGENT), line, np.int64(0))
    if person["session_kind"] == OF_SESSION:
        at = _put_who(texts, person, np.int64(SESSION), line, at)
    else:
        at = _put(texts, IS + SESSION, line, at)
        at = _put(texts, KIND + person["session_kind"], line, at)
        at = _put(texts, IS_WEAK, line, at)
    at = _put(texts, RATE_IS, line, at)
    at = _put(texts, KIND + person["rate_kind"], line, at)
    if _rate_is_weak(person):
        at = _put(texts, IS_WEAK, line, at)
    for who in (TENANT, USER):
        if person["source"][who] != FROM_NOBODY:
            at = _put_who(texts, person, np.int64(who), line, at)
    return at


@kernel
def tell_identity(prepared: Array, persons: Array, line: Array) -> Int:
    """`put_identity` of `persons[0]`, from Python."""
    return put_identity(prepared[0], persons[0], line)


@kernel
def _put_types(texts: Record, findings: Array, first: Int, count: Int, out: Array, at: Int) -> Int:
    """The names of the detectors that reached warn, as an array of strings."""
    size = np.int64(0)
    for i in range(first, first + count):
        if findings[i]["sign"]["action"] >= WARN:
            piece = NAME + findings[i]["detector"]
            size += 4 + texts["ends"][piece + 1] - texts["ends"][piece]
    key = texts["ends"][TYPES + 1] - texts["ends"][TYPES]
    value = 1 + varint_size(size) + size
    out[at] = 0x4A
    at = write_varint(out, at + 1, key + 1 + varint_size(value) + value)
    at = _put(texts, TYPES, out, at)
    out[at] = 0x12
    at = write_varint(out, at + 1, value)
    out[at] = 0x2A
    at = write_varint(out, at + 1, size)
    for i in range(first, first + count):
        if findings[i]["sign"]["action"] >= WARN:
            piece = NAME + findings[i]["detector"]
            length = texts["ends"][piece + 1] - texts["ends"][piece]
            out[at], out[at + 1], out[at + 2], out[at + 3] = 0x0A, length + 2, 0x0A, length
            at = _put(texts, piece, out, at + 4)
    return at


@kernel
def _put_verdict(
    texts: Record,
    verdict: Record,
    findings: Array,
    scratch: Array,
    line: Array,
    out: Array,
    at: Int,
) -> Int:
    """All attributes of a verdict that is not plain."""
    first, count = np.int64(verdict["finding"]), np.int64(verdict["findings"])
    at = _put(texts, ACTION + verdict["action"], out, at)
    at = _put_double(texts, SCORE, verdict["score"], scratch, out, at)
    at = _put(texts, MODE + verdict["learning"], out, at)
    if verdict["action"] >= WARN:
        at = _put_types(texts, findings, first, count, out, at)
        size = _put_clauses(texts, findings, first, count, line)
        at = _put_text(texts, REASON, line, size, out, at)
    if not is_told_by_span(verdict["person"]):
        size = put_identity(texts, verdict["person"], line)
        at = _put_text(texts, IDENTITY, line, size, out, at)
    for detector in range(_COUNT):
        score = 0.0
        for i in range(first, first + count):
            if findings[i]["detector"] == detector:
                score = findings[i]["sign"]["score"]
        if score != 0.0 or texts["all_signals"] != 0:
            at = _put_double(texts, SIGNAL + detector, score, scratch, out, at)
    return at


@kernel
def encode(
    prepared: Array,
    verdicts: Array,
    findings: Array,
    scratch: Array,
    line: Array,
    out: Array,
    ends: Array,
) -> None:
    """Write the attributes of every row into `out`; row i's end at `ends[i]`."""
    texts = prepared[0]
    verdicts, findings, scratch = borrow(verdicts), borrow(findings), borrow(scratch)
    line, out, ends = borrow(line), borrow(out), borrow(ends)
    at, left = np.int64(0), np.int64(0)
    for i in range(verdicts.size):
        left += verdicts[i]["judged"]
    full, short = texts["full_bytes"], texts["short_bytes"]
    for i in range(verdicts.size):
        verdict = verdicts[i]
        if verdict["judged"] != 0:
            left -= 1
            if verdict["findings"] == 0 and is_told_by_span(verdict["person"]):
                at = _put(texts, PLAIN + verdict["learning"], out, at)
            elif at + full + left * short > out.size:
                at = _put(texts, ACTION + verdict["action"], out, at)
                at = _put_double(texts, SCORE, verdict["score"], scratch, out, at)
                at = _put(texts, MODE + verdict["learning"], out, at)
            else:
                at = _put_verdict(texts, verdict, findings, scratch, line, out, at)
        ends[i] = at
