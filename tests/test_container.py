"""The image: what its Dockerfile promises, read from it. Building it takes a container engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from otel_anomaly.config import SECOND_NS, Config, is_local, load_config
from otel_anomaly.running import STOP_S
from tests.test_readme import blocks
from tests.test_tidy import ROOT

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
INSTRUCTIONS = [line.partition(" ")[::2] for line in LINES if re.match("[A-Z]", line)]


def arguments_of(name: str) -> list[str]:
    """What stands behind each instruction of one kind, in order."""
    return [text for kind, text in INSTRUCTIONS if kind == name]


def docker_runs() -> list[list[str]]:
    """The words of every `docker run` that is told, wherever that is."""
    texts = [(ROOT / path).read_text() for path in ("README.md", "docs/container.md", "Dockerfile")]
    told = (re.sub(r"\\\n#?\s*", "", text) for text in texts)
    return [line.split() for text in told for line in re.findall("docker run .*", text)]


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


def endpoints_of(config: Config) -> tuple[str, str, str]:
    """Both doors and the monitoring pages."""
    protocols = config.receivers.otlp.protocols
    assert protocols.grpc is not None
    assert protocols.http is not None
    return (
        protocols.grpc.endpoint,
        protocols.http.endpoint,
        config.telemetry.metrics.endpoint,
    )


def test_doors_of_the_image_are_those_it_exposes() -> None:
    """
    Scenario: EXPOSE beside the endpoints of the command.
    Guarantees: the same ports, and they are the defaults.
    """
    stage = dict(last_stage())
    told = {int(port) for port in stage["EXPOSE"].split()}
    listened = {int(port) for port in re.findall(r"endpoint=0\.0\.0\.0:(\d+)", stage["CMD"])}
    endpoints = endpoints_of(Config())
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


def test_time_to_stop_is_enough() -> None:
    """
    Scenario: how long the documents let the container stop: Docker, Compose, Kubernetes.
    Guarantees: each is time for the default drain and for all else of a stop, so that nobody who
    follows them has the service killed while it delivers.
    """
    needed_s = Config().service.drain_timeout / SECOND_NS + STOP_S
    runs = docker_runs()
    assert len(runs) == 3
    given = [words[words.index("--stop-timeout") + 1] for words in runs]
    document = (ROOT / "docs/container.md").read_text()
    for text in (document, (ROOT / "Dockerfile").read_text()):
        (seconds,) = re.findall(r"docker stop -t (\d+)", text)
        given.append(seconds)
    given += re.findall(r"stop_grace_period: (\d+)s", document)
    pods = [yaml.safe_load(block) for block in blocks("yaml", "docs/container.md")]
    given += [pod["terminationGracePeriodSeconds"] for pod in pods if "containers" in pod]
    assert len(given) == 7
    assert min(map(int, given)) >= needed_s


def test_ports_are_published_to_this_machine_alone() -> None:
    """
    Scenario: the `docker run` commands to paste; their doors ask for no credentials.
    Guarantees: every port is published, and on the loopback address.
    """
    ports = dict(last_stage())["EXPOSE"].split()
    for words in docker_runs():
        published = [words[at + 1] for at, word in enumerate(words) if word == "-p"]
        assert published == [f"127.0.0.1:{port}:{port}" for port in ports]


def test_a_configuration_of_ones_own_is_reached(tmp_path: Path) -> None:
    """
    Scenario: the file that the document tells to give in place of the image's arguments.
    Guarantees: doors and probes are reached from outside, on the ports of the image.
    """
    (block,) = (each for each in blocks("yaml", "docs/container.md") if "receivers:" in each)
    path = tmp_path / "config.yaml"
    path.write_text(block)
    endpoints = endpoints_of(load_config([path], (), {}))
    assert not any(is_local(endpoint) for endpoint in endpoints)
    told = dict(last_stage())["EXPOSE"].split()
    assert [endpoint.rpartition(":")[2] for endpoint in endpoints] == told


def test_the_kernels_can_be_read_by_any_user() -> None:
    """
    Scenario: the folder of compiled kernels, which the build makes as root and the user reads.
    Guarantees: its mode is told before anything is compiled, not left to who makes it first.
    """
    (folder,) = {
        folder for text in arguments_of("ENV") for folder in re.findall(r"CACHE_DIR=(\S+)", text)
    }
    (compiles,) = (text for text in arguments_of("RUN") if "otel_anomaly.warm" in text)
    assert compiles.startswith(f"install -d -m 0755 {folder} && ")
