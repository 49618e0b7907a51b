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
from tests.test_captures import ASKED, FLOORS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.e2e

FOLDERS = captures.folders()
EMITTERS = [pytest.param(folder, id=folder.name) for folder in FOLDERS]
TELL_NO_CALLS = {"openai-client-otel-genai"}
"""Instruments the model's client: tools are run elsewhere, and no span or record tells of it."""
ONLY_LOGS_CARRY_ARGUMENTS = {"codex-cli"}
"""Tells each call by a span, which speaks for it, and by a log record beside it."""
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
    Guarantees: the small copies hold emitters of `execute_tool` and of other dialects, some that
    tell calls by logs; a missing collection is said.
    """
    small = [path.parent for path in captures.SMALL.glob("*/expected.json")]
    assert {bool(captures.tool_call_spans(folder)) for folder in small} == {True, False}
    assert {bool(captures.request_files(folder, "logs")) for folder in small} == {True, False}
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
    Scenario: every trace request of one emitter is replayed, with limits low enough for findings.
    Guarantees: the output without our attributes is the input, byte for byte; the report counts
    every span; exactly the spans of the calls that are reported carry a verdict.
    """
    files = captures.request_files(folder)
    out = tmp_path / "annotated.bin"
    report = replay(files, "--calls", "--out", str(out), "--config", str(low_limits))
    annotated = out.read_bytes()
    assert unsplice(annotated) == b"".join(path.read_bytes() for path in files)
    parsed = list(captures.spans_of(captures.requests(folder)))
    assert report["summary"]["spans"] == len(parsed)
    assert report["summary"]["tool_calls"] == len(report["calls"])
    whole = ExportTraceServiceRequest.FromString(annotated)
    judged = [
        span.span_id.hex()
        for _resource, _scope, span in captures.spans_of([whole])
        if captures.text(span.attributes, "anomaly.action") is not None
    ]
    assert sorted(judged) == sorted(call["span_id"] for call in report["calls"])


@pytest.mark.parametrize("folder", EMITTERS)
def test_real_calls(folder: Path, tmp_path: Path) -> None:
    """
    Scenario: every trace and log request of one emitter is replayed, in the order they arrived.
    Guarantees: the calls reported are those that the tools wrote down, by name and number, each
    once; who made them, whether they failed and their arguments are told at least as often as the
    payload holds them.
    """
    recording = tmp_path / "all.jsonl"
    recording.write_bytes(captures.json_lines(folder))
    calls = replay([recording], "--calls")["calls"]
    if folder.name in TELL_NO_CALLS:
        assert calls == []
        return
    check_tools(folder, [call["tool"] for call in calls])
    floors = dict(zip(ASKED, FLOORS[folder.name], strict=True)) if folder.name in FLOORS else {}
    carried = floors.pop("arguments", 0)
    if folder.name not in ONLY_LOGS_CARRY_ARGUMENTS:
        assert sum(call["arguments"] is not None for call in calls) >= carried
    for part, floor in floors.items():
        made, told = (
            Counter((call["tool"].rpartition("-")[2], wanted(call, part)) for call in listed)
            for listed in (captures.executed(folder), calls)
        )
        assert (made & told).total() >= floor, part


def wanted(call: dict[str, Any], part: str) -> str | bool | None:
    """One part of a call, reported or written down by the tool: an error is told or not."""
    said: str | bool | None = call[part]
    return bool(said) if part == "error" else said


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
    Guarantees: exit code 0, and the output without our attributes is the input, byte for byte;
    where no call is told, it is the input as it is.
    """
    files = captures.request_files(folder, "logs")
    out = tmp_path / "logs.bin"
    report = replay(files, "--signal", "logs", "--out", str(out), "--calls")
    came = b"".join(path.read_bytes() for path in files)
    assert unsplice(out.read_bytes(), signal="logs") == came
    assert (out.read_bytes() == came) == (report["calls"] == [])
    assert {call["signal"] for call in report["calls"]} <= {"logs"}


@pytest.mark.parametrize("folder", EMITTERS)
def test_other_batches(folder: Path, tmp_path: Path, low_limits: Path) -> None:
    """
    Scenario: one emitter's requests are replayed twice, and cut into one span per request.
    Guarantees: the same calls and findings to the bit, every time, also where a call borrows its
    identity from another span: a replay reads the whole recording first.
    """
    files = captures.request_files(folder)
    options = ("--calls", "--config", str(low_limits))
    first, second = replay(files, *options), replay(files, *options)
    for part in ("findings", "calls"):
        assert json.dumps(first[part]) == json.dumps(second[part])
    cut = replay(write_requests(tmp_path / "cut", captures.one_span_each(folder)), *options)
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
