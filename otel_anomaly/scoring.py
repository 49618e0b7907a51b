"""All detectors, and the two things done with each: score a call, learn from it.

Adding a detector: its file, its line in _MODULES and its place, and a line in `score_all` (and in
`learn_*` when it remembers something).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from otel_anomaly.detectors import (
    burst,
    child_process,
    credential_leak,
    data_exfiltration,
    frequency,
    identity_spoofing,
    loop,
    new_destination,
    novelty,
    off_hours,
    past,
    rate,
    rate_shift,
    risk,
    unknown_connection,
)
from otel_anomaly.detectors.finding import COLD, LATE, NO_ENTITY, OFF, SECOND_NS
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Array, Int, Record, inlined, kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.config import DetectorsConfig

_MODULES: Final[tuple[tuple[str, Any], ...]] = (
    ("rate", rate),
    ("rate_shift", rate_shift),
    ("novelty", novelty),
    ("burst", burst),
    ("frequency", frequency),
    ("off_hours", off_hours),
    ("risk", risk),
    ("loop", loop),
    ("unknown_connection", unknown_connection),
    ("new_destination", new_destination),
    ("credential_leak", credential_leak),
    ("child_process", child_process),
    ("data_exfiltration", data_exfiltration),
    ("identity_spoofing", identity_spoofing),
)
DETECTORS: Final = tuple(name for name, _ in _MODULES)
(
    RATE,
    RATE_SHIFT,
    NOVELTY,
    BURST,
    FREQUENCY,
    OFF_HOURS,
    RISK,
    LOOP,
    UNKNOWN_CONNECTION,
    NEW_DESTINATION,
    CREDENTIAL_LEAK,
    CHILD_PROCESS,
    DATA_EXFILTRATION,
    IDENTITY_SPOOFING,
) = np.arange(len(DETECTORS))
PARTS_OF_RISK: Final = ("novelty", "burst", "frequency", "off_hours")
SPEAKS_FOR_ITSELF: Final = np.array([name not in PARTS_OF_RISK for name in DETECTORS])
"""Whose score counts in the verdict's: `risk` speaks for its parts, weak signals by themselves."""
CLAUSES: Final[tuple[tuple[str, ...], ...]] = tuple(module.CLAUSES for _, module in _MODULES)
"""The texts of each detector, by the variant of its sign."""

LATE_NS: Final = 3600 * SECOND_NS
"""A call that ended so long before the agent's last one is too late for all that is learned."""

LEARNED_AGENT, LEARNED_SHIFT, LEARNED_SERVICE, LEARNED_RATE, LEARNED_SESSION = 1, 2, 4, 8, 16
"""Bits: what a call taught."""


LIMITS = np.dtype(
    [
        ("some_off", "i8"),  # Whether a detector is switched off.
        ("learning", past.LEARNING),
        *((name, module.PLAN) for name, module in _MODULES),
    ],
    align=True,
)
"""The configuration of all detectors as the kernels read it."""


def make_limits(configs: Sequence[DetectorsConfig]) -> np.ndarray:
    """LIMITS [n] of the base and of each override."""
    limits = np.zeros(len(configs), LIMITS)
    rules = [rate_shift.rules_of(config.rate_shift) for config in configs]
    for number, (plan, config) in enumerate(zip(limits, configs, strict=True)):
        learning = config.learning
        forget_days = learning.forget_after // (86_400 * SECOND_NS)
        plan["some_off"] = not all(getattr(config, name).enabled for name, _ in _MODULES)
        plan["learning"] = learning.samples, learning.time, forget_days
        for name, module in _MODULES:
            plan[name] = module.make_plan(getattr(config, name))[0]
        plan["rate_shift"]["rules"] = rules.index(rules[number])
    return limits


@inlined
def _score_stateless(call: Record, plan: Record, signs: Array) -> None:
    """Detectors that look at the call alone."""
    if plan["off_hours"]["enabled"] != 0:
        off_hours.score(plan["off_hours"], call, signs[OFF_HOURS])
    if plan["unknown_connection"]["enabled"] != 0:
        unknown_connection.score(plan["unknown_connection"], call, signs[UNKNOWN_CONNECTION])
    if plan["identity_spoofing"]["enabled"] != 0:
        identity_spoofing.score(plan["identity_spoofing"], call, signs[IDENTITY_SPOOFING])


@inlined
def _score_agent(call: Record, plan: Record, agent: Record, peers: Record, signs: Array) -> None:
    """Detectors that hold the call against its agent's past."""
    learning, own = plan["learning"], agent["past"]
    if plan["novelty"]["enabled"] != 0:
        novelty.score(own, peers, learning, plan["novelty"], call, signs[NOVELTY])
    if plan["burst"]["enabled"] != 0:
        burst.score(agent["burst"], plan["burst"], call, signs[BURST])
    if plan["frequency"]["enabled"] != 0:
        frequency.score(own, learning, plan["frequency"], call, signs[FREQUENCY])
    if plan["new_destination"]["enabled"] != 0:
        new_destination.score(
            own, peers, learning, plan["new_destination"], call, signs[NEW_DESTINATION]
        )
    if plan["credential_leak"]["enabled"] != 0:
        credential_leak.score(agent["leak"], plan["credential_leak"], call, signs[CREDENTIAL_LEAK])


