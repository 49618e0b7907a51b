"""Recordings: what is on disk is read as it was sent, or refused by file, line and reason."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_anomaly import recordings
from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json
from otel_anomaly.recordings import RecordingError, Writer, read
from tests.book_rigs import at
from tests.traffic import Agent, request

if TYPE_CHECKING:
    from collections.abc import Iterable

FULL = Path("/dev/full")
GZ = ("", ".gz")
ONE, TWO = (request([Agent(name).call(at(0))]) for name in ("one", "two"))
LOGS = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "hi"}}]}]}]}
METRICS = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "up"}]}]}]}


def put(path: Path, content: bytes) -> Path:
    """A recording, gzipped when its name says so."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def written(path: Path, bodies: Iterable[bytes], signal: Signal = Signal.TRACES) -> Path:
    """A recording made by the writer."""
    with contextlib.closing(Writer(path)) as writer:
        for body in bodies:
            writer.write(body, signal, "test")
    return path


def bodies(path: Path, signal: Signal = Signal.TRACES) -> list[bytes]:
    return [recorded.body for recorded in read(path, signal)]


def refusal(path: Path) -> str:
    """What is said of a recording that cannot be read."""
    with pytest.raises(RecordingError) as caught:
        bodies(path)
    return str(caught.value)


@pytest.mark.parametrize("gz", GZ)
@pytest.mark.parametrize("suffix", [*recordings.BINARY, *recordings.TEXT])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, gz: str) -> None:
    """
    Scenario: two requests are written in every format, then read.
    Guarantees: they come back byte for byte; binary ones as the one request that they are together,
    the others one by one, each with the place where it stands.
    """
    path = written(tmp_path / f"r{suffix}{gz}", [ONE, TWO])
    found = list(read(path, Signal.TRACES))
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == bool(gz)
    if suffix in recordings.BINARY:
        assert found == [(ONE + TWO, Signal.TRACES, str(path))]
    else:
        assert found == [
            (ONE, Signal.TRACES, f"{path}:1"),
            (TWO, Signal.TRACES, f"{path}:2"),
        ]


