"""Episodes: from findings about single calls to what somebody is told.

A finding of warn or more opens one for its detector and entity; it stays open while the observed
value is at least `clear` times the limit, and ends when it has not been so for `hold`. Only the
steps (start, a stronger action, end) leave the kernel, so that a session above the line for a
minute costs one line, not a thousand.

Open episodes lie in a table of their own; each entity keeps a bit a detector, so that a call of
which nothing is open costs nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.detectors.finding import ALLOW, WARN
from otel_anomaly.entities.table import find, find_or_make, release
from otel_anomaly.kernels import Array, Int, Record, copy_record, inlined, kernel
from otel_anomaly.otlp.hashing import hash_two
from otel_anomaly.scoring import DETECTORS, LOOP, RATE
from otel_anomaly.state import END, ESCALATE, START, State

_NONE: Final = np.int64(-1)


@kernel
def _tell(
    steps: Array, used: Int, kind: Int, row: Int, detector: Int, entity: Int, finding: Int,
    episode: Record,
) -> Int:  # fmt: skip
    """Append a step. Returns how many there are."""
    step = steps[used]
    step["step"], step["row"], step["detector"], step["entity"] = kind, row, detector, entity
    step["finding"] = finding
    copy_record(step["episode"], episode)
    return used + 1


@kernel
def _note(
    state: State,
    key: Int,
    is_open: bool,
    detector: Int,
    sign: Record,
    time_ns: Int,
    row: Int,
    finding: Int,
    plan: Record,
    steps: Array,
    used: Int,
) -> tuple[Int, bool]:
    """Open, prolong, raise or end the episode of one detector about one entity.

    Returns how many rows of `steps` are in use, and whether the episode is open now. `finding` is
    -1 when there is none of warn or more.
    """
    place = find(state.episodes, key) if is_open else np.int64(0)
    if place != 0:
        episode = state.episodes.rows[place]
        if time_ns - episode["last_ns"] > plan["hold_ns"]:
            used = _tell(steps, used, np.int64(END), row, detector, place, _NONE, episode)
            release(state.episodes, place)
            place = np.int64(0)
        elif sign["ratio"] >= plan["clear"] and time_ns > episode["last_ns"]:
            episode["last_ns"] = time_ns
    if finding < 0:
        return used, place != 0
    kind = _NONE
    if place == 0:
        place = find_or_make(state.episodes, key, time_ns)
        if place == 0:
            return used, False
        kind = np.int64(START)
        opened = state.episodes.rows[place]
        opened["start_ns"], opened["last_ns"] = time_ns, time_ns
        opened["peak"], opened["score"], opened["count"] = 0.0, 0.0, 0
        opened["action"] = ALLOW
    episode = state.episodes.rows[place]
    if kind < 0 and sign["action"] > episode["action"]:
        kind = np.int64(ESCALATE)
    episode["count"] += 1
    episode["action"] = max(episode["action"], np.int32(sign["action"]))
    episode["peak"] = max(episode["peak"], sign["observed"])
    episode["score"] = max(episode["score"], sign["score"])
    if kind >= 0:
        used = _tell(steps, used, kind, row, detector, place, finding, episode)
    return used, True


@inlined
def _finding_of(findings: Array, verdict: Record, detector: Int) -> Int:
    """Number of the detector's finding about this call if it reached warn, else -1."""
    for i in range(verdict["finding"], verdict["finding"] + verdict["findings"]):
        if findings[i]["detector"] == detector and findings[i]["sign"]["action"] >= WARN:
            return np.int64(i)
    return _NONE


@kernel
def note_episodes(
    state: State,
    places: Record,
    signs: Array,
    which: Int,
    findings: Array,
    verdict: Record,
    row: Int,
    plan: Record,
    steps: Array,
    used: Int,
) -> Int:
    """Bring the episodes of the detectors in `which` (bits) up to date with one call. Returns the
    steps in use.

    `rate` and `loop` speak of their own rows, all others of the agent; of the session when no
    agent is known.
    """
    agent = state.agents.rows[places["agent"]]
    counts = state.sessions.rows[places["rate"]]
    session = state.sessions.rows[places["session"]]
    for detector in range(len(DETECTORS)):
        bit = np.int64(1) << detector
        if which & bit == 0:
            continue
        finding = _finding_of(findings, verdict, detector)
        of_agent = detector not in (RATE, LOOP) and places["agent"] != 0
        if of_agent:
            entity, masks = agent["key"], np.int64(agent["open"])
        elif detector == RATE:
            entity, masks = counts["key"], np.int64(counts["open"])
        else:
            entity, masks = session["key"], np.int64(session["open"])
        if entity == 0 or (finding < 0 and masks & bit == 0):
            continue
        key = hash_two(entity, np.int64(detector), plan["seed"])
        used, is_open = _note(
            state, key, masks & bit != 0, np.int64(detector), signs[detector],
            verdict["time_ns"], row, finding, plan, steps, used,
        )  # fmt: skip
        masks = masks | bit if is_open else masks & ~bit
        if of_agent:
            agent["open"] = masks
        elif detector == RATE:
            counts["open"] = masks
        else:
            session["open"] = masks
    return used
