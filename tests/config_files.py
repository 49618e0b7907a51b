"""Configuration files for tests."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import ConfigError, load_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def written(directory: Path, text: str, name: str = "config.yaml") -> Path:
    """A file holding `text`."""
    path = directory / name
    path.write_text(dedent(text), "utf-8")
    return path


def complaint(
    *files: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> str:
    """What is said about a configuration that is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(files, overrides, environ or {})
    return str(caught.value)
