"""What the fuzzer tries to break in the JSON codec: for any bytes it agrees with its slow twin.

The first byte says what the others are: its lowest bit whether a line or a body, the rest of which
signal. What is accepted goes on into the other direction.
"""

from __future__ import annotations

import random
import zlib

from otel_anomaly.handoff import Signal
from tests.json_lines import check_body, check_line, mutated

SIGNALS = list(Signal)


def check(data: bytes) -> None:
    """AssertionError where fast and slow disagree about `data` or about something close to it."""
    if not data:
        return
    signal, value = SIGNALS[(data[0] >> 1) % len(SIGNALS)], data[1:]
    rng = random.Random(zlib.crc32(data))
    if data[0] & 1:
        line = check_body(value, signal)
        if line is not None:
            assert check_line(line, signal) is not None
        check_body(value + value, signal)
        return
    for changed in (value, mutated(rng, value), mutated(rng, value)):
        body = check_line(changed, signal)
        if body is not None:
            assert check_body(body, signal) is not None
