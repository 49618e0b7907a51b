"""Replay: recorded OTLP through the same processor, and a report that is the same every time."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_anomaly.config import Config
from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json
from otel_anomaly.replay import replay_command, rfc3339
from otel_anomaly.scoring import DETECTORS
from tests.book_rigs import LOW_LIMITS, at
from tests.log_traffic import log_request, tool_record
from tests.sizes import scaled
from tests.traffic import Agent, attributes, request, tool_span
from tests.unspliced import without_verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOGS = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"severityText":"INFO"}]}]}]}'
METRICS = b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"up"}]}]}]}'
WHO = {"tenant", "agent", "session", "user"}
CALL_FIELDS = {
    *("trace_id", "span_id", "time", "signal", "tool", "arguments", "error", "action", "score"),
    *("types", "identity", "would_be", *WHO),
}
SUMMARY_FIELDS = {
    *("spans", "tool_calls", "verdicts", "findings", "late", "duplicates", "folded"),
    "seconds",
}
FINDING_FIELDS = {
    *("time", "type", "action", "score", "observed", "limit", "baseline", "window_s", "entity"),
    *("reason", "would_be", "tool", "trace_id", "span_id", *WHO),
}
HOSTILE = "\x1b[2J\r\nx\x07\u202e\u2028\x9b"


class Ran(NamedTuple):
    """One run: what it printed, and its exit code."""

    code: int
    out: str

    @property
    def report(self) -> Any:
        """The JSON report, without the one number that is not of the recording."""
        report = json.loads(self.out)
        assert report["summary"].pop("seconds") >= 0
        return report


def run(files: Sequence[Path], **options: Any) -> Ran:
    """`otel-anomaly replay` with limits that a handful of calls reach."""
    stdout = options.setdefault("stdout", io.StringIO())
    given = {"out": None, "output_format": "json", "calls": True, "signal": Signal.TRACES}
    sections = {"detectors": options.pop("detectors", LOW_LIMITS)}
    config = Config.model_validate(sections | options.pop("sections", {}))
    code = replay_command(config, files, **(given | options))
    return Ran(code, stdout.getvalue() if isinstance(stdout, io.StringIO) else "")


def binary(path: Path, *requests: bytes) -> Path:
    path.write_bytes(b"".join(requests))
    return path


def five_calls(**names: Any) -> bytes:
    """Five calls of one session, half a second apart; the fourth fails."""
    agent = Agent(names.pop("name", "support"), **{"session": "s-1", **names})
    return request([agent.call(at(i / 2), error=i == 3) for i in range(5)])


def test_the_report(tmp_path: Path) -> None:
    """
    Scenario: five calls of one session, of which the third is the first over `warn`.
    Guarantees: the summary adds up; findings and calls have exactly the promised fields, in the
    order of events, with what was seen, when, by whom and on which span.
    """
    body = five_calls(user="u-1", tenant="t-1")
    ran = run([binary(tmp_path / "r.bin", body)])
    assert ran.code == 0
    assert json.loads(ran.out)["summary"].keys() == SUMMARY_FIELDS
    report = ran.report
    assert list(report) == ["summary", "findings", "calls"]
    assert report["summary"] == {
        "spans": 5,
        "tool_calls": 5,
        "verdicts": {"allow": 2, "warn": 3, "pause": 0, "block": 0},
        "findings": dict.fromkeys(DETECTORS, 0) | {"rate": 3},
        "late": 0,
        "duplicates": 0,
        "folded": 0,
    }
    calls, findings = report["calls"], report["findings"]
    assert len(calls) == 5
    assert {frozenset(call) for call in calls} == {frozenset(CALL_FIELDS)}
    assert {frozenset(finding) for finding in findings} == {frozenset(FINDING_FIELDS)}
    assert calls[3] == {
        "trace_id": Agent("support", session="s-1", user="u-1", tenant="t-1").trace_id.hex(),
        "span_id": calls[3]["span_id"],
        "time": "2026-09-21T14:13:21.500000000Z",
        "signal": "traces",
        "tool": "lookup_order",
        "arguments": None,
        "tenant": "t-1",
        "agent": "support",
        "session": "s-1",
        "user": "u-1",
        "identity": "agent=gen_ai.agent.name, session=gen_ai.conversation.id, rate=session,"
        " tenant=tenant.id, user=user.id",
        "error": True,
        "action": "warn",
        "would_be": "warn",
        "score": calls[3]["score"],
        "types": ["rate"],
    }
    assert [call["error"] for call in calls] == [False, False, False, True, False]
    assert [finding["observed"] for finding in findings] == [3, 4, 5]
    assert findings[0] == {
        "time": calls[2]["time"],
        "type": "rate",
        "action": "warn",
        "would_be": "warn",
        "score": 0.5,
        "observed": 3.0,
        "limit": 3.0,
        "baseline": 0.0,
        "window_s": 60.0,
        "entity": "session:s-1",
        "reason": "rate: 3 calls in 60 s, limit 3",
        **{name: calls[2][name] for name in (*WHO, "tool", "trace_id", "span_id")},
    }


def test_calls_only_when_asked_for(tmp_path: Path) -> None:
    """
    Scenario: the same recording without `--calls`; then nobody is known and no tool is named, not
    even by the span.
    Guarantees: no calls in the report, the same findings; what is not said is null.
    """
    file = binary(tmp_path / "r.bin", five_calls())
    with_calls, without = run([file]).report, run([file], calls=False).report
    assert with_calls.pop("calls")
    assert without == with_calls
    silent = Agent(None).call(at(0), None)
    silent.name = ""
    (call,) = run([binary(tmp_path / "n.bin", request([silent]))]).report["calls"]
    assert {name for name, value in call.items() if value is None} == {*WHO, "tool", "arguments"}


@pytest.mark.parametrize("suffix", [".bin", ".pb", ".jsonl", ".json", ".bin.gz", ".jsonl.gz"])
def test_annotated_spans(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: a binary recording is replayed into every format, and what comes out is replayed.
    Guarantees: without our attributes it is what went in; every call has its verdict; the second
    replay finds the same, for what is ours is not read, and writes the same bytes.
    """
    body = five_calls()
    source = binary(tmp_path / "in.bin", body)
    first, second = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    report = run([source], out=first).report
    assert run([first], out=second).report == report
    assert first.read_bytes() == second.read_bytes()
    raw = first.read_bytes()
    content = gzip.decompress(raw) if suffix.endswith(".gz") else raw
    out = otlp_json.decode(content, Signal.TRACES) if ".json" in suffix else content
    plain, actions = without_verdicts(out)
    assert plain == body
    assert actions == ["allow", "allow", "warn", "warn", "warn"]


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    """
    Scenario: a recording of several files is replayed twice into gzipped files.
    Guarantees: output and report are equal to the bit.
    """
    files = [binary(tmp_path / f"{n}.bin", five_calls(session=f"s-{n % 2}")) for n in range(4)]
    outs = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    one, two = (run(files, out=out) for out in outs)
    assert one.report == two.report
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_cut_into_other_batches(tmp_path: Path, seed: int) -> None:
    """
    Scenario: calls of three sessions, some late, some delivered twice, as one request, as one
    request each, and cut at random, in one file or many.
    Guarantees: the same report to the bit, with findings, late calls and duplicates in it.
    """
    rng = random.Random(seed)
    agents = [Agent("a", session=f"s-{i}", seed=seed) for i in range(3)]
    spans = []
    count = max(60, scaled(200))
    for i in range(count):
        late_s = rng.choice((0, 0, 0, 3, 70))
        spans.append(rng.choices(agents, (8, 2, 1))[0].call(at(100 + i - late_s)))
        if rng.random() < 0.1:
            spans.append(rng.choice(spans))
    edges = [0, *sorted(rng.sample(range(1, len(spans)), 9)), len(spans)]
    cuts = {"whole": [0, len(spans)], "single": range(len(spans) + 1), "random": edges}
    reports = []
    for name, places in cuts.items():
        bodies = [request(spans[a:b]) for a, b in itertools.pairwise(places)]
        lines = b"".join(otlp_json.encode(body, Signal.TRACES) + b"\n" for body in bodies)
        files = [binary(tmp_path / f"{name}-{n}.pb", body) for n, body in enumerate(bodies)]
        reports += [run(files).report, run([binary(tmp_path / f"{name}.jsonl", lines)]).report]
    summary = reports[0]["summary"]
    assert reports[0]["findings"]
    assert summary["spans"] == len(spans)
    assert summary["tool_calls"] == len(reports[0]["calls"]) == count
    assert summary["duplicates"] == len(spans) - count > 0
    assert summary["late"] > 0
    assert [json.dumps(report) for report in reports] == [json.dumps(reports[0])] * len(reports)


