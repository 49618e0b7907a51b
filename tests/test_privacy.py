"""Nothing of what agents say is seen but where it is forwarded: one canary for each place."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import aiohttp
import grpc.aio
import pytest
import yaml
from aiohttp import web
from google.rpc.status_pb2 import Status

from otel_anomaly import logs as discreet
from otel_anomaly.config import Config
from otel_anomaly.config.redaction import Redacted
from otel_anomaly.exporters.echo import SEARCHED_MAX, without_echo
from otel_anomaly.handoff import Signal
from otel_anomaly.otlp.redaction import DIGITS_LEAST
from otel_anomaly.receivers.grpc import SERVICES
from otel_anomaly.replay import replay_command
from tests import canaries
from tests.canaries import CANARY, SECRET, TOLD, Canaries
from tests.door_rigs import NOW_NS, until
from tests.service_rigs import Place, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).resolve().parent.parent
EAGER: dict[str, Any] = {
    "rate": {"warn": 2, "block": 3},
    "unknown_connection": {"allow": ["good.com"]},
    "credential_leak": {"threshold": 1},
    "new_destination": {},
    "child_process": {},
}
"""So that a handful of calls makes what can be said of them be said."""


@pytest.fixture
def _log() -> Iterator[io.StringIO]:
    """All that the process logs, down to DEBUG, as the service prints it."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(discreet.DiscreetFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.setLevel(level)
    root.removeHandler(handler)


@contextlib.asynccontextmanager
async def echoing_hop(status: int) -> AsyncIterator[str]:
    """A next hop that answers every request with the canaries in it."""

    async def answer(asked: web.BaseRequest) -> web.Response:
        body = await asked.read()
        words = b" ".join(CANARY.findall(body)).decode()
        said = Status(message=f"bad: {words}").SerializeToString()
        return web.Response(status=status, body=said, content_type="application/x-protobuf")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def post(place: Place, kind: str, body: bytes, headers: dict[str, str], path: str) -> str:
    """One HTTP request; all that comes back."""
    assert place.service.doors.http is not None
    url = f"http://127.0.0.1:{place.service.doors.http.port}{path}"
    said = {"Content-Type": kind, **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=said) as answer,
    ):
        return f"{answer.status} {dict(answer.headers)} {await answer.read()!r}"


async def call(place: Place, body: bytes, signal: Signal, metadata: dict[str, str]) -> str:
    """One gRPC request; all that comes back."""
    assert place.service.doors.grpc is not None
    address = f"127.0.0.1:{place.service.doors.grpc.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        export = channel.unary_unary(f"/{SERVICES[signal]}/Export")
        try:
            return repr(await export(body, metadata=tuple(metadata.items())))
        except grpc.aio.AioRpcError as error:
            return f"{error.code()} {error.details()} {error.trailing_metadata()}"


async def speak(place: Place, canary: Canaries) -> list[str]:
    """Say everything through every door; returns all answers."""
    spans, records = canaries.traces(canary, NOW_NS), canaries.logs(canary, NOW_NS)
    protobuf = "application/x-protobuf"

    def headers() -> dict[str, str]:
        return {
            "x-note": canary("header"),
            f"x-{canary('headername')}": "1",
            "authorization": f"Bearer {canary('bearer')}",
        }

    answers = [
        await post(place, protobuf, spans, headers(), "/v1/traces"),
        await post(place, protobuf, records, headers(), "/v1/logs"),
        await call(place, spans, Signal.TRACES, headers()),
        await call(place, records, Signal.LOGS, headers()),
        await post(place, protobuf, spans, headers(), f"/v1/{canary('urlpath')}"),
        await post(place, protobuf, spans, headers(), f"/v1/traces?q={canary('urlquery')}"),
        await post(place, protobuf, spans, {"Content-Encoding": canary("coding")}, "/v1/traces"),
        await post(
            place, protobuf, canary("gzip").encode(), {"Content-Encoding": "gzip"}, "/v1/traces"
        ),
    ]
    for kind, body in canaries.broken(canary):
        answers.append(await post(place, kind, body, headers(), "/v1/traces"))
        answers.append(await call(place, body, Signal.TRACES, headers()))
    return answers


