"""Where every `score` starts from: a detector that has nothing to say."""

from __future__ import annotations

from otel_anomaly.detectors.finding import ALLOW
from otel_anomaly.kernels import Int, Record, inlined


@inlined
def silence(sign: Record, skipped: Int) -> None:
    """Set every field of a sign: nothing found, and why it was not looked (JUDGED: it was)."""
    sign["score"], sign["observed"], sign["limit"] = 0.0, 0.0, 0.0
    sign["usual"], sign["window_s"], sign["ratio"] = 0.0, 0.0, 0.0
    sign["action"], sign["skipped"], sign["variant"] = ALLOW, skipped, 0
