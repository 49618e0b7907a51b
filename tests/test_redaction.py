"""Redaction: what is found is covered and all else stays, in every string of a request."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from otel_anomaly.otlp import redaction
from otel_anomaly.otlp.cutting import remove
from otel_anomaly.otlp.redaction import LOGS, TRACES, make_redaction
from tests import naive_arguments, recognition_traffic, redaction_rigs
from tests.content_rigs import look_at
from tests.redaction_rigs import KINDS, PLANTS, folded
from tests.sizes import scaled
from tests.traffic import any_value, random_request

ALL = redaction.SECRETS | redaction.MAILS | redaction.PHONES | redaction.NUMBERS
BITS = {
    "secrets": redaction.SECRETS,
    "mails": redaction.MAILS,
    "phones": redaction.PHONES,
    "numbers": redaction.NUMBERS,
}
EVERYTHING = make_redaction(ALL)


def request_of(**attributes: Any) -> ExportTraceServiceRequest:
    """One span with these attributes."""
    message = ExportTraceServiceRequest()
    span = message.resource_spans.add().scope_spans.add().spans.add(name="x")
    for key, value in attributes.items():
        span.attributes.add(key=key).value.CopyFrom(any_value(value))
    return message


def redacted(body: bytes, message: np.int64 = TRACES, what: int = ALL) -> bytes:
    """Covered, with all that must hold of any request."""
    rules = EVERYTHING if what == ALL else make_redaction(what)
    covered, count = redaction.redact(body, message, rules)
    assert len(covered) == len(body)
    assert (count == 0) == (covered is body)
    again, count = redaction.redact(covered, message, rules)
    assert (again, count) == (covered, 0)
    return covered


def only_attribute(body: bytes) -> AnyValue:
    """The value of the first attribute of the first span."""
    message = ExportTraceServiceRequest.FromString(body)
    return message.resource_spans[0].scope_spans[0].spans[0].attributes[0].value


def masked(value: Any, key: str = "note", what: int = ALL) -> Any:
    """What becomes of one attribute."""
    body = request_of(**{key: value}).SerializeToString()
    left = only_attribute(redacted(body, what=what))
    field = left.WhichOneof("value")
    return getattr(left, field) if field else None


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(kind: str) -> None:
    """
    Scenario: every plant in a sentence; one kind is to be covered, then all but that one.
    Guarantees: plants of the kind become stars, byte for byte; others stay as they are.
    """
    for other, plants in PLANTS.items():
        for plant in plants:
            text = f"told ({plant}) here"
            for what in (BITS[kind], ALL & ~BITS[kind]):
                covered = masked(text, what=what)
                if BITS[other] & what:
                    assert re.fullmatch(r"told \(\*+\) here", re.sub(r"\+?\*+", "*", covered))
                    assert len(covered) == len(text)
                else:
                    assert covered == text, (kind, plant)


@pytest.mark.parametrize(
    ("key", "value", "left"),
    [
        ("password", "Q7xv9ZpL2mNb", "*" * 12),
        ("note", "Q7xv9ZpL2mNb", "Q7xv9ZpL2mNb"),
        ("note", "password=Q7xv9ZpL2mNb, then", "password=************, then"),
        ("note", "Authorization: Bearer Q7xv9ZpL2mNbQ7xv", "Authorization: Bearer " + "*" * 16),
        ("note", "curl -u ann:Q7xv9ZpL2mNb x.org", "curl -u ann:************ x.org"),
        ("note", "https://ann:pw@db.example.com/x", "https://ann:**@db.example.com/x"),
        ("note", "git@github.com:o/r", "git@github.com:o/r"),
        ("phone", "491701234567", "*" * 12),
        ("note", "DE89 3704 0044 0532 0130 00", "*" * 27),
        ("note", "\u00fcber \u00e9ve@example.com\u00e9", "\u00fcber " + "*" * 16 + "\u00e9"),
        ("note", b"\xff ann@example.com \x00", b"\xff *************** \x00"),
        ("note", ["a", "ann@example.com"], None),
        ("note", {"ann@example.com": {"password": "Q7xv9ZpL2mNb"}}, None),
        ("note", "{'password': 'Q7xv9ZpL2mNb'}", "{'password': '************'}"),
        ("note", 4111111111111111, 0),
        ("note", 1792612800123456789, 1792612800123456789),
        ("phone", 491701234567, 0),
        ("note", 491701234567, 491701234567),
        ("note", '{"n": 4111111111111111, "m": 17}', '{"n": 9999999999999999, "m": 17}'),
        ("note", '{"n": -4111111111111111}', '{"n": -4111111111111111}'),
        ("note", '{"n": 4111111111111111.0}', '{"n": 4111111111111111.0}'),
        ("note", '{"n": 4.111111111111111e15}', '{"n": 4.111111111111111e15}'),
        ("card", 4111111111111111.0, 4111111111111111.0),
        ("phone", -491701234567, -491701234567),
        ("note", '{"a": "\\u0061nn@example.com\\n"}', '{"a": "' + "*" * 20 + '\\n"}'),
        ("note", '{"password": ["Q7xv9ZpL2mNb"]}', '{"password": ["************"]}'),
        ("note", '{"a": "cut \\nann@example.co', '{"a": "cut ****************'),
    ],
)  # fmt: skip
def test_values(key: str, value: Any, left: Any) -> None:
    """
    Scenario: one attribute, of each type and in each spelling that matters.
    Guarantees: exactly what is found is covered; JSON, cut off or not, keeps its escapes whole.
    """
    after = masked(value, key)
    if left is None:
        text = str(after)
        assert "example" not in text
        assert "Q7xv" not in text
    else:
        assert after == left


KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\nabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"a {KEY} b", f"a {'*' * len(KEY)} b"),
        (f"{KEY}\n{KEY};x", "*" * len(KEY) + "\n" + "*" * len(KEY) + ";x"),
        (f"a {KEY[:-21]}", "a " + "*" * (len(KEY) - 21)),
        ("-----BEGIN PUBLIC KEY-----\nabc", "-----BEGIN PUBLIC KEY-----\nabc"),
    ],
    ids=["whole", "two", "cut off", "public"],
)
def test_private_keys_whole(text: str, left: str) -> None:
    """
    Scenario: private keys in text and as JSON, whole, two of them, and without their last line.
    Guarantees: from the first line to the last all is covered, and what follows is not.
    """
    assert masked(text) == left
    in_json = re.sub(r"\*+", "*", masked(json.dumps([text])))
    assert json.loads(in_json) == [re.sub(r"\*+", "*", left)]


@pytest.mark.parametrize("seed", range(scaled(400)))
def test_planted(seed: int) -> None:
    """
    Scenario: JSON values of any shape, JSON in their strings, with plants among harmless text; some
    kinds are to be covered; once masked, once removed.
    Guarantees: the value that is left is the one the generator writes with stars for the plants.
    """
    rng = random.Random(seed)
    kinds = tuple(rng.sample(KINDS, rng.randrange(1, 5)))
    planted = redaction_rigs.value(rng, kinds)
    ascii_only = rng.random() < 0.5
    body = request_of(note=json.dumps([planted.value], ensure_ascii=ascii_only)).SerializeToString()
    what = sum(BITS[kind] for kind in kinds)
    covered = redacted(body, what=what)
    (left,) = json.loads(only_attribute(covered).string_value)
    assert folded(left, planted.left) == folded(planted.left, planted.left)
    shorter = remove(body, TRACES, make_redaction(what))
    (left,) = json.loads(only_attribute(shorter).string_value)
    assert folded(left, planted.left) == folded(planted.left, planted.left)
    assert remove(shorter, TRACES, make_redaction(what)) is shorter


def values_of(message: Any) -> Any:
    """Every (key, string) of a parsed request, JSON in strings read as such."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, KeyValue):
                yield from strings_in(item.key, item.value)
            elif field.name == "body":
                yield from strings_in("", item)
            elif hasattr(item, "ListFields"):
                yield from values_of(item)
            elif isinstance(item, str) and field.name in {"name", "message", "event_name"}:
                yield "", item


