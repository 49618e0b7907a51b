"""TLS at both doors: who is shown, who is asked for, and certificates that change while we run."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
import uvloop

from otel_anomaly.config import TlsServerConfig
from otel_anomaly.receivers.certificates import server_context
from tests.certificates import Certificates, make_certificates
from tests.door_rigs import (
    PROTOBUF,
    connect,
    grpc_channel,
    grpc_door,
    http_door,
    read_answer,
    request_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Pki(NamedTuple):
    """Two pairs of ours, one of a client that is known, one of a stranger."""

    first: Certificates
    second: Certificates
    client: Certificates
    stranger: Certificates


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folders = (tmp_path_factory.mktemp(name) for name in Pki._fields)
    return Pki(*(make_certificates(folder) for folder in folders))


def tls_of(folder: Path, pair: Certificates, **keys: Any) -> dict[str, Any]:
    """The block, with copies of the pair that a test may exchange."""
    exchange(folder, pair)
    files = {"cert_file": str(folder / "cert.pem"), "key_file": str(folder / "key.pem")}
    return {**files, **keys}


def exchange(folder: Path, pair: Certificates) -> None:
    shutil.copy(pair.cert, folder / "cert.pem")
    shutil.copy(pair.key, folder / "key.pem")


def client_context(server: Certificates, own: Certificates | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.ca))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


async def post(port: int, context: ssl.SSLContext) -> int | str:
    """The status of one request, or the name of what went wrong."""
    body = b"x" * 100_000
    head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="100000")
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
    except OSError as error:
        return type(error).__name__
    try:
        writer.write(head + body)
        return (await read_answer(reader)).status
    except (OSError, asyncio.IncompleteReadError) as error:
        return type(error).__name__
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def channel_credentials(
    server: Certificates, own: Certificates | None = None
) -> grpc.ChannelCredentials:
    key = own.key.read_bytes() if own is not None else None
    chain = own.cert.read_bytes() if own is not None else None
    return grpc.ssl_channel_credentials(server.ca.read_bytes(), key, chain)


async def export(port: int, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    async with grpc_channel(f"localhost:{port}", credentials) as channel:
        method = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        code = await channel.unary_unary(method)(b"x" * 100_000, timeout=20).code()
        assert isinstance(code, grpc.StatusCode)
        return code


async def comes_to(
    code: grpc.StatusCode, port: int, credentials: grpc.ChannelCredentials | None
) -> None:
    """Until that is the answer. A server that was replaced accepts for a moment, in a thread of
    grpcio; who meets it is told to come again."""
    async with asyncio.timeout(60):
        while await export(port, credentials) is not code:
            pass


@LOOPS
def test_http_over_tls(run: Callable[[Any], None], pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: a client that trusts us, one that trusts somebody else, one that speaks TLS 1.1 and
    one without TLS.
    Guarantees: the first is served, the others are not; the door goes on.
    """

    async def scenario() -> None:
        async with http_door(tls=tls_of(tmp_path, pki.first)) as rig:
            port = rig.door.port
            assert await post(port, client_context(pki.first)) == 200
            assert await post(port, client_context(pki.second)) == "SSLCertVerificationError"
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await rig.post(b"x")
            old = client_context(pki.first)
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                old.minimum_version = ssl.TLSVersion.TLSv1
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            assert isinstance(await post(port, old), str)
            assert await post(port, client_context(pki.first)) == 200

    run(scenario())


