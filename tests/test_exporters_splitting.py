"""Requests that are larger than the next hop takes: cut between spans, counted to the span."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.config import OtlpGrpcExporterConfig, OtlpHttpExporterConfig
from otel_anomaly.exporters import Fanout, SendQueue
from otel_anomaly.exporters.contract import SENT, Kind, SendResult, rejected, retry, too_large
from otel_anomaly.exporters.splitting import (
    REMEMBERED_MAX,
    Splitting,
    UncuttableError,
    cut,
    cut_over,
)
from otel_anomaly.handoff import Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests.exporters_world import NAME, Books, ScriptedExporter, hand_over, queue_of
from tests.virtual_time import play


def flat(body: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Each span with the resource and the scope it belongs to, all encoded."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        (
            block.resource.SerializeToString() + block.schema_url.encode(),
            scope.scope.SerializeToString() + scope.schema_url.encode(),
            span.SerializeToString(),
        )
        for block in request.resource_spans
        for scope in block.scope_spans
        for span in scope.spans
    ]


def request_of(chance: random.Random, *, span_bytes: int = 300) -> bytes:
    """Some resources, scopes and spans, empty ones among them, unknown fields in all."""
    request = ExportTraceServiceRequest()
    for block_number in range(chance.randrange(1, 4)):
        block = request.resource_spans.add(schema_url=f"r{block_number}")
        block.resource.attributes.add(key="service.name").value.string_value = "x" * 20
        for scope_number in range(chance.randrange(4)):
            scope = block.scope_spans.add(schema_url="s")
            scope.scope.name = f"scope {scope_number}"
            for _ in range(chance.randrange(6)):
                span = scope.spans.add(name="n" * chance.randrange(span_bytes))
                span.span_id = chance.randbytes(8)
                # A field that no schema knows, and a group: both live on in the bytes.
                span.MergeFromString(b"\xf8\x3f\x07\xfb\x3f\x08\x01\xfc\x3f")
    return request.SerializeToString()


@pytest.mark.parametrize("seed", range(60))
def test_every_span_is_in_one_piece(seed: int) -> None:
    """
    Scenario: random requests, cut at random limits.
    Guarantees: each piece keeps to the limit and says how many spans it holds; together they hold
    every span once, in order, under its own resource and scope, byte for byte; those that are
    missing fit no piece.
    """
    chance = random.Random(seed)
    body, limit = request_of(chance), chance.randrange(100, 1200)
    result = cut(body, limit)
    assert all(len(piece) <= limit for piece, _ in result.pieces)
    assert all(len(flat(piece)) == count for piece, count in result.pieces)
    got = [each for piece, _ in result.pieces for each in flat(piece)]
    before = flat(body)
    kept = [each for each in before if each in set(got)]
    assert got == kept
    assert len(before) - len(got) == result.lost
    for resource, scope, span in set(before) - set(got):
        assert len(resource) + len(scope) + len(span) + 60 > limit or 2 * len(resource + scope) > (
            limit - 60
        )


def test_pieces_are_few() -> None:
    """
    Scenario: a hundred spans of 100 bytes, and a limit of ten of them.
    Guarantees: a dozen pieces at most, not one for each span.
    """
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for _ in range(100):
        spans.add(name="n" * 96)
    assert 10 <= len(cut(request.SerializeToString(), 1100).pieces) <= 12


def test_a_large_resource_is_not_sent_again_and_again() -> None:
    """
    Scenario: a resource of most of the limit, and a thousand small spans below it.
    Guarantees: nothing of it is sent: in pieces it would be a thousand times its size.
    """
    request = ExportTraceServiceRequest()
    block = request.resource_spans.add(schema_url="x" * 600)
    spans = block.scope_spans.add().spans
    for _ in range(1000):
        spans.add(name="n" * 100)
    assert cut(request.SerializeToString(), 1000) == ([], 1000)


def test_other_signals_have_the_same_frame() -> None:
    """
    Scenario: log records and metrics of a hundred bytes each, cut.
    Guarantees: every one of them comes out, once.
    """
    logs, metrics = ExportLogsServiceRequest(), ExportMetricsServiceRequest()
    records = logs.resource_logs.add().scope_logs.add().log_records
    numbers = metrics.resource_metrics.add().scope_metrics.add().metrics
    for index in range(20):
        records.add(event_name="e" * 90, time_unix_nano=index)
        numbers.add(name="m" * 90, unit=str(index))
    found: list[Any] = []
    for piece, _ in cut(logs.SerializeToString(), 300).pieces:
        found += (
            ExportLogsServiceRequest.FromString(piece).resource_logs[0].scope_logs[0].log_records
        )
    assert found == list(records)
    found = []
    for piece, _ in cut(metrics.SerializeToString(), 300).pieces:
        part = ExportMetricsServiceRequest.FromString(piece).resource_metrics[0]
        found += part.scope_metrics[0].metrics
    assert found == list(numbers)


@pytest.mark.parametrize(
    "body",
    [b"\x0a\x05abc", b"\x0a", b"\x0f\x00", b"\x80", b"\x0b\x0b", b"\x0b" * 200, b"\xff" * 20],
)
def test_what_is_no_request_cannot_be_cut(body: bytes) -> None:
    """
    Scenario: fields cut short, unknown wire types, groups without an end, endless numbers.
    Guarantees: one kind of error for all.
    """
    with pytest.raises(UncuttableError):
        cut(body, 1)


@pytest.mark.parametrize("seed", range(100))
def test_any_bytes_are_survived(seed: int) -> None:
    """
    Scenario: noise, and requests with a byte changed.
    Guarantees: a cut whose pieces keep to the limit, or UncuttableError.
    """
    chance = random.Random(seed)
    body = bytearray(request_of(chance) if seed % 2 else chance.randbytes(200))
    if body:
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    try:
        result = cut(bytes(body), 200)
    except UncuttableError:
        return
    assert all(len(piece) <= 200 for piece, _ in result.pieces)


def spans_of(count: int, size: int = 200) -> bytes:
    """A request of so many spans of about `size` bytes."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for index in range(count):
        spans.add(name=chr(97 + index % 26) * size)
    return request.SerializeToString()


