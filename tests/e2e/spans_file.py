"""Reads what the `file` exporter writes: OTLP JSON, one request per line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def read_spans(path: Path) -> list[dict[str, Any]]:
    """Every span of a file, in order."""
    return [
        span
        for line in path.read_bytes().splitlines()
        for resource in json.loads(line).get("resourceSpans", [])
        for scope in resource.get("scopeSpans", [])
        for span in scope.get("spans", [])
    ]


def attribute(span: dict[str, Any], key: str) -> Any:
    """The value of one attribute, without its type; None when the span has none."""
    for item in span.get("attributes", []):
        if item["key"] == key:
            return next(iter(item["value"].values()))
    return None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of an audit trail."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
