"""What the HTTP doors are held against: bytes of anybody, in any pieces, on a connection.

The first byte of an input says which door (telemetry or monitoring) and how many pieces; the rest
is what arrives. No socket: aiohttp's protocol is driven by a transport that remembers.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from otel_anomaly.config import HttpReceiverConfig, MetricsConfig
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.receivers.monitoring import Monitoring
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import Consumer, StandingClock

if TYPE_CHECKING:
    from otel_anomaly.receivers.connections import Connection
    from otel_anomaly.receivers.listener import Listener

TURNS = 12
"""Of the loop after each piece: enough for a handler that waits for nothing."""
LIMIT = 4096
KNOWN = {200, 204, 400, 401, 404, 405, 408, 413, 415, 429, 503}


class FakeTransport(asyncio.Transport):
    """Takes what is written, and tells the protocol when it is closed."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__({"peername": ("10.0.0.1", 1)})
        self._protocol = protocol
        self.written = bytearray()
        self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.written += b"".join(list_of_data)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Complaints(logging.Handler):
    """Whatever is logged is a find."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


class Target:
    """Both doors, on one loop that is kept."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._failures: list[str] = []
        self._loop.set_exception_handler(lambda _loop, what: self._failures.append(str(what)))
        self._complaints = _Complaints()
        logging.getLogger("otel_anomaly").addHandler(self._complaints)
        self._loop.run_until_complete(self._make())

    async def _make(self) -> None:
        telemetry, self._consumer = Telemetry(), Consumer()
        config = HttpReceiverConfig(endpoint="127.0.0.1:0", max_request_body_size=LIMIT)
        self._door = HttpReceiver(config, self._consumer, telemetry, StandingClock())
        page = Monitoring(MetricsConfig(endpoint="127.0.0.1:0"), telemetry, dict, lambda: True)
        self._listeners: list[Listener] = [self._door._listener, page._listener]
        for listener in self._listeners:
            listener.make_server()

    def check(self, data: bytes) -> None:
        """One input. Raises AssertionError for anything that a door must never do."""
        if not data:
            return
        self._failures.clear()
        self._complaints.records.clear()
        self._consumer.batches.clear()
        written = self._loop.run_until_complete(self._play(data[0] & 1, data[0] >> 4, data[1:]))
        assert not self._failures, self._failures
        assert not self._complaints.records, self._complaints.records
        assert self._door._bodies.held == 0
        assert all(len(batch.body) <= LIMIT for batch in self._consumer.batches)
        assert not any(len(listener.census) for listener in self._listeners)
        for part in written.split(b"HTTP/1.1 ")[1:]:
            status = int(part[:3])
            assert status in KNOWN or status == 100, status

    async def _play(self, which: int, pieces: int, data: bytes) -> bytes:
        connection = self._listeners[which]._connection()
        transport = FakeTransport(connection)
        connection.connection_made(transport)
        reading = connection._task_handler
        size = max(1, len(data) // (pieces + 1))
        for i in range(0, len(data), size):
            if transport.is_closing():
                break
            connection.data_received(data[i : i + size])
            for _ in range(TURNS):
                await asyncio.sleep(0)
        transport.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if reading is not None and reading.done() and not reading.cancelled():
            reading.result()  # Asked here, or it is told with a later input, when it is collected.
        return bytes(transport.written)


_TARGET: list[Target] = []


def check(data: bytes) -> None:
    """One input, on doors that are made once."""
    if not _TARGET:
        _TARGET.append(Target())
    _TARGET[0].check(data)