class World:
    """A queue before an exporter that takes requests of at most 450 bytes: two spans."""

    def __init__(self, *script: SendResult) -> None:
        self.telemetry = Telemetry([])
        self.hop = ScriptedExporter(*script)
        self.splitting = Splitting(self.hop, 450)
        queue = queue_of(
            self.splitting,
            self.telemetry,
            retry={"max_elapsed_time": "60s"},
            queue={"num_consumers": 1},
        )
        self.fanout = Fanout([queue])
        self.books = Books(self.telemetry)

    def play(self, body: bytes, items: int, signal: Signal = Signal.TRACES) -> None:
        async def main() -> None:
            await self.fanout.start()
            self.fanout.reserve(len(body))
            self.fanout.commit(Payload(body, signal, items), len(body))
            await asyncio.sleep(100)
            await self.fanout.stop(1)

        play(main())
        assert self.books.held == 0

    @property
    def names(self) -> list[str]:
        """First letters of the spans that were tried, in order."""
        return [
            "".join(span[2].decode("latin-1")[-1] for span in flat(body))
            for body in self.hop.bodies
        ]


def test_pieces_go_one_after_the_other() -> None:
    """
    Scenario: five spans, of which the next hop takes two at a time.
    Guarantees: three requests; the ledger has five spans and one request sent.
    """
    world = World()
    world.play(spans_of(5), 5)
    assert world.names == ["ab", "cd", "e"]
    assert [sent.items for sent in world.hop.attempts] == [2, 2, 1]
    assert (world.books.sent, world.books.dropped()) == (5, 0)
    assert world.books.requests(Signal.TRACES) == 1


def test_a_retry_begins_behind_what_was_delivered() -> None:
    """
    Scenario: the second of three pieces meets a next hop that is away, twice.
    Guarantees: the first piece is not sent again; each span is counted once.
    """
    world = World(SENT, retry("away"), retry("away"))
    world.play(spans_of(5), 5)
    assert world.names == ["ab", "cd", "cd", "cd", "e"]
    assert (world.books.sent, world.books.dropped()) == (5, 0)
    assert not world.splitting._progress


def test_a_refused_piece_does_not_doom_the_others() -> None:
    """
    Scenario: the first piece is refused for good, the second only in part, the third is too large
    for the next hop.
    Guarantees: each span is sent or dropped, under the reason of its own piece.
    """
    partly = SendResult(Kind.SENT, "one is bad", rejected=1)
    world = World(rejected("bad"), partly, too_large("413"))
    world.play(spans_of(5), 5)
    assert world.names == ["ab", "cd", "e"]
    assert (world.books.sent, world.books.rejected) == (2, 1)
    assert (world.books.dropped("rejected"), world.books.dropped("too_large")) == (2, 1)
    assert world.books.requests(Signal.TRACES) == 1


