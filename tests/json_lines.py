"""OTLP/JSON as no serialiser writes it, drawn from the protobuf descriptors; and the question
whether the codec and its slow twin agree about a line or a body.

Names come in either spelling and with escapes, members come twice, of a oneof come several; numbers
come in every notation; white space, nulls and unknown members are strewn in. Few values do not fit.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.json import REQUEST_OF, decode, encode
from tests import naive_json

F = FieldDescriptor
DOUBLES: Final = (
    *("0", "-0", "-0.0", "1", "1.5", "-2e3", "1E-7", "1e22", "1e23", "5e-324", "2e-324", "1e308"),
    *("1e309", "-1e309", "9007199254740993", "9007199254740993.0", "1e-400", "0.1", "1e+5", "NaN"),
    *("1.7976931348623158e308", "1.7976931348623159e308", "2.2250738585072011e-308", "Infinity"),
    *("123456789012345678901234567890", "0." + "0" * 30 + "123", "1" + "0" * 400, "-Infinity"),
    "9007199254740993" + "0" * 25 + "1e-26",
)
WHOLES: Final = (
    *("0", "-0", "1", "-1", "7e0", "1e3", "15e-1", "1.0", "9.5", "255", "2147483647", "2147483648"),
    *("-2147483648", "-2147483649", "4294967295", "4294967296", "9223372036854775807", "1e18"),
    *("9223372036854775808", "-9223372036854775808", "-9223372036854775809", "1e19", "1e20"),
    *("18446744073709551615", "18446744073709551616", "99999999999999999999", "1e400", "NaN"),
    *("9.223372036854775807e18", "-9223372036854775808.0", "1.8446744073709551e19", "1e-400"),
)
TEXTS: Final = (
    "",
    "a",
    "b" * 40,
    "c" * 200,
    '"\\/\b\f\n\r\t',
    "\x01\x7f",
    "\u00fc\u20ac\U0001f600",
)
MISFITS: Final = (
    *("[]", "{}", "7", '"x"', "true", '"\\ud800"', "[1]", '{"a":1}', "NaN", '"12a"', '" 1"', '""'),
    *('"0123456789012345678901234567890"', '"\\u0031"', '"-0"', '"1.0"', '"QQ=="', '"a-_="', "1.5"),
)
UNKNOWN: Final = (*MISFITS, "null", "[[],[{}]]", '{"a":{"b":[1,"\\u00e9\\udfff",-2.5e-3]}}', "-1")
BROKEN: Final = ("", "+1", "01", "1.", ".5", "1e", "'x'", "nul", '"\n"', '"\\x"', '"\\u12"', "[1,]")


class Writer:
    """Lines of one generator of chance. `odd` is how often something is out of the way."""

    def __init__(self, rng: random.Random, odd: float = 0.05) -> None:
        self.rng, self.odd = rng, odd

    def space(self) -> str:
        return self.rng.choice((" ", "\n", "\t\r ", "  ")) if self.rng.random() < self.odd else ""

    def text(self, value: str) -> str:
        """A string, at times with escapes that it does not need."""
        if self.rng.random() < self.odd:
            units = value.encode("utf-16-be", "surrogatepass").hex()
            return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'
        return json.dumps(value, ensure_ascii=self.rng.random() < 0.5)

    def bare_or_quoted(self, value: str) -> str:
        return value if self.rng.random() < 0.6 else self.text(value)

    def scalar(self, field: Any) -> str:
        rng = self.rng
        if rng.random() < self.odd / 4:
            return rng.choice(BROKEN if rng.random() < 0.1 else MISFITS)
        match field.type:
            case F.TYPE_STRING:
                return self.text(rng.choice(TEXTS))
            case F.TYPE_BYTES:
                letters = rng.choice(
                    ("", "0aFF", "5B8Eff", "QUJD", "+/8=", "-_8", "QQ", "AAAA" * 40)
                )
                return self.text(letters if "id" not in field.name else rng.randbytes(8).hex())
            case F.TYPE_BOOL:
                return rng.choice(("true", "false"))
            case F.TYPE_DOUBLE:
                if rng.random() < 0.3:
                    return self.bare_or_quoted(repr(rng.gauss(0, 1) * 10 ** rng.randint(-9, 9)))
                return self.bare_or_quoted(rng.choice(DOUBLES))
            case F.TYPE_ENUM if rng.random() < 0.5:
                return self.text(rng.choice(field.enum_type.values).name)
            case _:
                if rng.random() > self.odd:
                    return self.bare_or_quoted(str(rng.getrandbits(rng.randint(0, 31))))
                return self.bare_or_quoted(rng.choice(WHOLES))

    def value(self, field: Any, depth: int) -> str:
        one = lambda: (  # noqa: E731
            self.message(field.message_type, depth - 1)
            if field.message_type
            else self.scalar(field)
        )
        if not field.is_repeated:
            return one()
        items = [one() for _ in range(self.rng.choice((0, 1, 1, 2, 3)))]
        if items and field.message_type and self.rng.random() < self.odd:
            items.append("null")
        return f"[{self.space()}{(self.space() + ',' + self.space()).join(items)}{self.space()}]"

    def member(self, descriptor: Any, depth: int) -> str:
        """A name and its value; of messages only while there is depth left."""
        rng = self.rng
        if rng.random() < self.odd:
            name = self.text(rng.choice(("", "x", "nam", "names", "spanID")))
            return f"{name}:{rng.choice(UNKNOWN)}"
        fields = [field for field in descriptor.fields if depth or not field.message_type]
        if not fields:
            return '"x":0'
        field = rng.choice(fields)
        name = field.name if rng.random() < self.odd else field.json_name
        value = "null" if rng.random() < self.odd else self.value(field, depth)
        return f"{self.text(name)}{self.space()}:{self.space()}{value}{self.space()}"

    def message(self, descriptor: Any, depth: int) -> str:
        counts = (1, 2, 2, 3) if depth > 4 else (0, 1, 2, 3, 4)
        members = [self.member(descriptor, depth) for _ in range(self.rng.choice(counts))]
        if members and self.rng.random() < self.odd:
            members.append(self.rng.choice(members))
        return "{" + self.space() + ",".join(members) + "}"


def random_line(rng: random.Random, odd: float = 0.05) -> tuple[Signal, bytes]:
    """A signal and a line."""
    signal = rng.choice(list(Signal))
    line = Writer(rng, odd).message(REQUEST_OF[signal].DESCRIPTOR, 8)
    return signal, line.encode("utf-8", "surrogatepass")


def mutated(rng: random.Random, line: bytes) -> bytes:
    """The line with something cut, doubled or put in, mostly at the borders of its tokens."""
    borders = [i for i, byte in enumerate(line) if byte in b'{}[],:"\\'] or [0]
    at, other = sorted((rng.choice(borders), rng.choice(borders)))
    at += rng.randint(0, 1)
    match rng.randrange(6):
        case 0:
            return line[:at] + line[other:]
        case 1:
            return line[:other] + line[at:]
        case 2:
            return line[:at] + rng.choice((*BROKEN, *MISFITS, *DOUBLES)).encode() + line[at:]
        case 3:
            return line[:at] + rng.choice((*MISFITS, *WHOLES)).encode() + line[other:]
        case 4:
            return line[:at] + rng.randbytes(1) + line[at:]
        case _:
            return line[:at]


def check_line(line: bytes, signal: Signal) -> bytes | None:
    """AssertionError unless codec and twin agree about a line. Returns its bytes if it is one.

    The order of fields differs: ours stand as in the line. So what is compared is the message, and
    the size, which says that nothing is there twice.
    """
    try:
        expected = naive_json.decode(line, signal)
    except ValueError:
        expected = None
    try:
        body = decode(line, signal)
    except ValueError:
        assert expected is None, f"refused: {line!r}"
        return None
    assert expected is not None, f"accepted: {line!r}"
    assert REQUEST_OF[signal].FromString(body).SerializeToString() == expected
    assert len(body) == len(expected)
    return body


def check_body(body: bytes, signal: Signal) -> bytes | None:
    """The same for a body: they write the same line. Returns it if the body is a request."""
    try:
        expected = naive_json.encode(body, signal)
    except ValueError:
        expected = None
    try:
        line = encode(body, signal)
    except ValueError:
        assert expected is None, f"refused: {body!r}"
        return None
    assert line == expected
    return line
