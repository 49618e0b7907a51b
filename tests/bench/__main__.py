"""`python -m tests.bench`: every figure beside its peer, in one table and in JSON.

CPU time is measured, never the wall clock, so a busy machine blurs the figures less than one would
think; it still fills the caches of others. Run it on an idle one before quoting a figure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.codec import codec_figures
from tests.bench.kernel import kernel_figures
from tests.bench.report import Figure, conditions, markdown, write_json
from tests.bench.transport import CASES, Effort, bench_transport

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = Effort(requests_large=10, requests_small=100, rounds=1)


def kernel(*, quick: bool, rounds: int) -> list[Figure]:
    if quick:
        return kernel_figures(agents=(512, 1024, 2048), requests=4, rounds=1)
    return kernel_figures(rounds=rounds)


def transport(*, quick: bool, rounds: int) -> list[Figure]:
    return bench_transport(CASES, QUICK if quick else Effort(rounds=rounds))


def codec(*, quick: bool, rounds: int) -> list[Figure]:
    if quick:
        return codec_figures(spans=20, agents=512, requests=2, rounds=1)
    return codec_figures(rounds=rounds)


PARTS: dict[str, Callable[..., list[Figure]]] = {
    "kernel": kernel,
    "codec": codec,
    "transport": transport,
}


def print_notes(figures: list[Figure]) -> None:
    """What a reader must know to believe a line or not."""
    if any("generator" in figure.details for figure in figures):
        print(
            "- h2load repeats one body: the service runs with identity.limits.spans=1, so that it"
            " judges the repeats, and with detector limits out of reach"
        )
    for figure in figures:
        share = figure.details.get("generator_cpu_share_max")
        if share is None:
            continue
        busy = (
            "WAS the bottleneck"
            if figure.details["generator_was_bottleneck"]
            else "not the bottleneck"
        )
        print(
            f"- {figure.name}: load by {figure.details['generator']}, at most {share:.0%} of a"
            f" core, {busy}; judged {figure.details['judged_share']:.1%},"
            f" allowed {figure.details['allow_share']:.1%}"
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, at least 3")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"))
    options = parser.parse_args(argv)
    if options.rounds < 3:
        parser.error("--rounds must be at least 3: a median needs them")
    figures: list[Figure] = []
    for name in options.only or PARTS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        figures += PARTS[name](quick=options.quick, rounds=options.rounds)
    said = conditions()
    print(markdown(figures))
    print("\n" + "\n".join(f"{key}: {value}" for key, value in said.items()) + "\n")
    print_notes(figures)
    write_json(options.out, figures, said)
    print(f"\nwritten to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
