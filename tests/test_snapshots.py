"""When snapshots are read and written: start, interval, demand, end; and what people see of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly import asking, directory_lock, running, snapshots
from otel_anomaly.cli import main
from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.directory_lock import DirectoryLock, InUse, running_in
from otel_anomaly.handoff import Batch, Signal
from otel_anomaly.processor import Processor
from otel_anomaly.snapshot_file import before, read
from otel_anomaly.snapshots import Snapshots
from otel_anomaly.telemetry import PREFIX, Telemetry
from tests.book_rigs import TakesAll
from tests.door_rigs import NOW_NS, StandingClock
from tests.rig import ROOMY
from tests.service_rigs import calls, config_in, place
from tests.service_rigs import running as running_service
from tests.traffic import Agent, request
from tests.virtual_time import play

if TYPE_CHECKING:
    from pathlib import Path

BIG = 1 << 40


def kept_in(folder: Path, **more: Any) -> dict[str, Any]:
    """The section that has snapshots on."""
    return {"storage": {"directory": str(folder), "snapshots": {"enabled": True, **more}}}


def some_calls(first: int, count: int) -> list[Batch]:
    """Requests of one call each of one session, numbered."""
    agent = Agent("support", session="s-1", seed=5)
    made = [request([agent.call(NOW_NS)]) for _ in range(first + count)]
    return [Batch(body, Signal.TRACES, "http", NOW_NS) for body in made[first:]]


def test_a_service_that_starts_again_is_the_same_service(tmp_path: Path) -> None:
    """
    Scenario: eight calls of a session, one after the other; and the same with the service stopped
    and started anew after the fourth.
    Guarantees: the same actions on the spans; one episode, told once, in both trails; health and
    metrics say what was loaded and how old it was; counters begin at zero.
    """

    async def whole() -> tuple[list[str], list[Any]]:
        async with running_service(tmp_path / "whole", **kept_in(tmp_path / "whole")) as at:
            for batch in some_calls(0, 8):
                await at.service.consume(batch)
        return at.actions(), steps_in(at.audit())

    async def halves() -> tuple[list[str], list[Any]]:
        folder = tmp_path / "halves"
        async with running_service(folder, **kept_in(folder)) as at:
            for batch in some_calls(0, 4):
                await at.service.consume(batch)
        assert at.lines() == ["WARN"]
        built = place(folder, **kept_in(folder))
        built.clock.wall_ns += 5 * SECOND_NS
        again = built._replace(
            service=type(built.service)(
                config_in(folder, **kept_in(folder)), built.clock, built.console, seed=2
            )
        )
        await again.service.start()
        try:
            state = json.loads((await again.page("/healthz"))[1])["state"]
            assert (state["agents"], state["sessions"]) == (1, 1)
            assert state["loaded_from"] == str(folder / "state.snapshot")
            assert (state["loaded_age_s"], state["age_s"], state["refused"]) == (5.0, 5.0, {})
            assert again.metric("state_loaded_age_seconds") == 5
            assert again.metric("tool_calls_total") == 0
            for batch in some_calls(4, 4):
                await again.service.consume(batch)
        finally:
            await again.service.stop()
        return again.actions(), steps_in(again.audit())

    expected = asyncio.run(whole())
    assert expected[0] == [*["allow"] * 2, *["warn"] * 3, *["block"] * 3]
    assert [step for step, *_ in expected[1]] == ["episode.start", "episode.escalate"]
    assert asyncio.run(halves()) == expected


def steps_in(trail: list[dict[str, Any]]) -> list[Any]:
    """What a trail says of episodes, but for the chain and the clock."""
    names = ("type", "episode", "entity", "observed", "count", "span_id", "reason", "start")
    return [
        tuple(record[name] for name in names)
        for record in trail
        if record["type"].startswith("episode.")
    ]


@pytest.mark.parametrize("damaged", ["last", "both", "none"])
def test_what_cannot_be_read_never_stops_a_start(tmp_path: Path, damaged: str) -> None:
    """
    Scenario: two snapshots, of which the last or both are damaged; the service starts.
    Guarantees: it starts, from the one before or cold; health and the metric say which was refused
    and why; the damaged file is set aside.
    """
    path = tmp_path / "state.snapshot"

    async def once() -> None:
        async with running_service(tmp_path, **kept_in(tmp_path)) as at:
            await at.consume(calls(1))

    async def play_it() -> None:
        async with running_service(tmp_path, **kept_in(tmp_path)) as at:
            state = json.loads((await at.page("/healthz"))[1])["state"]
            from_ = {"none": path, "last": before(path)}.get(damaged)
            assert state["loaded_from"] == (None if from_ is None else str(from_))
            assert state["agents"] == (0 if from_ is None else 1)
            bad = {"none": [], "last": [path.name], "both": [path.name, before(path).name]}[damaged]
            assert state["refused"] == dict.fromkeys(bad, "it is no snapshot")
            assert at.metric("state_snapshots_total", result="refused") == len(bad)
            for name in bad:
                assert (tmp_path / f"{name}.refused").read_bytes() == b"\0" * 100

    for _ in range(2):
        asyncio.run(once())
    if damaged != "none":
        path.write_bytes(b"\0" * 100)
    if damaged == "both":
        before(path).write_bytes(b"\0" * 100)
    asyncio.run(play_it())


def test_any_error_of_a_load_is_a_cold_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a bug of ours while a snapshot is read.
    Guarantees: a cold start; the log has the error.
    """

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(snapshots, "load", broken)
    config = config_in(tmp_path, **kept_in(tmp_path))
    kept = Snapshots(config, StandingClock(), Telemetry())
    assert kept.load() is None
    assert "KeyError" in caplog.text


