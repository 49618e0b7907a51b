"""Recorded OTLP on disk: read as requests, written in the format of the suffix.

The formats:

    .bin .pb       one Export...ServiceRequest; several written one after the other read as one
    .json .jsonl   OTLP JSON, one request a line (a .json file may also be one document)
    .gz            any of these, gzipped
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BINARY = (".bin", ".pb")
TEXT = (".json", ".jsonl")
_SIGNAL_OF_KEY: Final = {
    "resourceSpans": Signal.TRACES,
    "resourceMetrics": Signal.METRICS,
    "resourceLogs": Signal.LOGS,
    "resource_spans": Signal.TRACES,
    "resource_metrics": Signal.METRICS,
    "resource_logs": Signal.LOGS,
}
_FIRST_KEY: Final = re.compile(rb'\s*\{\s*"([A-Za-z_]+)"\s*:')


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


def is_binary(path: Path) -> bool:
    """Whether what a file holds is not told by itself. RecordingError for an unknown suffix."""
    return _kind(path) in BINARY


def _open(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]  # As good as an IO.
        return path.open("rb")
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from error


def read(path: Path, signal: Signal) -> Iterator[Recorded]:
    """The requests of a file. `signal` says what a binary one holds; JSON says it itself."""
    kind = _kind(path)
    try:
        with _open(path) as file:
            if kind in BINARY:
                yield Recorded(file.read(), signal, str(path))
            elif kind == ".jsonl":
                yield from _lines(file, path, signal)
            else:
                yield from _document_or_lines(file.read(), path, signal)
    except (OSError, EOFError, zlib.error) as error:
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
    signal = _signal_of(line) or otherwise
    try:
        return Recorded(otlp_json.decode(line, signal), signal, place)
    except ValueError as error:
        raise RecordingError(f"{place}: {error}") from error


def _signal_of(line: bytes) -> Signal | None:
    """What a request in JSON says it holds: by its first key, or else by any other."""
    first = _FIRST_KEY.match(line)
    signal = _SIGNAL_OF_KEY.get(first[1].decode()) if first else None
    if signal is not None:
        return signal
    try:
        keys = json.loads(line)
    except (ValueError, RecursionError):
        return None  # The decoder says what is wrong.
    if not isinstance(keys, dict):
        return None
    return next((signal for key, signal in _SIGNAL_OF_KEY.items() if key in keys), None)


class Writer:
    """Writes requests to a file in the format of its suffix."""

    def __init__(self, path: Path) -> None:
        """Raises RecordingError when the file cannot be made."""
        self._binary = _kind(path) in BINARY
        self._path = path
        self._signal: Signal | None = None
        try:
            self._raw = path.open("wb")
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror or error}") from error
        self._file: IO[bytes] = self._raw
        if path.suffix == ".gz":
            # No time and name in the header: the same input gives the same file.
            self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0)  # type: ignore[assignment]

    def write(self, body: bytes, signal: Signal, place: str) -> None:
        """Append one request. `place` is where it comes from, for messages."""
        if self._binary and self._signal not in {None, signal}:
            # Told apart by nothing: spans and logs have the same field number in their requests.
            raise RecordingError(
                f"{place}: {signal.value}, but {self._path} holds one signal only;"
                f" write {' or '.join(TEXT)} instead"
            )
        self._signal = signal
        try:
            record = body if self._binary else otlp_json.encode(body, signal) + b"\n"
        except ValueError as error:
            raise RecordingError(f"{place}: {error}") from error
        try:
            self._file.write(record)
        except OSError as error:
            raise RecordingError(f"{self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the file. Raises RecordingError when the rest of it cannot be written."""
        try:
            try:
                self._file.close()
            finally:
                self._raw.close()  # A GzipFile leaves open what it was given.
        except OSError as error:
            raise RecordingError(f"{self._path}: {error.strerror or error}") from error
