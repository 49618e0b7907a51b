"""Durations, sizes and addresses: from YAML text to one integer or string, and back for people."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND_NS = 1_000_000_000
DAY_NS = 86400 * SECOND_NS

DURATION_MAX_NS = 3650 * DAY_NS
"""Ten years: sums of a few of these and a time of today fit in an int64."""
SIZE_MAX_BYTES = 1024 * GIB

_DURATION_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
    "d": 86400 * SECOND_NS,
}
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "KB": 1000,
    "MB": 10**6,
    "GB": 10**9,
}
# More digits are no quantity of anything here.
_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION_PART = re.compile(rf"({_NUMBER})(ns|us|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ns|us|ms|s|m|h|d)){{1,7}}")
_ENDPOINT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:/@\s\[\]]+):(\d{1,5})")
_PORT_MAX = 65535
_URL_WANTED = "must be a URL, like http://127.0.0.1:4318"


def duration_ns(value: object) -> object:
    """`90s`, `1m30s`, `0.5h` to nanoseconds; a bare 0 is allowed, other bare numbers are not."""
    if isinstance(value, int | str) and value in {0, "0"} and value is not False:
        return 0
    if not isinstance(value, str) or not _DURATION.fullmatch(value.strip()):
        raise ValueError("must be a duration with its unit, like 10s, 1m30s or 24h")
    parts = _DURATION_PART.findall(value)
    return round(sum(Fraction(number) * _DURATION_UNITS_NS[unit] for number, unit in parts))


def size_bytes(value: object) -> object:
    """`64MiB` to bytes; a bare whole number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError("must be a size, like 512KiB, 64MiB or 1GiB")
    return round(Fraction(match[1]) * _SIZE_UNITS[match[2]])


def duration_text(duration: int) -> str:
    """Nanoseconds as people write them: `60s`, `10m`, `1h`, `24h`; never `1m` or `1d`."""
    for unit, least in (("d", 2), ("h", 1), ("m", 2)):
        count, rest = divmod(duration, _DURATION_UNITS_NS[unit])
        if not rest and count >= least:
            return f"{count}{unit}"
    for unit in ("s", "ms", "us"):
        count, rest = divmod(duration, _DURATION_UNITS_NS[unit])
        if not rest:
            return f"{count}{unit}"
    return f"{duration}ns"


def size_text(size: int) -> str:
    """Bytes as people write them: `64MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        count, rest = divmod(size, _SIZE_UNITS[unit])
        if count and not rest:
            return f"{count}{unit}"
    return f"{size}B"


def _whole(value: object) -> object:
    """YAML reads `on` as true, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number")  # noqa: TRY004 - pydantic's contract.
    return value


def _real(value: object) -> object:
    """As for whole numbers."""
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic's contract.
    return value


def _endpoint(value: object) -> object:
    """`host:port`; the port may be 0 for any free one."""
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("must be host:port, like 127.0.0.1:4317")
    if int(match[1]) > _PORT_MAX:
        raise ValueError(f"the port must be at most {_PORT_MAX}")
    return value


def door_endpoint(value: object) -> object:
    """`host:port`, or `unix://` and an absolute path (107 bytes fit into a socket address)."""
    if isinstance(value, str) and value.startswith("unix:"):
        if not re.fullmatch(r"unix:///[!-~]{1,100}", value):
            raise ValueError("must be unix:// and an absolute path of at most 101 characters")
        return value
    return _endpoint(value)


def _grpc_target(value: object) -> object:
    """`host:port`, `http://host:port` or `https://host:port`."""
    if not isinstance(value, str):
        raise ValueError("must be host:port, like tempo:4317")  # noqa: TRY004 - pydantic's contract.
    target = value.removesuffix("/")
    try:
        _endpoint(re.sub(r"^https?://", "", target))
    except ValueError:
        raise ValueError("must be host:port, like tempo:4317, or https://tempo:4317") from None
    return target


def _url(value: object) -> object:
    """A base URL."""
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError(_URL_WANTED)
    try:
        _ = urlsplit(value).port
    except ValueError:  # Its words quote what may be a password: `https://user:a1/b2@host`.
        raise ValueError(_URL_WANTED) from None
    return value


Count = Annotated[int, BeforeValidator(_whole)]
"""A whole number."""
Ratio = Annotated[float, BeforeValidator(_real)]
"""A number."""
Duration = Annotated[
    int,
    BeforeValidator(duration_ns),
    Field(ge=0, le=DURATION_MAX_NS),
    PlainSerializer(duration_text, when_used="json"),
]
"""Nanoseconds inside, `10s` in YAML and JSON."""
Size = Annotated[int, BeforeValidator(size_bytes), Field(ge=0, le=SIZE_MAX_BYTES)]
"""Bytes inside, `64MiB` in YAML."""
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
"""`host:port` to listen on."""
GrpcTarget = Annotated[str, BeforeValidator(_grpc_target)]
"""`host:port` to connect to, with or without a scheme."""
Url = Annotated[str, BeforeValidator(_url)]
"""`http://` or `https://`."""


def quantity_text(field: FieldInfo, value: int) -> str | None:
    """`value` in the unit of a duration or size field; None for a field that has none."""
    if value == 0:
        return "0"
    readers = {getattr(part, "func", None) for part in field.metadata}
    if duration_ns in readers:
        return duration_text(value)
    if size_bytes in readers:
        return size_text(value)
    return None
