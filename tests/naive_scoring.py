"""The slow twin of scoring: the twins of all detectors, called in the order of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests import naive_detectors_a as a
from tests import naive_detectors_b as b
from tests.naive_calls import for_risk
from tests.naive_rates import ALLOW, COLD, LATE, NO_ENTITY, OFF, Rate, Shift, Sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_anomaly.config import DetectorsConfig
    from tests.naive_calls import Call
    from tests.naive_identity import Key

LATE_NS = 3600 * 10**9
DAY_NS = 86_400 * 10**9
DETECTORS = (
    *("rate", "rate_shift", "novelty", "burst", "frequency", "off_hours", "risk", "loop"),
    *("unknown_connection", "new_destination", "credential_leak", "child_process"),
    *("data_exfiltration", "identity_spoofing"),
)
OF_THE_AGENT = (
    *("rate_shift", "novelty", "burst", "frequency", "new_destination", "credential_leak"),
)
Signs = dict[str, Any]
"""What each detector says: Sign, or the twins' own kinds of it with the same fields."""


@dataclass
class Episode:
    """From the first sign of a detector about an entity to the last."""

    start_ns: int
    last_ns: int
    peak: float = 0.0
    score: float = 0.0
    count: int = 0
    action: int = ALLOW

    def values(self) -> tuple[float, ...]:
        return (self.start_ns, self.last_ns, self.peak, self.score, self.count, self.action)


@dataclass
class Entity:
    """What is remembered of one agent, session or service, each using its part."""

    seen_ns: int
    rate: Rate
    shift: Shift
    burst: a.Burst
    leak: b.Leak
    loop: b.Loop
    past: a.Past = field(default_factory=a.Past)
    episodes: dict[str, Episode] = field(default_factory=dict)


def new_entity(config: DetectorsConfig, seen_ns: int) -> Entity:
    """Nothing is known of it yet."""
    return Entity(
        seen_ns,
        Rate(config.rate),
        Shift(config.rate_shift),
        a.Burst(config.burst),
        b.Leak(config.credential_leak),
        b.Loop(config.loop),
    )


@dataclass
class Places:
    """The entities of one call; None: nobody."""

    agent: Entity | None
    service: Entity | None
    rate: Entity
    session: Entity


class Known(b.Past):
    """A past as the twins of the detectors that look into calls ask for it."""

    def __init__(self, past: a.Past) -> None:
        self._past, self.calls = past, past.calls

    def is_cold(self, call: Call) -> bool:
        return self._past.is_cold(call["time_ns"])

    def uses(self, call: Call, name: Any) -> int:
        kind = {"to": a.DESTINATIONS, "program": a.PROGRAMS}[name[0]]
        uses = self._past.find(kind, name[1], call["time_ns"])
        assert uses is not None, "no stream here fills a past"
        return uses


def _configure(entity: Entity | None, plan: DetectorsConfig) -> None:
    """Limits may change from call to call; what was counted stays."""
    if entity is None:
        return
    entity.rate.config, entity.shift.config = plan.rate, plan.rate_shift
    entity.shift.floor = (plan.rate_shift.min_calls_second, plan.rate_shift.min_calls_minute)
    entity.burst.config, entity.leak.config = plan.burst, plan.credential_leak
    entity.loop.config = plan.loop
    entity.past.samples, entity.past.age_ns = plan.learning.samples, plan.learning.time
    entity.past.forget_days = plan.learning.forget_after // DAY_NS


def score_all(call: Call, plan: DetectorsConfig, places: Places) -> Signs:
    """What every detector says of one call."""
    for entity in (places.agent, places.service, places.rate, places.session):
        _configure(entity, plan)
    time_ns, agent = call["time_ns"], places.agent
    signs: Signs = {name: Sign(skipped=OFF) for name in DETECTORS}

    def runs(name: str) -> bool:
        enabled: bool = getattr(plan, name).enabled
        return enabled

    in_time = agent is not None and time_ns > agent.seen_ns - LATE_NS
    for name in filter(runs, OF_THE_AGENT):
        signs[name].skipped = NO_ENTITY if agent is None else LATE
    if runs("rate"):
        signs["rate"] = places.rate.rate.score(time_ns, fresh=call["fresh"])
    if runs("rate_shift") and agent is not None:
        signs["rate_shift"] = agent.shift.score(time_ns, fresh=call["fresh"])
    asked = _of_the_call(call, plan, places)
    if agent is not None and in_time:
        asked |= _of_the_agent(call, plan, agent, places.service)
    signs |= {name: ask() for name, ask in asked.items() if runs(name)}
    if runs("risk"):
        scores = {name: sign.score for name, sign in signs.items()}
        cold = signs["novelty"].skipped == COLD
        signs["risk"] = a.risk(plan.risk, scores, cold=cold)
    return signs


