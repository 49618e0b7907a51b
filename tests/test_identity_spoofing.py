"""The detector `identity_spoofing` by itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from otel_anomaly.config import IdentitySpoofingConfig
from otel_anomaly.detectors import identity_spoofing
from otel_anomaly.detectors.finding import ALLOW, BLOCK, JUDGED, NOT_TOLD, OFF, WARN
from tests import naive_detectors_b as naive
from tests.call_rigs import Said, call_of, said, spoilt_sign


def look(config: dict[str, Any], agent: int, owner: int, **fields: Any) -> Said:
    """What is said of one call."""
    sign = spoilt_sign()
    plan = identity_spoofing.make_plan(IdentitySpoofingConfig.model_validate(config))[0]
    identity_spoofing.score(plan, call_of(agent=agent, owner=owner, **fields), sign)
    return said(sign)


@pytest.mark.parametrize(
    ("agent", "owner", "action", "skipped"),
    [(7, 8, WARN, JUDGED), (7, 7, ALLOW, JUDGED), (7, 0, ALLOW, NOT_TOLD), (0, 7, ALLOW, NOT_TOLD)],
)
def test_agent_and_owner_differ(agent: int, owner: int, action: int, skipped: int) -> None:
    """
    Scenario: agent and owner differ, are equal, one is not told.
    Guarantees: only the first is warned of, with 0.7; the last are skipped; arguments make no
    difference.
    """
    for has_arguments in (0, 1):
        sign = look({}, agent, owner, has_arguments=has_arguments)
        assert (sign["action"], sign["skipped"]) == (action, skipped)
        assert (sign["score"], sign["ratio"]) == ((0.7, 1) if action else (0, 0))


def test_off_and_other_actions() -> None:
    """
    Scenario: the detector off; action block.
    Guarantees: silent with its reason; the configured action.
    """
    assert look({"enabled": False}, 7, 8)["skipped"] == OFF
    assert look({"action": "block"}, 7, 8)["action"] == BLOCK


def test_kernel_equals_twin() -> None:
    """
    Scenario: all pairs of a few names, 0 and the ends of the range among them.
    Guarantees: every number is that of the twin.
    """
    names = (0, 1, -1, (1 << 63) - 1, -(1 << 63))
    for agent, owner in itertools.product(names, names):
        expected = naive.identity_spoofing(
            IdentitySpoofingConfig(), call_of(agent=agent, owner=owner)
        )
        assert look({}, agent, owner) == vars(expected)
