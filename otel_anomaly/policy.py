"""Which limits apply to a call: its tenant, agent and tool against the patterns of the policy.

A pattern list belongs to one override, or to a class of tools, and each is one bit. A table holds
the patterns of one kind of name, every different pattern once, with the lists that it is in:

    text     * b u i l d * c i - ?     all patterns, one after the other, in lower case
    start    0             7       11  where each begins, and where the last ends
    lists    0b0001        0b0010      the lists it is in
    always   0b0100                    lists that match without a pattern: none was given

    tenants, agents   bit i: override i
    tools             the same, and above them the classes POLLING and BATCH
    programs          bit p: the tool is one that starts programs, under plan p

    match_all(table, name) = always | the lists of every pattern that matches

    tenant bits & agent bits & tool bits = the overrides that apply; the lowest is the first: its
    detectors are used, plan 1 + i; none: the detectors section itself, plan 0.

Matching is greedy: a star takes as little as it can, and only the last star is ever moved, because
a longer match of an earlier one leaves less for what follows. So a name costs at most its length
times that of the patterns, whatever it holds, and names are cut at 256 bytes: an agent chooses its
names, and cannot choose expensive ones. Whoever calls keeps the bits of a name.

Letters beyond ASCII are matched as they are: look-alikes do not match, and so get the limits of the
base. A name that is not told is empty: only `*`, or no pattern at all, matches it.

>>> from otel_anomaly.config import Config
>>> slow = {"agent": "ci-*", "detectors": {"rate": {"warn": 5}}}
>>> patterns = compile_patterns(Config.model_validate({"policy": {"overrides": [slow]}}))
>>> name = np.frombuffer(b"CI-7", np.uint8)
>>> agent = match_all(patterns.agent[0], name, np.int64(0), np.int64(4))
>>> others = match_all(patterns.tool[0], name, np.int64(0), np.int64(0))
>>> int(which_override(others, agent, others))
1
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from otel_anomaly.config import (
    GLOB_BYTES_MAX,
    OVERRIDES_MAX,
    PATTERNS_MAX,
    Config,
    effective_detectors,
)
from otel_anomaly.detectors.call import BATCH, POLLING
from otel_anomaly.kernels import Array, Int, Record, inlined, kernel

NAME_BYTES_MAX: Final = 256
"""Only so much of a name is looked at."""
CLASS_SHIFT: Final = OVERRIDES_MAX
"""The classes of a tool, as `CALL` has them in `exempt`, stand above the overrides."""
CLASSES: Final = POLLING | BATCH
assert np.iinfo(np.int64).max >= CLASSES << CLASS_SHIFT
assert np.iinfo(np.int64).bits > OVERRIDES_MAX + 1, "a bit for every plan, and the sign is none"

_STAR, _ANY_ONE, _NOTHING = np.int64(ord("*")), np.int64(ord("?")), np.int64(-1)
_UPPER_A, _UPPER_Z, _TO_LOWER = ord("A"), ord("Z"), ord("a") - ord("A")
_CONTINUES, _CONTINUES_MASK = 0x80, 0xC0

PATTERNS = np.dtype(
    [
        ("always", "i8"),  # Lists that match without a pattern.
        ("count", "i8"),
        ("lists", "i8", (PATTERNS_MAX,)),
        ("start", "i8", (PATTERNS_MAX + 1,)),
        ("text", "u1", (PATTERNS_MAX * GLOB_BYTES_MAX,)),
    ],
    align=True,
)
"""The patterns of one kind of name."""


class Patterns(NamedTuple):
    """The compiled policy: PATTERNS [1] each."""

    tenant: np.ndarray
    agent: np.ndarray
    tool: np.ndarray
    programs: np.ndarray


def compile_patterns(config: Config) -> Patterns:
    """The patterns of the overrides, of the classes of tools, and of what starts programs."""
    policy = config.policy
    tenants, agents, tools = (
        {1 << i: getattr(override, who) for i, override in enumerate(policy.overrides)}
        for who in ("tenant", "agent", "tool")
    )
    classes = {
        POLLING << CLASS_SHIFT: policy.polling_tools,
        BATCH << CLASS_SHIFT: policy.batch_tools,
    }
    programs = {1 << p: d.child_process.tools for p, d in enumerate(effective_detectors(config))}
    return Patterns(
        _table(tenants, _not_given(tenants)),
        _table(agents, _not_given(agents)),
        _table(tools | classes, _not_given(tools)),
        _table(programs, 0),
    )


def _not_given(lists: Mapping[int, Sequence[str]]) -> int:
    return sum(bit for bit, globs in lists.items() if not globs)


def _table(lists: Mapping[int, Sequence[str]], always: int) -> np.ndarray:
    """PATTERNS [1] of the lists by their bits."""
    found: dict[bytes, int] = {}
    for bit, globs in lists.items():
        for glob in globs:
            text = re.sub(r"\*+", "*", glob).encode().lower()  # Of bytes: ASCII letters only.
            found[text] = found.get(text, 0) | bit
    assert len(found) <= PATTERNS_MAX, "checked with the configuration"
    table = np.zeros(1, PATTERNS)
    table["always"], table["count"] = always, len(found)
    table["lists"][0, : len(found)] = list(found.values())
    table["start"][0, 1 : len(found) + 1] = np.cumsum([len(text) for text in found])
    joined = np.frombuffer(b"".join(found), np.uint8)
    table["text"][0, : joined.size] = joined
    return table


@inlined
def _folded(byte: Int) -> Int:
    """An ASCII letter in lower case; any other byte as it is."""
    return byte + _TO_LOWER if _UPPER_A <= byte <= _UPPER_Z else byte


@kernel
def _matches(table: Record, index: Int, data: Array, at: Int, end: Int) -> bool:
    """Whether a pattern matches all of `data[at:end]`. Needs `0 <= at` and `end <= size`."""
    here, stop = table["start"][index], table["start"][index + 1]
    after_star, resume = _NOTHING, at
    while at < end:
        wanted = np.int64(table["text"][here]) if here < stop else _NOTHING
        if wanted == _STAR:
            here += 1
            after_star, resume = here, at
            if here == stop:
                return True
        elif wanted == _ANY_ONE:
            here += 1
            at += 1
            while at < end and data[at] & _CONTINUES_MASK == _CONTINUES:
                at += 1
        elif wanted == _folded(np.int64(data[at])):
            here += 1
            at += 1
        elif after_star >= 0:
            resume += 1
            here, at = after_star, resume
        else:
            return False
    while here < stop and table["text"][here] == _STAR:
        here += 1
    return bool(here == stop)


@kernel
def match_all(table: Record, data: Array, at: Int, length: Int) -> Int:
    """The lists of a table that a name matches, as bits; `length` 0 for a name not told."""
    end = min(at + min(length, np.int64(NAME_BYTES_MAX)), np.int64(data.size))
    lists = table["always"]
    for index in range(table["count"]):
        wanted = table["lists"][index]
        if wanted & ~lists != 0 and _matches(table, index, data, at, end):
            lists |= wanted
    return lists


@inlined
def which_override(tenant_bits: Int, agent_bits: Int, tool_bits: Int) -> Int:
    """The plan of a call: 0 for the detectors section, 1 + i for override i, the first to match."""
    bits = tenant_bits & agent_bits & tool_bits  # Classes are in one of the three only.
    plan = np.int64(0)
    while bits != 0:
        plan += 1
        bits = bits >> 1 if bits & 1 == 0 else np.int64(0)
    return plan


@inlined
def exemptions(tool_bits: Int) -> Int:
    """POLLING and BATCH, as `CALL` has them in `exempt`."""
    return tool_bits >> CLASS_SHIFT & CLASSES


@inlined
def starts_program(program_bits: Int, plan: Int) -> Int:
    """1 when the tool is one that starts programs, under the detectors of `plan`; else 0."""
    return program_bits >> plan & 1
