"""A tool's name without what it belongs to: the server or the plugin that stands in front of it.

    mcp__<server>__<tool>     wherever it is written so
    <plugin>-<function>       under a scope that names all of its tools so

The same tool is told with and without them, on the span and on the log record of one call.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, inlined, kernel, load1
from otel_anomaly.otlp.attributes import STRING
from otel_anomaly.otlp.dialects import TOOL
from otel_anomaly.otlp.hashing import hash_bytes
from otel_anomaly.otlp.rows import ABSENT, IN_SCOPE, NAMES_PLUGIN
from otel_anomaly.otlp.wire import BYTES, read_length, read_tag, skip

SERVER_PREFIX: Final = np.frombuffer(b"mcp__", np.uint8)
_UNDERSCORE: Final = 95
_HYPHEN: Final = 45


@inlined
def begins(data: Array, at: Int, length: Int, keys: Record, text: Int, size: Int) -> bool:
    """Whether a range begins with a text of the table."""
    if length < size:
        return False
    for i in range(size):
        if load1(data, at + i) != keys["texts"][text + i]:
            return False
    return True


@kernel
def server_size(data: Array, at: Int, length: Int) -> Int:
    """How much of a tool's name is the server it belongs to."""
    for i in range(SERVER_PREFIX.size):
        if length <= i or load1(data, at + i) != SERVER_PREFIX[i]:
            return np.int64(0)
    for i in range(SERVER_PREFIX.size + 1, length - 2):
        if load1(data, at + i) == _UNDERSCORE and load1(data, at + i + 1) == _UNDERSCORE:
            return i + 2
    return np.int64(0)


@kernel
def note_scope(data: Array, at: Int, end: Int, keys: Record, inherited: Record) -> None:
    """Note of a checked Scope whether its tools are named with their plugins.

    A later name overrides an earlier one.
    """
    while at < end:
        tag, at = read_tag(data, at, end)
        if tag == (1 << 3 | BYTES):
            start, stop = read_length(data, at, end)
            inherited["flags"] &= ~NAMES_PLUGIN
            for i in range(keys["scope_count"]):
                text, size = keys["scopes"][i, 0], keys["scopes"][i, 1]
                if begins(data, start, stop - start, keys, text, size):
                    inherited["flags"] |= NAMES_PLUGIN
        at = skip(data, at, end, tag, IN_SCOPE)


@kernel
def cut_plugin(data: Array, seed: Int, row: Record) -> None:
    """Leave of a tool's name what follows the first hyphen that has text on both sides."""
    if row["order"][TOOL] == ABSENT or row["kind"][TOOL] != STRING:
        return
    at = np.int64(row["at"][TOOL])
    length = np.int64(row["length"][TOOL])
    for i in range(1, length - 1):
        if load1(data, at + i) == _HYPHEN:
            at, length = at + i + 1, length - i - 1
            row["at"][TOOL], row["length"][TOOL] = at, length
            row["hash"][TOOL] = hash_bytes(data, at, length, seed)
            return