def test_http_refuses_the_older_version(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: a door from TLS 1.3 on; clients that speak it, and that do not.
    Guarantees: the second cannot shake hands.
    """

    async def scenario() -> None:
        async with http_door(tls=tls_of(tmp_path, pki.first, min_version="1.3")) as rig:
            assert await post(rig.door.port, client_context(pki.first)) == 200
            old = client_context(pki.first)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            assert isinstance(await post(rig.door.port, old), str)

    asyncio.run(scenario())


@LOOPS
def test_http_asks_for_a_certificate(run: Callable[[Any], None], pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: mutual TLS; a client with a known certificate, with a strange one, with none.
    Guarantees: only the first gets an answer; nothing of the others reaches the processor.
    """

    async def scenario() -> None:
        tls = tls_of(tmp_path, pki.first, client_ca_file=str(pki.client.ca))
        async with http_door(tls=tls) as rig:
            port = rig.door.port
            assert await post(port, client_context(pki.first, pki.client)) == 200
            assert isinstance(await post(port, client_context(pki.first, pki.stranger)), str)
            assert isinstance(await post(port, client_context(pki.first)), str)
            assert len(rig.consumer.batches) == 1

    run(scenario())


def test_grpc_over_tls(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: a client that trusts us, one that trusts somebody else, and one without TLS.
    Guarantees: the first is served, the others are not.
    """

    async def scenario() -> None:
        async with grpc_door(tls=tls_of(tmp_path, pki.first)) as rig:
            port = rig.door.port
            assert await export(port, channel_credentials(pki.first)) is grpc.StatusCode.OK
            assert await export(port, channel_credentials(pki.second)) is UNAVAILABLE
            assert await export(port, None) is UNAVAILABLE
            assert len(rig.consumer.batches) == 1

    asyncio.run(scenario())


UNAVAILABLE, OK = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK


def test_grpc_asks_for_a_certificate(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: mutual TLS; a client with a known certificate, with a strange one, with none.
    Guarantees: only the first gets in.
    """

    async def scenario() -> None:
        tls = tls_of(tmp_path, pki.first, client_ca_file=str(pki.client.ca))
        async with grpc_door(tls=tls) as rig:
            port = rig.door.port
            known = channel_credentials(pki.first, pki.client)
            assert await export(port, known) is grpc.StatusCode.OK
            strange = channel_credentials(pki.first, pki.stranger)
            assert await export(port, strange) is UNAVAILABLE
            assert await export(port, channel_credentials(pki.first)) is UNAVAILABLE
            assert len(rig.consumer.batches) == 1

    asyncio.run(scenario())


@LOOPS
def test_http_certificates_change(run: Callable[[Any], None], pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: the pair is exchanged; then only the certificate, which does not fit the key; then
    the key follows. A connection from before stays open throughout.
    Guarantees: new connections see the new pair; the half exchange leaves the old one, and is a
    problem until it is whole; the old connection goes on.
    """

    async def scenario() -> None:
        async with http_door(tls=tls_of(tmp_path, pki.first)) as rig:
            port, look = rig.door.port, rig.door._files.look
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client_context(pki.first), server_hostname="localhost"
            )
            exchange(tmp_path, pki.second)
            await look()
            assert await post(port, client_context(pki.second)) == 200
            assert await post(port, client_context(pki.first)) == "SSLCertVerificationError"
            shutil.copy(pki.first.cert, tmp_path / "cert.pem")
            await look()
            assert rig.door.problem is not None
            assert "cert.pem" in rig.door.problem
            assert await post(port, client_context(pki.second)) == 200
            shutil.copy(pki.first.key, tmp_path / "key.pem")
            await look()
            assert rig.door.problem is None
            assert await post(port, client_context(pki.first)) == 200
            writer.write(request_head("POST", "/v1/traces", content_type=PROTOBUF) + b"")
            assert (await read_answer(reader)).status == 200
            writer.close()

    run(scenario())


def test_grpc_certificates_change(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: the pair is exchanged, then broken, then exchanged back.
    Guarantees: new connections see the new pair; what is broken leaves the old one in place.
    """

    async def scenario() -> None:
        async with grpc_door(tls=tls_of(tmp_path, pki.first)) as rig:
            port, look = rig.door.port, rig.door._files.look
            first, second = channel_credentials(pki.first), channel_credentials(pki.second)
            assert await export(port, first) is grpc.StatusCode.OK
            exchange(tmp_path, pki.second)
            await look()
            assert await export(port, second) is grpc.StatusCode.OK
            assert await export(port, first) is UNAVAILABLE
            (tmp_path / "cert.pem").write_text("not a certificate")
            await look()
            assert rig.door.problem is not None
            assert await export(port, second) is grpc.StatusCode.OK
            exchange(tmp_path, pki.first)
            await look()
            assert rig.door.problem is None
            assert await export(port, first) is grpc.StatusCode.OK

    asyncio.run(scenario())


def test_doors_change_their_tls(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: both doors go from no TLS to TLS, to mutual TLS and back, by configuration; then to a
    pair that is not there.
    Guarantees: each step holds for new connections on the same port; what cannot be used raises
    and changes nothing.
    """
    plain = tls_of(tmp_path, pki.first)
    mutual = {**plain, "client_ca_file": str(pki.client.ca)}
    missing = {**plain, "key_file": str(tmp_path / "none.pem")}

    async def scenario() -> None:
        async with http_door() as web, grpc_door() as rpc:
            for tls in (plain, mutual, None, plain):
                change = {"tls": TlsServerConfig(**tls) if tls is not None else None}
                for door in (web.door, rpc.door):
                    await door.reconfigure(door._config.model_copy(update=change))
                own = pki.client if tls is mutual else None
                if tls is None:
                    assert (await web.post(b"x")).status == 200
                    await comes_to(OK, rpc.door.port, None)
                    continue
                assert await post(web.door.port, client_context(pki.first, own)) == 200
                known = channel_credentials(pki.first, own)
                await comes_to(OK, rpc.door.port, known)
                if tls is mutual:
                    stranger = channel_credentials(pki.first, pki.stranger)
                    await comes_to(UNAVAILABLE, rpc.door.port, stranger)
            for door in (web.door, rpc.door):
                wrong = door._config.model_copy(update={"tls": TlsServerConfig(**missing)})
                with pytest.raises(ValueError, match=r"none\.pem"):
                    await door.reconfigure(wrong)
            assert await post(web.door.port, client_context(pki.first)) == 200
            known = channel_credentials(pki.first)
            await comes_to(OK, rpc.door.port, known)

    asyncio.run(scenario())


def test_new_handshakes_have_the_new_time(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: the time for headers changes at a door with TLS, where it is for handshakes too.
    Guarantees: a client that says nothing is cut off by the new time.
    """

    async def scenario() -> None:
        tls = TlsServerConfig(**tls_of(tmp_path, pki.first))
        async with http_door(tls=tls, read_header_timeout="1h") as rig:
            change = {"read_header_timeout": 50_000_000}
            await rig.door.reconfigure(rig.door._config.model_copy(update=change))
            async with connect(rig.door.port) as (reader, _), asyncio.timeout(60):
                assert await reader.read() == b""

    asyncio.run(scenario())


def test_grpc_certificate_stays_when_the_limits_cannot_change(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a configuration brings another pair and another limit, for which grpcio needs a second
    server; the system has no socket for it.
    Guarantees: it is refused, and new connections see the pair of before.
    """
    other = tmp_path / "other"
    other.mkdir()

    async def scenario() -> None:
        async with grpc_door(tls=tls_of(tmp_path, pki.first)) as rig:
            before = rig.door._config
            change = {"tls": TlsServerConfig(**tls_of(other, pki.second)), "max_header_size": 9000}

            def no_socket(*_: object) -> int:
                raise RuntimeError("too many open files")

            monkeypatch.setattr(rig.door, "_bind", no_socket)
            with pytest.raises(ValueError, match="too many open files"):
                await rig.door.reconfigure(before.model_copy(update=change))
            assert await export(rig.door.port, channel_credentials(pki.second)) is UNAVAILABLE
            known = channel_credentials(pki.first)
            assert await export(rig.door.port, known) is grpc.StatusCode.OK

    asyncio.run(scenario())


def test_pairs_that_cannot_be_used(pki: Pki, tmp_path: Path) -> None:
    """
    Scenario: a missing file, one that is not PEM, a key of another certificate, a key with a
    password, authorities that are none.
    Guarantees: ValueError that names the files; nobody is asked for a password at the terminal.
    """
    locked = tmp_path / "locked.pem"
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    text = tmp_path / "text.pem"
    text.write_text("hello")
    good = {"cert_file": str(pki.first.cert), "key_file": str(pki.first.key)}
    for wrong in (
        {"key_file": str(tmp_path / "none.pem")},
        {"cert_file": str(text)},
        {"key_file": str(pki.second.key)},
        {"key_file": str(locked)},
        {"client_ca_file": str(text)},
        {"client_ca_file": str(tmp_path / "none.pem")},
    ):
        with pytest.raises(ValueError, match="tls: cannot use") as caught:
            server_context(TlsServerConfig(**{**good, **wrong}))
        assert next(iter(wrong.values())) in str(caught.value)
