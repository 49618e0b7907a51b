"""The hash chain: what makes a changed audit trail look changed.

One record per line, each a JSON object in the canonical form of RFC 8785:

    line 1   seq 1   prev 000...0   hash A = SHA-256(record 1 without `hash`)
    line 2   seq 2   prev A         hash B = SHA-256(record 2 without `hash`)
    line 3   seq 3   prev B         hash C = ...

`hash` covers every other field, `prev` among them, so each record vouches for all before it.
The first `prev` is 64 zeros. A line is also compared, byte for byte, with the canonical form of
what it says: there is exactly one way to write a record, so no byte is outside the proof.

What it proves: against the hash of the last record, kept elsewhere, every record is as it was
written, in order, none missing. `verify` gives that hash, so that an operator can keep it.

What it does not prove by itself: (1) a trail cut off at its end, at a record, is a shorter whole
trail; (2) the hash has no key, so whoever may write the file can compute a new chain, for the
whole file or from any record on. Both show only against a hash or a length kept elsewhere.

References
----------
.. [1] Rundgren, Jordan, Erdtman (2020). JSON Canonicalization Scheme. RFC 8785.
.. [2] Schneier, Kelsey (1999). Secure Audit Logs to Support Computer Forensics. ACM TISSEC 2(2).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import TYPE_CHECKING, NamedTuple

import rfc8785

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GENESIS = "0" * 64
LINE_BYTES_MAX = 1 << 20

Value = str | float | None
"""What a field may hold; an int is a float here, as it is in JSON."""


class BrokenRecordError(ValueError):
    """A line is not a record of the chain. The message says why."""


class Head(NamedTuple):
    """The last record, as far as the next one needs it."""

    seq: int
    hash: str
    type: str


START = Head(0, GENESIS, "")
"""Before the first record."""


class VerifyResult(NamedTuple):
    """Whether a trail is whole, and where it is not."""

    ok: bool
    records: int
    """Whole records from the start, up to the first broken line."""
    line: int | None
    """The first broken line, from 1; None when there is none."""
    message: str
    head: str
    """Hash of the last whole record: what an operator keeps elsewhere."""


def seal(fields: Mapping[str, Value], head: Head) -> tuple[bytes, Head]:
    """The line that says `fields` after `head`, and the new head.

    Numbers must be finite and within 2**53, strings valid UTF-8: RFC 8785 has no form for others.
    """
    seq = head.seq + 1
    record = {**fields, "seq": seq, "prev": head.hash}
    digest = hashlib.sha256(rfc8785.dumps(record)).hexdigest()
    line = rfc8785.dumps({**record, "hash": digest}) + b"\n"
    assert len(line) <= LINE_BYTES_MAX
    return line, Head(seq, digest, str(fields.get("type")))


def read_record(line: bytes) -> tuple[Head, str]:
    """The head that `line` makes, and its `prev`. Raises BrokenRecordError.

    Says nothing about what stands before the line.
    """
    if not line.endswith(b"\n"):
        cause = (
            "is longer than any record" if len(line) > LINE_BYTES_MAX else "is torn: it has no end"
        )
        raise BrokenRecordError(cause)
    record = _parse(line[:-1])
    seq, prev, digest = record.get("seq"), record.get("prev"), record.pop("hash", None)
    if not isinstance(seq, float) or not seq.is_integer() or not isinstance(prev, str):
        raise BrokenRecordError("is not a record: seq or prev is missing")
    if hashlib.sha256(rfc8785.dumps(record)).hexdigest() != digest:
        raise BrokenRecordError("was changed: its hash is not that of its content")
    return Head(int(seq), str(digest), str(record.get("type"))), prev


def _parse(text: bytes) -> dict[str, Value]:
    """The object that `text` is the canonical form of."""
    try:
        # Whole numbers are read as floats: 1e20 is written without an exponent, and an int of
        # that size has no canonical form.
        record = json.loads(text.decode(), parse_int=float)
        canonical = rfc8785.dumps(record)
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError("was changed: it is not a JSON object") from error
    if not isinstance(record, dict):
        raise BrokenRecordError("was changed: it is not a JSON object")
    if canonical != text:
        raise BrokenRecordError("was changed: it is not in canonical form")
    return record


def follow(line: bytes, head: Head) -> Head:
    """The head after `line`, which must continue `head`. Raises BrokenRecordError."""
    found, prev = read_record(line)
    expected = head.seq + 1
    if found.seq > expected:
        raise BrokenRecordError(
            f"is record {found.seq}, expected {expected}: records were removed or reordered"
        )
    if found.seq < expected:
        raise BrokenRecordError(
            f"is record {found.seq}, expected {expected}: records were inserted or reordered"
        )
    if prev != head.hash:
        raise BrokenRecordError("does not continue the record before it: one of them was replaced")
    return found


def verify(path: Path) -> VerifyResult:
    """Check a trail from its first line to its last, one line in memory at a time.

    A service that is writing may show its last line as torn. Raises OSError when the file cannot
    be read.
    """
    head = START
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LINE_BYTES_MAX + 1)
            if not line:
                break
            try:
                head = follow(line, head)
            except BrokenRecordError as error:
                message = f"line {number} {error}"
                return VerifyResult(
                    ok=False, records=head.seq, line=number, message=message, head=head.hash
                )
    message = f"{head.seq} records, unbroken; the last hash is {head.hash}"
    return VerifyResult(ok=True, records=head.seq, line=None, message=message, head=head.hash)
