"""What a call was handed, and what it answered, from one pass over the bytes.

    arguments   fingerprint, set of names, program, and what `content` finds in the strings
    a result    fingerprint, and whether it says that the call failed: a member `status` that is
                "error", `is_error` or `isError` true, or `success` false, in an object that is
                not more than three deep; at the top also `status` "failed" or "failure", `ok`
                false, `type` "error-text" or "error-json", and `error` with a text that is not
                empty, true or an object with members; or text as LangChain prints a failure:
                `content=.. status='error'`

The fingerprint is equal for any spelling of the same value (see `canonical`). Instrumentations
put what a tool was called with into envelopes of their own; what is inside counts:

    {"input_str": .., "inputs": X, ..}                        X     LangChain callbacks
    {"args": [], "kwargs": X, "sanitize_inputs_outputs": ..}  X     decorated functions
    {"args": X, "kwargs": {}}                                 X     both, when neither is empty
    {"tool_name": .., "arguments": X}                         X
    "{\\"a\\": 1}"                                              {"a": 1}, once

A second pass then reads X alone, so what an envelope says beside it (tags, who called) is not
taken for what the tool got. Of results only the string is unwrapped. A byte order mark in front of
a text is no part of it. The time is linear in the length: at most `PASSES_MAX` passes.

What is not strict JSON, holds a name twice, is nested deeper than 64 or has more than 4 096
member names open at once is hashed as raw bytes; strings are then looked for in all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy_record, inlined, kernel, load1
from otel_anomaly.otlp.attributes import ANY, INT, NONE, STRING
from otel_anomaly.otlp.canonical import (
    ARGUMENT_PLAN,
    AS_RAW,
    DESK,
    FALSE,
    IS_ERROR,
    IS_FAULT,
    IS_OK,
    IS_PROGRAM,
    IS_STATUS,
    IS_SUCCESS,
    IS_TYPE,
    KNOWN_NAMES,
    NO_PROGRAM,
    RANK_SHIFT,
    SLOT_SHIFT,
    SLOTS,
    TRUE,
    VOLATILE,
    VOLATILE_RESULT,
    begin,
    hash_mixed,
    hash_name,
    hash_no_names,
    is_empty,
    take_literal,
    take_number,
    take_text,
)
from otel_anomaly.otlp.content import FOUND
from otel_anomaly.otlp.json_text import (
    BRACE,
    BRACKET,
    COMMA,
    QUOTE,
    either,
    read_string,
    skip_mark,
    skip_space,
)
from otel_anomaly.otlp.numbers import hash_int
from otel_anomaly.otlp.programs import FOUND as FOUND_IT
from otel_anomaly.otlp.programs import START, read_argument
from otel_anomaly.otlp.values import LIST, TEXT, any_member, read_any, read_text
from otel_anomaly.otlp.wire import read_length, read_tag, read_varint

__all__ = ["ARGUMENT_PLAN", "DESK"]

ARGUMENTS = np.dtype(
    [
        ("known", "i8"),  # 0: there are none; all other fields are then 0.
        ("fingerprint", "i8"),
        ("names", "i8"),  # Hash of the set of member names at the top; one for all non-objects.
        ("program", "i8"),  # Hash of the program they name; 0: none.
        ("failed", "i8"),  # Of a result: whether it says that the call failed.
        ("found", FOUND),
    ],
    align=True,
)
HASHING, LOOKING = np.arange(2)
"""How a value is read: as the result of a call, or as its arguments."""
PASSES_MAX: Final = 6
"""Four envelopes within each other, and one string that looked like an object and was none."""
LIST_MAX: Final = 64
"""Names in each list of a plan."""
_FAILURES: Final = (
    ("status", IS_STATUS),
    ("is_error", IS_ERROR),
    ("isError", IS_ERROR),
    ("success", IS_SUCCESS),
    ("error", IS_FAULT),
    ("type", IS_TYPE),
    ("ok", IS_OK),
)
_INPUT_STR, _INPUTS, _ARGS, _KWARGS, _SANITIZE, _TOOL_NAME, _ARGUMENTS = range(len(SLOTS))
_NO_SLOT, _MIXED = np.int64(-1), np.int64(-2)


def compile_arguments(
    *,
    seed: int,
    content: Array,
    volatile: Sequence[str] = (),
    volatile_results: Sequence[str] = (),
    programs: Sequence[str] = (),
) -> Array:
    """The plan [1] of a configuration. Of `programs`, names listed first count first.

    `content` is the CONTENT_PLAN [1]. ValueError when a list is longer than `LIST_MAX`.
    """
    meanings: dict[str, int] = {}

    def mean(name: str, meaning: int) -> None:
        meanings[name] = meanings.get(name, 0) | meaning

    for names in (volatile, volatile_results, programs):
        if len(names) > LIST_MAX:
            message = f"more than {LIST_MAX} names: {len(names)}"
            raise ValueError(message)
    for name in volatile:
        mean(name, VOLATILE)
    for name in volatile_results:
        mean(name, VOLATILE_RESULT)
    for rank, name in enumerate(dict.fromkeys(programs)):
        mean(name, IS_PROGRAM | rank << RANK_SHIFT)
    for name, meaning in _FAILURES:
        mean(name, meaning)
    for slot, name in enumerate(SLOTS):
        mean(name, (slot + 1) << SLOT_SHIFT)
    plan = np.zeros(1, ARGUMENT_PLAN)
    plan["seed"], plan["no_names"] = seed, hash_no_names(seed)
    plan["content"] = content
    for name, meaning in meanings.items():
        _enter(plan[0], hash_name(name, seed), meaning)
    return plan


def _enter(plan: Record, name: int, meaning: int) -> None:
    place = name % KNOWN_NAMES
    while plan["name"][place] != 0:
        place = (place + 1) % KNOWN_NAMES
    plan["name"][place] = name
    plan["meaning"][place] = meaning


def scratch_size(length: int) -> int:
    """How large `scratch` must be for values of up to `length` bytes."""
    return 2 * length + 64


@kernel
def read_value(
    data: Array,
    kind: Int,
    at: Int,
    length: Int,
    looking: Int,
    plan: Record,
    out: Record,
    desk: Record,
    scratch: Array,
) -> None:
    """Fill ARGUMENTS from the value of an attribute: kind and place as `otlp.scan` tells them.

    `looking` is LOOKING for arguments, HASHING for results. `scratch` has `scratch_size(length)`
    bytes; a value for which it is too small is read as raw bytes. One kernel for both: what calls
    it is compiled together with all of it.
    """
    out["known"] = 0 if kind == NONE else 1
    if kind == NONE:
        out["fingerprint"], out["names"], out["program"], out["failed"] = 0, 0, 0, 0
        copy_record(out["found"], plan["nothing"])
        return
    _read(data, kind, at, at + length, looking, plan, desk, scratch)
    out["fingerprint"], out["names"] = desk["value"], desk["names"]
    out["program"], out["failed"] = desk["program"], desk["failed"]
    copy_record(out["found"], desk["found"])


@inlined
def _read_scalar(
    data: Array, kind: Int, at: Int, end: Int, looking: Int, plan: Record, desk: Record
) -> None:
    """A value of kind BOOL or INT."""
    begin(desk, plan, looking)
    number, _ = read_varint(data, at, end)
    if kind == INT:
        take_number(hash_int(number, plan["seed"]), desk, plan)
    else:
        take_literal(TRUE if number != 0 else FALSE, np.int64(0), desk, plan)


@kernel
def _read(
    data: Array,
    kind: Int,
    at: Int,
    end: Int,
    looking: Int,
    plan: Record,
    desk: Record,
    scratch: Array,
) -> None:
    """Any value into `desk`, and what is inside instead as long as it is an envelope.

    A string that looks like an object and is none is read once more, as the string it is.
    """
    data, scratch = borrow(data), borrow(scratch)
    desk["program"] = 0
    if kind == STRING:
        at = skip_mark(data, at, end)
    if kind != STRING and kind != ANY:
        _read_scalar(data, kind, at, end, looking, plan, desk)
        return
    text, room = either(data, scratch, decoded=False), np.int64(0)
    whole_at, whole_end = at, end
    outer, outer_kind, outer_at, outer_end = text, kind, at, end
    fits, text_left, tried = scratch.size >= 2 * (end - at) + 64, True, False
    for turn in range(PASSES_MAX):
        if kind == ANY:
            readable = fits and read_any(text, at, end, desk, plan, looking)
        else:
            readable = fits and read_text(text, at, end, room, desk, plan, looking, scratch)
        if not readable and not tried:
            _take_raw(data, whole_at, whole_end, fits and outer_kind == STRING, looking, plan, desk)
            kind = np.int64(NONE)
            break
        if not readable:
            text, kind, at, end, room = outer, outer_kind, outer_at, outer_end, np.int64(0)
            tried = False
            continue
        if turn >= PASSES_MAX - 2:
            break
        slot = _slot_inside(desk, plan) if looking != 0 else _NO_SLOT
        if slot == _MIXED:
            desk["value"] = hash_mixed(_KWARGS, _ARGS, desk, plan)
            desk["names"] = desk["slot_names"][_KWARGS]
            break
        tried = bool(slot < 0)
        if slot >= 0:
            at, end = desk["slot_at"][slot], desk["slot_end"][slot]
        else:
            start, stop, decoded = _object_in_text(text, kind, at, end, scratch, room)
            if start < 0 or not text_left:
                break
            text_left = False
            outer, outer_kind, outer_at, outer_end = text, kind, at, end
            text, kind, at, end = either(text, scratch, decoded), np.int64(STRING), start, stop
            room = stop if decoded else room
    if desk["program_key"] != NO_PROGRAM and looking != 0:
        _find_program(text, kind, room, plan, desk, scratch)


@kernel
def _take_raw(
    data: Array, at: Int, end: Int, is_text: bool, looking: Int, plan: Record, desk: Record
) -> None:
    """The value as a whole cannot be read: its bytes count as they are.

    Only text that fits into the scratch array may be a command line, and none that looks like JSON.
    """
    data = borrow(data)
    begin(desk, plan, looking)
    take_text(data, at, end, AS_RAW, np.int64(0), desk, plan)
    if is_text and at < end and load1(data, at) != BRACE and load1(data, at) != BRACKET:
        desk["program_key"], desk["program_at"], desk["program_end"] = 0, at, end


@kernel
def _find_program(
    text: Array, kind: Int, room: Int, plan: Record, desk: Record, scratch: Array
) -> None:
    """Search the command line, or list of arguments, whose place is in `desk`.

    `kind` NONE: a text as it stands. An element that is no string ends the search.
    """
    text, scratch = borrow(text), borrow(scratch)
    at, end = desk["program_at"], desk["program_end"]
    member = np.int64(TEXT)
    if kind == ANY:
        member, at, end = any_member(text, at, end)
    elif kind == STRING and load1(text, at) == BRACKET:
        at += 1
    search = desk["search"]
    search["state"], search["program"] = START, 0
    while at < end and search["state"] != FOUND_IT:
        start, stop, decoded = at, end, False
        if kind == STRING:
            at = skip_space(text, at, end)
            if at == end or load1(text, at) != QUOTE:
                break
            at, start, stop, decoded = read_string(text, at, end, scratch, room)
            at = skip_space(text, at, end)
            if at < end and load1(text, at) == COMMA:
                at += 1
        elif member == LIST:
            start, stop = _text_item(text, at, end)
            at = stop
        else:
            at = end
        if start < 0:
            break
        read_argument(
            either(text, scratch, decoded), start, stop, search, scratch, room, plan["seed"]
        )
    desk["program"] = search["program"]


@inlined
def _text_item(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the text of the next AnyValue in a list read before lies, or -1 for another value."""
    _, at = read_tag(data, at, end)
    at, stop = read_length(data, at, end)
    member, start, stop = any_member(data, at, stop)
    return (start if member == TEXT else np.int64(-1)), stop


