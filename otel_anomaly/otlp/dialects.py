"""The table of `conventions`, compiled: what the scan looks keys, values and names up in.

`compile_keys` turns the rows and the configured identity keys into one record, so the kernel does
not grow with the table:

    slots    hash of key -> its roles          open addressing, a power of two, half empty
    roles    (role, bits or number, rank)      what the value of that key is good for
    values   hash of key and value -> bits     marks: `gen_ai.operation.name` = `execute_tool`
    rules    (bits needed, bits that forbid)   one row a dialect
    names    (prefix, whole or not, bit)       marks that stand in the span's name
    derived  (role, source, prefix, suffix)    facts that stand inside others
    scopes   prefix                            scopes that tell a plugin in front of a tool's name
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.otlp import conventions
from otel_anomaly.otlp.conventions import (
    ANY_TEXT,
    DERIVED,
    DIALECTS,
    DOCUMENTS,
    EVENT_TIME,
    PLACEHOLDERS,
    PLUGIN_SCOPES,
    SPAN_NAME,
    BodyKey,
    Derived,
    Dialect,
    Key,
    Mark,
)
from otel_anomaly.otlp.hashing import hash_text, hash_two

WHO = ("tenant", "agent", "session", "user", "owner")
TENANT, AGENT, SESSION, USER, OWNER = range(len(WHO))

# Roles of a key. The first five are the identities, in the order of WHO.
TOOL, ERROR, CALL_ID, ARGUMENTS, RESULT, MODEL = range(len(WHO), len(WHO) + 6)
ROLES: Final = (*WHO, "tool", "error", "call_id", "arguments", "result", "model")
FACTS: Final = len(ROLES)
"""Roles whose best value is kept; the following are worked off at once."""
MARK, SPARE, SERVICE, NAMESPACE = range(FACTS, FACTS + 4)
"""MARK sets bits; SPARE is what a span's end needs: documents, times, sources of derived facts."""
assert ROLES[MODEL] == "model"

WEAK = 256
"""Added to the rank of a weak key: it stands behind what the trace says."""

SLOTS_MAX, ROLES_MAX, VALUES_MAX, RULES_MAX, PREFIX_MAX = 2048, 1024, 512, 64, 64
RANKS_MAX = 64
"""Keys of one role; the scan adds multiples of it to say where a key was found."""
assert WEAK % RANKS_MAX == 0
BITS_MAX: Final = 60
OF_LOG, NAMELESS_CALL = np.int64(1) << 61, np.int64(1) << 62
"""Bits beside the marks: a log record; a tool call whose keys tell no name of the tool."""
NAMES_MAX, DERIVED_MAX, SPARES_MAX, TEXT_MAX, ABSENT_MAX = 32, 64, 16, 1024, 256
SCOPES_MAX: Final = 16
ABSENT_BYTES_MAX: Final = 256
LENGTHS: Final = 62
"""Lengths told apart before an absent value is looked at; the last stands for all beyond."""
STAMP: Final = len(DOCUMENTS)
"""Number of the spare that holds a record's time; the documents come before it."""
DOCUMENT_BITS: Final = (1 << len(DOCUMENTS)) - 1
DOCUMENT_PREFIXES: Final = np.frombuffer(
    "".join(f"{name}.".ljust(PREFIX_MAX, "\0") for name in DOCUMENTS).encode(), np.uint8
).reshape(-1, PREFIX_MAX)
DOCUMENT_SIZES: Final = np.array([len(name) + 1 for name in DOCUMENTS])

IN_NAME: Final = -1
"""Source of a derived fact: the span's name."""

COUNT_MASK, HASHED, FIRST_SHIFT = np.int64(127), np.int64(128), np.int64(8)
"""A slot packs how many roles a key has, whether its value is hashed, and which role is first."""

# Columns of the derived facts.
ROLE, NEEDED, SOURCE, PREFIX_AT, PREFIX_SIZE, SUFFIX_AT, SUFFIX_SIZE = range(7)
DERIVED_ORDER: Final = RANKS_MAX - 1
"""Behind all keys of a role, before what the resource says; of derived facts the first wins."""

