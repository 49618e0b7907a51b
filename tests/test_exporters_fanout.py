"""All queues as one, when one of them cannot be closed or started."""

from __future__ import annotations

import asyncio

import pytest

from otel_anomaly.exporters import Fanout
from otel_anomaly.telemetry import Telemetry
from tests.exporters_world import Books, ScriptedExporter, hand_over, queue_of
from tests.virtual_time import play


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("contents")])
def test_one_that_cannot_be_closed_stops_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: of two exporters one cannot be closed, by its disk or by a bug; the other has a
    request in its hands that takes its time.
    Guarantees: the stop returns without an error, the request is delivered and counted, and the log
    names the one that failed, without the words of a bug.
    """

    class Stuck(ScriptedExporter):
        """Its file cannot be closed."""

        async def close(self) -> None:
            raise error

    telemetry, slow = Telemetry(), ScriptedExporter(asyncio.sleep(5))
    fanout = Fanout(
        [queue_of(Stuck(), telemetry, name="stuck"), queue_of(slow, telemetry, name="slow")]
    )

    async def scenario() -> None:
        await fanout.start()
        hand_over(fanout, b"x", items=3)
        await asyncio.sleep(1)
        assert await fanout.stop(30) == {"slow": 0}
        assert slow.closed
        assert Books(telemetry, "slow").sent == 3

    play(scenario())
    (line,) = caplog.messages
    assert line.startswith("exporter stuck: could not be stopped: ")
    assert "contents" not in line


def test_a_start_that_fails_says_why_it_failed() -> None:
    """
    Scenario: of three exporters the first cannot be closed and the third cannot be started.
    Guarantees: the start raises what kept the third from starting, and the second is closed.
    """

    class Stuck(ScriptedExporter):
        """Its file cannot be closed."""

        async def close(self) -> None:
            raise OSError(5, "Input/output error")

    class Absent(ScriptedExporter):
        """Its file cannot be opened."""

        async def start(self) -> None:
            raise OSError(13, "Permission denied")

    second = ScriptedExporter()
    hops = {"first": Stuck(), "second": second, "third": Absent()}
    fanout = Fanout([queue_of(hop, Telemetry(), name=name) for name, hop in hops.items()])

    async def scenario() -> None:
        with pytest.raises(OSError, match="Permission denied"):
            await fanout.start()
        assert second.closed

    play(scenario())
