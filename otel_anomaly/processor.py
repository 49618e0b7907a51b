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
from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np

from otel_anomaly.config import effective_detectors
from otel_anomaly.detectors.finding import ACTIONS, SKIP_REASONS
from otel_anomaly.entities import identity
from otel_anomaly.entities.links import make_links
from otel_anomaly.entities.table import make_table, sweep, zeros
from otel_anomaly.gathering import read_calls
from otel_anomaly.handoff import Batch, Outcome, Payload, Reply, Signal
from otel_anomaly.judge import judge
from otel_anomaly.looking import look_at
from otel_anomaly.otlp.dialects import AGENT as AGENT_ROLE
from otel_anomaly.otlp.dialects import SESSION as SESSION_ROLE
from otel_anomaly.otlp.dialects import WEAK, compile_keys
from otel_anomaly.otlp.scan import (
    IS_CALL,
    LOGS,
    TRACES,
    Columns,
    MalformedRequest,
    OversizedRequest,
    scan,
)
from otel_anomaly.otlp.splice import splice
from otel_anomaly.plans import make_plans
from otel_anomaly.redacting import Redactor
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import (
    AGENT,
    BAD_IDS,
    CALLS,
    CLAMPED,
    COUNTERS,
    DUPLICATES,
    ENTRY,
    EPISODE,
    FINDINGS,
    FOLDED_CALLS,
    LABEL,
    LATE_CALLS,
    MOVED,
    NO_TIME,
    SERVICE,
    SESSION,
    SKIPPED,
    VERDICTS,
    Judgement,
    State,
)
from otel_anomaly.telemetry import TRANSPORTS, JudgeCounts, Telemetry
from otel_anomaly.verdict import blob_bytes, encode, make_texts, room_for
from otel_anomaly.workspace import BODY_KEPT, ROWS_KEPT, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.config import Config, DetectorsConfig

LOG = logging.getLogger("otel_anomaly")

SIGNALS = {Signal.TRACES: TRACES, Signal.LOGS: LOGS}
RECOVERY_NS = 60_000_000_000
"""Detection counts as failing for so long after a failure."""

FOR_EVER_NS = 1 << 62
TRACE_IDLE_NS = 86_400_000_000_000
"""A trace silent for a day is over: its id, used again, is another trace."""


class Room(Protocol):
    """Where batches go: the exporters' queues."""

    def reserve(self, bytes_needed: int) -> Outcome:
        """Set room aside, all or nothing, or say why not."""

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        """Fill what was reserved. Cannot fail."""

    def retry_after_s(self) -> float:
        """When room may be there again, seconds."""


