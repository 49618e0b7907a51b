"""The slow twin of identity, `rate`, `rate_shift`, duplicates, time and episodes: dicts and loops.

Nothing is bounded here: it agrees with the kernels as long as no row is evicted. Times are whole
numbers of nanoseconds; where the kernels keep 32 bits of a number, `single` says so.
"""

from __future__ import annotations

import math
import statistics
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import naive
from tests.rig import Told

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.config import Config, RateConfig, RateShiftConfig

ALLOW, WARN, PAUSE, BLOCK = range(4)
ACTIONS = ("allow", "warn", "pause", "block")
JUDGED, LATE, COLD, NO_ENTITY = range(4)
SECOND_NS = 10**9
SPAN_NS = (SECOND_NS, 60 * SECOND_NS)
RING = 60
DETECTORS = ("rate", "rate_shift")


def single(value: float) -> float:
    """`value` as 32 bits keep it."""
    kept: float = struct.unpack("f", struct.pack("f", value))[0]
    return kept


@dataclass
class Sign:
    """What a detector says of a call."""

    score: float = 0.0
    observed: float = 0.0
    limit: float = 0.0
    usual: float = 0.0
    window_s: float = 0.0
    ratio: float = 0.0
    action: int = ALLOW
    skipped: int = NO_ENTITY

    def values(self) -> tuple[float, ...]:
        return (
            *(self.score, self.observed, self.limit, self.usual),
            *(self.window_s, self.ratio, self.action),
        )


