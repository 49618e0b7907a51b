"""What one key alone cannot tell: keys that contradict each other, and where files lie.

A conflict names the keys it is about, so that the message can point at the line of one that the
user has written; the other may be a default.
"""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_anomaly.config.exporters import AnyExporterConfig, FileExporterConfig
    from otel_anomaly.config.models import Config

CONFLICT = "conflict"
KeyPath = tuple[str, ...]
ENDPOINT_KEYS = ("endpoint", "traces_endpoint", "metrics_endpoint", "logs_endpoint")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARD = frozenset({"0.0.0.0", "::"})  # noqa: S104 - names them, binds nothing.
_LOCAL = _LOOPBACK | _WILDCARD
SNAPSHOT_ENDINGS: Final = ("", ".1", ".new", ".refused", ".1.refused", ".before-failure")
"""Of all names that snapshots take: the last, the one before, and what is put aside."""
_SCHEME_PORTS = {"http": 80, "https": 443}


def conflict(message: str, *keys: str | KeyPath) -> PydanticCustomError:
    """An error about `keys`, each relative to the section that raises it."""
    paths = tuple((key,) if isinstance(key, str) else key for key in keys)
    return PydanticCustomError(CONFLICT, "{message}", {"message": message, "keys": paths or ((),)})


class _Address(NamedTuple):
    """Where something listens or connects to, and the key that says so."""

    key: KeyPath
    text: str
    host: str
    port: int

    @property
    def place(self) -> str:
        """What two that meet would share."""
        return self.text if self.text.startswith("unix:") else f"port {self.port}"

    def meets(self, other: _Address) -> bool:
        """Whether two listeners here would want the same port."""
        if self.text.startswith("unix:") or other.text.startswith("unix:"):
            return self.text == other.text
        if self.port != other.port or self.port == 0:
            return False
        hosts = {self.host, other.host}
        one_name = len(hosts) == 1 or bool(hosts & _WILDCARD)
        return one_name or ("localhost" in hosts and hosts <= _LOOPBACK)

    def reaches(self, listener: _Address) -> bool:
        """Whether connecting to this address ends at `listener`, as far as names can tell."""
        if listener.text.startswith("unix:"):
            return False  # Exporters connect to ports alone.
        if self.host not in _LOCAL:
            return self.port == listener.port and self.host == listener.host
        return listener.host in _LOCAL and self.meets(listener)


def _address(key: KeyPath, text: str) -> _Address:
    """Take `host:port` or a URL apart."""
    parts = urlsplit(text if "://" in text else f"//{text}")
    port = parts.port if parts.port is not None else _SCHEME_PORTS.get(parts.scheme, 0)
    return _Address(key, text, (parts.hostname or "").lower(), port)


def check_together(config: Config) -> None:
    """Refuse parts that are each fine and cannot work together."""
    doors = _doors(config)
    _check_listeners(doors, config.telemetry.metrics.endpoint)
    _check_loops(config, doors)
    _check_files(config)


def _doors(config: Config) -> list[_Address]:
    protocols = config.receivers.otlp.protocols
    base = ("receivers", "otlp", "protocols")
    named = (("grpc", protocols.grpc), ("http", protocols.http))
    return [_address((*base, name, "endpoint"), door.endpoint) for name, door in named if door]


def _check_listeners(doors: list[_Address], metrics_endpoint: str) -> None:
    metrics = _address(("telemetry", "metrics", "endpoint"), metrics_endpoint)
    for one, other in combinations([*doors, metrics], 2):
        if one.meets(other):
            text = f"{'.'.join(other.key)} and {'.'.join(one.key)} cannot share {one.place}"
            raise conflict(text, other.key, one.key)


def _check_loops(config: Config, doors: list[_Address]) -> None:
    for name, exporter in config.exporters.items():
        for key, url in _targets(exporter):
            path = ("exporters", name, key)
            target = _address(path, url)
            for door in doors:
                if target.reaches(door):
                    text = f"sends to our own door {door.text}: every span would come back for ever"
                    raise conflict(text, path, door.key)


def _targets(exporter: AnyExporterConfig) -> Iterator[tuple[str, str]]:
    """Where an exporter sends to: key and URL."""
    if exporter.kind in {"otlp_grpc", "otlp_http"}:
        for key in ENDPOINT_KEYS:
            url = getattr(exporter, key, None)
            if url is not None:
                yield key, url


def destinations(config: Config) -> Iterator[tuple[str, str]]:
    """Exporter and address, of all that send somewhere."""
    for name, exporter in config.exporters.items():
        for _, url in _targets(exporter):
            yield name, url


def listening(config: Config) -> list[str]:
    """The addresses of our doors."""
    return [door.text for door in _doors(config)]


def _check_files(config: Config) -> None:
    """Two writers of one file, or of one queue's directory, would destroy it."""
    taken: dict[str, KeyPath] = {}
    for key, path in _written_files(config):
        place = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links on the disk.
        if place in taken:
            text = f"{'.'.join(taken[place])} and {'.'.join(key)} would both write {path}"
            raise conflict(text, key, taken[place])
        taken[place] = key


def _written_files(config: Config) -> Iterator[tuple[KeyPath, Path]]:
    for name, exporter in config.exporters.items():
        if exporter.sending_queue.storage == "disk":
            key = ("exporters", name, "sending_queue", "directory")
            yield key, queue_directory(config, name)
        if exporter.kind == "file":
            for path in signal_paths(config, exporter).values():
                yield ("exporters", name, "path"), path
    if config.audit.enabled:
        yield ("audit", "path"), audit_path(config)
    if config.storage.snapshots.enabled:
        path = snapshot_path(config)
        for ending in SNAPSHOT_ENDINGS:
            yield ("storage", "snapshots", "path"), path.with_name(path.name + ending)


def signal_paths(config: Config, exporter: FileExporterConfig) -> dict[str, Path]:
    """Signal -> the file it goes to: metrics and logs lie beside the traces, with their names."""
    ending = "jsonl" if exporter.format == "json" else "binpb"
    path = Path(exporter.path or Path(config.storage.directory, f"spans.{ending}"))
    beside = {signal: path.with_name(signal + path.suffix) for signal in ("metrics", "logs")}
    return {"traces": path, **beside}


def queue_directory(config: Config, name: str) -> Path:
    """Where an exporter's disk queue lies. A name's `/` and all that is odd in it become %XX."""
    given = config.exporters[name].sending_queue.directory
    return Path(given or Path(config.storage.directory, "queue", quote(name, safe="")))


def audit_path(config: Config) -> Path:
    """Where the audit trail lies."""
    return Path(config.audit.path or Path(config.storage.directory, "audit.jsonl"))


def snapshot_path(config: Config) -> Path:
    """Where what was learned lives on."""
    default = Path(config.storage.directory, "state.snapshot")
    return Path(config.storage.snapshots.path or default)