@pytest.mark.parametrize("suffix", [".bin.gz", ".jsonl.gz"])
def test_the_same_requests_make_the_same_file(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: the same requests are written under two names.
    Guarantees: the gzipped files are equal: no name and no time is in them.
    """
    one, two = (written(tmp_path / f"{name}{suffix}", [ONE, TWO]) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes()[3:8] == bytes(5)  # No flags, no time.


@pytest.mark.parametrize("gz", GZ)
@pytest.mark.parametrize("signal", [Signal.LOGS, Signal.METRICS])
def test_a_binary_file_holds_what_one_says(tmp_path: Path, signal: Signal, gz: str) -> None:
    """
    Scenario: a binary file that is no protobuf at all is read as logs, and as metrics.
    Guarantees: its bytes come as they are: nobody looks at them here.
    """
    path = put(tmp_path / f"r.pb{gz}", b"\xff not protobuf \x00")
    assert list(read(path, signal)) == [(b"\xff not protobuf \x00", signal, str(path))]


def test_one_document_or_lines(tmp_path: Path) -> None:
    """
    Scenario: a .json file with one document over many lines; one with a document a line; and a
    .jsonl file with empty lines and Windows line ends.
    Guarantees: one request; one for each line; and the empty lines count, but are no requests.
    """
    line = otlp_json.encode(ONE, Signal.TRACES)
    pretty = json.dumps(json.loads(line), indent=2).encode()
    document = put(tmp_path / "document.json", pretty)
    assert list(read(document, Signal.TRACES)) == [(ONE, Signal.TRACES, str(document))]
    lines = put(tmp_path / "lines.json", line + b"\n\n" + line + b"\n")
    assert [found.place for found in read(lines, Signal.TRACES)] == [f"{lines}:1", f"{lines}:3"]
    assert bodies(lines) == [ONE, ONE]
    gaps = put(tmp_path / "gaps.jsonl", b"\r\n" + line + b"\r\n  \r\n" + line)
    assert [found.place for found in read(gaps, Signal.TRACES)] == [f"{gaps}:2", f"{gaps}:4"]
    assert bodies(gaps) == [ONE, ONE]


@pytest.mark.parametrize("suffix", [".bin", ".pb.gz", ".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_empty_files(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: a file of no bytes, in every format.
    Guarantees: no request, or an empty one, and no error.
    """
    assert b"".join(bodies(put(tmp_path / f"empty{suffix}", b""))) == b""


@pytest.mark.parametrize(
    ("line", "signal"),
    [
        ('{"resourceSpans": []}', Signal.TRACES),
        ('  {\t"resource_spans" : []}', Signal.TRACES),
        (json.dumps(LOGS), Signal.LOGS),
        (json.dumps(LOGS).replace("resourceLogs", "resource_logs"), Signal.LOGS),
        (json.dumps(METRICS), Signal.METRICS),
        ('{"resource_metrics": []}', Signal.METRICS),
        ('{"note": {"a": [1]}, "resourceMetrics": []}', Signal.METRICS),
        (json.dumps(LOGS).replace("hi", '\\"resourceSpans\\":'), Signal.LOGS),
        (
            '{"resourceLogs": [{"resource": {"attributes": [{"key": "resourceSpans"}]}}]}',
            Signal.LOGS,
        ),
        ("{}", Signal.METRICS),
        ('{"resourceProfiles": []}', Signal.METRICS),
    ],
)
def test_a_line_says_what_it_holds(tmp_path: Path, line: str, signal: Signal) -> None:
    """
    Scenario: lines of all signals in both spellings, with other keys in front, with the names of
    other signals inside; then lines that do not say. The reader expects metrics.
    Guarantees: the signal is that of the key at the top; a line that does not say is as expected.
    """
    path = put(tmp_path / "r.jsonl", line.encode())
    ((body, found, place),) = read(path, Signal.METRICS)
    assert (found, place) == (signal, f"{path}:1")
    assert body == otlp_json.decode(line.encode(), signal)


@pytest.mark.parametrize("gz", GZ)
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b'{"resourceSpans": []}\n{"resourceSpans": [}\n', ":2: not JSON: "),
        ("r.jsonl", b'{"resourceSpans": {}}', ":1: $.resourceSpans: must be a list"),
        ("r.jsonl", b'\n\n{"resourceSpans": []} {}', ":3: not JSON: something comes behind"),
        ("r.jsonl", b"\xff\n", ":1: not UTF-8"),
        ("r.jsonl", b"[]\n", ":1: $: must be an object"),
        ("r.jsonl", b"7\n", ":1: $: must be an object"),
        ("r.jsonl", b"[" * 100_000, ":1: "),
        ("r.json", b'{"resourceSpans":\n [}', ":1: not JSON: "),
        ("r.json", b'{"resourceSpans":\n 3}', ": $.resourceSpans: must be a list"),
        ("r.json", b'"resourceSpans"', ": $: must be an object"),
    ],
)
def test_broken_json(tmp_path: Path, name: str, content: bytes, said: str, gz: str) -> None:
    """
    Scenario: JSON that is broken, is no OTLP, is no text, or is nested without end.
    Guarantees: refused; the message names file, line and what is wrong.
    """
    path = put(tmp_path / f"{name}{gz}", content)
    assert refusal(path).startswith(f"{path}{said}")


@pytest.mark.parametrize("kind", ["bin", "jsonl", "json"])
def test_broken_gzip(tmp_path: Path, kind: str) -> None:
    """
    Scenario: a .gz file that is not gzipped, some that are cut, one with changed bytes in the
    middle, one whose checksum is wrong.
    Guarantees: refused by name, whichever way gzip tells.
    """
    content = {"bin": ONE}.get(kind, otlp_json.encode(ONE, Signal.TRACES))
    whole = gzip.compress(content)
    for number, broken in enumerate((
        content,
        whole[:-5],
        whole[:30],
        whole[:12] + b"\xff\xff\xff\xff" + whole[16:],
        whole[:-8] + bytes(8),
    )):  # fmt: skip
        path = tmp_path / f"{number}.{kind}.gz"
        path.write_bytes(broken)
        assert refusal(path).startswith(f"{path}: ")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """
    Scenario: a missing file, a folder, and names whose suffix says nothing.
    Guarantees: refused by name and reason; an unknown suffix is told the known ones.
    """
    for name in ("no.bin", "no.jsonl.gz"):
        assert refusal(tmp_path / name) == f"{tmp_path}/{name}: No such file or directory"
    folder = tmp_path / "folder.pb"
    folder.mkdir()
    assert refusal(folder) == f"{folder}: Is a directory"
    for name in ("r", "r.txt", "r.gz", "r.txt.gz", ".bin"):
        path = put(tmp_path / name, b"")
        assert refusal(path).startswith(f"{path}: the suffix must be one of .bin, .pb, .json")


