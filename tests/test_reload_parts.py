"""What a reload does to single parts: queues, exporters, episodes; and what health then says."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config, DebugExporterConfig
from otel_anomaly.exporters.contract import SENT, SendResult, retry
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.exporters.registry import likeness
from otel_anomaly.exporters.swapping import Swapping
from otel_anomaly.handoff import Payload, Signal
from otel_anomaly.sinks import AuditSink, verify
from otel_anomaly.sinks.queue import SinkWorker
from otel_anomaly.telemetry import Telemetry
from tests.certificates import make_certificates
from tests.door_rigs import until
from tests.exporters_world import NAME, Books, ScriptedExporter, queue_of
from tests.exporters_world import section as exporter_section
from tests.reload_rigs import QUICK, reloading
from tests.service_rigs import calls
from tests.sink_rigs import Gate, events
from tests.virtual_time import play

if TYPE_CHECKING:
    from pathlib import Path

PAIR = ("cert_file", "key_file")


class Slow:
    """Takes a second for each request, and knows who is inside."""

    serial = False

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log
        self.inside = self.inside_max = 0

    async def start(self) -> None:
        self._log.append(f"{self.name} opens")

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        del body, signal, items
        self.inside += 1
        self.inside_max = max(self.inside_max, self.inside)
        await asyncio.sleep(1)
        self.inside -= 1
        self._log.append(f"{self.name} sent")
        return SENT

    async def close(self) -> None:
        assert not self.inside
        self._log.append(f"{self.name} closes")


def section(consumers: int, size: int = 1 << 20) -> DebugExporterConfig:
    """Limits of a queue that merges nothing."""
    batch = {"max_size": 1, "flush_timeout": "0s"}
    queue = {"num_consumers": consumers, "queue_size": size, "batch": batch}
    return DebugExporterConfig.model_validate({"sending_queue": queue})


def give(queue: SendQueue, count: int) -> None:
    """Requests of 1000 bytes for which there is room."""
    for _ in range(count):
        queue.used += 1000
        queue.put(Payload(bytes(1000), Signal.TRACES, 1), 1000)


def test_more_and_fewer_consumers() -> None:
    """
    Scenario: a queue of one consumer gets three, then one again, then two, under way all the time;
    in between its size falls below what it holds.
    Guarantees: so many requests are under way, at most one more while consumers leave; nothing is
    lost; what is held stays, also when it is more than the new size.
    """

    async def story() -> None:
        hop = Slow("hop", [])
        queue = SendQueue("next", hop, section(1), Telemetry(), lambda: 0.5)
        await queue.start()
        give(queue, 100)
        for consumers, expected in ((1, 1), (3, 3), (1, 1), (2, 2)):
            queue.retune(section(consumers, size=2000))
            await asyncio.sleep(3.5)
            hop.inside_max = 0
            await asyncio.sleep(2)
            assert hop.inside_max == expected
        assert queue.used > queue.capacity == 2000
        assert await queue.stop(1e6) == 0
        assert queue.used == 0

    play(story())


def test_an_outage_that_is_given_more_time() -> None:
    """
    Scenario: a next hop is away, and a request has waited four of the five minutes it has; then it
    is given all the time there is; the next hop is back after an hour.
    Guarantees: it is delivered.
    """

    async def story() -> None:
        hop, telemetry = ScriptedExporter(), Telemetry([NAME])
        hop.judge = lambda _: retry("away")
        queue = queue_of(hop, telemetry)
        await queue.start()
        give(queue, 1)
        await asyncio.sleep(240)
        assert len(hop.attempts) > 1
        queue.retune(exporter_section(retry={"max_elapsed_time": 0}))
        await asyncio.sleep(3600)
        hop.judge = lambda _: SENT
        assert await queue.stop(60) == 0
        books = Books(telemetry)
        assert (books.sent, books.dropped()) == (1, 0)

    play(story())


def test_an_exchange_under_way() -> None:
    """
    Scenario: two requests are under way when the exporter is exchanged; more follow; then the queue
    stops while another exchange has just been made.
    Guarantees: each request goes through one exporter from first to last; the former is closed when
    its last one is over, not before; all are closed in the end.
    """

    async def story() -> None:
        log: list[str] = []
        swapping = Swapping(Slow("a", log))
        queue = SendQueue("next", swapping, section(2), Telemetry(), lambda: 0.5)
        await queue.start()
        give(queue, 6)
        for pause_s, name in ((0.5, "b"), (1.0, "c")):
            await asyncio.sleep(pause_s)
            await swapping.try_next(Slow(name, log))
            swapping.adopt()
        assert await queue.stop(1e6) == 0
        assert [line for line in log if "sent" in line] == [
            *["a sent"] * 2, *["b sent"] * 2, *["c sent"] * 2,
        ]  # fmt: skip
        assert log.index("a closes") > log.index("a sent") + 1
        assert sorted(line for line in log if "close" in line) == [
            "a closes",
            "b closes",
            "c closes",
        ]

    play(story())


class Serial(Slow):
    """Opens by itself when it is closed, and takes a second to close, as an exporter of files."""

    serial = True
    closed = False

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        if self.closed:
            await self.start()
        self.closed = False
        return await super().send(body, signal, items)

    async def close(self) -> None:
        await super().close()
        await asyncio.sleep(1)
        self.closed = True


@pytest.mark.parametrize("after_s", [0.5, 1.5])
def test_an_exchange_that_is_broken_off(after_s: float) -> None:
    """
    Scenario: an exporter of which there may be one only is about to be exchanged; while it ends
    what is under way, or closes, that is broken off: the service stops.
    Guarantees: it goes on with what the queue still holds, and nothing is dropped.
    """

    async def story() -> None:
        log: list[str] = []
        swapping = Swapping(Serial("a", log))
        queue = SendQueue("next", swapping, section(1), Telemetry(), lambda: 0.5)
        await queue.start()
        give(queue, 3)
        await asyncio.sleep(0.1)
        task = asyncio.create_task(swapping.try_next(Serial("b", log)))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert await queue.stop(60) == 0
        assert log.count("a sent") == 3
        assert not [line for line in log if line.startswith("b")]
        assert log[-1] == "a closes"

    play(story())


def test_new_certificates_under_the_same_name(tmp_path: Path) -> None:
    """
    Scenario: the file of an authority says something else, is gone, is as it was.
    Guarantees: the exporter is exchanged when it does, though its section is the same; limits of
    the queue alone are no reason.
    """
    pem = tmp_path / "ca.pem"
    tls = {"endpoint": "h:1", "tls": {"ca_file": str(pem)}}

    def alike(**more: Any) -> object:
        config = Config.model_validate({"exporters": {"otlp_grpc": {**tls, **more}}})
        return likeness("otlp_grpc", config)

    pem.write_text("one")
    first = alike()
    assert first == alike(required=False, sending_queue={"queue_size": "5MiB"})
    assert first != alike(timeout="7s")
    assert first != alike(sending_queue={"num_consumers": 9})
    pem.write_text("two")
    assert first != alike()
    pem.unlink()
    assert first != alike()
    pem.write_text("one")
    assert first == alike()


@pytest.mark.parametrize("episodes", [1, 5000])
def test_episodes_in_a_table_of_another_size(tmp_path: Path, episodes: int) -> None:
    """
    Scenario: three episodes are open; their table, and those of agents and sessions, get another
    size, with room for all or for one; the clock goes on until they are over.
    Guarantees: each start has one end: at once for those that find no room, else when its time is
    over; sessions that fit go on from their counts.
    """

    async def story() -> None:
        async with reloading(tmp_path) as rig:
            at = rig.at
            for number in range(3):
                await at.http(calls(3, session=f"s-{number}", seed=number))
            limits = {"episodes": episodes, "agents": 10, "sessions": 10}
            assert await rig.reload(identity={"limits": limits}) == "applied"
            at.service.tick(at.clock.now_ns())
            assert at.metric("episodes_open") == min(episodes, 3)
            await at.http(calls(1, session="s-2", seed=9))
            for wait_s in (0, 61, 130):
                at.service.tick(at.clock.now_ns() + wait_s * 1_000_000_000)
            assert at.metric("episodes_open") == 0
        steps = [record["type"] for record in at.audit() if "episode" in record["type"]]
        ids = [record["episode"] for record in at.audit() if record["type"] == "episode.start"]
        assert steps.count("episode.end") == steps.count("episode.start") == len(set(ids))
        assert at.actions()[-1] == "warn"

    asyncio.run(story())


def test_health_tells_of_a_queue_that_fills(tmp_path: Path) -> None:
    """
    Scenario: a next hop that is away, and requests until the queue is full.
    Guarantees: health is degraded, names the exporter, how full it is, and what its last failure
    was; readiness stays.
    """
    queue = {"queue_size": "128KiB", "batch": {"max_size": 1, "flush_timeout": "0s"}}
    away = {"endpoint": "http://127.0.0.1:9", "sending_queue": queue}

    async def story() -> None:
        async with reloading(
            tmp_path,
            exporters={"otlp_http/next": away, "file": QUICK},
            service={"drain_timeout": "0s"},
        ) as rig:
            at = rig.at
            assert "exporters.otlp_http/next" not in at.service.health()["problems"]
            for seed in range(500):
                if (await at.consume(calls(1, seed=seed))).message:
                    break
            failed = "exporter_send_failed_spans_total"
            await until(lambda: at.metric(failed, exporter="otlp_http/next") > 0)
            problem = at.service.health()["problems"]["exporters.otlp_http/next"]
            assert "% full" in problem
            assert "Cannot connect" in problem
            assert await at.page("/readyz") == (200, "ready\n")

    asyncio.run(story())


def test_a_sink_that_drops_says_so() -> None:
    """
    Scenario: a sink of two places whose writer stands still gets five records; then it goes on.
    Guarantees: while records are dropped that is its problem, and no more when they are written.
    """
    gate, telemetry = Gate(), Telemetry(sinks=["x"])

    def write(items: list[object]) -> int:
        del items
        gate()
        return 0

    gate.shut()
    worker = SinkWorker("x", write, capacity=2, telemetry=telemetry)
    try:
        worker.put(events(1))
        assert gate.entered.wait(30)
        assert worker.problem is None
        worker.put(events(4))
        assert worker.problem == "x: the queue is full, records are dropped"
    finally:
        gate.open()
        assert worker.close(30)
    assert worker.problem is None


def test_back_to_a_trail_that_is_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the trail moves away and back at once, while the thread of the first still closes it.
    Guarantees: the second reload waits for the lock and is not refused; both trails are whole.
    """
    inside = AuditSink.close

    def close(sink: AuditSink, timeout_s: float) -> bool:
        time.sleep(0.3)
        return inside(sink, timeout_s)

    monkeypatch.setattr(AuditSink, "close", close)

    async def story() -> None:
        async with reloading(tmp_path) as rig:
            other = {"path": str(tmp_path / "other.jsonl"), "fsync": False}
            assert await rig.reload(audit=other) == "applied"
            assert await rig.reload() == "applied"
        assert verify(tmp_path / "audit.jsonl").ok
        assert verify(tmp_path / "other.jsonl").ok

    asyncio.run(story())


