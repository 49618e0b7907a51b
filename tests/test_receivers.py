"""The status table, the intake that both doors share, and the monitoring page."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2

from otel_anomaly.config import MetricsConfig
from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.receivers import status
from otel_anomaly.receivers.intake import LOG_EVERY_S, Intake
from otel_anomaly.receivers.monitoring import (
    CONNECTIONS_MAX,
    CONNECTIONS_OF_CLIENT_MAX,
    METRICS_TYPE,
    PAGES,
    WAITERS_OF_CLIENT_MAX,
    Monitoring,
)
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import (
    Answer,
    Consumer,
    StandingClock,
    connect,
    counted,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TABLE = {
    Outcome.MALFORMED: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    Outcome.TOO_LARGE: (grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
    Outcome.QUEUE_FULL: (grpc.StatusCode.UNAVAILABLE, 503),
    Outcome.MEMORY: (grpc.StatusCode.UNAVAILABLE, 503),
    Outcome.STOPPING: (grpc.StatusCode.UNAVAILABLE, 503),
    Outcome.THROTTLED: (grpc.StatusCode.UNAVAILABLE, 429),
    Outcome.UNAUTHENTICATED: (grpc.StatusCode.UNAUTHENTICATED, 401),
}


@pytest.mark.parametrize("outcome", TABLE, ids=lambda outcome: outcome.value)
def test_status_follows_the_table(outcome: Outcome) -> None:
    """
    Scenario: each refusal in turn.
    Guarantees: the pair of codes that clients are promised; RetryInfo exactly when a retry helps.
    """
    body = status.status_of(Reply(outcome, "why", 2.5))
    grpc_status, http_status = TABLE[outcome]
    assert (status.GRPC_STATUS[outcome], status.HTTP_STATUS[outcome]) == (grpc_status, http_status)
    assert (body.code, body.message) == (grpc_status.value[0], "why")
    assert len(body.details) == outcome.retryable
    if outcome.retryable:
        info = error_details_pb2.RetryInfo()
        assert body.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize(
    ("delay_s", "header"), [(0, "1"), (0.01, "1"), (1, "1"), (1.01, "2"), (29.5, "30")]
)
def test_retry_after_is_whole_seconds_rounded_up(delay_s: float, header: str) -> None:
    """
    Scenario: delays below, on and above whole seconds, and none given.
    Guarantees: never 0, which clients read as "at once", and never sooner than asked for.
    """
    assert status.retry_after_header(Reply(Outcome.QUEUE_FULL, "", delay_s)) == header


def test_long_messages_fit_into_grpc_headers() -> None:
    """
    Scenario: a message of a megabyte of characters that are longest when encoded.
    Guarantees: percent-encoded message and base64 details stay under the 8 KiB clients accept.
    """
    body = status.status_of(Reply(Outcome.MEMORY, "\U0001f600" * (1 << 20), 1.0))
    percent_encoded = 3 * len(body.message.encode())
    base64 = len(body.SerializeToString()) * 4 // 3
    assert percent_encoded + base64 < 8192 - 512


def test_json_status_is_readable_by_clients() -> None:
    """
    Scenario: a retryable refusal to a client that speaks JSON.
    Guarantees: protobuf's JSON mapping, with the delay in the details.
    """
    body = json.loads(status.status_as_json(status.status_of(Reply(Outcome.MEMORY, "full", 3.0))))
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"}
    assert body == {"code": 14, "message": "full", "details": [retry]}


def intake(consumer: Consumer, telemetry: Telemetry, clock: StandingClock) -> Intake:
    return Intake(
        transport="grpc", signal=Signal.LOGS, consume=consumer, telemetry=telemetry, clock=clock
    )


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.value)
def test_intake_counts_each_request_once(outcome: Outcome) -> None:
    """
    Scenario: one request, answered in each possible way.
    Guarantees: the batch is handed on as it is, the answer returned, its counter and no other up.
    """
    telemetry, clock = Telemetry(), StandingClock()

    async def scenario() -> None:
        consumer = Consumer(Reply(outcome, "m", 1.0))
        reply = await intake(consumer, telemetry, clock).take(b"body", 4, 2.5)
        assert reply == consumer.answer
        assert consumer.batches == [Batch(b"body", Signal.LOGS, "grpc", clock.wall_ns, 4, 2.5)]

    asyncio.run(scenario())
    for each in Outcome:
        assert counted(telemetry, "grpc", each, "logs") == (each is outcome)


def test_intake_survives_a_bug_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: every call of the processor raises, for more than a minute.
    Guarantees: each client is told to retry, each request is counted, one log line a minute.
    """
    telemetry, clock = Telemetry(), StandingClock()

    async def scenario() -> None:
        door = intake(Consumer(ZeroDivisionError("bug")), telemetry, clock)
        for _ in range(5):
            assert (await door.take(b"")).outcome.retryable
        assert len(caplog.records) == 1
        clock.steady_s += LOG_EVERY_S
        await door.take(b"")

    with caplog.at_level(logging.ERROR, "otel_anomaly"):
        asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["otel_anomaly"] * 2
    assert caplog.records[0].exc_info is not None
    assert counted(telemetry, "grpc", Outcome.QUEUE_FULL, "logs") == 6


