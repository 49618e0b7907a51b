"""What an exporter took over and what became of it: counters that add up, words in the log.

    taken over + recovered = sent + dropped + held

holds after every call of every method here, for spans and for requests. `recovered` is what a disk
queue found at its start. An attempt that failed stands outside the sum: what it carried is still
held.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from otel_anomaly.exporters.queue import Group
    from otel_anomaly.handoff import Payload
    from otel_anomaly.telemetry import Telemetry

_LOG = logging.getLogger(__name__)

NOTICE_EVERY_S = 30.0
"""Data that is lost is told at most so often per exporter; the counters have all of it."""


def spans_in(parts: Iterable[Payload]) -> int:
    """Spans in some payloads. Metrics and logs hold none."""
    return sum(part.items for part in parts if part.signal is Signal.TRACES)


class Ledger:
    """The books of one exporter."""

    def __init__(self, telemetry: Telemetry, exporter: str) -> None:
        # What a queue of the same name has left on disk is held there, also while this one starts.
        self.held_spans = telemetry.left_on_disk.get(exporter, 0)
        self._dropped_spans = telemetry.dropped_spans
        self._dropped_requests = telemetry.dropped_requests
        self._exporter = exporter
        # Looking a label up costs more than counting, and these are counted per request.
        self._sent_spans = telemetry.sent_spans.labels(exporter)
        self._failed_spans = telemetry.failed_spans.labels(exporter)
        self._rejected_spans = telemetry.rejected_spans.labels(exporter)
        self._recovered_spans = telemetry.recovered_spans.labels(exporter)
        self._doubtful_spans = telemetry.doubtful_spans.labels(exporter)
        self._left_on_disk = telemetry.left_on_disk
        self._sent_requests = {
            signal: telemetry.sent_requests.labels(exporter, signal.value) for signal in Signal
        }
        # Asked for at a scrape only: counting what is held costs the hot path an addition.
        telemetry.held_spans.labels(exporter).set_function(lambda: self.held_spans)

    def took(self, payload: Payload) -> None:
        """A payload was taken over."""
        if payload.signal is Signal.TRACES:
            self.held_spans += payload.items

    def recovered(self, spans: int, doubtful: int = 0) -> None:
        """So many spans lie on disk from an earlier run; `doubtful` of them were tried."""
        # What a queue of the same name has left there is counted as accepted by this process.
        left = self._left_on_disk.pop(self._exporter, 0)
        self.held_spans += spans - left
        self._recovered_spans.inc(max(spans - left, 0))
        self._dropped_spans.labels(self._exporter, "damaged").inc(max(left - spans, 0))
        self._doubtful_spans.inc(doubtful)

    def stays(self) -> None:
        """What is held stays on disk when the exporter goes; another of its name may find it."""
        self._left_on_disk[self._exporter] = self.held_spans

    def failed(self, spans: int) -> None:
        """An attempt failed; the data is still held."""
        self._failed_spans.inc(spans)

    def sent(self, group: Group, rejected: int, losses: Sequence[tuple[str, int]] = ()) -> None:
        """The next hop took over a group, and says it left out `rejected` items.

        `losses`, reason and items, never went to it: pieces of a request that was cut.
        """
        spans = group.spans
        self._release(spans)
        if losses and group.signal is not Signal.TRACES:
            # Counted by request: not all of it is there.
            self.refused(group.signal, group.requests, 0, losses[0][0])
            return
        for reason, items in losses:
            lost = min(items, spans)
            self._dropped_spans.labels(self._exporter, reason).inc(lost)
            spans -= lost
        self._sent_spans.inc(spans)
        self._sent_requests[group.signal].inc(group.requests)
        # The number comes from outside and may be anything.
        self._rejected_spans.inc(min(max(rejected, 0), spans))

    def dropped(self, signal: Signal, requests: int, spans: int, reason: str) -> None:
        """Held requests were given up for good."""
        self._release(spans)
        self.refused(signal, requests, spans, reason)

    def refused(self, signal: Signal, requests: int, spans: int, reason: str) -> None:
        """Requests were given up before they were held: an optional exporter had no room."""
        self._dropped_spans.labels(self._exporter, reason).inc(spans)
        self._dropped_requests.labels(self._exporter, signal.value, reason).inc(requests)

    def _release(self, spans: int) -> None:
        assert self.held_spans >= spans, "nothing leaves that was not taken over"
        self.held_spans -= spans


class Notices:
    """The log of one exporter: changes of its state, and now and then that data is lost."""

    def __init__(self, exporter: str) -> None:
        self._exporter = exporter
        self._failing = False
        self._message = ""
        self._quiet_until_s: dict[str, float] = {}

    def works(self) -> None:
        """An attempt succeeded."""
        if self._failing:
            self._failing = False
            _LOG.info("exporter %s: works again", self._exporter)

    def fails(self, message: str) -> None:
        """An attempt failed and is repeated."""
        self._message = message
        if not self._failing:
            self._failing = True
            _LOG.warning("exporter %s: fails, will retry: %s", self._exporter, message)

    def trouble(self) -> str:
        """Why it fails, if it does."""
        return f", fails: {self._message}" if self._failing else ""

    def lost(self, reason: str, message: str, now_s: float) -> None:
        """Data was given up, or the next hop did not keep all of it."""
        if now_s < self._quiet_until_s.get(reason, now_s):
            return
        self._quiet_until_s[reason] = now_s + NOTICE_EVERY_S
        _LOG.warning("exporter %s: %s: %s", self._exporter, reason, message)
