"""The OTLP/gRPC door: Export of the three signals on raw bytes, and grpc.health.v1.

Raw bytes, because the generated servicer parses every message into Python objects, and answers
INTERNAL for one it cannot parse before any code of ours runs. grpcio itself refuses what is over
the limit, compressed or not, with RESOURCE_EXHAUSTED and without RetryInfo, and an unknown method
with UNIMPLEMENTED; neither reaches a handler, so neither is in the request counter.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from otel_anomaly.handoff import INSTANCE_HEADER, Outcome, Signal
from otel_anomaly.receivers.intake import Intake
from otel_anomaly.receivers.looping import LoopGuard
from otel_anomaly.receivers.status import GRPC_STATUS, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_anomaly.config import GrpcReceiverConfig
    from otel_anomaly.handoff import Clock, Consume
    from otel_anomaly.telemetry import Telemetry

SERVICES: Final = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}
HEALTH_NAMES: Final = ("", *SERVICES.values())
WATCHERS_TOLD_S: Final = 0.05
"""For the last NOT_SERVING to go out to those who watch; a watch never ends by itself."""
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
_ACCEPTED = Outcome.ACCEPTED
_MIB = 1 << 20

# With grpcio's own values a request of 270 KB arrives in 16 KiB frames and 8 KiB reads. These
# took a third off the CPU time of such a request (grpcio 1.85.1, 2-core machine).
TRANSPORT_OPTIONS: Final = (
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 1 << 18),
    ("grpc.experimental.tcp_min_read_chunk_size", 1 << 16),
    ("grpc.experimental.tcp_max_read_chunk_size", 1 << 20),
    ("grpc.so_reuseport", 0),  # A second process on the port is an error, not a silent half.
)


class GrpcReceiver:
    """The door. `port` is known after `start`."""

    def __init__(
        self, config: GrpcReceiverConfig, consume: Consume, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._config = config
        self._intakes = {
            signal: Intake(
                transport="grpc", signal=signal, consume=consume, telemetry=telemetry, clock=clock
            )
            for signal in Signal
        }
        self._loops = LoopGuard("grpc", telemetry, clock)
        self._health = _Health()
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listen, answering NOT_SERVING to health checks until `set_serving`.

        Raises
        ------
        OSError
            The address is taken or not ours. The message names it.
        """
        await self.set_serving(serving=False)
        limit = self._config.max_recv_msg_size_mib * _MIB
        server = grpc.aio.server(
            options=(*TRANSPORT_OPTIONS, ("grpc.max_receive_message_length", limit))
        )
        server.add_generic_rpc_handlers(
            tuple(
                _service(name, self._intakes[signal], self._loops)
                for signal, name in SERVICES.items()
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            self.port = server.add_insecure_port(self._config.endpoint)
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"cannot listen on {self._config.endpoint}: {error}") from error
        await server.start()
        self._server = server

    async def set_serving(self, *, serving: bool) -> None:
        """What health checks are told, for the whole server and for each service."""
        status = health_pb2.HealthCheckResponse
        for name in HEALTH_NAMES:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        if self._server is None:
            return
        await self.set_serving(serving=False)
        await self._health.close()
        await self._server.stop(grace_s)
        self._server = None


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # No types in grpc_health.
    """The stock servicer, whose watchers end when the server does.

    A watch lasts as long as its client likes, so one load balancer that watches would hold every
    stop for the whole grace time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[asyncio.Task[None]] = set()

    async def Watch(self, request: object, context: object) -> None:  # noqa: N802 - gRPC's name.
        watcher = asyncio.create_task(super().Watch(request, context))
        self._watchers.add(watcher)
        try:
            await asyncio.wait({watcher})
            if not watcher.cancelled():
                watcher.result()
        finally:
            watcher.cancel()
            self._watchers.discard(watcher)

    async def close(self) -> None:
        """End the watches, after they have been told that the service is going."""
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=WATCHERS_TOLD_S)
        for watcher in self._watchers:
            watcher.cancel()


def _service(name: str, intake: Intake, loops: LoopGuard) -> object:
    """The service with its one method. Without (de)serialisers grpcio hands bytes through."""
    export = grpc.unary_unary_rpc_method_handler(_export(intake, loops))
    return grpc.method_handlers_generic_handler(name, {"Export": export})


def _instance(context: Any) -> str | None:  # noqa: ANN401 - grpcio has no types.
    for key, value in context.invocation_metadata():
        if key == INSTANCE_HEADER:
            return str(value)
    return None


def _export(intake: Intake, loops: LoopGuard) -> Callable[[bytes, Any], Awaitable[bytes]]:
    take = intake.take

    async def export(body: bytes, context: Any) -> bytes:  # noqa: ANN401 - grpcio has no types.
        looped = loops.check(_instance(context))
        if looped is not None:
            intake.count(looped.outcome)
        reply = looped or await take(body)
        if reply.outcome is _ACCEPTED:
            return b""  # An empty ExportTraceServiceResponse: nothing was rejected.
        status = status_of(reply)
        context.set_code(GRPC_STATUS[reply.outcome])
        context.set_details(status.message)
        if reply.outcome.retryable:
            context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
        return b""

    return export
