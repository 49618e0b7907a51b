"""Configuration: every key, default, limit and cross-check; the only reader of YAML and env.

`load_config` gives a `Config` or raises `ConfigError`; each room is handed its own section.
"""

from __future__ import annotations

from otel_anomaly.config.conflicts import audit_path, signal_paths
from otel_anomaly.config.exporters import (
    EXPORTER_KINDS,
    AnyExporterConfig,
    BatchConfig,
    DebugExporterConfig,
    ExporterConfig,
    FileExporterConfig,
    OtlpGrpcExporterConfig,
    OtlpHttpExporterConfig,
    QueueConfig,
    RetryConfig,
    TlsClientConfig,
)
from otel_anomaly.config.loading import load_config
from otel_anomaly.config.models import (
    AlertsConfig,
    AnnotateConfig,
    AuditConfig,
    Config,
    DetectorsConfig,
    EntityLimits,
    GrpcReceiverConfig,
    HttpReceiverConfig,
    IdentityConfig,
    MetricsConfig,
    OtlpReceiverConfig,
    PolicyConfig,
    ProtocolsConfig,
    RateConfig,
    RateShiftConfig,
    ReceiversConfig,
    ServiceConfig,
    StorageConfig,
    TelemetryConfig,
)
from otel_anomaly.config.quantities import (
    GIB,
    KIB,
    MIB,
    SECOND_NS,
    Duration,
    Endpoint,
    Size,
)
from otel_anomaly.config.section import Section
from otel_anomaly.config.summary import summary
from otel_anomaly.config.yaml_text import ConfigError

__all__ = [
    "EXPORTER_KINDS",
    "GIB",
    "KIB",
    "MIB",
    "SECOND_NS",
    "AlertsConfig",
    "AnnotateConfig",
    "AnyExporterConfig",
    "AuditConfig",
    "BatchConfig",
    "Config",
    "ConfigError",
    "DebugExporterConfig",
    "DetectorsConfig",
    "Duration",
    "Endpoint",
    "EntityLimits",
    "ExporterConfig",
    "FileExporterConfig",
    "GrpcReceiverConfig",
    "HttpReceiverConfig",
    "IdentityConfig",
    "MetricsConfig",
    "OtlpGrpcExporterConfig",
    "OtlpHttpExporterConfig",
    "OtlpReceiverConfig",
    "PolicyConfig",
    "ProtocolsConfig",
    "QueueConfig",
    "RateConfig",
    "RateShiftConfig",
    "ReceiversConfig",
    "RetryConfig",
    "Section",
    "ServiceConfig",
    "Size",
    "StorageConfig",
    "TelemetryConfig",
    "TlsClientConfig",
    "audit_path",
    "load_config",
    "signal_paths",
    "summary",
]
