"""The image: what its Dockerfile promises, read from it. Building it takes a container engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from otel_anomaly.config import Config
from tests.test_tidy import ROOT

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
INSTRUCTIONS = [line.partition(" ")[::2] for line in LINES if re.match("[A-Z]", line)]


def arguments_of(name: str) -> list[str]:
    """What stands behind each instruction of one kind, in order."""
    return [text for kind, text in INSTRUCTIONS if kind == name]


def last_stage() -> list[tuple[str, str]]:
    """The instructions of the image itself, without those that build it."""
    starts = [number for number, (kind, _) in enumerate(INSTRUCTIONS) if kind == "FROM"]
    return INSTRUCTIONS[starts[-1] :]


def test_base_is_pinned_by_digest() -> None:
    """
    Scenario: every FROM of the Dockerfile.
    Guarantees: each is the one base, which is named by its digest.
    """
    assert set(arguments_of("FROM")) == {"${BASE} AS build", "${BASE}"}
    (base,) = arguments_of("ARG")
    assert re.fullmatch(r"BASE=python:3\.\d+-slim@sha256:[0-9a-f]{64}", base)


def test_runs_as_a_numbered_user_without_a_shell() -> None:
    """
    Scenario: the last stage.
    Guarantees: the user is set before anything runs, by number (Kubernetes' runAsNonRoot wants
    that); start and health check are exec forms, so no shell is needed.
    """
    stage = last_stage()
    kinds = [kind for kind, _ in stage]
    (user,) = (text for kind, text in stage if kind == "USER")
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", user)
    assert "RUN" not in kinds[kinds.index("USER") :]
    commands = dict(stage)
    check = commands["HEALTHCHECK"].partition("CMD ")[2]
    for command in (commands["ENTRYPOINT"], commands["CMD"], check):
        assert all(isinstance(word, str) for word in json.loads(command))
    assert json.loads(check)[0] == "otel-anomaly"


def test_only_the_volume_is_written_to() -> None:
    """
    Scenario: where the image keeps data.
    Guarantees: it is the volume, and nothing else in the image is the user's.
    """
    stage = last_stage()
    texts = [text for _, text in stage]
    assert ("VOLUME", "/data") in stage
    assert any("OTEL_ANOMALY_DATA=/data" in text for text in texts)
    assert not any("--chown" in text for text in texts)


def test_doors_of_the_image_are_those_it_exposes() -> None:
    """
    Scenario: EXPOSE beside the endpoints of the command.
    Guarantees: the same ports, and they are the defaults.
    """
    stage = dict(last_stage())
    told = {int(port) for port in stage["EXPOSE"].split()}
    listened = {int(port) for port in re.findall(r"endpoint=0\.0\.0\.0:(\d+)", stage["CMD"])}
    config = Config()
    protocols = config.receivers.otlp.protocols
    assert protocols.grpc is not None
    assert protocols.http is not None
    endpoints = (
        protocols.grpc.endpoint,
        protocols.http.endpoint,
        config.telemetry.metrics.endpoint,
    )
    assert told == listened == {int(endpoint.rpartition(":")[2]) for endpoint in endpoints}


@pytest.mark.parametrize("path", ["pyproject.toml", "README.md", "LICENSE", "otel_anomaly"])
def test_build_sees_what_it_copies(path: str) -> None:
    """
    Scenario: what the Dockerfile copies, beside .dockerignore.
    Guarantees: it is let through, and everything else is kept out.
    """
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert f"!{path}" in ignore
    assert path in " ".join(arguments_of("COPY"))
    assert Path(ROOT, path).exists()
