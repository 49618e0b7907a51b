"""The configuration read again while the service runs: what changes, what stays, what cannot."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from otel_anomaly import service as service_module
from otel_anomaly.config import Source
from otel_anomaly.exporters.file import FileExporter
from otel_anomaly.sinks import verify
from otel_anomaly.telemetry import Ledger
from tests.door_rigs import until
from tests.e2e.next_hop import NextHop
from tests.reload_rigs import QUICK, configured, open_files, reloading
from tests.service_rigs import calls, nothing_left

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.otlp.scan import Columns

OK = grpc.StatusCode.OK
STRICT = {"rate": {"warn": 2, "block": 4}}
GONE = {"endpoint": "http://127.0.0.1:9", **QUICK}
UNKNOWN_CA = {
    "endpoint": "127.0.0.1:9",
    "headers": {"Authorization": "s3cret"},
    "tls": {"ca_file": "/nowhere"},
}


def own_threads() -> int:
    """Threads but those of the loop's pool, which grows to its limit by itself."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


def trail(path: Path) -> list[dict[str, Any]]:
    """The records of an audit trail."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_other_limits_and_the_same_past(tmp_path: Path) -> None:
    """
    Scenario: two calls of a session; then a limit of 3 instead of 1000; a third call; then the
    same file once more.
    Guarantees: the third call is the third: what was counted stays; the same ports answer; metric,
    hash and trail tell of the change, the trail is whole; the second reload changes nothing.
    """

    async def play() -> None:
        lax = {"rate": {"warn": 1000, "block": 0}}
        async with reloading(tmp_path, detectors=lax) as rig:
            at = rig.at
            places, before = at.service.places(), at.service.health()["config_hash"]
            assert await at.http(calls(2)) == 200
            assert await rig.reload(detectors={"rate": {"warn": 3, "block": 0}}) == "applied"
            assert await at.grpc(calls(1, seed=1)) is OK
            assert at.service.places() == places
            after = at.service.health()["config_hash"]
            assert before != after
            at.clock.wall_ns += 1_000_000_000
            assert await rig.reload(detectors={"rate": {"warn": 3, "block": 0}}) == "unchanged"
            assert at.metric("config_loaded_timestamp_seconds") == at.clock.now_ns() / 1e9
            assert at.metric("config_reload_ok") == 1
        assert at.actions() == ["allow", "allow", "warn"]
        told = [record for record in at.audit() if record["type"] == "config.reloaded"]
        assert [record["config_hash"] for record in told] == [after]
        assert told[0]["reason"] == f"the configuration was {before} before"
        assert at.audit()[0]["config_hash"] == before
        assert at.audit()[-1]["config_hash"] == after
        assert verify(tmp_path / "audit.jsonl").ok

    asyncio.run(play())


WRONG = {
    "not YAML": ("{", "config.yaml:1"),
    "a key that is none": ('{"detectors": {"rate": {"wran": 3}}}', "wran"),
    "a ladder upside down": ('{"detectors": {"rate": {"warn": 9, "block": 3}}}', "detectors.rate"),
    "a file elsewhere": ('{"storage": {"directory": "/else"}}', "storage.directory: cannot change"),
    "no exporter": ('{"exporters": {}}', "exporters"),
    "a header": (
        json.dumps({"exporters": {"otlp_http/x": {**GONE, "headers": {"Content-Type": "s3cret"}}}}),
        "exporters.otlp_http/x",
    ),
    "a certificate": (
        json.dumps({"exporters": {"otlp_grpc/x": UNKNOWN_CA}}),
        "exporters.otlp_grpc/x",
    ),
    "a trail": ('{"audit": {"path": "/proc/nowhere/audit.jsonl"}}', "audit.path: [Errno 2]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """
    Scenario: the file is replaced by one that cannot be: not readable, not valid, needs a restart,
    a part of it cannot start. Then the good one comes back.
    Guarantees: the old configuration runs on: readiness, ports, exporters, trail; log, metric and
    health say what is wrong and where, and no secret; then all is well again.
    """
    text, said = WRONG[wrong]

    async def play() -> None:
        with nothing_left():
            async with reloading(tmp_path, detectors=STRICT) as rig:
                at, good = rig.at, rig.file.read_text()
                assert await at.http(calls(1)) == 200
                base = json.loads(good)
                try:
                    rig.file.write_text(json.dumps(base | json.loads(text)))
                except json.JSONDecodeError:
                    rig.file.write_text(text)
                hash_before = at.service.health()["config_hash"]
                await at.service.reloads.reload()
                assert rig.results() == {"applied": 0, "unchanged": 0, "refused": 1}
                assert at.metric("config_reload_ok") == 0
                assert await at.page("/readyz") == (200, "ready\n")
                health = json.loads((await at.page("/healthz"))[1])
                assert health["status"] == "degraded"
                assert said in health["problems"]["configuration"]
                assert health["config_hash"] == hash_before
                assert said in caplog.text
                assert "s3cret" not in caplog.text + json.dumps(health)
                assert await at.http(calls(1, seed=1)) == 200
                rig.file.write_text(good)
                await at.service.reloads.reload()
                assert at.metric("config_reload_ok") == 1
                assert "configuration" not in at.service.health()["problems"]
            assert at.actions() == ["allow", "warn"]
            kinds = {record["type"] for record in at.audit()}
            assert kinds.isdisjoint({"config.reloaded", "trail.close"})

    asyncio.run(play())


def test_one_part_that_cannot_start_takes_all_back(tmp_path: Path) -> None:
    """
    Scenario: one reload with another limit, another file for the spans, a new exporter, another
    trail, and a last exporter that cannot start.
    Guarantees: none of it happens; the exporter of the file, closed for its successor, goes on;
    threads, tasks and descriptors are as many as before.
    """

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            at = rig.at
            assert await at.http(calls(1)) == 200
            await until(lambda: at.metric("exporter_sent_spans_total", exporter="file") == 1)
            threads, files = own_threads(), open_files()
            result = await rig.reload(
                detectors=STRICT,
                audit={"path": str(tmp_path / "other.jsonl")},
                exporters={
                    "file": {**QUICK, "path": str(tmp_path / "elsewhere.jsonl")},
                    "otlp_http/new": GONE,
                    "otlp_grpc/bad": {"endpoint": "h:1", "tls": {"ca_file": "/nowhere"}},
                },
            )
            assert result == "refused"
            assert await at.http(calls(1, seed=1)) == 200
            await until(lambda: at.metric("exporter_sent_spans_total", exporter="file") == 2)
            assert own_threads() <= threads
            assert open_files() <= files + 2
            assert not [t for t in asyncio.all_tasks() if "otlp_http/new" in t.get_name()]
        assert at.actions() == ["allow", "allow"]
        assert len(trail(tmp_path / "audit.jsonl")) == 2
        assert not (tmp_path / "other.jsonl").exists()

    asyncio.run(play())


def test_spans_go_to_another_file(tmp_path: Path) -> None:
    """
    Scenario: requests, another file for them, more requests; then the first file again.
    Guarantees: each span is in one of the files, whole; the books of the exporter go on.
    """

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            for number, path in enumerate(("spans", "later", "spans")):
                other = {"file": {**QUICK, "path": str(tmp_path / f"{path}.jsonl")}}
                assert await rig.reload(exporters=other) in {"applied", "unchanged"}
                assert await rig.at.http(calls(2, seed=number)) == 200
            ledger = rig.at.service.telemetry.ledger("file")
            assert ledger.accepted == 6
        lines = [
            len((tmp_path / name).read_text().splitlines())
            for name in ("spans.jsonl", "later.jsonl")
        ]
        assert sum(lines) == 3
        assert lines[1] >= 1

    asyncio.run(play())


def test_what_is_held_goes_to_the_corrected_address(tmp_path: Path) -> None:
    """
    Scenario: the address of the next hop is wrong; requests pile up; the address is corrected.
    Guarantees: everything that piled up arrives at the right one, and the ledger adds up.
    """

    async def play() -> None:
        retry = {"initial_interval": "10ms", "max_interval": "20ms"}
        wrong = {**GONE, "retry_on_failure": retry}
        name = "otlp_http/next"
        with nothing_left(), NextHop() as hop:
            async with reloading(tmp_path, exporters={name: wrong}) as rig:
                for seed in range(3):
                    assert await rig.at.http(calls(2, seed=seed)) == 200
                failed = "exporter_send_failed_spans_total"
                await until(lambda: rig.at.metric(failed, exporter=name) > 0)
                assert rig.at.metric("exporter_held_spans", exporter=name) == 6
                right = {**wrong, "endpoint": hop.http_url}
                assert await rig.reload(exporters={name: right}) == "applied"
                await until(lambda: rig.at.metric("exporter_sent_spans_total", exporter=name) == 6)
            assert len(hop.spans()) == 6
            assert rig.at.service.telemetry.ledger(name) == Ledger(6, 6, 0, 0)

    asyncio.run(play())


def test_exporters_come_and_go(tmp_path: Path) -> None:
    """
    Scenario: one span with the file alone; a second exporter comes for two; the first one goes for
    three; it comes back for four.
    Guarantees: each exporter has in its books what was accepted while it was there, and each span
    of that; the one that went has delivered before it is closed.
    """
    second = {"file/second": {**QUICK, "path": str(tmp_path / "second" / "spans.jsonl")}}
    first = {"file": QUICK}

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            for count, exporters in enumerate((first, first | second, second, first | second)):
                result = await rig.reload(exporters=exporters)
                assert result == ("applied" if count else "unchanged")
                assert await rig.at.http(calls(count + 1, seed=count)) == 200
        telemetry = rig.at.service.telemetry
        assert telemetry.ledger("file") == Ledger(1 + 2 + 4, 7, 0, 0)
        assert telemetry.ledger("file/second") == Ledger(2 + 3 + 4, 9, 0, 0)
        assert len(rig.at.actions()) == 7

    asyncio.run(play())


def test_the_trail_moves(tmp_path: Path) -> None:
    """
    Scenario: the trail is moved to another file while an episode is open, switched off, and
    switched on again at the first place.
    Guarantees: each trail is whole and says where it ends and begins; the episode's end is in the
    one that is open then; none says that a stop is missing.
    """

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            at = rig.at
            await at.http(calls(3))
            other = {"path": str(tmp_path / "other.jsonl"), "fsync": False}
            assert await rig.reload(audit=other) == "applied"
            at.service.tick(at.clock.now_ns())
            at.service.tick(at.clock.now_ns() + 61_000_000_000)
            assert await rig.reload(audit={"enabled": False}) == "applied"
            assert await rig.reload(audit={"queue_records": 5}) == "applied"
            assert await rig.reload(audit={"queue_records": 6}) == "applied"
        kinds = [record["type"] for record in trail(tmp_path / "audit.jsonl")]
        assert kinds == [
            "service.start", "episode.start", "trail.close",
            "trail.open", "config.reloaded", "service.stop",
        ]  # fmt: skip
        kinds = [record["type"] for record in trail(tmp_path / "other.jsonl")]
        assert kinds == ["trail.open", "episode.end", "trail.close"]
        for name in ("audit.jsonl", "other.jsonl"):
            assert verify(tmp_path / name).ok
            assert "did not record" not in (tmp_path / name).read_text()

    asyncio.run(play())


def test_the_console_comes_and_goes(tmp_path: Path) -> None:
    """
    Scenario: an episode with the console on, one with it off, one with it on again.
    Guarantees: the first and the third are told; all three are in the trail; no thread is left.
    """

    async def play() -> None:
        with nothing_left():
            async with reloading(tmp_path) as rig:
                for number, on in enumerate((True, False, True)):
                    await rig.reload(alerts={"console": on})
                    await rig.at.http(calls(3, session=f"s-{number}", seed=number))
                    if on:
                        await until(lambda n=number: len(rig.at.lines()) == (1, 1, 2)[n])
        starts = [record for record in rig.at.audit() if record["type"] == "episode.start"]
        assert len(starts) == 3
        assert rig.at.lines().count("WARN") == 2

    asyncio.run(play())


def test_a_hundred_reloads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a hundred requests for a reload in one moment, and some while one is under way; every
    reload exchanges the exporter and the trail's settings. Then fifty more, one after the other.
    Guarantees: a hundred at once are one, or one more; one is under way at a time; threads, tasks
    and descriptors do not grow.
    """
    under_way: list[int] = []
    inside = Source.load

    def load(source: Source) -> Any:
        assert not under_way
        under_way.append(1)
        try:
            return inside(source)
        finally:
            under_way.pop()

    monkeypatch.setattr(Source, "load", load)

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            reloads = rig.at.service.reloads
            assert await rig.at.http(calls(1)) == 200
            for number in range(2):
                rig.write(exporters={"file": {**QUICK, "max_backups": number}})
                for _ in range(100):
                    reloads.request()
                await until(lambda n=number: rig.results()["applied"] == n + 1)
            assert sum(rig.results().values()) <= 4
            threads, tasks, files = own_threads(), len(asyncio.all_tasks()), open_files()
            for number in range(50):
                changed = {"file": {**QUICK, "max_backups": number + 5}}
                assert await rig.reload(exporters=changed, audit={"queue_records": 9 + number})
            assert own_threads() <= threads
            assert len(asyncio.all_tasks()) <= tasks
            assert open_files() <= files

    asyncio.run(play())