@pytest.mark.parametrize("status", [400, 503])
def test_canaries(status: int, tmp_path: Path, _log: io.StringIO) -> None:  # noqa: PT019
    """
    Scenario: every field of every kind carries a word of its own, through both doors, well-formed
    and broken, judged by eager detectors, forwarded to a next hop that quotes it in its refusals.
    Guarantees: no word is in an answer, a metric, health, the log down to DEBUG or a snapshot; in
    the audit trail and on the console only who called which tool. All are in the forwarded file.
    """
    canary = Canaries()

    async def play() -> tuple[Place, list[str]]:
        async with echoing_hop(status) as url:
            hop = {
                "endpoint": url,
                "retry_on_failure": {"initial_interval": "10ms", "max_elapsed_time": "50ms"},
            }
            exporters = {"file": {}, "otlp_http": hop}
            storage = {"directory": str(tmp_path)}  # With snapshots.
            async with running(
                tmp_path, detectors=EAGER, exporters=exporters, storage=storage
            ) as place:
                answers = await speak(place, canary)
                for path in ("/metrics", "/healthz", "/readyz", f"/{canary('page')}"):
                    answers.append(str(await place.page(path)))
                lost = "exporter_dropped_spans_total"
                reason = "rejected" if status == 400 else "retries_exhausted"
                await until(lambda: place.metric(lost, exporter="otlp_http", reason=reason) > 7)
            return place, answers

    place, answers = asyncio.run(play())
    assert len(canary.made) > 200
    for answer in answers:
        assert canary.seen(answer) == set(), answer
        assert SECRET not in answer
    assert "exporter otlp_http" in _log.getvalue()
    assert canary.seen(_log.getvalue()) == set()
    assert SECRET not in _log.getvalue() + place.console.getvalue()
    kept = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    forwarded = [name for name in kept if name.startswith(("spans", "logs"))]
    assert len(forwarded) == 2
    assert "state.snapshot" in kept
    told = kept.pop("audit.jsonl"), place.console.getvalue()
    records = [json.loads(line) for line in told[0].decode().splitlines()]
    detectors = {record.get("detector") for record in records}
    assert {"rate", "unknown_connection", "credential_leak", "data_exfiltration"} <= detectors
    for text in told:
        assert canary.seen(text, TOLD) == set()
        assert canary.seen(text)
    assert SECRET.encode() not in told[0]
    for name, content in kept.items():
        assert (SECRET.encode() in content) == (name in forwarded), name
        if name not in forwarded:
            assert canary.seen(content, TOLD) == set(), name
        else:
            assert {"argument", "body"} & {word[10:] for word in canary.seen(content)}


