"""One tool call as the detectors see it: numbers only, gathered once from the span."""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.otlp.content import DESTINATIONS_MAX

CALL = np.dtype(
    [
        ("time_ns", "i8"),  # Event time, settled.
        ("tool", "i8"),  # Hash of the tool's name; 0: not told.
        ("has_arguments", "i8"),  # Whether the span carries arguments.
        ("fingerprint", "i8"),  # Hash of tool and canonical arguments; 0 without arguments.
        ("names", "i8"),  # Hash of the set of argument names; 0 without arguments.
        ("result", "i8"),  # Hash of the canonical result; 0: not carried.
        ("program", "i8"),  # Hash of the program it starts; 0: none, or not told which.
        ("agent", "i8"),  # Hash of the agent it claims to come from; 0: none.
        ("owner", "i8"),  # Hash of the owner of the presented credential; 0: not told.
        ("destination", "i8", (DESTINATIONS_MAX,)),  # Hash of kind and normal form.
        ("destination_is", "i4", (DESTINATIONS_MAX,)),  # Bits of `content`: HOST, MAIL, OUTSIDE...
        ("destinations", "i4"),  # How many of them are in use.
        ("secrets", "i4"),
        ("credentials", "i4"),  # Of these: they log in where the call goes.
        ("personal", "i4"),  # Personal data of any kind, destinations not counted.
        ("personal_strong", "i4"),  # Of these: card, account and national id numbers.
        ("starts_program", "i4"),  # Whether the tool is one that starts programs.
        ("exempt", "i4"),  # Bits POLLING and BATCH.
        ("fresh", "i4"),  # 0: a copy of a call that is counted already.
        ("failed", "i4"),
    ],
    align=True,
)
POLLING, BATCH = 1, 2
"""Exemptions of a tool: it repeats by nature; it comes in masses by nature."""

CALL_BYTES: Final = CALL.itemsize
