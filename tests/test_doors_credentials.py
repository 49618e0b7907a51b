"""Who may come in: the comparison by itself, then the same negative cases at both doors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from otel_anomaly.config import AuthConfig
from otel_anomaly.handoff import Outcome
from otel_anomaly.receivers import credentials as module
from otel_anomaly.receivers import grpc as grpc_module
from otel_anomaly.receivers.credentials import Credentials
from tests.door_rigs import PROTOBUF, TRACE_SERVICE, grpc_door, http_door, request_head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.door_rigs import GrpcRig

TOKEN, OTHER, PASSWORD = "correct-horse", "battery-staple", "s3cret:with:colons"
HASHED = hashlib.sha256(b"bob:hashed-password").hexdigest()
AUTH: dict[str, Any] = {
    "bearer": {"tokens": [TOKEN, OTHER]},
    "basic": {"htpasswd": {"inline": f"alice:{PASSWORD}\n# a comment\n\nbob:{{SHA256}}{HASHED}\n"}},
}


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


GOOD = [
    f"Bearer {TOKEN}",
    f"bearer {OTHER}",
    f"BEARER {TOKEN}",
    basic(f"alice:{PASSWORD}"),
    basic("bob:hashed-password").replace("Basic", "basic"),
]
BAD = [
    [],
    [""],
    ["Bearer"],
    ["Bearer "],
    [f"Bearer  {TOKEN}"],
    [f"Bearer {TOKEN} "],
    [f"Bearer {TOKEN.upper()}"],
    [f"Bearer {TOKEN[:-1]}"],
    [f"Bearer {TOKEN}x"],
    [f"Bearer {TOKEN},{OTHER}"],
    [f"Bearer\t{TOKEN}"],
    [TOKEN],
    [f"Token {TOKEN}"],
    [f"Basic {TOKEN}"],
    [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
    [basic("alice:wrong")],
    [basic("alice")],
    [basic("alice:")],
    [basic(":")],
    [basic(f"Alice:{PASSWORD}")],
    [basic(f"bob:{{SHA256}}{HASHED}")],
    [basic(f"bob:{HASHED}")],
    ["Basic !!!not base64!!!"],
    ["Bearer " + "x" * 20_000],
]
NOT_ASCII = ["Bearer correct-hors\u00e9", "Bearer \udcff\udcfe", "B\u00e9arer x"]


@pytest.mark.parametrize("value", GOOD)
def test_any_credential_opens(value: str) -> None:
    """
    Scenario: each token and each user, the scheme written in several ways.
    Guarantees: each opens: schemes have no case (RFC 9110, 11.1), credentials do.
    """
    assert Credentials(AuthConfig(**AUTH)).open_with([value])


@pytest.mark.parametrize("values", [*BAD, *([each] for each in NOT_ASCII), [b"\xff\xfe"]])
def test_nothing_else_opens(values: list[str | bytes]) -> None:
    """
    Scenario: wrong, missing, empty, other scheme, other case, spaces, several headers, not ASCII.
    Guarantees: none opens, none raises.
    """
    assert not Credentials(AuthConfig(**AUTH)).open_with(values)


def test_every_credential_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the first of several tokens is right.
    Guarantees: it is compared with all of them nonetheless, each by the constant-time comparison.
    """
    compared: list[bytes] = []
    real = module.hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    opener = Credentials(AuthConfig(bearer={"tokens": [TOKEN, OTHER, "a-third-token"]}))
    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    assert opener.open_with([f"Bearer {TOKEN}"])
    assert len(set(compared)) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "holds no credential"),
        (b"\n# only a comment\n", "holds no credential"),
        (b"good-token-1\nsh0rt\n", ":2: not a token"),
        (b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe", ":1: not a token"),
        (b"x" * (1 << 21), "larger than 1 MiB"),
    ],
)
def test_token_files_that_are_refused(text: bytes, reason: str, tmp_path: Path) -> None:
    """
    Scenario: files that are empty, hold a bad line, are not text or are endless.
    Guarantees: ValueError that names the file and the line, never what stands there.
    """
    path = tmp_path / "tokens"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="tokens") as caught:
        Credentials(AuthConfig(bearer={"filename": str(path)}))
    assert reason in str(caught.value)
    assert "sh0rt" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["alice", "alice:", ":password", "alice:$2y$05$abcdefgh", "alice:{SHA}abcdefgh"]
)
def test_user_lines_that_are_refused(line: str) -> None:
    """
    Scenario: lines with a half missing, and passwords hashed in a way that is not known here.
    Guarantees: refused by number; a hash is never taken for a password.
    """
    with pytest.raises(ValueError, match=r"inline:2: ") as caught:
        Credentials(AuthConfig(basic={"htpasswd": {"inline": f"ok:fine\n{line}"}}))
    assert "abcdefgh" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """
    Scenario: the file of tokens is missing.
    Guarantees: the door does not open, and says which file.
    """

    async def scenario() -> None:
        missing = str(tmp_path / "missing")
        with pytest.raises(ValueError, match="missing: No such file"):
            async with http_door(auth={"bearer": {"filename": missing}}):
                pass
        with pytest.raises(ValueError, match="missing: No such file"):
            async with grpc_door(auth={"bearer": {"filename": missing}}):
                pass

    asyncio.run(scenario())


