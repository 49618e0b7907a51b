"""The detector `unknown_connection` by itself."""

from __future__ import annotations

import random
from typing import Any

import pytest

from otel_anomaly.config import UnknownConnectionConfig
from otel_anomaly.detectors import unknown_connection
from otel_anomaly.detectors.finding import ALLOW, BLOCK, JUDGED, NO_ARGUMENTS, OFF, WARN
from otel_anomaly.otlp.content import ACCOUNT, HOST, LISTED, MAIL, OUTSIDE, PATH, PUBLIC
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, said, spoilt_sign
from tests.sizes import scaled

ALLOWED = {"allow": ["api.example.com"]}


def look(config: dict[str, Any], **fields: Any) -> Said:
    """What is said of one call."""
    sign = spoilt_sign()
    plan = unknown_connection.make_plan(UnknownConnectionConfig.model_validate(config))[0]
    unknown_connection.score(plan, call_of(**fields), sign)
    return said(sign)


@pytest.mark.parametrize(
    ("to", "observed"),
    [
        ([], 0),
        ([(1, HOST | LISTED)], 0),
        ([(1, HOST)], 1),
        ([(1, HOST | PUBLIC | OUTSIDE)], 1),
        ([(1, HOST | LISTED), (2, HOST)], 1),
        ([(1, MAIL | OUTSIDE), (2, PATH), (3, ACCOUNT)], 0),
        ([(number, HOST) for number in range(1, 9)], 8),
    ],
)
def test_hosts_that_are_not_listed(to: list[tuple[int, int]], observed: int) -> None:
    """
    Scenario: calls that name nothing, listed hosts, others, both, and what is no host.
    Guarantees: blocked with score 1 if and only if a host is not listed.
    """
    sign = look(ALLOWED, to=to)
    assert (sign["observed"], sign["skipped"]) == (observed, JUDGED)
    assert (sign["action"], sign["score"]) == ((BLOCK, 1.0) if observed else (ALLOW, 0.0))
    assert sign["ratio"] == observed


def test_what_cannot_be_judged_is_told() -> None:
    """
    Scenario: no list, the detector off, no arguments; and another action.
    Guarantees: an empty list is off; each reason is told; the action is the configured one.
    """
    strange = [(1, HOST)]
    assert look({}, to=strange)["skipped"] == OFF
    assert look({**ALLOWED, "enabled": False}, to=strange)["skipped"] == OFF
    bare = look(ALLOWED, has_arguments=0)
    assert (bare["skipped"], bare["action"], bare["score"]) == (NO_ARGUMENTS, ALLOW, 0)
    assert look({**ALLOWED, "action": "warn"}, to=strange)["action"] == WARN


@pytest.mark.parametrize("seed", range(scaled(10)))
def test_kernel_equals_twin(seed: int) -> None:
    """
    Scenario: calls with any destinations.
    Guarantees: every number is that of the twin.
    """
    pick = random.Random(seed)
    for _ in range(scaled(200)):
        config = {**ALLOWED, "action": pick.choice(("warn", "pause", "block"))}
        to = [(pick.getrandbits(60), pick.getrandbits(7)) for _ in range(pick.randint(0, 8))]
        fields = {"to": to, "has_arguments": pick.random() < 0.9}
        expected = naive.unknown_connection(
            UnknownConnectionConfig.model_validate(config), call_of(**fields)
        )
        assert look(config, **fields) == vars(expected)
