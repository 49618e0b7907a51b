"""Next hop over OTLP/HTTP: protobuf or JSON in a POST, status codes come back as results.

The table is that of the OTLP specification ("Failures", OTLP/HTTP): 429, 502, 503 and 504 may be
retried, and so may a request whose connection broke; every other status is final.
"""

from __future__ import annotations

import asyncio
import io
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import aiohttp

from otel_anomaly.config import SECOND_NS
from otel_anomaly.exporters.contract import (
    USER_AGENT,
    SendResult,
    clipped,
    rejected,
    retry,
    too_large,
)
from otel_anomaly.exporters.destination import refuse_own_doors
from otel_anomaly.exporters.echo import told_by, without_headers
from otel_anomaly.exporters.response import (
    RESPONSE_BYTES_MAX,
    retry_after_s,
    status_message,
    taken,
)
from otel_anomaly.exporters.tls import client_context
from otel_anomaly.handoff import INSTANCE, INSTANCE_HEADER, Signal
from otel_anomaly.otlp.json import encode

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from otel_anomaly.config import OtlpHttpExporterConfig
    from otel_anomaly.handoff import Clock

OK_FIRST, OK_LAST = 200, 299
TOO_LARGE = 413
RETRYABLE: Final = frozenset({429, 502, 503, 504})
REFUSED_ABOUT_DATA: Final = frozenset({400, 413, 422, 500})
"""Refusals that other bytes might not meet. Of the rest, like 401 or 404, each would."""

GZIP_LEVEL: Final = 1
"""Telemetry repeats itself: level 6 takes twice as long for a tenth less."""
GZIP_WBITS: Final = 31
ZSTD_LEVEL: Final = 1
INLINE_BYTES_MAX: Final = 32 << 10
"""Compressed in the loop up to here, well under a millisecond; beyond, in a thread."""
PLAIN_BYTES_MAX: Final = 1 << 20
"""aiohttp wants a larger body as a file, so that writing it does not hold up the loop."""

CONTENT_TYPE: Final = {"proto": "application/x-protobuf", "json": "application/json"}

BROKEN_OFF: Final = b"\xff"
"""For a response that did not come whole: neither protobuf nor JSON, so nothing is read in it."""


class HttpExporter:
    """One session, its connections kept alive, to one next hop."""

    serial = False

    def __init__(
        self, config: OtlpHttpExporterConfig, clock: Clock, doors: Sequence[str] = ()
    ) -> None:
        """`doors`: our own, `host:port`, which no endpoint must lead to."""
        self._config = config
        self._doors = doors
        self._clock = clock
        urls = config.endpoints()
        self._url = {signal: urls[signal.value] for signal in Signal if signal.value in urls}
        self._json = config.encoding == "json"
        self._headers = {
            **config.headers,
            INSTANCE_HEADER: INSTANCE,
            "Content-Type": CONTENT_TYPE[config.encoding],
        }
        self._told = told_by(config.headers, urls.values())
        self._compress = COMPRESS[config.compression]
        if self._compress is not None:
            self._headers["Content-Encoding"] = config.compression

    async def start(self) -> None:
        """Make the session; it connects when there is something to send."""
        await refuse_own_doors(self._url.values(), self._doors)
        # Who sends in the clear needs no certificates: those of the environment may not even exist.
        secure = any(url.startswith("https://") for url in self._url.values())
        tls = client_context(self._config.tls) if secure else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._config.sending_queue.num_consumers, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout / SECOND_NS),
            # A response that is not inflated cannot be a bomb.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": USER_AGENT},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """One POST, within the deadline."""
        del items
        return without_headers(await self._send(body, signal), self._told)

    async def _send(self, body: bytes, signal: Signal) -> SendResult:
        url = self._url.get(signal)
        if url is None:
            return rejected(f"no endpoint is configured for {signal.value}", about_data=False)
        try:
            data = await self._encoded(body, signal)
        except ValueError as error:
            return rejected(f"not OTLP: {clipped(error)}")
        if data is None:
            return too_large(f"in JSON, more than {self._config.max_request_size} bytes")
        try:
            async with self._session.post(
                url,
                data=data if len(data) <= PLAIN_BYTES_MAX else io.BytesIO(data),
                headers=self._headers,
                allow_redirects=False,
            ) as response:
                content = await _read(response)
        except TimeoutError:
            return retry("no answer within the timeout")
        except (aiohttp.ClientError, OSError) as error:
            return retry(f"{type(error).__name__}: {clipped(error)}")
        in_json = response.headers.get("Content-Type", "").startswith("application/json")
        if OK_FIRST <= response.status <= OK_LAST:
            return taken(content, signal, in_json=in_json)
        if content is None:
            return rejected(
                f"{response.status}: the response is over {RESPONSE_BYTES_MAX} bytes",
                about_data=False,
            )
        hint = response.headers.get("Retry-After")
        message = status_message(content, in_json=in_json)
        return failure(response.status, message, retry_after_s(hint, self._clock.now_ns()))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _encoded(self, body: bytes, signal: Signal) -> bytes | None:
        """What goes on the wire; None when JSON makes it too large."""
        if not self._json and self._compress is None:
            return body
        if len(body) <= INLINE_BYTES_MAX:
            return self._encode(body, signal)
        return await asyncio.to_thread(self._encode, body, signal)

    def _encode(self, body: bytes, signal: Signal) -> bytes | None:
        if self._json:
            body = encode(body, signal)
            if len(body) > self._config.max_request_size:
                return None
        return body if self._compress is None else self._compress(body)


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, GZIP_LEVEL, GZIP_WBITS)


def _zstd(body: bytes) -> bytes:
    return zstd.compress(body, ZSTD_LEVEL)


COMPRESS: Final[dict[str, Callable[[bytes], bytes] | None]] = {
    "gzip": _gzip,
    "zstd": _zstd,
    "none": None,
}


def failure(status: int, message: str, hint_s: float | None) -> SendResult:
    """A status other than success, as a result."""
    message = f"status {status} {message}".rstrip()
    if status in RETRYABLE:
        return retry(message, hint_s)
    if status == TOO_LARGE:
        return too_large(message)
    return rejected(message, about_data=status in REFUSED_ABOUT_DATA)


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """The body as far as it comes; None when it is over the limit. No more than that is ever held.

    The status has come before it, and what that says stays true when the line breaks now.
    """
    chunks: list[bytes] = []
    left = RESPONSE_BYTES_MAX
    try:
        async for chunk in response.content.iter_any():
            left -= len(chunk)
            if left < 0:
                response.close()
                return None
            chunks.append(chunk)
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()
        return BROKEN_OFF
    return b"".join(chunks)
