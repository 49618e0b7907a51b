"""Fixtures and settings for all tests: nothing from the machine leaks in, nothing leaks out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from otel_anomaly.exporters import disk_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

# No deadline: the first example of a kernel compiles it. In CI the examples are the same in every
# run, so that a red run is about the change and can be repeated.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.fixture(scope="session", autouse=True)
def _sealed_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep a developer's OpenTelemetry settings, proxies and data out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("OTEL_") and name != "OTEL_ANOMALY_CAPTURES":
                patch.delenv(name)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            patch.setenv(name, LOOPBACK)
        patch.setenv("OTEL_ANOMALY_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def patient_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk queues never leave the disk of the machine alone, however long it takes."""
    for name in ("STALL_S", "LAST_ROUND_S"):
        monkeypatch.setattr(disk_queue, name, 60.0)
