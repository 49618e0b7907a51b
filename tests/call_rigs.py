"""Calls as detectors see them, and what they say, without spans around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from otel_anomaly.detectors.call import CALL
from otel_anomaly.detectors.finding import SECOND_NS, SIGN
from otel_anomaly.detectors.past import LEARNING

Said = dict[str, Any]
"""What a detector says of one call: the fields of SIGN."""

START_S = 1_790_000_100
"""A time that is a whole number of five minutes."""
assert START_S % 300 == 0


def call_of(at_s: float = 0.0, **fields: Any) -> np.void:
    """A new call with arguments, `at_s` seconds from the start. `to`: [(destination, bits)]."""
    call: np.void = np.zeros(1, CALL)[0]
    call["time_ns"] = START_S * SECOND_NS + round(at_s * SECOND_NS)
    call["has_arguments"] = call["fresh"] = 1
    for name, value in fields.items():
        if name != "to":
            call[name] = value
    for place, (destination, bits) in enumerate(fields.get("to", ())):
        call["destination"][place], call["destination_is"][place] = destination, bits
        call["destinations"] = place + 1
    return call


def spoilt_sign() -> np.void:
    """A sign in which every field still says something of another call."""
    sign = np.zeros(1, SIGN)
    for name in SIGN.names or ():
        sign[name] = 77
    result: np.void = sign[0]
    return result


def said(sign: np.void) -> Said:
    """The fields of a sign, as Python's own numbers."""
    return dict(zip(SIGN.names or (), sign.item(), strict=True))


def learning_of(samples: int = 5, age_s: int = 10, forget_days: int = 28) -> np.void:
    """When an agent is warm."""
    learning: np.void = np.zeros(1, LEARNING)[0]
    learning["samples"], learning["age_ns"] = samples, age_s * SECOND_NS
    learning["forget_days"] = forget_days
    return learning
