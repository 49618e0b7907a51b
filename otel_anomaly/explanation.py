"""Why, and why not: what every detector said of one span, in words.

detector    said    score  observed  limit  usual  window  why
rate        allow   0.00   3         100    -      60 s    3 calls in 1 min, warn from 100, ..
novelty     -       -      -         -      -      -       still learning: this agent 3 of 50 ..
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from otel_anomaly.otlp.scan import BAD_ID, IS_CALL, LOGS
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.why_not import Seen, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.processor import Processor
    from otel_anomaly.report import Call, Reporter
    from otel_anomaly.state import Judgement

EXIT_OK, EXIT_NO = 0, 1
_SPAN_ID_BYTES: Final = 8
_UNTOLD: Final = "no_arguments"
"""Why a detector did not look at a call: of `why_not`."""


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
        self._place = 0

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
        if self._identity == 0:
            return
        told = processor.explained_now()
        found = columns.rows["identity"] == self._identity
        found &= judgement.verdicts["judged"] != 0
        if self._call is None:
            for number in np.flatnonzero(found).tolist()[:1]:
                self._call = reporter.call(columns, judgement, processor.state, number)
                self._place = int(processor.explained()["plan"])
                self._rows = self._told(judgement, reporter, processor, number)
        elif told >= 0 and not found.any():
            # Not a copy, but a record that came later and says more of the call.
            call = reporter.call(columns, judgement, processor.state, told)
            if call.score > self._call.score:
                self._call = self._call._replace(
                    action=call.action, would_be=call.would_be, score=call.score
                )
            rows = self._told(judgement, reporter, processor, told)
            pairs = zip(self._rows, rows, strict=True)
            self._rows = [new if old["skipped"] == _UNTOLD else old for old, new in pairs]

    def _told(
        self, judgement: Judgement, reporter: Reporter, processor: Processor, number: int
    ) -> list[dict[str, Any]]:
        assert self._call is not None
        findings = reporter.findings(judgement, number, self._call.who)
        return _rows(processor, {f.detector: f.reason for f in findings})

    def print(self, stdout: TextIO, output_format: str) -> int:
        """Write it down. Returns the exit code."""
        if self._call is None:
            stdout.write(f"span {self._span_id}: {self._absent()}\n")
            return EXIT_NO
        if output_format == "json":
            said = self._call._asdict() | {"who": self._call.who._asdict()}
            said["limits"] = self._limits()
            json.dump({"call": said, "detectors": self._rows}, stdout, indent=1)
            stdout.write("\n")
            return EXIT_OK
        lines = [*self._heads(self._call), ""]
        cells = [_HEAD, *(_cells(row) for row in self._rows)]
        widths = [max(len(cell[i]) for cell in cells) for i in range(len(_HEAD) - 1)]
        for cell in cells:
            padded = [text.ljust(width) for text, width in zip(cell, widths, strict=False)]
            lines.append("  ".join([*padded, cell[-1]]).rstrip())
        stdout.write("\n".join(lines) + "\n")
        return EXIT_OK

    def _limits(self) -> str:
        """The section whose limits applied."""
        return f"policy.overrides[{self._place - 1}]" if self._place else "detectors"

    def _heads(self, call: Call) -> Iterator[str]:
        """Who called what, the verdict, and what it rests on."""
        known = call.who._asdict().items()
        who = ", ".join(f"{name} {value}" for name, value in known if value) or "nobody known"
        yield _printable(f"span {self._span_id}, tool {call.tool}, {who}")
        capped = "" if call.would_be == call.action else f" ({call.would_be} in mode enforce)"
        yield f"verdict {call.action}{capped}, score {call.score:.2f}, {call.mode}"
        yield _printable(f"counted by {call.identity}; limits of {self._limits()}")

    def _absent(self) -> str:
        if self._identity == 0:
            return "is not in the recording, or its ids are not valid"
        if not self._is_call:
            return "is no tool call, so no detector looked at it"
        return "is part of another span's call, which speaks for it"


def _rows(processor: Processor, reasons: dict[str, str]) -> list[dict[str, Any]]:
    """What every detector said of the call, in their order."""
    record, limits = processor.explained(), processor.limits()
    config, plan = limits[0][record["plan"]], limits[1][record["plan"]]
    return [
        tell(name, Seen(record, config, sign, plan), reasons.get(name))
        for name, sign in zip(DETECTORS, record["signs"], strict=True)
    ]


_HEAD: Final = ("detector", "said", "score", "observed", "limit", "usual", "window", "why")


def _cell(number: float | None, unit: str = "") -> str:
    return "-" if number is None else f"{number:.6g}{unit}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table. Who did not look at the call said nothing of it."""
    said = ("-", "-") if row["skipped"] and not row["score"] else None
    numbers = (_cell(row[name]) for name in ("observed", "limit", "baseline"))
    window = _cell(row["window_s"], " s")
    said = said or (row["action"], f"{row['score']:.2f}")
    return (row["detector"], *said, *numbers, window, row["why"])


def _printable(text: str) -> str:
    """Names come from agents, so nothing in them moves the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
