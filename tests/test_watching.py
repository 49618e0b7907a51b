"""A configuration file that changes is read again: once it has changed and is whole."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import SECOND_NS, Config, ConfigError, Source
from otel_anomaly.reloading import Reloads
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import StandingClock
from tests.simulation.loop import play

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

INTERVAL_S = 5


class Watched:
    """A watcher in virtual time, and how often it made somebody read the file."""

    def __init__(self, file: Path) -> None:
        self.file, self.applied = file, []
        self.interval_ns = INTERVAL_S * SECOND_NS
        source = Source((file,))
        source.load()
        self.reloads = Reloads(source, self.apply, Telemetry(), StandingClock())

    async def apply(self, config: Config) -> bool:
        """Note what was read."""
        self.applied.append(config.detectors.rate.warn)
        return True

    async def serve(self, story: AsyncIterator[None]) -> None:
        """Tell a story; ten looks go by at each of its steps."""
        tasks = [
            asyncio.create_task(self.reloads.serve()),
            asyncio.create_task(self.reloads.watch(lambda: self.interval_ns)),
        ]
        await asyncio.sleep(INTERVAL_S * 10)
        async for _ in story:
            await asyncio.sleep(INTERVAL_S * 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def watching(file: Path, story: Callable[[Watched], AsyncIterator[None]]) -> list[int]:
    """The limits that were read, in order."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(limit(1))
    watched: list[Watched] = []

    async def main() -> None:
        watched.append(Watched(file))
        await watched[0].serve(story(watched[0]))

    run(main())
    return watched[0].applied


def run(main: Coroutine[None, None, None]) -> None:
    """In virtual time; threads are steps of it."""
    play(main, random.Random(1), 0.0)


def limit(warn: int) -> str:
    """A configuration."""
    return f"detectors: {{rate: {{warn: {warn}}}}}\n"


def test_replaced_and_rewritten(tmp_path: Path) -> None:
    """
    Scenario: a file that is replaced by another, then written in place, then touched, then taken
    away for a while and put back as it was.
    Guarantees: it is read once for each change of what it says, and not when it says the same.
    """

    async def story(watched: Watched) -> AsyncIterator[None]:
        file = watched.file
        other = file.with_suffix(".new")
        other.write_text(limit(2))
        other.replace(file)
        yield
        file.write_text(limit(3))
        yield
        file.touch()
        yield
        file.write_text(limit(3))
        yield

    assert watching(tmp_path / "config.yaml", story) == [2, 3]


def test_changed_while_the_service_started(tmp_path: Path) -> None:
    """
    Scenario: a file is replaced after it was read and before the watcher looks for the first time,
    as while a first start compiles its kernels.
    Guarantees: it is read.
    """
    file = tmp_path / "config.yaml"
    file.write_text(limit(1))

    applied: list[int] = []

    async def nothing_more() -> AsyncIterator[None]:
        yield

    async def main() -> None:
        watched = Watched(file)
        file.write_text(limit(2))
        await watched.serve(nothing_more())
        applied.extend(watched.applied)

    run(main())
    assert applied == [2]


def test_a_directory_exchanged_by_its_link(tmp_path: Path) -> None:
    """
    Scenario: a Kubernetes ConfigMap: the file is a link through `..data`, a link to a directory
    that is exchanged as a whole.
    Guarantees: what the new directory holds is read.
    """
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / "config.yaml").write_text(limit(number))
    (tmp_path / "..data").symlink_to("v1")
    file = tmp_path / "config.yaml"
    file.symlink_to("..data/config.yaml")

    async def story(watched: Watched) -> AsyncIterator[None]:
        assert watched.file.is_symlink()
        (tmp_path / "..fresh").symlink_to("v2")
        (tmp_path / "..fresh").replace(tmp_path / "..data")
        yield

    assert watching(file, story) == [2]


def test_a_file_still_being_written(tmp_path: Path) -> None:
    """
    Scenario: a file grows from look to look, valid at every moment, for a minute.
    Guarantees: it is read when it is whole, once.
    """

    async def story(watched: Watched) -> AsyncIterator[None]:
        for warn in range(2, 14):
            watched.file.write_text(limit(warn))
            await asyncio.sleep(INTERVAL_S)
        yield

    assert watching(tmp_path / "config.yaml", story) == [13]


def test_a_bad_file_is_read_once(tmp_path: Path) -> None:
    """
    Scenario: the file becomes nonsense, stays so for many looks, is gone for many, and is good.
    Guarantees: nonsense is refused once, not at every look; a file that is gone is told as well;
    the good one is read; a person who asks is served at any time.
    """
    problems: list[str | None] = []

    async def story(watched: Watched) -> AsyncIterator[None]:
        refused = watched.reloads._telemetry.config_reloads.labels("refused")._value
        for change in (lambda: watched.file.write_text("{"), watched.file.unlink):
            change()
            yield
            problems.append(watched.reloads.problem)
        assert refused.get() == 2
        watched.reloads.request()
        yield
        assert refused.get() == 3
        watched.file.write_text(limit(4))
        yield
        problems.append(watched.reloads.problem)

    assert watching(tmp_path / "config.yaml", story) == [4]
    assert "config.yaml:1" in str(problems[0])
    assert "No such file" in str(problems[1])
    assert problems[2] is None


def test_watching_is_switched_at_run_time(tmp_path: Path) -> None:
    """
    Scenario: the file changes while it is not watched; then it is.
    Guarantees: nothing is read before; then what it says is.
    """

    async def story(watched: Watched) -> AsyncIterator[None]:
        watched.interval_ns = 0
        yield
        watched.file.write_text(limit(5))
        yield
        assert watched.applied == []
        watched.interval_ns = INTERVAL_S * SECOND_NS
        yield

    assert watching(tmp_path / "config.yaml", story) == [5]


def test_a_mistake_of_ours_does_not_end_it(tmp_path: Path) -> None:
    """
    Scenario: going over to a configuration raises what nobody expects; a file cannot be loaded for
    a reason of its own; then all is well.
    Guarantees: each is a refusal; the next one is served.
    """
    raised = [RuntimeError("s3cret"), ValueError("storage.directory: needs a restart"), None]
    told: list[str | None] = []

    async def apply(_: Config) -> bool:
        if error := raised.pop(0):
            raise error
        return False

    async def main() -> None:
        reloads = Reloads(Source(), apply, Telemetry(), StandingClock())
        while raised:
            await reloads.reload()
            told.append(reloads.problem)

    run(main())
    assert told == ["a mistake of ours: RuntimeError", "storage.directory: needs a restart", None]


def test_a_source_reads_what_stands_there(tmp_path: Path) -> None:
    """
    Scenario: a source of two files and an override; a file changes, goes, comes back.
    Guarantees: it loads what `load_config` would; its fingerprint tells each state from the others
    and is the same for the same.
    """
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(limit(1))
    two.write_text(limit(2))
    source = Source((one, two), ("detectors.rate.block=77",))
    assert source.load().detectors.rate.model_dump() | {"warn": 2, "block": 77} == (
        source.load().detectors.rate.model_dump()
    )
    prints = [source.fingerprint()]
    two.write_text(limit(3))
    prints.append(source.fingerprint())
    two.unlink()
    prints.append(source.fingerprint())
    with pytest.raises(ConfigError, match=r"two\.yaml"):
        source.load()
    two.write_text(limit(2))
    assert source.fingerprint() == prints[0]
    assert len(set(prints)) == 3
