"""What every sink promises, over all of them, and the worker below them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.handoff import EpisodeEvent
from otel_anomaly.sinks import queue
from otel_anomaly.sinks.queue import Gap, LifeCycle, SinkWorker
from otel_anomaly.telemetry import Telemetry
from tests.sink_rigs import (
    HOSTILE_NAMES,
    PLAIN,
    QUICK_S,
    AuditRig,
    ConsoleRig,
    Gate,
    counted,
    events,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rig = AuditRig | ConsoleRig
    MakeRig = Callable[..., Rig]

every_sink = pytest.mark.parametrize("make", [AuditRig, ConsoleRig], ids=lambda rig: rig.name)


@every_sink
def test_order_is_kept_and_close_writes_what_is_queued(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: 40 events in offers of 1, 2, 3 and more, then close.
    Guarantees: all are told, in order, counted, and there is no problem.
    """
    rig, offered = make(tmp_path), events(40)
    rest = list(offered)
    for size in range(1, 10):
        rig.sink.offer(rest[:size])
        del rest[:size]
    assert rig.sink.close(10)
    assert rig.told() == [event.episode for event in offered]
    assert counted(rig.telemetry, rig.name) == (40, 0)
    assert rig.sink.problem is None


@every_sink
def test_a_stuck_writer_blocks_nobody(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: the writer hangs on the first event; 20 more are offered to a queue of 5.
    Guarantees: offer returns; what does not fit is dropped and counted; the rest is told in order
    once the writer moves on; how many are missing is told where they are missing.
    """
    rig, offered = make(tmp_path, queue_records=5), events(22)
    rig.gate.shut()
    rig.sink.offer(offered[:1])
    assert rig.gate.entered.wait(10)
    client = threading.Thread(
        target=lambda: [rig.sink.offer([event]) for event in offered[1:21]], daemon=True
    )
    client.start()
    client.join(10)
    assert not client.is_alive()
    assert counted(rig.telemetry, rig.name) == (0, 16)
    rig.gate.open()
    until(lambda: counted(rig.telemetry, rig.name) == (5, 16))
    rig.sink.offer(offered[21:])
    assert rig.sink.close(10)
    assert rig.told() == [event.episode for event in (*offered[:5], offered[21])]
    assert rig.missing() == [16]
    assert counted(rig.telemetry, rig.name) == (6, 16)


@every_sink
@pytest.mark.parametrize(
    "error", [None, OSError("no disk"), KeyError("a bug")], ids=["well", "failing", "broken"]
)
def test_close_does_not_wait_for_ever(
    make: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """
    Scenario: the writer hangs and does not come back before the time to flush is over; when it
    does, its write went well or did not.
    Guarantees: close returns and says so; everything held is counted as dropped, once.
    """
    monkeypatch.setattr(queue, "GRACE_S", 0.01)
    rig = make(tmp_path)
    if error:
        rig.gate.error = error
        rig.gate.fail(1)
    rig.gate.shut()
    rig.sink.offer(events(7))
    assert rig.gate.entered.wait(10)
    assert not rig.sink.close(0.01)
    assert counted(rig.telemetry, rig.name) == (0, 7)
    rig.gate.open()
    until(lambda: not any(thread.name == f"sink-{rig.name}" for thread in threading.enumerate()))
    assert counted(rig.telemetry, rig.name) == (0, 7)


@every_sink
def test_after_close_events_are_dropped(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: events are offered to a closed sink; it is closed again.
    Guarantees: no error; they are counted as dropped; nothing is written.
    """
    rig = make(tmp_path)
    assert rig.sink.close(10)
    rig.sink.offer(events(3))
    rig.sink.offer([])
    assert rig.sink.close(10)
    assert rig.told() == []
    assert counted(rig.telemetry, rig.name) == (0, 3)


@every_sink
def test_a_failure_that_passes_loses_nothing(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: the disk is full for the first four attempts.
    Guarantees: the sink says what is wrong meanwhile; then every event is told once, in order.
    """
    rig, offered = make(tmp_path), events(30)
    rig.gate.fail()
    rig.sink.offer(offered)
    until(lambda: rig.sink.problem is not None)
    assert rig.sink.problem == f"{rig.name}: [Errno 28] No space left on device"
    rig.gate.fail(4)
    until(lambda: counted(rig.telemetry, rig.name)[0] == 30)
    assert rig.sink.problem is None
    assert rig.sink.close(10)
    assert rig.told() == [event.episode for event in offered]
    assert counted(rig.telemetry, rig.name) == (30, 0)


@every_sink
def test_a_failure_that_stays_is_counted(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: every attempt fails until the time to flush is over.
    Guarantees: nothing is told, everything is counted as dropped, the thread ends.
    """
    rig = make(tmp_path)
    rig.gate.fail()
    rig.sink.offer(events(9))
    assert not rig.sink.close(0.02)
    assert rig.told() == []
    assert counted(rig.telemetry, rig.name) == (0, 9)
    assert not any(thread.name == f"sink-{rig.name}" for thread in threading.enumerate())


@every_sink
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_strings_make_one_line(make: MakeRig, tmp_path: Path, name: str) -> None:
    """
    Scenario: every string of an event is chosen to break out, or is a megabyte long.
    Guarantees: one bounded line, no problem, nothing dropped.
    """
    strings = {field: name for field, value in PLAIN._asdict().items() if isinstance(value, str)}
    event = PLAIN._replace(**strings)._replace(tenant=name, user=name)
    rig = make(tmp_path)
    rig.sink.offer([event, event._replace(step="end")])
    assert rig.sink.close(10)
    assert counted(rig.telemetry, rig.name) == (2, 0)
    if isinstance(rig, ConsoleRig):
        assert all(line.isprintable() for line in rig.lines())
        assert max(len(line.encode()) for line in rig.lines()) < 4096
    assert len(rig.lines() if isinstance(rig, ConsoleRig) else rig.records()) == 2


@every_sink
def test_the_queue_is_bounded_in_bytes(make: MakeRig, tmp_path: Path) -> None:
    """
    Scenario: the writer hangs while events with strings of a megabyte are queued.
    Guarantees: what is held of each string is no longer than what is ever written.
    """
    rig = make(tmp_path)
    rig.gate.shut()
    huge = "x" * (1 << 20)
    rig.sink.offer([PLAIN._replace(agent=huge, tenant=huge, reason=huge)] * 5)
    with rig.sink._worker._filled:
        held = [*rig.sink._worker._queue, *rig.sink._worker._held]
    rig.gate.open()
    assert rig.sink.close(10)
    assert len(held) == 5
    for event in held:
        assert isinstance(event, EpisodeEvent)
        assert len(event.agent or "") == len(event.tenant or "") == 257
        assert len(event.reason) == 4097


def make_worker(write: Callable[[list[queue.Item]], int], **options: object) -> SinkWorker:
    options = {"capacity": 100, "telemetry": Telemetry(sinks=["w"]), "retry_s": QUICK_S} | options
    return SinkWorker("w", write, **options)


def test_a_record_that_cannot_be_written_goes_alone() -> None:
    """
    Scenario: of a group of nine, one makes the writer raise something that waiting cannot cure.
    Guarantees: it is dropped and counted, a gap stands in its place, the others keep their order.
    """
    telemetry, gate, seen = Telemetry(sinks=["w"]), Gate(), []
    offered = events(10)

    def write(group: list[queue.Item]) -> int:
        gate()
        if offered[4] in group:
            raise KeyError("a bug")
        seen.extend(group)
        return 0

    gate.shut()
    worker = make_worker(write, telemetry=telemetry)
    worker.put(offered[:1])
    assert gate.entered.wait(10)
    worker.put(offered[1:])
    gate.open()
    assert worker.close(10)
    assert seen == [*offered[:4], Gap(1, "could not be written (KeyError)"), *offered[5:]]
    assert counted(telemetry, "w") == (9, 1)


def test_a_gap_that_cannot_be_written_is_not_tried_for_ever() -> None:
    """
    Scenario: the writer has a bug that every item meets, gaps too.
    Guarantees: close gets to the end; what was lost is counted once; the problem says the kind of
    error, without its words: they may quote a record.
    """
    telemetry = Telemetry(sinks=["w"])

    def write(_: list[queue.Item]) -> int:
        raise KeyError("a bug")

    worker = make_worker(write, telemetry=telemetry)
    worker.put(events(6))
    worker.close(10)
    assert counted(telemetry, "w") == (0, 6)
    assert worker.problem == "w: a record cannot be written: KeyError"


def test_life_cycle_records_get_in_when_full() -> None:
    """
    Scenario: the queue is full and the service stops.
    Guarantees: the stop is written, after the gap that says what is missing.
    """
    gate, seen = Gate(), []

    def write(group: list[queue.Item]) -> int:
        gate()
        seen.extend(group)
        return 0

    gate.shut()
    worker, stop = make_worker(write, capacity=2), LifeCycle("service.stop", 1, "")
    worker.put(events(5))
    worker.put([stop], must=True)
    gate.open()
    assert worker.close(10)
    assert seen[2:] == [Gap(3, "the queue was full"), stop]


def test_waits_grow_up_to_a_bound() -> None:
    """
    Scenario: eight attempts fail, one after the other; the waits between them are recorded.
    Guarantees: each wait is twice the one before, and none is above the longest.
    """
    gate, waits = Gate(), []
    gate.fail(8)

    def write(group: list[queue.Item]) -> int:
        gate(group)
        return 0

    worker = make_worker(write, retry_s=(0.1, 5.0))
    worker._pause = lambda wait_s: not waits.append(wait_s)
    worker.put(events(1))
    assert worker.close(10)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_close_tries_again_at_once_and_soon() -> None:
    """
    Scenario: the writer waits for a minute after a failure; the sink is closed; one more attempt
    fails before the next goes well.
    Guarantees: close needs no minute, and what was held gets out.
    """
    gate, telemetry = Gate(), Telemetry(sinks=["w"])
    gate.fail()
    worker = make_worker(lambda _: gate() or 0, telemetry=telemetry, retry_s=(60.0, 60.0))
    worker.put(events(3))
    until(lambda: worker.problem is not None)
    gate.fail(1)
    assert worker.close(10)
    assert counted(telemetry, "w") == (3, 0)


def test_an_idle_worker_ticks_and_finishes() -> None:
    """
    Scenario: nothing is put; then the worker is closed.
    Guarantees: the writer is called with an empty group meanwhile; `finish` is called once.
    """
    groups, finished = [], []
    worker = make_worker(
        lambda group: groups.append(group) or 0,
        idle_s=0.001,
        finish=lambda: finished.append(True),
    )
    until(lambda: len(groups) > 2)
    assert worker.close(10)
    assert all(group == [] for group in groups)
    assert finished == [True]
