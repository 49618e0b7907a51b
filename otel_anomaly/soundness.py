"""Whether what was kept of a state can be one of ours: asked of every snapshot before it is used.

Compiled kernels check no bounds. A number that names a row, a place or a count of something reads
and writes wherever it points to, so nothing of the kind is believed because a file says it:

    slots, masks, capacities   worked out anew, from the keys and the configuration
    sums                       worked out anew, from what they are sums of
    request and row of a link  emptied: they mean something only while a request is judged
    everything else            held against the bounds below, field by field

A field that is missing from the table, or that is no more, fails where this module is imported.
Bounds are what the state can reach, so what is refused was damaged, or made by somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from otel_anomaly.detectors import loop, past
from otel_anomaly.detectors.finding import ACTIONS
from otel_anomaly.entities.identity import NAME, NAME_BYTES, TRACE
from otel_anomaly.entities.links import FOLDED_MAX, LINK, WAITERS_MAX
from otel_anomaly.otlp.content import DESTINATIONS_MAX
from otel_anomaly.otlp.rows import ABSENT
from otel_anomaly.resizing import TABLES, Kept
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import AGENT, ENTRY, EPISODE, SERVICE, SESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otel_anomaly.entities.packing import KeptTable

AT_ONCE: Final = 4096
"""Rows looked at together: no column of a whole table is made."""
RINGS_START: Final = -64
"""A ring cut anew begins some sub-windows before its first call."""
_LAST: Final = (1 << 63) - 1
_NUMBER_MAX: Final = 1 << 62

Bounds = tuple[float, float] | None
ANY: Final[Bounds] = None
"""All that the type holds: hashes, bits and counters of rings."""
FLAG: Final[Bounds] = (0, 1)
TIME: Final[Bounds] = (0, _LAST)
SECOND: Final[Bounds] = (0, _LAST // 10**9 + 1)
COUNT: Final[Bounds] = (0, _NUMBER_MAX)
SMALL: Final[Bounds] = (0, 1 << 30)
BITS: Final[Bounds] = (0, (1 << len(DETECTORS)) - 1)
FINITE: Final[Bounds] = (-1e300, 1e300)
SERIAL: Final[Bounds] = (0, -1)
"""At most the serial number of the last call: one beyond it is a place outside of the journal."""

_RING: Final[dict[str, Bounds]] = {"head": SECOND, "total": ANY, "counts": ANY}
_WINDOWS: Final[dict[str, Bounds]] = {"subwindow_ns": COUNT, "head": (RINGS_START, _LAST)}
_PAST: Final[dict[str, Bounds]] = {
    "born_ns": TIME,
    "calls": COUNT,
    "total": ANY,
    "shaped": ANY,
    "day": (0, past.DAY_MAX),
    "tools": ANY,
    "entry": ANY,
}
_OF_ROW: Final[dict[str, Bounds]] = {"key": ANY, "seen_ns": TIME}
_BURST: Final[dict[str, Bounds]] = {
    "hour": SECOND,
    "alarm": SECOND,
    "busy_hour": SECOND,
    "usual": (0, 65535),
    "busy": SMALL,
    "peak": SMALL,
    "spoilt": FLAG,
    "peaks": ANY,
}
_SHIFT: Final[dict[str, Bounds]] = {
    "first_ns": TIME,
    "samples": COUNT,
    "earlier": COUNT,
    "head": SECOND,
    "flagged": ANY,
    "limit": (-np.inf, np.inf),  # Any but NaN.
    "usual": (0, 65535),
    "counts": ANY,
    "peaks": ANY,
    "rules": ANY,
}
_LOOP: Final[dict[str, Bounds]] = {
    **_WINDOWS,
    **dict.fromkeys(("tag", "recent", "result", "total", "calls", "runs", "hand", "counts"), ANY),
}
_CALL: Final[dict[str, Bounds]] = {
    "time_ns": TIME,
    "destinations": (0, DESTINATIONS_MAX),
    "destination": ANY,
    "destination_is": ANY,
    "exempt": (0, 3),
    **dict.fromkeys(("tool", "fingerprint", "names", "result", "program", "agent", "owner"), ANY),
    **dict.fromkeys(("secrets", "credentials", "personal", "personal_strong"), SMALL),
    **dict.fromkeys(("has_arguments", "starts_program", "fresh", "failed"), FLAG),
}
_OWN: Final[dict[str, Bounds]] = {
    "flags": SMALL,
    "order": (0, ABSENT),
    **dict.fromkeys(("trace", "parent", "service", "hash"), ANY),
}


def _under(name: str, fields: Mapping[str, Bounds]) -> dict[str, Bounds]:
    return {f"{name}.{field}": bounds for field, bounds in fields.items()}


LEGAL: Final[dict[str, tuple[np.dtype, dict[str, Bounds]]]] = {
    "traces": (
        TRACE,
        {
            **_OF_ROW,
            "last": SERIAL,
            "changed": FLAG,
            "start_ns": ANY,
            "hash": ANY,
            "kind": (0, 127),
            "length": (0, NAME_BYTES + 1),
            "text": ANY,
        },
    ),
    "names": (NAME, {**_OF_ROW, "kind": (0, 127), "length": (0, NAME_BYTES + 1), "text": ANY}),
    "agents": (
        AGENT,
        {
            **_OF_ROW,
            "open": BITS,
            **_under("leak", {**_WINDOWS, "counts": ANY}),
            **_under("burst", {**_BURST, **_under("ring", _RING)}),
            **_under("shift", _SHIFT),
            **_under("past", _PAST),
        },
    ),
    "services": (SERVICE, {**_OF_ROW, **_under("past", _PAST)}),
    "sessions": (
        SESSION,
        {**_OF_ROW, "open": BITS, **_under("rate", _RING), **_under("loop", _LOOP)},
    ),
    "episodes": (
        EPISODE,
        {
            **_OF_ROW,
            "start_ns": TIME,
            "last_ns": TIME,
            "peak": FINITE,
            "score": FINITE,
            "count": SMALL,
            "action": (0, len(ACTIONS) - 1),
        },
    ),
    "journal": (
        ENTRY,
        {
            **dict.fromkeys(("serial", "before", "next_waiting", "into"), SERIAL),
            "learned": (0, 31),
            "alarmed": FLAG,
            "folded": (0, FOLDED_MAX),
            "found": BITS,
            "call_id": (-(1 << 31), (1 << 31) - 1),
            "plan": SMALL,
            **dict.fromkeys(("start_ns", "end_ns"), ANY),
            **dict.fromkeys(("agent_key", "service_key", "rate_key", "session_key"), ANY),
            **_under("own", _OWN),
            **_under("call", _CALL),
        },
    ),
    "links": (
        LINK,
        {
            **dict.fromkeys(("key", "parent", "end_ns", "name"), ANY),
            **dict.fromkeys(("event", "waiting"), SERIAL),
            **dict.fromkeys(("call_id", "request", "row"), ANY),
            "waiters": (0, WAITERS_MAX),
            "folded": (0, FOLDED_MAX),
            "flags": (0, 127),
        },
    ),
}
"""What each number of a record may be."""


def fields_of(record: np.dtype, name: str = "") -> Iterator[str]:
    """The fields of a record, with those of the records in it: `past.entry`."""
    for field in record.names or ():
        assert record.fields is not None
        inner = record.fields[field][0]
        if inner.names is None:
            yield name + field
        else:
            yield from fields_of(inner, f"{name}{field}.")


for _what, (_record, _bounds) in LEGAL.items():
    assert set(fields_of(_record)) == set(_bounds), _what


class Unsound(ValueError):
    """What is wrong with what was kept, and where; never part of it."""


def make_sound(kept: Kept, plans: int) -> None:
    """Check what was kept, and work out anew what follows from the rest. Changes it in place.

    `plans`: how many there are, the base and its overrides.

    Raises
    ------
    Unsound
        No state of ours has this in it.
    """
    _check_watermark(kept)
    last = int(kept.watermark[1])
    for name in TABLES:
        table = getattr(kept, name)
        _check_records(name, table.rows, last)
        _check_rows(name, table)
        table.head["evicted"] = table.head["overflow"] = 0  # A new process counts from zero.
    for links in (kept.links.older, kept.links.newer):
        _check_records("links", links, last)
        links["request"], links["row"] = 0, 0
    head = kept.links.head[0]
    if head["current"] not in {0, 1}:
        raise Unsound("links: the head is not one of ours")
    _check_records("journal", kept.journal, last)
    _check_serials(kept)
    kept.journal["plan"][kept.journal["plan"] >= plans] = 0
    for name in ("agents", "sessions"):
        _check_windows(name, getattr(kept, name).rows)
    _work_out_sums(kept)


def _check_watermark(kept: Kept) -> None:
    latest, last, requests, newest = kept.watermark.tolist()
    if min(latest, last, requests, newest) < 0 or max(last, requests) > _NUMBER_MAX:
        raise Unsound("watermark: out of bounds")
    if newest >= max(kept.journal.size, 1) or (kept.journal.size == 0 and last > 0):
        raise Unsound("watermark: the last call is outside of the journal")


def _check_records(name: str, records: np.ndarray, last: int) -> None:
    """Hold every number against its bounds."""
    for path, bounds in LEGAL[name][1].items():
        if bounds is None:
            continue
        low, high = (0, last) if bounds == SERIAL else bounds
        column = records
        for part in path.split("."):
            column = column[part]
        for start in range(0, column.shape[0], AT_ONCE):
            some = column[start : start + AT_ONCE]
            if not ((some >= low) & (some <= high)).all():  # Of NaN neither is true.
                raise Unsound(f"{name}: {path} is out of bounds")


def _check_rows(name: str, table: KeptTable) -> None:
    """Row 0 is nobody's; no key stands twice; the free list holds each free row, once."""
    keys = table.rows["key"]
    if keys.size == 0 or keys[0] != 0:
        raise Unsound(f"{name}: the overflow row has a key")
    used = keys[keys != 0]
    if np.unique(used).size != used.size:
        raise Unsound(f"{name}: a key stands there twice")
    after = table.rows["seen_ns"].tolist()
    is_free = (keys == 0).tolist()
    row, seen = int(table.head["free"][0]), 0
    while row != 0:
        seen += 1
        if not 0 < row < keys.size or not is_free[row]:
            raise Unsound(f"{name}: the free list leads to a row that is not free")
        is_free[row] = False
        row = after[row]
    if seen != keys.size - 1 - used.size:
        raise Unsound(f"{name}: the free list does not hold all free rows")
    if not 0 <= int(table.head["hand"][0]) <= _LAST:
        raise Unsound(f"{name}: the hand is out of bounds")


