"""Where everything goes: each exporter has a queue of its own, all of them get everything.

`build` makes them from the configuration; what comes out, a `Fanout`, is all that the rest of the
house sees.
"""

from __future__ import annotations

from otel_anomaly.exporters.contract import Exporter, Kind, SendResult
from otel_anomaly.exporters.fanout import Fanout
from otel_anomaly.exporters.queue import SendQueue
from otel_anomaly.exporters.registry import build

__all__ = ["Exporter", "Fanout", "Kind", "SendQueue", "SendResult", "build"]
