"""The detectors' limits and the overrides: what can never happen is refused, with the sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from otel_anomaly.config import (
    DAY_NS,
    OVERRIDES_MAX,
    PATTERNS_MAX,
    SECOND_NS,
    Config,
    DetectorsConfig,
    IdentityConfig,
    UnknownConnectionConfig,
    effective_detectors,
    load_config,
)
from otel_anomaly.config.detectors import COUNT_MAX, TOTAL_MAX
from otel_anomaly.config.problems import section_of
from otel_anomaly.config.reach import highest_risk
from otel_anomaly.detectors import past, ring
from otel_anomaly.otlp.dialects import compile_keys
from otel_anomaly.otlp.hosts import compile_hosts
from tests.config_files import complaint, written

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# `--set` of the detectors section -> what is said of it.
REFUSED = {
    "risk.block=0.95": (
        "risk.block 0.95 cannot be reached: at most 0.932"
        " = 1 - (1 - 0.6 x 1) x (1 - 0.8 x 1) x (1 - 0.15 x 1)"
    ),
    "risk={warn: 0.93, block: 0.94}": (
        "detectors.risk.warn: risk.warn 0.93 cannot be reached by day: at most 0.92"
        " = 1 - (1 - 0.6 x 1) x (1 - 0.8 x 1)"
    ),
    "risk.weights={novelty: 0, burst: 0, frequency: 0, off_hours: 0}": (
        "risk.warn 0.5 cannot be reached: at most 0 = 0, for no signal counts"
    ),
    "risk.warn=0.8": "warn (0.8) must be below block (0.8)",
    "risk.block=1.1": "must be at most 1 (got 1.1)",
    "learning.forget_after=23h": "must be at least 24h (got '23h')",
    "learning.forget_after=36h": "must be whole days",
    "learning.time=28d": "forget_after (28d) must be more than time (28d)",
    "rate.window=61s": "must be whole seconds from 1s to 60s",
    "burst.window=61s": "must be whole seconds from 1s to 60s",
    "burst.threshold=1": "must be at least 2 (got 1)",
    "burst.threshold=32768": (
        "its full score cannot be reached: a counter holds 65535 calls, 2 x 32768 = 65536"
    ),
    "frequency.min_calls=8193": (
        "cannot be relied on: of an agent's past the last 8192 to 16384 calls count,"
        " 8193 are asked for"
    ),
    "frequency.share=0.0001": (
        "cannot be reached: the smallest share is one call of 8192 = 0.000122"
    ),
    "off_hours.start=25": "must be at most 24 (got 25)",
    "off_hours.timezone=Mars/Base": (
        "'Mars/Base' is no time zone; a name like Europe/Berlin is asked for (got 'Mars/Base')"
    ),
    "loop.threshold=60001": "must be at most 60000 (got 60001)",
    "loop.repeat=1": "must be at least 2 (got 1)",
    "loop.repeat=51": "repeat (51) must be at most threshold (50)",
    "loop.window=9s": "must be whole seconds from 10s to 1h",
    "loop.window=10500ms": "must be whole seconds from 10s to 1h",
    "loop.volatile=[a, a]": "must name each once (got a list)",
    "loop.volatile=['']": (
        "detectors.loop.volatile[0]: must be a name of 1 to 128 printable bytes (got '')"
    ),
    f"loop.volatile={[f'n{i}' for i in range(65)]}": ("must have at most 64 items (got a list)"),
    "credential_leak.window=13s": "must be 12s to 24h, a multiple of 12s",
    "credential_leak.window=25h": "must be 12s to 24h, a multiple of 12s",
    "credential_leak.threshold=0": "must be at least 1 (got 0)",
    'child_process.tools=["a\\x1b"]': (
        "detectors.child_process.tools[0]: must be a pattern of 1 to 64 printable bytes"
    ),
    "child_process.action=allow": "must be 'warn', 'pause' or 'block' (got 'allow')",
    "data_exfiltration.inside=[a b]": (
        "detectors.data_exfiltration.inside[0]: must be a host, *.domain, .domain,"
        " an address or a network (got 'a b')"
    ),
}

GOOD_HOSTS = {
    "S3://Ours.data-1": "s3://ours.data-1",
    "gs://b": "gs://b",
    "api.Example.com": "api.example.com",
    "example.com.": "example.com",
    "*.example.com": "*.example.com",
    ".example.com": ".example.com",
    "example.com:8443": "example.com:8443",
    "localhost": "localhost",
    "_sip.xn--bcher-kva.example": "_sip.xn--bcher-kva.example",
    "10.0.0.1": "10.0.0.1",
    "10.0.0.1:443": "10.0.0.1:443",
    "10.0.0.0/8": "10.0.0.0/8",
    "::1": "::1",
    "[::1]": "[::1]",
    "[2001:DB8::1]:443": "[2001:db8::1]:443",
    "2001:db8::/32": "2001:db8::/32",
    "::ffff:10.0.0.1": "::ffff:10.0.0.1",
}
BAD_HOSTS = (
    "",
    "*",
    ".",
    "a..b",
    "a.*.b",
    "-a.b",
    "http://a.b/",
    "a.b/c",
    "user@a.b",
    "a.b:0",
    "a.b:65536",
    "a.b:https",
    "10.0.0.1/8",
    "10.0.0.256",
    "1.2.3",
    "0x7f.1",
    "2130706433",
    "[10.0.0.1]",
    "[::1",
    "::g",
    "fe80::1%eth0",
    "b\u00fccher.example",
    f"{'a' * 64}.example",
    ".".join(["abcdefgh"] * 29),
)

# Overrides -> what is said of them, after the file's name.
BAD_OVERRIDES = {
    "ladder against the base": (
        "- {agent: a, detectors: {rate: {warn: 700}}}",
        ":3: policy.overrides[0].detectors.rate.warn: warn (700) must be below block (500)",
    ),
    "the second, on its own line": (
        "- {agent: a, detectors: {}}\n  - agent: b\n    detectors:\n     loop:\n      repeat: 60",
        ":7: policy.overrides[1].detectors.loop.repeat: repeat (60) must be at most threshold",
    ),
    "no pattern in a list": (
        "- {agent: [], tool: t, detectors: {rate: {warn: 7}}}",
        ":3: policy.overrides[0].agent: must name a pattern; leave the key out where any name",
    ),
    "the same as an earlier one": (
        "- {agent: a, detectors: {rate: {warn: 7}}}\n  - {agent: A, detectors: {rate: {warn: 9}}}",
        ":4: policy.overrides[1]: never applies: policy.overrides[0] comes first and matches all",
    ),
    "narrower than an earlier one": (
        (
            "- {tool: 'r*', detectors: {rate: {warn: 7}}}\n"
            "  - {tool: [read_*, 'r?n'], agent: a, detectors: {rate: {warn: 9}}}"
        ),
        ":4: policy.overrides[1]: never applies: policy.overrides[0] comes first and matches all",
    ),
    "nothing": (
        "- {agent: a, detectors: {}}",
        ":3: policy.overrides[0]: changes nothing: these calls have the same limits without it",
    ),
    "what is so already": (
        "- {agent: a, detectors: {rate: {warn: 100}, loop: {window: 5m}}}",
        ":3: policy.overrides[0]: changes nothing: these calls have the same limits without it",
    ),
    "an exception from nothing": (
        "- {agent: a, detectors: {}}\n  - {agent: b*, detectors: {rate: {warn: 7}}}",
        ":3: policy.overrides[0]: changes nothing: these calls have the same limits without it",
    ),
    "what cannot be reached": (
        "- {agent: a, detectors: {risk: {block: 0.99}}}",
        ":3: policy.overrides[0].detectors.risk.block: risk.block 0.99 cannot be reached: at most",
    ),
    "what cannot be reached with the base's action": (
        "- {agent: a, detectors: {burst: {enabled: false}, risk: {action: block}}}",
        ":3: policy.overrides[0].detectors.risk.action: risk.block 0.8 cannot be reached: at most",
    ),
    "unknown key": (
        "- {agent: a, detectors: {rate: {wran: 7}}}",
        ":3: policy.overrides[0].detectors.rate.wran: unknown key; did you mean warn?",
    ),
    "unknown detector": (
        "- {agent: a, detectors: {rte: {warn: 7}}}",
        ":3: policy.overrides[0].detectors.rte: unknown key; did you mean rate?",
    ),
    "unknown key beside": (
        "- {agnt: a, agent: b, detectors: {}}",
        ":3: policy.overrides[0].agnt: unknown key; did you mean agent?",
    ),
    "wrong value": (
        "- {agent: a, detectors: {learning: {time: 7}}}",
        (
            ":3: policy.overrides[0].detectors.learning.time: must be a duration with its unit,"
            " like 10s, 1m30s or 24h (got 7)"
        ),
    ),
    "out of bounds": (
        "- {agent: a, detectors: {learning: {forget_after: 1h}}}",
        (
            ":3: policy.overrides[0].detectors.learning.forget_after:"
            " must be at least 24h (got '1h')"
        ),
    ),
    "wrong block": (
        "- {agent: a, detectors: {rate: 7}}",
        ":3: policy.overrides[0].detectors.rate: must be a block of keys (got 7)",
    ),
    "wrong section": (
        "- {agent: a, detectors: 7}",
        ":3: policy.overrides[0].detectors: must be a block of keys (got 7)",
    ),
    "no section": (
        "- {agent: a}",
        ":3: policy.overrides[0].detectors: is required",
    ),
    "no pattern": (
        "- {detectors: {rate: {warn: 7}}}",
        ":3: policy.overrides[0]: at least one of tenant, agent and tool must be given",
    ),
    "empty pattern": (
        "- {agent: [a, ''], detectors: {}}",
        ":3: policy.overrides[0].agent[1]: must be a pattern of 1 to 64 printable bytes (got '')",
    ),
    "pattern of another type": (
        "- {agent: 7, detectors: {}}",
        ":3: policy.overrides[0].agent: must be a list (got 7)",
    ),
    "not a block": (
        "- agent",
        ":3: policy.overrides[0]: must be a block of keys (got 'agent')",
    ),
    "a width of its own": (
        "- {agent: a, detectors: {loop: {window: 60s}}}",
        (
            ":3: policy.overrides[0].detectors.loop.window:"
            " is the same for all calls: set detectors.loop.window instead"
        ),
    ),
}


@pytest.mark.parametrize(
    ("override", "expected"), REFUSED.items(), ids=[text[:40] for text in REFUSED]
)
def test_what_can_never_be_is_refused(override: str, expected: str) -> None:
    """
    Scenario: one limit is out of order, out of its counter's reach or out of bounds.
    Guarantees: refused in one line that shows the sum, or the bound.
    """
    said = complaint(overrides=[f"detectors.{override}"])
    assert expected in said
    assert "\n" not in said


def test_bounds_are_those_of_the_counters() -> None:
    """
    Scenario: the bounds that the configuration promises are held against the detectors' arrays.
    Guarantees: they are the same, so what is accepted can be counted.
    """
    assert past.TOTAL_MAX == TOTAL_MAX
    assert ring.COUNT_MAX == COUNT_MAX
    fields = DetectorsConfig.model_fields
    windows = {name: getattr(DetectorsConfig(), name) for name in fields}
    assert windows["burst"].window <= ring.SECONDS * SECOND_NS
    assert windows["learning"].forget_after // DAY_NS < past.DAY_MAX


@given(
    weights=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
    is_on=st.lists(st.booleans(), min_size=4, max_size=4),
    thresholds=st.lists(st.floats(0.01, 1), min_size=2, max_size=2, unique=True),
    night=st.sampled_from([(22, 6), (0, 24), (7, 7)]),
    action=st.sampled_from(["warn", "block"]),
)
def test_an_accepted_risk_can_be_reached(
    weights: list[float], is_on: list[bool], thresholds: list[float], night: Any, action: Any
) -> None:
    """
    Scenario: any weights, switches, hours and thresholds in order.
    Guarantees: accepted exactly when the signals that are on add up to what is asked for, by day
    too; while `block` is not asked for, with all of them on.
    """
    names = ("novelty", "burst", "frequency", "off_hours")
    warn, block = sorted(thresholds)
    section: dict[str, Any] = {name: {"enabled": on} for name, on in zip(names, is_on, strict=True)}
    section["off_hours"] |= {"start": night[0], "end": night[1]}
    by_name = dict(zip(names, weights, strict=True))
    section["risk"] = {"weights": by_name, "warn": warn, "block": block, "action": action}
    able = [name for name in names if section[name]["enabled"]]
    if night[0] == night[1]:
        able = [name for name in able if name != "off_hours"]
    days = able if night == (0, 24) else [name for name in able if name != "off_hours"]
    most = highest_risk(by_name, days)[0]
    possible = highest_risk(by_name, names[:3])[0]
    is_fine = not able or (warn <= most and block <= (most if action == "block" else possible))
    if is_fine:
        DetectorsConfig.model_validate(section)
    else:
        with pytest.raises(ValidationError, match="cannot be reached"):
            DetectorsConfig.model_validate(section)


def test_the_largest_configuration_can_be_compiled() -> None:
    """
    Scenario: as many identity keys, placeholders and hosts as are accepted.
    Guarantees: the tables of the rooms that use them have room for all.
    """
    who = ("tenant", "agent", "session", "user", "owner")
    keys = {name: tuple(f"{name}.{i}" for i in range(48)) for name in who}
    identity = IdentityConfig(
        **keys, weak=keys["agent"], placeholders=tuple(f"p{i}" for i in range(64))
    )
    lists = tuple(getattr(identity, name) for name in who)
    options = {"prefix": "p" * 32, "seed": 1, "placeholders": identity.placeholders}
    assert compile_keys(lists, identity.weak, **options).size == 1
    allowed = UnknownConnectionConfig(allow=tuple(f"10.0.{i}.0/24" for i in range(256))).allow
    assert compile_hosts(allowed, 1).size == 1


def test_detectors_are_off_switchable_alone() -> None:
    """
    Scenario: each detector is switched off by itself, then all of them, then all but risk.
    Guarantees: each of these is a configuration: none needs another key changed.
    """
    switches = [f"detectors.{name}.enabled=false" for name in sections() if name != "learning"]
    for switch in switches:
        assert load_config([], [switch], {})
    assert load_config([], switches, {})
    assert load_config([], [switch for switch in switches if "risk" not in switch], {})


def sections() -> Iterator[str]:
    """Names in the detectors section."""
    return (name for name, field in DetectorsConfig.model_fields.items() if section_of(field))


@pytest.mark.parametrize(("text", "expected"), GOOD_HOSTS.items())
def test_hosts_that_can_be_listed(text: str, expected: str) -> None:
    """
    Scenario: hosts, suffixes, addresses and networks, with and without a port.
    Guarantees: taken, in lower case and without the dot at the end; what is taken can be compiled.
    """
    config = load_config([], [f"detectors.unknown_connection.allow=['{text}']"], {})
    assert config.detectors.unknown_connection.allow == (expected,)
    assert compile_hosts([expected], 1).size == 1


@pytest.mark.parametrize("text", BAD_HOSTS, ids=ascii)
def test_hosts_that_cannot_be_listed(text: str) -> None:
    """
    Scenario: entries that no host would ever match, or that would match too much.
    Guarantees: refused by name.
    """
    said = complaint(overrides=[f"detectors.unknown_connection.allow=['ok.example', '{text}']"])
    assert ": detectors.unknown_connection.allow[1]: " in said


@pytest.mark.parametrize(("text", "expected"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_bad_overrides_are_named(tmp_path: Path, text: str, expected: str) -> None:
    """
    Scenario: an override that is wrong by itself, or only together with the base.
    Guarantees: one line names file, line, override, key and rule.
    """
    path = tmp_path / "config.yaml"
    path.write_text(f"policy:\n  overrides:\n  {text}\n")
    said = complaint(path)
    assert said.startswith(f"{path}{expected}")
    assert "\n" not in said


def test_overrides_lie_over_the_base(tmp_path: Path) -> None:
    """
    Scenario: a base with its own limits, and overrides of nothing, of keys and of a list.
    Guarantees: what an override names is its own, everything else the base's; lists are replaced;
    a block without a value changes nothing; a pattern alone is a list of one.
    """
    path = written(
        tmp_path,
        """\
        detectors:
          learning: {time: 90m}
          rate: {warn: 5, block: 600}
          unknown_connection: {allow: [a.example]}
        policy:
          overrides:
            - {agent: [a, b], tenant: t, detectors: }
            - tool: ci_*
              detectors:
                rate: {warn: 550}
                unknown_connection: {allow: [b.example, "10.0.0.0/8"]}
                risk:
        """,
    )
    config = load_config([path], (), {})
    base, second, first = effective_detectors(config)
    assert base == second == config.detectors
    assert (first.rate.warn, first.rate.block) == (550, 600)
    assert first.unknown_connection.allow == ("b.example", "10.0.0.0/8")
    changed = {name for name in sections() if getattr(first, name) != getattr(base, name)}
    assert changed == {"rate", "unknown_connection"}
    assert config.policy.overrides[1].tool == ("ci_*",)
    assert config.policy.overrides[0].agent == ("a", "b")


def test_every_section_survives_being_merged() -> None:
    """
    Scenario: an override of nothing, over a base in which every kind of value is not its default.
    Guarantees: the section comes out as it went in: durations, lists, choices and numbers.
    """
    base = {
        "learning": {"time": "1ns"},
        "risk": {"weights": {"novelty": 1 / 3}},
        "loop": {"volatile": [], "window": "1h"},
        "child_process": {"action": "pause", "mode": "always"},
        "off_hours": {"timezone": "UTC", "start": 0, "end": 0},
    }
    overrides = [
        {"agent": "a", "tool": "t", "detectors": {}},
        {"agent": "a", "detectors": {"rate": {"warn": 7}}},
    ]
    config = Config.model_validate({"detectors": base, "policy": {"overrides": overrides}})
    assert effective_detectors(config)[:2] == [config.detectors] * 2


@pytest.mark.parametrize(
    ("detector", "key", "value"),
    [
        ("rate", "scope", "user"),
        ("rate", "window", "30s"),
        ("burst", "window", "30s"),
        ("loop", "window", "30s"),
        ("credential_leak", "window", "30m"),
    ],
)
def test_what_is_one_for_all_stays_one(detector: str, key: str, value: object) -> None:
    """
    Scenario: an override names a width that a shared counter cannot have beside its own.
    Guarantees: refused, unless it is what the base says; in the base it is fine.
    """
    section = {detector: {key: value}, "frequency": {"share": 0.02}}
    overrides = [{"agent": "a", "detectors": section}]
    with pytest.raises(ValidationError, match=f"set detectors.{detector}.{key} instead"):
        Config.model_validate({"policy": {"overrides": overrides}})
    base = {detector: {key: value}}
    Config.model_validate({"detectors": base, "policy": {"overrides": overrides}})


def test_all_overrides_are_told_of_at_once() -> None:
    """
    Scenario: two overrides are wrong in two ways each; a sound one stands between them.
    Guarantees: four lines, each with the number of its override.
    """
    bad = "{agent: a, detectors: {rate: {warn: x}, loop: {repeat: 99}}}"
    good = "{agent: a, detectors: {}}"
    said = complaint(overrides=[f"policy.overrides=[{bad}, {good}, {bad}]"]).splitlines()
    assert len(said) == 4
    for i, key in enumerate(("rate.warn", "loop.repeat")):
        assert f"policy.overrides[0].detectors.{key}: " in said[i]
        assert f"policy.overrides[2].detectors.{key}: " in said[i + 2]


def test_room_for_overrides_and_patterns_is_checked() -> None:
    """
    Scenario: as many overrides and different patterns as fit, then one more of each.
    Guarantees: what fits is taken; what does not is refused at start, not when it is used.
    """
    change = {"detectors": {"rate": {"warn": 7}}}
    fits = [{"agent": f"a{i}", **change} for i in range(OVERRIDES_MAX)]
    Config.model_validate({"policy": {"overrides": fits}})
    with pytest.raises(ValidationError, match="at most 60 items"):
        Config.model_validate({"policy": {"overrides": [*fits, fits[0]]}})
    lists = [[f"{i}-{j}" for j in range(64)] for i in range(PATTERNS_MAX // 64)]
    full = [{"tenant": globs, **change} for globs in lists]
    Config.model_validate({"policy": {"overrides": full}})
    more = [*full, {"tenant": ["*", "0-0"], **change}]
    with pytest.raises(ValidationError, match="513 different patterns of tenants in all, at most"):
        Config.model_validate({"policy": {"overrides": more}})


SOUND_OVERRIDES = {
    "an exception from a later one": [
        {"tool": "run_sql"},
        {"agent": "ci-*", "detectors": {"rate": {"warn": 9}}},
    ],
    "a wider one later": [
        {"agent": "ci-1", "detectors": {"rate": {"warn": 9}}},
        {"agent": "ci-*", "detectors": {"rate": {"warn": 8}}},
    ],
    "wider in one, narrower in another": [
        {"agent": "ci-*", "tool": "run", "detectors": {"rate": {"warn": 9}}},
        {"agent": "ci-1", "detectors": {"rate": {"warn": 8}}},
    ],
    "one of two patterns is left": [
        {"agent": "a*", "detectors": {"rate": {"warn": 9}}},
        {"agent": ["a1", "b1"], "detectors": {"rate": {"warn": 8}}},
    ],
    "a name that is not told": [
        {"agent": "?*", "detectors": {"rate": {"warn": 9}}},
        {"agent": "*", "detectors": {"rate": {"warn": 8}}},
    ],
}


@pytest.mark.parametrize("overrides", SOUND_OVERRIDES.values(), ids=SOUND_OVERRIDES)
def test_overrides_that_have_an_effect(overrides: list[dict[str, Any]]) -> None:
    """
    Scenario: an override that keeps calls at the ordinary limits which a later one would change;
    overrides that share calls, of which each has some of its own.
    Guarantees: they are taken.
    """
    listed = [{"detectors": {}, **override} for override in overrides]
    Config.model_validate({"policy": {"overrides": listed}})