Asked = dict[str, "Callable[[], Any]"]
"""How to ask each detector."""


def _of_the_agent(
    call: Call, plan: DetectorsConfig, agent: Entity, service: Entity | None
) -> Asked:
    """Detectors that hold the call against its agent's past."""
    told, own = for_risk(call), agent.past
    peers = service.past if service else a.Past()
    return {
        "novelty": lambda: a.novelty(own, peers, told),
        "burst": lambda: agent.burst.score(told),
        "frequency": lambda: a.frequency(own, plan.frequency, told),
        "new_destination": lambda: b.new_destination(
            plan.new_destination, Known(own), Known(peers), call
        ),
        "credential_leak": lambda: agent.leak.score(call),
    }


def _of_the_call(call: Call, plan: DetectorsConfig, places: Places) -> Asked:
    """Detectors that look at the call, whoever made it: without an agent all it does is new."""
    own, peers = (entity.past if entity else a.Past() for entity in (places.agent, places.service))
    return {
        "loop": lambda: places.session.loop.score(call),
        "off_hours": lambda: a.off_hours(plan.off_hours, for_risk(call)),
        "unknown_connection": lambda: b.unknown_connection(plan.unknown_connection, call),
        "child_process": lambda: b.child_process(
            plan.child_process, Known(own), Known(peers), call
        ),
        "data_exfiltration": lambda: b.data_exfiltration(plan.data_exfiltration, Known(own), call),
        "identity_spoofing": lambda: b.identity_spoofing(plan.identity_spoofing, call),
    }


@dataclass
class Learned:
    """Which entities a call taught, so that it can be taken back."""

    rate: Key | None = None
    loop: Key | None = None
    shift: Key | None = None
    agent: Key | None = None
    service: Key | None = None


def learn(
    call: Call,
    plan: DetectorsConfig,
    places: Places,
    keys: tuple[Key | None, ...],
    signs: Signs,
    *,
    alarmed: bool,
) -> Learned:
    """Teach all entities a call that was just scored."""
    time_ns, told, taught = call["time_ns"], for_risk(call), Learned()
    agent_key, service_key, rate_key, session_key = keys
    if plan.rate.enabled and signs["rate"].skipped != LATE:
        places.rate.rate.learn(time_ns)
        taught.rate = rate_key
    if plan.loop.enabled:
        places.session.loop.learn(call)
        taught.loop = session_key
    agent, service = places.agent, places.service
    if agent and plan.rate_shift.enabled and signs["rate_shift"].skipped != LATE:
        agent.shift.learn(time_ns, alarmed=alarmed)
        taught.shift = agent_key
    if agent and time_ns > agent.seen_ns - LATE_NS:
        if not alarmed:
            agent.past.learn(told)
        agent.burst.learn(told, alarmed=alarmed)
        if plan.credential_leak.enabled and call["secrets"]:
            agent.leak.learn(call)
        taught.agent = agent_key
    if service and not alarmed and time_ns > service.seen_ns - LATE_NS:
        service.past.learn(told)
        taught.service = service_key
    return taught


def unlearn(
    call: Call,
    plan: DetectorsConfig,
    taught: Learned,
    tables: dict[str, dict[Key, Entity]],
    *,
    alarmed: bool,
) -> None:
    """Take back what a call taught, where it is still remembered."""
    time_ns, told = call["time_ns"], for_risk(call)

    def of(table: str, key: Key | None) -> Iterator[Entity]:
        if key is not None and key in tables[table]:
            entity = tables[table][key]
            _configure(entity, plan)
            yield entity

    for entity in of("session", taught.rate):
        entity.rate.unlearn(time_ns)
    for entity in of("session", taught.loop):
        entity.loop.unlearn(call)
    for entity in of("agent", taught.shift):
        entity.shift.unlearn(time_ns, alarmed=alarmed)
    for entity in of("agent", taught.agent):
        if not alarmed:
            entity.past.unlearn(told)
        entity.burst.unlearn(told)
        entity.leak.unlearn(call)
    for entity in of("service", taught.service):
        entity.past.unlearn(told)
