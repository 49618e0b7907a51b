"""Text with planted secrets and personal data, and what it must become when it is redacted.

The generator knows where each plant lies, so the twin needs no recogniser: it writes the same text
again with a star in place of each plant. Longer runs of stars are folded before they are compared,
and so are runs of nines of planted numbers.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any, NamedTuple

SECRETS = (
    "AKIAIOSFODNN7EXAMPLQ",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-proj-Aa0Bb1Cc2Dd3Ee4Ff5Gg6",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "xoxb-123456789012-abcdefghijklm",
)
MAILS = ("ann@example.com", "b.o-b+tag@mail.example.org")
PHONES = ("212-555-0123", "020 7946 0958")
NUMBERS = ("4111 1111 1111 1111", "5555555555554444", "078-05-1120", "GB82 WEST 1234 5698 7654 32")
PLANTS = {"secrets": SECRETS, "mails": MAILS, "phones": PHONES, "numbers": NUMBERS}
KINDS = tuple(PLANTS)
CARD = 4111111111111111
WORDS = (
    "hello",
    "order 17 of 2026",
    "caf\u00e9",
    "\u4f60\u597d",
    'say "yes"',
    "tab\there",
    "line\nbreak",
    "C:/temp",
    "\U0001f600",
    "10.5 EUR",
    "see https://docs.python.org/3/ there",
    "a = b",
    "*",
)
SAFE_NAMES = ("note", "query", "n\u00e4me", "first name", "x", 'quo"ted')
DEPTH = 3


class Planted(NamedTuple):
    """A value, and what is left of it."""

    value: Any
    left: Any


def text(rng: random.Random, kinds: tuple[str, ...] = KINDS) -> Planted:
    """Words with plants between them; plants of `kinds` become a star."""
    pieces, left = [], []
    for _ in range(rng.randrange(1, 5)):
        if rng.random() < 0.5:
            kind = rng.choice(KINDS)
            plant = rng.choice(PLANTS[kind])
            pieces.append(plant)
            left.append("*" if kind in kinds else plant)
        else:
            word = rng.choice(WORDS)
            pieces.append(word)
            left.append(word)
    between = rng.choice(("; ", " | ", "\n", ";\t"))
    return Planted(between.join(pieces), between.join(left))


def value(rng: random.Random, kinds: tuple[str, ...] = KINDS, depth: int = DEPTH) -> Planted:
    """A JSON value: strings with plants, numbers, lists, maps, JSON in strings."""
    choice = rng.random()
    if depth == 0 or choice < 0.35:
        return text(rng, kinds)
    if choice < 0.45:
        return Planted(CARD, 9 if "numbers" in kinds else CARD)
    if choice < 0.55:
        plain = rng.choice([None, True, 12, -3.5e10, 1792612800123456789, "", "ok"])
        return Planted(plain, plain)
    if choice < 0.7:
        items = [value(rng, kinds, depth - 1) for _ in range(rng.randrange(4))]
        return Planted([item.value for item in items], [item.left for item in items])
    if choice < 0.85 or depth < DEPTH:
        pairs = {}
        for name in rng.sample(SAFE_NAMES, rng.randrange(4)):
            pairs[name] = value(rng, kinds, depth - 1)
        return Planted(
            {name: item.value for name, item in pairs.items()},
            {name: item.left for name, item in pairs.items()},
        )
    inside = value(rng, kinds, depth - 1)
    while not isinstance(inside.value, dict | list):
        inside = value(rng, kinds, depth - 1)
    return Planted(json.dumps(inside.value), Inside(inside.left))


class Inside(NamedTuple):
    """What is left of JSON text within a string."""

    left: Any


def folded(found: Any, left: Any) -> Any:
    """`found` as `left` is written: runs of stars and of nines folded, JSON in strings read."""
    if isinstance(found, Inside):
        return Inside(folded(found.left, found.left))
    if isinstance(left, Inside):
        return Inside(folded(json.loads(found), left.left))
    if isinstance(left, dict) and isinstance(found, dict):
        return {name: folded(item, left.get(name)) for name, item in found.items()}
    if isinstance(left, list) and isinstance(found, list) and len(left) == len(found):
        return [folded(item, other) for item, other in zip(found, left, strict=True)]
    if isinstance(found, str):
        return re.sub(r"\*+", "*", found)
    if isinstance(found, int) and set(str(found)) == {"9"}:
        return 9
    return found
