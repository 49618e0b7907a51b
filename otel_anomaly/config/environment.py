"""OTEL_EXPORTER_OTLP_*: fills the otlp exporters where the configuration is silent.

The variables describe one destination. Its address, credentials and trust belong together: an
exporter whose endpoint is written in the configuration takes none of these from the environment, or
one backend's API key would be sent to another. `timeout` and `compression` fill any exporter.

A configuration that names no exporters gets one for the destination, beside its default file,
unless the destination is one of our own doors: the variable is often set for the agents, and
points at us.

Parsing is that of the OpenTelemetry specification ("Environment Variable Specification", "OTLP
Exporter Configuration"): empty is unset; a number or a choice that cannot be read is warned of and
ignored. The form for a signal stands before the general one. Headers, timeout, compression and
certificates exist once for each exporter: where the signals differ, the configuration has to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from otel_anomaly.config.conflicts import ENDPOINT_KEYS
from otel_anomaly.config.exporters import exporter_kind
from otel_anomaly.config.yaml_text import ConfigError, KeyPath, Layer, Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOG = logging.getLogger("otel_anomaly")

PREFIX: Final = "OTEL_EXPORTER_OTLP_"
SIGNALS: Final = ("traces", "metrics", "logs")
PROTOCOLS: Final = {
    "grpc": ("otlp_grpc", None),
    "http/protobuf": ("otlp_http", "proto"),
    "http/json": ("otlp_http", "json"),
}
"""Protocol -> kind of exporter and its encoding."""
PROTOCOL_DEFAULT: Final = "http/protobuf"
COMPRESSIONS: Final = frozenset({"gzip", "none"})
MADE: Final = "environment"
"""The exporter that is made from the variables is `otlp_http/environment`, or `otlp_grpc/...`."""
_MS_MAX: Final = 10**12
_IGNORED: Final = "environment variable %s is ignored: %s"


class Destination:
    """What the variables say."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __bool__(self) -> bool:
        """Whether they name an address."""
        return any(self._own(signal, "ENDPOINT") for signal in (None, *SIGNALS))

    @property
    def protocol(self) -> tuple[str, str | None]:
        """Kind of exporter, and its encoding where the kind has one."""
        name, value = self._agreed("PROTOCOL", SIGNALS)
        if value and value.lower() not in PROTOCOLS:
            LOG.warning(_IGNORED, name, f"must be one of {', '.join(PROTOCOLS)}")
            value = ""
        return PROTOCOLS[(value or PROTOCOL_DEFAULT).lower()]

    def layer(self, name: str, kind: str, *, whole: bool) -> Layer:
        """Keys of the exporter `name`; with `whole` also address, credentials and trust."""
        layer = Layer({"exporters": {name: {}}}, {})
        served = self._served()
        for key, (variable, value) in self._keys(kind, served, whole=whole).items():
            path: KeyPath = ("exporters", name, *key)
            layer = layer.under(_one(path, value, Origin(variable)))
        return layer

    def _keys(
        self, kind: str, served: tuple[str, ...], *, whole: bool
    ) -> dict[KeyPath, tuple[str, Any]]:
        found: dict[KeyPath, tuple[str, Any]] = {}
        readers: dict[KeyPath, tuple[str, Callable[[str, str], Any]]] = {
            ("timeout",): ("TIMEOUT", _timeout),
            ("compression",): ("COMPRESSION", _compression),
        }
        if whole:
            found |= self._addresses(kind, served)
            readers |= {
                ("headers",): ("HEADERS", _headers),
                ("tls", "ca_file"): ("CERTIFICATE", _as_it_is),
                ("tls", "cert_file"): ("CLIENT_CERTIFICATE", _as_it_is),
                ("tls", "key_file"): ("CLIENT_KEY", _as_it_is),
            }
            if kind == "otlp_grpc":
                readers["tls", "insecure"] = ("INSECURE", _flag)
        for path, (suffix, read) in readers.items():
            variable, text = self._agreed(suffix, served)
            value = read(variable, text) if text else None
            if value is not None:
                found[path] = (variable, value)
        return found

    def _addresses(self, kind: str, served: tuple[str, ...]) -> dict[KeyPath, tuple[str, Any]]:
        if kind == "otlp_grpc":
            variable, text = self._agreed("ENDPOINT", served)
            return {("endpoint",): (variable, text)} if text else {}
        found: dict[KeyPath, tuple[str, Any]] = {}
        if general := self._own(None, "ENDPOINT"):
            found["endpoint",] = (_name(None, "ENDPOINT"), general)
        for signal in SIGNALS:
            if own := self._own(signal, "ENDPOINT"):
                found[f"{signal}_endpoint",] = (_name(signal, "ENDPOINT"), own)
        return found

    def _served(self) -> tuple[str, ...]:
        """The signals that the variables give an address."""
        if self._own(None, "ENDPOINT"):
            return SIGNALS
        return tuple(signal for signal in SIGNALS if self._own(signal, "ENDPOINT")) or SIGNALS

    def _agreed(self, suffix: str, served: tuple[str, ...]) -> tuple[str, str]:
        """(variable, its text) for all of the signals; the text is empty when it is not set.

        Raises
        ------
        ConfigError
            The signals differ.
        """
        general = (_name(None, suffix), self._own(None, suffix))
        said = {
            signal: (_name(signal, suffix), own) if (own := self._own(signal, suffix)) else general
            for signal in served
        }
        if len({text for _, text in said.values()}) > 1:
            names = ", ".join(sorted({variable for variable, _ in said.values()}))
            raise ConfigError(
                f"{names}: differ, and an exporter has one of these for all signals:"
                " write an exporter into the configuration"
            )
        return next(iter(said.values()))

    def _own(self, signal: str | None, suffix: str) -> str:
        return self._environ.get(_name(signal, suffix), "").strip()


