"""Every row of the table "Reach" in its short form, with the real process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.reliability.__main__ import ROWS, main

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


@pytest.mark.e2e
@pytest.mark.parametrize("row", sorted(ROWS.keys() - {"fuzz"}))
def test_row(row: str, tmp_path: Path) -> None:
    """
    Scenario: a row of the table, for seconds instead of hours. (Fuzzing is not one of these: the
    inputs that it kept are replayed by tests/fuzz.)
    Guarantees: nothing accepted is lost or left out of the books, bounds hold, nothing ends the
    process; what depends on the speed of the machine is told and not judged.
    """
    run(row, tmp_path)
