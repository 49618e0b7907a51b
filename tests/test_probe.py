"""`otel-anomaly health`: asks, says what it heard, and answers with its exit code."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from otel_anomaly import cli
from otel_anomaly.config import Config
from otel_anomaly.probe import ask


@contextmanager
def answering(status: int, text: bytes) -> Iterator[int]:
    """Something on loopback that answers every GET in one way. Gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def config_at(port: int) -> Config:
    """A configuration whose metrics are asked at a port of this machine, bound to all addresses."""
    return Config.model_validate({"telemetry": {"metrics": {"endpoint": f"0.0.0.0:{port}"}}})


@pytest.mark.parametrize(
    ("status", "text", "ready"), [(200, b"ready\n", True), (503, b"no", False)]
)
def test_status_decides(status: int, text: bytes, *, ready: bool) -> None:
    """
    Scenario: the service answers that it is ready, or that it is not.
    Guarantees: so does the probe, with the words that it heard.
    """
    with answering(status, text) as port:
        answer = ask(config_at(port))
    assert answer == (ready, f"0.0.0.0:{port}: {text.decode().strip()}")


def test_nobody_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: the command, while nothing listens.
    Guarantees: exit code 1, and one line that says so; no traceback.
    """
    with answering(200, b"") as port:
        pass
    code = cli.main(["health", "--set", f"telemetry.metrics.endpoint=127.0.0.1:{port}"])
    out = capsys.readouterr().out
    assert code == cli.NO
    assert out.startswith(f"127.0.0.1:{port}: no answer")


def test_garbage_is_not_ready() -> None:
    """
    Scenario: what listens does not speak HTTP properly.
    Guarantees: not ready, and no exception.
    """
    with answering(99, b"\xff" * 4000) as port:
        assert not ask(config_at(port)).ready
