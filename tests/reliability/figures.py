"""What a trial found, against what it must find: JSON for machines, a page for people."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from otel_anomaly import __version__

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ("grpcio", "aiohttp", "uvloop", "numpy", "numba")
NOTE_CHARS_MAX = 300


@dataclass
class Figure:
    """One line of the table."""

    row: str
    """Name of the trial: `kills`, `outage`."""
    name: str
    value: float
    unit: str
    limit: float | None = None
    """The value must be at most this; None when it is told for comparison only."""
    details: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    """When, how long, in which form."""

    @property
    def met(self) -> str:
        if self.limit is None:
            return "-"
        return "yes" if self.value <= self.limit else "no"


def conditions() -> str:
    """Where figures come from."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return (
        f"otel-anomaly {__version__}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}"
    )


def stamp(*, full: bool, seed: int) -> dict[str, str]:
    """The conditions of one trial, as it begins."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "form": "full" if full else "short",
        "seed": str(seed),
        "others": f"{os.getloadavg()[0]:.1f}",
        "on": conditions(),
    }


def merge(path: Path, figures: list[Figure]) -> list[Figure]:
    """The new figures and, of other rows, those found before; written back."""
    fresh = {figure.row for figure in figures}
    before = json.loads(path.read_text())["figures"] if path.exists() else []
    kept = [Figure(**old) for old in before if old["row"] not in fresh]
    both = sorted([*kept, *figures], key=lambda figure: figure.row)
    written = {"figures": [asdict(figure) for figure in both]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1, default=str) + "\n")
    return both


def number(value: float) -> str:
    """Short, as people write it."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def table(figures: list[Figure]) -> str:
    """Markdown."""
    lines = [
        "| trial | figure | found | limit | met | form, duration, date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in figures:
        limit = "-" if one.limit is None else f"{number(one.limit)} {one.unit}"
        said = one.measured
        form = said["form"] + (f" x {said['scale']}" if "scale" in said else "")
        when = f"{form}, {said['took']}, {said['when']}"
        found = f"{number(one.value)} {one.unit}"
        lines.append(f"| {one.row} | {one.name} | {found} | {limit} | {one.met} | {when} |")
    return "\n".join(lines)


def notes(figures: list[Figure]) -> str:
    """The details of each figure: one line, or a line each when that would be a long one."""
    lines = []
    for one in figures:
        if one.details:
            said = [f"{key} {_plain(value)}" for key, value in one.details.items()]
            if len(", ".join(said)) <= NOTE_CHARS_MAX:
                lines.append(f"- **{one.row}**, {one.name}: {', '.join(said)}.")
            else:
                lines += [f"- **{one.row}**, {one.name}:", *(f"  - {each}" for each in said)]
    return "\n".join(lines)


def places(figures: list[Figure]) -> str:
    """The conditions, and which rows were measured under them."""
    rows: dict[str, dict[str, str]] = {}
    for one in figures:
        told = f"{one.row} (seed {one.measured['seed']}, load {one.measured['others']})"
        rows.setdefault(one.measured["on"], {})[one.row] = told
    return "\n".join(f"- {', '.join(told.values())}: {on}" for on, told in rows.items())


def _plain(value: object) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return number(value)
    return str(value)
