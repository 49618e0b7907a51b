"""Words used when a batch changes hands: between door, processor and exporters.

A `Batch` is one received request. Whatever happens to it is one `Outcome`, a closed set: the
doors map it to a status code, telemetry uses its value as a label. A `Payload` is what the
processor hands on: bytes that are ready to send, with their item count for the ledger.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

INSTANCE_HEADER: Final = "x-otel-anomaly-instance"
"""Sent with every exported request, so that a door knows what comes back to it."""
INSTANCE: Final = secrets.token_hex(16)
"""Names this process in it: by chance, so that it says nothing of the machine."""


class Signal(enum.Enum):
    """The three OTLP signals. The value is the name in paths and labels."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class Outcome(enum.Enum):
    """What happened to a request at the door. The value is the metric label."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    """Not OTLP. Permanent: the client must not send it again."""
    TOO_LARGE = "too_large"
    """Over a size limit, also after decompression. Permanent."""
    QUEUE_FULL = "queue_full"
    """A required exporter has no room. Nothing was learned; the client retries."""
    MEMORY = "memory"
    """The process is near its memory limit. The client retries."""
    STOPPING = "stopping"
    """The service is shutting down. The client retries, elsewhere or later."""
    THROTTLED = "throttled"
    """This client sends more than it may. It retries, later."""
    UNAUTHENTICATED = "unauthenticated"
    """No credential, or a wrong one. Permanent."""
    UNAVAILABLE = "unavailable"
    """Taken in, but what was promised did not come about: the disk failed, or with `ack: sent` an
    exporter did not deliver in time; or it was here and we had no time to read it. The client
    retries."""
    REJECTED = "rejected"
    """With `ack: sent`: a next hop refused it for good. Permanent."""

    @property
    def retryable(self) -> bool:
        """Whether the same request can be accepted later."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        Outcome.QUEUE_FULL,
        Outcome.MEMORY,
        Outcome.STOPPING,
        Outcome.THROTTLED,
        Outcome.UNAVAILABLE,
    }
)


class Batch(NamedTuple):
    """One received request, uncompressed."""

    body: bytes
    """The encoded ExportTraceServiceRequest (or metrics, or logs)."""
    signal: Signal
    transport: str
    """`grpc` or `http`: the label of the receiver metrics."""
    received_ns: int
    """Arrival, nanoseconds since 1970."""
    admitted: int | None = None
    """Bytes for which the door was let in before it read them, see `Admit`; None: it never asked.
    What came out of them, inflated or decoded, may be more."""
    patience_s: float | None = None
    """For so long does the client wait for the answer, as far as it said."""


class Reply(NamedTuple):
    """The answer to a batch."""

    outcome: Outcome
    message: str = ""
    """For the client: what is wrong and where. Never part of the data."""
    retry_after_s: float = 0.0
    """When a retry may succeed, seconds; 0 when `outcome` is not retryable."""
    rejected: int = 0
    """Items that a next hop did not keep; only with ACCEPTED, and only known with `ack: sent`."""
    pending: Awaitable[Reply] | None = None
    """The answer is still to come: this is what to tell the client when it has. Waiting for it may
    be given up at any time; the batch goes its way."""


class Payload(NamedTuple):
    """What goes to the exporters: bytes, and what they hold."""

    body: bytes
    signal: Signal
    items: int
    """Spans in `body` for traces; 1 for metrics and logs, which are counted by request."""


Consume = Callable[[Batch], Awaitable[Reply]]
"""What a door calls with each batch. Never raises; the door maps the outcome."""
Admit = Callable[[int], Reply | None]
"""Asked by a door before it reads a body of so many wire bytes (0: not known). A reply refuses.
Goes into `Batch.admitted`, so that the same bytes do not count again when they have arrived."""


def admit_all(_size: int) -> Reply | None:
    """Refuse nobody."""
    return None


class Clock(Protocol):
    """Time, handed in."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class EpisodeEvent(NamedTuple):
    """A step in the life of an episode: one detector about one entity, from first to last sign.

    What the audit trail and the console are told. Identity fields are None when the telemetry
    does not say; none of them is argument text.
    """

    step: str
    """`start`, `escalate` (a stronger action than before) or `end`."""
    episode: str
    """Identifier, the same for all steps of one episode: detector, entity and start, hashed."""
    time_ns: int
    """Event time of this step, nanoseconds since 1970."""
    start_ns: int
    """Event time of the start."""
    detector: str
    action: str
    """Strongest action so far."""
    score: float
    """Highest score so far, 0..1."""
    observed: float
    """What was seen at this step; at `end`, the peak."""
    limit: float
    """The limit it is held against."""
    window_s: float
    """Seconds over which `observed` was counted."""
    count: int  # type: ignore[assignment]  # Hides tuple.count, which nobody asks an event for.
    """Calls in the episode so far that reached warn or more."""
    entity: str
    """Whose state was judged, with its kind: `session:s-1`, `agent:billing`, `anon`."""
    reason: str
    tenant: str | None
    agent: str | None
    session: str | None
    user: str | None
    tool: str | None
    trace_id: str
    """Hex, of the span that made the step; of the last one at `end`."""
    span_id: str


class Sink(Protocol):
    """Takes episode events. Bounded, counted, never slow: a full sink drops."""

    def offer(self, events: list[EpisodeEvent]) -> None:
        """Take the events over, or drop and count them. Never blocks, never raises."""