KEYS = np.dtype(
    [
        ("seed", "i8"),  # The secret of all hashes.
        ("slot_mask", "i8"),
        ("slots", "i8", (SLOTS_MAX, 2)),  # Hash of key (0: free); its roles, packed.
        ("roles", "i8", (ROLES_MAX, 4)),  # Role; its bits or number; rank; bits of any value.
        ("value_mask", "i8"),
        ("values", "i8", (VALUES_MAX, 2)),  # Hash of key and value (0: free); bits.
        ("event_key", "i8"),  # Hash of `event.name`, which a log record may say otherwise.
        ("rule_count", "i8"),
        ("rules", "i8", (RULES_MAX, 2)),  # Bits needed; bits that forbid.
        # Any of these bits says so.
        ("no_call", "i8"),
        ("part", "i8"),
        ("boundary", "i8"),
        ("mcp", "i8"),
        ("failed", "i8"),
        ("name_starts", "i8", (256,)),  # Whether some name begins with this byte.
        ("name_count", "i8"),
        ("names", "i8", (NAMES_MAX, 4)),  # Where its text is; its size; whole name or not; bit.
        ("derives", "i8"),  # Without any of these bits only names may hold derived facts.
        ("derived_count", "i8"),
        ("derived", "i8", (DERIVED_MAX, 7)),
        ("scope_count", "i8"),
        ("scopes", "i8", (SCOPES_MAX, 2)),  # Where the text of a scope's name is; its size.
        ("texts", "u1", (TEXT_MAX,)),  # Of names, derived facts and scopes.
        ("absent_lengths", "i8", (FACTS,)),  # Bit set of the lengths of the following.
        ("absent_count", "i8"),
        ("absent", "i8", (ABSENT_MAX, 2)),  # Role; hash of a text that says nothing.
        ("prefix_size", "i8"),
        ("prefix", "u1", (PREFIX_MAX,)),  # `<prefix>.`, whose keys are removed from spans.
    ],
    align=True,
)
"""The compiled table, one record: kernels hand it on as a single pointer."""

Role = tuple[int, int, int, int]


class _Table(NamedTuple):
    """What is collected before it is written down."""

    bits: dict[Mark, int]
    roles: dict[Key, list[Role]]
    spares: dict[str, int]
    """Sources of derived facts, numbered."""


def _unique(items: Iterable[Key]) -> list[Key]:
    return list(dict.fromkeys(items))


def _values(mark: Mark) -> tuple[str, ...]:
    """The values of a mark, without the one for any."""
    values = (mark[1],) if isinstance(mark[1], str) else mark[1]
    return () if values == (ANY_TEXT,) else values


def _spellings(value: str) -> tuple[str, ...]:
    """A value of a mark in the cases that it is written in."""
    return value, value.lower(), value.upper(), value.capitalize()


def _bits_of(dialects: Sequence[Dialect], derived: Sequence[Derived]) -> dict[Mark, int]:
    """Each mark that something asks for -> its bit."""
    marks = [
        *(mark for dialect in dialects for mark in (*dialect.when, *dialect.unless)),
        *(mark for rule in derived for mark in rule.when),
        *conventions.NO_CALLS,
        *conventions.MCP,
        *conventions.FAILURES,
        *conventions.BOUNDARIES,
    ]
    found = list(dict.fromkeys(marks))
    assert len(found) <= BITS_MAX, "marks are bits of one int64"
    return {mark: 1 << bit for bit, mark in enumerate(found)}


def _union(bits: dict[Mark, int], marks: Iterable[Mark]) -> int:
    return sum({bits[mark] for mark in marks})


def _add_identity(table: _Table, identity: Sequence[Sequence[str]], weak: Sequence[str]) -> None:
    for who, keys in enumerate(identity):
        for rank, key in enumerate(keys):
            order = rank + (WEAK if key in weak else 0)
            table.roles.setdefault(key, []).append((who, 0, order, 0))
    for name, role in (
        (conventions.SERVICE_NAME, SERVICE),
        (conventions.SERVICE_NAMESPACE, NAMESPACE),
    ):
        table.roles.setdefault(name, []).append((role, 0, 0, 0))


def _add_facts(table: _Table, dialects: Sequence[Dialect]) -> None:
    for role, names in (
        (TOOL, _unique(key for d in dialects for key in d.tool)),
        (ERROR, _unique(key for d in dialects for key in d.error)),
        (CALL_ID, _unique(key for d in dialects for key in d.call_id)),
        (ARGUMENTS, _unique(key for d in dialects for key in d.arguments)),
        (RESULT, _unique(key for d in dialects for key in d.result)),
        (MODEL, list(conventions.MODELS)),
    ):
        for rank, key in enumerate(names):
            table.roles.setdefault(key, []).append((role, 0, rank, 0))
    for key, number in table.spares.items():
        table.roles.setdefault(key, []).append((SPARE, number, 0, 0))


def _add_marks(table: _Table) -> None:
    """One role a key: the bits of its named values, and those of any value."""
    for key in dict.fromkeys(key for key, _ in table.bits if key != SPAN_NAME):
        named = sum(bit for mark, bit in table.bits.items() if mark[0] == key and _values(mark))
        any_text = table.bits.get((key, ANY_TEXT), 0)
        table.roles.setdefault(key, []).append((MARK, named, 0, any_text))


