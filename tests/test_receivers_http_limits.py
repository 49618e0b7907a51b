"""The OTLP/HTTP door where it gets rough: limits, broken clients, slow clients, the stop."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop
from aiohttp import web

from otel_anomaly.config import HttpReceiverConfig
from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers import unfinished
from otel_anomaly.receivers.body import BodyReader
from otel_anomaly.receivers.http import JSON_INLINE_BYTES_MAX, HttpReceiver, _Accepted
from otel_anomaly.receivers.http import PROTOBUF as MEDIA
from otel_anomaly.receivers.unfinished import Refused
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import (
    PROTOBUF,
    Answer,
    Consumer,
    HttpRig,
    StandingClock,
    connect,
    gzip_bomb,
    http_door,
    read_answer,
    request_head,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = bytes(range(256)) * 40


def test_wire_limit_by_content_length() -> None:
    """
    Scenario: bodies of exactly the limit and one byte more, sent whole; and a declared 2 GiB of
    which nothing is sent.
    Guarantees: the first is accepted, the others are 413, the last without waiting for its body.
    """

    async def scenario() -> None:
        async with http_door(limit=1000) as rig:
            assert (await rig.post(b"x" * 1000)).status == 200
            answer = await rig.post(b"x" * 1001)
            assert (answer.status, answer.status_message().code) == (413, 8)
            assert not answer.status_message().details
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, content_length=str(1 << 31)
            )
            assert (await rig.send(head)).status == 413
            assert (rig.counted(Outcome.TOO_LARGE), len(rig.consumer.batches)) == (2, 1)

    asyncio.run(scenario())


def test_wire_limit_while_streaming() -> None:
    """
    Scenario: a chunked body that goes on past the limit and never ends.
    Guarantees: 413 as soon as the limit is passed.
    """

    async def scenario() -> None:
        async with http_door(limit=1000) as rig:
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, transfer_encoding="chunked"
            )
            assert (await rig.send(head + b"3e9\r\n" + b"x" * 1001)).status == 413
            assert (rig.counted(Outcome.TOO_LARGE), rig.door._bodies.held) == (1, 0)

    asyncio.run(scenario())


def test_limit_holds_after_inflation() -> None:
    """
    Scenario: gzip bodies that inflate to the limit, to one byte more, and to a gibibyte.
    Guarantees: 200, 413, 413.
    """
    limit = 3 << 20

    async def scenario() -> None:
        async with http_door(limit=limit) as rig:
            sizes = [gzip.compress(bytes(limit)), gzip.compress(bytes(limit + 1)), gzip_bomb(1024)]
            answers = [(await rig.post(sent, content_encoding="gzip")).status for sent in sizes]
            assert answers == [200, 413, 413]
            assert rig.door._bodies.held == 0

    asyncio.run(scenario())


def test_large_bodies_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: room for one large body, and two clients that send theirs at the same time.
    Guarantees: the second is asked to retry; when the first is done, there is room again.
    """
    monkeypatch.setattr(unfinished, "BODIES_HELD_MAX", 1)

    async def scenario() -> None:
        async with http_door(limit=100_000) as rig, connect(rig.door.port) as (reader, writer):
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, content_length="100000"
            )
            writer.write(head + bytes(60_000))
            await until(lambda: rig.door._bodies.held == 60_000)
            refused = await rig.send(head + bytes(50_000))
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert (rig.counted(Outcome.MEMORY), rig.door._bodies.held) == (1, 60_000)
            writer.write(bytes(40_000))
            assert (await read_answer(reader)).status == 200
            assert rig.door._bodies.held == 0

    asyncio.run(scenario())


def test_client_that_goes_away_mid_body(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: half a body, then a reset; then an honest request.
    Guarantees: nothing is consumed, counted or logged for the first; the second is served.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="1000")
            async with connect(rig.door.port) as (_, writer):
                writer.write(head + b"x" * 500)
                await until(lambda: rig.door._bodies.held > 0)
                writer.transport.abort()
                await until(lambda: rig.door._bodies.held == 0)
                assert (await rig.post(BODY)).status == 200
                assert len(rig.consumer.batches) == 1
                assert [rig.counted(each) for each in Outcome] == [1] + [0] * (len(Outcome) - 1)

    with caplog.at_level(logging.DEBUG, "otel_anomaly"):
        asyncio.run(scenario())
    assert not caplog.records


def test_slow_body_runs_out_of_time() -> None:
    """
    Scenario: a body that stops coming, with the deadline set to nearly nothing.
    Guarantees: 408 with a Status body, nothing consumed.
    """

    async def scenario() -> None:
        async with http_door(read_timeout="10ms") as rig:
            head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="1000")
            answer = await rig.send(head + b"x")
            assert (answer.status, answer.status_message().code) == (408, 4)
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])

    asyncio.run(scenario())


