"""What redaction must do with any bytes: as a request, as a text, as JSON cut off anywhere."""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.otlp import redaction, scan
from otel_anomaly.otlp.cutting import remove
from otel_anomaly.otlp.redaction import Redaction, make_redaction
from tests.scan_rigs import try_scan
from tests.surrogates import without_halves

_ALL = redaction.SECRETS | redaction.MAILS | redaction.PHONES | redaction.NUMBERS
_RULES: Redaction = make_redaction(_ALL, ["kept"])
_KINDS: Any = (
    (scan.TRACES, redaction.TRACES, ExportTraceServiceRequest),
    (scan.LOGS, redaction.LOGS, ExportLogsServiceRequest),
)


def check(data: bytes) -> None:
    """Redact the bytes as each kind of request that they are, and as what a tool was handed."""
    for signal, message, kind in _KINDS:
        if try_scan(data, signal=signal) is not None:
            _check_request(data, message, kind)
    text = data.decode(errors="replace")
    for key in ("note", "password"):
        _check_text(key, text)
    _check_text("note", json.dumps({"password": [text], text[:40]: text}))


def _check_text(key: str, text: str) -> None:
    """A text as the one attribute of a span. JSON stays JSON."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.attributes.add(key=key).value.string_value = text
    body = request.SerializeToString()
    for after in _check_request(body, redaction.TRACES, ExportTraceServiceRequest):
        spans = ExportTraceServiceRequest.FromString(after).resource_spans[0].scope_spans[0].spans
        left = spans[0].attributes[0].value.string_value
        if _is_object(text):
            assert _is_object(left), "JSON must stay JSON"


def _is_object(text: str) -> bool:
    """Whether a text is a JSON object, strictly: no name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def never(name: str) -> Any:
        raise ValueError(name)

    try:
        value = json.loads(without_halves(text), object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _check_request(body: bytes, message: Any, kind: Any) -> tuple[bytes, bytes]:
    """Masked and removed: both can be read, and neither changes when it is done again."""
    covered, count = redaction.redact(body, message, _RULES)
    assert len(covered) == len(body)
    assert (count == 0) == (covered is body)
    assert redaction.redact(covered, message, _RULES) == (covered, 0)
    kind.FromString(covered)
    left = remove(body, message, _RULES)
    assert len(left) <= len(body)
    assert remove(left, message, _RULES) == left
    kind.FromString(left)
    return covered, left
