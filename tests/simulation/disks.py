"""Disks for the queues of a simulated service: they crash, forget and fail by the seed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock
from urllib.parse import unquote

from otel_anomaly.exporters.pace import Pace
from tests.disk_world import PatientWorker, SimDisk
from tests.simulation.loop import DELAYS_S

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from otel_anomaly.config.exporters import QueueConfig

FAULTY_SHARE = 0.3
"""Of the worlds have disks that fail now and then."""


class Disks(Protocol):
    """What the queues lie on, and what an end of the process makes of it."""

    def config(self) -> dict[str, Any]:
        """What stands in every `sending_queue`."""

    def parts(self) -> dict[str, Any]:
        """What stands in place of files and threads, by its name in `exporters.registry`."""

    def die(self, how: str) -> None:
        """`kill` or `power`."""

    def promise(self, queue: QueueConfig, how: str) -> bool:
        """Whether such a queue keeps over such an end what was accepted."""


class NoDisks:
    """Queues in memory."""

    def config(self) -> dict[str, Any]:
        return {}

    def parts(self) -> dict[str, Any]:
        return {}

    def die(self, how: str) -> None:
        """Nothing lasts."""

    def promise(self, queue: QueueConfig, how: str) -> bool:
        return False


class SimDisks:
    """One for each exporter. They outlive the process."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._disks: dict[str, SimDisk] = {}
        self._faulty = rng.random() < FAULTY_SHARE

    def config(self) -> dict[str, Any]:
        rng = self._rng
        return {
            "storage": "disk",
            "fsync": rng.choice(("always", "interval", "never")),
            "disk_size": rng.choice(("16MiB", "64MiB")),
        }

    def parts(self) -> dict[str, Any]:
        return {
            "RealFiles": self._files,
            "ThreadWorker": lambda _: PatientWorker(lambda: self._rng.choice(DELAYS_S)),
            "Pace": lambda: Pace(self._rng.random),
            "secrets": mock.Mock(randbits=self._rng.getrandbits),
        }

    def _files(self, path: Path) -> SimDisk:
        name = unquote(path.name)
        if name not in self._disks:
            self._disks[name] = SimDisk(self._rng)
            self._disks[name].fault = self._fault
        return self._disks[name]

    def _fault(self, call: str, _name: str) -> OSError | None:
        """Not in what a start needs: a start on such a disk may fail, and says so."""
        if self._faulty and call in {"write", "sync", "reserve"} and self._rng.random() < 0.03:
            return OSError(self._rng.choice((errno.EIO, errno.ENOSPC)), "as told")
        return None

    def die(self, how: str) -> None:
        for disk in self._disks.values():
            if how == "power":
                disk.lose_power()
            else:
                disk.kill()

    def promise(self, queue: QueueConfig, how: str) -> bool:
        return how == "kill" or queue.fsync == "always"
