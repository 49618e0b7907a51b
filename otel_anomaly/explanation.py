"""Why, and why not: what every detector said of one span, in words.

detector    said    score  observed  limit  usual  window  why
rate        allow   0      3         100    -      60 s    below the limit
novelty     -       -      -         -      -      -       still learning this agent
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from otel_anomaly.detectors.finding import ACTIONS, JUDGED, SKIP_REASONS
from otel_anomaly.otlp.scan import BAD_ID, IS_CALL, LOGS
from otel_anomaly.scoring import DETECTORS

if TYPE_CHECKING:
    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.processor import Processor
    from otel_anomaly.report import Call, Reporter
    from otel_anomaly.state import Judgement

EXIT_OK, EXIT_NO = 0, 1
_SPAN_ID_BYTES: Final = 8
_WHY: Final = {
    "late": "the call is too late for its window",
    "learning": "too little is known of this agent, and of its service, to judge by",
    "no_entity": "nobody is known to count the call for, or there was no room for them",
    "no_arguments": "the span carries no arguments",
    "not_told": "the telemetry does not say what it looks at",
    "exempt": "the tool is exempt (policy.polling_tools, policy.batch_tools)",
    "memory_full": "the agent's memory is full: new cannot be told from not kept",
    "off": "switched off",
}
assert set(_WHY) == set(SKIP_REASONS) - {""}


class Explanation:
    """Waits for one span and keeps what was said of it."""

    def __init__(self, span_id: str) -> None:
        """`span_id`: 16 hex digits. Raises ValueError."""
        self._wanted = bytes.fromhex(span_id)
        if len(self._wanted) != _SPAN_ID_BYTES:
            raise ValueError(f"{span_id}: a span id has 16 hex digits")
        self._span_id = self._wanted.hex()
        self._identity = 0
        self._is_call = False
        self._is_log = False
        self._call: Call | None = None
        self._rows: list[dict[str, Any]] = []

    def look_for(self, columns: Columns, processor: Processor) -> None:
        """Ask the judge to keep its signs, once the span is found in a request.

        A log record stands for the span it was written in, until that tells of a call itself.
        """
        if self._is_call and (columns.signal == LOGS or not self._is_log):
            return
        rows = columns.rows[columns.rows["flags"] & BAD_ID == 0]
        for row in rows[rows["span_at"] >= 0]:
            at = int(row["span_at"])
            if columns.body[at : at + _SPAN_ID_BYTES] != self._wanted:
                continue
            if self._is_call and not row["flags"] & IS_CALL:
                continue
            self._identity = int(row["identity"])
            self._is_call = bool(row["flags"] & IS_CALL)
            self._is_log = bool(columns.signal == LOGS)
            processor.explain(self._identity)

    def take(
        self, columns: Columns, judgement: Judgement, reporter: Reporter, processor: Processor
    ) -> None:
        """Keep what is said when the span is among those just judged."""
        if self._identity == 0 or self._call is not None:
            return
        found = columns.rows["identity"] == self._identity
        found &= judgement.verdicts["judged"] != 0
        for number in np.flatnonzero(found).tolist():
            self._call = reporter.call(columns, judgement, processor.state, number)
            signs = processor.explain(self._identity)
            reasons = {
                f.detector: f.reason for f in reporter.findings(judgement, number, self._call.who)
            }
            self._rows = [
                _row(name, sign, reasons.get(name))
                for name, sign in zip(DETECTORS, signs, strict=True)
            ]
            return

    def print(self, stdout: TextIO, output_format: str) -> int:
        """Write it down. Returns the exit code."""
        if self._call is None:
            stdout.write(f"span {self._span_id}: {self._absent()}\n")
            return EXIT_NO
        if output_format == "json":
            said = self._call._asdict() | {"who": self._call.who._asdict()}
            json.dump({"call": said, "detectors": self._rows}, stdout, indent=1)
            stdout.write("\n")
            return EXIT_OK
        known = self._call.who._asdict().items()
        who = ", ".join(f"{name} {value}" for name, value in known if value) or "nobody known"
        head = f"span {self._span_id}, tool {self._call.tool}, {who}"
        lines = [_printable(head), f"verdict {self._call.action}, score {self._call.score:.2f}", ""]
        cells = [_HEAD, *(_cells(row) for row in self._rows)]
        widths = [max(len(cell[i]) for cell in cells) for i in range(len(_HEAD) - 1)]
        for cell in cells:
            padded = [text.ljust(width) for text, width in zip(cell, widths, strict=False)]
            lines.append("  ".join([*padded, cell[-1]]).rstrip())
        stdout.write("\n".join(lines) + "\n")
        return EXIT_OK

    def _absent(self) -> str:
        if self._identity == 0:
            return "is not in the recording, or its ids are not valid"
        if not self._is_call:
            return "is no tool call, so no detector looked at it"
        return "is part of another span's call, which speaks for it"


def _row(name: str, sign: np.void, reason: str | None) -> dict[str, Any]:
    skipped = SKIP_REASONS[sign["skipped"]]
    row: dict[str, Any] = {"detector": name, "skipped": skipped or None}
    row["action"] = ACTIONS[sign["action"]]
    for field, column in (
        ("score", "score"),
        ("observed", "observed"),
        ("limit", "limit"),
        ("baseline", "usual"),
        ("window_s", "window_s"),
    ):
        row[field] = float(sign[column])
    row["why"] = _why(sign, skipped, reason)
    return row


def _why(sign: np.void, skipped: str, reason: str | None) -> str:
    if sign["skipped"] != JUDGED and sign["score"] == 0:
        return _WHY[skipped]
    if reason is not None:
        return reason if sign["action"] > 0 else f"{reason}; not enough for an alarm by itself"
    if sign["limit"] > 0 and sign["ratio"] > 0:
        return f"below the limit: {float(sign['observed']):g} of {float(sign['limit']):g}"
    return "nothing found"


_HEAD: Final = ("detector", "said", "score", "observed", "limit", "usual", "window", "why")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["skipped"] and not row["score"]:
        return (row["detector"], "-", "-", "-", "-", "-", "-", row["why"])
    window = f"{row['window_s']:g} s" if row["window_s"] else "-"
    numbers = (f"{row[name]:g}" for name in ("observed", "limit", "baseline"))
    return (row["detector"], row["action"], f"{row['score']:.2f}", *numbers, window, row["why"])


def _printable(text: str) -> str:
    """Names come from agents, so nothing in them moves the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
