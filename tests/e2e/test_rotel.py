"""Between two collectors that other people wrote."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import traffic
from tests.e2e.clients import export
from tests.e2e.rotel_process import Rotel, find_rotel
from tests.e2e.service_process import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartService
    from tests.e2e.next_hop import NextHop

pytestmark = pytest.mark.e2e

CALLS, OTHERS = 60, 20
RESOURCE = (("service.name", "support-desk"), ("deployment.environment.name", "test"))


@pytest.fixture
def rotel() -> Path:
    """The binary; without it the test is skipped and says why."""
    binary, reason = find_rotel()
    if binary is None:
        pytest.skip(reason)
    return binary


def spans_sent() -> list[Span]:
    """Tool calls of one agent, and spans that are none, all different."""
    agent = traffic.Agent("support-agent", session="sess-1", user="user-1")
    now_ns = time.time_ns()
    calls = [agent.call(now_ns + number) for number in range(CALLS)]
    others = [agent.call(now_ns + number) for number in range(OTHERS)]
    for span in others:
        span.name = "chat"
        span.ClearField("attributes")
    return calls + others


def without_verdict(span: Span) -> Span:
    """A copy without our attributes."""
    copy = Span.FromString(span.SerializeToString())
    kept = [item for item in copy.attributes if not item.key.startswith("anomaly.")]
    copy.ClearField("attributes")
    copy.attributes.extend(kept)
    return copy


def by_id(spans: list[Span]) -> dict[bytes, Span]:
    return {span.span_id: span for span in spans}


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_between_two_rotels(
    transport: str, rotel: Path, start_service: StartService, next_hop: NextHop, tmp_path: Path
) -> None:
    """
    Scenario: client -> rotel -> the service -> rotel -> a sink, every hop over one transport.
    Guarantees: all spans arrive once and unchanged but for our attributes; each tool call carries
    a verdict, no other span does; the service counts what rotel handed over.
    """
    sink = next_hop.http_url if transport == "http" else f"http://{next_hop.grpc_address}"
    with Rotel(rotel, tmp_path / "after", protocol=transport, endpoint=sink) as after:
        port = after.http_port if transport == "http" else after.grpc_port
        exporter = {"endpoint": f"http://127.0.0.1:{port}", "tls": {"insecure": True}}
        service = start_service({"exporters": {f"otlp_{transport}": exporter}})
        door = service.http_port if transport == "http" else service.grpc_port
        us = f"http://127.0.0.1:{door}"
        with Rotel(rotel, tmp_path / "before", protocol=transport, endpoint=us) as before:
            sent = spans_sent()
            first = before.http_port if transport == "http" else before.grpc_port
            assert export(transport, first, traffic.request(sent, resource=RESOURCE))
            wait_until(lambda: len(next_hop.spans()) >= len(sent), "spans at the sink")
            assert service.metric("receiver_accepted_spans_total", transport=transport) == len(sent)
            assert service.metric("tool_calls_total") == CALLS
    arrived = next_hop.spans()
    assert len(arrived) == len(sent)
    assert by_id([without_verdict(span) for span in arrived]) == by_id(sent)
    judged = {
        span.span_id: item.value.string_value
        for span in arrived
        for item in span.attributes
        if item.key == "anomaly.action"
    }
    assert set(judged) == {span.span_id for span in sent[:CALLS]}
    assert set(judged.values()) == {"allow", "warn"}, "sixty calls at once are a burst"
