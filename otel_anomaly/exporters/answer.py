"""What a client waits for when its answer is open: the worst of several results.

    accepted  <  accepted, but not all of it kept  <  rejected  <  unavailable

Unavailable is the worst: the client sends again, and the exporter that has nothing gets another
chance. To one that refused for good the repetition is one more refusal; told "rejected" instead,
the client would throw away what an exporter that is only late has not got yet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from otel_anomaly.handoff import Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

_RANK: Final = {Outcome.ACCEPTED: 0, Outcome.REJECTED: 1, Outcome.UNAVAILABLE: 2}
_FOR_GOOD: Final = {"rejected", "too_large"}


def not_delivered(reason: str) -> Reply:
    """The answer to a request that was given up, for a reason of `telemetry.DROP_REASONS`."""
    if reason in _FOR_GOOD:
        return Reply(Outcome.REJECTED, f"an exporter could not deliver it: {reason}")
    return Reply(Outcome.UNAVAILABLE, f"an exporter did not deliver it: {reason}: send again later")


class Answer:
    """One open answer, to be told by several exporters."""

    __slots__ = ("_parties", "_retry_after_s", "_worst", "future")

    def __init__(self, parties: int, retry_after_s: Callable[[], float]) -> None:
        """`parties` have to tell; `retry_after_s` is asked when the client is to send again."""
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._parties = parties
        self._retry_after_s = retry_after_s
        self._worst = Reply(Outcome.ACCEPTED)

    @property
    def is_open(self) -> bool:
        """Whether somebody still waits."""
        return not self.future.done()

    def tell(self, reply: Reply) -> None:
        """What became of it at one exporter."""
        self._parties -= 1
        if _badness(reply) > _badness(self._worst):
            self._worst = reply
        if self._parties == 0 or self._worst.outcome is Outcome.UNAVAILABLE:
            self.settle(self._worst)

    def settle(self, reply: Reply) -> None:
        """The last word, where none was given: the client may be gone."""
        if self.future.done():
            return
        if reply.outcome.retryable:
            reply = reply._replace(retry_after_s=self._retry_after_s())
        self.future.set_result(reply)


def _badness(reply: Reply) -> tuple[int, int]:
    return _RANK[reply.outcome], reply.rejected
