"""`python -m tests.reliability [row ...] [--full]`: the table "Reach", row by row.

Without `--full` each row takes seconds: it shows that the trial runs, and finds what is grossly
wrong. The full form takes hours; `--scale 0.1` makes the long ones (outage, soak, kills, fuzz) a
tenth as long, and their line says so. After each row its figures are merged into
docs/reliability.json, from which docs/reliability.md is written; a row that breaks off is a line
that is not met, and the next one begins.

Wall-clock figures depend on the machine and on what else it does: run the full form on an idle one.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.processes import ROOT
from tests.reliability.figures import Figure, merge, stamp, table
from tests.reliability.page import page
from tests.reliability.rows import (
    bombs,
    fuzzing,
    idle,
    kills,
    latency,
    moods,
    outage,
    soak,
    stop,
)
from tests.reliability.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS: dict[str, Callable[[Trial, float], list[Figure]]] = {
    "kills": lambda trial, scale: kills.run(trial, max(3, round(200 * scale))),
    "outage": lambda trial, scale: outage.run(trial, 10 * scale),
    "moods": lambda trial, _: moods.run(trial),
    "sigterm": lambda trial, _: stop.run(trial),
    "fuzz": lambda trial, scale: fuzzing.run(trial, 120 * scale),
    "bombs": lambda trial, _: bombs.run(trial),
    "idle": lambda trial, _: idle.run(trial),
    "soak": lambda trial, scale: soak.run(trial, 60 * scale),
    "latency": lambda trial, _: latency.run(trial),
}
RESULTS = ROOT / "docs" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


def trial_of(name: str, *, full: bool, seed: int, scale: float = 1.0) -> list[Figure]:
    """Run a row in a folder of its own. Whatever ends it before its time is its figure."""
    print(f"trial: {name}", file=sys.stderr, flush=True)
    said = stamp(full=full, seed=seed)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"reliability-{name}-") as folder:
        try:
            found = ROWS[name](Trial(Path(folder), full, seed), scale)
        except Exception as error:  # noqa: BLE001 - the rows after it take hours: they are run.
            traceback.print_exc()
            why = {"why": f"{type(error).__name__}: {str(error)[:600]}"}
            found = [Figure(name, "broke off", 1, "times", limit=0, details=why)]
    said["took"] = f"{time.monotonic() - began_s:.0f} s"
    for figure in found:
        figure.measured = said | ({"scale": str(scale)} if full and scale != 1 else {})
    print(table(found), file=sys.stderr, flush=True)
    return found


def allow_many_files() -> None:
    """As many open connections as the system lets us have, for us and for all that we start."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: list[str]) -> int:
    """0 when every limit is met."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"{', '.join(ROWS)}; default all")
    parser.add_argument("--full", action="store_true", help="as the table asks for")
    parser.add_argument("--scale", type=float, default=1.0, help="of the long ones, with --full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    names = options.rows or list(ROWS)
    allow_many_files()
    figures: list[Figure] = []
    for name in names:
        found = trial_of(name, full=options.full, seed=options.seed, scale=options.scale)
        options.page.write_text(page(merge(options.out, found)))
        figures += found
    print(table(figures))
    return int(any(figure.met == "no" for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
