"""Redaction over the kept inputs of its fuzzer, and over those of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.redaction_target import check
from tests.sizes import COMPILED

DATA = Path(__file__).resolve().parents[1] / "data"
OURS = sorted((DATA / "fuzz-redaction").glob("*.bin"))
OTHERS = [*sorted((DATA / "fuzz").glob("*.bin")), *sorted((DATA / "fuzz-arguments").glob("*.bin"))]
STEP = 1 if COMPILED else 12
"""As plain Python, each twelfth of the others."""


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_redaction_corpus(path: Path) -> None:
    """
    Scenario: secrets, personal data and signs of JSON in any order, cut anywhere.
    Guarantees: as long as before, the library reads it, JSON stays JSON, and twice is once.
    """
    check(path.read_bytes())


def test_others_redacted() -> None:
    """
    Scenario: the kept inputs of the scan's and of the argument readers' fuzzers.
    Guarantees: the same.
    """
    assert len(OURS) > 10
    for path in OTHERS[::STEP]:
        check(path.read_bytes())
