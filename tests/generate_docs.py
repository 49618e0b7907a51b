"""Writes what is generated from the code: `config/default.yaml` and the tables of README.md.

Run: python -m tests.generate_docs

A key's docstring in the models is its only description, a metric's help text its only one.
`tests/test_docs.py` fails when a file differs from what this would write.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from prometheus_client.metrics import MetricWrapperBase

from otel_anomaly.config import Config, ExporterConfig, FileExporterConfig, Section
from otel_anomaly.config.exporters import EXPORTER_MODELS
from otel_anomaly.config.problems import section_of
from otel_anomaly.config.quantities import DURATION_MAX_NS, SIZE_MAX_BYTES, quantity_text
from otel_anomaly.telemetry import JUDGE_METRICS, PREFIX, Telemetry
from tests.doc_examples import explain_example, span_example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DEFAULT_YAML = ROOT / "config" / "default.yaml"

_WIDTH = 96
_EXAMPLE_PATTERNS = '["*"]'
_DIRECTORY = "${env:OTEL_ANOMALY_DATA:-./otel-anomaly-data}"
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_NO_BOUNDS = {("ge", 0), ("le", DURATION_MAX_NS), ("le", SIZE_MAX_BYTES)}


def main() -> None:
    """Write all generated files."""
    README.write_text(with_blocks(README.read_text()))
    DEFAULT_YAML.write_text(default_yaml())


def with_blocks(readme: str) -> str:
    """`readme` with its generated blocks filled in."""
    for name, text in (
        ("configuration", configuration_table()),
        ("metrics", metrics_table()),
        ("span", span_example()),
        ("explain", explain_example()),
    ):
        begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md needs {begin} and {end}, once each")
        before, _, rest = readme.partition(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}"
    return readme


def configuration_table() -> str:
    """Every key with its default, its limits and what it does."""
    rows = ["| key | default | what it does |", "| --- | --- | --- |"]
    for path, field, owner in all_keys():
        default = _default_cell(field, owner)
        text = " ".join(f"{field.description} {_limits(field)}".split()).replace("|", "\\|")
        rows.append(f"| `{'.'.join(path)}` | {default} | {text} |")
    return "\n".join(rows) + "\n"


def all_keys() -> Iterator[tuple[tuple[str, ...], FieldInfo, type[Section]]]:
    """Every key that holds a value; keys that all exporters share stand under `exporters.*`."""
    for name, field in Config.model_fields.items():
        if name != "exporters":
            yield from _keys((name,), field, Config)
            continue
        shared = ExporterConfig.model_fields
        for key, part in shared.items():
            yield from _keys(("exporters", "*", key), part, ExporterConfig)
        for kind, model in EXPORTER_MODELS.items():
            for key, part in model.model_fields.items():
                if key != "kind" and key not in shared:
                    yield from _keys(("exporters", kind, key), part, model)


def _keys(path, field, owner):
    section = section_of(field)
    if section is None or is_list(field):
        yield path, field, owner
    if section is None:
        return
    if is_list(field):
        path = (*path, "*")
    for key, part in section.model_fields.items():
        yield from _keys((*path, key), part, section)


def is_list(field: FieldInfo) -> bool:
    """Whether the field holds several values or blocks."""
    return get_origin(field.annotation) is tuple


def _default_cell(field: FieldInfo, owner: type[Section]) -> str:
    if field.is_required():
        return "required"
    value = _default(field)
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "`[]`"
    return f"`{_scalar(field, value, quote=False)}`"


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True)


def _scalar(field: FieldInfo, value: object, *, quote: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and (quantity := quantity_text(field, value)):
        return quantity
    if isinstance(value, str) and quote and not re.fullmatch(r"[a-z_]{4,}", value):
        return json.dumps(value)
    return str(value)


def _limits(field: FieldInfo) -> str:
    """`(At least 1, at most 64.)`, or the choices of a closed set."""
    kinds = (field.annotation, *get_args(field.annotation))
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    if choices:
        return f"({', '.join(choices)})"
    bounds = []
    for part in field.metadata:
        for name, words in _BOUNDS.items():
            bound = getattr(part, name, None)
            if bound is not None and (name, bound) not in _NO_BOUNDS:
                bounds.append(f"{words} {quantity_text(field, bound) or bound}")
    return f"({', '.join(bounds)})" if bounds else ""


def metrics_table() -> str:
    """Every metric with its type, its labels and what it counts."""
    telemetry = Telemetry()
    metrics = [part for part in vars(telemetry).values() if isinstance(part, MetricWrapperBase)]
    found = [(m._name, m._type == "gauge", m._labelnames, m._documentation) for m in metrics]
    found += [
        (f"{PREFIX}_{name}", is_gauge, labels, text)
        for name, (text, labels, is_gauge) in JUDGE_METRICS.items()
    ]
    rows = ["| metric | type | labels | what it counts |", "| --- | --- | --- | --- |"]
    for name, is_gauge, labels, text in sorted(found):
        ending, kind = ("", "gauge") if is_gauge else ("_total", "counter")
        listed = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}{ending}` | {kind} | {listed} | {text} |")
    return "\n".join(rows) + "\n"


def default_yaml() -> str:
    """All defaults as YAML, each key with its description."""
    lines = [
        "# Every key with its default. Generated from the models: `python -m tests.generate_docs`.",
        "# Durations have a unit (10s, 1m30s, 24h), sizes too (64MiB). ${env:NAME} and",
        "# ${env:NAME:-default} expand; $$ is a dollar sign.",
    ]
    for name, field in Config.model_fields.items():
        lines.append("")
        if name == "exporters":
            lines += [*_comment(field.description), "exporters:", *_exporters()]
        else:
            lines += _yaml_key(name, field)
    return "\n".join(lines) + "\n"


def _exporters() -> Iterator[str]:
    """The default exporter, then the others as comments with only the keys of their own."""
    shared = tuple(ExporterConfig.model_fields)
    for kind, model in EXPORTER_MODELS.items():
        is_default = model is FileExporterConfig
        head = [*_comment(model.__doc__), f"{kind}:"]
        own = list(_indent(_yaml_block(model, leave_out=("kind", *shared))))
        if is_default:
            yield from _indent(["", *head, *own, *_indent(_yaml_block(ExporterConfig))])
            continue
        note = _comment(f"{', '.join(shared)}: as for file.")
        yield from _indent(["", *(f"# {line}" for line in [*head, *own, *_indent(note)])])


def _yaml_block(section: type[Section], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    for key, field in section.model_fields.items():
        if key not in leave_out:
            yield from _yaml_key(key, field)


def _yaml_key(name: str, field: FieldInfo) -> Iterator[str]:
    section = section_of(field)
    if section is not None and not is_list(field) and _default(field) is None:
        head = [*_comment(field.description or section.__doc__), f"{name}:"]
        yield from (f"# {line}" for line in [*head, *_indent(_yaml_block(section))])
        return
    if section is not None and not is_list(field):
        yield from _comment(field.description or section.__doc__)
        yield f"{name}:"
        yield from _indent(_yaml_block(section))
        return
    yield from _comment(f"{field.description} {_limits(field)}".strip())
    value = None if field.is_required() else _default(field)
    if value is None:
        yield f"{name}:" if field.is_required() else f"# {name}:"
    elif isinstance(value, tuple | dict):
        yield f"{name}: {json.dumps(value)}" if not value else f"{name}:"
        yield from (f"  - {json.dumps(item)}" for item in value)
        if section is not None:
            yield from _example_item(section)
    else:
        text = _DIRECTORY if name == "directory" else _scalar(field, value, quote=True)
        yield f"{name}: {text}"


def _example_item(section: type[Section]) -> Iterator[str]:
    """The keys of a block in a list, as a comment."""
    yield from _comment(f"Each: {section.__doc__}")
    for key, field in section.model_fields.items():
        yield from (f"#   {line}" for line in _comment(field.description))
        yield f"#   {key}: {'{}' if field.is_required() else _EXAMPLE_PATTERNS}"


def _comment(text: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text or "", _WIDTH - 10)]


def _indent(lines) -> Iterator[str]:
    return (f"  {line}" if line else "" for line in lines)


if __name__ == "__main__":
    main()