@kernel
def _slot_inside(desk: Record, plan: Record) -> Int:
    """Which member of the object just read is what a tool was called with, or _NO_SLOT.

    _MIXED: `args` and `kwargs`, and neither is empty.
    """
    slots = desk["slots"]
    if slots == 0:
        return _NO_SLOT
    both = np.int64(1 << _INPUT_STR | 1 << _INPUTS)
    if slots & both == both:
        empty = is_empty(desk["slot_value"][_INPUTS], plan)
        return np.int64(_INPUT_STR) if empty else np.int64(_INPUTS)
    count = desk["members"]
    if slots == 1 << _TOOL_NAME | 1 << _ARGUMENTS and count == 2:
        return np.int64(_ARGUMENTS)
    others = slots & ~np.int64(1 << _ARGS | 1 << _SANITIZE)
    marked = (slots & 1) + (slots >> 1 & 1) + (slots >> 2 & 1) + (slots >> 3 & 1) + (slots >> 4 & 1)
    if others != 1 << _KWARGS or count != marked:
        return _NO_SLOT
    if slots >> _ARGS & 1 == 0 or is_empty(desk["slot_value"][_ARGS], plan):
        return np.int64(_KWARGS)
    return np.int64(_ARGS) if is_empty(desk["slot_value"][_KWARGS], plan) else _MIXED


@kernel
def _object_in_text(
    text: Array, kind: Int, at: Int, end: Int, scratch: Array, room: Int
) -> tuple[Int, Int, bool]:
    """(begin, end, whether decoded to `scratch`) of a string that may hold an object; else -1."""
    text, scratch = borrow(text), borrow(scratch)
    decoded = False
    if kind == ANY:
        member, start, stop = any_member(text, at, end)
        found = member == TEXT
    else:
        start = stop = skip_space(text, at, end)
        found = start < end and load1(text, start) == QUOTE
        if found:
            _, start, stop, decoded = read_string(text, start, end, scratch, room)
    if not found:
        return np.int64(-1), end, False
    start = skip_space(either(text, scratch, decoded), start, stop)
    if start == stop or load1(either(text, scratch, decoded), start) != BRACE:
        return np.int64(-1), end, False
    return start, stop, decoded
