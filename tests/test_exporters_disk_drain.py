"""The queue on disk in a drain: new traffic, the backlog and everybody else get their turns."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from otel_anomaly.exporters.contract import retry
from otel_anomaly.exporters.pace import LATE_S, REST_S_MAX, REST_S_MIN, Pace
from otel_anomaly.handoff import Outcome
from tests.disk_world import SimDisk
from tests.test_exporters_disk import KIB, RECORD, Rig, on, record, records

if TYPE_CHECKING:
    from otel_anomaly.exporters.disk_store import Loaded


def test_new_traffic_is_not_starved_by_a_backlog() -> None:
    """
    Scenario: 400 large requests lie on disk from an earlier run, each takes a second to send; new
    ones come in.
    Guarantees: the new one is accepted at once and is among the next four that are sent, and the
    backlog goes on, in order: they take turns.
    """
    disk = SimDisk(random.Random(0))
    big = 64 * KIB // RECORD

    async def first(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        sent = [rig.send(record(number, big)) for number in range(200)]
        assert {await one.outcome() for one in sent} == {Outcome.ACCEPTED}

    async def second(rig: Rig) -> None:
        rig.hop.script = [asyncio.sleep(1) for _ in range(1000)]
        await asyncio.sleep(10.5)
        before = len(rig.hop.attempts)
        new = [rig.send(record(number, big)) for number in range(1000, 1010)]
        assert {await one.outcome() for one in new} == {Outcome.ACCEPTED}
        await asyncio.sleep(25)
        after = [int(records(body)[0]) for body in rig.hop.bodies[before:]]
        assert 1000 in after[:4]
        fresh = [number for number in after if number >= 1000]
        backlog = [number for number in after if number < 1000]
        assert fresh == list(range(1000, 1010))
        assert backlog == list(range(backlog[0], backlog[0] + len(backlog)))
        assert len(backlog) >= 10
        assert 4 <= sum(number < 1000 for number in after[1:11]) <= 6
        for step in rig.hop.script:
            step.close()  # type: ignore[union-attr]

    on(disk, first, batch={"max_size": "64KiB"})
    on(disk, second, batch={"max_size": "64KiB"}, num_consumers=1)


def test_new_traffic_does_not_wait_behind_an_outage() -> None:
    """
    Scenario: the next hop is away for a minute while ten requests come in a second; when it is
    back, each takes a quarter of a second to send, and new ones come in.
    Guarantees: of what came early in the outage little is kept before the new ones, which take
    turns with the backlog: the first is among the next 70, not behind half of the memory, and all
    of them come in order. Nothing is lost.
    """
    disk = SimDisk(random.Random(0))
    big = 64 * KIB // RECORD

    async def scenario(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        for number in range(600):
            assert await rig.send(record(number, big)).outcome() is Outcome.ACCEPTED
            await asyncio.sleep(0.1)
        back = len(rig.hop.attempts)
        rig.hop.script = [asyncio.sleep(0.25) for _ in range(620)]
        while rig.books.sent < 1:  # noqa: ASYNC110 - the time is virtual.
            await asyncio.sleep(0.1)
        new = [rig.send(record(number, big)) for number in range(1000, 1020)]
        assert {await one.outcome() for one in new} == {Outcome.ACCEPTED}
        while rig.books.held:  # noqa: ASYNC110 - the time is virtual.
            await asyncio.sleep(0.25)
        after = [int(records(body)[0]) for body in rig.hop.bodies[back:]]
        assert after.index(1000) < 70
        assert [number for number in after if number >= 1000] == list(range(1000, 1020))
        assert sorted(after) == [*range(600), *range(1000, 1020)]
        await rig.fanout.stop(1)

    keys = {"disk_size": "64MiB", "queue_size": "16MiB", "batch": {"max_size": "64KiB"}}
    on(disk, scenario, num_consumers=1, **keys)


@pytest.mark.parametrize("busy_with", ["nothing", "cpu", "turns"])
def test_a_backlog_gives_way_to_new_traffic(
    monkeypatch: pytest.MonkeyPatch, busy_with: str
) -> None:
    """
    Scenario: a backlog drains while the process has nothing else to do; while its threads use a
    whole core; while every turn of the event loop takes 20 ms.
    Guarantees: idle, it is not kept waiting; busy, it rests ever longer between its loads, and yet
    all of it arrives.
    """
    disk = SimDisk(random.Random(0))
    groups = 64

    async def fill(rig: Rig) -> None:
        rig.hop.judge = lambda _: retry("away")
        for number in range(groups):
            assert await rig.send(record(number, 64 * KIB // RECORD)).outcome() is Outcome.ACCEPTED

    async def drain(rig: Rig) -> None:
        loads_s: list[float] = []
        load, clock = rig.queue._store.load, rig.queue._loop.time

        def noted(size: int) -> Loaded:
            loads_s.append(clock())
            return load(size)

        monkeypatch.setattr(rig.queue._store, "load", noted)
        while rig.books.held:
            if busy_with == "turns":
                rig.queue._loop.jump(0.02)  # type: ignore[attr-defined] # A VirtualLoop's.
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0.001)
            if busy_with == "cpu":
                rig.cpu_s = clock()
        assert rig.books.sent == groups
        rests_s = np.diff(loads_s)
        if busy_with == "nothing":
            assert rests_s.max() < 0.05
        else:
            assert rests_s[0] < REST_S_MAX / 2
            assert REST_S_MAX < rests_s.max() < 2 * REST_S_MAX
        await rig.fanout.stop(1)

    keys = {"queue_size": "1MiB", "batch": {"max_size": "64KiB"}}
    on(disk, fill, **keys)
    on(disk, drain, **keys)


def test_the_rests_of_a_backlog() -> None:
    """
    Scenario: the process uses a whole core, then a tenth of it; then it is not given a core, so
    that the ends of rests are heard late.
    Guarantees: rests double up to the longest, shrink to the shortest, and double again.
    """
    cpu_s = now_s = 0.0
    pace = Pace(lambda: cpu_s)

    def rests(share: float, late_s: float, times: int) -> list[float]:
        nonlocal cpu_s, now_s
        found = []
        for _ in range(times):
            now_s += pace.rest_s + late_s
            cpu_s += (pace.rest_s + late_s) * share
            pace.rested(now_s, late_s)
            found.append(pace.rest_s)
        return found

    assert pace.rest_s == REST_S_MIN
    assert rests(1.0, 0.0, 3) == [2 * REST_S_MIN, 4 * REST_S_MIN, 8 * REST_S_MIN]
    assert rests(1.0, 0.0, 9)[-3:] == [REST_S_MAX] * 3
    assert rests(0.1, 0.0, 1) == [REST_S_MAX * 3 / 4]
    assert rests(0.1, 0.0, 30)[-3:] == [REST_S_MIN] * 3
    assert rests(0.1, 2 * LATE_S, 2) == [2 * REST_S_MIN, 4 * REST_S_MIN]


def test_a_large_request_gets_in_beside_steady_traffic() -> None:
    """
    Scenario: small requests come so fast that some always wait to be written; two come that are
    larger than the share of the memory for those that wait.
    Guarantees: the first is accepted; the second, at once, is refused as by a full queue, for the
    bound holds; it is accepted when the first is written.
    """
    disk = SimDisk(random.Random(0))

    async def scenario(rig: Rig) -> None:
        large = record(1, 400 * KIB // RECORD)

        async def traffic() -> None:
            while True:
                rig.send(record(0, 4 * KIB // RECORD))
                await asyncio.sleep(0.004)

        steady = asyncio.create_task(traffic())
        await asyncio.sleep(1)
        assert rig.queue._unwritten_charge > 0
        first, second = rig.send(large), rig.send(large)
        assert await second.outcome() is Outcome.QUEUE_FULL
        assert await first.outcome() is Outcome.ACCEPTED
        await asyncio.sleep(0.1)
        assert rig.queue._unwritten_charge > 0
        assert await rig.send(large).outcome() is Outcome.ACCEPTED
        steady.cancel()
        await rig.fanout.stop(10)
        assert rig.books.held == 0

    on(disk, scenario, delay_s=0.01, queue_size="1MiB", batch={"max_size": "64KiB"})
