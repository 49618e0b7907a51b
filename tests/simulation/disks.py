"""Disks for the queues of a simulated service: they crash, forget and fail by the seed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import unquote

from tests.simulation.loop import DELAYS_S

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.disk_world import SimDisk

    from otel_anomaly.config.exporters import QueueConfig

FAULTY_SHARE = 0.3
"""Of the worlds have disks that fail now and then."""


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
        from tests.disk_world import PatientWorker  # noqa: PLC0415 - not in every version.

        return {
            "RealFiles": self._files,
            "ThreadWorker": lambda _: PatientWorker(lambda: self._rng.choice(DELAYS_S)),
            "secrets": mock.Mock(randbits=self._rng.getrandbits),
        }

    def _files(self, path: Path) -> SimDisk:
        from tests.disk_world import SimDisk  # noqa: PLC0415 - as above.

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
