"""A request that we sent ourselves and that came back: refused, or it would go round for ever.

Each exporter sends the name of its process in a header. The first hop that we reach is ourselves
when the name is ours, whatever balancer or port forwarding lies between; what a Collector between
passes on carries its own headers, so a longer circle is not seen. Refused for good: the client is
us, and what it sends again comes back again. Its span has been judged and delivered once already.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from otel_anomaly.handoff import INSTANCE, Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.handoff import Clock
    from otel_anomaly.telemetry import Telemetry

LOG = logging.getLogger("otel_anomaly")
LOG_EVERY_S: Final = 60.0
CAME_BACK: Final = Reply(
    Outcome.MALFORMED, "this service sent the request itself: an exporter's endpoint leads back"
)


class LoopGuard:
    """Looks at the header of every request of one door."""

    def __init__(self, transport: str, telemetry: Telemetry, clock: Clock) -> None:
        self._looped = telemetry.looped_requests.labels(transport)
        self._transport = transport
        self._clock = clock
        self._logged_s = -LOG_EVERY_S

    def check(self, instances: Sequence[str | bytes]) -> Reply | None:
        """The refusal of a request that names us as its sender; None for all others."""
        if INSTANCE not in instances:
            return None
        self._looped.inc()
        now_s = self._clock.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOG.error(
                "requests that we sent come back to us over %s and are refused:"
                " an exporter's endpoint leads to our own door",
                self._transport,
            )
        return CAME_BACK
