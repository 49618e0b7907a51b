"""Bodies that have not arrived whole: their bytes are bounded in sum, over all connections.

    one body <= limit          all of one door <= BODIES_HELD_MAX x limit, and BODIES_MAX of them

When the sum is reached, somebody has to go: the oldest body of the client that holds the most,
once it has had its chance. An honest client holds little or finishes soon; one that opens many
bodies and finishes none is the heaviest, whoever comes next. While nobody is old enough to go, the
newcomer is asked to come again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from otel_anomaly.handoff import Outcome, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http import HTTPStatus

BODIES_HELD_MAX: Final = 4
"""Largest bodies that may be under way at once, on all connections together."""
BODIES_MAX: Final = 4096
"""Bodies under way at once that take long, however little has come of them: each holds a task and
what its transport keeps of a request."""
CHANCE_S: Final = 2.0
"""A body younger than this is not sent away for room: 64 MiB take half a second at 1 Gbit/s."""
CROWDED: Final = Reply(Outcome.MEMORY, "too many large requests at once", 1.0)
TOO_MANY: Final = Reply(Outcome.MEMORY, "too many unfinished requests at once", 1.0)
STOPPING: Final = Reply(Outcome.STOPPING, "the service is stopping", 1.0)


class Refused(Exception):
    """The door refuses a request. Carries the answer."""

    def __init__(self, reply: Reply, http_status: HTTPStatus | None = None) -> None:
        super().__init__(reply.message)
        self.reply = reply
        self.http_status = http_status
        """Set where HTTP knows a finer number than the outcome's own."""


class Deadline(Protocol):
    """What ends the reading of a body from outside: `asyncio.Timeout`, or less."""

    def expired(self) -> bool:
        """Whether it has fired."""

    def reschedule(self, when: float, /) -> None:
        """Fire at that time of the loop; 0 is now."""


class Body:
    """One that is under way."""

    __slots__ = ("bytes", "client", "deadline", "is_whole", "owner", "since_s", "verdict")

    def __init__(self, client: str, since_s: float, deadline: Deadline) -> None:
        self.client = client
        self.since_s = since_s
        self.deadline = deadline
        self.bytes = 0
        self.owner: Any = None
        """Whose it is, for a door that counts by connection."""
        self.is_whole = False
        """All of it is here; it is only being inflated."""
        self.verdict: Reply | None = None
        """Why it was sent away; None for one that was only too slow."""


class Unfinished:
    """The bodies of one door. Used from its event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.stopping = False
        self._bodies: dict[Body, None] = {}

    @property
    def bytes_max(self) -> int:
        """What all together may hold."""
        return BODIES_HELD_MAX * self.limit

    def __len__(self) -> int:
        return len(self._bodies)

    def __contains__(self, body: Body) -> bool:
        """Whether it is still under way: neither whole nor sent away."""
        return body in self._bodies

    def __iter__(self) -> Iterator[Body]:
        """In the order in which they began."""
        return iter(list(self._bodies))

    def begin(self, client: str, deadline: Deadline, now_s: float) -> Body:
        """A body begins to arrive. Raises Refused when the service is stopping."""
        if self.stopping:
            raise Refused(STOPPING)
        body = Body(client, now_s, deadline)
        self._bodies[body] = None
        return body

    def end(self, body: Body) -> None:
        """It is whole, or given up: its bytes are the caller's affair now."""
        self._bodies.pop(body, None)
        self.held -= body.bytes
        body.bytes = 0
        assert self.held >= 0

    def grow(self, body: Body, size: int, now_s: float) -> None:
        """So many bytes more. Raises Refused when there is no room and nobody to send away."""
        while self.held + size > self.bytes_max:
            leaver = self._leaver(now_s)
            if leaver is None or leaver is body:
                raise Refused(CROWDED)
            self._send_away(leaver, CROWDED)
        body.bytes += size
        self.held += size

    def weigh(self, body: Body, size: int) -> None:
        """Its bytes as somebody else tells them: over the bound for the moment, see `relieve`."""
        self.held += size - body.bytes
        body.bytes = size

    def relieve(self, now_s: float) -> int:
        """Send away until the sum is under the bound. Returns how many had to go."""
        gone = 0
        while self.held > self.bytes_max and (leaver := self._leaver(now_s, 0)):
            self._send_away(leaver, CROWDED)
            gone += 1
        return gone

    def thin_out(self, before_s: float) -> int:
        """Of those that began before that time, send away what is beyond BODIES_MAX.

        Each client keeps the same share of them, or all it has if that is less, and at least one.
        So the one with most loses most, and a proxy with many behind it none while there is room.
        Returns how many had to go.
        """
        if len(self._bodies) <= BODIES_MAX:
            return 0
        clients: dict[str, list[Body]] = {}
        for body in self._bodies:
            if body.since_s >= before_s:
                break
            if not body.is_whole:
                clients.setdefault(body.client, []).append(body)
        share = BODIES_MAX
        while share > 1 and sum(min(len(each), share) for each in clients.values()) > BODIES_MAX:
            share //= 2
        beyond = [body for each in clients.values() for body in each[share:]]
        for body in beyond:
            self._send_away(body, TOO_MANY)
        return len(beyond)

    def stop(self) -> None:
        """Send all away: their requests have not been taken over."""
        self.stopping = True
        for body in list(self._bodies):
            self._send_away(body, STOPPING)

    def _leaver(self, now_s: float, chance_s: float = CHANCE_S) -> Body | None:
        """The oldest body with bytes of the client that holds the most, if it had its chance."""
        totals: dict[str, int] = {}
        for body in self._bodies:
            totals[body.client] = totals.get(body.client, 0) + body.bytes
        heaviest = max(totals, key=totals.__getitem__, default=None)
        for body in self._bodies:
            if body.client == heaviest and body.bytes:
                return body if now_s - body.since_s >= chance_s else None
        return None

    def _send_away(self, body: Body, verdict: Reply) -> None:
        """Its task wakes up with a TimeoutError; its bytes are free from now on."""
        self._bodies.pop(body, None)
        self.held -= body.bytes
        body.bytes = 0
        body.verdict = verdict
        if not body.deadline.expired():
            body.deadline.reschedule(0)
