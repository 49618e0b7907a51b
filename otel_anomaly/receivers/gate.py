"""What a request must pass on its headers alone, before a byte of its body is read.

In this order: who is it, is it sending too much, is there memory. A stranger costs a hash.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from otel_anomaly.handoff import Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.config.doors import PerClientConfig
    from otel_anomaly.handoff import Admit, Clock
    from otel_anomaly.receivers.credentials import Credentials

CLIENTS_MAX: Final = 65536
"""Clients remembered. One that was forgotten starts with a full bucket."""
STRANGER: Final = Reply(Outcome.UNAUTHENTICATED, "the Authorization header does not let you in")
IPV6_CLIENT_BITS: Final = 64
"""A customer of a provider gets at least a /64: counting single addresses would count nothing."""


def client_of(host: str) -> str:
    """The key by which a client's requests and connections are counted."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> IPV6_CLIENT_BITS << IPV6_CLIENT_BITS))


class ClientRates:
    """A bucket of tokens for each client; the least recently seen is forgotten first."""

    def __init__(self, config: PerClientConfig, clock: Clock) -> None:
        self._rate, self._burst = config.requests_per_second, float(config.burst)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """Take a token: 0, or the seconds until there is one."""
        now = self._clock.monotonic()
        tokens, then = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > CLIENTS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if tokens >= 1 else (1 - tokens) / self._rate


class Gate:
    """The questions of one door. Its parts are replaced when the configuration is."""

    def __init__(self, admit: Admit, clock: Clock) -> None:
        self._admit = admit
        self._clock = clock
        self._limits: PerClientConfig | None = None
        self.credentials: Credentials | None = None
        self.rates: ClientRates | None = None

    def limit_clients(self, config: PerClientConfig) -> None:
        """Set the limits per client; buckets start full when they differ."""
        if config != self._limits:
            self._limits = config
            on = config.requests_per_second > 0
            self.rates = ClientRates(config, self._clock) if on else None

    def refusal(self, authorization: Sequence[str | bytes], client: str, size: int) -> Reply | None:
        """Why the request may not come in; None when it may."""
        if self.credentials is not None and not self.credentials.open_with(authorization):
            return STRANGER
        if self.rates is not None and (wait_s := self.rates.wait_s(client)):
            return Reply(Outcome.THROTTLED, "this client sends too many requests", wait_s)
        return self._admit(size)
