"""The OTLP/gRPC door: Export of the three signals on raw bytes, and grpc.health.v1.

Raw bytes, because the generated servicer parses every message into Python objects, and answers
INTERNAL for one it cannot parse before any code of ours runs. grpcio itself refuses what is over
the limit on the wire with RESOURCE_EXHAUSTED and without RetryInfo, and an unknown method with
UNIMPLEMENTED. Neither is in the request counter: to us the first looks as a client that went away
before its message was whole, and there is nobody to answer. Only what is too large when inflated
counts as too large.

Export is registered as a method with a stream of requests: on the wire that is the same, and the
handler then runs on the headers and reads the message itself, or does not (a unary handler is
called when the message is whole). It costs nothing that could be measured: 240 to 270 us of CPU
time for each request of 5 KB either way (h2load -c 4 -m 4, grpcio 1.85.1, 2-core machine).

grpcio takes its limits and the kind of its TLS at the start. When they change, a second server is
bound to the port beside the first, which then answers what it has and goes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from otel_anomaly.handoff import INSTANCE_HEADER, Outcome, Reply, Signal, admit_all
from otel_anomaly.receivers.certificates import PemFiles, pem_files
from otel_anomaly.receivers.client_connections import ClientConnections
from otel_anomaly.receivers.gate import Gate
from otel_anomaly.receivers.grpc_bodies import GrpcBodies
from otel_anomaly.receivers.health import Health
from otel_anomaly.receivers.intake import Intake
from otel_anomaly.receivers.looping import LoopGuard
from otel_anomaly.receivers.reloading import FileReload, Shown, read_files, warn_of_exposure
from otel_anomaly.receivers.sockets import (
    allow_many_files,
    check_free,
    connection_shares,
    owner_only,
    remove_socket,
    unix_path,
)
from otel_anomaly.receivers.status import GRPC_STATUS, partial_success, status_of
from otel_anomaly.receivers.unfinished import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_anomaly.config import GrpcReceiverConfig
    from otel_anomaly.handoff import Admit, Clock, Consume
    from otel_anomaly.telemetry import Telemetry

SERVICES: Final = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
    Signal.LOGS: "opentelemetry.proto.collector.logs.v1.LogsService",
}
HEALTH_NAMES: Final = ("", *SERVICES.values())
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
    ("grpc.so_reuseport", 1),  # For our own second server, see above; `start` looks for others.
    ("grpc.per_message_decompression", 0),  # See grpc_bodies.py.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
REPLACED_GRACE_S: Final = 30.0
"""For the requests of a server that another has taken over from."""
_INT32_MAX: Final = (1 << 31) - 1


class GrpcReceiver:
    """The door. `port` is known after `start`."""

    def __init__(
        self,
        config: GrpcReceiverConfig,
        consume: Consume,
        telemetry: Telemetry,
        clock: Clock,
        admit: Admit = admit_all,
    ) -> None:
        self._config = config
        self._intakes = {
            signal: Intake(
                transport="grpc", signal=signal, consume=consume, telemetry=telemetry, clock=clock
            )
            for signal in Signal
        }
        self._gate = Gate(admit, clock)
        self._bodies = GrpcBodies(config.max_recv_msg_size_mib * _MIB, config.read_timeout / 1e9)
        telemetry.unfinished_bytes.labels("grpc").set_function(lambda: self._bodies.bodies.held)
        self._connections = ClientConnections(telemetry)
        self._files = FileReload("grpc", telemetry, self._read_files)
        self._certificate = _Certificate()
        self._loops = LoopGuard("grpc", telemetry, clock)
        self._health = Health(HEALTH_NAMES, self._bodies)
        self._server: Any = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def problem(self) -> str | None:
        """For health: what is wrong with the door's files on the disk."""
        return self._files.problem

    async def start(self) -> None:
        """Listen, answering NOT_SERVING to health checks until `set_serving`.

        Raises
        ------
        OSError
            The address is taken or not ours. The message names it.
        ValueError
            Certificates or credentials cannot be used. The message names the file.
        """
        config = self._config
        pem, self._gate.credentials, watch = read_files(config, pem_files)
        self._gate.limit_clients(config.per_client)
        self._certificate.use(pem)
        await self.set_serving(serving=False)
        check_free(config.endpoint)  # A second process on the port is an error, not a silent half.
        self._server, self.port = await self._open(config, config.endpoint)
        self._bodies.open(self.port)
        self._connections.limit(config.per_client.connections)
        if unix_path(config.endpoint) is None:
            self._connections.start(self.port)
        await self._files.start(config, watch)
        warn_of_exposure("grpc", config)

    async def _open(self, config: GrpcReceiverConfig, endpoint: str) -> tuple[Any, int]:
        server = grpc.aio.server(options=_options(config))
        services = [_service(name, self._export(self._intakes[s])) for s, name in SERVICES.items()]
        server.add_generic_rpc_handlers((*services, self._health.handler()))
        try:
            with owner_only() if unix_path(endpoint) is not None else contextlib.nullcontext():
                port = self._bind(server, config, endpoint)
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"cannot listen on {endpoint}: {error}") from error
        await server.start()
        return server, port

    def _bind(self, server: Any, config: GrpcReceiverConfig, endpoint: str) -> int:  # noqa: ANN401
        target = endpoint.replace("unix://", "unix:", 1)
        if config.tls is None:
            return int(server.add_insecure_port(target))
        is_mutual = config.tls.client_ca_file is not None
        return int(server.add_secure_port(target, self._certificate.credentials(is_mutual)))

    @property
    def shown(self) -> Shown[PemFiles]:
        """The certificates and credentials in use, for `reconfigure` to go back to."""
        return Shown(self._certificate.pem, self._gate.credentials, self._files.watch)

    def read(self, config: GrpcReceiverConfig) -> Shown[PemFiles]:
        """Those of another configuration. Raises ValueError as `reconfigure`."""
        if config.endpoint != self._config.endpoint:
            raise ValueError("another endpoint needs a restart")
        if _fixed(config) != _fixed(self._config) and unix_path(config.endpoint) is not None:
            raise ValueError("limits of a unix socket need a restart")
        return read_files(config, pem_files)

    async def reconfigure(
        self,
        config: GrpcReceiverConfig,
        shown: Shown[PemFiles] | None = None,
    ) -> None:
        """Other limits, certificates, credentials, which are read now unless they are given; the
        port stays open.

        Raises
        ------
        ValueError
            What cannot be used, or needs a restart. Nothing has changed then.
        """
        pem, credentials, watch = shown or self.read(config)
        if _fixed(config) != _fixed(self._config):
            await self._replace(config, pem)
        self._certificate.use(pem)
        warn_of_exposure("grpc", config, self._config)
        self._gate.credentials = credentials
        self._gate.limit_clients(config.per_client)
        self._connections.limit(config.per_client.connections)
        self._bodies.bodies.limit = config.max_recv_msg_size_mib * _MIB
        self._bodies.timeout_s = config.read_timeout / 1e9
        self._config = config
        await self._files.start(config, watch)

    async def _replace(self, config: GrpcReceiverConfig, pem: PemFiles | None) -> None:
        """A second server on the port; the first answers what it has and goes."""
        former, place = self._server, f"{config.endpoint.rpartition(':')[0]}:{self.port}"
        shown = self._certificate.pem
        self._certificate.use(pem)
        try:
            self._server, _ = await self._open(config, place)
        except OSError as error:
            self._certificate.use(shown)
            raise ValueError(str(error)) from error
        leaving = asyncio.create_task(former.stop(REPLACED_GRACE_S))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _read_files(self) -> None:
        """Certificates and credentials anew, both or neither. Raises ValueError."""
        pem, self._gate.credentials, _ = read_files(self._config, pem_files)
        self._certificate.use(pem)

    async def set_serving(self, *, serving: bool) -> None:
        """What health checks are told, for the whole server and for each service."""
        self._health.set_serving(serving=serving)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        if self._server is None:
            return
        await self._files.stop()
        await self._connections.stop()
        await self.set_serving(serving=False)
        await self._health.close()
        self._bodies.bodies.stop()
        await self._server.stop(grace_s)
        for leaving in list(self._leaving):
            leaving.cancel()
            await asyncio.wait({leaving})
        await self._bodies.close()
        with contextlib.suppress(OSError):
            remove_socket(self._config.endpoint)
        self._server = None

    def _export(self, intake: Intake) -> Callable[[object, Any], Awaitable[bytes]]:
        take, bodies, gate, loops = intake.take, self._bodies, self._gate, self._loops

        async def export(_stream: object, context: Any) -> bytes:  # noqa: ANN401 - no types.
            try:
                peer = bodies.peer(context.peer())
                shown = _told(context, "authorization") if gate.credentials is not None else ()
                reply = gate.refusal(shown, peer.client, 0)
                reply = reply or loops.check(_told(context, INSTANCE_HEADER))
                if reply is None:
                    body = await bodies.read(context, peer)
                    reply = await take(body, 0, context.time_remaining())
                else:
                    peer.is_unsure = True  # What comes of the message is never read.
                    intake.count(reply.outcome)
            except Refused as refusal:
                reply = refusal.reply
                intake.count(reply.outcome)
            except Exception as error:  # noqa: BLE001 - UNKNOWN would make the client drop its data.
                reply = intake.failed(error)
            if reply.outcome is _ACCEPTED:
                # An empty ExportTraceServiceResponse: nothing was rejected.
                return partial_success(reply) if reply.rejected or reply.message else b""
            return _refuse(context, reply)

        return export