def strings_in(key: str, value: AnyValue) -> Any:
    """The strings of one value, each with the name that it goes by."""
    if value.WhichOneof("value") == "kvlist_value":
        for pair in value.kvlist_value.values:
            yield "", pair.key
            yield from strings_in(pair.key, pair.value)
    elif value.WhichOneof("value") == "array_value":
        for item in value.array_value.values:
            yield from strings_in(key, item)
    elif value.WhichOneof("value") == "string_value":
        try:
            parsed = naive_arguments.parse_text(value.string_value.encode())
        except naive_arguments.Unreadable:
            yield key, value.string_value
            return
        for text, names in naive_arguments.strings(parsed, (key,)):
            yield names[-1] if names else "", text.decode()


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("seed", range(scaled(100)))
def test_nothing_is_left(seed: int, *, logs: bool) -> None:
    """
    Scenario: requests written as hostile clients write them, plants in any string, masked.
    Guarantees: what the protobuf library reads then holds no secret and nothing personal that the
    detectors' own reader finds; bytes differ only where stars, nines or zeros were written.
    """
    rng = random.Random(seed)
    body = recognition_traffic.random_request(seed, logs=logs)
    kind = ExportLogsServiceRequest if logs else ExportTraceServiceRequest
    message = kind.FromString(body)
    plant_everywhere(message, rng)
    body = message.SerializeToString()
    covered = redacted(body, LOGS if logs else TRACES)
    for before, after in zip(body, covered, strict=True):
        assert before == after or after in b"*9\x80\0"
    for key, text in values_of(kind.FromString(covered)):
        found = look_at(text, key)
        assert (found.secrets, found.personal) == (0, 0), (key, text)