def test_logs_and_metrics_pass(tmp_path: Path) -> None:
    """
    Scenario: a binary file of logs that tell of no call; lines of all three signals.
    Guarantees: byte for byte, in order; nothing is counted but the spans.
    """
    body = otlp_json.decode(LOGS, Signal.LOGS)
    source, out = binary(tmp_path / "in.bin", body), tmp_path / "out.bin"
    report = run([source], signal=Signal.LOGS, out=out).report
    assert out.read_bytes() == source.read_bytes()
    assert (report["summary"]["spans"], report["calls"]) == (0, [])
    spans = otlp_json.encode(request([Agent("a").call(at(0))]), Signal.TRACES)
    mixed = binary(tmp_path / "in.jsonl", METRICS + b"\n" + spans + b"\n" + LOGS + b"\n")
    lines_out = tmp_path / "out.jsonl"
    assert run([mixed], out=lines_out).report["summary"]["spans"] == 1
    lines = lines_out.read_bytes().splitlines()
    assert (lines[0], lines[2]) == (METRICS, LOGS)
    assert b"anomaly.action" in lines[1]


def records(**told: Any) -> bytes:
    """Five calls of one session, half a second apart, told by log records; the fourth fails."""
    given = {"tool": "shell", "session": "s-1", **told}
    return log_request(
        [tool_record(time_ns=at(i / 2), call_id=f"c-{i}", error=i == 3, **given) for i in range(5)],
        resource=[("service.name", "codex")],
    )


