"""Limits of the HTTP door: connections, clients, slow ones, old ones, and too much of anything."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from otel_anomaly.config import PerClientConfig
from otel_anomaly.handoff import Outcome, Reply
from otel_anomaly.receivers import connections, listener
from otel_anomaly.receivers.gate import CLIENTS_MAX, ClientRates, client_of
from tests.door_rigs import (
    PROTOBUF,
    HttpRig,
    StandingClock,
    chunked,
    connect,
    grpc_door,
    http_door,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = request_head("POST", "/v1/traces", content_type=PROTOBUF)
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@pytest.fixture(autouse=True)
def quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules that take time are looked at a hundred times a second."""
    monkeypatch.setattr(listener, "SWEEP_S", 0.01)


def refused(rig: HttpRig, reason: str) -> float | None:
    name = "otel_anomaly_receiver_refused_connections_total"
    labels = {"transport": "http", "reason": reason}
    return rig.telemetry.registry.get_sample_value(name, labels)


def held(rig: HttpRig) -> float | None:
    name = "otel_anomaly_receiver_connections"
    return rig.telemetry.registry.get_sample_value(name, {"transport": "http"})


async def empty_post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, str | None]:
    writer.write(HEAD)
    answer = await read_answer(reader)
    return answer.status, answer.headers.get("connection")


@LOOPS
@pytest.mark.parametrize(
    ("keys", "reason"),
    [({"max_connections": 2}, "limit"), ({"per_client": {"connections": 2}}, "per_client")],
)
def test_connections_beyond_the_limit(
    run: Callable[[Any], None], keys: dict[str, Any], reason: str
) -> None:
    """
    Scenario: room for two connections, in all or for one client; a third comes, then one goes.
    Guarantees: the third is told 503 with Retry-After and closed, and its request is not looked
    at; the two go on; there is room again when one has gone.
    """

    async def scenario() -> None:
        async with http_door(**keys) as rig:
            port = rig.door.port
            async with connect(port) as first:
                async with connect(port) as second:
                    assert await empty_post(*first) == (200, None)
                    assert await empty_post(*second) == (200, None)
                    async with connect(port) as (reader, writer):
                        writer.write(HEAD)
                        answer = await read_answer(reader)
                        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                        assert await reader.read() == b""
                    assert (refused(rig, reason), held(rig)) == (1, 2)
                    assert await empty_post(*first) == (200, None)
                await until(lambda: held(rig) == 1)
                assert (await rig.post()).status == 200
                assert len(rig.consumer.batches) == 4
            await until(lambda: held(rig) == 0)

    run(scenario())


@LOOPS
@pytest.mark.parametrize("part", [HEAD[:1], HEAD[:-1], b"\r\n"], ids=["byte", "head", "newline"])
def test_headers_that_trickle(run: Callable[[Any], None], part: bytes) -> None:
    """
    Scenario: a client sends a part of a head and then nothing, on a new connection and on one that
    has been served; another one is idle.
    Guarantees: 408 and closed when its time is over; idle connections stay.
    """

    async def scenario() -> None:
        async with (
            http_door(read_header_timeout="50ms") as rig,
            connect(rig.door.port) as idle,
            connect(rig.door.port) as (reader, writer),
        ):
            assert await empty_post(*idle) == (200, None)
            assert await empty_post(reader, writer) == (200, None)
            writer.write(part)
            assert (await read_answer(reader)).status == 408
            assert await reader.read() == b""
            assert (await rig.send(part)).status == 408
            assert refused(rig, "slow_headers") == 2
            assert await empty_post(*idle) == (200, None)

    run(scenario())


