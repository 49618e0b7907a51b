"""The OTLP/HTTP door: POST /v1/traces, /v1/metrics and /v1/logs, protobuf or JSON.

What a request costs decides how small a batch pays off, so nearly every request takes the short
way: the body lies whole in the buffer, the answer is ready-made. CPU time of the server process,
requests of 5.3 KB that are thrown away, `h2load --h1 -c 8`, shared 2-core machine, Python 3.11,
aiohttp 3.14, uvloop 0.23; order of magnitude only:

    aiohttp's bare low-level server, a Response made for each request     44 us
    the same with a ready-made answer                                     24 us
    this door: checks, limits, clock and counter, ready-made answer       27 us
    aiohttp's request object replaced as well                             23 us, private names
    own protocol on aiohttp's parser                                      20 us, own life cycle
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import hdrs, web

from otel_anomaly.handoff import INSTANCE_HEADER, Outcome, Reply, Signal, admit_all
from otel_anomaly.receivers.body import BodyReader, malformed, too_large
from otel_anomaly.receivers.certificates import server_context
from otel_anomaly.receivers.connections import Census, Limits
from otel_anomaly.receivers.cors import Cors
from otel_anomaly.receivers.gate import Gate
from otel_anomaly.receivers.intake import Intake
from otel_anomaly.receivers.listener import Listener
from otel_anomaly.receivers.looping import LoopGuard
from otel_anomaly.receivers.reloading import FileReload, Shown, read_files, warn_of_exposure
from otel_anomaly.receivers.sockets import allow_many_files, connection_shares
from otel_anomaly.receivers.status import (
    HTTP_STATUS,
    http_only_status,
    partial_success,
    partial_success_as_json,
    retry_after_header,
    status_as_json,
    status_of,
)
from otel_anomaly.receivers.unfinished import Refused

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from aiohttp.abc import AbstractStreamWriter
    from google.rpc.status_pb2 import Status

    from otel_anomaly.config import HttpReceiverConfig
    from otel_anomaly.handoff import Admit, Clock, Consume
    from otel_anomaly.telemetry import Telemetry

PATHS: Final = {f"/v1/{signal.value}": signal for signal in Signal}
JSON_INLINE_BYTES_MAX: Final = 1 << 19
"""JSON is decoded at some 400 MB/s, this much in a millisecond or two. A larger body goes to a
thread, which needs no interpreter meanwhile, so that others are served."""
SERVER_NAME: Final = "otel-anomaly"
_ACCEPTED = Outcome.ACCEPTED
_SECOND_NS = 1_000_000_000
_NOTHING: list[str] = []


class _Media(NamedTuple):
    """A media type: what we answer in when it was asked in."""

    content_type: str
    accepted: bytes
    """An empty ExportTraceServiceResponse: nothing was rejected."""

    def partly(self, reply: Reply, signal: Signal) -> bytes:
        """Accepted, with a word about it."""
        return partial_success_as_json(reply, signal) if self is JSON else partial_success(reply)

    def encode(self, status: Status) -> bytes:
        return status_as_json(status) if self is JSON else status.SerializeToString()


PROTOBUF: Final = _Media("application/x-protobuf", b"")
JSON: Final = _Media("application/json", b"{}")
MEDIA: Final = {media.content_type: media for media in (PROTOBUF, JSON)}


class HttpReceiver:
    """The door. `port` is known after `start`."""

    def __init__(
        self,
        config: HttpReceiverConfig,
        consume: Consume,
        telemetry: Telemetry,
        clock: Clock,
        decode_json: Callable[[bytes, Signal], bytes] | None = None,
        admit: Admit = admit_all,
    ) -> None:
        """`decode_json` raises ValueError for what is not OTLP/JSON; without it JSON is a 415."""
        self._intakes = {
            path: Intake(
                transport="http", signal=signal, consume=consume, telemetry=telemetry, clock=clock
            )
            for path, signal in PATHS.items()
        }
        self._decode_json = decode_json
        self._accepted = {media: _Accepted(media, clock) for media in MEDIA.values()}
        self._config = config
        self._gate = Gate(admit, clock)
        self._context: ssl.SSLContext | None = None
        self._cors: Cors | None = None
        self._bodies = BodyReader(config.max_request_body_size, config.read_timeout / 1e9)
        telemetry.unfinished_bytes.labels("http").set_function(lambda: self._bodies.held)
        census = Census("http", telemetry, _not_http)
        self._listener = Listener(config.endpoint, self._handle, census)
        self._files = FileReload("http", telemetry, self._read_files)
        self._loops = LoopGuard("http", telemetry, clock)

    @property
    def port(self) -> int:
        """Known after `start`; 0 for a unix socket."""
        return self._listener.port

    @property
    def problem(self) -> str | None:
        """For health: what is wrong with the door's files on the disk."""
        return self._files.problem

    async def start(self) -> None:
        """Listen.

        Raises
        ------
        OSError
            The address is taken or not ours. The message names it.
        ValueError
            Certificates or credentials cannot be used. The message names the file.
        """
        config = self._config
        self._context, self._gate.credentials, watch = read_files(config, server_context)
        self._set_limits(config)
        await self._listener.start(self._context)
        await self._files.start(config, watch)
        warn_of_exposure("http", config)

    @property
    def shown(self) -> Shown[ssl.SSLContext]:
        """The certificates and credentials in use, for `reconfigure` to go back to."""
        return Shown(self._context, self._gate.credentials, self._files.watch)

    def read(self, config: HttpReceiverConfig) -> Shown[ssl.SSLContext]:
        """Those of another configuration. Raises ValueError as `reconfigure`."""
        if config.endpoint != self._config.endpoint:
            raise ValueError("another endpoint needs a restart")
        return read_files(config, server_context)

    async def reconfigure(
        self,
        config: HttpReceiverConfig,
        shown: Shown[ssl.SSLContext] | None = None,
    ) -> None:
        """Other limits, certificates, credentials, which are read now unless they are given; the
        port stays open.

        Raises
        ------
        ValueError
            What cannot be used, or needs a restart. Nothing has changed then.
        """
        context, credentials, watch = shown or self.read(config)
        self._set_limits(config)  # Before the context: its handshakes have the new time.
        if config.tls is not None or self._config.tls is not None:
            await self._listener.use_tls(context)
        self._context = context
        warn_of_exposure("http", config, self._config)
        self._gate.credentials = credentials
        self._config = config
        await self._files.start(config, watch)

    async def _read_files(self) -> None:
        """Certificates and credentials anew, both or neither. Raises ValueError."""
        context, credentials, _ = read_files(self._config, server_context)
        if context is not None:
            await self._listener.use_tls(context)
        self._context, self._gate.credentials = context, credentials

    def _set_limits(self, config: HttpReceiverConfig) -> None:
        self._cors = Cors(config.cors) if config.cors is not None else None
        self._gate.limit_clients(config.per_client)
        self._bodies.bodies.limit = config.max_request_body_size
        self._bodies.timeout_s = config.read_timeout / 1e9
        self._listener.census.limits = Limits(
            connections=config.max_connections or connection_shares(allow_many_files()).http,
            per_client=config.per_client.connections,
            header_s=config.read_header_timeout / 1e9,
            idle_s=config.idle_timeout / 1e9,
            age_s=config.max_connection_age / 1e9,
            age_grace_s=config.max_connection_age_grace / 1e9,
            line_bytes=config.max_header_size,
        )

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        await self._files.stop()
        self._bodies.stop()
        await self._listener.stop(grace_s)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Nearly all end with the ready-made answer in the last line but one."""
        cors = self._cors
        if cors is not None and cors.is_preflight(request):
            return cors.preflight(request)
        intake = self._intakes.get(request.raw_path) or self._intakes.get(request.path)
        if intake is None:
            reply = Reply(Outcome.MALFORMED, "OTLP is at /v1/traces, /v1/metrics and /v1/logs")
            missing = _refusal(reply, _media_hinted(request), HTTPStatus.NOT_FOUND)
            return self._finished(request, missing)
        client: str = request.protocol.client  # type: ignore[attr-defined] # A Connection's.
        try:
            self._check_headers(request, client)
            media = self._media(request)
            body = await self._bodies.read(request, client)
            if media is JSON:
                body = await self._protobuf(body, intake.signal, client)
            reply = await intake.take(body, request.content_length or 0)
        except Exception as error:  # noqa: BLE001 - 500 would make the client drop its data.
            return self._finished(request, self._failure(error, intake, request))
        if reply.outcome is not _ACCEPTED:
            return self._finished(request, _refusal(reply, media))
        if reply.rejected or reply.message:
            partly = media.partly(reply, intake.signal)
            return self._finished(request, _response(HTTPStatus.OK, media, partly, {}))
        accepted = self._accepted[media]
        if cors is None and accepted.fits(request):
            return accepted
        return self._finished(request, _response(HTTPStatus.OK, media, media.accepted, {}))

    def _finished(self, request: web.BaseRequest, response: web.Response) -> web.Response:
        """What only some answers carry: the last of an old connection, and one to a browser."""
        if self._cors is not None and (origin := request.headers.get(hdrs.ORIGIN)) is not None:
            response.headers.update(self._cors.headers_for(origin))
        if request.protocol.expired:  # type: ignore[attr-defined] # A Connection's.
            response.force_close()
        return response

    def _failure(self, error: Exception, intake: Intake, request: web.BaseRequest) -> web.Response:
        """The answer to a request that was refused, or that met a broken line or a bug."""
        if isinstance(error, Refused):
            intake.count(error.reply.outcome)
            return self._refused(error, request)
        if isinstance(error, OSError):
            # The client went away. Nothing was consumed, nobody reads the answer.
            return web.Response(status=400)
        if isinstance(error, web.RequestPayloadError):
            intake.count(Outcome.MALFORMED)
            reply = malformed("the chunked transfer encoding is broken").reply
            return _refusal(reply, _media_hinted(request))
        return _refusal(intake.failed(error), _media_hinted(request))

    def _refused(self, refusal: Refused, request: web.BaseRequest) -> web.Response:
        response = _refusal(refusal.reply, _media_hinted(request), refusal.http_status)
        if refusal.reply.outcome is Outcome.UNAUTHENTICATED and self._gate.credentials is not None:
            response.headers[hdrs.WWW_AUTHENTICATE] = self._gate.credentials.challenge
        return response

    def _check_headers(self, request: web.BaseRequest, client: str) -> None:
        """What the gate asks before the body is read. Raises Refused."""
        gate, authorization = self._gate, _NOTHING
        if gate.credentials is not None:
            authorization = request.headers.getall(hdrs.AUTHORIZATION, [])
        # One that is longer than the limit is refused for that, not for memory it cannot have.
        size = min(request.content_length or 0, self._bodies.bodies.limit)
        reply = gate.refusal(authorization, client, size)
        if reply is None and INSTANCE_HEADER in request.headers:
            reply = self._loops.check(request.headers.getall(INSTANCE_HEADER))
        if reply is not None:
            raise Refused(reply)

    def _media(self, request: web.BaseRequest) -> _Media:
        """The request's media type, or a refusal: wrong method, wrong type."""
        if request.method != hdrs.METH_POST:
            raise malformed("POST only", HTTPStatus.METHOD_NOT_ALLOWED)
        value = request.headers.get(hdrs.CONTENT_TYPE, "")
        media = MEDIA.get(value) or MEDIA.get(value.partition(";")[0].strip().lower())
        if media is PROTOBUF or (media is JSON and self._decode_json is not None):
            return media
        raise malformed(
            "Content-Type must be application/x-protobuf or application/json",
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )

    async def _protobuf(self, text: bytes, signal: Signal, client: str) -> bytes:
        """A request in JSON as protobuf, which may be the longer one: a list of small numbers."""
        decode_json = self._decode_json
        assert decode_json is not None, "without it JSON was refused"
        try:
            if len(text) <= JSON_INLINE_BYTES_MAX:
                body = decode_json(text, signal)
            else:
                body = await self._bodies.change(text, client, lambda: decode_json(text, signal))
        except (ValueError, RecursionError) as error:
            raise malformed(str(error)) from error
        if len(body) > self._bodies.bodies.limit:
            raise too_large("the request, as protobuf,", self._bodies.bodies.limit)
        return body


