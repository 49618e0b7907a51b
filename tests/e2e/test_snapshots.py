"""What was learned lives on across real processes: SIGTERM, kill -9, on command."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests import traffic
from tests.e2e.clients import http_export
from tests.e2e.service_process import ServiceProcess, run_command, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

LOW: dict[str, Any] = {
    "detectors": {"rate": {"warn": 4, "block": 7}},
    "alerts": {"hold": "1h"},
}


def stream(now_ns: int) -> list[bytes]:
    """Nine calls of one session, each a request."""
    agent = traffic.Agent("support-agent", session="sess-1", seed=7)
    return [traffic.request([agent.call(now_ns)]) for _ in range(9)]


def send(service: ServiceProcess, bodies: list[bytes]) -> None:
    for body in bodies:
        assert http_export(service.http_port, body) == 200


def verdicts(service: ServiceProcess) -> list[dict[str, Any]]:
    """What was written on each span, in order."""
    lines = (service.data / "spans.jsonl").read_text().splitlines()
    spans = [
        span
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    return [
        {
            pair["key"]: pair["value"]
            for pair in span["attributes"]
            if pair["key"].startswith("anomaly.")
        }
        for span in spans
    ]


def episodes(service: ServiceProcess) -> list[tuple[Any, ...]]:
    """The steps that the trail tells."""
    trail = map(json.loads, (service.data / "audit.jsonl").read_text().splitlines())
    names = ("type", "entity", "observed", "count", "reason", "span_id")
    return [
        tuple(record[name] for name in names)
        for record in trail
        if record["type"].startswith("episode.")
    ]


def test_three_processes_are_one_service(tmp_path: Path) -> None:
    """
    Scenario: nine calls through one process; and the same through three in the same folder, the
    first ended by SIGTERM, the second killed after `otel-anomaly snapshot` and the third asked for
    nothing. While one runs, another in its folder.
    Guarantees: the same verdicts on every span and the same steps in the trail; the second says how
    old its state is; the command says what was written; the intruder is refused with exit 3.
    """
    now_ns = time.time_ns()
    bodies = stream(now_ns)
    whole = ServiceProcess(tmp_path / "whole", LOW)
    halves: list[ServiceProcess] = []
    try:
        whole.wait_ready()
        send(whole, bodies)
        whole.wait_sent("file", 9)
        assert whole.stop() == 0

        folder = tmp_path / "halves"
        halves.append(ServiceProcess(folder, LOW))
        halves[-1].wait_ready()
        send(halves[-1], bodies[:3])
        halves[-1].wait_sent("file", 3)
        assert halves[-1].stop() == 0

        halves.append(ServiceProcess(folder, LOW))
        second = halves[-1]
        second.wait_ready()
        assert second.metric("state_loaded_age_seconds") > 0
        assert "state loaded from" in second.stderr
        send(second, bodies[3:6])
        second.wait_sent("file", 3)
        config = ("--config", str(folder / "config.yaml"))
        data = ("--set", f"storage.directory={second.data}")
        done = run_command("snapshot", *config, *data)
        assert done.returncode == 0, done.stderr
        assert "sessions 1, traces 1, spans 6, calls 6, open episodes 1" in done.stdout
        intruder = run_command("run", *data)
        assert intruder.returncode == 3
        assert f"is in use by process {second.pid}" in intruder.stderr
        os.kill(second.pid, signal.SIGKILL)
        wait_until(lambda: second.exit_code is not None, "the end")

        halves.append(ServiceProcess(folder, LOW))
        halves[-1].wait_ready()
        send(halves[-1], bodies[6:])
        halves[-1].wait_sent("file", 3)
        assert halves[-1].stop() == 0
    finally:
        for service in (whole, *halves):
            service.stop()
    assert [said["anomaly.action"]["stringValue"] for said in verdicts(whole)] == (
        ["allow"] * 3 + ["warn"] * 3 + ["block"] * 3
    )
    assert verdicts(halves[-1]) == verdicts(whole)
    assert episodes(halves[-1]) == episodes(whole)
    assert len(episodes(whole)) == 2
