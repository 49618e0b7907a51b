"""The gRPC exporter against a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as Detail
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_anomaly import __version__
from otel_anomaly.config import OtlpGrpcExporterConfig
from otel_anomaly.exporters.contract import SENT, Kind
from otel_anomaly.exporters.grpc import (
    METHOD_OF,
    NOT_ABOUT_DATA,
    RETRYABLE,
    GrpcExporter,
    target_of,
)
from otel_anomaly.handoff import Signal
from tests.certificates import Certificates, make_certificates
from tests.door_rigs import until
from tests.exporters_world import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

Code = grpc.StatusCode
PERMANENT = [code for code in Code if code not in RETRYABLE | {Code.OK, Code.RESOURCE_EXHAUSTED}]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """PEM files of a private authority."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


class Hop(grpc.GenericRpcHandler):
    """A next hop that answers what it is told to, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Any], Awaitable[bytes]] | None = None) -> None:
        self.answer = answer
        self.calls: list[tuple[str, bytes, dict[str, str]]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def handle(body: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata())
            self.calls.append((handler_call_details.method, body, metadata))
            return await self.answer(context) if self.answer else b""

        return grpc.unary_unary_rpc_method_handler(handle)


@asynccontextmanager
async def serving(
    hop: Hop, *, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """The next hop at a port."""
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(handlers=[hop], options=options)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def exporting(port: int, **keys: Any) -> AsyncIterator[GrpcExporter]:
    """An exporter towards it, without TLS unless told otherwise."""
    keys = {"tls": {"insecure": True}, "endpoint": f"127.0.0.1:{port}", **keys}
    exporter = GrpcExporter(OtlpGrpcExporterConfig.model_validate(keys))
    await exporter.start()
    try:
        yield exporter
    finally:
        await exporter.close()


def refusing(code: Code, message: str = "", **trailing: bytes) -> Callable[[Any], Awaitable[bytes]]:
    """An answer with a status; keywords are trailing metadata, `_` for `-`."""

    async def answer(context: Any) -> bytes:
        metadata = tuple((key.replace("_", "-"), value) for key, value in trailing.items())
        await context.abort(code, message, metadata)
        raise AssertionError

    return answer


def details(delay_s: int) -> bytes:
    """Status details with a RetryInfo."""
    detail = Detail()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=delay_s)))
    return Status(code=8, details=[detail]).SerializeToString()


def send_once(hop: Hop, body: bytes = b"body", **keys: Any) -> Any:
    """The result of one attempt."""

    async def main() -> Any:
        async with serving(hop) as port, exporting(port, **keys) as exporter:
            return await exporter.send(body, Signal.TRACES, 1)

    return asyncio.run(main())


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_bytes_arrive_as_they_are(compression: str) -> None:
    """
    Scenario: each signal once, with a header of the user, compressed and not, 8 MiB among them.
    Guarantees: method, bytes, header and user agent as promised; the result is success.
    """
    hop = Hop()
    bodies = {Signal.TRACES: b"t" * (8 << 20), Signal.METRICS: b"\xff\x00", Signal.LOGS: b""}

    async def main() -> None:
        keys = {"compression": compression, "headers": {"X-Scope": "a b"}}
        async with serving(hop) as port, exporting(port, **keys) as exporter:
            for signal, body in bodies.items():
                assert await exporter.send(body, signal, 1) == SENT

    asyncio.run(main())
    assert [(method, body) for method, body, _ in hop.calls] == [
        (METHOD_OF[signal], body) for signal, body in bodies.items()
    ]
    for _, _, metadata in hop.calls:
        assert metadata["x-scope"] == "a b"
        assert metadata["user-agent"].startswith(f"otel-anomaly/{__version__} ")


@pytest.mark.parametrize("code", sorted(RETRYABLE, key=str), ids=lambda code: code.name)
def test_retryable_codes(code: Code) -> None:
    """
    Scenario: each code that OTLP calls retryable.
    Guarantees: retried, without a hint; the message names the code.
    """
    result = send_once(Hop(refusing(code, "why")))
    assert (result.kind, result.retry_after_s) == (Kind.RETRY, None)
    assert result.message == f"{code.name}: why"


@pytest.mark.parametrize("code", PERMANENT, ids=lambda code: code.name)
def test_permanent_codes(code: Code) -> None:
    """
    Scenario: each code that OTLP calls final.
    Guarantees: rejected; its parts are worth an attempt only if the code is about the data.
    """
    result = send_once(Hop(refusing(code, "why")))
    assert (result.kind, result.message) == (Kind.REJECTED, f"{code.name}: why")
    assert result.about_data == (code not in NOT_ABOUT_DATA)


def test_exhausted_is_retried_only_with_a_hint() -> None:
    """
    Scenario: RESOURCE_EXHAUSTED with RetryInfo, without, with details that cannot be read.
    Guarantees: retried after the hint; the others rejected.
    """
    code = Code.RESOURCE_EXHAUSTED
    hinted = send_once(Hop(refusing(code, other_bin=b"x", grpc_status_details_bin=details(3))))
    assert (hinted.kind, hinted.retry_after_s) == (Kind.RETRY, 3.0)
    assert send_once(Hop(refusing(code))).kind is Kind.REJECTED
    broken = send_once(Hop(refusing(code, grpc_status_details_bin=b"\xff\xff")))
    assert broken.kind is Kind.REJECTED


def test_a_hint_is_read_with_any_retryable_code() -> None:
    """
    Scenario: UNAVAILABLE with RetryInfo, as an overloaded server sends it.
    Guarantees: the hint arrives.
    """
    answer = refusing(Code.UNAVAILABLE, grpc_status_details_bin=details(7))
    assert send_once(Hop(answer)).retry_after_s == 7.0


def test_partial_success_is_success() -> None:
    """
    Scenario: the next hop left two spans out and says why.
    Guarantees: sent, with number and message.
    """

    async def answer(_: Any) -> bytes:
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = 2
        response.partial_success.error_message = "no room"
        return response.SerializeToString()

    result = send_once(Hop(answer))
    assert (result.kind, result.rejected, result.message) == (Kind.SENT, 2, "no room")


def test_an_oversized_response_is_final() -> None:
    """
    Scenario: a response of 5 MiB; a server that finds our request too large, in the same words.
    Guarantees: not retried; the first was a success, so it counts as sent, the second does not.
    """

    async def answer(_: Any) -> bytes:
        return b"\0" * (5 << 20)

    assert send_once(Hop(answer)).kind is Kind.SENT
    words = "SERVER: Received message larger than max (5242880 vs. 4194304)"
    assert send_once(Hop(refusing(Code.RESOURCE_EXHAUSTED, words))).kind is Kind.REJECTED


def test_the_deadline_is_kept() -> None:
    """
    Scenario: a next hop that never answers; 50 ms are given.
    Guarantees: retried.
    """

    async def answer(_: Any) -> bytes:
        await asyncio.sleep(30)
        return b""

    result = send_once(Hop(answer), timeout="50ms")
    assert result.kind is Kind.RETRY
    assert result.message.startswith("DEADLINE_EXCEEDED")


def test_away_and_back() -> None:
    """
    Scenario: nobody listens, then the next hop comes up at that port, goes without a word during a
    call, and comes back.
    Guarantees: retryable while it is away, sent over the same channel once it is there.
    """
    gone = asyncio.Event()

    async def vanish(_: Any) -> bytes:
        gone.set()
        await asyncio.sleep(30)
        return b""

    async def until_sent(exporter: GrpcExporter) -> None:
        for _ in range(200):
            result = await exporter.send(b"x", Signal.TRACES, 1)
            if result == SENT:
                return
            assert result.kind is Kind.RETRY
            await asyncio.sleep(0.05)
        raise AssertionError(result)

    async def main() -> None:
        async with serving(Hop()) as port:
            pass
        async with exporting(port) as exporter:
            assert (await exporter.send(b"x", Signal.TRACES, 1)).kind is Kind.RETRY
            async with serving(Hop(), port=port):
                await until_sent(exporter)
            async with serving(Hop(vanish), port=port):
                heard = asyncio.create_task(gone.wait())
                while not gone.is_set():  # The channel may not know yet that it must reconnect.
                    call = asyncio.create_task(exporter.send(b"x", Signal.TRACES, 1))
                    await asyncio.wait((call, heard), return_when=asyncio.FIRST_COMPLETED)
            assert (await call).kind is Kind.RETRY
            async with serving(Hop(), port=port):
                await until_sent(exporter)

    asyncio.run(main())


async def never(_: Any) -> bytes:
    """An answer that does not come."""
    await asyncio.Event().wait()
    raise AssertionError


def test_a_slow_next_hop_is_not_heaped_with_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: three rounds of four calls at once, of which none is ever answered.
    Guarantees: at most one new channel a round, and the connections left are closed meanwhile.
    """
    channels = []
    make = grpc.aio.insecure_channel

    def noted(*args: Any, **settings: Any) -> grpc.aio.Channel:
        channels.append(make(*args, **settings))
        return channels[-1]

    monkeypatch.setattr(grpc.aio, "insecure_channel", noted)

    async def main() -> None:
        async with serving(Hop(never)) as hop_port:
            relay = Relay(hop_port)
            async with relay.serving() as port, exporting(port, timeout="300ms") as exporter:
                for _ in range(3):
                    calls = [exporter.send(b"x", Signal.TRACES, 1) for _ in range(4)]
                    results = await asyncio.gather(*calls)
                    assert {result.kind for result in results} == {Kind.RETRY}
                await until(lambda: relay.open <= 1)
                assert relay.made <= 3
        assert len(channels) <= 1 + 3

    asyncio.run(main())


