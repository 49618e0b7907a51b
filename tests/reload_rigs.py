"""A service whose configuration lies in a file, and what a process has open."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_anomaly.config import Source
from otel_anomaly.service import Service
from tests.book_rigs import LOW_LIMITS
from tests.door_rigs import StandingClock
from tests.service_rigs import FREE, Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUICK = {"sending_queue": {"batch": {"flush_timeout": "1ms"}}}


class Configured(NamedTuple):
    """A running service and the file that it was started with."""

    at: Place
    file: Path

    def write(self, **sections: Any) -> None:
        """Say something else in the file: these sections over the plain ones."""
        write(self.file, self.at.folder, **sections)

    async def reload(self, **sections: Any) -> str:
        """The same, and have it read. Returns what became of it."""
        self.write(**sections)
        before = self.results()
        await self.at.service.reloads.reload()
        after = self.results()
        (changed,) = [name for name, count in after.items() if count != before[name]]
        return changed

    def results(self) -> dict[str, int]:
        """How often reloads had which result."""
        return {
            result: int(self.at.metric("config_reloads_total", result=result))
            for result in ("applied", "unchanged", "refused")
        }


def write(file: Path, folder: Path, **sections: Any) -> None:
    """The configuration of the rigs, with other sections, as one replaces a file."""
    plain = {
        "receivers": {"otlp": {"protocols": {"grpc": FREE, "http": FREE}}},
        "detectors": LOW_LIMITS,
        "audit": {"fsync": False},
        "telemetry": {"metrics": FREE},
        "storage": {"directory": str(folder)},
        "exporters": {"file": QUICK},
    }
    fresh = file.with_suffix(".new")
    service = {"memory": {"limit_percentage": 0}, **sections.get("service", {})}
    fresh.write_text(json.dumps({**plain, **sections, "service": service}))
    fresh.replace(file)


def configured(folder: Path, **sections: Any) -> Configured:
    """A service that is built, but not started."""
    file = folder / "config.yaml"
    write(file, folder, **sections)
    source, clock, console = Source((file,)), StandingClock(), io.StringIO()
    service = Service(source.load(), clock, console, seed=1, source=source)
    return Configured(Place(service, clock, console, folder), file)


@contextlib.asynccontextmanager
async def reloading(folder: Path, **sections: Any) -> AsyncIterator[Configured]:
    """A service from start to stop."""
    rig = configured(folder, **sections)
    await rig.at.service.start()
    try:
        yield rig
    finally:
        await rig.at.service.stop()


def open_files() -> int:
    """How many descriptors the process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
