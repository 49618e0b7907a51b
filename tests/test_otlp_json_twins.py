"""The JSON kernels against their slow twin: what is accepted, what comes out, to the last byte."""

from __future__ import annotations

import math
import random
import re
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.json import REQUEST_OF, decode, encode
from otel_anomaly.otlp.json_lengths import LINE_BYTES_MAX, capacity_of
from otel_anomaly.otlp.json_skipping import NESTING_MAX
from tests import log_traffic, traffic
from tests.json_lines import MISFITS, UNKNOWN, WHOLES, check_body, check_line, mutated, random_line
from tests.sizes import scaled
from tests.test_otlp_json import (
    CAPTURES,
    GOLDEN_LOGS,
    GOLDEN_METRICS,
    GOLDEN_TRACES,
    fill,
    in_span,
    in_value,
    signal_of,
)
from tests.wire_writer import chunk, group, number, varint

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = [
    (Signal.TRACES, GOLDEN_TRACES.encode()),
    (Signal.METRICS, GOLDEN_METRICS.encode()),
    (Signal.LOGS, GOLDEN_LOGS.encode()),
]


# --- Lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(400)))
def test_random_lines(seed: int) -> None:
    """
    Scenario: lines with names in any spelling, members twice, numbers in any notation, some of
    them out of range; then the same with pieces cut out, put in or doubled.
    Guarantees: kernel and twin accept the same and read the same; nothing is on the wire twice;
    what was read is written as the twin writes it.
    """
    rng = random.Random(seed)
    signal, line = random_line(rng, odd=rng.choice((0.01, 0.05, 0.2)))
    for changed in (line, mutated(rng, line), mutated(rng, mutated(rng, line))):
        body = check_line(changed, signal)
        if body is not None:
            assert check_body(body, signal) is not None


def test_random_lines_are_of_both_kinds() -> None:
    """
    Scenario: the lines of the test above, as they are drawn.
    Guarantees: many are accepted and hold something, many are refused: neither side is vacuous.
    """
    bodies = [check_line(line, signal) for signal, line in map(_drawn, range(60))]
    assert sum(body is None for body in bodies) > 5
    assert sum(body is not None and len(body) > 30 for body in bodies) > 15


def _drawn(seed: int) -> tuple[Signal, bytes]:
    return random_line(random.Random(seed), odd=0.03)


@pytest.mark.parametrize(("signal", "line"), GOLDEN, ids=lambda part: str(part)[:12])
def test_cut_at_every_byte(signal: Signal, line: bytes) -> None:
    """
    Scenario: a line cut behind each of its bytes, and a request cut behind each of its bytes.
    Guarantees: a cut line is refused; a cut request is refused or is what the twin reads.
    """
    body = check_line(line, signal)
    assert body is not None
    for end in range(len(line)):
        assert check_line(line[:end], signal) is None
    for end in range(len(body)):
        check_body(body[:end], signal)


@pytest.mark.parametrize("text", sorted({*MISFITS, *UNKNOWN, *WHOLES}))
def test_every_value_in_every_place(text: str) -> None:
    """
    Scenario: odd values in fields of every type, in a list of numbers and under a name that nobody
    knows.
    Guarantees: kernel and twin agree about each.
    """
    spans = '{"resourceSpans":[{"scopeSpans":[{"spans":[{"%s":%s}]}]}]}'
    names = ("traceId", "name", "kind", "flags", "startTimeUnixNano", "events", "status", "new")
    for name in names:
        check_line((spans % (name, text)).encode(), Signal.TRACES)
    value = '{"resourceSpans":[{"resource":{"attributes":[{"value":{"%s":%s}}]}}]}'
    names = ("boolValue", "intValue", "doubleValue", "bytesValue", "arrayValue", "stringValue")
    for name in names:
        check_line((value % (name, text)).encode(), Signal.TRACES)
    points = (
        '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"%s":{"dataPoints":[{"%s":[%s]}]}}]}]}]}'
    )
    for name in ("bucketCounts", "explicitBounds"):
        check_line((points % ("histogram", name, text)).encode(), Signal.METRICS)
    metric = '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"exponentialHistogram":%s}]}]}]}'
    check_line(
        (metric % f'{{"dataPoints":[{{"scale":{text},"zeroCount":1}}]}}').encode(), Signal.METRICS
    )


