"""Snapshots of what was learned: whether, how often and where."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from otel_anomaly.config.quantities import SECOND_NS, Duration
from otel_anomaly.config.section import Section


class SnapshotsConfig(Section):
    """What was learned lives on: read at start, written while running and at the end."""

    enabled: bool = True
    """Whether it does. If not, every start is cold, and episodes end with the service."""
    interval: Annotated[Duration, Field(ge=SECOND_NS, le=86400 * SECOND_NS)] = 60 * SECOND_NS
    """How often it is written, when something came. Requests wait while memory is copied: 0.1 ms a
    megabyte, some 5 KB an agent."""
    path: str | None = None
    """Default `<storage.directory>/state.snapshot`. Keep it secret: who has it can tell which
    names stand behind hashes."""
