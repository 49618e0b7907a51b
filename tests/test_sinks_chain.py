"""The hash chain: an untouched trail verifies, a touched one never does."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.handoff import EpisodeEvent
from otel_anomaly.sinks.chain import GENESIS, LINE_BYTES_MAX, START, seal, verify
from tests.sink_rigs import build_audit, events

SHORT = st.text(st.characters(), max_size=6)
ANY_TEXT = SHORT | SHORT.map(lambda text: (text + "x") * 300)
ANY_EVENT = st.builds(
    EpisodeEvent,
    step=st.sampled_from(["start", "escalate", "end"]),
    episode=ANY_TEXT,
    time_ns=st.integers(),
    start_ns=st.integers(),
    detector=ANY_TEXT,
    action=ANY_TEXT,
    score=st.floats(),
    observed=st.floats(),
    limit=st.floats(),
    window_s=st.floats(),
    count=st.integers(),
    entity=ANY_TEXT,
    reason=ANY_TEXT,
    tenant=st.none() | ANY_TEXT,
    agent=st.none() | ANY_TEXT,
    session=st.none() | ANY_TEXT,
    user=st.none() | ANY_TEXT,
    tool=st.none() | ANY_TEXT,
    trace_id=ANY_TEXT,
    span_id=ANY_TEXT,
)


def trail_of(offered: list[EpisodeEvent]) -> bytes:
    """The file that a run makes of these events."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        sink = build_audit(path)
        sink.offer(offered)
        assert sink.close(10)
        return path.read_bytes()


