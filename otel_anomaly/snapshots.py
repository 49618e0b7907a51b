"""When what was learned is read and written: at start, every so often, on demand, at the end.

    load    the last snapshot, else the one before it, else a cold start; a file that is refused is
            set aside as `.refused`, for the next one takes its name. Refused is as well what was
            learned by a clock far ahead: until time catches up, most detectors would see nothing
    save    copied between two requests, written by a thread; never two at once
    empty   detection failed and forgot everything: the last snapshot from before stays beside the
            new ones as `.before-failure`, and none is written until something is learned again

Nothing here stops the service: what cannot be read or written is logged, counted, told in health.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from otel_anomaly.config import effective_detectors, snapshot_path
from otel_anomaly.entities.packing import NotHashes
from otel_anomaly.episodes import read_pages
from otel_anomaly.plans import make_plans, rules_of
from otel_anomaly.resizing import adapt, bytes_of, keep, restore
from otel_anomaly.snapshot import make_room, room_for
from otel_anomaly.snapshot_file import SnapshotRefused, before, read, write
from otel_anomaly.soundness import Unsound, make_sound

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.config import Config
    from otel_anomaly.handoff import Clock
    from otel_anomaly.processor import Processor
    from otel_anomaly.snapshot import Snapshot
    from otel_anomaly.state import State
    from otel_anomaly.telemetry import Telemetry

LOG = logging.getLogger("otel_anomaly")
LAST_S: Final = 10.0
"""The last one may take so long: on a disk that hangs, the queues still have to be drained."""
BYTES_MAX: Final = 1 << 30
"""A file may be so large in any case, else four times what the configuration has room for."""
REPLAY_SEED: Final = 0x6F74656C
"""Of every replay that begins with nothing, so that its findings are the same each time. It is no
secret: a service would let everybody choose names whose hashes are equal."""
AHEAD_S: Final = 60
"""Calls are at most `max_clock_skew`, 30 s, ahead of the clock. Beyond this the clock went back."""
AHEAD_S_MAX: Final = 86_400
"""Up to a day is waited for and told; beyond it a cold start learns sooner."""
CLOCK_SET_S: Final = 1_577_836_800
"""2020. A machine without a battery starts in 1970, until it is told the time: then what is ahead
of the clock is right, and good as soon as the clock is."""


class Loaded(NamedTuple):
    """What was read at start."""

    state: State
    seed: int
    book: bytes
    """For `episodes.read_pages`, which took it once."""
    written_ns: int
    path: Path


class Learner(Protocol):
    """Whose snapshots are written."""

    @property
    def processor(self) -> Processor:
        """Holds the state."""

    def pages(self) -> bytes:
        """The book of open episodes."""


def load(path: Path, config: Config) -> Loaded:
    """A snapshot as a state of `config`.

    Raises
    ------
    FileNotFoundError
        There is none.
    SnapshotRefused
        It cannot be used; it says why.
    """
    snapshot = read(path, max(BYTES_MAX, 4 * bytes_of(config)))
    try:
        make_sound(snapshot.kept, len(effective_detectors(config)))
        read_pages(snapshot.book)
        state = restore(snapshot.kept, config)
    except (Unsound, NotHashes) as error:
        raise SnapshotRefused(str(error)) from error
    except ValueError as error:
        raise SnapshotRefused(f"book: {error}") from error
    except MemoryError as error:
        raise SnapshotRefused("not enough memory") from error
    if snapshot.rules != rules_of(make_plans(config, snapshot.seed)):
        adapt(state, config)
    return Loaded(state, snapshot.seed, snapshot.book, snapshot.written_ns, path)


def ahead_s(state: State, now_ns: int) -> float:
    """How far the latest call learned is ahead of the clock; negative when it is not."""
    return (int(state.watermark[0]) - now_ns) / 1e9


def ahead_problem(state: State, now_ns: int) -> str:
    """For health: calls that look late for what was learned by a clock that ran ahead."""
    ahead = ahead_s(state, now_ns)
    if ahead <= AHEAD_S:
        return ""
    return (
        f"learned state is {ahead:.0f} s ahead of the clock: calls until then count as late, and"
        " most detectors do not see them. If the clock is right now: stop, remove the snapshot and"
        " the one before it (.1), start"
    )


def _check_for_a_service(loaded: Loaded, now_ns: int) -> None:
    """Raises SnapshotRefused for what only a replay may go on with."""
    if loaded.seed == REPLAY_SEED:
        raise SnapshotRefused("a replay wrote it: the secret of its hashes is known to everybody")
    ahead = ahead_s(loaded.state, now_ns)
    if ahead > AHEAD_S_MAX and now_ns >= CLOCK_SET_S * 10**9:
        raise SnapshotRefused(f"it has learned calls {ahead:.0f} s ahead of the clock")


class Snapshots:
    """The snapshots of one service."""

    def __init__(self, config: Config, clock: Clock, telemetry: Telemetry) -> None:
        self._config, self._section = config, config.storage.snapshots
        self._path = snapshot_path(config)
        self._clock, self._telemetry = clock, telemetry
        self._asked = self._stopping = False
        self._woken = asyncio.Event()
        """What the task goes by is not what it was."""
        self._task: asyncio.Task[None] | None = None
        self._learner: Learner | None = None
        self._written: tuple[int, ...] | None = None
        self._written_ns: int | None = None
        self._loaded: Loaded | None = None
        self._loaded_age_s = 0.0
        self._refusals: dict[str, str] = {}
        self._emptied = False
        self._set_aside = False
        self.problem = ""
        """Why the last one could not be written."""
        self._started_ns = clock.now_ns()
        telemetry.snapshot_age.set_function(self._age_s)

    def load(self) -> Loaded | None:
        """What can be read, the last one first; None: a cold start."""
        if not self._section.enabled:
            return None
        for path in (self._path, before(self._path)):
            try:
                loaded = load(path, self._config)
                _check_for_a_service(loaded, self._clock.now_ns())
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001 - whatever is in a file, the service starts.
                self._refuse(path, error)
                continue
            self._loaded, self._written_ns = loaded, loaded.written_ns
            self._loaded_age_s = self._age_s()
            self._telemetry.loaded_age.set(self._loaded_age_s)
            LOG.info("state loaded from %s, written %.0f s ago", path, self._loaded_age_s)
            problem = ahead_problem(loaded.state, self._clock.now_ns())
            if problem:
                LOG.error("%s: %s", path, problem)
            return loaded
        why = "none that can be used" if self._refusals else "there is none yet"
        LOG.info("cold start: nothing learned before (%s: %s)", self._path, why)
        return None

    def _refuse(self, path: Path, error: Exception) -> None:
        known = isinstance(error, SnapshotRefused)
        reason = str(error) if known else f"it cannot be read: {type(error).__name__}"
        self._refusals[path.name] = reason
        self._telemetry.snapshots.labels("refused").inc()
        LOG.error("snapshot %s refused: %s", path, reason, exc_info=None if known else error)
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".refused"))

    def _age_s(self) -> float:
        """Seconds since the last one, else since the start; negative: the clock went back."""
        since_ns = self._started_ns if self._written_ns is None else self._written_ns
        return (self._clock.now_ns() - since_ns) / 1e9

    def status(self) -> dict[str, object]:
        """For /healthz: where the state comes from, how old that was, what would be lost now."""
        loaded = self._loaded
        return {
            "loaded_from": None if loaded is None else str(loaded.path),
            "loaded_age_s": None if loaded is None else round(self._loaded_age_s, 1),
            "age_s": round(self._age_s(), 1),
            "refused": dict(self._refusals),
        }

    def reconfigure(self, config: Config) -> None:
        """Take over another interval. Raises ValueError for what needs a restart."""
        section = config.storage.snapshots
        if section.enabled != self._section.enabled or snapshot_path(config) != self._path:
            raise ValueError("storage.snapshots: enabled and path need a restart")
        self._config, self._section = config, section
        self._woken.set()

    def start(self, learner: Learner) -> None:
        """Write every `interval` from now on."""
        self._learner = learner
        if self._section.enabled:
            self._written = learner.processor.progress()
            self._task = asyncio.create_task(self._write_forever())

    def emptied(self) -> None:
        """All that was learned is forgotten: what is on the disk is better than what is here."""
        self._emptied = True
        if self._learner is not None:
            self._written = self._learner.processor.progress()

    def ask(self) -> None:
        """Write one soon, also when nothing has changed."""
        self._asked = True
        self._woken.set()

    async def _write_forever(self) -> None:
        while not self._stopping:
            await self._next_turn()
            asked, self._asked = self._asked, False
            if not self._stopping:
                await self._save(always=asked)

    async def _next_turn(self) -> None:
        """Wait for the end of the interval, which may become another meanwhile, or a demand."""
        began_s = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            while not (self._asked or self._stopping):
                self._woken.clear()
                # Not `wait_for`: before Python 3.12 it loses a cancellation that meets the event.
                async with asyncio.timeout_at(began_s + self._section.interval / 1e9):
                    await self._woken.wait()

    async def finish(self) -> bool:
        """Write the last one. Returns whether what is open now goes on with the next start."""
        self._stopping = True
        self._woken.set()
        if self._task is None:
            return self._loaded is not None  # Nothing came since it was read.
        last = asyncio.create_task(self._write_the_last(self._task))
        done, _ = await asyncio.wait({last}, timeout=LAST_S)
        if not done:
            self._failed(TimeoutError())
        return bool(done) and last.result()

    async def _write_the_last(self, former: asyncio.Task[None]) -> bool:
        await former
        # What time alone changed, such as episodes that ended, is no progress.
        return await self._save(always=not self._emptied)

    async def _save(self, *, always: bool) -> bool:
        """Write one, if there is any news. Returns whether that is as it should be."""
        learner = self._learner
        assert learner is not None
        progress = learner.processor.progress()
        if progress == self._written and not always:
            self._telemetry.snapshots.labels("unchanged").inc()
            return True
        try:
            # Memory may be short, and then nothing else should suffer.
            room = await asyncio.to_thread(make_room, room_for(keep(learner.processor.state)))
            progress, forgot = learner.processor.progress(), self._emptied
            snapshot = learner.processor.snapshot(learner.pages(), self._clock.now_ns(), room)
            size = await asyncio.to_thread(write, self._path, snapshot)
        except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on.
            self._failed(error)
            return False
        self._written_ns = snapshot.written_ns
        if forgot:
            self._keep_the_fuller()
        if not self._emptied:  # Else it was emptied while this was written.
            self._written = progress
        self._telemetry.snapshots.labels("written").inc()
        self._telemetry.snapshot_bytes.set(size)
        if self.problem:
            LOG.info("snapshots are written again")
        self.problem = ""
        return True

    def _keep_the_fuller(self) -> None:
        """Set aside what was written before the failure: of several, before the first."""
        self._emptied = False
        if self._set_aside:
            return
        aside = self._path.with_name(self._path.name + ".before-failure")
        with contextlib.suppress(OSError):
            before(self._path).replace(aside)
            self._set_aside = True
            LOG.warning(
                "what was learned before detection failed stays in %s: to go back to it, stop the"
                " service and give that file the name %s",
                *(aside, self._path.name),
            )

    def _failed(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or type(error).__name__
        self._telemetry.snapshots.labels("failed").inc()
        if not self.problem:  # Once a bout.
            LOG.error("a snapshot could not be written: %s: %s", self._path, reason)
        self.problem = f"{self._path}: {reason}"


def inspect(path: Path) -> dict[str, int]:
    """What is in a snapshot, without a name. Raises as `load`."""
    snapshot: Snapshot = read(path, 1 << 62)
    kept = snapshot.kept
    try:
        make_sound(kept, 1)
        book = read_pages(snapshot.book)
    except ValueError as error:
        raise SnapshotRefused(str(error)) from error
    counts = {
        name: int(np.count_nonzero(getattr(kept, name).rows["key"]))
        for name in ("agents", "services", "sessions", "traces")
    }
    return {
        "written_ns": snapshot.written_ns,
        "bytes": path.stat().st_size,
        **counts,
        "spans": kept.links.older.size + kept.links.newer.size,
        "calls": int(np.count_nonzero(kept.journal["serial"])),
        "open_episodes": len(book),
    }
