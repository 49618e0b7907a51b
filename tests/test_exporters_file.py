"""The file exporter: what is on the disk after writing, rotating, failing and crashing."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.proto import parse_length_prefixed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.config import KIB, Config, FileExporterConfig, signal_paths
from otel_anomaly.exporters.contract import SENT, Kind, SendResult
from otel_anomaly.exporters.file import (
    FileExporter,
    RotatingFile,
    cut_torn_line,
    put_aside_torn,
)
from otel_anomaly.handoff import Signal
from tests import traffic

if TYPE_CHECKING:
    from pathlib import Path

MAX = 64 * KIB


def exporter_at(path: Path, **keys: Any) -> FileExporter:
    """An exporter that writes traces to `path`."""
    section = FileExporterConfig.model_validate({"path": str(path), **keys})
    paths = signal_paths(Config(), section)
    return FileExporter(section, {signal: paths[signal.value] for signal in Signal})


def write(
    exporter: FileExporter, *bodies: bytes, signal: Signal = Signal.TRACES
) -> list[SendResult]:
    """A whole life of an exporter: start, send, close."""

    async def main() -> list[SendResult]:
        await exporter.start()
        results = [await exporter.send(body, signal, 1) for body in bodies]
        await exporter.close()
        return results

    return asyncio.run(main())


def rotating(path: Path, backups: int = 2) -> RotatingFile:
    return RotatingFile(path, 100, backups, cut_torn_line)


def test_each_signal_has_its_file_of_json_lines(tmp_path: Path) -> None:
    """
    Scenario: two trace requests and one of logs, into a directory that does not exist.
    Guarantees: a line of OTLP/JSON for each, in files and a directory for the owner only; no
    file for metrics, which never came.
    """
    path = tmp_path / "deep" / "data" / "spans.jsonl"
    exporter = exporter_at(path)
    requests = [traffic.benchmark_request(3, 2, seed) for seed in (1, 2)]
    assert write(exporter, *requests) == [SENT, SENT]
    assert write(exporter, b"", signal=Signal.LOGS) == [SENT]
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    assert [list(json.loads(line)) for line in lines] == [["resourceSpans"]] * 2
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["logs.jsonl", "spans.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_not_otlp_is_not_written(tmp_path: Path) -> None:
    """
    Scenario: metrics that cannot be decoded, between two that can.
    Guarantees: rejected, the others are there.
    """
    path = tmp_path / "spans.jsonl"
    results = write(exporter_at(path), b"", b"\xff\xff", b"", signal=Signal.METRICS)
    assert [result.kind for result in results] == [Kind.SENT, Kind.REJECTED, Kind.SENT]
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"{}\n{}\n"


def test_length_delimited_requests_read_back(tmp_path: Path) -> None:
    """
    Scenario: `format: proto`, requests of 0 to 20 000 bytes, in two runs.
    Guarantees: protobuf's own reader gives the same requests back, from both runs.
    """
    path = tmp_path / "mine.binpb"
    requests = [b"", *(traffic.random_request(seed, spans=seed) for seed in (1, 3, 30))]
    for request in requests:
        assert write(exporter_at(path, format="proto"), request) == [SENT]
    with path.open("rb") as stream:
        read = [parse_length_prefixed(ExportTraceServiceRequest, stream) for _ in requests]
        assert stream.read() == b""
    assert read == [ExportTraceServiceRequest.FromString(request) for request in requests]


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_rotation_keeps_the_newest_and_its_bound(tmp_path: Path, backups: int) -> None:
    """
    Scenario: 200 records of 1 to 60 bytes into files of 100, with 0, 1 and 3 backups.
    Guarantees: at every step the disk holds at most (backups + 1) x 100 bytes; at the end the
    files, oldest first, are an unbroken tail of what was written.
    """
    path = tmp_path / "spans.jsonl"
    file, rng, written = rotating(path, backups), random.Random(backups), b""
    for number in range(200):
        record = b"%d" % number + b"x" * rng.randrange(57) + b"\n"
        file.append(record)
        written += record
        files = list(tmp_path.iterdir())
        assert len(files) <= backups + 1
        assert all(entry.stat().st_size <= 100 for entry in files)
    file.close()
    kept = [tmp_path / f"spans.jsonl.{number}" for number in range(backups, 0, -1)]
    content = b"".join(entry.read_bytes() for entry in [*kept, path])
    assert written.endswith(content)
    assert content.count(b"\n") > backups


def test_a_record_over_the_limit_stands_alone(tmp_path: Path) -> None:
    """
    Scenario: a record of three times the file size between two small ones.
    Guarantees: written whole, in a file of its own.
    """
    file = rotating(tmp_path / "f")
    for record in (b"a\n", b"b" * 300 + b"\n", b"c\n"):
        file.append(record)
    file.close()
    contents = [(tmp_path / name).read_bytes() for name in ("f.2", "f.1", "f")]
    assert contents == [b"a\n", b"b" * 300 + b"\n", b"c\n"]


def test_rotation_prunes_and_spares(tmp_path: Path) -> None:
    """
    Scenario: backups of an earlier, larger limit, a gap among them, and files that look alike.
    Guarantees: beyond the limit they go; what is not a backup of ours stays.
    """
    for name in ("f.1", "f.2", "f.7", "f.12", "f.x", "f.01", "other.1", "f.1.gz"):
        (tmp_path / name).write_text(name)
    file = rotating(tmp_path / "f", backups=3)
    file.append(b"x" * 90 + b"\n")
    file.append(b"y" * 90 + b"\n")
    file.close()
    found = {entry.name for entry in tmp_path.iterdir()}
    assert found == {"f", "f.1", "f.2", "f.3", "f.x", "f.01", "other.1", "f.1.gz"}
    assert (tmp_path / "f.3").read_text() == "f.2"
    assert (tmp_path / "f.1").read_bytes() == b"x" * 90 + b"\n"


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (b"", b""),
        (b"a\nb\n", b"a\nb\n"),
        (b"a\nb\ntor", b"a\nb\n"),
        (b"torn", b""),
        (b"a\n" + b"x" * 200_000, b"a\n"),
        (b"x" * 200_000, b""),
        (b"a\n" + b"\0" * 70_000, b"a\n"),
    ],
)
def test_a_torn_line_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes, kept: bytes
) -> None:
    """
    Scenario: a crash left a file whole, with half a line, with nothing but half a line.
    Guarantees: cut back to the last newline and told; what comes next starts a line.
    """
    path = tmp_path / "f"
    path.write_bytes(left)
    file = RotatingFile(path, MAX * 100, 1, cut_torn_line)
    with caplog.at_level(logging.WARNING):
        file.append(b"next\n")
    file.close()
    assert path.read_bytes() == kept + b"next\n"
    assert bool(caplog.records) == (left != kept)


@pytest.mark.parametrize(
    ("left", "whole"),
    [
        (b"", True),
        (b"\x00", True),
        (b"\x02ab\x01c", True),
        (b"\x80\x01" + b"x" * 128, True),
        (b"\x02a", False),
        (b"\x02ab\x80", False),
        (b"\x80\x80\x80\x80\x80\x01", False),
        (b'{"resourceSpans":[]}\n', False),
    ],
)
def test_a_torn_binary_file_is_put_aside(tmp_path: Path, left: bytes, whole: bool) -> None:  # noqa: FBT001
    """
    Scenario: a protobuf file that ends on a record, inside one, inside a length, or is not one.
    Guarantees: appended to when whole; otherwise moved aside untouched, and a new one begun.
    """
    path = tmp_path / "f"
    path.write_bytes(left)
    file = RotatingFile(path, MAX, 1, put_aside_torn)
    file.append(b"\x01n")
    file.close()
    backup = tmp_path / "f.1"
    assert path.read_bytes() == (left if whole else b"") + b"\x01n"
    assert (backup.read_bytes() if backup.exists() else None) == (None if whole else left)


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the disk takes ten bytes of a record and is full; later there is room again.
    Guarantees: to be retried, the file ends on the record before; the retry is written whole.
    """
    path = tmp_path / "spans.jsonl"
    exporter = exporter_at(path)
    room, real = 10, os.write

    def full(fd: int, data: memoryview) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, data[:room])
        room -= taken
        return taken

    async def main() -> None:
        body = traffic.random_request(1)
        await exporter.start()
        assert await exporter.send(b"", Signal.TRACES, 1) == SENT
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            result = await exporter.send(body, Signal.TRACES, 1)
        assert result.kind is Kind.RETRY
        assert "No space left" in result.message
        assert path.read_bytes() == b"{}\n"
        assert await exporter.send(body, Signal.TRACES, 1) == SENT
        await exporter.close()

    asyncio.run(main())
    assert len(path.read_bytes().splitlines()) == 2


