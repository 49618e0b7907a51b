"""Where everything goes: each exporter has a queue of its own, all of them get everything.

`Exchange` makes them from the configuration, and others when that changes; its `Fanout` is where
requests go. `build` is the same for whoever never changes them.
"""

from __future__ import annotations

from otel_anomaly.exporters.contract import Exporter, Kind, SendResult
from otel_anomaly.exporters.exchange import Exchange
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.exporters.registry import Makers, build

__all__ = [
    "Exchange",
    "Exporter",
    "Fanout",
    "Kind",
    "Makers",
    "SendQueue",
    "SendResult",
    "build",
]
