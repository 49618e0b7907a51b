"""Backoff, and what a next hop says about when to come back."""

from __future__ import annotations

import math

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly.config import RetryConfig
from otel_anomaly.exporters.contract import MESSAGE_CHARS_MAX, SENT, Kind, SendResult, clipped
from otel_anomaly.exporters.response import (
    DETAILS_BYTES_MAX,
    JSON_BYTES_MAX,
    retry_after_s,
    retry_info_s,
    status_message,
    taken,
)
from otel_anomaly.exporters.retry import HINT_S_MAX, Backoff, RetryPolicy
from otel_anomaly.handoff import Signal

NOW_NS = 1_790_000_000_000_000_000  # Mon, 21 Sep 2026 14:13:20 GMT.


def backoff(chance: float = 0.5, **keys: object) -> Backoff:
    """The waits of a request first sent at second 100."""
    policy = RetryPolicy.of(RetryConfig.model_validate(keys))
    return Backoff(lambda: policy, lambda: chance, 100.0)


def test_waits_grow_to_the_longest() -> None:
    """
    Scenario: a request fails again and again, on the defaults, without chance and without hints.
    Guarantees: 5 s, each half as long again as the last, 30 s at most.
    """
    waits = backoff()
    seen = [waits.next_wait(100.0, None) for _ in range(7)]
    assert seen == [5.0, 7.5, 11.25, 16.875, 25.3125, 30.0, 30.0]


@pytest.mark.parametrize(("chance", "first_s"), [(0.0, 2.5), (0.25, 3.75), (1.0, 7.5)])
def test_waits_are_spread(chance: float, first_s: float) -> None:
    """
    Scenario: the source of chance gives its ends and a value between.
    Guarantees: the wait is off by at most the randomization factor, either way.
    """
    assert backoff(chance).next_wait(100.0, None) == first_s


@pytest.mark.parametrize(
    ("hint_s", "wait_s"),
    [
        (None, 5.0),
        (0.0, 5.0),
        (4.0, 5.0),
        (20.0, 20.0),
        (1e9, HINT_S_MAX),
        (math.inf, HINT_S_MAX),
        (math.nan, 5.0),
        (-3.0, 5.0),
    ],
)
def test_a_hint_is_honoured_within_reason(hint_s: float | None, wait_s: float) -> None:
    """
    Scenario: the next hop asks for waits shorter and longer than ours, endless ones, nonsense.
    Guarantees: the longer of the two counts, and nobody can stop us for more than the clamp.
    """
    assert backoff().next_wait(100.0, hint_s) == wait_s


def test_given_up_before_a_wait_that_is_too_long() -> None:
    """
    Scenario: 300 s are allowed; the next attempt would start at 300 s, or just after.
    Guarantees: at the limit it is tried, after it the request is given up without waiting first.
    """
    assert backoff().next_wait(395.0, None) == 5.0
    assert backoff().next_wait(395.001, None) is None


def test_never_given_up_and_never_tried() -> None:
    """
    Scenario: `max_elapsed_time: 0`, and retries switched off.
    Guarantees: the first goes on after years, the second gives up at once.
    """
    assert backoff(max_elapsed_time=0).next_wait(1e9, None) == 5.0
    assert backoff(enabled=False).next_wait(100.0, 1.0) is None


def test_rules_that_change_under_way() -> None:
    """
    Scenario: the rules of a request that waits become others: shorter waits, no end, off.
    Guarantees: the next wait goes by them.
    """
    keys: dict[str, object] = {}
    waits = Backoff(
        lambda: RetryPolicy.of(RetryConfig.model_validate(keys)), lambda: 0.5, start_s=100.0
    )
    assert [waits.next_wait(100.0, None) for _ in range(3)] == [5.0, 7.5, 11.25]
    keys |= {"max_interval": "6s"}
    assert [waits.next_wait(100.0, None) for _ in range(2)] == [6.0, 6.0]
    keys |= {"max_interval": "1h", "multiplier": 2}
    assert [waits.next_wait(100.0, None) for _ in range(2)] == [9.0, 18.0]
    assert waits.next_wait(399.0, None) is None
    keys |= {"max_elapsed_time": 0}
    assert waits.next_wait(399.0, None) is not None
    keys |= {"enabled": False}
    assert waits.next_wait(100.0, None) is None


def status_with(*details: RetryInfo | BadRequest, message: str = "") -> bytes:
    """An encoded google.rpc.Status."""
    packed = []
    for detail in details:
        holder = Any()
        holder.Pack(detail)
        packed.append(holder)
    return Status(code=14, message=message, details=packed).SerializeToString()


def test_retry_info_is_found_among_details() -> None:
    """
    Scenario: status details with another detail before the hint, without one, and with -5 s.
    Guarantees: the hint to the nanosecond, None, and never less than 0.
    """
    hint = RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    assert retry_info_s(status_with(BadRequest(), hint)) == 2.5
    assert retry_info_s(status_with(BadRequest())) is None
    assert retry_info_s(b"") is None
    assert retry_info_s(status_with(RetryInfo(retry_delay=Duration(seconds=-5)))) == 0.0


