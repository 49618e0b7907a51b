"""The processor alone: scan, rows, judge and splice, without a door and without an exporter.

Bodies are made before the clock runs, each with ids of its own, so nothing is a duplicate; the
agents of a body are drawn at random from all, the worst case for the caches. Time is handed in and
moves so that each agent makes a call in four seconds, whatever their number: verdicts are `allow`.

Each measurement is a process of its own (`python -m tests.bench.kernel --agents 10000`), because
resident memory is compared before and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]

from otel_anomaly.config import Config
from otel_anomaly.handoff import Batch, Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests import traffic
from tests.bench.bodies import FreshBodies
from tests.bench.processes import ROOT
from tests.bench.report import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_anomaly.processor import Processor

SPANS = 512
AGENTS_SMALL, AGENTS_USUAL, AGENTS_LARGE = 1_000, 10_000, 1_000_000
ARGUMENT_BYTES_LONG = 2_000
LONG_US, LONG_US_PER_BYTE = 1.0, 0.0015
"""A call with long arguments may cost so much, and so much for each of their bytes."""
CALLS_PER_AGENT_SECOND = 0.25
CHUNK_REQUESTS = 8
"""Bodies made at once: 2 MiB, still in a cache when their turn comes, as received ones are."""
DIGEST_REQUESTS = 16


class NullRoom:
    """Queues that take everything and keep nothing but a digest of the first bodies."""

    def __init__(self) -> None:
        self.digest, self.requests = 0, 0

    def reserve(self, _bytes_needed: int) -> Outcome:
        return Outcome.ACCEPTED

    def commit(self, payload: Payload, _bytes_reserved: int) -> None:
        if self.requests < DIGEST_REQUESTS:
            self.digest = zlib.crc32(payload.body, self.digest)
        self.requests += 1

    def retry_after_s(self) -> float:
        return 1.0


class KernelResult(NamedTuple):
    """One measurement."""

    agents: int
    us_per_span: float
    rounds: list[float]
    bytes_per_agent: float
    agents_resident: int
    allow_share: float
    digest: str
    """Of the first annotated bodies: the same as before, or the change changed results."""


class Bench:
    """A processor under a stream of fresh bodies."""

    def __init__(
        self,
        spans: int,
        agents: int,
        argument_bytes: int = traffic.BENCHMARK_ARGUMENT_BYTES,
        room: NullRoom | None = None,
    ) -> None:
        # Compiled code is not wanted in the process that only starts others.
        from otel_anomaly.processor import Processor  # noqa: PLC0415

        self.spans, self.agents = spans, agents
        self.now_ns, self.room = traffic.START_NS, room or NullRoom()
        limits = {"agents": max(agents, 1024), "sessions": max(agents, 1024)}
        config = Config.model_validate({"identity": {"limits": limits}})
        self.processor: Processor = Processor(config, self.room, Telemetry(), seed=1)
        self._bodies = FreshBodies(spans, agents, argument_bytes=argument_bytes)
        self._step_ns = round(spans / (CALLS_PER_AGENT_SECOND * agents) * 1e9)

    def batch(self, numbers: np.ndarray | None = None) -> Batch:
        """The next request; it arrives one step after the one before."""
        self.now_ns += self._step_ns
        body = self._bodies.make(self.now_ns, self._step_ns, numbers)
        return Batch(body, Signal.TRACES, "grpc", self.now_ns)

    def process(self, batches: Sequence[Batch]) -> float:
        """CPU seconds for these."""
        process = self.processor.process
        started = time.process_time()
        for batch in batches:
            reply = process(batch)
        spent = time.process_time() - started
        assert reply.outcome is Outcome.ACCEPTED, reply
        return spent

    def fill(self) -> None:
        """One call of every agent, so that all have their rows."""
        for first in range(0, self.agents, self.spans):
            numbers = np.arange(first, first + self.spans) % self.agents
            self.process([self.batch(numbers)])

    def round(self, requests: int) -> float:
        """CPU microseconds per span over `requests` requests."""
        spent = 0.0
        for first in range(0, requests, CHUNK_REQUESTS):
            count = min(CHUNK_REQUESTS, requests - first)
            spent += self.process([self.batch() for _ in range(count)])
        return spent / requests / self.spans * 1e6

    def count(self, metric: str, *labels: str) -> int:
        return int(self.processor.counts()[metric, labels])


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def bench_kernel(
    spans: int = SPANS,
    agents: int = AGENTS_USUAL,
    requests: int = 1000,
    rounds: int = 5,
    argument_bytes: int = traffic.BENCHMARK_ARGUMENT_BYTES,
) -> KernelResult:
    """Measure in this process. A small processor goes first: it loads the kernels."""
    from otel_anomaly.running import keep_freed_memory  # noqa: PLC0415 - the same.

    keep_freed_memory()  # As the service does.
    Bench(spans, agents=spans).fill()
    before = _resident_bytes()
    bench = Bench(spans, agents, argument_bytes)
    bench.fill()
    grown = _resident_bytes() - before
    bench.round(max(1, requests // 10))
    measured = [bench.round(requests) for _ in range(rounds)]
    return KernelResult(
        agents=agents,
        us_per_span=statistics.median(measured),
        rounds=measured,
        bytes_per_agent=grown / agents,
        agents_resident=bench.count("entities", "agent"),
        allow_share=bench.count("verdicts", "allow") / bench.count("tool_calls"),
        digest=f"{bench.room.digest:08x}",
    )


def measured_apart(
    agents: int,
    requests: int,
    rounds: int,
    argument_bytes: int = traffic.BENCHMARK_ARGUMENT_BYTES,
) -> KernelResult:
    """The same in a process of its own."""
    numbers = {
        "--agents": agents,
        "--requests": requests,
        "--rounds": rounds,
        "--argument-bytes": argument_bytes,
    }
    flags = [str(part) for flag in numbers.items() for part in flag]
    command = [sys.executable, "-m", "tests.bench.kernel", *flags]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return KernelResult(**json.loads(ended.stdout))


def kernel_figures(
    *,
    agents: tuple[int, int, int] = (AGENTS_SMALL, AGENTS_USUAL, AGENTS_LARGE),
    requests: int = 1000,
    rounds: int = 5,
    measure: Callable[[int, int, int, int], KernelResult] = measured_apart,
) -> list[Figure]:
    """The figures of the processor: one measurement for each number of agents, one of long
    arguments.
    """
    short = traffic.BENCHMARK_ARGUMENT_BYTES
    small, usual, large = (measure(number, requests, rounds, short) for number in agents)
    long = measure(agents[1], max(1, requests // 5), rounds, ARGUMENT_BYTES_LONG)
    name = "scan + rows + all detectors + splice, 512 spans, {:,} agents"
    return [
        Figure(
            name.format(result.agents),
            "us/span",
            result.us_per_span,
            needed,
            aim,
            details=result._asdict(),
        )
        for result, needed, aim in ((usual, 2.0, 1.2), (large, 4.0, 2.5))
    ] + [
        Figure(
            f"the same with {ARGUMENT_BYTES_LONG:,} bytes of arguments, {long.agents:,} agents",
            "us/span",
            long.us_per_span,
            needed=LONG_US + LONG_US_PER_BYTE * ARGUMENT_BYTES_LONG,
            aim=None,
            details=long._asdict(),
        ),
        Figure("resident memory per agent", "B", large.bytes_per_agent, 4096, None),
        Figure(
            f"cost per span, {large.agents:,} over {small.agents:,} agents",
            "x",
            large.us_per_span / small.us_per_span,
            needed=3,
            aim=None,
            details=small._asdict(),
        ),
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kernel")
    parser.add_argument("--spans", type=int, default=SPANS)
    parser.add_argument("--agents", type=int, default=AGENTS_USUAL)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--argument-bytes", type=int, default=traffic.BENCHMARK_ARGUMENT_BYTES)
    print(json.dumps(bench_kernel(**vars(parser.parse_args(argv)))._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