class _Accepted(web.StreamResponse):
    """The answer to nearly every request, as bytes that are ready to send.

    One object for all requests: what aiohttp asks of a response is to prepare, to end and to say
    whether the connection stays. Only the date changes, once a second (RFC 9110, 6.6.1, wants it).
    """

    def __init__(self, media: _Media, clock: Clock) -> None:
        super().__init__()
        self._media = media
        self._clock = clock
        self._second = -1
        self._wire = b""

    @property
    def keep_alive(self) -> bool:
        """Others get an answer of their own, see `fits`."""
        return True

    def fits(self, request: web.BaseRequest) -> bool:
        """Not when the connection closes or is not read from."""
        protocol = request.protocol
        return (
            request.keep_alive
            and request.version[1] == 1
            and not protocol.writing_paused
            and not protocol.expired  # type: ignore[attr-defined] # A Connection's.
        )

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        second = self._clock.now_ns() // _SECOND_NS
        if second != self._second:
            self._second, self._wire = second, self._made(second)
        transport.write(self._wire)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        assert not data

    def _made(self, second: int) -> bytes:
        head = (
            "HTTP/1.1 200 OK",
            f"Content-Type: {self._media.content_type}",
            f"Content-Length: {len(self._media.accepted)}",
            f"Date: {formatdate(second, usegmt=True)}",
            f"Server: {SERVER_NAME}",
        )
        return "\r\n".join((*head, "", "")).encode() + self._media.accepted


