"""Snapshots of rigs: taken, written, changed and read again."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

from otel_anomaly.processor import Processor
from otel_anomaly.snapshot import copied, kept_of, parts_of
from otel_anomaly.snapshot_file import START, write
from otel_anomaly.snapshots import load
from tests.rig import Rig
from tests.traffic import START_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

    from otel_anomaly.snapshot import Snapshot


def save(rig: Rig, path: Path, book: bytes = b"") -> Path:
    """Write what a rig has learned."""
    write(path, rig.processor.snapshot(book, START_NS))
    return path


def restarted(rig: Rig, path: Path, **sections: Any) -> Rig:
    """Another rig of the same configuration, or of `sections`, with what is in a snapshot."""
    fresh = Rig(**sections)
    if not sections:
        fresh.config = rig.config
    fresh.room.payloads += rig.room.payloads
    loaded = load(path, fresh.config)
    fresh.processor = Processor(
        fresh.config,
        fresh.room,
        fresh.telemetry,
        seed=loaded.seed,
        state=loaded.state,
        on_judged=fresh._record,
    )
    return fresh


def split(data: bytes) -> tuple[dict[str, Any], list[bytearray]]:
    """The header and the parts of a file."""
    _, header_bytes, _, _ = START.unpack(data[: START.size])
    header = json.loads(data[START.size : START.size + header_bytes])
    at, parts = START.size + header_bytes, []
    for part in header["parts"]:
        parts.append(bytearray(data[at : at + part["bytes"]]))
        at += part["bytes"]
    return header, parts


def joined(header: Mapping[str, Any], parts: list[bytearray]) -> bytes:
    """The opposite: with checksums and sizes that fit."""
    told = [
        {**part, "bytes": len(data), "crc": zlib.crc32(data)}
        for part, data in zip(header["parts"], parts, strict=True)
    ]
    text = json.dumps({**header, "parts": told}).encode()
    size = START.size + len(text) + sum(map(len, parts))
    return START.pack(b"otanomly", len(text), zlib.crc32(text), size) + text + b"".join(parts)


def changed(snapshot: Snapshot, part: str, change: Callable[[np.ndarray], None]) -> Snapshot:
    """A snapshot with something else in one of its arrays."""
    fresh = snapshot._replace(kept=copied(snapshot.kept))
    parts = parts_of(fresh)
    change(parts[part])
    return fresh._replace(kept=kept_of(parts))
