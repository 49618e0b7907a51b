"""The compiled table of keys: every key is found with all it means, and a dialect is only data."""

from __future__ import annotations

import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.otlp import dialects
from otel_anomaly.otlp.dialects import (
    AGENT,
    DIALECTS,
    ERROR,
    MARK,
    OWNER,
    PREFIX_MAX,
    RANKS_MAX,
    RULES_MAX,
    SESSION,
    TENANT,
    TOOL,
    USER,
    VALUES_MAX,
    WEAK,
    WHO,
    Dialect,
    compile_keys,
)
from otel_anomaly.otlp.hashing import hash_text
from otel_anomaly.otlp.scan import ABSENT, IS_CALL, IS_ERROR, scan
from tests import traffic
from tests.scan_rigs import SEED, text_of

NOBODY: tuple[tuple[str, ...], ...] = ((),) * len(WHO)
NUMBERED = tuple(tuple(f"{who}.{rank}" for rank in range(RANKS_MAX)) for who in WHO)

OTHER = Dialect(
    name="other",
    when=(("kind", "tool"), ("phase", "done")),
    unless=(("origin", "replay"), ("origin", "test")),
    tool=("tool.name", "gen_ai.tool.name", "fallback"),
    error=("failure",),
)
BOTH = (*DIALECTS, OTHER)


def roles_of(table: np.ndarray, key: str) -> list[tuple[int, int, int]]:
    """What the table says about a key, found the slow way: every slot is looked at."""
    hashed = hash_text(key, int(table[0]["seed"]))
    found = [slot for slot in table[0]["slots"] if slot[0] == hashed]
    assert len(found) <= 1
    return [
        tuple(table[0]["roles"][i].tolist())
        for _, packed in found
        for i in range(packed >> 8, (packed >> 8) + (packed & 255))
    ]


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
    assert roles_of(table, "t") == [(TENANT, 0, 0)]
    assert roles_of(table, "both") == [(TENANT, 0, WEAK + 1), (AGENT, 0, WEAK)]
    assert roles_of(table, "service.name") == [(AGENT, 0, WEAK + 1)]
    assert roles_of(table, "s") == [(SESSION, 0, 0)]
    assert roles_of(table, "error.type") == [(ERROR, 0, 0)]
    operation, merged = 1, 2
    assert roles_of(table, "gen_ai.operation.name") == [(MARK, operation, 0)]
    assert roles_of(table, "gen_ai.tool.name") == [(USER, 0, 0), (TOOL, 0, 0), (MARK, merged, 0)]
    assert roles_of(table, "nobody.knows") == []
    assert np.count_nonzero(table[0]["slots"][:, 0]) == 7


def test_marks_rules_and_prefix() -> None:
    """
    Scenario: the table of two dialects.
    Guarantees: a bit for each attribute and value asked for, a rule for each dialect, the prefix
    with its dot.
    """
    table = compile_keys(NOBODY, (), prefix="anomaly", seed=SEED, dialects=BOTH)[0]
    assert table["value_count"] == 6
    assert sorted(table["values"][:6, 1].tolist()) == [1, 2, 4, 8, 16, 32]
    assert table["rules"][: table["rule_count"]].tolist() == [[1, 2], [4 | 8, 16 | 32]]
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
    Scenario: as many keys for each role as there is room for, all in one table.
    Guarantees: the scan finds each of them with its role and rank.
    """
    dialect = Dialect(
        name="wide",
        when=tuple((f"when.{i}", "yes") for i in range(VALUES_MAX)),
        tool=tuple(f"tool.{i}" for i in range(RANKS_MAX)),
        error=tuple(f"error.{i}" for i in range(RANKS_MAX)),
    )
    table = compile_keys(NUMBERED, NUMBERED[USER], prefix="p", seed=SEED, dialects=(dialect,))
    assert np.count_nonzero(table[0]["slots"][:, 0]) == 7 * RANKS_MAX + VALUES_MAX
    for role, names in enumerate((*NUMBERED, dialect.tool, dialect.error)):
        for rank, name in enumerate(names):
            # A span is only kept for what a strong key says of itself, so one says something.
            row = scanned(table, (name, "v"), ("p.forged", 1))
            assert row is not None
            assert row["order"][role] == rank + (WEAK if role == USER else 0)
            others = [order for i, order in enumerate(row["order"]) if i != role]
            assert set(others) == {ABSENT}
    marks = [(name, "yes") for name, _ in dialect.when]
    assert is_call(table, *marks)
    for missing in (0, 30, VALUES_MAX - 1):
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
    # One convention forbids what is no concern of the other.
    assert is_call(table, *done, ("gen_ai.tool.name", "(merged tools)"))
    merged = (("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", "(merged tools)"))
    assert not is_call(table, *merged)


def test_a_condition_is_about_text() -> None:
    """
    Scenario: conditions whose values read like a truth value and like a number.
    Guarantees: met by the text, not by a value of another type that is written the same.
    """
    told = Dialect(name="told", when=(("flag", "true"), ("version", "1")))
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=(told,))
    assert is_call(table, ("flag", "true"), ("version", "1"))
    assert not is_call(table, ("flag", True), ("version", "1"))
    assert not is_call(table, ("flag", "true"), ("version", 1))


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
    table = compile_keys(NOBODY, (), prefix="p", seed=SEED, dialects=())
    assert scanned(table, ("gen_ai.operation.name", "execute_tool"), ("user.id", "u")) is None
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
    Scenario: more marks than bits, more dialects than rules, too long a prefix, too few lists.
    Guarantees: refused when the table is built.
    """

    def build(when: int = 1, rules: int = 1, prefix: int = 1, who: int = len(WHO)) -> None:
        conditions = tuple((f"k{i}", "v") for i in range(when))
        rows = [Dialect(name=str(i), when=conditions) for i in range(rules)]
        compile_keys(NOBODY[:who], (), prefix="p" * prefix, seed=SEED, dialects=rows)

    build(VALUES_MAX, RULES_MAX, PREFIX_MAX - 1)
    for too_much in (
        {"when": VALUES_MAX + 1},
        {"rules": RULES_MAX + 1},
        {"prefix": PREFIX_MAX},
        {"who": len(WHO) - 1},
    ):
        with pytest.raises(AssertionError):
            build(**too_much)


def test_names_of_roles() -> None:
    """
    Scenario: the numbers that kernels know the roles by.
    Guarantees: identities come first in the order of WHO; facts follow; a mark is none of them.
    """
    assert [getattr(dialects, who.upper()) for who in WHO] == list(range(len(WHO)))
    assert [*range(len(WHO)), TOOL, ERROR] == list(range(dialects.FACTS))
    assert MARK == dialects.FACTS
