"""Warming up: a few calls that make every kernel ready, and leave nothing."""

from __future__ import annotations

import runpy
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly import processor, warm
from tests.book_rigs import BookRig


def test_the_requests_are_what_they_should_be() -> None:
    """
    Scenario: the requests written by hand are read by the protobuf library.
    Guarantees: each is one tool call with ids of its own, both of one trace; the first names a
    session that is a number, the second names none.
    """
    spans, ids = [], set()
    for body in warm._REQUESTS:
        message = ExportTraceServiceRequest.FromString(body)
        assert message.SerializeToString() == body
        ((span,),) = (s.spans for r in message.resource_spans for s in r.scope_spans)
        spans.append({pair.key: pair.value for pair in span.attributes})
        ids.add(span.span_id)
        assert (span.trace_id, len(span.span_id)) == (b"\1" * 16, 8)
        assert spans[-1]["gen_ai.operation.name"].string_value == "execute_tool"
    assert len(ids) == 2
    assert spans[0]["session.id"].int_value == 1
    assert "session.id" not in spans[1]


def test_warming_up_leaves_nothing() -> None:
    """
    Scenario: a processor is at work, and the process warms up again, as a module would.
    Guarantees: no thread is left, and the state of the other is not touched.
    """
    rig = BookRig()
    before = [array.copy() for array in rig.processor.state.sessions]
    threads = threading.active_count()
    runpy.run_path(warm.__file__, run_name="__main__")
    assert threading.active_count() == threads
    for array, was in zip(rig.processor.state.sessions, before, strict=True):
        assert array.tobytes() == was.tobytes()


def test_kernels_that_do_not_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a kernel fails on this machine.
    Guarantees: warming up says so, instead of a service that starts and judges nothing.
    """

    def broken(*_: object) -> None:
        raise SystemError("illegal instruction")

    monkeypatch.setattr(processor, "judge", broken)
    with pytest.raises(AssertionError, match="the kernels do not run on this machine"):
        warm.warm()
    assert "detection failed" in caplog.text


def test_every_request_fits_one_byte_lengths() -> None:
    """
    Scenario: a part that is longer than the simple writer can say.
    Guarantees: it refuses instead of writing a broken request.
    """
    assert warm._chunk(1, b"x" * 127)[:2] == b"\x0a\x7f"
    with pytest.raises(AssertionError):
        warm._chunk(1, b"x" * 128)