@pytest.mark.parametrize("suffix", [".bin", ".jsonl"])
def test_calls_in_logs(tmp_path: Path, suffix: str) -> None:
    """
    Scenario: calls told by log records, of a session that is over the line, in both formats.
    Guarantees: they are judged, reported as of the logs signal, and annotated as spans are; the
    rest of each record is as it came.
    """
    source = tmp_path / f"in{suffix}"
    lines = otlp_json.encode(records(), Signal.LOGS) + b"\n"
    source.write_bytes(records() if suffix == ".bin" else lines)
    out = tmp_path / "out.bin"
    report = run([source], signal=Signal.LOGS, out=out).report
    assert report["summary"]["spans"] == 0
    assert report["summary"]["tool_calls"] == 5
    calls = report["calls"]
    assert [call["action"] for call in calls] == ["allow", "allow", "warn", "warn", "warn"]
    assert [call["error"] for call in calls] == [False, False, False, True, False]
    for name, value in (("signal", "logs"), ("tool", "shell"), ("session", "s-1"), ("user", None)):
        assert {call[name] for call in calls} == {value}
    assert [(f["type"], f["observed"], f["entity"]) for f in report["findings"]] == [
        ("rate", count, "session:s-1") for count in (3, 4, 5)
    ]
    message = ExportLogsServiceRequest.FromString(out.read_bytes())
    actions = []
    for record in message.resource_logs[0].scope_logs[0].log_records:
        ours = [pair for pair in record.attributes if pair.key.startswith("anomaly.")]
        actions.append(ours[0].value.string_value)
        del record.attributes[-len(ours) :]
    assert actions == [call["action"] for call in calls]
    assert message == ExportLogsServiceRequest.FromString(records())


