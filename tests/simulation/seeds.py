"""Which worlds are played: those that failed once, and a sweep.

`SIM_SEEDS=500` plays more worlds, `SIM_SEED=17` replays one.
"""

from __future__ import annotations

import os

from tests.sizes import scaled


def seeds(*, regression: tuple[int, ...], sweep: int) -> tuple[int, ...]:
    """The seeds to play."""
    if only := os.environ.get("SIM_SEED"):
        return (int(only),)
    count = int(os.environ.get("SIM_SEEDS", scaled(sweep)))
    return (*regression, *range(100, 100 + count))
