"""The real service as a process: started on free ports, asked, and ended by SIGTERM.

Waiting is by asking again until a deadline that only a hung service reaches; no test asserts how
long something took.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "otel_anomaly")
READY_SECONDS = 420
"""The first start compiles the kernels."""
STOP_SECONDS = 60
POLL_SECONDS = 0.05

Section = dict[str, Any]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. All held at once, so that no two are the same."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_until(done: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Ask until `done` says yes; fail with `what` when it never does."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(POLL_SECONDS)


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without what would configure an OpenTelemetry SDK or the service behind our back."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def run_command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`otel-anomaly ARGUMENTS`, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )


def merged(first: Section, second: Section) -> Section:
    """`second` over `first`, block by block."""
    both = dict(first)
    for key, value in second.items():
        under = both.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            both[key] = merged(under, value)
        else:
            both[key] = value
    return both


class ServiceProcess:
    """`otel-anomaly run` in a folder of its own. `wait_ready` before use, `stop` after."""

    def __init__(
        self,
        folder: Path,
        sections: Section | None = None,
        launcher: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        """`launcher` stands before the command: a program that starts another."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.data = folder, folder / "data"
        self.grpc_port, self.http_port, self.metrics_port = free_ports(3)
        self._launcher = launcher
        self._config, self._environment = folder / "config.yaml", environment
        # JSON is YAML too.
        self._config.write_text(json.dumps(merged(self._own_sections(), sections or {}), indent=1))
        self.launch()

    def launch(self) -> None:
        """Start the process, or start it again after its end: same ports, same data."""
        with self._stream("out").open("wb") as out, self._stream("err").open("wb") as err:
            self._process = subprocess.Popen(
                [*self._launcher, *COMMAND, "run", "--config", str(self._config)],
                cwd=ROOT,
                env=clean_environment(OTEL_ANOMALY_DATA=str(self.data), **self._environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def kill(self) -> None:
        """SIGKILL: no drain, no last words."""
        self._process.kill()
        self._process.wait()

    def _own_sections(self) -> dict[str, Section]:
        doors = {
            "grpc": {"endpoint": f"127.0.0.1:{self.grpc_port}"},
            "http": {"endpoint": f"127.0.0.1:{self.http_port}"},
        }
        return {
            "receivers": {"otlp": {"protocols": doors}},
            "telemetry": {"metrics": {"endpoint": f"127.0.0.1:{self.metrics_port}"}},
        }

    def _stream(self, name: str) -> Path:
        return self.folder / f"std{name}.txt"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._stream("out").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stream("err").read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_ready(self) -> None:
        """Until `/readyz` says 200. Fails with its standard error when it ends before."""
        wait_until(self._ready_or_ended, "readiness", READY_SECONDS)
        assert self.exit_code is None, f"ended with {self.exit_code}:\n{self.stderr}"

    def _ready_or_ended(self) -> bool:
        return self.exit_code is not None or self.status("/readyz") == 200

    def status(self, path: str) -> int:
        """HTTP status of a page of the monitoring address; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self._url(path), timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.metrics_port}{path}"

    def metric(self, name: str, *, missing: float | None = None, **labels: str) -> float:
        """Sum of the samples of `otel_anomaly_<name>` that carry these labels.

        None at all is a mistake of the test, unless it says what to take then: `missing`.
        """
        with urllib.request.urlopen(self._url("/metrics"), timeout=10) as answer:
            text = answer.read().decode()
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"otel_anomaly_{name}" and labels.items() <= sample.labels.items()
        ]
        if not found and missing is not None:
            return missing
        assert found, f"/metrics has no otel_anomaly_{name} with {labels}"
        return float(sum(found))

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_sent(self, exporter: str, spans: int) -> None:
        """Until the exporter has handed over so many spans."""
        wait_until(
            lambda: self.metric("exporter_sent_spans_total", exporter=exporter) >= spans,
            f"{spans} spans sent by {exporter}",
        )

    def stop(self) -> int:
        """SIGTERM, then its exit code. Killed when it does not end."""
        self.ask_to_stop()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
