"""The OTLP/HTTP door with real sockets on loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib

import pytest
import uvloop
from aiohttp import web
from google.rpc import error_details_pb2, status_pb2

from otel_anomaly.config import HttpReceiverConfig
from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers import body, http
from otel_anomaly.receivers.body import BodyReader
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import (
    NOW_NS,
    PROTOBUF,
    Answer,
    Consumer,
    HttpRig,
    StandingClock,
    chunked,
    connect,
    gzip_bomb,
    http_door,
    read_answer,
    request_head,
    until,
)

BODY = bytes(range(256)) * 40
CODINGS = {
    "": lambda x: x,
    "identity": lambda x: x,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


def upper(json_body: bytes, signal: Signal) -> bytes:
    """A decoder that shows who called it."""
    if not json_body.startswith(b"{"):
        raise ValueError("not an object at byte 0")
    return signal.value.encode() + json_body.upper()


def status_in(answer: Answer) -> status_pb2.Status:
    assert answer.headers["content-type"] == PROTOBUF
    return status_pb2.Status.FromString(answer.body)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("signal", Signal, ids=lambda signal: signal.value)
def test_accepts_each_signal_in_each_coding(signal: Signal, coding: str) -> None:
    """
    Scenario: one request of each signal, plain and in every coding.
    Guarantees: the body reaches the processor byte for byte with its signal and arrival; the answer
    is 200, empty, in the request's type.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            sent = CODINGS[coding](BODY)
            answer = await rig.post(sent, f"/v1/{signal.value}", content_encoding=coding)
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-type"] == PROTOBUF
            assert rig.consumer.batches == [(BODY, signal, "http", NOW_NS)]
            assert rig.counted(Outcome.ACCEPTED, signal.value) == 1

    asyncio.run(scenario())


def test_one_connection_carries_many_requests_and_the_date_moves() -> None:
    """
    Scenario: requests pipelined and one after the other on one connection, over some seconds.
    Guarantees: answers in order on the kept connection, each with the date of its second.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            one = request_head("POST", "/v1/logs", content_type=PROTOBUF, content_length="1")
            writer.write(one + b"a" + one + b"b")
            assert {(await read_answer(reader)).headers["date"] for _ in range(2)} == {
                "Tue, 14 Nov 2023 22:13:20 GMT"
            }
            rig.clock.wall_ns += 2_000_000_000
            writer.write(one + b"c")
            assert (await read_answer(reader)).headers["date"] == "Tue, 14 Nov 2023 22:13:22 GMT"
            assert [batch.body for batch in rig.consumer.batches] == [b"a", b"b", b"c"]

    asyncio.run(scenario())


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1\r\nConnection: close"])
def test_connection_closes_when_the_client_says_so(version: str) -> None:
    """
    Scenario: HTTP/1.0, and HTTP/1.1 with `Connection: close`.
    Guarantees: 200, and then the end of the connection.
    """

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            lines = f"POST /v1/traces {version}", "Host: test", f"Content-Type: {PROTOBUF}"
            writer.write("\r\n".join([*lines, "Content-Length: 1", "", "x"]).encode())
            assert (await read_answer(reader)).status == 200
            assert await reader.read() == b""

    asyncio.run(scenario())


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_chunked_body_without_content_length(size: int, coding: str) -> None:
    """
    Scenario: 3 MiB in chunks, down to one chunk per byte for a small body.
    Guarantees: the body arrives whole; nothing of it stays on the books.
    """
    text = BODY if size == 1 else BODY * 300

    async def scenario() -> None:
        async with http_door(limit=len(text)) as rig:
            raw = request_head(
                "POST",
                "/v1/traces",
                content_type=PROTOBUF,
                transfer_encoding="chunked",
                content_encoding=coding,
            ) + chunked(CODINGS[coding](text), size)
            assert (await rig.send(raw)).status == 200
            assert [batch.body for batch in rig.consumer.batches] == [text]
            assert rig.door._bodies.held == 0

    asyncio.run(scenario())


def test_body_that_trickles_in_many_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a body in more reads than are kept apart.
    Guarantees: put together in order.
    """
    monkeypatch.setattr(body, "CHUNKS_MAX", 4)

    async def scenario() -> None:
        async with http_door() as rig, connect(rig.door.port) as (reader, writer):
            writer.write(
                request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="11")
            )
            for byte in b"hello world":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.002)
            assert (await read_answer(reader)).status == 200
            assert rig.consumer.batches[0].body == b"hello world"

    asyncio.run(scenario())


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_empty_body_is_a_request(coding: str) -> None:
    """
    Scenario: no bytes at all, plain and gzipped.
    Guarantees: it reaches the processor, whose business it is, and is answered 200.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            assert (await rig.post(CODINGS[coding](b""), content_encoding=coding)).status == 200
            assert [batch.body for batch in rig.consumer.batches] == [b""]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "content_type",
    ["application/x-protobuf", "Application/X-Protobuf", "application/x-protobuf ; charset=utf-8"],
)
def test_media_type_in_any_dress(content_type: str) -> None:
    """
    Scenario: upper case and parameters.
    Guarantees: accepted, and answered under the plain name.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(BODY, content_type=content_type)
            assert (answer.status, answer.headers["content-type"]) == (200, PROTOBUF)

    asyncio.run(scenario())


