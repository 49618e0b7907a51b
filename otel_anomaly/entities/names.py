"""From numbers back to words: the text of identities and ids, for reports and trails.

Only for calls that somebody is told about; the kernels never need a text.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np

from otel_anomaly.entities.identity import (
    FROM_ABOVE,
    FROM_NOBODY,
    FROM_TRACE,
    NAME_BYTES,
    NAMES_OF_KINDS,
    OF_AGENT,
    OF_SESSION,
    OF_TENANT,
    OF_USER,
)
from otel_anomaly.entities.table import Table, find
from otel_anomaly.otlp.attributes import BOOL, STRING
from otel_anomaly.otlp.dialects import AGENT, SESSION, TENANT, TOOL, USER, WHO
from otel_anomaly.otlp.scan import ABSENT
from otel_anomaly.otlp.wire import read_varint

TEXT_BYTES_MAX: Final = 256
"""Identities are cut here when they are told; what counts is the hash of the whole."""

_WHO_OF_KIND: Final = {
    int(OF_TENANT): TENANT,
    int(OF_AGENT): AGENT,
    int(OF_SESSION): SESSION,
    int(OF_USER): USER,
}


class Caller(NamedTuple):
    """Who made a call, in words; None where the telemetry does not say."""

    tenant: str | None
    agent: str | None
    session: str | None
    user: str | None
    owner: str | None


def decode(data: np.ndarray, kind: int, at: int, length: int) -> str:
    """The value at `at` as a person would write it, cut at TEXT_BYTES_MAX."""
    raw = data[at : at + length]
    if kind == STRING:
        cut = raw[:TEXT_BYTES_MAX].tobytes().decode("utf-8", errors="ignore")
        return cut if length <= TEXT_BYTES_MAX else cut + "..."
    number = int(read_varint(raw, np.int64(0), np.int64(raw.size))[0])
    if kind == BOOL:
        return "true" if number else "false"
    return str(number)


class Texts(Protocol):
    """Where the texts of borrowed identities are kept."""

    @property
    def traces(self) -> Table:
        """Of `identity.TRACE`."""

    @property
    def names(self) -> Table:
        """Of `identity.NAME`."""


def _identity(
    data: np.ndarray, row: np.void, person: np.void, texts: Texts, who: int
) -> str | None:
    source = person["source"][who]
    if source == FROM_NOBODY:
        return None
    if source == FROM_ABOVE:
        found = find(texts.names, np.int64(person["hash"][who]))
        name = texts.names.rows[found]
        return _kept(name["text"], int(name["kind"]), int(name["length"])) if found else None
    if source != FROM_TRACE:
        return decode(data, row["kind"][who], int(row["at"][who]), int(row["length"][who]))
    trace = texts.traces.rows[person["trace"]]
    return _kept(trace["text"][who], int(trace["kind"][who]), int(trace["length"][who]))


def _kept(text: np.ndarray, kind: int, length: int) -> str:
    """A text of which the first NAME_BYTES were kept."""
    told = decode(text, kind, 0, min(length, NAME_BYTES))
    return told if length <= NAME_BYTES else told + "..."


def caller(data: np.ndarray, row: np.void, person: np.void, texts: Texts) -> Caller:
    """Who made the call of `row`. True only until the next request is judged."""
    return Caller(*(_identity(data, row, person, texts, who) for who in range(len(WHO))))


def tool(data: np.ndarray, row: np.void) -> str | None:
    """The tool's name, where the span tells it."""
    if row["order"][TOOL] == ABSENT:
        return None
    return decode(data, row["kind"][TOOL], int(row["at"][TOOL]), int(row["length"][TOOL]))


def trace_id(data: np.ndarray, row: np.void) -> str:
    """Hex; empty when the span has none of the right length."""
    at = int(row["trace_at"])
    return "" if at < 0 else data[at : at + 16].tobytes().hex()


def span_id(data: np.ndarray, row: np.void) -> str:
    """Hex; empty when the span has none of the right length."""
    at = int(row["span_at"])
    return "" if at < 0 else data[at : at + 8].tobytes().hex()


def entity(kind: int, of: Caller) -> str:
    """An entity with its kind: `session:s-1`, `agent:billing`, `anon`."""
    name = NAMES_OF_KINDS[kind]
    who = _WHO_OF_KIND.get(kind)
    return name if who is None else f"{name}:{of[who]}"
