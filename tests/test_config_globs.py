"""Patterns against patterns: what leaves an override without effect."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from otel_anomaly.config.globs import covers, meet
from tests.naive_globs import naive_match

GLOB = st.text(st.sampled_from("abB*?"), min_size=1, max_size=6)
NAME = st.text(st.sampled_from("ab"), max_size=8)


@given(one=GLOB, other=GLOB, name=NAME)
def test_patterns_against_patterns(one: str, other: str, name: str) -> None:
    """
    Scenario: any two patterns and any name over few letters.
    Guarantees: one that is said to cover the other matches all it does; a name that both match is
    proof that they meet; each covers itself, and meets whatever it covers.
    """
    by_one, by_other = naive_match(one, name), naive_match(other, name)
    if covers(one, other):
        assert by_one or not by_other
        assert meet(one, other)
    if by_one and by_other:
        assert meet(one, other)
    assert covers(one, one)
    assert meet(one, other) is meet(other, one)


@given(one=GLOB.filter(lambda glob: len(glob) <= 3), other=GLOB.filter(lambda glob: len(glob) <= 3))
def test_patterns_that_share_no_name(one: str, other: str) -> None:
    """
    Scenario: any two patterns of up to three signs, held against every name of up to six letters,
    one of which stands for all that neither pattern names.
    Guarantees: they are said to meet exactly when some name is matched by both.
    """
    names = ("".join(letters) for n in range(7) for letters in product("abz", repeat=n))
    shared = any(naive_match(one, name) and naive_match(other, name) for name in names)
    assert meet(one, other) is shared