class Learning:
    """A learner under virtual time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def at_once(function: Any, *arguments: Any) -> Any:
            await asyncio.sleep(0.5)
            return function(*arguments)

        monkeypatch.setattr(asyncio, "to_thread", at_once)
        sections = kept_in(folder, interval="10s")
        self.config = Config.model_validate({"identity": {"limits": ROOMY}, **sections})
        self.clock, self.telemetry = StandingClock(), Telemetry()
        self.processor = Processor(self.config, TakesAll(), self.telemetry, seed=1)
        self.snapshots = Snapshots(self.config, self.clock, self.telemetry)
        self.path = folder / "state.snapshot"
        self._batches = iter(some_calls(0, 100))

    def pages(self) -> bytes:
        return b""

    def work(self) -> None:
        self.processor.process(next(self._batches))

    def count(self, result: str) -> float:
        name = f"{PREFIX}_state_snapshots_total"
        value = self.telemetry.registry.get_sample_value(name, {"result": result})
        assert value is not None
        return value

    def age(self) -> float | None:
        return self.telemetry.registry.get_sample_value(f"{PREFIX}_state_snapshot_age_seconds")


def test_written_on_interval_when_something_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: calls in some intervals, none in others, then a demand, then the end; a second call
    while the memory for the copy is made.
    Guarantees: written once an interval with news, not without; on demand at once and always; at
    the end what came since. Each holds all that came before it was copied. Age and size are told.
    """
    learner = Learning(tmp_path, monkeypatch)

    async def story() -> None:
        learner.snapshots.start(learner)
        await asyncio.sleep(11.5)
        assert (learner.count("unchanged"), learner.path.exists()) == (1, False)
        learner.work()
        await asyncio.sleep(8.6)  # The copy is being prepared.
        learner.work()
        await asyncio.sleep(2)
        assert read(learner.path, BIG).kept.watermark[1] == 2
        learner.clock.wall_ns += 3 * SECOND_NS
        assert learner.age() == 3
        await asyncio.sleep(30)
        assert (learner.count("written"), learner.count("unchanged")) == (1, 4)
        learner.snapshots.ask()
        await asyncio.sleep(2)
        assert learner.count("written") == 2
        assert read(learner.path, BIG).written_ns == learner.clock.now_ns()
        learner.work()
        assert await learner.snapshots.finish()
        assert read(learner.path, BIG).kept.watermark[1] == 3
        size = learner.telemetry.registry.get_sample_value(f"{PREFIX}_state_snapshot_bytes")
        assert size == learner.path.stat().st_size

    play(story())


