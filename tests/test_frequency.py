"""The detector `frequency` by itself: known tools far under their fair share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import FrequencyConfig
from otel_anomaly.detectors import frequency, past
from otel_anomaly.detectors.finding import ALLOW, COLD, DAY_NS, FULL, JUDGED, NOT_TOLD, SECOND_NS
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import NOON_NS, blank_sign, fields_of, record_of
from tests.sizes import scaled


class Agent:
    """One agent, warm after `samples` calls."""

    def __init__(self, samples: int = 1, **config: Any) -> None:
        self.config = FrequencyConfig.model_validate(config)
        self.plan = frequency.make_plan(self.config)[0]
        self.past = np.zeros(1, past.PAST)[0]
        self.learning = np.zeros(1, past.LEARNING)[0]
        self.learning["samples"], self.learning["forget_days"] = samples, 28

    def look(self, tool: int, time_ns: int = NOON_NS) -> dict[str, Any]:
        sign, call = blank_sign(), record_of(Told(time_ns, tool=tool))
        frequency.score(self.past, self.learning, self.plan, call, sign)
        return fields_of(sign)

    def learn(self, tool: int, count: int = 1, time_ns: int = NOON_NS) -> None:
        for _ in range(count):
            past.learn(self.past, self.learning, record_of(Told(time_ns, tool=tool)))


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_frequency_equals_counting(seed: int) -> None:
    """
    Scenario: tools of very different shares, some forgotten over the weeks, some without room.
    Guarantees: every field of every sign is that of the twin, which counts.
    """
    pick, now_ns = random.Random(seed), NOON_NS
    agent = Agent(samples=5, share=0.02)
    twin = naive.Past(samples=5, forget_days=28)
    tools = pick.choice((3, 30, 90))
    for _ in range(scaled(500)):
        now_ns += pick.choices((SECOND_NS, 12 * DAY_NS), (30, 0.2))[0]
        tool = min(pick.randrange(tools), pick.randrange(tools), pick.randrange(tools))
        call = Told(now_ns, tool=tool)
        assert agent.look(tool, now_ns) == naive.frequency(twin, agent.config, call).fields()
        agent.learn(tool, time_ns=now_ns)
        twin.learn(call)


def test_rare_is_found_and_usual_is_not() -> None:
    """
    Scenario: 995 calls of one tool and 5 of another (defect 9: one definition, both directions).
    Guarantees: the rare one scores 0.6 with its share against the limit; the usual one, also as it
    grows, scores nothing; the rare one stops being rare at 1 %.
    """
    agent = Agent()
    agent.learn(1, 995)
    agent.learn(2, 5)
    rare, usual = agent.look(2), agent.look(1)
    assert (rare["score"], rare["observed"], rare["limit"]) == (0.6, 0.5, 1.0)
    assert (usual["score"], usual["observed"], usual["action"]) == (0.0, 99.5, ALLOW)
    agent.learn(2, 5)
    assert agent.look(2)["score"] == 0.6
    agent.learn(2)
    assert agent.look(2)["score"] == 0.0


@pytest.mark.parametrize("tools", [10, 64, 120])
def test_evenly_used_tools_are_not_rare(tools: int) -> None:
    """
    Scenario: many tools, used alike (defect 20: over a hundred of them each stays near 1 %).
    Guarantees: none scores; where there is no room to count a tool, that is said.
    """
    agent = Agent()
    for _ in range(20):
        for tool in range(1, tools + 1):
            agent.learn(tool << 24)
    signs = [agent.look(tool << 24) for tool in range(1, tools + 1)]
    assert [sign["score"] for sign in signs] == [0.0] * tools
    assert sum(sign["skipped"] == FULL for sign in signs) == max(0, tools - 64)


def test_sixty_tools_and_one_that_is_rare_among_them() -> None:
    """
    Scenario: 60 tools of 1 % to 2 % each, and one with 3 calls in 6 000.
    Guarantees: the limit is half the fair share, and only the one is under it.
    """
    agent = Agent()
    agent.learn(999 << 24, 3)
    for tool in range(1, 61):
        agent.learn(tool << 24, 100)
    assert agent.look(999 << 24)["score"] == 0.6
    assert agent.look(999 << 24)["limit"] == 100 * 0.5 / 61
    assert not any(agent.look(tool << 24)["score"] for tool in range(1, 61))


def test_forgotten_tools_do_not_count() -> None:
    """
    Scenario: 1 000 calls of one tool; a month later another one is used 20 times, and a third once.
    Guarantees: the share is that of what the agent does now.
    """
    agent = Agent()
    agent.learn(1, 1000)
    later_ns = NOON_NS + 29 * DAY_NS
    agent.learn(2, 20, later_ns)
    assert agent.look(2, later_ns)["observed"] == 100.0
    agent.learn(3, 1, later_ns)
    assert agent.look(3, later_ns)["score"] == 0.0


def test_too_little_is_no_share() -> None:
    """
    Scenario: a cold agent; a warm one with 9 and with 10 calls; a call without a tool; a new tool.
    Guarantees: learning below 10 calls; then judged; not_told; a tool without a past is not rare.
    """
    cold = Agent(samples=50)
    cold.learn(1, 49)
    assert cold.look(1)["skipped"] == COLD
    agent = Agent()
    agent.learn(1, 9)
    assert agent.look(1)["skipped"] == COLD
    agent.learn(1)
    assert agent.look(1)["skipped"] == JUDGED
    assert agent.look(0)["skipped"] == NOT_TOLD
    assert (agent.look(7)["score"], agent.look(7)["observed"]) == (0.0, 0.0)
