"""What every trial is given, and what several of them do: build, wait, compare the books."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.e2e.service_process import Section, merged, wait_until
from tests.reliability.children import Hop, Load, Service
from tests.reliability.generator import ACCEPTED, GIVEN_UP, REFUSED, UNKNOWN, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HTTP, GRPC = "otlp_http", "otlp_grpc"
SMALL, LARGE = 10, 50
"""Spans of a small request, 5.4 KB, and of a usual one, 27 KB."""
QUICK_RETRY = {"initial_interval": "100ms", "max_interval": "1s", "max_elapsed_time": "0s"}

# As the benchmark has it: the traffic is made of few kinds of calls, so without this a large part
# of it would be an episode. That is measured elsewhere.
OUT_OF_REACH: Section = {
    "rate": {"warn": 65534, "block": 65535},
    "rate_shift": {"min_calls_second": 65535, "min_calls_minute": 65535, "ceiling": 0},
    "burst": {"threshold": 32767},
    "loop": {"threshold": 60000, "repeat": 60000},
}


@dataclass(frozen=True)
class Trial:
    """The size of a run."""

    folder: Path
    """Its own, empty."""
    full: bool = False
    seed: int = 1

    def size(self, short: float, full: float) -> float:
        """One of the two."""
        return full if self.full else short


def sections(hop: Hop, *, grpc: bool = False, exporter: Section | None = None) -> Section:
    """The service in front of the hop, over HTTP and, when asked for, over gRPC as well."""
    shared: Section = {"compression": "none", "timeout": "2s", "retry_on_failure": QUICK_RETRY}
    shared = merged(shared, exporter or {})
    to_http = {"endpoint": f"http://127.0.0.1:{hop.http_port}", **shared}
    to_grpc = {"endpoint": f"127.0.0.1:{hop.grpc_port}", "tls": {"insecure": True}, **shared}
    return {
        "exporters": {HTTP: to_http, **({GRPC: to_grpc} if grpc else {})},
        "detectors": OUT_OF_REACH,
        "alerts": {"console": False},
    }


@contextlib.contextmanager
def running(folder: Path, config: Section) -> Iterator[Service]:
    """The service from ready to its end, whatever happens to it in between."""
    service = Service(folder / "service", config)
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def load_on(service: Service, rate: float, transport: str = "http", **more: Any) -> Load:
    """A generator against the service, sending from now on; `more` as in `Plan`."""
    port = service.http_port if transport == "http" else service.grpc_port
    return Load(Plan(transport, port, rate, requests_max=round(rate * 7200), **more))


def settle(service: Service, exporter: str, seconds: float = 60) -> None:
    """Wait until an exporter holds nothing."""
    wait_until(lambda: service.ledger(exporter).held == 0, f"{exporter} to drain", seconds)


class Compared(NamedTuple):
    """What the clients know against what the next hop has."""

    accepted: int
    """Spans whose client heard OK."""
    refused: int
    """Spans whose client heard nothing but refusals."""
    unknown: int
    """Spans whose client was cut off and gave up."""
    lost: int
    """Accepted and never taken by the next hop."""
    leaked: int
    """Refused, and taken all the same."""
    doubled: int
    """Copies beyond the first that neither the clients' own repeats can explain, nor a hop that
    forgets what it has taken."""


def compare(
    load: dict[str, np.ndarray],
    counts: np.ndarray,
    spans: int,
    forgotten: np.ndarray | None = None,
) -> Compared:
    """The books of a generator against the counts of a hop, and of what it took without a word."""
    status = np.repeat(load["status"], spans)
    cuts = np.repeat(load["cuts"].astype(np.int16), spans)
    taken = _as_long(counts, status.size)
    excused = cuts if forgotten is None else cuts + _as_long(forgotten, status.size)
    told_ok = status == ACCEPTED
    never = ((status == REFUSED) | (status == GIVEN_UP)) & (cuts == 0)
    return Compared(
        accepted=int(told_ok.sum()),
        refused=int(never.sum()),
        unknown=int((status == UNKNOWN).sum()),
        lost=int((told_ok & (taken == 0)).sum()),
        leaked=int((never & (taken > 0)).sum()),
        doubled=int(np.maximum(taken - 1 - excused, 0).sum(dtype=np.int64)),
    )


def _as_long(counts: np.ndarray, size: int) -> np.ndarray:
    """Zeros for what was never seen."""
    out = np.zeros(size, np.int16)  # An hour of load is a hundred million spans.
    common = min(size, counts.size)
    out[:common] = counts[:common]
    return out


def percentile(values: np.ndarray, share: float) -> float:
    """0 for nothing."""
    return float(np.percentile(values, share)) if values.size else 0.0


def for_a_while(seconds: float) -> None:
    """Let the others work."""
    time.sleep(seconds)