@pytest.mark.parametrize("padding", [0, http.JSON_INLINE_BYTES_MAX])
def test_json_goes_through_the_decoder(padding: int) -> None:
    """
    Scenario: a small JSON request and one that is decoded in a thread.
    Guarantees: the processor sees what the decoder made of it; the answer is `{}` in JSON.
    """
    sent = b"{" + b"x" * padding

    async def scenario() -> None:
        async with http_door(decode_json=upper) as rig:
            answer = await rig.post(
                sent, "/v1/logs", content_type="application/json; charset=utf-8"
            )
            assert (answer.status, answer.body) == (200, b"{}")
            assert answer.headers["content-type"] == "application/json"
            assert rig.consumer.batches[0].body == b"logs" + sent.upper()

    asyncio.run(scenario())


def test_bad_json_is_refused_in_json() -> None:
    """
    Scenario: a body that the decoder refuses.
    Guarantees: 400 with a Status in JSON that says what is wrong, counted, nothing consumed.
    """

    async def scenario() -> None:
        async with http_door(decode_json=upper) as rig:
            answer = await rig.post(b"[]", content_type="application/json")
            assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
            assert json.loads(answer.body) == {"code": 3, "message": "not an object at byte 0"}
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"method": "GET"}, 405, 12),
        ({"method": "PUT"}, 405, 12),
        ({"content_type": "text/plain"}, 415, 3),
        ({"content_type": ""}, 415, 3),
        ({"content_encoding": "zstd"}, 415, 3),
        ({"content_encoding": "gzip, gzip"}, 415, 3),
        ({"content_encoding": "gzip"}, 400, 3),
    ],
    ids=str,
)
def test_wrong_method_type_or_coding(change: dict[str, str], status: int, code: int) -> None:
    """
    Scenario: a request that is wrong in one way; the last one is not gzip at all.
    Guarantees: the status of the fault with a Status body; counted; nothing consumed.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(BODY, **change)
            assert answer.status == status
            assert (status_in(answer).code, bool(status_in(answer).message)) == (code, True)
            assert (answer.headers.get("allow") == "POST") == (status == 405)
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])

    asyncio.run(scenario())


def test_json_without_a_decoder_is_415_in_json() -> None:
    """
    Scenario: JSON at a door that was built without a decoder.
    Guarantees: 415, explained in the client's own encoding.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(b"{}", content_type="application/json")
            assert (answer.status, json.loads(answer.body)["code"]) == (415, 3)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/", "/v1/trace", "/v1/traces/", "/v1development/profiles"])
