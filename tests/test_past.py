"""What an agent did before: bounded, forgetful, and never overrun."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.detectors import past
from otel_anomaly.detectors.call import CALL
from otel_anomaly.detectors.finding import DAY_NS, SECOND_NS
from otel_anomaly.otlp.content import DESTINATIONS_MAX
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import NOON_NS, record_of
from tests.sizes import scaled

KINDS = range(4)


class Agent:
    """One agent's past, kernel and twin side by side."""

    def __init__(self, samples: int = 0, age_ns: int = 0, forget_days: int = 28) -> None:
        self.past = np.zeros(1, past.PAST)[0]
        self.learning = np.zeros(1, past.LEARNING)[0]
        self.learning["samples"], self.learning["age_ns"] = samples, age_ns
        self.learning["forget_days"] = forget_days
        self.twin = naive.Past(samples=samples, age_ns=age_ns, forget_days=forget_days)

    def learn(self, told: Told) -> None:
        past.learn(self.past, self.learning, record_of(told))
        self.twin.learn(told)

    def unlearn(self, told: Told) -> None:
        past.unlearn(self.past, self.learning, record_of(told))
        self.twin.unlearn(told)

    def uses(self, kind: int, name: int, now_ns: int) -> int | None:
        """How often a name was used; None: no room."""
        forget_days = self.learning["forget_days"]
        entry = past.find(self.past, np.int64(kind), np.int64(name), np.int64(now_ns), forget_days)
        if entry >= 0:
            return int(past.uses(self.past, entry))
        return {past.NOT_KNOWN: 0, past.NO_ROOM: None}[int(entry)]

    def known(self) -> list[int]:
        return [int(past.known(self.past, np.int64(kind))) for kind in KINDS]

    def check_against_twin(self) -> None:
        assert self.past["calls"] == self.twin.calls
        assert self.past["born_ns"] == (self.twin.born_ns or 0)
        assert self.past["total"] == self.twin.total()
        assert self.past["tools"] == len(self.twin.names[naive.TOOLS])
        shaped = int(self.past["shaped"]) & ((1 << 64) - 1)
        assert shaped.bit_count() == len(self.twin.shaped)
        assert self.known() == [len(names) for names in self.twin.names]


def random_call(pick: random.Random, now_ns: int, names: int) -> Told:
    """A call that uses `names` different names of each kind, hashes as wide as real ones."""

    def name() -> int:
        return (pick.randrange(1, names + 1) * 0x9E3779B97F4A7C15) % (1 << 63)

    return Told(
        now_ns,
        tool=pick.choice((0, name(), name(), name())),
        names=pick.choice((None, name())),
        destinations=tuple(name() for _ in range(pick.choice((0, 0, 1, 2, DESTINATIONS_MAX)))),
        program=pick.choice((0, 0, name())),
    )