def test_nothing_taken_is_a_refusal() -> None:
    """
    Scenario: every piece is refused; and a request of which not a single span fits.
    Guarantees: all dropped, under the reason; the latter is never sent.
    """
    world = World(rejected("bad"), rejected("bad"))
    world.play(spans_of(3), 3)
    assert (world.books.sent, world.books.dropped("rejected")) == (0, 3)
    world = World()
    world.play(spans_of(2, 500), 2)
    assert (world.books.sent, world.books.dropped("too_large"), world.names) == (0, 2, [])


def test_a_span_that_is_too_large_alone() -> None:
    """
    Scenario: four spans, the second of which does not fit any request.
    Guarantees: the others are sent, that one is dropped as too large.
    """
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for letter, size in (("a", 100), ("b", 500), ("c", 100), ("d", 100)):
        spans.add(name=letter * size)
    world = World()
    world.play(request.SerializeToString(), 4)
    assert world.names == ["acd"]
    assert (world.books.sent, world.books.dropped("too_large")) == (3, 1)


def test_broken_metrics_and_partly_lost_logs_are_counted_by_request() -> None:
    """
    Scenario: bytes that are no request and too large; logs of which one record does not fit.
    Guarantees: the request is counted as dropped: not all of it arrived; no span is counted.
    """
    world = World()
    world.play(b"\x0a" * 500, 1, Signal.METRICS)
    assert (world.books.requests(Signal.METRICS), world.hop.attempts) == (1, [])
    logs = ExportLogsServiceRequest()
    records = logs.resource_logs.add().scope_logs.add().log_records
    for size in (100, 500, 100):
        records.add(event_name="e" * size)
    world = World()
    world.play(logs.SerializeToString(), 1, Signal.LOGS)
    dropped = world.books.read(world.telemetry.dropped_requests, "logs", "too_large")
    assert (len(world.hop.attempts), dropped, world.books.sent) == (1, 1, 0)


@pytest.mark.parametrize("encoding", ["grpc", "proto", "json"])
@pytest.mark.parametrize("limit", ["64MiB", "100KiB", "64KiB"])
def test_a_bad_span_of_one_client_is_his_alone(limit: str, encoding: str) -> None:
    """
    Scenario: 200 clients send a span of a kilobyte each; the next hop refuses requests with one of
    them in it, and takes no more than 64 KiB, 100 KiB or 64 MiB at once.
    Guarantees: that one is dropped and the 199 others arrive; they were sent together, so far as
    the next hop takes them.
    """
    section: OtlpGrpcExporterConfig | OtlpHttpExporterConfig
    if encoding == "grpc":
        section = OtlpGrpcExporterConfig.model_validate(
            {"endpoint": "h:1", "max_request_size": limit}
        )
    else:
        section = OtlpHttpExporterConfig.model_validate(
            {"endpoint": "http://h", "max_request_size": limit, "encoding": encoding}
        )
    hop, telemetry = ScriptedExporter(), Telemetry([NAME])
    hop.judge = lambda body: rejected("bad") if b"BAD" in body else SENT
    books, most = Books(telemetry), cut_over(section)
    queue = SendQueue(NAME, Splitting(hop, most), section, telemetry, lambda: 0.5)

    async def story() -> None:
        fanout = Fanout([queue], "queued")
        await fanout.start()
        for number in range(200):
            hand_over(fanout, spans_of(1, 1000).replace(b"aaa", b"BAD", number == 50))
        await fanout.stop(60)

    play(story())
    assert (books.sent, books.dropped("rejected"), books.dropped()) == (199, 1, 1)
    assert min(most, 200_000) // 3 < max(map(len, hop.bodies)) <= most


def test_what_is_remembered_is_bounded() -> None:
    """
    Scenario: many requests of which the first piece was delivered, and that nobody sends again.
    Guarantees: only the last ones are remembered.
    """
    hop = ScriptedExporter()
    splitting = Splitting(hop, 450)

    async def main() -> None:
        for size in range(160, 160 + REMEMBERED_MAX + 9):
            hop.script = [SENT, retry("away")]
            assert (await splitting.send(spans_of(5, size), Signal.TRACES, 5)).kind is Kind.RETRY

    asyncio.run(main())
    assert len(splitting._progress) == REMEMBERED_MAX
