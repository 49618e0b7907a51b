"""A disk that a test holds in its hand: it crashes, forgets, fills up and fails when told to."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from otel_anomaly.exporters.disk_store import DiskStore

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from otel_anomaly.exporters.disk_store import Place
    from otel_anomaly.handoff import Payload


class Node:
    """The content of a file: as the running process sees it, and as the platter has it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[str, int, bytes]] = []

    def change(self, kind: str, place: int, data: bytes) -> None:
        apply(self.data, kind, place, data)
        self.unsynced.append((kind, place, data))

    def lose_power(self, rng: random.Random) -> None:
        """Each unsynced change is there, or not, or half: in no order that anybody promised."""
        for kind, place, data in self.unsynced:
            fate = rng.random()
            if fate < 0.4:
                apply(self.durable, kind, place, data)
            elif fate < 0.7 and kind == "write":
                apply(self.durable, kind, place, data[: rng.randrange(len(data) + 1)])
        self.data = bytearray(self.durable)
        self.unsynced = []


def apply(content: bytearray, kind: str, place: int, data: bytes) -> None:
    """One change to a file."""
    if kind == "truncate":
        del content[place:]
    content.extend(bytes(max(place - len(content), 0)))
    if kind == "write":
        content[place : place + len(data)] = data


class SimDisk:
    """One directory. `fault` may raise at any call; `room` is what the disk holds."""

    place = "a directory"

    def __init__(self, rng: random.Random, room: int = 1 << 40) -> None:
        self.rng, self.room = rng, room
        self.fault: Callable[[str, str], OSError | None] = lambda _call, _name: None
        self.life = 0
        self.nodes: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}
        self.unsynced: list[tuple[str, str, Node | str | None]] = []
        self.locked = False
        self.open_files = 0

    @property
    def used(self) -> int:
        return sum(len(node.data) for node in self.nodes.values())

    def call(self, what: str, name: str = "") -> None:
        """Every call comes by here first."""
        error = self.fault(what, name)
        if error is not None:
            raise error

    def kill(self) -> None:
        """The process ends as by kill -9: what it wrote is there."""
        self.life += 1
        self.locked = False
        self.open_files = 0

    def lose_power(self) -> None:
        """The machine ends: of what was not forced to the disk, some is there. Names come back in
        the order in which they were given, up to some moment: a journal does that."""
        self.kill()
        for change in self.unsynced[: self.rng.randrange(len(self.unsynced) + 1)]:
            rename(self.durable, *change)
        self.nodes, self.unsynced = dict(self.durable), []
        for node in self.nodes.values():
            node.lose_power(self.rng)

    # Files.

    def open_directory(self) -> None:
        self.call("open_directory")
        assert not self.locked
        self.locked = True

    def names(self) -> list[str]:
        self.call("names")
        return ["lock", *self.nodes]

    def open(self, name: str, *, new: bool = False) -> SimFile:
        self.call("open", name)
        if new:
            if name in self.nodes:
                raise FileExistsError(errno.EEXIST, "File exists")
            self._name("new", name, Node())
        elif name not in self.nodes:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return SimFile(self, name, self.nodes[name])

    def rename(self, name: str, to: str) -> None:
        self.call("rename", name)
        self._name("rename", name, to)

    def remove(self, name: str) -> None:
        self.call("remove", name)
        if name in self.nodes:
            self._name("remove", name, None)

    def sync(self) -> None:
        self.call("sync_directory")
        self.durable, self.unsynced = dict(self.nodes), []

    def close(self) -> None:
        self.locked = False

    def _name(self, kind: str, name: str, what: Node | str | None) -> None:
        rename(self.nodes, kind, name, what)
        self.unsynced.append((kind, name, what))


def rename(names: dict[str, Node], kind: str, name: str, what: Node | str | None) -> None:
    """One change to a directory."""
    node = what if isinstance(what, Node) else names.pop(name)
    if kind != "remove":
        names[what if isinstance(what, str) else name] = node


class SimFile:
    """An open file."""

    def __init__(self, disk: SimDisk, name: str, node: Node) -> None:
        self.disk, self.name, self.node, self.life = disk, name, node, disk.life
        self.is_open = True
        disk.open_files += 1

    def size(self) -> int:
        self._call("size")
        return len(self.node.data)

    def read(self, size: int, place: int) -> bytes:
        self._call("read")
        return bytes(self.node.data[place : place + size])

    def write(self, buffers: Sequence[bytes], place: int) -> None:
        data = b"".join(buffers)
        try:
            self._call("write")
            self._need(place + len(data))
        except OSError:
            self.node.change("write", place, data[: self.disk.rng.randrange(len(data) + 1)])
            raise
        self.node.change("write", place, data)

    def reserve(self, place: int, size: int) -> None:
        self._call("reserve")
        self._need(place + size)
        self.node.change("extend", max(place + size, len(self.node.data)), b"")

    def truncate(self, size: int) -> None:
        self._call("truncate")
        self.node.change("truncate", size, b"")

    def sync(self) -> None:
        self._call("sync")
        self.node.durable, self.node.unsynced = bytearray(self.node.data), []

    def close(self) -> None:
        assert self.is_open, "closed once"
        self.is_open = False
        if self.life == self.disk.life:
            self.disk.open_files -= 1

    def _need(self, end: int) -> None:
        if self.disk.used + max(end - len(self.node.data), 0) > self.disk.room:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _call(self, what: str) -> None:
        assert self.is_open, f"{what} of a closed file"
        if self.life != self.disk.life:
            raise OSError(errno.ESTALE, "a process that is dead writes no more")
        self.disk.call(what, self.name)


class PatientWorker:
    """Runs what blocks in the loop itself, after a while in virtual time."""

    def __init__(self, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self._delay_s = delay_s
        self._lock = asyncio.Lock()

    async def run(self, action: Callable[..., Any], *arguments: object) -> Any:
        async with self._lock:
            await asyncio.sleep(self._delay_s())
            return action(*arguments)

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Nothing to end."""
        if last is not None:
            last()


def store_on(disk: SimDisk, *, size: int = 1 << 20, fsync: str = "always") -> DiskStore:
    """A log on a disk by hand, not yet opened."""
    return DiskStore(disk, size=size, fsync=fsync, key=lambda: disk.rng.getrandbits(64))


def append(store: DiskStore, payloads: list[Payload], *, kept: bool = False) -> list[Place]:
    """Write all of them."""
    places: list[Place] = []
    while len(places) < len(payloads):
        places += store.append([(payload, kept) for payload in payloads[len(places) :]])
    return places


def bodies(store: DiskStore) -> list[bytes]:
    """All that lies on the disk alone, in the order in which it is read."""
    found: list[bytes] = []
    while store.unread:
        found += [record.body for _, record in store.load(10_000).records]
    return found
