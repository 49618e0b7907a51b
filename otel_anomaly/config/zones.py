"""Time zones as numbers: when the offset from UTC changes, and to what."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from typing import Final

CHANGES_MAX: Final = 256
"""Changes of one zone: twice a year is common; Morocco's four a year lasted for some years."""
FIRST, LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)
"""Before and after that a zone keeps its first and its last offset."""
_STEP: Final = timedelta(days=1)


def zone(name: str) -> tzinfo:
    """The zone of an IANA name. "UTC" needs no database of zones; every other name does.

    Raises ValueError, naming the zone, when there is none of that name.
    """
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError) as error:
        if zoneinfo.available_timezones():
            text = f"{name!r} is no time zone; a name like Europe/Berlin is asked for"
        else:
            text = (
                f"{name!r} cannot be looked up: this system has no time zone database; "
                "install the package tzdata, or use UTC"
            )
        raise ValueError(text) from error


@cache
def offsets(name: str) -> tuple[tuple[int, int], ...]:
    """(from second since 1970, seconds east of Greenwich) of every offset from FIRST to LAST.

    `zoneinfo` tells offsets, not their changes: days whose ends differ are halved down to the
    second. No zone changes its mind twice a day.
    """
    place = zone(name)
    changes = [(int(FIRST.timestamp()), _offset(place, FIRST))]
    day = FIRST
    while day < LAST:
        following = day + _STEP
        if _offset(place, following) != changes[-1][1]:
            changes.append(_change(place, day, following))
        day = following
    if len(changes) > CHANGES_MAX:
        raise ValueError(f"{name!r} changes its offset more often than {CHANGES_MAX} times")
    return tuple(changes)


def _offset(place: tzinfo, when: datetime) -> int:
    offset = when.astimezone(place).utcoffset()
    assert offset is not None, "zones of the database know their offset"
    return int(offset.total_seconds())


def _change(place: tzinfo, low: datetime, high: datetime) -> tuple[int, int]:
    """The first second of the offset that holds at `high` and not at `low`."""
    after = _offset(place, high)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        if _offset(place, middle) == after:
            high = middle
        else:
            low = middle
    return int(high.timestamp()), after