def test_a_disk_that_fails_is_told_and_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: the disk is full for two intervals, then has room again; at the end it is full.
    Guarantees: counted each time, logged once; told as a problem until it is over; the last attempt
    says that it failed, so that episodes are ended instead.
    """
    learner = Learning(tmp_path, monkeypatch)
    full = True

    def write(path: Path, snapshot: Any) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(path, snapshot)

    real = snapshots.write
    monkeypatch.setattr(snapshots, "write", write)

    async def story() -> None:
        nonlocal full
        learner.snapshots.start(learner)
        learner.work()
        await asyncio.sleep(22.5)
        assert learner.count("failed") == 2
        assert learner.snapshots.problem.endswith("state.snapshot: No space left on device")
        assert caplog.text.count("could not be written") == 1
        full = False
        await asyncio.sleep(11)
        assert (learner.count("written"), learner.snapshots.problem) == (1, "")
        full = True
        assert not await learner.snapshots.finish()

    play(story())


def broken_once(learner: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel raises: all that was learned is forgotten."""
    with monkeypatch.context() as patch:
        patch.setattr("otel_anomaly.processor.judge", lambda *_: 1 / 0)
        learner.work()
    learner.snapshots.emptied()


def test_what_was_learned_outlives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: two calls are learned and written; detection fails, and for a while nothing comes;
    then a call an interval, and another failure, and calls again.
    Guarantees: nothing is written over the good snapshot before something is learned; then it stays
    aside, told in the log, also when there is nothing else left of that time.
    """
    learner = Learning(tmp_path, monkeypatch)
    aside = tmp_path / "state.snapshot.before-failure"

    async def story() -> None:
        learner.snapshots.start(learner)
        learner.work()
        learner.work()
        await asyncio.sleep(12)
        broken_once(learner, monkeypatch)
        await asyncio.sleep(30)
        assert read(learner.path, BIG).kept.watermark[1] == 2
        assert not aside.exists()
        for _ in range(3):
            learner.work()
            await asyncio.sleep(11)
        broken_once(learner, monkeypatch)
        for _ in range(3):
            learner.work()
            await asyncio.sleep(11)
        assert read(aside, BIG).kept.watermark[1] == 2
        assert read(learner.path, BIG).kept.watermark[1] == 3
        assert str(aside) in caplog.text

    play(story())


def test_a_stop_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: detection fails, also while a snapshot is written; then the service stops at once.
    Guarantees: the last snapshot is of what was learned before.
    """
    learner = Learning(tmp_path, monkeypatch)

    async def story() -> None:
        learner.snapshots.start(learner)
        learner.work()
        await asyncio.sleep(10.8)  # It is copied, and is being written.
        broken_once(learner, monkeypatch)
        assert not learner.path.exists()
        await asyncio.sleep(1)
        assert await learner.snapshots.finish()
        assert read(learner.path, BIG).kept.watermark[1] == 1

    play(story())


def test_a_disk_that_hangs_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the last snapshot is never written.
    Guarantees: that is waited for so long and no longer, told and counted.
    """
    learner = Learning(tmp_path, monkeypatch)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        learner.snapshots.start(learner)
        learner.work()
        monkeypatch.setattr(asyncio, "to_thread", lambda *_: asyncio.sleep(86400))
        began = loop.time()
        assert not await learner.snapshots.finish()
        assert loop.time() - began == snapshots.LAST_S
        assert learner.count("failed") == 1
        assert learner.snapshots.problem

    play(story())


def test_switched_off(tmp_path: Path) -> None:
    """
    Scenario: snapshots are off, with a file where they would lie.
    Guarantees: it is neither read nor written; episodes end with the service.
    """
    path = tmp_path / "state.snapshot"
    path.write_bytes(b"mine")

    async def story() -> None:
        async with running_service(tmp_path) as at:
            await at.consume(calls(4))
            assert at.service.health()["status"] == "ok"
        assert at.lines() == ["WARN", "END"]

    asyncio.run(story())
    assert path.read_bytes() == b"mine"
    assert sorted(tmp_path.glob("state*")) == [path]


def test_what_can_be_changed_while_running(tmp_path: Path) -> None:
    """
    Scenario: another interval; another path; off.
    Guarantees: the first is taken over; the others are refused and nothing is changed.
    """
    kept = Snapshots(config_in(tmp_path, **kept_in(tmp_path)), StandingClock(), Telemetry())
    kept.reconfigure(config_in(tmp_path, **kept_in(tmp_path, interval="5s")))
    for more in ({"path": "elsewhere"}, {"enabled": False}):
        with pytest.raises(ValueError, match="need a restart"):
            kept.reconfigure(config_in(tmp_path, **kept_in(tmp_path, **more)))


def test_one_service_to_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: a directory that another holds; then one that nobody holds any more.
    Guarantees: refused with exit 3, the directory and who has it; the lock ends with its owner.
    """
    with DirectoryLock(tmp_path):
        assert running_in(tmp_path) == os.getpid()
        with pytest.raises(InUse), DirectoryLock(tmp_path):
            pass
        assert running.run(config_in(tmp_path)) == 3
        said = capsys.readouterr().err
        assert f"cannot start: {tmp_path} is in use by process {os.getpid()}" in said
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(LookupError, match="no service runs"):
        running_in(tmp_path)
    with DirectoryLock(tmp_path):
        pass


