"""OTLP: bytes to columns and JSON, and back. No I/O, no clock, no log."""
