"""The benchmarks at their smallest, so that they cannot rot."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import traffic
from tests.bench.__main__ import main
from tests.bench.bodies import SPAN_MARK, FreshBodies
from tests.bench.load import Load, h2load_version, run_load
from tests.bench.processes import Peer, SinkPeer
from tests.bench.report import Figure, markdown, write_json
from tests.bench.transport import Case, Contestant, Course, Effort, compare, figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

TINY = Effort(requests_large=4, requests_small=8, rounds=3)


def spans_of(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return list(request.resource_spans[0].scope_spans[0].spans)


def name_of(span: Span, key: str) -> str:
    return next(item.value.string_value for item in span.attributes if item.key == key)


def test_bodies_are_fresh() -> None:
    """
    Scenario: two bodies from one maker, the second for chosen agents.
    Guarantees: no id occurs twice; times, agents and sessions are those asked for; all else, and
    the length, is that of the template.
    """
    maker = FreshBodies(spans=20, agents=1000)
    now = traffic.START_NS + 5
    first = spans_of(maker.make(now, spread_ns=1900))
    second = spans_of(maker.make(now, numbers=np.arange(20)))
    assert len({span.span_id for span in first + second}) == 40
    assert len({span.trace_id for span in first + second}) == 40
    assert [span.end_time_unix_nano for span in first] == [now - 1900 + 100 * i for i in range(20)]
    for number, span in enumerate(second):
        assert span.end_time_unix_nano == now
        assert span.start_time_unix_nano == now - 1_000_000
        assert name_of(span, "gen_ai.agent.name") == f"agent-{number:07d}"
        assert name_of(span, "gen_ai.conversation.id") == f"conv-{number:07d}"
    body = maker.make(now)
    assert len(body) == maker.size_bytes == len(traffic.benchmark_request(20, 1000, 1))
    assert body.count(SPAN_MARK) == 20


@pytest.fixture(scope="module")
def sink() -> Iterator[SinkPeer]:
    with SinkPeer() as peer:
        yield peer


@pytest.mark.parametrize("python", [False, True], ids=["h2load", "python"])
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_load_arrives(transport: str, python: bool, sink: SinkPeer, tmp_path: Path) -> None:  # noqa: FBT001
    """
    Scenario: twelve requests through the echo proxy, by each generator and over each transport.
    Guarantees: all are answered with success and reach the sink; the generator says who it is.
    """
    if not python and h2load_version() is None:
        pytest.skip("h2load is not installed (Debian package nghttp2-client)")
    body = tmp_path / "body.bin"
    body.write_bytes(FreshBodies(spans=10, agents=100).make(time.time_ns()))
    upstream = sink.grpc if transport == "grpc" else sink.http
    with Peer(f"{transport}-echo", "--upstream", upstream) as echo:
        before = sink.counts()
        address = f"127.0.0.1:{echo.ports['port']}"
        report = run_load(Load(transport, address, body, requests=12), python=python)  # type: ignore[arg-type]
        after = sink.counts()
    assert report.succeeded == 12
    assert ("python" in report.generator) == python
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {"requests": 12, "spans": 120, "bytes": 12 * body.stat().st_size}


def test_rounds_alternate(sink: SinkPeer, tmp_path: Path) -> None:
    """
    Scenario: an echo proxy is measured against itself.
    Guarantees: every round is counted for both, and the figure carries what is needed to doubt it.
    """
    case = Case("echo", "http", 10, "request", needed=1000, aim=999)
    with Peer("http-echo", "--upstream", sink.http) as echo:
        who = Contestant("echo", echo.pid, f"127.0.0.1:{echo.ports['port']}")
        ours, peer = compare(Course(sink, tmp_path), case, who, who, TINY)
    assert len(ours.cpu_us) == len(peer.cpu_us) == TINY.rounds
    assert ours.spans == TINY.rounds * TINY.requests_small * case.spans
    assert ours.growth == 1.0
    line = figure(case, ours, peer, {"judged_share": 1.0})
    assert line.details["requests_out_per_span"] == 0.1
    assert line.details["judged_share"] == 1.0


@pytest.mark.parametrize(
    ("value", "peer", "met"),
    [(0.4, None, "aim"), (0.9, None, "yes"), (1.1, None, "no"), (4, 8, "aim"), (9, 8, "no")],
)
def test_figures_are_judged(value: float, peer: float | None, met: str, tmp_path: Path) -> None:
    """
    Scenario: values and ratios around what is needed (1.0) and aimed at (0.5).
    Guarantees: the ratio is judged where there is a peer, else the value; table and JSON say so.
    """
    line = Figure("cost", "us/span", value, needed=1.0, aim=0.5, peer=peer)
    assert line.met == met
    assert markdown([line]).splitlines()[-1].rstrip(" |").endswith(met)
    write_json(tmp_path / "out.json", [line], {"cores": "2"})
    written = json.loads((tmp_path / "out.json").read_bytes())
    assert written["figures"][0]["met"] == met
    assert written["conditions"] == {"cores": "2"}


@pytest.mark.e2e
@pytest.mark.parametrize("part", ["kernel", "codec", "transport"])
def test_quick_run(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: each part of the benchmark with tiny sizes, the real service included.
    Guarantees: every figure is printed and written, nearly all spans were judged and allowed.
    """
    out = tmp_path / "results.json"
    assert main(["--quick", "--only", part, "--out", str(out)]) == 0
    figures = json.loads(out.read_bytes())["figures"]
    assert len(figures) == {"kernel": 5, "codec": 3, "transport": 4}[part]
    printed = capsys.readouterr().out
    for item in figures:
        assert item["name"] in printed
        assert item["details"].get("judged_share", 1) > 0.9
        assert item["details"].get("allow_share", 1) > 0.9
