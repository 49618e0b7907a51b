"""One contract for all exporters: a new type is tested by being registered here."""

from __future__ import annotations

import asyncio
import io
import random
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import EXPORTER_KINDS, Config, OtlpGrpcExporterConfig
from otel_anomaly.exporters import Fanout, Kind, build
from otel_anomaly.exporters.contract import SENT
from otel_anomaly.handoff import Outcome, Payload, Signal
from otel_anomaly.telemetry import Telemetry
from tests import test_exporters_grpc, test_exporters_http, traffic
from tests.door_rigs import until
from tests.exporters_world import Books, FixedClock, hand_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

KINDS = sorted(set(EXPORTER_KINDS.values()))
BODIES = {
    Signal.TRACES: traffic.benchmark_request(8, 2),
    Signal.METRICS: b"",
    Signal.LOGS: b"",
}
FAST = {"sending_queue": {"batch": {"flush_timeout": "1ms"}}}


def built(sections: dict[str, Any], directory: Path) -> tuple[Fanout, Telemetry]:
    """Exporters as the service makes them."""
    config = Config.model_validate(
        {"exporters": sections, "storage": {"directory": str(directory)}}
    )
    telemetry = Telemetry(config.exporters)
    fanout = build(config, telemetry, FixedClock(), random.Random(1), io.StringIO())
    return fanout, telemetry


