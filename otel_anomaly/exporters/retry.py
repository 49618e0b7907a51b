"""When a failed request is tried again: the Collector's rules (`exporterhelper`, retry sender).

    attempt     1        2             3                    n
    wait          initial   * multiplier  * multiplier  ...    at most max_interval

Each wait is spread by `randomization_factor` either way, so that many senders do not come back
at once, and is at least what the next hop asked for. A request is given up as soon as the next
attempt would start after `max_elapsed_time`: waiting first would not change the answer.

No clock and no source of chance is read here: both are handed in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from otel_anomaly.config import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_anomaly.config import RetryConfig

HINT_S_MAX = 120.0
"""Longest wait a next hop can ask for. A longer one is a mistake, or somebody stopping us."""


class RetryPolicy(NamedTuple):
    """The rules, in seconds."""

    enabled: bool
    initial_s: float
    multiplier: float
    randomization: float
    max_interval_s: float
    max_elapsed_s: float
    """Infinite for never."""

    @classmethod
    def of(cls, config: RetryConfig) -> RetryPolicy:
        """The rules of a configuration section; 0 for `max_elapsed_time` is never."""
        return cls(
            enabled=config.enabled,
            initial_s=config.initial_interval / SECOND_NS,
            multiplier=config.multiplier,
            randomization=config.randomization_factor,
            max_interval_s=config.max_interval / SECOND_NS,
            max_elapsed_s=config.max_elapsed_time / SECOND_NS or math.inf,
        )


class Backoff:
    """The waits of one request, from its first attempt on."""

    def __init__(
        self, policy: Callable[[], RetryPolicy], chance: Callable[[], float], start_s: float
    ) -> None:
        """`policy` is asked each time: the rules may change while a request is under way. `chance`
        gives numbers in [0, 1); `start_s` is the time of the first attempt."""
        self._policy = policy
        self._chance = chance
        self._start_s = start_s
        self._interval_s = policy().initial_s

    def next_wait(self, now_s: float, hint_s: float | None) -> float | None:
        """Seconds to wait before the next attempt, or None: give it up."""
        policy = self._policy()
        if not policy.enabled:
            return None
        interval_s = min(self._interval_s, policy.max_interval_s)
        self._interval_s = interval_s * policy.multiplier
        # Up to `randomization` of it longer or shorter.
        spread_s = interval_s * (1 + policy.randomization * (2 * self._chance() - 1))
        wait_s = max(spread_s, clamped_hint(hint_s))
        return None if now_s + wait_s > self._start_s + policy.max_elapsed_s else wait_s


def clamped_hint(hint_s: float | None) -> float:
    """The wait a next hop asks for, within 0 and HINT_S_MAX; nonsense is no hint."""
    if hint_s is None or not hint_s > 0:
        return 0.0
    return min(hint_s, HINT_S_MAX)
