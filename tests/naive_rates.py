"""Slow twins of `rate` and `rate_shift`: dicts of buckets that are never emptied.

Times are whole numbers of nanoseconds; where the kernels keep 32 bits, `single` says so.
"""

from __future__ import annotations

import math
import statistics
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_anomaly.config import RateConfig, RateShiftConfig

ALLOW, WARN, PAUSE, BLOCK = range(4)
ACTIONS = ("allow", "warn", "pause", "block")
JUDGED, LATE, COLD, NO_ENTITY, NO_ARGUMENTS, NOT_TOLD, EXEMPT, FULL, OFF = range(9)
SECOND_NS = 10**9
SPAN_NS = (SECOND_NS, 60 * SECOND_NS)
RING = 60


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
    skipped: int = OFF
    variant: int = 0


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

    def learn(self, time_ns: int) -> None:
        self.counts[time_ns // SECOND_NS] += 1

    def unlearn(self, time_ns: int) -> None:
        second, window = time_ns // SECOND_NS, self.config.window // SECOND_NS
        if self.newest - window < second <= self.newest and self.counts[second]:
            self.counts[second] -= 1


class Shift:
    """Calls of one agent by second and by minute."""

    def __init__(self, config: RateShiftConfig) -> None:
        self.config = config
        self.floor = (config.min_calls_second, config.min_calls_minute)
        self.first_ns: int | None = None
        self.samples = 0
        self.earlier = [0, 0]
        self.open = [0, 0]
        self.counts: tuple[dict[int, int], ...] = (defaultdict(int), defaultdict(int))
        self.flagged: tuple[set[int], ...] = (set(), set())
        self.peaks: dict[int, int] = defaultdict(int)
        self.limit: list[float | None] = [None, None]
        self.last_limit: list[float | None] = [None, None]
        self.usual = [0.0, 0.0]
        self.rules: list[tuple[float, ...]] = [(), ()]

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
            self.earlier[which] = self.samples

    def _judge(self, which: int, bucket: int, sign: Sign, *, fresh: bool) -> None:
        if bucket != self.open[which]:
            return
        count = self.counts[which][bucket] + fresh
        if count < self.floor[which]:
            return
        config = self.config
        rules = (config.k, config.ratio, *self.floor, config.min_buckets, config.min_samples)
        if self.limit[which] is None or self.rules[which] != rules:
            if self.limit[which] is not None:
                self.last_limit[which] = self.limit[which]
            self.limit[which], self.rules[which] = self._work_out(which), rules
        limit = self.limit[which]
        assert limit is not None
        by_past = limit
        if which == 1 and self.config.ceiling:
            limit = min(limit, self.config.ceiling)
        sign.ratio = max(sign.ratio, count / limit)
        score = 1.0 - limit / (2.0 * count)
        if count >= limit and score > sign.score:
            sign.score, sign.action = score, ACTIONS.index(self.config.action)
            sign.observed, sign.limit, sign.usual = count, limit, self.usual[which]
            sign.window_s = SPAN_NS[which] / SECOND_NS
            sign.variant = int(limit < by_past)

    def _work_out(self, which: int) -> float:
        config, head, first = self.config, self.open[which], self.first_ns
        assert first is not None
        closed = range(max(first // SPAN_NS[which], head - RING + 1), head)
        past = [self.counts[which][b] for b in closed if b not in self.flagged[which]]
        samples = min(self.earlier[which], self.samples)
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

    def unlearn(self, time_ns: int, *, alarmed: bool) -> None:
        for which in range(2):
            bucket = time_ns // SPAN_NS[which]
            if self.open[which] - RING < bucket <= self.open[which] and self.counts[which][bucket]:
                self.counts[which][bucket] -= 1
        if not alarmed and self.samples:
            self.samples -= 1
