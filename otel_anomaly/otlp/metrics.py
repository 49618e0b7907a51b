"""Metrics are passed on and never read: what is checked is that the next hop can read them.

A sender whose metrics are broken hears so at our door, at once, and not by a counter of ours.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, borrow, kernel
from otel_anomaly.otlp.rows import IN_REQUEST
from otel_anomaly.otlp.wire import METRICS_REQUEST, check_message


def is_metrics(body: bytes) -> bool:
    """Whether the bytes are an ExportMetricsServiceRequest."""
    return bool(are_metrics(np.frombuffer(body, np.uint8)))


@kernel
def are_metrics(data: Array) -> bool:
    """The same of bytes as an array."""
    data = borrow(data)
    return check_message(data, np.int64(0), np.int64(data.size), METRICS_REQUEST, IN_REQUEST)
