"""The book of open episodes: from steps that leave the kernel to events for the sinks.

The kernel says when an episode starts, gets worse, and that it was over when its entity is heard
of again. An entity that falls silent is not heard of again: `tick` ends those of which no new sign
has arrived for `hold`. It goes by arrival, not by event time: a stream that was held up for an
hour is no quieter than one that comes at once. What is open is remembered in words, because the
end comes when the span is long gone.
"""

from __future__ import annotations

import json
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Final, NamedTuple, get_type_hints

import numpy as np

from otel_anomaly.detectors.finding import ACTIONS
from otel_anomaly.entities.table import release
from otel_anomaly.handoff import EpisodeEvent
from otel_anomaly.report import episode_id
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import END, START, STEPS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_anomaly.otlp.scan import Columns
    from otel_anomaly.report import Reporter
    from otel_anomaly.state import Judgement, State

LOOKED_AT_PER_TICK = 4096

Key = tuple[int, int]
"""Detector, row in the table of episodes."""


class _Open(NamedTuple):
    """An open episode."""

    told: EpisodeEvent
    """The last step told."""
    key: int
    """Of its record: its row may be another's by now."""
    last_ns: int = 0
    """Event time of its last sign when `tick` looked; 0: it has not looked yet."""
    since_ns: int = 0
    """Arrival clock when `tick` first saw that sign."""

    def is_of(self, record: np.void) -> bool:
        """Whether a record is still that of this episode."""
        return bool(record["key"] == self.key and record["start_ns"] == self.told.start_ns)


