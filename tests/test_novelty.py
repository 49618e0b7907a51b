"""The detector `novelty` by itself: tools and argument names never used before."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import NoveltyConfig
from otel_anomaly.detectors import novelty, past
from otel_anomaly.detectors.finding import ALLOW, COLD, DAY_NS, FULL, JUDGED, NOT_TOLD, SECOND_NS
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import NOON_NS, blank_sign, fields_of, record_of
from tests.sizes import scaled

HOUR_NS = 3600 * SECOND_NS


class Agent:
    """An agent and its service."""

    def __init__(self, samples: int = 5, age_ns: int = HOUR_NS) -> None:
        self.plan = novelty.make_plan(NoveltyConfig())[0]
        self.own, self.peers = np.zeros(2, past.PAST)
        self.learning = np.zeros(1, past.LEARNING)[0]
        self.learning["samples"], self.learning["age_ns"] = samples, age_ns
        self.learning["forget_days"] = 28

    def look(self, told: Told) -> dict[str, Any]:
        sign = blank_sign()
        call = record_of(told)
        novelty.score(self.own, self.peers, self.learning, self.plan, call, sign)
        return fields_of(sign)

    def learn(self, told: Told, *, own: bool = True) -> None:
        if own:
            past.learn(self.own, self.learning, record_of(told))
        past.learn(self.peers, self.learning, record_of(told))


def warm_agent() -> tuple[Agent, int]:
    """An agent with three tools of 50 calls each over two hours, and the time after that."""
    agent = Agent(samples=50)
    for i in range(150):
        agent.learn(Told(NOON_NS + i * 48 * SECOND_NS, tool=1 + i % 3, names=10 + i % 3))
    return agent, NOON_NS + 2 * HOUR_NS


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_novelty_equals_sets(seed: int) -> None:
    """
    Scenario: agents come to a service, with and without arguments and tool names, over weeks.
    Guarantees: every field of every sign is that of the twin, which keeps sets.
    """
    pick, now_ns = random.Random(seed), NOON_NS
    agent = Agent(samples=8)
    own, peers = (naive.Past(samples=8, age_ns=HOUR_NS, forget_days=28) for _ in range(2))
    for _ in range(scaled(300)):
        now_ns += pick.choices((SECOND_NS, HOUR_NS, 20 * DAY_NS), (20, 3, 0.2))[0]
        names = pick.choice((None, pick.randrange(1, 90)))
        call = Told(now_ns, tool=pick.randrange(pick.choice((4, 90))), names=names)
        assert agent.look(call) == naive.novelty(own, peers, call).fields()
        if pick.random() < 0.8:
            mine = pick.random() < 0.6
            agent.learn(call, own=mine)
            for twin in (own, peers) if mine else (peers,):
                twin.learn(call)


def test_known_calls_are_not_new() -> None:
    """
    Scenario: three tools, 50 calls each, called again with their argument names (seeds I1, C3).
    Guarantees: nothing is found.
    """
    agent, now_ns = warm_agent()
    for tool in (1, 2, 3):
        sign = agent.look(Told(now_ns, tool=tool, names=9 + tool))
        assert (sign["score"], sign["skipped"], sign["observed"]) == (0.0, JUDGED, 50)


def test_a_new_tool_and_new_names() -> None:
    """
    Scenario: a tool never used; a known tool with other names; with none (seeds I2, C4, C5).
    Guarantees: 1.0, 0.5 and 0, each worded as what it is; none asks for an action by itself.
    """
    agent, now_ns = warm_agent()
    tool = agent.look(Told(now_ns, tool=9, names=10))
    names = agent.look(Told(now_ns, tool=1, names=11))
    assert (tool["score"], tool["variant"], tool["observed"]) == (1.0, 0, 150)
    assert (names["score"], names["variant"], names["observed"]) == (0.5, 1, 50)
    assert agent.look(Told(now_ns, tool=1))["score"] == 0.0
    assert tool["action"] == names["action"] == ALLOW
    assert "not used lately" in novelty.CLAUSES[tool["variant"]]


def test_arguments_that_begin_to_be_carried_are_no_news() -> None:
    """
    Scenario: an agent known without arguments; then its instrumentation begins to carry them.
    Guarantees: nothing is found until some names of the tool are known; then others are new.
    """
    agent = Agent()
    for i in range(50):
        agent.learn(Told(NOON_NS + i * HOUR_NS, tool=1))
    now_ns = NOON_NS + 50 * HOUR_NS
    assert agent.look(Told(now_ns, tool=1, names=5))["score"] == 0.0
    agent.learn(Told(now_ns, tool=1, names=5))
    assert agent.look(Told(now_ns, tool=1, names=5))["score"] == 0.0
    assert agent.look(Told(now_ns, tool=1, names=6))["score"] == 0.5


def test_a_refused_tool_stays_new() -> None:
    """
    Scenario: a novel tool is judged again and again and never learned (seed C13).
    Guarantees: it is as new the hundredth time; once learned it no longer is.
    """
    agent, now_ns = warm_agent()
    call = Told(now_ns, tool=9)
    assert {agent.look(call)["score"] for _ in range(100)} == {1.0}
    agent.learn(call)
    assert agent.look(call)["score"] == 0.0


def test_cold_is_silent_and_its_service_speaks_for_it() -> None:
    """
    Scenario: the first call of a new replica, of a service that is cold, then warm.
    Guarantees: cold: learning, nothing found. Warm: judged against the service, and worded so; once
    the replica is warm, against its own past.
    """
    agent = Agent()
    sign = agent.look(Told(NOON_NS, tool=1))
    assert (sign["skipped"], sign["score"]) == (COLD, 0.0)
    for i in range(50):
        agent.learn(Told(NOON_NS + i * HOUR_NS, tool=1, names=5), own=False)
    now_ns = NOON_NS + 50 * HOUR_NS
    assert agent.look(Told(now_ns, tool=1, names=5))["score"] == 0.0
    tool, names = agent.look(Told(now_ns, tool=2)), agent.look(Told(now_ns, tool=1, names=6))
    assert (tool["score"], tool["variant"]) == (1.0, 2)
    assert (names["score"], names["variant"]) == (0.5, 3)
    assert all("service" in novelty.CLAUSES[variant] for variant in (2, 3))
    for i in range(5):
        agent.learn(Told(now_ns + i * HOUR_NS, tool=2))
    sign = agent.look(Told(now_ns + 5 * HOUR_NS, tool=1, names=5))
    assert (sign["score"], sign["variant"]) == (1.0, 0)


def test_a_tool_unused_for_weeks_is_new_again() -> None:
    """
    Scenario: a tool is used once, another every day; 28 and 29 days pass.
    Guarantees: known on day 28, new on day 29; the other stays known.
    """
    agent = Agent()
    agent.learn(Told(NOON_NS, tool=1))
    for day in range(30):
        now_ns = NOON_NS + day * DAY_NS
        agent.learn(Told(now_ns, tool=2))
        if day > 4:
            assert agent.look(Told(now_ns, tool=1))["score"] == float(day > 28)
            assert agent.look(Told(now_ns, tool=2))["score"] == 0.0


def test_what_cannot_be_told_is_said() -> None:
    """
    Scenario: no tool name; more tools than there is room for; more argument names than that.
    Guarantees: not_told, memory_full, memory_full: silent, and never "new".
    """
    agent, now_ns = warm_agent()
    assert agent.look(Told(now_ns))["skipped"] == NOT_TOLD
    for names in range(100, 200):
        agent.learn(Told(now_ns, tool=1, names=names << 20))
    sign = agent.look(Told(now_ns, tool=1, names=999))
    assert (sign["skipped"], sign["score"]) == (FULL, 0.0)
    for tool in range(100, 200):
        agent.learn(Told(now_ns, tool=tool << 20))
    sign = agent.look(Told(now_ns, tool=999))
    assert (sign["skipped"], sign["score"]) == (FULL, 0.0)
    assert agent.look(Told(now_ns, tool=1, names=10))["skipped"] == JUDGED