def test_the_last_one_counts() -> None:
    """
    Scenario: members that come twice, in one spelling and in both; of a oneof several; long ones
    and short ones, one inside another.
    Guarantees: only the last is on the wire, and lengths around it are right; a null says nothing;
    one that does not fit is refused although another replaces it.
    """
    long, longer = "x" * 150, "y" * 20_000
    for first in ('"a"', f'"{long}"', f'"{longer}"'):
        for second in ('"b"', f'"{long}"', "null"):
            name = f'"name":{first},"attributes":[{{"key":{first},"key":{second}}}],"name":{second}'
            check_line(in_span().replace(b"{}", b"{" + name.encode() + b"}"), Signal.TRACES)
    both = b'{"array_value":{"values":[{},{}]},"stringValue":"a","arrayValue":{"values":[{}]}}'
    assert check_line(in_value().replace(b"{}", both), Signal.TRACES)
    misfit = b'{"intValue":"x","intValue":1}'
    assert check_line(in_value().replace(b"{}", misfit), Signal.TRACES) is None
    one = decode(in_span(name="b"), Signal.TRACES)
    twice = in_span(name="a").replace(b'"name": "a"', b'"name":"a","name":"b"')
    assert decode(twice, Signal.TRACES) == one


# --- Bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_random_bodies(seed: int) -> None:
    """
    Scenario: requests written in any way the wire allows: fields in any order and more than once,
    messages in several parts, unknown fields and groups; bytes turned, cut out and doubled.
    Guarantees: kernel and twin accept the same and write the same line.
    """
    rng = random.Random(seed)
    body = bytearray(traffic.random_request(seed, spans=2))
    check_body(bytes(body), Signal.TRACES)
    for _ in range(4 if body else 0):
        at = rng.randrange(len(body))
        if rng.random() < 0.5:
            body[at] ^= 1 << rng.randrange(8)
        else:
            other = rng.randrange(len(body))
            body[at:at] = body[min(at, other) : max(at, other)][:100]
        check_body(bytes(body), rng.choice(list(Signal)))


@pytest.mark.parametrize(
    "path", sorted(CAPTURES.glob("*/*.bin")), ids=lambda path: path.parent.name
)
def test_captures_changed(path: Path) -> None:
    """
    Scenario: requests of real emitters and their lines, each changed in a few places.
    Guarantees: kernel and twin agree about every one.
    """
    signal, body = signal_of(path), path.read_bytes()
    rng = random.Random(len(body))
    line = check_body(body, signal)
    assert line is not None
    for _ in range(scaled(20)):
        check_line(mutated(rng, line), signal)
        at = rng.randrange(len(body))
        check_body(body[:at] + rng.randbytes(1) + body[at + rng.randint(0, 1) :], signal)


def test_in_several_parts() -> None:
    """
    Scenario: a resource, a value, a map in it and a list written in several parts, with others
    between them; a member of a oneof between two parts of another.
    Guarantees: they are put together as protobuf does it.
    """
    text, some = chunk(1, b"a"), chunk(1, chunk(1, b"b"))
    parts = (text, number(2, 1), chunk(5, some), chunk(6, some), chunk(5, b""), number(99, 1))
    rng = random.Random(5)
    for _ in range(200):
        value = b"".join(rng.choices(parts, k=rng.randrange(6)))
        more = b"".join(rng.choices(parts, k=rng.randrange(6)))
        pairs = [chunk(1, b"k"), chunk(2, value), chunk(2, more), chunk(1, b"l"), number(3, 1)]
        rng.shuffle(pairs)
        attribute = chunk(1, b"".join(pairs))
        resource = [chunk(1, attribute), number(2, 7), chunk(1, attribute + number(2, 0))]
        rng.shuffle(resource)
        check_body(chunk(1, b"".join(resource)), Signal.TRACES)
        check_body(chunk(1, chunk(2, chunk(2, chunk(5, value) + chunk(5, more)))), Signal.LOGS)


def test_numbers_on_the_wire() -> None:
    """
    Scenario: packed numbers, such that are not packed, both, cut ones and empty lists; varints that
    are longer than their type; fields of another wire type.
    Guarantees: kernel and twin agree about every one.
    """
    wide = [varint(value) for value in (0, 1, 300, 2**31, 2**32 + 5, 2**63, 2**64 - 1)]
    eight, zigzag = struct.pack("<Qd", 7, -0.0), number(6, 2**32 - 1)
    buckets = [chunk(2, b"".join(wide)), chunk(2, b""), number(2, 2**64 - 1), chunk(2, b"\x80")]
    for bucket in (*buckets, buckets[0] + buckets[2], b"\x12\x01"):
        point = zigzag + chunk(8, number(1, 2**33 + 3) + bucket) + chunk(9, bucket)
        metric = chunk(2, chunk(2, chunk(10, chunk(1, point) + number(2, 2**32 + 1))))
        check_body(chunk(1, metric), Signal.METRICS)
    for packed in (eight, eight[:9], b""):
        for field in (6, 7):
            point = chunk(field, packed) + chunk(field, eight) + struct.pack("<Bd", 0x29, -0.0)
            check_body(chunk(1, chunk(2, chunk(2, chunk(9, chunk(1, point))))), Signal.METRICS)
    for value in (0, 1, 2, 2**31, 2**32 - 1, 2**63, 2**64 - 1):
        span = number(6, value) + number(10, value) + chunk(15, number(3, value))
        attribute = chunk(1, chunk(2, number(2, value)) + number(3, value))
        scope = chunk(2, chunk(2, span + chunk(9, chunk(2, number(3, value)))))
        check_body(chunk(1, chunk(1, attribute) + scope), Signal.TRACES)


