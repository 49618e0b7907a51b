"""Sinks: where episodes are told, beside the data path and never in its way."""

from __future__ import annotations

from otel_anomaly.sinks.audit import AuditSink
from otel_anomaly.sinks.chain import VerifyResult, verify
from otel_anomaly.sinks.console import ConsoleSink

__all__ = ["AuditSink", "ConsoleSink", "VerifyResult", "verify"]
