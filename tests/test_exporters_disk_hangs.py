"""Disk queues on a disk that does not answer: nobody waits for it for ever, nor does the stop."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.exporters import disk_queue
from otel_anomaly.exporters.contract import retry
from otel_anomaly.exporters.disk_files import RealFile, RealFiles
from otel_anomaly.exporters.disk_queue import LAST_ROUND_S, STALL_S, DiskQueue
from otel_anomaly.exporters.disk_store import DiskStore
from otel_anomaly.exporters.disk_worker import ThreadWorker
from otel_anomaly.exporters.fanout import STOP_ANSWER_S
from otel_anomaly.exporters.pace import Pace
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests.disk_world import PatientWorker, SimDisk
from tests.exporters_world import ScriptedExporter, section
from tests.test_exporters_disk import Pending, Rig, on, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class MoodyWorker:
    """Answers while it is `free`."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.closed = False

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:
        await self.free.wait()
        return action(*arguments)

    def close(self, last: Callable[[], None] | None = None) -> None:
        assert last is not None, "a disk that hangs is closed when it answers"
        self.closed = True


def hanging(rig: Rig) -> MoodyWorker:
    """The disk of a queue that runs does not answer from now on."""
    worker = MoodyWorker()
    rig.queue._worker = worker
    return worker


def test_nobody_waits_for_ever() -> None:
    """
    Scenario: requests wait for a disk that hangs; more come; after a while it answers.
    Guarantees: the first hear after STALL_S that they are to send again; the others are refused at
    the door, before anything is learned, and health says why; then all is well, what was written
    late is delivered too, and the books add up.
    """

    async def scenario(rig: Rig) -> None:
        loop, worker = asyncio.get_running_loop(), hanging(rig)
        began_s = loop.time()
        waits = [rig.send(record(number)) for number in range(3)]
        outcomes = [await each.outcome() for each in waits]
        assert outcomes == [Outcome.UNAVAILABLE] * 3
        assert loop.time() - began_s == pytest.approx(STALL_S, abs=0.1)
        await asyncio.sleep(100)
        assert rig.fanout.reserve(1) is Outcome.QUEUE_FULL
        assert rig.fanout.problems() == {"exporters.next": "the disk of the queue does not answer"}
        worker.free.set()
        await asyncio.sleep(1)
        assert rig.fanout.problems() == {}
        assert await rig.send(record(3)).outcome() is Outcome.ACCEPTED
        await rig.fanout.stop(10)
        assert (rig.books.sent, rig.books.held, rig.books.dropped()) == (4, 0, 0)

    on(SimDisk(random.Random(1)), scenario)