def test_a_disk_that_cannot_even_be_cut_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: half a record is written, then writing and cutting both fail.
    Guarantees: told; the half record is cut when the file is opened for the next one.
    """
    file, real, room = rotating(tmp_path / "f"), os.write, 4

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def half(fd: int, data: memoryview) -> int:
        nonlocal room
        taken, room = room, 0
        return real(fd, data[:taken]) if taken else broken()

    file.append(b"first\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(OSError, match="Input/output"):
            file.append(b"second\n")
    assert "cannot cut back" in caplog.text
    assert (tmp_path / "f").read_bytes() == b"first\nseco"
    file.append(b"third\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"first\nthird\n"


def test_rotation_that_fails_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the file is full and cannot be moved aside, then it can.
    Guarantees: to be retried, and then it is written; nothing was lost.
    """
    file = rotating(tmp_path / "f")
    file.append(b"x" * 90 + b"\n")

    def stuck(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", stuck)
        with pytest.raises(PermissionError):
            file.append(b"y" * 90 + b"\n")
    file.append(b"y" * 90 + b"\n")
    file.close()
    assert (tmp_path / "f.1").read_bytes() == b"x" * 90 + b"\n"
    assert (tmp_path / "f").read_bytes() == b"y" * 90 + b"\n"


def test_a_directory_that_cannot_be_is_told_at_start(tmp_path: Path) -> None:
    """
    Scenario: the directory of the file is itself a file.
    Guarantees: start fails and names it.
    """
    (tmp_path / "file").write_text("")
    exporter = exporter_at(tmp_path / "file" / "spans.jsonl")
    with pytest.raises(OSError, match="file"):
        asyncio.run(exporter.start())


def test_close_waits_for_a_write_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a send is cancelled while its thread is writing, and the exporter is closed.
    Guarantees: the record is whole, and the file is closed after it.
    """
    exporter = exporter_at(tmp_path / "spans.jsonl")
    writing, go_on, real = threading.Event(), threading.Event(), os.write

    def slow(fd: int, data: memoryview) -> int:
        writing.set()
        assert go_on.wait(10)
        return real(fd, data)

    async def main() -> None:
        await exporter.start()
        monkeypatch.setattr(os, "write", slow)
        send = asyncio.create_task(exporter.send(b"", Signal.TRACES, 1))
        await asyncio.to_thread(writing.wait, 10)
        send.cancel()
        closing = asyncio.create_task(exporter.close())
        done, _ = await asyncio.wait((closing,), timeout=0.05)
        assert not done
        go_on.set()
        await closing
        assert send.cancelled()

    asyncio.run(main())
    assert (tmp_path / "spans.jsonl").read_bytes() == b"{}\n"


def test_what_began_before_the_close_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a send is given up while its thread is still encoding, as at the end of the time to
    deliver; the exporter is closed; then the thread goes on.
    Guarantees: it writes nothing and leaves no file open: another exporter may have it by now. What
    is sent after the close is written.
    """
    encoding, go = threading.Event(), threading.Event()
    exporter = exporter_at(tmp_path / "spans.jsonl")
    encode = exporter._encode

    def slowly(body: bytes, signal: Signal) -> bytes:
        encoding.set()
        go.wait()
        return encode(body, signal)

    monkeypatch.setattr(exporter, "_encode", slowly)
    body = traffic.request([traffic.Agent("support").call(1)])

    async def main() -> None:
        await exporter.start()
        task = asyncio.create_task(exporter.send(body, Signal.TRACES, 1))
        await asyncio.to_thread(encoding.wait)
        task.cancel()
        await asyncio.wait({task})
        await exporter.close()
        go.set()
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(main())
    assert exporter._files[Signal.TRACES].fd == -1
    assert (tmp_path / "spans.jsonl").read_bytes() == b""
    assert write(exporter, body) == [SENT]
    assert (tmp_path / "spans.jsonl").read_bytes().count(b"\n") == 1
