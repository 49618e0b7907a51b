"""E1-E14 and the client's half of the status tables: what a sender owes, on every way out."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_anomaly import __version__
from otel_anomaly.config import SECOND_NS, load_config
from otel_anomaly.exporters import build
from otel_anomaly.exporters.contract import Kind
from otel_anomaly.exporters.grpc import failure as grpc_failure
from otel_anomaly.exporters.http import failure as http_failure
from otel_anomaly.exporters.response import RESPONSE_BYTES_MAX, retry_after_s
from otel_anomaly.handoff import Signal
from otel_anomaly.telemetry import Telemetry
from tests.conformance.hops import (
    OUTS,
    PLAIN,
    Answer,
    NextHop,
    Out,
    Sender,
    configured,
    exporter_keys,
    play,
    sending,
    until,
)
from tests.conformance.requests import full, traces
from tests.exporters_world import Books, FixedClock, Relay

if TYPE_CHECKING:
    from collections.abc import Sequence

every_out = pytest.mark.parametrize("out", OUTS, ids=str)
proto_outs = pytest.mark.parametrize(
    "out", [out for out in PLAIN if out.encoding == "proto"], ids=str
)
http_outs = pytest.mark.parametrize("out", [out for out in PLAIN if not out.is_grpc], ids=str)
plain_outs = pytest.mark.parametrize("out", PLAIN, ids=str)
Code = grpc.StatusCode

RETRYABLE = (
    Code.CANCELLED,
    Code.DEADLINE_EXCEEDED,
    Code.ABORTED,
    Code.OUT_OF_RANGE,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
)
FINAL = (
    Code.UNKNOWN,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.INTERNAL,
)
assert {*RETRYABLE, *FINAL, Code.OK, Code.RESOURCE_EXHAUSTED} == set(Code)
BODY = traces().SerializeToString()


def busy(out: Out, **more: Any) -> Answer:
    """The next hop is overloaded."""
    return Answer(Code.UNAVAILABLE.value[0] if out.is_grpc else 503, **more)


def bad(out: Out) -> Answer:
    """The next hop will never take it."""
    return Answer(Code.INVALID_ARGUMENT.value[0] if out.is_grpc else 400)


def status(code: grpc.StatusCode) -> Any:
    """An error as the library raises it."""
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, empty, details="because")


@every_out
def test_E1_transient_failures_are_retried(out: Out) -> None:  # noqa: N802 - the row.
    """
    Scenario: three refusals for now, then the next hop takes it. How the waits grow and spread is
    played in virtual time by the tests of the queue.
    Guarantees: four attempts of the same bytes; counted as sent once, and as failed thrice.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        assert hop.bodies == [BODY] * 4
        assert (sender.books.failed, sender.books.dropped(), sender.books.held) == (3, 0, 0)

    play(out, (busy(out),) * 3, work)


