"""What was covered in a request is taken out: a single star stands in place of many.

    request   ... | length | Span ... | length | attribute ... ann@example.com ...
    covered   ... | length | Span ... | length | attribute ... *************** ...
    cut       ... | length'| Span ... | length'| attribute ... * ...

Found by comparing the two: a run of stars that holds a byte which was no star. The lengths around
it are written anew, from the inside out. Nothing grows.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, borrow, copy, inlined, kernel, load1
from otel_anomaly.otlp.covering import STAR
from otel_anomaly.otlp.leaves import NO_LEAF, NUMBER, begin_walk, next_leaf
from otel_anomaly.otlp.redaction import Redaction, redact
from otel_anomaly.otlp.splice import varint_size, write_varint

LENGTH_AT, START, END, PARENT, CUT = range(5)
"""Columns of a frame: a message or string whose length changes, outer ones first."""
FRAMES, CUTS = range(2)
_ROOM_FIRST: Final = 256
_TURNS_MAX: Final = 3


def remove(body: bytes, message: np.int64, redaction: Redaction) -> bytes:
    """The request with what is found in it taken out; `body` itself when nothing is.

    What stood apart may make something new when what is between is gone: so it is read again, and
    what is found in the end is only covered.
    """
    for _ in range(_TURNS_MAX):
        covered, count = redact(body, message, redaction)
        if count == 0:
            return body
        body = cut(body, covered, message, redaction)
    return redact(body, message, redaction)[0]


def cut(body: bytes, covered: bytes, message: np.int64, redaction: Redaction) -> bytes:
    """`covered`, what `redact` made of `body`, with the covered parts taken out."""
    counts = np.array([_ROOM_FIRST, _ROOM_FIRST], np.int64)
    data, stars = np.frombuffer(body, np.uint8), np.frombuffer(covered, np.uint8)
    while True:
        frames = np.empty((counts[FRAMES], 5), np.int64)
        cuts = np.empty((counts[CUTS], 2), np.int64)
        room = counts.copy()
        _find_cuts(data, stars, message, redaction.kept, redaction.walk, frames, cuts, counts)
        if (counts <= room).all():
            break
    frames, cuts = frames[: counts[FRAMES]], cuts[: counts[CUTS]]
    out = np.empty(len(body) - _measure(frames), np.uint8)
    written = _write(stars, frames, cuts, out)
    assert written == out.size
    return out.tobytes()


@kernel
def _find_cuts(
    data: Array,
    stars: Array,
    message: Int,
    kept: Array,
    walks: Array,
    frames: Array,
    cuts: Array,
    counts: Array,
) -> None:
    """Fill `frames` and `cuts`, and count them, also those for which there is no room."""
    data, stars, kept, walk = borrow(data), borrow(stars), borrow(kept), walks[0]
    frames, cuts, counts = borrow(frames), borrow(cuts), borrow(counts)
    counts[FRAMES] = counts[CUTS] = 0
    begin_walk(data, message, walk)
    while True:
        kind = next_leaf(data, kept, walk)
        if kind == NO_LEAF:
            return
        if kind != NUMBER:
            _cuts_of_leaf(data, stars, walk, frames, cuts, counts)


@kernel
def _cuts_of_leaf(
    data: Array, stars: Array, walk: Record, frames: Array, cuts: Array, counts: Array
) -> None:
    """The runs of stars in one string, and the frames around it."""
    data, stars = borrow(data), borrow(stars)
    at, end, gone = np.int64(walk["leaf_at"]), np.int64(walk["leaf_end"]), np.int64(0)
    while at < end:
        if load1(stars, at) != STAR:
            at += 1
            continue
        begin, changed = at, False
        while at < end and load1(stars, at) == STAR:
            changed = changed or load1(data, at) != STAR
            at += 1
        if changed and at - begin > 1:
            if counts[CUTS] < cuts.shape[0]:
                cuts[counts[CUTS], 0], cuts[counts[CUTS], 1] = begin, at
            counts[CUTS] += 1
            gone += at - begin - 1
    if gone > 0:
        parent = np.int64(-1)
        for level in range(1, walk["level"] + 1):
            if walk["frame"][level] < 0:
                walk["frame"][level] = _add_frame(
                    frames,
                    counts,
                    walk["length_at"][level],
                    walk["start"][level],
                    walk["end"][level],
                    parent,
                )
            parent = np.int64(walk["frame"][level])
        place = _add_frame(frames, counts, walk["leaf_length_at"], walk["leaf_at"], end, parent)
        if place < frames.shape[0]:
            frames[place, CUT] = gone


@inlined
def _add_frame(
    frames: Array, counts: Array, length_at: Int, start: Int, end: Int, parent: Int
) -> Int:
    """Note a frame; returns its number."""
    place = np.int64(counts[FRAMES])
    counts[FRAMES] = place + 1
    if place < frames.shape[0]:
        frames[place, LENGTH_AT], frames[place, START], frames[place, END] = length_at, start, end
        frames[place, PARENT], frames[place, CUT] = parent, 0
    return place


@kernel
def _measure(frames: Array) -> Int:
    """Fill CUT: by how much each frame's content shrinks. Returns by how much the request does."""
    frames, total = borrow(frames), np.int64(0)
    for i in range(frames.shape[0] - 1, -1, -1):
        size = frames[i, END] - frames[i, START] - frames[i, CUT]
        gone = frames[i, CUT] + frames[i, START] - frames[i, LENGTH_AT] - varint_size(size)
        if frames[i, PARENT] >= 0:
            frames[frames[i, PARENT], CUT] += gone
        else:
            total += gone
    return total


@kernel
def _write(stars: Array, frames: Array, cuts: Array, out: Array) -> Int:
    """Write the request that is left. Returns its size."""
    stars, frames = borrow(stars), borrow(frames)
    cuts, out = borrow(cuts), borrow(out)
    at, done, frame, cut_ = np.int64(0), np.int64(0), 0, 0
    while frame < frames.shape[0] or cut_ < cuts.shape[0]:
        opens = frame < frames.shape[0] and (
            cut_ == cuts.shape[0] or frames[frame, LENGTH_AT] < cuts[cut_, 0]
        )
        stop = frames[frame, LENGTH_AT] if opens else cuts[cut_, 0]
        copy(out, at, stars, done, stop - done)
        at += stop - done
        if opens:
            size = frames[frame, END] - frames[frame, START] - frames[frame, CUT]
            at, done = write_varint(out, at, size), np.int64(frames[frame, START])
            frame += 1
        else:
            out[at] = STAR
            at, done = at + 1, np.int64(cuts[cut_, 1])
            cut_ += 1
    copy(out, at, stars, done, stars.size - done)
    return at + stars.size - done
