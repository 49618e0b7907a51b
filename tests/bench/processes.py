"""Processes under test: started, asked for their CPU time, and ended, each by its own id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 30


TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The operating system tells CPU time in steps of this."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, ended ones too."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Peer:
    """One of `tests.bench.peers` as a process. Ready when constructed."""

    def __init__(self, role: str, *arguments: str) -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.peers", role, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"{role} did not start")
        self.ports: dict[str, int] = json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close its standard input, which ends it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class SinkPeer(Peer):
    """The counting sink."""

    def __init__(self) -> None:
        super().__init__("sink")
        self.grpc = f"127.0.0.1:{self.ports['grpc_port']}"
        self.http = f"127.0.0.1:{self.ports['http_port']}"

    def counts(self) -> dict[str, int]:
        """`requests`, `bytes` and `spans` since its start."""
        with urllib.request.urlopen(f"http://{self.http}/count") as answer:
            totals: dict[str, int] = json.load(answer)
            return totals
