"""What the documents for people say is held against the tree."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from otel_anomaly.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)[^)]*\)")


def blocks(language: str, document: str = "README.md") -> list[str]:
    """The fenced blocks of a document in a language."""
    text = (ROOT / document).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """
    Scenario: every relative link of a document is followed.
    Guarantees: a file of the repository lies there.
    """
    for target in LINK.findall(path.read_text("utf-8")):
        assert (path.parent / target).exists(), f"{path.name}: no {target}"


def test_configuration_in_the_readme_is_valid() -> None:
    """
    Scenario: the YAML blocks of the README that are not the Collector's are read as a
    configuration.
    Guarantees: each is accepted, so whoever pastes one gets a service.
    """
    ours = [block for block in blocks("yaml") if not block.startswith("# Collector")]
    assert len(ours) > 1
    for block in ours:
        Config.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("name", ["doors", "durability", "privacy"])
def test_blocks_to_paste_are_valid(name: str, tmp_path: Path) -> None:
    """
    Scenario: the YAML blocks of the other documents are loaded as files, their variables set.
    Guarantees: as of the README.
    """
    found = blocks("yaml", f"docs/{name}.md")
    assert found
    for block in found:
        path = tmp_path / "pasted.yaml"
        path.write_text(block)
        assert load_config([path], (), {"OTLP_TOKEN": "a-token-long-enough"}) != Config()


def test_the_contents_lead_somewhere() -> None:
    """
    Scenario: every link within the README is followed, and every heading of it is looked for.
    Guarantees: there is such a heading, and each second-level heading is in the contents.
    """
    text = (ROOT / "README.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors


def test_examples_in_the_readme_are_well_formed() -> None:
    """
    Scenario: the Python, JSON and other YAML blocks of the README are parsed.
    Guarantees: each is valid in its language.
    """
    parsed = (
        [ast.parse(block) for block in blocks("python")],
        [json.loads(block) for block in blocks("json")],
        [yaml.safe_load(block) for block in blocks("yaml")],
    )
    assert all(parsed)


def test_targets_named_in_the_documents_are_in_the_makefile() -> None:
    """
    Scenario: every `make TARGET` that a document names.
    Guarantees: the Makefile has it.
    """
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, f"{path.name}: {sorted(named - targets)}"
