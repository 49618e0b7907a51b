"""Values as one hash each, whatever way they are written: the half that knows no syntax.

Two readers, of JSON text and of AnyValue messages, walk over a value from left to right and tell
what they meet. Nothing is kept of it but one frame for each array or object still open:

    {"to": ["a", "b"], "n": 1}
    ^      ^    ^
    |      |    value of a string: hash(text)
    |      array: sum = hash(sum, value) for each, in order; value: hash(sum, count)
    object: sum ^= hash(hash(name), value) for each, in any order; value: hash(sum, count)

Each kind of value has a seed of its own, so 1, "1", true, [1] and {"1": 1} are told apart; counts
are hashed with the sums, so nothing that is concatenated differently is equal. Members with names
of the volatile list are left out at every depth. Two members of one name make the whole value
ambiguous: readers differ about which one counts. It is then hashed as raw bytes, like anything
that cannot be read.

On the way each string is handed to `content.look`, and the place of the value that names a program
is kept: the least deep one, then the one whose name is listed first, then the first to come.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy_record, inlined, kernel
from otel_anomaly.otlp.content import (
    ADDRESSEE,
    CONTENT_PLAN,
    FOUND,
    SECRETIVE,
    is_plain,
    look,
    name_hints,
)
from otel_anomaly.otlp.hashing import hash_bytes, hash_text, hash_two, load_rest
from otel_anomaly.otlp.json_text import BRACKET
from otel_anomaly.otlp.programs import SEARCH

DEPTH_MAX: Final = 64
NAMES_MAX: Final = 4096
"""Member names of all open objects together. Beyond, or nested deeper, bytes are hashed raw."""
_PAIRWISE_MAX: Final = 16
_TABLE: Final = 2 * NAMES_MAX
KNOWN_NAMES: Final = 512
"""Places for names with a meaning; at most half of them are taken."""

VOLATILE, VOLATILE_RESULT, IS_PROGRAM, IS_STATUS, IS_ERROR, IS_SUCCESS = (1 << b for b in range(6))
IS_FAULT, IS_TYPE, IS_OK, IS_WHOLE = (1 << b for b in range(6, 10))
"""Meanings of a member name, bits. IS_WHOLE: of the value that is no member."""
SLOT_SHIFT: Final = 10
SLOTS: Final = (
    "input_str",
    "inputs",
    "args",
    "kwargs",
    "sanitize_inputs_outputs",
    "tool_name",
    "arguments",
)
"""Names that make an envelope when they stand at the top; above SLOT_SHIFT, the number plus one."""
RANK_SHIFT: Final = 16
"""Above it: how early in its list the name of a program stands."""
_AT_TOP: Final = np.int64(IS_PROGRAM | IS_WHOLE | 0xFF << RANK_SHIFT)
"""What the value as a whole may be, if no member is: a command line."""
_TEXTS_OF_FAILURE: Final = np.int64(IS_STATUS | IS_FAULT | IS_TYPE | IS_WHOLE)
_FAILED_DEPTH: Final = 3
_LOWER: Final = np.int64(0x2020202020202020)
_ERROR, _FAILED, _FAILURE, _ERROR_, _TEXT, _JSON, _CONTENT, _STATUS, _IS_ERROR = (
    np.int64(int.from_bytes(word, "little"))
    for word in (
        *(b"error", b"failed", b"failure", b"error-", b"text", b"json"),
        *(b"content=", b" status=", b"'error'"),
    )
)
"""Words as `load_rest` reads them."""

# What keeps the hashes of different kinds of values apart: mixed into the seed.
_NAME: Final = 0x3B67AE8584CAA73B
_LITERAL: Final = 0x254FF53A5F1D36F1
_ARRAY: Final = 0x510E527FADE682D1
_OBJECT: Final = 0x1B05688C2B3E6C1F
_MEMBER: Final = 0x1F83D9ABFB41BD6B
_NAMES: Final = 0x5BE0CD19137E2179

AS_STRING: Final = np.int64(0x6A09E667F3BCC908)
AS_BYTES: Final = np.int64(0x3C6EF372FE94F82B)
AS_RAW: Final = np.int64(0x4CF3E8A5D9B60712)
NULL, FALSE, TRUE = np.arange(3)
_NO_OBJECT, _IS_ARRAY = np.int64(1), np.int64(2)
NO_PROGRAM: Final = np.int64(1 << 40)

ARGUMENT_PLAN = np.dtype(
    [
        ("seed", "i8"),
        ("no_names", "i8"),  # The hash of names of what has none.
        ("name", "i8", (KNOWN_NAMES,)),  # Open addressing by the low bits of the hash.
        ("meaning", "i8", (KNOWN_NAMES,)),
        ("nothing", FOUND),  # All zero.
        ("content", CONTENT_PLAN),
    ],
    align=True,
)
_FRAMES: Final = DEPTH_MAX + 1
DESK = np.dtype(
    [
        # The value read last: its hash, the hash of its set of member names.
        ("value", "i8"),
        ("names", "i8"),
        ("found", FOUND),
        ("failed", "i8"),
        # How to read: whether strings are looked at; which names are left out.
        ("looking", "i8"),
        ("left_out", "i8"),
        # Frames. The one with number 0 holds the value as a whole.
        ("shape", "i8", (_FRAMES,)),
        ("sum", "i8", (_FRAMES,)),
        ("count", "i8", (_FRAMES,)),
        ("first", "i8", (_FRAMES,)),  # Where its names begin in `name`.
        ("member", "i8", (_FRAMES,)),  # Hash of the name whose value comes next.
        ("meaning", "i8", (_FRAMES,)),
        ("hints", "i8", (_FRAMES,)),
        ("start", "i8", (_FRAMES,)),  # Where it begins and ends, where the reader needs it.
        ("end", "i8", (_FRAMES,)),
        ("at", "i8", (_FRAMES,)),
        ("stop", "i8", (_FRAMES,)),
        # Names of the members met so far of each open object, one object after the other.
        ("name", "i8", (NAMES_MAX,)),
        ("taken", "i8"),
        ("table", "i8", (_TABLE,)),
        # Members at the top that may be an envelope: which, where, and what they are.
        ("slots", "i8"),
        ("members", "i8"),
        ("slot_at", "i8", (len(SLOTS),)),
        ("slot_end", "i8", (len(SLOTS),)),
        ("slot_value", "i8", (len(SLOTS),)),
        ("slot_names", "i8", (len(SLOTS),)),
        # The value that names a program: how good it is, and where it lies.
        ("program_key", "i8"),
        ("program_at", "i8"),
        ("program_end", "i8"),
        ("names_program", "i8"),  # Whether the value read last is one that can.
        ("search", SEARCH),
        ("program", "i8"),  # What came of it.
    ],
    align=True,
)
"""Room to work in, for one thread. Nothing in it outlives a value but room."""


@kernel
def begin(desk: Record, plan: Record, looking: Int) -> None:
    """A value as a whole comes next."""
    desk["looking"] = looking
    desk["left_out"] = VOLATILE if looking != 0 else VOLATILE_RESULT
    desk["shape"][0] = 0
    desk["meaning"][0] = _AT_TOP
    desk["hints"][0] = 0
    desk["taken"] = 0
    desk["slots"] = 0
    desk["members"] = 0
    desk["failed"] = 0
    desk["program_key"] = NO_PROGRAM
    copy_record(desk["found"], plan["nothing"])


@inlined
def meaning_of(name: Int, plan: Record) -> Int:
    """The meaning of a member name; 0 for one of no special meaning."""
    place = name & (KNOWN_NAMES - 1)
    while plan["name"][place] != 0:
        if plan["name"][place] == name:
            return plan["meaning"][place]
        place = (place + 1) & (KNOWN_NAMES - 1)
    return np.int64(0)


@inlined
def take_name(text: Array, at: Int, end: Int, level: Int, desk: Record, plan: Record) -> bool:
    """The name of the next member of the object at `level`. False when there are too many."""
    name = hash_bytes(text, at, end - at, plan["seed"] ^ _NAME)
    taken = desk["taken"]
    if taken == NAMES_MAX:
        return False
    desk["name"][taken] = name
    desk["taken"] = taken + 1
    desk["member"][level] = name
    desk["meaning"][level] = meaning_of(name, plan)
    if desk["looking"] != 0:
        above = desk["hints"][level - 1] & ADDRESSEE  # {"to": {"email": X}}: X is for whom it is.
        desk["hints"][level] = name_hints(text, at, end) | above
    return True


@inlined
def put(level: Int, start: Int, end: Int, desk: Record, plan: Record) -> None:
    """The value in `desk` belongs to the frame at `level`; it was read from [start, end)."""
    value, meaning = desk["value"], desk["meaning"][level]
    if desk["shape"][level] == BRACKET:
        desk["sum"][level] = hash_two(desk["sum"][level], value, plan["seed"] ^ _ARRAY)
        desk["count"][level] += 1
    elif meaning & desk["left_out"] == 0:
        desk["sum"][level] ^= hash_two(desk["member"][level], value, plan["seed"] ^ _MEMBER)
        desk["count"][level] += 1
    if meaning != 0:
        _keep(level, start, end, desk)


@kernel
def _keep(level: Int, start: Int, end: Int, desk: Record) -> None:
    """The value of a member whose name has a meaning: where it lies."""
    meaning = desk["meaning"][level]
    if meaning & IS_PROGRAM and desk["names_program"] != 0:
        key = level << 8 | (meaning >> RANK_SHIFT) if level > 0 else NO_PROGRAM - 1
        if key < desk["program_key"]:
            desk["program_key"], desk["program_at"], desk["program_end"] = key, start, end
    slot = ((meaning >> SLOT_SHIFT) & 15) - 1
    if slot >= 0 and level == 1:
        desk["slots"] |= np.int64(1) << slot
        desk["slot_at"][slot], desk["slot_end"][slot] = start, end
        desk["slot_value"][slot], desk["slot_names"][slot] = desk["value"], desk["names"]


@inlined
def open_frame(level: Int, shape: Int, desk: Record) -> None:
    """An array or an object begins. Elements of an array share the hints of its name."""
    desk["shape"][level] = shape
    desk["sum"][level] = 0
    desk["count"][level] = 0
    desk["first"][level] = desk["taken"]
    desk["meaning"][level] = 0
    desk["hints"][level] = desk["hints"][level - 1] if shape == BRACKET else np.int64(0)


@kernel
def close_frame(level: Int, desk: Record, plan: Record) -> bool:
    """The array or object is complete: its value. False when a name stands in it twice."""
    seed = plan["seed"]
    if desk["shape"][level] == BRACKET:
        desk["value"] = hash_two(desk["sum"][level], desk["count"][level], seed ^ _ARRAY)
        desk["names"] = hash_two(_IS_ARRAY, np.int64(-1), seed ^ _NAMES)
        desk["names_program"] = 1
        return True
    desk["names_program"] = 0
    first, count = desk["first"][level], desk["taken"] - desk["first"][level]
    if level == 2 and count > 0 and desk["looking"] == 0 and desk["meaning"][1] & IS_FAULT != 0:
        desk["failed"] = 1
    if _has_twins(first, count, desk):
        return False
    desk["value"] = hash_two(desk["sum"][level], desk["count"][level], seed ^ _OBJECT)
    if level <= 2:
        desk["members"] = count
        names = np.int64(0)
        for i in range(first, first + count):
            names ^= hash_two(desk["name"][i], np.int64(0), seed ^ _NAMES)
        desk["names"] = hash_two(names, count, seed ^ _NAMES)
    desk["taken"] = first
    return True


@kernel
def _has_twins(first: Int, count: Int, desk: Record) -> bool:
    """Whether two of the names are equal. Above some dozen, by a table: time stays linear.

    Of a few, mostly no two have the same last six bits.
    """
    if count <= _PAIRWISE_MAX:
        seen, twice = np.int64(0), np.int64(0)
        for i in range(first, first + count):
            bit = np.int64(1) << (desk["name"][i] & 63)
            twice |= seen & bit
            seen |= bit
        if twice == 0:
            return False
        for i in range(first + 1, first + count):
            for j in range(first, i):
                if desk["name"][i] == desk["name"][j]:
                    return True
        return False
    size = np.int64(2 * _PAIRWISE_MAX)
    while size < 2 * count:
        size *= 2
    desk["table"][:size] = 0
    for i in range(first, first + count):
        name = desk["name"][i]
        place = name & (size - 1)
        while desk["table"][place] != 0:
            if desk["table"][place] == name:
                return True
            place = (place + 1) & (size - 1)
        desk["table"][place] = name
    return False


@inlined
def no_object(desk: Record, plan: Record) -> None:
    """What was read is a value without members: all of them count as one set of names.

    A tool of one argument gets it as plain text, be it `A17`, `42` or `{"a": `.
    """
    desk["names"] = plan["no_names"]
    desk["names_program"] = 0


@inlined
def take_literal(literal: Int, level: Int, desk: Record, plan: Record) -> None:
    """null, false or true."""
    desk["value"] = hash_two(literal, np.int64(0), plan["seed"] ^ _LITERAL)
    no_object(desk, plan)
    if desk["looking"] == 0 and level <= _FAILED_DEPTH:
        meaning = desk["meaning"][level]
        if (meaning & IS_ERROR and literal == TRUE) or (meaning & IS_SUCCESS and literal == FALSE):
            desk["failed"] = 1
        if level == 1 and (
            (meaning & IS_FAULT and literal == TRUE) or (meaning & IS_OK and literal == FALSE)
        ):
            desk["failed"] = 1


@inlined
def take_number(value: Int, desk: Record, plan: Record) -> None:
    """A number, hashed already."""
    desk["value"] = value
    no_object(desk, plan)


@inlined
def take_text(
    text: Array, at: Int, end: Int, kind: Int, level: Int, desk: Record, plan: Record
) -> None:
    """A text of one of the kinds AS_STRING, AS_BYTES, AS_RAW; a string is decoded already."""
    desk["value"] = hash_bytes(text, at, end - at, plan["seed"] ^ kind)
    no_object(desk, plan)
    if desk["looking"] != 0:
        desk["names_program"] = np.int64(end > at and kind != AS_BYTES)
        hints = desk["hints"][level]
        if hints & SECRETIVE != 0 or not is_plain(text, at, end):
            look(text, at, end, hints, plan["content"], desk["found"])
    elif (
        desk["meaning"][level] & _TEXTS_OF_FAILURE != 0
        and level <= _FAILED_DEPTH
        and kind != AS_BYTES
        and _tells_failure(text, at, end, desk["meaning"][level], level)
    ):
        desk["failed"] = 1


@kernel
def _tells_failure(text: Array, at: Int, end: Int, meaning: Int, level: Int) -> bool:
    """Whether the text of a member with this meaning, or a whole result, says that a call failed.

    A result as LangChain prints it ends with what its tool has no say in.
    """
    text, size = borrow(text), end - at
    if meaning & IS_WHOLE != 0:
        return (
            size >= 23
            and load_rest(text, at, np.int64(8)) == _CONTENT
            and load_rest(text, end - 15, np.int64(8)) == _STATUS
            and load_rest(text, end - 7, np.int64(7)) == _IS_ERROR
        )
    if meaning & IS_STATUS != 0:
        if size == 5:
            return load_rest(text, at, size) | (_LOWER >> 24) == _ERROR
        if level == 1 and size == 6:
            return load_rest(text, at, size) | (_LOWER >> 16) == _FAILED
        return level == 1 and size == 7 and load_rest(text, at, size) | (_LOWER >> 8) == _FAILURE
    if level != 1:
        return False
    if meaning & IS_FAULT != 0:
        return size > 0
    if size != 10 or load_rest(text, at, np.int64(6)) != _ERROR_:
        return False
    kind = load_rest(text, at + 6, np.int64(4))
    return kind == _TEXT or kind == _JSON


@inlined
def is_empty(value: Int, plan: Record) -> bool:
    """Whether a value is [], {} or null."""
    zero = np.int64(0)
    seed = plan["seed"]
    if value == hash_two(zero, zero, seed ^ _ARRAY) or value == hash_two(
        zero, zero, seed ^ _OBJECT
    ):
        return True
    return value == hash_two(NULL, zero, seed ^ _LITERAL)


@kernel
def hash_mixed(one: Int, other: Int, desk: Record, plan: Record) -> Int:
    """Hash of two members at the top together, whatever stands beside them."""
    both = hash_two(desk["slot_value"][one], desk["slot_value"][other], plan["seed"] ^ _MEMBER)
    return hash_two(both, np.int64(2), plan["seed"] ^ _OBJECT)


def hash_no_names(seed: int) -> int:
    """The hash of names of what has none."""
    return int(hash_two(_NO_OBJECT, np.int64(-1), seed ^ _NAMES))


def hash_name(name: str, seed: int) -> int:
    """Hash of a member name, as the readers see it."""
    return hash_text(name, seed ^ _NAME)