def test_asked_before_the_start_and_in_the_drain(tmp_path: Path) -> None:
    """
    Scenario: a reload is asked for before the service is started, with another file by then; and
    one while it stops.
    Guarantees: the first is done when the service runs; the second is not; the stop is whole.
    """

    async def play() -> None:
        with nothing_left():
            rig = configured(tmp_path)
            rig.write(detectors=STRICT)
            rig.at.service.reloads.request()
            await rig.at.service.start()
            await until(lambda: rig.results()["applied"] == 1)
            rig.write()
            rig.at.service.reloads.request()
            await rig.at.service.stop()
            rig.at.service.reloads.request()
            await asyncio.sleep(0)
            assert rig.results()["applied"] == 1
        assert rig.at.audit()[-1]["type"] == "service.stop"

    asyncio.run(play())


def test_a_stop_in_the_middle_of_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the service is stopped while a reload waits for its new exporter to open its file.
    Guarantees: the reload is taken back, what was accepted is written by the exporter of before,
    and nothing is left open.
    """

    async def play() -> None:
        async def opens(exporter: FileExporter) -> None:
            begun.set()
            await asyncio.sleep(3600)

        begun = asyncio.Event()
        with nothing_left():
            rig = configured(tmp_path)
            await rig.at.service.start()
            assert await rig.at.http(calls(2)) == 200
            monkeypatch.setattr(FileExporter, "start", opens)
            rig.write(exporters={"file": {**QUICK, "path": str(tmp_path / "other.jsonl")}})
            rig.at.service.reloads.request()
            await begun.wait()
            assert await rig.at.http(calls(1, seed=1)) == 200
            await rig.at.service.stop()
        assert rig.at.service.telemetry.ledger("file") == Ledger(3, 3, 0, 0)
        assert len(rig.at.actions()) == 3

    asyncio.run(play())


def test_scanned_by_the_old_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a large request is scanned in a thread while a reload changes the keys by which agents
    and sessions are told.
    Guarantees: it is scanned again, and judged and written by one set of rules: the new one.
    """
    scans: list[object] = []
    inside = service_module.scan
    reloaded = threading.Event()

    def scan(body: bytes, keys: Any, signal: Any) -> Columns:
        scans.append(keys)
        if len(scans) == 1:
            assert reloaded.wait(20)
        return inside(body, keys, signal)

    monkeypatch.setattr(service_module, "scan", scan)
    monkeypatch.setattr(service_module, "INLINE_BYTES_MAX", 10)

    async def play() -> None:
        async with reloading(tmp_path) as rig:
            waiting = asyncio.create_task(rig.at.consume(calls(2)))
            await until(lambda: len(scans) == 1)
            assert await rig.reload(annotate={"prefix": "other"}) == "applied"
            reloaded.set()
            await waiting
            assert scans[-1] is rig.at.service.processor.keys
        assert len(scans) == 2
        written = (tmp_path / "spans.jsonl").read_text()
        assert '"other.action"' in written
        assert '"anomaly.action"' not in written

    asyncio.run(play())