def test_exporters_share_no_connection() -> None:
    """
    Scenario: two exporters with the same settings, as when one takes over from the other.
    Guarantees: a connection each, so that a dead one is not inherited.
    """

    async def main() -> None:
        async with serving(Hop()) as hop_port:
            relay = Relay(hop_port)
            async with (
                relay.serving() as port,
                exporting(port) as one,
                exporting(port) as other,
            ):
                for exporter in (one, other):
                    assert await exporter.send(b"x", Signal.TRACES, 1) == SENT
                assert relay.made == 2

    asyncio.run(main())


def test_a_connection_that_takes_its_time_is_waited_for() -> None:
    """
    Scenario: setting up the connection takes longer than two calls may.
    Guarantees: the second call waits for the same connection, and a later one is sent over it.
    """

    async def main() -> None:
        async with serving(Hop()) as hop_port:
            relay = Relay(hop_port)
            relay.gate = asyncio.Event()
            async with relay.serving() as port, exporting(port, timeout="500ms") as exporter:
                for _ in range(2):
                    assert (await exporter.send(b"x", Signal.TRACES, 1)).kind is Kind.RETRY
                await until(lambda: relay.made > 0)
                assert relay.made == 1
                relay.gate.set()
                while await exporter.send(b"x", Signal.TRACES, 1) != SENT:
                    pass

    asyncio.run(main())


