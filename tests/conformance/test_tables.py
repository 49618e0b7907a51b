"""The status tables of both transports, as a client sees them at our doors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from otel_anomaly.config import Config
from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers.grpc import SERVICES
from tests.conformance.doors import LIMIT, Doors, Way
from tests.conformance.requests import full, traces
from tests.door_rigs import connect

if TYPE_CHECKING:
    import asyncio

GRPC = Way("grpc", "proto", "none")
PROTO = Way("http", "proto", "none")
JSON = Way("http", "json", "none")
both_encodings = pytest.mark.parametrize("way", [PROTO, JSON], ids=str)
OVERLOADED = [Outcome.QUEUE_FULL, Outcome.MEMORY, Outcome.STOPPING]
overloaded = pytest.mark.parametrize("outcome", OVERLOADED, ids=lambda outcome: outcome.value)
Code = grpc.StatusCode


def test_G_services_and_default_port(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: each signal to its service's Export.
    Guarantees: served under the names of the specification; the default port is 4317.
    """
    for signal, name in (
        (Signal.TRACES, "trace.v1.TraceService"),
        (Signal.METRICS, "metrics.v1.MetricsService"),
        (Signal.LOGS, "logs.v1.LogsService"),
    ):
        body = full(signal).SerializeToString()
        assert doors.call(f"/opentelemetry.proto.collector.{name}/Export", body).ok
    grpc_door = Config().receivers.otlp.protocols.grpc
    assert grpc_door is not None
    assert grpc_door.endpoint == "127.0.0.1:4317"


@overloaded
def test_G_throttling(doors: Doors, outcome: Outcome) -> None:  # noqa: N802
    """
    Scenario: every reason to send again later.
    Guarantees: UNAVAILABLE, RetryInfo with the delay as it was computed.
    """
    doors.answer = Reply(outcome, "later", 7.25)
    answer = doors.send(GRPC, b"")
    assert (answer.code, answer.message) == (Code.UNAVAILABLE.value[0], "later")
    assert answer.retry_s == 7.25


def test_G_bad_data(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: what is no protobuf.
    Guarantees: INVALID_ARGUMENT, and no RetryInfo.
    """
    answer = doors.send_raw(GRPC, b"\xff")
    assert (answer.code, answer.retry_s) == (Code.INVALID_ARGUMENT.value[0], None)


def test_G_oversized(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: a message over the limit, by the transport's limit and by the processor's.
    Guarantees: RESOURCE_EXHAUSTED without RetryInfo: a client must not send it again.
    """
    exhausted = Code.RESOURCE_EXHAUSTED.value[0]
    answer = doors.send_raw(GRPC, bytes(LIMIT + 1))
    assert (answer.code, answer.retry_s) == (exhausted, None)
    doors.rig.room.script.append(Outcome.TOO_LARGE)
    answer = doors.send(GRPC, traces().SerializeToString())
    assert (answer.code, answer.retry_s) == (exhausted, None)


@pytest.mark.parametrize(
    "method",
    [
        "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
        f"/{SERVICES[Signal.TRACES]}/Import",
        "/",
    ],
)
def test_G_unknown_services(doors: Doors, method: str) -> None:  # noqa: N802
    """
    Scenario: a service of a signal that we do not take, and methods that are not there.
    Guarantees: UNIMPLEMENTED.
    """
    assert doors.call(method, b"").code == Code.UNIMPLEMENTED.value[0]


def test_G_exception_is_retryable(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: the processor raises.
    Guarantees: UNAVAILABLE with a delay, never UNKNOWN, by which a client drops its data.
    """
    doors.answer = KeyError("a bug")
    answer = doors.send(GRPC, b"")
    assert answer.code == Code.UNAVAILABLE.value[0]
    assert answer.retry_s
    assert "a bug" not in answer.message


def test_G_codings_deflate(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: a request in deflate, which gRPC knows beside gzip though no OTLP client sends it; one
    that is over the limit when inflated.
    Guarantees: taken as it was before it was compressed; the other is RESOURCE_EXHAUSTED.
    """
    deflate = Way("grpc", "proto", "deflate")
    body = traces().SerializeToString()
    assert doors.send(deflate, body).ok
    assert doors.passed_on() == body
    assert doors.send_raw(deflate, bytes(LIMIT + 1)).code == Code.RESOURCE_EXHAUSTED.value[0]


@pytest.mark.parametrize("coding", ["zstd", "snappy"])
def test_G_codings_of_the_collector_are_refused(doors: Doors, coding: str) -> None:  # noqa: N802
    """
    Scenario: a message that says it is zstd or snappy, which the Collector's exporter offers and
    grpcio cannot inflate.
    Guarantees: INTERNAL, grpcio's own word for it, so the client drops it and says so; the
    connection's next request, in gzip, is served. zstd is for HTTP.
    """
    status = doors.run(raw_call(doors.grpc.port, coding))
    assert status == str(Code.INTERNAL.value[0])
    assert doors.send(Way("grpc", "proto", "gzip"), traces().SerializeToString()).ok


async def raw_call(port: int, coding: str) -> str:
    """The grpc-status of a call with a coding that no library sends for us."""
    headers = b"".join(
        literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/{SERVICES[Signal.TRACES]}/Export"),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-encoding", coding),
        )
    )
    message = b"\1" + (3).to_bytes(4, "big") + b"abc"
    async with connect(port) as (reader, writer):
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        writer.write(frame(1, 4, 1, headers) + frame(0, 1, 1, message))
        status = ""
        while not status:
            kind, payload = await read_frame(reader)
            status = status_in_letters(payload) if kind == 1 else ""
    return status


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(9)
    return head[3], await reader.readexactly(int.from_bytes(head[:3], "big"))


