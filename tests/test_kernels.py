"""The primitives under all kernels: compiled as in Python; the cache of compiled code."""

from __future__ import annotations

import ast
import os
import random
import shutil
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.caching import UserProvidedCacheLocator

from otel_anomaly import judge, kernels
from otel_anomaly.kernels import (
    BLOCK,
    Int,
    between,
    bit_count,
    bit_length,
    borrow,
    copy,
    copy_record,
    fold,
    inlined,
    kernel,
    load1,
    load8,
    load_word,
    multiply,
    prefetch,
    signed,
)
from tests.sizes import COMPILED

PACKAGE = Path(kernels.__file__).parent
EDGES = (0, 1, -1, 2, 255, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63), 0x2D358DCCAA6C78A5)


@kernel
def _load8(data: np.ndarray, at: int) -> Int:
    return load8(data, at)


@kernel
def _load1(data: np.ndarray, at: int) -> Int:
    return load1(data, at)


@kernel
def _load_word(words: np.ndarray, at: int) -> Int:
    return load_word(words, at)


@kernel
def _between(data: np.ndarray, at: int, first: int, last: int) -> Int:
    return between(data, at, first, last)


@kernel
def _bit_length(bits: int) -> Int:
    return bit_length(bits)


@kernel
def _bit_count(bits: int) -> Int:
    return bit_count(bits)


@kernel
def _multiply(a: int, b: int, more: int) -> tuple[Int, Int]:
    return multiply(a, b, more)


@kernel
def _fold(a: int, b: int) -> Int:
    return fold(a, b)


@kernel
def _copy(target: np.ndarray, at: int, source: np.ndarray, start: int, count: int) -> None:
    copy(target, at, source, start, count)


@kernel
def _copy_record(rows: np.ndarray, to: int, of: int) -> None:
    copy_record(rows[to], rows[of])


@kernel
def _borrowed_sum(values: np.ndarray) -> int:
    total = 0
    own = borrow(values)
    for i in range(own.size):
        prefetch(own, i)
        total += own[i]
        own[i] = 0
    return total


@inlined
def _twice(number: int) -> int:
    return number * 2


@kernel
def _four_times(number: int) -> int:
    return _twice(_twice(number))


@pytest.mark.parametrize("writable", [True, False])
def test_loads(*, writable: bool) -> None:
    """
    Scenario: every place of random bytes, and of a part of an array, in arrays of both kinds.
    Guarantees: compiled and Python agree: little-endian and signed, or one byte from 0 to 255.
    """
    data = np.frombuffer(random.Random(1).randbytes(200) + b"\xff" * 8, np.uint8)
    for array in (data.copy() if writable else data, data[3:]):
        for at in range(array.size):
            assert _load1(array, at) == load1(array, at) == int(array[at])
        for at in range(array.size - 7):
            expected = int.from_bytes(bytes(array[at : at + 8]), "little", signed=True)
            assert _load8(array, at) == load8(array, at) == expected
    assert _load8(data, data.size - 8) == -1


@pytest.mark.parametrize("writable", [True, False])
def test_load_word(*, writable: bool) -> None:
    """
    Scenario: every place of an array of numbers at the edges of 64 bits, and of a part of it.
    Guarantees: compiled and Python agree on the element, and on what is computed from it.
    """
    words = np.array(EDGES, np.int64)
    words.flags.writeable = writable
    for array in (words, words[3:], words[:0]):
        for at, word in enumerate(array.tolist()):
            assert _load_word(array, at) == load_word(array, at) == word
            assert load_word(array, np.int64(at)) ^ 1 == word ^ 1


@pytest.mark.parametrize("limits", [(48, 57), (0, 31), (128, 255), (64, 64), (0, 255)])
def test_between(limits: tuple[int, int]) -> None:
    """
    Scenario: every place of random bytes, ranges at both edges, of one byte, and of all.
    Guarantees: one bit a byte, the first lowest; compiled and Python agree, and look at no more.
    """
    first, last = limits
    data = np.frombuffer(random.Random(4).randbytes(40) + bytes([0, 47, 48, 57, 58, 255]), np.uint8)
    for at in range(data.size - BLOCK + 1):
        block = data[at : at + BLOCK]
        expected = sum(1 << i for i, byte in enumerate(block.tolist()) if first <= byte <= last)
        assert _between(data, at, first, last) == between(data, at, first, last) == expected


def test_bits() -> None:
    """
    Scenario: no bit, each single one, and random ones.
    Guarantees: the place behind the highest, and how many there are; compiled and Python agree.
    """
    rng = random.Random(5)
    for bits in (0, *(1 << i for i in range(63)), *(rng.getrandbits(63) for _ in range(50))):
        assert _bit_length(bits) == bit_length(np.int64(bits)) == bits.bit_length()
        assert _bit_count(bits) == bit_count(np.int64(bits)) == bits.bit_count()


