"""The slow twin of the argument readers: `json`, dicts, sorted members, recursion.

Values are equal when their canonical bytes are: members sorted by name, lengths in front, numbers
as sign, digits and exponent. RFC 8785 in spirit, but for numbers: those it cuts to a double.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_anomaly.kernels import signed
from tests import wire_reader
from tests import wire_writer as wire
from tests.naive_programs import first_program
from tests.surrogates import without_halves

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

DEPTH_MAX, NAMES_MAX = 64, 4096
STEPS = 4
Place = tuple[int, int]


class Unreadable(Exception):
    """The bytes count as they are."""


class Number(str):
    """A number as it is spelled, so that nothing of it is lost."""

    __slots__ = ()


class NotFinite(str):
    """An infinity or a NaN, which JSON has no number for."""

    __slots__ = ()


class Reading(NamedTuple):
    """All that there is to know of a value."""

    canonical: bytes
    names: object
    """Equal for equal sets of member names; one for all that is no object, one for arrays."""
    program: str | None
    strings: list[tuple[bytes, tuple[str, ...]]]
    """Every text to be looked at, in order, with the names of the members it stands in."""
    failed: bool = False


def read(
    data: bytes, *, is_any: bool, looking: bool, left_out: Collection[str], programs: Sequence[str]
) -> Reading:
    """What the kernel makes of a value: JSON text, or an AnyValue message."""
    if not is_any:
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        value = parse_any(data) if is_any else parse_text(data)
        check_limits(value)
    except Unreadable:
        raw = b"r" + data
        program = None
        if not is_any and not data.startswith((b"{", b"[")):
            program = first_program([data.decode()])
        failed = not looking and not is_any and prints_failure(data.decode())
        return Reading(raw, None, program if looking else None, [(data, ())], failed)
    value, mixed = unwrapped(value, looking=looking, left_out=left_out)
    inner = value["kwargs"] if mixed else value
    return Reading(
        mixed or canonical(value, left_out),
        frozenset(inner) if isinstance(inner, dict) else isinstance(inner, list) or None,
        program_of(value, programs) if looking else None,
        list(strings(value)),
        failed=not looking and (says_failed(value) or fails_at_top(value)),
    )


def is_text(value: Any) -> bool:
    """A string, and not a number kept as one."""
    return isinstance(value, str) and not isinstance(value, (Number, NotFinite))


def parse_text(data: bytes) -> Any:
    """A JSON value, strictly."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise Unreadable
        return dict(pairs)

    def constant(name: str) -> Any:
        raise Unreadable(name)

    try:
        value = json.loads(
            without_halves(data.decode()),
            object_pairs_hook=members,
            parse_int=Number,
            parse_float=Number,
            parse_constant=constant,
        )
    except (ValueError, RecursionError) as error:
        raise Unreadable from error
    return value


def parse_any(data: bytes) -> Any:
    """An AnyValue in the form every encoder writes."""
    found = list(wire_reader.fields(data))
    if not found:
        return None
    if len(found) > 1:
        raise Unreadable
    field = found[0]
    content = data[field.start : field.end]
    match field.number, field.wire_type:
        case 1, wire.BYTES:
            return content.decode()
        case 2, wire.VARINT:
            return wire_reader.varint(content, 0)[0] != 0
        case 3, wire.VARINT:
            return Number(signed(wire_reader.varint(content, 0)[0]))
        case 4, wire.FIXED64:
            number = struct.unpack("<d", content)[0]
            sign = "-" if content[7] & 0x80 else "+"
            return Number(number) if math.isfinite(number) else NotFinite(sign + str(abs(number)))
        case 5, wire.BYTES:
            return [parse_any(item) for item in items(content)]
        case 6, wire.BYTES:
            return parse_map(content)
        case 7, wire.BYTES:
            return content
    raise Unreadable


def items(data: bytes) -> Iterator[bytes]:
    """The messages of a list, if it holds nothing else."""
    for field in wire_reader.fields(data):
        if (field.number, field.wire_type) != (1, wire.BYTES):
            raise Unreadable
        yield data[field.start : field.end]


def parse_map(data: bytes) -> dict[str, Any]:
    """The members of a KeyValueList; a key or a value left out is empty."""
    out: dict[str, Any] = {}
    for item in items(data):
        found = list(wire_reader.fields(item))
        shape = [(field.number, field.wire_type) for field in found]
        if shape not in ([], [(1, 2)], [(2, 2)], [(1, 2), (2, 2)]):
            raise Unreadable
        content = {field.number: item[field.start : field.end] for field in found}
        name = content.get(1, b"").decode()
        if name in out:
            raise Unreadable
        out[name] = parse_any(content.get(2, b""))
    return out


def check_limits(value: Any, depth: int = 0, taken: int = 0) -> None:
    """Not nested too deep, not too many names open at once."""
    if isinstance(value, (dict, list)) and depth == DEPTH_MAX:
        raise Unreadable
    if isinstance(value, list):
        for item in value:
            check_limits(item, depth + 1, taken)
    elif isinstance(value, dict):
        for number, item in enumerate(value.values(), taken + 1):
            if number > NAMES_MAX:
                raise Unreadable
            check_limits(item, depth + 1, number)


