"""The compiled table of keys: every key is found with all it means, and a dialect is only data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp import conventions, dialects
from otel_anomaly.otlp.conventions import DIALECTS, SPAN_NAME, Derived, Dialect
from otel_anomaly.otlp.dialects import (
    AGENT,
    BITS_MAX,
    COUNT_MASK,
    ERROR,
    FIRST_SHIFT,
    MARK,
    OF_LOG,
    OWNER,
    PREFIX_MAX,
    RANKS_MAX,
    ROLES,
    RULES_MAX,
    SERVICE,
    SESSION,
    SPARE,
    SPARES_MAX,
    STAMP,
    TENANT,
    TOOL,
    USER,
    WEAK,
    WHO,
    compile_keys,
)
from otel_anomaly.otlp.hashing import hash_text, hash_two
from otel_anomaly.otlp.scan import ABSENT, IS_CALL, IS_ERROR, scan
from tests import traffic
from tests.scan_rigs import SEED, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY: tuple[tuple[str, ...], ...] = ((),) * len(WHO)
GLOBAL_MARKS = len(
    {
        *conventions.NO_CALLS,
        *conventions.MCP,
        *conventions.FAILURES,
        *conventions.BOUNDARIES,
    }
)
"""Marks that every table has, whatever its dialects."""
SPARES_LEFT = SPARES_MAX - STAMP - 1
"""Sources of derived facts that a table may have."""
NUMBERED = tuple(tuple(f"{who}.{rank}" for rank in range(RANKS_MAX)) for who in WHO)

TOOLS, ERRORS = (tuple(f"{w}.{i}" for i in range(RANKS_MAX)) for w in ("tool", "error"))

FORGED: tuple[str, traffic.Value] = ("p.x", 1)
GENAI = Dialect(
    name="genai",
    when=(("gen_ai.operation.name", "execute_tool"),),
    tool=("gen_ai.tool.name",),
    error=("error.type",),
)
OTHER = Dialect(
    name="other",
    when=(("kind", ("tool", "Tool")), ("phase", "done")),
    unless=(("origin", "replay"), ("origin", "test")),
    tool=("tool.name", "gen_ai.tool.name", "fallback"),
    error=("failure",),
)
BOTH = (GENAI, OTHER)


def roles_of(table: np.ndarray, key: str) -> list[tuple[int, int]]:
    """Roles and ranks of a key, found the slow way: every slot is looked at."""
    hashed = hash_text(key, int(table[0]["seed"]))
    found = [slot for slot in table[0]["slots"] if slot[0] == hashed]
    assert len(found) <= 1
    return [
        (int(table[0]["roles"][i, 0]), int(table[0]["roles"][i, 2]))
        for _, packed in found
        for i in range(packed >> FIRST_SHIFT, (packed >> FIRST_SHIFT) + (packed & COUNT_MASK))
    ]


def bits_of(table: np.void, key: str, value: str) -> int:
    """The marks of a key with a value, found the slow way."""
    seed = int(table["seed"])
    pair = hash_two(hash_text(key, seed), hash_text(value, seed), seed)
    (bits,) = (int(bits) for hashed, bits in table["values"] if hashed == pair)
    return bits


def scanned(table: np.ndarray, *pairs: tuple[str, traffic.Value]) -> np.void | None:
    """The row of a span with these attributes, if it gets one."""
    span = Span(
        trace_id=b"t" * 16, span_id=b"s" * 8, attributes=traffic.attributes([*pairs, ("x.y", 1)])
    )
    rows = scan(traffic.request([span]), table).rows
    return rows[0] if rows.size else None


def is_call(table: np.ndarray, *pairs: tuple[str, traffic.Value]) -> bool:
    row = scanned(table, *pairs)
    return row is not None and bool(row["flags"] & IS_CALL)


def test_every_key_with_every_role() -> None:
    """
    Scenario: keys with one role, with several, weak ones, one of a dialect and of an identity.
    Guarantees: each is found with all its roles and ranks; weak ones stand behind; others are not
    there at all.
    """
    identity = (("t", "both"), ("both", "service.name"), ("s",), ("gen_ai.tool.name",), ())
    table = compile_keys(identity, ("service.name", "both"), prefix="p", seed=SEED)
    assert roles_of(table, "t") == [(TENANT, 0)]
    assert roles_of(table, "both") == [(TENANT, WEAK + 1), (AGENT, WEAK)]
    assert roles_of(table, "service.name") == [(AGENT, WEAK + 1), (SERVICE, 0)]
    assert roles_of(table, "s") == [(SESSION, 0)]
    assert roles_of(table, "error.type") == [(ERROR, 0)]
    assert roles_of(table, "gen_ai.operation.name") == [(MARK, 0)]
    assert roles_of(table, "gen_ai.tool.name") == [(USER, 0), (TOOL, 0), (MARK, 0)]
    assert roles_of(table, "traceloop.entity.name")[1:] == [(SPARE, 0)]
    assert roles_of(table, "nobody.knows") == []


def test_marks_rules_and_prefix() -> None:
    """
    Scenario: the table of two dialects.
    Guarantees: a bit for each mark asked for, told by each of its values; a rule for each dialect,
    for spans; the prefix with its dot.
    """
    table = compile_keys(NOBODY, (), prefix="anomaly", seed=SEED, dialects=BOTH)[0]
    assert bits_of(table, "gen_ai.operation.name", "execute_tool") == 1
    (kind, phase, replay, test) = (
        bits_of(table, *pair)
        for pair in (("kind", "tool"), ("phase", "done"), ("origin", "replay"), ("origin", "test"))
    )
    assert bits_of(table, "kind", "Tool") == kind
    assert len({1, kind, phase, replay, test}) == 5
    assert table["rules"][: table["rule_count"]].tolist() == [
        [1, OF_LOG],
        [kind | phase, replay | test | OF_LOG],
    ]
    assert table["prefix"][: table["prefix_size"]].tobytes() == b"anomaly."
    assert table["seed"] == SEED


def test_seed_changes_every_hash() -> None:
    """
    Scenario: the same keys with another secret.
    Guarantees: no hash is the same: nobody can prepare names that collide.
    """
    tables = [compile_keys(NUMBERED, (), prefix="p", seed=seed)[0] for seed in (SEED, SEED + 1)]
    first, second = ({*t["slots"][:, 0].tolist(), *t["values"][:, 0].tolist()} for t in tables)
    assert first & second == {0}


def test_full_house() -> None:
    """
    Scenario: as many keys for each identity as there is room for, and as many marks.
    Guarantees: the scan finds each of them with its role and rank; all marks are needed.
    """
    dialect = Dialect(
        name="wide",
        when=tuple((f"when.{i}", "yes") for i in range(BITS_MAX - GLOBAL_MARKS)),
        tool=TOOLS,
        error=ERRORS,
    )
    weak = NUMBERED[USER]
    table = compile_keys(NUMBERED, weak, prefix="p", seed=SEED, dialects=(dialect,), derived=())
    for role, names in enumerate((*NUMBERED, TOOLS, ERRORS)):
        for rank, name in enumerate(names):
            row = scanned(table, (name, "v"))
            assert row is not None
            assert row["order"][role] == rank + (WEAK if role == USER else 0)
            others = [order for i, order in enumerate(row["order"]) if i != role]
            assert set(others) == {ABSENT}
    marks = [(name, "yes") for name, _ in dialect.when]
    assert is_call(table, *marks)
    for missing in (0, 30, len(marks) - 1):
        assert not is_call(table, *marks[:missing], *marks[missing + 1 :])


def test_another_dialect_is_only_data() -> None:
    """
    Scenario: a second convention with two conditions, two that forbid, names of its own.
    Guarantees: its calls are recognised, and only they; the first convention works as before.
    """
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=BOTH)
    done = (("kind", "tool"), ("phase", "done"))
    assert is_call(table, *done)
    assert not is_call(compile_keys(NOBODY, (), prefix="p", seed=SEED), *done)
    for near in (
        done[:1],
        done[1:],
        (("kind", "toolx"), done[1]),
        (("kind", "tool "), done[1]),
        (("kindx", "tool"), done[1]),
        (("phase", "tool"), ("kind", "done")),
        (*done, ("origin", "replay")),
        (*done, ("origin", "test")),
        (*done, ("kind", "model")),
        (*done, ("kind", 1)),
        (*done, ("kind", None)),
    ):
        assert not is_call(table, *near), near
    assert is_call(table, *done, ("origin", "live"))
    assert is_call(table, *done, ("origin", "test"), ("origin", "live"))
    assert is_call(table, ("gen_ai.operation.name", "execute_tool"), ("origin", "test"))
    assert is_call(table, ("kind", "Tool"), done[1])
    # What looks like a call and is none is none in any convention.
    merged = ("gen_ai.tool.name", "(merged tools)")
    assert not is_call(table, *done, merged)
    assert not is_call(table, ("gen_ai.operation.name", "execute_tool"), merged)


def test_a_condition_is_about_what_is_written() -> None:
    """
    Scenario: conditions whose values read like a truth value and like a number, and any value.
    Guarantees: met by the text and by a value of another type that is written the same; any value
    is met by all but an empty one, a list, a map, a double.
    """
    told = Dialect(name="told", when=(("flag", "true"), ("version", "1"), ("any", "*")))
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=(told,))
    assert is_call(table, ("flag", "true"), ("version", "1"), ("any", "x"))
    assert is_call(table, ("flag", True), ("version", 1), ("any", False))
    assert not is_call(table, ("flag", False), ("version", 1), ("any", "x"))
    for nothing in ("", None, 1.5, b"x", ["x"], {"x": "y"}):
        assert not is_call(table, ("flag", True), ("version", 1), ("any", nothing))
        assert not is_call(table, ("flag", True), ("version", 1), ("any", "x"), ("any", nothing))


def test_names_and_errors_of_two_dialects() -> None:
    """
    Scenario: a span with tool names and errors in the words of both conventions.
    Guarantees: the first convention's key comes first, then the other's in its own order.
    """
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=BOTH)
    pairs = [
        ("kind", "tool"),
        ("phase", "done"),
        ("fallback", "third"),
        ("tool.name", "second"),
        ("gen_ai.tool.name", "first"),
    ]
    for expected in ("first", "second", "third", None):
        span = Span(attributes=traffic.attributes(pairs))
        body = traffic.request([span])
        (row,) = scan(body, table).rows
        assert text_of(body, row, TOOL) == expected
        pairs.pop()
    row = scanned(table, ("kind", "tool"), ("phase", "done"), ("failure", "yes"))
    assert row is not None
    assert row["flags"] & IS_ERROR


def test_no_keys_at_all() -> None:
    """
    Scenario: nothing is configured and no dialect known.
    Guarantees: the scan finds nothing, and is not lost in an empty table.
    """
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=(), derived=())
    row = scanned(table, ("gen_ai.operation.name", "execute_tool"), ("user.id", "u"))
    assert row is not None
    assert row["flags"] == 0
    assert set(row["order"]) == {ABSENT}
    assert not is_call(table, ("p.x", 1))


def test_a_dialect_without_conditions_takes_all() -> None:
    """
    Scenario: a dialect whose list of conditions is empty.
    Guarantees: every span is its call: all of none are met.
    """
    everything = Dialect(name="all", when=())
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=(everything,))
    assert is_call(table, ("a", 1))


@pytest.mark.parametrize("role", [TENANT, OWNER])
def test_too_many_keys(role: int) -> None:
    """
    Scenario: one key more than there are ranks between two levels.
    Guarantees: refused when the table is built; it would be taken for one of the next level.
    """
    identity = list(NOBODY)
    identity[role] = tuple(map(str, range(RANKS_MAX)))
    compile_keys(identity, (), prefix="p", seed=SEED)
    identity[role] = tuple(map(str, range(RANKS_MAX + 1)))
    for weak in ((), identity[role]):
        with pytest.raises(AssertionError, match="too many keys"):
            compile_keys(identity, weak, prefix="p", seed=SEED)


def test_too_much_of_anything_else() -> None:
    """
    Scenario: more marks than bits, more dialects than rules, too long a prefix, too few lists, too
    many sources of derived facts, a derived fact that anything would be.
    Guarantees: refused when the table is built.
    """

    def build(
        when: int = 1,
        rules: int = 1,
        prefix: int = 1,
        who: int = len(WHO),
        derived: Sequence[Derived] = (),
    ) -> None:
        conditions = tuple((f"k{i}", "v") for i in range(when))
        rows = [Dialect(name=str(i), when=conditions) for i in range(rules)]
        compile_keys(
            NOBODY[:who], (), prefix="p" * prefix, seed=SEED, dialects=rows, derived=derived
        )

    sources = [Derived("error", str(i), when=(("k0", "v"),)) for i in range(SPARES_LEFT + 1)]
    build(BITS_MAX - GLOBAL_MARKS, RULES_MAX, PREFIX_MAX - 1, derived=sources[1:])
    for too_much in (
        {"when": BITS_MAX - GLOBAL_MARKS + 1},
        {"rules": RULES_MAX + 1},
        {"prefix": PREFIX_MAX},
        {"who": len(WHO) - 1},
        {"derived": sources},
        {"derived": [Derived("agent", SPAN_NAME, suffix="x")]},
        {"derived": [Derived("agent", "some.key", "x")]},
        {"derived": [Derived("tool", SPAN_NAME, "x")]},
    ):
        with pytest.raises(AssertionError):
            build(**too_much)


def test_another_derived_fact_is_only_data() -> None:
    """
    Scenario: an agent named in the span's name and in a key, in a way that no convention has.
    Guarantees: found in both, the first of them first.
    """
    rows = (
        Derived("agent", SPAN_NAME, "zebra <", ">"),
        Derived("agent", "where", "at ", when=(("kind", "tool"),)),
    )
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=BOTH, derived=rows)
    for name, kind, where, agent in (
        ("zebra <z>", "", "", "z"),
        ("zebra <z>", "tool", "at home", "z"),
        ("zebra <>", "tool", "at home", "home"),
        ("zebra <>", "", "at home", None),
        ("x", "tool", "home", None),
    ):
        pairs = [("kind", kind), ("where", where)]
        body = traffic.request([Span(name=name, attributes=traffic.attributes([*pairs, FORGED]))])
        (row,) = scan(body, table).rows
        assert text_of(body, row, AGENT) == agent


def test_names_of_roles() -> None:
    """
    Scenario: the numbers that kernels know the roles by.
    Guarantees: identities come first in the order of WHO; facts follow; the others are none.
    """
    assert [getattr(dialects, who.upper()) for who in WHO] == list(range(len(WHO)))
    assert [getattr(dialects, role.upper()) for role in ROLES] == list(range(dialects.FACTS))
    assert min(MARK, SPARE, SERVICE) >= dialects.FACTS


def test_the_table_is_sound() -> None:
    """
    Scenario: every row of the table of conventions.
    Guarantees: each has a name of its own and says something that no row before it said.
    """
    names = [dialect.name for dialect in DIALECTS]
    assert len(set(names)) == len(names)
    met: set[object] = set()
    for dialect in DIALECTS:
        said: set[object] = {
            (role, key)
            for role in ("tool", "arguments", "result", "call_id", "error")
            for key in getattr(dialect, role)
        }
        said |= {("rule", dialect.when, dialect.unless)}
        assert not said <= met, dialect.name
        met |= said