def make_state(config: Config) -> State:
    """Nothing learned yet. Memory is taken up as rows are used."""
    limits = config.identity.limits
    agent = {"idle_ns": limits.agent_idle, "keep_ns": limits.agent_keep}
    passing = {"idle_ns": TRACE_IDLE_NS, "keep_ns": 0}
    traces = passing | {"sample": 1, "state_bytes": identity.TRACE_STATE_BYTES}
    session = {"idle_ns": limits.session_idle, "keep_ns": limits.session_keep}
    lasting = {"idle_ns": FOR_EVER_NS, "keep_ns": 0}
    return State(
        np.zeros(COUNTERS, np.int64),
        np.zeros(4, np.int64),
        make_links(limits.spans),
        zeros(limits.moves, ENTRY),
        make_table(limits.traces, identity.TRACE, **traces),
        make_table(limits.labels, identity.NAME, **passing),
        make_table(limits.agents, AGENT, **agent),
        make_table(limits.services, SERVICE, **agent),
        make_table(limits.sessions, SESSION, **session),
        make_table(limits.labels, LABEL, **lasting),
        make_table(limits.episodes, EPISODE, **lasting),
    )


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
            placeholders=who.placeholders,
            lenient=config.dialects.lenient,
        )
        self.texts = make_texts(
            config.annotate.prefix,
            all_signals=config.annotate.signals == "all",
            keys=(who.tenant, who.agent, who.session, who.user),
        )
        self._redactor = Redactor(config.redact, telemetry) if config.redact.enabled else None
        self._scratch = Workspace()
        self.state = make_state(config)
        self._accepted = {name: telemetry.accepted_spans.labels(name) for name in TRANSPORTS}
        self._spans = 0
        self._forged = 0
        self._failed_ns: int | None = None
        self._hold_ns = config.identity.hold
        self._held: deque[tuple[int, Batch, Columns, int]] = deque()
        telemetry.read_judge(self.counts)

    def process(self, batch: Batch) -> Reply:
        """Take a batch over, or refuse it without a trace. Never raises on what a client sent."""
        if batch.signal is Signal.METRICS:
            return self._pass_on(batch)
        try:
            columns = scan(batch.body, self.keys, SIGNALS[batch.signal])
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
        if self._redactor is not None:
            try:
                columns = self._redactor.cover(columns)
            except Exception as error:  # noqa: BLE001 - what cannot be redacted must not leave.
                return self._refuse_unredacted(batch, columns, error)
        room = len(batch.body) + room_for(self.texts, columns.call_count)
        outcome = self._room.reserve(room)
        if outcome is not Outcome.ACCEPTED:
            spans = columns.span_count if batch.signal is Signal.TRACES else 0
            return self._refuse(batch, outcome, spans, _REFUSALS[outcome])
        if self._waits_for_identity(batch, columns):
            self._hold_back(batch, columns, room)
        else:
            self._finish(batch, columns, room)
        return Reply(Outcome.ACCEPTED)

    def _refuse_unredacted(self, batch: Batch, columns: Columns, error: Exception) -> Reply:
        """The answer to a batch that could not be redacted: for good, or it comes for ever."""
        self._telemetry.redaction_failures.inc()
        self._log_failure(error, batch.received_ns, "redaction failed: the request is refused")
        spans = columns.span_count if batch.signal is Signal.TRACES else 0
        return self._refuse(batch, Outcome.MALFORMED, spans, "the request could not be redacted")

    def _waits_for_identity(self, batch: Batch, columns: Columns) -> bool:
        """Whether a call of the request does not tell itself who made it."""
        if self._hold_ns == 0 or batch.received_ns == 0 or columns.call_count == 0:
            return False
        calls = columns.rows[columns.rows["flags"] & IS_CALL != 0]
        return bool((calls["order"][:, [AGENT_ROLE, SESSION_ROLE]] >= WEAK).any())

    def _hold_back(self, batch: Batch, columns: Columns, room: int) -> None:
        """Keep a request for `identity.hold`; what its spans say of their traces counts at once."""
        try:
            self._look_at(columns, batch.received_ns)
        except Exception as error:  # noqa: BLE001 - the bug is ours, the data is the client's.
            self._detection_failed(error, batch.received_ns)
        self._held.append((batch.received_ns + self._hold_ns, batch, columns, room))

    def release(self, now_ns: int) -> None:
        """Judge and hand on the requests whose time is over."""
        while self._held:
            due_ns, batch, columns, room = self._held[0]
            if batch.received_ns <= now_ns < due_ns:  # Before it came: the clock was set back.
                return
            self._held.popleft()
            self._finish(batch, columns, room)

    def release_all(self) -> None:
        """The same for all that is held back: the service stops."""
        self.release(FOR_EVER_NS)

    def _finish(self, batch: Batch, columns: Columns, room: int) -> None:
        """Judge a request for which room is reserved, and hand it on."""
        body = batch.body
        if len(columns.rows):
            try:
                body = self.annotate(columns, batch.received_ns)
            except Exception as error:  # noqa: BLE001 - the bug is ours, the data is the client's.
                self._detection_failed(error, batch.received_ns)
                body = self._without_forged(columns)
        elif columns.redacted is not None:
            body = self._without_forged(columns)
        spans = columns.span_count if batch.signal is Signal.TRACES else 1
        self._room.commit(Payload(body, batch.signal, spans), room)
        if batch.signal is Signal.TRACES:
            self._spans += spans
            self._accepted[batch.transport].inc(spans)

    def remember_traces(self, body: bytes, signal: Signal = Signal.TRACES) -> Columns:
        """Learn who is meant in the traces of a request, and judge nothing.

        Raises
        ------
        MalformedRequest
            As `scan`.
        """
        columns = scan(body, self.keys, SIGNALS[signal])
        self._look_at(columns, 0)
        return columns

    def explain(self, span: int) -> None:
        """Keep what one span is judged by. `span`: the identity that the scan gives it."""
        self._plans.judge["explain"] = span
        self._scratch.explained["row"] = -1

    def explained(self) -> np.void:
        """What the span to be explained was judged by, once it was: of EXPLAINED; a copy."""
        record: np.void = self._scratch.explained.copy()[0]
        return record

    def explained_now(self) -> int:
        """Which row of the request just judged told of the span to be explained; -1: none."""
        row = int(self._scratch.explained["row"][0])
        self._scratch.explained["row"] = -1
        return row

    def limits(self) -> tuple[list[DetectorsConfig], np.ndarray]:
        """The detectors section, then as each override makes it; the same as LIMITS [n]."""
        return effective_detectors(self._config), self._plans.limits

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
            scratch.blob[: blob_bytes(self.texts, columns.call_count)],
            ends,
        )
        body = self._spliced(columns, scratch.blob, ends)
        self._forged += columns.forged_count
        self._tell(columns, judgement, received_ns)
        if rows > ROWS_KEPT or len(columns.body) > BODY_KEPT:
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
            return self._spliced(columns, np.empty(0, np.uint8), nothing)
        except Exception:  # noqa: BLE001 - what came is better than nothing.
            return columns.body if columns.redacted is None else columns.redacted

    def _spliced(self, columns: Columns, blob: np.ndarray, ends: np.ndarray) -> bytes:
        """The request with these attributes, as it may be forwarded."""
        body = splice(columns, self.keys, blob, ends)
        if self._redactor is None or columns.redacted is None:
            return body
        return self._redactor.finish(columns, body, self.keys, blob, ends)

    def judge_nothing(self) -> None:
        """Go through the motions without a request: compiles all that needs the state."""
        columns = scan(b"", self.keys)
        scratch, verdicts = self._scratch, self._look_at(columns, 0)
        judge(
            columns.rows,
            self._plans,
            self.state,
            0,
            verdicts,
            scratch.findings,
            scratch.steps,
            scratch.used,
            scratch.judge,
        )

    def _look_at(self, columns: Columns, received_ns: int) -> np.ndarray:
        """Who made each call, and whose limits apply: VERDICT [rows], half filled."""
        scratch, rows, calls = self._scratch, columns.rows.size, columns.call_count
        scratch.fit(rows, calls, blob_bytes(self.texts, calls), len(columns.body))
        verdicts: np.ndarray = scratch.verdicts[:rows]
        look_at(
            columns.data,
            columns.rows,
            self._plans,
            self.state,
            received_ns,
            verdicts,
            scratch.judge,
        )
        return verdicts

    def _judge(self, columns: Columns, received_ns: int) -> Judgement:
        scratch, verdicts = self._scratch, self._look_at(columns, received_ns)
        if columns.call_count == 0:
            return Judgement(verdicts, scratch.findings[:0], scratch.steps[:0])
        read_calls(
            columns.data,
            columns.rows,
            verdicts,
            self._plans.arguments,
            scratch.read,
            scratch.desk,
            scratch.text,
        )
        judge(
            columns.rows,
            self._plans,
            self.state,
            received_ns,
            verdicts,
            scratch.findings,
            scratch.steps,
            scratch.used,
            scratch.judge,
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
        self._telemetry.detection_failures.inc()
        self._log_failure(error, now_ns, message)

    def _log_failure(self, error: Exception, now_ns: int, message: str) -> None:
        """Degraded for a minute. Logged once a bout: who found the bug may send it each time."""
        if self.healthy:
            LOG.error("%s", message, exc_info=error)
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
        for table in (self.state.agents, self.state.services, self.state.sessions):
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
        ("folded", ()): values[FOLDED_CALLS],
        ("moved", ()): values[MOVED],
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
        ("service", state.services),
        ("session", state.sessions),
        ("trace", state.traces),
        ("episode", state.episodes),
    ):
        head = table.head[0]
        counts["entities", (scope,)] = int(head["in_use"])
        counts["entities_evicted", (scope,)] = int(head["evicted"])
        counts["entities_overflow", (scope,)] = int(head["overflow"])
    return counts
