"""A ring of one-second counters: how many calls an entity made in the last seconds.

    row:   | 12 | 3 | 0 | 0 | 7 | ... |   one counter a second, `seconds` of them in use
                      ^ head: the newest second seen; a second's place is `second % 60`

    total = sum of the counters over (head - seconds, head]

Two rules. A ring is brought up before it is asked or added to. A second that left the window is
held no more: what comes for it is late. Counters are 16 bits and stay at 65535; what is asked of
them is bounded to match.

Source: Grob's tool-spike detector (azerozero/grob, `src/security/tool_spike.rs`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Int, Record, inlined

SECONDS: Final = 60
COUNT_MAX: Final = 65535

RING = np.dtype([("head", "i8"), ("total", "i4"), ("counts", "u2", (SECONDS,))], align=True)
"""All zeros: nothing seen."""


@inlined
def bring_up(ring: Record, second: Int, seconds: Int) -> None:
    """Move the head to a newer second, dropping what leaves the window of `seconds`."""
    gap = second - ring["head"]
    if gap <= 0:
        return
    if gap >= seconds:
        for place in range(SECONDS):
            ring["counts"][place] = 0
        ring["total"] = 0
    else:
        leaving = (second - seconds) % SECONDS
        for _ in range(gap):
            ring["total"] -= ring["counts"][leaving]
            ring["counts"][leaving] = 0
            leaving = leaving - 1 if leaving > 0 else np.int64(SECONDS - 1)
    ring["head"] = second


@inlined
def holds(ring: Record, second: Int, seconds: Int) -> bool:
    """Whether a second is still in the window; if not, a call of it is late."""
    return bool(second > ring["head"] - seconds)


@inlined
def add(ring: Record, second: Int) -> None:
    """Count a call of a second that the ring holds."""
    place = second % SECONDS
    if ring["counts"][place] < COUNT_MAX:
        ring["counts"][place] += 1
        ring["total"] += 1


@inlined
def take_back(ring: Record, second: Int, seconds: Int) -> None:
    """Undo one `add`, unless its second has left the window since."""
    place = second % SECONDS
    if not holds(ring, second, seconds) or second > ring["head"]:
        return
    if ring["counts"][place] > 0:
        ring["counts"][place] -= 1
        ring["total"] -= 1