def test_fold() -> None:
    """
    Scenario: numbers at the edges of 64 bits, and random ones.
    Guarantees: both halves of the unsigned product, xored; compiled and Python agree.
    """
    rng = random.Random(2)
    numbers = [*EDGES, *(signed(rng.getrandbits(64)) for _ in range(20))]
    for a in numbers:
        for b in numbers:
            product = (a % (1 << 64)) * (b % (1 << 64))
            expected = product // (1 << 64) ^ product % (1 << 64)
            assert _fold(a, b) == fold(a, b) == signed(expected)
    # Numbers of numpy are what kernels hand each other when nothing is compiled.
    assert fold(*np.array([-1, -1])) == fold(-1, -1)


def test_multiply() -> None:
    """
    Scenario: as above, with a third number added to the product.
    Guarantees: both halves of 128 bits without sign; compiled and Python agree.
    """
    rng = random.Random(3)
    numbers = [*EDGES, *(signed(rng.getrandbits(64)) for _ in range(6))]
    for a in numbers:
        for b in numbers:
            for more in numbers:
                whole = (a % (1 << 64)) * (b % (1 << 64)) + more % (1 << 64)
                expected = (signed(whole >> 64), signed(whole))
                assert tuple(_multiply(a, b, more)) == multiply(a, b, more) == expected


def test_signed() -> None:
    """
    Scenario: numbers in and outside of 64 bits.
    Guarantees: what the machine makes of the low 64 bits.
    """
    for value in EDGES:
        for lap in (-2, -1, 0, 1, 2):
            assert signed(value + (lap << 64)) == value


def test_copy() -> None:
    """
    Scenario: any number of bytes, none included, from and to any place.
    Guarantees: exactly those bytes change; compiled and Python agree.
    """
    rng = random.Random(3)
    source = np.frombuffer(rng.randbytes(40), np.uint8)
    for count in range(20):
        at, start = rng.randrange(20), rng.randrange(20)
        expected = bytearray(b"\xee" * 40)
        expected[at : at + count] = bytes(source[start : start + count])
        for function in (_copy, copy):
            target = np.full(40, 0xEE, np.uint8)
            function(target, at, source, start, count)
            assert target.tobytes() == expected


def test_copy_record() -> None:
    """
    Scenario: records with numbers of several widths, padding between them, and arrays inside.
    Guarantees: one becomes the other, its neighbours stay; compiled and Python agree.
    """
    kinds = np.dtype([("a", "i4"), ("b", "i8"), ("c", "i2", (3,)), ("d", "f8")], align=True)
    assert kinds.itemsize > sum(kinds[name].itemsize for name in kinds.names or ())
    for function in (_copy_record, lambda rows, to, of: copy_record(rows[to], rows[of])):
        rows = np.zeros(4, kinds)
        rows[1] = (-1, 1 << 62, (1, 2, 3), 0.5)
        rows[3] = (7, 8, (9, 9, 9), 1.5)
        before = rows.copy()
        function(rows, 2, 1)
        assert rows[2] == before[1]
        assert np.array_equal(rows[[0, 1, 3]], before[[0, 1, 3]])


def test_borrow_and_prefetch() -> None:
    """
    Scenario: arrays of numbers and of records lent to a kernel many times, then let go.
    Guarantees: the values are there, writes are seen, the owner still owns.
    """
    for _ in range(100):
        values = np.arange(50, dtype=np.int64)
        assert _borrowed_sum(values) == 1225
        assert not values.any()
    assert borrow(values) is values
    prefetch(values, 0)


def test_inlined() -> None:
    """
    Scenario: a small kernel within another.
    Guarantees: it computes what Python computes.
    """
    assert _four_times(-3) == -12


# --- The cache ----------------------------------------------------------------------------------


def ours_imported_by(source: Path) -> set[Path]:
    """Our own modules that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            name = (node.module or "").removeprefix(PACKAGE.name).replace(".", "/")
            module = PACKAGE / name.lstrip("/")
            for path in (module, *(module / alias.name for alias in node.names)):
                found |= {path.with_suffix(".py"), path / "__init__.py"}
    return {path for path in found if path.is_file()}


def test_all_that_kernels_are_made_of_is_in_the_digest() -> None:
    """
    Scenario: every module with kernels in it, and the modules of ours it takes names from.
    Guarantees: all are part of the name of the cache folder, so that no change goes unseen. Not the
    configuration: its values are handed in.
    """
    sources = sorted(PACKAGE.rglob("*.py"))
    digested = {source for source in sources if kernels.goes_into_kernels(source)}
    marks = ("\n@kernel\n", "\n@inlined\n")
    holding = [s for s in sources if any(mark in s.read_text("utf-8") for mark in marks)]
    assert {path.name for path in holding} >= {"scan.py", "splice.py", "hashing.py", "judge.py"}
    for source in holding:
        needed = {source, *ours_imported_by(source)} - {PACKAGE / "__init__.py"}
        missing = {path for path in needed - digested if path.parent.name != "config"}
        assert not missing, f"{source.name} takes from {missing}"
    assert PACKAGE / "cli.py" not in digested


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: nobody chose a folder; a source changes; bounds are checked.
    Guarantees: a folder of the user's cache, another one after each change.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert kernels._prepare_cache()
    first = Path(numba.config.CACHE_DIR)
    assert first.parent == tmp_path / "otel-anomaly"
    assert first.is_dir()
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1 - int(numba.config.BOUNDSCHECK or 0))
    second = kernels._cache_folder()
    assert second != first
    monkeypatch.setattr(kernels, "goes_into_kernels", lambda source: source.name == "scan.py")
    assert kernels._cache_folder() not in {first, second}


def test_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: the folder cannot be made.
    Guarantees: nothing is kept, and nothing fails.
    """
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "below"))
    assert not kernels._prepare_cache()
    assert not numba.config.CACHE_DIR


