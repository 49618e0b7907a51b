"""What a detector says of one call, and the actions a policy ranks."""

from __future__ import annotations

from typing import Final

import numpy as np

ALLOW, WARN, PAUSE, BLOCK = np.arange(4)
ACTIONS: Final = ("allow", "warn", "pause", "block")

SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * SECOND_NS

SIGN = np.dtype(
    [
        ("score", "f8"),  # 0..1; 0 says nothing.
        ("observed", "f8"),
        ("limit", "f8"),
        ("usual", "f8"),  # The baseline, where there is one.
        ("window_s", "f8"),
        ("ratio", "f8"),  # Observed against the limit, also when nothing is found: hysteresis.
        ("action", "i1"),
        ("skipped", "i1"),  # Reason it could not judge, 0: it did.
        ("variant", "i1"),  # Which of the detector's clauses words it.
    ],
    align=True,
)
"""One detector about one call."""

(
    JUDGED,
    LATE,
    COLD,
    NO_ENTITY,
    NO_ARGUMENTS,
    NOT_TOLD,
    EXEMPT,
    FULL,
    OFF,
) = range(9)
SKIP_REASONS: Final = (
    "",
    "late",
    "learning",
    "no_entity",
    "no_arguments",
    "not_told",  # The telemetry does not say what the detector looks at.
    "exempt",
    "memory_full",
    "off",
)
