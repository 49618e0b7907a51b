"""Patterns of the policy: which overrides and classes a name belongs to."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_anomaly import policy
from otel_anomaly.config import Config
from otel_anomaly.config.models import PolicyConfig
from otel_anomaly.detectors.call import BATCH, POLLING
from otel_anomaly.policy import (
    NAME_BYTES_MAX,
    compile_patterns,
    exemptions,
    match_all,
    starts_program,
    which_override,
)
from tests.naive_globs import naive_match
from tests.sizes import scaled

WHO = ("tenant", "agent", "tool")


def overridden(*overrides: dict[str, Any], **others: Any) -> Config:
    """A configuration of these overrides, not held against each other: only matching counts."""
    listed = [{"detectors": {}, **override} for override in overrides]
    policy = PolicyConfig.model_validate({"overrides": listed, **others})
    return Config().model_copy(update={"policy": policy})


def bits_of(table: np.ndarray, name: str, *, around: bytes = b"") -> np.int64:
    """What a table says of a name, which lies between `around`."""
    data = np.frombuffer(around + name.encode() + around, np.uint8)
    size = np.int64(len(name.encode()))
    return np.int64(match_all(table[0], data, np.int64(len(around)), size))


def plan_of(config: Config, tenant: str = "", agent: str = "", tool: str = "") -> int:
    """The plan that applies to a call."""
    patterns = compile_patterns(config)
    names = zip(patterns[:3], (tenant, agent, tool), strict=True)
    return int(which_override(*(bits_of(table, name) for table, name in names)))


def naive_plan(config: Config, names: dict[str, str]) -> int:
    """The first override whose given patterns all match, from 1; else 0."""
    for i, override in enumerate(config.policy.overrides):
        given_lists = {who: getattr(override, who) for who in WHO if getattr(override, who)}
        if all(
            any(naive_match(glob, names[who]) for glob in globs)
            for who, globs in given_lists.items()
        ):
            return i + 1
    return 0


def matches(glob: str, name: str, around: bytes = b"") -> bool:
    """Whether one pattern matches."""
    config = overridden({"agent": glob})
    return bool(bits_of(compile_patterns(config).agent, name, around=around) != 0)


CASES = {
    ("ci", "ci"): True,
    ("ci", "CI"): True,
    ("CI", "ci"): True,
    ("ci", "c"): False,
    ("ci", "cii"): False,
    ("ci", ""): False,
    ("*", ""): True,
    ("*", "anything"): True,
    ("?", ""): False,
    ("?", "x"): True,
    ("?", "xy"): False,
    ("ci-*", "ci-"): True,
    ("ci-*", "xci-1"): False,
    ("*bash*", "mcp__sh__Bash_run"): True,
    ("*bash*", "bas"): False,
    ("*ab", "aab"): True,
    ("*ab", "aba"): False,
    ("a*b*c", "a-bb-c"): True,
    ("a*b*c", "a-c-b"): False,
    ("a**c", "ac"): True,
    ("ab*bc", "abc"): False,
    ("ab*bc", "abbc"): True,
    ("*?", "x"): True,
    ("??*", "x"): False,
    ("?x", "\u00e9x"): True,
    ("*?x", "\u00e9x"): True,
    ("*??", "\u00e9"): False,
    ("\u00e9*", "\u00e9a"): True,
    ("\u00e9", "\u00c9"): False,
    ("bash", "b\u0430sh"): False,  # A Cyrillic letter that looks alike.
    ("a[b]", "ab"): False,
    ("a[b]", "a[b]"): True,
    ("a*", "a\x00b"): True,
}


@pytest.mark.parametrize(("glob", "name"), CASES, ids=ascii)
def test_globs(glob: str, name: str) -> None:
    """
    Scenario: patterns of every shape against names that are nearly right.
    Guarantees: stars and question marks mean what they say, in characters; all else is literal,
    without case in ASCII only; what lies around the name is not read.
    """
    assert matches(glob, name) is CASES[glob, name]
    assert matches(glob, name, around=b"b*?ci-x\x80") is CASES[glob, name]


TEXT = st.text(st.sampled_from("aabB**?\u00e9\x00"), max_size=12)


@given(glob=TEXT.filter(lambda text: text and text.isprintable()), name=TEXT)
def test_globs_equal_the_library(glob: str, name: str) -> None:
    """
    Scenario: any pattern and any name over few letters, so that stars have to be moved.
    Guarantees: kernel and regular expression agree.
    """
    assert matches(glob, name) is naive_match(glob, name)


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_plans_equal_the_naive_ones(seed: int) -> None:
    """
    Scenario: random policies of up to 60 overrides, with lists of patterns left out at random;
    random names of tenant, agent and tool.
    Guarantees: the plan is that of the first override whose patterns all match, else the base.
    """
    chance = random.Random(seed)

    def glob() -> str:
        return "".join(chance.choices("ab*?-", k=chance.randint(1, 5)))

    overrides = []
    for _ in range(chance.randint(0, 60)):
        given_who = chance.sample(WHO, chance.randint(1, 3))
        overrides.append({who: [glob() for _ in range(chance.randint(1, 3))] for who in given_who})
    config = overridden(*overrides)
    patterns = compile_patterns(config)
    for _ in range(10):
        names = {who: "".join(chance.choices("ab-", k=chance.randint(0, 5))) for who in WHO}
        tables = zip(patterns[:3], names.values(), strict=True)
        bits = [bits_of(table, name) for table, name in tables]
        assert int(which_override(*bits)) == naive_plan(config, names)


def test_the_first_match_wins() -> None:
    """
    Scenario: several overrides match a call; the last of sixty does; none does.
    Guarantees: the first in the file applies, also when it changes nothing.
    """
    config = overridden(
        {"tenant": "acme", "agent": ["ci-*", "build"]},
        {"tool": "read_*"},
        {"tenant": "acme"},
    )
    assert plan_of(config, "acme", "ci-7", "read_file") == 1
    assert plan_of(config, "acme", "build", "") == 1
    assert plan_of(config, "other", "ci-7", "read_file") == 2
    assert plan_of(config, "ACME", "x", "write") == 3
    assert plan_of(config, "other", "x", "write") == 0
    assert plan_of(config) == 0
    many = overridden(*({"agent": f"a{i}"} for i in range(60)))
    assert [plan_of(many, agent=f"a{i}") for i in range(60)] == list(range(1, 61))
    assert plan_of(overridden(), "acme", "ci-7", "x") == 0


def test_classes_of_tools() -> None:
    """
    Scenario: tools that poll, come in batches, or both, beside overrides that match some.
    Guarantees: the classes come out as `CALL` has them, and make no override apply.
    """
    config = overridden({"tool": "wait_*"}, polling_tools=["wait_*", "*_all"], batch_tools="*_all")
    table = compile_patterns(config).tool
    expected = {"wait_job": POLLING, "fetch_all": POLLING | BATCH, "fetch": 0, "": 0}
    assert {name: int(exemptions(bits_of(table, name))) for name in expected} == expected
    assert plan_of(config, tool="wait_job") == 1
    assert plan_of(config, tool="fetch_all") == 0


def starters(config: Config, names: tuple[str, ...], plan: int = 0) -> set[str]:
    """Which of the tools start programs."""
    table = compile_patterns(config).programs
    return {name for name in names if starts_program(bits_of(table, name), np.int64(plan))}


STARTERS = ("Bash", "run_shell_command", "execute_bash", "exec", "run_in_terminal", "PowerShell")
OTHERS = ("search", "execute_query", "read_file", "executive_summary", "terminate", "send_mail", "")


def test_tools_that_start_programs_by_default() -> None:
    """
    Scenario: the names that coding agents and tool servers give to such tools; names like them.
    Guarantees: the defaults know the first, and not the second.
    """
    assert starters(Config(), STARTERS + OTHERS) == set(STARTERS)


def test_tools_that_start_programs_under_an_override() -> None:
    """
    Scenario: the first and the last of sixty overrides name other tools, or none.
    Guarantees: each plan has its own; the base and the others keep theirs.
    """
    own = {"agent": "a", "detectors": {"child_process": {"tools": ["make", "Bash"]}}}
    none = {"agent": "z", "detectors": {"child_process": {"tools": []}}}
    config = overridden(own, *({"agent": f"a{i}"} for i in range(58)), none)
    names = ("bash", "make", "exec")
    by_plan = [starters(config, names, plan) for plan in range(61)]
    assert by_plan == [{"bash", "exec"}, {"bash", "make"}, *[{"bash", "exec"}] * 58, set()]


def test_long_names_are_cut() -> None:
    """
    Scenario: a name beyond the limit, and a length that says more than the array holds.
    Guarantees: no byte beyond the limit or the array is looked at.
    """
    assert matches("a*z", "a" + "b" * (NAME_BYTES_MAX - 2) + "z")
    assert not matches("a*z", "a" + "b" * (NAME_BYTES_MAX - 1) + "z")
    table = compile_patterns(overridden({"agent": "ab"})).agent
    data = np.frombuffer(b"ab", np.uint8)
    assert match_all(table[0], data, np.int64(0), np.int64(300)) != 0
    assert match_all(table[0], data, np.int64(1), np.int64(300)) == 0
    assert match_all(table[0], data[:0], np.int64(0), np.int64(0)) == 0


class Counted:
    """Bytes that count how often they are read."""

    def __init__(self, data: bytes) -> None:
        self.data = np.frombuffer(data, np.uint8)
        self.size = self.data.size
        self.reads = 0

    def __getitem__(self, at: int) -> np.uint8:
        self.reads += 1
        return self.data[at]


def test_a_hostile_name_costs_no_more_than_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: names made to let every star of a pattern begin anew at each letter; one as long as
    is looked at, one 32 times as long. Run as plain Python, where reads can be counted.
    Guarantees: at most the length of the cut name times that of the pattern.
    """
    for name in ("_matches", "_folded"):
        kernel = getattr(policy, name)
        monkeypatch.setattr(policy, name, getattr(kernel, "py_func", kernel))
    match = getattr(match_all, "py_func", match_all)
    glob = "*a*a*a*a*a*a*ab"
    table = compile_patterns(overridden({"agent": glob})).agent
    reads = []
    for length in (NAME_BYTES_MAX, 32 * NAME_BYTES_MAX):
        name = Counted(b"a" * length)
        assert match(table[0], name, np.int64(0), np.int64(length)) == 0
        reads.append(name.reads)
    assert reads[0] == reads[1] <= len(glob) * NAME_BYTES_MAX