def verify_bytes(data: bytes) -> tuple[bool, int, int | None, str]:
    """(ok, records, line, message)"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(data)
        return verify(path)[:4]


def sealed(*bodies: dict[str, object]) -> list[bytes]:
    lines, head = [], START
    for body in bodies:
        line, head = seal(body, head)
        lines.append(line)
    return lines


SAMPLE = trail_of([event._replace(agent='\u00fc\n"') for event in events(6)])
LINES = SAMPLE.splitlines(keepends=True)


def test_a_record_by_hand() -> None:
    """
    Scenario: two records whose canonical form is written out by hand.
    Guarantees: hash, prev and seq are what the theory says, by hashlib alone.
    """
    first = hashlib.sha256(
        f'{{"a":"\u20ac\\n","n":100,"prev":"{GENESIS}","seq":1}}'.encode()
    ).hexdigest()
    second = hashlib.sha256(f'{{"prev":"{first}","seq":2,"x":1.5}}'.encode()).hexdigest()
    assert sealed({"n": 100.0, "a": "\u20ac\n"}, {"x": 1.5}) == [
        f'{{"a":"\u20ac\\n","hash":"{first}","n":100,"prev":"{GENESIS}","seq":1}}\n'.encode(),
        f'{{"hash":"{second}","prev":"{first}","seq":2,"x":1.5}}\n'.encode(),
    ]


def test_every_record_of_a_run_by_another_encoder() -> None:
    """
    Scenario: the hashes of a trail are made again with the json module of the standard library,
    which agrees with RFC 8785 on records without fractions.
    Guarantees: they are the same, and each is the `prev` of the next.
    """
    prev = GENESIS
    for line in LINES:
        record = json.loads(line)
        digest = record.pop("hash")
        record["score"] = None
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        text = text.replace('"score":null', '"score":0.5')
        assert hashlib.sha256(text.encode()).hexdigest() == digest
        assert record["prev"] == prev
        prev = digest


@settings(max_examples=60)
@given(st.lists(ANY_EVENT, min_size=1, max_size=3))
def test_an_untouched_trail_verifies(offered: list[EpisodeEvent]) -> None:
    """
    Scenario: events of any strings, half surrogate pairs among them, and any numbers.
    Guarantees: each is one line, and the trail verifies.
    """
    data = trail_of(offered)
    assert verify_bytes(data)[:3] == (True, len(offered), None)
    assert data.count(b"\n") == len(offered)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(place: int, flip: int) -> None:
    """
    Scenario: one byte anywhere becomes another, line ends and hashes included.
    Guarantees: verify fails and names the line of the change.
    """
    data = bytearray(SAMPLE)
    data[place] ^= flip
    ok, records, line, _ = verify_bytes(bytes(data))
    before = SAMPLE.count(b"\n", 0, place)
    assert (ok, records, line) == (False, before, before + 1)


@given(st.integers(0, 5), st.integers(0, 5))
def test_moved_lines_are_found(one: int, other: int) -> None:
    """
    Scenario: two lines change places; a line stands a second time anywhere; one is taken out.
    Guarantees: verify fails and names the first line that is not where it was. A line taken off
    the end leaves a shorter whole trail: that only an anchor outside can show.
    """
    swapped = list(LINES)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    if one != other:
        assert verify_bytes(b"".join(swapped))[:3] == (False, min(one, other), min(one, other) + 1)
    twice = [*LINES[:other], LINES[one], *LINES[other:]]
    first = next((n for n, line in enumerate(twice) if n > 5 or line != LINES[n]), 6)
    assert verify_bytes(b"".join(twice))[:3] == (False, first, first + 1)
    fewer = LINES[:one] + LINES[one + 1 :]
    expected = (True, 5, None) if one == 5 else (False, one, one + 1)
    assert verify_bytes(b"".join(fewer))[:3] == expected


@given(st.integers(0, len(SAMPLE)))
def test_a_trail_cut_anywhere(length: int) -> None:
    """
    Scenario: only the first bytes of the file are there.
    Guarantees: torn unless it was cut between records.
    """
    ok, records, line, message = verify_bytes(SAMPLE[:length])
    whole = SAMPLE[:length].count(b"\n")
    if length == 0 or SAMPLE[length - 1 : length] == b"\n":
        assert (ok, records, line) == (True, whole, None)
    else:
        assert (ok, records, line) == (False, whole, whole + 1)
        assert message == f"line {whole + 1} is torn: it has no end"


def test_causes_are_told_apart() -> None:
    """
    Scenario: a record changed, removed, inserted, replaced by a sealed one, torn, over-long.
    Guarantees: the message says which.
    """
    forged = sealed(*[{"type": "forged"}] * 6)
    cases = {
        SAMPLE.replace(b'"count":1', b'"count":2', 1): "line 1 was changed: its hash",
        b'{"a": 1}\n': "line 1 was changed: it is not in canonical form",
        b"{\xff}\n": "line 1 was changed: it is not a JSON object",
        b"[]\n": "line 1 was changed: it is not a JSON object",
        b'{"a":1}\n': "line 1 is not a record: seq or prev is missing",
        b"".join(LINES[3:]): "line 1 is record 4, expected 1: records were removed",
        LINES[0] * 2: "line 2 is record 1, expected 2: records were inserted",
        LINES[0] + forged[1]: "line 2 does not continue the record before it",
        LINES[0][:-1]: "line 1 is torn",
        b"x" * (LINE_BYTES_MAX + 5): "line 1 is longer than any record",
        b"x" * (LINE_BYTES_MAX + 5) + b"\n": "line 1 is longer than any record",
    }
    for data, message in cases.items():
        assert verify_bytes(data)[3].startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000,
        b'{"seq":' + b"9" * 5000 + b"}",
        b'{"seq":1e999}',
        b'{"seq":NaN}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"hash":1,"prev":"","seq":1.5}',
        b'{"hash":"","hash":"","prev":"","seq":1}',
        b"\xff\xfe{\x00}\x00",
        b"",
    ],
    ids=range(10),
)
def test_lines_made_to_break_the_reader(line: bytes) -> None:
    """
    Scenario: deep nesting, huge numbers, half surrogate pairs, doubled keys, another encoding.
    Guarantees: a verdict, never an exception.
    """
    assert verify_bytes(line + b"\n")[:3] == (False, 0, 1)


def test_half_a_record_number_is_none() -> None:
    """
    Scenario: a record whose hash is right has the number 1.5.
    Guarantees: it does not pass for record 1.
    """
    body = f'"prev":"{GENESIS}","seq":1.5}}'
    digest = hashlib.sha256(b"{" + body.encode()).hexdigest()
    message = verify_bytes(f'{{"hash":"{digest}",{body}\n'.encode())[3]
    assert message == "line 1 is not a record: seq or prev is missing"


def test_an_empty_trail_is_whole_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    """
    Scenario: no record was written yet; there is no file.
    Guarantees: ok with the hash before the first; OSError.
    """
    (tmp_path / "audit.jsonl").touch()
    result = verify(tmp_path / "audit.jsonl")
    assert (result.ok, result.records, result.head) == (True, 0, GENESIS)
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "missing.jsonl")
