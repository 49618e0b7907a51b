"""Arrays that judging a request takes, reused from one to the next.

Fresh pages each time cost more than judging. They grow with the requests, and what an unusually
large one took is given back.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.otlp.arguments import ARGUMENTS, DESK, scratch_size
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import FINDING, STEP, STEPS_PER_FINDING, VERDICT, Scratch, make_scratch
from otel_anomaly.verdict import LINE_BYTES

ROWS_AT_FIRST, ROWS_KEPT = 256, 1 << 14
BODY_AT_FIRST, BODY_KEPT = 1 << 18, 1 << 22
ANNOTATION_AT_FIRST: Final = 1 << 18


class Workspace:
    """Room to judge one request in."""

    def __init__(self) -> None:
        self.used = np.zeros(2, np.int64)
        self.double = np.zeros(1, np.float64)
        self.line = np.zeros(LINE_BYTES, np.uint8)
        self.desk = np.zeros(1, DESK)
        self.judge: Scratch = make_scratch(0)
        self.shrink()

    @property
    def signs(self) -> np.ndarray:
        """SIGN [detectors]: what each said of the call judged last."""
        return self.judge.signs

    @property
    def explained(self) -> np.ndarray:
        """EXPLAINED [1]: what the span that is to be explained was judged by."""
        return self.judge.explained

    def shrink(self) -> None:
        """Give back what a large request took."""
        self._size_rows(ROWS_AT_FIRST)
        self._size_calls(ROWS_AT_FIRST)
        self.blob = np.empty(ANNOTATION_AT_FIRST, np.uint8)
        self.text = np.empty(scratch_size(BODY_AT_FIRST), np.uint8)

    def fit(self, rows: int, calls: int, blob_bytes: int, body_bytes: int) -> None:
        """Make room for a request of so many rows, calls, bytes of attributes and of its own."""
        if rows > self.verdicts.size:
            self._size_rows(_power_of_two(rows))
        if 2 * calls > self.read.size:
            self._size_calls(_power_of_two(calls))
        if blob_bytes > self.blob.size:
            self.blob = np.empty(_power_of_two(blob_bytes), np.uint8)
        if scratch_size(body_bytes) > self.text.size:
            self.text = np.empty(scratch_size(_power_of_two(body_bytes)), np.uint8)

    def _size_rows(self, rows: int) -> None:
        self.verdicts = np.empty(rows, VERDICT)
        self.ends = np.empty(rows, np.int64)

    def _size_calls(self, calls: int) -> None:
        self.findings = np.empty(calls * len(DETECTORS), FINDING)
        self.steps = np.empty(calls * len(DETECTORS) * STEPS_PER_FINDING, STEP)
        self.read = np.empty(2 * calls, ARGUMENTS)
        self.judge = self.judge._replace(read=self.read)


def _power_of_two(count: int) -> int:
    """The next one."""
    return 1 << (count - 1).bit_length()