def test_a_whole_body_that_we_are_late_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: compressed and JSON bodies that are here, and no thread that has time for them.
    Guarantees: 503 with a time to come back, not the final 408.
    """

    async def no_time(*_: object) -> None:
        await asyncio.sleep(3600)

    async def scenario() -> None:
        async with http_door(
            1 << 22, decode_json=lambda text, _: text, read_timeout="500ms"
        ) as rig:
            monkeypatch.setattr(asyncio, "to_thread", no_time)
            noise = gzip.compress(random.Random(1).randbytes(100_000))
            text = bytes(JSON_INLINE_BYTES_MAX + 1)
            for sent, keys in (
                (noise, {"content_encoding": "gzip"}),
                (text, {"content_type": "application/json"}),
            ):
                answer = await rig.post(sent, **keys)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert rig.counted(Outcome.UNAVAILABLE) == 2

    asyncio.run(scenario())


def test_too_large_for_the_limit_and_for_memory() -> None:
    """
    Scenario: a declared body over the limit, which memory has no room for either; and one below.
    Guarantees: 413, which is final; 503.
    """
    full = Reply(Outcome.MEMORY, "no memory")

    async def scenario() -> None:
        async with http_door(1000, admit=lambda size: full if size > 900 else None) as rig:
            assert (await rig.post(bytes(950))).status == 503
        async with http_door(1000, admit=lambda size: full if size > 1000 else None) as rig:
            assert (await rig.post(bytes(5000))).status == 413

    asyncio.run(scenario())


def test_expect_continue_is_answered() -> None:
    """
    Scenario: a client that asks before it sends, as curl does with large bodies; and one whose
    body would be too large.
    Guarantees: the first is told to go on, the second is refused instead.
    """

    async def scenario() -> None:
        async with http_door(limit=1000) as rig, connect(rig.door.port) as (reader, writer):
            ask = {"content_type": PROTOBUF, "expect": "100-continue"}
            writer.write(request_head("POST", "/v1/traces", content_length="1000", **ask))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"x" * 1000)
            assert (await read_answer(reader)).status == 200
            writer.write(request_head("POST", "/v1/traces", content_length="1001", **ask))
            assert (await read_answer(reader)).status == 413

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00 tls hello\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        request_head("POST", "/v1/traces", content_type=PROTOBUF, transfer_encoding="chunked")
        + b"zz\r\n",
    ],
    ids=["tls", "length", "header", "chunk"],
)
def test_broken_http(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: bytes that are not HTTP, a header of 100 kB, broken chunk framing.
    Guarantees: 400, a quiet log, and the next client is served.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            assert (await rig.send(raw)).status == 400
            assert (await rig.post(BODY)).status == 200
            assert len(rig.consumer.batches) == 1

    asyncio.run(scenario())
    assert not caplog.records


def test_chunk_framing_that_breaks_midway(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a good chunk, and later one whose length is not a number, with megabytes behind it.
    aiohttp's parser does not tell the reader of the body, only its own queue, once for each read.
    Guarantees: 400 at once and the connection ends; what follows is not kept; nothing is consumed
    or logged, the next client is served.
    """
    head = request_head("POST", "/v1/traces", content_type=PROTOBUF, transfer_encoding="chunked")

    async def scenario() -> None:
        async with http_door(read_timeout="1h") as rig:
            async with connect(rig.door.port) as (reader, writer):
                writer.write(head + b"3\r\nabc\r\n")
                await until(lambda: rig.door._bodies.held > 0)
                (connection,) = rig.door._listener.census._open
                connection.data_received(b"nonsense\r\n")
                for _ in range(20):
                    connection.data_received(bytes(100_000))
                kept = [message.message for message, _ in connection._messages]
                assert sum(len(text) for text in kept) < 1000
                answer = await read_answer(reader)
                assert (answer.status, answer.headers["connection"]) == (400, "close")
                assert await reader.read() == b""
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])
            assert (await rig.post(BODY)).status == 200

    with caplog.at_level(logging.DEBUG, "otel_anomaly"):
        asyncio.run(scenario())
    assert not caplog.records


def test_chunk_framing_that_breaks_after_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a request is refused on its headers, and the rest of its body has broken chunks.
    Guarantees: the connection ends; nothing is logged.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            writer.write(request_head("POST", "/nothing", transfer_encoding="chunked") + b"3\r\na")
            assert (await read_answer(reader)).status == 404
            writer.write(b"bc\r\nnonsense\r\n")
            async with asyncio.timeout(60):
                assert await reader.read() == b""

    with caplog.at_level(logging.DEBUG, "otel_anomaly"):
        asyncio.run(scenario())
    assert not caplog.records


