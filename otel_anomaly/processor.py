"""One batch through: scan, reserve, judge, annotate, commit.

    scan      bytes -> columns            pure; the GIL is released
    reserve   worst annotated size        full -> refused, and nothing was learned
    judge     columns -> verdicts         the only writer of state
    splice    verdicts -> bytes           the same object when there is nothing to write
    commit    bytes -> exporters          cannot fail

If detection raises, the batch goes on without a verdict and is counted: detection is ours, the data
is the client's. The state may be half written then, so it is emptied and all agents are cold.

One thread at a time: the service calls `process` from its event loop only. `scan` may run
elsewhere.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np

from otel_anomaly.detectors import rate, rate_shift
from otel_anomaly.detectors.finding import ACTIONS, SIGN, SKIP_REASONS
from otel_anomaly.entities import identity
from otel_anomaly.entities.table import make_table, sweep
from otel_anomaly.handoff import Batch, Outcome, Payload, Reply, Signal
from otel_anomaly.judge import (
    AGENT,
    BAD_IDS,
    CALLS,
    CLAMPED,
    COUNTERS,
    DETECTORS,
    DUPLICATES,
    FINDING,
    FINDINGS,
    LATE_CALLS,
    NO_TIME,
    PLAN,
    SESSION,
    SKIPPED,
    STEP,
    STEPS_PER_FINDING,
    VERDICT,
    VERDICTS,
    Judgement,
    Plans,
    State,
    judge,
    make_seen,
    remember_all,
)
from otel_anomaly.otlp.dialects import compile_keys
from otel_anomaly.otlp.scan import Columns, MalformedRequest, OversizedRequest, scan
from otel_anomaly.otlp.splice import splice
from otel_anomaly.telemetry import TRANSPORTS, JudgeCounts, Telemetry
from otel_anomaly.verdict import LINE_BYTES, annotation_bytes_max, encode, make_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.config import Config

LOG = logging.getLogger("otel_anomaly")

ROWS_AT_FIRST, ROWS_KEPT = 256, 1 << 14
"""Scratch grows with the requests; what one of more than ROWS_KEPT rows took is given back."""
RECOVERY_NS = 60_000_000_000
"""Detection counts as failing for so long after a failure."""

_SCOPE_KINDS = {
    "tenant": identity.OF_TENANT,
    "agent": identity.OF_AGENT,
    "session": identity.OF_SESSION,
    "user": identity.OF_USER,
}


class Room(Protocol):
    """Where batches go: the exporters' queues."""

    def reserve(self, bytes_needed: int) -> Outcome:
        """Set room aside, all or nothing, or say why not."""

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        """Fill what was reserved. Cannot fail."""

    def retry_after_s(self) -> float:
        """When room may be there again, seconds."""


def make_plans(config: Config, seed: int) -> Plans:
    """The configuration as the kernels read it."""
    plan = np.zeros(1, PLAN)
    plan["seed"], plan["scope"] = seed, _SCOPE_KINDS[config.detectors.rate.scope]
    plan["skew_ns"], plan["hold_ns"] = config.policy.max_clock_skew, config.alerts.hold
    plan["clear"] = config.alerts.clear
    return Plans(
        plan,
        rate.make_plan(config.detectors.rate),
        rate_shift.make_plan(config.detectors.rate_shift),
    )


def make_state(config: Config) -> State:
    """Nothing learned yet. Memory is taken up as rows are used."""
    limits = config.identity.limits
    return State(
        np.zeros(COUNTERS, np.int64),
        np.zeros(1, np.int64),
        *make_seen(limits.spans),
        make_table(
            limits.traces,
            identity.TRACE,
            idle_ns=limits.agent_idle,
            keep_ns=0,
            sample=1,
            state_bytes=identity.TRACE_STATE_BYTES,
        ),
        make_table(limits.agents, AGENT, idle_ns=limits.agent_idle, keep_ns=limits.agent_keep),
        make_table(
            limits.sessions, SESSION, idle_ns=limits.session_idle, keep_ns=limits.session_keep
        ),
    )


class _Scratch:
    """Arrays reused from request to request: fresh pages each time cost more than judging."""

    def __init__(self) -> None:
        self.signs = np.zeros(len(DETECTORS), SIGN)
        self.used = np.zeros(2, np.int64)
        self.double = np.zeros(1, np.float64)
        self.line = np.zeros(LINE_BYTES, np.uint8)
        self.shrink()

    def shrink(self) -> None:
        """Give back what a large request took."""
        self._sized(ROWS_AT_FIRST, ROWS_AT_FIRST * 512)

    def _sized(self, rows: int, blob_bytes: int) -> None:
        self.verdicts = np.empty(rows, VERDICT)
        self.findings = np.empty(rows * len(DETECTORS), FINDING)
        self.steps = np.empty(rows * len(DETECTORS) * STEPS_PER_FINDING, STEP)
        self.blob = np.empty(blob_bytes, np.uint8)
        self.ends = np.empty(rows, np.int64)

    def fit(self, rows: int, blob_bytes: int) -> None:
        """Make room for a request of `rows` rows and so many bytes of attributes."""
        if rows > self.verdicts.size or blob_bytes > self.blob.size:
            rows = max(rows, self.verdicts.size)
            self._sized(1 << (rows - 1).bit_length(), max(blob_bytes, self.blob.size))


