"""Whether the thresholds of `risk` can be reached, and the sum that shows it.

risk = 1 - (1 - weight x score) x ... over four signals. Their highest scores do not go together: a
tool that was never used (novelty 1.0) has no frequency, a known one can be rare (frequency 0.6) and
at most called in a new way (novelty 0.5). Nor is it night all day: what only off-hours make up for
can never happen by day. The highest risk is the better of the two cases, with the signals that
are on.

>>> weights = {"novelty": 0.35, "burst": 0.35, "frequency": 0.15, "off_hours": 0.15}
>>> unreachable(weights, 0.5, 0.8, "warn")
''
>>> print(unreachable(weights, 0.5, 0.8, "block"))
block 0.8 cannot be reached: at most 0.6409 = 1 - (1 - 0.35 x 1) x (1 - 0.35 x 1) x (1 - 0.15 x 1)
>>> print(unreachable(weights, 0.5, 0.6, "block"))
block 0.6 cannot be reached by day: at most 0.5775 = 1 - (1 - 0.35 x 1) x (1 - 0.35 x 1)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

DIGITS: Final = 9
"""Digits of the risk after the point: 1 - (1 - 0.1) is to reach a threshold of 0.1."""

SIGNALS: Final = ("novelty", "burst", "frequency", "off_hours")
_CASES: Final = (
    {"novelty": 1.0, "burst": 1.0, "frequency": 0.0, "off_hours": 1.0},  # A tool never used.
    {"novelty": 0.5, "burst": 1.0, "frequency": 0.6, "off_hours": 1.0},  # A known, rare one.
)
"""The highest scores that go together."""


def highest_risk(
    weights: Mapping[str, float], able: Collection[str] = SIGNALS
) -> tuple[float, str]:
    """The highest risk that the signals in `able` add up to, and the sum as text."""
    return max((_sum(weights, able, scores) for scores in _CASES), key=lambda case: case[0])


def unreachable(
    weights: Mapping[str, float],
    warn: float,
    block: float,
    action: str,
    *,
    able: Collection[str] = SIGNALS,
    always_night: bool = False,
) -> str:
    """Why a threshold of `risk` can never be reached, or not by day; "" when each can.

    `able`: the signals that are on and can fire at all. `always_night`: off-hours are all day.
    """
    cases = [("", able)]
    if "off_hours" in able and not always_night:
        cases.append((" by day", [name for name in able if name != "off_hours"]))
    for name, threshold in (("warn", warn), ("block", block)):
        if name == "block" and action != "block":
            continue
        for when, signals in cases:
            highest, shown = highest_risk(weights, signals)
            if highest < threshold:
                most = f"at most {highest:.4g} = {shown}"
                return f"{name} {threshold:g} cannot be reached{when}: {most}"
    return ""


def _sum(
    weights: Mapping[str, float], able: Collection[str], scores: Mapping[str, float]
) -> tuple[float, str]:
    """The risk of one case, and the sum as text."""
    parts = [(weights[name], scores[name]) for name in SIGNALS if name in able]
    parts = [(weight, score) for weight, score in parts if weight * score > 0]
    calm = math.prod(1.0 - weight * score for weight, score in parts)
    shown = " x ".join(f"(1 - {weight:g} x {score:g})" for weight, score in parts)
    return _rounded(1.0 - calm), f"1 - {shown}" if shown else "0, for no signal counts"


def _rounded(risk: float) -> float:
    """As the kernel rounds: a half goes up."""
    scale = 10.0**DIGITS
    return math.floor(risk * scale + 0.5) / scale
