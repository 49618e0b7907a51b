"""Warming up: a few calls that make every kernel ready, and leave nothing."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly import processor, warm
from otel_anomaly.handoff import Signal
from tests.book_rigs import BookRig
from tests.naive import children_with_place
from tests.rig import arrays_of
from tests.sizes import COMPILED


def test_the_requests_are_what_they_should_be() -> None:
    """
    Scenario: the requests written by hand are read by the protobuf library.
    Guarantees: they are of one trace; spans have ids of their own; one call carries a session that
    is a number, arguments and a result, and says nothing of its agent; an agent stands above it.
    """
    children, ids = [], set()
    for signal, body in warm._REQUESTS:
        logs = signal is Signal.LOGS
        message = (ExportLogsServiceRequest if logs else ExportTraceServiceRequest).FromString(body)
        assert message.SerializeToString() == body
        ((child, _, _),) = children_with_place(message)
        assert child.trace_id == b"\1" * 16
        if not logs:
            ids.add(child.span_id)
        children.append((child, {pair.key: pair.value for pair in child.attributes}))
    assert {len(span_id) for span_id in ids} == {8}
    assert len(ids) == 3
    (call, told), (_, second), (above, who), (_, record) = children
    assert call.parent_span_id == above.span_id
    assert told["gen_ai.operation.name"].string_value == "execute_tool"
    assert told["session.id"].int_value == 1
    assert {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"} <= set(told)
    assert "session.id" not in second
    assert "gen_ai.agent.name" not in {*told, *second}
    assert who["gen_ai.agent.name"].string_value == "above"
    assert record["event.name"].string_value == "tool_result"


def test_warming_up_leaves_nothing() -> None:
    """
    Scenario: a processor is at work, and the process warms up again, as a module would.
    Guarantees: no thread is left, and the state of the other is not touched.
    """
    rig = BookRig()
    before = [array.tobytes() for array in arrays_of(rig.processor.state)]
    before_threads = set(threading.enumerate())
    runpy.run_path(warm.__file__, run_name="__main__")
    assert set(threading.enumerate()) <= before_threads
    assert [array.tobytes() for array in arrays_of(rig.processor.state)] == before


@pytest.mark.parametrize("part", ["look_at", "judge", "encode", "splice"])
def test_kernels_that_do_not_run(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a kernel fails on this machine.
    Guarantees: warming up says so, instead of a service that starts and judges nothing.
    """

    def broken(*_: object) -> None:
        raise SystemError("illegal instruction")

    monkeypatch.setattr(processor, part, broken)
    with pytest.raises(AssertionError, match="the kernels do not run on this machine"):
        warm.warm()
    assert "detection failed" in caplog.text


@pytest.mark.skipif(not COMPILED, reason="NUMBA_DISABLE_JIT is set: nothing is compiled")
def test_nothing_is_left_to_compile() -> None:
    """
    Scenario: a fresh process warms up, and then a service's traffic comes: spans and log records of
    real emitters and of hostile ones, held back and moved, episodes that end, rows that are freed;
    then a replay.
    Guarantees: not one kernel is compiled after warming up: no request ever waits for a compiler.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.compiled_kernels"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
        timeout=1200,  # On a machine that never compiled them, it compiles them all.
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_every_request_fits_its_lengths() -> None:
    """
    Scenario: parts that are as long as the simple writer can say, and one that is longer.
    Guarantees: lengths of one byte and of two are what protobuf reads; more is refused.
    """
    assert warm._chunk(1, b"x" * 127)[:2] == b"\x0a\x7f"
    assert warm._chunk(1, b"x" * 300)[:3] == b"\x0a\xac\x02"
    with pytest.raises(AssertionError):
        warm._chunk(1, b"x" * (1 << 14))
