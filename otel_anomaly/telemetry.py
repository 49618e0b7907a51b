"""Every metric of the process, declared once; rooms are handed this object.

The ledger, per exporter, true whenever nothing is in flight between door and queue:

    receiver_accepted_spans + exporter_recovered_spans
        = exporter_sent_spans + exporter_dropped_spans + exporter_held_spans

Recovered are the spans that a disk queue found at its start: what an earlier run had accepted.
`exporter_send_failed_spans` counts attempts and stands outside the sum. Counters exist at zero
from the start, so that `rate()` sees the first event. No agent, session or tool is a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from otel_anomaly.handoff import Outcome, Signal

# One more series for each counter, of which nobody asks when it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]

PREFIX = "otel_anomaly"
TRANSPORTS = ("grpc", "http")
DROP_REASONS = (
    "damaged",
    "queue_full",
    "rejected",
    "retries_exhausted",
    "shutdown",
    "too_large",
    "write_failed",
)

JudgeCounts = Mapping[tuple[str, tuple[str, ...]], int]
"""(metric, label values) -> value, as `Processor.counts` gives it."""

# Metrics that the judge counts inside its kernel: name -> (help, label names, is a gauge).
JUDGE_METRICS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "spans": ("Spans read.", (), False),
    "tool_calls": ("Tool calls found, each once.", (), False),
    "verdicts": ("Tool calls judged, by verdict.", ("action",), False),
    "findings": ("Findings that reached warn or more.", ("detector", "action"), False),
    "detector_evaluated": ("Tool calls a detector judged.", ("detector",), False),
    "detector_skipped": ("Tool calls it could not judge.", ("detector", "reason"), False),
    "duplicates": ("Tool-call spans delivered again.", (), False),
    "folded": ("Spans and log records that are part of a call counted already.", (), False),
    "moved": ("Calls counted anew because their agent or session became known.", (), False),
    "late": ("Tool calls too old for a detector's buckets.", (), False),
    "clamped": ("Tool calls that ended in the future, taken as ending at arrival.", (), False),
    "no_time": ("Tool calls without a time, taken as ending at arrival.", (), False),
    "invalid_ids": ("Tool-call spans whose trace or span id is not valid: not judged.", (), False),
    "forged_attributes": ("Attributes under our prefix that arrived and were removed.", (), False),
    "entities": ("Rows in use.", ("scope",), True),
    "entities_evicted": ("Rows given to another entity.", ("scope",), False),
    "entities_overflow": ("Tool calls that got no row of their own.", ("scope",), False),
}


class Ledger(NamedTuple):
    """Where the accepted spans are: as one exporter has them, or summed over all."""

    accepted: int
    sent: int
    held: int
    dropped: int
    recovered: int = 0

    def sentence(self) -> str:
        """For people; the numbers of one exporter add up.

        >>> Ledger(accepted=5, sent=6, held=1, dropped=0, recovered=2).sentence()
        'accepted 5 spans + recovered 2 = sent 6 + held 1 + dropped 0'
        """
        recovered = f" + recovered {self.recovered}" if self.recovered else ""
        return (
            f"accepted {self.accepted} spans{recovered} = sent {self.sent} + held {self.held}"
            f" + dropped {self.dropped}"
        )


class Telemetry:
    """The counters and gauges of one process, in a registry of its own."""

    def __init__(self, exporters: Iterable[str] = (), sinks: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._judge: Callable[[], JudgeCounts] = dict
        self.registry.register(_JudgeCollector(self._ask_judge))
        self.accepted_spans = self._counter(
            "receiver_accepted_spans", "Spans taken over.", "transport"
        )
        self.refused_spans = self._counter(
            "receiver_refused_spans",
            "Spans refused; 0 are counted for a request that could not be read.",
            "transport",
            "outcome",
        )
        self.requests = self._counter(
            "receiver_requests", "Requests answered.", "transport", "signal", "outcome"
        )
        self.sent_spans = self._counter(
            "exporter_sent_spans", "Spans the next hop took over.", "exporter"
        )
        self.failed_spans = self._counter(
            "exporter_send_failed_spans",
            "Spans in attempts that failed; some succeed later.",
            "exporter",
        )
        self.dropped_spans = self._counter(
            "exporter_dropped_spans", "Spans given up, for good.", "exporter", "reason"
        )
        self.sent_requests = self._counter(
            "exporter_sent_requests",
            "Received requests delivered, by signal.",
            "exporter",
            "signal",
        )
        self.dropped_requests = self._counter(
            "exporter_dropped_requests",
            "Received requests given up, by signal.",
            "exporter",
            "signal",
            "reason",
        )
        self.rejected_spans = self._counter(
            "exporter_partial_success_rejected_spans",
            "Spans that the next hop says it did not keep, of those counted as sent.",
            "exporter",
        )
        self._declare_queues()
        self.sink_records = self._counter("sink_records", "Records written.", "sink")
        self.sink_dropped = self._counter("sink_dropped", "Records given up.", "sink")
        self.detection_failures = self._counter(
            "detection_failures", "Batches that went on without a verdict because detection failed."
        )
        self.episodes_open = self._gauge("episodes_open", "Episodes that have not ended.")
        self.ready = self._gauge("ready", "1 when the doors are open.")
        self._start_at_zero(exporters, sinks)

    def _declare_queues(self) -> None:
        self.recovered_spans = self._counter(
            "exporter_recovered_spans",
            "Spans that the disk queue found at the start, accepted by an earlier run.",
            "exporter",
        )
        self.doubtful_spans = self._counter(
            "exporter_recovered_doubtful_spans",
            "Of the recovered spans, those that were tried: the next hop may get them twice.",
            "exporter",
        )
        self.bad_segments = self._counter(
            "exporter_bad_segments", "Files of the disk queue found damaged.", "exporter"
        )
        self.held_spans = self._gauge(
            "exporter_held_spans", "Spans in the queue, on disk too, or under way.", "exporter"
        )
        self.queue_size = self._gauge("exporter_queue_size", "Bytes held or reserved.", "exporter")
        self.queue_capacity = self._gauge(
            "exporter_queue_capacity", "Bytes that may be held.", "exporter"
        )

    def read_judge(self, counts: Callable[[], JudgeCounts]) -> None:
        """Let `counts` be asked at every scrape."""
        self._judge = counts

    def _ask_judge(self) -> JudgeCounts:
        return self._judge()

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def ledger(self, exporter: str | None = None) -> Ledger:
        """Where the accepted spans are, for the last words (one exporter) or the audit trail."""
        totals = dict.fromkeys(Ledger._fields, 0)
        for metric, field in (
            (self.accepted_spans, "accepted"),
            (self.sent_spans, "sent"),
            (self.held_spans, "held"),
            (self.dropped_spans, "dropped"),
            (self.recovered_spans, "recovered"),
        ):
            for family in metric.collect():
                totals[field] += sum(
                    int(sample.value)
                    for sample in family.samples
                    if exporter in {None, sample.labels.get("exporter", exporter)}
                )
        return Ledger(**totals)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _start_at_zero(self, exporters: Iterable[str], sinks: Iterable[str]) -> None:
        for transport in TRANSPORTS:
            self.accepted_spans.labels(transport)
            for outcome in Outcome:
                if outcome is not Outcome.ACCEPTED:
                    self.refused_spans.labels(transport, outcome.value)
                for signal in Signal:
                    self.requests.labels(transport, signal.value, outcome.value)
        for exporter in exporters:
            for metric in (
                self.sent_spans,
                self.failed_spans,
                self.rejected_spans,
                self.recovered_spans,
                self.doubtful_spans,
                self.bad_segments,
            ):
                metric.labels(exporter)
            for gauge in (self.held_spans, self.queue_size, self.queue_capacity):
                gauge.labels(exporter)
            for signal in Signal:
                self.sent_requests.labels(exporter, signal.value)
            for reason in DROP_REASONS:
                self.dropped_spans.labels(exporter, reason)
                for signal in Signal:
                    self.dropped_requests.labels(exporter, signal.value, reason)
        for sink in sinks:
            self.sink_records.labels(sink)
            self.sink_dropped.labels(sink)


class _JudgeCollector:
    """Reads what the kernels count, when scraped: counting costs the hot path an array add."""

    def __init__(self, counts: Callable[[], JudgeCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, (text, labels, is_gauge) in JUDGE_METRICS.items():
            kind = GaugeMetricFamily if is_gauge else CounterMetricFamily
            families[name] = kind(f"{PREFIX}_{name}", text, labels=labels)
        for (name, values), count in self._counts().items():
            families[name].add_metric(values, count)
        return families.values()
