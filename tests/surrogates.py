"""Halves of surrogate pairs in JSON, as the slow twins read them."""

from __future__ import annotations

import re

_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # A pair.
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
    r"|\\.",
    re.DOTALL,
)


def without_halves(text: str) -> str:
    r"""JSON in which no string has half a pair: U+FFFD stands there.

    >>> without_halves(r'"\ud83d \ud83d\ude00 \\ud83d"')
    '"\\ufffd \\ud83d\\ude00 \\\\ud83d"'
    """
    return _ESCAPE.sub(lambda found: r"\ufffd" if found["half"] else found[0], text)