@pytest.mark.parametrize("explain", [None, "0404040404040404"])
def test_canaries_in_replay(
    explain: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: the same calls from a file, reported with every call; then one explained.
    Guarantees: the report holds who called which tool, and nothing else that was said.
    """
    canary, report = Canaries(), io.StringIO()
    file = tmp_path / "spans.bin"
    file.write_bytes(canaries.traces(canary, NOW_NS))
    code = replay_command(
        Config.model_validate({"detectors": EAGER}),
        [file],
        out=None,
        output_format="json" if explain is None else "table",
        calls=explain is None,
        signal=Signal.TRACES,
        explain=explain,
        stdout=report,
    )
    assert code == 0
    printed = capfd.readouterr()
    text = report.getvalue() + printed.out + printed.err
    assert "data_exfiltration" in text
    assert canary.seen(text, TOLD) == set()


def test_unreadable_recordings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: recordings that cannot be read, with canaries where they break.
    Guarantees: what is printed names the file and the place, and quotes nothing.
    """
    canary = Canaries()
    for number, (kind, body) in enumerate(canaries.broken(canary)):
        file = tmp_path / f"{number}.{'jsonl' if kind.endswith('json') else 'bin'}"
        file.write_bytes(body)
        replay_command(
            Config(),
            [file],
            out=None,
            output_format="json",
            calls=True,
            signal=None,
            stdout=io.StringIO(),
        )
    printed = capfd.readouterr()
    assert ".jsonl" in printed.err
    assert canary.seen(printed.out + printed.err) == set()


def test_tracebacks_without_words() -> None:
    """
    Scenario: exceptions that quote what they met, one raised from another, logged as bugs are; an
    event loop's own report of one.
    Guarantees: files, lines and types are printed, the words of none.
    """
    canary, text = Canaries(), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(discreet.DiscreetFormatter())
    log = logging.getLogger("otel_anomaly")
    log.addHandler(handler)
    try:
        _stumble(canary)
    except ValueError as error:
        log.exception("a mistake of ours")
        loop = asyncio.new_event_loop()
        discreet.on_loop_error(loop, {"message": canary("task"), "exception": error})
        loop.close()
    finally:
        log.removeHandler(handler)
    said = text.getvalue()
    assert said.count("\nKeyError\n") == said.count("\nValueError\n") == 2
    assert said.count("test_privacy.py:") >= 4
    assert canary.seen(said) == set()


def _stumble(canary: Canaries) -> None:
    word = canary("key")
    try:
        {}[word]
    except KeyError as error:
        raise ValueError(f"no {word}") from error


@pytest.mark.parametrize(
    ("message", "body", "left"),
    [
        ("invalid value 'alice: 4711' in note", "note alice 4711", "invalid value '*: *' in *"),
        ("PERMISSION_DENIED: token has expired", "token has expired", None),
        ("no such tenant", "alice", None),
        ("code 400 x_y1-z", "400 x_y1-z", "code 400 *-z"),
        ("the alice b\u00fcro", "b\u00fcro", "the alice *"),
        ("the alice", "x" * (SEARCHED_MAX + 1), "the *"),
        ("bad SMITH, smith", "Smith", "bad *, *"),
        ("token SK-LIVE-9F8A", "authorization Bearer sk-live-9f8a", "token SK-*-*"),
        ("bad \u0411\u041e\u0420\u0418\u0421", "\u0411\u043e\u0440\u0438\u0441", "bad *"),
        ("value 4111111111111111 or 4111111111111111.0", "card", "value * or *.0"),
        ("code 404 in span x4111111111111111", "card", "code 404 in span *"),
        (r"bad '\u0411\u043e\u0440' here", "\u0411\u043e\u0440 here", "bad '*' *"),
        (r"bad \xc3\x89ve, \303\211ve", "\u00c9ve", "bad *ve, *ve"),
        (r"bad \x53mith", "Smith", "bad **"),
        ("bad %D0%91%d0%be%D1%80", "\u0411\u043e\u0440", "bad *"),
        (r"bad \u0411", r'{"name": "\u0411"}', "bad *"),
    ],
)
def test_echoes(message: str, body: str, left: str | None) -> None:
    """
    Scenario: a next hop quotes what it was sent, or says what such messages say.
    Guarantees: words of the request are stars, also in other letters or with escapes, and so are
    numbers, which a request holds in binary; the language of errors stays; of a request too large
    to search no other word is left.
    """
    assert without_echo(message, body.encode()) == (message if left is None else left)


def test_the_page_names_tests_that_are_there() -> None:
    """
    Scenario: docs/privacy.md is read.
    Guarantees: each test it names is there; the configuration it shows is valid, and names each
    kind that can be redacted.
    """
    page = (ROOT / "docs" / "privacy.md").read_text()
    named = set(re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+\.py)\)", page))
    assert len(named) > 8
    for name, file in named:
        assert f"def {name}(" in (ROOT / file).read_text(), name
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert Config.model_validate(yaml.safe_load(shown)).redact.enabled
    for kind in get_args(Redacted):
        assert f"`{kind}`" in page
    assert f"{DIGITS_LEAST} digits" in page
