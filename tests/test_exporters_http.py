"""The HTTP exporter against a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_anomaly import __version__
from otel_anomaly.config import OtlpHttpExporterConfig
from otel_anomaly.exporters.contract import SENT, Kind, SendResult
from otel_anomaly.exporters.http import INLINE_BYTES_MAX, PLAIN_BYTES_MAX, HttpExporter
from otel_anomaly.exporters.response import RESPONSE_BYTES_MAX
from otel_anomaly.handoff import Signal
from tests.certificates import Certificates, lock, make_certificates
from tests.exporters_world import FixedClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

RETRIED = (429, 502, 503, 504)
ABOUT_DATA = (400, 413, 422, 500)
ALIKE = (300, 301, 304, 307, 401, 403, 404, 405, 408, 415, 501, 505, 599)


class Call(NamedTuple):
    """What the next hop was asked."""

    path: str
    body: bytes
    headers: dict[str, str]


class Hop:
    """A next hop that answers what it is told to, and remembers what it was asked."""

    def __init__(
        self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] | None = None
    ) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self.connections: set[object] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.connections.add(request.transport)
        # Inflated by aiohttp; `request.read` would stop at a megabyte.
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        self.calls.append(Call(request.path, body, dict(request.headers)))
        return await self.answer(request) if self.answer else web.Response()


@asynccontextmanager
async def serving(
    hop: Hop, *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The next hop at a port."""
    server = web.Server(hop.handle, handler_cancellation=True)  # type: ignore[arg-type]
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def exporting(port: int, **keys: Any) -> AsyncIterator[HttpExporter]:
    """An exporter towards it."""
    keys = {"endpoint": f"http://127.0.0.1:{port}", **keys}
    exporter = HttpExporter(OtlpHttpExporterConfig.model_validate(keys), FixedClock())
    await exporter.start()
    try:
        yield exporter
    finally:
        await exporter.close()


def send_once(hop: Hop, signal: Signal = Signal.TRACES, **keys: Any) -> SendResult:
    """The result of one attempt."""

    async def main() -> SendResult:
        async with serving(hop) as port, exporting(port, **keys) as exporter:
            return await exporter.send(b"body", signal, 1)

    return asyncio.run(main())


