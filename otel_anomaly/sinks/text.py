"""Times and strings from outside, made safe to write down.

Agents choose their own names, so a name may be a megabyte long, hold half a surrogate pair, or
move the cursor of whoever reads it. Nothing here raises, whatever the value.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import get_type_hints

from otel_anomaly.handoff import EpisodeEvent

IDENTITY_BYTES_MAX = 256
REASON_BYTES_MAX = 4096
CUT_MARK = "...[cut]"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_MAX = (1 << 64) - 1  # In the year 2554; OTLP has no later time.
_PLAIN = re.compile(r"[\w.:@/+-]+")
_TEXT_FIELDS = tuple(
    name for name, kind in get_type_hints(EpisodeEvent).items() if kind in {str, str | None}
)


def rfc3339(time_ns: int, *, fraction: bool = True) -> str:
    """Nanoseconds since 1970 as UTC; a time that OTLP cannot carry becomes the nearest one.

    >>> rfc3339(1_795_255_200_000_000_007)
    '2026-11-21T10:00:00.000000007Z'
    >>> rfc3339(1_795_255_200_000_000_007, fraction=False)
    '2026-11-21T10:00:00Z'
    """
    seconds, rest_ns = divmod(min(max(int(time_ns), 0), _NS_MAX), 1_000_000_000)
    day_time = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{day_time}.{rest_ns:09d}Z" if fraction else f"{day_time}Z"


def cut(value: str, bytes_max: int = IDENTITY_BYTES_MAX) -> str:
    """`value` as valid UTF-8 of at most `bytes_max` bytes; a cut one ends in a mark.

    A half surrogate pair has no UTF-8 form; it becomes its escape.

    >>> cut("abcdefghijkl", 11)
    'abc...[cut]'
    """
    raw = value.encode("utf-8", "backslashreplace")
    if len(raw) <= bytes_max:
        return raw.decode()
    return raw[: bytes_max - len(CUT_MARK)].decode("utf-8", "ignore") + CUT_MARK


def trimmed(event: EpisodeEvent) -> EpisodeEvent:
    """The event without the part of its strings that no sink writes.

    A queue is bounded in events, so each event must be bounded in bytes. One character more than
    the limit stays: `cut` then still sees that there was more.
    """
    long_ones = {}
    for name in _TEXT_FIELDS:
        value = getattr(event, name)
        limit = REASON_BYTES_MAX if name == "reason" else IDENTITY_BYTES_MAX
        if value is not None and len(value) > limit:
            long_ones[name] = value[: limit + 1]
    return event._replace(**long_ones) if long_ones else event


def printable(value: str, chars_max: int) -> str:
    r"""`value` on one line, without anything that steers a terminal, at most so many characters.

    Escaped are controls, line ends, bidirectional overrides and other formats, private and
    unassigned characters, and the backslash itself, so that no name can look like another's escape.

    >>> printable("a\x1b[31m\u202eb" + chr(92), 40)
    'a\\x1b[31m\\u202eb\\\\'
    """
    head = value[: chars_max + 1]
    text = "".join(
        char
        if char.isprintable() and char != "\\"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in head
    )
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."


def quoted(value: str, chars_max: int) -> str:
    """`printable`, in quotes where the bare value could be taken for more than one word.

    >>> quoted("support", 9), quoted("a: [ep 1]", 9), quoted("", 9)
    ('support', '"a: [ep 1]"', '""')
    """
    text = printable(value, chars_max)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace('"', "'") + '"'
