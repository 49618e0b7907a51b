"""Runs a fuzz target under atheris: `python -m tests.fuzz [--compiled] [libFuzzer options]`.

Targets: scan and splice, on requests, when none is named; `--arguments`, the argument readers;
`--config`, the reader of configurations; `--json`, the codec of OTLP/JSON; `--disk`, the files of
a disk queue; `--doors`, what HTTP doors are sent; `--redaction`; `--snapshot`, the reader of
snapshots and a processor that goes on with what it read.

libFuzzer keeps inputs that reach new code. It cannot see into compiled kernels, so by default they
run as plain Python (NUMBA_DISABLE_JIT=1) and are instrumented: that finds the inputs. `--compiled`
runs the same target on the machine code, some ten times as many inputs a second but without
that guidance: that finds where compiling changed something. Run both.

    make fuzz ARGS="-max_total_time=60"
    make fuzz ARGS="--compiled -max_total_time=60"
    python -m tests.fuzz tests/data/fuzz/odd-pairs.bin      one input again

Starts from tests/data/fuzz; what is new goes to build/fuzz/corpus, what breaks to build/fuzz. A
find belongs into tests/data/fuzz, where the test suite runs it from then on. The folders of a named
target have its name behind theirs: fuzz-json.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
BUILD = ROOT / "build"
LENGTH_MAX = 2048
READERS = ["snapshot_file", "snapshot", "soundness", "resizing", "episodes"]
TARGETS = {
    "arguments": ("argument_target", ["otel_anomaly.otlp"]),
    "config": ("config_target", ["otel_anomaly.config"]),
    "disk": ("disk_target", ["otel_anomaly.exporters"]),
    "doors": ("door_target", ["otel_anomaly.receivers", "aiohttp"]),
    "json": ("json_target", ["otel_anomaly.otlp"]),
    "redaction": ("redaction_target", ["otel_anomaly.otlp"]),
    "snapshot": ("snapshot_target", [f"otel_anomaly.{name}" for name in READERS]),
}
"""Name -> its module, and what of ours is watched while it runs."""


def main(arguments: list[str]) -> None:
    """Fuzz until told to stop, or until something breaks."""
    compiled = "--compiled" in arguments
    chosen = next((name for name in TARGETS if f"--{name}" in arguments), "")
    ours = [word for word in ("--compiled", *map("--{}".format, TARGETS)) if word in arguments]
    arguments = [argument for argument in arguments if argument not in ours]
    folder = f"fuzz-{chosen}" if chosen else "fuzz"
    if not compiled:
        os.environ["NUMBA_DISABLE_JIT"] = "1"  # Read by numba when it is imported, below.
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415

    # The kernels are imported for the first time inside here, or they stay uninstrumented; numba
    # cannot compile what is instrumented.
    module, traced = TARGETS.get(chosen, ("target", ["otel_anomaly.otlp"]))
    with contextlib.nullcontext() if compiled else atheris.instrument_imports(include=traced):
        check = importlib.import_module(f"tests.fuzz.{module}").check
    from tests.fuzz.mutate import mutated  # noqa: PLC0415

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        changed = mutated(data, seed, lambda part: bytes(atheris.Mutate(part, len(part) + 16)))
        return changed[:size_max]

    if all(argument.startswith("-") for argument in arguments):
        build = BUILD / folder
        (build / "corpus").mkdir(parents=True, exist_ok=True)
        places = [str(build / "corpus"), str(DATA / folder)]
        arguments = [f"-max_len={LENGTH_MAX}", f"-artifact_prefix={build}/", *arguments, *places]
    warnings.simplefilter("error")
    # libFuzzer starts itself anew for -merge, -fork and -minimize_crash: by this name.
    name = " ".join([sys.executable, "-m", "tests.fuzz", *ours])
    requests = {} if chosen else {"custom_mutator": mutate}
    atheris.Setup([name, *arguments], check, **requests)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
