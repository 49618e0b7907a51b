"""OTEL_EXPORTER_OTLP_*: fills the otlp exporters where the configuration is silent.

The variables describe one destination. Its address, credentials and trust belong together: an
exporter whose endpoint is written in the configuration takes none of these from the environment, or
one backend's API key would be sent to another. `timeout` and `compression` fill any exporter.

A configuration that names no exporters gets one for the destination, beside its default file,
unless the destination is one of our own doors: the variable is often set for the agents, and
points at us.

Parsing is that of the OpenTelemetry specification ("Environment Variable Specification", "OTLP
Exporter Configuration"): empty is unset; a number or a choice that cannot be read is warned of and
ignored. The form for a signal stands before the general one.

An exporter has protocol, headers, certificates, timeout and compression once for all of its
signals. Where the variables of the signals say different things, and the configuration nothing,
the general form counts for timeout and compression, with a warning; of the others, which say who
is spoken to and as whom, the configuration has to speak. Headers merge name by name: only a name
that is not written can differ. OTLP/gRPC has one address for all signals: that of one signal is
taken for all, with a warning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from otel_anomaly.config.exporters import EXPORTER_MODELS, exporter_kind
from otel_anomaly.config.quantities import DURATION_MAX_NS, duration_text
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
_MS_NS: Final = 1_000_000
_MS_MAX: Final = DURATION_MAX_NS // _MS_NS
_IGNORED: Final = "environment variable %s is ignored: %s"


class _Setting(NamedTuple):
    """What a variable and its forms for the signals say."""

    suffix: str
    read: Callable[[str, str], Any]
    """From (variable, text) to the value; None for a text that is ignored."""
    unset: Any = None
    """What holds when nothing is said."""
    is_tuning: bool = False
    """The general form counts where the signals differ."""


class Destination:
    """What the variables say."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __bool__(self) -> bool:
        """Whether they name an address."""
        return any(self._own(signal, "ENDPOINT") for signal in (None, *SIGNALS))

    @property
    def protocol(self) -> tuple[str, str]:
        """(variable, protocol)."""
        setting = _Setting("PROTOCOL", _protocol, PROTOCOL_DEFAULT)
        return self._agreed(setting, self._served())

    def layer(self, name: str, kind: str, part: Mapping[str, Any]) -> Layer:
        """What the exporter `name` takes, which is written as `part`."""
        layer = Layer({"exporters": {name: {}}}, {})
        for key, (variable, value) in self._keys(kind, part).items():
            path: KeyPath = ("exporters", name, *key)
            layer = layer.under(_one(path, value, Origin(variable)))
        return layer

    def _keys(self, kind: str, part: Mapping[str, Any]) -> dict[KeyPath, tuple[str, Any]]:
        found: dict[KeyPath, tuple[str, Any]] = {}
        settings = _tuning(kind)
        served = _addressed(part)
        if not served:
            served = self._served()
            found |= self._addresses(kind, served)
            settings |= _identity(kind, part)
        for path, setting in settings.items():
            if isinstance(_written(part, path), dict | None):  # Maps merge.
                variable, value = self._agreed(setting, served)
                if value != setting.unset:
                    found[path] = (variable, value)
        return found

    def _addresses(self, kind: str, served: tuple[str, ...]) -> dict[KeyPath, tuple[str, Any]]:
        if kind == "otlp_grpc":
            variable, text = self._agreed(_Setting("ENDPOINT", _as_it_is), served)
            if text and served != SIGNALS:
                LOG.warning("%s: over gRPC all signals go there, not only %s", variable, served[0])
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

    def _agreed(self, setting: _Setting, served: tuple[str, ...]) -> tuple[str, Any]:
        """(variable, value) for all of the signals.

        Raises
        ------
        ConfigError
            The signals differ.
        """
        general = _name(None, setting.suffix)
        fallback = self._value(None, setting)
        if fallback is None:
            fallback = setting.unset
        said: dict[str, Any] = {}
        for signal in served:
            own = self._value(signal, setting)
            said[general if own is None else _name(signal, setting.suffix)] = (
                fallback if own is None else own
            )
        first = next(iter(said.items()))
        if all(value == first[1] for value in said.values()):
            return first
        if setting.is_tuning:
            names = ", ".join(sorted(said.keys() - {general}))
            LOG.warning(_IGNORED, names, f"not the same for all signals: {general} counts")
            return general, fallback
        names = ", ".join(sorted(said))
        raise ConfigError(
            f"{names}: differ, and an exporter has one of these for all signals:"
            " write an exporter into the configuration"
        )

    def _value(self, signal: str | None, setting: _Setting) -> Any:  # noqa: ANN401 - Any key's.
        text = self._own(signal, setting.suffix)
        return setting.read(_name(signal, setting.suffix), text) if text else None

    def _own(self, signal: str | None, suffix: str) -> str:
        return self._environ.get(_name(signal, suffix), "").strip()


