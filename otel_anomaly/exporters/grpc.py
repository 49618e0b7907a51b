"""Next hop over OTLP/gRPC: bytes go out as they are, status codes come back as results.

Which codes may be retried is a table of the OTLP specification ("Failures", OTLP/gRPC). One code
is both: RESOURCE_EXHAUSTED may be retried only when the server says when.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.contract import USER_AGENT, SendResult, clipped, rejected, retry
from otel_anomaly.exporters.destination import refuse_own_doors
from otel_anomaly.exporters.echo import told_by, without_headers
from otel_anomaly.exporters.response import RESPONSE_BYTES_MAX, retry_info_s, taken
from otel_anomaly.exporters.tls import pem_files
from otel_anomaly.handoff import INSTANCE, INSTANCE_HEADER, Signal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.config import OtlpGrpcExporterConfig

_SERVICE = "/opentelemetry.proto.collector.{0}.v1.{1}Service/Export"
METHOD_OF: Final = {
    Signal.TRACES: _SERVICE.format("trace", "Trace"),
    Signal.METRICS: _SERVICE.format("metrics", "Metrics"),
    Signal.LOGS: _SERVICE.format("logs", "Logs"),
}
assert set(METHOD_OF) == set(Signal), "every signal has its method"

Code = grpc.StatusCode
RETRYABLE: Final = frozenset(
    {
        Code.CANCELLED,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
        Code.OUT_OF_RANGE,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)
NOT_ABOUT_DATA: Final = frozenset(
    {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED, Code.NOT_FOUND}
)
"""Refusals that every other request would meet as well."""

RESPONSE_TOO_LARGE: Final = "CLIENT: Received message larger than max"
DEADLINE_IS_OVER: Final = "Deadline Exceeded"
"""What grpcio says of our own deadline."""

OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.primary_user_agent", USER_AGENT),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    # The door has limited what can come here.
    ("grpc.max_send_message_length", -1),
    # Few large frames and reads: a request is hundreds of kilobytes.
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.write_buffer_size", 1 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 1 << 18),
    # gRPC would grow this to two minutes: longer than a next hop takes to restart.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Channels with the same arguments share connections otherwise: a new one would go on with the
    # connection that the old one was left for.
    ("grpc.use_local_subchannel_pool", 1),
)
_COMPRESSION: Final = {"gzip": grpc.Compression.Gzip, "none": grpc.Compression.NoCompression}


class _Line:
    """A channel and its calls. A call ends on the one it began on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.export = {signal: channel.unary_unary(method) for signal, method in METHOD_OF.items()}
        self.under_way = 0
        self.ended = 0
        """Calls that came to another end than our deadline."""


class GrpcExporter:
    """One channel to one next hop, left for a new one when it falls silent.

    A path that dies without a word, like a node that is lost or a firewall that forgets a flow,
    leaves a connection that gRPC holds on to for minutes while new ones would work.
    """

    serial = False

    def __init__(self, config: OtlpGrpcExporterConfig, doors: Sequence[str] = ()) -> None:
        """`doors`: our own, `host:port`, which the endpoint must not lead to."""
        self._config = config
        self._doors = doors
        self._timeout_s = config.timeout / SECOND_NS
        self._told = told_by(config.headers)
        self._metadata = ((INSTANCE_HEADER, INSTANCE), *_metadata(config.headers))

    async def start(self) -> None:
        """Make the channel; it connects when there is something to send."""
        await refuse_own_doors((self._config.endpoint,), self._doors)
        self._target, secure = target_of(self._config.endpoint, insecure=self._config.tls.insecure)
        self._credentials = None
        if secure:
            pem = pem_files(self._config.tls)
            self._credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
        self._line = self._new_line()

    def _new_line(self) -> _Line:
        settings: dict[str, Any] = {
            "options": OPTIONS,
            "compression": _COMPRESSION[self._config.compression],
        }
        if self._credentials is None:
            return _Line(grpc.aio.insecure_channel(self._target, **settings))
        return _Line(grpc.aio.secure_channel(self._target, self._credentials, **settings))

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """One call, within the deadline."""
        del items
        line = self._line
        ended = line.ended
        line.under_way += 1
        try:
            response = await line.export[signal](
                body, timeout=self._timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            if not _is_our_deadline(error):
                line.ended += 1
            elif line.ended == ended:
                self._leave(line)
            too_large = _is_response_too_large(error)
            result = taken(None, signal) if too_large else failure(error)
        else:
            line.ended += 1
            result = taken(response, signal)
        finally:
            line.under_way -= 1
            if line is not self._line and not line.under_way:
                await line.channel.close()
        return without_headers(result, self._told)

    def _leave(self, line: _Line) -> None:
        """Send on a new channel from the next call on; the last call on this one closes it.

        Calls that time out together leave it once. One that is not connected is left to connect:
        a handshake that takes longer than the deadline would never come to its end.
        """
        if line is self._line and line.channel.get_state() is grpc.ChannelConnectivity.READY:
            self._line = self._new_line()

    async def close(self) -> None:
        """Close the channel; one that was left is closed by then."""
        await self._line.channel.close()


def failure(error: grpc.aio.AioRpcError) -> SendResult:
    """A status other than OK, as a result."""
    code = error.code()
    message = f"{code.name}: {clipped(error.details() or '')}"
    hint_s = retry_info_s(_status_details(error.trailing_metadata()))
    if code in RETRYABLE or (code is Code.RESOURCE_EXHAUSTED and hint_s is not None):
        return retry(message, hint_s)
    return rejected(message, about_data=code not in NOT_ABOUT_DATA)


def _is_response_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether it is our own grpcio that refuses: only a call that succeeded has a response.

    A server that finds our request too large says the same words, and SERVER.
    """
    mine = error.code() is Code.RESOURCE_EXHAUSTED and RESPONSE_TOO_LARGE in (error.details() or "")
    return mine and not error.trailing_metadata()


def _is_our_deadline(error: grpc.aio.AioRpcError) -> bool:
    """Whether nobody answered in time; a next hop that gave up on its own says so in its words."""
    return error.code() is Code.DEADLINE_EXCEEDED and error.details() == DEADLINE_IS_OVER


def _status_details(metadata: Any) -> bytes:  # noqa: ANN401 - grpc has no types.
    for key, value in metadata or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return value
    return b""


def target_of(endpoint: str, *, insecure: bool) -> tuple[str, bool]:
    """(what gRPC dials, with TLS or not). A scheme decides over `tls.insecure`.

    >>> target_of("http://tempo:4317/", insecure=False), target_of("tempo:4317", insecure=False)
    (('tempo:4317', False), ('tempo:4317', True))
    """
    scheme, separator, rest = endpoint.partition("://")
    if separator and scheme in {"http", "https"}:
        return rest.rstrip("/"), scheme == "https"
    return endpoint, not insecure


def _metadata(headers: dict[str, str]) -> list[tuple[str, str]]:
    """Headers as gRPC wants them; a wrong name would fail every call, so it is told now."""
    for name in headers:
        if not re.fullmatch(r"[0-9a-z_.-]+", name) or name.endswith("-bin"):
            raise ValueError(f"headers: {name!r} is not a name that gRPC can send")
    return list(headers.items())
