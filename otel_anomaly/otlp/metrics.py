"""Metrics are passed on and never read: what is checked is that the next hop can read them.

A sender whose metrics are broken hears so at our door, at once, and not by a counter of ours.
"""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, borrow, kernel
from otel_anomaly.otlp.rows import IN_REQUEST
from otel_anomaly.otlp.wire import METRICS_REQUEST, check_message


@kernel
def is_metrics(data: Array) -> bool:
    """Whether the bytes are an ExportMetricsServiceRequest."""
    data = borrow(data)
    return check_message(data, np.int64(0), np.int64(data.size), METRICS_REQUEST, IN_REQUEST)