def test_broken_framing_that_the_parser_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: aiohttp's other parser, in pure Python, makes the reader of a broken body raise.
    Guarantees: 400 with a Status body, counted.
    """

    async def broken(self: BodyReader, request: web.BaseRequest, client: str) -> bytes:
        raise web.RequestPayloadError

    monkeypatch.setattr(BodyReader, "read", broken)

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(BODY)
            assert (answer.status, answer.status_message().code) == (400, 3)
            assert rig.counted(Outcome.MALFORMED) == 1

    asyncio.run(scenario())


async def stop_under_load(rig: HttpRig) -> tuple[Answer, Answer, bytes]:
    """Stop with one request being judged, one body half here and one connection idle."""
    rig.consumer.gate = asyncio.Event()
    port = rig.door.port
    judged = asyncio.create_task(rig.post(BODY))
    await rig.consumer.entered.wait()
    head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="9")
    async with connect(port) as (half_reader, half), connect(port) as (idle_reader, _):
        half.write(head + b"x")
        await until(lambda: rig.door._bodies.held > 0)
        stopping = asyncio.create_task(rig.door.stop(5))
        refused, end = await read_answer(half_reader), await idle_reader.read()
        assert not judged.done()
        rig.consumer.gate.set()
        await stopping
        with pytest.raises(OSError, match=r"(?i)connect"):
            await asyncio.open_connection("127.0.0.1", port)
        return await judged, refused, end


def test_stop_finishes_what_was_taken_over() -> None:
    """
    Scenario: a stop while one request is judged, one body is half here, one connection is idle.
    Guarantees: the first is answered 200, the second is asked to retry at once, the third closed,
    new connections are refused.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            judged, refused, end = await stop_under_load(rig)
            assert (judged.status, refused.status, end) == (200, 503, b"")
            assert (rig.counted(Outcome.ACCEPTED), rig.counted(Outcome.STOPPING)) == (1, 1)

    uvloop.run(scenario())
    asyncio.run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_taken_port_is_an_error_that_names_it(run: Callable[[Any], None]) -> None:
    """
    Scenario: a second door on the port of the first.
    Guarantees: OSError with the address in its message.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            config = HttpReceiverConfig(endpoint=f"127.0.0.1:{rig.door.port}")
            second = HttpReceiver(config, Consumer(), Telemetry(), StandingClock())
            with pytest.raises(OSError, match=config.endpoint):
                await second.start()
            await second.stop(0)

    run(scenario())


def half_a_request(transport: object) -> web.BaseRequest:
    """A request whose body has not come yet, as aiohttp gives it to a handler."""
    content = SimpleNamespace(is_eof=lambda: False)
    fake = SimpleNamespace(headers={}, content=content, content_length=9, transport=transport)
    return cast("web.BaseRequest", fake)


def test_body_that_starts_after_the_stop_is_refused() -> None:
    """
    Scenario: the handler of a half-received request first runs when the door is already stopping.
    Guarantees: refused as stopping; its body would never come, nothing is read any more.
    """
    reader = BodyReader(1000, 60)
    reader.stop()
    with pytest.raises(Refused) as caught:
        asyncio.run(reader.read(half_a_request(transport=object()), ""))
    assert caught.value.reply.outcome is Outcome.STOPPING


def test_client_that_is_gone_before_its_handler_runs() -> None:
    """
    Scenario: the connection is lost between the head of a request and its handler, and between
    the handler and the answer.
    Guarantees: a ConnectionError, which the door and aiohttp take without a word in the log.
    """
    with pytest.raises(ConnectionError):
        asyncio.run(BodyReader(1000, 60).read(half_a_request(transport=None), ""))
    with pytest.raises(ConnectionError):
        asyncio.run(_Accepted(MEDIA, StandingClock()).prepare(half_a_request(transport=None)))


@pytest.mark.parametrize("padding", [0, JSON_INLINE_BYTES_MAX])
def test_the_limit_holds_for_what_json_becomes(padding: int) -> None:
    """
    Scenario: JSON under the limit that decodes to the limit, and to a byte more; small, and large
    enough for a thread, while it is looked at what is held.
    Guarantees: 200 and 413; while a thread decodes, the text and all it may become are held, then
    nothing is.
    """
    limit, held = 4 * (padding + 100), list[int]()

    async def scenario() -> None:
        def decode(text: bytes, _signal: Signal) -> bytes:
            held.append(rig.door._bodies.held)
            return bytes(limit + text.count(b"!"))

        async with http_door(limit=limit, decode_json=decode) as rig:
            for end, status in ((b"", 200), (b"!", 413)):
                text = b" " * (padding + 1) + end
                answer = await rig.post(text, content_type="application/json")
                assert answer.status == status
            assert rig.counted(Outcome.TOO_LARGE) == len(rig.consumer.batches) == 1
            assert rig.consumer.batches[0].admitted == padding + 1
            assert rig.door._bodies.held == 0

    asyncio.run(scenario())
    assert held == ([0, 0] if not padding else [5 * (padding + 1), 5 * (padding + 2)])