def literal(name: str, value: str) -> bytes:
    """A header field that is not indexed, by name (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def status_in_letters(block: bytes) -> str:
    """The grpc-status of a header block; gRPC writes it in letters the first time."""
    name = b"\x0bgrpc-status"
    start = block.find(name)
    at = start + len(name)
    return block[at + 1 : at + 1 + block[at]].decode() if start >= 0 else ""


def test_H_port_and_paths(doors: Doors) -> None:  # noqa: N802
    """
    Scenario: each signal to its path.
    Guarantees: served; the default port is 4318.
    """
    for signal in Signal:
        body = full(signal).SerializeToString()
        assert doors.post(PROTO, body, f"/v1/{signal.value}").ok
    http_door = Config().receivers.otlp.protocols.http
    assert http_door is not None
    assert http_door.endpoint == "127.0.0.1:4318"


@both_encodings
def test_H_success(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: a good request.
    Guarantees: 200, never 201 or 204, with an empty response of the request's type.
    """
    answer = doors.send(way, traces().SerializeToString())
    assert (answer.code, answer.headers["content-type"]) == (200, way.content_type)
    assert answer.body == (b"{}" if way is JSON else b"")


@pytest.mark.parametrize("dress", ["; charset=utf-8", ";charset=UTF-8", " ; a=b; c=d"])
@both_encodings
def test_H_media_type_parameters(doors: Doors, way: Way, dress: str) -> None:  # noqa: N802
    """
    Scenario: Content-Type with parameters, upper and lower case.
    Guarantees: tolerated; the answer is of the plain type.
    """
    body = b"{}" if way is JSON else b""
    answer = doors.post(way, body, content_type=way.content_type.upper() + dress)
    assert (answer.code, answer.headers["content-type"]) == (200, way.content_type)


@both_encodings
def test_H_status_body_of_every_refusal(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: every refusal there is.
    Guarantees: each has a google.rpc.Status with a message, in the request's type.
    """
    refusals = [
        doors.post(way, b"", "/v1/unknown"),
        doors.post(way, b"", method="PUT"),
        doors.post(way, b"", content_encoding="br"),
        doors.post(way, b"\xff"),
        doors.post(way, b"", content_type=f"text/{way.encoding}"),
        doors.post(way, bytes(LIMIT + 1)),
    ]
    for outcome in Outcome:
        if outcome is not Outcome.ACCEPTED:
            doors.answer = Reply(outcome, "because", 1.0)
            refusals.append(doors.send(way, b""))
    assert {404, 405, 415, 400, 413, 503} <= {answer.code for answer in refusals}
    for answer in refusals:  # `Doors` has read the Status already, by the answer's type.
        assert answer.headers["content-type"] == way.content_type
        assert answer.message


@both_encodings
def test_H_400_undecodable(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: what is neither protobuf nor JSON.
    Guarantees: 400 without Retry-After.
    """
    answer = doors.send_raw(way, b"\xff\xff")
    assert (answer.code, answer.retry_s) == (400, None)


@both_encodings
def test_H_413_too_large(doors: Doors, way: Way) -> None:  # noqa: N802
    """
    Scenario: over the limit of the door; over what the exporters can ever hold.
    Guarantees: 413 without Retry-After.
    """
    answer = doors.post(way, bytes(LIMIT + 1))
    assert (answer.code, answer.retry_s) == (413, None)
    doors.rig.room.script.append(Outcome.TOO_LARGE)
    answer = doors.send(way, traces().SerializeToString())
    assert (answer.code, answer.retry_s) == (413, None)


@overloaded
@both_encodings
def test_H_429_or_503_when_overloaded(doors: Doors, way: Way, outcome: Outcome) -> None:  # noqa: N802
    """
    Scenario: every reason to send again later.
    Guarantees: 503, our choice of the two, with Retry-After.
    """
    doors.answer = Reply(outcome, "later", 7.0)
    answer = doors.send(way, b"")
    assert (answer.code, answer.retry_s, answer.message) == (503, 7.0, "later")


@pytest.mark.parametrize(("delay_s", "header"), [(0.0, "1"), (0.2, "1"), (1.01, "2"), (30.0, "30")])
def test_H_round_up(doors: Doors, delay_s: float, header: str) -> None:  # noqa: N802
    """
    Scenario: delays between whole seconds.
    Guarantees: rounded up: 0 would mean at once.
    """
    doors.answer = Reply(Outcome.MEMORY, "later", delay_s)
    assert doors.send(PROTO, b"").headers["retry-after"] == header


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_H_405_wrong_method(doors: Doors, method: str) -> None:  # noqa: N802
    """
    Scenario: another method than POST.
    Guarantees: 405, which names POST.
    """
    answer = doors.post(PROTO, b"", method=method)
    assert (answer.code, answer.headers["allow"], answer.retry_s) == (405, "POST", None)


@pytest.mark.parametrize(
    "header",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/grpc"},
        {"content_type": ""},
        {"content_encoding": "br"},
        {"content_encoding": "gzip, gzip"},
    ],
    ids=str,
)
def test_H_415_wrong_type_or_coding(doors: Doors, header: dict[str, str]) -> None:  # noqa: N802
    """
    Scenario: types and codings that OTLP does not have.
    Guarantees: 415.
    """
    assert doors.post(PROTO, b"", **header).code == 415


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/traces/", "/v1/profiles", "/v1development/profiles"]
)
def test_H_404_unknown_path(doors: Doors, path: str) -> None:  # noqa: N802
    """
    Scenario: paths beside the three.
    Guarantees: 404.
    """
    assert doors.post(PROTO, b"", path).code == 404
