"""Browsers as clients: what a page of another origin may send (Fetch standard, CORS protocol).

An origin is echoed, never listed, and credentials are allowed to origins that are named; to a bare
`*` they are not, as browsers demand.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from otel_anomaly.config import CorsConfig

USUAL_HEADERS: Final = ("accept", "authorization", "content-encoding", "content-type")
ORIGIN_CHARS_MAX: Final = 512


class Cors:
    """The rules of one door."""

    def __init__(self, config: CorsConfig) -> None:
        self._any = "*" in config.allowed_origins
        self._exact = frozenset(name for name in config.allowed_origins if "*" not in name)
        self._patterns = [
            re.compile("[^/]*".join(re.escape(part) for part in name.split("*")))
            for name in config.allowed_origins
            if "*" in name and name != "*"
        ]
        self._any_header = "*" in config.allowed_headers
        named = (*USUAL_HEADERS, *(name.lower() for name in config.allowed_headers))
        self._headers = ", ".join(name for name in named if name != "*")
        self._max_age = str(config.max_age)

    def is_preflight(self, request: web.BaseRequest) -> bool:
        """Whether a browser asks before it sends."""
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ORIGIN in request.headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        )

    def preflight(self, request: web.BaseRequest) -> web.Response:
        """The answer; without the headers that allow when the origin is not allowed."""
        headers = self.headers_for(request.headers.get(hdrs.ORIGIN, ""))
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = hdrs.METH_POST
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = self._allowed_headers(request)
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = self._max_age
        return web.Response(status=204, headers=headers)

    def headers_for(self, origin: str) -> dict[str, str]:
        """What an answer to `origin` carries."""
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        if self._is_named(origin):
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        elif self._any and origin:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        return headers

    def _is_named(self, origin: str) -> bool:
        if len(origin) > ORIGIN_CHARS_MAX:
            return False
        lowered = origin.lower()
        return lowered in self._exact or any(each.fullmatch(lowered) for each in self._patterns)

    def _allowed_headers(self, request: web.BaseRequest) -> str:
        """A list; `*` in it would not cover Authorization, so what was asked for is repeated."""
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        if self._any_header and re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}", asked):
            return asked
        return self._headers