class Page:
    """A monitoring page whose readiness and clock the test sets."""

    def __init__(self) -> None:
        self.is_ready = False
        self.clock = StandingClock()
        self.telemetry = Telemetry()
        self.monitoring = Monitoring(
            MetricsConfig(endpoint="127.0.0.1:0"),
            self.telemetry,
            lambda: {"status": "degraded", "queue": {"bytes": 3}},
            lambda: self.is_ready,
            self.clock,
        )

    async def get(self, path: str, method: str = "GET") -> Answer:
        async with connect(self.monitoring.port) as (reader, writer), asyncio.timeout(60):
            writer.write(request_head(method, path))
            return await read_answer(reader, method)


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    made = Page()
    await made.monitoring.start()
    try:
        yield made
    finally:
        await made.monitoring.stop()


def test_monitoring_answers() -> None:
    """
    Scenario: Prometheus and a supervisor look in before and after the doors open.
    Guarantees: metrics in the text format, liveness always 200, readiness 503 and then 200.
    """

    async def scenario() -> None:
        async with page() as made:
            metrics = await made.get("/metrics?name=x")
            assert (metrics.status, metrics.headers["content-type"]) == (200, METRICS_TYPE)
            assert metrics.body == made.telemetry.render()
            health = await made.get("/healthz")
            assert (health.status, json.loads(health.body)["queue"]) == (200, {"bytes": 3})
            assert health.headers["content-type"].startswith("application/json")
            assert (await made.get("/readyz")).status == 503
            made.is_ready = True
            assert (await made.get("/readyz")).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("HEAD", "/metrics", 200),
        ("HEAD", "/readyz", 503),
        ("POST", "/metrics", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "http://xn--a/healthz", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
    ],
)
def test_monitoring_refuses(method: str, path: str, expected: int) -> None:
    """
    Scenario: other methods and other paths.
    Guarantees: HEAD is answered like GET without a body, anything else 405 or 404.
    """

    async def scenario() -> None:
        async with page() as made:
            answer = await made.get(path, method)
            assert answer.status == expected
            assert (answer.headers.get("allow") == "GET, HEAD") == (expected == 405)

    asyncio.run(scenario())


