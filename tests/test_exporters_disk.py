"""The queue on disk: crashes, restarts, outages and failing disks, in virtual time and by seed.

`SIM_SEEDS=500` plays more worlds, `SIM_SEED=17` replays one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.exporters import Fanout
from otel_anomaly.exporters.contract import SENT, SendResult, rejected, retry
from otel_anomaly.exporters.disk_files import RealFiles
from otel_anomaly.exporters.disk_queue import DiskQueue
from otel_anomaly.exporters.disk_store import DiskStore
from otel_anomaly.exporters.disk_worker import ThreadWorker
from otel_anomaly.exporters.pace import Pace
from otel_anomaly.exporters.queue import RETRY_AFTER_S_MAX
from otel_anomaly.handoff import Outcome, Payload, Reply, Signal
from otel_anomaly.telemetry import Telemetry
from tests.disk_world import PatientWorker, SimDisk, store_on
from tests.exporters_world import Books, ScriptedExporter, queue_of, section
from tests.simulation.seeds import seeds
from tests.virtual_time import play

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

KIB, MIB = 1 << 10, 1 << 20
RECORD = 16


class Rig:
    """A disk queue, its next hop and its books; `again` is the process after a restart."""

    def __init__(self, disk: SimDisk, *, delay_s: float = 0.001, **queue: object) -> None:
        self.disk = disk
        self.cpu_s = 0.0
        """CPU time of the process."""
        self.telemetry = Telemetry(["next"])
        self.hop = ScriptedExporter()
        keys = section(queue={"storage": "disk", "disk_size": "16MiB", **queue})
        settings = keys.sending_queue
        self.queue = DiskQueue(
            "next",
            self.hop,
            keys,
            self.telemetry,
            lambda: 0.5,
            store=store_on(disk, size=settings.disk_size, fsync=settings.fsync),
            worker=PatientWorker(lambda: delay_s),
            pace=Pace(lambda: self.cpu_s),
        )
        self.fanout = Fanout([self.queue])
        self.books = Books(self.telemetry)

    def send(self, body: bytes, items: int = 1, signal: Signal = Signal.TRACES) -> Pending:
        """Reserve and commit; the open answer, or the refusal."""
        outcome = self.fanout.reserve(len(body))
        if outcome is not Outcome.ACCEPTED:
            return Pending(Reply(outcome))
        answer = self.fanout.commit(Payload(body, signal, items), len(body))
        assert answer is not None, "nothing is told before it is on disk"
        return Pending(answer)

    def balance(self) -> tuple[int, int]:
        """Both sides of the ledger, but for what came in this time."""
        books = self.books
        return books.sent + books.dropped() + books.held, books.read(self.telemetry.recovered_spans)


class Pending:
    """An answer that may still be open."""

    def __init__(self, answer: Reply | Awaitable[Reply]) -> None:
        self.answer = answer

    async def outcome(self) -> Outcome:
        if isinstance(self.answer, Reply):
            return self.answer.outcome
        return (await self.answer).outcome


def records(body: bytes) -> list[bytes]:
    """The numbered records in a request."""
    return [body[i : i + RECORD] for i in range(0, len(body), RECORD)]


def record(number: int, size: int = 1) -> bytes:
    return b"%016d" % number * size


def on(disk: SimDisk, scenario: Callable[[Rig], Coroutine[Any, Any, None]], **keys: Any) -> None:
    """Start a process on a disk, play, and end it by kill -9 if the scenario has not stopped it."""

    async def whole() -> None:
        rig = Rig(disk, **keys)
        await rig.fanout.start()
        await scenario(rig)
        if not rig.hop.closed:
            await killed(disk)

    play(whole())


async def killed(disk: SimDisk) -> None:
    """kill -9: no task goes on, what is written is written."""
    disk.kill()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_ok_means_on_disk() -> None:
    """
    Scenario: a request is handed over to a slow disk; the next hop is away; the process is killed
    as soon as the client has heard OK.
    Guarantees: no word before it is written; the next process has it, says so in its ledger, and
    delivers it once.
    """
    disk = SimDisk(random.Random(0))

    async def first(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        pending = rig.send(record(1, 100), items=7)
        await asyncio.sleep(0.5)
        assert isinstance(pending.answer, asyncio.Future)
        assert not pending.answer.done()
        assert await pending.outcome() is Outcome.ACCEPTED

    async def second(rig: Rig) -> None:
        assert rig.balance() == (7, 7)
        assert rig.books.held == 7
        await asyncio.sleep(5)
        assert rig.hop.bodies == [record(1, 100)]
        assert (rig.books.sent, rig.books.held) == (7, 0)
        assert await rig.fanout.stop(1) == {"next": 0}
        assert disk.nodes == {}

    on(disk, first, delay_s=1)
    on(disk, second, delay_s=1)


def test_memory_is_bounded_whatever_lies_on_disk() -> None:
    """
    Scenario: 10 MB wait on disk while the queue may have 1 MiB in memory; then the next hop works.
    Guarantees: never more than that in memory; all is delivered, each once.
    """
    disk = SimDisk(random.Random(0))

    async def scenario(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        for number in range(1000):
            assert await rig.send(record(number, 640)).outcome() is Outcome.ACCEPTED
        queue = rig.queue
        assert queue._fresh_charge <= MIB // 2
        assert queue._backlog_charge <= MIB // 4
        rig.hop.judge = lambda _: SENT
        while rig.books.held:
            await asyncio.sleep(0.1)
            assert queue._fresh_charge + queue._backlog_charge <= MIB
        seen = Counter(each for body in rig.hop.bodies for each in records(body))
        tried = [records(attempt.body)[0] for attempt in rig.hop.attempts]
        assert set(seen) == {record(number) for number in range(1000)}
        assert rig.books.sent == 1000
        assert len(tried) < 1100
        await rig.fanout.stop(1)

    on(disk, scenario, queue_size="1MiB", batch={"max_size": "64KiB"})


@pytest.mark.parametrize("size", [4 * KIB, 300 * KIB])
def test_what_is_under_way_counts_to_the_memory(size: int) -> None:
    """
    Scenario: 200 requests lie on disk alone, small or large; 32 consumers take them to a next hop
    that does not answer. Later it does.
    Guarantees: what the consumers hold and what is read ahead is no more than a quarter of the
    memory, or one request more where they are larger; then all is delivered.
    """
    disk = SimDisk(random.Random(0))

    async def fill(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        for number in range(200):
            assert await rig.send(record(number, size // RECORD)).outcome() is Outcome.ACCEPTED

    async def hang(rig: Rig) -> None:
        answers = asyncio.Event()

        async def late() -> None:
            await answers.wait()

        rig.hop.script = [late() for _ in range(300)]  # type: ignore[list-item]
        await asyncio.sleep(30)
        attempts = sum(len(attempt.body) for attempt in rig.hop.attempts)
        assert size <= attempts <= max(MIB // 4, size + KIB)
        answers.set()
        while rig.books.held:  # noqa: ASYNC110 - the time is virtual.
            await asyncio.sleep(0.1)
        assert rig.books.sent == 200
        for step in rig.hop.script:
            step.close()  # type: ignore[union-attr]
        await rig.fanout.stop(1)

    keys = {
        "disk_size": "128MiB",
        "queue_size": "1MiB",
        "num_consumers": 32,
        "batch": {"max_size": "16KiB"},
    }
    on(disk, fill, **keys)
    on(disk, hang, **keys)


def test_a_full_disk_refuses_at_the_door() -> None:
    """
    Scenario: the disk fills up while the next hop is away; later it has room again.
    Guarantees: refused before anything is taken, as a full queue, with the longest wait; health
    says why; nothing that was accepted is lost; when there is room, requests are taken again.
    """
    disk = SimDisk(random.Random(0), room=12 * MIB)

    async def scenario(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        outcomes = [await rig.send(record(n, 4 * KIB)).outcome() for n in range(300)]
        count = outcomes.count(Outcome.ACCEPTED)
        assert 160 < count < 192
        assert set(outcomes[count:]) == {Outcome.QUEUE_FULL}
        assert rig.fanout.retry_after_s() == RETRY_AFTER_S_MAX
        assert "full" in rig.fanout.problems()["exporters.next"]
        assert rig.books.dropped() == 0
        disk.room = 1 << 40
        await asyncio.sleep(1)
        again = [await rig.send(record(1000 + n, 4 * KIB)).outcome() for n in range(3)]
        assert Outcome.ACCEPTED in again
        assert "disk" not in rig.fanout.problems().get("exporters.next", "")
        rig.hop.judge = lambda _: SENT
        await rig.fanout.stop(1000)
        seen = {each for body in rig.hop.bodies for each in records(body)}
        assert {record(number) for number in range(count)} <= seen

    on(disk, scenario)


def test_a_disk_that_is_asked_for_room_is_not_full() -> None:
    """
    Scenario: requests come at every moment of the rounds at a disk that has room, also while one
    makes a segment and sets room aside.
    Guarantees: none is refused, and no long wait is asked for: only a round that has come to its
    end says that the disk is full.
    """
    disk = SimDisk(random.Random(0))
    met: dict[str, set[Outcome]] = {}
    waits_s: list[float] = []

    async def scenario(rig: Rig) -> None:
        def come(call: str, _name: str) -> None:
            outcome = rig.fanout.reserve(KIB)
            met.setdefault(call, set()).add(outcome)
            if outcome is Outcome.ACCEPTED:
                rig.fanout.release(KIB)
            waits_s.append(rig.fanout.retry_after_s())

        disk.fault = come
        for number in range(20):
            assert await rig.send(record(number, 64 * KIB)).outcome() is Outcome.ACCEPTED

    on(disk, scenario)
    assert met.keys() >= {"open", "reserve", "write", "sync"}
    assert set().union(*met.values()) == {Outcome.ACCEPTED}
    assert max(waits_s) < RETRY_AFTER_S_MAX


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk(code: int) -> None:
    """
    Scenario: writes fail for a while, with another exporter beside that has its queue in memory.
    Guarantees: clients are asked to send again and health says why; the door is shut for a second,
    then tried; the other exporter goes on; the ledger adds up; then all works again.
    """
    disk = SimDisk(random.Random(0))

    async def scenario(rig: Rig) -> None:
        other = ScriptedExporter()
        memory = queue_of(other, rig.telemetry, name="memory")
        fanout = Fanout([rig.queue, memory])
        await memory.start()
        rig.fanout = fanout
        disk.fault = lambda call, _: OSError(code, "it fails") if call == "write" else None
        assert await rig.send(record(1, 20), items=2).outcome() is Outcome.UNAVAILABLE
        assert (
            "it fails" in fanout.problems()["exporters.next"]
            or "no room" in fanout.problems()["exporters.next"]
        )
        assert await rig.send(record(2, 20)).outcome() is Outcome.QUEUE_FULL
        assert (rig.books.dropped("write_failed"), rig.books.held) == (2, 0)
        disk.fault = lambda _call, _name: None
        await asyncio.sleep(1.1)
        assert await rig.send(record(3, 20), items=4).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(1)
        assert fanout.problems() == {}
        assert rig.hop.bodies == [record(3, 20)]
        assert b"".join(other.bodies) == record(1, 20) + record(3, 20)
        assert (rig.books.sent, rig.books.held) == (4, 0)
        await fanout.stop(1)

    on(disk, scenario)


def test_stop_leaves_the_rest_on_disk(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the next hop hangs; requests are under way, fresh, and on disk alone, when the service
    stops with two seconds to drain.
    Guarantees: nothing is dropped, all is reported as staying on disk, and the next process has it,
    with what was under way in doubt.
    """
    disk = SimDisk(random.Random(0))

    async def first(rig: Rig) -> None:
        rig.hop.script = [asyncio.sleep(1e6) for _ in range(4)]
        outcomes = {await rig.send(record(number, 4 * KIB)).outcome() for number in range(40)}
        assert outcomes == {Outcome.ACCEPTED}
        await asyncio.sleep(1)
        assert await rig.fanout.stop(2) == {"next": 0}
        assert (rig.books.held, rig.books.dropped()) == (40, 0)
        assert rig.hop.closed

    async def second(rig: Rig) -> None:
        assert rig.balance() == (40, 40)
        assert rig.books.read(rig.telemetry.doubtful_spans) == 4
        await rig.fanout.stop(60)
        assert {records(body)[0] for body in rig.hop.bodies} == {record(n) for n in range(40)}
        assert disk.nodes == {}

    keys = {"queue_size": "2MiB", "batch": {"max_size": "64KiB"}}
    on(disk, first, **keys)
    assert "40 requests with 40 spans stay on disk" in caplog.text
    on(disk, second, **keys)


