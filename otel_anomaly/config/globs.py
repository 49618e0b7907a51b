"""Patterns against patterns: whether one matches all that another does, or anything with it.

`*` stands for any text, `?` for one character, letter case is ignored within ASCII, as where names
are matched (`policy`).

>>> covers("ci-*", "CI-build-?"), covers("ci-?", "ci-*")
(True, False)
>>> meet("*-ci", "build-*"), meet("a*", "b*")
(True, False)
"""

from __future__ import annotations

import re
from functools import cache

_WILD = re.compile(r"[*?]+")


def _plain(glob: str) -> str:
    """One spelling for each meaning: `*?*` is `?*`, and letters are small."""
    lower = "".join(sign.lower() if sign.isascii() else sign for sign in glob)
    return _WILD.sub(_ordered, lower)


def _ordered(signs: re.Match[str]) -> str:
    wild = signs[0]
    return "?" * wild.count("?") + ("*" if "*" in wild else "")


@cache
def covers(wide: str, narrow: str) -> bool:
    """Whether `wide` matches every text that `narrow` matches. Never says yes when it does not.

    A star takes as little as it can, and only the last one is moved, as in `policy`.
    """
    wide, narrow = _plain(wide), _plain(narrow)
    here, at, after_star, resume = 0, 0, -1, 0
    while at < len(narrow):
        wanted = wide[here] if here < len(wide) else ""
        if wanted == "*":
            here += 1
            after_star, resume = here, at
        elif narrow[at] != "*" and wanted in (narrow[at], "?"):
            here, at = here + 1, at + 1
        elif after_star >= 0:
            resume += 1
            here, at = after_star, resume
        else:
            return False
    return wide[here:] in ("", "*")


@cache
def meet(one: str, other: str) -> bool:
    """Whether some text is matched by both."""
    one, other = _plain(one), _plain(other)
    # Row by row: whether what is left of `one` meets what is left of `other`.
    below = [rest in ("", "*") for rest in (other[j:] for j in range(len(other) + 1))]
    for sign in reversed(one):
        row = [sign == "*" and below[-1]]
        for j in range(len(other) - 1, -1, -1):
            if sign == "*" or other[j] == "*":
                found = row[-1] or below[j]
            else:
                found = below[j + 1] and (sign == other[j] or "?" in (sign, other[j]))
            row.append(found)
        below = row[::-1]
    return below[0]