class _Certificate:
    """What handshakes show: grpcio asks for news at each one, from a thread of its own."""

    def __init__(self) -> None:
        self.pem: PemFiles | None = None
        self._news: Any = None

    def use(self, pem: PemFiles | None) -> None:
        """From the next handshake on."""
        if pem is not None and pem != self.pem:
            self._news = grpc.ssl_server_certificate_configuration(
                [(pem.key, pem.chain)], pem.client_ca
            )
        self.pem = pem

    def credentials(self, is_mutual: bool) -> Any:  # noqa: ANN401, FBT001 - no types.
        """For a server."""
        assert self.pem is not None
        pem = self.pem
        first = grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_ca)
        return grpc.dynamic_ssl_server_credentials(first, self._fetch, is_mutual)

    def _fetch(self) -> Any:  # noqa: ANN401 - no types.
        """News, which every server on the port must hear; the same again does no harm."""
        return self._news


def _fixed(config: GrpcReceiverConfig) -> object:
    """What a server cannot change while it runs."""
    kind = config.tls is not None, config.tls is not None and config.tls.client_ca_file is not None
    return _options(config), kind


def _options(config: GrpcReceiverConfig) -> tuple[tuple[str, int], ...]:
    life, policy = config.keepalive.server_parameters, config.keepalive.enforcement_policy
    return (
        *TRANSPORT_OPTIONS,
        ("grpc.max_receive_message_length", config.max_recv_msg_size_mib * _MIB),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.max_metadata_size", config.max_header_size),
        ("grpc.absolute_max_metadata_size", config.max_header_size),
        ("grpc.max_connection_idle_ms", _milliseconds(life.max_connection_idle)),
        ("grpc.max_connection_age_ms", _milliseconds(life.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(life.max_connection_age_grace)),
        ("grpc.keepalive_time_ms", _milliseconds(life.time)),
        ("grpc.keepalive_timeout_ms", _milliseconds(life.timeout)),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            _milliseconds(policy.min_time) if policy.min_time else 0,
        ),
        ("grpc.keepalive_permit_without_calls", int(policy.permit_without_stream)),
        (
            "grpc.max_allowed_incoming_connections",
            config.max_connections or connection_shares(allow_many_files()).grpc,
        ),
    )


def _milliseconds(duration_ns: int) -> int:
    """For grpcio: 0 is never, which it calls the largest number."""
    return min(_INT32_MAX, max(1, duration_ns // 1_000_000)) if duration_ns else _INT32_MAX


def _service(name: str, export: Callable[[object, Any], Awaitable[bytes]]) -> object:
    """The service with its one method. Without (de)serialisers grpcio hands bytes through."""
    method = grpc.stream_unary_rpc_method_handler(export)
    return grpc.method_handlers_generic_handler(name, {"Export": method})


def _told(context: Any, header: str) -> list[str | bytes]:  # noqa: ANN401 - grpcio has no types.
    return [value for key, value in context.invocation_metadata() or () if key == header]


def _refuse(context: Any, reply: Reply) -> bytes:  # noqa: ANN401 - grpcio has no types.
    status = status_of(reply)
    context.set_code(GRPC_STATUS[reply.outcome])
    context.set_details(status.message)
    if reply.outcome.retryable:
        context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    return b""
