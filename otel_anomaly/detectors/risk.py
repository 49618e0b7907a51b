"""`risk`: what four weak signals say together: novelty, burst, frequency and off_hours.

Sees: what no single one of them is sure of: a new tool, at night, in a burst.
Blind to: what all four are blind to. While `novelty` is cold, burst and off_hours alone speak.

    risk = 1 - product over the four of (1 - weight * score)        noisy-or

Each signal is taken as an independent cause that suffices with probability weight * score. So none
lowers another, two of 0.6 and 0.8 make 0.92 where a sum would need a cap, and a signal that is off
or cannot judge (score 0) changes nothing. The result is rounded to nine digits: 1 - (1 - 0.1) is
to reach a threshold of 0.1.

The action is warn from `warn` on, and block from `block` on if `action` is block. `config.reach`
proves at start that both can be reached: with weights that are summed, ContextForge's 0.35, 0.35
and 0.15, the highest possible risk by day was 0.79, and `block` 0.8.

Source: Pearl, J. (1988), Probabilistic Reasoning in Intelligent Systems, section 4.3.2 (noisy-or);
the four signals are ContextForge's (PR 3846).

>>> from otel_anomaly.detectors.call import CALL
>>> plan, signs = make_plan(RiskConfig())[0], np.zeros(4, SIGN)
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> for signs["score"] in ((0.5, 0, 0, 0), (1, 0, 0, 0), (0, 0.625, 0, 0), (1, 1, 0, 1)):
...     score(plan, signs, 0, 1, 2, 3, call, sign)
...     print(float(sign["score"]), ACTIONS[sign["action"]])
0.3 allow
0.6 warn
0.5 warn
0.932 warn
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import RiskConfig
from otel_anomaly.config.reach import DIGITS
from otel_anomaly.detectors.finding import ACTIONS, BLOCK, COLD, JUDGED, SIGN, WARN
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Array, Int, Record, inlined

__all__ = ["ACTIONS", "CLAUSES", "NAME", "PLAN", "SIGN", "make_plan", "score"]

NAME: Final = "risk"
CLAUSES: Final = ("weak signs add up to {observed} on a scale to 1, limit {limit}",)
_SCALE: Final = 10.0**DIGITS

PLAN = np.dtype(
    [
        ("enabled", "i8"),
        ("novelty", "f8"),
        ("burst", "f8"),
        ("frequency", "f8"),
        ("off_hours", "f8"),
        ("warn", "f8"),
        ("block", "f8"),
        ("blocks", "i8"),  # Whether the action is block from `block` on.
    ]
)


def make_plan(config: RiskConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["warn"], plan["block"] = config.enabled, config.warn, config.block
    plan["blocks"] = config.action == "block"
    for name in ("novelty", "burst", "frequency", "off_hours"):
        plan[name] = getattr(config.weights, name)
    return plan


@inlined
def score(
    plan: Record,
    signs: Array,
    novelty: Int,
    burst: Int,
    frequency: Int,
    off_hours: Int,
    call: Record,  # noqa: ARG001 -- every detector is called alike.
    sign: Record,
) -> None:
    """Join the signs of the four, which lie in `signs` at the given places."""
    silence(sign, JUDGED)
    calm = (
        (1.0 - plan["novelty"] * signs[novelty]["score"])
        * (1.0 - plan["burst"] * signs[burst]["score"])
        * (1.0 - plan["frequency"] * signs[frequency]["score"])
        * (1.0 - plan["off_hours"] * signs[off_hours]["score"])
    )
    risk = np.floor((1.0 - calm) * _SCALE + 0.5) / _SCALE
    if risk == 0.0 and signs[novelty]["skipped"] == COLD:
        sign["skipped"] = COLD
    sign["score"] = sign["observed"] = risk
    sign["limit"], sign["ratio"] = plan["warn"], risk / plan["warn"]
    if risk >= plan["warn"]:
        sign["action"] = WARN
    if plan["blocks"] and risk >= plan["block"]:
        sign["action"], sign["limit"] = BLOCK, plan["block"]