@kernel
def _skip_agent(plan: Record, reason: Int, signs: Array) -> None:
    """Why the detectors that look at an agent's past, those that run, do not."""
    if plan["rate_shift"]["enabled"] != 0:
        signs[RATE_SHIFT]["skipped"] = reason
    if plan["novelty"]["enabled"] != 0:
        signs[NOVELTY]["skipped"] = reason
    if plan["burst"]["enabled"] != 0:
        signs[BURST]["skipped"] = reason
    if plan["frequency"]["enabled"] != 0:
        signs[FREQUENCY]["skipped"] = reason
    if plan["new_destination"]["enabled"] != 0:
        signs[NEW_DESTINATION]["skipped"] = reason
    if plan["credential_leak"]["enabled"] != 0:
        signs[CREDENTIAL_LEAK]["skipped"] = reason


@kernel
def score_all(
    call: Record,
    plan: Record,
    agent: Record,
    peers: Record,
    counts: Record,
    session: Record,
    signs: Array,
) -> None:
    """Let every detector speak of one call. `plan`: of LIMITS.

    `agent`, `counts` and `session` are rows of their tables; those whose key is 0 stand for nobody.
    """
    fresh = call["fresh"] != 0
    known = agent["key"] != 0
    in_time = known and call["time_ns"] > agent["seen_ns"] - LATE_NS
    if not in_time or plan["some_off"] != 0 or counts["key"] == 0 or session["key"] == 0:
        # Else each of them sets its own sign.
        for detector in range(len(DETECTORS)):
            silence(signs[detector], OFF)
    if not in_time:
        _skip_agent(plan, np.int64(LATE if known else NO_ENTITY), signs)
    if plan["rate"]["enabled"] != 0:
        if counts["key"] != 0:
            rate.score(counts["rate"], plan["rate"], call["time_ns"], fresh, signs[RATE])
        else:
            signs[RATE]["skipped"] = NO_ENTITY
    if known and plan["rate_shift"]["enabled"] != 0:
        rate_shift.score(
            agent["shift"], plan["rate_shift"], call["time_ns"], fresh, signs[RATE_SHIFT]
        )
    _score_stateless(call, plan, signs)
    if in_time:
        _score_agent(call, plan, agent, peers, signs)
    # These two need no agent: without one, everything it does is new.
    if plan["child_process"]["enabled"] != 0:
        child_process.score(
            agent["past"], peers, plan["learning"], plan["child_process"], call,
            signs[CHILD_PROCESS],
        )  # fmt: skip
    if plan["data_exfiltration"]["enabled"] != 0:
        data_exfiltration.score(
            agent["past"], plan["learning"], plan["data_exfiltration"], call,
            signs[DATA_EXFILTRATION],
        )  # fmt: skip
    if plan["loop"]["enabled"] != 0:
        if session["key"] != 0:
            loop.score(session["loop"], plan["loop"], call, signs[LOOP])
        else:
            signs[LOOP]["skipped"] = NO_ENTITY
    if plan["risk"]["enabled"] != 0:
        risk.score(plan["risk"], signs, NOVELTY, BURST, FREQUENCY, OFF_HOURS, call, signs[RISK])


@inlined
def is_learning(signs: Array) -> bool:
    """Whether a detector that learns said that it knows too little of the agent."""
    return bool(signs[RATE_SHIFT]["skipped"] == COLD or signs[NOVELTY]["skipped"] == COLD)


@inlined
def is_late(signs: Array) -> bool:
    """Whether a detector said that the call came too late for it."""
    late = False
    for detector in range(len(DETECTORS)):
        late = late or signs[detector]["skipped"] == LATE
    return late


@kernel
def learn_agent(agent: Record, plan: Record, call: Record, alarmed: Int, signs: Array) -> Int:
    """Teach an agent's row a call that its detectors have just scored: `signs`.

    Returns what was taught, LEARNED_SHIFT and LEARNED_AGENT: a call too late teaches nothing, and
    must not take back what others taught.
    """
    learned = np.int64(0)
    late = signs[RATE_SHIFT]["skipped"] == LATE
    if plan["rate_shift"]["enabled"] != 0 and not late:
        rate_shift.learn(agent["shift"], call["time_ns"], alarmed)
        learned |= LEARNED_SHIFT
    if call["time_ns"] <= agent["seen_ns"] - LATE_NS:
        return learned
    if alarmed == 0:
        past.learn(agent["past"], plan["learning"], call)
    burst.learn(agent["burst"], plan["burst"], call, alarmed)
    credential_leak.learn(agent["leak"], plan["credential_leak"], call, alarmed)
    return learned | LEARNED_AGENT


@kernel
def unlearn_agent(agent: Record, plan: Record, call: Record, alarmed: Int, learned: Int) -> None:
    """Undo `learn_agent`, which returned `learned`, as far as the rings still reach."""
    if learned & LEARNED_SHIFT != 0:
        rate_shift.unlearn(agent["shift"], call["time_ns"], alarmed)
    if learned & LEARNED_AGENT == 0:
        return
    if alarmed == 0:
        past.unlearn(agent["past"], plan["learning"], call)
    burst.unlearn(agent["burst"], plan["burst"], call)
    credential_leak.unlearn(agent["leak"], plan["credential_leak"], call)


@kernel
def learn_service(service: Record, plan: Record, call: Record, alarmed: Int) -> Int:
    """Teach the agent's peers. Returns LEARNED_SERVICE if it did."""
    if alarmed != 0 or call["time_ns"] <= service["seen_ns"] - LATE_NS:
        return np.int64(0)
    past.learn(service["past"], plan["learning"], call)
    return np.int64(LEARNED_SERVICE)


@kernel
def unlearn_service(service: Record, plan: Record, call: Record) -> None:
    """Undo `learn_service`."""
    past.unlearn(service["past"], plan["learning"], call)
