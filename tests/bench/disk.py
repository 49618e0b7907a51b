"""What a queue costs, in memory and on disk: `python -m tests.bench.disk [folder]`.

So many clients hand requests over, one after the other each, and wait for the answer; the next hop
takes everything at once. No judging, no network: the queue alone, on the disk of `folder`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.config import DebugExporterConfig
from otel_anomaly.exporters import Fanout, SendQueue
from otel_anomaly.exporters.contract import SENT
from otel_anomaly.exporters.disk_files import RealFiles
from otel_anomaly.exporters.disk_queue import DiskQueue
from otel_anomaly.exporters.disk_store import DiskStore
from otel_anomaly.exporters.disk_worker import ThreadWorker
from otel_anomaly.exporters.pace import Pace
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from otel_anomaly.exporters import SendResult

STORAGES: Final = ("memory", "never", "interval", "always")
SIZES: Final = (5_300, 270_000)
CLIENTS: Final = 32


class Figure(NamedTuple):
    """One run."""

    storage: str
    size: int
    requests_per_s: float
    cpu_us: float
    """Of the process, per request."""
    ack_p99_ms: float


class Nowhere:
    """Takes everything."""

    serial = False

    async def start(self) -> None:
        """Nothing to open."""

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """Gone."""
        del body, signal, items
        return SENT

    async def close(self) -> None:
        """Nothing to close."""


def queue_in(folder: Path, storage: str) -> SendQueue:
    """A queue in memory, or on disk with this policy."""
    queue = {"storage": "disk", "fsync": storage} if storage != "memory" else {}
    section = DebugExporterConfig.model_validate({"sending_queue": queue})
    telemetry = Telemetry()
    if storage == "memory":
        return SendQueue("bench", Nowhere(), section, telemetry, lambda: 0.5)
    store = DiskStore(RealFiles(folder), size=1 << 30, fsync=storage, key=lambda: 1)
    return DiskQueue(
        "bench",
        Nowhere(),
        section,
        telemetry,
        lambda: 0.5,
        store=store,
        worker=ThreadWorker("bench"),
        pace=Pace(),
    )


async def measure(folder: Path, storage: str, size: int, count: int) -> Figure:
    """`count` requests of `size` bytes."""
    fanout = Fanout([queue_in(folder, storage)])
    await fanout.start()
    waits: list[float] = []

    async def client(requests: int) -> None:
        for number in range(requests):
            body = number.to_bytes(8, "little") + bytes(size - 8)
            begun = time.perf_counter()
            while fanout.reserve(size) is not Outcome.ACCEPTED:  # noqa: ASYNC110 - as a client would.
                await asyncio.sleep(0.001)
            answer = fanout.commit(Payload(body, Signal.TRACES, 10), size)
            if answer is not None:
                assert (await answer).outcome is Outcome.ACCEPTED
            else:
                await asyncio.sleep(0)
            waits.append(time.perf_counter() - begun)

    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[client(count // CLIENTS) for _ in range(CLIENTS)])
    await fanout.stop(60)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    p99 = sorted(waits)[len(waits) * 99 // 100] * 1e3
    return Figure(storage, size, len(waits) / seconds, cpu / len(waits) * 1e6, p99)


def main(arguments: list[str]) -> int:
    """Print a table."""
    root = Path(arguments[0]) if arguments else None
    print("| storage, fsync | bytes | requests/s | CPU us/request | answer p99 ms |")
    print("| --- | --- | --- | --- | --- |")
    for size in SIZES:
        for storage in STORAGES:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                count = 20_000 if size < 100_000 else 3_000
                figure = asyncio.run(measure(Path(folder) / "q", storage, size, count))
            print(
                f"| {storage} | {size} | {figure.requests_per_s:.0f} | {figure.cpu_us:.0f}"
                f" | {figure.ack_p99_ms:.1f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