def test_trickling_does_not_win_time() -> None:
    """
    Scenario: a head that comes byte by byte, never pausing for long, and never ends.
    Guarantees: its time counts from its first byte: it is closed.
    """

    async def scenario() -> None:
        async with http_door(read_header_timeout="100ms") as rig:
            async with connect(rig.door.port) as (reader, writer):
                writer.write(b"POST /v1/traces HTTP/1.1\r\nX: ")
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(60):
                        while not reader.at_eof() and refused(rig, "slow_headers") == 0:
                            writer.write(b"y")
                            await asyncio.sleep(0.005)
            assert refused(rig, "slow_headers") == 1

    asyncio.run(scenario())


def test_idle_connections_are_closed() -> None:
    """
    Scenario: a connection that never sends, and one that was served, with a short idle time.
    Guarantees: both are closed without a word.
    """

    async def scenario() -> None:
        async with (
            http_door(idle_timeout="1s") as rig,
            connect(rig.door.port) as (silent, _),
            connect(rig.door.port) as served,
        ):
            assert await empty_post(*served) == (200, None)
            async with asyncio.timeout(60):
                assert await silent.read() == b""
                assert await served[0].read() == b""

    asyncio.run(scenario())


@LOOPS
def test_old_connections_end_with_an_answer(run: Callable[[Any], None]) -> None:
    """
    Scenario: a connection older than the age allowed, which then sends; and one that never does.
    Guarantees: the first is answered, told `Connection: close` and closed; the other is closed
    after the grace time.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            assert await empty_post(reader, writer) == (200, None)
            census = rig.door._listener.census
            census.limits = census.limits._replace(age_s=0.02, age_grace_s=10)
            await until(lambda: all(each.expired for each in rig.door._listener.census._open))
            assert await empty_post(reader, writer) == (200, "close")
            assert await reader.read() == b""
        keys = {"max_connection_age": "20ms", "max_connection_age_grace": "20ms"}
        async with http_door(**keys) as rig, connect(rig.door.port) as (reader, _):
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            assert refused(rig, "aged") == 1

    run(scenario())


def test_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a client pipelines requests for ever and takes no answer.
    Guarantees: it is cut off when it has not read for the time allowed.
    """
    monkeypatch.setattr(connections, "SLOW_READER_S", 0.05)

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(60):
                    while refused(rig, "slow_reader") == 0:
                        writer.write(request_head("GET", "/nothing") * 100)
                        await asyncio.wait({asyncio.ensure_future(writer.drain())}, timeout=0.01)
            await until(lambda: held(rig) == 0)
            assert refused(rig, "slow_reader") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("keys", "head"),
    [
        ({}, {f"x_{i}": "y" for i in range(200)}),
        ({"max_header_size": "1KiB"}, {"x": "y" * 1100}),
        ({"max_header_size": "1KiB"}, {"x" * 1100: "y"}),
    ],
    ids=["many", "value", "name"],
)
def test_too_many_or_too_long_headers(keys: dict[str, Any], head: dict[str, str]) -> None:
    """
    Scenario: 200 headers, a header whose value or name is too long.
    Guarantees: 400 with a Status body that repeats none of it; counted; the next is served.
    """

    async def scenario() -> None:
        async with http_door(**keys) as rig:
            answer = await rig.send(request_head("POST", "/v1/traces", **head))
            assert (answer.status, answer.headers["content-type"]) == (400, PROTOBUF)
            assert b"x" * 5 not in answer.body
            assert b"y" * 5 not in answer.body
            assert refused(rig, "malformed") == 1
            assert (await rig.post()).status == 200

    asyncio.run(scenario())


