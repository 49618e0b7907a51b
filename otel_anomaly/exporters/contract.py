"""What the queue and the exporters agree on: one request in, one of four results out."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from otel_anomaly import __version__

if TYPE_CHECKING:
    from otel_anomaly.handoff import Signal

USER_AGENT = f"otel-anomaly/{__version__} OTLP-Exporter-Python/{__version__}"
"""Product, then exporter and language (OpenTelemetry specification, "User Agent")."""
MESSAGE_CHARS_MAX = 200
"""Of a message from the next hop, in our log. It is as long as the next hop likes."""


class Kind(enum.Enum):
    """What became of one attempt."""

    SENT = "sent"
    """The next hop took it over, perhaps without some of it."""
    RETRY = "retry"
    """Not taken, but the same bytes may be taken later."""
    REJECTED = "rejected"
    """Never to be sent again."""
    TOO_LARGE = "too_large"
    """Over a limit of the next hop: never to be sent again as it is."""


class SendResult(NamedTuple):
    """The result of one attempt."""

    kind: Kind
    message: str = ""
    """For our log. `clipped` when it came from outside."""
    rejected: int = 0
    """Items that the next hop says it did not keep; only with SENT."""
    retry_after_s: float | None = None
    """The wait the next hop asks for; only with RETRY."""
    about_data: bool = True
    """With REJECTED and TOO_LARGE: other bytes might have been taken. A missing credential
    refuses everything alike, so the parts of a merged request are not worth an attempt each."""
    losses: tuple[tuple[str, int], ...] = ()
    """Reason and items given up, of a request that went in pieces; only with SENT."""


SENT = SendResult(Kind.SENT)
"""Taken over, all of it."""


def retry(message: str, after_s: float | None = None) -> SendResult:
    """Not taken now."""
    return SendResult(Kind.RETRY, message, retry_after_s=after_s)


def rejected(message: str, *, about_data: bool = True) -> SendResult:
    """Not taken, for good."""
    return SendResult(Kind.REJECTED, message, about_data=about_data)


def too_large(message: str) -> SendResult:
    """Not taken, for good, because of its size."""
    return SendResult(Kind.TOO_LARGE, message)


def clipped(text: object) -> str:
    """Text from outside, fit for a line of our log: short, printable, on one line."""
    cut = str(text)[:MESSAGE_CHARS_MAX]
    return "".join(char if char.isprintable() else "?" for char in cut)


class Exporter(Protocol):
    """One destination. It knows nothing of queues, retries and ledgers."""

    serial: bool
    """Requests go one after the other, whatever `num_consumers` says."""

    async def start(self) -> None:
        """Open what can be opened here. A destination that is down is not an error.

        Raises
        ------
        OSError, ValueError
            It can never work: a certificate or a directory that cannot be used.
        """

    async def send(self, body: bytes, signal: Signal, items: int) -> SendResult:
        """One attempt, within the exporter's own deadline. `items` as in `Payload`."""

    async def close(self) -> None:
        """Give everything back. Called once, after the last send."""
