"""The OTLP/gRPC door with the real client on loopback, and both doors' memory under a bomb."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from otel_anomaly.config import GrpcReceiverConfig
from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.receivers import health
from otel_anomaly.receivers.grpc import HEALTH_NAMES, SERVICES, STATUS_DETAILS_KEY, GrpcReceiver
from otel_anomaly.telemetry import Telemetry
from tests.door_process import HTTP_LIMIT
from tests.door_rigs import (
    NOW_NS,
    OK,
    PROTOBUF,
    Consumer,
    StandingClock,
    connect,
    grpc_door,
    gzip_bomb,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
BODY = bytes(range(256)) * 40
TRACES = SERVICES[Signal.TRACES]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("body", [b"", BODY], ids=["empty", "full"])
@pytest.mark.parametrize("signal", Signal, ids=lambda signal: signal.value)
def test_accepts_each_signal(signal: Signal, body: bytes, compression: grpc.Compression) -> None:
    """
    Scenario: each signal, plain and gzipped, with and without content.
    Guarantees: the body reaches the processor byte for byte with its signal and arrival; the answer
    is an empty message.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            assert await rig.export(body, SERVICES[signal], compression=compression) == b""
            assert rig.consumer.batches == [Batch(body, signal, "grpc", NOW_NS, 0)]
            assert rig.counted(Outcome.ACCEPTED, signal.value) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "outcome", [each for each in Outcome if each is not Outcome.ACCEPTED], ids=lambda x: x.value
)
def test_refusals_of_the_processor(outcome: Outcome) -> None:
    """
    Scenario: the processor refuses, in each way there is.
    Guarantees: the table's code and message; RetryInfo in the details exactly when a retry helps.
    """
    expected = {
        Outcome.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
        Outcome.REJECTED: grpc.StatusCode.INVALID_ARGUMENT,
        Outcome.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Outcome.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    }.get(outcome, grpc.StatusCode.UNAVAILABLE)

    async def scenario() -> None:
        async with grpc_door(Reply(outcome, "because", 4.2)) as rig:
            error = await rig.refusal(BODY)
            assert (error.code(), error.details()) == (expected, "because")
            trailers = dict(error.trailing_metadata())
            assert (STATUS_DETAILS_KEY in trailers) == outcome.retryable
            assert rig.counted(outcome) == 1
            if outcome.retryable:
                status = status_pb2.Status.FromString(trailers[STATUS_DETAILS_KEY])
                info = error_details_pb2.RetryInfo()
                assert status.details[0].Unpack(info)
                assert info.retry_delay.ToMilliseconds() == 4200
                assert (status.code, status.message) == (expected.value[0], "because")

    asyncio.run(scenario())


def test_longest_message_reaches_the_client() -> None:
    """
    Scenario: a refusal whose message is endless and made of characters that are long on the wire.
    Guarantees: the client gets code and details, not an error about the size of headers.
    """

    async def scenario() -> None:
        async with grpc_door(Reply(Outcome.MEMORY, "\U0001f600" * 100_000, 1.0)) as rig:
            error = await rig.refusal(BODY)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert STATUS_DETAILS_KEY in dict(error.trailing_metadata())

    asyncio.run(scenario())