@LOOPS
def test_pipelined_requests(run: Callable[[Any], None]) -> None:
    """
    Scenario: 500 requests in one write.
    Guarantees: 500 answers in order, and as many batches.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="3")
            writer.write(b"".join(head + b"%03d" % i for i in range(500)))
            for _ in range(500):
                assert (await read_answer(reader)).status == 200
            assert [int(batch.body) for batch in rig.consumer.batches] == list(range(500))

    run(scenario())


def test_chunks_of_one_byte() -> None:
    """
    Scenario: a body of 20 000 chunks of one byte, and an endless one of them past the limit.
    Guarantees: the first comes out whole; the second is 413.
    """

    async def scenario() -> None:
        body = bytes(range(256)) * 80
        async with http_door(limit=len(body)) as rig:
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, transfer_encoding="chunked"
            )
            assert (await rig.send(head + chunked(body, 1))).status == 200
            assert rig.consumer.batches[0].body == body
            assert (await rig.send(head + chunked(body + b"xy", 1))).status == 413

    asyncio.run(scenario())


def test_a_client_that_sends_too_often() -> None:
    """
    Scenario: two requests at once are allowed and one a second; four come, at both doors.
    Guarantees: two pass, then 429 or UNAVAILABLE with the time to wait, before the body is read;
    a second later one passes.
    """
    keys = {"per_client": {"requests_per_second": 1, "burst": 2}}

    async def scenario() -> None:
        async with http_door(**keys) as web, grpc_door(**keys) as rpc:
            statuses = [(await web.post(b"x")).status for _ in range(4)]
            assert statuses == [200, 200, 429, 429]
            long = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, content_length="1000000"
            )
            answer = await web.send(long)
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            web.clock.steady_s += 1.0
            assert [(await web.post(b"x")).status for _ in range(2)] == [200, 429]
            assert web.counted(Outcome.THROTTLED) == 4
            for _ in range(2):
                assert await rpc.export(b"x") == b""
            error = await rpc.refusal(b"x")
            assert error.code().name == "UNAVAILABLE"
            assert "grpc-status-details-bin" in dict(error.trailing_metadata())
            assert rpc.counted(Outcome.THROTTLED) == 1

    asyncio.run(scenario())


def test_clients_are_counted_apart_and_forgotten() -> None:
    """
    Scenario: more clients than are remembered, one after the other, then the first again.
    Guarantees: each has a bucket of its own; memory is bounded; who is forgotten starts anew.
    """
    clock = StandingClock()
    rates = ClientRates(PerClientConfig(requests_per_second=2, burst=1), clock)
    assert (rates.wait_s("a"), rates.wait_s("a"), rates.wait_s("b")) == (0, 0.5, 0)
    for i in range(CLIENTS_MAX):
        assert rates.wait_s(str(i)) == 0
    assert len(rates._buckets) == CLIENTS_MAX
    assert rates.wait_s("a") == 0


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("unix", "unix"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_who_is_one_client(host: str, client: str) -> None:
    """
    Scenario: addresses of both families.
    Guarantees: IPv4 by address, also when written as IPv6; IPv6 by /64, which one customer holds.
    """
    assert client_of(host) == client


def test_the_gate_is_asked_before_the_body() -> None:
    """
    Scenario: memory is short; a client announces a large body and sends nothing of it.
    Guarantees: both doors answer what the gate says without waiting for the body.
    """
    asked: list[int] = []

    def admit(size: int) -> Reply | None:
        asked.append(size)
        return Reply(Outcome.MEMORY, "near the limit", 7.0)

    async def scenario() -> None:
        async with http_door(admit=admit) as web, grpc_door(admit=admit) as rpc:
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, content_length="1000000"
            )
            answer = await web.send(head)
            assert (answer.status, answer.headers["retry-after"]) == (503, "7")
            error = await rpc.refusal(b"x")
            assert error.code().name == "UNAVAILABLE"
            assert (error.details(), asked) == ("near the limit", [1_000_000, 0])
            assert web.consumer.batches == rpc.consumer.batches == []

    asyncio.run(scenario())


@LOOPS
def test_limits_change_while_it_runs(run: Callable[[Any], None]) -> None:
    """
    Scenario: the limits of body, connections and time are changed, then another endpoint is asked
    for.
    Guarantees: the new limits hold on the same port, connections stay; the last raises and
    changes nothing.
    """

    async def scenario() -> None:
        async with http_door(limit=1000) as rig, connect(rig.door.port) as old:
            assert await empty_post(*old) == (200, None)
            assert (await rig.post(b"x" * 1001)).status == 413
            change = {"max_request_body_size": 2000, "max_connections": 1}
            await rig.door.reconfigure(rig.door._config.model_copy(update=change))
            assert await empty_post(*old) == (200, None)
            assert (await rig.post(b"x" * 1001)).status == 503
            change = {"max_connections": 10}
            await rig.door.reconfigure(rig.door._config.model_copy(update=change))
            assert (await rig.post(b"x" * 1001)).status == 200
            moved = rig.door._config.model_copy(update={"endpoint": "127.0.0.1:1"})
            with pytest.raises(ValueError, match="needs a restart"):
                await rig.door.reconfigure(moved)
            assert (await rig.post(b"x" * 1001)).status == 200

    run(scenario())


def many_headers(size: int) -> dict[str, str]:
    """Headers of so many bytes together, none of them long."""
    return {f"x_{i}": "y" * 990 for i in range(size // 1000)}


def pads(size: int) -> bytes:
    """A head of so many bytes that is not whole yet."""
    return request_head("POST", "/v1/traces", **many_headers(size))[:-2]


@LOOPS
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["whole", "not"])
@pytest.mark.parametrize("before", [b"", HEAD, HEAD * 40], ids=["first", "second", "many"])
def test_heads_are_bounded_in_sum(
    run: Callable[[Any], None], end: bytes, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a head of 100 KB in lines that are each allowed, whole or not, in one write, alone or
    behind other requests.
    Guarantees: 431 after the answers that are due, and the connection ends; the next is served.
    """
    monkeypatch.setattr(listener, "LINGER_S", 0.05)
    large = pads(100_000) + end

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            writer.write(before + large)
            for _ in range(len(before) // len(HEAD)):
                assert (await read_answer(reader)).status == 200
            if not end and len(before) > len(HEAD):
                writer.write((b"a: " + b"y" * 990 + b"\r\n") * 18)
            answer = await read_answer(reader)
            assert answer.status == 431
            assert b"yyy" not in answer.body
            assert await reader.read() == b""
            assert refused(rig, "malformed") == 1
            assert (await rig.post(b"x", **many_headers(10_000))).status == 200

    run(scenario())


def test_a_head_that_grows_is_bounded() -> None:
    """
    Scenario: a head that comes in small pieces and does not end; one behind a request that is being
    answered; one behind the end of a body.
    Guarantees: 431 soon after the bound, before the head's time is over.
    """

    async def grow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        answer = asyncio.ensure_future(read_answer(reader))
        for i in range(10_000):
            if answer.done():
                break
            writer.write(b"POST / HTTP/1.1\r\n" if i == 0 else b"a: %s\r\n" % (b"y" * 995))
            await asyncio.sleep(0.001)
        return (await answer).status

    async def scenario() -> None:
        async with http_door(read_header_timeout="1h") as rig:
            async with connect(rig.door.port) as (reader, writer):
                assert await grow(reader, writer) == 431
            long = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, content_length="300000"
            )
            async with connect(rig.door.port) as (reader, writer):
                rig.consumer.gate = asyncio.Event()
                writer.write(long + bytes(300_000) + pads(120_000))
                await rig.consumer.entered.wait()
                rig.consumer.gate.set()
                assert (await read_answer(reader)).status == 200
                assert (await read_answer(reader)).status == 431

    asyncio.run(scenario())


def test_upgrade_is_not_taken_up() -> None:
    """
    Scenario: a request that wants to go on as a web socket, with a long head behind it.
    Guarantees: it is answered as any other, and the connection ends: nothing is kept.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            head = request_head(
                "POST",
                "/v1/traces",
                content_type=PROTOBUF,
                connection="upgrade",
                upgrade="websocket",
            )
            writer.write(head + pads(20_000))
            assert (await read_answer(reader)).status == 200
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""

    asyncio.run(scenario())