def fill(merged: Layer, environ: Mapping[str, str]) -> Layer:
    """`merged` with what the environment says, below it, of the exporters it has.

    Raises
    ------
    ConfigError
        The variables of the signals differ, and the configuration is silent.
    """
    exporters = merged.data.get("exporters")
    if not isinstance(exporters, dict) or not any(name.startswith(PREFIX) for name in environ):
        return merged
    destination = Destination(environ)
    below = Layer({"exporters": {name: {} for name in exporters}}, {})  # The order stays.
    for name, part in exporters.items():
        kind = exporter_kind(str(name))
        if kind in {"otlp_grpc", "otlp_http"} and (part is None or isinstance(part, dict)):
            below = below.under(destination.layer(name, kind, part or {}))
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
    variable, protocol = destination.protocol
    kind, encoding = PROTOCOLS[protocol]
    layer = destination.layer(f"{kind}/{MADE}", kind, {})
    if encoding is not None:
        path = ("exporters", f"{kind}/{MADE}", "encoding")
        layer = layer.under(_one(path, encoding, Origin(variable)))
    return layer


def _name(signal: str | None, suffix: str) -> str:
    return f"{PREFIX}{signal.upper()}_{suffix}" if signal else f"{PREFIX}{suffix}"


def _addressed(part: Mapping[str, Any]) -> tuple[str, ...]:
    """The signals that the configuration itself gives an address."""
    if part.get("endpoint") is not None:
        return SIGNALS
    return tuple(signal for signal in SIGNALS if part.get(f"{signal}_endpoint") is not None)


def _written(part: Mapping[str, Any], path: KeyPath) -> object:
    value: object = part
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _tuning(kind: str) -> dict[KeyPath, _Setting]:
    """What any exporter takes."""
    default = {key: field.default for key, field in EXPORTER_MODELS[kind].model_fields.items()}
    unset = duration_text(default["timeout"])
    return {
        ("timeout",): _Setting("TIMEOUT", _timeout, unset, is_tuning=True),
        ("compression",): _Setting(
            "COMPRESSION", _compression, default["compression"], is_tuning=True
        ),
    }


def _identity(kind: str, part: Mapping[str, Any]) -> dict[KeyPath, _Setting]:
    """What belongs to the address of the environment."""
    headers = _written(part, ("headers",))
    names = {str(name).lower() for name in headers} if isinstance(headers, dict) else set()

    def read_headers(variable: str, text: str) -> dict[str, str]:
        said = _headers(variable, text)
        return {name: value for name, value in said.items() if name not in names}

    settings: dict[KeyPath, _Setting] = {
        ("headers",): _Setting("HEADERS", read_headers, {}),
        ("tls", "ca_file"): _Setting("CERTIFICATE", _as_it_is),
        ("tls", "cert_file"): _Setting("CLIENT_CERTIFICATE", _as_it_is),
        ("tls", "key_file"): _Setting("CLIENT_KEY", _as_it_is),
    }
    if kind == "otlp_grpc":
        settings["tls", "insecure"] = _Setting("INSECURE", _flag, unset=False)
    return settings


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
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_MS_MAX))
    if is_number and 0 < int(text) <= _MS_MAX:
        return duration_text(int(text) * _MS_NS)
    problem = "must be a whole number of milliseconds, more than 0 and up to ten years"
    LOG.warning(_IGNORED, variable, problem)
    return None


def _protocol(variable: str, text: str) -> str | None:
    if text.lower() in PROTOCOLS:
        return text.lower()
    LOG.warning(_IGNORED, variable, f"must be one of {', '.join(PROTOCOLS)}")
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