def test_a_connection_that_answers_is_kept() -> None:
    """
    Scenario: a call is not answered in time while another is; then the next hop itself says
    DEADLINE_EXCEEDED.
    Guarantees: one connection for all of them.
    """
    entered = asyncio.Event()

    async def answer(_: Any) -> bytes:
        body = hop.calls[-1][1]
        if body == b"slow":
            entered.set()
            return await never(None)
        return await refusal(_) if body == b"refused" else b""

    hop = Hop(answer)
    refusal = refusing(Code.DEADLINE_EXCEEDED, "context deadline exceeded")

    async def main() -> None:
        async with serving(hop) as hop_port:
            relay = Relay(hop_port)
            async with relay.serving() as port, exporting(port, timeout="3s") as exporter:
                slow = asyncio.create_task(exporter.send(b"slow", Signal.TRACES, 1))
                await entered.wait()
                assert await exporter.send(b"quick", Signal.TRACES, 1) == SENT
                assert (await slow).kind is Kind.RETRY
                refused = await exporter.send(b"refused", Signal.TRACES, 1)
                assert refused.kind is Kind.RETRY
                assert await exporter.send(b"quick", Signal.TRACES, 1) == SENT
                assert relay.made == 1

    asyncio.run(main())


def test_mutual_tls(certificates: Certificates) -> None:
    """
    Scenario: a next hop with a certificate of a private authority that wants one from us too.
    Guarantees: reached with the three files; not with `ca_file` alone, which is retryable.
    """
    files = certificates
    credentials = grpc.ssl_server_credentials(
        [(files.key.read_bytes(), files.cert.read_bytes())],
        root_certificates=files.ca.read_bytes(),
        require_client_auth=True,
    )
    known = {"ca_file": str(files.ca)}
    ours = {**known, "cert_file": str(files.cert), "key_file": str(files.key)}

    async def main() -> None:
        async with serving(Hop(), credentials=credentials) as port:
            endpoint = f"https://localhost:{port}"
            async with exporting(port, endpoint=endpoint, tls=ours) as exporter:
                assert await exporter.send(b"x", Signal.TRACES, 1) == SENT
            async with exporting(port, endpoint=endpoint, tls=known) as exporter:
                assert (await exporter.send(b"x", Signal.TRACES, 1)).kind is Kind.RETRY

    asyncio.run(main())