def answering(
    status: int, body: bytes = b"", **headers: str
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """An answer with a status; keywords are headers, `_` for `-`."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return answer


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_bytes_arrive_as_they_are(compression: str) -> None:
    """
    Scenario: each signal, with bodies below and above every size at which the way changes, and a
    header of the user.
    Guarantees: path, bytes and headers as promised, over one connection that stays open.
    """
    hop = Hop()
    sizes = {
        Signal.TRACES: PLAIN_BYTES_MAX + 1,
        Signal.METRICS: INLINE_BYTES_MAX + 1,
        Signal.LOGS: 0,
    }
    bodies = {signal: b"\xff" * size for signal, size in sizes.items()}

    async def main() -> None:
        keys = {"compression": compression, "headers": {"X-Scope": "a b"}}
        async with serving(hop) as port, exporting(port, **keys) as exporter:
            for signal, body in bodies.items():
                assert await exporter.send(body, signal, 1) == SENT

    asyncio.run(main())
    paths = [f"/v1/{signal.value}" for signal in bodies]
    assert [(call.path, call.body) for call in hop.calls] == list(
        zip(paths, bodies.values(), strict=True)
    )
    for call in hop.calls:
        assert call.headers["x-scope"] == "a b"
        assert call.headers["Content-Type"] == "application/x-protobuf"
        assert call.headers.get("Content-Encoding", "none") == compression
        assert call.headers["User-Agent"].startswith(f"otel-anomaly/{__version__} ")
    assert len(hop.connections) == 1


def test_the_base_path_is_kept() -> None:
    """
    Scenario: an endpoint with a path and a slash behind it.
    Guarantees: `/v1/...` is appended to it.
    """
    hop = Hop()

    async def main() -> None:
        async with serving(hop) as port:
            endpoint = f"http://127.0.0.1:{port}/otlp/"
            async with exporting(port, endpoint=endpoint) as exporter:
                await exporter.send(b"", Signal.LOGS, 1)

    asyncio.run(main())
    assert hop.calls[0].path == "/otlp/v1/logs"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
def test_success(status: int) -> None:
    """
    Scenario: the statuses that servers use for success.
    Guarantees: sent.
    """
    assert send_once(Hop(answering(status))) == SENT


@pytest.mark.parametrize("status", RETRIED)
@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("12", 12.0), ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0), ("soon", None)],
)
def test_retried_statuses(status: int, header: str | None, seconds: float | None) -> None:
    """
    Scenario: each status that may be retried, with Retry-After in both forms, broken, and none.
    Guarantees: retried, with the hint in seconds.
    """
    headers = {} if header is None else {"Retry_After": header}
    result = send_once(Hop(answering(status, **headers)))
    assert (result.kind, result.retry_after_s) == (Kind.RETRY, seconds)


@pytest.mark.parametrize("status", [*ABOUT_DATA, *ALIKE])
def test_permanent_statuses(status: int) -> None:
    """
    Scenario: all other statuses, redirects among them, with a Status body and a Retry-After.
    Guarantees: never retried, never followed; the message is in the result; parts are worth an
    attempt only where the bytes may be to blame.
    """
    empty = status == 304
    body = b"" if empty else Status(message="why").SerializeToString()
    hop = Hop(answering(status, body, Location="/elsewhere", Retry_After="1"))
    result = send_once(hop)
    expected = Kind.TOO_LARGE if status == 413 else Kind.REJECTED
    assert (result.kind, result.about_data) == (expected, status in ABOUT_DATA)
    assert result.message == (f"status {status}" if empty else f"status {status} why")
    assert len(hop.calls) == 1


def test_partial_success_is_success() -> None:
    """
    Scenario: the next hop left three log records out and says why.
    Guarantees: sent, with number and message.
    """
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = 3
    response.partial_success.error_message = "no room"
    result = send_once(Hop(answering(200, response.SerializeToString())), Signal.LOGS)
    assert (result.kind, result.rejected, result.message) == (Kind.SENT, 3, "no room")


@pytest.mark.parametrize(("status", "kind"), [(200, Kind.SENT), (503, Kind.REJECTED)])
def test_an_oversized_response_is_final(status: int, kind: Kind) -> None:
    """
    Scenario: an endless response, and how much of it was taken from the server.
    Guarantees: not retried, and reading stopped: the server cannot write it all. After a success
    the data counts as sent: that is what the status says.
    """
    written = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        try:
            while written < 64 << 20:
                await response.write(b"\0" * (1 << 16))
                written += 1 << 16
        except OSError:
            pass
        return response

    result = send_once(Hop(answer))
    assert (result.kind, result.about_data) == (kind, kind is Kind.SENT)
    assert "over 4194304 bytes" in result.message
    assert RESPONSE_BYTES_MAX <= written < 64 << 20


def test_a_compressed_response_is_not_inflated() -> None:
    """
    Scenario: 64 MiB of zeros behind gzip, though we did not ask for it.
    Guarantees: the status counts, what cannot be read is not a partial success.
    """
    bomb = gzip.compress(b"\0" * (64 << 20))
    hop = Hop(answering(200, bomb, Content_Encoding="gzip"))
    result = send_once(hop)
    assert (result.kind, result.rejected) == (Kind.SENT, 0)
    assert hop.calls[0].headers["Accept-Encoding"] == "identity"


def test_the_deadline_is_kept() -> None:
    """
    Scenario: a next hop that never answers; 50 ms are given.
    Guarantees: retried.
    """

    async def silent(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    assert send_once(Hop(silent), timeout="50ms").kind is Kind.RETRY


@pytest.mark.parametrize("ends", ["never", "broken"])
@pytest.mark.parametrize(
    ("status", "kind"), [(200, Kind.SENT), (503, Kind.RETRY), (400, Kind.REJECTED)]
)
def test_the_status_decides_when_the_body_does_not_come(status: int, kind: Kind, ends: str) -> None:
    """
    Scenario: a status, then a body that never ends, or whose line breaks in the middle.
    Guarantees: what the status says: after a success the data was taken, and sending it again
    would double it.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"x")
        if ends == "broken" and request.transport is not None:
            request.transport.close()
        else:
            await asyncio.sleep(30)
        return response

    assert send_once(Hop(answer), timeout="2s").kind is kind