@proto_outs
def test_E2_the_delay_asked_for_is_kept(out: Out) -> None:  # noqa: N802
    """
    Scenario: the next hop asks for an hour with a retryable refusal; retries end after 30 seconds.
    Guarantees: given up at once: the next attempt would come too late. The delay was read.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.dropped("retries_exhausted") == 1)
        assert len(hop.bodies) == 1

    retry = {"initial_interval": "10ms", "max_interval": "20ms", "max_elapsed_time": "30s"}
    play(out, (busy(out, delay_s=3600),), work, retry_on_failure=retry)


@http_outs
def test_E2_the_date_asked_for_is_kept(out: Out) -> None:  # noqa: N802
    """
    Scenario: the next hop names a date in an hour; retries end after 30 seconds. gRPC has no dates.
    Guarantees: given up at once, as with a delay of an hour.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.held == 0)
        assert (len(hop.bodies), sender.books.dropped("retries_exhausted")) == (1, 1)

    date = formatdate(FixedClock().now_ns() // SECOND_NS + 3600, usegmt=True)
    retry = {"initial_interval": "10ms", "max_interval": "20ms", "max_elapsed_time": "30s"}
    play(out, (busy(out, date=date),), work, retry_on_failure=retry)


def test_E2_both_forms_of_retry_after() -> None:  # noqa: N802
    """
    Scenario: Retry-After in seconds and as a date; and as nonsense.
    Guarantees: seconds from now; nonsense is no hint.
    """
    now_ns = 1_445_412_480 * SECOND_NS
    assert retry_after_s("120", now_ns) == 120
    assert retry_after_s("Wed, 21 Oct 2015 07:30:00 GMT", now_ns) == 120
    assert retry_after_s("Wed, 21 Oct 2015 07:20:00 GMT", now_ns) == 0
    assert retry_after_s("soon", now_ns) is None


@every_out
def test_E3_permanent_failures_are_final(out: Out) -> None:  # noqa: N802
    """
    Scenario: the next hop refuses for good.
    Guarantees: one attempt; dropped, counted as rejected; the next request goes through.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.dropped("rejected") == 1)
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        assert len(hop.bodies) == 2

    play(out, (bad(out),), work)


@every_out
def test_E4_partial_success_is_final(  # noqa: N802
    out: Out, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: of five spans the next hop says it left out two, and why.
    Guarantees: one attempt; five sent, two of them counted as rejected; the reason is in the log.
    """
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 2
    response.partial_success.error_message = "too old"

    async def work(hop: NextHop, sender: Sender) -> None:
        with caplog.at_level(logging.WARNING):
            sender.put(BODY, 5)
            await until(lambda: sender.books.sent == 5)
        assert len(hop.bodies) == 1
        assert (sender.books.rejected, sender.books.dropped()) == (2, 0)
        assert "too old" in caplog.text

    play(out, (Answer(body=response.SerializeToString()),), work)


@every_out
def test_E5_empty_partial_success_is_success(  # noqa: N802
    out: Out, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: partial_success is there, with 0 and without a message.
    Guarantees: sent; nothing counted beside it, not a word in the log.
    """
    response = ExportTraceServiceResponse()
    response.partial_success.SetInParent()

    async def work(hop: NextHop, sender: Sender) -> None:
        with caplog.at_level(logging.WARNING, "otel_anomaly"):
            sender.put(BODY, 5)
            await until(lambda: sender.books.sent == 5)
        assert (sender.books.rejected, len(hop.bodies), caplog.text) == (0, 1, "")

    play(out, (Answer(body=response.SerializeToString()),), work)


@every_out
def test_E6_requests_are_limited(out: Out) -> None:  # noqa: N802
    """
    Scenario: 40 spans of 10 KiB, one of 100 KiB among them; at most 64 KiB may be sent at once.
    Guarantees: several requests, each under the limit in protobuf, that hold the 40 once and in
    order; the large one is dropped as too large, without an attempt.
    """
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number in range(41):
        size = 100 if number == 20 else 10
        spans.add(name=f"{number:03}" + "x" * (size << 10))

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(request.SerializeToString(), 41)
        await until(lambda: sender.books.held == 0)
        assert (sender.books.sent, sender.books.dropped("too_large")) == (40, 1)
        assert all(len(body) <= 64 << 10 for body in hop.bodies)
        got = [
            span.name[:3]
            for body in hop.bodies
            for span in ExportTraceServiceRequest.FromString(body)
            .resource_spans[0]
            .scope_spans[0]
            .spans
        ]
        assert got == [f"{number:03}" for number in range(41) if number != 20]

    play(out, (), work, max_request_size="64KiB")


@every_out
def test_E7_oversized_responses_are_final(out: Out) -> None:  # noqa: N802
    """
    Scenario: a response of one byte over 4 MiB.
    Guarantees: not retried; the status was a success, so it counts as sent; the next request goes
    through.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        sender.put(BODY)
        await until(lambda: sender.books.sent == 2)
        assert len(hop.bodies) == 2

    play(out, (Answer(body=bytes(RESPONSE_BYTES_MAX + 1)),), work)


@http_outs
def test_E7_an_oversized_refusal_is_final(out: Out) -> None:  # noqa: N802
    """
    Scenario: 503, which would be retried, with a body of one byte over 4 MiB. In gRPC a refusal has
    no body.
    Guarantees: one attempt; dropped, counted as rejected; the next request goes through.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.held == 0)
        assert (sender.books.sent, sender.books.dropped("rejected")) == (0, 1)
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        assert len(hop.bodies) == 2

    play(out, (busy(out, body=bytes(RESPONSE_BYTES_MAX + 1)),), work)


@plain_outs
def test_E8_requests_go_side_by_side(out: Out) -> None:  # noqa: N802
    """
    Scenario: ten requests towards a hop that answers none until it has three; num_consumers is 3.
    Guarantees: three at once, never four; all are delivered.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        hop.gate = asyncio.Event()
        for _ in range(10):
            sender.put(BODY)
        await until(lambda: hop.under_way == 3)
        hop.gate.set()
        await until(lambda: sender.books.sent == 10)
        assert hop.most_under_way == 3

    queue = {"num_consumers": 3, "batch": {"flush_timeout": "1ms", "max_size": 1}}
    play(out, (), work, sending_queue=queue)


@plain_outs
def test_E9_connections_are_kept(out: Out) -> None:  # noqa: N802
    """
    Scenario: twenty requests one after the other.
    Guarantees: one connection.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        for number in range(20):
            sender.put(BODY)
            await until(lambda number=number: sender.books.sent == number + 1)  # type: ignore[misc]
        assert len(hop.connections) == 1

    play(out, (), work)


@plain_outs
def test_E9_a_server_that_hangs_up(out: Out) -> None:  # noqa: N802
    """
    Scenario: the next hop breaks the connection twice without a word.
    Guarantees: sent again on a new connection; nothing is lost.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        hop.hang_up = 2
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        assert (len(hop.bodies), sender.books.failed) == (3, 2)

    play(out, (), work)


@proto_outs
def test_E9_a_connection_that_goes_silent(out: Out) -> None:  # noqa: N802
    """
    Scenario: after a first answer nothing passes on the connection any more, and nobody closes it;
    new connections work.
    Guarantees: the next request is delivered on another connection, well before it would be given
    up; the one left is closed.
    """
    hop = NextHop(out)
    # gRPC finds out by itself after a minute, when a ping happens to be under way.
    retry = {"initial_interval": "10ms", "max_interval": "20ms", "max_elapsed_time": "30s"}
    keys = {"timeout": "1s", "retry_on_failure": retry}

    async def main() -> None:
        async with hop.serving() as hop_port:
            relay = Relay(hop_port)
            async with (
                relay.serving() as port,
                sending(out, port, random.Random(1), **keys) as sender,
            ):
                sender.put(BODY)
                await until(lambda: sender.books.sent == 1)
                relay.swallowed = 1
                sender.put(BODY)
                await until(lambda: sender.books.held == 0)
                assert (sender.books.sent, sender.books.dropped()) == (2, 0)
                await until(lambda: relay.open == 1)
                assert relay.made > 1

    asyncio.run(main())


@plain_outs
def test_E10_a_slow_destination_stands_alone(out: Out) -> None:  # noqa: N802
    """
    Scenario: two destinations, of which one never answers.
    Guarantees: the other gets everything meanwhile; both queues hold the very same bytes.
    """
    slow, quick = NextHop(out), NextHop(out)
    telemetry = Telemetry(["otlp_http/slow", "otlp_http/quick"])

    async def main() -> None:
        slow.gate = asyncio.Event()
        async with slow.serving() as one, quick.serving() as other:
            kind = f"otlp_{out.transport}"
            config = configured(
                {
                    f"{kind}/slow": exporter_keys(out, one),
                    f"{kind}/quick": exporter_keys(out, other),
                }
            )
            fanout = build(config, telemetry, FixedClock(), random.Random(1))
            await fanout.start()
            sender = Sender(fanout, telemetry)
            for _ in range(20):
                sender.put(BODY)
            await until(lambda: Books(telemetry, f"{kind}/quick").sent == 20)
            assert Books(telemetry, f"{kind}/slow").sent == 0
            assert Books(telemetry, f"{kind}/slow").held == 20
            slow.gate.set()
            await until(lambda: Books(telemetry, f"{kind}/slow").sent == 20)
            await fanout.stop(0)

    asyncio.run(main())
    assert slow.bodies == quick.bodies == [BODY] * 20


@plain_outs
@pytest.mark.parametrize("in_time", [True, False])
def test_E11_shutdown(out: Out, in_time: bool) -> None:  # noqa: N802, FBT001 - the row; a case.
    """
    Scenario: the service stops while ten requests are held; with time to deliver, and without.
    Guarantees: delivered; or counted as dropped at shutdown. Nothing is unaccounted for.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        hop.gate = asyncio.Event()
        for _ in range(10):
            sender.put(BODY)
        await until(lambda: hop.under_way > 0)
        if in_time:
            hop.gate.set()
        await sender.fanout.stop(60 if in_time else 0)
        expected = (10, 0) if in_time else (0, 10)
        assert (sender.books.sent, sender.books.dropped("shutdown")) == expected
        assert sender.books.held == 0
        hop.gate.set()

    hop = NextHop(out)

    async def main() -> None:
        async with hop.serving() as port:
            name = f"otlp_{out.transport}/next"
            telemetry = Telemetry([name])
            config = configured({name: exporter_keys(out, port)})
            fanout = build(config, telemetry, FixedClock(), random.Random(1))
            await fanout.start()
            sender = Sender(fanout, telemetry)
            sender.books.exporter = name
            await work(hop, sender)

    asyncio.run(main())


@plain_outs
def test_E12_user_agent(out: Out) -> None:  # noqa: N802
    """
    Scenario: a request.
    Guarantees: User-Agent has product, exporter, language and version.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.sent == 1)
        version = re.escape(__version__)
        pattern = rf"otel-anomaly/{version} OTLP-Exporter-Python/{version}( .*)?"
        assert re.fullmatch(pattern, hop.headers[0]["user-agent"])

    play(out, (), work)


def test_E13_protocols() -> None:  # noqa: N802
    """
    Scenario: an address in the environment without a protocol, and with each of the three.
    Guarantees: http/protobuf when nothing is said; gRPC and JSON are there.
    """

    def made(**variables: str) -> tuple[str, str | None]:
        environ = {f"OTEL_EXPORTER_OTLP_{name}": text for name, text in variables.items()}
        exporter: Any = list(load_config([], (), environ).exporters.values())[-1]
        return exporter.kind, getattr(exporter, "encoding", None)

    address = "http://192.0.2.1:4317"
    assert made(ENDPOINT=address) == ("otlp_http", "proto")
    assert made(ENDPOINT=address, PROTOCOL="http/protobuf") == ("otlp_http", "proto")
    assert made(ENDPOINT=address, PROTOCOL="http/json") == ("otlp_http", "json")
    assert made(ENDPOINT=address, PROTOCOL="grpc") == ("otlp_grpc", None)


@every_out
def test_E14_a_lost_acknowledgement_is_a_duplicate(out: Out) -> None:  # noqa: N802
    """
    Scenario: the next hop takes a request and breaks the connection before it has said so.
    Guarantees: it gets the request twice; the ledger has it once.
    """

    async def work(hop: NextHop, sender: Sender) -> None:
        hop.hang_up = 1
        sender.put(BODY, 3)
        await until(lambda: sender.books.sent == 3)
        assert hop.bodies == [BODY] * 2
        assert (sender.books.sent, sender.books.dropped(), sender.books.held) == (3, 0, 0)

    play(out, (), work)


@every_out
@pytest.mark.parametrize("signal", Signal, ids=lambda signal: signal.value)
def test_every_signal_arrives(out: Out, signal: Signal) -> None:
    """
    Scenario: each signal on every way out.
    Guarantees: the next hop reads what was accepted, to the byte.
    """
    body = full(signal).SerializeToString()

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(body, 1, signal)
        await until(lambda: sender.books.requests(signal) == 1)
        assert hop.bodies == [body]

    play(out, (), work)


def kinds(results: Sequence[Any]) -> set[Kind]:
    return {result.kind for result in results}


def test_G_retryable_codes() -> None:  # noqa: N802
    """
    Scenario: the six codes of the table, as the library raises them.
    Guarantees: sent again.
    """
    assert kinds([grpc_failure(status(code)) for code in RETRYABLE]) == {Kind.RETRY}


def test_G_not_retryable_codes() -> None:  # noqa: N802
    """
    Scenario: the nine others.
    Guarantees: never sent again.
    """
    assert kinds([grpc_failure(status(code)) for code in FINAL]) == {Kind.REJECTED}


@pytest.mark.parametrize("delay_s", [0, None])
def test_G_conditional_code(delay_s: int | None) -> None:  # noqa: N802
    """
    Scenario: RESOURCE_EXHAUSTED with RetryInfo, even of no time, and without.
    Guarantees: sent again in the first case alone.
    """
    out = Out("grpc", "proto", "none")
    exhausted = Answer(Code.RESOURCE_EXHAUSTED.value[0], delay_s=delay_s)

    async def work(hop: NextHop, sender: Sender) -> None:
        sender.put(BODY)
        await until(lambda: sender.books.held == 0)
        assert sender.books.sent == (1 if delay_s is not None else 0)
        assert len(hop.bodies) == (2 if delay_s is not None else 1)

    play(out, (exhausted,), work)


@pytest.mark.parametrize("code", [429, 503])
def test_H_429_and_503_are_retried(code: int) -> None:  # noqa: N802
    """
    Scenario: the two answers of overload.
    Guarantees: sent again, after the delay if there is one.
    """
    assert http_failure(code, "", 7.0).retry_after_s == 7.0
    assert http_failure(code, "", None).kind is Kind.RETRY


@pytest.mark.parametrize("code", [502, 504])
def test_H_502_and_504_are_retried(code: int) -> None:  # noqa: N802
    """
    Scenario: a gateway in trouble.
    Guarantees: sent again.
    """
    assert http_failure(code, "", None).kind is Kind.RETRY


def test_H_other_codes_are_final() -> None:  # noqa: N802
    """
    Scenario: every other 4xx and 5xx.
    Guarantees: never sent again.
    """
    others = [code for code in range(400, 600) if code not in {429, 502, 503, 504}]
    assert Kind.RETRY not in kinds([http_failure(code, "", None) for code in others])
