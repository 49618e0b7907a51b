"""Numbered spans at the price of a copy, and a fast way to find their numbers again.

Span `i` of request `r` has the number `r * spans + i`. Its span id is that number + 1, and its
trace id begins with MARK, which occurs nowhere else: whatever is merged, annotated and cut on the
way, a search for MARK finds each span and the 8 bytes of its id.
"""

from __future__ import annotations

import re
import time

import numpy as np

from tests.bench.bodies import AGENT_DIGITS, FreshBodies

MARK = b"\xf5numbered\xf6\xf7\xf8"
_SPAN = re.compile(re.escape(MARK) + b".{4}\x12\x08(.{8})", re.DOTALL)
assert len(MARK) == 12


def numbers_in(body: bytes) -> np.ndarray:
    """The numbers of the spans in an encoded request, in order: int64 [spans]."""
    ids = np.frombuffer(b"".join(_SPAN.findall(body)), ">u8").astype(np.int64)
    return ids - 1


class NumberedBodies:
    """Requests of `spans` tool calls of 530 B each. No two spans share an id."""

    def __init__(self, spans: int, *, agents: int = 10_000, all_new: bool = False) -> None:
        """`all_new`: every call is the first of its agent and of its session."""
        template = FreshBodies(spans, agents)
        self.spans = spans
        self._agents, self._all_new = agents, all_new
        self._bytes, self._places = template._bytes, template._places
        self._rng = np.random.default_rng(1)
        self._index = np.arange(spans)
        self._columns = {
            name: places[:, None] + np.arange(width)
            for name, places, width in (
                (name, self._places[name], width)
                for name, width in (
                    ("trace_id", 16),
                    ("span_id", 8),
                    ("start", 8),
                    ("end", 8),
                    ("agent", AGENT_DIGITS),
                    ("session", AGENT_DIGITS),
                )
            )
        }
        self._powers = 10 ** np.arange(AGENT_DIGITS)[::-1]

    @property
    def size_bytes(self) -> int:
        """Length of every body."""
        return int(self._bytes.size)

    def make(self, request: int, now_ns: int | None = None) -> bytes:
        """The request of that number. Its calls end now."""
        numbers = request * self.spans + self._index
        end_ns = time.time_ns() if now_ns is None else now_ns
        trace_id = np.frombuffer(MARK + (request & 0xFFFF_FFFF).to_bytes(4, "big"), np.uint8)
        ends = np.frombuffer(end_ns.to_bytes(8, "little"), np.uint8)
        starts = np.frombuffer((end_ns - 1_000_000).to_bytes(8, "little"), np.uint8)
        who = numbers if self._all_new else self._rng.integers(0, self._agents, self.spans)
        digits = (who[:, None] // self._powers % 10 + ord("0")).astype(np.uint8)
        out, columns = self._bytes, self._columns
        out[columns["trace_id"]] = trace_id
        out[columns["span_id"]] = (numbers + 1).astype(">u8").view(np.uint8).reshape(-1, 8)
        out[columns["start"]] = starts
        out[columns["end"]] = ends
        out[columns["agent"]] = digits
        out[columns["session"]] = digits
        return out.tobytes()
