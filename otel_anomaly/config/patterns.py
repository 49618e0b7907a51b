"""Names, patterns and addresses in the configuration: what a list of them may hold.

Globs know two signs: `*` stands for any text, also none, `?` for one character. Letter case is
ignored within ASCII. Hosts are written as `api.example.com`, `*.example.com` (below it),
`.example.com` (it and below), an IP address, or a network (`10.0.0.0/8`); a port after it
(`host:443`, `[::1]:443`) allows that port only. A bucket of a storage service is written with its
scheme, `s3://bucket`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from otel_anomaly.config.zones import zone

GLOBS_MAX, GLOB_BYTES_MAX = 64, 64
PATTERNS_MAX = 512
"""Different globs of one kind in the whole configuration: they are one table, matched in turn."""
NAMES_MAX, NAME_BYTES_MAX = 64, 128
HOSTS_MAX = 256

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*?\.)?(?:{_LABEL}\.)*{_LABEL}")
_LIKE_AN_ADDRESS = re.compile(r"[\d.]+(?:/[\d.]*)?|\[.*|[0-9a-f:.]*:[0-9a-f:.]*(?:/\d*)?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # Last part of an address, as URLs are read (WHATWG).
_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*):(?P<port>\d{1,5})")
STORES = (
    *("abfs", "abfss", "adl", "az", "azure", "b2", "cos", "cosn", "dropbox", "gcs", "gdrive", "gs"),
    *("hf", "obs", "onedrive", "oss", "r2", "s3", "s3a", "s3n", "wasb", "wasbs"),
)
"""Schemes behind which stands the name of a bucket."""
_BUCKET = re.compile(r"(?P<scheme>\w+)://[a-z0-9][a-z0-9._-]{0,254}")
_HOST_CHARS_MAX, _PORT_MAX = 253, 65535


def _one_is_a_list(value: object) -> object:
    """A pattern alone is a list of one."""
    return (value,) if isinstance(value, str) else value


def _glob(text: str) -> str:
    if not text or len(text.encode(errors="replace")) > GLOB_BYTES_MAX or not text.isprintable():
        raise ValueError(f"must be a pattern of 1 to {GLOB_BYTES_MAX} printable bytes")
    return text


def _name(text: str) -> str:
    if not text or len(text.encode(errors="replace")) > NAME_BYTES_MAX or not text.isprintable():
        raise ValueError(f"must be a name of 1 to {NAME_BYTES_MAX} printable bytes")
    return text


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("must name each once")
    return names


def _host(text: str) -> str:
    """One entry of a list of hosts, in lower case, without the dot at the end."""
    entry = text.lower()
    if not entry.isascii():
        raise ValueError("must be ASCII: write the xn-- form of the name")
    if "://" in entry:
        return _bucket(entry)
    match = _PORT.fullmatch(entry)
    host = match["host"] if match else entry
    if match and not 0 < int(match["port"]) <= _PORT_MAX:
        raise ValueError(f"the port must be 1 to {_PORT_MAX}")
    if _LIKE_AN_ADDRESS.fullmatch(host):
        _check_address(host)
        return entry
    name = host.removesuffix(".")
    if len(name) > _HOST_CHARS_MAX or not _HOST.fullmatch(name):
        raise ValueError("must be a host, *.domain, .domain, an address or a network")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise ValueError("ends in a number, so URLs read it as an address")
    return f"{name}:{match['port']}" if match else name


def _bucket(entry: str) -> str:
    """One bucket of a storage service."""
    match = _BUCKET.fullmatch(entry)
    if match is None or match["scheme"] not in STORES:
        raise ValueError("must be a bucket like s3://name, or a host without scheme and path")
    return entry


def _check_address(host: str) -> None:
    bare = host
    if host.startswith("["):
        bare = host.removeprefix("[").removesuffix("]")
        if ":" not in bare or not host.endswith("]"):
            raise ValueError("brackets are for IPv6 addresses, like [::1]:443")
    try:
        ipaddress.ip_network(bare)  # Strict: bits right of the mask are a mistake.
    except ValueError as error:
        raise ValueError(f"must be an address or a network: {error}") from None


def _timezone(name: str) -> str:
    zone(name)
    return name


Globs = Annotated[
    tuple[Annotated[str, AfterValidator(_glob)], ...],
    BeforeValidator(_one_is_a_list),
    Field(max_length=GLOBS_MAX),
]
"""Patterns; one alone needs no list."""
Names = Annotated[
    tuple[Annotated[str, AfterValidator(_name)], ...],
    Field(max_length=NAMES_MAX),
    AfterValidator(_each_once),
]
"""Names as they are, each once."""
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], Field(max_length=HOSTS_MAX)]
"""Hosts, suffixes, addresses and networks."""
TimeZone = Annotated[str, AfterValidator(_timezone)]
"""A name of the IANA database, or UTC, which needs none."""
