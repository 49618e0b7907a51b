"""Agents with a past: what acceptance, evasion and false-alarm tests start from.

Times are seconds since 1970. NOON is a Monday in September 2026, in nobody's off-hours.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from otel_anomaly.scoring import DETECTORS
from tests.rig import Calls, Rig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from tests.rig import Verdict

NOON = 1_789_992_000
HOUR, DAY = 3600, 86_400
HOME = "https://api.example.com/v1/items"
TOOLS = ("db_query", "read_page", "list_items")


def text(**arguments: object) -> str:
    """Arguments as an instrumentation writes them."""
    return json.dumps(arguments)


def only(*names: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A `detectors` section in which these alone are on, with these keys."""
    given = {name: {"enabled": name in names} for name in DETECTORS}
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return given


def rig_of(detectors: Mapping[str, Any] | None = None, **sections: Any) -> Rig:
    """A service with this `detectors` section; everything else as it comes."""
    return Rig(detectors=detectors or {}, **sections)


def calm(
    calls: Calls, count: int = 60, start_s: float = NOON, step_s: float = 70, **who: Any
) -> list[Span]:
    """A calm past of three tools, one call a step: at defaults the agent is warm after it."""

    def call(i: int) -> Span:
        usual = {
            "tool": TOOLS[i % 3],
            "arguments": text(url=HOME, page=i),
            "session": f"s{i // 20}",
        }
        return calls.at(start_s + i * step_s, **{**usual, **who})

    return [call(i) for i in range(count)]


WARM_S = NOON + 60 * 70 + 120
"""A moment after the calm past, with nothing of it in the last minute."""


def warm_rig(
    detectors: Mapping[str, Any] | None = None, *, count: int = 60, **sections: Any
) -> tuple[Rig, Calls]:
    """A service that knows agent `a`; the past raised no alarm."""
    rig, calls = rig_of(detectors, **sections), Calls()
    verdicts = rig.send(calm(calls, count))
    assert {verdict.action for verdict in verdicts} == {"allow"}
    return rig, calls


def one(rig: Rig, span: Span, **resource: Any) -> Verdict:
    """The verdict on a single call."""
    (verdict,) = rig.send([span], **resource)
    return verdict


def signals(verdict: Verdict) -> dict[str, float]:
    """Each detector's own score, where it is not 0."""
    return dict(verdict.signals)


def fork(rig: Rig) -> Rig:
    """The same service once more, to ask what would be without it being so."""
    twin = copy.copy(rig)
    twin.processor = copy.copy(rig.processor)
    twin.processor.state = copy.deepcopy(rig.state)
    return twin


def the_agent(rig: Rig) -> np.void:
    """The record of the only agent there is."""
    (row,) = (row for row in rig.state.agents.rows if row["key"] != 0)
    record: np.void = row
    return record


def actions(verdicts: Sequence[Verdict]) -> set[str]:
    """Which actions there were."""
    return {verdict.action for verdict in verdicts}
