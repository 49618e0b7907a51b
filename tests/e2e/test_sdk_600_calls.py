"""What the first page of the README promises, with the stock SDK on the other side."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.service_process import (
    ROOT,
    ServiceProcess,
    clean_environment,
    run_command,
)
from tests.e2e.spans_file import attribute, read_records, read_spans

pytestmark = pytest.mark.e2e

CALLS, WARN, BLOCK = 600, 100, 500
BY_RATE = ["allow"] * (WARN - 1) + ["warn"] * (BLOCK - WARN) + ["block"] * (CALLS - BLOCK + 1)
"""What `rate` asks for. `risk` warns earlier: so many calls a minute are a burst as well."""


def run_script(service: ServiceProcess, transport: str) -> None:
    port = service.grpc_port if transport == "grpc" else service.http_port
    script = [sys.executable, "-m", "tests.e2e.emit_calls"]
    subprocess.run(
        [*script, transport, f"http://127.0.0.1:{port}", str(CALLS)],
        cwd=ROOT,
        env=clean_environment(),
        check=True,
        timeout=120,
    )


def check_verdicts(spans: list[dict[str, Any]]) -> None:
    for span, by_rate in zip(spans, BY_RATE, strict=True):
        types = {
            item["stringValue"]
            for item in (attribute(span, "anomaly.types") or {}).get("values", [])
        }
        assert ("rate" in types) == (by_rate != "allow")
        assert types <= {"rate", "risk"}
        action = attribute(span, "anomaly.action")
        assert action == ("warn" if by_rate == "allow" and types else by_rate)


def check_metrics(service: ServiceProcess, transport: str) -> None:
    assert service.metric("receiver_accepted_spans_total", transport=transport) == CALLS
    assert service.metric("exporter_sent_spans_total", exporter="file") == CALLS
    assert service.metric("exporter_dropped_spans_total", exporter="file") == 0
    assert service.metric("tool_calls_total") == CALLS
    verdicts = {a: service.metric("verdicts_total", action=a) for a in ("allow", "warn", "block")}
    assert verdicts["block"] == BY_RATE.count("block")
    assert sum(verdicts.values()) == CALLS
    for action in ("warn", "block"):
        found = service.metric("findings_total", detector="rate", action=action)
        assert found == BY_RATE.count(action)
    assert service.metric("entities", scope="session") == 1


def check_audit(service: ServiceProcess) -> None:
    trail = service.data / "audit.jsonl"
    verified = run_command("audit", "verify", str(trail))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    told = [item for item in read_records(trail) if item["type"].startswith("episode.")]
    assert {item["detector"] for item in told} == {"rate", "risk"}
    assert {item["entity"] for item in told} == {"session:sess-600", "agent:support-agent"}
    records = [item for item in told if item["detector"] == "rate"]
    assert len({item["episode"] for item in records}) == 1
    start, escalate = records[:2]
    assert (start["type"], start["action"]) == ("episode.start", "warn")
    assert (escalate["type"], escalate["action"]) == ("episode.escalate", "block")
    assert (start["observed"], escalate["observed"]) == (WARN, BLOCK)
    assert all(item["session"] == "sess-600" for item in records)
    assert all(item["agent"] == "support-agent" for item in records)
    spans = read_spans(service.data / "spans.jsonl")
    assert start["span_id"] == spans[WARN - 1]["spanId"]
    assert escalate["span_id"] == spans[BLOCK - 1]["spanId"]


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_600_calls_of_one_session(transport: str, service: ServiceProcess) -> None:
    """
    Scenario: a script with the stock SDK (BatchSpanProcessor) sends 600 tool calls of one session
    within a minute to the service on its defaults.
    Guarantees: spans.jsonl has all of them in order; `rate` warns from the 100th and blocks from
    the 500th, before only `risk` warns; the console shows one episode of each; metrics, audit trail
    and `audit verify` agree.
    """
    run_script(service, transport)
    service.wait_sent("file", CALLS)
    spans = read_spans(service.data / "spans.jsonl")
    assert len({span["spanId"] for span in spans}) == len(spans) == CALLS
    ends = [int(span["endTimeUnixNano"]) for span in spans]
    assert ends == sorted(ends)
    check_verdicts(spans)
    check_metrics(service, transport)
    assert service.stop() == 0
    episodes = re.findall(r"\[ep ([^\]]+)\]", service.stdout)
    assert len(set(episodes)) == 2, service.stdout
    assert "session:sess-600" in service.stdout
    check_audit(service)
