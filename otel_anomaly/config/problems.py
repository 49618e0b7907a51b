"""What is wrong, in the user's words: key, value and line for each error of the models.

pydantic speaks of inputs and types; here it becomes what the key must be, in the units of the
configuration, with the nearest known key for an unknown one. Headers and credentials are secrets
and are never shown, whatever they were expanded from.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, get_args

from otel_anomaly.config.conflicts import CONFLICT
from otel_anomaly.config.exporters import EXPORTER_MODELS, exporter_kind
from otel_anomaly.config.models import Config
from otel_anomaly.config.overrides import OVERRIDES
from otel_anomaly.config.quantities import quantity_text
from otel_anomaly.config.section import Section
from otel_anomaly.config.yaml_text import SECRET, SECRET_BLOCKS, KeyPath, Layer, Origin, dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_SHOWN_CHARS_MAX = 60
_URL = re.compile(r"([^@?#]*?://|)([^?#]*@|)([^?#]*)(.*)", re.DOTALL)
_IN_OVERRIDES = ("policy", "overrides", "detectors")
"""Way to an override's detectors, without its number: a detectors section once more."""

_MUST_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a block of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of sensible size",
    "int_type": "a whole number",
    "model_type": "a block of keys",
    "string_type": "text",
    "tuple_type": "a list",
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def hides_secret(text: str) -> bool:
    """Whether a `--set` names, or its value holds, a block whose values are never shown."""
    return any(name in text for name in SECRET_BLOCKS)


def problems(error: ValidationError, layer: Layer) -> list[str]:
    """One line for each thing that is wrong, as `file:line: key: what (got value)`."""
    return [_problem(details, layer) for details in _single(error.errors(include_url=False))]


def _single(errors: Iterable[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Each error by itself: those of overrides come as one."""
    for details in errors:
        if details["type"] == OVERRIDES:
            yield from details["ctx"]["errors"]
        else:
            yield details


def _problem(details: ErrorDetails, layer: Layer) -> str:
    path = _key_path(details["loc"])
    if details["type"] == CONFLICT:
        context = details["ctx"]
        path = _written_key([(*path, *key) for key in context["keys"]], layer)
        return _line(path, layer, context["message"])
    if details["type"] == "extra_forbidden":
        return _line(path, layer, _unknown_key(path))
    return _line(path, layer, f"{_rule(details, path)}{_got(details, path, layer)}")


def _key_path(loc: KeyPath) -> KeyPath:
    """Where it is in the file: without the marks pydantic adds for models and keys."""
    path = (*loc[:2], *loc[3:]) if loc[:1] == ("exporters",) else loc
    return path[:-1] if path[-1:] == ("[key]",) else path


def _written_key(paths: list[KeyPath], layer: Layer) -> KeyPath:
    """The first of the keys in conflict that the user wrote: the other is a default."""
    return next((path for path in paths if path in layer.origins), paths[0])


def _line(path: KeyPath, layer: Layer, text: str) -> str:
    """`text` with the key and the place of its nearest written part before it."""
    written = path
    while written and written not in layer.origins:
        written = written[:-1]
    origin = layer.origins.get(written, Origin("configuration"))
    is_named = origin.source.startswith(f"--set {dotted(path)}=")
    name = "" if is_named or not path else f"{dotted(path)}: "
    return f"{origin}: {name}{text}"


def _rule(details: ErrorDetails, path: KeyPath) -> str:
    """What the value must be."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "too_long":
        return f"must have at most {context['max_length']} items"
    if kind in _MUST_BE:
        return f"must be {_MUST_BE[kind]}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        limit = context[name]
        field = field_at(path)
        plain = f"{limit:g}" if isinstance(limit, float) else str(limit)
        return f"must be {words} {(quantity_text(field, limit) if field else None) or plain}"
    return details["msg"].replace("String should", "must").replace("Input should", "must")


def _got(details: ErrorDetails, path: KeyPath, layer: Layer) -> str:
    """The value as written, unless it is a secret."""
    if details["type"] == "missing":
        return ""
    value: Any = layer.data
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return ""
    return f" (got {SECRET if SECRET_BLOCKS.intersection(path) else _shown(value)})"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = ascii(without_password(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}..."


def without_password(url: str) -> str:
    """`url` with what stands before the last `@` hidden, and what follows a `?` or `#`."""
    found = _URL.fullmatch(url)
    assert found, "all of its parts may be empty"
    scheme, user, place, query = found.groups()
    if "@" in query:  # A password may have a `?` in it.
        return f"{scheme}{SECRET}"
    return f"{scheme}{SECRET if user else ''}{user[-1:]}{place}{query[:1]}{SECRET if query else ''}"


def _unknown_key(path: KeyPath) -> str:
    section = section_at(path[:-1])
    known = [name for name in section.model_fields if name != "kind"] if section else []
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key; {hint}"


def section_at(path: KeyPath) -> type[Section] | None:
    """The model of the block at `path`."""
    section: type[Section] | None = Config
    if path[:2] == _IN_OVERRIDES[:2] and path[3:4] == _IN_OVERRIDES[2:]:
        path = path[3:]
    if path[:1] == ("exporters",):
        kind = exporter_kind(str(path[1])) if len(path) > 1 else None
        section, path = EXPORTER_MODELS.get(kind or ""), path[2:]
    for key in path:
        if isinstance(key, int):
            continue  # An item of a list has the model that the list has.
        field = section.model_fields.get(key) if section else None
        section = section_of(field) if field else None
    return section


def section_of(field: FieldInfo) -> type[Section] | None:
    """The model of a field that is a block or a list of blocks; None for a value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def field_at(path: KeyPath) -> FieldInfo | None:
    """The model's field at `path`."""
    section = section_at(path[:-1])
    return section.model_fields.get(str(path[-1])) if section and path else None
