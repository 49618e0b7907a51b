"""Processes beside the one under test, and the CPU time of any: each ended by its own id."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 30
ANSWER_SECONDS = 180.0


TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The operating system tells CPU time in steps of this."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, ended ones too."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


class Child:
    """A module of ours as a process, which says what it has to say as lines of JSON.

    `hello` is the first of them: it is ready then. It ends when its standard input does.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._rest = b""
        try:
            self.hello = self._answer()
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order, as a line of JSON, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_SECONDS)
            if not ready:
                raise RuntimeError(f"{self._name} does not answer")
            piece = self._process.stdout.read(1 << 16)
            if not piece:
                raise RuntimeError(f"{self._name} ended")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Close its standard input, which ends it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Peer(Child):
    """One of `tests.bench.peers`."""

    def __init__(self, role: str, *arguments: str) -> None:
        super().__init__("tests.bench.peers", role, *arguments)
        self.role = role
        self.ports: dict[str, int] = self.hello


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
