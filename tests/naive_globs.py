"""The slow twin of pattern matching: regular expressions."""

from __future__ import annotations

import re


def naive_match(glob: str, name: str) -> bool:
    """The same by the library."""
    signs = {"*": ".*", "?": "."}
    pattern = "".join(signs.get(sign, re.escape(folded(sign))) for sign in glob)
    return re.fullmatch(pattern, folded(name), re.DOTALL) is not None


def folded(text: str) -> str:
    """ASCII letters in lower case."""
    return "".join(sign.lower() if sign.isascii() else sign for sign in text)
