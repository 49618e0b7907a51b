"""The detector `data_exfiltration` by itself: what a call holds, and where it goes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import DataExfiltrationConfig
from otel_anomaly.detectors import data_exfiltration, past
from otel_anomaly.detectors.finding import ALLOW, BLOCK, JUDGED, NO_ARGUMENTS, OFF, WARN
from otel_anomaly.otlp.content import ACCOUNT, ASIDE, HOST, LINK, MAIL, OUTSIDE, PATH, PUBLIC
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, learning_of, said, spoilt_sign
from tests.sizes import scaled

DAY_S = 86_400
STRANGE = (1, HOST | PUBLIC | OUTSIDE)
LETTER = (2, MAIL | OUTSIDE)
ACCOUNT_OF_THEIRS = (3, ACCOUNT | OUTSIDE)
OURS = (4, HOST | PUBLIC)
FOLDER = (5, PATH)
FURTHER = (6, HOST | PUBLIC | OUTSIDE | ASIDE | LINK)
SECRETS, STRONG = {"secrets": 2}, {"personal": 1, "personal_strong": 1}


class Agent:
    """What an agent named before."""

    def __init__(self, **config: Any) -> None:
        self.config = DataExfiltrationConfig.model_validate(config)
        self.plan = data_exfiltration.make_plan(self.config)[0]
        self.learning = learning_of()
        self.own = np.zeros(1, past.PAST)[0]

    def look(self, *to: tuple[int, int], at_s: float = 60, **fields: Any) -> Said:
        """What is said of one call."""
        sign = spoilt_sign()
        call = call_of(at_s, to=to, **fields)
        data_exfiltration.score(self.own, self.learning, self.plan, call, sign)
        return said(sign)

    def learn(self, *to: tuple[int, int], times: int = 1) -> None:
        """Calls without data, 5 s apart."""
        for i in range(times):
            past.learn(self.own, self.learning, call_of(5 * i, to=to))


@pytest.mark.parametrize(
    ("to", "fields", "score"),
    [
        ([STRANGE], {"personal": 1}, 0.8),
        ([STRANGE], {}, 0),
        ([STRANGE], SECRETS, 1),
        ([STRANGE], STRONG, 1),
        ([ACCOUNT_OF_THEIRS], {"personal": 1}, 0.8),
        ([OURS], SECRETS, 0),
        ([FOLDER], SECRETS, 0),
        ([], SECRETS, 0),
        ([OURS, FOLDER, STRANGE], SECRETS, 1),
        ([LETTER], {"personal": 2}, 0),
        ([LETTER], {"personal": 3}, 0.8),
        ([LETTER], SECRETS, 1),
        ([LETTER], STRONG, 1),
        ([LETTER, STRANGE], {"personal": 1}, 0.8),
        ([LETTER, ACCOUNT_OF_THEIRS], {"personal": 1}, 0.8),
        ([LETTER, OURS], {"personal": 1}, 0),
        ([FURTHER], SECRETS, 0),
        ([STRANGE], {"secrets": 2, "credentials": 2}, 0),
        ([STRANGE, OURS, FURTHER], {"secrets": 1, "credentials": 1}, 0),
        ([STRANGE], {"secrets": 2, "credentials": 1}, 1),
        ([STRANGE], {"secrets": 1, "credentials": 1, "personal": 1}, 0.8),
        ([STRANGE, (7, HOST | OUTSIDE)], {"secrets": 1, "credentials": 1}, 1),
        ([LETTER], {"secrets": 1, "credentials": 1}, 1),
        ([FURTHER, STRANGE], SECRETS, 1),
        ([FURTHER, LETTER], {"personal": 2}, 0),
    ],
)
def test_data_and_destination_count_together(
    to: list[tuple[int, int]], fields: dict[str, int], score: float
) -> None:
    """
    Scenario: each kind of data to each kind of destination, by an agent never seen.
    Guarantees: only data that leaves is blocked; contact details in a mail are data from three on.
    """
    sign = Agent().look(*to, **fields)
    assert (sign["score"], sign["action"]) == (score, BLOCK if score else ALLOW)
    assert sign["skipped"] == JUDGED
    assert (sign["ratio"] >= 1) == (score > 0)


def test_the_gravest_kind_is_told() -> None:
    """
    Scenario: a call with two secrets, one card number and four personal data, then with less.
    Guarantees: the words are of the gravest kind and of how many of it there are.
    """
    for fields, variant, observed, limit in (
        ({"secrets": 2, "personal": 4, "personal_strong": 1}, data_exfiltration.SECRETS, 2, 1),
        ({"personal": 4, "personal_strong": 1}, data_exfiltration.STRONG, 1, 1),
        ({"personal": 4}, data_exfiltration.PERSONAL, 4, 3),
    ):
        sign = Agent().look(LETTER, **fields)
        told = sign["variant"], sign["observed"], sign["limit"]
        assert told == (variant, observed, limit)


def test_a_habit_is_no_exfiltration() -> None:
    """
    Scenario: personal data to a host a warm agent named in ten calls; in four; that a cold one
    named in ten; weeks after.
    Guarantees: only the first is silent.
    """
    habit, acquaintance, cold = Agent(), Agent(), Agent()
    habit.learn(STRANGE, times=10)
    acquaintance.learn(times=10)
    acquaintance.learn(STRANGE, times=data_exfiltration.HABIT - 1)
    cold.learning["age_ns"] *= 1000
    cold.learn(STRANGE, times=10)
    assert habit.look(STRANGE, personal=1)["action"] == ALLOW
    assert acquaintance.look(STRANGE, personal=1)["action"] == BLOCK
    assert cold.look(STRANGE, personal=1)["action"] == BLOCK
    assert habit.look(STRANGE, personal=1, at_s=29 * DAY_S)["action"] == BLOCK
    assert habit.look(STRANGE, (9, HOST | OUTSIDE), personal=1)["action"] == BLOCK


def test_a_full_memory_does_not_open_the_door() -> None:
    """
    Scenario: a warm agent's memory for destinations is filled, then data goes to one more.
    Guarantees: what there was no room for is no habit: blocked.
    """
    agent = Agent()
    for number in range(100, 400):
        agent.learn((number, HOST | OUTSIDE), times=3)
    assert agent.look(STRANGE, personal=1)["action"] == BLOCK


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: no arguments; the detector off; another action.
    Guarantees: each is skipped with its reason; the action is the configured one.
    """
    assert Agent().look(has_arguments=0)["skipped"] == NO_ARGUMENTS
    off = Agent(enabled=False).look(STRANGE, secrets=1)
    assert (off["skipped"], off["action"]) == (OFF, ALLOW)
    assert Agent(action="warn").look(STRANGE, secrets=1)["action"] == WARN


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_kernel_equals_twin(seed: int) -> None:
    """
    Scenario: an agent learns calls over weeks; calls with any data go anywhere.
    Guarantees: every number is that of dicts that hold everything.
    """
    agent, pick = Agent(), random.Random(seed)
    agent.learning = learning_of(samples=20, age_s=DAY_S, forget_days=3)
    twin = naive.Past(agent.learning)
    kinds = [kind | outside for kind in (HOST, MAIL, ACCOUNT) for outside in (0, OUTSIDE)]
    kinds.append(HOST | OUTSIDE | ASIDE | LINK)
    known = [(pick.getrandbits(63), pick.choice([*kinds, PATH])) for _ in range(12)]
    at_s = 0.0
    for _ in range(scaled(500)):
        at_s += pick.choices((0, 600, DAY_S, 4 * DAY_S), (10, 10, 2, 1))[0]
        to = pick.sample(known, pick.randint(0, 3))
        fields = {name: pick.choice((0, 0, 1, 4)) for name in ("secrets", "personal")}
        fields["personal_strong"] = min(fields["personal"], pick.choice((0, 0, 1)))
        fields["credentials"] = min(fields["secrets"], pick.choice((0, 1, 4)))
        fields["has_arguments"] = pick.random() < 0.95
        call = call_of(at_s, to=to, **fields)
        expected = naive.data_exfiltration(agent.config, twin, call)
        assert agent.look(*to, at_s=at_s, **fields) == vars(expected)
        if pick.random() < 0.5:
            past.learn(agent.own, agent.learning, call)
            twin.learn(call)
