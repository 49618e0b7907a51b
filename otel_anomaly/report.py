"""What is told of a judgement: findings, calls and steps of episodes, in words.

The kernels leave rows of numbers; here they become records for people and sinks. Runs only for
what is told: a finding in a replay, a step of an episode in the service.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from otel_anomaly.detectors.finding import ACTIONS
from otel_anomaly.entities import names
from otel_anomaly.entities.identity import OF_AGENT
from otel_anomaly.otlp.scan import Columns
from otel_anomaly.scoring import DETECTORS, LOOP, RATE
from otel_anomaly.verdict import LINE_BYTES, MODES, put_reason, tell_identity

if TYPE_CHECKING:
    from otel_anomaly.state import Judgement, State


class Call(NamedTuple):
    """One judged call, in words."""

    who: names.Caller
    tool: str | None
    trace_id: str
    span_id: str
    time_ns: int
    error: bool
    arguments: str | None
    """Fingerprint of the canonical arguments, hex; None when none are carried."""
    signal: str
    identity: str
    """Which keys it was counted under, and which of them are weak."""
    action: str
    would_be: str
    """The action in mode enforce."""
    mode: str
    score: float
    types: tuple[str, ...]


class Finding(NamedTuple):
    """One detector about one call, in words."""

    detector: str
    action: str
    would_be: str
    """The action in mode enforce."""
    score: float
    observed: float
    limit: float
    usual: float
    window_s: float
    entity: str
    reason: str


SIGNALS = ("traces", "logs")


def _hex(fingerprint: int) -> str | None:
    return None if fingerprint == 0 else f"{fingerprint & (1 << 64) - 1:016x}"


class Reporter:
    """Puts judgements into words, with the texts the verdicts are written from."""

    def __init__(self, texts: np.ndarray) -> None:
        self._texts = texts
        self._line = np.zeros(LINE_BYTES, np.uint8)

    def call(self, columns: Columns, judgement: Judgement, state: State, row: int) -> Call:
        """The call of a row that was judged."""
        verdict, span = judgement.verdicts[row], columns.rows[row]
        types = tuple(
            DETECTORS[judgement.findings[i]["detector"]]
            for i in finding_numbers(verdict)
            if judgement.findings[i]["sign"]["action"] > 0
        )
        return Call(
            who=names.caller(columns.data, span, verdict["person"], state),
            tool=names.tool(columns.data, span),
            trace_id=names.trace_id(columns.data, span),
            span_id=names.span_id(columns.data, span),
            time_ns=int(verdict["time_ns"]),
            error=bool(verdict["failed"]),
            arguments=_hex(int(verdict["fingerprint"])),
            signal=SIGNALS[columns.signal],
            identity=self.identity(judgement, row),
            action=ACTIONS[verdict["action"]],
            would_be=ACTIONS[verdict["asked"]],
            mode=MODES[verdict["learning"]],
            score=float(verdict["score"]),
            types=types,
        )

    def identity(self, judgement: Judgement, row: int) -> str:
        """Which keys the call of a row was counted under, and which of them are weak."""
        persons = judgement.verdicts[row : row + 1]["person"]
        size = tell_identity(self._texts, persons, self._line)
        return self._line[:size].tobytes().decode("utf-8", errors="ignore")

    def findings(self, judgement: Judgement, row: int, who: names.Caller) -> list[Finding]:
        """All findings about the call of a row, which `who` made."""
        numbers = finding_numbers(judgement.verdicts[row])
        return [self.finding(judgement, number, who) for number in numbers]

    def finding(self, judgement: Judgement, number: int, who: names.Caller) -> Finding:
        """One finding about a call that `who` made."""
        found = judgement.findings[number]
        sign, detector = found["sign"], int(found["detector"])
        person = judgement.verdicts[found["row"]]["person"]
        kind = int(OF_AGENT)
        if detector == RATE:
            kind = int(person["rate_kind"])
        elif detector == LOOP or not person["agent_key"]:
            kind = int(person["session_kind"])
        verdict = judgement.verdicts[found["row"]]
        first, count = np.int64(verdict["finding"]), np.int64(verdict["findings"])
        size = put_reason(
            self._texts, judgement.findings, first, count, np.int64(number), self._line
        )
        return Finding(
            detector=DETECTORS[detector],
            action=ACTIONS[sign["action"]],
            would_be=ACTIONS[found["asked"]],
            score=float(sign["score"]),
            observed=float(sign["observed"]),
            limit=float(sign["limit"]),
            usual=float(sign["usual"]),
            window_s=float(sign["window_s"]),
            entity=names.entity(kind, who),
            reason=self._line[:size].tobytes().decode("ascii"),
        )


def finding_numbers(verdict: np.void) -> range:
    """Rows of the findings about a call."""
    first = int(verdict["finding"])
    return range(first, first + int(verdict["findings"]))


def episode_id(detector: str, entity: str, who: names.Caller, start_ns: int) -> str:
    """The same for all steps of an episode, in every run over the same stream."""
    parts = (detector, entity, who.tenant or "", who.agent or "", str(start_ns))
    framed = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(framed.encode()).hexdigest()[:16]
