"""The doors of the service: what listens, opened and shut in order.

The monitoring pages come first and go last, so that the start and the end can be watched. The two
that take telemetry open when everything behind them runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from otel_anomaly.handoff import Admit, admit_all
from otel_anomaly.otlp.json import decode
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.receivers.monitoring import Monitoring
from otel_anomaly.receivers.reloading import check_files
from otel_anomaly.receivers.sockets import check_free, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AsyncExitStack

    from otel_anomaly.config import Config
    from otel_anomaly.handoff import Admit, Clock, Consume
    from otel_anomaly.telemetry import Telemetry

GRACE_S: Final = 5.0


class Doors:
    """Both receivers and the monitoring pages."""

    def __init__(
        self,
        config: Config,
        consume: Consume,
        telemetry: Telemetry,
        clock: Clock,
        *,
        health: Callable[[], Mapping[str, object]],
        ready: Callable[[], bool],
        admit: Admit = admit_all,
    ) -> None:
        """`health` and `ready` are what the pages tell; `admit` is asked before a body is read."""
        self._config = config
        protocols = config.receivers.otlp.protocols
        self.grpc: GrpcReceiver | None = None
        if protocols.grpc is not None:
            self.grpc = GrpcReceiver(protocols.grpc, consume, telemetry, clock, admit)
        self.http: HttpReceiver | None = None
        if protocols.http is not None:
            self.http = HttpReceiver(protocols.http, consume, telemetry, clock, decode, admit)
        self.monitoring = Monitoring(config.telemetry.metrics, telemetry, health, ready, clock)

    def check_free(self) -> None:
        """Say at once, not when the kernels are compiled, that a port is taken or a file is bad."""
        protocols = self._config.receivers.otlp.protocols
        for name, section in (("grpc", protocols.grpc), ("http", protocols.http)):
            if section is None:
                continue
            check_free(section.endpoint)
            with _naming(f"receivers.otlp.protocols.{name}", ValueError):
                check_files(section)

    async def open(self) -> None:
        """Open what takes telemetry. Raises OSError or ValueError saying what cannot be."""
        for name, door in (("grpc", self.grpc), ("http", self.http)):
            if door is not None:
                with _naming(f"receivers.otlp.protocols.{name}", ValueError):
                    await door.start()
        if self.grpc is not None:
            await self.grpc.set_serving(serving=True)

    async def shut(self, grace_s: float) -> None:
        """Take nothing more, answer what is inside. Safe on what was never opened.

        Connections that are still busy after `grace_s`, or GRACE_S if that is shorter, are cut.
        """
        if self.grpc is not None:
            with contextlib.suppress(RuntimeError):
                await self.grpc.set_serving(serving=False)
        doors = [door for door in (self.grpc, self.http) if door is not None]
        await asyncio.gather(*(door.stop(min(grace_s, GRACE_S)) for door in doors))

    async def reconfigure(self, old: Config, new: Config, undo: AsyncExitStack) -> None:
        """Go over to other limits; `undo` goes back. Raises ValueError naming what needs a restart.

        Called also when nothing has changed: files that are named may hold other certificates. What
        any door needs is read before one changes, and the way back needs no file: those of before
        may be gone.
        """
        changes = []
        for (key, door, section), (_, _, former) in zip(
            _parts(self, new), _parts(self, old), strict=True
        ):
            if (former is None) != (section is None):
                raise ValueError(f"{key}: a door cannot be made at run time: needs a restart")
            if door is None or section is None:
                continue
            if door is self.monitoring:
                if former != section:
                    raise ValueError(f"{key}: cannot change at run time: needs a restart")
                continue
            with _naming(key, OSError, ValueError):
                changes.append((key, door, former, section, door.read(section)))
        for key, door, former, section, read in changes:
            shown = door.shown
            with _naming(key, OSError, ValueError):
                await door.reconfigure(section, read)
            undo.push_async_callback(door.reconfigure, former, shown)
        undo.callback(setattr, self, "_config", self._config)
        self._config = new

    def problems(self) -> dict[str, str]:
        """What is wrong with the files of a door, its certificates and credentials."""
        return {
            f"receivers.otlp.protocols.{name}": door.problem
            for name, door in (("grpc", self.grpc), ("http", self.http))
            if door is not None and door.problem
        }

    def places(self) -> dict[str, str]:
        """What listens where."""
        protocols = self._config.receivers.otlp.protocols
        metrics = self._config.telemetry.metrics
        listening = (
            ("OTLP/gRPC", protocols.grpc, self.grpc),
            ("OTLP/HTTP", protocols.http, self.http),
            ("metrics and health", metrics, self.monitoring),
        )
        return {
            name: place(section.endpoint, door.port)
            for name, section, door in listening
            if section is not None and door is not None
        }


@contextlib.contextmanager
def _naming(key: str, *errors: type[Exception]) -> Iterator[None]:
    """Say of which door an error speaks."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{key}: {error}") from error


def _parts(doors: Doors, config: Config) -> list[tuple[str, Any, Any]]:
    """(key, door, its section) of each."""
    protocols = config.receivers.otlp.protocols
    return [
        ("receivers.otlp.protocols.grpc", doors.grpc, protocols.grpc),
        ("receivers.otlp.protocols.http", doors.http, protocols.http),
        ("telemetry.metrics", doors.monitoring, config.telemetry.metrics),
    ]
