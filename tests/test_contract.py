"""What every detector keeps to, whatever it looks at. A new detector is under all of this at once.

The traffic must give each something to find: the first test says so when it does not.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.detectors.finding import ALLOW, JUDGED, PAUSE, SKIP_REASONS
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import AGENT
from tests import tool_traffic
from tests.habits import DAY, HOUR, NOON, WARM_S, calm, rig_of, text
from tests.rig import Calls, Rig, arrays_of
from tests.sizes import scaled
from tests.tool_traffic import Made, bodies, stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.rig import Told

SEEDS = range(scaled(3))
COUNT = 240
COLD = SKIP_REASONS.index("learning")
Signs = dict[str, dict[str, float]]


def make_rig(**sections: Any) -> Rig:
    """A service whose limits the traffic reaches."""
    return rig_of(tool_traffic.DETECTORS, identity=tool_traffic.IDENTITY, **sections)


def judged(rig: Rig, calls: Iterable[Made]) -> list[tuple[Told | None, Signs]]:
    """Each call in a request of its own: the verdict, and what each detector said."""
    judgements = []
    for call in calls:
        rig.send(call.body())
        judgements.append((rig.told[-1], rig.signs()))
    return judgements


def learned(rig: Rig) -> list[bytes]:
    """All that is remembered of agents, services, sessions and episodes, to the bit."""
    state = rig.state
    tables = (state.agents, state.services, state.sessions, state.episodes)
    return [array.tobytes() for table in tables for array in arrays_of(table)]


def test_every_detector_has_something_to_find() -> None:
    """
    Scenario: the traffic of all checks below.
    Guarantees: each detector finds something in some calls and nothing in others, and every action
    is asked for: none of the checks below is empty.
    """
    rig, calls = make_rig(), Calls()
    for seed in range(3):
        rig.send(bodies(stream(seed, COUNT, calls, (f"t{seed}",))))
    told = [call for call in rig.told if call is not None]
    found = {detector for call in told for detector, _ in call.findings}
    silent = {
        name
        for call in told
        for name, skipped in zip(DETECTORS, call.skipped, strict=True)
        if skipped == JUDGED and name not in dict(call.findings)
    }
    assert found == set(DETECTORS)
    assert silent == set(DETECTORS)
    assert {call.action for call in told} == {0, 1, 2, 3}


@pytest.mark.parametrize("seed", SEEDS)
def test_how_a_stream_is_cut_makes_no_difference(seed: int) -> None:
    """
    Scenario: a stream in one request, one request a call, and cut at random.
    Guarantees: the same verdicts, findings and episodes, and the same memory, to the bit.
    """
    calls, rng = stream(seed, COUNT, Calls()), random.Random(seed)
    cuts = sorted(rng.sample(range(1, COUNT), 12))
    whole, single, cut = make_rig(), make_rig(), make_rig()
    whole.send(bodies(calls))
    judged(single, calls)
    for start, end in zip([0, *cuts], [*cuts, COUNT], strict=True):
        cut.send(bodies(calls[start:end]))
    for other in (single, cut):
        assert other.told == whole.told
        assert learned(other) == learned(whole)


def mixed(rng: random.Random, ours: Sequence[Made], others: Sequence[Made]) -> list[Made]:
    """Both streams, each in its own order."""
    which = [True] * len(ours) + [False] * len(others)
    rng.shuffle(which)
    left, right = iter(ours), iter(others)
    return [next(left) if mine else next(right) for mine in which]


@pytest.mark.parametrize("seed", SEEDS)
def test_others_in_the_stream_make_no_difference(seed: int) -> None:
    """
    Scenario: a tenant's stream alone, and among the calls of tenants whose agents, sessions, users
    and services have the same names.
    Guarantees: every detector says the same of every call, to the last digit.
    """
    calls, rng = Calls(), random.Random(seed)
    ours = stream(seed, COUNT, calls, ("ours",))
    others = stream(seed + 100, COUNT, calls, ("theirs", None))
    alone = judged(make_rig(), ours)
    crowd = mixed(rng, ours, others)
    among = judged(make_rig(), crowd)
    mine = {call.span.span_id for call in ours}
    kept = [told for call, told in zip(crowd, among, strict=True) if call.span.span_id in mine]
    assert kept == alone


@pytest.mark.parametrize("seed", SEEDS)
def test_the_row_makes_no_difference(seed: int) -> None:
    """
    Scenario: a stream in an empty service, and in one where fifty strangers came first.
    Guarantees: every detector says the same of every call, wherever its entities lie.
    """
    calls = Calls()
    strangers = [
        Made(calls.at(NOON - DAY + i, agent=f"x{i}", session=f"y{i}", tenant=f"z{i % 7}"), f"w{i}")
        for i in range(50)
    ]
    ours = stream(seed, COUNT, calls)
    first, later = make_rig(), make_rig()
    expected = judged(first, ours)
    judged(later, strangers)
    assert judged(later, ours) == expected
    assert learned(later) != learned(first)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_call_delivered_twice_counts_once(seed: int) -> None:
    """
    Scenario: a stream, and the same with every call delivered again: at once, and some of it later.
    Guarantees: what is said of the first delivery is the same; the memory is the same to the bit;
    every copy is known as one, and starts no episode.
    """
    calls, rng = stream(seed, COUNT, Calls()), random.Random(seed)
    once, twice = make_rig(), make_rig()
    expected = judged(once, calls)
    first = []
    for i, call in enumerate(calls):
        first += judged(twice, [call])
        copies = [call, *rng.sample(calls[: i + 1], min(i, 2))]
        for copy, _ in judged(twice, copies):
            assert copy is not None
            assert copy.duplicate
            assert not copy.steps
    assert first == expected
    assert learned(twice) == learned(once)
    assert twice.counts("tool_calls") == COUNT


def refused(calls: Calls, start_s: float, count: int, rng: random.Random) -> list[Made]:
    """Calls that the list of hosts blocks, new in everything else as well."""
    spans = []
    for i in range(count):
        new = rng.randrange(10**6)
        arguments = text(
            url="https://evil.net",
            command=f"tool{new} now",
            path=f"/d{new}/e",
            to=f"x{new}@new.org",
        )
        span = calls.at(start_s + i, tool=rng.choice((f"t{new}", "bash")), arguments=arguments)
        spans.append(Made(span, "desk"))
    return spans


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_teaches_by_what_was_refused(seed: int) -> None:
    """
    Scenario: a known agent; then thirty calls that are all blocked, or nothing; two hours later,
    the same probing calls.
    Guarantees: every detector says the same of every probing call: what was refused left no trace
    in anything that is learned.
    """
    detectors = {"unknown_connection": {"allow": ["*.example.com"]}}
    rng, calls = random.Random(seed), Calls()
    past = [Made(span, "desk") for span in calm(calls)]
    attack = refused(calls, WARM_S, 30, rng)
    probes = [
        Made(
            calls.at(WARM_S + 2 * HOUR + 60 * i, tool=tool, arguments=arguments, agent=agent),
            "desk",
        )
        for i, (tool, arguments) in enumerate(
            (call_of(attack[0]), call_of(attack[-1]), ("db_query", text(url="/v1", page=1)))
        )
        for agent in ("a", "replica")
    ]
    calm_rig, attacked = rig_of(detectors), rig_of(detectors)
    for rig in (calm_rig, attacked):
        judged(rig, past)
    assert all(told is not None and told.action >= PAUSE for told, _ in judged(attacked, attack))
    assert said(judged(attacked, probes)) == said(judged(calm_rig, probes))


def said(judgements: list[tuple[Told | None, Signs]]) -> list[tuple[Told | None, Signs]]:
    """All but the steps of episodes: that one of the attack ends is no trace of it."""
    return [(told._replace(steps=()) if told else None, signs) for told, signs in judgements]


def call_of(made: Made) -> tuple[str, str]:
    """Tool and arguments of a call, its host replaced by one that is allowed."""
    said = {pair.key: pair.value.string_value for pair in made.span.attributes}
    arguments = said["gen_ai.tool.call.arguments"].replace("evil.net", "api.example.com")
    return said["gen_ai.tool.name"], arguments


@pytest.mark.parametrize("seed", SEEDS)
def test_who_cannot_judge_is_silent(seed: int) -> None:
    """
    Scenario: the traffic, and what every detector says of each call.
    Guarantees: one that gives a reason for not judging says nothing else: no score, no action.
    Scores lie in 0..1, and one of 0 asks for nothing.
    """
    for told, signs in judged(make_rig(), stream(seed, COUNT, Calls())):
        assert told is not None
        for name, sign in signs.items():
            assert 0.0 <= sign["score"] <= 1.0, name
            assert sign["score"] > 0 or sign["action"] == ALLOW, name
            assert sign["skipped"] == JUDGED or sign["score"] == 0, name
            assert sign["observed"] >= 0, name


def test_cold_is_silent() -> None:
    """
    Scenario: the first calls of a new agent of a new service: new tools, hosts, mail addresses,
    programs and names of arguments, at a human pace, on defaults.
    Guarantees: no detector says anything, and those that learn say that they are learning.
    """
    rig, calls = rig_of(), Calls()
    for i in range(49):
        arguments = text(
            **{f"n{i}": f"https://h{i}.com", "to": f"a@h{i}.org", "command": f"p{i} x"}
        )
        tool = ("bash", f"t{i}")[i % 2]
        (told, signs) = judged(
            rig, [Made(calls.at(NOON + 90 * i, tool=tool, arguments=arguments), "x")]
        )[0]
        assert told is not None
        assert told.learning
        assert not any(sign["score"] for sign in signs.values())
        learning = {name for name, sign in signs.items() if sign["skipped"] == COLD}
        assert {"novelty", "frequency", "new_destination", "risk"} <= learning


def test_memory_is_bounded() -> None:
    """
    Scenario: traffic of many seeds, of ever new tenants, through a small service.
    Guarantees: not a byte more is held than when it began, and no agent's record exceeds 4 KiB.
    """
    limits = dict.fromkeys(("agents", "sessions", "services", "traces", "episodes", "labels"), 16)
    rig = make_rig(limits=limits)
    before = [array.nbytes for array in arrays_of(rig.state)]
    calls = Calls()
    for seed in range(scaled(20)):
        rig.send(bodies(stream(seed, COUNT // 2, calls, (f"t{seed}", f"u{seed}"))))
    assert [array.nbytes for array in arrays_of(rig.state)] == before
    assert AGENT.itemsize <= 4096