def test_each_binary_file_says_what_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: spans, and log records with and without trace ids, in one binary file each, and no
    word of what they hold; spans whose ids are broken; nothing; then what is no OTLP.
    Guarantees: each is read as what it is, in any order; what can be read as neither is refused by
    its name.
    """
    spans = binary(tmp_path / "a.bin", five_calls(session="s-2"))
    bare = binary(tmp_path / "b.bin", records())
    traced = binary(tmp_path / "c.bin", records(trace_id=b"\xff" * 16, session="s-3"))
    for files in ([spans, bare, traced], [traced, bare, spans]):
        report = run(files, signal=None, out=tmp_path / "out.jsonl").report
        assert (report["summary"]["spans"], report["summary"]["tool_calls"]) == (5, 15)
        found = sorted((call["signal"], call["session"]) for call in report["calls"])
        assert found == [("logs", "s-1")] * 5 + [("logs", "s-3")] * 5 + [("traces", "s-2")] * 5
    broken = binary(tmp_path / "d.bin", request([Span(trace_id=b"t", name="x")]))
    assert run([broken], signal=None).report["summary"]["spans"] == 1
    assert run([binary(tmp_path / "e.bin")], signal=None).code == 0
    neither = binary(tmp_path / "f.bin", b"\xff")
    assert run([spans, neither], signal=None).code == 2
    assert capsys.readouterr().err == (
        f"{neither}: not an ExportTraceServiceRequest: its framing is broken"
        " (read as traces; logs cannot be read in it either)\n"
    )


def test_a_call_told_twice(tmp_path: Path) -> None:
    """
    Scenario: the same five calls told by spans and by log records, as lines of one file: spans
    first, and logs first.
    Guarantees: five calls, told by the spans; the records are not counted again.
    """
    agent = Agent("codex", session="s-1")
    spans = [agent.call(at(i / 2), "shell") for i in range(5)]
    for i, span in enumerate(spans):
        span.attributes.extend(attributes([("gen_ai.tool.call.id", f"c-{i}")]))
    logs = otlp_json.encode(records(trace_id=agent.trace_id), Signal.LOGS)
    traces = otlp_json.encode(request(spans), Signal.TRACES)
    for lines in ([traces, logs], [logs, traces]):
        source = binary(tmp_path / "in.jsonl", b"".join(line + b"\n" for line in lines))
        report = run([source]).report
        assert report["summary"]["tool_calls"] == 5
        assert report["summary"]["folded"] + report["summary"]["duplicates"] == 5
        assert [call["signal"] for call in report["calls"]] == ["traces"] * 5


@pytest.mark.parametrize("name", ["e.bin", "e.json", "e.jsonl", "e.pb.gz"])
def test_nothing_at_all(tmp_path: Path, name: str) -> None:
    """
    Scenario: an empty file.
    Guarantees: an empty report, in both forms, and an empty file out.
    """
    file = tmp_path / name
    file.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    out = tmp_path / "out.bin"
    report = run([file], out=out).report
    assert (report["findings"], report["calls"], out.read_bytes()) == ([], [], b"")
    assert report["summary"]["tool_calls"] == 0
    table = run([file], output_format="table").out.splitlines()
    assert table[0] == "0 spans, 0 tool calls: allow 0, warn 0, pause 0, block 0"
    assert re.fullmatch(r"findings: none; late 0, duplicates 0; [0-9.]+ s", table[1])
    assert len(table) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.bin", b"\x0a\xff", "r.bin: "),
        ("r.jsonl", b'{"resourceSpans": []}\n{"resourceSpans": 1}\n', "r.jsonl:2: $.resourceSpans"),
        ("r.txt", b"", "r.txt: the suffix must be one of"),
        ("r.bin.gz", b"plain", "r.bin.gz: Not a gzipped file"),
    ],
)
def test_a_recording_that_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    """
    Scenario: a sound file, then a broken one: protobuf, JSON, suffix, gzip.
    Guarantees: exit 2, one line on standard error with file, line and reason, no report; nothing is
    judged or written, for all files are read once before.
    """
    out, good = tmp_path / "out.bin", binary(tmp_path / "good.bin", five_calls())
    ran = run([good, binary(tmp_path / name, content)], out=out)
    assert ran == (2, "")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/{said}")
    assert out.read_bytes() == b""


def test_a_parent_that_comes_last(tmp_path: Path) -> None:
    """
    Scenario: 120 calls that say nothing of their session, then their parent that names it: as one
    request, and with the parent in a file of its own, read last.
    Guarantees: the same findings, all about that session.
    """
    trace = b"T" * 16
    start = 1_790_000_000_000_000_000
    calls = [
        tool_span(
            trace_id=trace,
            span_id=(n + 1).to_bytes(8, "big"),
            start_ns=start,
            end_ns=start + n,
            tool="t",
        )
        for n in range(120)
    ]
    parent = Span(trace_id=trace, span_id=b"parent-1", start_time_unix_nano=start - 1)
    parent.attributes.extend(attributes([("session.id", "s-late"), ("gen_ai.agent.name", "late")]))
    whole = binary(tmp_path / "whole.bin", request([*calls, parent]))
    parts = [
        binary(tmp_path / f"{n}.bin", request(spans)) for n, spans in ((1, calls), (2, [parent]))
    ]
    limits = LOW_LIMITS | {"rate": {"warn": 100, "block": 500}}
    reports = [run(files, detectors=limits).report for files in ([whole], parts)]
    assert reports[0]["findings"] == reports[1]["findings"]
    assert {found["entity"] for found in reports[0]["findings"]} == {"session:s-late"}
    assert len(reports[0]["findings"]) == 21


def test_an_output_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: the output is in no folder; is one of the inputs, by another name; the input is logs
    that are no OTLP.
    Guarantees: exit 2 and the reason; the input is as it was.
    """
    source = binary(tmp_path / "in.bin", five_calls())
    assert run([source], out=tmp_path / "no" / "out.bin").code == 2
    link = tmp_path / "link.bin"
    link.symlink_to(source)
    assert run([tmp_path / "in.bin"], out=link).code == 2
    assert source.read_bytes() == five_calls()
    broken = binary(tmp_path / "logs.bin", b"\xff")
    assert run([broken], out=tmp_path / "out.jsonl", signal=Signal.LOGS).code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/no/out.bin: No such file or directory",
        f"{link}: is one of the files to be read",
        (
            f"{broken}: not an ExportLogsServiceRequest: its framing is broken"
            " (binary files are read as logs; --signal traces?)"
        ),
    ]


