"""What the scan finds: one row a span or log record, in columns that the judge reads."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.otlp.dialects import FACTS, RANKS_MAX, SPARES_MAX, WEAK

ABSENT: Final = 1 << 14
"""Order of a fact that is not there; real ones are below."""
SPAN_LEVEL, RESOURCE_LEVEL, SCOPE_LEVEL = np.arange(3) * RANKS_MAX
"""Added to the rank of a key by where it was found. Weak keys come 256 behind (`dialects.WEAK`)."""
assert SCOPE_LEVEL + RANKS_MAX <= WEAK
assert WEAK + SCOPE_LEVEL + RANKS_MAX <= ABSENT

# How deep a message lies, as protobuf counts: for the bound on nesting.
IN_REQUEST, IN_RESOURCE_SPANS, IN_SCOPE_SPANS, IN_SPAN, IN_ATTRIBUTE = np.arange(5)
IN_RESOURCE, IN_SCOPE = np.int64(2), np.int64(3)

IS_CALL, IS_HINT, IS_ERROR, BAD_ID = 1, 2, 4, 8
IS_PART, IS_BOUNDARY, IS_SERVER, IS_MCP, IS_LOG, NAMES_PLUGIN = 16, 32, 64, 128, 256, 512
assert IS_CALL == 1  # The scan adds it up.
"""Flags of a row.

IS_HINT: it names somebody itself, for its trace to know. BAD_ID: trace or span id not 16 or 8
bytes, or all zero. IS_PART: a part of a tool's span, whose error is that span's. IS_BOUNDARY: an
agent or a model. IS_SERVER: a span of kind SERVER. IS_LOG: a log record. NAMES_PLUGIN: written
under a scope that names a plugin in front of each tool.
"""

ROW = np.dtype(
    [
        ("flags", "i4"),
        ("index", "i4"),  # Number of the span in the request, in document order.
        ("scope", "i4"),  # Row of its ScopeSpans in `scopes`.
        ("length_at", "i4"),  # Where the length in front of the span stands.
        ("start", "i4"),
        ("end", "i4"),
        ("forged", "i4"),  # Bytes of attributes under our prefix, with tag and length.
        ("forged_count", "i4"),
        ("trace_at", "i4"),  # -1 when absent.
        ("span_at", "i4"),
        ("start_ns", "i8"),
        ("end_ns", "i8"),  # Of the end, else of the start; 0 when neither is there.
        ("trace", "i8"),  # Hash of the trace id; 0 when a log record has none.
        # Hash of trace id and span id; of a log record see `records`.
        ("identity", "i8"),
        ("parent", "i8"),  # The same of its parent; 0 when it has none.
        ("service", "i8"),  # Hash of the service's name and namespace; 0 when not told.
        # The best value seen for each role of `dialects`: where from, what, and its hash.
        ("order", "i2", (FACTS,)),
        ("kind", "i2", (FACTS,)),
        ("at", "i4", (FACTS,)),
        ("length", "i4", (FACTS,)),
        ("hash", "i8", (FACTS,)),  # 0 of arguments and result: they may be long.
    ],
    align=True,
)

BLANK = np.zeros(1, ROW)
"""What a resource inherits: nothing."""
BLANK["order"] = ABSENT
BLANK["trace_at"] = BLANK["span_at"] = -1

SCRATCH_BYTES: Final = 384
NOTES = np.dtype(
    [
        ("told", "i8"),  # Bit set of the spares that the span has.
        ("banned", "i8"),  # Hash of the model's name, once it was seen in the agent's place.
        ("service", "i8"),
        ("namespace", "i8"),
        ("kind", "i8", (SPARES_MAX,)),
        ("at", "i8", (SPARES_MAX,)),
        ("length", "i8", (SPARES_MAX,)),
        ("scratch", "u1", (SCRATCH_BYTES,)),
    ],
    align=True,
)
"""What is noted while one span is read, and worked off at its end."""
