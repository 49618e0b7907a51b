"""What was measured, against what is needed: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.load import h2load_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PACKAGES = ("otel-anomaly", "numpy", "numba", "grpcio", "aiohttp", "uvloop", "protobuf")
_HEADINGS = ("figure", "value", "peer", "ratio", "needed", "aim", "met")


@dataclass(frozen=True)
class Figure:
    """One line of the table. With a peer the ratio is judged, else the value; lower is better."""

    name: str
    unit: str
    value: float
    needed: float
    aim: float | None
    """None where the aim is not a number."""
    peer: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.value / self.peer

    @property
    def met(self) -> str:
        """`no`, `yes`, or `aim` when that is reached too."""
        judged = self.value if self.ratio is None else self.ratio
        if judged > self.needed:
            return "no"
        return "aim" if self.aim is not None and judged <= self.aim else "yes"

    def cells(self) -> tuple[str, ...]:
        limit = "{:g} x" if self.peer is not None else "{:g}"
        return (
            self.name,
            f"{_short(self.value)} {self.unit}",
            "" if self.peer is None else _short(self.peer),
            "" if self.ratio is None else f"{self.ratio:.2f} x",
            limit.format(self.needed),
            "flat" if self.aim is None else limit.format(self.aim),
            self.met,
        )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def conditions() -> dict[str, str]:
    """Under what the figures were taken; they hold for nothing else."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": h2load_version() or "python (aiohttp, grpc.aio): h2load is not installed",
        **versions,
    }


def _cpu_model() -> str:
    """As Linux tells it; elsewhere what the platform module knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def markdown(figures: Sequence[Figure]) -> str:
    """The table, which is also what the README shows."""
    rows = [_HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_json(path: Path, figures: Sequence[Figure], said: Mapping[str, str]) -> None:
    """Figures with their details, and the conditions."""
    listed = [{**asdict(item), "ratio": item.ratio, "met": item.met} for item in figures]
    path.write_text(json.dumps({"conditions": dict(said), "figures": listed}, indent=1) + "\n")
