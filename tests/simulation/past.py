"""What a simulated service writes down of what it learned, and what the next life must know of it.

The files are real, in a folder of their own; forcing them to disk costs nothing here, and fails now
and then. Between two lives a file may get damaged: then the one before it counts, or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_anomaly.resizing import TABLES
from otel_anomaly.snapshot import parts_of
from otel_anomaly.snapshot_file import before, write

if TYPE_CHECKING:
    import random
    from collections.abc import Hashable

    from otel_anomaly.snapshot import Snapshot

FAULTY_SHARE = 0.3
"""Of the worlds have a disk that fails now and then."""


class Known(NamedTuple):
    """What is in a snapshot."""

    calls: frozenset[Hashable]
    parts: dict[str, bytes]
    rules: object
    """By what it was judged: under the same rules a state is read as it was written."""


_OF_ONE_LIFE = {
    "links.head": ("looked", "turns"),
    "links.older": ("request", "row"),
    "links.newer": ("request", "row"),
    **{f"{name}.head": ("hand", "evicted", "overflow") for name in TABLES},
}
NOTHING = Known(frozenset(), {}, None)


class Past:
    """The snapshots of one world, over all its lives."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._folder = tempfile.TemporaryDirectory()
        self.directory = self._folder.name
        self._path = Path(self.directory, "state.snapshot")
        self._faulty = rng.random() < FAULTY_SHARE
        self._known: dict[bytes, Known] = {}
        """By what the file is."""
        self._copied = NOTHING
        self._is_alive = True

    def close(self) -> None:
        """Nobody needs it any more."""
        self._folder.cleanup()

    def begin(self) -> None:
        """A process starts."""
        self._is_alive = True

    def die(self) -> None:
        """It ends: what is not written yet never will be."""
        self._is_alive = False

    def damage(self) -> None:
        """Bits rot, a person deletes, a disk was full: now and then, between two lives."""
        for path in (self._path, before(self._path)):
            if self._rng.random() < 0.7 or not path.exists():
                continue
            data = bytearray(path.read_bytes())
            match self._rng.randrange(3):
                case 0:
                    path.unlink()
                    continue
                case 1:
                    del data[self._rng.randrange(len(data)) :]
                case _:
                    data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            path.write_bytes(data)

    def copied(self, snapshot: Snapshot, calls: frozenset[Hashable], rules: object) -> None:
        """The service has copied its state, in which these calls are known."""
        self._copied = Known(calls, parts_in(snapshot), rules)

    def write(self, path: Path, snapshot: Snapshot) -> int:
        """In place of the service's own."""
        if not self._is_alive:
            raise OSError(errno.ESTALE, "a process that is dead writes no more")
        assert path == self._path
        before_it = _digest(path)
        try:
            return write(path, snapshot, self._sync)
        finally:  # It may be there even when the disk says that it failed.
            now = _digest(path)
            if now != before_it and parts_in(snapshot) == self._copied.parts:
                self._known.setdefault(now, self._copied)

    def _sync(self, _number: int) -> None:
        if self._faulty and self._rng.random() < 0.1:
            raise OSError(errno.EIO, "as told")

    def expected(self) -> tuple[Path, Known] | None:
        """What a start has to read: the last snapshot that is whole."""
        for path in (self._path, before(self._path)):
            if (known := self._known.get(_digest(path))) is not None:
                return path, known
        return None

    def newest(self) -> Known:
        """What is in the last snapshot that is whole."""
        expected = self.expected()
        return NOTHING if expected is None else expected[1]


def parts_in(snapshot: Snapshot) -> dict[str, bytes]:
    """All of it, but for what means nothing to another life."""
    arrays: dict[str, Any] = parts_of(snapshot)
    for part, fields in _OF_ONE_LIFE.items():
        arrays[part] = arrays[part].copy()
        for field in fields:
            arrays[part][field] = 0
    return {name: array.tobytes() for name, array in arrays.items()}


def _digest(path: Path) -> bytes:
    """What a file is; b"" where there is none."""
    return hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""