def compile_keys(
    identity: Sequence[Sequence[str]],
    weak: Sequence[str],
    *,
    prefix: str,
    seed: int,
    placeholders: Sequence[str] = PLACEHOLDERS,
    lenient: bool = False,
    dialects: Sequence[Dialect] = DIALECTS,
    derived: Sequence[Derived] = DERIVED,
) -> np.ndarray:
    """Build the table, KEYS [1]. `identity` holds a list of keys for each of `WHO`, best first.

    `placeholders`: what names no agent. `lenient`: also the dialects that may take too much.
    """
    assert len(identity) == len(WHO)
    assert len(prefix) < PREFIX_MAX, "prefix too long"
    dialects = [dialect for dialect in dialects if lenient or not dialect.lenient]
    assert len(dialects) <= RULES_MAX, "too many dialects"
    derived_from = (rule.source for rule in derived if rule.source != SPAN_NAME)
    sources = dict.fromkeys((*DOCUMENTS, EVENT_TIME, *derived_from))
    assert len(sources) <= SPARES_MAX, "too many sources"
    spares = {source: number for number, source in enumerate(sources)}
    table = _Table(_bits_of(dialects, derived), {}, spares)
    _add_identity(table, identity, weak)
    _add_facts(table, dialects)
    _add_marks(table)
    compiled = np.zeros(1, KEYS)
    keys = compiled[0]
    keys["seed"] = seed
    _fill_slots(keys, table.roles, seed)
    _fill_values(keys, table.bits, seed)
    _fill_rules(keys, table.bits, dialects)
    _fill_texts(keys, table, derived)
    _fill_absent(keys, placeholders, seed)
    encoded = np.frombuffer(f"{prefix}.".encode(), np.uint8)
    keys["prefix_size"] = encoded.size
    keys["prefix"][: encoded.size] = encoded
    return compiled


EVENTS: Final = np.int64(0x45)
"""Mixed into the hash of an event's name, so that no attribute's key is taken for it."""


BODY: Final = np.int64(0x42)
"""What the hashes of the members of a log record's body begin with."""


def _hashes(key: Key, seed: int) -> list[int]:
    """Hashes of a key, those of all that is on the way to it first: an event's name, a body's."""
    if isinstance(key, str):
        return [hash_text(key, seed)]
    if isinstance(key, BodyKey):
        way = [int(BODY)]
        for step in key.path:
            told = step if isinstance(step, int) else hash_text(step, seed)
            way.append(int(hash_two(way[-1], told, seed)))
        return way[1:]
    event = int(hash_two(hash_text(key.event, seed), EVENTS, seed))
    return [event, int(hash_two(event, hash_text(key.key, seed), seed))]


def _fill_slots(keys: np.void, by_key: dict[Key, list[Role]], seed: int) -> None:
    """Open addressing with linear probing, at most half full. What leads to a key has no roles."""
    assert sum(map(len, by_key.values())) <= ROLES_MAX, "too many roles"
    ranks = [role[2] % WEAK for roles in by_key.values() for role in roles]
    assert max(ranks, default=0) < RANKS_MAX, "too many keys for one role"
    found: dict[int, list[Role]] = {}
    for key, roles in by_key.items():
        *way, hashed = _hashes(key, seed)
        found[hashed] = roles
        for step in way:
            found.setdefault(step, [])
    size = 1 << (2 * len(found)).bit_length()
    assert size <= SLOTS_MAX, "too many keys"
    keys["slot_mask"] = size - 1
    used = 0
    for hashed, roles in found.items():
        assert len(roles) <= COUNT_MASK, "too many roles of a key"
        is_hashed = any(role[0] not in {ARGUMENTS, RESULT, SPARE} for role in roles)
        packed = used << FIRST_SHIFT | int(HASHED) * is_hashed | len(roles)
        keys["slots"][_free(keys["slots"], hashed, size)] = hashed, packed
        for i, role in enumerate(roles):
            keys["roles"][used + i] = role
        used += len(roles)


def _free(slots: np.ndarray, hashed: int, size: int) -> int:
    place = hashed & (size - 1)
    while slots[place, 0]:
        place = (place + 1) & (size - 1)
    return place


