"""The OTLP/HTTP door with real sockets on loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest
from google.rpc import error_details_pb2

from otel_anomaly.handoff import Batch, Outcome, Reply, Signal
from otel_anomaly.receivers import body, http
from tests.door_rigs import (
    NOW_NS,
    PROTOBUF,
    chunked,
    connect,
    http_door,
    read_answer,
    request_head,
)

BODY = bytes(range(256)) * 40
CODINGS = {
    "": lambda x: x,
    "identity": lambda x: x,
    " ": lambda x: x,
    ", ,": lambda x: x,
    "gzip": gzip.compress,
    "Identity, gzip,": gzip.compress,
    "deflate": zlib.compress,
}


def upper(json_body: bytes, signal: Signal) -> bytes:
    """A decoder that shows who called it."""
    if not json_body.startswith(b"{"):
        raise ValueError("not an object at byte 0")
    return signal.value.encode() + json_body.upper()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("signal", Signal, ids=lambda signal: signal.value)
def test_accepts_each_signal_in_each_coding(signal: Signal, coding: str) -> None:
    """
    Scenario: one request of each signal, plain and in every coding; lists of codings of which at
    most one changes something.
    Guarantees: the body reaches the processor byte for byte with its signal, arrival and size on
    the wire; the answer
    is 200, empty, in the request's type.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            sent = CODINGS[coding](BODY)
            answer = await rig.post(sent, f"/v1/{signal.value}", content_encoding=coding)
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-type"] == PROTOBUF
            assert rig.consumer.batches == [Batch(BODY, signal, "http", NOW_NS, len(sent))]
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
        ({"content_encoding": "br"}, 415, 3),
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
            assert (answer.status_message().code, bool(answer.status_message().message)) == (
                code,
                True,
            )
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
            assert (answer.status, answer.status_message().code) == (404, 5)
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
    expected = {
        Outcome.MALFORMED: 400,
        Outcome.REJECTED: 400,
        Outcome.TOO_LARGE: 413,
        Outcome.THROTTLED: 429,
        Outcome.UNAUTHENTICATED: 401,
    }.get(outcome, 503)

    async def scenario() -> None:
        async with http_door(answer=Reply(outcome, "because", 4.2)) as rig:
            answer = await rig.post(BODY)
            assert (answer.status, answer.status_message().message) == (expected, "because")
            assert answer.headers.get("retry-after") == ("5" if outcome.retryable else None)
            assert rig.counted(outcome) == 1
            if outcome.retryable:
                info = error_details_pb2.RetryInfo()
                assert answer.status_message().details[0].Unpack(info)
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