def canonical(value: Any, left_out: Collection[str]) -> bytes:
    """Equal for equal values only."""
    match value:
        case None:
            return b"n"
        case bool():
            return b"t" if value else b"f"
        case Number():
            return framed(b"#", canonical_number(value).encode())
        case NotFinite():
            return framed(b"x", value.encode())
        case str():
            return framed(b"s", value.encode())
        case bytes():
            return framed(b"b", value)
        case list():
            parts = [canonical(item, left_out) for item in value]
            return framed(b"[%d:" % len(parts), b"".join(parts))
    members = sorted(
        framed(b"s", name.encode()) + canonical(item, left_out)
        for name, item in value.items()
        if name not in left_out
    )
    return framed(b"{%d:" % len(members), b"".join(members))


def framed(kind: bytes, content: bytes) -> bytes:
    """The content with its kind and its length in front."""
    return kind + b"%d:" % len(content) + content


def canonical_number(text: str) -> str:
    """sign digits e exponent, the digits without zeros at either end."""
    match = re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?", text)
    assert match, text
    sign, whole, fraction, power = (part or "" for part in match.groups())
    digits = (whole + fraction).lstrip("0")
    exponent = int(power or 0)
    if not digits:
        return "0"
    if abs(exponent) > 999_999_999:
        return f"spelt {text}"
    kept = digits.rstrip("0")
    return f"{sign}{kept}e{exponent - len(fraction) + len(digits) - len(kept)}"


def unwrapped(value: Any, *, looking: bool, left_out: Collection[str]) -> tuple[Any, bytes]:
    """(what is inside, nothing); with `args` and `kwargs` both: (the envelope, canonical bytes)."""
    text_left = True
    for _ in range(STEPS):
        if isinstance(value, dict) and looking:
            name = envelope(value, left_out)
            if name is None:
                break
            if name == "both":
                both = [canonical(value[part], left_out) for part in ("kwargs", "args")]
                return value, framed(b"both", b"".join(both))
            value = value[name]
        elif is_text(value) and text_left:
            try:
                inner = parse_text(value.encode())
                check_limits(inner)
            except Unreadable:
                break
            if not isinstance(inner, dict):
                break
            value, text_left = inner, False
        else:
            break
    return value, b""


def envelope(value: dict[str, Any], left_out: Collection[str]) -> str | None:
    """The member that a tool was called with, "both" of two, or None."""

    nothing: tuple[Any, ...] = (None, [], {})
    empty = {canonical(one, ()) for one in nothing}

    def is_empty(name: str) -> bool:
        return canonical(value.get(name), left_out) in empty

    names = set(value)
    if {"input_str", "inputs"} <= names:
        return "input_str" if is_empty("inputs") else "inputs"
    if names == {"tool_name", "arguments"}:
        return "arguments"
    if "kwargs" not in names or not names <= {"args", "kwargs", "sanitize_inputs_outputs"}:
        return None
    if is_empty("args"):
        return "kwargs"
    return "args" if is_empty("kwargs") else "both"


def says_failed(value: Any, depth: int = 1) -> bool:
    """Whether a result tells of a failure, not deeper than three."""
    if depth > 3:
        return False
    if isinstance(value, list):
        return any(says_failed(item, depth + 1) for item in value)
    if not isinstance(value, dict):
        return False
    status = value.get("status")
    told = isinstance(status, str) and re.fullmatch("error", status, re.IGNORECASE | re.ASCII)
    flags = (value.get("is_error"), value.get("isError"), value.get("success", True) is False)
    return bool(told) or True in flags or any(says_failed(v, depth + 1) for v in value.values())


def prints_failure(value: str) -> bool:
    """Whether text is a message of a tool that failed, as LangChain prints it."""
    return re.fullmatch("content=.* status='error'", value, re.DOTALL) is not None


def fails_at_top(value: Any) -> bool:
    """Whether a result tells of a failure in a way that counts only there."""
    if is_text(value):
        return prints_failure(value)
    if not isinstance(value, dict):
        return False
    fault = value.get("error")
    if fault is True or (isinstance(fault, dict) and fault) or (is_text(fault) and fault):
        return True
    status, kind = value.get("status"), value.get("type")
    if is_text(status) and status.isascii() and status.lower() in {"failed", "failure"}:
        return True
    return value.get("ok", True) is False or (
        is_text(kind) and kind in {"error-text", "error-json"}
    )


def strings(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """Every text with the names of the members it stands in, the outermost first."""
    if isinstance(value, dict):
        for member, item in value.items():
            yield from strings(item, (*names, member))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, names)
    elif isinstance(value, bytes):
        yield value, names
    elif is_text(value):
        yield value.encode(), names


def program_of(value: Any, programs: Sequence[str]) -> str | None:
    """The program that the best member names: least deep, then first of the list, then first."""
    best = min(program_members(value, programs, 1), key=lambda found: found[:2], default=None)
    if best is None:
        best = (0, 0, value)
    line = best[2]
    words = line if isinstance(line, list) else [line]
    texts_only = []
    for word in words:
        if not is_text(word):
            break
        texts_only.append(word)
    return first_program(texts_only)


def program_members(
    value: Any, programs: Sequence[str], depth: int
) -> Iterator[tuple[int, int, Any]]:
    """(depth, rank, value) of members that may name a program, in the order they end."""
    pairs: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        pairs = ((None, item) for item in value)
    for name, item in pairs:
        yield from program_members(item, programs, depth + 1)
        if name in programs and (isinstance(item, list) or (is_text(item) and item != "")):
            yield depth, programs.index(name), item
