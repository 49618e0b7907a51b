"""`python -m otel_anomaly`."""

from __future__ import annotations

from otel_anomaly.cli import entry

if __name__ == "__main__":
    entry()
