"""Whether an address leads to one of our own doors: every span would come back for ever.

Names are resolved and addresses held against those of this machine, which the kernel knows: an
address is ours when packets to it would leave from it. That asks for a route and sends nothing.

What this cannot see, because the way leads over somebody else (a service name of Kubernetes, a
balancer, a forwarded port), the doors see when the first request comes back: see
`receivers.looping`.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from otel_anomaly.config.doors import UNIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_DISCARD_PORT = 9
_LOOPBACKS = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


def own_door(
    target: str, doors: Iterable[str], resolve: Callable[..., Any] = socket.getaddrinfo
) -> str | None:
    """The door of `doors` (`host:port`) that `target` (the same, or a URL) leads to."""
    host, port = _parts(target)
    here: set[Address] | None = None
    for door in doors:
        door_host, door_port = _parts(door)
        if port != door_port or not port:
            continue
        if here is None:
            here = {each for each in _reached(host, resolve) if is_ours(each)}
        listening = _addresses(door_host, resolve)
        if listening & here or any(_any_of(each, here) for each in listening):
            return door
    return None


def is_local(door: str) -> bool:
    """Whether only this machine can reach a door, as far as the name tells."""
    if door.startswith(UNIX):
        return True
    host, _ = _parts(door)
    try:
        return host == "localhost" or _plain(host).is_loopback
    except ValueError:
        return False


def is_ours(address: Address) -> bool:
    """Whether a connection to `address` ends on this machine."""
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET  # noqa: PLR2004
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
            return _plain(probe.getsockname()[0]) == address
    except OSError:
        return False  # No way leads there.


def _any_of(listening: Address, here: set[Address]) -> bool:
    """Whether a wildcard takes what is meant for one of `here`: that of IPv6 takes both."""
    same = {each for each in here if each.version == listening.version}
    return listening.is_unspecified and bool(
        here if listening == ipaddress.IPv6Address(0) else same
    )


def _reached(host: str, resolve: Callable[..., Any]) -> set[Address]:
    """Where a connection to `host` may end: one to a wildcard ends on loopback."""
    found = _addresses(host, resolve)
    return {each for each in found if not each.is_unspecified} | {
        loopback
        for each in found
        if each.is_unspecified
        for loopback in _LOOPBACKS
        if loopback.version == each.version
    }


def _addresses(host: str, resolve: Callable[..., Any]) -> set[Address]:
    try:
        return {_plain(info[4][0]) for info in resolve(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError, ValueError):
        return set()  # A name that nobody knows is not ours; it may be one day.


def _plain(text: str) -> Address:
    """Without a zone; IPv4 in IPv6 clothes as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _parts(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or a URL; ("", 0) for anything else, like a socket's path."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        port = parts.port
    except ValueError:
        return "", 0
    return parts.hostname or "", port if port is not None else _PORTS.get(parts.scheme, 0)