def test_away_and_back() -> None:
    """
    Scenario: nobody listens, then the next hop comes up at that port, hangs up without a word on a
    connection that had worked, and answers again.
    Guarantees: retryable, sent, retryable, sent; the very same exporter.
    """
    script = [False, True, False]

    async def moody(request: web.BaseRequest) -> web.StreamResponse:
        if script.pop(0) and request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def main() -> None:
        async with serving(Hop()) as port:
            pass
        async with exporting(port) as exporter:
            kinds = [(await exporter.send(b"x", Signal.TRACES, 1)).kind]
            async with serving(Hop(moody), port=port):
                while script:
                    kinds.append((await exporter.send(b"x", Signal.TRACES, 1)).kind)
        assert kinds == [Kind.RETRY, Kind.SENT, Kind.RETRY, Kind.SENT]

    asyncio.run(main())


@pytest.mark.parametrize("noise", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 99])
def test_something_else_at_the_port(noise: bytes) -> None:
    """
    Scenario: what listens there speaks another protocol, or closes at once.
    Guarantees: retried: it is the wrong one now, perhaps not for long.
    """

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(noise)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        async with exporting(server.sockets[0].getsockname()[1]) as exporter:
            assert (await exporter.send(b"x", Signal.TRACES, 1)).kind is Kind.RETRY
        server.close()
        await server.wait_closed()

    asyncio.run(main())


def test_mutual_tls(tmp_path: Path) -> None:
    """
    Scenario: a next hop with a certificate of a private authority that wants one from us too.
    Guarantees: reached with the three files; without `ca_file`, or without ours, it is not, which
    is retryable: certificates are renewed.
    """
    files: Certificates = make_certificates(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.ca))
    tls.load_cert_chain(files.cert, files.key)
    tls.verify_mode = ssl.CERT_REQUIRED
    ours = {"cert_file": str(files.cert), "key_file": str(files.key)}
    known = {"ca_file": str(files.ca)}

    async def main() -> None:
        async with serving(Hop(), tls=tls) as port:
            endpoint = f"https://localhost:{port}"
            kinds = []
            for keys in ({**known, **ours}, known, ours):
                async with exporting(port, endpoint=endpoint, tls=keys) as exporter:
                    kinds.append((await exporter.send(b"x", Signal.TRACES, 1)).kind)
            assert kinds == [Kind.SENT, Kind.RETRY, Kind.RETRY]

    asyncio.run(main())


