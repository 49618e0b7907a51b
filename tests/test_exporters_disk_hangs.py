"""Disk queues on a disk that does not answer: nobody waits for it for ever, nor does the stop."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.exporters.disk_queue import LAST_ROUND_S, STALL_S
from otel_anomaly.exporters.disk_worker import ThreadWorker
from otel_anomaly.exporters.fanout import STOP_ANSWER_S
from otel_anomaly.handoff import Outcome
from tests.disk_world import SimDisk
from tests.test_exporters_disk import Rig, on, record

if TYPE_CHECKING:
    from collections.abc import Callable


class MoodyWorker:
    """Answers while it is `free`."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.closed = False

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:
        await self.free.wait()
        return action(*arguments)

    def close(self) -> None:
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