def test_what_was_refused_for_good_leaves_the_disk() -> None:
    """
    Scenario: three merged requests of which one is refused, read again from the disk.
    Guarantees: the others arrive, it is counted as dropped, nothing is left on disk.
    """
    disk = SimDisk(random.Random(0))

    async def first(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        for number in range(3):
            await rig.send(record(number)).outcome()

    async def second(rig: Rig) -> None:
        bad = record(1)
        rig.hop.judge = lambda body: rejected("bad") if bad in body else SENT
        await rig.fanout.stop(30)
        assert (rig.books.sent, rig.books.dropped("rejected"), rig.books.held) == (2, 1, 0)
        assert disk.nodes == {}

    on(disk, first)
    on(disk, second)


class World:
    """Clients, a next hop of moods, a disk, and a process that dies again and again."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.disk = SimDisk(rng)
        self.delivered: Counter[bytes] = Counter()
        self.accepted: set[bytes] = set()
        self.offered = 0
        self.keys = {
            "queue_size": rng.choice(("256KiB", "1MiB")),
            "num_consumers": rng.choice((1, 3)),
            "fsync": rng.choice(("always", "interval", "never")),
            "batch": {"max_size": rng.choice(("1KiB", "100KiB")), "flush_timeout": "200ms"},
        }

    async def answer(self, body: bytes) -> SendResult:
        """The next hop. What it took over it has, whoever dies then."""
        await asyncio.sleep(self.rng.choice((0, 0.01, 0.3)))
        if self.rng.random() < 0.4:
            return retry("busy", 0.5)
        self.delivered.update(set(records(body)))
        await asyncio.sleep(self.rng.choice((0, 0.3)))
        return SENT

    async def client(self, rig: Rig, number: int) -> None:
        size = self.rng.choice((1, 20, 500, 3000))
        kind = self.rng.choice((Signal.TRACES, Signal.TRACES, Signal.LOGS))
        if await rig.send(record(number, size), 3, kind).outcome() is Outcome.ACCEPTED:
            self.accepted.add(record(number))

    async def life(self, *, last: bool) -> None:
        """One process, to its kill -9 or, the last one, to a stop that has all the time."""
        rng = self.rng
        rig = Rig(self.disk, delay_s=rng.choice((0, 0.01, 0.2)), **self.keys)

        async def send(body: bytes, _signal: Signal, _items: int) -> SendResult:
            return await self.answer(body)

        rig.hop.send = send  # type: ignore[method-assign,assignment]
        await rig.fanout.start()
        taken = rig.books.held
        clients = []
        for _ in range(rng.choice((10, 100, 300))):
            clients.append(asyncio.create_task(self.client(rig, self.offered)))
            self.offered += 1
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.1)))
            assert 0 <= rig.books.size <= rig.queue.capacity
            left, recovered = rig.balance()
            assert recovered == taken
            assert left >= recovered
        if last:
            await asyncio.gather(*clients)
            assert await rig.fanout.stop(1e6) == {"next": 0}
            assert (rig.books.held, rig.queue._open) == (0, 0)
        else:
            await killed(self.disk)

    async def play(self) -> None:
        for _ in range(3):
            await self.life(last=False)
        await self.life(last=True)


@pytest.mark.parametrize("seed", seeds(regression=(1, 4021), sweep=12))
def test_killed_again_and_again(seed: int) -> None:
    """
    Scenario: clients send, the next hop is slow and busy, the process is killed three times at any
    moment and started again.
    Guarantees: whatever a client heard OK for is delivered; what is delivered more often was under
    way when the process died, and that is less than what can be at once; the ledger adds up, also
    for what an earlier run had left; at the end the disk is empty.
    """
    world = World(seed)
    play(world.play())
    assert world.accepted <= set(world.delivered)
    assert max(world.delivered.values()) <= 4
    again = sum(count - 1 for count in world.delivered.values())
    parts_max = 1 if world.keys["batch"] == {"max_size": "1KiB"} else 100 * KIB // 256
    assert again <= 3 * 2 * int(str(world.keys["num_consumers"])) * max(parts_max, 4)
    assert {name for name in world.disk.nodes if not name.endswith(".ack")} == set()
    assert world.disk.open_files == 0


def real(folder: Path, hop: ScriptedExporter, telemetry: Telemetry) -> DiskQueue:
    """A queue on a real disk with a real thread."""
    store = DiskStore(RealFiles(folder), size=16 * MIB, fsync="always", key=lambda: 7)
    keys = section(queue={"storage": "disk", "batch": {"flush_timeout": 0}})
    worker = ThreadWorker("next")
    pace = Pace()
    return DiskQueue(
        "next", hop, keys, telemetry, lambda: 0.5, store=store, worker=worker, pace=pace
    )


@pytest.mark.usefixtures("patient_disk")
@pytest.mark.parametrize("can_reserve", [True, False])
def test_on_a_real_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    can_reserve: bool,  # noqa: FBT001 - A case.
) -> None:
    """
    Scenario: 200 requests to a real directory that others could read, next hop away; stopped, and
    started again with a next hop that works; also on a system that cannot reserve room, as macOS.
    Guarantees: all arrive once and in order; the directory and its files are the owner's alone; no
    file, thread or open file is left.
    """
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    folder = tmp_path / "deep" / "queue"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    away, works = ScriptedExporter(), ScriptedExporter()
    away.judge = lambda _: retry("away")
    descriptors = Path("/proc/self/fd")
    opened = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0

    async def first() -> None:
        fanout = Fanout([real(folder, away, Telemetry())])
        await fanout.start()
        answers = []
        for number in range(200):
            assert fanout.reserve(10 * KIB) is Outcome.ACCEPTED
            answers.append(fanout.commit(Payload(record(number, 300), Signal.TRACES, 1), 10 * KIB))
        replies = await asyncio.gather(*[answer for answer in answers if answer is not None])
        assert {reply.outcome for reply in replies} == {Outcome.ACCEPTED}
        assert len(replies) == 200
        await fanout.stop(0)

    async def second() -> None:
        telemetry = Telemetry()
        fanout = Fanout([real(folder, works, telemetry)])
        await fanout.start()
        await fanout.stop(60)
        assert Books(telemetry).sent == 200

    asyncio.run(first())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    asyncio.run(second())
    seen = [each for body in works.bodies for each in records(body)[::300]]
    assert seen == [record(number) for number in range(200)]
    assert [path.name for path in folder.iterdir()] == ["lock"]
    for thread in [one for one in threading.enumerate() if one.name.startswith("queue")]:
        thread.join(60)
        assert not thread.is_alive()
    if opened:
        assert len(list(descriptors.iterdir())) <= opened


def test_two_processes_cannot_share_a_queue(tmp_path: Path) -> None:
    """
    Scenario: a queue is started on a directory that another one has open, then after it is closed;
    and on a directory whose lock is a link to elsewhere.
    Guarantees: refused, naming exporter and directory; then it works; a link is never followed.
    """
    files = RealFiles(tmp_path / "q")
    files.open_directory()
    with pytest.raises(ValueError, match=r"exporters.next.sending_queue: .*/q: this queue is open"):
        asyncio.run(real(tmp_path / "q", ScriptedExporter(), Telemetry()).start())
    files.close()

    async def once() -> None:
        queue = real(tmp_path / "q", ScriptedExporter(), Telemetry())
        await queue.start()
        await queue.stop(0)

    asyncio.run(once())
    (tmp_path / "q" / "lock").unlink()
    (tmp_path / "q" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"exporters\.next\.sending_queue"):
        asyncio.run(once())
    assert not (tmp_path / "elsewhere").exists()
