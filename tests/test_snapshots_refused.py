"""Snapshots that are sound, and that a service had better not go on with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from otel_anomaly import snapshots
from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.replay import Replay
from otel_anomaly.snapshot_file import read
from otel_anomaly.snapshots import Snapshots
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import NOW_NS, StandingClock
from tests.service_rigs import calls, config_in
from tests.service_rigs import running as running_service
from tests.test_snapshots import BIG, kept_in, some_calls
from tests.traffic import Agent, request

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from otel_anomaly.snapshot import Snapshot


async def learned_ahead(folder: Path, ahead_s: int) -> None:
    """A service whose clock runs ahead learns three calls and stops."""
    agent = Agent("support", session="s-1", seed=5)
    async with running_service(folder, **kept_in(folder)) as at:
        at.clock.wall_ns += ahead_s * SECOND_NS
        await at.consume(request([agent.call(at.clock.wall_ns) for _ in range(3)]))
        assert "clock" not in at.service.health()["problems"]
        at.clock.wall_ns -= ahead_s * SECOND_NS
        assert f"{ahead_s} s ahead" in at.service.health()["problems"]["clock"]


def test_what_a_clock_far_ahead_taught_is_not_taken_over(tmp_path: Path) -> None:
    """
    Scenario: three calls are learned while the clock is 30 days ahead; it is put right, and the
    service starts again. Then the agent makes more calls than its limits allow.
    Guarantees: they are found as after any cold start, not all taken for late; the file is set
    aside, and health says why.
    """

    async def again() -> list[str]:
        async with running_service(tmp_path, **kept_in(tmp_path)) as at:
            health = at.service.health()
            assert health["state"]["loaded_from"] is None
            reason = "it has learned calls 2592000 s ahead of the clock"
            assert health["state"]["refused"] == {"state.snapshot": reason}
            assert "clock" not in health["problems"]
            await at.consume(calls(8, seed=1))
            assert at.metric("late_total") == 0
        return at.actions()[3:]

    asyncio.run(learned_ahead(tmp_path, 30 * 86400))
    assert asyncio.run(again()) == [*["allow"] * 2, *["warn"] * 3, *["block"] * 3]
    assert (tmp_path / "state.snapshot.refused").exists()


def test_what_a_clock_somewhat_ahead_taught_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: the same with a clock an hour ahead; then an hour goes by.
    Guarantees: what was learned is kept; log and health say that calls until then count as late, as
    long as that is so, and that the file comes from the future.
    """

    async def again() -> None:
        async with running_service(tmp_path, **kept_in(tmp_path)) as at:
            health = at.service.health()
            assert (health["status"], health["state"]["agents"]) == ("degraded", 1)
            assert health["state"]["loaded_age_s"] == -3600
            assert health["problems"]["clock"].startswith("learned state is 3600 s ahead")
            assert "3600 s ahead of the clock" in caplog.text
            at.clock.wall_ns += 3600 * SECOND_NS
            assert "clock" not in at.service.health()["problems"]

    asyncio.run(learned_ahead(tmp_path, 3600))
    path = tmp_path / "state.snapshot"
    ahead = read(path, BIG)._replace(written_ns=NOW_NS + 3600 * SECOND_NS)
    snapshots.write(path, ahead)
    asyncio.run(again())


def test_a_clock_that_is_not_set_costs_nothing(tmp_path: Path) -> None:
    """
    Scenario: a machine without a battery starts in 1970 with what it learned before.
    Guarantees: that is loaded: it is the clock that is wrong. Its age is told as it is.
    """

    async def before_that() -> None:
        async with running_service(tmp_path, **kept_in(tmp_path)) as at:
            await at.consume(calls(1))

    asyncio.run(before_that())
    clock = StandingClock()
    clock.wall_ns = 3 * SECOND_NS
    kept = Snapshots(config_in(tmp_path, **kept_in(tmp_path)), clock, Telemetry())
    loaded = kept.load()
    assert loaded is not None
    assert kept.status()["loaded_age_s"] == round((3 * SECOND_NS - NOW_NS) / 1e9, 1)
    assert "ahead of the clock" in snapshots.ahead_problem(loaded.state, clock.now_ns())


def test_a_secret_that_is_none_is_not_taken_over(tmp_path: Path) -> None:
    """
    Scenario: what a replay left is put where a service looks; then a replay that begins with it,
    and one that goes on from what a service learned.
    Guarantees: the service refuses the first, for the secret of its hashes is in the source, with
    the reason; the replay takes it; the service takes what was learned under its own.
    """
    path, config = tmp_path / "state.snapshot", config_in(tmp_path, **kept_in(tmp_path))
    snapshots.write(path, learned_by_replay(config))
    again = learned_by_replay(config, path)
    kept = Snapshots(config, StandingClock(), Telemetry())
    assert kept.load() is None
    reason = "a replay wrote it: the secret of its hashes is known to everybody"
    assert kept.status()["refused"] == {path.name: reason}
    assert again.kept.watermark[1] == 2
    path.with_name(path.name + ".refused").rename(path)
    snapshots.write(path, read(path, BIG)._replace(seed=7))
    snapshots.write(path, learned_by_replay(config, path))
    loaded = Snapshots(config, StandingClock(), Telemetry()).load()
    assert loaded is not None
    assert loaded.seed == 7


def learned_by_replay(config: Config, begin_with: Path | None = None) -> Snapshot:
    """What is remembered after one more call."""
    replay = Replay(config, calls=False, writer=None, load_state=begin_with)
    said = 0 if begin_with is None else 1
    replay.processor.process(some_calls(said, 1)[0])
    return replay.processor.snapshot(b"", NOW_NS)
