"""The life of the process: how it stops, reads its configuration again, and bounds its memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from otel_anomaly.config.quantities import MIB, SECOND_NS, Count, Duration, Size
from otel_anomaly.config.section import Section


class MemoryConfig(Section):
    """Above the limit requests are refused before they are read; clients send them again later."""

    limit_percentage: Count = Field(default=80, ge=0, le=100)
    """Share of what the process may have: of its cgroup's limit, else of the machine. 0: no limit.
    What is held against it is the cgroup's use without file cache, else the process's own."""
    limit: Annotated[Size, Field(ge=64 * MIB)] | None = None
    """The same as a size, of the process's own resident memory; goes before the percentage."""
    check_interval: Annotated[Duration, Field(ge=SECOND_NS // 100, le=60 * SECOND_NS)] = SECOND_NS
    """How often memory is looked at. What is let in between two looks counts at once."""


class ServiceConfig(Section):
    """Life cycle."""

    drain_timeout: Duration = 20 * SECOND_NS
    """After SIGTERM, the longest time to deliver what is held. An exporter that a new configuration
    does not name any more gets the same."""
    watch_config: bool = False
    """Whether a configuration file that changes is read again without SIGHUP."""
    watch_interval: Annotated[Duration, Field(ge=SECOND_NS // 10, le=3600 * SECOND_NS)] = (
        5 * SECOND_NS
    )
    """How often the files are looked at. A change counts when it is the same at two looks."""
    memory: MemoryConfig = MemoryConfig()
