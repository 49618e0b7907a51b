"""The table: which attribute of which instrumentation means what.

A dialect is a row of data. `compile_keys` turns the rows and the configured identity keys into
one record that the scan kernel looks keys up in, so the kernel does not grow with the table:

    slots   hash of key -> its roles            open addressing, a power of two, half empty
    roles   (role, bits, rank)                  what the value of that key is good for
    values  (hash of key and value, bit)        marks: `gen_ai.operation.name` = `execute_tool`
    rules   (bits needed, bits that forbid)     one row a dialect
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from otel_anomaly.otlp.hashing import hash_text, hash_two

WHO = ("tenant", "agent", "session", "user", "owner")
TENANT, AGENT, SESSION, USER, OWNER = range(len(WHO))

# Roles of a key. The first five are the identities, in the order of WHO.
TOOL = len(WHO)
ERROR = TOOL + 1
MARK = ERROR + 1
FACTS = ERROR + 1
"""Roles whose best value is kept; MARK only sets bits."""

WEAK = 256
"""Added to the rank of a weak key: it stands behind what the trace says."""


class Dialect(NamedTuple):
    """How one convention tells of a tool call."""

    name: str
    when: tuple[tuple[str, str], ...]
    """Attribute and value: all must be on the span."""
    unless: tuple[tuple[str, str], ...] = ()
    """Attribute and value: none may be."""
    tool: tuple[str, ...] = ()
    """Keys of the tool's name, in order of preference."""
    error: tuple[str, ...] = ()
    """Keys whose presence with a non-empty string says that the call failed."""


DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        name="otel_genai",
        when=(("gen_ai.operation.name", "execute_tool"),),
        # Google ADK adds a span for parallel calls that is not a call itself.
        unless=(("gen_ai.tool.name", "(merged tools)"),),
        tool=("gen_ai.tool.name",),
        error=("error.type",),
    ),
)


SLOTS_MAX, ROLES_MAX, VALUES_MAX, RULES_MAX, PREFIX_MAX = 1024, 512, 62, 64, 64
RANKS_MAX = 64
"""Keys of one role; the scan adds multiples of it to say where a key was found."""
assert WEAK % RANKS_MAX == 0
KEYS = np.dtype(
    [
        ("seed", "i8"),  # The secret of all hashes.
        ("slot_mask", "i8"),
        ("slots", "i8", (SLOTS_MAX, 2)),  # Hash of key (0: free); first role << 8 | how many.
        ("roles", "i8", (ROLES_MAX, 3)),  # Role; bits of the key's marks (MARK only); rank.
        ("value_count", "i8"),
        ("values", "i8", (VALUES_MAX, 2)),  # Hash of key and value; bit.
        ("rule_count", "i8"),
        ("rules", "i8", (RULES_MAX, 2)),  # Bits needed; bits that forbid.
        ("prefix_size", "i8"),
        ("prefix", "u1", (PREFIX_MAX,)),  # `<prefix>.`, whose keys are removed from spans.
    ],
    align=True,
)
"""The compiled table, one record: kernels hand it on as a single pointer."""


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _marks(dialects: Sequence[Dialect]) -> dict[tuple[str, str], int]:
    """Each (attribute, value) that some rule asks for -> its bit."""
    pairs = _unique(pair for d in dialects for pair in (*d.when, *d.unless))  # type: ignore[misc]
    assert len(pairs) <= VALUES_MAX, "marks are bits of one int64"
    return {pair: 1 << bit for bit, pair in enumerate(pairs)}  # type: ignore[misc]


def _roles_of_keys(
    identity: Sequence[Sequence[str]], weak: Sequence[str], dialects: Sequence[Dialect]
) -> dict[str, list[tuple[int, int, int]]]:
    """Key -> its roles."""
    roles: dict[str, list[tuple[int, int, int]]] = {}
    for who, keys in enumerate(identity):
        for rank, key in enumerate(keys):
            roles.setdefault(key, []).append((who, 0, rank + (WEAK if key in weak else 0)))
    for role, names in (
        (TOOL, _unique(key for d in dialects for key in d.tool)),
        (ERROR, _unique(key for d in dialects for key in d.error)),
    ):
        for rank, key in enumerate(names):
            roles.setdefault(key, []).append((role, 0, rank))
    marks = _marks(dialects)
    for key in _unique(key for key, _ in marks):
        bits = sum(bit for (name, _), bit in marks.items() if name == key)
        roles.setdefault(key, []).append((MARK, bits, 0))
    return roles


def compile_keys(
    identity: Sequence[Sequence[str]],
    weak: Sequence[str],
    *,
    prefix: str,
    seed: int,
    dialects: Sequence[Dialect] = DIALECTS,
) -> np.ndarray:
    """Build the table, KEYS [1]. `identity` holds a list of keys for each of `WHO`, best first."""
    assert len(identity) == len(WHO)
    assert len(dialects) <= RULES_MAX, "too many dialects"
    assert len(prefix) < PREFIX_MAX, "prefix too long"
    table = np.zeros(1, KEYS)
    keys = table[0]
    keys["seed"] = seed
    _fill_slots(keys, _roles_of_keys(identity, weak, dialects), seed)
    marks = _marks(dialects)
    keys["value_count"] = len(marks)
    for i, ((key, value), bit) in enumerate(marks.items()):
        pair = hash_two(hash_text(key, seed), hash_text(value, seed), seed)
        keys["values"][i] = pair, bit
    keys["rule_count"] = len(dialects)
    for i, dialect in enumerate(dialects):
        keys["rules"][i] = (
            sum(marks[pair] for pair in dialect.when),
            sum(marks[pair] for pair in dialect.unless),
        )
    encoded = np.frombuffer(f"{prefix}.".encode(), np.uint8)
    keys["prefix_size"] = encoded.size
    keys["prefix"][: encoded.size] = encoded
    return table


def _fill_slots(keys: np.void, by_key: dict[str, list[tuple[int, int, int]]], seed: int) -> None:
    """Open addressing with linear probing, at most half full."""
    size = 1 << (2 * len(by_key)).bit_length()
    assert size <= SLOTS_MAX, "too many keys"
    assert sum(map(len, by_key.values())) <= ROLES_MAX, "too many roles"
    ranks = [rank % WEAK for roles in by_key.values() for _, _, rank in roles]
    assert max(ranks, default=0) < RANKS_MAX, "too many keys for one role"
    keys["slot_mask"] = size - 1
    slots = keys["slots"]
    used = 0
    for key, roles in by_key.items():
        hashed = hash_text(key, seed)
        place = hashed & (size - 1)
        while slots[place, 0]:
            place = (place + 1) & (size - 1)
        slots[place] = hashed, used << 8 | len(roles)
        keys["roles"][used : used + len(roles)] = roles
        used += len(roles)
