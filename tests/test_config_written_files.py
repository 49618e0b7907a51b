"""Two writers of one file are refused before either of them writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import load_config
from tests.config_files import complaint, written

if TYPE_CHECKING:
    from pathlib import Path

SPANS, AUDIT, SNAPSHOTS = "exporters.file.path", "audit.path", "storage.snapshots.path"
TWO = ("exporters.file/a.path", "exporters.file/b.path")
ENDINGS = ("", ".1", ".new", ".refused", ".1.refused", ".before-failure")
# What is written -> the key that is told, the two that are in each other's way, the file.
SHARED = {
    "exporters:\n  file/a: {path: /x/spans.jsonl}\n  file/b: {path: /x/./spans.jsonl}": (
        *(":3: exporters.file/b.path", *TWO, "/x/spans.jsonl"),
    ),
    "exporters:\n  file/a: {path: /x/a.jsonl}\n  file/b: {path: /x/b.jsonl}": (
        *(":3: exporters.file/b.path", *TWO, "/x/metrics.jsonl"),
    ),
    "audit:\n  path: ./data/spans.jsonl": (f":2: {AUDIT}", SPANS, AUDIT, "data/spans.jsonl"),
    "storage:\n  snapshots:\n    path: data/spans.jsonl": (
        *(f":3: {SNAPSHOTS}", SPANS, SNAPSHOTS, "data/spans.jsonl"),
    ),
    "storage: {snapshots: {path: data/audit.jsonl}}": (
        *(f":1: {SNAPSHOTS}", AUDIT, SNAPSHOTS, "data/audit.jsonl"),
    ),
    **{
        f"{section}: {{path: data/state.snapshot{ending}}}": (
            *(f":{line}: {key}", key, SNAPSHOTS, f"data/state.snapshot{ending}"),
        )
        for section, line, key in (("audit", 1, AUDIT), ("exporters:\n  file", 2, SPANS))
        for ending in ENDINGS
    },
}
HERE = {"OTEL_ANOMALY_DATA": "data"}


@pytest.mark.parametrize(("text", "expected"), SHARED.items())
def test_a_file_has_one_writer(
    tmp_path: Path, text: str, expected: tuple[str, str, str, str]
) -> None:
    """
    Scenario: two of the exporters, the audit trail and the snapshots, with all the names that these
    take in turn, have the same file, written in one way or another.
    Guarantees: refused with both keys and the file; the line is that of a key that was written.
    """
    place, one, other, shared = expected
    path = written(tmp_path, text)
    said = complaint(path, environ=HERE)
    assert said == f"{path}{place}: {one} and {other} would both write {shared}"


@pytest.mark.parametrize("ending", ENDINGS)
def test_snapshots_that_are_off_take_no_names(tmp_path: Path, ending: str) -> None:
    """
    Scenario: snapshots are off, and the audit trail goes where they would lie.
    Guarantees: nothing is refused.
    """
    text = (
        f"storage: {{snapshots: {{enabled: false}}}}\naudit: {{path: data/state.snapshot{ending}}}"
    )
    config = load_config([written(tmp_path, text)], (), HERE)
    assert config.audit.path == f"data/state.snapshot{ending}"
