"""Fixtures: the real process, and what stands behind it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.next_hop import NextHop
from tests.e2e.service_process import ServiceProcess

if TYPE_CHECKING:
    from pathlib import Path

StartService = Callable[..., ServiceProcess]


@pytest.fixture(autouse=True)
def _needs_compiled_kernels() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        pytest.skip("NUMBA_DISABLE_JIT is set: the process would run its kernels as plain Python")


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Starts a service with the given configuration sections and waits until it is ready.

    At the end each one is ended by SIGTERM, and must have ended with exit code 0.
    """
    started: list[ServiceProcess] = []
    numbers = itertools.count()

    def start(sections: dict[str, Any] | None = None, **environment: str) -> ServiceProcess:
        service = ServiceProcess(tmp_path / f"service-{next(numbers)}", sections, **environment)
        try:
            service.wait_ready()
        except BaseException:
            service.stop()
            raise
        started.append(service)
        return service

    yield start
    codes = {service.pid: service.stop() for service in started}
    errors = "\n".join(service.stderr for service in started)
    assert set(codes.values()) <= {0}, f"exit codes {codes}:\n{errors}"


@pytest.fixture
def service(start_service: StartService) -> ServiceProcess:
    """The service on its defaults, but for ports and folders."""
    return start_service()


@pytest.fixture
def next_hop() -> Iterator[NextHop]:
    """A back end that keeps what it gets, over gRPC and HTTP."""
    with NextHop() as hop:
        yield hop
