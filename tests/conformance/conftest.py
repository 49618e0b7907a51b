"""Both doors, opened once for each module of the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.doors import Doors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def _doors() -> Iterator[Doors]:
    doors = Doors()
    try:
        yield doors
    finally:
        doors.close()


@pytest.fixture
def doors(_doors: Doors) -> Doors:
    """The doors, answering by the processor again."""
    _doors.answer = None
    _doors.rig.room.payloads.clear()
    return _doors
