"""The metrics of the process: there from the start, under the promised names, and adding up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from otel_anomaly.detectors.finding import ACTIONS, SKIP_REASONS
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.telemetry import (
    DROP_REASONS,
    JUDGE_METRICS,
    PREFIX,
    REFUSED_CONNECTIONS,
    RELOAD_RESULTS,
    SNAPSHOT_RESULTS,
    TRANSPORTS,
    Ledger,
    Telemetry,
)
from tests.book_rigs import BookRig, at
from tests.traffic import Agent, attributes

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

PROMISED = {
    "tool_calls_total": (),
    "verdicts_total": ("action",),
    "findings_total": ("detector", "action"),
    "detector_evaluated_total": ("detector",),
    "detector_skipped_total": ("detector", "reason"),
    "entities": ("scope",),
    "entities_evicted_total": ("scope",),
    "receiver_accepted_spans_total": ("transport",),
    "receiver_refused_spans_total": ("transport", "outcome"),
    "exporter_sent_spans_total": ("exporter",),
    "exporter_send_failed_spans_total": ("exporter",),
    "exporter_dropped_spans_total": ("exporter", "reason"),
    "exporter_queue_size": ("exporter",),
    "exporter_queue_capacity": ("exporter",),
}
"""Names and labels that users hold on to (without the prefix)."""
LABELS = {
    "action": set(ACTIONS),
    "detector": set(DETECTORS),
    "scope": {"agent", "service", "session", "trace", "episode"},
    "transport": {*TRANSPORTS, "monitoring"},
    "exporter": {"file", "otlp_grpc/up"},
    "signal": {signal.value for signal in Signal},
    "sink": {"audit"},
    "outcome": {outcome.value for outcome in Outcome},
    "reason": {*DROP_REASONS, *SKIP_REASONS[1:], *REFUSED_CONNECTIONS},
    "result": {*RELOAD_RESULTS, *SNAPSHOT_RESULTS},
}
"""All the values a label may have. Whoever is watched is in none of them."""


def scraped(telemetry: Telemetry) -> dict[str, list[Sample]]:
    """A scrape: sample name without the prefix -> its series."""
    series: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(telemetry.render().decode()):
        assert family.name.startswith(f"{PREFIX}_")
        assert family.documentation
        for sample in family.samples:
            series.setdefault(sample.name.removeprefix(f"{PREFIX}_"), []).append(sample)
    return series


def watched() -> Telemetry:
    """The metrics of a process that has two exporters and a sink, and has judged nothing."""
    telemetry = Telemetry(["file", "otlp_grpc/up"], ["audit"])
    telemetry.read_judge(BookRig().processor.counts)
    return telemetry


def test_everything_is_there_at_zero() -> None:
    """
    Scenario: the first scrape of a process that has done nothing.
    Guarantees: every promised metric is there, every series is 0, so that `rate()` sees the first
    event; no series says when it was made.
    """
    series = scraped(watched())
    assert set(PROMISED) <= set(series)
    for name, samples in series.items():
        assert not name.endswith("_created")
        first = 1 if name == "config_reload_ok" else 0  # Nothing was refused yet.
        assert [sample.value for sample in samples] == [first] * len(samples)


def test_promised_labels() -> None:
    """
    Scenario: the first scrape.
    Guarantees: each metric has the labels it is promised with; their values are of a closed set.
    """
    series = scraped(watched())
    for name, labels in PROMISED.items():
        for sample in series[name]:
            assert set(sample.labels) == set(labels), name
    for name, samples in series.items():
        for sample in samples:
            for label, value in sample.labels.items():
                assert value in LABELS[label], name


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("verdicts_total", {("action",): [(action,) for action in ACTIONS]}),
        (
            "findings_total",
            {("detector", "action"): [(d, a) for d in DETECTORS for a in ACTIONS[1:]]},
        ),
        (
            "detector_skipped_total",
            {("detector", "reason"): [(d, r) for d in DETECTORS for r in SKIP_REASONS[1:]]},
        ),
        (
            "exporter_dropped_spans_total",
            {
                ("exporter", "reason"): [
                    (exporter, reason) for exporter in LABELS["exporter"] for reason in DROP_REASONS
                ]
            },
        ),
        (
            "receiver_requests_total",
            {
                ("transport", "signal", "outcome"): [
                    (t, s.value, o.value) for t in TRANSPORTS for s in Signal for o in Outcome
                ]
            },
        ),
        (
            "receiver_refused_spans_total",
            {
                ("transport", "outcome"): [
                    (transport, outcome.value)
                    for transport in TRANSPORTS
                    for outcome in Outcome
                    if outcome is not Outcome.ACCEPTED
                ]
            },
        ),
    ],
)
def test_every_label_value_is_there(
    name: str, labels: dict[tuple[str, ...], list[tuple[str, ...]]]
) -> None:
    """
    Scenario: the metrics that are split by what may happen.
    Guarantees: each thing that may happen has its series from the start, once.
    """
    ((names, values),) = labels.items()
    found = [tuple(s.labels[label] for label in names) for s in scraped(watched())[name]]
    assert sorted(found) == sorted(values)


def test_all_that_the_judge_counts_is_declared() -> None:
    """
    Scenario: the counts of a processor are held against the table of its metrics.
    Guarantees: each metric of the table has series, with as many label values as it has labels, and
    nothing is counted that is not in the table.
    """
    counts = BookRig().processor.counts()
    assert {name for name, _ in counts} == set(JUDGE_METRICS)
    for name, values in counts:
        assert len(values) == len(JUDGE_METRICS[name][1]), name


def test_the_judge_is_asked_at_every_scrape() -> None:
    """
    Scenario: three calls, of which the third is over the line, between two scrapes; then one of
    them again.
    Guarantees: the second scrape has them, where they belong; gauges and counters are told apart.
    """
    rig = BookRig()
    assert scraped(rig.telemetry)["tool_calls_total"][0].value == 0
    agent = Agent("a", session="s")
    spans = [agent.call(at(i)) for i in range(3)]
    rig.send(*spans)
    rig.send(spans[0])
    value = rig.telemetry.registry.get_sample_value
    for name, labels, expected in (
        ("spans_total", {}, 4),
        ("tool_calls_total", {}, 3),
        ("duplicates_total", {}, 1),
        ("verdicts_total", {"action": "allow"}, 2),
        ("verdicts_total", {"action": "warn"}, 1),
        ("findings_total", {"detector": "rate", "action": "warn"}, 1),
        ("detector_evaluated_total", {"detector": "rate"}, 3),
        ("entities", {"scope": "session"}, 1),
    ):
        assert value(f"{PREFIX}_{name}", labels) == expected, name
    text = rig.telemetry.render().decode()
    assert f"# TYPE {PREFIX}_entities gauge" in text
    assert f"# TYPE {PREFIX}_entities_evicted_total counter" in text


def test_parts_of_calls_and_calls_that_move_are_counted() -> None:
    """
    Scenario: a call with two more spans of the same call inside it, and a call that says nothing of
    its agent; then the span above both, which names the agent.
    Guarantees: two tool calls; the inner spans are folded; the calls are moved, and counted with
    the right agent, not anew.
    """
    rig = BookRig()
    silent = Agent(None, session="s")
    outer, inner, innermost, other = (silent.call(at(i)) for i in range(4))
    above = silent.call(at(9), None)
    above.attributes[0].value.string_value = "invoke_agent"
    above.attributes.extend(attributes([("gen_ai.agent.name", "planner")]))
    inner.parent_span_id, innermost.parent_span_id = outer.span_id, inner.span_id
    outer.parent_span_id = other.parent_span_id = above.span_id
    rig.send(outer, inner, innermost, other)
    value = rig.telemetry.registry.get_sample_value
    wanted = {"tool_calls": (2, 2), "folded": (2, 2), "moved": (0, 2), "duplicates": (0, 0)}
    for when in range(2):
        for name, expected in wanted.items():
            assert value(f"{PREFIX}_{name}_total") == expected[when], name
        rig.send(above)
    assert [call.who.agent for call in rig.calls] == [None, None]
    agents = rig.processor.state.agents.rows
    assert [row["past"]["total"] for row in agents if row["key"]] == [2]


def test_the_ledger_adds_up_over_doors_and_exporters() -> None:
    """
    Scenario: spans come in by both doors and leave, wait or are given up at two exporters.
    Guarantees: the ledger has the sums and says them in one sentence; attempts that failed stand
    outside.
    """
    telemetry = watched()
    assert telemetry.ledger() == Ledger(0, 0, 0, 0)
    telemetry.accepted_spans.labels("grpc").inc(7)
    telemetry.accepted_spans.labels("http").inc(3)
    telemetry.sent_spans.labels("file").inc(10)
    telemetry.sent_spans.labels("otlp_grpc/up").inc(4)
    telemetry.held_spans.labels("otlp_grpc/up").set(1)
    telemetry.dropped_spans.labels("otlp_grpc/up", "rejected").inc(2)
    telemetry.dropped_spans.labels("otlp_grpc/up", "shutdown").inc(3)
    telemetry.failed_spans.labels("otlp_grpc/up").inc(100)
    ledger = telemetry.ledger()
    assert ledger == Ledger(accepted=10, sent=14, held=1, dropped=5)
    assert ledger.sentence() == "accepted 10 spans = sent 14 + held 1 + dropped 5"


def test_two_in_one_process() -> None:
    """
    Scenario: two sets of metrics are made, as a test or a replay does.
    Guarantees: each has a registry of its own.
    """
    one, other = Telemetry(["file"]), Telemetry(["file"])
    one.sent_spans.labels("file").inc()
    assert (one.ledger().sent, other.ledger().sent) == (1, 0)
