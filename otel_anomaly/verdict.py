"""Verdicts to attributes: the bytes that are appended to a judged span.

    anomaly.action   "warn"                          always
    anomaly.score    0.62                            always
    anomaly.mode     "learning" or "active"          always
    anomaly.types    ["rate"]                        when a detector reached warn
    anomaly.reason   "rate: 124 calls in 60 s, limit 100"
    anomaly.signal.rate  0.62                        each detector's own score, not zero or all

Most calls are allowed with a score of 0: their attributes are one prepared piece, copied. All
texts are prepared once as pieces of one buffer; a clause holds the control characters 1 to 4
where the numbers go.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from otel_anomaly.detectors.finding import ACTIONS, WARN
from otel_anomaly.judge import CLAUSES, DETECTORS
from otel_anomaly.kernels import Array, Int, Record, borrow, copy, inlined, kernel
from otel_anomaly.otlp.attributes import decimal
from otel_anomaly.otlp.splice import varint_size, write_varint

MODES: Final = ("active", "learning")
_PLACES: Final = {"{observed}": "\x01", "{limit}": "\x02", "{window}": "\x03", "{usual}": "\x04"}
_COUNT: Final = len(DETECTORS)

# Numbers of the pieces.
PLAIN = 0
ACTION = PLAIN + len(MODES)
MODE = ACTION + len(ACTIONS)
SCORE = MODE + len(MODES)
TYPES = SCORE + 1
REASON = TYPES + 1
SIGNAL = REASON + 1
NAME = SIGNAL + _COUNT
CLAUSE = NAME + _COUNT
PIECES = CLAUSE + _COUNT

TEXT_BYTES: Final = 8192
LINE_BYTES: Final = 4096
NUMBER_BYTES: Final = 24
TEXTS = np.dtype(
    [
        ("all_signals", "i8"),
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


def make_texts(prefix: str, *, all_signals: bool) -> np.ndarray:
    """Prepare all pieces for attributes under `prefix`: TEXTS [1]."""
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
        *(signal[:-8] for signal in signals),
        *(name.encode() for name in DETECTORS),
        *(_clause(clause) for clause in CLAUSES),
    ]
    texts = np.zeros(1, TEXTS)
    texts["all_signals"] = all_signals
    texts["ends"][0] = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    joined = np.frombuffer(b"".join(pieces), np.uint8)
    texts["text"][0, : joined.size] = joined
    return texts


def annotation_bytes_max(texts: np.ndarray) -> int:
    """The most that is appended to one span, and what lengths in front of it may grow by."""
    pieces = int(texts["ends"][0, -1])
    numbers = _COUNT * (len(_PLACES) * NUMBER_BYTES + 2 + 4 + 8) + 8
    framing = 64
    return pieces + numbers + framing


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
    """What was observed, against which limit: the detector's clause with its numbers."""
    piece = CLAUSE + finding["detector"]
    sign = finding["sign"]
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
def put_reason(prepared: Array, findings: Array, first: Int, count: Int, line: Array) -> Int:
    """The clauses of the findings of warn or more, joined by `; `. Returns the length."""
    return _put_clauses(prepared[0], findings, first, count, line)


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
    return at


@kernel
def _put_reason(
    texts: Record, findings: Array, first: Int, count: Int, line: Array, out: Array, at: Int
) -> Int:
    """The reason as an attribute."""
    size = _put_clauses(texts, findings, first, count, line)
    key = texts["ends"][REASON + 1] - texts["ends"][REASON]
    value = 1 + varint_size(size) + size
    out[at] = 0x4A
    at = write_varint(out, at + 1, key + 1 + varint_size(value) + value)
    at = _put(texts, REASON, out, at)
    out[at] = 0x12
    at = write_varint(out, at + 1, value)
    out[at] = 0x0A
    at = write_varint(out, at + 1, size)
    copy(out, at, line, 0, size)
    return at + size


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
        at = _put_reason(texts, findings, first, count, line, out, at)
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
    at = np.int64(0)
    for i in range(verdicts.size):
        verdict = verdicts[i]
        if verdict["judged"] != 0:
            if verdict["findings"] == 0:
                at = _put(texts, PLAIN + verdict["learning"], out, at)
            else:
                at = _put_verdict(texts, verdict, findings, scratch, line, out, at)
        ends[i] = at
