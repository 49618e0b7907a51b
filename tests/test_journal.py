"""The journal of calls: a ring that is found in by serial number, without a division."""

from __future__ import annotations

import numpy as np
import pytest

from otel_anomaly.correction import _next_entry, entry_of
from otel_anomaly.kernels import Int, kernel
from otel_anomaly.state import ENTRY, State
from tests.rig import Rig
from tests.traffic import START_NS, tool_span


@kernel
def _note(state: State, serial: Int) -> Int:
    """As `note_entry` takes a place. Returns where the call of another serial number lies."""
    place = _next_entry(state)
    state.journal[place]["serial"] = state.watermark[1]
    return entry_of(state, serial)


def journal_of(size: int) -> State:
    """A state with room for so many calls."""
    state = Rig().state
    return state._replace(journal=np.zeros(size, ENTRY), watermark=np.zeros(4, np.int64))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_call_is_found_until_the_ring_comes_round(size: int) -> None:
    """
    Scenario: five times as many calls as the journal holds; after each, all of them are looked for.
    Guarantees: the last `size` lie where they were written, each in a place of its own; older ones
    and number 0, which is nobody's, are told as -1.
    """
    state = journal_of(size)
    for newest in range(1, 5 * size + 2):
        found = {0: int(_note(state, np.int64(0)))}
        assert state.watermark[1] == newest
        found.update((s, int(entry_of(state, np.int64(s)))) for s in range(1, newest + 1))
        for serial, place in found.items():
            if serial == 0 or newest - serial >= size:
                assert place == -1
            else:
                assert state.journal[place]["serial"] == serial
        assert len({place for place in found.values() if place >= 0}) == min(newest, size)


def test_calls_that_fell_out_are_not_moved() -> None:
    """
    Scenario: a journal of eight calls; twenty calls of one trace under a weak name; then a span
    says whose they are.
    Guarantees: the last eight are moved, the others stay where they were counted.
    """
    rig = Rig(limits={"moves": 8})

    def call(number: int, **who: str) -> None:
        span = tool_span(
            trace_id=b"one trace of all",
            span_id=number.to_bytes(8, "big"),
            start_ns=START_NS + number,
            end_ns=START_NS + number + 1,
            tool="search",
            **who,
        )
        rig.send([span], resource=[("service.name", "desk")])

    for number in range(1, 21):
        call(number)
    call(21, agent="clerk", session="s")
    assert rig.counts("moved") == 8