def test_held_back_and_reloaded(tmp_path: Path) -> None:
    """
    Scenario: a request is held back for its identity when the prefix of what is written changes.
    Guarantees: it is judged and written by the rules under which it came; the next by the new ones.
    """
    hold = {"hold": "30s", "session": ["told.by.nobody"], "weak": []}

    async def play() -> None:
        async with reloading(tmp_path, identity=hold) as rig:
            await rig.at.consume(calls(1))
            assert rig.at.metric("spans_total") == 0
            assert await rig.reload(identity=hold, annotate={"prefix": "other"}) == "applied"
            assert rig.at.metric("spans_total") == 1
            await rig.at.consume(calls(1, seed=1))
        first, second = (tmp_path / "spans.jsonl").read_text().splitlines()
        assert '"anomaly.action"' in first
        assert '"other.action"' in second

    asyncio.run(play())


def test_an_endpoint_needs_a_restart(tmp_path: Path) -> None:
    """
    Scenario: a reload with another address for a door, with a door less, and for the pages.
    Guarantees: each is refused and names its key; all doors answer as before.
    """

    async def play() -> None:
        free, taken = {"endpoint": "127.0.0.1:0"}, {"endpoint": "127.0.0.2:0"}
        changes: dict[str, dict[str, Any]] = {
            "protocols.grpc": {"receivers": {"otlp": {"protocols": {"grpc": taken, "http": free}}}},
            "protocols.http": {"receivers": {"otlp": {"protocols": {"grpc": free}}}},
            "telemetry.metrics": {"telemetry": {"metrics": taken}},
        }
        async with reloading(tmp_path) as rig:
            for key, sections in changes.items():
                trail_path = tmp_path / f"{key}.jsonl"
                audit = {"path": str(trail_path), "fsync": False}
                result = await rig.reload(**sections, detectors=STRICT, audit=audit)
                assert result == "refused"
                kinds = [record["type"] for record in trail(trail_path)]
                assert kinds == ["trail.open", "trail.close"]
                problem = rig.at.service.health()["problems"]["configuration"]
                assert key in problem
                assert "restart" in problem
                assert await rig.at.http(calls(1)) == 200
                assert await rig.at.grpc(calls(1)) is OK
            assert rig.at.metric("verdicts_total", action="warn") == 0

    asyncio.run(play())