class EpisodeBook:
    """Open episodes of one processor."""

    def __init__(self, reporter: Reporter, hold_ns: int) -> None:
        self._reporter = reporter
        self._hold_ns = hold_ns
        self._open: dict[Key, _Open] = {}

    def reconfigure(self, reporter: Reporter, hold_ns: int) -> None:
        """Go by another configuration from now on; what is open stays open."""
        self._reporter, self._hold_ns = reporter, hold_ns

    def follow(self, state: State) -> list[EpisodeEvent]:
        """Find the records of open episodes again, whose rows have moved; end those that are gone.

        An episode of an entity is that of its key and its start.
        """
        rows = state.episodes.rows[: int(state.episodes.head["used"][0]) + 1]
        places = {int(key): row for row, key in enumerate(rows["key"]) if key}
        events: list[EpisodeEvent] = []
        was_open, self._open = self._open, {}
        for (detector, _), opened in was_open.items():
            row = places.get(opened.key, 0)
            if row and opened.is_of(rows[row]):
                self._open[detector, row] = opened
            else:
                events.append(_ended(opened.told))
        return events

    def __len__(self) -> int:
        return len(self._open)

    def take(self, columns: Columns, judgement: Judgement, state: State) -> list[EpisodeEvent]:
        """The events that a judgement makes, in order."""
        events: list[EpisodeEvent] = []
        for step in judgement.steps:
            key = (int(step["detector"]), int(step["entity"]))
            if step["step"] == END:
                events.extend(self._end(key, step["episode"]))
                continue
            event = self._event(step, columns, judgement, state)
            opened = self._open.get(key)
            if opened is not None and step["step"] == START:
                events.append(_ended(opened.told))  # Its row went to another entity.
            elif opened is not None:
                # Who makes the call that escalates may be another agent of the same session.
                event = event._replace(episode=opened.told.episode)
            self._open[key] = _Open(event, int(step["episode"]["key"]))
            events.append(event)
        return events

    def tick(self, state: State, now_ns: int) -> list[EpisodeEvent]:
        """End what has been quiet for `hold`. Each call looks at some, those not seen longest."""
        events: list[EpisodeEvent] = []
        for key in list(islice(self._open, LOOKED_AT_PER_TICK)):
            opened = self._open.pop(key)
            record = _record(state, key)
            last_ns = int(record["last_ns"])
            if not opened.is_of(record):
                events.append(_ended(opened.told))  # More were open than are remembered.
            elif last_ns != opened.last_ns:
                self._open[key] = opened._replace(last_ns=last_ns, since_ns=now_ns)
            elif now_ns - opened.since_ns > self._hold_ns:
                events.append(_ended(opened.told, record))
                release(state.episodes, np.int64(key[1]))
            else:
                self._open[key] = opened
        return events

    def end_all(self, state: State) -> list[EpisodeEvent]:
        """End everything: the service stops, and what it remembers goes with it."""
        keys = list(self._open)
        return [event for key in keys for event in self._end(key, _record(state, key))]

    def forget(self) -> list[EpisodeEvent]:
        """End everything with what is known here: the state was emptied."""
        events = [_ended(opened.told) for opened in self._open.values()]
        self._open.clear()
        return events

    def to_bytes(self) -> bytes:
        """The book as it lives on in a snapshot: a line an episode, in the order of `tick`."""
        lines = (
            json.dumps([detector, opened.key, opened.last_ns, opened.since_ns, *opened.told])
            for (detector, _), opened in self._open.items()
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def reopen(self, pages: list[_Page], state: State) -> list[EpisodeEvent]:
        """Go on with what `read_pages` gave. Returns the ends of what has no record any more."""
        # The row of each is found by `follow`: until then any will do that no other has.
        for number, (detector, opened) in enumerate(pages):
            self._open[detector, -1 - number] = opened
        return self.follow(state)

    def _end(self, key: Key, record: np.void) -> Iterable[EpisodeEvent]:
        opened = self._open.pop(key, None)
        if opened is not None:
            yield _ended(opened.told, record if opened.is_of(record) else None)

    def _event(
        self, step: np.void, columns: Columns, judgement: Judgement, state: State
    ) -> EpisodeEvent:
        call = self._reporter.call(columns, judgement, state, int(step["row"]))
        finding = self._reporter.finding(judgement, int(step["finding"]), call.who)
        start_ns = int(step["episode"]["start_ns"])
        return EpisodeEvent(
            step=STEPS[step["step"]],
            episode=episode_id(finding.detector, finding.entity, call.who, start_ns),
            time_ns=call.time_ns,
            start_ns=start_ns,
            detector=DETECTORS[step["detector"]],
            action=ACTIONS[step["episode"]["action"]],
            score=float(step["episode"]["score"]),
            observed=finding.observed,
            limit=finding.limit,
            window_s=finding.window_s,
            count=int(step["episode"]["count"]),
            entity=finding.entity,
            reason=finding.reason,
            tenant=call.who.tenant,
            agent=call.who.agent,
            session=call.who.session,
            user=call.who.user,
            tool=call.tool,
            trace_id=call.trace_id,
            span_id=call.span_id,
        )


_Page = tuple[int, _Open]
"""Detector, episode."""


def read_pages(data: bytes) -> list[_Page]:
    """The opposite of `EpisodeBook.to_bytes`. Raises ValueError for anything it does not write."""
    try:
        return [_page(json.loads(line)) for line in data.decode().splitlines()]
    except (RecursionError, TypeError) as error:
        raise ValueError("not a line of the book") from error


def _page(line: list[object]) -> _Page:
    if not isinstance(line, list) or len(line) != _BEFORE + len(EpisodeEvent._fields):
        raise ValueError("not a line of the book")
    numbers, told = line[:_BEFORE], line[_BEFORE:]
    for value, kinds in zip(told, _KINDS, strict=True):
        if type(value) not in kinds or not _is_sound(value):
            raise ValueError("a value of another kind than the book has there")
    event = EpisodeEvent(*told)  # type: ignore[arg-type]  # Their kinds were just looked at.
    whole = [number for number in numbers if type(number) is int and _is_sound(number)]
    if len(whole) != _BEFORE:
        raise ValueError("a number out of bounds")
    detector, key, last_ns, since_ns = whole
    in_words = event.step in STEPS and event.detector in DETECTORS and event.action in ACTIONS
    if not in_words or not 0 <= detector < len(DETECTORS) or key == 0:
        raise ValueError("a word that the book does not have")
    return detector, _Open(event, key, last_ns, since_ns)


def _is_sound(value: object) -> bool:
    """Whether a number fits into its column, and a text can be written."""
    if isinstance(value, str):
        return len(value.encode()) < 1 << 16  # A lone surrogate raises ValueError.
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    return not isinstance(value, float) or isfinite(value)


_BEFORE: Final = 4
_KINDS_OF: Final[dict[object, tuple[type, ...]]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    str | None: (str, type(None)),
}
_KINDS: Final = tuple(_KINDS_OF[kind] for kind in get_type_hints(EpisodeEvent).values())
"""What each field of an event may be."""


def _record(state: State, key: Key) -> np.void:
    """The kernel's record of an episode, not a copy."""
    record: np.void = state.episodes.rows[key[1]]
    return record


def _ended(told: EpisodeEvent, record: np.void | None = None) -> EpisodeEvent:
    """The end of an episode: with its peak and count when the kernel still has them."""
    if record is None:
        return told._replace(step=STEPS[END])
    return told._replace(
        step=STEPS[END],
        time_ns=int(record["last_ns"]),
        action=ACTIONS[record["action"]],
        score=float(record["score"]),
        observed=float(record["peak"]),
        count=int(record["count"]),
    )
