"""One signal at one door: hands a body to `consume` and counts the answer, once per request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from otel_anomaly.handoff import Batch, Outcome, Reply
from otel_anomaly.receivers.string_indexes import IndexWatch

if TYPE_CHECKING:
    from otel_anomaly.handoff import Clock, Consume, Signal
    from otel_anomaly.telemetry import Telemetry

LOG = logging.getLogger("otel_anomaly")
LOG_EVERY_S: Final = 60.0
"""A bug that every request meets is told once a minute, not once per request."""

# Looked up once: an attribute of an Enum class costs more than a global.
_ACCEPTED = Outcome.ACCEPTED

# UNKNOWN and 500 would tell the client to throw its data away for a bug of ours.
FAILED: Final = Reply(
    Outcome.QUEUE_FULL, "the service could not process the request; send it again", 5.0
)


class Intake:
    """Where the requests of one signal enter, on one transport."""

    def __init__(
        self,
        *,
        transport: str,
        signal: Signal,
        consume: Consume,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self.signal = signal
        self._transport = transport
        self._consume = consume
        self._clock = clock
        self._logged_s = -LOG_EVERY_S
        self._look = IndexWatch(transport, signal).look
        # Children looked up here: `labels()` takes a lock and builds a tuple of strings each time.
        self._requests = {
            outcome: telemetry.requests.labels(transport, signal.value, outcome.value)
            for outcome in Outcome
        }
        self._accepted = self._requests[_ACCEPTED]

    async def take(
        self, body: bytes, admitted: int | None = None, patience_s: float | None = None
    ) -> Reply:
        """Hand over one body. An exception out of `consume` becomes a retryable refusal.

        `admitted` and `patience_s` as in `Batch`.
        """
        now_ns = self._clock.now_ns()
        batch = Batch(body, self.signal, self._transport, now_ns, admitted, patience_s)
        try:
            reply = await self._consume(batch)
        except Exception as error:  # noqa: BLE001 - the bug is ours, the data is the client's.
            return self.failed(error)
        if reply.outcome is _ACCEPTED:
            self._accepted.inc()
            try:
                self._look(body, now_ns)
            except Exception:  # It was taken over: a refusal now would make the client repeat it.
                LOG.exception("%s over %s: not looked at", self.signal.value, self._transport)
        else:
            self._requests[reply.outcome].inc()
        return reply

    def count(self, outcome: Outcome) -> None:
        """Count a request that the door itself refused."""
        assert outcome is not _ACCEPTED
        self._requests[outcome].inc()

    def failed(self, error: Exception) -> Reply:
        """The answer to a request that met a bug; counted, and logged when it is time to."""
        now_s = self._clock.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOG.error(
                "a %s request over %s failed; the client is asked to send it again",
                self.signal.value,
                self._transport,
                exc_info=error,
            )
        self.count(FAILED.outcome)
        return FAILED