def _check_serials(kept: Kept) -> None:
    """Each place of the journal holds the call that its distance from the newest says. The first
    call goes to place 1, so until the ring closes, place 0 holds number 0: none."""
    size, (_, last, _, newest) = kept.journal.size, kept.watermark.tolist()
    expected = last - (newest - np.arange(size)) % max(size, 1)
    if not np.array_equal(kept.journal["serial"], expected):
        raise Unsound("journal: calls are not in order")


def _check_windows(name: str, rows: np.ndarray) -> None:
    """A sub-window ends at a time there is: its number and its length are multiplied."""
    windows = rows["leak" if name == "agents" else "loop"]
    if (windows["head"] > _LAST // np.maximum(windows["subwindow_ns"], 1)).any():
        raise Unsound(f"{name}: a sub-window lies beyond all time")


def _work_out_sums(kept: Kept) -> None:
    for start in range(0, kept.agents.rows.size, AT_ONCE):
        some = kept.agents.rows[start : start + AT_ONCE]
        _sum_past(some["past"])
        _sum_ring(some["burst"]["ring"])
    for start in range(0, kept.services.rows.size, AT_ONCE):
        _sum_past(kept.services.rows[start : start + AT_ONCE]["past"])
    for start in range(0, kept.sessions.rows.size, AT_ONCE):
        some = kept.sessions.rows[start : start + AT_ONCE]
        _sum_ring(some["rate"])
        totals = some["loop"]["counts"].sum(axis=2, dtype=np.int64)
        if (totals > loop.COUNT_MAX).any():
            raise Unsound("sessions: a loop has more calls than are counted")
        some["loop"]["total"] = totals


def _sum_ring(rings: np.ndarray) -> None:
    rings["total"] = rings["counts"].sum(axis=1, dtype=np.int64)


def _sum_past(pasts: np.ndarray) -> None:
    uses = pasts["entry"][:, : past.SIZES[0]] & past.COUNT_MAX
    pasts["total"], pasts["tools"] = uses.sum(axis=1), np.count_nonzero(uses, axis=1)
