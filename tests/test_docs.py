"""Generated documents are held against the code they are generated from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from otel_anomaly.config import Config, load_config
from tests import generate_docs

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = sorted((generate_docs.ROOT / "config" / "examples").glob("*.yaml"))


def test_default_yaml_is_what_the_models_say() -> None:
    """
    Scenario: config/default.yaml is generated again.
    Guarantees: nothing differs; if it does, run `python -m tests.generate_docs`.
    """
    assert generate_docs.DEFAULT_YAML.read_text() == generate_docs.default_yaml()


def test_default_yaml_loads_to_the_defaults() -> None:
    """
    Scenario: the service is started with config/default.yaml, with and without OTEL_ANOMALY_DATA.
    Guarantees: the configuration is exactly the one it has without a file.
    """
    for environ in ({}, {"OTEL_ANOMALY_DATA": "/somewhere"}):
        assert load_config([generate_docs.DEFAULT_YAML], (), environ) == load_config(
            [], (), environ
        )
    assert load_config([generate_docs.DEFAULT_YAML], (), {}) == Config()


def test_default_yaml_shows_every_key() -> None:
    """
    Scenario: config/default.yaml is searched for every key, also in its commented parts.
    Guarantees: every key of every model stands there, and what it does.
    """
    text = generate_docs.DEFAULT_YAML.read_text()
    for path, field, _ in generate_docs.all_keys():
        description = field.description.split()[0]
        assert f"{path[-1]}:" in text
        assert f"# {description}" in text


def test_readme_tables_are_what_the_code_says() -> None:
    """
    Scenario: the generated blocks of README.md are written again.
    Guarantees: nothing differs; if it does, run `python -m tests.generate_docs`.
    """
    readme = generate_docs.README.read_text()
    assert readme == generate_docs.with_blocks(readme)


def test_a_readme_without_marks_is_refused() -> None:
    """
    Scenario: a block's marks are missing, or stand there twice.
    Guarantees: an error names them; nothing is written over anything else.
    """
    with pytest.raises(ValueError, match="begin generated: configuration"):
        generate_docs.with_blocks("# No marks\n")
    with pytest.raises(ValueError, match="once each"):
        generate_docs.with_blocks(generate_docs.README.read_text() * 2)


def test_every_description_is_a_sentence() -> None:
    """
    Scenario: a key is added without saying what it does.
    Guarantees: the tables have no empty cell.
    """
    for path, field, _ in generate_docs.all_keys():
        assert field.description, path
        assert field.description.rstrip().endswith("."), path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_load(path: Path) -> None:
    """
    Scenario: each file of config/examples is loaded without any variable set.
    Guarantees: it is a configuration, and says something that the defaults do not.
    """
    assert load_config([path], (), {}) != Config()
    assert path.read_text().startswith("# ")
    assert yaml.safe_load(path.read_text()).keys() <= Config.model_fields.keys()


def test_there_are_examples() -> None:
    """
    Scenario: config/examples is listed.
    Guarantees: both ways into a pipeline have one.
    """
    assert [path.name for path in EXAMPLES] == ["chained.yaml", "endpoint.yaml"]
