"""Episodes: each starts once and ends once, and says what a plain recount says."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from otel_anomaly import episodes
from otel_anomaly.config import SECOND_NS
from otel_anomaly.detectors.finding import ACTIONS
from tests.book_rigs import HOLD_NS, LOW_LIMITS, BookRig, at, steps
from tests.naive_episodes import NaiveRate
from tests.sizes import scaled
from tests.traffic import Agent

if TYPE_CHECKING:
    from otel_anomaly.handoff import EpisodeEvent


def flood(rig: BookRig, agent: Agent, count: int, start_s: float = 0.0) -> list[EpisodeEvent]:
    """`count` calls, each a request of its own, ten a second."""
    return [event for i in range(count) for event in rig.send(agent.call(at(start_s + i / 10)))]


def test_an_episode_from_start_to_end() -> None:
    """
    Scenario: a session makes nine calls in a second, the third of which is over `warn` and the
    sixth over `block`; then it is silent.
    Guarantees: start, escalate, end, all under one id; start and escalate say what was seen at
    their call, the end says the peak, the last sign, the strongest action and how many calls.
    """
    rig = BookRig()
    agent = Agent("support", session="s-1", user="u-1", tenant="t-1")
    flood(rig, agent, 9)
    rig.end_all()
    start, escalate, end = rig.events
    assert steps(rig.events) == ["start", "escalate", "end"]
    assert len({event.episode for event in rig.events}) == 1
    assert [event.action for event in rig.events] == ["warn", "block", "block"]
    assert [event.time_ns for event in rig.events] == [at(0.2), at(0.5), at(0.8)]
    assert {event.start_ns for event in rig.events} == {at(0.2)}
    assert [event.observed for event in rig.events] == [3, 6, 9]
    assert [event.limit for event in rig.events] == [3, 6, 6]
    assert [event.count for event in rig.events] == [1, 4, 7]
    assert [event.score for event in rig.events] == [0.5, 1.0, 1.0]
    for event in rig.events:
        assert (event.tenant, event.agent, event.user) == ("t-1", "support", "u-1")
        assert (event.detector, event.entity, event.window_s) == ("rate", "session:s-1", 60)
    assert start.reason == "rate: 3 calls in 60 s, limit 3"
    assert (start.tool, start.trace_id) == ("lookup_order", agent.trace_id.hex())
    assert end.span_id == escalate.span_id != start.span_id
    assert len(rig.book) == 0


def test_the_kernel_ends_what_comes_back_later() -> None:
    """
    Scenario: a session is over the line, is silent for longer than `hold`, and calls again.
    Guarantees: the new call ends the old episode, as of its last sign, and starts none.
    """
    rig = BookRig()
    agent = Agent("a", session="s")
    flood(rig, agent, 3)
    (end,) = rig.send(agent.call(at(0.2) + HOLD_NS + 1))
    assert (end.step, end.time_ns, end.count) == ("end", at(0.2), 1)
    assert len(rig.book) == 0
    assert rig.end_all() == []


def test_an_end_and_a_start_in_one_call() -> None:
    """
    Scenario: `warn` is one call, so the call that ends an episode starts the next.
    Guarantees: the end is told before the start, under another id.
    """
    rig = BookRig(detectors=LOW_LIMITS | {"rate": {"warn": 1, "block": 0}})
    agent = Agent("a", session="s")
    flood(rig, agent, 1)
    end, start = rig.send(agent.call(at(0) + HOLD_NS + 1))
    assert (end.step, start.step) == ("end", "start")
    assert end.episode == rig.events[0].episode != start.episode
    assert len(rig.book) == 1


def test_a_tick_ends_what_is_silent() -> None:
    """
    Scenario: a session is over the line and is not heard of again; the service ticks.
    Guarantees: it is open until no sign came for `hold`, counted from the tick that first saw the
    last one, and then ends once, as of that sign; what comes later starts another.
    """
    rig = BookRig()
    agent = Agent("a", session="s")
    flood(rig, agent, 4)
    first_look = at(1)
    assert rig.tick(first_look) == []
    assert rig.tick(first_look + HOLD_NS) == []
    (end,) = rig.tick(first_look + HOLD_NS + 1)
    assert (end.step, end.time_ns, end.observed, end.count) == ("end", at(0.3), 4, 2)
    assert rig.tick(first_look + 2 * HOLD_NS) == []
    assert steps(flood(rig, agent, 1, start_s=1)) == ["start"]


def test_a_stream_that_is_held_up_is_one_episode() -> None:
    """
    Scenario: spans that are a year old come in steadily, far over the line, while the service
    ticks every second by its own clock.
    Guarantees: as long as they come there is one episode: silence is told by arrival.
    """
    rig = BookRig()
    agent = Agent("a", session="s")
    now_ns = at(365 * 24 * 3600)
    for second in range(90):
        rig.send(agent.call(at(second)), agent.call(at(second)))
        rig.tick(now_ns + second * SECOND_NS)
    assert steps(rig.events) == ["start", "escalate"]
    assert steps(rig.tick(now_ns + 89 * SECOND_NS + HOLD_NS + 1)) == ["end"]


ONE_SESSION = {"identity": {"limits": {"sessions": 1, "session_keep": "0s"}}}
"""One row for all sessions, and none is safe: every newcomer takes it."""
TWO_EPISODES = {"identity": {"limits": {"episodes": 2}}}


def test_a_session_that_is_forgotten() -> None:
    """
    Scenario: the row of a session with an open episode is given to others, one of them loud.
    Guarantees: its episode ends like any other when it has been quiet for `hold`, with its own
    peak and count; the loud one has an episode of its own.
    """
    rig = BookRig(**ONE_SESSION)
    flood(rig, Agent("a", session="old"), 4)
    events = flood(rig, Agent("a", session="new"), 3, start_s=1)
    assert [(event.step, event.entity) for event in events] == [("start", "session:new")]
    assert len(rig.book) == 2
    assert rig.tick(at(2)) == []
    ends = rig.tick(at(2) + HOLD_NS + 1)
    told = [(end.step, end.entity, end.observed, end.count) for end in ends]
    assert told == [("end", "session:old", 4, 2), ("end", "session:new", 3, 1)]


def test_a_session_that_is_forgotten_and_comes_back() -> None:
    """
    Scenario: a session loses its row while an episode is open, comes back, and is loud again.
    Guarantees: it counts from nothing; the old episode ends before the new one starts, under
    another id.
    """
    rig = BookRig(**ONE_SESSION)
    loud = Agent("a", session="loud")
    flood(rig, loud, 4)
    flood(rig, Agent("a", session="other"), 1, start_s=1)
    assert flood(rig, loud, 2, start_s=2) == []
    end, start = flood(rig, loud, 1, start_s=3)
    assert (end.step, end.observed, start.step, start.observed) == ("end", 3, "start", 3)
    assert end.episode != start.episode
    assert len(rig.book) == 1


def test_more_episodes_than_are_remembered() -> None:
    """
    Scenario: three sessions are loud, where two episodes are remembered, then the service stops.
    Guarantees: the third takes the place of the one open longest, which ends with what was last
    told of it, not with the numbers of the other; every start has its end.
    """
    rig = BookRig(**TWO_EPISODES)
    for number, calls in enumerate((5, 3, 4)):
        flood(rig, Agent("a", session=f"s-{number}"), calls, start_s=number)
    told = [(event.step, event.entity, event.observed) for event in rig.events]
    assert told == [
        ("start", "session:s-0", 3),
        ("start", "session:s-1", 3),
        ("end", "session:s-0", 3),
        ("start", "session:s-2", 3),
    ]
    ends = [(end.step, end.entity, end.observed) for end in rig.end_all()]
    assert sorted(ends) == [("end", "session:s-1", 3), ("end", "session:s-2", 4)]
    assert rig.processor.counts()["entities_evicted", ("episode",)] == 1


def test_a_row_that_went_to_another_detector() -> None:
    """
    Scenario: one episode is remembered. A session and its agent go over the line in the same
    call, so the episode of the one takes the row of the other, with the same start.
    Guarantees: the first ends at the next tick with what was told of it; the row is given back
    once: later episodes of two entities never share one.
    """
    shift = {"enabled": True, "min_calls_minute": 3, "min_calls_second": 3, "ceiling": 3}
    limits = {"identity": {"limits": {"episodes": 1}}}
    rig = BookRig(detectors=LOW_LIMITS | {"rate_shift": shift}, **limits)
    flood(rig, Agent("a", session="s"), 3)
    assert [event.detector for event in rig.events] == ["rate", "rate_shift"]
    assert [event.detector for event in rig.tick(at(1))] == ["rate"]
    assert [event.detector for event in rig.tick(at(1) + HOLD_NS + 1)] == ["rate_shift"]
    table = rig.processor.state.episodes
    assert (table.head["in_use"][0], table.rows["key"].tolist()) == (0, [0, 0])
    assert table.rows[1]["seen_ns"] == 0, "the free list ends behind its only row"


def test_forget() -> None:
    """
    Scenario: two episodes are open when the state is emptied; later the kernel ends one.
    Guarantees: each ends, once, without a look at the state.
    """
    rig = BookRig()
    for name in ("s-1", "s-2"):
        flood(rig, Agent("a", session=name), 3)
    ends = rig.book.forget()
    assert [(event.step, event.entity) for event in ends] == [
        ("end", "session:s-1"),
        ("end", "session:s-2"),
    ]
    assert {event.episode for event in ends} == {event.episode for event in rig.events}
    assert rig.book.forget() == rig.end_all() == []
    assert rig.send(Agent("a", session="s-1", seed=1).call(at(1) + HOLD_NS)) == []


def test_a_session_of_two_agents_is_one_episode() -> None:
    """
    Scenario: one agent of a session passes `warn`, another agent of the same session `block`.
    Guarantees: the escalation belongs to the episode that started, and names its own caller.
    """
    rig = BookRig()
    planner, worker = Agent("planner", session="s"), Agent("worker", session="s")
    flood(rig, planner, 3)
    flood(rig, worker, 3, start_s=1)
    rig.end_all()
    assert steps(rig.events) == ["start", "escalate", "end"]
    assert len({event.episode for event in rig.events}) == 1
    assert [event.agent for event in rig.events] == ["planner", "worker", "worker"]


def test_two_detectors_about_one_agent() -> None:
    """
    Scenario: one burst is over the line of `rate` and over the ceiling of `rate_shift`.
    Guarantees: each detector has an episode of its own, about its own entity.
    """
    shift = {"enabled": True, "min_calls_minute": 5, "min_calls_second": 5, "ceiling": 5}
    low = {"rate": {"warn": 3, "block": 0}, "rate_shift": shift}
    rig = BookRig(detectors=LOW_LIMITS | low)
    flood(rig, Agent("a", session="s"), 6)
    rig.end_all()
    told = [(event.detector, event.step, event.entity, event.action) for event in rig.events]
    assert told == [
        ("rate", "start", "session:s", "warn"),
        ("rate_shift", "start", "agent:a", "pause"),
        ("rate", "end", "session:s", "warn"),
        ("rate_shift", "end", "agent:a", "pause"),
    ]


def test_ids_are_the_same_in_every_run() -> None:
    """
    Scenario: the same stream under two secrets, and a stream that starts a nanosecond later.
    Guarantees: ids depend on detector, entity and start alone.
    """
    told = []
    for seed, later_ns in ((1, 0), (2, 0), (1, 1)):
        rig = BookRig(seed=seed)
        agent = Agent("a", session="s", tenant="t")
        for i in range(4):
            rig.send(agent.call(at(i) + later_ns))
        told.append(rig.events[0].episode)
    assert told[0] == told[1] != told[2]
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in told)


def test_ids_tell_who_from_whom() -> None:
    """
    Scenario: sessions of the same name in two tenants, with names that run into one another.
    Guarantees: no two of them share an id.
    """
    ids = set()
    for tenant, session in (("t", "s"), ("ts", "s"), ("t", "ss"), (None, "s"), ("", "s:1")):
        rig = BookRig()
        flood(rig, Agent("a", session=session, tenant=tenant), 3)
        ids.add(rig.events[0].episode)
    assert len(ids) == 5


def test_a_tick_looks_at_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: five silent episodes, and a tick that may look at two of them.
    Guarantees: no tick ends more than two, those open longest come first, and all get their turn.
    """
    monkeypatch.setattr(episodes, "LOOKED_AT_PER_TICK", 2)
    rig = BookRig()
    for i in range(5):
        flood(rig, Agent("a", session=f"s-{i}"), 3, start_s=i)
    for _ in range(3):
        assert rig.tick(at(10)) == []
    later = at(10) + HOLD_NS + 1
    ended = [[event.entity for event in rig.tick(later)] for _ in range(4)]
    assert sorted(map(len, ended)) == [0, 1, 2, 2]
    assert sorted(name for names in ended for name in names) == [f"session:s-{i}" for i in range(5)]


