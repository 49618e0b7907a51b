"""The ledger of bodies under way: bounded in sum, and who has to go when it is full."""

from __future__ import annotations

import contextlib
import random
from typing import Any, cast

import pytest

from otel_anomaly.handoff import Outcome
from otel_anomaly.receivers import unfinished
from otel_anomaly.receivers.unfinished import (
    BODIES_HELD_MAX,
    CHANCE_S,
    Body,
    Refused,
    Unfinished,
)


class Deadline:
    """Remembers that it was made to fire."""

    def __init__(self) -> None:
        self.fired = False

    def expired(self) -> bool:
        return self.fired

    def reschedule(self, _when: float) -> None:
        self.fired = True


def begin(bodies: Unfinished, client: str, now_s: float) -> Body:
    return bodies.begin(client, cast("Any", Deadline()), now_s)


def was_sent_away(body: Body) -> bool:
    return body.deadline.expired()


def test_the_oldest_of_the_heaviest_goes() -> None:
    """
    Scenario: a client holds three bodies, another one small; a third needs room, early and late.
    Guarantees: while nobody is old enough the newcomer is asked to come again; later the oldest of
    the heaviest goes, and no other.
    """
    bodies = Unfinished(100)
    heavy = [begin(bodies, "heavy", now_s) for now_s in (0.0, 0.1, 0.2)]
    for body in heavy:
        bodies.grow(body, 100, 0.3)
    light = begin(bodies, "light", 0.0)
    bodies.grow(light, 50, 0.3)
    newcomer = begin(bodies, "new", 0.3)
    with pytest.raises(Refused) as caught:
        bodies.grow(newcomer, 60, 0.4)
    assert caught.value.reply.outcome is Outcome.MEMORY
    bodies.grow(newcomer, 60, CHANCE_S + 0.1)
    assert [was_sent_away(body) for body in (*heavy, light, newcomer)] == [True] + [False] * 4
    assert heavy[0].verdict is not None
    assert bodies.held == 310


def test_who_is_the_heaviest_itself_is_refused() -> None:
    """
    Scenario: the oldest body of the heaviest client is the one that grows.
    Guarantees: it is refused; nobody else goes for it.
    """
    bodies = Unfinished(100)
    greedy, other = begin(bodies, "greedy", 0.0), begin(bodies, "other", 0.0)
    bodies.grow(other, 150, 0.0)
    bodies.grow(greedy, 240, 0.0)
    with pytest.raises(Refused):
        bodies.grow(greedy, 20, 100.0)
    assert not was_sent_away(other)


def test_clients_share_the_number_of_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: room for sixteen slow bodies; one client has fourteen, another two; then two more
    clients come with two each, and others whose bodies have just begun.
    Guarantees: nobody goes while there is room, however many one client has; then only newest ones
    of the one with most, and no more bodies than there is room for are left beside the young ones.
    """
    monkeypatch.setattr(unfinished, "BODIES_MAX", 16)
    bodies = Unfinished(100)
    many = [begin(bodies, "many", 0.0) for _ in range(14)]
    few = [begin(bodies, "few", 0.0) for _ in range(2)]
    assert bodies.thin_out(1.0) == 0
    few += [begin(bodies, client, 0.5) for client in ("other", "third") * 2]
    young = [begin(bodies, "many", 1.0) for _ in range(5)]
    assert bodies.thin_out(1.0) == 6
    assert [was_sent_away(body) for body in many] == [False] * 8 + [True] * 6
    assert not any(was_sent_away(body) for body in (*few, *young))
    assert many[-1].verdict is not None
    assert many[-1].verdict.outcome is Outcome.MEMORY
    assert bodies.thin_out(1.0) == 0


def test_more_clients_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: room for four slow bodies; ten clients with two each, one of them being inflated.
    Guarantees: each keeps its first, and the one that is here already is not sent away.
    """
    monkeypatch.setattr(unfinished, "BODIES_MAX", 4)
    bodies = Unfinished(100)
    found = [begin(bodies, str(n // 2), 0.0) for n in range(20)]
    found[1].is_whole = True
    assert bodies.thin_out(1.0) == 9
    assert [was_sent_away(body) for body in found] == [False, False, *[False, True] * 9]


def test_weight_that_others_tell_is_relieved() -> None:
    """
    Scenario: eight bodies are told to weigh a limit each.
    Guarantees: as many go as are too many, the oldest first, however young they are.
    """
    bodies = Unfinished(100)
    all_of_them = [begin(bodies, "one", i / 1000) for i in range(8)]
    for body in all_of_them:
        bodies.weigh(body, 100)
    bodies.relieve(0.01)
    assert [was_sent_away(body) for body in all_of_them] == [True] * 4 + [False] * 4
    assert bodies.held == bodies.bytes_max


def test_stopping_sends_all_away() -> None:
    """
    Scenario: the service stops with two bodies under way.
    Guarantees: both go as `stopping`; none begins any more; nothing is held.
    """
    bodies = Unfinished(100)
    two = [begin(bodies, name, 0.0) for name in "ab"]
    for body in two:
        bodies.grow(body, 10, 0.0)
    bodies.stop()
    assert [body.verdict.outcome for body in two if body.verdict] == [Outcome.STOPPING] * 2
    assert bodies.held == 0
    with pytest.raises(Refused):
        begin(bodies, "c", 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_is_the_sum(seed: int) -> None:
    """
    Scenario: clients begin, grow, finish and are sent away in any order.
    Guarantees: at every step what is held is the sum of the bodies and within the bound; at the
    end nothing is.
    """
    rng, bodies, alive, now_s = random.Random(seed), Unfinished(1000), list[Body](), 0.0
    for _ in range(500):
        now_s += rng.random()
        if rng.random() < 0.3:
            alive.append(begin(bodies, rng.choice("abc"), now_s))
        elif alive:
            body = rng.choice(alive)
            ends = was_sent_away(body) or rng.random() < 0.2
            with contextlib.suppress(Refused):
                bodies.grow(body, 0 if ends else rng.randrange(1000), now_s)
            if ends:
                bodies.end(body)
                alive.remove(body)
        assert bodies.held == sum(body.bytes for body in alive)
        assert 0 <= bodies.held <= BODIES_HELD_MAX * 1000
    for body in alive:
        bodies.end(body)
    assert (bodies.held, len(bodies)) == (0, 0)