def fill(merged: Layer, environ: Mapping[str, str]) -> Layer:
    """`merged` with what the environment says, below it, of the exporters it has.

    Raises
    ------
    ConfigError
        The variables of the signals differ.
    """
    exporters = merged.data.get("exporters")
    if not isinstance(exporters, dict) or not any(name.startswith(PREFIX) for name in environ):
        return merged
    destination = Destination(environ)
    below = Layer({"exporters": {name: {} for name in exporters}}, {})  # The order stays.
    for name, part in exporters.items():
        kind = exporter_kind(str(name))
        if kind in {"otlp_grpc", "otlp_http"} and (part is None or isinstance(part, dict)):
            written = any((part or {}).get(key) is not None for key in ENDPOINT_KEYS)
            below = below.under(destination.layer(name, kind, whole=not written))
    return below.under(merged)


def made(environ: Mapping[str, str]) -> Layer | None:
    """An exporter for the destination of the environment; None when that names no address.

    Raises
    ------
    ConfigError
        The variables of the signals differ.
    """
    destination = Destination(environ)
    if not destination:
        return None
    kind, encoding = destination.protocol
    layer = destination.layer(f"{kind}/{MADE}", kind, whole=True)
    if encoding is not None:
        path = ("exporters", f"{kind}/{MADE}", "encoding")
        layer = layer.under(_one(path, encoding, Origin(f"{PREFIX}PROTOCOL")))
    return layer


def _name(signal: str | None, suffix: str) -> str:
    return f"{PREFIX}{signal.upper()}_{suffix}" if signal else f"{PREFIX}{suffix}"


def _one(path: KeyPath, value: object, origin: Origin) -> Layer:
    data: Any = value
    for key in reversed(path):
        data = {key: data}
    return Layer(data, {path: origin})


def _as_it_is(variable: str, text: str) -> str:
    del variable
    return text


def _timeout(variable: str, text: str) -> str | None:
    """Milliseconds."""
    if text.isascii() and text.isdigit() and 0 < int(text[:13]) <= _MS_MAX:
        return f"{int(text)}ms"
    LOG.warning(_IGNORED, variable, "must be a whole number of milliseconds, more than 0")
    return None


def _compression(variable: str, text: str) -> str | None:
    if text.lower() in COMPRESSIONS:
        return text.lower()
    LOG.warning(_IGNORED, variable, "must be gzip or none")
    return None


def _flag(variable: str, text: str) -> bool:
    """Only `true`, in any case, is true."""
    if text.lower() not in {"true", "false"}:
        LOG.warning(_IGNORED, variable, "must be true or false: it counts as false")
    return text.lower() == "true"


def _headers(variable: str, text: str) -> dict[str, str]:
    """`key=value,key2=value2`, values percent-encoded. The values are secrets: never shown."""
    headers = {}
    for number, pair in enumerate(text.split(","), start=1):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            headers[name.strip().lower()] = unquote(value.strip())
        elif pair.strip():
            LOG.warning(_IGNORED, variable, f"pair {number} is not of the form key=value")
    return headers
