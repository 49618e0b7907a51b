"""The slow twin of folding: spans by their ids in a dict that is never emptied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otel_anomaly.entities.links import STEPS_MAX, WAITERS_MAX

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from tests.naive_identity import Row


@dataclass
class Link:
    """One span: where it stands, and what it is to the calls below."""

    known: bool = False
    """Whether the span itself came; else a child told of it."""
    is_tool: bool = False
    stops: bool = False
    part_failed: bool = False
    counted: bool = False
    folded_into: bool = False
    spoken: bool = False
    parent: Hashable = None
    start_ns: int = 0
    end_ns: int = 0
    tool: str | None = None
    call_id: str | None = None
    agent: str | None = None
    event: int = 0
    waiting: list[int] = field(default_factory=list)
    folded: int = 0
    request: int = 0
    row: Row | None = None


def same(inner: str | None, outer: str | None) -> bool:
    """Whether nothing that is told says otherwise."""
    return inner == outer or inner is None or outer is None


@dataclass
class Links:
    """All spans ever seen."""

    known: dict[Hashable, Link] = field(default_factory=dict)

    def at(self, key: Hashable) -> Link:
        """The link of a span, a blank one when it is new."""
        return self.known.setdefault(key, Link())

    def get(self, key: Hashable) -> Link | None:
        return self.known.get(key)

    def above(self, parent: Hashable) -> Iterator[tuple[Hashable, Link | None]]:
        """A span's ancestors, nearest first; the link is None for one that is not known yet.

        More than STEPS_MAX are not looked at: the last one told is then (None, None).
        """
        for _ in range(STEPS_MAX):
            if parent is None:
                return
            link = self.known.get(parent)
            if link is None or not link.known:
                yield parent, None
                return
            yield parent, link
            parent = link.parent
        yield None, None

    def outermost(
        self, parent: Hashable, tool: str | None, call_id: str | None
    ) -> tuple[Link | None, Hashable]:
        """Who speaks for a call: (the outermost span of it, the first ancestor not known yet)."""
        best = None
        for key, link in self.above(parent):
            if link is None:
                return (None, None) if key is None else (best, key)
            if link.stops:
                break
            if link.is_tool:
                if not (same(tool, link.tool) and same(call_id, link.call_id)):
                    break
                best, tool = link, link.tool if tool is None else tool
                call_id = link.call_id if call_id is None else call_id
        return best, None

    def agent_above(self, parent: Hashable) -> str | None:
        """The nearest agent above."""
        for _, link in self.above(parent):
            if link is not None and link.agent is not None:
                return link.agent
        return None

    def first_unknown(self, parent: Hashable) -> Hashable:
        """The first ancestor that is not known yet, below the nearest agent."""
        for key, link in self.above(parent):
            if link is None or link.agent is not None:
                return key if link is None else None
        return None

    def wait(self, serial: int, missing: Hashable) -> None:
        """Let a call wait for an ancestor."""
        link = self.at(missing)
        if len(link.waiting) < WAITERS_MAX:
            link.waiting.append(serial)
