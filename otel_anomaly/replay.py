"""Recorded OTLP through the same processor: `otel-anomaly replay`.

The clock is the stream itself, the seed is fixed and nothing else comes from outside. Files are
read twice: first for what their spans say of whole traces, then to judge. A parent that names the
agent is exported after its calls; live, those calls are judged by what is known by then, but here
it must not matter. So the same recording gives the same findings to the bit, however it is cut into
requests.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from otel_anomaly import recordings
from otel_anomaly.detectors.finding import ACTIONS, ALLOW
from otel_anomaly.explanation import Explanation
from otel_anomaly.handoff import Batch, Outcome, Payload, Reply, Signal
from otel_anomaly.otlp.scan import BAD_ID, MalformedRequest, scan
from otel_anomaly.processor import SIGNALS, Processor
from otel_anomaly.recordings import RecordingError
from otel_anomaly.report import Reporter, finding_numbers
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.snapshot_file import SnapshotRefused, write
from otel_anomaly.snapshots import REPLAY_SEED, load
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from otel_anomaly.config import Config
    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.report import Call, Finding
    from otel_anomaly.state import Judgement

_JUDGED: Final = (Signal.TRACES, Signal.LOGS)
EXIT_OK, EXIT_UNREADABLE = 0, 2
NS: Final = 1_000_000_000
TRACES_MIN, SPANS_MIN = 1 << 20, 1 << 20
"""Traces and spans that a replay can hold, at least."""
_YEAR_10000_S: Final = 253_402_300_800


class Replay:
    """One replay: the processor, what it found, and where the annotated requests go."""

    def __init__(
        self,
        config: Config,
        *,
        calls: bool,
        writer: recordings.Writer | None,
        explain: str | None = None,
        load_state: Path | None = None,
    ) -> None:
        """`load_state`: a snapshot to begin with. Raises SnapshotRefused, or FileNotFoundError."""
        self.findings: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self._keep_calls = calls
        self._writer = writer
        self._place = ""
        limits = config.identity.limits
        # A recording is finite, and `remember` wants all of its traces at once.
        wanted = {
            "traces": max(limits.traces, TRACES_MIN),
            "spans": max(limits.spans, SPANS_MIN),
        }
        limits = limits.model_copy(update=wanted)
        identity = config.identity.model_copy(update={"limits": limits})
        config = config.model_copy(update={"identity": identity})
        loaded = None if load_state is None else load(load_state, config)
        self.processor = Processor(
            config,
            self,
            Telemetry(),
            seed=REPLAY_SEED if loaded is None else loaded.seed,
            state=None if loaded is None else loaded.state,
            on_judged=self._on_judged,
        )
        self._reporter = Reporter(self.processor.texts)
        self.explanation = Explanation(explain) if explain is not None else None

    def reserve(self, bytes_needed: int) -> Outcome:
        """There is always room."""
        assert bytes_needed > 0
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        """Write an annotated request."""
        assert len(payload.body) <= bytes_reserved
        if self._writer is not None:
            self._writer.write(payload.body, payload.signal, self._place)

    def retry_after_s(self) -> float:
        """Never asked: nothing is refused for want of room."""
        return 0.0

    def remember(self, recorded: recordings.Recorded) -> None:
        """Learn who is meant, before anything is judged. Raises RecordingError when not OTLP."""
        if recorded.signal is Signal.METRICS:
            return
        try:
            columns = self.processor.remember_traces(recorded.body, recorded.signal)
        except MalformedRequest as error:
            other = next(signal for signal in _JUDGED if signal is not recorded.signal)
            hint = f" (binary files are read as {recorded.signal.value}; --signal {other.value}?)"
            raise RecordingError(f"{recorded.place}: {error}{hint}") from error
        if self.explanation is not None:
            self.explanation.look_for(columns, self.processor)

    def request(self, recorded: recordings.Recorded) -> None:
        """Judge one request. Raises RecordingError when it is not OTLP."""
        self._place = recorded.place
        reply: Reply = self.processor.process(
            Batch(recorded.body, recorded.signal, "http", received_ns=0)
        )
        if reply.outcome is not Outcome.ACCEPTED:
            raise RecordingError(f"{recorded.place}: {reply.message}")

    def _on_judged(self, columns: Columns, judgement: Judgement) -> None:
        if self.explanation is not None:
            self.explanation.take(columns, judgement, self._reporter, self.processor)
        wanted = judgement.verdicts["judged"] != 0
        wanted &= judgement.verdicts["duplicate"] == 0
        if not self._keep_calls:
            wanted &= judgement.verdicts["findings"] != 0
        for row in wanted.nonzero()[0].tolist():
            call = self._reporter.call(columns, judgement, self.processor.state, row)
            if self._keep_calls:
                self.calls.append(_call_record(call))
            for number in finding_numbers(judgement.verdicts[row]):
                finding = self._reporter.finding(judgement, number, call.who)
                self.findings.append(_finding_record(call, finding))

    def summary(self, seconds: float) -> dict[str, Any]:
        """The sums over the whole recording."""
        counts = self.processor.counts()
        return {
            "spans": counts["spans", ()],
            "tool_calls": counts["tool_calls", ()],
            "verdicts": {action: counts["verdicts", (action,)] for action in ACTIONS},
            "findings": {
                detector: sum(counts["findings", (detector, action)] for action in ACTIONS[1:])
                for detector in DETECTORS
            },
            "late": counts["late", ()],
            "duplicates": counts["duplicates", ()],
            "folded": counts["folded", ()],
            "seconds": round(seconds, 3),
        }


def rfc3339(time_ns: int) -> str:
    """UTC, to the nanosecond. Years outside 1970 to 9999 are told as nanoseconds."""
    seconds, rest = divmod(time_ns, NS)
    if not 0 <= seconds < _YEAR_10000_S:
        return f"{time_ns}ns"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def _identity(call: Call) -> dict[str, Any]:
    who = call.who
    return {"tenant": who.tenant, "agent": who.agent, "session": who.session, "user": who.user}


def _call_record(call: Call) -> dict[str, Any]:
    return {
        "trace_id": call.trace_id,
        "span_id": call.span_id,
        "time": rfc3339(call.time_ns),
        "signal": call.signal,
        "tool": call.tool,
        "arguments": call.arguments,
        **_identity(call),
        "identity": call.identity,
        "error": call.error,
        "action": call.action,
        "would_be": call.would_be,
        "score": call.score,
        "types": list(call.types),
    }


def _finding_record(call: Call, finding: Finding) -> dict[str, Any]:
    return {
        "time": rfc3339(call.time_ns),
        "type": finding.detector,
        "action": finding.action,
        "would_be": finding.would_be,
        "score": finding.score,
        "observed": finding.observed,
        "limit": finding.limit,
        "baseline": finding.usual,
        "window_s": finding.window_s,
        "entity": finding.entity,
        "reason": finding.reason,
        **_identity(call),
        "tool": call.tool,
        "trace_id": call.trace_id,
        "span_id": call.span_id,
    }


def _printable(text: object, width: int) -> str:
    """One cell of the table: names come from agents, so nothing in them moves the cursor."""
    cell = "".join(c if c.isprintable() else "?" for c in str("" if text is None else text))
    return cell if len(cell) <= width else cell[: width - 1] + "~"


_COLUMNS: Final = (("time", 30), ("action", 6), ("score", 5), ("entity", 28), ("tool", 20))


def _print_table(replay: Replay, summary: dict[str, Any], stdout: TextIO) -> None:
    lines = []
    # Weak signals are told by `risk`, and are in the JSON report.
    alarms = [finding for finding in replay.findings if finding["action"] != ACTIONS[ALLOW]]
    if alarms:
        head = "  ".join(name.ljust(width) for name, width in _COLUMNS)
        lines.append(f"{head}  reason")
    for finding in alarms:
        shown = finding | {"score": f"{finding['score']:.2f}"}
        cells = [_printable(shown[name], width).ljust(width) for name, width in _COLUMNS]
        lines.append("  ".join([*cells, finding["reason"]]))
    verdicts = ", ".join(f"{name} {count}" for name, count in summary["verdicts"].items())
    found = ", ".join(f"{name} {count}" for name, count in summary["findings"].items() if count)
    lines.append(f"{summary['spans']} spans, {summary['tool_calls']} tool calls: {verdicts}")
    lines.append(
        f"findings: {found or 'none'}; late {summary['late']}, duplicates {summary['duplicates']};"
        f" {summary['seconds']} s"
    )
    encoding = stdout.encoding or "utf-8"  # A terminal need not know every letter of a name.
    stdout.writelines(
        line.encode(encoding, "backslashreplace").decode(encoding) + "\n" for line in lines
    )


def _refuse_overwriting(out: Path, files: Sequence[Path]) -> None:
    for path in files:
        if out.exists() and path.exists() and out.samefile(path):
            raise RecordingError(f"{out}: is one of the files to be read")


def _signal_of(path: Path, processor: Processor) -> Signal:
    """What a binary file holds, by what can be read in it; any other says so itself.

    Requests of spans and of log records differ in nothing but their innermost messages, and what
    is unknown in those is skipped: some can be read as either. Spans then have ids that are sound,
    records have a time.
    """
    if not recordings.is_binary(path):
        return Signal.TRACES
    readable: list[Signal] = []
    reason = ""
    for recorded in recordings.read(path, Signal.TRACES):
        for signal in _JUDGED:
            try:
                rows = scan(recorded.body, processor.keys, SIGNALS[signal]).rows
            except MalformedRequest as error:
                reason = reason or str(error)
                continue
            readable.append(signal)
            of_spans = (rows["flags"] & BAD_ID) == 0
            if (of_spans if signal is Signal.TRACES else rows["start_ns"] != 0).any():
                return signal
    if not readable:
        raise RecordingError(f"{path}: {reason} (read as traces; logs cannot be read in it either)")
    return readable[0]


def _replay_files(
    config: Config,
    files: Sequence[Path],
    *,
    out: Path | None,
    calls: bool,
    signal: Signal | None,
    explain: str | None,
    load_state: Path | None,
) -> Replay:
    """Replay `files` in order. Raises RecordingError."""
    with contextlib.ExitStack() as stack:
        writer = None
        if out is not None:
            _refuse_overwriting(out, files)
            writer = recordings.Writer(out)
            stack.callback(writer.close)
        try:
            replay = Replay(
                config, calls=calls, writer=writer, explain=explain, load_state=load_state
            )
        except (SnapshotRefused, FileNotFoundError) as error:
            reason = error if isinstance(error, SnapshotRefused) else "there is none"
            raise RecordingError(f"{load_state}: {reason}") from error
        signals = [signal or _signal_of(path, replay.processor) for path in files]
        for path, chosen in zip(files, signals, strict=True):
            for recorded in recordings.read(path, chosen):
                replay.remember(recorded)
        for path, chosen in zip(files, signals, strict=True):
            for recorded in recordings.read(path, chosen):
                replay.request(recorded)
    return replay


def _save(processor: Processor, path: Path) -> None:
    """Leave a snapshot behind. Raises RecordingError."""
    try:
        write(path, processor.snapshot(b"", time.time_ns()))
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from error


def replay_command(
    config: Config,
    files: Sequence[Path],
    *,
    out: Path | None,
    output_format: str,
    calls: bool,
    signal: Signal | None,
    explain: str | None = None,
    load_state: Path | None = None,
    save_state: Path | None = None,
    stdout: TextIO,
) -> int:
    """Replay `files` in order and print the report. Returns the exit code.

    `signal`: what all binary files hold; None: each what can be read in it.
    `explain`: id of a span, hex; what every detector said of it is printed instead.
    `load_state`, `save_state`: snapshots to begin with, and to leave behind. What later spans of a
    trace say is known for the whole of each replay: a recording replayed in halves is the same as
    the whole when no trace is in both.
    """
    started = time.perf_counter()
    try:
        replay = _replay_files(
            config,
            files,
            out=out,
            calls=calls,
            signal=signal,
            explain=explain,
            load_state=load_state,
        )
        if save_state is not None:
            _save(replay.processor, save_state)
    except RecordingError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNREADABLE
    if replay.explanation is not None:
        return replay.explanation.print(stdout, output_format)
    summary = replay.summary(time.perf_counter() - started)
    if output_format == "json":
        report: dict[str, Any] = {"summary": summary, "findings": replay.findings}
        if calls:
            report["calls"] = replay.calls
        json.dump(report, stdout, indent=1)
        stdout.write("\n")
    else:
        _print_table(replay, summary, stdout)
    return EXIT_OK