def _fill_values(keys: np.void, bits: dict[Mark, int], seed: int) -> None:
    """Pairs of key and value, with all the bits they stand for."""
    keys["event_key"] = hash_text("event.name", seed)
    pairs: dict[int, int] = {}
    for mark, bit in bits.items():
        if mark[0] == SPAN_NAME:
            continue
        for spelled in {spelled for value in _values(mark) for spelled in _spellings(value)}:
            pair = int(hash_two(_hashes(mark[0], seed)[-1], hash_text(spelled, seed), seed))
            pairs[pair] = pairs.get(pair, 0) | bit
    size = 1 << (2 * len(pairs)).bit_length()
    assert size <= VALUES_MAX, "too many values"
    keys["value_mask"] = size - 1
    for pair, found in pairs.items():
        keys["values"][_free(keys["values"], pair, size)] = pair, found


def _fill_rules(keys: np.void, bits: dict[Mark, int], dialects: Sequence[Dialect]) -> None:
    for name, marks in (
        ("no_call", conventions.NO_CALLS),
        ("part", conventions.PARTS),
        ("boundary", conventions.BOUNDARIES),
        ("mcp", conventions.MCP),
        ("failed", conventions.FAILURES),
    ):
        keys[name] = _union(bits, marks)
    keys["rule_count"] = len(dialects)
    for i, dialect in enumerate(dialects):
        needed, forbidden = _union(bits, dialect.when), _union(bits, dialect.unless)
        log = int(OF_LOG)
        keys["rules"][i] = (needed | log, forbidden) if dialect.logs else (needed, forbidden | log)


class _Texts:
    """Texts in one piece."""

    def __init__(self, room: np.ndarray) -> None:
        self._room, self._used = room, 0

    def add(self, text: str) -> tuple[int, int]:
        """(where it is, its size)."""
        encoded = np.frombuffer(text.encode(), np.uint8)
        start, stop = self._used, self._used + encoded.size
        assert stop <= self._room.size, "too many texts"
        self._room[start:stop] = encoded
        self._used = stop
        return start, encoded.size


def _fill_texts(keys: np.void, table: _Table, derived: Sequence[Derived]) -> None:
    """Names that are marks, facts that stand inside others, names of scopes."""
    texts = _Texts(keys["texts"])
    names = [(mark[1], bit) for mark, bit in table.bits.items() if mark[0] == SPAN_NAME]
    assert len(names) <= NAMES_MAX, "too many names"
    keys["name_count"] = len(names)
    for i, (pattern, bit) in enumerate(names):
        assert isinstance(pattern, str)
        start = pattern.removesuffix(ANY_TEXT)
        assert start, "a name that is a mark begins with something"
        keys["names"][i] = *texts.add(start), start == pattern, bit
        keys["name_starts"][start.encode()[0]] = 1
    assert len(derived) <= DERIVED_MAX, "too many derived facts"
    keys["derived_count"] = len(derived)
    for i, rule in enumerate(derived):
        role = ROLES.index(rule.role)
        assert role != TOOL or rule.of_calls, "a tool's name is derived for calls only"
        needed = _union(table.bits, rule.when) | (int(NAMELESS_CALL) if rule.of_calls else 0)
        keys["derives"] |= needed
        if needed == 0:
            assert rule.source == SPAN_NAME, "a derived fact has a condition or begins a name"
            assert rule.prefix, "a derived fact has a condition or begins a name"
            keys["name_starts"][rule.prefix.encode()[0]] = 1
        source = IN_NAME if rule.source == SPAN_NAME else table.spares[rule.source]
        keys["derived"][i] = (
            role,
            needed,
            source,
            *texts.add(rule.prefix),
            *texts.add(rule.suffix),
        )
    assert len(PLUGIN_SCOPES) <= SCOPES_MAX, "too many scopes"
    keys["scope_count"] = len(PLUGIN_SCOPES)
    for i, scope in enumerate(PLUGIN_SCOPES):
        keys["scopes"][i] = texts.add(scope)


def lowered(text: str) -> str:
    """In lower case, ASCII only: as the kernel does it."""
    return text.translate({upper: upper | 32 for upper in range(ord("A"), ord("Z") + 1)})


def _fill_absent(keys: np.void, placeholders: Sequence[str], seed: int) -> None:
    """Texts that say nothing, by role; compared in lower case."""
    absent = [
        (role, lowered(text))
        for role, texts in (
            (AGENT, placeholders),
            (TOOL, conventions.NO_TOOL),
            (CALL_ID, conventions.NO_CALL_ID),
            (ARGUMENTS, conventions.NO_ARGUMENTS),
            (ERROR, conventions.NO_ERROR),
        )
        for text in texts
    ]
    assert len(absent) <= ABSENT_MAX, "too many placeholders"
    keys["absent_count"] = len(absent)
    for i, (role, text) in enumerate(absent):
        keys["absent"][i] = role, hash_text(text, seed)
        keys["absent_lengths"][role] |= 1 << min(len(text.encode()), LENGTHS)
