"""rotel as a process: a collector written in Rust by other people, as a second opinion on OTLP."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.e2e.service_process import STOP_SECONDS, clean_environment, free_ports, wait_until

if TYPE_CHECKING:
    from types import TracebackType


def find_rotel() -> tuple[Path | None, str]:
    """The binary inside the `rotel` package, or None and why it cannot be used here."""
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        return None, "the package rotel is not installed (it has wheels for Linux only)"
    binary = Path(spec.origin).parent / "rotel-agent"
    if not binary.exists():
        return None, f"the package rotel has no {binary.name} for this platform"
    try:
        subprocess.check_output([str(binary), "--version"], timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{binary.name} does not run here: {error}"
    return binary, ""


class Rotel:
    """OTLP in on both doors, OTLP out to one address, everything on 127.0.0.1."""

    def __init__(self, binary: Path, folder: Path, *, protocol: str, endpoint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.grpc_port, self.http_port = free_ports(2)
        self._log = folder / "rotel.txt"
        flags = {
            "--pid-file": str(folder / "rotel.pid"),
            "--log-file": str(folder / "rotel.log"),
            "--otlp-grpc-endpoint": f"127.0.0.1:{self.grpc_port}",
            "--otlp-http-endpoint": f"127.0.0.1:{self.http_port}",
            "--exporter": "otlp",
            "--otlp-exporter-protocol": protocol,
            "--otlp-exporter-endpoint": endpoint,
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary), "start", *(part for flag in flags.items() for part in flag)],
                env={k: v for k, v in clean_environment().items() if not k.startswith("ROTEL_")},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        wait_until(self._listens_or_ended, "rotel to listen")
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listens_or_ended(self) -> bool:
        if self._process.poll() is not None:
            return True
        return all(_listens(port) for port in (self.grpc_port, self.http_port))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