def plant_everywhere(message: Any, rng: random.Random) -> None:
    """Put plants into strings of a message, at all depths."""
    for field, value in message.ListFields():
        items = value if field.is_repeated else [value]
        for number, item in enumerate(items):
            if hasattr(item, "ListFields"):
                plant_everywhere(item, rng)
            elif isinstance(item, str) and field.name not in {"key", "schema_url"}:
                if rng.random() < 0.5:
                    continue
                planted = f"{item} {redaction_rigs.text(rng).value}"
                if field.is_repeated:
                    value[number] = planted
                else:
                    setattr(message, field.name, planted)


@pytest.mark.parametrize("seed", range(scaled(200)))
def test_any_request_stays_one(seed: int) -> None:
    """
    Scenario: requests with every trick of the wire: fields in parts, groups, overlong lengths.
    Guarantees: masked and removed, the protobuf library reads them; all but strings is the same.
    """
    body = random_request(seed)
    before = ExportTraceServiceRequest.FromString(body)
    for after in (redacted(body), remove(body, TRACES, EVERYTHING)):
        message = ExportTraceServiceRequest.FromString(after)
        assert shape_of(message) == shape_of(before)


def shape_of(message: Any) -> Any:
    """A message without the text in it."""
    shape = []
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if hasattr(item, "ListFields"):
                shape.append((field.name, shape_of(item)))
            elif isinstance(item, str | bytes) and not field.name.endswith("_id"):
                shape.append((field.name, field.name == "key" and item))
            elif field.name == "int_value":
                shape.append((field.name, None))
            else:
                shape.append((field.name, repr(item)))
    return shape


def test_removed_lengths() -> None:
    """
    Scenario: a request of many spans whose every length shrinks by a byte when secrets are removed.
    Guarantees: what is left is what the protobuf library writes of the same request with stars;
    more frames and cuts than there was room for at first are no matter.
    """
    message, wanted = ExportTraceServiceRequest(), ExportTraceServiceRequest()
    for request, text in ((message, "ann@example.com " * 12), (wanted, "* " * 12)):
        spans = request.resource_spans.add().scope_spans.add().spans
        for _ in range(40):
            span = spans.add(name=text)
            span.attributes.add(key="a").value.kvlist_value.values.add(
                key="b"
            ).value.array_value.values.add(string_value=text)
            span.events.add(name=text).attributes.add(key="e").value.bytes_value = text.encode()
    after = remove(message.SerializeToString(), TRACES, EVERYTHING)
    assert after == wanted.SerializeToString()


def test_kept_keys() -> None:
    """
    Scenario: the same address under a key that is kept, a longer key, and within a map.
    Guarantees: only the attribute with the very key stays, with all that is in it.
    """
    rules = make_redaction(ALL, ["user.email", "other"])
    message = request_of(**{
        "user.email": "ann@example.com",
        "user.email2": "ann@example.com",
        "map": {"user.email": "ann@example.com"},
        "other": {"x": "ann@example.com"},
    })  # fmt: skip
    covered, count = redaction.redact(message.SerializeToString(), TRACES, rules)
    assert count == 2
    assert covered.count(b"ann@example.com") == 2
    spans = ExportTraceServiceRequest.FromString(covered).resource_spans[0].scope_spans[0].spans
    left = {pair.key: str(pair.value) for pair in spans[0].attributes}
    assert {key for key, value in left.items() if "ann@" in value} == {"user.email", "other"}


def test_what_is_left_alone() -> None:
    """
    Scenario: secrets where no text of the agent belongs: schema URLs, trace state, keys, ids.
    Guarantees: they stay: the list of what is read is the one the module gives.
    """
    message = request_of()
    message.resource_spans[0].schema_url = "ann@example.com"
    span = message.resource_spans[0].scope_spans[0].spans[0]
    span.trace_state, span.trace_id = "ann@example.com", b"ann@example.com"
    span.attributes.add(key="ann@example.com")
    body = message.SerializeToString()
    assert redacted(body) is body


def test_time_is_linear_in_a_text_of_key_headers() -> None:
    """
    Scenario: a text of nothing but first lines of private keys, and one with a bracket behind each.
    Guarantees: the whole of the first is covered, and both end: no line is searched for twice.
    """
    line = "-----BEGIN PRIVATE KEY-----"
    count = scaled(20_000)
    assert set(masked(line * count)) == {"*"}
    assert "BEGIN" not in masked((line + "(") * count)