def test_http_lets_in_who_is_known(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: each good and each bad credential at the HTTP door, with a body that is never sent
    for the bad ones.
    Guarantees: 200, or 401 with a challenge and a Status body before the body is read; counted;
    nothing is logged.
    """

    async def scenario() -> None:
        async with http_door(auth=AUTH) as rig:
            for value in GOOD:
                assert (await rig.post(b"x", authorization=value)).status == 200
            # The space at the end is not part of the value (RFC 9110, 5.5): HTTP cannot see it.
            bad = [values for values in BAD if values != [f"Bearer {TOKEN} "]]
            for values in [*bad[:-1], *([each] for each in NOT_ASCII)]:
                head = request_head(
                    "POST", "/v1/traces", content_type=PROTOBUF, content_length="1000000"
                )[:-2]
                for value in values:
                    head += b"Authorization: " + value.encode("utf-8", "surrogateescape") + b"\r\n"
                answer = await rig.send(head + b"\r\n")
                assert answer.status == 401, values
                assert answer.status_message().code == grpc.StatusCode.UNAUTHENTICATED.value[0]
                assert answer.headers["www-authenticate"].startswith("Bearer realm=")
                assert "Basic realm=" in answer.headers["www-authenticate"]
            assert len(rig.consumer.batches) == len(GOOD)
            assert rig.counted(Outcome.UNAUTHENTICATED) == len(bad[:-1]) + len(NOT_ASCII)

    with caplog.at_level(logging.DEBUG, "otel_anomaly"):
        asyncio.run(scenario())
    assert not caplog.records


def test_grpc_lets_in_who_is_known() -> None:
    """
    Scenario: each good and each bad credential at the gRPC door.
    Guarantees: accepted, or UNAUTHENTICATED without RetryInfo; counted.
    """

    async def scenario() -> None:
        async with grpc_door(auth=AUTH) as rig:
            for value in GOOD:
                assert await rig.export(b"x", metadata=(("authorization", value),)) == b""
            bad = [values for values in BAD if all("\t" not in value for value in values)][:-1]
            for values in bad:
                metadata = tuple(("authorization", value) for value in values)
                error = await rig.refusal(b"x", metadata=metadata)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, values
                assert "grpc-status-details-bin" not in dict(error.trailing_metadata())
            assert len(rig.consumer.batches) == len(GOOD)
            assert rig.counted(Outcome.UNAUTHENTICATED) == len(bad)

    asyncio.run(scenario())


def test_tokens_change_on_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the file of tokens is exchanged, then emptied, then right again.
    Guarantees: the new token opens and the old one does not; an unusable file leaves the last good
    one in force, and is told in the log, in a metric and to health, without the token.
    """
    path = tmp_path / "tokens"
    path.write_text(TOKEN)

    async def scenario() -> None:
        async with http_door(auth={"bearer": {"filename": str(path)}}) as rig:
            look = rig.door._files.look
            statuses = []
            for text in (None, OTHER, "", TOKEN):
                if text is not None:
                    path.write_text(text)
                    await look()
                for token in (TOKEN, OTHER):
                    answer = await rig.post(b"x", authorization=f"Bearer {token}")
                    statuses.append(answer.status)
                assert (rig.door.problem is not None) == (text == "")
            assert statuses == [200, 401, 401, 200, 401, 200, 200, 401]
            labels = {"transport": "http"}
            name = "otel_anomaly_receiver_reload_failures_total"
            assert rig.telemetry.registry.get_sample_value(name, labels) == 1

    with caplog.at_level(logging.ERROR, "otel_anomaly"):
        asyncio.run(scenario())
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert TOKEN not in caplog.text
    assert OTHER not in caplog.text


def test_grpc_tokens_that_change_just_after_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: the file of tokens is exchanged between the moment the gRPC door reads it and the
    moment it begins to watch it, at the start and at a reload.
    Guarantees: the next look sees it: the new token opens, and the old one does not.
    """
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    read_files = grpc_module.read_files
    coming: list[str] = []

    def read_and_exchange(*arguments: Any) -> Any:
        """Somebody exchanges the file right afterwards, if something is to come."""
        found = read_files(*arguments)
        if coming:
            path.write_text(coming.pop())
        return found

    monkeypatch.setattr(grpc_module, "read_files", read_and_exchange)

    async def opens(rig: GrpcRig, token: str) -> bool:
        call = rig.channel.unary_unary(f"/{TRACE_SERVICE}/Export")
        answer = call(b"x", metadata=(("authorization", f"Bearer {token}"),))
        return await answer.code() is grpc.StatusCode.OK

    async def scenario() -> None:
        first, second = OTHER, f"{TOKEN}-2"
        coming.append(first)
        async with grpc_door(auth={"bearer": {"filename": str(path)}}) as rig:
            assert await opens(rig, TOKEN)
            await rig.door._files.look()
            assert [await opens(rig, token) for token in (TOKEN, first)] == [False, True]
            coming.append(second)
            await rig.door.reconfigure(rig.door._config)
            assert await opens(rig, first)
            await rig.door._files.look()
            assert [await opens(rig, token) for token in (first, second)] == [False, True]

    asyncio.run(scenario())


def test_tokens_that_may_be_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: the file of tokens is exchanged for one that cannot be read; after three looks it
    can, and looks the same as before.
    Guarantees: the refusal is told once; the new token opens at the first look at which it can be
    read, and health is as it was.
    """
    path = tmp_path / "tokens"
    path.write_text(TOKEN)

    async def scenario() -> None:
        async with http_door(auth={"bearer": {"filename": str(path)}}) as rig:
            path.write_text(OTHER)
            with monkeypatch.context() as patch:
                # Not by its mode: whoever runs the tests may be let into everything.
                patch.setattr(module, "FILE_BYTES_MAX", 1)
                for _ in range(3):
                    await rig.door._files.look()
                    assert rig.door.problem is not None
            await rig.door._files.look()
            assert rig.door.problem is None
            assert (await rig.post(b"x", authorization=f"Bearer {OTHER}")).status == 200

    with caplog.at_level(logging.ERROR, "otel_anomaly"):
        asyncio.run(scenario())
    assert len(caplog.records) == 1
