"""Coverage-guided fuzzing of every target, for a total time: no crash, the corpus kept.

The targets are what `python -m tests.fuzz` offers. Each runs on plain Python, where libFuzzer sees
into the kernels and every read out of bounds is an IndexError, and on compiled kernels. There are
as many at a time as the machine has cores; the total is that of all of them, one after the other.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.bench.processes import ROOT
from tests.fuzz import __main__ as fuzz
from tests.reliability.figures import Figure
from tests.reliability.trial import Trial

START_S = 600.0
"""Longest time to compile and to read the corpus."""
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_COVERED = re.compile(r"cov: (\d+)")
_CORPUS = re.compile(r"corp: (\d+)")


class Ran(NamedTuple):
    """One target's run."""

    name: str
    runs: int
    covered: int
    corpus: int
    broke: str
    """The end of its output when it broke."""


def options() -> list[list[str]]:
    """What selects each target: the words that `tests.fuzz` takes."""
    compiled = [["--compiled"], ["--compiled", "--arguments"]]
    return [[], *([f"--{name}"] for name in fuzz.TARGETS), *compiled]


def run(trial: Trial, minutes: float = 120.0) -> list[Figure]:
    """Targets that broke."""
    if importlib.util.find_spec("atheris") is None:
        raise RuntimeError("atheris is not installed: pip install -e '.[fuzz]'")
    each = options()
    seconds = trial.size(2, minutes * 60 / len(each))
    with ThreadPoolExecutor(os.cpu_count() or 1) as side_by_side:
        ran = list(side_by_side.map(lambda words: _one(trial, words, seconds), each))
    broke = {one.name: one.broke for one in ran if one.broke}
    return [
        Figure(
            "fuzz",
            "targets that broke",
            len(broke),
            "targets",
            limit=0,
            details={
                "total, minutes": seconds * len(each) / 60,
                **{one.name: f"{one.runs:,} runs, {one.covered} edges" for one in ran},
                **({"broke": broke} if broke else {}),
            },
        )
    ]


def _one(trial: Trial, words: list[str], seconds: float) -> Ran:
    """One target for some seconds. In the short form from a fixed seed, its finds thrown away."""
    limits = [f"-max_total_time={seconds:.0f}", "-rss_limit_mb=0", "-print_final_stats=1"]
    if not trial.full:
        folder = trial.folder / "-".join(["corpus", *words]).replace("--", "")
        folder.mkdir()
        limits += ["-seed=1", f"-artifact_prefix={folder}/", str(folder)]
    command = [sys.executable, "-m", "tests.fuzz", *words, *limits]
    kept = {key: value for key, value in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
        timeout=seconds + START_S,
    )
    done, output = _DONE.search(ended.stderr), ended.stderr
    broke = "" if ended.returncode == 0 else f"exit {ended.returncode}: {output[-600:]}"
    return Ran(
        " ".join(words) or "requests",
        int(done[1]) if done else 0,
        _last(_COVERED, output),
        _last(_CORPUS, output),
        broke,
    )


def _last(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0
