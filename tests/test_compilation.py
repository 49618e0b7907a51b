"""How kernels are compiled: all code that is called is linked; references are counted where arrays
are made, and nowhere else."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import types
from numba.core.runtime import _nrt_python, rtsys

from otel_anomaly import compilation, kernels
from otel_anomaly.compilation import _MAKERS, compiled
from otel_anomaly.kernels import Array, Int, inlined, kernel, load1
from tests.sizes import COMPILED

PACKAGE = Path(kernels.__file__).parent
NUMBERS = types.Array(types.int64, 1, "C")
ALLOCATES = {"empty", "zeros", "ones", "full", "array", "arange", "empty_like", "zeros_like"}
COUNTS = ("NRT_incref", "NRT_decref", "NRT_MemInfo")
needs_compilation = pytest.mark.skipif(
    not COMPILED, reason="NUMBA_DISABLE_JIT is set: nothing is compiled"
)


@kernel
def _first(values: Array) -> Int:
    return values[0]


@kernel
def _hands_on(values: Array) -> Int:
    """Takes an array, makes a view of it, and hands both on; makes none."""
    return _first(values) + _first(values[1:])


@kernel
def _makes(count: Int) -> Int:
    """Makes two arrays; lets one go and hands the other on."""
    values, rest = np.zeros(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        values[i], rest[i] = i, i
    return _hands_on(values) + rest[0]


@kernel
def _makes_many(count: Int, times: Int) -> Int:
    """Calls what makes arrays, and makes none itself."""
    total = np.int64(0)
    for _ in range(times):
        total += _makes(count)
    return total


def code_of(function: Any, *arguments: Any) -> str:
    """What other kernels are linked with: the function's own code, before it is optimised."""
    function.ingredient.compile(arguments)
    return str(function.ingredient.overloads[arguments].library._final_module)


@needs_compilation
def test_references_are_counted_where_arrays_are_made() -> None:
    """
    Scenario: kernels that are handed an array, make a view of it, make one, call what makes one.
    Guarantees: only the code of the one that makes arrays counts references.
    """
    quiet = [code_of(_first, NUMBERS), code_of(_hands_on, NUMBERS)]
    quiet.append(code_of(_makes_many, types.int64, types.int64))
    assert not [word for word in COUNTS for code in quiet if word in code]
    assert "NRT_decref" in code_of(_makes, types.int64)


@needs_compilation
def test_what_is_made_is_let_go() -> None:
    """
    Scenario: ten thousand calls of a kernel that makes arrays two levels down, then as many that
    lend one of Python's.
    Guarantees: each array made is freed, and the one lent is still its owner's.
    """
    lent = np.arange(5, dtype=np.int64)
    assert (_makes_many(10, 1), _hands_on(lent)) == (1, 1)
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        for _ in range(1000):
            _makes_many(10, 10)
        after = rtsys.get_allocation_stats()
    finally:
        _nrt_python.memsys_disable_stats()
    assert after.mi_alloc - before.mi_alloc == 20_000
    assert after.mi_free - before.mi_free == 20_000
    assert after.alloc - before.alloc == after.free - before.free
    for _ in range(10_000):
        _hands_on(lent)
    assert lent.tolist() == [0, 1, 2, 3, 4]
    assert lent.flags.owndata


def kernels_of(source: Path) -> list[ast.FunctionDef]:
    """The kernels that a module defines."""
    return [
        node
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and {getattr(mark, "id", "") for mark in node.decorator_list} & {"kernel", "inlined"}
    ]


def names_in(node: ast.AST) -> set[str]:
    """Every name and attribute that a piece of source speaks of."""
    named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return named | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def array_holders(sources: list[Path]) -> set[str]:
    """Types of ours that are an array or hold some."""
    holders, classes = (
        {"Array", "ndarray"},
        [
            node
            for source in sources
            for node in ast.parse(source.read_text("utf-8")).body
            if isinstance(node, ast.ClassDef)
            and any("NamedTuple" in names_in(parent) for parent in node.bases)
        ],
    )
    for _ in range(3):  # Tuples of tuples of arrays.
        for each in classes:
            fields = (field for field in each.body if isinstance(field, ast.AnnAssign))
            if any(names_in(field.annotation) & holders for field in fields):
                holders.add(each.name)
    return holders


def test_makers_are_all_that_makes_arrays() -> None:
    """
    Scenario: every kernel of the package.
    Guarantees: numpy's functions that make arrays are only those that the compiler looks for, and
    one that returns an array, or a tuple of them, borrows it: nobody frees what is another's.
    """
    sources = sorted(PACKAGE.rglob("*.py"))
    holders = array_holders(sources)
    assert holders >= {"Array", "Table", "Links", "State", "Plans", "Scratch"}
    found = [each for source in sources for each in kernels_of(source)]
    assert len(found) > 200
    for function in found:
        of_numpy = {
            call.func.attr
            for call in ast.walk(function)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and getattr(call.func.value, "id", "") == "np"
        }
        assert of_numpy & ALLOCATES <= _MAKERS, function.name
        assert function.returns is not None, function.name
        if names_in(function.returns) & holders:
            assert "borrow" in names_in(function), f"{function.name} hands on what it was lent"


@inlined
def _third(values: Array) -> Int:
    return load1(values, np.int64(2))


@kernel
def _asks_for_it(values: Array) -> Int:
    return _third(values)


class _Library:
    """Stands in for a library: what it calls, and nothing else."""

    def __init__(self, *calls: _Library) -> None:
        self.calls = self._linking_libraries = list(calls)


def test_callers_are_linked_before_what_they_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: libraries that call each other, drawn at random: some have many callers, one has two
    of very different depth, two call each other in a circle.
    Guarantees: each comes once, and behind all that call it, for LLVM leaves out what nobody there
    calls yet; a circle comes to an end.
    """
    monkeypatch.setattr(compilation, "_Unfinished", _Library)
    pick = random.Random(1)
    for _ in range(50):
        made: list[_Library] = []
        for _ in range(12):
            made.append(_Library(*pick.sample(made, min(len(made), pick.randrange(4)))))
        whole: Any = _Library(*pick.sample(made, 6))
        order: list[Any] = compilation._callers_first(whole)
        places = {library: place for place, library in enumerate(order)}
        assert len(places) == len(order)
        assert set(whole.calls) <= set(order)
        for library in order:
            assert all(places[library] < places[below] for below in library.calls)
    one, other = _Library(), _Library()
    one.calls.append(other)
    other.calls.append(one)
    circle: Any = _Library(one)
    assert set(compilation._callers_first(circle)) == {one, other}


@needs_compilation
def test_code_that_is_called_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a kernel is compiled, with its libraries in order and with the leaf before its caller.
    Guarantees: the first works; the second is noticed when it is compiled, not by the process that
    loads it from disk and jumps to nowhere.
    """
    text = np.frombuffer(b"abc", np.uint8)
    fresh = compiled(_asks_for_it.py_func, cache=False, inline=False)
    assert fresh(text) == ord("c")
    right = compilation._callers_first
    monkeypatch.setattr(compilation, "_callers_first", lambda whole: right(whole)[::-1])
    wrong = compiled(_asks_for_it.py_func, cache=False, inline=False)
    with pytest.raises(AssertionError, match="jump to nowhere"):
        wrong(text)