class Processor:
    """Judges trace requests and hands everything on."""

    def __init__(
        self,
        config: Config,
        room: Room,
        telemetry: Telemetry,
        *,
        seed: int,
        on_judged: Callable[[Columns, Judgement], None] | None = None,
        on_emptied: Callable[[], None] | None = None,
    ) -> None:
        """`seed`: secret of all hashes.

        `on_judged` sees every judged request; copy to keep. `on_emptied` is told when a failure
        emptied the state; it must not raise.
        """
        self._config = config
        self._room = room
        self._telemetry = telemetry
        self._on_judged = on_judged
        self._on_emptied = on_emptied
        self._plans = make_plans(config, seed)
        who = config.identity
        self.keys = compile_keys(
            (who.tenant, who.agent, who.session, who.user, who.owner),
            who.weak,
            prefix=config.annotate.prefix,
            seed=seed,
        )
        self.texts = make_texts(
            config.annotate.prefix, all_signals=config.annotate.signals == "all"
        )
        self._annotation_max = annotation_bytes_max(self.texts)
        self._scratch = _Scratch()
        self.state = make_state(config)
        self._accepted = {name: telemetry.accepted_spans.labels(name) for name in TRANSPORTS}
        self._spans = 0
        self._forged = 0
        self._failed_ns: int | None = None
        telemetry.read_judge(self.counts)

    def process(self, batch: Batch) -> Reply:
        """Take a batch over, or refuse it without a trace. Never raises on what a client sent."""
        if batch.signal is not Signal.TRACES:
            return self._pass_on(batch)
        try:
            columns = scan(batch.body, self.keys)
        except MalformedRequest as error:
            return self.refuse_unread(batch, error)
        return self.process_columns(batch, columns)

    def refuse_unread(self, batch: Batch, error: MalformedRequest) -> Reply:
        """The answer to a batch that the scan refused."""
        oversized = isinstance(error, OversizedRequest)
        outcome = Outcome.TOO_LARGE if oversized else Outcome.MALFORMED
        return self._refuse(batch, outcome, 0, str(error))

    def process_columns(self, batch: Batch, columns: Columns) -> Reply:
        """`process` for a trace batch that was scanned already."""
        if not batch.body:
            return Reply(Outcome.ACCEPTED)
        room = len(batch.body) + columns.call_count * self._annotation_max
        outcome = self._room.reserve(room)
        if outcome is not Outcome.ACCEPTED:
            return self._refuse(batch, outcome, columns.span_count, _REFUSALS[outcome])
        body = batch.body
        if len(columns.rows):
            try:
                body = self.annotate(columns, batch.received_ns)
            except Exception as error:  # noqa: BLE001 - the bug is ours, the data is the client's.
                self._detection_failed(error, batch.received_ns)
                body = self._without_forged(columns)
        self._spans += columns.span_count
        self._room.commit(Payload(body, Signal.TRACES, columns.span_count), room)
        self._accepted[batch.transport].inc(columns.span_count)
        return Reply(Outcome.ACCEPTED)

    def remember_traces(self, body: bytes) -> None:
        """Learn who is meant in the traces of a request, and judge nothing.

        Raises
        ------
        MalformedRequest
            As `scan`.
        """
        columns = scan(body, self.keys)
        remember_all(columns.data, columns.rows, self.state)

    def annotate(self, columns: Columns, received_ns: int) -> bytes:
        """Judge all calls of a request and write the verdicts on their spans."""
        judgement = self._judge(columns, received_ns)
        scratch, rows = self._scratch, columns.rows.size
        ends = scratch.ends[:rows]
        encode(
            self.texts,
            judgement.verdicts,
            judgement.findings,
            scratch.double,
            scratch.line,
            scratch.blob,
            ends,
        )
        body = splice(columns, self.keys, scratch.blob, ends)
        self._forged += columns.forged_count
        self._tell(columns, judgement, received_ns)
        if rows > ROWS_KEPT:
            scratch.shrink()
        return body

    def _tell(self, columns: Columns, judgement: Judgement, received_ns: int) -> None:
        """Let others see a judgement. A bug in wording it costs no agent its past."""
        if self._on_judged is None:
            return
        try:
            self._on_judged(columns, judgement)
        except Exception as error:  # noqa: BLE001 - the same: the data goes on.
            self._failed(error, received_ns, "a judgement could not be told")

    def _without_forged(self, columns: Columns) -> bytes:
        """The request without verdicts, also without those an agent wrote itself."""
        try:
            nothing = np.zeros(columns.rows.size, np.int64)
            return splice(columns, self.keys, np.empty(0, np.uint8), nothing)
        except Exception:  # noqa: BLE001 - what came is better than nothing.
            return columns.body

    def _judge(self, columns: Columns, received_ns: int) -> Judgement:
        scratch, rows = self._scratch, columns.rows.size
        scratch.fit(rows, columns.call_count * self._annotation_max)
        verdicts = scratch.verdicts[:rows]
        judge(
            columns.data,
            columns.rows,
            self._plans,
            self.state,
            received_ns,
            scratch.signs,
            verdicts,
            scratch.findings,
            scratch.steps,
            scratch.used,
        )
        findings, steps = scratch.used.tolist()
        return Judgement(verdicts, scratch.findings[:findings], scratch.steps[:steps])

    def _pass_on(self, batch: Batch) -> Reply:
        """Metrics and logs: byte for byte."""
        if not batch.body:
            return Reply(Outcome.ACCEPTED)
        outcome = self._room.reserve(len(batch.body))
        if outcome is not Outcome.ACCEPTED:
            return Reply(outcome, _REFUSALS[outcome], self._retry_after_s(outcome))
        self._room.commit(Payload(batch.body, batch.signal, 1), len(batch.body))
        return Reply(Outcome.ACCEPTED)

    def _refuse(self, batch: Batch, outcome: Outcome, spans: int, message: str) -> Reply:
        self._telemetry.refused_spans.labels(batch.transport, outcome.value).inc(spans)
        return Reply(outcome, message, self._retry_after_s(outcome))

    def _retry_after_s(self, outcome: Outcome) -> float:
        return self._room.retry_after_s() if outcome.retryable else 0.0

    def _failed(self, error: Exception, now_ns: int, message: str) -> None:
        if self.healthy:  # Once a bout: whoever found the bug may send it with every request.
            LOG.error("%s", message, exc_info=error)
        self._telemetry.detection_failures.inc()
        self._failed_ns = now_ns

    def _detection_failed(self, error: Exception, now_ns: int) -> None:
        message = "detection failed: the batch goes on without a verdict, all agents are cold"
        self._failed(error, now_ns, message)
        # What was counted stays true; what was learned may be half written.
        self.state = make_state(self._config)._replace(counters=self.state.counters)
        if self._on_emptied is not None:
            self._on_emptied()

    @property
    def healthy(self) -> bool:
        """Whether detection has worked for the last minute."""
        return self._failed_ns is None

    def sweep(self, now_ns: int, count: int = 4096) -> None:
        """Free some idle rows. Changes no verdict; call it now and then."""
        if self._failed_ns is not None and now_ns - self._failed_ns > RECOVERY_NS:
            self._failed_ns = None
        for table in (self.state.agents, self.state.sessions):
            sweep(table, now_ns, count)

    def counts(self) -> JudgeCounts:
        """What the kernels counted, for telemetry."""
        return {
            ("spans", ()): self._spans,
            ("forged_attributes", ()): self._forged,
            **count_calls(self.state.counters),
            **count_entities(self.state),
        }