def test_reading_can_be_given_up(tmp_path: Path) -> None:
    """
    Scenario: only the first of two requests is read.
    Guarantees: the file is closed with the reader; a leak would be a warning, and that an error.
    """
    reader = read(written(tmp_path / "r.jsonl.gz", [ONE, TWO]), Signal.TRACES)
    assert next(reader).body == ONE
    reader.close()  # type: ignore[attr-defined]  # It is a generator.


@pytest.mark.parametrize("suffix", [".bin", ".jsonl", ".jsonl.gz"])
def test_a_place_that_cannot_be_written(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: the place is in no folder; then its suffix says nothing.
    Guarantees: an error that names the file and the reason; no file is made.
    """
    nowhere = tmp_path / "no" / f"r{suffix}"
    with pytest.raises(RecordingError, match=f"{nowhere}: No such file or directory"):
        Writer(nowhere)
    with pytest.raises(RecordingError, match=r"r\.txt: the suffix must be one of"):
        Writer(tmp_path / "r.txt")
    assert list(tmp_path.iterdir()) == []


def fill(writer: Writer) -> None:
    """Write more than any buffer holds, and gzip cannot make it small."""
    rng = random.Random(1)
    for _ in range(10):
        span = Agent(rng.randbytes(100_000).hex()).call(at(0))
        writer.write(request([span]), Signal.TRACES, "test")


@pytest.mark.skipif(not FULL.exists(), reason=f"no {FULL} here")
@pytest.mark.parametrize("suffix", [".bin", ".jsonl", ".bin.gz", ".jsonl.gz"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: the disk is full, which comes out while writing, or only when the file is closed.
    Guarantees: an error that names the file and the reason, each time; nothing stays open.
    """
    path = tmp_path / f"full{suffix}"
    path.symlink_to(FULL)
    message = f"^{path}: No space left on device$"
    writer = Writer(path)
    with pytest.raises(RecordingError, match=message):
        fill(writer)
    with contextlib.suppress(RecordingError):  # There may be nothing left to write.
        writer.close()
    with pytest.raises(RecordingError, match=message):
        written(path, [ONE])


def test_one_binary_file_holds_one_signal(tmp_path: Path) -> None:
    """
    Scenario: logs are written behind spans, in a binary file, then as lines.
    Guarantees: refused in the one, where the logs would be read as spans; fine in the other.
    """
    log = otlp_json.decode(json.dumps(LOGS).encode(), Signal.LOGS)
    for name, fits in (("r.bin", False), ("r.jsonl", True)):
        with contextlib.closing(Writer(tmp_path / name)) as writer:
            writer.write(ONE, Signal.TRACES, "a")
            if fits:
                writer.write(log, Signal.LOGS, "b")
                continue
            with pytest.raises(RecordingError, match=r"^b: logs, but .*r\.bin holds one signal"):
                writer.write(log, Signal.LOGS, "b")
    assert bodies(tmp_path / "r.bin") == [ONE]
    assert bodies(tmp_path / "r.jsonl") == [ONE, log]


def test_what_is_no_otlp_has_no_json(tmp_path: Path) -> None:
    """
    Scenario: metrics that are no protobuf are to be written as JSON.
    Guarantees: refused; the message names where they came from.
    """
    with (
        contextlib.closing(Writer(tmp_path / "r.jsonl")) as writer,
        pytest.raises(RecordingError, match=r"^in\.bin: not an ExportMetricsServiceRequest"),
    ):
        writer.write(b"\xff", Signal.METRICS, "in.bin")
