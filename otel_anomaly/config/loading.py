"""From files, `--set` and the environment to one `Config`, or to a list of what is wrong.

Sources lie on top of one another: the defaults, OTEL_ANOMALY_DATA, OTEL_EXPORTER_OTLP_* (see
`environment`), each file in order, each `--set` in order. Maps merge, lists and values are
replaced, and a block named without a value changes nothing. Doors and exporters are lists in the
shape of a map, so a default one goes when its block is written out: a file that names `exporters`
has exactly the exporters that it and the later files name. `--set exporters.debug={}` names one
key inside and only adds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING

from pydantic import ValidationError

from otel_anomaly.config.conflicts import ENDPOINT_KEYS, destinations, listening
from otel_anomaly.config.environment import fill, made
from otel_anomaly.config.models import Config
from otel_anomaly.config.own_doors import own_door
from otel_anomaly.config.problems import hides_secret, problems, without_password
from otel_anomaly.config.yaml_text import (
    SECRET,
    TEXT_BYTES_MAX,
    ConfigError,
    KeyPath,
    Layer,
    Origin,
    dotted,
    read_yaml,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOG = logging.getLogger("otel_anomaly")

DATA_VARIABLE = "OTEL_ANOMALY_DATA"
_DEFAULT_BLOCKS: dict[KeyPath, dict[str, object]] = {
    ("receivers", "otlp", "protocols"): {"grpc": {}, "http": {}},
    ("exporters",): {"file": {}},
}
_LABEL_CHARS_MAX = 80


def load_config(
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of `files`, later ones on top, and `overrides` (`key.path=YAML`) above.

    Raises
    ------
    ConfigError
        Names the place, the key and the value of everything that is wrong.
    """
    layers = [read_file(path, environ) for path in files]
    layers += [read_override(text, environ) for text in overrides]
    merged = _defaults(layers, environ)
    for layer in layers:
        merged = merged.under(layer)
    merged = fill(merged, environ)
    config = _validated(merged)
    named = any(_writes_out(layer, ("exporters",)) for layer in layers)
    if named or any(destinations(config)):
        return config
    return _with_destination(config, merged, environ)


def _validated(merged: Layer) -> Config:
    try:
        return Config.model_validate(merged.data)
    except ValidationError as error:
        raise ConfigError.of(problems(error, merged)) from None


def _with_destination(config: Config, merged: Layer, environ: Mapping[str, str]) -> Config:
    """`config` with an exporter for what the environment names, when it names another than us.

    Nobody wrote these variables for us alone, so nothing that can be seen in them keeps the service
    from starting. A certificate that cannot be read is seen when the exporter starts, and does:
    without it we would not know whom we send to.
    """
    try:
        layer = made(environ)
        if layer is None:
            return config
        more = _validated(merged.under(layer))
    except ConfigError as error:
        LOG.warning("no exporter is made from OTEL_EXPORTER_OTLP_*: %s", error)
        return config
    for _, url in destinations(more):
        door = own_door(url, listening(config))
        if door is not None:
            LOG.warning(
                "no exporter is made from OTEL_EXPORTER_OTLP_*: it leads to our own door %s", door
            )
            return config
    return more


def config_hash(config: Config) -> str:
    """Names a configuration in audit records and health: SHA-256 of all keys and values.

    Secrets are stars: whoever knows the rest of the file could try them.
    """
    told = config.model_dump(mode="json")
    for exporter in told["exporters"].values():
        for name in exporter.get("headers", ()):
            exporter["headers"][name] = SECRET
        for key in ENDPOINT_KEYS:
            if exporter.get(key) is not None:
                exporter[key] = without_password(exporter[key])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def read_file(path: Path, environ: Mapping[str, str]) -> Layer:
    """One YAML file."""
    try:
        with path.open("rb") as file:
            body = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if len(body) > TEXT_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {TEXT_BYTES_MAX >> 10} KiB")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from None
    return read_yaml(text, Origin(str(path), 1), (), environ)


def read_override(override: str, environ: Mapping[str, str]) -> Layer:
    """One `--set`: dots in the key go down a block, the value is YAML."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    label = f"--set {dotted(path)}={_label(text, secret=hides_secret(override))}"
    if not equals or not all(path):
        raise ConfigError(f"--set {dotted(path)}: must be KEY=VALUE, like detectors.rate.warn=50")
    return read_yaml(text, Origin(label), path, environ)


def _label(text: str, *, secret: bool) -> str:
    """A value as it may be shown."""
    shown = ascii(SECRET if secret else without_password(text))[1:-1]
    return shown if len(shown) <= _LABEL_CHARS_MAX else f"{shown[:_LABEL_CHARS_MAX]}..."


def _defaults(layers: Sequence[Layer], environ: Mapping[str, str]) -> Layer:
    """The lowest layer: blocks that nobody writes out, and the directory from the environment."""
    base = Layer({}, {})
    for path, block in _DEFAULT_BLOCKS.items():
        if not any(_writes_out(layer, path) for layer in layers):
            base = base.under(_layer(path, block))
    if directory := environ.get(DATA_VARIABLE):
        path = ("storage", "directory")
        base = base.under(_layer(path, directory)._replace(origins={path: Origin(DATA_VARIABLE)}))
    return base


def _writes_out(layer: Layer, path: KeyPath) -> bool:
    """Whether the layer gives the whole block at `path`, not one key inside it."""
    if layer.depth > len(path):
        return False
    value: object = layer.data
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value is not None


def _layer(path: KeyPath, value: object) -> Layer:
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return Layer(value, {})
