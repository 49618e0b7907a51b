"""The JSON mapping, in at the door and out by the exporters."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.config import FileExporterConfig
from otel_anomaly.exporters.file import FileExporter
from otel_anomaly.handoff import Signal
from tests.conformance.doors import Doors, Way
from tests.conformance.requests import SPAN_ID, TRACE_ID, full, traces
from tests.test_exporters_http import Hop, exporting, serving

if TYPE_CHECKING:
    from pathlib import Path

JSON = Way("http", "json", "none")


def into(doors: Doors, span: dict[str, Any] | str) -> Any:
    """The span that a span in JSON becomes."""
    text = span if isinstance(span, str) else json.dumps(span)
    line = f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{text}]}}]}}]}}'
    assert doors.send_raw(JSON, line.encode()).ok
    request = ExportTraceServiceRequest.FromString(doors.passed_on())
    return request.resource_spans[0].scope_spans[0].spans[0]


def out(doors: Doors, span: Any) -> str:
    """The text that the next hop gets for a span."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.append(span)
    hop = Hop()

    async def main() -> None:
        async with serving(hop) as port, exporting(port, encoding="json") as exporter:
            body = request.SerializeToString()
            assert (await exporter.send(body, Signal.TRACES, 1)).message == ""

    doors.run(main())
    (call,) = hop.calls
    assert call.headers["Content-Type"] == "application/json"
    text = call.body.decode()
    assert text.startswith('{"resourceSpans":[{"scopeSpans":[{"spans":[')
    return text


def a_span(**keys: Any) -> Any:
    return traces().resource_spans[0].scope_spans[0].spans[0].__class__(**keys)


def test_J_ids_are_hex(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: ids of a span and a link in hex, lower and upper case; and out again.
    Guarantees: the bytes they say; lower case out.
    """
    ids = {"traceId": TRACE_ID.hex().upper(), "spanId": SPAN_ID.hex()}
    span = into(doors, {**ids, "parentSpanId": SPAN_ID.hex(), "links": [ids]})
    assert (span.trace_id, span.span_id, span.parent_span_id) == (TRACE_ID, SPAN_ID, SPAN_ID)
    assert (span.links[0].trace_id, span.links[0].span_id) == (TRACE_ID, SPAN_ID)
    text = out(doors, span)
    assert text.count(f'"traceId":"{TRACE_ID.hex()}"') == 2
    assert f'"parentSpanId":"{SPAN_ID.hex()}"' in text


def test_J_bytes_are_base64(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: an attribute of bytes.
    Guarantees: base64, both ways.
    """
    raw = bytes(range(250, 256))
    text = base64.b64encode(raw).decode()
    pair = {"key": "k", "value": {"bytesValue": text}}
    span = into(doors, {"attributes": [pair]})
    assert span.attributes[0].value.bytes_value == raw
    assert f'"bytesValue":"{text}"' in out(doors, span)


def test_J_enums_are_integers(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: kind and status code as numbers and as names, which senders must not use.
    Guarantees: both are read; numbers are written, also of kinds to come.
    """
    for kind, code in ((2, 2), ("SPAN_KIND_SERVER", "STATUS_CODE_ERROR")):
        span = into(doors, {"kind": kind, "status": {"code": code}})
        assert (span.kind, span.status.code) == (2, 2)
    text = out(doors, span)
    assert '"kind":2' in text
    assert '"code":2' in text
    assert into(doors, {"kind": 77}).kind == 77


@pytest.mark.parametrize("number", [0, 1, (1 << 53) + 1, (1 << 64) - 1])
def test_J_64_bit_integers_are_strings(doors: Doors, number: int) -> None:  # noqa: N802
    """
    Scenario: a time as a string and as a number, up to the largest.
    Guarantees: the same time to the nanosecond; a string out.
    """
    for written in (str(number), number):
        span = into(doors, {"name": "n", "startTimeUnixNano": written})
        assert span.start_time_unix_nano == number
    assert (f'"startTimeUnixNano":"{number}"' in out(doors, span)) == bool(number)
    for written in (str(-(1 << 63)), -(1 << 63)):
        pair = {"key": "k", "value": {"intValue": written}}
        assert into(doors, {"attributes": [pair]}).attributes[0].value.int_value == -(1 << 63)


def test_J_keys_are_lower_camel_case(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: names in snake_case come in; a whole request goes out.
    Guarantees: read; and no name with an underscore in it is ever written.
    """
    span = into(doors, {"trace_id": TRACE_ID.hex(), "start_time_unix_nano": 5})
    assert (span.trace_id, span.start_time_unix_nano) == (TRACE_ID, 5)
    names: list[str] = []
    text = out(doors, traces().resource_spans[0].scope_spans[0].spans[0])
    json.loads(text, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    assert "startTimeUnixNano" in names
    assert not [name for name in names if "_" in name or name[0].isupper()]


def test_half_a_surrogate_pair(doors: Doors) -> None:
    """
    Scenario: texts that a client has cut in the middle of a character, as JavaScript does: the
    first half, both in the wrong order, and one before a whole character.
    Guarantees: the batch is taken; U+FFFD stands where a half was, and the rest is as it came.
    """
    for cut, text in (
        ("ok \ud83d", "ok \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00x", "\ufffd\U0001f600x"),
    ):
        pair = {"key": cut, "value": {"stringValue": cut}}
        span = into(doors, {"name": cut, "attributes": [pair], cut: 1})
        assert span.name == span.attributes[0].key == text
        assert span.attributes[0].value.string_value == text


def test_J_unknown_names_are_ignored(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: names that nobody knows, with values of every kind.
    Guarantees: ignored; what is known is there.
    """
    later = {"later": {"a": [1, {"b": None}]}, "x": [[]], "y": "s", "z": 1e400, "name": "n"}
    span = into(doors, json.dumps(later))
    assert span == a_span(name="n")


def test_J_non_finite_doubles(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: NaN and both infinities as strings.
    Guarantees: read as such and written as such; the text stays JSON.
    """
    names = ["NaN", "Infinity", "-Infinity"]
    pairs = [{"key": "k", "value": {"doubleValue": name}} for name in names]
    span = into(doors, {"attributes": pairs})
    values = [pair.value.double_value for pair in span.attributes]
    assert values[0] != values[0]  # Only NaN differs from itself.
    assert values[1:] == [float("inf"), float("-inf")]

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = out(doors, span)
    json.loads(text, parse_constant=refuse)
    assert all(f'"doubleValue":"{name}"' in text for name in names)


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (Signal.TRACES, "resourceSpans"),
        (Signal.METRICS, "resourceMetrics"),
        (Signal.LOGS, "resourceLogs"),
    ],
)
def test_J_file_has_a_request_on_each_line(  # noqa: N802
    doors: Doors, tmp_path: Path, signal: Signal, name: str
) -> None:
    """
    Scenario: two requests go to the file exporter.
    Guarantees: `.jsonl`, two lines, each one object with the one name at its top; what is read
    back by the door is what was written.
    """
    path = tmp_path / f"{signal.value}.jsonl"
    body = full(signal).SerializeToString()

    async def main() -> None:
        exporter = FileExporter(FileExporterConfig(), dict.fromkeys(Signal, path))
        await exporter.start()
        for _ in range(2):
            await exporter.send(body, signal, 1)
        await exporter.close()

    asyncio.run(main())
    lines = path.read_bytes().splitlines()
    assert [list(json.loads(line)) for line in lines] == [[name]] * 2
    assert doors.send_raw(JSON, lines[0], signal).ok
    assert doors.passed_on() == body
