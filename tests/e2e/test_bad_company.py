"""One client sends garbage; the others must not notice."""

from __future__ import annotations

import gzip
import random
import threading
import time
import zlib
from typing import TYPE_CHECKING, Self

import grpc
import psutil  # type: ignore[import-untyped]
import pytest

from tests import traffic
from tests.e2e.clients import grpc_channel, grpc_export, http_connection, http_export

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection
    from types import TracebackType

    from tests.e2e.conftest import StartService
    from tests.e2e.service_process import ServiceProcess

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LIMIT = 4 * MIB
PROTOBUF = {"Content-Type": "application/x-protobuf"}
GZIPPED = {"Content-Encoding": "gzip"}
LIMITS = {
    "grpc": {"max_recv_msg_size_mib": LIMIT // MIB},
    "http": {"max_request_body_size": LIMIT},
}


def victim(seed: int = 1) -> bytes:
    """The request that gets broken: eight calls."""
    agent = traffic.Agent("mallory", session="sess-bad", seed=seed)
    now_ns = time.time_ns()
    return traffic.request([agent.call(now_ns) for _ in range(8)])


def truncated() -> Iterator[bytes]:
    """One request cut at every length: with one resource, no proper cut is a request."""
    body = victim()
    return (body[:size] for size in range(1, len(body)))


def flipped() -> Iterator[bytes]:
    """One request with one byte changed, at 300 places."""
    rng = random.Random(7)
    body = victim()
    for _ in range(300):
        broken = bytearray(body)
        broken[rng.randrange(len(body))] ^= rng.randrange(1, 256)
        yield bytes(broken)


def bomb(size: int) -> bytes:
    """Zeros, a thousand times smaller when packed."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.flush()])


def post(connection: HTTPConnection, body: bytes) -> int:
    """The status of one request on a kept-alive connection."""
    connection.request("POST", "/v1/traces", body, PROTOBUF)
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


class GoodClient(threading.Thread):
    """Sends well-formed requests all the time and keeps every answer."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.statuses: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        agent = traffic.Agent("support-agent", session="sess-good")
        with http_connection(self.port) as connection:
            while not self.over.is_set():
                body = traffic.request([agent.call(time.time_ns())])
                self.statuses.append(post(connection, body))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self.join()

    def check(self) -> int:
        """Everything it sent must have been accepted. Returns how many that is."""
        assert self.statuses
        assert set(self.statuses) == {200}
        return len(self.statuses)


@pytest.fixture
def limited(start_service: StartService) -> ServiceProcess:
    """A service with small limits on both doors, and little to remember: its memory is watched."""
    remembered = dict.fromkeys(("spans", "moves", "traces", "labels", "agents", "sessions"), 1024)
    return start_service(
        {
            "receivers": {"otlp": {"protocols": LIMITS}},
            "identity": {"limits": remembered},
        }
    )


def test_garbage_beside_good_clients(limited: ServiceProcess) -> None:
    """
    Scenario: one client sends a request cut at every byte over both doors, while another sends
    good ones.
    Guarantees: each piece is refused for good, the good client is always accepted, and only its
    calls are counted and learned.
    """
    pieces = list(truncated())
    with (
        GoodClient(limited.http_port) as good,
        http_connection(limited.http_port) as connection,
        grpc_channel(limited.grpc_port) as channel,
    ):
        for piece in pieces:
            assert post(connection, piece) == 400, len(piece)
        for piece in pieces[::7]:
            assert grpc_export(channel, piece) is grpc.StatusCode.INVALID_ARGUMENT, len(piece)
    sent = good.check()
    assert limited.metric("tool_calls_total") == sent
    assert limited.metric("entities", scope="session") == 1
    assert limited.metric("detection_failures_total") == 0


def test_flipped_bytes_beside_good_clients(limited: ServiceProcess) -> None:
    """
    Scenario: one client sends requests with one byte changed, while another sends good ones.
    Guarantees: each is accepted or refused for good, never answered with a fault of ours.
    """
    with (
        GoodClient(limited.http_port) as good,
        http_connection(limited.http_port) as connection,
        grpc_channel(limited.grpc_port) as channel,
    ):
        for piece in flipped():
            answer, status = post(connection, piece), grpc_export(channel, piece)
            assert answer in {200, 400}
            assert status in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
            assert (status is grpc.StatusCode.OK) == (answer == 200)
    good.check()
    assert limited.metric("detection_failures_total") == 0


def test_bombs_beside_good_clients(limited: ServiceProcess) -> None:
    """
    Scenario: bodies over the limit, plain, and packed a thousand times smaller, over both doors;
    broken gzip; while another client sends good ones.
    Guarantees: all are refused for good, the good client is accepted, and resident memory grows by
    far less than one bomb holds.
    """
    process = psutil.Process(limited.pid)
    before = process.memory_info().rss
    packed = bomb(256 * MIB)
    torn = gzip.compress(victim())[:-9]
    with (
        GoodClient(limited.http_port) as good,
        grpc_channel(limited.grpc_port) as channel,
    ):
        for _ in range(3):
            assert http_export(limited.http_port, packed, headers=GZIPPED) == 413
            assert http_export(limited.http_port, torn, headers=GZIPPED) == 400
            for body, compression in ((2 * LIMIT, None), (64 * MIB, grpc.Compression.Gzip)):
                status = grpc_export(channel, bytes(body), compression=compression)
                assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert process.memory_info().rss - before < 64 * MIB
    good.check()
