"""Fresh request bodies at the price of a copy.

A service that remembers span ids judges a body only once, so each measured body needs ids, times
and names of its own. Building 512 spans through the protobuf classes takes 15 ms; here one request
is built that way and its fixed-width fields are overwritten in place for each further one.
"""

from __future__ import annotations

import struct

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import traffic

AGENT_DIGITS = 7
SPAN_MARK = b"gen_ai.operation.name"
"""Occurs once in each benchmark span: counting it counts spans without parsing."""

_END_TAG = b"\x41"
_START_TAG = b"\x39"


class FreshBodies:
    """Requests of `spans` tool calls each, of agents drawn from `agents`; seeded."""

    def __init__(
        self,
        spans: int = 512,
        agents: int = 10_000,
        seed: int = 1,
        *,
        argument_bytes: int = traffic.BENCHMARK_ARGUMENT_BYTES,
    ) -> None:
        assert 0 < agents <= 10**AGENT_DIGITS
        body = traffic.benchmark_request(spans, agents, seed, argument_bytes=argument_bytes)
        self.spans, self.agents = spans, agents
        self._rng = np.random.default_rng(seed)
        self._bytes = np.frombuffer(body, np.uint8).copy()
        self._places = _places(body)
        assert len(self._places["trace_id"]) == spans

    @property
    def size_bytes(self) -> int:
        """Length of every body."""
        return int(self._bytes.size)

    def make(self, end_ns: int, spread_ns: int = 0, numbers: np.ndarray | None = None) -> bytes:
        """The next body: calls that end evenly within `spread_ns`, the last one at `end_ns`.

        `numbers` are the agents of the calls, drawn at random when not given.
        """
        count = self.spans
        if numbers is None:
            numbers = self._rng.integers(0, self.agents, count)
        ends = end_ns - np.linspace(spread_ns, 0, count).astype(np.int64)
        self._write("trace_id", self._rng.integers(0, 256, (count, 16), np.uint8))
        self._write("span_id", self._rng.integers(0, 256, (count, 8), np.uint8))
        self._write("end", ends.astype("<i8").view(np.uint8).reshape(count, 8))
        self._write("start", (ends - 1_000_000).astype("<i8").view(np.uint8).reshape(count, 8))
        digits = numbers[:, None] // 10 ** np.arange(AGENT_DIGITS)[::-1] % 10 + ord("0")
        self._write("agent", digits.astype(np.uint8))
        self._write("session", digits.astype(np.uint8))
        return self._bytes.tobytes()

    def _write(self, field: str, values: np.ndarray) -> None:
        self._bytes[self._places[field][:, None] + np.arange(values.shape[1])] = values


def _places(body: bytes) -> dict[str, np.ndarray]:
    """Field -> where each span keeps it, found by its value: the ids are random, so unique."""
    found: dict[str, list[int]] = {
        name: [] for name in ("trace_id", "span_id", "end", "start", "agent", "session")
    }
    at = 0
    request = ExportTraceServiceRequest.FromString(body)
    for span in request.resource_spans[0].scope_spans[0].spans:
        at = body.index(span.trace_id, at)
        said = {item.key: item.value.string_value for item in span.attributes}
        values = {
            "trace_id": (b"", span.trace_id),
            "span_id": (b"", span.span_id),
            "start": (_START_TAG, struct.pack("<Q", span.start_time_unix_nano)),
            "end": (_END_TAG, struct.pack("<Q", span.end_time_unix_nano)),
            "agent": (b"agent-", said["gen_ai.agent.name"].partition("-")[2].encode()),
            "session": (b"conv-", said["gen_ai.conversation.id"].partition("-")[2].encode()),
        }
        for name, (before, value) in values.items():
            found[name].append(body.index(before + value, at) + len(before))
    return {name: np.array(places) for name, places in found.items()}
