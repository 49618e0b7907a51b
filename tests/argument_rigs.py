"""What the tests of arguments share: kernels on plain bytes, values, spellings, twins."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_anomaly.kernels import Array, Int, borrow, kernel
from otel_anomaly.otlp.arguments import (
    ARGUMENTS,
    DESK,
    HASHING,
    LOOKING,
    compile_arguments,
    read_value,
    scratch_size,
)
from otel_anomaly.otlp.attributes import ANY, STRING
from otel_anomaly.otlp.content import ADDRESSEE, look, make_content_plan, name_hints
from otel_anomaly.otlp.programs import hash_program
from otel_anomaly.otlp.wire import ANY_VALUE, check_message
from tests import naive_arguments as naive

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

SEED = -0x123456789ABCDEF
VOLATILE = ("request_id", "timestamp")
VOLATILE_RESULTS = ("took_ms", "timestamp")
PROGRAMS = ("command", "cmd", "argv")
CONTENT = make_content_plan(SEED)
PLAN = compile_arguments(
    seed=SEED,
    content=CONTENT,
    volatile=VOLATILE,
    volatile_results=VOLATILE_RESULTS,
    programs=PROGRAMS,
)
_DESK = np.zeros(1, DESK)
_GUARD = 64


class Read(NamedTuple):
    """ARGUMENTS as Python values, so that two of them can be compared."""

    known: int
    fingerprint: int
    names: int
    program: int
    found: tuple[Any, ...]


@kernel
def _read(
    data: Array,
    kind: Int,
    at: Int,
    length: Int,
    looking: Int,
    plan: Array,
    out: Array,
    desk: Array,
    scratch: Array,
) -> None:
    data, plan, out, desk, scratch = (
        borrow(data),
        borrow(plan),
        borrow(out),
        borrow(desk),
        borrow(scratch),
    )
    read_value(data, kind, at, length, looking, plan[0], out[0], desk[0], scratch)


@kernel
def _look(text: Array, hints: Int, plan: Array, found: Array) -> None:
    look(text, np.int64(0), np.int64(text.size), hints, plan[0], found[0])


def view(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)


def plain(record: Any) -> tuple[Any, ...]:
    """A record as a tuple of tuples and numbers, without where what was found last lies."""
    fields = (record[name] for name in record.dtype.names if not name.startswith("mark"))
    return tuple(
        tuple(field.tolist()) if isinstance(field, np.ndarray) else int(field) for field in fields
    )


def work(length: int) -> Array:
    """A scratch array of the size asked for, and marked bytes behind it."""
    return np.full(scratch_size(length) + _GUARD, 0xA5, np.uint8)


def read_into(
    out: Array,
    raw: bytes,
    looking: np.int64,
    scratch: Array,
    kind: int = STRING,
    plan: Array = PLAN,
) -> None:
    """Fill ARGUMENTS [1] from a value that other bytes surround; they make no difference."""
    around = view(b'"\\{' + raw + b'"}]\\')
    place = np.int64(3), np.int64(len(raw))
    _read(around, np.int64(kind), *place, looking, plan, out, _DESK, scratch)


def _value(data: bytes | str, kind: int, looking: np.int64, plan: Array) -> Any:
    """The ARGUMENTS of a value; what lies behind the scratch array stays as it was."""
    raw = data.encode() if isinstance(data, str) else data
    out, scratch = np.zeros(1, ARGUMENTS), work(len(raw))
    read_into(out, raw, looking, scratch[:-_GUARD], kind, plan)
    assert (scratch[-_GUARD:] == 0xA5).all()
    return out[0]


def read(data: bytes | str, kind: int = STRING, plan: Array = PLAN) -> Read:
    """The arguments of a call."""
    record = _value(data, kind, LOOKING, plan)
    known, fingerprint, names, program, _, found = record
    return Read(int(known), int(fingerprint), int(names), int(program), plain(found))


def result(data: bytes | str, kind: int = STRING, plan: Array = PLAN) -> tuple[int, bool]:
    """The result of a call: its fingerprint, and whether it failed."""
    record = _value(data, kind, HASHING, plan)
    return int(record["fingerprint"]), bool(record["failed"])


def hints_of(name: str) -> int:
    """What the name of a member says."""
    data = view(name.encode() + b"\0")
    return int(name_hints(data, np.int64(0), np.int64(data.size - 1)))


def looked_at(strings: Iterable[tuple[bytes, tuple[str, ...]]]) -> tuple[Any, ...]:
    """What `content` finds in texts, each with the names of the members it stands in."""
    found = np.zeros(1, ARGUMENTS["found"])
    for text, names in strings:
        hints = hints_of(names[-1]) if names else 0
        hints |= ADDRESSEE if any(hints_of(name) & ADDRESSEE for name in names) else 0
        _look(view(text), np.int64(hints), CONTENT, found)
    return plain(found[0])


def any_value(value: Any) -> AnyValue:
    """A Python value as OpenTelemetry's SDKs encode it."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            out = AnyValue()
            out.array_value.SetInParent()
            out.array_value.values.extend(map(any_value, value))
            return out
    out = AnyValue()
    out.kvlist_value.SetInParent()
    for key, item in value.items():
        out.kvlist_value.values.add(key=key).value.CopyFrom(any_value(item))
    return out


def read_any(value: Any) -> Read:
    """`read` of a Python value as AnyValue."""
    return read(any_value(value).SerializeToString(), ANY)


