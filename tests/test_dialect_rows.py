"""Every row of the dialects known, in the smallest honest payload: what is got out of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.dialects import (
    AGENT,
    ARGUMENTS,
    CALL_ID,
    RESULT,
    SESSION,
    TENANT,
    TOOL,
    USER,
    WEAK,
)
from otel_anomaly.otlp.json import decode
from otel_anomaly.otlp.scan import ABSENT, IS_CALL, IS_ERROR, scan
from tests import naive, traffic
from tests.argument_rigs import read
from tests.dialect_rows import CONVENTION_ROWS, TEXT, Pairs, Row
from tests.scan_rigs import KEYS, check_scan, text_of
from tests.vendor_rows import VENDOR_ROWS

if TYPE_CHECKING:
    from otel_anomaly.kernels import Record

ROWS = CONVENTION_ROWS + VENDOR_ROWS

WHO = {"agent": AGENT, "session": SESSION, "user": USER, "tenant": TENANT}
every_row = pytest.mark.parametrize("case", ROWS, ids=[row.dialect for row in ROWS])


def body_of(case: Row, pairs: Pairs) -> bytes:
    """A request with the call, and under the same resource the span above it."""
    call = Span(
        trace_id=b"T" * 16,
        span_id=b"S" * 8,
        parent_span_id=b"P" * 8,
        name=case.name,
        attributes=traffic.attributes(pairs.items()),
    )
    for name, told in case.events:
        call.events.add(name=name, attributes=traffic.attributes(told.items()))
    above = Span(
        trace_id=b"T" * 16,
        span_id=b"P" * 8,
        name=case.above_name,
        attributes=traffic.attributes((case.above or {}).items()),
    )
    scope = InstrumentationScope(name=case.scope)
    return traffic.request([call, above], scope=scope, resource=case.resource.items())


def fingerprint(body: bytes, row: Record, role: int) -> int | None:
    """Of what lies in a role, out of its envelope; None where nothing does."""
    if row["order"][role] == ABSENT:
        return None
    at, length = int(row["at"][role]), int(row["length"][role])
    return read(body[at : at + length], int(row["kind"][role])).fingerprint


def strong(body: bytes, row: Record, role: int) -> str | None:
    """Who is meant, by what is not weak."""
    return text_of(body, row, role) if row["order"][role] < WEAK else None


def check_row(case: Row, pairs: Pairs) -> None:
    """The call of a row is read as a reader would, from these attributes."""
    body = body_of(case, pairs)
    columns = check_scan(body)
    assert columns is not None
    call, above = columns.rows
    assert call["flags"] & IS_CALL
    assert above["flags"] & IS_CALL == 0
    assert text_of(body, call, TOOL) == case.tool
    assert text_of(body, call, CALL_ID) == case.call_id
    expected = read(TEXT).fingerprint if case.has_arguments else None
    assert fingerprint(body, call, ARGUMENTS) == expected
    assert (fingerprint(body, call, RESULT) is not None) == case.has_result
    assert bool(call["flags"] & IS_ERROR) == case.error
    for who, role in WHO.items():
        said = strong(body, call, role)
        assert (strong(body, above, role) if said is None else said) == getattr(case, who), who


@every_row
def test_each_row(case: Row) -> None:
    """
    Scenario: a call as one framework writes it, in its smallest form, and the span above it.
    Guarantees: tool, call id, arguments, result, failure and all identities are what it says.
    """
    check_row(case, case.pairs)


@every_row
def test_each_row_in_another_order(case: Row) -> None:
    """
    Scenario: the same, its attributes the other way round and among others that mean nothing.
    Guarantees: the same.
    """
    other: Pairs = {"thread.id": 7, "code.function": "call", "empty": "", "list": ["a"]}
    check_row(case, {**dict(reversed(case.pairs.items())), **other})


@every_row
def test_each_row_through_the_json_door(case: Row) -> None:
    """
    Scenario: the same request as OTLP/JSON, its attributes as JSON has them.
    Guarantees: the bytes it is turned into are read the same.
    """
    body = body_of(case, case.pairs)
    document = naive.otlp_json(ExportTraceServiceRequest.FromString(body))
    turned = decode(json.dumps(document).encode(), Signal.TRACES)
    assert scan(turned, KEYS).rows["flags"].tolist() == scan(body, KEYS).rows["flags"].tolist()
    assert ExportTraceServiceRequest.FromString(turned) == ExportTraceServiceRequest.FromString(
        body
    )


def as_map(value: object) -> object:
    """A value that is JSON text as the value that it tells."""
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value


@every_row
def test_each_row_with_content_as_maps(case: Row) -> None:
    """
    Scenario: the same, what is JSON text in it sent as maps.
    Guarantees: the same tool, arguments and identities: a value counts, not how it is carried.
    """
    told: Pairs = {key: as_map(value) for key, value in case.pairs.items()}  # type: ignore[misc]
    events = tuple(
        (name, {key: as_map(value) for key, value in pairs.items()}) for name, pairs in case.events
    )
    check_row(case._replace(events=events), told)  # type: ignore[arg-type]


@every_row
def test_each_row_without_what_is_around(case: Row) -> None:
    """
    Scenario: the same span as the root of its trace, of any kind, under another scope's version,
    its service named in the resource only.
    Guarantees: the same tool and arguments; the service speaks for an agent that nobody names.
    """
    service: Pairs = {"service.name": "app", **case.resource}
    body = body_of(case._replace(above=None, resource=service), case.pairs)
    message = ExportTraceServiceRequest.FromString(body)
    scope = message.resource_spans[0].scope_spans[0]
    scope.scope.version, scope.schema_url = "0.0.1", "https://example.com/schema"
    del scope.spans[1:]
    scope.spans[0].parent_span_id = b""
    for kind in Span.SpanKind.values():
        scope.spans[0].kind = kind
        body = message.SerializeToString()
        (row,) = scan(body, KEYS).rows
        assert row["flags"] & IS_CALL
        assert text_of(body, row, TOOL) == case.tool
        assert (row["order"][ARGUMENTS] != ABSENT) == case.has_arguments
        assert row["order"][AGENT] != ABSENT
