"""Every row of the table "Reach" in its short form, with the real process."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from tests.reliability.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _needs_compiled_kernels() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        pytest.skip("NUMBA_DISABLE_JIT is set: the process would run its kernels as plain Python")


def run(row: str, folder: Path) -> None:
    """One row; fails where a limit is not met."""
    files = ["--out", str(folder / "out.json"), "--page", str(folder / "page.md")]
    assert main([row, *files]) == 0, (folder / "page.md").read_text()
    assert row in (folder / "page.md").read_text()


DISK = "otel_anomaly.exporters.disk_store"


@pytest.mark.e2e
@pytest.mark.skipif(importlib.util.find_spec(DISK) is None, reason="no queue on disk yet")
@pytest.mark.parametrize("row", ["kills", "outage"])
def test_row_on_disk(row: str, tmp_path: Path) -> None:
    """
    Scenario: the same for the rows that need queues on disk.
    Guarantees: as below.
    """
    run(row, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("row", ["moods", "sigterm", "bombs", "idle", "soak", "latency"])
def test_row(row: str, tmp_path: Path) -> None:
    """
    Scenario: a row of the table, for seconds instead of hours.
    Guarantees: nothing accepted is lost or left out of the books, bounds hold, nothing ends the
    process; what depends on the speed of the machine is told and not judged.
    """
    run(row, tmp_path)
