"""Seeded traffic that gives every detector something to find: people, habits, and what they break.

Everything a call needs stands on its own span, so nothing of it depends on other spans.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.habits import NOON, text
from tests.rig import Calls
from tests.traffic import request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

DETECTORS: dict[str, Any] = {
    "learning": {"samples": 10, "time": "60s"},
    "rate": {"warn": 12, "block": 40},
    "rate_shift": {
        "min_calls_second": 4,
        "min_calls_minute": 12,
        "min_buckets": 3,
        "min_samples": 5,
        "ceiling": 30,
    },
    "burst": {"threshold": 8},
    "frequency": {"share": 0.3},
    "off_hours": {"start": 13, "end": 14},
    "risk": {"warn": 0.3, "block": 0.75, "action": "block"},
    "loop": {"threshold": 4, "repeat": 3, "window": "60s"},
    "unknown_connection": {"allow": ["*.example.com", "mail.example.org"]},
    "credential_leak": {"threshold": 2},
    "data_exfiltration": {"inside": ["*.example.com"]},
}
"""Limits that a few calls reach."""
IDENTITY: dict[str, Any] = {"owner": ["credential.owner"]}

TOOLS = ("fetch", "send_mail", "bash", "read_file", "pay", "search", "db_query")
_HOSTS = ("api.example.com", "docs.example.com", "evil.net", "203.0.113.7:8443")
_SECRETS = ("AKIAIOSFODNN7EXAMPLE", "ghp_abcdefghijklmnopqrstuvwxyz0123456789")
_PERSONAL = ("card 4111 1111 1111 1111", "+49 30 1234567", "nobody", "see below")
_PROGRAMS = ("git", "make", "nmap", "curl")
_ACCOUNTS = ("DE89370400440532013000", "GB29NWBK60161331926819")


class Person(NamedTuple):
    """Somebody who makes calls."""

    tenant: str | None
    agent: str | None
    session: str | None
    user: str | None
    service: str | None
    tools: tuple[str, ...]


class Made(NamedTuple):
    """A call, and the resource it comes with."""

    span: Span
    service: str | None

    def body(self) -> bytes:
        """A request of its own; requests one after the other are one request."""
        resource = [("service.name", self.service)] if self.service else []
        return request([self.span], scope=None, resource=resource)


def bodies(calls: Iterable[Made]) -> bytes:
    """One request with all of them, in order."""
    return b"".join(call.body() for call in calls)


def people(rng: random.Random, tenants: Sequence[str | None], count: int = 6) -> list[Person]:
    """Agents with and without names, sessions, users and services, alike in all tenants."""
    return [
        Person(
            tenant=rng.choice(tenants),
            agent=None if i == 0 else f"agent-{i}",
            session=None if i == 1 else f"s-{i % 4}",
            user=None if i % 2 else f"u-{i}",
            service=None if i == 2 else f"service-{i % 2}",
            tools=tuple(rng.sample(TOOLS, 3)),
        )
        for i in range(count)
    ]


def stream(
    seed: int, count: int, calls: Calls, tenants: Sequence[str | None] = ("t-1", "t-2", None)
) -> list[Made]:
    """`count` calls: calm, bursts, repetitions, and now and then out of order."""
    rng = random.Random(seed)
    staff = people(rng, tenants)
    made: list[Made] = []
    now_s = NOON + 3000.0  # Off hours begin at 13.
    while len(made) < count:
        who = rng.choice(staff)
        now_s += rng.choice((0.0, 3.0, 20.0, 45.0))
        pace_s, length = rng.choice(((0.02, 12), (4.0, 6), (30.0, 3)))
        same = _arguments(rng, "search") if rng.random() < 0.2 else None
        for _ in range(min(rng.randrange(1, length + 1), count - len(made))):
            now_s += pace_s
            made.append(_call(rng, calls, who, now_s, same))
    return made


def _call(rng: random.Random, calls: Calls, who: Person, now_s: float, same: str | None) -> Made:
    tool = rng.choice(who.tools) if rng.random() < 0.9 else rng.choice(TOOLS)
    owner = who.agent if rng.random() < 0.8 else "somebody"
    late_s = rng.uniform(0, 20) if rng.random() < 0.1 else 0.0
    span = calls.at(
        now_s - late_s,
        tool=tool if same is None else "search",
        arguments=same or (_arguments(rng, tool) if rng.random() < 0.9 else None),
        result=rng.choice((None, "done", '{"rows": 3, "took_ms": 7}', '{"isError": true}')),
        error=rng.random() < 0.1,
        tenant=who.tenant,
        agent=who.agent,
        session=who.session,
        user=who.user,
        extra=[("credential.owner", owner)] if owner and rng.random() < 0.3 else (),
    )
    return Made(span, who.service)


def _arguments(rng: random.Random, tool: str) -> str:
    rare = rng.random() < 0.15
    body = rng.choice((*_PERSONAL, *_SECRETS)) if rare else "see below"
    match tool:
        case "fetch":
            host = rng.choice(_HOSTS) if rare else _HOSTS[0]
            return text(url=f"https://{host}/v{rng.randrange(3)}", body=body)
        case "send_mail":
            to = f"ann{rng.randrange(9 if rare else 2)}@mail.example.org"
            return text(to=to, body=body)
        case "bash":
            program = rng.choice(_PROGRAMS) if rare else _PROGRAMS[0]
            return text(command=f"{program} status", cwd="/srv/app")
        case "read_file":
            folder = rng.choice(("etc", "home", "var")) if rare else "srv"
            return text(path=f"/{folder}/app/f{rng.randrange(5)}.txt")
        case "pay":
            return text(iban=rng.choice(_ACCOUNTS) if rare else _ACCOUNTS[0], amount=7)
        case _:
            names = {"query": f"q{rng.randrange(4)}"} | ({"limit": 5} if rare else {})
            return text(**names)
