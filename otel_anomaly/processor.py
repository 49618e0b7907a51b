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

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from otel_anomaly.config import effective_detectors
from otel_anomaly.detectors.finding import ACTIONS, SKIP_REASONS
from otel_anomaly.entities.table import sweep
from otel_anomaly.gathering import read_calls
from otel_anomaly.handoff import Batch, Outcome, Payload, Reply, Signal
from otel_anomaly.judge import judge
from otel_anomaly.looking import look_at
from otel_anomaly.otlp.dialects import AGENT as AGENT_ROLE
from otel_anomaly.otlp.dialects import SESSION as SESSION_ROLE
from otel_anomaly.otlp.dialects import WEAK
from otel_anomaly.otlp.metrics import is_metrics
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
from otel_anomaly.plans import rules_of
from otel_anomaly.redacting import Redactor
from otel_anomaly.resizing import FOR_EVER_NS, keep, make_state, resize
from otel_anomaly.rules import Rules, make_rules
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.snapshot import Snapshot, copied
from otel_anomaly.state import (
    BAD_IDS,
    CALLS,
    CLAMPED,
    DUPLICATES,
    FINDINGS,
    FOLDED_CALLS,
    LATE_CALLS,
    MOVED,
    NO_TIME,
    SKIPPED,
    VERDICTS,
    Judgement,
    State,
)
from otel_anomaly.telemetry import TRANSPORTS, JudgeCounts, Telemetry
from otel_anomaly.verdict import blob_bytes, encode, room_for
from otel_anomaly.workspace import BODY_KEPT, ROWS_KEPT, Workspace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_anomaly.config import Config, DetectorsConfig

LOG = logging.getLogger("otel_anomaly")

SIGNALS = {Signal.TRACES: TRACES, Signal.LOGS: LOGS}
RECOVERY_NS = 60_000_000_000
"""Detection counts as failing for so long after a failure."""


class Room(Protocol):
    """Where batches go: the exporters' queues."""

    def reserve(self, bytes_needed: int) -> Outcome:
        """Set room aside, all or nothing, or say why not."""

    def commit(self, payload: Payload, bytes_reserved: int) -> Awaitable[Reply] | None:
        """Fill what was reserved. Cannot fail.

        What comes back is the answer, where that is still open: the record is on its way to the
        disk, or `ack: sent` waits for the exporters. None: the answer is ACCEPTED.
        """

    def retry_after_s(self) -> float:
        """When room may be there again, seconds."""


class _Held(NamedTuple):
    """A request held back for `identity.hold`."""

    due_ns: int
    batch: Batch
    columns: Columns
    room: int
    answer: asyncio.Future[Reply] | None
    """What the client waits for, when it has to."""


def _answered(pending: Awaitable[Reply] | None) -> Reply:
    """The reply to a batch that was handed on."""
    return Reply(Outcome.ACCEPTED, pending=pending)


def _pass_answer_on(pending: Awaitable[Reply] | None, answer: asyncio.Future[Reply]) -> None:
    """What `commit` gave is what the client of a held request waits for, if it still does."""
    if answer.done():
        return
    if pending is None:
        answer.set_result(Reply(Outcome.ACCEPTED))
        return

    def told(done: asyncio.Future[Reply]) -> None:
        if not (answer.done() or done.cancelled()):
            answer.set_result(done.result())

    asyncio.ensure_future(pending).add_done_callback(told)


