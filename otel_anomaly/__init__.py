"""otel-anomaly: tells, on OTLP telemetry, when an AI agent stops behaving like itself."""

__version__ = "0.1.0"
