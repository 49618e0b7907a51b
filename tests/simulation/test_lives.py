"""The whole pipeline over several lives: queues on disk; stops, kills and power failures."""

from __future__ import annotations

import random

import pytest

from tests.simulation.seeds import seeds
from tests.simulation.world import World

pytest.importorskip(
    "otel_anomaly.exporters.disk_store", reason="there is no queue on disk in this version"
)

REGRESSION = (1,)
LIVES = 3


def play_lives(seed: int) -> int:
    """Three lives and a last one that drains; the digest of what happened."""
    from tests.simulation.disks import SimDisks  # noqa: PLC0415 - as above.

    rng = random.Random(seed)
    ends = [rng.choice(("stop", "kill", "kill", "power")) for _ in range(LIVES)]
    return World(rng, [*ends, "drain"], SimDisks(rng)).play()


@pytest.mark.parametrize("seed", seeds(regression=REGRESSION, sweep=20))
def test_nothing_is_lost_between_lives(seed: int) -> None:
    """
    Scenario: clients, moody next hops, queues on disks that fail in some worlds; three lives that
    end by a stop, a kill or a power failure at a random step, and a last one that drains.
    Guarantees: every start succeeds and the books of every life add up. Of what a client heard OK
    about, each next hop has every span, or it was counted as dropped; but for a power failure where
    fsync is not `always`. What was refused arrives nowhere.
    """
    play_lives(seed)
