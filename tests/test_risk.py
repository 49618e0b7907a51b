"""The detector `risk` by itself, and the proof that its thresholds can be reached."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from otel_anomaly.config import RiskConfig
from otel_anomaly.config.reach import SIGNALS, highest_risk, unreachable
from otel_anomaly.detectors import risk
from otel_anomaly.detectors.finding import ALLOW, BLOCK, COLD, JUDGED, LATE, SIGN, WARN
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import NOON_NS, blank_sign, fields_of, record_of
from tests.sizes import scaled

DEFAULTS = RiskConfig().weights.model_dump()
PLACES = (4, 1, 3, 2)
"""Where the four lie among the signs: not in the order of their names."""


def join(config: RiskConfig, scores: dict[str, float], *, skipped: int = JUDGED) -> dict[str, Any]:
    """What `risk` says of the four scores. `skipped` is novelty's."""
    signs, sign = np.zeros(6, SIGN), blank_sign()
    signs["score"] = 0.77  # Of the others: they do not count.
    for name, place in zip(SIGNALS, PLACES, strict=True):
        signs[place]["score"] = scores.get(name, 0.0)
    signs[PLACES[0]]["skipped"] = skipped
    plan = risk.make_plan(config)[0]
    risk.score(plan, signs, *PLACES, record_of(Told(NOON_NS)), sign)
    return fields_of(sign)


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_risk_equals_the_formula(seed: int) -> None:
    """
    Scenario: random scores, weights, thresholds and actions.
    Guarantees: every field is that of the twin.
    """
    pick = random.Random(seed)
    for _ in range(30):
        weights = {name: round(pick.random(), 2) for name in SIGNALS}
        warn, block = sorted(pick.sample([n / 20 for n in range(1, 21)], 2))
        thresholds = {"warn": warn, "block": block, "action": pick.choice(("warn", "block"))}
        try:
            config = RiskConfig.model_validate({"weights": weights, **thresholds})
        except ValueError:
            continue  # Refused for thresholds that cannot be reached.
        scores = {name: pick.choice((0.0, 0.5, 1.0, pick.random())) for name in SIGNALS}
        cold = pick.random() < 0.5
        expected = naive.risk(config, scores, cold=cold).fields()
        assert join(config, scores, skipped=COLD if cold else JUDGED) == expected


@pytest.mark.parametrize(
    ("scores", "value", "action"),
    [
        ({}, 0.0, ALLOW),  # I1, C3 by day.
        ({"off_hours": 1.0}, 0.15, ALLOW),  # I1, C3 at night.
        ({"novelty": 1.0}, 0.6, WARN),  # I2, C4: defect 14, a new tool alone warns by day.
        ({"novelty": 1.0, "off_hours": 1.0}, 0.66, WARN),
        ({"novelty": 0.5}, 0.3, ALLOW),  # C5.
        ({"burst": 0.625}, 0.5, WARN),  # I3: defect 15, 25 calls in 30 s warn by day.
        ({"burst": 0.2375}, 0.19, ALLOW),  # 19 calls in a minute.
        ({"frequency": 0.6}, 0.09, ALLOW),
        ({"novelty": 1.0, "burst": 1.0}, 0.92, WARN),  # Defect 13: beyond `block` by day.
    ],
)
def test_the_defaults_do_what_is_promised(
    scores: dict[str, float], value: float, action: int
) -> None:
    """
    Scenario: the cases of the acceptance list, as the four signals score them.
    Guarantees: the risk and the action.
    """
    sign = join(RiskConfig(), scores)
    assert (sign["score"], sign["observed"], sign["action"]) == (value, value, action)
    assert (sign["limit"], sign["ratio"]) == (0.5, value / 0.5)


def test_block_only_when_asked_for() -> None:
    """
    Scenario: a new tool with block 0.3 and warn 0.1, once with action block (seed C7), once with
    warn (seed C8); then one below block.
    Guarantees: block against the block threshold; warn; warn against the warn threshold.
    """
    ladder = {"warn": 0.1, "block": 0.3}
    blocks = RiskConfig.model_validate({**ladder, "action": "block"})
    warns = RiskConfig.model_validate({**ladder, "action": "warn"})
    sign = join(blocks, {"novelty": 1.0})
    assert (sign["action"], sign["limit"]) == (BLOCK, 0.3)
    assert join(warns, {"novelty": 1.0})["action"] == WARN
    sign = join(blocks, {"off_hours": 1.0})
    assert (sign["action"], sign["limit"]) == (WARN, 0.1)


