"""`replay` over what real agent frameworks sent: nothing lost, nothing changed, nothing missed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.cli import main
from tests import traffic
from tests.e2e import captures
from tests.e2e.service_process import run_command
from tests.e2e.unsplice import unsplice

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.e2e

FOLDERS = captures.folders()
EMITTERS = [pytest.param(folder, id=folder.name) for folder in FOLDERS]
LOW_LIMITS = {"detectors": {"rate": {"warn": 2, "block": 4}}}
"""Captures have 14 calls in three sessions: limits that some of them reach."""


def replay(files: Sequence[Path], *options: str) -> Any:
    """The JSON report of one run, which must end with exit code 0.

    In this process: a hundred starts would take minutes and show nothing more.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["replay", *map(str, files), "--format", "json", *options])
    assert code == 0, printed.getvalue()
    return json.loads(printed.getvalue())


@pytest.fixture
def low_limits(tmp_path: Path) -> Path:
    config = tmp_path / "low.yaml"
    config.write_text(json.dumps(LOW_LIMITS))
    return config


def write_requests(folder: Path, bodies: Sequence[bytes]) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{number:06d}.bin" for number in range(len(bodies))]
    for path, body in zip(files, bodies, strict=True):
        path.write_bytes(body)
    return files


def same_tool(reported: str, executed: str) -> bool:
    """Semantic Kernel writes `plugin-function` where the tools wrote down their function."""
    return reported == executed or reported.endswith(f"-{executed}")


def test_collection() -> None:
    """
    Scenario: the full collection is there, or only the small copies.
    Guarantees: the small copies hold emitters with calls and without; a missing collection is said.
    """
    small = [path.parent for path in captures.SMALL.glob("*/expected.json")]
    assert {bool(captures.tool_call_spans(folder)) for folder in small} == {True, False}
    if not captures.FULL.is_dir():
        pytest.skip(f"no {captures.FULL}: replayed only the {len(small)} small captures")


def test_replay_as_a_process() -> None:
    """
    Scenario: the small captures are replayed by the command, as a process of its own, twice.
    Guarantees: exit code 0, the table by default, and the same JSON as in this process but for the
    seconds it took.
    """
    files = [
        path
        for folder in sorted(captures.SMALL.glob("*"))
        for path in captures.request_files(folder)
    ]
    table = run_command("replay", *map(str, files))
    assert table.returncode == 0, table.stderr
    assert "tool_calls" in table.stdout.replace(" ", "_")
    ended = run_command("replay", *map(str, files), "--format", "json")
    assert ended.returncode == 0, ended.stderr
    told, here = json.loads(ended.stdout), replay(files)
    for report in (told, here):
        del report["summary"]["seconds"]
    assert told == here


@pytest.mark.parametrize("folder", EMITTERS)
def test_real_payloads(folder: Path, tmp_path: Path, low_limits: Path) -> None:
    """
    Scenario: every request of one emitter is replayed, with limits low enough for findings.
    Guarantees: the output without our attributes is the input, byte for byte; the report counts
    every span; for spans that say `execute_tool` the calls found are those that were executed, and
    exactly those spans carry a verdict.
    """
    files = captures.request_files(folder)
    out = tmp_path / "annotated.bin"
    report = replay(files, "--calls", "--out", str(out), "--config", str(low_limits))
    annotated = out.read_bytes()
    assert unsplice(annotated) == b"".join(path.read_bytes() for path in files)
    parsed = list(captures.spans_of(captures.requests(folder)))
    assert report["summary"]["spans"] == len(parsed)
    # The rule: an emitter is one of `execute_tool` when its spans say so; then all its calls do.
    calls = captures.tool_call_spans(folder)
    assert report["summary"]["tool_calls"] == len(report["calls"]) == len(calls)
    assert {call["span_id"] for call in report["calls"]} == {span.span_id.hex() for span in calls}
    whole = ExportTraceServiceRequest.FromString(annotated)
    judged = [
        span.span_id
        for _resource, _scope, span in captures.spans_of([whole])
        if captures.text(span.attributes, "anomaly.action") is not None
    ]
    assert sorted(judged) == sorted(span.span_id for span in calls)
    if calls:
        check_tools(folder, [call["tool"] for call in report["calls"]])


def check_tools(folder: Path, reported: Sequence[str]) -> None:
    """Each executed call is reported once, under its name."""
    executed = captures.executed_tools(folder)
    found = Counter(
        next((tool for tool in executed if same_tool(name, tool)), name) for name in reported
    )
    assert found == executed


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(folder, id=folder.name)
        for folder in FOLDERS
        if captures.request_files(folder, "logs")
    ],
)
def test_real_logs(folder: Path, tmp_path: Path) -> None:
    """
    Scenario: every logs request of one emitter is replayed with `--signal logs`.
    Guarantees: exit code 0, and the output is the input, byte for byte.
    """
    files = captures.request_files(folder, "logs")
    out = tmp_path / "logs.bin"
    replay(files, "--signal", "logs", "--out", str(out))
    assert out.read_bytes() == b"".join(path.read_bytes() for path in files)


@pytest.mark.parametrize("folder", EMITTERS)
def test_other_batches(folder: Path, tmp_path: Path, low_limits: Path) -> None:
    """
    Scenario: one emitter's requests are replayed twice, and cut into one span per request.
    Guarantees: the same findings to the bit, every time. Where a call borrows its identity from
    another span of the trace, arrival may change the verdict, so there the cut run only has to find
    the same calls.
    """
    files = captures.request_files(folder)
    options = ("--calls", "--config", str(low_limits))
    first, second = replay(files, *options), replay(files, *options)
    for part in ("findings", "calls"):
        assert json.dumps(first[part]) == json.dumps(second[part])
    cut = replay(write_requests(tmp_path / "cut", captures.one_span_each(folder)), *options)
    if captures.borrows_identity(folder):
        for part in ("span_id", "tool", "time"):
            assert [call[part] for call in cut["calls"]] == [call[part] for call in first["calls"]]
        return
    for part in ("findings", "calls"):
        assert json.dumps(cut[part]) == json.dumps(first[part])


@pytest.mark.parametrize("seed", range(3))
def test_any_split_of_a_stream(seed: int, tmp_path: Path) -> None:
    """
    Scenario: 900 calls of three sessions over two minutes, some of them late, replayed as one
    request, one span per request, and cut at random.
    Guarantees: findings and verdicts of every call are the same to the bit, and there are some.
    """
    rng = random.Random(seed)
    agents = [traffic.Agent(f"agent-{i}", session=f"sess-{i}", seed=seed) for i in range(3)]
    spans = []
    for number in range(900):
        late_ns = rng.choice((0, 0, 0, 5)) * 1_000_000_000
        end_ns = traffic.START_NS + number * 133_000_000 - late_ns
        spans.append(rng.choices(agents, (8, 2, 1))[0].call(end_ns))
    cuts = sorted(rng.sample(range(1, 900), 40))
    splits = {
        "whole": [0, 900],
        "single": list(range(901)),
        "random": [0, *cuts, 900],
    }
    reports = {}
    for name, edges in splits.items():
        pieces = [spans[a:b] for a, b in itertools.pairwise(edges)]
        bodies = [traffic.request(piece, resource=traffic.SDK_RESOURCE) for piece in pieces]
        report = replay(write_requests(tmp_path / name, bodies), "--calls")
        reports[name] = json.dumps([report["findings"], report["calls"]])
        assert report["findings"]
        assert report["summary"]["tool_calls"] == 900
    assert reports["whole"] == reports["single"] == reports["random"]