class Processor:
    """Judges trace requests and hands everything on."""

    def __init__(
        self,
        config: Config,
        room: Room,
        telemetry: Telemetry,
        *,
        seed: int,
        state: State | None = None,
        on_judged: Callable[[Columns, Judgement], None] | None = None,
        on_emptied: Callable[[], None] | None = None,
    ) -> None:
        """`seed`: secret of all hashes; `state`: what was learned under it, if anything was.

        `on_judged` sees every judged request; copy to keep. `on_emptied` is told when a failure
        emptied the state; it must not raise.
        """
        self._room = room
        self._telemetry = telemetry
        self._on_judged = on_judged
        self._on_emptied = on_emptied
        self._seed = seed
        self._take_rules(make_rules(config, seed))
        self._scratch = Workspace()
        self.state = make_state(config) if state is None else state
        self._accepted = {name: telemetry.accepted_spans.labels(name) for name in TRANSPORTS}
        self._spans = 0
        self._forged = 0
        self._failed_ns: int | None = None
        self._held: deque[_Held] = deque()
        telemetry.read_judge(self.counts)

    def _take_rules(self, rules: Rules) -> None:
        self._config, self._plans, self.keys, self.texts = rules
        self._hold_ns = rules.config.identity.hold
        redact = rules.config.redact
        self._redactor = Redactor(redact, self._telemetry) if redact.enabled else None

    def prepare(self, config: Config) -> Rules:
        """Compile another configuration. Raises ValueError for what only this can tell.

        Touches nothing here, so another thread may do it.
        """
        if config.redact.enabled and self._redactor is None:
            Redactor(config.redact, self._telemetry).warm()
        return make_rules(config, self._seed)

    def adopt(self, rules: Rules) -> None:
        """Judge by `rules` from the next request on. What was learned stays.

        What is held back is judged at once, by the rules under which it came. With other
        capacities rows move: whoever remembers row numbers looks again.
        """
        self.release_all()
        self.state = resize(self.state, rules.config)
        self._take_rules(rules)

    def process(self, batch: Batch) -> Reply:
        """Take a batch over, or refuse it without a trace. Never raises on what a client sent."""
        if batch.signal is Signal.METRICS:
            return self.pass_on(batch, is_metrics(batch.body))
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
        if self._redactor is not None and columns.redacted is None:
            try:
                columns = self._redactor.cover(columns)
            except Exception as error:  # noqa: BLE001 - what cannot be redacted must not leave.
                return self._refuse_unredacted(batch, columns, error)
        room = len(batch.body) + room_for(self.texts, columns.call_count)
        outcome = self._room.reserve(room)
        if outcome is not Outcome.ACCEPTED:
            spans = columns.span_count if batch.signal is Signal.TRACES else 0
            return self._refuse(batch, outcome, spans, REFUSALS[outcome])
        if self._waits_for_identity(batch, columns):
            return _answered(self._hold_back(batch, columns, room))
        return _answered(self._finish(batch, columns, room))

    @property
    def redacts(self) -> bool:
        """Whether `cover_apart` has something to do."""
        return self._redactor is not None

    def cover_apart(self, columns: Columns) -> Columns:
        """Redact a large request in another thread. If that fails, `process_columns` says so."""
        try:
            return Redactor(self._config.redact, self._telemetry).cover(columns)
        except Exception:  # noqa: BLE001 - it is tried again there, and refused.
            return columns

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

    def _hold_back(self, batch: Batch, columns: Columns, room: int) -> Awaitable[Reply] | None:
        """Keep a request for `identity.hold`; what its spans say of their traces counts at once."""
        answer = None
        if self._config.answers_late:
            answer = asyncio.get_running_loop().create_future()
        try:
            self._look_at(columns, batch.received_ns)
        except Exception as error:  # noqa: BLE001 - the bug is ours, the data is the client's.
            self._detection_failed(error, batch.received_ns)
        self._held.append(_Held(batch.received_ns + self._hold_ns, batch, columns, room, answer))
        return answer

    def release(self, now_ns: int) -> None:
        """Judge and hand on the requests whose time is over."""
        while self._held:
            held = self._held[0]
            if held.batch.received_ns <= now_ns < held.due_ns:  # Before it: the clock was set back.
                return
            self._held.popleft()
            pending = self._finish(held.batch, held.columns, held.room)
            if held.answer is not None:
                _pass_answer_on(pending, held.answer)

    def release_all(self) -> None:
        """The same for all that is held back: the service stops."""
        self.release(FOR_EVER_NS)

    def _finish(self, batch: Batch, columns: Columns, room: int) -> Awaitable[Reply] | None:
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
        pending = self._room.commit(Payload(body, batch.signal, spans), room)
        if batch.signal is Signal.TRACES:
            self._spans += spans
            self._accepted[batch.transport].inc(spans)
        return pending

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

    def pass_on(self, batch: Batch, is_sound: bool) -> Reply:  # noqa: FBT001 - what they are.
        """Metrics, byte for byte, if the check found them to be some."""
        if not batch.body:
            return Reply(Outcome.ACCEPTED)
        if not is_sound:
            return Reply(Outcome.MALFORMED, "not an ExportMetricsServiceRequest")
        outcome = self._room.reserve(len(batch.body))
        if outcome is not Outcome.ACCEPTED:
            return Reply(outcome, REFUSALS[outcome], self._retry_after_s(outcome))
        return _answered(self._room.commit(Payload(batch.body, batch.signal, 1), len(batch.body)))

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

    def progress(self) -> tuple[int, ...]:
        """Differs when anything was judged or looked at in between."""
        return tuple(self.state.watermark.tolist())

    def snapshot(self, book: bytes, now_ns: int, room: np.ndarray | None = None) -> Snapshot:
        """All that is to live on, copied: into `room` as far as it fits. Requests that are held
        back are not in it."""
        kept = copied(keep(self.state), room)
        return Snapshot(kept, self._seed, rules_of(self._plans), book, now_ns)

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


REFUSALS = {
    Outcome.TOO_LARGE: "the request, annotated, is larger than an exporter's whole queue",
    Outcome.QUEUE_FULL: "the queue of an exporter is full: send again later",
    Outcome.MEMORY: "the service is near its memory limit: send again later",
    Outcome.STOPPING: "the service is stopping: send again later",
}
"""What can come of a reservation. The others are for a door to say, or come later."""
assert set(REFUSALS) == {Outcome.TOO_LARGE, *(each for each in Outcome if each.retryable)} - {
    Outcome.THROTTLED,
    Outcome.UNAVAILABLE,
}


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
