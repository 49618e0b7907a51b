"""How tests call the readers of argument strings, and read what they found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otel_anomaly.kernels import Array, Int, kernel
from otel_anomaly.otlp import content
from otel_anomaly.otlp.content import CONTENT_PLAN, FOUND, look, make_content_plan, name_hints
from otel_anomaly.otlp.hashing import hash_text, hash_two

SEED = 0x1234_5678_9ABC_DEF0
OPEN_PLAN = make_content_plan(SEED)
"""No list at all."""


class Found(NamedTuple):
    """What `look` added."""

    destinations: dict[int, int]
    beyond: int
    secrets: int
    personal: int
    strong: int


@kernel
def _look(text: Array, at: Int, end: Int, hints: Int, plan: Array, found: Array) -> None:
    look(text, at, end, hints, plan[0], found[0])


def look_at(
    text: str | bytes,
    name: str = "",
    plan: Array = OPEN_PLAN,
    around: tuple[bytes, bytes] = (b"", b""),
) -> Found:
    """What one value gives away, the member being called `name`."""
    data = text.encode() if isinstance(text, str) else text
    before, behind = around
    whole = np.array(memoryview(before + data + behind), np.uint8)  # Not a byte more.
    label = np.frombuffer(name.encode() + b"\0", np.uint8)
    hints = np.int64(name_hints(label, np.int64(0), np.int64(label.size - 1)))
    found = np.zeros(1, FOUND)
    assert plan.dtype == CONTENT_PLAN
    at = np.int64(len(before))
    _look(whole, at, np.int64(len(before) + len(data)), hints, plan, found)
    row = found[0]
    count = int(row["destinations"])
    keys = (int(key) for key in row["destination"][:count])
    kinds = (int(kinds) for kinds in row["destination_is"][:count])
    return Found(
        dict(zip(keys, kinds, strict=True)),
        int(row["beyond"]),
        int(row["secrets"]),
        int(row["personal"]),
        int(row["personal_strong"]),
    )


def host_key(normal: str) -> int:
    """The hash of a host by its normal form."""
    return int(hash_two(content.HOST, hash_text(normal, SEED), SEED))


def mail_key(name: str, normal: str) -> int:
    """The hash of a mail address by its name and the normal form of its domain."""
    inner = hash_two(hash_text(name, SEED), hash_text(normal, SEED), SEED)
    return int(hash_two(content.MAIL, inner, SEED))


def path_key(root: str) -> int:
    """The hash of a root."""
    return int(hash_two(content.PATH, hash_text(root, SEED), SEED))


def account_key(number: str) -> int:
    """The hash of an account."""
    return int(hash_two(content.ACCOUNT, hash_text(number, SEED), SEED))
