"""A snapshot as a file: written whole or not at all, read whole or refused.

    | magic | size of header | its crc | size of file |   28 bytes, little-endian
    | header: JSON                                    |   layout, seed, and for each part its crc
    | part | part | ...                               |   the rows in use of each array, as they are

Writing: into a new file beside the old one, forced to disk, then renamed; the one before is kept as
`.1`. So a crash at any byte leaves one of the two. The file is its owner's alone: the seed in it is
the secret of all hashes, without which no key would be found again; names of agents, sessions,
users and tools stand in it as they do in the audit trail, arguments and results do not.

Reading: sizes are held against the size of the file before anything is taken up, types are ours and
never the file's, and every part has a checksum. Whoever can write the file can make checksums, so
what is inside has to be made sound (`soundness`) before a kernel sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from otel_anomaly import __version__
from otel_anomaly.resizing import TABLES
from otel_anomaly.snapshot import (
    FINGERPRINT,
    LAYOUT,
    MIGRATIONS,
    PARTS,
    Snapshot,
    carried_over,
    forget_former_names,
    kept_of,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

MAGIC: Final = b"otanomly"
START: Final = struct.Struct("<8sQIQ")
HEADER_BYTES_MAX: Final = 1 << 16
_ROWS: Final = {"watermark": 4, "links.head": 1, **{f"{name}.head": 1 for name in TABLES}}
"""Parts that always have so many rows."""


class SnapshotRefused(Exception):
    """Why a file is not taken for a snapshot. Names what and where, never what is in it."""


def write(path: Path, snapshot: Snapshot, sync: Callable[[int], None] = os.fsync) -> int:
    """Put a snapshot in the place of the last one, which stays as `.1`. Returns its bytes.

    What it holds of names that are forgotten is emptied first, in place: it is a copy.

    Raises OSError; what was there is then still there.
    """
    forget_former_names(snapshot.kept)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(fresh, flags, 0o600), "wb", buffering=0) as file:
            size = _write_parts(file, snapshot)
            sync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            path.replace(before(path))
        fresh.replace(path)
        _sync_folder(path.parent, sync)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return size


def before(path: Path) -> Path:
    """Where the snapshot before the last one lies."""
    return path.with_name(path.name + ".1")


def _write_parts(file: FileIO, snapshot: Snapshot) -> int:
    parts = {name: _bytes(array) for name, array in parts_of(snapshot).items()}
    header = {
        "layout": LAYOUT,
        "fingerprint": FINGERPRINT,
        "version": __version__,
        "written_ns": snapshot.written_ns,
        "seed": snapshot.seed,
        "rules": snapshot.rules,
        "parts": [
            {"name": name, "bytes": len(part), "crc": zlib.crc32(part)}
            for name, part in parts.items()
        ],
    }
    text = json.dumps(header).encode()
    size = START.size + len(text) + sum(map(len, parts.values()))
    start = START.pack(MAGIC, len(text), zlib.crc32(text), size)
    for piece in (memoryview(start), memoryview(text), *parts.values()):
        left = piece
        while len(left) > 0:  # One call writes 2 GiB at most, or what the disk has room for.
            left = left[file.write(left) :]
    return size


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1).data


def _sync_folder(folder: Path, sync: Callable[[int], None]) -> None:
    """Make the names of files last. Windows knows no such thing."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        sync(number)
    finally:
        os.close(number)