@pytest.mark.parametrize("content", [None, b"not a certificate"])
def test_a_bad_certificate_is_told_at_start(tmp_path: Path, content: bytes | None) -> None:
    """
    Scenario: `ca_file` is missing, or is something else.
    Guarantees: start fails and names the key and the file.
    """
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    async def main() -> None:
        async with exporting(1, tls={"ca_file": str(path)}):
            raise AssertionError

    with pytest.raises(OSError, match=r"tls\.ca_file .*ca\.pem"):
        asyncio.run(main())


def test_a_scheme_decides_over_insecure() -> None:
    """
    Scenario: endpoints with and without a scheme, `tls.insecure` both ways.
    Guarantees: http is plain, https is TLS, without a scheme the key decides.
    """
    assert target_of("https://a:1/", insecure=True) == ("a:1", True)
    assert target_of("http://a:1", insecure=False) == ("a:1", False)
    assert target_of("a:1", insecure=True) == ("a:1", False)
    assert target_of("[::1]:1", insecure=False) == ("[::1]:1", True)
    assert target_of("dns:///a:1", insecure=False) == ("dns:///a:1", True)


def test_headers_that_grpc_cannot_send() -> None:
    """
    Scenario: a name that HTTP allows and gRPC does not, and one that gRPC takes for binary.
    Guarantees: refused when the exporter is built.
    """
    for name in ("x~y", "token-bin"):
        config = OtlpGrpcExporterConfig(endpoint="a:1")
        config.headers[name] = "secret"  # The model refuses it first.
        with pytest.raises(ValueError, match=name) as caught:
            GrpcExporter(config)
        assert "secret" not in str(caught.value)


def test_gzip_makes_requests_smaller() -> None:
    """
    Scenario: a request that repeats itself goes through a relay that counts bytes, as gzip and not.
    Guarantees: gzip is on the wire only when it is asked for.
    """
    body = b"tool call " * 20_000

    async def counted(compression: str) -> int:
        seen = 0
        tasks: set[asyncio.Task[None]] = set()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)

            async def pump(
                source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: int
            ) -> None:
                nonlocal seen
                while chunk := await source.read(1 << 16):
                    seen += up * len(chunk)
                    sink.write(chunk)
                sink.close()

            pumps = (pump(reader, back_writer, 1), pump(back_reader, writer, 0))
            tasks.update(asyncio.ensure_future(one) for one in pumps)

        async with serving(Hop()) as port:
            relaying = await asyncio.start_server(relay, "127.0.0.1", 0)
            relay_port = relaying.sockets[0].getsockname()[1]
            async with exporting(relay_port, compression=compression) as exporter:
                assert await exporter.send(body, Signal.TRACES, 1) == SENT
            relaying.close()
            await relaying.wait_closed()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seen

    assert asyncio.run(counted("gzip")) < len(gzip.compress(body)) + 5000
    assert asyncio.run(counted("none")) > len(body)


def test_headers_are_not_repeated() -> None:
    """
    Scenario: the next hop quotes the token it was shown in its refusal.
    Guarantees: the message has a star for it, and its other words.
    """

    async def main() -> str:
        hop = Hop(refusing(Code.UNAUTHENTICATED, "token t0ken-0fff-usss has expired"))
        async with (
            serving(hop) as port,
            exporting(port, headers={"authorization": "Bearer t0ken-0fff-usss"}) as exporter,
        ):
            return (await exporter.send(b"x", Signal.TRACES, 1)).message

    assert asyncio.run(main()) == "UNAUTHENTICATED: token *-*-* has expired"
