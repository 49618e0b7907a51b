"""`off_hours`: a call whose event time lies in the configured hours of the local day.

Sees: work at a time when nobody is expected to work.
Blind to: whether this agent usually works then; a clock that the agent sets to another hour.

    start < end    start <= local hour < end        9-17
    start > end    local hour >= start or < end     22-6, over midnight
    start = end    never (0-24: always)
    score          1.0 inside, 0 outside

The local hour is that of the configured time zone at the event's own time, daylight saving
included. The zone's changes of offset from 1990 to 2060 are written into the plan when it is made;
before and after that the first and the last offset hold. Each event is looked at once, so that the
score and what is said of it cannot differ. By itself it asks for no action: it goes into `risk`.

Source: ContextForge PR 3846. Not taken over: the UTC hour of arrival, read twice; and no way to say
"always", for 0-23 leaves out the last hour.

>>> from otel_anomaly.detectors.call import CALL
>>> plan = make_plan(OffHoursConfig(timezone="Europe/Berlin"))[0]
>>> call, sign = np.zeros(1, CALL)[0], np.zeros(1, SIGN)[0]
>>> for utc_hour in (3, 4, 12, 19, 20):  # In July Berlin is two hours ahead.
...     call["time_ns"] = (1_783_900_800 + utc_hour * HOUR_S) * SECOND_NS
...     score(plan, call, sign)
...     print(utc_hour, int(sign["observed"]), float(sign["score"]))
3 5 1.0
4 6 0.0
12 14 0.0
19 21 0.0
20 22 1.0
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.config import OffHoursConfig
from otel_anomaly.config.zones import CHANGES_MAX, offsets
from otel_anomaly.detectors.finding import JUDGED, OFF, SECOND_NS, SIGN
from otel_anomaly.detectors.silence import silence
from otel_anomaly.kernels import Int, Record, inlined

__all__ = ["CLAUSES", "NAME", "PLAN", "SIGN", "make_plan", "score"]

NAME: Final = "off_hours"
CLAUSES: Final = ("local hour {observed}, off hours {limit} to {usual}",)
HOUR_S: Final = 3600

PLAN = np.dtype(
    [
        ("enabled", "i8"),
        ("start", "i8"),
        ("end", "i8"),
        ("changes", "i8"),  # How many rows of the two below are in use, at least one.
        ("from_s", "i8", (CHANGES_MAX,)),  # Ascending; the first one stands for all time before.
        ("offset_s", "i8", (CHANGES_MAX,)),  # East of Greenwich.
    ]
)


def make_plan(config: OffHoursConfig) -> np.ndarray:
    """The configuration as the kernels read it: PLAN [1]."""
    plan = np.zeros(1, PLAN)
    plan["enabled"], plan["start"], plan["end"] = config.enabled, config.start, config.end
    changes = offsets(config.timezone)
    plan["changes"] = len(changes)
    for place, (from_s, offset_s) in enumerate(changes):
        plan["from_s"][0, place], plan["offset_s"][0, place] = from_s, offset_s
    return plan


@inlined
def _local_hour(plan: Record, second: Int) -> Int:
    """Hour of the local day, 0..23, of a second since 1970."""
    low, high = np.int64(0), plan["changes"]
    while high - low > 1:  # The offset in force began at `low` or later, and before `high`.
        middle = (low + high) >> 1
        if plan["from_s"][middle] <= second:
            low = middle
        else:
            high = middle
    return (second + plan["offset_s"][low]) // HOUR_S % 24


@inlined
def score(plan: Record, call: Record, sign: Record) -> None:
    """Judge one call by its event time."""
    silence(sign, JUDGED)
    start, end = plan["start"], plan["end"]
    if start == end:
        sign["skipped"] = OFF
        return
    hour = _local_hour(plan, call["time_ns"] // SECOND_NS)
    sign["observed"], sign["limit"], sign["usual"] = hour, start, end
    after, before = hour >= start, hour < end
    if (after and before) if start < end else (after or before):
        sign["score"] = 1.0