def test_a_bad_certificate_is_told_at_start(tmp_path: Path) -> None:
    """
    Scenario: the key file is missing.
    Guarantees: start fails and names the key and the file.
    """
    files = make_certificates(tmp_path)
    keys = {"cert_file": str(files.cert), "key_file": str(tmp_path / "gone.pem")}

    async def main() -> None:
        async with exporting(1, endpoint="https://localhost:1", tls=keys):
            raise AssertionError

    with pytest.raises(OSError, match=r"tls\.key_file .*gone\.pem"):
        asyncio.run(main())


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    """
    Scenario: the client key is locked with a password.
    Guarantees: start fails, names the file and says why; nobody is asked at the terminal.
    """
    files = make_certificates(tmp_path)
    keys = {"cert_file": str(files.cert), "key_file": str(lock(files.key, "s3cret"))}
    asked = (
        "import sys\n"
        "from otel_anomaly.config.exporters import TlsClientConfig\n"
        "from otel_anomaly.exporters.tls import client_context\n"
        "client_context(TlsClientConfig(cert_file=sys.argv[1], key_file=sys.argv[2]))\n"
    )
    # A process of its own: it has no terminal, whoever runs the tests may have one.
    done = subprocess.run(
        [sys.executable, "-c", asked, *keys.values()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert "locked.pem" in done.stderr
    assert "with a password" in done.stderr
    assert "Enter PEM" not in done.stdout + done.stderr


def test_no_certificates_in_the_clear(tmp_path: Path) -> None:
    """
    Scenario: an `http://` next hop, and certificates, meant for others, that do not exist; then
    one signal over `https://`.
    Guarantees: it is reached; with https the file is told at start.
    """
    keys = {"ca_file": str(tmp_path / "gone.pem")}

    async def main() -> None:
        async with serving(Hop()) as port:
            async with exporting(port, tls=keys) as exporter:
                assert await exporter.send(b"x", Signal.TRACES, 1) == SENT
            logs = f"https://localhost:{port}"
            with pytest.raises(OSError, match=r"tls\.ca_file .*gone\.pem"):
                async with exporting(port, tls=keys, logs_endpoint=logs):
                    pass

    asyncio.run(main())


def test_headers_are_not_repeated() -> None:
    """
    Scenario: the next hop quotes the key it was shown in its refusal, and where it keeps less than
    all; then without headers.
    Guarantees: the message has a star for the key, and its other words; without headers all of it.
    """
    said = "invalid API key 'k3y-0f-us'"
    refusal = Status(message=said).SerializeToString()
    partial = ExportLogsServiceResponse()
    partial.partial_success.rejected_log_records = 1
    partial.partial_success.error_message = said
    for status, content in ((401, refusal), (200, partial.SerializeToString())):
        hop = Hop(answering(status, content, Content_Type="application/x-protobuf"))
        result = send_once(hop, Signal.LOGS, headers={"x-api-key": "k3y-0f-us"})
        assert "invalid" in result.message
        assert "k3y" not in result.message
        assert said in send_once(hop, Signal.LOGS).message


@pytest.mark.parametrize(
    ("user", "headers"),
    [
        ("alice:s3cr%40t0p%2Bw0rd@", {}),
        ("", {"Authorization": "Basic YWxpY2U6czNjckB0MHArdzByZA=="}),
        ("", {"authorization": "basic  YWxpY2U6czNjckB0MHArdzByZA=="}),
    ],
)
def test_credentials_are_not_repeated(user: str, headers: dict[str, str]) -> None:
    """
    Scenario: a user and a password stand in the URL, or encoded in a header; the next hop quotes
    them as they were written, decoded, and as they were sent.
    Guarantees: a star for each; the name of the host stays.
    """
    said = f"'alice' s3cr@t0p+w0rd {user} Basic YWxpY2U6czNjckB0MHArdzByZA== at localhost"
    refusal = Status(message=said).SerializeToString()
    seen: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers["Authorization"].split()[-1])
        return web.Response(status=401, body=refusal, content_type="application/x-protobuf")

    async def main() -> str:
        async with serving(Hop(answer)) as port:
            endpoint = f"http://{user}127.0.0.1:{port}"
            async with exporting(port, endpoint=endpoint, headers=headers) as exporter:
                return (await exporter.send(b"", Signal.TRACES, 1)).message

    said = asyncio.run(main())
    assert seen == ["YWxpY2U6czNjckB0MHArdzByZA=="]
    for secret in ("alice", "s3cr", "t0p", "w0rd", "YWxpY2"):
        assert secret not in said
    assert said.startswith("status 401 '*' ")
    assert said.endswith(" at localhost")
