"""The detector `new_destination` by itself: pasts of an agent and of its service."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import NewDestinationConfig
from otel_anomaly.detectors import new_destination, past
from otel_anomaly.detectors.finding import (
    ALLOW,
    BLOCK,
    COLD,
    FULL,
    JUDGED,
    NO_ARGUMENTS,
    OFF,
    WARN,
)
from otel_anomaly.otlp.content import ACCOUNT, HOST, MAIL, OUTSIDE, PATH, PUBLIC
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, learning_of, said, spoilt_sign
from tests.sizes import scaled

DAY_S = 86_400


class Agent:
    """What an agent and its service named."""

    def __init__(self, **config: Any) -> None:
        self.config = NewDestinationConfig.model_validate(config)
        self.plan = new_destination.make_plan(self.config)[0]
        self.learning = learning_of()
        self.own, self.peers = (np.zeros(1, past.PAST)[0] for _ in range(2))

    def look(self, at_s: float, *to: tuple[int, int], **fields: Any) -> Said:
        """What is said of a call that is not learned."""
        sign = spoilt_sign()
        call = call_of(at_s, to=to, **fields)
        new_destination.score(self.own, self.peers, self.learning, self.plan, call, sign)
        return said(sign)

    def call(self, at_s: float, *to: tuple[int, int], **fields: Any) -> Said:
        """Judge a call and learn it."""
        sign = self.look(at_s, *to, **fields)
        past.learn(self.own, self.learning, call_of(at_s, to=to, **fields))
        return sign

    def warm_up(self, *to: tuple[int, int], peers: bool = False) -> None:
        """Ten calls in 50 s."""
        for i in range(10):
            whose = self.peers if peers else self.own
            past.learn(whose, self.learning, call_of(5 * i, to=to))


def test_a_destination_is_new_once() -> None:
    """
    Scenario: a warm agent that named one host names it again, another twice, then both.
    Guarantees: known ones say nothing; the other is warned of once, with 0.6, against the calls
    that taught the agent.
    """
    agent = Agent()
    agent.warm_up((1, HOST))
    assert agent.call(60, (1, HOST))["score"] == 0
    sign = agent.call(61, (2, HOST), (1, HOST))
    assert (sign["action"], sign["score"], sign["observed"]) == (WARN, 0.6, 1)
    assert (sign["usual"], sign["ratio"], sign["variant"]) == (11, 1, new_destination.OF_AGENT)
    assert agent.call(62, (2, HOST), (1, HOST))["action"] == ALLOW


def test_the_first_destination_ever_is_new() -> None:
    """
    Scenario: a warm agent whose calls never named a destination names its first.
    Guarantees: it is warned of.
    """
    agent = Agent()
    agent.warm_up()
    assert agent.look(60, (1, HOST))["action"] == WARN


@pytest.mark.parametrize(
    ("to", "score"),
    [
        ([(1, PATH)], 0.5),
        ([(1, PATH), (2, PATH)], 0.5),
        ([(1, HOST | PUBLIC | OUTSIDE)], 0.6),
        ([(1, MAIL)], 0.6),
        ([(1, ACCOUNT)], 0.6),
        ([(1, PATH), (2, MAIL)], 0.6),
        ([], 0.0),
    ],
)
def test_paths_say_less(to: list[tuple[int, int]], score: float) -> None:
    """
    Scenario: new destinations of each kind.
    Guarantees: paths alone are 0.5, everything else 0.6, nothing is nothing.
    """
    agent = Agent(action="block")
    agent.warm_up()
    sign = agent.look(60, *to)
    assert (sign["score"], sign["action"]) == (score, BLOCK if to else ALLOW)
    assert sign["observed"] == len(to)


def test_the_service_speaks_for_a_cold_agent() -> None:
    """
    Scenario: a cold agent with a cold service, then with a warm one; then the agent is warm.
    Guarantees: cold is silent and says so; then it is held against what its service named, in
    words of its own; then against its own past.
    """
    agent = Agent()
    assert agent.look(60, (1, HOST))["skipped"] == COLD
    agent.warm_up((1, HOST), peers=True)
    known, new = agent.look(60, (1, HOST)), agent.look(60, (2, HOST))
    assert (known["skipped"], known["score"], new["score"]) == (JUDGED, 0, 0.6)
    assert (new["variant"], new["usual"]) == (new_destination.OF_SERVICE, 10)
    agent.warm_up((2, HOST))
    assert agent.look(60, (2, HOST))["action"] == ALLOW
    assert agent.look(60, (1, HOST))["action"] == WARN


def test_a_destination_unused_for_weeks_is_new_again() -> None:
    """
    Scenario: a destination is named again 28 and 29 days after it was named last.
    Guarantees: the first is known, the second is new.
    """
    for days, action in ((28, ALLOW), (29, WARN)):
        agent = Agent()
        agent.warm_up((1, HOST))
        assert agent.look(days * DAY_S, (1, HOST))["action"] == action


def test_a_flood_of_names_does_not_push_out_old_ones() -> None:
    """
    Scenario: a warm agent names 500 destinations it never named, then an old one.
    Guarantees: each is warned of while there is room, then the detector is silent and says that it
    is full; the old one is still known.
    """
    agent = Agent()
    agent.warm_up((1, HOST))
    signs = [agent.call(60, (number, HOST)) for number in range(1000, 1500)]
    room = past.SIZES[past.DESTINATIONS] - 1
    assert {sign["action"] for sign in signs[:room]} == {WARN}
    assert {(sign["skipped"], sign["action"]) for sign in signs[room:]} == {(FULL, ALLOW)}
    old = agent.look(60, (1, HOST))
    assert (old["skipped"], old["action"]) == (JUDGED, ALLOW)


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: a call without arguments; the detector off.
    Guarantees: each is skipped with its reason.
    """
    agent = Agent()
    agent.warm_up()
    assert agent.look(60, has_arguments=0)["skipped"] == NO_ARGUMENTS
    assert Agent(enabled=False).look(60, (1, HOST))["skipped"] == OFF


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_kernel_equals_twin(seed: int) -> None:
    """
    Scenario: an agent and its service learn different calls over weeks; some are judged only.
    Guarantees: every number is that of dicts that hold everything.
    """
    agent, pick = Agent(), random.Random(seed)
    agent.learning = learning_of(samples=20, age_s=DAY_S, forget_days=3)
    pasts = [(agent.own, naive.Past(agent.learning)), (agent.peers, naive.Past(agent.learning))]
    hashes = [pick.getrandbits(63) for _ in range(40)]
    at_s = 0.0
    for _ in range(scaled(400)):
        at_s += pick.choices((0, 600, DAY_S, 4 * DAY_S), (10, 10, 3, 1))[0]
        bits = (HOST, MAIL, ACCOUNT, PATH, PATH)
        to = [(pick.choice(hashes), pick.choice(bits)) for _ in range(pick.randint(0, 3))]
        fields = {"to": to, "has_arguments": pick.random() < 0.95}
        call = call_of(at_s, **fields)
        expected = naive.new_destination(agent.config, pasts[0][1], pasts[1][1], call)
        assert agent.look(at_s, *to, has_arguments=fields["has_arguments"]) == vars(expected)
        for record, twin in pasts:
            if pick.random() < (0.1 if twin is pasts[0][1] else 0.4):
                past.learn(record, agent.learning, call)
                twin.learn(call)