def test_hostile_details_are_no_hint() -> None:
    """
    Scenario: details that are not protobuf, a hint that is not one inside, and over the limit.
    Guarantees: None, without an error.
    """
    broken = Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    hint = RetryInfo(retry_delay=Duration(seconds=1))
    assert retry_info_s(b"\xff\xff\xff") is None
    assert retry_info_s(Status(details=[broken]).SerializeToString()) is None
    assert retry_info_s(status_with(hint, message="x" * DETAILS_BYTES_MAX)) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("17", 17.0),
        (" 17 ", 17.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2026 14:13:50 -0000", 30.0),
        ("Mon, 21 Sep 2026 14:00:00 GMT", 0.0),
        ("Mon, 99 Sep 2026 99:00:00 GMT", None),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    """
    Scenario: Retry-After as seconds, as a date ahead and past, and as nonsense.
    Guarantees: seconds from now, never negative, None when it cannot be read.
    """
    assert retry_after_s(value, NOW_NS) == seconds


@given(st.text(max_size=80))
def test_any_retry_after_is_survived(value: str) -> None:
    """
    Scenario: any text at all in the header.
    Guarantees: a number that is not negative, or None; no exception.
    """
    seconds = retry_after_s(value, NOW_NS)
    assert seconds is None or seconds >= 0


@given(st.binary(max_size=200), st.sampled_from(Signal))
def test_any_response_is_taken(response: bytes, signal: Signal) -> None:
    """
    Scenario: success with any bytes in the response.
    Guarantees: it counts as sent, whatever it says; no exception.
    """
    assert taken(response, signal).kind is Kind.SENT
    retry_info_s(response)
    status_message(response)


def test_partial_success_is_read() -> None:
    """
    Scenario: an empty response, an empty partial success, and one that left something out.
    Guarantees: the first two equal success; the last carries number and message.
    """
    partial = ExportTraceServiceResponse()
    partial.partial_success.SetInParent()
    assert taken(b"", Signal.TRACES) == SENT
    assert taken(partial.SerializeToString(), Signal.TRACES) == SENT
    partial.partial_success.rejected_spans = 3
    partial.partial_success.error_message = "no room\n for these"
    result = taken(partial.SerializeToString(), Signal.TRACES)
    assert (result.rejected, result.message) == (3, "no room? for these")
    points = ExportMetricsServiceResponse()
    points.partial_success.rejected_data_points = 4
    assert taken(points.SerializeToString(), Signal.METRICS).rejected == 4


def test_text_from_outside_is_one_short_line() -> None:
    """
    Scenario: a message with escape sequences, line ends and a megabyte of text.
    Guarantees: printable, one line, short.
    """
    assert clipped("a\x1b[31m\r\nb") == "a?[31m??b"
    assert len(clipped("x" * 1_000_000)) == MESSAGE_CHARS_MAX


def partly(size: int) -> bytes:
    """A response in JSON of so many bytes, by which two spans were left out."""
    frame = b'{"partialSuccess":{"rejectedSpans":"2"},"later":""}'
    return frame.replace(b'""', b'"%s"' % (b"x" * (size - len(frame))))


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (b"", SENT),
        (b"{}", SENT),
        (b'{"partialSuccess":{}}', SENT),
        (
            b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"old"},"later":1}',
            SENT._replace(message="old", rejected=2),
        ),
        (b"{", SENT._replace(message="its response cannot be read")),
        (b"[" * 60_000, SENT._replace(message="its response cannot be read")),
        (partly(JSON_BYTES_MAX), SENT._replace(rejected=2)),
        (
            partly(JSON_BYTES_MAX + 1),
            SENT._replace(message="its response, in JSON, is over 65536 bytes"),
        ),
        (b"\xff", SENT._replace(message="its response cannot be read")),
        (b'{"partialSuccess":7}', SENT._replace(message="its response cannot be read")),
    ],
)
def test_a_response_in_json(body: bytes, result: SendResult) -> None:
    """
    Scenario: what a next hop answers that was asked in JSON, sound and not, and too large to read.
    Guarantees: read as in protobuf; what is not read is success all the same.
    """
    assert taken(body, Signal.TRACES, in_json=True) == result


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"code":3,"message":"bad"}', "bad"),
        (b'{"message":"a\\nb","details":[{"@type":"unknown/x"}]}', "a?b"),
        (b'{"message":null}', ""),
        (b"[]", ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
    ],
)
def test_a_status_in_json(body: bytes, message: str) -> None:
    """
    Scenario: a Status in JSON, with details of a type that we do not know; and what is none.
    Guarantees: its message on one line; nothing else raises.
    """
    assert status_message(body, in_json=True) == message