def test_deepest_body() -> None:
    """
    Scenario: values and unknown groups nested up to the limit of protobuf and one further.
    Guarantees: kernel and twin agree where the limit is.
    """
    for levels in range(45, 52):
        for innermost in (b"", group(9), group(9, group(9)), chunk(1, b"x"), chunk(9, b"\xff")):
            value = innermost
            for _ in range(levels):
                value = chunk(5, chunk(1, value))
            check_body(chunk(1, chunk(1, chunk(1, chunk(2, value)))), Signal.TRACES)


@settings(max_examples=scaled(150), deadline=None)
@given(st.data())
def test_drawn_messages(data: st.DataObject) -> None:
    """
    Scenario: requests drawn from the descriptors, two of them one behind the other.
    Guarantees: the line is the twin's to the byte.
    """
    signal = data.draw(st.sampled_from(Signal))
    parts = []
    for _ in range(2):
        message = REQUEST_OF[signal]()
        fill(data.draw, message, 6)
        parts.append(message.SerializeToString())
    for body in (*parts, b"".join(parts)):
        assert check_body(body, signal) is not None


# --- Doubles -----------------------------------------------------------------------------------


def line_of(text: str) -> bytes:
    return in_value(doubleValue=0).replace(b"0}}", text.encode() + b"}}")


def read_bits(text: str) -> bytes:
    """The eight bytes of a double, which are the last of the request."""
    return decode(line_of(text), Signal.TRACES)[-8:]


@pytest.mark.parametrize("seed", range(scaled(200)))
def test_doubles_are_exact(seed: int) -> None:
    """
    Scenario: doubles of any bits, in the shortest digits, in too many, half way to the next one and
    just beside that, with hundreds of digits; whole numbers around 2 ** 53; any digits and powers.
    Guarantees: what is read is the nearest double; what is written is what Python writes.
    """
    rng = random.Random(seed)
    bits = rng.getrandbits(62)
    value, above = struct.unpack("<dd", struct.pack("<qq", bits, bits + 1))
    middle = (Fraction(value) + Fraction(above)) / 2
    digits = int(middle * 10**1100)
    texts = [
        repr(value),
        f"{value:.16e}",
        f"{value:.25e}",
        f"{digits}e-1100",
        f"{digits - 1}.5e-1100",
        f"{digits}.{'0' * rng.randrange(900)}1e-1100",
        f"{rng.randrange(10 ** rng.randint(1, 30))}e{rng.randint(-360, 320)}",
        f"{rng.randrange(2**53, 2**56)}",
        f"0.{'0' * rng.randrange(400)}{rng.getrandbits(60)}",
        f"{rng.randrange(2**53, 2**54) * 5**20}e-20",
    ]
    for text in texts:
        assert read_bits(f"-{text}") == struct.pack("<d", float(f"-{text}")), text
    body = decode(line_of(repr(value)), Signal.TRACES)
    assert f'"doubleValue":{value!r}}}' in encode(body, Signal.TRACES).decode()


def test_doubles_at_the_edges() -> None:
    """
    Scenario: the smallest and largest doubles, powers of two and ten, the half ways around them.
    Guarantees: as above.
    """
    edges = [0.0, 5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308]
    edges += [2.0**power for power in range(-1074, 1024, 7)] + [
        10.0**p for p in range(-323, 309, 3)
    ]
    for value in edges:
        for near in (value, math.nextafter(value, 0), math.nextafter(value, 1)):
            assert read_bits(repr(near)) == struct.pack("<d", near)
            body = decode(line_of(repr(near)), Signal.TRACES)
            assert f'"doubleValue":{near!r}}}' in encode(body, Signal.TRACES).decode()
    half = (2**54 - 1) * 2**970
    for text in (str(half - 1), f"{half - 1}.9e0", f"{half}e0", f"{half}.0", f"{half + 1}e0"):
        check_line(line_of(text), Signal.TRACES)
        check_line(line_of(f'"{text}"'), Signal.TRACES)
    assert check_line(line_of(str(half)), Signal.TRACES) is None


# --- Bounds ------------------------------------------------------------------------------------


