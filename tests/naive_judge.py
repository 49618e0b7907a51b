"""The slow twin of the judge: protobuf messages, dicts and loops.

Nothing is bounded here: it agrees with the kernels as long as nothing is evicted. The order of
steps is the one that the judge's docstring promises: look at the request as a whole, move what is
better known now, then one call after the other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from otel_anomaly.entities.links import FOLDED_MAX
from otel_anomaly.state import MOVED_MAX
from tests.naive_calls import Content, Policy, call_of, complete, encoded
from tests.naive_identity import Traces, number, rows_of
from tests.naive_links import Link, Links
from tests.naive_rates import ACTIONS, ALLOW, COLD, LATE, OFF, PAUSE, WARN
from tests.naive_scoring import (
    DETECTORS,
    Entity,
    Episode,
    Learned,
    Places,
    learn,
    new_entity,
    score_all,
    unlearn,
)
from tests.rig import SAID, Told

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from otel_anomaly.config import Config, DetectorsConfig
    from otel_anomaly.entities.names import Caller
    from tests.naive_calls import Call
    from tests.naive_identity import Key, Person, Row
    from tests.naive_scoring import Signs

__all__ = ["DETECTORS", "NaiveJudge"]

PARTS = ("novelty", "burst", "frequency", "off_hours")
"""`risk` speaks for them."""
COUNTS, COUNTS_BESIDE, COPY, PART, SPEAKS = "counts", "beside", "copy", "part", "speaks"
"""What a row is. COUNTS_BESIDE: the call of its id has all the spans that it may have."""


@dataclass
class Event:
    """A call that was judged, and all it takes to move it."""

    row: Row
    call: Call
    person: Person
    plan: int
    alarmed: bool
    call_id: str | None
    folded: int = 0
    into: int = 0
    found: set[str] = field(default_factory=set)
    """Detectors that asked for warn or more."""
    taught: Learned = field(default_factory=Learned)


def asking(signs: Signs) -> set[str]:
    """The detectors that ask for warn or more."""
    return {name for name, sign in signs.items() if sign.score > 0 and sign.action >= WARN}


@dataclass
class NaiveJudge:
    """Judges requests one call after the other."""

    config: Config
    links: Links = field(default_factory=Links)
    traces: Traces = field(default_factory=Traces)
    events: dict[int, Event] = field(default_factory=dict)
    """By serial number, from 1 on."""
    tables: dict[str, dict[Key, Entity]] = field(
        default_factory=lambda: {"agent": {}, "service": {}, "session": {}}
    )
    counts: Counter[Any] = field(default_factory=Counter)
    callers: list[Caller] = field(default_factory=list)
    """Who made each tool call so far."""
    signs: Signs = field(default_factory=dict)
    """What each detector said of the call judged last."""
    watermark: int = 0
    requests: int = 0

    def __post_init__(self) -> None:
        self.content, self.policy = Content(self.config), Policy(self.config)

    def judge(self, body: bytes, received_ns: int = 0, *, logs: bool = False) -> list[Told | None]:
        """What is told of each tool call, in document order; None: it is not judged."""
        rows = rows_of(body, self.config, logs=logs)
        self.counts["spans", ()] += 0 if logs else len(rows)
        self._look_at(rows, received_ns)
        calls = [row for row in rows if row.is_call]
        scope = self.config.detectors.rate.scope
        people = [self.traces.resolve(row, self.links, scope) for row in calls]
        self.callers += [person.who for person in people]
        plans = [self.policy.plan(p, r.tool) for r, p in zip(calls, people, strict=True)]
        return [
            self._judge(row, person, plan, received_ns)
            for row, person, plan in zip(calls, people, plans, strict=True)
        ]

    def _look_at(self, rows: list[Row], received_ns: int) -> None:
        """What the spans of a request say of each other."""
        self.requests += 1
        sound = [row for row in rows if row.is_sound and not row.is_log]
        arrival_ns = received_ns or self.watermark or (max(rows[0].end_ns, 0) if rows else 0)
        for row in rows:
            self.traces.remember(row, arrival_ns)
        for row in sound:
            self._link(row)
        for row in sound:
            self._wake(row.identity)
        for trace in dict.fromkeys(row.trace for row in rows if row.trace in self.traces.known):
            assert trace is not None
            self._settle(trace)
        for row in sound:
            if row.is_call:
                self._give_to_outer(row)
        for row in sound:
            self._take_from_inner(row)

    def _link(self, row: Row) -> None:
        if not row.is_call and row.trace not in self.traces.known:
            return
        link = self.links.at(row.identity)
        link.known, link.parent = True, row.parent
        link.request, link.row = self.requests, row
        if row.is_call:
            link.is_tool, link.tool, link.call_id = True, row.tool, row.own_id
            if row.call_id is not None:
                self.links.at(row.call_id).known = True
        elif row.is_boundary:
            link.stops = True
            link.agent = row.strong["agent"] or link.agent
        if row.is_part and row.error and row.parent is not None:
            self.links.at(row.parent).part_failed = True

    def _wake(self, identity: Hashable) -> None:
        """Look again at the calls that wait for a span that has come."""
        link = self.links.get(identity)
        if link is None:
            return
        waiting, link.waiting = link.waiting, []
        for serial in reversed(waiting):
            event = self.events[serial]
            above, _ = self.links.outermost(event.row.parent, event.row.tool, event.call_id)
            if above is not None and above.folded < FOLDED_MAX:
                above.folded += 1
                if not above.event:
                    above.event = serial
                elif above.event != serial:
                    before = self.policy.sections[event.plan]
                    unlearn(event.call, before, event.taught, self.tables, alarmed=event.alarmed)
                    event.taught, event.into = Learned(), above.event
                    self.counts["folded", ()] += 1
                    continue
            if self._person(event).keys != event.person.keys and event.row.trace is not None:
                self.traces.known[event.row.trace].changed = True
            self._wait(serial)

    def _wait(self, serial: int) -> None:
        """Let a call wait for the first ancestor that may make a difference."""
        event = self.events[serial]
        row = event.row
        _, missing = self.links.outermost(row.parent, row.tool, event.call_id)
        if missing is None and row.strong["agent"] is None and not row.is_server:
            missing = self.links.first_unknown(row.parent)
        if missing is not None:
            self.links.wait(serial, missing)

    def _person(self, event: Event) -> Person:
        scope = self.config.detectors.rate.scope
        return self.traces.resolve(event.row, self.links, scope)

    def _settle(self, trace_id: bytes) -> None:
        """Move the calls of a trace that now says something else."""
        trace = self.traces.known[trace_id]
        if not trace.changed:
            return
        trace.changed = False
        for serial in trace.events[-MOVED_MAX:]:
            event = self.events[serial]
            person = self._person(event)
            if not event.into and person.keys != event.person.keys:
                call = {**event.call, "agent": number(person.who.agent)}
                self._relearn(event, call, person, event.plan, told=False)

    def _relearn(self, event: Event, call: Call, person: Person, plan: int, *, told: bool) -> Signs:
        """Take back what a call taught and teach it as it is known now. Returns what is said of
        it; when that is told, an alarm keeps the call out of what is usual."""
        before, section = self.policy.sections[event.plan], self.policy.sections[plan]
        unlearn(event.call, before, event.taught, self.tables, alarmed=event.alarmed)
        event.call, event.person, event.plan = {**call, "fresh": True}, person, plan
        places = self._places(person, call["time_ns"])
        signs = score_all(event.call, section, places)
        asked = (sign.action for sign in signs.values() if sign.score > 0)
        event.alarmed |= told and max(asked, default=ALLOW) >= PAUSE
        event.taught = learn(event.call, section, places, person.keys, signs, alarmed=event.alarmed)
        self.counts["moved", ()] += 1
        return signs

    def _give_to_outer(self, row: Row) -> None:
        """What the inner span of a call tells and the outer one of the same request does not."""
        outer, _ = self.links.outermost(row.parent, row.tool, row.own_id)
        if outer is None:
            return
        if outer.request != self.requests:
            outer.part_failed |= row.error
            return
        assert outer.row is not None
        outer.row.error |= row.error
        outer.row.inner.append(row)

    def _take_from_inner(self, row: Row) -> None:
        """Of what a row does not tell the nearest inner span speaks; then the longest; then the
        smallest."""

        def preference(inner: Row, role: str) -> tuple[int, int, bytes]:
            steps = [key for key, _ in self.links.above(inner.parent)].index(row.identity)
            _, data = encoded(inner.told[role])
            return steps, -len(data), data

        inner, row.inner = row.inner, []
        for role in [role for role, value in row.facts.items() if value is None]:
            tell = [other for other in inner if other.told[role] is not None]
            if tell:
                row.facts[role] = min(tell, key=lambda r: preference(r, role)).told[role]

    def _event_of_id(self, row: Row) -> int:
        """The call judged before under the same trace and call id; 0: none."""
        link = self.links.get(row.call_id) if row.call_id is not None else None
        if link is None or not link.event:
            return 0
        other = self.events[link.event].row
        overlap = row.start_ns < link.end_ns and link.start_ns < row.end_ns
        same = overlap and row.tool == other.tool
        return link.event if same or other.is_log != row.is_log else 0

    def _place_of(self, row: Row) -> tuple[str, int]:
        """What a call's row is, and the call that it belongs to."""
        mine = self.links.get(row.identity) or Link()
        if mine.counted and mine.end_ns == row.end_ns:
            return COPY, 0
        above, _ = self.links.outermost(row.parent, row.tool, row.own_id)
        apart = above is None or above is mine
        tells = row.is_log and row.facts["arguments"] is not None
        if not mine.spoken:
            lacks = (
                not apart
                and above
                and above.event
                and not self.events[above.event].call["has_arguments"]
            )
            tells = bool(tells and lacks)
        if above and not apart and not tells and (mine.folded_into or above.folded < FOLDED_MAX):
            above.folded += not mine.folded_into
            return PART, above.event
        event = self._event_of_id(row)
        if tells and not apart and above and above.event:
            event = above.event
        if mine.event and not mine.counted:
            event = mine.event
        if not event:
            told = self.links.get(row.call_id) if row.call_id is not None else None
            return (PART if row.is_log and told and told.known else COUNTS), 0
        while self.events[event].into:
            event = self.events[event].into
        known = self.events[event]
        if not mine.spoken and known.folded >= FOLDED_MAX:
            return COUNTS_BESIDE, 0
        tells_more = row.facts["arguments"] is not None and not known.call["has_arguments"]
        if row.is_log and not known.row.is_log and not tells_more:
            return COPY, event
        return SPEAKS, event

    def _judge(self, row: Row, person: Person, plan: int, received_ns: int) -> Told | None:
        if not row.is_sound:
            self.counts["invalid_ids", ()] += 1
            return None
        kind, event = self._place_of(row)
        if kind == PART:
            self._note_part(row, event)
            return None
        fresh = kind in {COUNTS, COUNTS_BESIDE}
        time_ns = self._time(row.end_ns, received_ns, fresh=fresh)
        link = self.links.get(row.identity)
        row.error |= link is not None and link.part_failed
        call = call_of(row, person, plan, self.content, self.policy)
        call |= {"time_ns": time_ns, "fresh": fresh}
        said: Signs | None = None
        if kind == SPEAKS:
            complete(call, self.events[event].call)
            said = self._speak(row, event, call, person, plan)
        section, places = self.policy.sections[plan], self._places(person, time_ns)
        signs = self.signs = said or score_all(call, section, places)
        action = self._decide(signs)
        steps: list[tuple[str, str, tuple[float, ...]]] = []
        if fresh:
            new = Event(row, call, person, plan, action >= PAUSE, row.own_id)
            self._take_in(new, section, places, None if kind == COUNTS_BESIDE else row.call_id)
            steps = list(self._note_episodes(new, signs, places))
            new.found = asking(signs)
        elif said:
            steps = self._tell_more(self.events[event], time_ns, signs, places)
        told = self._told(call, signs, action, steps)
        self.counts["duplicates", ()] += kind == COPY
        if fresh:
            self._count(told)
        return told

    def _time(self, end_ns: int, received_ns: int, *, fresh: bool) -> int:
        now_ns = received_ns or self.watermark
        ahead = received_ns and end_ns - received_ns > self.config.policy.max_clock_skew
        time_ns = max(now_ns, 1) if end_ns <= 0 or ahead else end_ns
        self.counts["no_time", ()] += fresh and end_ns == 0
        self.counts["clamped", ()] += fresh and bool(end_ns < 0 or ahead)
        self.watermark = max(self.watermark, time_ns)
        return time_ns

    def _note_part(self, row: Row, event: int) -> None:
        link = self.links.at(row.identity)
        self.counts["folded", ()] += not link.folded_into
        link.folded_into = True
        link.event = link.event or event

    def _speak(self, row: Row, serial: int, call: Call, person: Person, plan: int) -> Signs | None:
        """An outer span takes the place of an inner one that was judged. Returns what is said of
        the call, the first time."""
        link = self.links.at(row.identity)
        if link.spoken:
            return None
        link.spoken, link.event = True, serial
        event = self.events[serial]
        event.folded += 1
        event.row = row
        self.counts["folded", ()] += 1
        return self._relearn(event, call, person, plan, told=True)

    def _places(self, person: Person, time_ns: int) -> Places:
        limits = self.config.identity.limits
        agent = self._entity("agent", person.agent, limits.agent_idle, time_ns)
        service = self._entity("service", person.service, limits.agent_idle, time_ns)
        rate = self._entity("session", person.rate, limits.session_idle, time_ns)
        session = self._entity("session", person.session, limits.session_idle, time_ns)
        assert rate is not None
        assert session is not None
        return Places(agent, service, rate, session)

    def _entity(self, table: str, key: Key | None, idle_ns: int, time_ns: int) -> Entity | None:
        if key is None:
            return None
        entity = self.tables[table].get(key)
        if entity is None or time_ns - entity.seen_ns > idle_ns:
            entity = self.tables[table][key] = new_entity(self.config.detectors, time_ns)
        entity.seen_ns = max(entity.seen_ns, time_ns)
        return entity

    def _decide(self, signs: Signs) -> int:
        """The strongest action, before the mode caps what is told."""
        found = [sign for sign in signs.values() if sign.score > 0]
        action = max((sign.action for sign in found), default=ALLOW)
        if self.config.policy.mode == "observe":
            for sign in found:
                sign.action = min(sign.action, WARN)
        return action

    def _take_in(
        self, event: Event, section: DetectorsConfig, places: Places, call_id: Hashable
    ) -> None:
        """Learn from a new call, and let other spans of it find it, also by its id."""
        serial, row = len(self.events) + 1, event.row
        self.events[serial] = event
        trace = self.traces.known.get(row.trace) if row.trace is not None else None
        if trace is not None:
            trace.events.append(serial)
        event.taught = learn(
            event.call,
            section,
            places,
            event.person.keys,
            self.signs,
            alarmed=event.alarmed,
        )
        for key in (row.identity, call_id):
            if key is not None:
                link = self.links.at(key)
                link.event, link.start_ns, link.end_ns = serial, row.start_ns, row.end_ns
        self.links.at(row.identity).counted = True
        self._wait(serial)

    def _tell_more(
        self, event: Event, time_ns: int, signs: Signs, places: Places
    ) -> list[tuple[str, str, tuple[float, ...]]]:
        """What is found only now that more is known of a call."""
        news = {name: signs[name] for name in signs if name in asking(signs) - event.found}
        event.found |= asking(signs)
        for name, sign in news.items():
            self.counts["findings", (name, ACTIONS[sign.action])] += 1
        return list(self._note_episodes(event, news, places, time_ns))

    def _note_episodes(
        self, event: Event, signs: Signs, places: Places, time_ns: int = 0
    ) -> Iterator[tuple[str, str, tuple[float, ...]]]:
        for detector, sign in signs.items():
            entity = places.agent or places.session
            if detector in {"rate", "loop"}:
                entity = places.rate if detector == "rate" else places.session
            yield from self._note(entity, sign, time_ns or event.call["time_ns"], detector)

    def _note(
        self, entity: Entity, sign: Any, time_ns: int, detector: str
    ) -> Iterator[tuple[str, str, tuple[float, ...]]]:
        alerts, episode = self.config.alerts, entity.episodes.get(detector)
        if episode and time_ns - episode.last_ns > alerts.hold:
            yield "end", detector, episode.values()
            del entity.episodes[detector]
            episode = None
        if episode and sign.ratio >= alerts.clear:
            episode.last_ns = max(episode.last_ns, time_ns)
        if sign.score == 0 or sign.action == ALLOW:
            return
        step = None if episode and sign.action <= episode.action else "escalate"
        if episode is None:
            episode = entity.episodes[detector] = Episode(time_ns, time_ns)
            step = "start"
        episode.count += 1
        episode.action = max(episode.action, sign.action)
        episode.peak = max(episode.peak, sign.observed)
        episode.score = max(episode.score, sign.score)
        if step:
            yield step, detector, episode.values()

    def _told(
        self,
        call: Call,
        signs: Signs,
        action: int,
        steps: list[tuple[str, str, tuple[float, ...]]],
    ) -> Told:
        observe = self.config.policy.mode == "observe"
        found = {name: sign for name, sign in signs.items() if sign.score > 0}
        return Told(
            action=min(action, WARN) if observe else action,
            score=max((s.score for n, s in found.items() if n not in PARTS), default=0.0),
            learning=COLD in {signs["rate_shift"].skipped, signs["novelty"].skipped},
            duplicate=not call["fresh"],
            late=any(sign.skipped == LATE for sign in signs.values()),
            skipped=tuple(signs[name].skipped for name in DETECTORS),
            time_ns=call["time_ns"],
            failed=call["failed"],
            fingerprint=call["arguments"],
            findings=tuple(
                (name, tuple(getattr(found[name], part) for part in SAID))
                for name in DETECTORS
                if name in found
            ),
            steps=tuple(steps),
        )

    def _count(self, told: Told) -> None:
        """What the judge counts of a new call."""
        counts = self.counts
        counts["tool_calls", ()] += 1
        counts["late", ()] += told.late
        counts["verdicts", (ACTIONS[told.action],)] += 1
        for detector, skipped in zip(DETECTORS, told.skipped, strict=True):
            if skipped != OFF:
                counts["skipped", detector, skipped] += 1
        for detector, values in told.findings:
            if action := int(values[SAID.index("action")]):
                counts["findings", (detector, ACTIONS[action])] += 1
