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

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import hdrs, web

from otel_anomaly.handoff import Outcome, Reply, Signal
from otel_anomaly.receivers.body import BodyReader, Refused, malformed
from otel_anomaly.receivers.intake import Intake
from otel_anomaly.receivers.listener import Listener
from otel_anomaly.receivers.status import (
    HTTP_STATUS,
    http_only_status,
    retry_after_header,
    status_as_json,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import AbstractStreamWriter
    from google.rpc.status_pb2 import Status

    from otel_anomaly.config import HttpReceiverConfig
    from otel_anomaly.handoff import Clock, Consume
    from otel_anomaly.telemetry import Telemetry

PATHS: Final = {f"/v1/{signal.value}": signal for signal in Signal}
JSON_INLINE_BYTES_MAX: Final = 1 << 19
"""JSON is decoded at some 400 MB/s, this much in a millisecond or two. A larger body goes to a
thread, which needs no interpreter meanwhile, so that others are served."""
SERVER_NAME: Final = "otel-anomaly"
_ACCEPTED = Outcome.ACCEPTED
_SECOND_NS = 1_000_000_000


class _Media(NamedTuple):
    """A media type: what we answer in when it was asked in."""

    content_type: str
    accepted: bytes
    """An empty ExportTraceServiceResponse: nothing was rejected."""

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
        self._bodies = BodyReader(config.max_request_body_size)
        self._listener = Listener(config.endpoint, self._handle)

    @property
    def port(self) -> int:
        """Known after `start`."""
        return self._listener.port

    async def start(self) -> None:
        """Listen. Raises OSError, naming the address, when it cannot."""
        await self._listener.start()

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more; give requests that are being answered `grace_s` seconds."""
        self._bodies.stop()
        await self._listener.stop(grace_s)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        intake = self._intakes.get(request.raw_path) or self._intakes.get(request.path)
        if intake is None:
            reply = Reply(Outcome.MALFORMED, "OTLP is at /v1/traces, /v1/metrics and /v1/logs")
            return _refusal(reply, _media_hinted(request), HTTPStatus.NOT_FOUND)
        try:
            media = self._media(request)
            body = await self._bodies.read(request)
            if media is JSON:
                body = await self._protobuf(body, intake.signal)
            reply = await intake.take(body)
        except Refused as refusal:
            intake.count(refusal.reply.outcome)
            return _refusal(refusal.reply, _media_hinted(request), refusal.http_status)
        except OSError:
            # The client went away. Nothing was consumed, nobody reads the answer.
            return web.Response(status=400)
        except web.RequestPayloadError:
            intake.count(Outcome.MALFORMED)
            reply = malformed("the chunked transfer encoding is broken").reply
            return _refusal(reply, _media_hinted(request))
        except Exception as error:  # noqa: BLE001 - 500 would make the client drop its data.
            return _refusal(intake.failed(error), _media_hinted(request))
        if reply.outcome is _ACCEPTED:
            return self._accepted[media].for_request(request)
        return _refusal(reply, media)

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

    async def _protobuf(self, body: bytes, signal: Signal) -> bytes:
        assert self._decode_json is not None, "without it JSON was refused"
        try:
            if len(body) <= JSON_INLINE_BYTES_MAX:
                return self._decode_json(body, signal)
            return await asyncio.to_thread(self._decode_json, body, signal)
        except (ValueError, RecursionError) as error:
            raise malformed(str(error)) from error


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
        """`for_request` gives the others an answer of their own."""
        return True

    def for_request(self, request: web.BaseRequest) -> web.StreamResponse:
        """Itself, or an ordinary response when the connection closes or is not read from."""
        if request.keep_alive and request.version[1] == 1 and not request.protocol.writing_paused:
            return self
        return _response(HTTPStatus.OK, self._media, self._media.accepted, {})

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
