"""The slow twin of `rate` and its episodes: every call in a list, counted anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

SECOND_NS = 1_000_000_000
RANK = {"allow": 0, "warn": 1, "block": 3}
Event = tuple[str, str, int, int, str, float, int, float]
"""Step, entity, start, time, action, observed, count, score."""


@dataclass
class _Episode:
    start_ns: int
    last_ns: int
    action: str = "allow"
    peak: float = 0.0
    score: float = 0.0
    count: int = 0


@dataclass
class _Entity:
    seconds: list[int] = field(default_factory=list)
    """The second of every call that was counted."""
    newest: int = 0
    episode: _Episode | None = None


class NaiveRate:
    """Judges one call at a time; `events` is what the book should tell."""

    def __init__(self, *, warn: int, block: int, window_s: int, hold_s: int) -> None:
        self.events: list[Event] = []
        self._warn, self._block = warn, block
        self._window_s, self._hold_ns = window_s, hold_s * SECOND_NS
        self._clear = 0.8
        self._entities: dict[str, _Entity] = {}

    def call(self, name: str, time_ns: int) -> None:
        """One call of the entity `name`."""
        entity = self._entities.setdefault(name, _Entity())
        second = time_ns // SECOND_NS
        entity.newest = max(entity.newest, second)
        since = entity.newest - self._window_s
        total = 0
        if second > since:
            entity.seconds.append(second)
            total = sum(since < counted <= entity.newest for counted in entity.seconds)
        self._note(name, entity, time_ns, total)

    def end_all(self) -> None:
        """Whatever is open ends, in the order it was opened or last told."""
        for name in self._order():
            self._end(name, self._entities[name])

    def _note(self, name: str, entity: _Entity, time_ns: int, total: int) -> None:
        if entity.episode is not None and time_ns - entity.episode.last_ns > self._hold_ns:
            self._end(name, entity)
        episode = entity.episode
        if episode is not None and total / self._warn >= self._clear:
            episode.last_ns = max(episode.last_ns, time_ns)
        if total < self._warn:
            return
        action = "block" if total >= self._block else "warn"
        score = min(1.0, 0.5 + 0.5 * (total - self._warn) / (self._block - self._warn))
        step = ""
        if episode is None:
            step, episode = "start", _Episode(time_ns, time_ns)
            entity.episode = episode
        elif RANK[action] > RANK[episode.action]:
            step = "escalate"
        episode.count += 1
        episode.action = max(episode.action, action, key=RANK.__getitem__)
        episode.peak = max(episode.peak, total)
        episode.score = max(episode.score, score)
        if step:
            self._tell(step, name, episode, time_ns, total)

    def _end(self, name: str, entity: _Entity) -> None:
        assert entity.episode is not None
        self._tell("end", name, entity.episode, entity.episode.last_ns, entity.episode.peak)
        entity.episode = None

    def _tell(self, step: str, name: str, episode: _Episode, time_ns: int, seen: float) -> None:
        self.events.append((
            step, name, episode.start_ns, time_ns,
            episode.action, seen, episode.count, episode.score,
        ))  # fmt: skip

    def _order(self) -> list[str]:
        starts = [event[1] for event in self.events if event[0] == "start"]
        still_open = [name for name, entity in self._entities.items() if entity.episode]
        return sorted(still_open, key=lambda name: len(starts) - starts[::-1].index(name))