def _not_http(status: int) -> web.Response:
    """The answer to what the parser refuses: too long, too many, or no HTTP at all."""
    is_large = status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    text = "the request's headers are too large" if is_large else "the request is not HTTP/1.1"
    body = PROTOBUF.encode(http_only_status(HTTPStatus.BAD_REQUEST, text))
    headers = {hdrs.CONTENT_TYPE: PROTOBUF.content_type, hdrs.SERVER: SERVER_NAME}
    return web.Response(status=status, body=body, headers=headers)


def _media_hinted(request: web.BaseRequest) -> _Media:
    """What to refuse in when the type itself may be wrong: JSON when it looks like it."""
    return JSON if "json" in request.headers.get(hdrs.CONTENT_TYPE, "").lower() else PROTOBUF


def _refusal(reply: Reply, media: _Media, http_status: HTTPStatus | None = None) -> web.Response:
    headers: dict[str, str] = {}
    if reply.outcome.retryable:
        headers[hdrs.RETRY_AFTER] = retry_after_header(reply)
    if http_status is None:
        return _response(HTTP_STATUS[reply.outcome], media, media.encode(status_of(reply)), headers)
    if http_status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers[hdrs.ALLOW] = hdrs.METH_POST
    status = http_only_status(http_status, reply.message)
    return _response(http_status, media, media.encode(status), headers)


def _response(
    http_status: HTTPStatus, media: _Media, body: bytes, headers: dict[str, str]
) -> web.Response:
    headers[hdrs.CONTENT_TYPE] = media.content_type
    headers[hdrs.SERVER] = SERVER_NAME
    return web.Response(status=http_status, body=body, headers=headers)