def test_the_table(tmp_path: Path) -> None:
    """
    Scenario: a recording with findings, as a table; one whose session and tool are far too long.
    Guarantees: a head, a line for each finding, two lines of sums; columns stand under their heads;
    what is too long is cut and marked.
    """
    file = binary(tmp_path / "r.bin", five_calls())
    head, *rows, verdicts, sums = run([file], output_format="table").out.splitlines()
    assert head.split() == ["time", "action", "score", "entity", "tool", "reason"]
    assert len(rows) == 3
    assert rows[0] == (
        "2026-09-21T14:13:21.000000000Z  warn    0.50   session:s-1                 "
        "  lookup_order          rate: 3 calls in 60 s, limit 3"
    )
    assert verdicts == "5 spans, 5 tool calls: allow 2, warn 3, pause 0, block 0"
    assert sums.startswith("findings: rate 3; late 0, duplicates 0; ")
    agent = Agent("a", session="s" * 300)
    long = binary(tmp_path / "long.bin", request([agent.call(at(i), "t" * 99) for i in range(3)]))
    head, row, *_ = run([long], output_format="table").out.splitlines()
    assert row.index("rate: ") == head.index("reason")
    assert f"session:{'s' * 19}~  {'t' * 19}~  " in row


def test_the_table_is_safe_to_look_at(tmp_path: Path) -> None:
    """
    Scenario: session and tool hold line ends, escape sequences, a bell, marks that turn the line
    around; the tool of another call has no name.
    Guarantees: one line for each finding, each printable, each column in its place.
    """
    agent = Agent("a", session=HOSTILE)
    spans = [agent.call(at(i), HOSTILE if i < 3 else None) for i in range(4)]
    file = binary(tmp_path / "r.bin", request(spans))
    printed = run([file], output_format="table").out
    lines = printed.split("\n")
    assert len(lines) == 1 + 2 + 2 + 1
    assert all(line.isprintable() for line in lines)
    assert all(line.index("rate: ") == lines[0].index("reason") for line in lines[1:3])
    assert "session:?[2J??x????" in lines[1]


def test_a_terminal_that_lacks_letters(tmp_path: Path) -> None:
    """
    Scenario: a session in letters that standard output cannot show.
    Guarantees: they are shown as escapes, in both forms; nothing fails after the work is done.
    """
    file = binary(tmp_path / "r.bin", five_calls(session="\u00fcber"))
    for form, shown in (("table", r"session:\xfcber"), ("json", r"session:\u00fcber")):
        raw = io.BytesIO()
        stdout = io.TextIOWrapper(raw, encoding="ascii")
        assert run([file], output_format=form, stdout=stdout).code == 0
        stdout.flush()
        assert shown.encode() in raw.getvalue()


@pytest.mark.parametrize(
    ("time_ns", "told"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
        (-1, "-1ns"),
        (253_402_300_799_999_999_999, "9999-12-31T23:59:59.999999999Z"),
        (253_402_300_800_000_000_000, "253402300800000000000ns"),
    ],
)
def test_times(time_ns: int, told: str) -> None:
    """
    Scenario: the ends of what a time may be.
    Guarantees: UTC to the nanosecond; what has no date of four digits is told as a number.
    """
    assert rfc3339(time_ns) == told


def test_what_would_have_been_while_observing(tmp_path: Path) -> None:
    """
    Scenario: a session over `block`, with mode enforce and with observe.
    Guarantees: while observing no action above warn is told, in calls, findings and the summary;
    beside each stands what it would have been, which is what enforcing tells.
    """
    file, told = binary(tmp_path / "r.bin", five_calls()), {}
    for mode in ("enforce", "observe"):
        limits = LOW_LIMITS | {"rate": {"warn": 2, "block": 4}}
        told[mode] = run([file], detectors=limits, sections={"policy": {"mode": mode}}).report
    enforced, observed = told["enforce"], told["observe"]
    assert observed["summary"]["verdicts"] == {"allow": 1, "warn": 4, "pause": 0, "block": 0}
    assert enforced["summary"]["verdicts"] == {"allow": 1, "warn": 2, "pause": 0, "block": 2}
    for kind in ("calls", "findings"):
        assert {row["action"] for row in observed[kind]} <= {"allow", "warn"}
        would_be = [row["would_be"] for row in observed[kind]]
        assert would_be == [row["action"] for row in enforced[kind]]
        assert would_be == [row["would_be"] for row in enforced[kind]]
        assert would_be.count("block") == 2
