"""The file exporter when the power is cut: what was sent is on the platter, where that counts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config
from otel_anomaly.exporters.contract import SENT, Kind
from otel_anomaly.exporters.registry import Makers
from otel_anomaly.handoff import Signal
from otel_anomaly.telemetry import Telemetry
from tests.exporters_world import FixedClock
from tests.reload_rigs import reloading
from tests.service_rigs import calls

if TYPE_CHECKING:
    from otel_anomaly.exporters import Exporter

ALONE = {"sending_queue": {"batch": {"max_size": 1}}}
DISK = {"storage": "disk"}
SENT_COUNTS: dict[str, dict[str, Any]] = {
    "ack sent": {"ack": "sent"},
    "fsync always": {"sending_queue": {**DISK, "fsync": "always"}},
    "fsync interval": {"sending_queue": DISK},
}
SENT_DOES_NOT: dict[str, dict[str, Any]] = {
    "memory": {},
    "fsync never": {"sending_queue": {**DISK, "fsync": "never"}},
    "memory, with a fsync": {"sending_queue": {"fsync": "always"}},
}


class Platter:
    """What of a folder would be there after a power cut: what was forced, under forced names."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.forced = 0
        self.failing: set[str] = set()
        """`data` or `names`: what cannot be forced for now."""
        self._folder = folder
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        patch.setattr(os, "fsync", self.sync)
        patch.setattr(os, "fdatasync", self.sync, raising=False)

    def sync(self, descriptor: int) -> None:
        """What the system does when it is asked to force something to the disk."""
        state = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(state.st_mode)
        if ("names" if is_folder else "data") in self.failing:
            raise OSError(errno.EIO, "Input/output error")
        if not is_folder:
            self.forced += 1
            self._contents[state.st_ino] = os.pread(descriptor, state.st_size, 0)
        elif state.st_ino == self._folder.stat().st_ino:
            self._names = {each.name: each.stat().st_ino for each in self._folder.iterdir()}

    def left(self, *names: str) -> bytes:
        """Of these files, else of all, the oldest first."""
        kept = sorted(names or self._names, reverse=True)
        return b"".join(self._contents.get(self._names.get(name, -1), b"") for name in kept)


def exporter_in(folder: Path, *, ack: str = "queued", **keys: Any) -> Exporter:
    """The exporter that the service makes of such a configuration."""
    file = {"path": str(folder / "spans.binpb"), "format": "proto", **keys}
    config = Config.model_validate({"ack": ack, "exporters": {"file": file}})
    return Makers(Telemetry(["file"]), FixedClock(), random.Random(1)).exporter("file", config)


@pytest.mark.parametrize("case", SENT_COUNTS)
def test_what_was_sent_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """
    Scenario: a disk queue forgets what was sent, or a client hears OK; records that fill a file of
    64 KiB each third time. After each of them the power may be cut.
    Guarantees: all records that count as sent would be there, in the new files and in the rotated.
    """
    folder = tmp_path / "data"
    exporter = exporter_in(folder, max_size="64KiB", max_backups=9, **SENT_COUNTS[case])
    platter = Platter(folder, monkeypatch)

    async def main() -> None:
        await exporter.start()
        for number in range(12):
            body = bytes([ord("a") + number]) * 21_000
            assert await exporter.send(body, Signal.TRACES, 1) == SENT
            assert platter.left() == _all(folder)
            assert [platter.left().count(bytes([byte])) for byte in b"abcdefghijkl"] == (
                [21_000] * (number + 1) + [0] * (11 - number)
            )
        await exporter.close()

    asyncio.run(main())
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("case", SENT_DOES_NOT)
def test_nothing_is_forced_that_nobody_relies_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """
    Scenario: a queue that itself does not outlive a power cut, and clients that hear OK before.
    Guarantees: the disk is not waited for.
    """
    exporter = exporter_in(tmp_path, **SENT_DOES_NOT[case])
    platter = Platter(tmp_path, monkeypatch)

    async def main() -> None:
        await exporter.start()
        assert await exporter.send(b"x" * 1000, Signal.TRACES, 1) == SENT
        await exporter.close()

    asyncio.run(main())
    assert (platter.forced, platter.left()) == (0, b"")


