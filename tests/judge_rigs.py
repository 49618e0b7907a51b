"""What the tests of the whole judge share: settings that meet everything, and the comparison of
its state with that of the slow twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otel_anomaly.entities.identity import (
    NAMES_OF_KINDS,
    OF_AGENT,
    OF_ANYONE,
    OF_TENANT,
    scoped_key,
)
from otel_anomaly.entities.table import find
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.otlp.hashing import hash_text, hash_two
from tests.naive_detectors_a import TOOLS
from tests.naive_identity import number
from tests.rig import SEED

if TYPE_CHECKING:
    from otel_anomaly.entities.table import Table
    from tests.fleet_traffic import Delivery
    from tests.naive_identity import Key
    from tests.naive_judge import NaiveJudge
    from tests.naive_scoring import Entity
    from tests.rig import Rig

KEEN: dict[str, Any] = {
    "rate": {"window": "10s", "warn": 6, "block": 12},
    "shift": {
        "min_calls_second": 3,
        "min_calls_minute": 9,
        "min_buckets": 3,
        "min_samples": 5,
        "ceiling": 60,
    },
    "alerts": {"hold": "5s"},
    "identity": {"owner": ["owner.id"]},
    "detectors": {
        "learning": {"samples": 8, "time": "20s"},
        "burst": {"threshold": 4, "window": "20s"},
        "frequency": {"min_calls": 10, "share": 0.2},
        "off_hours": {"start": 14, "end": 18},
        "risk": {"warn": 0.3, "block": 0.6, "action": "block"},
        "loop": {"threshold": 6, "repeat": 3, "window": "60s"},
        "unknown_connection": {"allow": ["*.good.example"], "action": "pause"},
        "credential_leak": {"threshold": 2, "window": "60s"},
        "data_exfiltration": {"inside": ["good.example"]},
    },
    "policy": {
        "polling_tools": ["poll_*"],
        "batch_tools": ["*_BATCH"],
        "overrides": [
            {
                "agent": "cod?r",
                "detectors": {"rate": {"warn": 3, "block": 5}, "burst": {"threshold": 6}},
            },
            {
                "tool": ["search", "ask*"],
                "tenant": "acme",
                "detectors": {
                    "loop": {"enabled": False},
                    "child_process": {"mode": "always"},
                    "learning": {"samples": 3},
                    "rate_shift": {"k": 1.0, "min_calls_second": 2, "min_samples": 3},
                },
            },
            {
                "tool": "read_*",
                "detectors": {
                    "rate_shift": {"enabled": False},
                    "novelty": {"enabled": False},
                    "risk": {"enabled": False},
                },
            },
        ],
    },
}
"""Limits so low that a short stream meets all of them, and overrides by each kind of name."""
OBSERVING: dict[str, Any] = {
    "rate": {"scope": "agent", "warn": 0, "block": 9},
    "shift": {"min_calls_second": 4, "min_calls_minute": 9, "min_samples": 3, "min_buckets": 3},
    "limits": {"session_idle": "60s", "session_keep": "0s", "agent_idle": "1h"},
    "alerts": {"clear": 0.3, "hold": "90s"},
    "policy": {"mode": "observe"},
    "detectors": {
        "learning": {"samples": 3, "time": "5s"},
        "burst": {"threshold": 3, "window": "5s"},
        "frequency": {"min_calls": 4, "share": 0.3},
        "off_hours": {"start": 9, "end": 16, "timezone": "America/New_York"},
        "loop": {"threshold": 4, "repeat": 2, "window": "600s", "action": "block"},
        "unknown_connection": {"allow": ["10.0.0.0/8"]},
        "credential_leak": {"threshold": 1, "action": "pause"},
        "child_process": {"tools": ["bash", "search"], "arguments": ["command", "query"]},
    },
}
"""Other scopes, windows and actions; nothing above warn is written."""


def feed(rig: Rig, twin: NaiveJudge, delivery: Delivery, *, replayed: bool) -> None:
    """Have both judge a request, and compare all that they say of it."""
    received_ns, signal, body = delivery
    arrival_ns = 0 if replayed else received_ns
    rig.told.clear()
    rig.callers.clear()
    twin.callers.clear()
    assert rig.offer(body, arrival_ns, signal).outcome is Outcome.ACCEPTED
    assert rig.processor.healthy
    told = twin.judge(body, arrival_ns, logs=signal is Signal.LOGS)
    assert rig.told == told
    judged = [call is not None for call in told]
    for callers in (rig.callers, twin.callers):
        callers[:] = [who for who, is_told in zip(callers, judged, strict=True) if is_told]
    assert rig.callers == twin.callers
    if any(judged):
        for detector, sign in rig.signs().items():
            said = twin.signs[detector]
            assert sign == {name: getattr(said, name) for name in sign}, detector


def key_of(key: Key) -> int:
    """The number that the kernels have for an entity."""
    kind, *parts = key
    number_of_kind = np.int64(NAMES_OF_KINDS.index(kind))
    tenant = number(parts[0]) if len(parts) > 1 else 0
    value = _value(kind, parts)
    return int(scoped_key(number_of_kind, np.int64(tenant), np.int64(value), SEED))


def _value(kind: str, parts: list[Any]) -> int:
    """The last part of a key as a number."""
    last = parts[-1]
    if kind == "service":
        space, name = last
        return int(hash_two(hash_text(space, SEED), number(name), SEED)) if space else number(name)
    if kind == "trace":
        high, low = np.frombuffer(last, np.int64).tolist()
        return int(hash_two(high, low, SEED))
    if kind in {NAMES_OF_KINDS[OF_TENANT], NAMES_OF_KINDS[OF_ANYONE]}:
        # What stands in for a session is kept apart by agent.
        tenant = parts[0] if len(parts) > 1 else None
        return key_of((NAMES_OF_KINDS[OF_AGENT], tenant, last)) if last else 0
    return number(last)


def check_state(rig: Rig, twin: NaiveJudge) -> None:
    """What every agent, service and session has learned is what the twin has."""
    state = rig.state
    for table, name in ((state.agents, "agent"), (state.services, "service")):
        assert int(table.head[0]["in_use"]) == len(twin.tables[name])
        for key, entity in twin.tables[name].items():
            check_past(_row(table, key)["past"], entity)
    for key, entity in twin.tables["agent"].items():
        row = _row(state.agents, key)
        assert row["shift"]["samples"] == entity.shift.samples
        assert row["burst"]["ring"]["total"] == entity.burst.window()
        inside = range(entity.leak.head - 11, entity.leak.head + 1)
        assert row["leak"]["counts"].sum() == sum(entity.leak.counts[n] for n in inside)
    assert int(state.sessions.head[0]["in_use"]) == len(twin.tables["session"])
    for key, entity in twin.tables["session"].items():
        row, newest = _row(state.sessions, key), entity.rate.newest
        window = range(newest - entity.rate.config.window // 10**9 + 1, newest + 1)
        assert row["rate"]["total"] == sum(entity.rate.counts[second] for second in window)
        loop = entity.loop
        counted = 0 if loop.head is None else loop.inside(loop.calls)
        assert row["loop"]["calls"].sum() == counted


def _row(table: Table, key: Key) -> Any:
    row = _at(table, key_of(key))
    assert row is not None, key
    return row


def _at(table: Table, key: int) -> Any:
    """The record of a key; None when there is none."""
    place = find(table, np.int64(key))
    return table.rows[place] if place else None


def entity_row(table: Table, kind: Any, tenant: str | None, name: str) -> Any:
    """The record of an agent or a service; None when there is none."""
    return _at(table, scoped_key(kind, np.int64(number(tenant)), np.int64(number(name)), SEED))


def check_past(past: np.void, entity: Entity) -> None:
    """Calls, age and tools of a past."""
    twin = entity.past
    assert past["calls"] == twin.calls
    assert past["born_ns"] == (twin.born_ns or 0)
    assert past["total"] == twin.total()
    assert past["tools"] == len(twin.names[TOOLS])
    uses = np.bitwise_and(past["entry"], 0xFFFF)
    assert np.count_nonzero(uses) == sum(len(names) for names in twin.names)
    assert uses.sum() == sum(count for names in twin.names for count, _ in names.values())
