"""Through the real doors: CPU time of the service per span, beside a proxy that only echoes.

    h2load -> service (judges, annotates) -> sink        CPU time of the service process
    h2load -> echo proxy                  -> sink        CPU time of the proxy process

Rounds alternate between the two, so that a machine that slows down slows both; the median of the
rounds counts. CPU time is what the operating system says of the process with all its threads,
from the first request until the sink has every span.

Every round gets a body built just before, with ids, times and names of its own. h2load sends it
again and again, so the service runs with `identity.limits.spans: 1`: it forgets a span id at once
and judges the repeats. The limits of the detectors are out of reach, so that verdicts are `allow`
as in normal traffic. `judged_share` in the details tells whether that worked.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.bodies import FreshBodies
from tests.bench.load import Load, LoadReport, Transport, run_load
from tests.bench.processes import TICK_SECONDS, Peer, SinkPeer, cpu_seconds
from tests.bench.report import Figure
from tests.e2e.service_process import Section, ServiceProcess, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AGENTS = 10_000
SPANS_LARGE, SPANS_SMALL = 512, 10


class Case(NamedTuple):
    """One line of the table."""

    name: str
    transport: Transport
    spans: int
    per: str
    """`span` or `request`: what the CPU time is divided by."""
    needed: float
    aim: float


CASES = (
    Case("OTLP/gRPC, 512 spans a request", "grpc", SPANS_LARGE, "span", 1.6, 1.25),
    Case("OTLP/HTTP, 512 spans a request", "http", SPANS_LARGE, "span", 2.5, 1.7),
    Case("OTLP/HTTP, 10 spans a request", "http", SPANS_SMALL, "request", 0.9, 0.5),
    Case("OTLP/gRPC, 10 spans a request", "grpc", SPANS_SMALL, "request", 0.7, 0.45),
)


class Effort(NamedTuple):
    """How much is measured."""

    requests_large: int = 1500
    requests_small: int = 6000
    rounds: int = 5

    def requests(self, case: Case) -> int:
        return self.requests_large if case.spans == SPANS_LARGE else self.requests_small


class Contestant(NamedTuple):
    """A process that carries spans from its door to the sink."""

    name: str
    pid: int
    address: str


@dataclass
class Course:
    """Where rounds are run: the sink, the bodies, and a folder for what h2load reads."""

    sink: SinkPeer
    folder: Path
    bodies: dict[int, FreshBodies] = field(default_factory=dict)

    def body(self, spans: int) -> Path:
        """A file with a body nobody has seen, its calls ending now."""
        if spans not in self.bodies:
            self.bodies[spans] = FreshBodies(spans, AGENTS, seed=spans)
        path = self.folder / "body.bin"
        path.write_bytes(self.bodies[spans].make(time.time_ns()))
        return path


@dataclass
class Tally:
    """What the rounds of one contestant gave."""

    cpu_us: list[float] = field(default_factory=list)
    reports: list[LoadReport] = field(default_factory=list)
    spans: int = 0
    sink_requests: int = 0
    growth: float = 0
    """Bytes that left over bytes that came."""

    @property
    def median(self) -> float:
        return statistics.median(self.cpu_us)


def run_round(course: Course, who: Contestant, case: Case, requests: int, tally: Tally) -> None:
    """Send `requests` bodies through `who`, wait until the sink has them, and note the CPU time."""
    body = course.body(case.spans)
    before, cpu_s = course.sink.counts(), cpu_seconds(who.pid)
    report = run_load(Load(case.transport, who.address, body, requests))
    expected = before["spans"] + requests * case.spans
    wait_until(
        lambda: course.sink.counts()["spans"] >= expected, f"spans of {who.name} at the sink"
    )
    spent_us = max(cpu_seconds(who.pid) - cpu_s, TICK_SECONDS) * 1e6
    after = course.sink.counts()
    if report.succeeded != requests or after["spans"] != expected:
        came = after["spans"] - before["spans"]
        raise RuntimeError(
            f"{who.name}: {report.succeeded} of {requests} answered, {came} spans came"
        )
    tally.cpu_us.append(spent_us / requests / (case.spans if case.per == "span" else 1))
    tally.reports.append(report)
    tally.spans += requests * case.spans
    tally.sink_requests += after["requests"] - before["requests"]
    tally.growth = (after["bytes"] - before["bytes"]) / (requests * body.stat().st_size)


def compare(
    course: Course, case: Case, ours: Contestant, peer: Contestant, effort: Effort
) -> tuple[Tally, Tally]:
    """One short round each to warm up, then measured rounds in turn."""
    requests = effort.requests(case)
    tallies = (Tally(), Tally())
    for who in (ours, peer):
        run_round(course, who, case, max(4, requests // 10), Tally())
    for _ in range(effort.rounds):
        for who, tally in zip((ours, peer), tallies, strict=True):
            run_round(course, who, case, requests, tally)
    return tallies


def figure(case: Case, ours: Tally, peer: Tally, judged: Mapping[str, float]) -> Figure:
    """The line of the table, with what is needed to doubt it."""
    reports = [*ours.reports, *peer.reports]
    return Figure(
        name=f"{case.name}: CPU per {case.per}",
        unit=f"us/{case.per}",
        value=ours.median,
        peer=peer.median,
        needed=case.needed,
        aim=case.aim,
        details={
            "rounds": ours.cpu_us,
            "peer_rounds": peer.cpu_us,
            "generator": reports[0].generator,
            "generator_cpu_share_max": max(report.cpu_share for report in reports),
            "generator_was_bottleneck": any(report.bottleneck for report in reports),
            "requests_out_per_span": ours.sink_requests / ours.spans,
            "bytes_out_over_in": ours.growth,
            **judged,
        },
    )


def service_sections(transport: Transport, sink: SinkPeer, folder: Path) -> Section:
    """The service as measured: one OTLP exporter without compression, audit on, console off."""
    exporter: Section = {"endpoint": f"http://{sink.http}"}
    if transport == "grpc":
        exporter = {"endpoint": sink.grpc, "tls": {"insecure": True}}
    return {
        "exporters": {f"otlp_{transport}": {**exporter, "compression": "none"}},
        "identity": {"limits": {"spans": 1}},
        "detectors": {
            "rate": {"warn": 65534, "block": 65535},
            "rate_shift": {"min_calls_second": 65535, "min_calls_minute": 65535, "ceiling": 0},
            "burst": {"threshold": 32767},
            "loop": {"threshold": 60000, "repeat": 60000},
        },
        "audit": {"path": str(folder / "audit.jsonl")},
        "alerts": {"console": False},
    }


@contextmanager
def running_service(transport: Transport, sink: SinkPeer, folder: Path) -> Iterator[ServiceProcess]:
    """The service in front of the sink, ready."""
    service = ServiceProcess(
        folder / f"service-{transport}", service_sections(transport, sink, folder)
    )
    try:
        service.wait_ready()
        yield service
    finally:
        code = service.stop()
    if code != 0:
        raise RuntimeError(f"the service ended with {code}:\n{service.stderr}")


def judged_shares(service: ServiceProcess, before: Mapping[str, float]) -> dict[str, float]:
    """Of the spans since `before`: how many were judged, and of these how many are `allow`."""
    now = verdict_counts(service)
    spans, calls, allowed, late = (now[name] - before[name] for name in now)
    return {
        "judged_share": calls / spans,
        "allow_share": allowed / calls,
        "late_share": late / calls,
    }


def verdict_counts(service: ServiceProcess) -> dict[str, float]:
    return {
        "spans": service.metric("receiver_accepted_spans_total"),
        "calls": service.metric("tool_calls_total"),
        "allowed": service.metric("verdicts_total", action="allow"),
        "late": service.metric("late_total"),
    }


def bench_transport(cases: Sequence[Case] = CASES, effort: Effort | None = None) -> list[Figure]:
    """All cases; the service and the peer of a transport are started once."""
    effort = effort or Effort()
    figures: dict[Case, Figure] = {}
    with tempfile.TemporaryDirectory() as name, SinkPeer() as sink:
        course = Course(sink, Path(name))
        for transport in sorted({case.transport for case in cases}):
            upstream = sink.grpc if transport == "grpc" else sink.http
            with (
                Peer(f"{transport}-echo", "--upstream", upstream) as echo,
                running_service(transport, sink, course.folder) as service,
            ):
                port = service.grpc_port if transport == "grpc" else service.http_port
                ours = Contestant("otel-anomaly", service.pid, f"127.0.0.1:{port}")
                peer = Contestant(echo.role, echo.pid, f"127.0.0.1:{echo.ports['port']}")
                for case in (case for case in cases if case.transport == transport):
                    before = verdict_counts(service)
                    tallies = compare(course, case, ours, peer, effort)
                    figures[case] = figure(case, *tallies, judged_shares(service, before))
    return [figures[case] for case in cases]