def test_cache_that_may_only_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: a folder with compiled code in it that we may not write to, then not even read.
    Guarantees: a copy serves in its place; without one nothing is kept, and nothing fails.
    """
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    filled = tmp_path / "filled"
    filled.mkdir()
    (filled / "one.nbc").write_bytes(b"code")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(filled))
    assert kernels._prepare_cache()
    copied = Path(numba.config.CACHE_DIR)
    assert copied != filled
    assert (copied / "one.nbc").read_bytes() == b"code"

    def refused(*_arguments: object, **_options: object) -> None:
        raise PermissionError

    monkeypatch.setattr(shutil, "copytree", refused)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(filled))
    assert not kernels._prepare_cache()


def test_no_cache_without_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: NUMBA_DISABLE_JIT is set.
    Guarantees: no folder is asked for.
    """
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert not kernels._prepare_cache()


def test_cache_is_warm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: an empty cache, one with an index only, one with code of a small kernel, of the judge
    of an installation in another place, of ours.
    Guarantees: warm only when our judge's code is there and can be kept.
    """
    monkeypatch.setattr(kernels, "CACHED", True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert not kernels.cache_is_warm()
    place = UserProvidedCacheLocator(kernels.cache_is_warm, judge.__file__).get_cache_path()
    ours, other = Path(place), tmp_path / "otel_anomaly_elsewhere"
    assert ours.parent == tmp_path
    for folder in (ours, other):
        folder.mkdir()
    (ours / "judge.judge-1.nbi").write_bytes(b"")
    (ours / "hashing.hash_bytes-1.nbc").write_bytes(b"")
    (other / "judge.judge-1.1.nbc").write_bytes(b"")
    assert not kernels.cache_is_warm()
    (ours / "judge.judge-1.1.nbc").write_bytes(b"")
    assert kernels.cache_is_warm()
    monkeypatch.setattr(kernels, "CACHED", False)
    assert not kernels.cache_is_warm()


PAIR = np.dtype([("first", "i8"), ("second", "u2", (3,)), ("text", "u1", (5,))], align=True)


@kernels.kernel
def start_copied(target: np.ndarray, source: np.ndarray, count: int) -> None:
    kernels.copy_start(target[0], source[0], count)


def test_copy_start() -> None:
    """
    Scenario: a record is copied up to its last field, and whole.
    Guarantees: what lies behind is left as it was; compiled and as Python alike.
    """
    source = np.array([(1, (2, 3, 4), (5, 6, 7, 8, 9))], PAIR)
    for run in (start_copied, getattr(start_copied, "py_func", start_copied)):
        target = np.zeros(1, PAIR)
        run(target, source, PAIR.fields["text"][1])
        assert target["first"] == 1
        assert target["second"].tolist() == [[2, 3, 4]]
        assert not target["text"].any()
        run(target, source, PAIR.itemsize)
        assert target["text"].tolist() == source["text"].tolist()


ROOM = 48


@kernels.kernel
def filled(room: np.ndarray, first: int) -> None:
    for i in range(room.size):
        room[i] = (first + i) & 255


@kernels.kernel
def two_rooms(calls: int) -> Int:
    """How many bytes of one room a second one, filled later, did not change."""
    kept = np.int64(0)
    for call in range(calls):
        one, other = kernels.room(ROOM), kernels.room(ROOM)
        filled(one, call)
        filled(other, call + 100)
        for i in range(ROOM):
            kept += np.int64(one[i] == (call + i) & 255 and other[i] == (call + 100 + i) & 255)
    return kept


def test_room() -> None:
    """
    Scenario: a kernel asks for two rooms, 200 000 times, and has them filled by another one.
    Guarantees: they are of the size asked for, and apart; asking again takes no more of the stack,
    of which there is less than that.
    """
    calls = 200_000 if COMPILED else 20
    assert two_rooms(np.int64(calls)) == calls * ROOM
