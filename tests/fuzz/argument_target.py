"""What the fuzzer tries to break in the argument readers: for any bytes they agree with the twin.

The first byte says what the others are: text where it is even, else an AnyValue message.
"""

from __future__ import annotations

import random
import zlib

from otel_anomaly.otlp.attributes import ANY, STRING
from tests.argument_rigs import Twins, broken, is_any_value, is_utf8


def check(data: bytes) -> None:
    """AssertionError where fast and slow disagree about `data` or about something close to it."""
    if not data:
        return
    rng, twins, value = random.Random(zlib.crc32(data)), Twins(), data[1:]
    kind, is_sound = (ANY, is_any_value) if data[0] & 1 else (STRING, is_utf8)
    for changed in (value, broken(rng, value), broken(rng, value), value):
        if is_sound(changed):
            twins.check(changed, kind)