@pytest.mark.parametrize("names", [5, 70, 200])
@pytest.mark.parametrize("seed", range(scaled(8)))
def test_past_equals_dicts(seed: int, names: int) -> None:
    """
    Scenario: calls with few, many and too many names, over days and weeks, some late, some
    handed over to another agent afterwards.
    Guarantees: every name and count, what is forgotten and what finds no room are as in dicts.
    """
    pick, now_ns = random.Random(seed), NOON_NS
    learned: list[Told] = []
    agent = Agent(samples=20, age_ns=3600 * SECOND_NS, forget_days=pick.choice((1, 7, 28)))
    for _ in range(scaled(400)):
        now_ns += pick.choices((0, SECOND_NS, DAY_NS // 3, 9 * DAY_NS), (8, 8, 2, 0.1))[0]
        call = random_call(pick, now_ns - pick.choice((0, 0, 0, DAY_NS)), names)
        if learned and pick.random() < 0.2:
            agent.unlearn(learned.pop(pick.randrange(len(learned))))
        else:
            agent.learn(call)
            learned.append(call)
        agent.check_against_twin()
        for kind, name in naive._names(call):
            assert agent.uses(kind, name, call.time_ns) == agent.twin.find(kind, name, call.time_ns)
        cold = past.is_cold(agent.past, agent.learning, np.int64(call.time_ns))
        assert cold == agent.twin.is_cold(call.time_ns)


def test_counts_are_halved_not_capped() -> None:
    """
    Scenario: an agent uses one tool 16 000 times and another 100 times; then the second for good.
    Guarantees: the counts are those of the twin; the new habit outweighs the old one in the end;
    what was used once stays known.
    """
    agent = Agent()
    agent.learn(Told(NOON_NS, tool=3))
    agent.past["entry"][past.find(agent.past, past.TOOLS, np.int64(3), NOON_NS, 28)] += 15_999
    agent.past["total"] += 15_999
    agent.twin.names[naive.TOOLS][3][0] += 15_999
    agent.learn(Told(NOON_NS, tool=4))
    for _ in range(20_000 // 50):
        for _ in range(50):
            agent.learn(Told(NOON_NS, tool=5))
        agent.check_against_twin()
    uses = [agent.uses(naive.TOOLS, name, NOON_NS) for name in (3, 4, 5)]
    assert uses == [agent.twin.find(naive.TOOLS, name, NOON_NS) for name in (3, 4, 5)]
    assert uses[0] is not None
    assert uses[2] is not None
    assert uses[0] < uses[2]
    assert uses[1] == 1
    assert agent.past["total"] < past.TOTAL_MAX


def test_a_flood_of_names_evicts_none() -> None:
    """
    Scenario: an agent with ten of everything meets ten thousand new names of each kind.
    Guarantees: the ten are known with their counts; the regions are full and say so.
    """
    agent = Agent()
    old = [Told(NOON_NS, n, n * 3, (n, n + 50), n) for n in range(1000, 11_000, 1000)]
    for call in old * 3:
        agent.learn(call)
    for n in range(20_000, 20_000 + scaled(10_000)):
        call = Told(NOON_NS, n << 20, n << 31, (n << 22,), n << 23)
        past.learn(agent.past, agent.learning, record_of(call))
    assert agent.known() == list(past.SIZES)
    for call in old:
        for kind, name in naive._names(call):
            assert agent.uses(kind, name, NOON_NS) == 3
    assert [agent.uses(kind, 7 << 40, NOON_NS) for kind in KINDS] == [None] * 4


@pytest.mark.parametrize("forget_days", [1, 28])
def test_what_is_unused_for_weeks_is_new_again(forget_days: int) -> None:
    """
    Scenario: a full region, of which half goes on being used; days pass; new names come.
    Guarantees: to the day: the unused ones are unknown and make room; the used ones stay.
    """
    agent, size = Agent(forget_days=forget_days), past.SIZES[naive.TOOLS]
    for name in range(1, size + 1):
        agent.learn(Told(NOON_NS, tool=name << 26))
    for day in range(forget_days + 2):
        now_ns = NOON_NS + day * DAY_NS
        for name in range(2, size + 1, 2):
            agent.learn(Told(now_ns, tool=name << 26))
        kept = agent.uses(naive.TOOLS, 1 << 26, now_ns)
        fresh = agent.uses(naive.TOOLS, 99 << 26, now_ns)
        assert (kept, fresh) == ((1, None) if day <= forget_days else (0, 0))
    for name in range(100, 100 + size):
        agent.learn(Told(now_ns, tool=name << 26))
    assert agent.past["tools"] == size
    assert all(agent.uses(naive.TOOLS, name << 26, now_ns) for name in range(2, size + 1, 2))


def test_argument_names_belong_to_their_tool() -> None:
    """
    Scenario: a tool of the name of its only argument, another such one, and both crosswise.
    Guarantees: four different sets of names.
    """
    agent = Agent()
    for tool, names in ((5, 5), (6, 6), (5, 6), (6, 5)):
        agent.learn(Told(NOON_NS, tool=tool, names=names))
    assert agent.known()[naive.SHAPES] == 4


def test_a_late_call_revives_nothing() -> None:
    """
    Scenario: a name is forgotten; then a call arrives that is dated to when it was still known.
    Guarantees: it stays forgotten, and days do not go back.
    """
    agent = Agent(forget_days=2)
    agent.learn(Told(NOON_NS, tool=7))
    agent.learn(Told(NOON_NS + 3 * DAY_NS, tool=8))
    assert agent.uses(naive.TOOLS, 7, NOON_NS) == 0
    assert agent.uses(naive.TOOLS, 8, NOON_NS) == 1
    assert agent.past["day"] == NOON_NS // DAY_NS + 3


def test_cold_needs_samples_and_time() -> None:
    """
    Scenario: 50 calls in a minute; 49 over two hours; 50 over an hour.
    Guarantees: only the last is warm, from the hour on.
    """
    hour_ns = 3600 * SECOND_NS
    for count, step_ns, cold in ((50, SECOND_NS, True), (49, 2 * hour_ns // 48, True)):
        agent = Agent(50, hour_ns)
        for i in range(count):
            agent.learn(Told(NOON_NS + i * step_ns, tool=1))
        assert past.is_cold(agent.past, agent.learning, NOON_NS + count * step_ns) is cold
    agent = Agent(50, hour_ns)
    for _ in range(50):
        agent.learn(Told(NOON_NS, tool=1))
    assert past.is_cold(agent.past, agent.learning, NOON_NS + hour_ns - 1)
    assert not past.is_cold(agent.past, agent.learning, NOON_NS + hour_ns)
    assert past.is_cold(np.zeros(1, past.PAST)[0], Agent().learning, NOON_NS)


@pytest.mark.parametrize("seed", range(scaled(5)))
def test_what_was_learned_can_be_taken_back(seed: int) -> None:
    """
    Scenario: calls of another are learned between an agent's own, and all taken back.
    Guarantees: names, counts and sums are those of the agent that never had them; one that had
    nothing else is as never seen.
    """
    pick = random.Random(seed)
    own = [random_call(pick, NOON_NS, 8) for _ in range(30)]
    foreign = [random_call(pick, NOON_NS, 12) for _ in range(30)]
    alone, mixed, emptied = Agent(), Agent(), Agent()
    for one, other in zip(own, foreign, strict=True):
        alone.learn(one)
        mixed.learn(one)
        mixed.learn(other)
        emptied.learn(other)
    for call in pick.sample(foreign, 30):
        mixed.unlearn(call)
        emptied.unlearn(call)
    assert mixed.known() == alone.known()
    assert [mixed.past[name] for name in ("calls", "total", "tools", "born_ns")] == [
        alone.past[name] for name in ("calls", "total", "tools", "born_ns")
    ]
    for call in own + foreign:
        for kind, name in naive._names(call):
            assert mixed.uses(kind, name, NOON_NS) == alone.uses(kind, name, NOON_NS)
    assert emptied.known() == [0] * 4
    assert [emptied.past[name] for name in ("calls", "total", "tools", "born_ns")] == [0] * 4
    emptied.unlearn(own[0])
    emptied.check_against_twin()


wide = st.integers(-(1 << 63), (1 << 63) - 1)


@settings(max_examples=scaled(60), deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.integers(1, (1 << 63) - 1), wide, wide, wide, wide, st.booleans()), max_size=25
    ),
    forget_days=st.integers(1, 3650),
)
def test_any_calls_leave_a_sound_past(calls: list[tuple[Any, ...]], forget_days: int) -> None:
    """
    Scenario: any hashes, at any times a clock can show, in any order, learned or taken back.
    Guarantees: no count below 0; the sums are those of the entries; nothing outside the regions.
    """
    agent = Agent(forget_days=forget_days)
    for time_ns, tool, names, destination, program, back in calls:
        call = np.zeros(1, CALL)[0]
        call["time_ns"], call["tool"], call["names"], call["program"] = (
            time_ns,
            tool,
            names,
            program,
        )
        call["has_arguments"], call["destinations"] = names & 1, 1
        call["destination"][0] = destination
        (past.unlearn if back else past.learn)(agent.past, agent.learning, call)
        counts = agent.past["entry"][: past.SIZES[0]] & past.COUNT_MAX
        assert agent.past["total"] == counts.sum()
        assert agent.past["tools"] == np.count_nonzero(counts) == agent.known()[0]
        assert 0 <= agent.past["calls"] <= len(calls)


def test_two_kilobytes_an_agent() -> None:
    """
    Scenario: the size of the record.
    Guarantees: it takes at most 2.1 KB of an agent's row, all of it in one piece.
    """
    assert past.PAST.itemsize <= 2100
    assert sum(past.SIZES) == past.ENTRIES
