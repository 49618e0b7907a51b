"""The service as a container runs it: a read-only root, no privileges, nothing on the PATH."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests import traffic
from tests.e2e.clients import export
from tests.e2e.service_process import ServiceProcess, run_command, wait_until

pytestmark = pytest.mark.e2e

LAUNCHER = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
shift
exec unshare --user --map-user=10001 --map-group=10001 setpriv --no-new-privs "$@"
"""
"""In a mount namespace of its own: all but one folder read-only, then a user without rights."""


def _needs_namespaces() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: a read-only root needs a mount namespace")
    command = ["unshare", "--mount", "unshare", "--user", "--map-user=10001", "setpriv", "true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no namespaces here: {error}")
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")


def test_runs_with_a_read_only_root_and_without_privileges(tmp_path: Path) -> None:
    """
    Scenario: uid 10001 without privileges, every file system read-only but its own folder, an empty
    PATH; calls come in, `otel-anomaly health` is asked, then SIGTERM.
    Guarantees: it is ready, judges, writes spans and the audit trail, says healthy and ends with 0.
    """
    _needs_namespaces()
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "tmp").mkdir()
    launcher = ("unshare", "--mount", "sh", "-c", LAUNCHER, "launcher", str(folder))
    # The launchers themselves are found by PATH; the service is started by its own, empty one.
    service = ServiceProcess(
        folder, {}, (*launcher, "env", "PATH=/nowhere"), TMPDIR=str(folder / "tmp")
    )
    try:
        service.wait_ready()
        status = Path(f"/proc/{service.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        mounts = Path(f"/proc/{service.pid}/mountinfo").read_text().splitlines()
        assert all(line.split()[5].startswith("ro") for line in mounts if line.split()[4] == "/")
        agent, now_ns = traffic.Agent("support-agent", seed=1), time.time_ns()
        calls = traffic.request([agent.call(now_ns) for _ in range(3)])
        assert export("http", service.http_port, calls)
        wait_until(lambda: service.metric("exporter_sent_spans_total") == 3, "spans on disk")
        health = run_command("health", "--config", str(folder / "config.yaml"))
        assert (health.returncode, health.stdout.split(": ")[-1]) == (0, "ready\n")
    finally:
        code = service.stop()
    assert code == 0, service.stderr
    assert (service.data / "spans.jsonl").read_text().count("anomaly.action") == 3
    assert (service.data / "audit.jsonl").exists()
    gone = run_command("health", "--config", str(folder / "config.yaml"))
    assert gone.returncode == 1
    assert "no answer" in gone.stdout
