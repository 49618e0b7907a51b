"""The monitoring page: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from otel_anomaly.config import PerClientConfig
from otel_anomaly.receivers.connections import Census, Limits
from otel_anomaly.receivers.gate import ClientRates
from otel_anomaly.receivers.listener import Listener
from otel_anomaly.receivers.reloading import warn_of_open_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_anomaly.config import MetricsConfig
    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
STOP_GRACE_S: Final = 1.0
CONNECTIONS_MAX: Final = 256
"""Scrapers and supervisors are few. The longest idle goes for one more: four addresses that hold
their share would lock the supervisor out."""
CONNECTIONS_OF_CLIENT_MAX: Final = 64
"""Of one address. One that holds them all would have the supervisor think that we are dead."""
LINE_BYTES_MAX: Final = 4096
PAGES: Final = PerClientConfig(requests_per_second=10, burst=50)
"""Of one address; more have to wait. To write all metrics takes 5 ms, in which no span comes in."""

WAITERS_MAX: Final = 64
WAITERS_OF_CLIENT_MAX: Final = 8
"""Requests that wait, at the most; one more is told to come again. A request outlives a connection
that is closed meanwhile, so that the bound on connections is none on these."""
WAIT_S: Final = 1


class Monitoring:
    """Answers GET and HEAD. Alive: the event loop turns. Ready: the doors are open."""

    def __init__(
        self,
        config: MetricsConfig,
        telemetry: Telemetry,
        health: Callable[[], Mapping[str, object]],
        ready: Callable[[], bool],
        clock: Clock | None = None,
    ) -> None:
        """Without a clock nobody has to wait, however often he asks."""
        self._rates = ClientRates(PAGES, clock) if clock is not None else None
        self._waiters = Counter[str]()
        """By client; no entry is 0."""
        self._telemetry = telemetry
        self._health = health
        self._ready = ready
        census = Census("monitoring", telemetry, _not_http)
        census.limits = Limits(
            connections=CONNECTIONS_MAX,
            per_client=CONNECTIONS_OF_CLIENT_MAX,
            line_bytes=LINE_BYTES_MAX,
            makes_room=True,
        )
        self._endpoint = config.endpoint
        self._listener = Listener(config.endpoint, self._handle, census)
        self._pages = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    @property
    def port(self) -> int:
        """Known after `start`."""
        return self._listener.port

    async def start(self) -> None:
        """Listen. Raises OSError, naming the address, when it cannot."""
        await self._listener.start()
        warn_of_open_page(self._endpoint)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Close. The service stops this last, so that its end can be watched."""
        await self._listener.stop(grace_s)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        page = self._pages.get(request.path)
        if page is None:
            return web.Response(status=404, text="try /metrics, /healthz or /readyz\n")
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            return web.Response(
                status=405, text="GET and HEAD only\n", headers={hdrs.ALLOW: "GET, HEAD"}
            )
        refusal = await self._turn(request) if self._rates is not None else None
        response = page() if refusal is None else refusal
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        return response

    async def _turn(self, request: web.BaseRequest) -> web.Response | None:
        """Wait until the client may have a page. Returns the answer when it gets none."""
        assert self._rates is not None
        client: str = request.protocol.client  # type: ignore[attr-defined] # A Connection's.
        wait_s = self._rates.wait_s(client)
        if not wait_s:
            return None
        waiters = self._waiters
        if waiters[client] >= WAITERS_OF_CLIENT_MAX or waiters.total() >= WAITERS_MAX:
            return web.Response(
                status=429, text="too many requests\n", headers={hdrs.RETRY_AFTER: str(WAIT_S)}
            )
        waiters[client] += 1
        try:
            while wait_s:
                await asyncio.sleep(wait_s)
                if request.transport is None:
                    return web.Response(status=400)  # Gone: nobody reads it, no page is made.
                wait_s = self._rates.wait_s(client)
        finally:
            waiters[client] -= 1
            if not waiters[client]:
                del waiters[client]
        return None

    def _metrics(self) -> web.Response:
        return web.Response(
            body=self._telemetry.render(), headers={hdrs.CONTENT_TYPE: METRICS_TYPE}
        )

    def _healthz(self) -> web.Response:
        body = json.dumps(self._health(), default=str) + "\n"
        return web.Response(text=body, content_type="application/json")

    def _readyz(self) -> web.Response:
        ready = self._ready()
        return web.Response(
            status=200 if ready else 503, text="ready\n" if ready else "not ready\n"
        )


def _not_http(status: int) -> web.Response:
    """The answer to what the parser refuses, without repeating it."""
    return web.Response(status=status, text="not HTTP/1.1\n")
