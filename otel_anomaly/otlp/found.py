"""What was found in the arguments of one call: destinations, secrets and personal data, counted.

A destination is told apart by a hash of its kind and normal form. There is room for eight. Naming
many harmless ones to push out the one that matters does not work: when all places are taken, the
one that says least makes way (`_weight`), and how many found no place is counted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel
from otel_anomaly.otlp.hashing import hash_bytes

DESTINATIONS_MAX: Final = 8
SECRETS_MAX: Final = 8
"""Counted in one string value at most."""

HOST, MAIL, ACCOUNT, PATH, PUBLIC, OUTSIDE, LISTED, ASIDE, DATUM, LINK = (
    1 << bit for bit in range(10)
)
"""What a destination is. HOST to PATH: its kind. PUBLIC: not known to be local. OUTSIDE: out of
the house that `data_exfiltration.inside` describes. LISTED: on `unknown_connection.allow`. ASIDE:
only mentioned in running text, not given as a value of its own. DATUM: a mail address or an IBAN
that is a value of its own, under a name that does not say that something goes there: where the call
leads, or what it carries. LINK: a host of a link in a text that says what it is, a mail's or a
file's (`{"content": ..}`): nothing goes there by this call."""

FOUND = np.dtype(
    [
        ("destination", "i8", (DESTINATIONS_MAX,)),
        ("destination_is", "i4", (DESTINATIONS_MAX,)),
        ("destinations", "i4"),
        ("beyond", "i4"),  # Destinations that found no place.
        ("secrets", "i4"),
        ("credentials", "i4"),  # Of these: they log in where the call goes.
        ("personal", "i4"),  # All personal data, the strong ones included.
        ("personal_strong", "i4"),  # Of these: card, account and national id numbers.
        ("secret", "i8", (SECRETS_MAX,)),  # The last ones counted: a copy counts once in a value.
        # Where the secret or personal datum met last lies, counted or not: for who covers it.
        ("mark_at", "i8"),
        ("mark_end", "i8"),
        ("mark_is", "i4"),
        ("marked", "i4"),  # How many of them were covered.
    ],
    align=True,
)
"""All zeros: nothing found yet."""


@kernel
def range_hash(text: Array, at: Int, end: Int, seed: Int) -> Int:
    """`hash_bytes` of [at, end), compiled once: none of its callers here is in a hurry."""
    return hash_bytes(text, at, end - at, seed)


SECRETS, MAILS, PHONES, NUMBERS = (1 << bit for bit in range(4))
"""What a mark is. NUMBERS: of cards, accounts and citizens."""


@inlined
def set_mark(found: Record, at: Int, end: Int, what: Int) -> None:
    """Note where something lies that is to be covered when a request is redacted."""
    found["mark_at"], found["mark_end"], found["mark_is"] = at, end, what


@inlined
def _weight(kinds: Int) -> Int:
    """How much a destination matters: outside before inside, unlisted hosts before others."""
    weight = 4 if kinds & (OUTSIDE | LINK) == OUTSIDE else 0
    if kinds & HOST != 0 and kinds & LISTED == 0:
        weight += 2
    return weight + (0 if kinds & PATH != 0 else 1)


@kernel
def add_destination(found: Record, key: Int, kinds: Int) -> None:
    """Add a destination, or what this mention of it says that earlier ones did not.

    A host is LISTED when every mention of it is (ports differ), ASIDE or LINK when every one is.
    """
    keys, bits = found["destination"], found["destination_is"]
    count = found["destinations"]
    for i in range(count):
        if keys[i] == key:
            both = bits[i] & kinds & (LISTED | ASIDE | LINK)
            bits[i] = ((bits[i] | kinds) & ~(LISTED | ASIDE | LINK)) | both
            return
    if count < DESTINATIONS_MAX:
        keys[count], bits[count] = key, kinds
        found["destinations"] = count + 1
        return
    found["beyond"] += 1
    least = 0
    for i in range(1, count):
        if _weight(bits[i]) < _weight(bits[least]):
            least = i
    if _weight(bits[least]) < _weight(kinds):
        keys[least], bits[least] = key, kinds


@kernel
def add_secret(found: Record, text: Array, at: Int, end: Int, seed: Int, before: Int) -> None:
    """Count the secret candidate in [at, end). `before`: how many there were before this value."""
    set_mark(found, at, end, SECRETS)
    key, count = range_hash(text, at, end, seed), found["secrets"]
    if count - before >= SECRETS_MAX:
        return
    secrets = found["secret"]
    for i in range(before, count):
        if secrets[i % SECRETS_MAX] == key:
            return
    secrets[count % SECRETS_MAX] = key
    found["secrets"] = count + 1
