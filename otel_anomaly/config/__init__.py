"""Configuration: every key, default, limit and cross-check; the only reader of YAML and env.

`load_config` gives a `Config` or raises `ConfigError`; each room is handed its own section.
"""

from __future__ import annotations

from otel_anomaly.config.conflicts import audit_path, queue_directory, signal_paths
from otel_anomaly.config.detectors import (
    BurstConfig,
    ChildProcessConfig,
    CredentialLeakConfig,
    DataExfiltrationConfig,
    DetectorsConfig,
    FrequencyConfig,
    IdentitySpoofingConfig,
    LearningConfig,
    LoopConfig,
    NewDestinationConfig,
    NoveltyConfig,
    OffHoursConfig,
    RateConfig,
    RateShiftConfig,
    RiskConfig,
    RiskWeights,
    UnknownConnectionConfig,
)
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
from otel_anomaly.config.identity import EntityLimits, IdentityConfig
from otel_anomaly.config.loading import config_hash, load_config
from otel_anomaly.config.models import (
    AlertsConfig,
    AnnotateConfig,
    AuditConfig,
    Config,
    DialectsConfig,
    GrpcReceiverConfig,
    HttpReceiverConfig,
    MetricsConfig,
    OtlpReceiverConfig,
    PolicyConfig,
    ProtocolsConfig,
    ReceiversConfig,
    StorageConfig,
    TelemetryConfig,
)
from otel_anomaly.config.overrides import OVERRIDES_MAX, OverrideConfig, effective_detectors
from otel_anomaly.config.patterns import GLOB_BYTES_MAX, PATTERNS_MAX
from otel_anomaly.config.quantities import (
    DAY_NS,
    GIB,
    KIB,
    MIB,
    SECOND_NS,
    Duration,
    Endpoint,
    Size,
)
from otel_anomaly.config.redaction import RedactConfig
from otel_anomaly.config.section import Section
from otel_anomaly.config.service import MemoryConfig, ServiceConfig
from otel_anomaly.config.source import Source
from otel_anomaly.config.summary import summary
from otel_anomaly.config.yaml_text import ConfigError

__all__ = [
    "DAY_NS",
    "EXPORTER_KINDS",
    "GIB",
    "GLOB_BYTES_MAX",
    "KIB",
    "MIB",
    "OVERRIDES_MAX",
    "PATTERNS_MAX",
    "SECOND_NS",
    "AlertsConfig",
    "AnnotateConfig",
    "AnyExporterConfig",
    "AuditConfig",
    "BatchConfig",
    "BurstConfig",
    "ChildProcessConfig",
    "Config",
    "ConfigError",
    "CredentialLeakConfig",
    "DataExfiltrationConfig",
    "DebugExporterConfig",
    "DetectorsConfig",
    "DialectsConfig",
    "Duration",
    "Endpoint",
    "EntityLimits",
    "ExporterConfig",
    "FileExporterConfig",
    "FrequencyConfig",
    "GrpcReceiverConfig",
    "HttpReceiverConfig",
    "IdentityConfig",
    "IdentitySpoofingConfig",
    "LearningConfig",
    "LoopConfig",
    "MemoryConfig",
    "MetricsConfig",
    "NewDestinationConfig",
    "NoveltyConfig",
    "OffHoursConfig",
    "OtlpGrpcExporterConfig",
    "OtlpHttpExporterConfig",
    "OtlpReceiverConfig",
    "OverrideConfig",
    "PolicyConfig",
    "ProtocolsConfig",
    "QueueConfig",
    "RateConfig",
    "RateShiftConfig",
    "ReceiversConfig",
    "RedactConfig",
    "RetryConfig",
    "RiskConfig",
    "RiskWeights",
    "Section",
    "ServiceConfig",
    "Size",
    "Source",
    "StorageConfig",
    "TelemetryConfig",
    "TlsClientConfig",
    "UnknownConnectionConfig",
    "audit_path",
    "config_hash",
    "effective_detectors",
    "load_config",
    "queue_directory",
    "signal_paths",
    "summary",
]
