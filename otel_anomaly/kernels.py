"""Numba plumbing: the `kernel` decorator, its cache, and the few primitives Python lacks.

A kernel is a free function over arrays and numbers that numba compiles and that Python runs
unchanged under `NUMBA_DISABLE_JIT=1`. All integers in kernels are signed 64 bit: numba makes a
float of int64 + uint64, so hashes and sizes are int64 as well.

The primitives (`load1`, `load8`, `between`, `fold`, `multiply`, `copy` and others) are each
written twice: as plain Python, which is their definition, and as the machine instruction. Compiled
code does not check array bounds, and these never do: **the caller proves that what it asks for lies
inside the array**.

The cache: numba keys compiled code by the file of the *calling* kernel, so a change in a callee,
or in a constant from another module, would go unseen. We therefore name the cache folder after a
digest of every source that kernels are made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import _CacheLocator
from numba.extending import intrinsic, overload

from otel_anomaly.cache_copy import writable_copy
from otel_anomaly.compilation import compiled

Array: TypeAlias = np.ndarray
"""Of the dtype and shape that the kernel's docstring or the record's definition gives."""
Record: TypeAlias = Any
"""One element of a structured array (`np.void`): in kernels a pointer to it, never a copy."""
Int: TypeAlias = Any
"""A signed number of 64 bits. Any to mypy: in kernels Python's and numpy's mix freely."""

F = TypeVar("F", bound=Callable[..., Any])

_WORD = (1 << 64) - 1
_ROOMS = {"config", "otlp", "entities", "detectors"}


def goes_into_kernels(source: Path) -> bool:
    """Whether a source holds kernels, or lies in a room whose constants are compiled into them."""
    if source.parent.name in _ROOMS or source.name in {"kernels.py", "compilation.py"}:
        return True
    return re.search(rb"^@(kernel|inlined)$", source.read_bytes(), re.MULTILINE) is not None


def _cache_folder() -> Path:
    """`<user cache>/otel-anomaly/<digest of our sources and of what changes the code made>`."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path raises without a home.
    digest = hashlib.sha256(repr((numba.__version__, numba.config.BOUNDSCHECK)).encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        if goes_into_kernels(source):
            digest.update(source.read_bytes())
    return Path(root) / "otel-anomaly" / digest.hexdigest()[:16]


def _prepare_cache() -> bool:
    """Point numba at our cache folder. Returns whether compiled code can be kept at all."""
    if numba.config.DISABLE_JIT:
        return False
    folder: Path | None = Path(numba.config.CACHE_DIR or _cache_folder())
    assert folder is not None
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        folder = writable_copy(folder) if folder.is_dir() else None
    numba.config.CACHE_DIR = "" if folder is None else str(folder)
    return folder is not None


CACHED = _prepare_cache()
"""False when there is no place to keep compiled kernels: every start then compiles anew."""


def kernel(function: F) -> F:
    """Compile with numba on first call; GIL released, machine code kept on disk."""
    if numba.config.DISABLE_JIT:
        return function
    return cast(F, compiled(function, cache=CACHED, inline=False))


def inlined(function: F) -> F:
    """A small kernel that is compiled into each of its callers: for the innermost steps.

    An array handed to a function that is not inlined costs its whole descriptor and a reference
    count; in the scan that made two thirds of the time.
    """
    if numba.config.DISABLE_JIT:
        return function
    return cast(F, compiled(function, cache=CACHED, inline=True))


def cache_is_warm() -> bool:
    """Whether the judge was compiled before; if not, the first start takes a minute.

    Small kernels are compiled where a table is built at import, and say nothing. Nor does code that
    was compiled from the same source in another place: numba keeps it by the path.
    """
    place = _CacheLocator.get_suitable_cache_subpath(__file__)
    return CACHED and any(Path(numba.config.CACHE_DIR, place).glob("judge.judge-*.nbc"))


def signed(value: int) -> int:
    """The low 64 bits of `value` read as a signed number, as the machine would."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


def load8(data: Array, at: Int) -> Int:
    """Eight bytes of a uint8 array from `at`, little-endian, signed. Needs `at + 8 <= size`."""
    return int.from_bytes(data[at : at + 8].tobytes(), "little", signed=True)


def load1(data: Array, at: Int) -> Int:
    """One byte of a uint8 array. Needs `0 <= at < size`; saves the test for a negative index."""
    return int(data[at])


def load_word(words: Array, at: Int) -> Int:
    """An element of an int64 array. Needs `0 <= at < size`; saves the test as `load1` does."""
    return words[at]


BLOCK = 32
"""Bytes that `between` looks at: as many as one register of most machines holds."""


def between(data: Array, at: Int, first: Int, last: Int) -> Int:
    """Which of the `BLOCK` bytes at `at` are `first` to `last`: bit i for the i-th of them.

    Needs `at + BLOCK <= size` and `first <= last`. A few instructions, whatever the bytes are.
    """
    block = data[at : at + BLOCK]
    bits = np.packbits((first <= block) & (block <= last), bitorder="little")
    return int.from_bytes(bits.tobytes(), "little")


def bit_length(bits: Int) -> Int:
    """How many bits a number, 0 or more, takes: one more than the place of its highest."""
    return int(bits).bit_length()


def bit_count(bits: Int) -> Int:
    """How many bits of a number, 0 or more, are set."""
    return int(bits).bit_count()


def fold(a: Int, b: Int) -> Int:
    """Multiply to 128 bits and xor the halves: the mixing step of wyhash.

    Source: Wang Yi, wyhash (public domain), function `_wymix`.
    """
    product = (int(a) & _WORD) * (int(b) & _WORD)
    return signed((product >> 64) ^ product)


def multiply(a: Int, b: Int, more: Int) -> tuple[Int, Int]:
    """a * b + more in 128 bits, as (upper 64, lower 64); all are taken for numbers without sign."""
    product = (int(a) & _WORD) * (int(b) & _WORD) + (int(more) & _WORD)
    return signed(product >> 64), signed(product)


def room(count: Int) -> Array:
    """A few bytes to work in, gone when the kernel that asks for them returns.

    `count` is a constant. An array that numba allocates costs twice as much as all that is written
    to it where a host is looked at.
    """
    return np.empty(count, np.uint8)


def copy(target: Array, at: Int, source: Array, start: Int, count: Int) -> None:
    """`count` bytes from `source[start:]` to `target[at:]`; the arrays do not overlap."""
    target[at : at + count] = source[start : start + count]


def copy_start(target: Record, source: Record, count: Int) -> None:
    """Copy the fields in the first `count` bytes of a record over those of another of its type.

    `count` is where a field begins, or the size of the record.
    """
    for name in target.dtype.names:
        if target.dtype.fields[name][1] < count:
            target[name] = source[name]


def copy_record(target: Record, source: Record) -> None:
    """Copy one record over another of the same type.

    numba's own assignment moves a record byte by byte, as one value of its whole size: that made a
    tenth of the scan, and most of the time it took to compile.
    """
    for name in target.dtype.names:
        target[name] = source[name]


def prefetch(array: Array, at: Int) -> None:
    """Tell the processor that element `at` of a one-dimensional array is needed soon."""


def prefetch_part(array: Array, at: Int, offset: Int) -> None:
    """The same for what lies `offset` bytes into a record: one line of 64 bytes."""


def borrow(array: Array) -> Array:
    """The same array, not owned: handing it to other kernels counts no references.

    For the arguments of a kernel that Python calls, which holds them until it returns. Counting
    costs two atomic steps an array and call: with the state's dozen arrays, most of the time.
    """
    return array


def _primitive(function: Any) -> Any:
    """`overload` for what is an instruction or a few: nothing is counted there."""
    options: Any = {"nopython": True, "_nrt": False}
    return overload(function, strict=False, jit_options=options)


@intrinsic
def _borrow(_context: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, args[0])
        values.meminfo = cgutils.get_null_value(values.meminfo.type)
        return values._getvalue()  # noqa: SLF001 -- how intrinsics return a structure.

    return array(array), generate


@overload(borrow, strict=False)
def _borrow_compiled(_array: Any) -> Any:
    return lambda _array: _borrow(_array)


@intrinsic
def _load8(_context: Any, data: Any, _at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        word = ir.IntType(64)
        place = builder.bitcast(builder.gep(array.data, [args[1]]), word.as_pointer())
        value = builder.load(place)
        value.align = 1
        return value

    return types.int64(data, types.intp), generate


@intrinsic
def _load1(_context: Any, data: Any, _at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.zext(builder.load(builder.gep(array.data, [args[1]])), ir.IntType(64))

    return types.int64(data, types.intp), generate


@intrinsic
def _load_word(_context: Any, words: Any, _at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load(builder.gep(array.data, [args[1]]))

    return types.int64(words, types.intp), generate


@intrinsic
def _between(_context: Any, data: Any, _at: Any, _first: Any, _last: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        byte, block = ir.IntType(8), ir.VectorType(ir.IntType(8), BLOCK)
        place = builder.gep(array.data, [args[1]])
        values = builder.load(builder.bitcast(place, block.as_pointer()))
        values.align = 1
        first, last = (_repeated(builder, builder.trunc(limit, byte)) for limit in args[2:])
        # Unsigned: what is below `first` wraps around and is above as well.
        inside = builder.icmp_unsigned("<=", builder.sub(values, first), builder.sub(last, first))
        return builder.zext(builder.bitcast(inside, ir.IntType(BLOCK)), ir.IntType(64))

    return types.int64(data, types.intp, types.int64, types.int64), generate


def _repeated(builder: Any, byte: Any) -> Any:
    """A byte in each place of a block."""
    block = ir.Constant(ir.VectorType(byte.type, BLOCK), ir.Undefined)
    places = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
    return builder.shuffle_vector(
        builder.insert_element(block, byte, ir.IntType(32)(0)), block, places
    )


@intrinsic
def _bit_length(_context: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        zeros = builder.ctlz(args[0], ir.IntType(1)(0))
        return builder.sub(ir.IntType(64)(64), zeros)

    return types.int64(types.int64), generate


@intrinsic
def _bit_count(_context: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), generate


@intrinsic
def _fold(_context: Any, _a: Any, _b: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
        return builder.xor(high, builder.trunc(product, ir.IntType(64)))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _multiply(_context: Any, _a: Any, _b: Any, _more: Any) -> Any:
    result = types.UniTuple(types.int64, 2)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        a, b, more = (builder.zext(value, wide) for value in args)
        product = builder.add(builder.mul(a, b), more)
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, result, [high, builder.trunc(product, word)])

    return result(types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _room(_context: Any, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None
    result, size, word = types.Array(types.uint8, 1, "C"), count.literal_value, ir.IntType(64)

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), size))
        array = context.make_array(result)(context, builder)
        context.populate_array(
            array,
            data=builder.bitcast(place, array.data.type),
            shape=cgutils.pack_array(builder, [word(size)]),
            strides=cgutils.pack_array(builder, [word(1)]),
            itemsize=word(1),
            meminfo=None,
        )
        return array._getvalue()  # noqa: SLF001 -- how intrinsics return a structure.

    return result(count), generate


# Written into the kernel that asks, so that the bytes are its own.
@overload(room, strict=False, prefer_literal=True, inline="always")
def _room_compiled(_count: Any) -> Any:
    return lambda _count: _room(_count)


@intrinsic
def _copy(_context: Any, target: Any, _at: Any, source: Any, _start: Any, _count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = context.make_array(signature.args[0])(context, builder, args[0])
        of = context.make_array(signature.args[2])(context, builder, args[2])
        cgutils.raw_memcpy(
            builder,
            builder.gep(to.data, [args[1]]),
            builder.gep(of.data, [args[3]]),
            args[4],
            1,
        )
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


@intrinsic
def _copy_record(_context: Any, target: Any, source: Any) -> Any:
    def generate(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        to, of = (builder.bitcast(record, byte) for record in args)
        size = ir.Constant(ir.IntType(64), signature.args[0].size)
        cgutils.raw_memcpy(builder, to, of, size, 1)
        return _context.get_dummy_value()

    return types.void(target, source) if target == source else None, generate


@intrinsic
def _copy_start(_context: Any, target: Any, source: Any, _count: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        to, of = (builder.bitcast(record, byte) for record in args[:2])
        cgutils.raw_memcpy(builder, to, of, args[2], 1)
        return _context.get_dummy_value()

    signature = types.void(target, source, types.intp) if target == source else None
    return signature, generate


@intrinsic
def _prefetch(_context: Any, array: Any, _at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, args[0])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        place = builder.bitcast(builder.gep(values.data, [args[1]]), byte)
        call = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0",
        )
        # For writing (1), keep in all cache levels (3), data (1).
        builder.call(call, [place, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _prefetch_part(_context: Any, array: Any, _at: Any, _offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = context.make_array(signature.args[0])(context, builder, args[0])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        record = builder.bitcast(builder.gep(values.data, [args[1]]), byte)
        call = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0",
        )
        place = builder.gep(record, [args[2]])
        builder.call(call, [place, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


@_primitive(load8)
def _load8_compiled(_data: Any, _at: Any) -> Any:
    return lambda _data, _at: _load8(_data, _at)


@_primitive(load1)
def _load1_compiled(_data: Any, _at: Any) -> Any:
    return lambda _data, _at: _load1(_data, _at)


@_primitive(load_word)
def _load_word_compiled(_words: Any, _at: Any) -> Any:
    return lambda _words, _at: _load_word(_words, _at)


@_primitive(between)
def _between_compiled(_data: Any, _at: Any, _first: Any, _last: Any) -> Any:
    return lambda _data, _at, _first, _last: _between(_data, _at, _first, _last)


@_primitive(bit_length)
def _bit_length_compiled(_bits: Any) -> Any:
    return lambda _bits: _bit_length(_bits)


@_primitive(bit_count)
def _bit_count_compiled(_bits: Any) -> Any:
    return lambda _bits: _bit_count(_bits)


@_primitive(fold)
def _fold_compiled(_a: Any, _b: Any) -> Any:
    return lambda _a, _b: _fold(_a, _b)


@_primitive(multiply)
def _multiply_compiled(_a: Any, _b: Any, _more: Any) -> Any:
    return lambda _a, _b, _more: _multiply(_a, _b, _more)


@_primitive(copy)
def _copy_compiled(_target: Any, _at: Any, _source: Any, _start: Any, _count: Any) -> Any:
    return lambda _target, _at, _source, _start, _count: _copy(
        _target, _at, _source, _start, _count
    )


@_primitive(copy_record)
def _copy_record_compiled(_target: Any, _source: Any) -> Any:
    return lambda _target, _source: _copy_record(_target, _source)


@_primitive(copy_start)
def _copy_start_compiled(_target: Any, _source: Any, _count: Any) -> Any:
    return lambda _target, _source, _count: _copy_start(_target, _source, _count)


@_primitive(prefetch_part)
def _prefetch_part_compiled(_array: Any, _at: Any, _offset: Any) -> Any:
    return lambda _array, _at, _offset: _prefetch_part(_array, _at, _offset)


@_primitive(prefetch)
def _prefetch_compiled(_array: Any, _at: Any) -> Any:
    return lambda _array, _at: _prefetch(_array, _at)
