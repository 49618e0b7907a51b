"""A disk queue when the configuration changes while the service runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config
from otel_anomaly.exporters import Exchange, Makers
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests.disk_world import SimDisk
from tests.exporters_world import FixedClock, section
from tests.test_exporters_disk import MIB, RECORD, Rig, on, record

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = {"endpoint": "http://127.0.0.1:9", "sending_queue": {"storage": "disk"}}


def config_of(folder: Path, **exporters: Any) -> Config:
    return Config.model_validate(
        {
            "exporters": exporters,
            "storage": {"directory": str(folder)},
            "service": {"drain_timeout": "10ms"},
        }
    )


async def change(exchange: Exchange, config: Config) -> None:
    """What a reload does with the exporters."""
    async with contextlib.AsyncExitStack() as undo:
        commit = await exchange.prepare(config, undo)
        commit()
        undo.pop_all()


@pytest.mark.usefixtures("patient_disk")
def test_removed_and_named_again(tmp_path: Path) -> None:
    """
    Scenario: an exporter with a disk queue holds a request, is taken out of the configuration,
    and comes back; then its storage is to change, and a limit.
    Guarantees: what it held stays on disk and is held again, counted once; another storage needs a
    restart and is refused; another limit is taken over.
    """

    async def play() -> None:
        config = config_of(tmp_path, otlp_http=NOWHERE, file={})
        telemetry = Telemetry(config.exporters)
        exchange = Exchange(config, Makers(telemetry, FixedClock(), random.Random(1)))
        await exchange.fanout.start()
        assert exchange.fanout.reserve(100) is Outcome.ACCEPTED
        pending = exchange.fanout.commit(Payload(b"", Signal.TRACES, 6), 100)
        assert pending is not None
        assert (await pending).outcome is Outcome.ACCEPTED
        telemetry.accepted_spans.labels("http").inc(6)
        await change(exchange, config_of(tmp_path, file={}))
        await exchange.fanout.gone("otlp_http")
        await change(exchange, config)
        there = telemetry.ledger("otlp_http")
        assert (there.accepted, there.recovered, there.held) == (6, 0, 6)
        moved = {**NOWHERE, "sending_queue": {"storage": "disk", "directory": str(tmp_path / "x")}}
        with pytest.raises(ValueError, match=r"exporters\.otlp_http\.sending_queue: .* restart"):
            await change(exchange, config_of(tmp_path, otlp_http=moved, file={}))
        wider = {**NOWHERE, "sending_queue": {"storage": "disk", "disk_size": "3GiB"}}
        await change(exchange, config_of(tmp_path, otlp_http=wider, file={}))
        value = telemetry.registry.get_sample_value(
            "otel_anomaly_exporter_queue_capacity", {"exporter": "otlp_http"}
        )
        assert value == 3 << 30
        await exchange.fanout.stop(0)

    asyncio.run(play())


def test_a_smaller_disk_size_does_not_shut_the_door() -> None:
    """
    Scenario: 15 MiB were written and delivered; then a reload leaves 16 MiB of the 8 GiB that the
    disk queue could have, and a request of 2 MiB comes.
    Guarantees: nothing is held, so nothing takes room, and the request is taken.
    """
    disk = SimDisk(random.Random(0))

    async def scenario(rig: Rig) -> None:
        for number in range(15):
            assert await rig.send(record(number, MIB // RECORD)).outcome() is Outcome.ACCEPTED
        await asyncio.sleep(5)
        assert rig.books.held == 0
        rig.queue.retune(section(queue={"storage": "disk", "disk_size": "16MiB"}))
        await asyncio.sleep(1)
        assert rig.books.size == 0
        assert await rig.send(record(15, 2 * MIB // RECORD)).outcome() is Outcome.ACCEPTED
        await rig.fanout.stop(10)
        assert disk.nodes == {}

    on(disk, scenario, disk_size="8GiB")
