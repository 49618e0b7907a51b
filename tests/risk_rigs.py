"""Calls and signs for the tests of the detectors that go into `risk`."""

from __future__ import annotations

from typing import Any

import numpy as np

from otel_anomaly.detectors.call import BATCH, CALL
from otel_anomaly.detectors.finding import SECOND_NS, SIGN
from tests.naive_detectors_a import Told

NOON_S = 1_790_000_000 // 86400 * 86400 + 43200
"""A noon in September 2026, UTC."""
NOON_NS = NOON_S * SECOND_NS


def record_of(told: Told) -> Any:
    """The CALL record of a call as the twins read it."""
    call = np.zeros(1, CALL)[0]
    call["time_ns"], call["tool"], call["program"] = told.time_ns, told.tool, told.program
    if told.names is not None:
        call["has_arguments"], call["names"] = 1, told.names
    call["destinations"] = len(told.destinations)
    for place, destination in enumerate(told.destinations):
        call["destination"][place] = destination
    call["exempt"], call["fresh"] = BATCH * told.exempt, told.fresh
    return call


def blank_sign() -> Any:
    """A SIGN record whose every field is wrong, so that what is left unset shows."""
    signs = np.zeros(1, SIGN)
    for name in SIGN.names or ():
        signs[name] = 99
    return signs[0]


def fields_of(sign: Any) -> dict[str, Any]:
    """The fields of a sign by name."""
    return dict(zip(SIGN.names or (), sign.item(), strict=True))
