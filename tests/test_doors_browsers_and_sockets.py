"""Two other ways in: pages in browsers (CORS), and unix sockets at both doors."""

from __future__ import annotations

import asyncio
import socket
import stat
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
import uvloop

from otel_anomaly.config import GrpcReceiverConfig, HttpReceiverConfig
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import (
    PROTOBUF,
    TRACE_SERVICE,
    Consumer,
    StandingClock,
    http_door,
    read_answer,
    request_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = "https://app.example.com"
RULES: dict[str, Any] = {
    "allowed_origins": [APP, "https://*.corp.example", "http://localhost:*"],
    "allowed_headers": ["X-Team"],
    "max_age": 600,
}
AUTH: dict[str, Any] = {"bearer": {"tokens": ["a-good-token"]}}
DOORS = (HttpReceiver, GrpcReceiver)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (APP, True),
        ("HTTPS://App.example.com", True),
        ("https://a.corp.example", True),
        ("https://a.b.corp.example", True),
        ("http://localhost:3000", True),
        ("https://app.example.com.evil.example", False),
        ("https://evil.example/https://a.corp.example", False),
        ("https://corp.example", False),
        ("http://app.example.com", False),
        ("null", False),
        ("https://a.corp.example\u00e9", False),
        ("https://" + "a" * 5000 + ".corp.example", False),
    ],
)
def test_preflight(origin: str, allowed: bool) -> None:  # noqa: FBT001
    """
    Scenario: a browser asks for pages of several origins, at a door that wants a token.
    Guarantees: asked without one, answered 204; only origins that are named get the headers that
    allow, their own name among them; what is allowed is POST and the headers that are listed.
    """

    async def scenario() -> None:
        async with http_door(cors=RULES, auth=AUTH) as rig:
            asked = {"origin": origin, "access_control_request_method": "POST"}
            answer = await rig.send(request_head("OPTIONS", "/v1/traces", **asked))
            assert (answer.status, answer.headers["vary"]) == (204, "Origin")
            granted = answer.headers.get("access-control-allow-origin")
            assert (granted is not None) == allowed
            if allowed:
                assert granted == origin
                assert answer.headers["access-control-allow-methods"] == "POST"
                assert answer.headers["access-control-allow-credentials"] == "true"
                assert answer.headers["access-control-max-age"] == "600"
                assert "x-team" in answer.headers["access-control-allow-headers"]
                assert "authorization" in answer.headers["access-control-allow-headers"]
            assert rig.consumer.batches == []

    asyncio.run(scenario())


def test_answers_to_pages() -> None:
    """
    Scenario: a page sends with and without a token, another page sends; a program sends.
    Guarantees: good and bad answers carry the headers for the page that is named, not for the
    other; the program's answer is as without CORS.
    """
    allow = "access-control-allow-origin"

    async def scenario() -> None:
        async with http_door(cors=RULES, auth=AUTH) as rig:
            good = {"authorization": "Bearer a-good-token"}
            answers = [
                await rig.post(b"x", origin=APP, **good),
                await rig.post(b"x", origin=APP),
                await rig.post(b"x", origin="https://evil.example", **good),
                await rig.post(b"x", **good),
            ]
            assert [answer.status for answer in answers] == [200, 401, 200, 200]
            assert [answer.headers.get(allow) for answer in answers] == [APP, APP, None, None]
            assert "vary" not in answers[3].headers

    asyncio.run(scenario())


def test_all_origins_are_without_credentials() -> None:
    """
    Scenario: `*` for origins and headers; a page asks for a header of its own.
    Guarantees: `*` without credentials, as browsers demand; the header is allowed by name.
    """

    async def scenario() -> None:
        rules = {"allowed_origins": ["*"], "allowed_headers": ["*"]}
        async with http_door(cors=rules) as rig:
            asked = {
                "origin": APP,
                "access_control_request_method": "POST",
                "access_control_request_headers": "x-own, content-type",
            }
            answer = await rig.send(request_head("OPTIONS", "/v1/traces", **asked))
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers
            assert answer.headers["access-control-allow-headers"] == "x-own, content-type"

    asyncio.run(scenario())


def test_without_rules_there_is_no_cors() -> None:
    """
    Scenario: a browser asks a door that has no rules.
    Guarantees: 405 and no header that allows.
    """

    async def scenario() -> None:
        async with http_door() as rig:
            asked = {"origin": APP, "access_control_request_method": "POST"}
            answer = await rig.send(request_head("OPTIONS", "/v1/traces", **asked))
            assert answer.status == 405
            assert not [key for key in answer.headers if key.startswith("access-control")]

    asyncio.run(scenario())


def door_at(kind: type[HttpReceiver | GrpcReceiver], path: Path) -> HttpReceiver | GrpcReceiver:
    beside = (Consumer(), Telemetry(), StandingClock())
    if kind is HttpReceiver:
        return HttpReceiver(HttpReceiverConfig(endpoint=f"unix://{path}"), *beside)
    return GrpcReceiver(GrpcReceiverConfig(endpoint=f"unix://{path}"), *beside)


async def send_once(kind: type, path: Path) -> None:
    if kind is GrpcReceiver:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            assert await channel.unary_unary(f"/{TRACE_SERVICE}/Export")(b"x" * 100_000) == b""
        return
    reader, writer = await asyncio.open_unix_connection(str(path))
    head = request_head("POST", "/v1/traces", content_type=PROTOBUF, content_length="100000")
    writer.write(head + b"x" * 100_000)
    assert (await read_answer(reader)).status == 200
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", DOORS)
def test_unix_socket(run: Callable[[Any], None], kind: type[Any], tmp_path: Path) -> None:
    """
    Scenario: a door on a unix socket where a dead one's socket lies; a second door on the same.
    Guarantees: the dead socket makes way; ours is the owner's alone and serves; the second door is
    refused by name and the first goes on; nothing is left at the end.
    """
    path = tmp_path / "door.sock"

    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with AsyncExitStack() as stack:
            door = door_at(kind, path)
            await door.start()
            stack.push_async_callback(door.stop, 0.2)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            await send_once(kind, path)
            with pytest.raises(OSError, match=r"door\.sock.*somebody listens"):
                await door_at(kind, path).start()
            await send_once(kind, path)
        assert not path.exists()

    run(scenario())


@pytest.mark.parametrize("kind", DOORS)
def test_another_file_is_not_removed(kind: type[Any], tmp_path: Path) -> None:
    """
    Scenario: a file that is not a socket stands where the socket is to be.
    Guarantees: the door does not start, and the file is as it was.
    """
    path = tmp_path / "precious"
    path.write_text("data")

    async def scenario() -> None:
        with pytest.raises(OSError, match="not a socket"):
            await door_at(kind, path).start()

    asyncio.run(scenario())
    assert path.read_text() == "data"