def test_bug_in_the_processor_is_retryable(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the processor raises.
    Guarantees: UNAVAILABLE with RetryInfo, never UNKNOWN, which clients take for a final no; one
    log line; the next request is served.
    """

    async def scenario() -> None:
        async with grpc_door(KeyError("bug")) as rig:
            error = await rig.refusal(BODY)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert STATUS_DETAILS_KEY in dict(error.trailing_metadata())
            rig.consumer.answer = OK
            assert await rig.export(BODY) == b""

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["otel_anomaly"]


@pytest.mark.parametrize("where", ["peer", "read"])
def test_bug_at_the_door_is_retryable(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: the door itself meets what it does not expect, before or while it reads a message:
    no memory, no thread to inflate in.
    Guarantees: UNAVAILABLE with RetryInfo, counted, and nothing of the error told to the client;
    one log line; the next request is served.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            with monkeypatch.context() as patch:
                patch.setattr(rig.door._bodies, where, fails)
                error = await rig.refusal(BODY)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert STATUS_DETAILS_KEY in dict(error.trailing_metadata())
            assert "words" not in str(error.details())
            assert rig.counted(Outcome.QUEUE_FULL) == 1
            assert rig.consumer.batches == []
            assert await rig.export(BODY) == b""

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["otel_anomaly"]


def fails(*_arguments: object) -> None:
    """A bug."""
    raise MemoryError("words of ours")


def test_bug_after_acceptance_is_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a request is taken over, and what only looks at it afterwards raises.
    Guarantees: the client is told that it was accepted, and does not send it again; it is counted
    once; one log line.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            monkeypatch.setattr(rig.door._intakes[Signal.TRACES], "_look", fails)
            assert await rig.export(BODY) == b""
            assert rig.counted(Outcome.ACCEPTED) == 1
            assert rig.counted(Outcome.QUEUE_FULL) == 0

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["otel_anomaly"]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_too_large_is_final(compression: grpc.Compression) -> None:
    """
    Scenario: a message of the limit, and one byte more, plain and small on the wire.
    Guarantees: the second is RESOURCE_EXHAUSTED without RetryInfo, by grpcio itself.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            assert await rig.export(bytes(MIB), compression=compression) == b""
            error = await rig.refusal(bytes(MIB + 1), compression=compression)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert STATUS_DETAILS_KEY not in dict(error.trailing_metadata())
            assert len(rig.consumer.batches) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("service", "method"),
    [(TRACES, "Other"), ("opentelemetry.proto.collector.profiles.v1.ProfilesService", "Export")],
)
def test_unknown_method(service: str, method: str) -> None:
    """
    Scenario: a method and a service that are not there.
    Guarantees: UNIMPLEMENTED.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            error = await rig.refusal(BODY, service=service, method=method)
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


def test_health_service() -> None:
    """
    Scenario: checks before and after serving, for each service and one that is not there.
    Guarantees: NOT_SERVING until told, SERVING then; NOT_FOUND for the unknown.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            check = health_pb2_grpc.HealthStub(rig.channel).Check
            for serving, expected in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
                if serving is not None:
                    await rig.door.set_serving(serving=serving)
                for name in HEALTH_NAMES:
                    answer = await check(health_pb2.HealthCheckRequest(service=name))
                    assert answer.status == expected
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(health_pb2.HealthCheckRequest(service="other"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())


def test_watchers_are_told_and_do_not_hold_the_stop() -> None:
    """
    Scenario: a load balancer watches the health of the door; the door is stopped with an hour of
    grace.
    Guarantees: it sees SERVING, NOT_SERVING and the end of the stream; the stop does not wait.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            await rig.door.set_serving(serving=True)
            watch = health_pb2_grpc.HealthStub(rig.channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            async with asyncio.timeout(60):
                await rig.door.stop(3600)
                assert (await watch.read()).status == NOT_SERVING
                assert await watch.read() is grpc.aio.EOF

    asyncio.run(scenario())


def test_watcher_that_leaves() -> None:
    """
    Scenario: a watcher cancels its call, the service changes its mind afterwards.
    Guarantees: nothing is left behind, nothing fails.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            watch = health_pb2_grpc.HealthStub(rig.channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            await until(lambda: not rig.door._health._watchers)
            await rig.door.set_serving(serving=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize(
    "message",
    [
        health_pb2.HealthCheckRequest(service="x" * 1024).SerializeToString(),
        b"\x0a\x09short",
        b"\xff",
    ],
    ids=["long", "cut", "garbage"],
)
def test_health_of_what_has_no_name(method: str, message: bytes) -> None:
    """
    Scenario: a check and a watch of a name longer than any service's, of half a message, of none.
    Guarantees: INVALID_ARGUMENT at once; nothing of it is kept.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            call = rig.channel.unary_unary(f"/grpc.health.v1.Health/{method}")(message)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert not rig.door._health._watching

    asyncio.run(scenario())


def test_health_is_watched_by_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: room for three that watch at once, of one client or of all; three do, one of them a
    service that is not there; a fourth comes, and a check; then one leaves.
    Guarantees: those who are there are told, a fourth is RESOURCE_EXHAUSTED, and after one has left
    there is room for one. The check is answered all the time.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            stub = health_pb2_grpc.HealthStub(rig.channel)
            names = ("", TRACES, "other")
            watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
            told = [(await watch.read()).status for watch in watches]
            assert told == [NOT_SERVING, NOT_SERVING, SERVICE_UNKNOWN]
            late = stub.Watch(health_pb2.HealthCheckRequest())
            assert await late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            watches[0].cancel()
            await until(lambda: rig.door._health._watching.total() == 2)
            watches[0] = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watches[0].read()).status == NOT_SERVING
            await rig.door.set_serving(serving=True)
            assert (await watches[1].read()).status == SERVING

    for limit in ("WATCHES_MAX", "WATCHES_OF_CLIENT_MAX"):
        with monkeypatch.context() as patch:
            patch.setattr(health, limit, 3)
            asyncio.run(scenario())


def test_stop_finishes_what_was_taken_over() -> None:
    """
    Scenario: a stop while one request is being judged; then another request.
    Guarantees: the first is answered OK, the second is UNAVAILABLE.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            rig.consumer.gate = asyncio.Event()
            judged = asyncio.create_task(rig.export(BODY))
            await rig.consumer.entered.wait()
            stopping = asyncio.create_task(rig.door.stop(5))
            await asyncio.sleep(0.05)
            assert not stopping.done()
            rig.consumer.gate.set()
            await stopping
            assert await judged == b""
            assert (await rig.refusal(BODY)).code() is grpc.StatusCode.UNAVAILABLE
            assert rig.counted(Outcome.ACCEPTED) == 1

    asyncio.run(scenario())


def test_taken_port_is_an_error_that_names_it() -> None:
    """
    Scenario: a second door on the port of the first.
    Guarantees: OSError with the address in its message; stopping what never started is fine.
    """

    async def scenario() -> None:
        async with grpc_door() as rig:
            config = GrpcReceiverConfig(endpoint=f"127.0.0.1:{rig.door.port}")
            second = GrpcReceiver(config, Consumer(), Telemetry(), StandingClock())
            with pytest.raises(OSError, match=config.endpoint):
                await second.start()
            await second.stop(0)

    asyncio.run(scenario())


@pytest.fixture
def doors() -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Both doors in a process of their own."""
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "tests.door_process"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        http_port, grpc_port = map(int, process.stdout.readline().split())
        yield process, http_port, grpc_port
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def peak_resident(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bombs_do_not_fill_the_process(doors: tuple[subprocess.Popen[str], int, int]) -> None:
    """
    Scenario: a gzip bomb of one GiB over HTTP, one of 128 MiB over gRPC, and 64 MiB plain over
    both, against limits of two and one MiB.
    Guarantees: all refused; the process's peak rises by less than 24 MiB in all; it still serves.
    """
    process, http_port, grpc_port = doors

    async def post(body: bytes, coding: str = "") -> int:
        head = request_head(
            "POST",
            "/v1/traces",
            content_type=PROTOBUF,
            content_encoding=coding,
            content_length=str(len(body)),
        )
        async with connect(http_port) as (reader, writer):
            writer.write(head + body)
            return (await read_answer(reader)).status

    async def export(body: bytes, compression: grpc.Compression) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            call = channel.unary_unary(f"/{TRACES}/Export")(body, compression=compression)
            code = await call.code()
            assert isinstance(code, grpc.StatusCode)
            return code

    async def scenario() -> None:
        plain, packed = grpc.Compression.NoCompression, grpc.Compression.Gzip
        assert (await post(b"x"), await export(b"x", plain)) == (200, grpc.StatusCode.OK)
        before = peak_resident(process)
        assert len(gzip_bomb(1024)) < HTTP_LIMIT
        assert await post(gzip_bomb(1024), "gzip") == 413
        assert await export(bytes(128 * MIB), packed) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await post(bytes(64 * MIB)) == 413
        assert await export(bytes(64 * MIB), plain) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert peak_resident(process) - before < 24 * MIB
        assert (await post(b"x"), await export(b"x", plain)) == (200, grpc.StatusCode.OK)

    asyncio.run(scenario())