@pytest.mark.parametrize("what", ["data", "names"])
def test_what_cannot_be_forced_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """
    Scenario: a record, or the name of the file that it would begin, cannot be forced to the disk;
    later it can.
    Guarantees: to be retried, and nothing is left of it nor open; the retry is written once, to a
    file that was opened anew.
    """
    exporter = exporter_in(tmp_path, ack="sent", max_size="64KiB")
    platter = Platter(tmp_path, monkeypatch)
    first, second = b"a" * 40_000, b"b" * (40_000 if what == "names" else 1000)

    async def main() -> None:
        await exporter.start()
        assert await exporter.send(first, Signal.TRACES, 1) == SENT
        before = _all(tmp_path)
        platter.failing.add(what)
        for _ in range(2):
            result = await exporter.send(second, Signal.TRACES, 1)
            assert (result.kind, "Input/output" in result.message) == (Kind.RETRY, True)
            assert _all(tmp_path) == before
            assert not _open_in(tmp_path)
        platter.failing.clear()
        assert await exporter.send(second, Signal.TRACES, 1) == SENT
        assert platter.left() == _all(tmp_path)
        await exporter.close()

    asyncio.run(main())
    assert len(list(tmp_path.iterdir())) == (2 if what == "names" else 1)
    assert _all(tmp_path).count(b"b") == len(second)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_has_nothing_to_force(tmp_path: Path) -> None:
    """
    Scenario: the file is a pipe, as /dev/stdout is in a container, and somebody relies on it.
    Guarantees: sent once, as to a file.
    """
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    exporter = exporter_in(tmp_path, ack="sent", path=str(path))
    body = calls(1)

    async def main() -> None:
        await exporter.start()
        assert await exporter.send(body, Signal.TRACES, 1) == SENT
        await exporter.close()

    try:
        asyncio.run(main())
        came = os.read(reader, 1 << 20)
        assert came.endswith(body)
        assert len(came) < len(body) + 5
    finally:
        os.close(reader)


def test_a_start_that_cannot_force_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a file system that cannot force the names in a folder.
    Guarantees: what was asked for can never be had, so the start fails and leaves nothing open.
    """
    exporter = exporter_in(tmp_path, ack="sent")
    Platter(tmp_path, monkeypatch).failing.add("names")
    with pytest.raises(OSError, match="Input/output"):
        asyncio.run(exporter.start())
    assert not _open_in(tmp_path)


def test_a_reload_that_changes_what_ok_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a request under `ack: queued`; then the same service is told `sent`, and another
    comes; then `queued` again, and a third.
    Guarantees: the second alone is forced to the disk, before its client hears OK, with all that
    stands before it in the file.
    """

    async def story() -> None:
        async with reloading(tmp_path, exporters={"file": ALONE}) as rig:
            spans = tmp_path / "spans.jsonl"
            platter = Platter(tmp_path, monkeypatch)

            for number, (ack, kept) in enumerate([("queued", 0), ("sent", 2), ("queued", 2)]):
                if number:
                    assert await rig.reload(ack=ack, exporters={"file": ALONE}) == "applied"
                assert await rig.at.http(calls(1, seed=number)) == 200
                assert platter.left(spans.name).count(b"\n") == kept
        assert spans.read_bytes().count(b"\n") == 3
        assert platter.left(spans.name).count(b"\n") == 2

    asyncio.run(story())


def _all(folder: Path) -> bytes:
    """What the files hold as long as the power is on, the oldest first."""
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir(), reverse=True))


def _open_in(folder: Path) -> list[Path]:
    """Files that this process has open there; none where the system does not say."""
    held = list[Path]()
    descriptors = Path("/proc/self/fd")
    for descriptor in descriptors.iterdir() if descriptors.is_dir() else ():
        with contextlib.suppress(OSError):  # Closed meanwhile.
            held.append(descriptor.readlink())
    return [path for path in held if path.is_relative_to(folder)]