@pytest.mark.parametrize("wrong", ["missing", "gone at the last moment", "a limit"])
def test_doors_change_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """
    Scenario: one reload moves the certificates and tokens of both doors to other files; those of
    before are gone by now. The second door cannot follow: a file of its own is missing, or a socket
    for it, or the pages would need a restart.
    Guarantees: refused, with the key of what is wrong; both doors show what they showed before and
    let in who was let in, and go on like that after the next reload that works.
    """
    files = make_certificates(tmp_path)
    for number in (1, 2):
        (tmp_path / f"cert{number}.pem").write_text(files.cert.read_text() + "\n" * number)
        shutil.copy(files.key, tmp_path / f"key{number}.pem")
        (tmp_path / f"tokens{number}").write_text(f"token-{number}-of-the-doors\n")

    def protocols(grpc: int, http: int, **more: Any) -> dict[str, Any]:
        def door(number: int) -> dict[str, Any]:
            pair = {key: str(tmp_path / f"{key[:-5]}{number}.pem") for key in PAIR}
            auth = {"bearer": {"filename": str(tmp_path / f"tokens{number}")}}
            return {"endpoint": "127.0.0.1:0", "tls": pair, "auth": auth}

        doors = {"grpc": door(grpc), "http": door(http)}
        return {"receivers": {"otlp": {"protocols": doors}}, **more}

    def remove_former() -> None:
        for file in tmp_path.glob("*1*"):
            file.unlink()

    async def story() -> None:
        async with reloading(tmp_path, **protocols(1, 1)) as rig:
            doors = rig.at.service.doors
            assert doors.grpc is not None
            assert doors.http is not None
            pem, grpc_known = doors.grpc._certificate.pem, doors.grpc._gate.credentials
            http_known = doors.http._gate.credentials
            remove_former()

            async def no_socket(_: object) -> None:
                raise OSError("too many open files")

            key, change = "protocols.http", protocols(2, 3)
            if wrong == "gone at the last moment":
                monkeypatch.setattr(doors.http._listener, "use_tls", no_socket)
                change = protocols(2, 2)
            elif wrong == "a limit":
                key = "telemetry.metrics"
                change = protocols(2, 2, telemetry={"metrics": {"endpoint": "127.0.0.2:0"}})
            assert await rig.reload(**change) == "refused"
            assert key in rig.at.service.health()["problems"]["configuration"]
            assert doors.grpc._certificate.pem == pem
            assert doors.grpc._gate.credentials is grpc_known
            assert doors.http._gate.credentials is http_known
            monkeypatch.undo()
            assert await rig.reload(**protocols(2, 2)) == "applied"
            assert doors.grpc._certificate.pem != pem
            assert doors.http._gate.credentials is not http_known

    asyncio.run(story())
