"""A state in other capacities: what fits is as it was, and what does not is the least recent."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import Config
from otel_anomaly.correction import entry_of
from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.entities.links import find_link, find_or_make_link, make_links
from otel_anomaly.entities.packing import (
    PROBES_MAX,
    NotHashes,
    keep_links,
    keep_table,
    restore_links,
    restore_table,
)
from otel_anomaly.entities.table import find, release, sweep
from otel_anomaly.resizing import keep, make_state, resize, restore
from otel_anomaly.snapshot import copied
from otel_anomaly.soundness import make_sound
from tests.book_rigs import LOW_LIMITS, BookRig, at
from tests.fleet_traffic import Fleet
from tests.judge_rigs import KEEN
from tests.rig import ROOMY, Calls, Rig
from tests.sizes import scaled
from tests.test_table import IDLE_NS, head, small_table, touch
from tests.traffic import START_NS, Agent

START_S = START_NS // SECOND_NS
TABLES = ("traces", "names", "agents", "services", "sessions", "labels", "episodes")


def with_limits(rig: Rig, **limits: int) -> Config:
    """The configuration of a rig with other capacities."""
    found = rig.config.identity.limits.model_copy(update=limits)
    identity = rig.config.identity.model_copy(update={"limits": found})
    return rig.config.model_copy(update={"identity": identity})


def hash_like(number: int) -> int:
    """A number spread over all 64 bits, as keys are."""
    return int(np.int64(random.Random(number).getrandbits(63) | 1))


def check_sound(table: Any) -> None:
    """Every row in use is found by its key, and every other is free or was never used."""
    used = head(table, "used")
    keys = table.rows["key"][1 : used + 1].tolist()
    for row, key in enumerate(keys, start=1):
        assert key == 0 or find(table, np.int64(key)) == row
    assert head(table, "in_use") == np.count_nonzero(keys) == np.count_nonzero(table.slots)
    free, row = [], head(table, "free")
    while row != 0:
        free.append(row)
        row = int(table.rows[row]["seen_ns"])
    assert sorted(free) == [row for row, key in enumerate(keys, start=1) if key == 0]


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_a_table_that_moves_is_the_same_table(seed: int) -> None:
    """
    Scenario: a table with old and new keys, given back rows and sweeps; at a random moment it is
    put into one of the same capacity or a larger one, and both go on.
    Guarantees: same answers from then on, as long as neither is full; the same rows even then,
    where the capacity is the same.
    """
    rng = random.Random(seed)
    capacity = rng.choice((1, 2, 7, 20))
    more = rng.choice((0, 0, 13))
    table = small_table(capacity, sample=rng.choice((1, 4)))
    now_ns = 0
    moved = None
    for number in range(300):
        now_ns += rng.randrange(20)
        if number == 150:
            empty = small_table(capacity + more, sample=head(table, "sample"))
            moved = restore_table(keep_table(table), empty)
            check_sound(moved)
        key = hash_like(rng.randrange(2 * capacity))
        both = [table] if moved is None else [table, moved]
        if rng.random() < 0.1:
            freed = [int(sweep(each, np.int64(now_ns), np.int64(3))) for each in both]
            assert len(set(freed)) == 1 or more
        elif rng.random() < 0.1:
            for each in both:
                row = int(find(each, np.int64(key)))
                if row:
                    release(each, np.int64(row))
        else:
            rows = [touch(each, key, now_ns) for each in both]
            assert len(set(rows)) == 1 or more
    assert moved is not None
    check_sound(moved)
    if not more:
        for one, other in zip(table[:1] + table[2:3], moved[:1] + moved[2:3], strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_smaller_table_keeps_who_was_seen_last() -> None:
    """
    Scenario: ten keys, seen in another order than they came, one given back; put into a table for
    four.
    Guarantees: the four seen last are there with their state and the others are not; these are
    counted as evicted; the next newcomer takes the place of whoever stands first in the old order.
    """
    table = small_table(10, sample=1)
    order = [3, 9, 1, 7, 5, 2, 8, 0, 6, 4]
    for number in range(10):
        touch(table, hash_like(number), 1)
    for now_ns, number in enumerate(order, start=2):
        touch(table, hash_like(number), now_ns)
    release(table, np.int64(find(table, np.int64(hash_like(6)))))
    small = restore_table(keep_table(table), small_table(4, sample=1))
    check_sound(small)
    left = [number for number in range(10) if find(small, np.int64(hash_like(number)))]
    assert left == [0, 2, 4, 8]
    assert head(small, "evicted") == 5
    assert [int(small.rows[row]["state"]) for row in range(1, 5)] == [2] * 4
    touch(small, hash_like(99), 12 + IDLE_NS)
    assert find(small, np.int64(hash_like(0))) == 0


@pytest.mark.parametrize("homes", [1, 40])
def test_keys_that_are_no_hashes_are_refused(homes: int) -> None:
    """
    Scenario: as many keys with one home, or some homes side by side, as would make every look-up of
    them a walk.
    Guarantees: refused, before the time is spent to put them there.
    """
    count = PROBES_MAX + 8
    rows = np.zeros(count + 1, small_table(1).rows.dtype)
    numbers = np.arange(1, rows.size)
    rows["key"][1:] = (numbers % homes) << 32 | numbers
    kept, empty = keep_table(small_table(count))._replace(rows=rows), small_table(count)
    with pytest.raises(NotHashes, match=f"{count} keys are [0-9]+ places from their own"):
        restore_table(kept, empty)
    assert not empty.slots.any()


def test_keys_that_lie_behind_one_another_have_no_place() -> None:
    """
    Scenario: the last keys of a table, all at home in its last slot, go round its end, where every
    slot is taken.
    Guarantees: refused, after a bounded number of steps.
    """
    count = 3 * PROBES_MAX
    rows = np.zeros(count + 1, small_table(1).rows.dtype)
    empty = small_table(count)
    numbers = np.arange(1, rows.size)
    last = int(empty.head["mask"][0])
    rows["key"][1:] = np.where(numbers > 9, numbers - 10, last) << 32 | numbers
    with pytest.raises(NotHashes, match="have no place within"):
        restore_table(keep_table(empty)._replace(rows=rows), small_table(count))


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_links_that_move_are_the_same_links(seed: int) -> None:
    """
    Scenario: up to twice the capacity of spans and more, some asked for again; then put into
    another capacity.
    Guarantees: the last ones are known, as many as before where there is room and at least the new
    capacity; nothing else is; and it goes on so.
    """
    rng = random.Random(seed)
    capacity, wanted = rng.choice((1, 3, 8, 50)), rng.choice((1, 3, 8, 50, 200))
    links = make_links(capacity)
    made = rng.randrange(4 * capacity)
    for number in range(made):
        place = find_or_make_link(links, np.int64(hash_like(number)))
        links.spans[place]["event"] = number
    known = {n for n in range(made) if find_link(links, np.int64(hash_like(n))) >= 0}
    moved = restore_links(keep_links(links), make_links(wanted))
    last = set(sorted(known)[-2 * wanted :])
    for number in range(made):
        place = int(find_link(moved, np.int64(hash_like(number))))
        assert (place >= 0) == (number in last)
        assert place < 0 or moved.spans[place]["event"] == number
    for number in range(made, made + 5 * wanted):
        find_or_make_link(moved, np.int64(hash_like(number)))
        newest = range(max(made, number - wanted + 1), number + 1)
        assert all(find_link(moved, np.int64(hash_like(n))) >= 0 for n in newest)


@pytest.mark.parametrize("by", ["resize", "restore"])
@pytest.mark.parametrize("seed", range(scaled(12)))
def test_what_is_said_does_not_change(seed: int, by: str) -> None:
    """
    Scenario: a fleet at work; between two requests everything is put into capacities that are
    larger, the same or just enough, once or several times.
    Guarantees: all that is said of every call, and who made it, is what it would have been.
    """
    fleet, rng = Fleet(seed), random.Random(seed)
    still, moving = Rig(**KEEN), Rig(**KEEN)
    for received_ns, signal, body in fleet.deliveries(40):
        for rig in (still, moving):
            rig.offer(body, received_ns, signal)
        assert moving.told == still.told
        assert moving.callers == still.callers
        if rng.random() < 0.1:
            limits = {name: rng.choice((1, 2, 3)) * count for name, count in ROOMY.items()}
            config = with_limits(moving, **limits)
            state = moving.state
            if by == "restore":
                labels, counters = state.labels, state.counters
                moved = restore(keep(state), config)
                moving.processor.state = moved._replace(labels=labels, counters=counters)
            else:
                moving.processor.state = resize(state, config)
    assert moving.processor.counts() == still.processor.counts()


@pytest.mark.parametrize("made", [0, 1, 3, 4, 5, 9, 40])
@pytest.mark.parametrize("wanted", [1, 3, 4, 5, 16])
def test_the_journal_keeps_the_last_calls(made: int, wanted: int) -> None:
    """
    Scenario: a journal for four calls, written so often, put into other sizes; a further call; all
    of that once more.
    Guarantees: the last calls are found under their serial numbers, as many as both sizes hold; no
    number that a trace remembers leads anywhere else, and one that fell out stays out. A snapshot
    of it is not refused.
    """
    rig, calls = Rig(limits={"moves": 4}), Calls()
    rig.send(calls.many(made, START_S))
    held = min(made, 4)
    for size in (wanted, 4):
        config = with_limits(rig, moves=size)
        held = min(held, size)
        rig.processor.state = resize(rig.state, config)
        make_sound(copied(keep(rig.state)), 1)
        held = _check_journal(rig, calls, made, held, size)
        made += 1


def _check_journal(rig: Rig, calls: Calls, made: int, held: int, size: int) -> int:
    """One more call, then all traces are asked for theirs. Returns how many are held."""
    rig.send([calls.at(START_S)])
    held = min(held + 1, size)
    state = rig.state
    make_sound(copied(keep(state)), 1)
    lasts = state.traces.rows["last"][1 : made + 2].tolist()
    assert len(set(lasts)) == made + 1
    for number, serial in enumerate(lasts):
        place = int(entry_of(state, np.int64(serial)))
        assert (place >= 0) == (number >= made + 1 - held)
        assert place < 0 or state.journal[place]["serial"] == serial
    return held


def test_what_an_earlier_configuration_left() -> None:
    """
    Scenario: calls under an override and a window of a minute; then no override and ten seconds.
    Guarantees: calls of the override go by the base; what is older than the window is not counted
    any more, what is younger is; the labels of names are gone.
    """
    override = {"tool": "t", "detectors": {"rate": {"warn": 5}}}
    rig, calls = Rig(policy={"overrides": [override]}), Calls()
    rig.send([*calls.many(3, START_S), *calls.many(4, START_S + 30)])
    assert rig.state.journal["plan"].max() == 1
    assert rig.state.labels.head["in_use"][0] > 0
    other = Rig(rate={"window": "10s"})
    state = resize(rig.state, other.config)
    assert state.journal["plan"].max() == 0
    assert state.labels.head["in_use"][0] == 0
    assert state.sessions.rows["rate"]["total"].max() == 4
    other.processor.state = state
    other.send([calls.at(START_S + 31)])
    assert other.sign("rate")["observed"] == 5


def test_idle_rules_are_the_new_ones() -> None:
    """
    Scenario: only the idle and keep times change.
    Guarantees: they are the new ones; every array but the heads is taken over as it is.
    """
    rig, calls = Rig(), Calls()
    rig.send(calls.many(3, START_S))
    other = Rig(limits={"session_idle": "7s", "session_keep": "3s"})
    state = resize(rig.state, other.config)
    assert state.sessions.head["idle_ns"][0] == 7 * SECOND_NS
    assert state.sessions.head["keep_ns"][0] == 3 * SECOND_NS
    for name in TABLES:
        if name != "labels":
            assert getattr(state, name).rows is getattr(rig.state, name).rows
    assert make_state(other.config).sessions.head["idle_ns"] == 7 * SECOND_NS


def test_open_episodes_follow_their_records() -> None:
    """
    Scenario: three sessions over the line; room for fewer episodes, then for more again.
    Guarantees: those whose records are gone end, once; the last one goes on under its name, and
    ends with its own count.
    """
    rig = BookRig(identity={"limits": ROOMY})
    fleet = [Agent("support", session=f"s-{number}", seed=number) for number in range(3)]
    for agent in fleet:
        for second in range(4):
            rig.send(agent.call(at(second)))
    assert len(rig.book) == 3
    gone: list[str] = []
    for episodes in (1, 1, 9):
        limits = {"limits": {**ROOMY, "episodes": episodes}}
        config = Config.model_validate({"detectors": LOW_LIMITS, "identity": limits})
        rig.processor.state = resize(rig.processor.state, config)
        gone += [event.entity for event in rig.book.follow(rig.processor.state)]
        assert len(rig.book) == 1
    assert gone == ["session:s-0", "session:s-1"]
    rig.send(fleet[2].call(at(5)))
    (last,) = rig.end_all()
    assert (last.entity, last.count) == ("session:s-2", 3)
    ends = [event.entity for event in rig.events if event.step == "end"]
    assert ends == ["session:s-2"]