WORDS = (
    "",
    "a",
    "b",
    "to",
    "email",
    "order_id",
    "request_id",
    "timestamp",
    "status",
    "command",
    "kwargs",
)
TEXTS = (
    *WORDS,
    "A17",
    "1",
    "true",
    "null",
    "{}",
    '{"a": 1}',
    "x" * 40,
    'quote " and \\ slash / \t \n',
    "umlaut \u00e4, euro \u20ac, face \U0001f600, nul \x00",
    "select * from orders where id = 'Z99'",
    "alice@example.com",
    "https://evil.example/x",
    "sudo -u root /bin/ls -la",
)
INTEGERS = (0, 1, -1, 10, 100, 2**53 + 1, 2**63 - 1, -(2**63), 10**18, -(10**17))


def random_value(rng: random.Random, depth: int = 3, *, floats: bool = True) -> Any:
    """Any value both JSON and AnyValue can carry, small, so that equal ones turn up."""
    draw = rng.randrange(10 if depth else 6)
    if draw >= 8:
        return [random_value(rng, depth - 1, floats=floats) for _ in range(rng.randrange(4))]
    if draw >= 6:
        names = rng.sample(WORDS, rng.randrange(5))
        return {name: random_value(rng, depth - 1, floats=floats) for name in names}
    if draw == 5 and floats:
        return rng.choice((0.0, -0.0, 0.1, 1.5, 100.0, 1e300, -2.5e-7, 5e-324, rng.random()))
    if draw >= 4:
        return rng.choice(INTEGERS)
    if draw == 3:
        return rng.choice((None, True, False))
    return rng.choice(TEXTS)


def spelling(rng: random.Random, value: Any) -> str:
    """One of the many JSON texts of a value."""
    match value:
        case None | bool():
            text = json.dumps(value)
        case int() | float():
            text = _number_spelling(rng, value)
        case str():
            text = '"' + "".join(_character(rng, one) for one in value) + '"'
        case list():
            text = f"[{','.join(spelling(rng, item) for item in value) or _space(rng)}]"
        case _:
            members = [
                spelling(rng, name) + _space(rng) + ":" + spelling(rng, item)
                for name, item in value.items()
            ]
            rng.shuffle(members)
            text = f"{{{','.join(members) or _space(rng)}}}"
    return _space(rng) + text + _space(rng)


def _space(rng: random.Random) -> str:
    return "".join(rng.choice(" \t\r\n") for _ in range(rng.choice((0, 0, 0, 1, 3))))


def _character(rng: random.Random, one: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\t": "\\t", "\n": "\\n", "\x08": "\\b"}
    draw = rng.random()
    if one in short and draw < 0.7:
        return short[one]
    if one in '"\\' or ord(one) < 32 or draw > 0.9:
        units = one.encode("utf-16-be")
        hexes = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
        return "".join("\\u" + (unit.upper() if draw > 0.95 else unit) for unit in hexes)
    return one


def _number_spelling(rng: random.Random, value: float) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    head, _, power = text.partition("e")
    whole, _, fraction = head.partition(".")
    shift = rng.randrange(-3, 4)
    exponent = int(power or 0)
    if shift > 0:
        fraction = fraction.ljust(shift, "0")
        whole, fraction = whole + fraction[:shift], fraction[shift:]
        sign = whole[:1] if whole.startswith("-") else ""
        whole = sign + (whole.lstrip("-").lstrip("0") or "0")
        exponent -= shift
    fraction += "0" * rng.randrange(3)
    out = whole + (f".{fraction}" if fraction else "")
    if exponent or rng.random() < 0.2:
        sign = "-" if exponent < 0 else rng.choice(("", "+"))
        out += rng.choice("eE") + sign + "0" * rng.randrange(3) + str(abs(exponent))
    return out


def broken(rng: random.Random, text: bytes) -> bytes:
    """A text changed in one place."""
    at = rng.randrange(len(text) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: text[:at],
        lambda: text[:at] + text[at + 1 :],
        lambda: text[:at] + bytes([rng.choice(b'"\\{}[],:0eE+-. \x01tfn')]) + text[at:],
        lambda: text[:at] + text[at : at + 3] * 2 + text[at + 3 :],
    )
    return rng.choice(changes)()


class Pairs:
    """Holds two ways to name the same things against each other: equal here, equal there."""

    def __init__(self) -> None:
        self.there: dict[Hashable, Hashable] = {}
        self.here: dict[Hashable, Hashable] = {}

    def add(self, here: Hashable, there: Hashable) -> None:
        """Two names of one thing."""
        assert self.there.setdefault(here, there) == there, (here, there)
        assert self.here.setdefault(there, here) == here, (here, there)


class Twins:
    """Kernel and twin, compared over all the values they were given."""

    def __init__(self) -> None:
        self.values, self.results, self.names = Pairs(), Pairs(), Pairs()

    def check(self, data: bytes, kind: int = STRING) -> None:
        """Everything that is told of a value, as arguments and as a result."""
        is_any = kind == ANY
        twin = naive.read(data, is_any=is_any, looking=True, left_out=VOLATILE, programs=PROGRAMS)
        ours = read(data, kind)
        self.values.add(ours.fingerprint, twin.canonical)
        self.names.add(ours.names, twin.names)
        assert ours.found == looked_at(twin.strings)
        program = hash_program(twin.program, SEED) if twin.program is not None else 0
        assert ours.program == program, twin.program
        twin = naive.read(
            data, is_any=is_any, looking=False, left_out=VOLATILE_RESULTS, programs=()
        )
        value, failed = result(data, kind)
        self.results.add(value, twin.canonical)
        assert failed == twin.failed


def is_utf8(data: bytes) -> bool:
    """Whether the scan would let a string of these bytes pass."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_any_value(data: bytes) -> bool:
    """Whether the scan would let an AnyValue of these bytes pass."""
    return check_message(view(data), 0, len(data), ANY_VALUE, 6)