def test_a_tick_looks_at_the_longest_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: two silent episodes are all that a tick may look at; a third opens behind them.
    Guarantees: the third gets its turn although the two are still open, so it ends in its time.
    """
    monkeypatch.setattr(episodes, "LOOKED_AT_PER_TICK", 2)
    rig = BookRig()
    for name in ("first", "second"):
        flood(rig, Agent("a", session=name), 3)
    rig.tick(at(10))
    flood(rig, Agent("a", session="third"), 3, start_s=30)
    for _ in range(3):
        assert rig.tick(at(40)) == []
    ended = [event.entity for _ in range(2) for event in rig.tick(at(40) + HOLD_NS + 1)]
    assert sorted(ended) == ["session:first", "session:second", "session:third"]


@pytest.mark.parametrize("seed", range(6))
def test_every_start_has_one_end(seed: int) -> None:
    """
    Scenario: bursts of more sessions than there are rows, two agents in each, out of order by some
    seconds, with pauses, and ticks of a clock of its own in between.
    Guarantees: of each id there is one start, then only stronger actions, then one end; the end
    says no less than the steps before it; nothing stays open.
    """
    rng = random.Random(seed)
    limits = {"sessions": 3, "session_keep": "0s", "agents": 3, "agent_keep": "0s"}
    rig = BookRig(hold_ns=5 * SECOND_NS, identity={"limits": limits})
    agents = [Agent(f"a-{i % 2}", session=f"s-{i // 2}", seed=seed) for i in range(12)]
    now_s = 0.0
    for _ in range(scaled(300)):
        agent = rng.choice(agents[: rng.choice((2, 12))])
        rig.send(*(agent.call(at(now_s - rng.choice((0, 0, 3)))) for _ in range(rng.randint(1, 5))))
        now_s += rng.choice((0.1, 1, 1, 9))
        if rng.random() < 0.3:
            rig.tick(at(now_s + 1000))
    assert "end" in steps(rig.events)
    rig.end_all()
    assert len(rig.book) == 0
    by_id: dict[str, list[EpisodeEvent]] = {}
    for event in rig.events:
        by_id.setdefault(event.episode, []).append(event)
    for told in by_id.values():
        assert steps(told) == ["start", *["escalate"] * (len(told) - 2), "end"]
        ranks = [ACTIONS.index(event.action) for event in told]
        assert ranks[:-1] == sorted(set(ranks[:-1]))
        assert ranks[-1] >= ranks[-2]
        assert told[-1].count >= told[-2].count
        assert told[-1].observed >= told[-2].observed


@pytest.mark.parametrize("seed", range(6))
def test_episodes_equal_a_plain_recount(seed: int) -> None:
    """
    Scenario: random calls of four sessions, in bursts and pauses, some late within the window, some
    too late for it, cut into requests at random.
    Guarantees: steps, times, actions, peaks, counts and scores are those of a twin that keeps every
    call in a list and counts anew each time.
    """
    rng = random.Random(seed)
    hold_s = rng.choice((2, 20, 60))
    window_s = rng.choice((5, 60))
    rate = {"warn": 4, "block": 9, "window": f"{window_s}s"}
    detectors = LOW_LIMITS | {"rate": rate}
    rig = BookRig(hold_ns=hold_s * SECOND_NS, detectors=detectors)
    twin = NaiveRate(warn=4, block=9, window_s=window_s, hold_s=hold_s)
    agents = [Agent("a", session=f"s-{i}", seed=seed) for i in range(4)]
    pending = []
    now_s = 0.0
    for _ in range(max(250, scaled(600))):
        agent = rng.choices(agents, (8, 4, 2, 1))[0]
        late_s = rng.choice((0, 0, 0, 0, 1.5, window_s + 2))
        pending.append(agent.call(at(now_s - late_s)))
        assert agent.session is not None
        twin.call(f"session:{agent.session}", at(now_s - late_s))
        now_s += rng.choice((0.05, 0.05, 0.05, 0.4, 3))
        if rng.random() < 0.2:
            rig.send(*pending)
            pending = []
    if pending:
        rig.send(*pending)
    rig.end_all()
    twin.end_all()
    told = [
        (
            e.step,
            e.entity,
            e.start_ns,
            e.time_ns,
            e.action,
            e.observed,
            e.count,
            e.score,
        )
        for e in rig.events
    ]
    assert told[: len(twin.events)] == twin.events[: len(told)]
    assert len(told) == len(twin.events)
    assert {"start", "end"} <= set(steps(rig.events))
