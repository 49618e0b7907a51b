"""The doors of the service: what listens, opened and shut in order.

The monitoring pages come first and go last, so that the start and the end can be watched. The two
that take telemetry open when everything behind them runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from otel_anomaly.otlp.json import decode
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.receivers.listener import host_and_port
from otel_anomaly.receivers.monitoring import Monitoring

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_anomaly.config import Config
    from otel_anomaly.handoff import Clock, Consume
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
    ) -> None:
        """`health` and `ready` are what the pages tell."""
        self._config = config
        protocols = config.receivers.otlp.protocols
        self.grpc: GrpcReceiver | None = None
        if protocols.grpc is not None:
            self.grpc = GrpcReceiver(protocols.grpc, consume, telemetry, clock)
        self.http: HttpReceiver | None = None
        if protocols.http is not None:
            self.http = HttpReceiver(protocols.http, consume, telemetry, clock, decode)
        self.monitoring = Monitoring(config.telemetry.metrics, telemetry, health, ready)

    def check_free(self) -> None:
        """Say that a port is taken at once, not when the kernels are compiled."""
        protocols = self._config.receivers.otlp.protocols
        for section in (protocols.grpc, protocols.http):
            if section is not None:
                address = host_and_port(section.endpoint)
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                try:
                    socket.create_server(address, family=family).close()
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise OSError(f"cannot listen on {section.endpoint}: {reason}") from error

    async def open(self) -> None:
        """Open what takes telemetry. Raises OSError naming what is taken."""
        for door in (self.grpc, self.http):
            if door is not None:
                await door.start()
        if self.grpc is not None:
            await self.grpc.set_serving(serving=True)

    async def shut(self) -> None:
        """Take nothing more, answer what is inside. Safe on what was never opened."""
        if self.grpc is not None:
            with contextlib.suppress(RuntimeError):
                await self.grpc.set_serving(serving=False)
        doors = [door for door in (self.grpc, self.http) if door is not None]
        await asyncio.gather(*(door.stop(GRACE_S) for door in doors))

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
            name: f"{section.endpoint.rpartition(':')[0]}:{door.port}"
            for name, section, door in listening
            if section is not None and door is not None
        }
