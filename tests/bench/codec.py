"""OTLP/JSON beside protobuf: what a request costs that comes as text, and one that leaves as text.

The same requests go through the processor twice, as bytes and as lines: a line is read first, then
everything is done that a protobuf request gets: scan, rows, judge, splice, commit. The door is not
in it; it costs both the same, so with it the ratio is smaller. Measured in turns on two processors
of this process; what is measured in bytes is of what comes out annotated.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from otel_anomaly.handoff import Batch
from otel_anomaly.otlp import json as otlp_json
from tests.bench.kernel import AGENTS_USUAL, SPANS, Bench, NullRoom
from tests.bench.report import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.handoff import Payload

RATIO_NEEDED, RATIO_AIM = 5.0, 4.0
NS_PER_BYTE_NEEDED, NS_PER_BYTE_AIM = 1 / 0.3, 1 / 0.5
"""300 and 500 MB/s of text."""
CHUNK_REQUESTS = 8


class _KeepingRoom(NullRoom):
    """Keeps what was committed since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[Payload] = []

    def commit(self, payload: Payload, _bytes_reserved: int) -> None:
        super().commit(payload, _bytes_reserved)
        self.payloads.append(payload)

    def taken(self) -> list[Payload]:
        taken, self.payloads = self.payloads, []
        return taken


class _AsJson:
    """A processor that is sent lines."""

    def __init__(self, spans: int, agents: int) -> None:
        self._room = _KeepingRoom()
        self.bench = Bench(spans, agents, room=self._room)
        self.bench.fill()
        self._room.taken()
        self.read_bytes = self.written_bytes = 0
        self.reading = self.writing = 0.0

    def process(self, batches: Sequence[Batch]) -> float:
        """CPU seconds from lines to commit; beside them those for the way back, to lines."""
        lines = [(otlp_json.encode(batch.body, batch.signal), batch) for batch in batches]
        started = time.process_time()
        read = [batch._replace(body=otlp_json.decode(line, batch.signal)) for line, batch in lines]
        reading = time.process_time() - started
        spent = reading + self.bench.process(read)
        payloads = self._room.taken()
        started = time.process_time()
        written = [otlp_json.encode(payload.body, payload.signal) for payload in payloads]
        self.writing += time.process_time() - started
        self.reading += reading
        self.read_bytes += sum(len(line) for line, _ in lines)
        self.written_bytes += sum(map(len, written))
        assert [batch.body for batch in read] == [batch.body for _, batch in lines]
        return spent


def codec_figures(
    *, spans: int = SPANS, agents: int = AGENTS_USUAL, requests: int = 200, rounds: int = 5
) -> list[Figure]:
    """The figures of the codec."""
    as_json, peer = _AsJson(spans, agents), Bench(spans, agents)
    ours = as_json.bench
    peer.fill()
    as_json.process([ours.batch()])
    peer.process([peer.batch()])
    as_json.reading = as_json.writing = 0.0
    as_json.read_bytes = as_json.written_bytes = 0
    json_us, protobuf_us = [], []
    for _ in range(rounds):
        spent = [0.0, 0.0]
        for first in range(0, requests, CHUNK_REQUESTS):
            count = min(CHUNK_REQUESTS, requests - first)
            spent[0] += as_json.process([ours.batch() for _ in range(count)])
            spent[1] += peer.process([peer.batch() for _ in range(count)])
        json_us.append(spent[0] / requests / spans * 1e6)
        protobuf_us.append(spent[1] / requests / spans * 1e6)
    reading = as_json.reading / as_json.read_bytes * 1e9
    writing = as_json.writing / as_json.written_bytes * 1e9
    return [
        Figure(
            f"OTLP/JSON request, read and judged, {spans} spans",
            "us/span",
            statistics.median(json_us),
            RATIO_NEEDED,
            RATIO_AIM,
            peer=statistics.median(protobuf_us),
            details={"json_us": json_us, "protobuf_us": protobuf_us},
        ),
        Figure("OTLP/JSON read", "ns/byte", reading, NS_PER_BYTE_NEEDED, NS_PER_BYTE_AIM),
        Figure("OTLP/JSON written", "ns/byte", writing, NS_PER_BYTE_NEEDED, NS_PER_BYTE_AIM),
    ]