_REFUSALS = {
    Outcome.TOO_LARGE: "the request, annotated, is larger than an exporter's whole queue",
    Outcome.QUEUE_FULL: "the queue of an exporter is full: send again later",
    Outcome.MEMORY: "the service is near its memory limit: send again later",
    Outcome.STOPPING: "the service is stopping: send again later",
}
assert set(_REFUSALS) == set(Outcome) - {Outcome.ACCEPTED, Outcome.MALFORMED}


def count_calls(counters: np.ndarray) -> JudgeCounts:
    """The judge's counters by metric and labels."""
    values = counters.tolist()
    counts: dict[tuple[str, tuple[str, ...]], int] = {
        ("tool_calls", ()): values[CALLS],
        ("duplicates", ()): values[DUPLICATES],
        ("late", ()): values[LATE_CALLS],
        ("clamped", ()): values[CLAMPED],
        ("no_time", ()): values[NO_TIME],
        ("invalid_ids", ()): values[BAD_IDS],
    }
    for i, action in enumerate(ACTIONS):
        counts["verdicts", (action,)] = values[VERDICTS + i]
    for d, detector in enumerate(DETECTORS):
        for i, action in enumerate(ACTIONS[1:], start=1):
            counts["findings", (detector, action)] = values[FINDINGS + d * len(ACTIONS) + i]
        first = SKIPPED + d * len(SKIP_REASONS)
        counts["detector_evaluated", (detector,)] = values[first]
        for i, reason in enumerate(SKIP_REASONS[1:], start=1):
            counts["detector_skipped", (detector, reason)] = values[first + i]
    return counts


def count_entities(state: State) -> JudgeCounts:
    """Rows in use, given away and refused, by kind of entity."""
    counts: dict[tuple[str, tuple[str, ...]], int] = {}
    for scope, table in (
        ("agent", state.agents),
        ("session", state.sessions),
        ("trace", state.traces),
    ):
        head = table.head[0]
        counts["entities", (scope,)] = int(head["in_use"])
        counts["entities_evicted", (scope,)] = int(head["evicted"])
        counts["entities_overflow", (scope,)] = int(head["overflow"])
    return counts
