"""Which sub-window a time falls into: a guess saves the division, and never changes the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.detectors.subwindows import number_of
from otel_anomaly.kernels import Int, kernel
from tests.sizes import COMPILED

END_NS = 1 << 61
TIMES = st.integers(-END_NS, END_NS)
DAY_NS = 86_400 * SECOND_NS


@kernel
def _number_of(time_ns: Int, subwindow_ns: Int, guess: Int) -> Int:
    return number_of(time_ns, subwindow_ns, guess)


@given(time_ns=TIMES, guessed_ns=TIMES, subwindow_ns=st.integers(1, DAY_NS), off=st.integers(-9, 9))
@example(time_ns=0, guessed_ns=0, subwindow_ns=1, off=0)
@example(time_ns=-1, guessed_ns=0, subwindow_ns=SECOND_NS, off=0)
@example(time_ns=END_NS, guessed_ns=-END_NS, subwindow_ns=SECOND_NS, off=0)
def test_it_is_the_division(time_ns: int, guessed_ns: int, subwindow_ns: int, off: int) -> None:
    """
    Scenario: any time, before 1970 as well, and a guess that is another time's, or near by.
    Guarantees: the number is the floor of the division, compiled and as Python.
    """
    for guess in (guessed_ns // subwindow_ns, time_ns // subwindow_ns + off):
        given_ns, step_ns, guessed = np.int64(time_ns), np.int64(subwindow_ns), np.int64(guess)
        expected = time_ns // subwindow_ns
        assert _number_of(given_ns, step_ns, guessed) == expected
        assert number_of(time_ns, subwindow_ns, guess) == expected


@pytest.mark.parametrize("number", [-3, -1, 0, 1, 1_000_000])
def test_the_edges_of_a_sub_window(number: int) -> None:
    """
    Scenario: the first and the last nanosecond of a sub-window, and those beside it, each with the
    guess before, at and behind it.
    Guarantees: a sub-window begins with its first nanosecond and ends before the next one's.
    """
    step = 30 * SECOND_NS
    for guess in (number - 1, number, number + 1):
        for time_ns, expected in (
            (number * step - 1, number - 1),
            (number * step, number),
            (number * step + step - 1, number),
            (number * step + step, number + 1),
        ):
            assert _number_of(np.int64(time_ns), np.int64(step), np.int64(guess)) == expected


def test_python_and_compiled_are_both_looked_at() -> None:
    """
    Scenario: the function as this run has it.
    Guarantees: it is a kernel exactly when kernels are compiled, so the tests above compare two.
    """
    assert hasattr(_number_of, "py_func") == COMPILED
