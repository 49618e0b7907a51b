"""The detector `child_process` by itself: pasts of an agent and of its service."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import ChildProcessConfig
from otel_anomaly.detectors import child_process, past
from otel_anomaly.detectors.finding import (
    ALLOW,
    BLOCK,
    COLD,
    FULL,
    JUDGED,
    NO_ARGUMENTS,
    NOT_TOLD,
    OFF,
    PAUSE,
    WARN,
)
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, learning_of, said, spoilt_sign
from tests.sizes import scaled

DAY_S = 86_400


class Agent:
    """What an agent and its service started."""

    def __init__(self, **config: Any) -> None:
        self.config = ChildProcessConfig.model_validate(config)
        self.plan = child_process.make_plan(self.config)[0]
        self.learning = learning_of()
        self.own, self.peers = (np.zeros(1, past.PAST)[0] for _ in range(2))

    def look(self, call: np.void) -> Said:
        """What is said of a call that is not learned."""
        sign = spoilt_sign()
        child_process.score(self.own, self.peers, self.learning, self.plan, call, sign)
        return said(sign)

    def start(self, at_s: float, program: int, **fields: Any) -> Said:
        """What is said of a call that starts a program."""
        return self.look(call_of(at_s, starts_program=1, program=program, **fields))

    def warm_up(self, program: int, *, peers: bool = False) -> None:
        """Ten calls in 50 s."""
        for i in range(10):
            call = call_of(5 * i, starts_program=1, program=program)
            past.learn(self.peers if peers else self.own, self.learning, call)


def test_always_blocks_every_program() -> None:
    """
    Scenario: mode `always`: a cold agent starts a program, with and without arguments; a call that
    starts none; another action.
    Guarantees: blocked with 1 from the first call on; nothing is said of other calls; the
    configured action takes the place of block.
    """
    agent = Agent(mode="always")
    for fields in ({}, {"has_arguments": 0}):
        sign = agent.start(0, 0, **fields)
        assert (sign["action"], sign["score"], sign["ratio"]) == (BLOCK, 1.0, 1)
        assert (sign["skipped"], sign["variant"]) == (JUDGED, child_process.ANY)
    other = agent.look(call_of(0))
    assert (other["action"], other["score"], other["skipped"]) == (ALLOW, 0, JUDGED)
    assert Agent(mode="always", action="pause").start(0, 0)["action"] == PAUSE


def test_novel_warns_of_a_program_never_started() -> None:
    """
    Scenario: a warm agent starts a program it knows, and another.
    Guarantees: the known one says nothing, the other is warned of with 0.6, or as configured.
    """
    for config, action in (({}, WARN), ({"action": "block"}, BLOCK)):
        agent = Agent(**config)
        agent.warm_up(7)
        known, new = agent.start(60, 7), agent.start(60, 8)
        assert (known["action"], known["score"], known["observed"]) == (ALLOW, 0, 0)
        assert (new["action"], new["score"], new["observed"]) == (action, 0.6, 1)
        assert (new["usual"], new["variant"]) == (10, child_process.OF_AGENT)


def test_the_service_speaks_for_a_cold_agent() -> None:
    """
    Scenario: a cold agent with a cold service, then with a warm one.
    Guarantees: cold is silent and says so; then it is held against what its service started.
    """
    agent = Agent()
    assert agent.start(60, 7)["skipped"] == COLD
    agent.warm_up(7, peers=True)
    assert agent.start(60, 7)["action"] == ALLOW
    new = agent.start(60, 8)
    assert (new["action"], new["variant"]) == (WARN, child_process.OF_SERVICE)


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: mode `novel`: no arguments, no program among them, a memory that is full, off.
    Guarantees: each is skipped with its reason and silent; a program it knows is still known.
    """
    agent = Agent()
    agent.warm_up(7)
    assert agent.start(60, 0, has_arguments=0)["skipped"] == NO_ARGUMENTS
    assert agent.start(60, 0)["skipped"] == NOT_TOLD
    for program in range(100, 200):
        call = call_of(60, starts_program=1, program=program)
        past.learn(agent.own, agent.learning, call)
    full, known = agent.start(60, 999), agent.start(60, 7)
    assert (full["skipped"], full["action"], full["score"]) == (FULL, ALLOW, 0)
    assert (known["skipped"], known["action"]) == (JUDGED, ALLOW)
    assert Agent(enabled=False).start(60, 7)["skipped"] == OFF


@pytest.mark.parametrize("mode", ["novel", "always"])
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_kernel_equals_twin(seed: int, mode: str) -> None:
    """
    Scenario: an agent and its service learn different calls over weeks; some are judged only.
    Guarantees: every number is that of dicts that hold everything.
    """
    agent, pick = Agent(mode=mode), random.Random(seed)
    agent.learning = learning_of(samples=20, age_s=DAY_S, forget_days=3)
    pasts = [(agent.own, naive.Past(agent.learning)), (agent.peers, naive.Past(agent.learning))]
    programs = [0] + [pick.getrandbits(63) for _ in range(15)]
    at_s = 0.0
    for _ in range(scaled(400)):
        at_s += pick.choices((0, 600, DAY_S, 4 * DAY_S), (10, 10, 3, 1))[0]
        call = call_of(
            at_s,
            starts_program=pick.random() < 0.9,
            program=pick.choice(programs),
            has_arguments=pick.random() < 0.95,
        )
        expected = naive.child_process(agent.config, pasts[0][1], pasts[1][1], call)
        assert agent.look(call) == vars(expected)
        for record, twin in pasts:
            if pick.random() < (0.1 if twin is pasts[0][1] else 0.4):
                past.learn(record, agent.learning, call)
                twin.learn(call)
