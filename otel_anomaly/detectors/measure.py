"""How a detector says what it counted: the observed value, its limit, and the one by the other."""

from __future__ import annotations

from otel_anomaly.kernels import Int, Record, inlined


@inlined
def measure(sign: Record, observed: Int, limit: Int) -> None:
    """Tell what was observed against which limit, also when it is below. `limit` is above 0."""
    sign["observed"], sign["limit"], sign["ratio"] = observed, limit, observed / limit
