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
REFUSED_CONNECTIONS = (
    "limit",
    "per_client",
    "handshakes",
    "slow_headers",
    "malformed",
    "aged",
    "slow_reader",
)
RELOAD_RESULTS = ("applied", "unchanged", "refused")
DROP_REASONS = (
    "damaged",
    "queue_full",
    "rejected",
    "retries_exhausted",
    "shutdown",
    "too_large",
    "write_failed",
)

SNAPSHOT_RESULTS = ("written", "failed", "unchanged", "refused")

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
        self._declare_doors()
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
        self._count_redaction()
        self.episodes_open = self._gauge("episodes_open", "Episodes that have not ended.")
        self._add_snapshots()
        self.ready = self._gauge("ready", "1 when the doors are open.")
        self._add_configuration_and_memory()
        # Accepted spans that were there before an exporter was, or came while it was not.
        self._missed: dict[str, int] = {}
        self._away_since: dict[str, int] = {}
        self._start_at_zero(exporters, sinks)

    def _declare_queues(self) -> None:
        self.recovered_spans = self._counter(
            "exporter_recovered_spans",
            "Spans that the disk queue found at the start, accepted by an earlier run.",
            "exporter",
        )
        self.doubtful_spans = self._counter(
            "exporter_recovered_doubtful_spans",
            "Of the recovered spans, those known to have been tried: the next hop may get them"
            " twice.",
            "exporter",
        )
        self.bad_segments = self._counter(
            "exporter_bad_segments", "Files of the disk queue found damaged.", "exporter"
        )
        # Spans that exporters taken out of the configuration have left on disk.
        self.left_on_disk: dict[str, int] = {}
        self.held_spans = self._gauge(
            "exporter_held_spans", "Spans in the queue, on disk too, or under way.", "exporter"
        )
        self.queue_size = self._gauge("exporter_queue_size", "Bytes held or reserved.", "exporter")
        self.queue_capacity = self._gauge(
            "exporter_queue_capacity", "Bytes that may be held.", "exporter"
        )

    def _add_configuration_and_memory(self) -> None:
        self.config_reloads = self._counter(
            "config_reloads", "Times that the configuration was read again.", "result"
        )
        self.config_reload_ok = self._gauge(
            "config_reload_ok", "0 when the configuration read last was refused."
        )
        self.config_loaded = self._gauge(
            "config_loaded_timestamp_seconds", "When the running configuration was taken over."
        )
        self.memory_limit = self._gauge(
            "memory_limit_bytes", "Above this, requests are refused; 0: no limit."
        )
        self.memory_used = self._gauge("memory_used_bytes", "What is held against the limit.")
        self.config_reload_ok.set(1)

    def _declare_doors(self) -> None:
        self.looped_requests = self._counter(
            "receiver_looped_requests",
            "Requests refused because this process sent them itself.",
            "transport",
        )
        self.connections = self._gauge(
            "receiver_connections",
            "Connections open. At gRPC as of the last look, up to 30 s ago, and on Linux only.",
            "transport",
        )
        self.refused_connections = self._counter(
            "receiver_refused_connections",
            "Connections that were ended or not let in; at gRPC the reason `per_client` alone.",
            "transport",
            "reason",
        )
        self.unfinished_bytes = self._gauge(
            "receiver_unfinished_bytes",
            "Bytes of requests that have not arrived whole; at gRPC of those that take long.",
            "transport",
        )
        self.door_reload_failures = self._counter(
            "receiver_reload_failures",
            "Certificate or credential files that changed and could not be used.",
            "transport",
        )

    def _add_snapshots(self) -> None:
        self.snapshots = self._counter(
            "state_snapshots",
            "Snapshots of what was learned: written, failed, not needed (`unchanged`); refused at"
            " start.",
            "result",
        )
        self.snapshot_bytes = self._gauge("state_snapshot_bytes", "Size of the last one written.")
        self.snapshot_age = self._gauge(
            "state_snapshot_age_seconds",
            "How much a crash would lose now: since the last snapshot, else since the start.",
        )
        self.loaded_age = self._gauge(
            "state_loaded_age_seconds", "Age at start of what was loaded; 0 after a cold start."
        )

    def _count_redaction(self) -> None:
        self.redacted_values = self._counter(
            "redacted_values", "Strings and numbers in which something was redacted."
        )
        self.redaction_failures = self._counter(
            "redaction_failures",
            "Requests that could not be redacted: refused, or masked where removing failed.",
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
        if exporter is not None:
            totals["accepted"] = self._away_since.get(exporter, totals["accepted"])
            totals["accepted"] -= self._missed.get(exporter, 0)
        return Ledger(**totals)

    def exporter_joins(self, exporter: str) -> None:
        """An exporter that the configuration names from now on: what was before is not its."""
        accepted = self._accepted()
        known = exporter in self._missed
        away_since = self._away_since.pop(exporter, accepted if known else 0)
        self._missed[exporter] = self._missed.get(exporter, 0) + accepted - away_since
        self._exporter_at_zero(exporter)

    def exporter_leaves(self, exporter: str) -> None:
        """An exporter that gets nothing more from now on."""
        self._away_since[exporter] = self._accepted()

    def _accepted(self) -> int:
        return sum(
            int(sample.value)
            for family in self.accepted_spans.collect()
            for sample in family.samples
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _start_at_zero(self, exporters: Iterable[str], sinks: Iterable[str]) -> None:
        for result in SNAPSHOT_RESULTS:
            self.snapshots.labels(result)
        for transport in TRANSPORTS:
            self.accepted_spans.labels(transport)
            self.looped_requests.labels(transport)
            for outcome in Outcome:
                if outcome is not Outcome.ACCEPTED:
                    self.refused_spans.labels(transport, outcome.value)
                for signal in Signal:
                    self.requests.labels(transport, signal.value, outcome.value)
        for transport in (*TRANSPORTS, "monitoring"):
            self.door_reload_failures.labels(transport)
            self.connections.labels(transport)
            for reason in REFUSED_CONNECTIONS if transport != "grpc" else ("per_client",):
                self.refused_connections.labels(transport, reason)
        for transport in TRANSPORTS:
            self.unfinished_bytes.labels(transport)
        for exporter in exporters:
            self._missed[exporter] = 0
            self._exporter_at_zero(exporter)
        for sink in sinks:
            self.sink_records.labels(sink)
            self.sink_dropped.labels(sink)
        for result in RELOAD_RESULTS:
            self.config_reloads.labels(result)

    def _exporter_at_zero(self, exporter: str) -> None:
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
