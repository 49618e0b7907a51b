"""Lists of hosts that an operator writes down, and whether a host is on one.

    api.example.com        that host
    .example.com           that domain and everything below it
    *.example.com          everything below it, not the domain itself
    192.0.2.7  2001:db8::1  [2001:db8::1]
    192.0.2.0/24  2001:db8::/32
    any of these :443      (an IPv6 address in brackets then): only on that port
    s3://bucket            that bucket, of any storage service (gs://, az://, ...)

Names lie in one open-addressed table by the hash of their normal form. A host is looked up by its
whole name and by each of its endings that begins behind a dot; an address is held against each
network of the list. So a host costs the same with one entry and with two hundred.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, Record, kernel, signed
from otel_anomaly.otlp.characters import packed, word_at
from otel_anomaly.otlp.found import range_hash
from otel_anomaly.otlp.host_names import (
    ADDRESS4,
    ADDRESS6,
    BROKEN,
    HOST_BYTES,
    NAME,
    normal_host,
)

ENTRIES_MAX: Final = 256
_SLOTS: Final = 2 * ENTRIES_MAX

HOSTS = np.dtype(
    [
        ("count", "i8"),
        ("key", "i8", (_SLOTS,)),  # Hash of a name's normal form; 0: free.
        ("port", "i4", (_SLOTS,)),  # 0: any.
        ("covers", "i4", (_SLOTS,)),  # ITSELF, BELOW or both.
        ("nets", "i8"),
        ("net_high", "i8", (ENTRIES_MAX,)),
        ("net_low", "i8", (ENTRIES_MAX,)),
        ("mask_high", "i8", (ENTRIES_MAX,)),
        ("mask_low", "i8", (ENTRIES_MAX,)),
        ("net_port", "i4", (ENTRIES_MAX,)),
        ("net_is", "i4", (ENTRIES_MAX,)),  # ADDRESS4 or ADDRESS6.
    ],
    align=True,
)
"""One compiled list. All zeros: an empty one."""
ITSELF, BELOW = 1, 2

STORES: Final = {
    **dict.fromkeys(("s3", "s3a", "s3n"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "azure", "abfs", "abfss", "wasb", "wasbs", "adl"), "az"),
    **dict.fromkeys(("cos", "cosn"), "cos"),
    **{name: name for name in ("oss", "obs", "b2", "r2", "hf", "dropbox", "gdrive", "onedrive")},
}
"""Schemes of storage services, behind which stands a bucket -> the spelling that counts."""
_BUCKET = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<name>[\w.-]{1,255})")
_ENTRY = re.compile(r"(?P<scope>\*\.|\.)?(?P<host>\[[^\[\]/]*\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?")


def compile_hosts(patterns: Sequence[str], seed: int) -> Array:
    """A HOSTS [1] of these entries.

    Raises ValueError, naming the entry, for one that is no host, and when there are too many.
    """
    if len(patterns) > ENTRIES_MAX:
        raise ValueError(f"{len(patterns)} hosts, at most {ENTRIES_MAX} fit")
    compiled = np.zeros(1, HOSTS)
    for pattern in patterns:
        if "://" in pattern:
            _add_bucket(compiled[0], pattern, seed)
        elif not _add_network(compiled[0], pattern):
            _add_name(compiled[0], pattern, seed)
        compiled[0]["count"] += 1
    return compiled


def _add_network(hosts: Record, pattern: str) -> bool:
    """Add an address or a network. Whether the entry is one."""
    text, port = pattern, 0
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", pattern)
    with_port = re.fullmatch(r"([0-9.]+(?:/[0-9]+)?):([0-9]{1,5})", pattern)
    matched = bracketed or with_port
    if matched is not None:
        text = matched[1]
        port = _port(pattern, matched[2])
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        if matched is not None or "/" in text or re.fullmatch(r"[0-9.]+", text):
            raise ValueError(f"{pattern}: {error}") from None
        return False
    address, mask = int(network.network_address), int(network.netmask)
    if network.version == 4:
        address |= 0xFFFF << 32
        mask |= ((1 << 96) - 1) << 32
    at = int(hosts["nets"])
    hosts["net_high"][at], hosts["net_low"][at] = signed(address >> 64), signed(address)
    hosts["mask_high"][at], hosts["mask_low"][at] = signed(mask >> 64), signed(mask)
    hosts["net_port"][at] = port
    hosts["net_is"][at] = ADDRESS4 if network.version == 4 else ADDRESS6
    hosts["nets"] += 1
    return True


def _port(pattern: str, text: str | None) -> int:
    """The port of an entry, 0 when it has none."""
    port = int(text or 0)
    if text and not 1 <= port <= 65535:
        raise ValueError(f"{pattern}: a port is 1 to 65535")
    return port


def _add_name(hosts: Record, pattern: str, seed: int) -> None:
    """Add a name, or the domain whose hosts are meant."""
    matched = _ENTRY.fullmatch(pattern)
    if matched is None:
        raise ValueError(
            f"{pattern}: not a host, .domain, *.domain, address or network, each with :port or not"
        )
    raw = np.frombuffer(matched["host"].encode(), np.uint8)
    out = np.zeros(HOST_BYTES, np.uint8)
    length, what, _, _ = normal_host(raw, 0, raw.size, out)
    if what != NAME or any(not part for part in out[:length].tobytes().split(b".")):
        raise ValueError(f"{pattern}: not a host name")
    covers = {None: ITSELF, ".": ITSELF | BELOW, "*.": BELOW}[matched["scope"]]
    _enter(hosts, int(range_hash(out, 0, length, seed)), _port(pattern, matched["port"]), covers)


def _add_bucket(hosts: Record, pattern: str, seed: int) -> None:
    """Add a bucket of a storage service."""
    matched = _BUCKET.fullmatch(pattern.lower())
    scheme = STORES.get(matched["scheme"]) if matched else None
    if matched is None or scheme is None:
        raise ValueError(f"{pattern}: not a bucket like s3://name; schemes: {', '.join(STORES)}")
    text = np.frombuffer(f"{scheme}://{matched['name']}".encode(), np.uint8)
    _enter(hosts, int(range_hash(text, 0, text.size, seed)), 0, ITSELF)


def _enter(hosts: Record, key: int, port: int, covers: int) -> None:
    """Put an entry into the table."""
    at = key & (_SLOTS - 1)
    while hosts["key"][at] != 0:
        at = (at + 1) & (_SLOTS - 1)
    hosts["key"][at], hosts["port"][at], hosts["covers"][at] = key, port, covers


@kernel
def allowed(
    hosts: Record, host: Array, length: Int, what: Int, high: Int, low: Int, port: Int, seed: Int
) -> bool:
    """Whether a host, as `normal_host` gives it, is on the list. `port` 0: not known."""
    if hosts["count"] == 0 or what == BROKEN:
        return False
    if what != NAME:
        return _in_network(hosts, what, high, low, port)
    if _named(hosts, range_hash(host, np.int64(0), length, seed), ITSELF, port):
        return True
    for at in range(length - 1):
        if host[at] == 46 and _named(hosts, range_hash(host, at + 1, length, seed), BELOW, port):
            return True
    return False


@kernel
def is_bucket_of(hosts: Record, name: Array, length: Int, seed: Int) -> bool:
    """Whether a bucket, told as `scheme://name`, is on the list: only as itself, since its dots are
    no domain's."""
    if hosts["count"] == 0:
        return False
    return _named(hosts, range_hash(name, np.int64(0), length, seed), ITSELF, np.int64(0))


