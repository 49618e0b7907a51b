"""The whole pipeline over several lives: stops, kills, power failures; what lasts, lasts."""

from __future__ import annotations

import random

import pytest

from tests.simulation.disks import SimDisks
from tests.simulation.seeds import seeds
from tests.simulation.world import World

REGRESSION = (1, 102)
LIVES = 3


def lives_of(seed: int, *, sighups: float = 0.05) -> World:
    """Three lives and a last one that drains."""
    rng = random.Random(seed)
    ends = [rng.choice(("stop", "kill", "kill", "power")) for _ in range(LIVES)]
    return World(rng, [*ends, "drain"], SimDisks(rng), sighups=sighups)


@pytest.mark.parametrize("seed", seeds(regression=REGRESSION, sweep=20))
def test_nothing_is_lost_between_lives(seed: int) -> None:
    """
    Scenario: clients, moody next hops, queues on disks that fail in some worlds; three lives that
    end by a stop, a kill or a power failure at a random step, and a last one that drains. Some
    clients repeat what an earlier life took. Snapshots are written now and then, some get damaged.
    Guarantees: every start succeeds and the books of every life add up. Of what a client heard OK
    about, each next hop has every span, or it was counted as dropped; but for a power failure where
    fsync is not `always`. What was refused arrives nowhere. Each life knows, bit for bit, what the
    last whole snapshot holds: after a stop all that was learned; a call in it is a duplicate.
    """
    lives_of(seed).play()


@pytest.mark.parametrize("seed", seeds(regression=(102, 106), sweep=10))
def test_nothing_is_lost_between_lives_of_changing_configurations(seed: int) -> None:
    """
    Scenario: the same, and at any moment the configuration is read again.
    Guarantees: the same, for each exporter from when it came.
    """
    lives_of(seed, sighups=0.3).play()


def test_the_lives_are_eventful() -> None:
    """
    Scenario: some worlds, until all has happened that the others are there to see.
    Guarantees: it does: none of them passes for nothing.
    """
    missing = {
        "applied",
        "refused",
        "short of memory",
        "copied",
        "loaded",
        "loaded the one before",
        "compared",
        "known from an earlier life",
    }
    for seed in range(1, 41):
        world = lives_of(seed, sighups=0.3)
        world.play()
        missing -= world.seen.keys()
        if not missing:
            return
    pytest.fail(f"never seen: {missing}")
