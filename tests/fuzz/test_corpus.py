"""The fuzzer's corpus as a test: no fuzzer needed. Each file was hostile in a way of its own."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import naive, traffic, wire_reader
from tests.fuzz import (
    argument_target,
    config_target,
    disk_target,
    door_target,
    json_target,
    snapshot_target,
)
from tests.fuzz.mutate import mutated
from tests.fuzz.target import check
from tests.scan_rigs import try_scan
from tests.sizes import scaled

ROOT = Path(__file__).resolve().parents[2]
CORPUS = sorted((ROOT / "tests" / "data" / "fuzz").glob("*.bin"))
CONFIGS = sorted((ROOT / "tests" / "data" / "fuzz-config").glob("*.bin"))
DISK = sorted((ROOT / "tests" / "data" / "fuzz-disk").glob("*.bin"))
SNAPSHOTS = sorted((ROOT / "tests" / "data" / "fuzz-snapshot").glob("*.bin"))
DOORS = sorted((ROOT / "tests" / "data" / "fuzz-doors").glob("*.bin"))
ARGUMENTS = sorted((ROOT / "tests" / "data" / "fuzz-arguments").glob("*.bin"))
JSON = sorted((ROOT / "tests" / "data" / "fuzz-json").glob("*.bin"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    """
    Scenario: an input that once reached new code, or was made by hand to be awkward.
    Guarantees: scan and splice agree with the library about it.
    """
    check(path.read_bytes())


@pytest.mark.parametrize("path", ARGUMENTS, ids=lambda path: path.stem)
def test_arguments_corpus(path: Path) -> None:
    """
    Scenario: the seeds of the argument readers' fuzzer, and what it found.
    Guarantees: the readers agree with their twin about each, and about it changed.
    """
    argument_target.check(path.read_bytes())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_corpus(path: Path) -> None:
    """
    Scenario: the seeds of the configuration's fuzzer, and what it found.
    Guarantees: each is a configuration, or refused with a message of a sane length.
    """
    config_target.check(path.read_bytes())


@pytest.mark.parametrize("path", DISK, ids=lambda path: path.stem)
def test_disk_corpus(path: Path) -> None:
    """
    Scenario: damage to the files of a disk queue that was made by hand or found by the fuzzer.
    Guarantees: the queue opens, gives nothing that nobody sent, and goes on.
    """
    disk_target.check(path.read_bytes())


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_disk_without_guidance(seed: int) -> None:
    """
    Scenario: any bytes at any place of the files of a disk queue.
    Guarantees: as for the corpus.
    """
    rng = random.Random(seed)
    for _ in range(20):
        disk_target.check(rng.randbytes(3 + rng.choice((0, 1, 8, 100))))


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_snapshot_corpus(path: Path) -> None:
    """
    Scenario: the seeds of the snapshot reader's fuzzer, and what it found.
    Guarantees: refused with a reason, or as good as any.
    """
    snapshot_target.check(path.read_bytes())


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_json_corpus(path: Path) -> None:
    """
    Scenario: the seeds of the JSON codec's fuzzer, and what it found.
    Guarantees: the codec agrees with its twin about each, about it changed, and on the way back.
    """
    json_target.check(path.read_bytes())


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.stem)
def test_doors_corpus(path: Path) -> None:
    """
    Scenario: the seeds of the doors' fuzzer, and what it found; each also changed in many ways.
    Guarantees: every answer has a status we know, nothing is held, logged or left open.
    """
    data = path.read_bytes()
    door_target.check(data)
    rng = random.Random(data)
    for _ in range(scaled(20)):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        cut = rng.randrange(len(changed))
        door_target.check(bytes(changed[:cut] + changed[rng.randrange(len(changed)) :]))


def test_corpus_is_worth_its_place() -> None:
    """
    Scenario: the corpus as a whole.
    Guarantees: small; requests that are accepted and such that are refused; no file twice.
    """
    bodies = [path.read_bytes() for path in CORPUS]
    assert len(set(bodies)) == len(bodies) < 200
    assert sum(map(len, bodies)) < 500_000
    accepted = sum(try_scan(body) is not None for body in bodies)
    assert 20 < accepted < len(bodies) - 20


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_without_guidance(seed: int) -> None:
    """
    Scenario: the fuzzer's own changes, a few on top of each other, not guided by coverage.
    Guarantees: as for the corpus.
    """
    rng = random.Random(seed)
    data = rng.choice([path.read_bytes() for path in CORPUS])

    def blind(part: bytes) -> bytes:
        at = rng.randrange(len(part) + 1)
        return part[:at] + rng.randbytes(rng.randrange(3)) + part[at + rng.randrange(3) :]

    for _ in range(6):
        data = mutated(data, rng.getrandbits(32), blind)[:4096]
        check(data)


def test_most_changes_leave_the_framing_whole() -> None:
    """
    Scenario: a request changed in one place, many times over.
    Guarantees: half of the results or more are still requests, and many differ.
    """
    body = traffic.random_request(0, spans=2)
    results = [mutated(body, seed, lambda part: part[:-1]) for seed in range(300)]
    assert len(set(results)) > 100
    assert sum(map(naive.accepts, results)) > 150
    assert all(list(wire_reader.fields(data)) for data in results if naive.accepts(data) and data)


def test_changes_speak_of_tools() -> None:
    """
    Scenario: a span that says nothing, changed in one place, many times over; all that is in it
    stays in it.
    Guarantees: some become tool calls: the mutator knows the words of the conventions.
    """
    span = Span(trace_id=b"T" * 16, span_id=b"S" * 8, name="x")
    body = traffic.request([span], resource=(), scope=None)
    results = [mutated(body, seed, lambda part: part) for seed in range(3000)]
    columns = [try_scan(data) for data in results if span.trace_id in data]
    assert sum(found.call_count for found in columns if found is not None) > 0


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris not installed")
@pytest.mark.parametrize("options", [[], ["--compiled"]], ids=["python", "compiled"])
def test_runs_under_atheris(options: list[str], tmp_path: Path) -> None:
    """
    Scenario: the fuzzer itself, for a few inputs, on plain Python and on compiled kernels.
    Guarantees: it runs, and in plain Python it sees into the kernels.
    """
    # No limit of memory: libFuzzer reads the peak, and that of a child begins at its parent's.
    limits = ["-runs=50", "-seed=1", "-rss_limit_mb=0"]
    command = [sys.executable, "-m", "tests.fuzz", *options, *limits, str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Done 50 runs" in done.stderr
    assert ("Instrumenting otel_anomaly.otlp.scan" in done.stderr) == (not options)
