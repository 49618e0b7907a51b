"""Damaged and crafted snapshots: refused with a reason, or as good as any. Never misread."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from otel_anomaly.episodes import read_pages
from otel_anomaly.snapshot import PARTS
from otel_anomaly.snapshot_file import HEADER_BYTES_MAX, START, SnapshotRefused, before, read, write
from otel_anomaly.snapshots import load
from otel_anomaly.soundness import LEGAL
from tests.fuzz.snapshot_target import check_file, ground
from tests.rig import Calls, Rig
from tests.sizes import scaled
from tests.snapshot_rigs import joined, split
from tests.traffic import START_NS

if TYPE_CHECKING:
    from pathlib import Path

BIG = 1 << 40
EXTREMES = (0, 1, -1, 2, 63, 127, 4096, 1 << 31, (1 << 63) - 1, -(1 << 63), 1 << 62, -(1 << 40))


def part_of(parts: list[bytearray], name: str) -> np.ndarray:
    """A part to be changed in place."""
    at = list(PARTS).index(name)
    return np.frombuffer(parts[at], PARTS[name])


def field_of(records: np.ndarray, path: str) -> np.ndarray:
    for name in path.split("."):
        records = records[name]
    return records


def set_to(column: np.ndarray, rng: random.Random, value: float) -> None:
    """Put a value, cut to its type, into some places of a column."""
    flat = list(np.ndindex(column.shape))
    for index in rng.sample(flat, min(len(flat), rng.choice((1, 1, 3, 1000)))):
        if column.dtype.kind == "f":
            column[index] = value
        else:
            bits = 8 * column.dtype.itemsize
            cut = int(value) & ((1 << bits) - 1)
            signed = column.dtype.kind == "i" and cut >> (bits - 1)
            column[index] = cut - (1 << bits) if signed else cut


@pytest.mark.parametrize("part", LEGAL)
def test_every_field_at_its_extremes(part: str) -> None:
    """
    Scenario: each field of each record in turn holds what no state of ours has, or is at the end of
    what it may hold; checksums are right. What is loaded all the same goes on judging.
    Guarantees: nothing raises, and nothing is read or written out of bounds.
    """
    names = ["links.older", "links.newer"] if part == "links" else [f"{part}.rows"]
    names = ["journal"] if part == "journal" else names
    refused = 0
    for number, path in enumerate(LEGAL[part][1]):
        rng = random.Random(number)
        for _ in range(scaled(3)):
            header, parts = split(ground().data)
            for name in names:
                column = field_of(part_of(parts, name), path)
                odd = (*EXTREMES, float("inf"), float("nan"))
                value = rng.choice(odd if column.dtype.kind == "f" else EXTREMES)
                set_to(column, rng, value)
            refused += not check_file(joined(header, parts))
    assert refused > 0


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_rows_missing_and_rows_more(seed: int) -> None:
    """
    Scenario: parts are cut, doubled, swapped row by row or left out, whole records or not.
    Guarantees: refused, or loaded and as good as any.
    """
    rng = random.Random(seed)
    header, parts = split(ground().data)
    for _ in range(rng.choice((1, 2))):
        at = rng.randrange(len(parts))
        size = list(PARTS.values())[at].itemsize
        rows = len(parts[at]) // size
        match rng.randrange(4):
            case 0:
                del parts[at][rng.randrange(rows + 1) * size :]
            case 1:
                parts[at] += bytes(parts[at])
            case 2:
                parts[at] += bytes(rng.randrange(2 * size))
            case _:
                whole = [parts[at][i * size : (i + 1) * size] for i in range(rows)]
                rng.shuffle(whole)
                parts[at] = bytearray(b"".join(whole))
    check_file(joined(header, parts))


@pytest.mark.parametrize("part", ["watermark", "links.head", "agents.head", "traces.head"])
def test_heads_at_their_extremes(part: str) -> None:
    """
    Scenario: every number of a head, or of the watermark, that is not worked out anew is what it
    cannot be.
    Guarantees: as above.
    """
    rng = random.Random(1)
    record = PARTS[part]
    believed = {"links.head": ("current", "used", "turns")}.get(part, ("free", "hand", "evicted"))
    places = [record.names.index(name) for name in believed] if record.names else range(4)
    for place in places:
        for value in rng.sample(EXTREMES, scaled(5)):
            header, parts = split(ground().data)
            words = np.frombuffer(parts[list(PARTS).index(part)], np.int64)
            set_to(words[place : place + 1], rng, value)
            check_file(joined(header, parts))


def test_any_byte_cut_off_or_changed(tmp_path: Path) -> None:
    """
    Scenario: a snapshot cut at every thousandth byte and each of the first, or one byte changed.
    Guarantees: refused with a reason, every time: a checksum, a size, a word of the start.
    """
    good, path = ground().data, tmp_path / "s"
    rng = random.Random(1)
    for at in [*range(100), *range(100, len(good), 997), len(good) - 1]:
        path.write_bytes(good[:at])
        with pytest.raises(SnapshotRefused):
            read(path, BIG)
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(SnapshotRefused):
            read(path, BIG)
    path.write_bytes(good + b"\0")
    with pytest.raises(SnapshotRefused, match="where"):
        read(path, BIG)


HEADERS: tuple[Any, ...] = (
    None,
    [],
    "x",
    {},
    {"parts": None},
    {"parts": [1]},
    {"parts": [{"name": "watermark"}]},
    {"seed": 1.5},
    {"seed": 1 << 63},
    {"seed": True},
    {"written_ns": -1},
    {"rules": 7},
    {"fingerprint": "x", "layout": 1 << 2000},
    {"fingerprint": []},
    {"fingerprint": "x", "version": "\x1b[2J", "layout": "?"},
)


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_of_any_kind(number: int, tmp_path: Path) -> None:
    """
    Scenario: a header that is JSON, with right checksum and size, but says something else.
    Guarantees: refused; the reason holds nothing of it that a terminal would obey.
    """
    header, parts = split(ground().data)
    odd = HEADERS[number]
    text = json.dumps({**header, **odd} if isinstance(odd, dict) and odd else odd).encode()
    path = tmp_path / "s"
    path.write_bytes(with_header(text, b"".join(parts)))
    with pytest.raises(SnapshotRefused) as refused:
        read(path, BIG)
    assert str(refused.value).isprintable()


def with_header(text: bytes, rest: bytes) -> bytes:
    size = START.size + len(text) + len(rest)
    return START.pack(b"otanomly", len(text), zlib.crc32(text), size) + text + rest


def test_sizes_that_nobody_has(tmp_path: Path) -> None:
    """
    Scenario: a header of 2^60 bytes; parts of 2^60 bytes each, or with sizes below 0; lists in
    lists by the thousand; a number of a million digits; a file larger than it may be.
    Guarantees: refused before any memory is taken for it.
    """
    header, parts = split(ground().data)
    path, rest = tmp_path / "s", b"".join(parts)
    path.write_bytes(START.pack(b"otanomly", 1 << 60, 0, START.size + 5) + b"12345")
    with pytest.raises(SnapshotRefused, match="header"):
        read(path, BIG)
    for size in (1 << 60, -1, len(rest) + 1):
        odd = {**header, "parts": [{**part, "bytes": size} for part in header["parts"]]}
        path.write_bytes(with_header(json.dumps(odd).encode(), rest))
        with pytest.raises(SnapshotRefused, match="header"):
            read(path, BIG)
    for text in (b"[" * 50_000, b"9" * 60_000, b"{" * HEADER_BYTES_MAX + b"{"):
        path.write_bytes(with_header(text, rest))
        with pytest.raises(SnapshotRefused, match="header"):
            read(path, BIG)
    path.write_bytes(ground().data)
    with pytest.raises(SnapshotRefused, match="more than 1000"):
        read(path, 1000)


def test_what_is_no_file(tmp_path: Path) -> None:
    """
    Scenario: a folder, a pipe that nobody writes to, a file that anybody may write to, an empty
    one, none at all.
    Guarantees: refused at once, without waiting; the last is told apart.
    """
    pipe, open_to_all, empty = tmp_path / "pipe", tmp_path / "open", tmp_path / "empty"
    os.mkfifo(pipe)
    open_to_all.write_bytes(ground().data)
    open_to_all.chmod(0o666)
    empty.touch()
    for path in (tmp_path, pipe, open_to_all, empty):
        with pytest.raises(SnapshotRefused):
            read(path, BIG)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing", BIG)


BOOKS = (
    b"\xff",
    b"{}\n",
    b"[]\n",
    b"[" * 5000,
    b"[1, 2]\n",
    json.dumps([0, 5, 1, 1, *["x"] * 20]).encode(),
)


@pytest.mark.parametrize("number", range(len(BOOKS)))
def test_a_book_that_is_none(number: int) -> None:
    """
    Scenario: the book of episodes holds other bytes than ours.
    Guarantees: refused; nothing raises but ValueError.
    """
    with pytest.raises(ValueError, match=r"."):
        read_pages(BOOKS[number])
    header, parts = split(ground().data)
    parts[-1] = bytearray(BOOKS[number])
    assert not check_file(joined(header, parts))


@pytest.mark.parametrize("place", range(24))
def test_a_book_with_odd_values(place: int) -> None:
    """
    Scenario: one value in a line of the book is of another kind, too large or no number at all.
    Guarantees: refused.
    """
    header, parts = split(ground().data)
    line = json.loads(parts[-1].splitlines()[0])
    assert len(line) == 24
    for value in (True, [], {}, 1 << 63, float("nan"), "\ud800", "x" * 70_000):
        odd = [*line[:place], value, *line[place + 1 :]]
        parts[-1] = bytearray(json.dumps(odd).encode())
        assert not check_file(joined(header, parts))


class PowerLoss(BaseException):
    """The machine stops: nothing of ours runs any more."""


def test_a_crash_at_any_step_leaves_a_snapshot(tmp_path: Path) -> None:
    """
    Scenario: writing is cut off at either of its steps to the disk, with one snapshot before or
    two.
    Guarantees: what was there is still there under one of the two names, whole.
    """
    rig, calls, path = Rig(), Calls(), tmp_path / "s"
    for number in range(3):
        rig.send(calls.many(number + 1, START_NS // 10**9))
        snapshot = rig.processor.snapshot(b"", number)
        for fails_at in (0, 1):
            steps = iter(range(10))

            def sync(_: int, fails_at: int = fails_at, steps: Any = steps) -> None:
                if next(steps) == fails_at:
                    raise PowerLoss

            with pytest.raises(PowerLoss):
                write(path, snapshot, sync)
            if number or fails_at:
                newest = read(path if path.exists() else before(path), BIG)
                assert newest.written_ns in {number, number - 1}
        write(path, snapshot)
        assert read(path, BIG).written_ns == number
    assert read(before(path), BIG).written_ns < 3
    assert sorted(found.name for found in tmp_path.iterdir()) == ["s", "s.1"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """
    Scenario: the disk refuses what is written.
    Guarantees: OSError; the last snapshot is where it was; nothing else is left.
    """

    def sync(_: int) -> None:
        raise OSError(28, "No space left on device")

    rig, path = Rig(), tmp_path / "s"
    write(path, rig.processor.snapshot(b"", 1))
    with pytest.raises(OSError, match="No space"):
        write(path, rig.processor.snapshot(b"", 2), sync)
    assert read(path, BIG).written_ns == 1
    assert [found.name for found in tmp_path.iterdir()] == ["s"]


def test_the_good_one_is_good() -> None:
    """
    Scenario: the snapshot that all of these are made from.
    Guarantees: it loads, goes on and holds something in every part.
    """
    _, parts = split(ground().data)
    assert check_file(ground().data)
    assert all(len(part) > 0 for part in parts)
    assert struct.calcsize("<8sQIQ") == START.size


DANGEROUS = (
    ("journal", "serial", 1 << 40),
    ("journal", "serial", 0),
    ("journal", "before", 1 << 40),
    ("journal", "next_waiting", -1),
    ("journal", "into", 1 << 40),
    ("journal", "call.destinations", 1 << 20),
    ("links.newer", "event", 1 << 40),
    ("links.newer", "waiting", -1),
    ("traces.rows", "last", 1 << 40),
    ("agents.rows", "burst.busy", -7),
    ("episodes.rows", "action", 99),
    ("names.rows", "length", -1),
)
"""What a kernel would take for a place, a count or a row, and read and write there."""


@pytest.mark.parametrize(("part", "path", "value"), DANGEROUS)
def test_what_leads_out_of_an_array_is_refused(part: str, path: str, value: int) -> None:
    """
    Scenario: one number that is used as an index, or counts what is looked at, leads elsewhere.
    Guarantees: refused, whether or not anything that comes would have used it.
    """
    header, parts = split(ground().data)
    field_of(part_of(parts, part), path)[1] = value
    assert not check_file(joined(header, parts))


def test_what_is_only_good_while_a_request_is_judged_is_gone(tmp_path: Path) -> None:
    """
    Scenario: links that say they are of the next request, in a row that it does not have; calls by
    the limits of an override that there is not.
    Guarantees: after loading they are of no request, and by the base.
    """
    header, parts = split(ground().data)
    links, journal = part_of(parts, "links.newer"), part_of(parts, "journal")
    links["request"], links["row"], journal["plan"] = 1, 1 << 30, 1 << 20
    path = tmp_path / "s"
    path.write_bytes(joined(header, parts))
    state = load(path, ground().config).state
    for name in ("request", "row"):
        assert (state.links.spans[name] == 0).all()
    assert (state.journal["plan"] == 0).all()
