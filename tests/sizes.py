"""How much a test does: a little in every run, more when asked for, less without compilation.

`TEST_SCALE=100 pytest tests/test_scan.py` is the long form. Under NUMBA_DISABLE_JIT=1 the kernels
run as plain Python, some hundred times slower, so the same test tries fewer cases.
"""

from __future__ import annotations

import os

import numba

COMPILED = not numba.config.DISABLE_JIT  # type: ignore[attr-defined,unused-ignore]
"""False when kernels run as plain Python."""

_SCALE = float(os.environ.get("TEST_SCALE", "1")) * (1 if COMPILED else 0.1)


def scaled(count: int) -> int:
    """`count` cases at the usual size, at least one."""
    return max(1, round(count * _SCALE))
