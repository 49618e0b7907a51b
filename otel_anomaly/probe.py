"""Asks a running service whether it is ready: for container health checks and exec probes.

An image without a shell has no `curl`. The configuration that the service runs with says where to
ask; an address that means "all of them" is asked at loopback.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from otel_anomaly.config import Config

TIMEOUT_S: Final = 3.0
READY: Final = "/readyz"
ANSWER_BYTES_MAX: Final = 200
_LOOPBACK_FOR: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - names.


class Answer(NamedTuple):
    """What the service says, or why it says nothing."""

    ready: bool
    text: str


def address_to_ask(endpoint: str) -> tuple[str, int]:
    """Where something that listens on `endpoint` is reached from this machine.

    >>> address_to_ask("0.0.0.0:9464"), address_to_ask("[::]:9464"), address_to_ask("10.1.2.3:80")
    (('127.0.0.1', 9464), ('::1', 9464), ('10.1.2.3', 80))
    """
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return _LOOPBACK_FOR.get(host, host), int(port)


def ask(config: Config, timeout_s: float = TIMEOUT_S) -> Answer:
    """Whether the service of this configuration is ready. Never raises for one that is not."""
    endpoint = config.telemetry.metrics.endpoint
    host, port = address_to_ask(endpoint)
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", READY)
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        return Answer(
            ready=False, text=f"{endpoint}: no answer: {str(error) or type(error).__name__}"
        )
    finally:
        connection.close()
    words = body.decode("ascii", "replace").strip()
    return Answer(ready=response.status == http.client.OK, text=f"{endpoint}: {words}")