def test_a_lock_that_says_nothing_of_use(tmp_path: Path) -> None:
    """
    Scenario: whoever holds the lock has not written its number yet; or is in another container,
    where the number is somebody else's.
    Guarantees: nobody is named, so nobody is signalled.
    """
    with DirectoryLock(tmp_path):
        for text, says in ((b"", "just starting"), (b"1234\nelsewhere\n", "another container")):
            (tmp_path / "lock").write_bytes(text)
            with pytest.raises(LookupError, match=says):
                running_in(tmp_path)
    with pytest.raises(LookupError, match="no service runs"):
        running_in(tmp_path / "nowhere")


def test_whoever_asks_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: at the moment of the start a command holds the lock, to see whether a service runs.
    Guarantees: the service starts a moment later.
    """
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        stack.close()

    monkeypatch.setattr(time, "sleep", sleep)
    with contextlib.ExitStack() as stack:
        stack.enter_context(DirectoryLock(tmp_path))
        with DirectoryLock(tmp_path):
            assert len(naps) == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """
    Scenario: a data directory on a file system of a network that has no locks; and a broken one.
    Guarantees: without locks the service runs and says so; broken, it does not; no process is named
    to a command, for the one in the file may be long over.
    """

    def no_lock(*_: object) -> bool:
        raise OSError(code, "no locks here")

    monkeypatch.setattr(directory_lock, "_locked", no_lock)
    if code == errno.EIO:
        with pytest.raises(OSError, match="no locks here"), DirectoryLock(tmp_path):
            pass
        return
    with DirectoryLock(tmp_path):
        assert "nothing keeps a second service out" in caplog.text
        with pytest.raises(LookupError, match="nobody can tell"):
            running_in(tmp_path)


def test_asking_for_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: the command with nobody there; with a service that writes, after a while; with one
    that does not; with snapshots off. Then what is in the file, and in one that is none.
    Guarantees: exit 0 with path, size, age and counts, and no names; else exit 1 and the reason.
    """
    learner = Learning(tmp_path, monkeypatch)
    learner.work()
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**kept_in(tmp_path), "identity": {"limits": ROOMY}}))
    command = ["snapshot", "--config", str(config)]
    assert main(command) == 1
    assert "no service runs on" in capsys.readouterr().err
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *said: signalled.append(said))
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            snapshots.write(learner.path, learner.processor.snapshot(b"", NOW_NS))

    with DirectoryLock(tmp_path):
        good, text = asking.ask(learner.config, sleep=sleep)
        assert (good, len(naps)) == (True, 3)
        assert text.startswith(f"{learner.path}: {learner.path.stat().st_size} bytes, written ")
        assert "agents 1, services 0, sessions 1" in text
        assert "support" not in text
        good, text = asking.ask(learner.config, sleep=lambda _: None, wait_s=1)
        assert not good
        assert "not written within 1 s" in text
    assert signalled == [(os.getpid(), signal.SIGUSR1)] * 2
    assert main([*command, "--set", "storage.snapshots.enabled=false"]) == 1
    assert "none is written" in capsys.readouterr().err
    assert main(["snapshot", "--inspect", str(learner.path)]) == 0
    assert "sessions 1" in capsys.readouterr().out
    for path, says in ((config, "it is no snapshot"), (tmp_path / "x", "there is none")):
        assert main(["snapshot", "--inspect", str(path)]) == 1
        assert says in capsys.readouterr().err
