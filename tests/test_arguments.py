"""Argument readers: equal values have equal fingerprints, others do not, whatever the bytes are."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from otel_anomaly.otlp.arguments import (
    ARGUMENTS,
    LIST_MAX,
    LOOKING,
    compile_arguments,
    scratch_size,
)
from otel_anomaly.otlp.attributes import ANY, BOOL, INT, NONE
from otel_anomaly.otlp.canonical import NAMES_MAX
from otel_anomaly.otlp.programs import hash_program
from tests import argument_rigs as rigs
from tests import wire_writer as wire
from tests.argument_rigs import (
    Twins,
    any_value,
    is_any_value,
    is_utf8,
    read,
    read_any,
    result,
    spelling,
)
from tests.fuzz.mutate import mutated
from tests.sizes import COMPILED, scaled

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_one_value_many_spellings(seed: int) -> None:
    """
    Scenario: random values, each in random spellings: members shuffled, white space, escapes,
    numbers with points and exponents; as AnyValue too.
    Guarantees: one fingerprint for each value, and everything else the twin says.
    """
    rng, twins = random.Random(seed), Twins()
    for _ in range(20):
        value = rigs.random_value(rng)
        texts = [spelling(rng, value).encode() for _ in range(3)]
        for text in texts:
            twins.check(text)
        assert len({read(text)[:3] for text in texts}) == 1
        twins.check(any_value(value).SerializeToString(), ANY)


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_changed_text(seed: int) -> None:
    """
    Scenario: texts of random values, changed in some places: broken, or another value.
    Guarantees: as the twin says: raw bytes where it is no JSON, else equal only what is equal.
    """
    rng, twins = random.Random(seed), Twins()
    for _ in range(40):
        text = spelling(rng, rigs.random_value(rng)).encode()
        for _ in range(rng.randrange(4)):
            text = rigs.broken(rng, text)
        if is_utf8(text):
            twins.check(text)


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_cut_anywhere(seed: int) -> None:
    """
    Scenario: a text, and an AnyValue, cut at every byte.
    Guarantees: each as the twin says; nothing behind the cut is read.
    """
    rng, twins = random.Random(seed), Twins()
    value = rigs.random_value(rng)
    text, message = spelling(rng, value).encode(), any_value(value).SerializeToString()
    for end in range(min(len(text), 300) + 1):
        if is_utf8(text[:end]):
            twins.check(text[:end])
    for end in range(min(len(message), 300) + 1):
        if is_any_value(message[:end]):
            twins.check(message[:end], ANY)


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_changed_any_value(seed: int) -> None:
    """
    Scenario: AnyValue messages changed so that they stay well-formed: fields repeated, moved,
    dropped, unknown ones added, wide lengths.
    Guarantees: each as the twin says; an unusual form counts as raw bytes.
    """
    rng, twins = random.Random(seed), Twins()

    def blind(part: bytes) -> bytes:
        return rigs.broken(rng, part)

    for _ in range(40):
        data = any_value(rigs.random_value(rng)).SerializeToString()
        for _ in range(rng.randrange(1, 4)):
            data = mutated(data, rng.getrandbits(32), blind)[:2000]
        if is_any_value(data):
            twins.check(data, ANY)


ONE = (
    ("1", "1.0", "1e0", "10e-1", "0.1E+1", "1E-0", "1.000", " 1\n"),
    ("0", "-0", "0.0", "0e5", "-0.00E-7", "0e99999999999999999999"),
    ("100", "1e2", "1E+2", "100.0", "0.1e3", "1000e-1"),
    ("-0.10", "-0.1", "-1e-1", "-1e-01"),
    ("12345678901234567890", "12345678901234567890.0", "1.234567890123456789e19"),
    ("1234567890123456789012", "1.234567890123456789012e21", "1234567890123456789012.000"),
    ("0.000000000000000000000012345", "1.2345e-23", "12345e-27"),
    ("1e999999999", "10e999999998", "1000e+0999999996"),
    ('"A"', '"\\u0041"', '"A" '),
    ('"\\u00e4\\u20AC"', '"\u00e4\u20ac"'),
    ('"\\ud83d\\ude00"', '"\U0001f600"'),
    ('"a/b\\n"', '"a\\/b\\u000a"'),
    ("[]", "[ ]", "\t[\r\n]"),
    ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}'),
    ('{"x":{"a":1,"b":2}}', '{"x" : {"b":2 , "a":1}}'),
    ('{"x":1}', '{"x":1,"request_id":"7"}', '{"timestamp":[{}],"x":1}'),
    ('[{"x":1}]', '[{"request_id":{"x":2},"x":1}]'),
)
OTHERS = (
    *("null", "true", "false", "0", "1", "-1", "10", "0.1", '""', '"1"', '"true"', '"null"'),
    *("[]", "[[]]", "[null]", "[1]", "[1,1]", "[[1],1]", "[1,[1]]", '["1"]', "[12]", "[1,2]"),
    *("[2,1]", "{}", "[{}]", '{"":null}', '{"1":1}', '{"a":1}', '{"a":"1"}', '{"a":[1]}'),
    *('{"a":{}}', '{"a":[]}', '{"a":null}', '{"b":1}', '{"a":1,"b":2}', '{"a":2,"b":1}'),
    *('{"ab":1}', '{"a":"b"}', '["a","b"]', '["ab"]', '["ba"]', '{"a":{"b":2}}', '"[]"', '"A"'),
    *("1e1000000000", "1E1000000000", "1e-1000000000", "1e1000000001", "nul", "tru", "", " "),
    *(
        "12345678901234567890",
        "12345678901234567891",
        "1234567890123456789",
        "-12345678901234567890",
    ),
    *("01", "1.", ".1", "+1", "1e", "-", "--1", "0x1", "1_0", "NaN", "Infinity", "-Infinity"),
    *('"\x01"', '"\t"', '"', '"\\"', '"\\x"', '"\\u12"', '"\\u12g4"', '"\\ud800"', '"\\udc00"'),
    *('"\\ud800\\ue000"', '"\\udbff\\u0041"', '"\x1f"', "falsy", "fals", "falsee", "truE"),
    *('"\\ud800\\u0041"', '"\\ud800"a', "[1,]", "[,1]", "[1 1]", '{"a"}', '{"a":}', "{a:1}"),
    *("{'a':1}", '{"a":1,}', '{"a":1 "b":2}', "[1}", "1 2", "[]]", "nulll", "\ufeff1", "[1", "]"),
)


@pytest.mark.parametrize("spellings", ONE)
def test_equal(spellings: tuple[str, ...]) -> None:
    """
    Scenario: spellings of one value.
    Guarantees: one fingerprint; also as the value of a member and as an element.
    """
    for around in ("{}", '{{"a": {}}}', "[0, {} , 0]"):
        texts = [around.format(text) for text in spellings]
        assert len({read(text).fingerprint for text in texts}) == 1
        assert len({result(text.replace("request_id", "took_ms")) for text in texts}) == 1


def test_different() -> None:
    """
    Scenario: values and broken texts that look alike, beside one of each group of equal ones.
    Guarantees: no two fingerprints are equal but where the twin says so, and none is 0.
    """
    texts = {*OTHERS, *(spellings[0] for spellings in ONE)}
    twins = Twins()
    for text in texts:
        twins.check(text.encode())
    assert len(twins.values.there) > len(texts) - 5
    assert 0 not in twins.values.there


def test_any_value_like_json() -> None:
    """
    Scenario: the same values as JSON text and as AnyValue, doubles of every size among them.
    Guarantees: the same reading; bytes, NaN and infinities are values of their own.
    """
    rng = random.Random(1)
    for value in (None, True, False, "", "a", [], {}, [[]], {"a": {}}, *rigs.INTEGERS):
        assert read_any(value) == read(json.dumps(value))
    for _ in range(scaled(2000)):
        number = struct.unpack("<d", rng.randbytes(8))[0]
        number = rng.choice(
            (number, round(rng.random() * 1000, 3), 2.0 ** rng.randrange(-1074, 1024))
        )
        if np.isfinite(number):
            assert read_any([number]) == read(json.dumps([number]))
    odd = [b"", b"a", float("nan"), float("inf"), -float("inf"), "a", "NaN", 0, None]
    assert len({read_any([value]).fingerprint for value in odd}) == len(odd)


def test_scalars_of_attributes() -> None:
    """
    Scenario: a value that is a bool or an int of its own, or none at all.
    Guarantees: fingerprints as of the JSON text; without a value nothing is known.
    """
    for number in (0, 1, 10, 2**63 - 1, -1, -(2**63)):
        assert read(wire.varint(number % (1 << 64)), INT) == read(str(number))
    assert read(b"\1", BOOL) == read("true")
    assert read(b"\0", BOOL) == read("false")
    nothing = read(b"", NONE)
    assert nothing[:4] == (0, 0, 0, 0)
    assert nothing.found == rigs.looked_at([])
    assert result(b"", NONE) == (0, False)


ENVELOPES = (
    '{"input_str": "x", "inputs": %s, "tags": ["a"], "metadata": {"u": "https://e.com"}}',
    '{"inputs": null, "input_str": %s, "tags": []}',
    '{"args": [], "kwargs": %s}',
    '{"kwargs": %s}',
    '{"kwargs": %s, "sanitize_inputs_outputs": "' + "\\n" * 60 + '"}',
    '{"sanitize_inputs_outputs": true, "kwargs": %s, "args": null}',
    '{"args": %s, "kwargs": {}}',
    '{"tool_name": "t", "arguments": %s}',
    '{"args": [], "kwargs": {"input_str": "", "inputs": %s}}',
    '{"args": [], "kwargs": {"args": {"tool_name": 1, "arguments": %s}, "kwargs": []}}',
)
NO_ENVELOPES = (
    '{"args": %s}',
    '{"inputs": %s}',
    '{"args": [], "kwargs": %s, "more": 1}',
    '{"tool_name": "t", "arguments": %s, "more": 1}',
    '[{"kwargs": %s}]',
)


@pytest.mark.parametrize("envelope", [*ENVELOPES, *NO_ENVELOPES])
def test_envelopes(envelope: str) -> None:
    """
    Scenario: the envelopes of instrumentations around a value, and what is none of them.
    Guarantees: what is inside counts, and only that, also given as a string of JSON, also in an
    AnyValue; a result is never taken out of one.
    """
    twins = Twins()
    inside = '{"to": "alice@example.com", "n": 1}'
    for text in (envelope % inside, envelope % json.dumps(inside), json.dumps(envelope % inside)):
        twins.check(text.encode())
        assert (read(text) == read(inside)) == (envelope in ENVELOPES)
        assert result(text)[0] != result(inside)[0]
    message = any_value(json.loads(envelope % inside)).SerializeToString()
    twins.check(message, ANY)
    assert (read(message, ANY) == read(inside)) == (envelope in ENVELOPES)


def test_envelope_of_both() -> None:
    """
    Scenario: a function called with positional and with named arguments.
    Guarantees: both count, what stands beside them does not; the names are the named ones.
    """
    base = read('{"args": [1], "kwargs": {"a": 2}}')
    assert read('{"kwargs": {"a": 2}, "args": [1.0], "sanitize_inputs_outputs": false}') == base
    assert read('{"kwargs": {"a": 2}, "args": [3]}').fingerprint != base.fingerprint
    assert read('{"kwargs": {"a": 3}, "args": [1]}').fingerprint != base.fingerprint
    assert base.names == read('{"a": 5}').names


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (json.dumps('{"a": 1}'), '{"a": 1}'),
        (json.dumps('  {"a": "\u00e4"}'), '{"a": "\u00e4"}'),
        ('"{}"', "{}"),
    ],
)
def test_text_of_an_object(text: str, same: str) -> None:
    """
    Scenario: a string whose text is an object; the same twice; a string inside an object.
    Guarantees: as a whole value, the object counts, also of a result; a second time and inside it
    is a string.
    """
    assert read(text) == read(same)
    assert result(text) == result(same)
    assert read(json.dumps(text)) != read(same)
    assert read(f'{{"x": {text}}}') != read(f'{{"x": {same}}}')
    again = json.dumps({"kwargs": json.dumps({"kwargs": same})})
    assert read(again) != read(same)
    Twins().check(again.encode())


@pytest.mark.parametrize("text", ["\"{'a': 1}\"", '"{"', '"{\\"a\\": "', '"[1]"', '"1"'])
def test_text_of_no_object(text: str) -> None:
    """
    Scenario: strings that begin like an object and are none, or hold another value.
    Guarantees: they are strings: what is in them is looked at as text.
    """
    twins = Twins()
    for whole in (text, f'{{"kwargs": {text}}}', f'{{"tool_name": "", "arguments": {text}}}'):
        twins.check(whole.encode())
        twins.check(any_value(json.loads(whole)).SerializeToString(), ANY)


def test_names() -> None:
    """
    Scenario: objects with equal and different sets of names; values that are no objects.
    Guarantees: order and values make no difference; the empty set, arrays and all else have one
    hash each, never 0; names inside do not count.
    """
    sets = ("{}", '{"a":0}', '{"b":0}', '{"a":0,"b":0}', '{"c":0,"a":0,"b":0}', "[]", "1")
    assert len({read(text).names for text in sets} - {0}) == len(sets)
    assert read('{"a":1,"b":2}').names == read('{"b":{"x":1},"a":[2]}').names
    assert read("[1]").names == read("[]").names
    assert len({read(text).names for text in ("1", '"x"', "null", "x", '{"a":', "")}) == 1


def nested(depth: int, *, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ('{"kwargs":', "}")]
)
def test_depth(opening: str, closing: str) -> None:
    """
    Scenario: nesting around the limit of 64, and far beyond it.
    Guarantees: up to the limit spellings do not matter, beyond it the bytes count.
    """
    twins = Twins()
    limit = 64 // (opening.count("[") + opening.count("{"))
    for depth in (limit - 1, limit, limit + 1, 2000):
        text = nested(depth, opening=opening, closing=closing)
        twins.check(text.encode())
        equal = read(text).fingerprint == read(text + " ").fingerprint
        assert equal == (depth <= limit)


@pytest.mark.parametrize("count", [2, 16, 17, 18, 40, 300, NAMES_MAX, NAMES_MAX + 1])
def test_many_members(count: int) -> None:
    """
    Scenario: objects of many members, in two orders; then with the first name once more.
    Guarantees: order makes no difference; a name that stands there twice makes the bytes count, as
    does one name too many.
    """
    rng, twins = random.Random(count), Twins()
    members = [f'"name{i}": {i}' for i in range(count)]
    texts = ["{" + ", ".join(rng.sample(members, count)) + "}" for _ in range(2)]
    for text in (*texts, texts[0][:-1] + ',"name0":7}', texts[0][:-1] + ',"name\\u0030":7}'):
        twins.check(text.encode())
    assert (read(texts[0]) == read(texts[1])) == (count <= NAMES_MAX)


FAILED = (
    '{"status": "error"}',
    '{"status": "ERROR", "error_message": "no order Z99"}',
    '{"kwargs": {"status": "error"}}',
    '{"output": {"lc": 1, "kwargs": {"status": "error"}}, "kwargs": {}}',
    '[{"toolResult": {"status": "Error", "content": []}}]',
    '{"isError": true, "content": [{"type": "text", "text": "x"}]}',
    '{"is_error": true}',
    '{"success": false}',
    '{"\\u0073uccess": false}',
    json.dumps('{"status": "error"}'),
    '{"error": "no order Z99"}',
    '{"data": null, "error": {"code": 404, "message": "x"}}',
    '{"error": true}',
    json.dumps('{"error": "no order Z99"}'),
    '{"status": "failed"}',
    '{"status": "Failure"}',
    '{"ok": false}',
    '{"type": "error-text", "value": "boom"}',
    '{"type": "error-json", "value": {}}',
    "content='Error: boom' name='l' tool_call_id='c' status='error'",
    "content='' status='error'",
    json.dumps("content='it\\'s' name='l' status='error'"),
)
FINE = (
    '{"error": null, "data": 1}',
    '{"error": ""}',
    '{"error": false, "ok": true}',
    '{"error": {}}',
    '{"error": []}',
    '{"error": 0.02}',
    '{"jobs": {"error": "x", "ok": false, "status": "failed", "type": "error-text"}}',
    '[{"error": "x"}]',
    '[{"error": {"code": 1}}]',
    '[{"type": "error-text"}]',
    '{"error": {"code": 1}, "error": null}',
    '{"type": "error-html"}',
    '{"type": "error"}',
    '{"ok": 0}',
    "content='Error: boom' name='l' tool_call_id='c'",
    "content='x' status='error' name='l'",
    " content='x' status='error'",
    "content= status='error",
    "content=status='error'",
    '{"content": "content=x status=\'error\'"}',
    '{"status": "ok"}',
    '{"status": "errors"}',
    '{"status": ["error"]}',
    '{"status": {"error": 1}}',
    '{"Status": "error"}',
    '{"is_error": false, "success": true}',
    '{"is_error": "true", "success": 0}',
    '{"a": {"b": {"c": {"status": "error"}}}}',
    '"error"',
    "error",
    "true",
    "{'status': 'error'}",
    '{"status": "error", "status": "ok"}',
)


TWICE = re.compile(r'\{("\w+").*, \1')


@pytest.mark.parametrize("text", [*FAILED, *FINE])
def test_failed(text: str) -> None:
    """
    Scenario: results that tell of a failure, and others.
    Guarantees: told where the payload says so plainly, not deeper than three, or at the top for
    what is also said of things; the same from an AnyValue.
    """
    assert result(text)[1] == (text in FAILED)
    if text.startswith(("{", "[")) and not TWICE.match(text) and "{'" not in text:
        message = any_value(json.loads(text)).SerializeToString()
        assert result(message, ANY) == result(text)


@pytest.mark.parametrize("text", ['{"a": 1}', ' {"cmd": "curl x"}', "curl x", '"a"', "7", ""])
def test_a_byte_order_mark(text: str) -> None:
    """
    Scenario: texts, JSON and other, with the mark in front that some writers of files put there.
    Guarantees: the mark is no part of them; a second one, one inside, or a part of one is.
    """
    mark, twins = "\ufeff", Twins()
    assert read(mark + text) == read(text)
    assert result(mark + text) == result(text)
    twins.check((mark + text).encode())
    for other in (mark + mark + text, f"a{mark}{text}", f"\uf000{text}", f"\ufec0{text}"):
        twins.check(other.encode())
        assert read(other).fingerprint != read(text).fingerprint


def test_volatile() -> None:
    """
    Scenario: members of the volatile lists at the top, deep inside, in arguments and in results.
    Guarantees: their values and whether they are there makes no difference to the fingerprint of
    arguments or of results, each by its own list; they are looked at all the same.
    """
    assert read('{"a": {"request_id": 1}}').fingerprint == read('{"a": {}}').fingerprint
    assert read('{"took_ms": 1}').fingerprint != read('{"took_ms": 2}').fingerprint
    assert result('[{"took_ms": 1}]') == result("[{}]")
    assert result('{"request_id": 1}') != result('{"request_id": 2}')
    seen = read('{"request_id": "https://evil.example/"}').found
    assert seen == rigs.looked_at([(b"https://evil.example/", ("request_id",))])


def test_small_scratch() -> None:
    """
    Scenario: a scratch array that is too small for the value, and one that is just enough.
    Guarantees: too small: the bytes count, nothing is written, all of the text is looked at.
    """
    raw = json.dumps({"to": "alice@example.com", "x": "\n" * 100}).encode()
    out = np.zeros(2, ARGUMENTS)
    for number, missing in enumerate((0, 1)):
        scratch = np.full(scratch_size(len(raw)) - missing, 0xA5, np.uint8)
        rigs.read_into(out[number : number + 1], raw, LOOKING, scratch)
        assert (scratch == 0xA5).all() == bool(missing)
    assert out[0]["fingerprint"] == read(raw).fingerprint != out[1]["fingerprint"]
    assert rigs.plain(out[1]["found"]) == rigs.looked_at([(raw, ())])


def test_plan() -> None:
    """
    Scenario: lists of names of every length, names in several of them, with and without a seed.
    Guarantees: all are found; too long a list is refused; another seed, other fingerprints.
    """
    names = [f"name{i}" for i in range(LIST_MAX)]
    everything: dict[str, Any] = {
        "content": rigs.CONTENT,
        "volatile": names,
        "volatile_results": names[::-1],
        "programs": [*names, "args"],
    }
    with pytest.raises(ValueError, match="more than 64"):
        compile_arguments(seed=1, **everything)
    everything["programs"] = names
    plan = compile_arguments(seed=1, **everything)
    empty = read("{}", plan=plan).fingerprint
    for name in names:
        assert read(f'{{"{name}": "ls"}}', plan=plan).fingerprint == empty
        assert read(f'{{"{name}": "ls"}}', plan=plan).program == hash_program("ls", 1)
        assert result(f'{{"{name}": 1}}', plan=plan) == result("{}", plan=plan)
    assert read("{}").fingerprint != empty


SIZES = (1_000, 4_000)
HOSTILE: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "[" * n,
    "opened members": lambda n: '{"a":' * n,
    "escapes": lambda n: '"' + "\\n" * n + '"',
    "halves": lambda n: '"' + "\\ud800" * n + '"',
    "members": lambda n: "{" + ",".join(f'"{i}":0' for i in range(n)) + "}",
    "twins": lambda n: "{" + ",".join('"a":0' for _ in range(n)) + "}",
    "digits": lambda n: "1" * n,
    "point and zeros": lambda n: "0." + "0" * n + "1",
    "exponent": lambda n: "1e" + "9" * n,
    "spaces": lambda n: " " * n + "1" + " " * n,
    "strings in strings": lambda n: json.dumps(json.dumps("{" * n)),
    "shells": lambda n: json.dumps({"command": "bash -c '" * n}),
    "wrappers": lambda n: json.dumps({"command": "sudo " * n}),
    "quotes": lambda n: json.dumps({"command": "'\"" * n}),
    "words": lambda n: json.dumps({"argv": ["sudo"] * n}),
    "envelopes": lambda n: '{"kwargs":' * n + "1" + "}" * n,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    """
    Scenario: long inputs of the most awkward kinds.
    Guarantees: each is read within its scratch array, and as the twin reads it.
    """
    twins = Twins()
    for size in SIZES:
        text = HOSTILE[name](max(20, size // 10 if not COMPILED else size)).encode()
        twins.check(text)
        twins.check(text[:-1])
