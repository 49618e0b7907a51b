"""Every row of the checklist has a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conformance.rows import ROWS

SUITE = sorted(Path(__file__).parent.glob("test_*.py"))


def test_every_row_has_its_test() -> None:
    """
    Scenario: the rows are held against the names of the tests beside this file.
    Guarantees: none is without, and no test names a row that is not there.
    """
    names = [
        node.name
        for path in SUITE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and re.match(r"test_([RE]\d|[GHJ]_)", node.name)
    ]
    wanted = {row: f"test_{row.replace('-', '_')}_" for row in ROWS}
    for row, start in wanted.items():
        assert any(f"{name}_".startswith(start) for name in names), f"{row} has no test"
    for name in names:
        assert any(f"{name}_".startswith(start) for start in wanted.values()), f"{name}: no row"