def test_monitoring_outlives_garbage(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: bytes that are not HTTP, a TLS hello among them, then an honest scrape.
    Guarantees: the garbage is refused without a word in the log, the scrape is answered.
    """

    async def scenario() -> None:
        async with page() as made:
            for garbage in (
                b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
                b"GET /metrics HTTP/9.9\r\n\r\n",
            ):
                async with connect(made.monitoring.port) as (reader, writer):
                    writer.write(garbage)
                    assert (await read_answer(reader)).status == 400
            assert (await made.get("/metrics")).status == 200

    asyncio.run(scenario())
    assert not caplog.records


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is nobody's address")
def test_nobody_keeps_the_supervisor_out() -> None:
    """
    Scenario: one address opens connections to the pages until no more are let in.
    Guarantees: it gets no more than its share, is told so, and another address is answered.
    """

    async def scenario() -> None:
        async with page() as made, AsyncExitStack() as stack:
            port = made.monitoring.port
            for _ in range(CONNECTIONS_OF_CLIENT_MAX):
                await stack.enter_async_context(connect(port))
            assert (await made.get("/healthz")).status == 503
            other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            other[1].write(request_head("GET", "/healthz"))
            assert (await read_answer(other[0])).status == 200
            other[1].close()

    assert 2 * CONNECTIONS_OF_CLIENT_MAX < CONNECTIONS_MAX
    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is nobody's address")
def test_nobody_keeps_the_supervisor_out_together() -> None:
    """
    Scenario: four addresses hold all connections that the pages have; a request is under way on
    one of them, and a supervisor looks in; then requests are under way on all.
    Guarantees: it is answered, the longest idle connection has gone for it and not the one at work,
    and that is counted; with all at work it is told that they are.
    """

    async def scenario() -> None:
        async with page() as made, AsyncExitStack() as stack:
            port, census = made.monitoring.port, made.monitoring._listener.census
            ends = []
            for i in range(CONNECTIONS_MAX):
                local = (f"127.0.0.{2 + i // CONNECTIONS_OF_CLIENT_MAX}", 0)
                end, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=local)
                stack.callback(writer.close)
                ends.append(end)
            await until(lambda: len(census) == CONNECTIONS_MAX)
            first = min(census._open, key=lambda each: each.made_s)
            first._request_in_progress = True
            assert (await made.get("/healthz")).status == 200
            assert await ends[1].read() == b""
            assert first.counted
            name = "otel_anomaly_receiver_refused_connections_total"
            labels = {"transport": "monitoring", "reason": "limit"}
            assert made.telemetry.registry.get_sample_value(name, labels) == 1
            await until(lambda: len(census) == CONNECTIONS_MAX - 1)
            await stack.enter_async_context(connect(port))
            await until(lambda: len(census) == CONNECTIONS_MAX)
            for each in census._open:
                each._request_in_progress = True
            assert (await made.get("/healthz")).status == 503

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is nobody's address")
def test_nobody_asks_too_often() -> None:
    """
    Scenario: one address asks for pages as often as it can, then time goes by.
    Guarantees: when it has had its share it waits, and another address is answered meanwhile; then
    it is answered as well.
    """

    async def scenario() -> None:
        async with page() as made, AsyncExitStack() as stack:
            for _ in range(PAGES.burst):
                assert (await made.get("/readyz")).status == 503
            greedy, writer = await stack.enter_async_context(connect(made.monitoring.port))
            writer.write(request_head("GET", "/metrics"))
            other = await asyncio.open_connection(
                "127.0.0.1", made.monitoring.port, local_addr=("127.0.0.2", 0)
            )
            other[1].write(request_head("GET", "/metrics"))
            assert (await read_answer(other[0])).status == 200
            other[1].close()
            answer = asyncio.create_task(read_answer(greedy))
            await asyncio.wait({answer}, timeout=3 / PAGES.requests_per_second)
            assert not answer.done()
            made.clock.steady_s += 1
            assert (await answer).status == 200

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is nobody's address")
def test_who_waits_for_a_page_is_bounded_and_may_leave() -> None:
    """
    Scenario: an address that has had its share asks on many connections and closes them; and then
    asks again, when time has gone by for one page.
    Guarantees: few wait, the others are told 429 at once; who is gone does not wait on, nor takes
    the page of who is there.
    """

    async def scenario() -> None:
        async with page() as made:
            for _ in range(PAGES.burst):
                await made.get("/readyz")
            waiting = made.monitoring._waiters
            async with AsyncExitStack() as stack:
                for _ in range(WAITERS_OF_CLIENT_MAX):
                    _, writer = await stack.enter_async_context(connect(made.monitoring.port))
                    writer.write(request_head("GET", "/metrics"))
                await until(lambda: waiting.total() == WAITERS_OF_CLIENT_MAX)
                answer = await made.get("/metrics")
                assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            await until(lambda: not waiting)
            made.clock.steady_s += 1 / PAGES.requests_per_second
            assert (await made.get("/readyz")).status == 503

    asyncio.run(scenario())


def test_taken_port_is_an_error_that_names_it() -> None:
    """
    Scenario: a second page on the port of the first.
    Guarantees: OSError with the address in its message; stopping what never started is fine.
    """

    async def scenario() -> None:
        async with page() as made:
            endpoint = f"127.0.0.1:{made.monitoring.port}"
            second = Monitoring(MetricsConfig(endpoint=endpoint), Telemetry(), dict, lambda: True)
            with pytest.raises(OSError, match=endpoint):
                await second.start()
            await second.stop()

    asyncio.run(scenario())