def test_a_weight_reaches_its_own_threshold() -> None:
    """
    Scenario: every weight of two digits, with `warn` just as high (in floats 1 - (1 - 0.1) < 0.1).
    Guarantees: it warns, and the start check thinks so too.
    """
    for weight in [n / 100 for n in range(1, 99)]:
        weights = dict.fromkeys(SIGNALS, 0.0) | {"novelty": weight}
        config = RiskConfig.model_construct(
            weights=RiskConfig().weights.model_copy(update=weights), warn=weight, block=0.99
        )
        assert join(config, {"novelty": 1.0})["action"] == WARN
        assert unreachable(weights, weight, 0.99, "warn") == ""


def test_cold_is_said_only_when_nothing_else_speaks() -> None:
    """
    Scenario: novelty is cold, by day and at night; novelty came too late.
    Guarantees: learning; judged by the rest; judged.
    """
    sign = join(RiskConfig(), {}, skipped=COLD)
    assert (sign["skipped"], sign["score"]) == (COLD, 0.0)
    sign = join(RiskConfig(), {"off_hours": 1.0}, skipped=COLD)
    assert (sign["skipped"], sign["score"]) == (JUDGED, 0.15)
    assert join(RiskConfig(), {}, skipped=LATE)["skipped"] == JUDGED


def test_no_signal_lowers_another() -> None:
    """
    Scenario: all corners and some of the inside of the four scores.
    Guarantees: the risk lies in 0..1, grows with each score, and never passes the stated maximum.
    """
    steps = (0.0, 0.25, 0.5, 0.6, 1.0)
    for scores in itertools.product(steps, repeat=4):
        named = dict(zip(SIGNALS, scores, strict=True))
        value = join(RiskConfig(), named)["score"]
        assert 0.0 <= value <= 1.0
        for name in SIGNALS:
            assert join(RiskConfig(), named | {name: 1.0})["score"] >= value
        if named["novelty"] < 1.0 and named["novelty"] <= 0.5 and named["frequency"] <= 0.6:
            assert value <= highest_risk(DEFAULTS)[0]


@pytest.mark.parametrize("seed", range(scaled(20)))
def test_the_highest_risk_is_what_risk_says(seed: int) -> None:
    """
    Scenario: random weights; the four at the highest scores that go together.
    Guarantees: the start check's maximum is to the last digit what the kernel makes of it.
    """
    pick = random.Random(seed)
    weights = {name: round(pick.random(), 3) for name in SIGNALS}
    config = RiskConfig.model_construct(
        weights=RiskConfig().weights.model_copy(update=weights), warn=0.5, block=1.0
    )
    new = {"novelty": 1.0, "burst": 1.0, "off_hours": 1.0}
    rare = {"novelty": 0.5, "burst": 1.0, "frequency": 0.6, "off_hours": 1.0}
    highest = max(join(config, scores)["score"] for scores in (new, rare))
    assert highest_risk(weights)[0] == highest


def test_a_threshold_out_of_reach_is_refused_with_its_sum() -> None:
    """
    Scenario: thresholds above what the weights add up to: always, by day, without a signal.
    Guarantees: the text names the threshold and shows the sum; what can be reached passes.
    """
    assert unreachable(DEFAULTS, 0.5, 0.8, "block") == ""
    assert unreachable(DEFAULTS, 0.5, 0.99, "warn") == "", "block is not in effect"
    assert unreachable(DEFAULTS, 0.5, 0.99, "block") == (
        "block 0.99 cannot be reached: at most 0.932 = "
        "1 - (1 - 0.6 x 1) x (1 - 0.8 x 1) x (1 - 0.15 x 1)"
    )
    by_day = (
        "block 0.925 cannot be reached by day: at most 0.92 = 1 - (1 - 0.6 x 1) x (1 - 0.8 x 1)"
    )
    assert unreachable(DEFAULTS, 0.5, 0.925, "block") == by_day
    assert unreachable(DEFAULTS, 0.5, 0.925, "block", always_night=True) == ""
    never = ("novelty", "burst", "frequency")
    assert "by day" not in unreachable(DEFAULTS, 0.5, 0.925, "block", able=never)
    assert unreachable(DEFAULTS, 0.5, 0.8, "warn", able=("frequency",)) == (
        "warn 0.5 cannot be reached: at most 0.09 = 1 - (1 - 0.15 x 0.6)"
    )
    assert "0, for no signal counts" in unreachable(DEFAULTS, 0.5, 0.8, "warn", able=())


def test_a_new_tool_is_not_rare() -> None:
    """
    Scenario: weights by which a rare tool called in a new way is worse than a new one.
    Guarantees: the maximum is of one case or the other, never of both at once.
    """
    weights = {"novelty": 0.4, "burst": 0.0, "frequency": 1.0, "off_hours": 0.0}
    assert highest_risk(weights) == (0.68, "1 - (1 - 0.4 x 0.5) x (1 - 1 x 0.6)")
