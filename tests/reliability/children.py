"""The processes of a trial, seen from the one that conducts it: hop, generator, service."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import psutil  # type: ignore[import-untyped]

from tests.bench.processes import Child
from tests.e2e.service_process import ServiceProcess

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tests.reliability.generator import Plan

_LAST_WORDS = re.compile(r"^stopped: (\S+): (.*)$", re.MULTILINE)
_NUMBERED = re.compile(r"([a-z ]+?) (\d+)(?: spans)?(?: [=+]|$|,|\))")


class Hop(Child):
    """The counting next hop."""

    def __init__(self, spans_per_request: int, seed: int = 1) -> None:
        super().__init__(
            "tests.reliability.hop", "--spans", str(spans_per_request), "--seed", str(seed)
        )
        self.http_port, self.grpc_port = self.hello["http"], self.hello["grpc"]

    def mood(self, kind: str, transport: str | None = None, **more: Any) -> None:
        """Behave so from now on, over one transport or both."""
        for name in (transport,) if transport else ("http", "grpc"):
            self.ask(do="mood", transport=name, mood={"kind": kind, **more})

    def totals(self, transport: str = "http") -> dict[str, int]:
        totals: dict[str, int] = self.ask(do="totals")[transport]
        return totals

    def arrays(self, folder: Path) -> dict[str, np.ndarray]:
        """`<transport>_counts` and `_forgotten` by span and `<transport>_first_s` by request."""
        path = folder / "hop.npz"
        self.ask(do="save", path=str(path))
        return dict(np.load(path))


class Load(Child):
    """A load generator that runs from now on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__("tests.reliability.generator", json.dumps(asdict(plan)))

    def stop(self) -> dict[str, Any]:
        """No new requests; wait until the last is settled."""
        return self.ask(do="stop")

    def arrays(self, folder: Path) -> dict[str, np.ndarray]:
        """`status`, `cuts`, `sent_s` and `answer_s`, by request."""
        path = folder / f"load-{self.pid}.npz"
        self.ask(do="save", path=str(path))
        return dict(np.load(path))


class Ledger(NamedTuple):
    """One exporter's, as `/metrics` or the last words have it."""

    accepted: int
    sent: int
    dropped: int
    held: int
    others: int = 0
    """What else stands in the sum: spans left on disk at the end, or found there at start."""

    @property
    def adds_up(self) -> bool:
        return self.accepted == self.sent + self.dropped + self.held + self.others


class Service(ServiceProcess):
    """The real process, restarted as often as a trial asks for, on the same ports and folder."""

    def ledger(self, exporter: str) -> Ledger:
        """As of now. True to the span when nothing is between door and queue."""
        found = self.metric("exporter_recovered_spans_total", missing=0.0, exporter=exporter)
        return Ledger(
            accepted=int(self.metric("receiver_accepted_spans_total") + found),
            sent=int(self.metric("exporter_sent_spans_total", exporter=exporter)),
            dropped=int(self.metric("exporter_dropped_spans_total", exporter=exporter)),
            held=int(self.metric("exporter_held_spans", exporter=exporter)),
        )

    def last_words(self) -> dict[str, dict[str, int]]:
        """Exporter -> the numbers of its last sentence, by the word before each."""
        return {
            name: {word.strip().split()[-1]: int(n) for word, n in _NUMBERED.findall(sentence)}
            for name, sentence in _LAST_WORDS.findall(self.stderr)
        }

    def pin(self, core: int) -> None:
        """Run on one core alone, with all threads."""
        process = psutil.Process(self.pid)
        for thread in process.threads():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(thread.id).cpu_affinity([core])
        process.cpu_affinity([core])


class Watch:
    """Samples resident memory and CPU time of a process, in a thread, until closed."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self._process = psutil.Process(pid)
        self._every_s = every_s
        self._stop = threading.Event()
        self.samples: list[tuple[float, int]] = []
        """(monotonic seconds, resident bytes)"""
        self._cpu_s = self._cpu()
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run)

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.samples.append((time.monotonic(), int(self._process.memory_info().rss)))
            except psutil.NoSuchProcess:
                return

    def cpu_share(self) -> float:
        """CPU time since the start over the time since."""
        return (self._cpu() - self._cpu_s) / (time.monotonic() - self._began_s)

    @property
    def peak(self) -> int:
        return max((size for _, size in self.samples), default=0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
