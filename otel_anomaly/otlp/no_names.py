"""Texts that stand where a name belongs and say that there is none."""

from __future__ import annotations

import numpy as np

from otel_anomaly.kernels import Array, Int, borrow, inlined, kernel, load1
from otel_anomaly.otlp.conventions import NO_SERVICE

_NO_SERVICE = np.frombuffer(NO_SERVICE.encode(), np.uint8)
_COLON = 58


@inlined
def is_no_service(data: Array, at: Int, length: Int) -> bool:
    """Whether a service's name is the one that an SDK makes up for want of any."""
    if length < _NO_SERVICE.size or load1(data, at) != _NO_SERVICE[0]:
        return False
    return _begins_like_none(data, at, length)


@kernel
def _begins_like_none(data: Array, at: Int, length: Int) -> bool:
    data = borrow(data)
    for i in range(_NO_SERVICE.size):
        if load1(data, at + i) != _NO_SERVICE[i]:
            return False
    return length == _NO_SERVICE.size or load1(data, at + _NO_SERVICE.size) == _COLON


@inlined
def without_space(data: Array, at: Int, length: Int) -> tuple[Int, Int]:
    """(place, length) of a text without ASCII white space around it."""
    end = at + length
    while at < end and _is_space(load1(data, at)):
        at += 1
    while at < end and _is_space(load1(data, end - 1)):
        end -= 1
    return at, end - at


@inlined
def _is_space(byte: Int) -> bool:
    return byte == 32 or 9 <= byte <= 13