def test_the_stop_does_not_wait_for_ever() -> None:
    """
    Scenario: the disk hangs while requests wait for it, and the service is told to stop.
    Guarantees: who waits hears so before the doors give up; the stop ends soon after the time to
    deliver; what was not written is in the books as dropped, and the worker is told to go.
    """

    async def scenario(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        assert await rig.send(record(0)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(1)
        worker, began_s = hanging(rig), loop.time()
        first = rig.send(record(1))
        await asyncio.sleep(0.1)
        second = rig.send(record(2))
        rig.fanout.hurry()
        assert [await first.outcome(), await second.outcome()] == [Outcome.UNAVAILABLE] * 2
        assert loop.time() - began_s == pytest.approx(STOP_ANSWER_S, abs=0.2)
        began_s = loop.time()
        await rig.fanout.stop(10)
        assert loop.time() - began_s == pytest.approx(10 + LAST_ROUND_S, abs=0.1)
        assert (rig.books.sent, rig.books.dropped("write_failed"), rig.books.held) == (1, 2, 0)
        assert worker.closed

    on(SimDisk(random.Random(1)), scenario)


def test_what_was_held_back_while_the_disk_began_to_hang() -> None:
    """
    Scenario: room is set aside for a request that is held back (`identity.hold`); the disk hangs;
    then the request is handed on.
    Guarantees: its client hears at once that it is to send again; when the disk answers it is
    delivered all the same.
    """

    async def scenario(rig: Rig) -> None:
        loop, worker = asyncio.get_running_loop(), hanging(rig)
        first = rig.send(record(0))
        await asyncio.sleep(STALL_S / 2)
        body = record(1)
        assert rig.fanout.reserve(len(body)) is Outcome.ACCEPTED
        assert await first.outcome() is Outcome.UNAVAILABLE
        began_s = loop.time()
        answer = rig.fanout.commit(Payload(body, Signal.TRACES, 1), len(body))
        assert answer is not None
        assert await Pending(answer).outcome() is Outcome.UNAVAILABLE
        assert loop.time() == began_s
        worker.free.set()
        await asyncio.sleep(1)
        assert (rig.books.sent, rig.books.held, rig.books.dropped()) == (2, 0, 0)
        rig.queue._worker = PatientWorker()
        await rig.fanout.stop(10)

    on(SimDisk(random.Random(1)), scenario)


def test_a_disk_that_answers_after_its_queue_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a write hangs while the queue is told to stop, as when a reload removes an exporter;
    the stop leaves the disk alone; later the disk answers, and the exporter comes back.
    Guarantees: the directory is not taken for as long as the process lives; what was written is
    there.
    """
    monkeypatch.setattr(disk_queue, "LAST_ROUND_S", 0.05)
    hangs, go = threading.Event(), threading.Event()

    class SlowFiles(RealFiles):
        def open(self, name: str, *, new: bool = False) -> RealFile:
            if name.endswith(".seg") and new:
                hangs.set()
                go.wait()
            return super().open(name, new=new)

    async def scenario() -> None:
        keys = section(queue={"storage": "disk"})

        def queue(files: RealFiles) -> DiskQueue:
            store = DiskStore(files, size=1 << 26, fsync="never", key=lambda: 1)
            hop = ScriptedExporter()
            hop.judge = lambda _: retry("away")
            return DiskQueue(
                "next",
                hop,
                keys,
                Telemetry(["next"]),
                lambda: 0.5,
                store=store,
                worker=ThreadWorker("next"),
                pace=Pace(lambda: 0.0),
            )

        first = queue(SlowFiles(tmp_path / "queue"))
        await first.start()
        charge = first.charge_of(16)
        first.hold(charge)
        first.put(Payload(record(0), Signal.TRACES, 1), charge)
        await asyncio.to_thread(hangs.wait)
        await first.stop(0)
        with pytest.raises(ValueError, match="this queue is open already"):
            await queue(RealFiles(tmp_path / "queue")).start()
        go.set()
        thread = first._worker._thread
        await asyncio.to_thread(thread.join)
        second = queue(RealFiles(tmp_path / "queue"))
        await second.start()
        assert second.ledger.held_spans == 1
        await second.stop(0)

    asyncio.run(scenario())


def test_a_thread_that_hangs_does_not_hold_the_process() -> None:
    """
    Scenario: a process gives the worker something that never ends, stops waiting, and comes to its
    end; nothing else is done to it.
    Guarantees: it ends.
    """
    program = """
import asyncio, threading
from otel_anomaly.exporters.disk_worker import ThreadWorker

async def main():
    worker = ThreadWorker("next")
    assert await worker.run(max, 1, 2) == 2
    try:
        await asyncio.wait_for(worker.run(threading.Event().wait), 0.05)
    except TimeoutError:
        print("left alone")
    worker.close()

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "left alone\n"


def test_what_a_call_raises_is_raised_where_it_is_waited_for() -> None:
    """
    Scenario: calls that return, raise, and return again; one that nobody waits for any more.
    Guarantees: each to its own caller, in order; the thread outlives them and ends when told.
    """
    order: list[int] = []

    async def scenario() -> None:
        worker = ThreadWorker("next")
        go = threading.Event()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.run(go.wait), 0.01)
        later = asyncio.create_task(worker.run(order.append, 1))
        failing = asyncio.create_task(worker.run(int, "x"))
        last = asyncio.create_task(worker.run(order.append, 2))
        await asyncio.sleep(0)
        go.set()
        await later
        with pytest.raises(ValueError, match="invalid literal"):
            await failing
        await last
        worker.close()
        worker._thread.join(10)
        assert not worker._thread.is_alive()

    asyncio.run(scenario())
    assert order == [1, 2]
