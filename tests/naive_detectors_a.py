"""The slow twins of `past` and of the detectors that go into `risk`: dicts and loops.

Each agrees with its kernel to the last bit. Names are whole numbers; times are nanoseconds.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from otel_anomaly.otlp.hashing import hash_two

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_anomaly.config import BurstConfig, FrequencyConfig, OffHoursConfig, RiskConfig

ALLOW, WARN, PAUSE, BLOCK = range(4)
JUDGED, LATE, COLD, NO_ENTITY, NO_ARGUMENTS, NOT_TOLD, EXEMPT, FULL, OFF = range(9)
SECOND_NS, DAY_NS = 10**9, 86_400 * 10**9
TOOLS, SHAPES, DESTINATIONS, PROGRAMS = range(4)
ROOM = (64, 64, 96, 32)


class Told(NamedTuple):
    """A call as the twins read it."""

    time_ns: int
    tool: int = 0
    names: int | None = None
    destinations: tuple[int, ...] = ()
    program: int = 0
    exempt: bool = False
    fresh: bool = True


@dataclass
class Said:
    """What a detector says of a call, field by field as in SIGN."""

    score: float = 0.0
    observed: float = 0.0
    limit: float = 0.0
    usual: float = 0.0
    window_s: float = 0.0
    ratio: float = 0.0
    action: int = ALLOW
    skipped: int = JUDGED
    variant: int = 0

    def fields(self) -> dict[str, Any]:
        return asdict(self)


class Past:
    """Names of one agent: name -> [count, day used last], a dict for each kind."""

    def __init__(self, *, samples: int = 0, age_ns: int = 0, forget_days: int = 28) -> None:
        self.samples, self.age_ns, self.forget_days = samples, age_ns, forget_days
        self.born_ns: int | None = None
        self.calls = 0
        self.day = 0
        self.names: tuple[dict[int, list[int]], ...] = ({}, {}, {}, {})
        self.shaped: set[int] = set()

    def is_cold(self, now_ns: int) -> bool:
        if self.born_ns is None or self.calls < self.samples:
            return True
        return now_ns - self.born_ns < self.age_ns

    def open_day(self, now_ns: int) -> None:
        self.day = max(self.day, now_ns // DAY_NS)
        for kind, names in enumerate(self.names):
            for name, (_count, day) in list(names.items()):
                if self.day - day > self.forget_days:
                    self._drop(kind, name)

    def find(self, kind: int, name: int, now_ns: int) -> int | None:
        """How often the name was used; 0: not known; None: no room to know it."""
        self.open_day(now_ns)
        if name in self.names[kind]:
            return self.names[kind][name][0]
        return None if len(self.names[kind]) == ROOM[kind] else 0

    def learn(self, call: Told) -> None:
        self.open_day(call.time_ns)
        self.born_ns = call.time_ns if self.born_ns is None else self.born_ns
        self.calls += 1
        for kind, name in _names(call):
            known = self.names[kind]
            if name in known or len(known) < ROOM[kind]:
                count = known[name][0] if name in known else 0
                known[name] = [min(count + 1, 65535), self.day]
        if call.names is not None and call.tool in self.names[TOOLS]:
            self.shaped.add(call.tool)
        if self.total() >= 16384:
            for names in self.names:
                for entry in names.values():
                    entry[0] = (entry[0] + 1) // 2

    def unlearn(self, call: Told) -> None:
        if self.calls == 0:
            return
        self.calls -= 1
        self.born_ns = self.born_ns if self.calls else None
        self.open_day(call.time_ns)
        for kind, name in _names(call):
            if name in self.names[kind]:
                self.names[kind][name][0] -= 1
                if self.names[kind][name][0] == 0:
                    self._drop(kind, name)

    def total(self) -> int:
        return sum(count for count, _day in self.names[TOOLS].values())

    def _drop(self, kind: int, name: int) -> None:
        del self.names[kind][name]
        if kind == TOOLS:
            self.shaped.discard(name)


def shape(call: Told) -> int:
    """One number for a tool and a set of its argument names."""
    assert call.names is not None
    return int(hash_two(np.int64(call.tool), np.int64(call.names), np.int64(0)))


def _names(call: Told) -> Iterable[tuple[int, int]]:
    if call.tool:
        yield TOOLS, call.tool
        if call.names is not None:
            yield SHAPES, shape(call)
    for destination in call.destinations:
        yield DESTINATIONS, destination
    if call.program:
        yield PROGRAMS, call.program


def novelty(own: Past, peers: Past, call: Told) -> Said:
    """A tool never used; a known tool with argument names never used with it."""
    if not call.tool:
        return Said(skipped=NOT_TOLD)
    warm = [past for past in (own, peers) if not past.is_cold(call.time_ns)]
    if not warm:
        return Said(skipped=COLD)
    past, first = warm[0], 0 if warm[0] is own and not own.is_cold(call.time_ns) else 2
    uses = past.find(TOOLS, call.tool, call.time_ns)
    if uses is None:
        return Said(skipped=FULL)
    if uses == 0:
        return Said(score=1.0, observed=past.calls, variant=first)
    said = Said(observed=uses, variant=first + 1)
    if call.names is not None and call.tool in past.shaped:
        uses = past.find(SHAPES, shape(call), call.time_ns)
        if uses is None:
            said.skipped = FULL
        elif uses == 0:
            said.score = 0.5
    return said


def frequency(own: Past, config: FrequencyConfig, call: Told) -> Said:
    """A known tool far under its fair share."""
    if not call.tool:
        return Said(skipped=NOT_TOLD)
    if own.is_cold(call.time_ns):
        return Said(skipped=COLD)
    uses = own.find(TOOLS, call.tool, call.time_ns)
    if uses is None:
        return Said(skipped=FULL)
    if uses == 0:
        return Said()
    if own.total() < config.min_calls:
        return Said(skipped=COLD)
    share = uses / own.total()
    limit = min(config.share, 0.5 / len(own.names[TOOLS]))
    said = Said(observed=100.0 * share, limit=100.0 * limit, ratio=share / limit)
    said.score = 0.6 if share < limit else 0.0
    return said


class Burst:
    """Calls of one agent by second, and the peaks of its hours."""

    def __init__(self, config: BurstConfig) -> None:
        self.config = config
        self.seconds = config.window // SECOND_NS
        self.counts: dict[int, int] = defaultdict(int)
        self.newest = self.hour = 0
        self.alarm: int | None = None
        self.peak, self.spoilt = 0, False
        self.busy: list[tuple[int, int]] = []  # (hour, peak)

    def window(self) -> int:
        inside = range(self.newest - self.seconds + 1, self.newest + 1)
        return sum(self.counts[second] for second in inside)

    def usual(self) -> float:
        return float(statistics.median([peak for _hour, peak in self.busy[-24:]] or [0]))

    def limit(self) -> float:
        habit = 1.5 * self.usual() if len(self.busy) >= 8 else 0.0
        return max(float(self.config.threshold), habit)

    def score(self, call: Told) -> Said:
        if call.exempt:
            return Said(skipped=EXEMPT)
        self._go_to(call.time_ns)
        count = self.window() + call.fresh
        said = Said(observed=count, window_s=self.seconds)
        if call.time_ns // SECOND_NS <= self.newest - self.seconds:
            said.skipped = LATE
            return said
        limit = self.limit()
        said.limit, said.ratio = limit, count / limit
        if limit > self.config.threshold:
            said.usual, said.variant = self.usual(), 1
        if count >= limit:
            said.score = min(1.0, count / (2 * limit))
        elif count >= limit / 2:
            said.score = count / (4 * limit)
        return said

    def learn(self, call: Told, *, alarmed: bool) -> None:
        if call.exempt:
            return
        self._go_to(call.time_ns)
        second = call.time_ns // SECOND_NS
        if second <= self.newest - self.seconds:
            return
        self.counts[second] += 1
        if alarmed:
            self.alarm, self.spoilt = max(self.alarm or 0, second), True
        elif self.alarm is None or self.alarm <= self.newest - self.seconds:
            self.peak = max(self.peak, self.window())

    def unlearn(self, call: Told) -> None:
        if call.exempt:
            return
        second = call.time_ns // SECOND_NS
        if self.newest - self.seconds < second <= self.newest and self.counts[second]:
            self.counts[second] -= 1
        if second // 3600 == self.hour and self.peak:
            self.peak -= 1

    def _go_to(self, time_ns: int) -> None:
        second = time_ns // SECOND_NS
        self.newest = max(self.newest, second)
        if second // 3600 <= self.hour:
            return
        if self.peak >= self.config.threshold and not self.spoilt:
            self.busy.append((self.hour, self.peak))
        if self.busy and second // 3600 - self.busy[-1][0] > 28 * 24:
            self.busy = []
        self.hour, self.peak, self.spoilt = second // 3600, 0, False


def off_hours(config: OffHoursConfig, call: Told) -> Said:
    """The local hour, as the standard library knows it."""
    if config.start == config.end:
        return Said(skipped=OFF)
    utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=call.time_ns // SECOND_NS)
    hour = utc.astimezone(ZoneInfo(config.timezone)).hour
    night = [at % 24 for at in range(config.start, config.end + 24 * (config.start > config.end))]
    return Said(float(hour in night), observed=hour, limit=config.start, usual=config.end)


def risk(config: RiskConfig, scores: Mapping[str, float], *, cold: bool = False) -> Said:
    """Noisy-or of the four; `cold`: novelty is."""
    calm = 1.0
    for name in ("novelty", "burst", "frequency", "off_hours"):
        calm *= 1.0 - getattr(config.weights, name) * scores[name]
    value = math.floor((1.0 - calm) * 1e9 + 0.5) / 1e9
    said = Said(score=value, observed=value, limit=config.warn, ratio=value / config.warn)
    if cold and value == 0:
        said.skipped = COLD
    if value >= config.warn:
        said.action = WARN
    if config.action == "block" and value >= config.block:
        said.action, said.limit = BLOCK, config.block
    return said