def read(path: Path, bytes_max: int) -> Snapshot:
    """The snapshot in a file, its checksums right; what is inside still has to be made sound.

    Raises
    ------
    FileNotFoundError
        There is none.
    SnapshotRefused
        There is something else, or something that cannot be used; it says why.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(number, "rb", buffering=0) as file:
            size = _check_file(os.fstat(number), bytes_max)
            header = _read_header(file, size)
            return _read_parts(file, header)
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not enough memory"
        raise SnapshotRefused(f"it cannot be read: {reason}") from error


def _check_file(found: os.stat_result, bytes_max: int) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise SnapshotRefused("it is no file")
    if found.st_mode & stat.S_IWOTH and os.name != "nt":
        raise SnapshotRefused("anybody may write to it")
    if found.st_size > bytes_max:
        raise SnapshotRefused(f"{found.st_size} bytes are more than {bytes_max}")
    return found.st_size


def _exactly(file: FileIO, size: int) -> np.ndarray:
    """So many bytes. The caller knows that the file has them."""
    data = np.empty(size, np.uint8)
    view, read = data.data, 0
    while read < size:
        count = file.readinto(view[read:])
        if not count:
            raise SnapshotRefused("it ends too early")
        read += count
    return data


def _read_header(file: FileIO, size: int) -> dict[str, Any]:
    if size < START.size:
        raise SnapshotRefused("it ends too early")
    magic, header_bytes, crc, size_told = START.unpack(_exactly(file, START.size).tobytes())
    if magic != MAGIC:
        raise SnapshotRefused("it is no snapshot")
    if size_told != size:
        raise SnapshotRefused(f"it has {size} bytes where {size_told} were written")
    if not 0 < header_bytes <= min(HEADER_BYTES_MAX, size - START.size):
        raise SnapshotRefused("its header is damaged")
    text = _exactly(file, header_bytes).tobytes()
    if zlib.crc32(text) != crc:
        raise SnapshotRefused("its header is damaged")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotRefused("its header is damaged") from error
    _check_header(header, size - START.size - header_bytes)
    return dict(header)


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _check_header(header: object, left: int) -> None:
    """Hold the header against what we write, and the sizes in it against what is there."""
    wrong = SnapshotRefused("its header is not one of ours")
    if not isinstance(header, dict):
        raise wrong
    layout, version = header.get("layout"), header.get("version")
    if header.get("fingerprint") not in [FINGERPRINT, *MIGRATIONS]:  # It need not be a text.
        told = layout if _is_whole(layout, 0, 1 << 31) else "unknown"
        by = version if isinstance(version, str) and version.isprintable() else "unknown"
        raise SnapshotRefused(
            f"it has layout {told} of version {by[:32]}, which differs from layout {LAYOUT} of"
            f" version {__version__} and cannot be carried over"
        )
    parts = header.get("parts")
    sound = (
        _is_whole(header.get("written_ns"), 0, (1 << 63) - 1)
        and _is_whole(header.get("seed"), -(1 << 63), (1 << 63) - 1)
        and isinstance(header.get("rules"), str)
        and isinstance(parts, list)
        and all(isinstance(part, dict) for part in parts)
        and [part.get("name") for part in parts] == list(PARTS)
        and all(_is_whole(part.get("bytes"), 0, left) for part in parts)
        and all(_is_whole(part.get("crc"), 0, (1 << 32) - 1) for part in parts)
    )
    if not sound:
        raise wrong
    assert isinstance(parts, list)
    if sum(part["bytes"] for part in parts) != left:
        raise SnapshotRefused("its parts do not add up to its size")


def _read_parts(file: FileIO, header: dict[str, Any]) -> Snapshot:
    earlier = MIGRATIONS.get(header["fingerprint"], {})
    parts: dict[str, np.ndarray] = {}
    for part in header["parts"]:
        name, size = part["name"], part["bytes"]
        record = earlier.get(name, PARTS[name])
        rows = size // record.itemsize
        if rows * record.itemsize != size or rows != _ROWS.get(name, rows):
            raise SnapshotRefused(f"{name}: {size} bytes are no number of its rows")
        data = _exactly(file, size)
        if zlib.crc32(data.data) != part["crc"]:
            raise SnapshotRefused(f"{name}: its checksum is wrong")
        parts[name] = carried_over(data.view(record), PARTS[name])
    return Snapshot(
        kept_of(parts),
        header["seed"],
        header["rules"],
        parts["book"].tobytes(),
        header["written_ns"],
    )