class Rate:
    """Calls of one session by second."""

    def __init__(self, config: RateConfig) -> None:
        self.config = config
        self.counts: dict[int, int] = defaultdict(int)
        self.newest = 0

    def score(self, time_ns: int, *, fresh: bool) -> Sign:
        config, second = self.config, time_ns // SECOND_NS
        window = config.window // SECOND_NS
        self.newest = max(self.newest, second)
        inside = (n for s, n in self.counts.items() if self.newest - window < s <= self.newest)
        total = sum(inside) + fresh
        sign = Sign(observed=total, window_s=window, skipped=JUDGED)
        if second <= self.newest - window:
            sign.skipped = LATE
            return sign
        limits = [(action, n) for action, n in ((WARN, config.warn), (BLOCK, config.block)) if n]
        if not limits:
            return sign
        sign.limit, sign.ratio = limits[0][1], total / limits[0][1]
        for action, limit in limits:
            if total >= limit:
                sign.action, sign.limit = action, limit
        if sign.action == BLOCK:
            sign.score = 1.0
        elif sign.action == WARN and config.block:
            over = total - config.warn
            sign.score = 0.5 + 0.5 * over / (config.block - config.warn)
        elif sign.action == WARN:
            sign.score = 1.0 - 0.5 * config.warn / total
        return sign

    def learn(self, time_ns: int, *, alarmed: bool = False) -> None:
        self.counts[time_ns // SECOND_NS] += 1


class Shift:
    """Calls of one agent by second and by minute."""

    def __init__(self, config: RateShiftConfig) -> None:
        self.config = config
        self.floor = (config.min_calls_second, config.min_calls_minute)
        self.first_ns: int | None = None
        self.samples = 0
        self.open = [0, 0]
        self.counts: tuple[dict[int, int], ...] = (defaultdict(int), defaultdict(int))
        self.flagged: tuple[set[int], ...] = (set(), set())
        self.peaks: dict[int, int] = defaultdict(int)
        self.limit: list[float | None] = [None, None]
        self.last_limit: list[float | None] = [None, None]
        self.usual = [0.0, 0.0]

    def score(self, time_ns: int, *, fresh: bool) -> Sign:
        if self.first_ns is None:
            self.first_ns = time_ns
        self._open_buckets(time_ns)
        if time_ns // SPAN_NS[1] <= self.open[1] - RING:
            return Sign(skipped=LATE)
        age = time_ns // SECOND_NS - self.first_ns // SECOND_NS
        cold = self.samples < self.config.min_samples or age < self.config.min_buckets
        sign = Sign(skipped=COLD if cold else JUDGED)
        for which in range(2):
            self._judge(which, time_ns // SPAN_NS[which], sign, fresh=fresh)
        return sign

    def _open_buckets(self, time_ns: int) -> None:
        second = self.open[0]
        if time_ns // SECOND_NS > second and second not in self.flagged[0]:
            # The second closes: it may be the busiest of its minute. What comes late adds nothing.
            self.peaks[second // 60] = max(self.peaks[second // 60], self.counts[0][second])
        for which in range(2):
            bucket = time_ns // SPAN_NS[which]
            if bucket <= self.open[which]:
                continue
            if self.limit[which] is not None:
                self.last_limit[which] = self.limit[which]
            self.open[which], self.limit[which] = bucket, None

    def _judge(self, which: int, bucket: int, sign: Sign, *, fresh: bool) -> None:
        if bucket != self.open[which]:
            return
        count = self.counts[which][bucket] + fresh
        if count < self.floor[which]:
            return
        if self.limit[which] is None:
            self.limit[which] = self._work_out(which)
        limit = self.limit[which]
        assert limit is not None
        if which == 1 and self.config.ceiling:
            limit = min(limit, self.config.ceiling)
        sign.ratio = max(sign.ratio, count / limit)
        score = 1.0 - limit / (2.0 * count)
        if count >= limit and score > sign.score:
            sign.score, sign.action = score, ACTIONS.index(self.config.action)
            sign.observed, sign.limit, sign.usual = count, limit, self.usual[which]
            sign.window_s = SPAN_NS[which] / SECOND_NS

    def _work_out(self, which: int) -> float:
        config, head, first = self.config, self.open[which], self.first_ns
        assert first is not None
        closed = range(max(first // SPAN_NS[which], head - RING + 1), head)
        past = [self.counts[which][b] for b in closed if b not in self.flagged[which]]
        samples = self.samples - self.counts[which][head]
        if len(past) < config.min_buckets or samples < config.min_samples:
            in_ring = any(b > head - RING for b in self.flagged[which])
            last = self.last_limit[which]
            if in_ring and last is not None:
                return last
            self.usual[which] = 0.0
            return math.inf
        median = statistics.median(past)
        spread = statistics.median(abs(x - median) for x in past)
        scale = max(1.4826 * spread, math.sqrt(max(median, 1.0)))
        peaks = [n for m, n in self.peaks.items() if m > self.open[1] - RING]
        level = sorted([*past, *(peaks if which == 0 else []), 0, 0, 0])[-3]
        limit = max(self.floor[which], median + config.k * scale, config.ratio * level)
        self.usual[which] = single(median)
        return single(limit)

    def learn(self, time_ns: int, *, alarmed: bool) -> None:
        for which in range(2):
            bucket = time_ns // SPAN_NS[which]
            if bucket > self.open[which] - RING:
                self.counts[which][bucket] += 1
                if alarmed:
                    self.flagged[which].add(bucket)
        self.samples += not alarmed


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
    """A session or an agent: its counters, its open episode, when it was seen last."""

    detector: Rate | Shift
    seen_ns: int
    episode: Episode | None = None


class Hint(NamedTuple):
    """What a span says of its trace; the earliest counts."""

    start_ns: int
    value: str


@dataclass
class Trace:
    """What the spans of a trace said of who is at work."""

    seen_ns: int
    hints: dict[str, Hint] = field(default_factory=dict)


@dataclass
class NaiveJudge:
    """Judges requests one call after the other."""

    config: Config
    seen: set[tuple[bytes, bytes]] = field(default_factory=set)
    traces: dict[bytes, Trace] = field(default_factory=dict)
    sessions: dict[Hashable, Entity] = field(default_factory=dict)
    agents: dict[Hashable, Entity] = field(default_factory=dict)
    watermark: int = 0

    def judge(self, body: bytes, received_ns: int) -> list[Told | None]:
        """What is told of each tool call, in document order; None: its ids are not valid."""
        identity = self.config.identity
        message = ExportTraceServiceRequest.FromString(body)
        for span, _, _ in naive.spans_with_place(message):
            if valid(span.trace_id, span.span_id):
                said = naive._who(identity, [naive.usable(span.attributes)])["strong"]
                self._remember(span, said, received_ns or self.watermark)
        return [self._judge(call, received_ns) for call in naive.tool_calls(body, identity)]

    def _judge(self, call: dict[str, Any], received_ns: int) -> Told | None:
        ids = (call["trace_id"], call["span_id"])
        if not valid(*ids):
            return None
        fresh = ids not in self.seen
        self.seen.add(ids)
        time_ns = self._time(call["end_ns"], received_ns)
        who = {name: self._who(call, name) for name in naive.IDENTITIES}
        session = self._entity(
            self.sessions, rate_key(who, self.config.detectors.rate.scope), Rate, time_ns
        )
        agent_key = who["agent"] and (who["tenant"], who["agent"])
        agent = self._entity(self.agents, agent_key, Shift, time_ns)
        signs = [
            entity.detector.score(time_ns, fresh=fresh) if entity else Sign()
            for entity in (session, agent)
        ]
        action = max(sign.action for sign in signs)
        steps: list[tuple[str, str, tuple[float, ...]]] = []
        if fresh:
            if session and signs[0].skipped == JUDGED:
                session.detector.learn(time_ns, alarmed=action >= PAUSE)
            if agent and signs[1].skipped != LATE:
                agent.detector.learn(time_ns, alarmed=action >= PAUSE)
            for entity, sign, detector in zip((session, agent), signs, DETECTORS, strict=True):
                if entity:
                    steps += self._note(entity, sign, time_ns, detector)
        found = [(d, s.values()) for d, s in zip(DETECTORS, signs, strict=True) if s.score > 0]
        return Told(
            action=action,
            score=max(sign.score for sign in signs),
            learning=signs[1].skipped == COLD,
            duplicate=not fresh,
            late=any(sign.skipped == LATE for sign in signs),
            skipped=tuple(sign.skipped for sign in signs),
            time_ns=time_ns,
            findings=tuple(found),
            steps=tuple(steps),
        )

    def _remember(self, span: Span, said: Mapping[str, str | None], arrival_ns: int) -> None:
        if not any(said.values()):
            return
        trace = self.traces.get(span.trace_id)
        if trace is None or arrival_ns - trace.seen_ns > self.config.identity.limits.agent_idle:
            trace = self.traces[span.trace_id] = Trace(arrival_ns)
        trace.seen_ns = max(trace.seen_ns, arrival_ns)
        for name, value in said.items():
            if value:
                hint = Hint(span.start_time_unix_nano, value)
                trace.hints[name] = min(trace.hints.get(name, hint), hint)

    def _time(self, end_ns: int, received_ns: int) -> int:
        now_ns = received_ns or self.watermark
        ahead = received_ns and end_ns - received_ns > self.config.policy.max_clock_skew
        time_ns = max(now_ns, 1) if end_ns == 0 or end_ns >= 1 << 63 or ahead else end_ns
        self.watermark = max(self.watermark, time_ns)
        return time_ns

    def _who(self, call: dict[str, Any], name: str) -> str | None:
        trace = self.traces.get(call["trace_id"])
        hint = trace.hints.get(name) if trace else None
        value: str | None = call["strong"][name]
        return value or (hint.value if hint else None) or call["weak"][name]

    def _entity(
        self, table: dict[Hashable, Entity], key: Hashable, kind: type, time_ns: int
    ) -> Entity | None:
        if not key:
            return None
        limits, detectors = self.config.identity.limits, self.config.detectors
        idle_ns = limits.session_idle if kind is Rate else limits.agent_idle
        section = detectors.rate if kind is Rate else detectors.rate_shift
        known = table.get(key)
        if known is None or time_ns - known.seen_ns > idle_ns:
            known = table[key] = Entity(kind(section), time_ns)
        known.seen_ns = max(known.seen_ns, time_ns)
        return known

    def _note(
        self, entity: Entity, sign: Sign, time_ns: int, detector: str
    ) -> Iterable[tuple[str, str, tuple[float, ...]]]:
        alerts, episode = self.config.alerts, entity.episode
        if episode and time_ns - episode.last_ns > alerts.hold:
            yield "end", detector, episode.values()
            episode = entity.episode = None
        if episode and sign.ratio >= alerts.clear:
            episode.last_ns = max(episode.last_ns, time_ns)
        if sign.action == ALLOW:
            return
        step = None if episode and sign.action <= episode.action else "escalate"
        if episode is None:
            episode = entity.episode = Episode(time_ns, time_ns)
            step = "start"
        episode.count += 1
        episode.action = max(episode.action, sign.action)
        episode.peak = max(episode.peak, single(sign.observed))
        episode.score = max(episode.score, single(sign.score))
        if step:
            yield step, detector, episode.values()


def valid(trace_id: bytes, span_id: bytes) -> bool:
    """Whether the ids tell a span from others: of the right length, not all zero."""
    return len(trace_id) == 16 and len(span_id) == 8 and any(trace_id) and any(span_id)


def rate_key(who: dict[str, str | None], scope: str) -> tuple[str | None, ...]:
    """By what a call is added up. See the docstring of `entities.identity`."""
    tenant, agent, session, user = (who[name] for name in ("tenant", "agent", "session", "user"))
    if scope == "agent" and agent:
        return ("agent", tenant, agent)
    if scope == "session" and session:
        return ("session", tenant, session)
    if scope in {"session", "user"} and user:
        return ("user", tenant, user)
    if tenant:
        return ("tenant", tenant, None if scope == "tenant" else agent)
    return ("anon", agent)