def test_unknown_path(path: str) -> None:
    """
    Scenario: paths that are not OTLP's.
    Guarantees: 404 with a Status body; no counter, since there is no signal to count under.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(BODY, path)
            assert (answer.status, status_in(answer).code) == (404, 5)
            assert rig.counted(Outcome.MALFORMED) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/traces?x=1", "http://other/v1/traces"])
def test_known_path_written_otherwise(path: str) -> None:
    """
    Scenario: a query, and the absolute form that proxies send.
    Guarantees: the same route.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            assert (await rig.post(BODY, path)).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "outcome", [each for each in Outcome if each is not Outcome.ACCEPTED], ids=lambda x: x.value
)
def test_refusals_of_the_processor(outcome: Outcome) -> None:
    """
    Scenario: the processor refuses, in each way there is.
    Guarantees: the table's status, its Status body, Retry-After exactly when a retry helps.
    """
    expected = {Outcome.MALFORMED: 400, Outcome.TOO_LARGE: 413}.get(outcome, 503)

    async def scenario() -> None:
        async with http_door(answer=Reply(outcome, "because", 4.2)) as rig:
            answer = await rig.post(BODY)
            assert (answer.status, status_in(answer).message) == (expected, "because")
            assert answer.headers.get("retry-after") == ("5" if outcome.retryable else None)
            assert rig.counted(outcome) == 1
            if outcome.retryable:
                info = error_details_pb2.RetryInfo()
                assert status_in(answer).details[0].Unpack(info)
                assert info.retry_delay.ToMilliseconds() == 4200

    asyncio.run(scenario())


def test_bug_in_the_processor_is_retryable(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the processor raises.
    Guarantees: 503 with Retry-After, one log line, and the next request is served.
    """

    async def scenario() -> None:
        async with http_door(answer=KeyError("bug")) as rig:
            answer = await rig.post(BODY)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
            rig.consumer.answer = Reply(Outcome.ACCEPTED)
            assert (await rig.post(BODY)).status == 200

    asyncio.run(scenario())
    assert [record.name for record in caplog.records] == ["otel_anomaly"]


def test_bug_in_the_decoder_is_retryable(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the JSON decoder raises something it never should; and recurses too deep.
    Guarantees: the bug is a 503 and logged; the recursion is the input's fault, a 400.
    """
    errors: list[Exception] = [KeyError("bug"), RecursionError("too deep")]

    def broken(sent: bytes, signal: Signal) -> bytes:
        raise errors.pop(0)

    async def scenario() -> None:
        async with http_door(decode_json=broken) as rig:
            statuses = [
                (await rig.post(b"{}", content_type="application/json")).status for _ in "ab"
            ]
            assert statuses == [503, 400]

    asyncio.run(scenario())
    assert len(caplog.records) == 1


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
            assert (answer.status, status_in(answer).code) == (413, 8)
            assert not status_in(answer).details
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
    monkeypatch.setattr(body, "BODIES_HELD_MAX", 1)

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
                assert [rig.counted(each) for each in Outcome] == [1, 0, 0, 0, 0, 0]

    with caplog.at_level(logging.DEBUG, "otel_anomaly"):
        asyncio.run(scenario())
    assert not caplog.records


def test_slow_body_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a body that stops coming, with the deadline set to nearly nothing.
    Guarantees: 408 with a Status body, nothing consumed.
    """
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.01)

    async def scenario() -> None:
        async with http_door() as rig:
            head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="1000")
            answer = await rig.send(head + b"x")
            assert (answer.status, status_in(answer).code) == (408, 4)
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])

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


def test_chunk_framing_that_breaks_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a good chunk, and later one whose length is not a number. aiohttp's parser does not
    tell the reader of the body, only its own queue.
    Guarantees: the deadline ends it; nothing is consumed, the next client is served.
    """
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with http_door() as rig:
            head = request_head(
                "POST", "/v1/traces", content_type=PROTOBUF, transfer_encoding="chunked"
            )
            async with connect(rig.door.port) as (reader, writer):
                writer.write(head + b"3\r\nabc\r\n")
                await until(lambda: rig.door._bodies.held > 0)
                writer.write(b"nonsense\r\n")
                assert (await read_answer(reader)).status == 408
            assert (rig.counted(Outcome.MALFORMED), rig.consumer.batches) == (1, [])
            assert (await rig.post(BODY)).status == 200

    asyncio.run(scenario())


def test_broken_framing_that_the_parser_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: aiohttp's other parser, in pure Python, makes the reader of a broken body raise.
    Guarantees: 400 with a Status body, counted.
    """

    async def broken(self: BodyReader, request: web.BaseRequest) -> bytes:
        raise web.RequestPayloadError

    monkeypatch.setattr(BodyReader, "read", broken)

    async def scenario() -> None:
        async with http_door() as rig:
            answer = await rig.post(BODY)
            assert (answer.status, status_in(answer).code) == (400, 3)
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
def test_taken_port_is_an_error_that_names_it(run: object) -> None:
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

    assert callable(run)
    run(scenario())