async def with_next_hop(kind: str, scenario: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Play a scenario with the keys of an exporter of this kind, its next hop being up."""
    match kind:
        case "otlp_grpc":
            async with test_exporters_grpc.serving(test_exporters_grpc.Hop()) as port:
                await scenario({"endpoint": f"http://127.0.0.1:{port}"})
        case "otlp_http":
            async with test_exporters_http.serving(test_exporters_http.Hop()) as port:
                await scenario({"endpoint": f"http://127.0.0.1:{port}"})
        case _:
            await scenario({})


def down(kind: str) -> dict[str, Any]:
    """The keys of an exporter whose next hop is not there; port 1 is never used."""
    return {"endpoint": "http://127.0.0.1:1"} if kind.startswith("otlp") else {}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_accepted_is_sent(kind: str, tmp_path: Path) -> None:
    """
    Scenario: each signal through an exporter that works, then a stop.
    Guarantees: the books say sent, nothing is held, nothing dropped.
    """

    async def scenario(keys: dict[str, Any]) -> None:
        fanout, telemetry = built({kind: {**keys, **FAST}}, tmp_path)
        await fanout.start()
        for signal, body in BODIES.items():
            assert hand_over(fanout, body, signal, items=8) is Outcome.ACCEPTED
        assert await fanout.stop(10) == {kind: 0}
        books = Books(telemetry, kind)
        assert (books.sent, books.dropped(), books.held, books.size) == (8, 0, 0, 0)
        assert [books.requests(signal) for signal in Signal] == [1, 1, 1]

    asyncio.run(with_next_hop(kind, scenario))


@pytest.mark.parametrize("kind", KINDS)
def test_a_next_hop_that_is_down_is_no_reason_not_to_start(kind: str, tmp_path: Path) -> None:
    """
    Scenario: the service starts and stops while the next hop is away.
    Guarantees: start succeeds; what could not be delivered is dropped and told within the time.
    """

    async def main() -> None:
        fanout, telemetry = built({kind: {**down(kind), **FAST}}, tmp_path)
        await fanout.start()
        hand_over(fanout, BODIES[Signal.TRACES], items=8)
        told = await fanout.stop(0.1)
        books = Books(telemetry, kind)
        assert books.sent + books.dropped("shutdown") == 8
        assert told == {kind: books.dropped("shutdown")}
        assert (books.held, books.size) == (0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_sending_again_is_harmless(kind: str, tmp_path: Path) -> None:
    """
    Scenario: the same bytes twice, and concurrently where the exporter allows it.
    Guarantees: the same result, and the bytes are untouched.
    """

    async def scenario(keys: dict[str, Any]) -> None:
        fanout, _ = built({kind: keys}, tmp_path)
        exporter = fanout._queues[0]._exporter
        await exporter.start()
        body = bytearray(BODIES[Signal.TRACES])
        frozen = bytes(body)
        attempts = [exporter.send(frozen, Signal.TRACES, 8) for _ in range(2)]
        if exporter.serial:
            results = [await attempt for attempt in attempts]
        else:
            results = await asyncio.gather(*attempts)
        assert results == [SENT, SENT]
        assert frozen == body
        await exporter.close()

    asyncio.run(with_next_hop(kind, scenario))


@pytest.mark.parametrize("kind", KINDS)
def test_close_without_a_send(kind: str, tmp_path: Path) -> None:
    """
    Scenario: an exporter is started and closed.
    Guarantees: no error, and nothing left open: the suite turns such warnings into errors.
    """

    async def main() -> None:
        fanout, _ = built({kind: down(kind)}, tmp_path)
        await fanout.start()
        assert await fanout.stop(1) == {kind: 0}

    asyncio.run(main())


def test_several_of_one_type(tmp_path: Path) -> None:
    """
    Scenario: all four types and a second file, at once; one next hop is down.
    Guarantees: the others get everything, unhindered; the names in the books are the user's.
    """

    async def main() -> None:
        sections = {kind: {**down(kind), **FAST} for kind in KINDS}
        sections["file/binary"] = {"path": str(tmp_path / "b" / "x"), "format": "proto", **FAST}
        fanout, telemetry = built(sections, tmp_path)
        await fanout.start()
        assert hand_over(fanout, BODIES[Signal.TRACES], items=8) is Outcome.ACCEPTED
        wanted = [Books(telemetry, name) for name in ("debug", "file", "file/binary")]
        await until(lambda: [books.sent for books in wanted] == [8, 8, 8])
        told = await fanout.stop(0.5)
        assert told == {"debug": 0, "file": 0, "otlp_grpc": 8, "otlp_http": 8, "file/binary": 0}
        assert Books(telemetry, "file/binary").sent == 8
        assert (tmp_path / "spans.jsonl").stat().st_size > 0
        assert (tmp_path / "b" / "x").stat().st_size == len(BODIES[Signal.TRACES]) + 2

    asyncio.run(main())


def test_errors_name_the_exporter(tmp_path: Path) -> None:
    """
    Scenario: a directory that cannot be made, and a header that cannot be sent.
    Guarantees: starting or building fails with the exporter's name as the user wrote it.
    """
    (tmp_path / "file").write_text("")
    fanout, _ = built({"file/mine": {"path": str(tmp_path / "file" / "x")}}, tmp_path)
    with pytest.raises(OSError, match=r"exporters\.file/mine: "):
        asyncio.run(fanout.start())
    section = OtlpGrpcExporterConfig(endpoint="a:1")
    section.headers["x-bin"] = "1"  # The model refuses it first.
    with pytest.raises(ValueError, match=r"exporters\.otlp/mine: headers: 'x-bin'"):
        built({"otlp/mine": section}, tmp_path)


def test_a_merged_request_isolates_what_cannot_be_written(tmp_path: Path) -> None:
    """
    Scenario: three requests merge on their way to the file, one of which it cannot decode.
    Guarantees: the two others are written.
    """

    async def main() -> None:
        fanout, telemetry = built({"file": FAST}, tmp_path)
        await fanout.start()
        for body in (BODIES[Signal.TRACES], b"\xff\xff", BODIES[Signal.TRACES]):
            assert fanout.reserve(len(body)) is Outcome.ACCEPTED
            fanout.commit(Payload(body, Signal.TRACES, 1), len(body))
        await fanout.stop(10)
        books = Books(telemetry, "file")
        assert (books.sent, books.dropped(Kind.REJECTED.value)) == (2, 1)
        assert len((tmp_path / "spans.jsonl").read_bytes().splitlines()) == 2

    asyncio.run(main())
