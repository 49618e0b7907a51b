"""Recorded OTLP on disk: read as requests, written in the format of the suffix.

    .bin .pb       one Export...ServiceRequest; several written one after the other read as one
    .json .jsonl   OTLP JSON, one request a line (a .json file may also be one document)
    .gz            any of these, gzipped
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json

BINARY = (".bin", ".pb")
TEXT = (".json", ".jsonl")
_KEY_OF = {
    "resourceSpans": Signal.TRACES,
    "resourceMetrics": Signal.METRICS,
    "resourceLogs": Signal.LOGS,
}


class RecordingError(Exception):
    """A recording that cannot be read or written. The message names file, line and problem."""


class Recorded(NamedTuple):
    """One request of a recording."""

    body: bytes
    signal: Signal
    place: str
    """`file` or `file:line`, for messages."""


def _kind(path: Path) -> str:
    """The suffix that says the format, without `.gz`."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.suffix not in BINARY + TEXT:
        known = ", ".join(BINARY + TEXT)
        raise RecordingError(f"{path}: the suffix must be one of {known}, or that and .gz")
    return name.suffix


def _open(path: Path, mode: str) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            # No time and name in the header: the same input gives the same file.
            raw = path.open(mode)
            return gzip.GzipFile("", mode, 6, raw, mtime=0) if "w" in mode else gzip.open(raw, mode)  # type: ignore[return-value]
        return path.open(mode)
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from error


def read(path: Path, signal: Signal) -> Iterator[Recorded]:
    """The requests of a file. `signal` says what a binary one holds; JSON says it itself."""
    kind = _kind(path)
    try:
        with _open(path, "rb") as file:
            if kind in BINARY:
                yield Recorded(file.read(), signal, str(path))
            elif kind == ".jsonl":
                yield from _lines(file, path, signal)
            else:
                yield from _document_or_lines(file.read(), path, signal)
    except (OSError, EOFError) as error:
        raise RecordingError(f"{path}: {error}") from error


def _lines(file: IO[bytes], path: Path, signal: Signal) -> Iterator[Recorded]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _from_json(line, f"{path}:{number}", signal)


def _document_or_lines(text: bytes, path: Path, signal: Signal) -> Iterator[Recorded]:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield _from_json(line, f"{path}:{number}", signal)
    else:
        yield _from_json(text, str(path), signal)


def _from_json(line: bytes, place: str, otherwise: Signal) -> Recorded:
    signal = otherwise
    for key, named in _KEY_OF.items():
        if f'"{key}"'.encode() in line:
            signal = named
            break
    try:
        return Recorded(otlp_json.decode(line, signal), signal, place)
    except ValueError as error:
        raise RecordingError(f"{place}: {error}") from error


class Writer:
    """Writes requests to a file in the format of its suffix."""

    def __init__(self, path: Path) -> None:
        self._binary = _kind(path) in BINARY
        self._path = path
        self._file = _open(path, "wb")

    def write(self, body: bytes, signal: Signal) -> None:
        """Append one request."""
        try:
            self._file.write(body if self._binary else otlp_json.encode(body, signal) + b"\n")
        except (OSError, ValueError) as error:
            raise RecordingError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
