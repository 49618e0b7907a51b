"""A processor whose judgements are told: what tests of episodes, reports and names stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.episodes import EpisodeBook
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.processor import Processor
from otel_anomaly.report import Call, Finding, Reporter, finding_numbers
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.telemetry import Telemetry
from tests import traffic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.handoff import EpisodeEvent
    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.state import Judgement

START_NS = traffic.START_NS
HOLD_NS = 60 * SECOND_NS
LOW_LIMITS: dict[str, object] = {
    **{name: {"enabled": False} for name in DETECTORS},
    "rate": {"warn": 3, "block": 6},
}
"""Limits that a handful of calls reach, of the one detector that needs no past."""


def at(seconds: float) -> int:
    """Nanoseconds since 1970 of a moment counted from the start of the traffic."""
    return START_NS + round(seconds * SECOND_NS)


class TakesAll:
    """Stands for the exporters: there is room for everything, and it is kept."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []

    def reserve(self, bytes_needed: int) -> Outcome:
        assert bytes_needed > 0
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        assert len(payload.body) <= bytes_reserved
        self.payloads.append(payload)

    def retry_after_s(self) -> float:
        return 1.0


class BookRig:
    """A processor, the book of its episodes, and all that either said."""

    def __init__(self, *, seed: int = 1, hold_ns: int = HOLD_NS, **sections: object) -> None:
        alerts = {"hold": f"{hold_ns // SECOND_NS}s"}
        config = Config.model_validate({"detectors": LOW_LIMITS, "alerts": alerts, **sections})
        self.room, self.telemetry = TakesAll(), Telemetry()
        self.processor = Processor(
            config, self.room, self.telemetry, seed=seed, on_judged=self._on_judged
        )
        self.reporter = Reporter(self.processor.texts)
        self.book = EpisodeBook(self.reporter, hold_ns)
        self.calls: list[Call] = []
        self.findings: list[Finding] = []
        self.events: list[EpisodeEvent] = []

    def send(
        self, *spans: Span, received_ns: int = 0, resource: traffic.Attributes = ()
    ) -> list[EpisodeEvent]:
        """Judge one request. Returns the steps of episodes that it made."""
        before = len(self.events)
        body = traffic.request(spans, resource=resource)
        reply = self.processor.process(Batch(body, Signal.TRACES, "grpc", received_ns))
        assert reply.outcome is Outcome.ACCEPTED
        assert self.processor.healthy
        return self.events[before:]

    def tick(self, now_ns: int) -> list[EpisodeEvent]:
        return self._told(self.book.tick(self.processor.state, now_ns))

    def end_all(self) -> list[EpisodeEvent]:
        return self._told(self.book.end_all(self.processor.state))

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        for row in (judgement.verdicts["judged"] != 0).nonzero()[0].tolist():
            call = self.reporter.call(columns, judgement, self.processor.state, row)
            self.calls.append(call)
            self.findings += [
                self.reporter.finding(judgement, number, call.who)
                for number in finding_numbers(judgement.verdicts[row])
            ]
        self._told(self.book.take(columns, judgement, self.processor.state))

    def _told(self, events: list[EpisodeEvent]) -> list[EpisodeEvent]:
        self.events += events
        return events


def steps(events: Iterable[EpisodeEvent]) -> list[str]:
    """The events in short: `start`, `escalate`, `end`."""
    return [event.step for event in events]