@kernel
def _named(hosts: Record, key: Int, covers: Int, port: Int) -> bool:
    """Whether an entry of that name covers what is asked for."""
    keys = hosts["key"]
    at = key & (_SLOTS - 1)
    while keys[at] != 0:
        if keys[at] == key and hosts["covers"][at] & covers != 0:
            wanted = hosts["port"][at]
            if wanted == 0 or wanted == port:
                return True
        at = (at + 1) & (_SLOTS - 1)
    return False


@kernel
def _in_network(hosts: Record, what: Int, high: Int, low: Int, port: Int) -> bool:
    """Whether an address lies in a network of the list."""
    for at in range(hosts["nets"]):
        wanted = hosts["net_port"][at]
        if (
            (high & hosts["mask_high"][at]) == hosts["net_high"][at]
            and (low & hosts["mask_low"][at]) == hosts["net_low"][at]
            and hosts["net_is"][at] == what
            and (wanted == 0 or wanted == port)
        ):
            return True
    return False


_LOCAL: Final = packed("local")
_INTERNAL: Final = packed("internal")
_TEST: Final = packed("test")
_LAN: Final = packed("lan")
_OCALHOST: Final = packed("ocalhost")  # The last eight letters.
_OME_ARPA: Final = packed("ome.arpa")


@kernel
def is_public(host: Array, length: Int, what: Int, high: Int, low: Int) -> bool:
    """Whether a host can be out on the internet: not by its address or name a local one.

    Sources: RFC 6890 and 6598 (addresses), RFC 6761, 6762, 8375 and 9476 (names). What is broken,
    or only may be local, is public.
    """
    if what == ADDRESS4:
        return _is_public_ipv4(low & 0xFFFFFFFF)
    if what == ADDRESS6:
        loopback = high == 0 and (low == 1 or low == 0)
        unique_local = (high >> 57) & 127 == 0xFC >> 1
        link_local = (high >> 54) & 1023 == 0xFE80 >> 6
        return not (loopback or unique_local or link_local)
    last = length
    while last > 0 and host[last - 1] != 46:
        last -= 1
    if what == BROKEN:
        return True
    if last == 0:
        return False
    word = word_at(host, last, length)
    if word == _LOCAL or word == _INTERNAL or word == _TEST or word == _LAN:
        return length - last > 8
    if length - last == 9 and host[last] == 108 and word == _OCALHOST:
        return False
    if length >= 9 and host[length - 9] == 104 and word_at(host, 0, length) == _OME_ARPA:
        return not (length == 9 or host[length - 10] == 46)
    return True


@kernel
def _is_public_ipv4(address: Int) -> bool:
    """Not this host, loopback, link-local, private or shared by a provider's customers."""
    first, second = address >> 24, (address >> 16) & 255
    if first == 0 or first == 10 or first == 127:
        return False
    if first == 169:
        return second != 254
    if first == 172:
        return second >> 4 != 1
    if first == 192:
        return second != 168
    return not (first == 100 and second >> 6 == 1)
