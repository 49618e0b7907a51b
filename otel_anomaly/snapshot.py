"""What the service learned, as parts that can be written: their names, their types, a copy of them.

A layout is named by the fields, types and places of all records, so that what an older or newer
version wrote is never misread: MIGRATIONS says which layouts can be carried over, field by field,
all others are refused. LAYOUT goes up by hand when bytes change their meaning.

How long copying takes: the rows in use only, 5 KB an agent with its session, spans and calls, to
memory that was touched before: 0.105 ms of CPU a megabyte (numpy 2, 2-core machine), so 5.5 ms for
10 000 agents (52.5 MB), and some 36 ms when all 65 536 agents of the defaults are there. That is
how long requests wait, once an `interval`. Not taken: `fork`, which leaves gRPC's threads behind
with their locks held and pays a page fault for every page the parent writes; copying in pieces,
which are not of one moment.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from otel_anomaly.entities import links, table
from otel_anomaly.entities.identity import NAME, NAME_BYTES, TRACE
from otel_anomaly.entities.links import LINK
from otel_anomaly.entities.packing import KeptLinks, KeptTable, copy_rows
from otel_anomaly.resizing import TABLES, Kept
from otel_anomaly.state import AGENT, ENTRY, EPISODE, SERVICE, SESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LAYOUT: Final = 1
"""Goes up when something in a record, or in how a name is hashed, changes its meaning."""
LINE: Final = 64

_RECORDS: Final = {
    "traces": TRACE,
    "names": NAME,
    "agents": AGENT,
    "services": SERVICE,
    "sessions": SESSION,
    "episodes": EPISODE,
}
assert tuple(_RECORDS) == TABLES
PARTS: Final[Mapping[str, np.dtype]] = {
    "watermark": np.dtype("i8"),
    "journal": ENTRY,
    "links.head": links.HEAD,
    "links.older": LINK,
    "links.newer": LINK,
    **{f"{name}.head": table.HEAD for name in TABLES},
    **{f"{name}.rows": record for name, record in _RECORDS.items()},
    "book": np.dtype("u1"),
}
"""What a snapshot consists of, in the order it is written, and what each row of it is."""

AT_ONCE: Final = 4096
"""Rows worked on together, so that what is worked out for them stays in the cache."""
_BYTES_KEPT: Final = (
    np.where(np.tri(NAME_BYTES + 1, NAME_BYTES, -1) > 0, 255, 0).astype("u1").view(np.uint64)
)
"""By its length: which bits of a text are its own."""


class Snapshot(NamedTuple):
    """All that lives on."""

    kept: Kept
    seed: int
    """Secret of all hashes."""
    rules: str
    """Digest of what limits are worked out by."""
    book: bytes
    """Open episodes in words, as `EpisodeBook` has them."""
    written_ns: int


Plain = str | int | list[Any]


def describe(record: np.dtype) -> Plain:
    """A type as plain values: names, types and places of its fields, and its size."""
    if record.subdtype is not None:
        return [describe(record.subdtype[0]), list(record.subdtype[1])]
    if record.names is None:
        return record.str
    assert record.fields is not None
    fields = [
        [name, describe(record.fields[name][0]), record.fields[name][1]] for name in record.names
    ]
    return [fields, record.itemsize]


def fingerprint_of(parts: Mapping[str, np.dtype], layout: int) -> str:
    """Names a layout."""
    told = [layout, [[name, describe(record)] for name, record in parts.items()]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


FINGERPRINT: Final = fingerprint_of(PARTS, LAYOUT)
MIGRATIONS: dict[str, dict[str, np.dtype]] = {}
"""Fingerprint of an older layout -> its parts that differ, as they were. A part is carried over by
the names of its fields: those of the same name and type keep their value, new ones are zero. An
entry says that somebody looked at each field and found that right."""


def parts_of(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """The arrays of a snapshot by their names."""
    kept = snapshot.kept
    parts = {
        "watermark": kept.watermark,
        "journal": kept.journal,
        "links.head": kept.links.head,
        "links.older": kept.links.older,
        "links.newer": kept.links.newer,
    }
    for name in TABLES:
        parts[f"{name}.head"] = getattr(kept, name).head
    for name in TABLES:
        parts[f"{name}.rows"] = getattr(kept, name).rows
    parts["book"] = np.frombuffer(snapshot.book, np.uint8)
    assert list(parts) == list(PARTS)
    return parts


def kept_of(parts: Mapping[str, np.ndarray]) -> Kept:
    """The other way round."""
    tables = (KeptTable(parts[f"{name}.head"], parts[f"{name}.rows"]) for name in TABLES)
    return Kept(
        parts["watermark"],
        parts["journal"],
        KeptLinks(parts["links.head"], parts["links.older"], parts["links.newer"]),
        *tables,
    )


def room_for(kept: Kept) -> int:
    """Bytes that a copy takes, and some more: the state may grow before it is copied."""
    arrays = arrays_of(kept)
    return sum(array.nbytes + LINE for array in arrays) * 9 // 8


def make_room(size: int) -> np.ndarray:
    """Memory to copy into, touched: its first touch takes twice as long as copying."""
    room = np.empty(size, np.uint8)
    room[:: 1 << 12] = 0
    return room


def arrays_of(kept: Kept) -> Iterator[np.ndarray]:
    """Every array of what was kept."""
    for part in kept:
        if isinstance(part, np.ndarray):
            yield part
        else:
            yield from part


def copied(kept: Kept, room: np.ndarray | None = None) -> Kept:
    """The same, of this moment. `room`: bytes to copy into; what does not fit takes fresh ones."""
    room = np.empty(0, np.uint8) if room is None else room
    used = 0

    def copy(array: np.ndarray) -> np.ndarray:
        nonlocal used
        start = -(-used // LINE) * LINE
        if start + array.nbytes <= room.size:
            used = start + array.nbytes
            target = room[start:used].view(array.dtype)
        else:
            target = np.empty(array.size, array.dtype)
        copy_rows(target, array)
        return target

    tables = (KeptTable(*map(copy, getattr(kept, name))) for name in TABLES)
    return Kept(
        copy(kept.watermark), copy(kept.journal), KeptLinks(*map(copy, kept.links)), *tables
    )


def forget_former_names(kept: Kept) -> None:
    """Empty, in a copy, what the texts of a trace still hold of the one that had its row before.

    In memory that stays until another text covers it: emptying costs every new trace. Here it takes
    four times as long as copying the rows (0.3 ms for 1000), so requests do not wait for it.
    """
    traces = kept.traces.rows
    for start in range(0, traces.size, AT_ONCE):
        some = traces[start : start + AT_ONCE]
        words = some["text"].view(np.uint64)
        words &= _BYTES_KEPT[np.minimum(some["length"], NAME_BYTES)]


def carried_over(records: np.ndarray, record: np.dtype) -> np.ndarray:
    """Records of an older layout under the present one: fields of the same name and type."""
    if records.dtype == record:
        return records
    target = np.zeros(records.size, record)
    _carry(records, target)
    return target


def _carry(source: np.ndarray, target: np.ndarray) -> None:
    for name in target.dtype.names or ():
        if name not in (source.dtype.names or ()):
            continue
        if source.dtype[name] == target.dtype[name]:
            target[name] = source[name]
        elif source.dtype[name].names and target.dtype[name].names:
            _carry(source[name], target[name])
