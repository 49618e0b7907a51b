"""The tables of docs/defects.md and docs/blind-spots.md are held against the tests they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"
ROW = re.compile(r"\[`(test_\w+)`\]\(\.\./tests/(\w+\.py)\)")
DEFECTS = {"grob": range(1, 13), "contextforge": range(1, 26), "assembly": range(1, 24)}


def defined(prefix: str) -> set[tuple[str, str]]:
    """Every test whose name begins like this, with its file."""
    pattern = re.compile(rf"^def ({prefix}\w*)\(", re.MULTILINE)
    return {
        (name, path.name)
        for path in TESTS.glob("test_*.py")
        for name in pattern.findall(path.read_text("utf-8"))
    }


@pytest.mark.parametrize(
    ("page", "prefix"),
    [("defects.md", "test_(?:grob|contextforge|assembly)_"), ("blind-spots.md", "test_blind_")],
)
def test_every_row_has_its_test_and_every_test_its_row(page: str, prefix: str) -> None:
    """
    Scenario: the tests that a page names, and those that it should name.
    Guarantees: they are the same, in the files it says.
    """
    rows = ROW.findall((DOCS / page).read_text("utf-8"))
    assert len(rows) == len(set(rows))
    assert set(rows) == defined(prefix)


def test_every_listed_defect_has_a_row() -> None:
    """
    Scenario: the numbers of all defects listed of the three systems.
    Guarantees: each is a row of the page, with at least one test.
    """
    text = (DOCS / "defects.md").read_text("utf-8")
    numbers = {
        system: {int(number) for number in re.findall(rf"`test_{system}_(\d\d)_", text)}
        for system in DEFECTS
    }
    assert numbers == {system: set(rows) for system, rows in DEFECTS.items()}
    for part in text.split("\n## ")[1:4]:
        listed = re.findall(r"^\| (\d+) \| .+ \| \[`test_", part, re.MULTILINE)
        assert listed == [str(number) for number in range(1, len(listed) + 1)]