DENSE = {
    "empty messages": b'{"resourceSpans":[' + b"{}," * 9999 + b"{}]}",
    "nulls": b'{"resourceSpans":[' + b"null," * 9999 + b"{}]}",
    "numbers": b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":['
    b'{"bucketCounts":[' + b"1," * 9999 + b"1]}]}}]}]}]}",
    "texts": b'{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":['
    + b'"",' * 9999
    + b'""]}]}}]}',
    "twice": b'{"resourceSpans":[{"scopeSpans":[{"spans":[{'
    + b'"name":"a",' * 9999
    + b'"name":"b"}]}]}]}',
    "twice, each longer": b'{"resourceSpans":[{"resource":{"attributes":[{}]},'
    + b",".join(b'"resource":{"attributes":[%s]}' % b",".join([b"{}"] * n) for n in range(150))
    + b"}]}",
}


@pytest.mark.parametrize("name", DENSE)
def test_what_is_read_is_bounded(name: str) -> None:
    """
    Scenario: lines made of nothing but what takes most room on the wire, in marks or in holes.
    Guarantees: kernel and twin agree, and nothing comes near the ends of what is worked with.
    """
    line = DENSE[name]
    signal = Signal.METRICS if name == "numbers" else Signal.TRACES
    body = check_line(line, signal)
    assert body is not None
    assert len(body) <= 4 * len(line)
    assert check_body(body, signal) == encode(body, signal)


def test_what_is_written_is_bounded() -> None:
    """
    Scenario: the field with the longest name and the smallest value, many times; control
    characters.
    Guarantees: the line is at most some fifteen times as long as the request.
    """
    event = chunk(11, number(4, 1))
    small = chunk(1, chunk(2, chunk(2, event * 5000)))
    text = chunk(1, chunk(3, b"\x01" * 5000))
    for body in (small, text, chunk(1, b"") * 5000):
        line = check_body(body, Signal.TRACES)
        assert line is not None
        assert len(line) < 15 * len(body)


def test_a_line_that_is_too_long() -> None:
    """
    Scenario: a line beyond what places in it can be numbered for.
    Guarantees: it is refused before anything is read; at the limit every place fits 31 bits.
    """

    class Endless(bytes):
        def __len__(self) -> int:
            return LINE_BYTES_MAX + 1

    with pytest.raises(ValueError, match="longer than"):
        decode(Endless(b"{}"), Signal.TRACES)
    assert max(capacity_of(LINE_BYTES_MAX)) < 2**31


def test_brackets_nobody_knows_are_bounded() -> None:
    """
    Scenario: brackets under an unknown name, as many as are let pass and one more; as many in a
    value that does not fit its field.
    Guarantees: the limit holds, and the error says so.
    """
    for opened, closed in ((b"[", b"]"), (b'{"":', b"}")):
        inner = b"0" if closed == b"}" else b""
        most = b'{"x":' + opened * NESTING_MAX + inner + closed * NESTING_MAX + b"}"
        assert decode(most, Signal.TRACES) == b""
        more = most.replace(b'"x":', b'"x":' + opened).replace(b"}" * 2, b"}" * 3)
        with pytest.raises(ValueError, match=r"^\$: nested too deep|^not JSON"):
            decode(more, Signal.TRACES)
    deep = b"[" * (NESTING_MAX + 2)
    for line in (b'{"x":' + deep, b'{"resourceSpans":' + deep):
        with pytest.raises(ValueError, match=r"^\$: nested too deep|resourceSpans\[0\]"):
            decode(line, Signal.TRACES)


def test_errors_never_show_the_data() -> None:
    """
    Scenario: a secret in every place of a line where something is wrong.
    Guarantees: no error has it.
    """
    secret = "hunter2"
    lines = [in_span(name=[secret]), in_span(kind=secret), in_span(traceId=secret)]
    lines += [in_value(bytesValue=secret + "!"), in_value(doubleValue=secret), secret.encode()]
    lines += [in_span(name="a").replace(b'"a"', b'"%s' % secret.encode()), b'{"hunter2":nul}']
    lines += [b'{"hunter2":{"resourceSpans":[}', in_span(**{secret: 1}).replace(b"1", b"\xff")]
    for line in lines:
        with pytest.raises(ValueError, match=r"^(\$.*: must be|not JSON: |not UTF-8: )") as caught:
            decode(line, Signal.TRACES)
        assert not re.search(secret, str(caught.value))


def test_logs_as_we_write_them() -> None:
    """
    Scenario: a log record with a map as its body, as agents send it.
    Guarantees: kernel and twin agree in both directions.
    """
    record = log_traffic.tool_record(
        time_ns=1, tool="t", session="s", arguments="{}", result="[1, 2]"
    )
    line = check_body(log_traffic.log_request([record]), Signal.LOGS)
    assert line is not None
    assert check_line(line, Signal.LOGS) is not None
