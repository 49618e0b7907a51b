"""What is said about a configuration that cannot be used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_anomaly.config import yaml_text
from otel_anomaly.config.problems import section_at, section_of
from tests import generate_docs
from tests.config_files import complaint, written

if TYPE_CHECKING:
    from pathlib import Path

IN_QUOTES = "a value that is = or <<, or begins with ! & or *, must be in quotes"
# What is written -> what is said, without the file's name. Lines count from 1.
BAD_FILES = {
    "unknown key, near one": (
        "detectors:\n  rate:\n    wran: 3",
        ":3: detectors.rate.wran: unknown key; did you mean warn?",
    ),
    "unknown key, near none": (
        "policy:\n  zzz: 3",
        (
            ":2: policy.zzz: unknown key; known here:"
            " mode, max_clock_skew, polling_tools, batch_tools, overrides"
        ),
    ),
    "unknown key in an exporter": (
        "exporters:\n  file/a:\n    pth: x",
        ":3: exporters.file/a.pth: unknown key; did you mean path?",
    ),
    "whole number": (
        "detectors: {rate: {warn: x}}",
        ":1: detectors.rate.warn: must be a whole number (got 'x')",
    ),
    "fraction": (
        "detectors:\n  rate: {warn: 1.5}",
        ":2: detectors.rate.warn: must be a whole number (got 1.5)",
    ),
    "on is true": (
        "detectors:\n  rate:\n    warn: on",
        ":3: detectors.rate.warn: must be a whole number (got true)",
    ),
    "number": (
        "detectors: {rate_shift: {k: yes}}",
        ":1: detectors.rate_shift.k: must be a number (got true)",
    ),
    "not finite": (
        "detectors: {rate_shift: {k: .inf}}",
        ":1: detectors.rate_shift.k: must be a finite number (got inf)",
    ),
    "not a number": (
        "detectors: {rate_shift: {k: .nan}}",
        ":1: detectors.rate_shift.k: must be a finite number (got nan)",
    ),
    "switch": (
        "audit: {enabled: perhaps}",
        ":1: audit.enabled: must be true or false (got 'perhaps')",
    ),
    "nothing": (
        "detectors: {rate: {warn: }}",
        ":1: detectors.rate.warn: must be a whole number (got nothing)",
    ),
    "octal": (
        "audit: {path: 0777}",
        ":1: audit.path: must be text (got 511)",
    ),
    "list": (
        "identity:\n  agent: service.name",
        ":2: identity.agent: must be a list (got 'service.name')",
    ),
    "item of a list": (
        "identity:\n  agent:\n    - a\n    - 7",
        ":4: identity.agent[1]: must be text (got 7)",
    ),
    "block": (
        "detectors: 5",
        ":1: detectors: must be a block of keys (got 5)",
    ),
    "list for a block": (
        "detectors:\n  - rate",
        ":1: detectors: must be a block of keys (got a list)",
    ),
    "closed set": (
        "detectors: {rate: {scope: planet}}",
        ":1: detectors.rate.scope: must be 'session', 'agent', 'user' or 'tenant' (got 'planet')",
    ),
    "too many": (
        "detectors: {rate: {warn: 65536}}",
        ":1: detectors.rate.warn: must be at most 65535 (got 65536)",
    ),
    "too few": (
        "identity:\n  limits:\n    agents: 0",
        ":3: identity.limits.agents: must be at least 1 (got 0)",
    ),
    "duration without unit": (
        "alerts: {hold: 60}",
        ":1: alerts.hold: must be a duration with its unit, like 10s, 1m30s or 24h (got 60)",
    ),
    "duration too long": (
        "policy: {max_clock_skew: 31s}",
        ":1: policy.max_clock_skew: must be at most 30s (got '31s')",
    ),
    "duration beyond all": (
        "service: {drain_timeout: 4000d}",
        ":1: service.drain_timeout: must be at most 3650d (got '4000d')",
    ),
    "size": (
        "exporters: {file: {max_size: 1XB}}",
        ":1: exporters.file.max_size: must be a size, like 512KiB, 64MiB or 1GiB (got '1XB')",
    ),
    "size too small": (
        "exporters: {file: {max_size: 1KiB}}",
        ":1: exporters.file.max_size: must be at least 64KiB (got '1KiB')",
    ),
    "address": (
        "telemetry: {metrics: {endpoint: '9464'}}",
        ":1: telemetry.metrics.endpoint: must be host:port, like 127.0.0.1:4317 (got '9464')",
    ),
    "port": (
        "telemetry: {metrics: {endpoint: 'a:65536'}}",
        ":1: telemetry.metrics.endpoint: the port must be at most 65535 (got 'a:65536')",
    ),
    "target with a password": (
        "exporters: {otlp: {endpoint: 'http://u:secret@h:1'}}",
        (
            ":1: exporters.otlp.endpoint: must be host:port, like tempo:4317, or https://tempo:4317"
            " (got 'http://***@h:1')"
        ),
    ),
    "url": (
        "exporters: {otlphttp: {endpoint: 'tempo:4318'}}",
        (
            ":1: exporters.otlphttp.endpoint: must be a URL, like http://127.0.0.1:4318"
            " (got 'tempo:4318')"
        ),
    ),
    "required": (
        "exporters:\n  file:\n  otlp_grpc: {compression: gzip}",
        ":3: exporters.otlp_grpc.endpoint: is required",
    ),
    "header value": (
        'exporters:\n  otlp:\n    endpoint: h:1\n    headers:\n      auth: "top\\nsecret"',
        (
            ":5: exporters.otlp.headers.***: must be printable ASCII without line breaks or spaces"
            " around it (got ***)"
        ),
    ),
    "header of a wrong type": (
        "exporters:\n  otlp:\n    endpoint: h:1\n    headers: {auth: 123456}",
        ":4: exporters.otlp.headers.***: must be text (got ***)",
    ),
    "headers of a wrong type": (
        "exporters:\n  otlp:\n    endpoint: h:1\n    headers: topsecret",
        ":4: exporters.otlp.headers: must be a block of keys (got ***)",
    ),
    "header name": (
        "exporters:\n  otlp:\n    endpoint: h:1\n    headers: {'a b': c}",
        ":4: exporters.otlp.headers.***: must be a header name (got ***)",
    ),
    "prefix": (
        "annotate: {prefix: A.b}",
        (
            ":1: annotate.prefix: must be lower-case letters, digits and _, in parts joined by dots"
            " (got 'A.b')"
        ),
    ),
    "text too long": (
        "annotate: {prefix: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}",
        (
            ":1: annotate.prefix: must have at most 32 characters"
            " (got 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')"
        ),
    ),
    "shown in part": (
        f"detectors: {{rate: {{warn: {'x' * 99}}}}}",
        f":1: detectors.rate.warn: must be a whole number (got '{'x' * 59}...)",
    ),
    "exporter type": (
        "exporters:\n  file:\n  kafka/a: {}",
        (
            ":3: exporters.kafka/a: no such exporter type:"
            " one of file, otlp_grpc, otlp, otlp_http, otlphttp, debug"
        ),
    ),
    "exporter without a name": (
        "exporters:\n  file/: {}",
        ":2: exporters.file/: the name after / has 1 to 64 characters, no space and no other /",
    ),
    "exporter that is a word": (
        "exporters:\n  file: spans.jsonl",
        ":2: exporters.file: must be a block of keys",
    ),
    "exporter with a kind": (
        "exporters:\n  file:\n    kind: debug",
        ":3: exporters.file.kind: unknown key; the kind is the name of the block",
    ),
    "exporters that are a list": (
        "exporters: [file]",
        ":1: exporters: must be a block of keys (got a list)",
    ),
    "no exporter": (
        "exporters: {}",
        ":1: exporters: every exporter removed: nothing would be forwarded",
    ),
    "no door": (
        "receivers:\n  otlp:\n    protocols: {}",
        ":3: receivers.otlp.protocols: at least one of grpc and http must be there",
    ),
    "doors that are a list": (
        "receivers:\n  otlp:\n    protocols: [grpc]",
        ":3: receivers.otlp.protocols: must be a block of keys (got a list)",
    ),
    "one key against another": (
        "detectors:\n  rate:\n    warn: 600",
        ":3: detectors.rate.warn: warn (600) must be below block (500), or one of them 0",
    ),
    "another key against a default": (
        "detectors:\n  rate:\n    block: 50",
        ":3: detectors.rate.block: warn (100) must be below block (50), or one of them 0",
    ),
    "window": (
        "detectors:\n  rate:\n    window: 1500ms",
        ":3: detectors.rate.window: must be whole seconds from 1s to 60s",
    ),
    "ceiling": (
        "detectors: {rate_shift: {ceiling: 100}}",
        (
            ":1: detectors.rate_shift.ceiling:"
            " ceiling (100) must be at least min_calls_minute (500), or 0"
        ),
    ),
    "weak": (
        "identity:\n  weak: [a.b]",
        ":2: identity.weak: names keys that no identity uses: a.b",
    ),
    "key twice in a list": (
        "identity: {user: [a, a]}",
        ":1: identity.user: must be at most 48 keys, each once (got a list)",
    ),
    "empty identity key": (
        "identity: {user: ['']}",
        ":1: identity.user: must be keys of 1 to 256 bytes (got a list)",
    ),
    "kept agents": (
        "identity:\n  limits:\n    agent_keep: 721h",
        ":3: identity.limits.agent_keep: agent_keep must be at most agent_idle",
    ),
    "kept sessions": (
        "identity:\n  limits:\n    session_idle: 30s",
        ":3: identity.limits.session_idle: session_keep must be at most session_idle",
    ),
    "queue below a batch": (
        "exporters:\n  file:\n    sending_queue: {queue_size: 1KiB}",
        (
            ":3: exporters.file.sending_queue.queue_size: queue_size must hold at least one"
            " batch.max_size"
        ),
    ),
    "waits": (
        "exporters:\n  file:\n    retry_on_failure: {max_interval: 1s}",
        (
            ":3: exporters.file.retry_on_failure.max_interval:"
            " max_interval must be at least initial_interval"
        ),
    ),
    "elapsed": (
        "exporters:\n  file:\n    retry_on_failure: {max_elapsed_time: 1s}",
        (
            ":3: exporters.file.retry_on_failure.max_elapsed_time:"
            " max_elapsed_time must be at least initial_interval, or 0"
        ),
    ),
    "half a key pair": (
        "exporters:\n  otlp:\n    endpoint: h:1\n    tls:\n      key_file: k.pem",
        ":5: exporters.otlp.tls.key_file: cert_file and key_file go together",
    ),
    "two doors": (
        "receivers: {otlp: {protocols: {\n grpc: ,\n http: {endpoint: 'localhost:4317'}}}}",
        (
            ":3: receivers.otlp.protocols.http.endpoint: receivers.otlp.protocols.http.endpoint and"
            " receivers.otlp.protocols.grpc.endpoint cannot share port 4317"
        ),
    ),
    "door and metrics": (
        "telemetry: {metrics: {endpoint: '0.0.0.0:4318'}}",
        (
            ":1: telemetry.metrics.endpoint: telemetry.metrics.endpoint and"
            " receivers.otlp.protocols.http.endpoint cannot share port 4318"
        ),
    ),
    "loop over gRPC": (
        "exporters:\n  otlp:\n    endpoint: http://localhost:4317",
        (
            ":3: exporters.otlp.endpoint: sends to our own door 127.0.0.1:4317:"
            " every span would come back for ever"
        ),
    ),
    "loop over HTTP": (
        (
            "receivers: {otlp: {protocols: {http: {endpoint: '[::]:80'}}}}\n"
            "exporters: {otlp_http: {endpoint: 'http://[::1]'}}"
        ),
        (
            ":2: exporters.otlp_http.endpoint: sends to our own door [::]:80:"
            " every span would come back for ever"
        ),
    ),
    "loop by name": (
        (
            "receivers: {otlp: {protocols: {grpc: {endpoint: 'me:4317'}}}}\n"
            "exporters: {otlp: {endpoint: 'me:4317'}}"
        ),
        (
            ":2: exporters.otlp.endpoint: sends to our own door me:4317:"
            " every span would come back for ever"
        ),
    ),
    "key twice": (
        "audit:\n  fsync: true\n  fsync: false",
        ":3: audit.fsync: written twice in one block",
    ),
    "block twice": (
        "audit: {}\nalerts: {}\naudit: {}",
        ":3: audit: written twice in one block",
    ),
    "key that is a list": (
        "audit:\n  [a]: 1",
        ":2: a key must be text",
    ),
    "key that is true": (
        "audit:\n  on: 1",
        ":2: audit.on: unknown key; known here: enabled, path, queue_records, fsync",
    ),
    "top that is a list": (
        "- audit",
        ":1: the file must hold keys with values",
    ),
    "top that is a word": (
        "\n\naudit",
        ":3: the file must hold keys with values",
    ),
    "two documents": (
        "audit: {}\n---\naudit: {}",
        ":2: not YAML: but found another document",
    ),
    "syntax": (
        "audit:\n  enabled: [true",
        ":2: not YAML: expected ',' or ']', but got '<stream end>'",
    ),
    "tab": (
        "audit:\n\tenabled: true",
        ":2: not YAML: found character '\\t' that cannot start any token",
    ),
    "control character": (
        "audit:\n  path: a\x07b",
        ":2: not YAML: character 0x7 is not allowed",
    ),
    "unknown anchor": (
        "audit: *a",
        f":1: not YAML: {IN_QUOTES}",
    ),
    "tag": (
        "audit: !!python/object:os.system {}",
        f":1: {IN_QUOTES}",
    ),
    "tag on text": (
        "audit:\n  path: !!python/name:os.system ''",
        f":2: not YAML: {IN_QUOTES}",
    ),
    "date that is none": (
        "audit: {path: 2024-99-99}",
        ":1: audit.path: not a valid timestamp",
    ),
    "deep": (
        f"audit: {'[' * 40}{']' * 40}",
        ":1: nested too deep",
    ),
    "very deep": (
        f"audit: {'[' * 3000}{']' * 3000}",
        ":1: nested too deep",
    ),
    "alias of itself": (
        "audit: &a\n  x: *a",
        ":1: nested too deep",
    ),
    "merge of itself": (
        "audit: &a\n  <<: *a",
        ":1: nested too deep",
    ),
    "unset variable": (
        "audit:\n  path: ${env:NOT_SET}/x",
        ":2: audit.path: the environment variable NOT_SET is not set, and no default given",
    ),
    "other scheme": (
        "audit:\n  path: ${file:x}",
        ":2: audit.path: ${ must begin ${env:NAME} or ${env:NAME:-default}; write $${ for the text",
    ),
    "unclosed variable": (
        "audit:\n  path: ${env:HOME",
        ":2: audit.path: ${ must begin ${env:NAME} or ${env:NAME:-default}; write $${ for the text",
    ),
}

BAD_OVERRIDES = {
    "detectors.rate.warn=x": ("--set detectors.rate.warn=x: must be a whole number (got 'x')"),
    "detectors={rate: {warn: x}}": (
        "--set detectors={rate: {warn: x}}: detectors.rate.warn: must be a whole number (got 'x')"
    ),
    "detectors.rate": "--set detectors.rate: must be KEY=VALUE, like detectors.rate.warn=50",
    "=1": "--set : must be KEY=VALUE, like detectors.rate.warn=50",
    "detectors..warn=1": ("--set detectors..warn: must be KEY=VALUE, like detectors.rate.warn=50"),
    "detectors.rte.warn=1": (
        "--set detectors.rte.warn=1: detectors.rte: unknown key; did you mean rate?"
    ),
    "audit.path=[": (
        "--set audit.path=[: not YAML: expected the node content, but found '<stream end>'"
    ),
    "audit.path=${env:NOT_SET}": (
        "--set audit.path=${env:NOT_SET}: audit.path: the environment variable NOT_SET is not set,"
        " and no default given"
    ),
    "exporters.otlp.headers.auth=secret": (
        "--set exporters.otlp.headers.***=***: exporters.otlp.endpoint: is required"
    ),
    "exporters.otlp={headers: {auth: secret}}": (
        "--set exporters.otlp=***: exporters.otlp.endpoint: is required"
    ),
    "exporters={}": ("--set exporters={}: every exporter removed: nothing would be forwarded"),
    f"detectors.rate.warn={'x' * 99}": (
        f"--set detectors.rate.warn={'x' * 80}...: must be a whole number (got '{'x' * 59}...)"
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """
    Scenario: a file with one thing wrong in it.
    Guarantees: one line names file, line, key, rule and value, word for word.
    """
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert complaint(path) == f"{path}{expected}"


@pytest.mark.parametrize(("override", "expected"), BAD_OVERRIDES.items(), ids=BAD_OVERRIDES)
def test_what_is_wrong_with_a_set_is_named(override: str, expected: str) -> None:
    """
    Scenario: a `--set` that cannot be used.
    Guarantees: one line names it, the rule and the value; a header's value is not in it.
    """
    assert complaint(overrides=[override]) == expected


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """
    Scenario: a file with three things wrong.
    Guarantees: three lines.
    """
    path = written(tmp_path, "audit: {fsync: x}\nalerts: {hold: 1}\ndetectors: {rate: {warn: -1}}")
    lines = complaint(path).splitlines()
    keys = ["detectors.rate.warn", "audit.fsync", "alerts.hold"]
    assert [line.split(": ")[1] for line in lines] == keys


def test_very_many_problems_are_told_in_short(tmp_path: Path) -> None:
    """
    Scenario: a key of 1,000 characters has a value of 500 variables that are not set, each twice;
    another file has 500 unknown keys.
    Guarantees: each is told once, with its beginning and end, then how many more there are.
    """
    variables = "".join(f"${{env:NOT_SET_{i // 2}}}" for i in range(1_000))
    lines = complaint(written(tmp_path, f"{'n' * 1_000}: a{variables}")).splitlines()
    assert len(lines) == yaml_text.PROBLEMS_TOLD_MAX + 1
    assert lines[-1] == f"... and {500 - yaml_text.PROBLEMS_TOLD_MAX} more"
    assert max(map(len, lines)) <= yaml_text.PROBLEM_CHARS_MAX + len(" ... ")
    assert lines[0].endswith("the environment variable NOT_SET_0 is not set, and no default given")
    lines = complaint(written(tmp_path, "".join(f"k{i}: 1\n" for i in range(500)))).splitlines()
    assert len(lines) == yaml_text.PROBLEMS_TOLD_MAX + 1
    assert len(set(lines)) == len(lines)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """
    Scenario: no file, a folder, bytes that are not UTF-8, a file beyond the size limit.
    Guarantees: each is refused by name, and by line where there is one.
    """
    broken = tmp_path / "latin.yaml"
    broken.write_bytes(b"audit:\n  path: caf\xe9\n")
    large = written(tmp_path, "#" * (yaml_text.TEXT_BYTES_MAX + 1), "large.yaml")
    assert complaint(tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: No such file or directory"
    assert complaint(tmp_path) == f"{tmp_path}: Is a directory"
    assert complaint(broken) == f"{broken}:2: not UTF-8"
    assert complaint(large) == f"{large}: larger than 256 KiB"


@pytest.mark.parametrize("kind", ["maps", "lists"])
def test_aliases_cannot_unfold_without_bound(tmp_path: Path, kind: str) -> None:
    """
    Scenario: nine levels of ten aliases each: a billion values from some hundred bytes.
    Guarantees: refused after a bounded number of values.
    """
    lines = ["a0: &a0 x"]
    for i in range(1, 10):
        items = [f"k{j}: *a{i - 1}" if kind == "maps" else f"*a{i - 1}" for j in range(10)]
        inside = ", ".join(items)
        lines.append(f"a{i}: &a{i} {{{inside}}}" if kind == "maps" else f"a{i}: &a{i} [{inside}]")
    path = written(tmp_path, "\n".join(lines))
    assert "more than 20000 values, counting every alias" in complaint(path)


@given(st.text(min_size=8, alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_a_secret_is_never_shown(secret: str) -> None:
    """
    Scenario: any text comes into a header from the environment, beside something that is wrong.
    Guarantees: it is not part of any message.
    """
    secret = f"q1-{secret}-9z"
    overrides = [
        "exporters.otlp.endpoint=tempo",
        "exporters.otlp.headers.token=${env:TOKEN}",
        "exporters.otlp.headers.list=['${env:TOKEN}']",
    ]
    said = complaint(overrides=overrides, environ={"TOKEN": secret})
    assert secret not in said
    assert ascii(secret)[1:-1] not in said
    assert "headers.***=***: must be text" in said


def test_what_has_no_line_of_its_own_still_has_a_place(tmp_path: Path) -> None:
    """
    Scenario: the value that is in the way comes from the environment, and nothing else is set.
    Guarantees: the message names the variable.
    """
    blocked = {"OTEL_ANOMALY_DATA": "x" * 9}
    said = complaint(overrides=["audit.path=xxxxxxxxx/spans.jsonl"], environ=blocked)
    assert said.startswith("--set audit.path=xxxxxxxxx/spans.jsonl: exporters.file.path and")


def every_path() -> list[tuple[str, ...]]:
    """Every key of the configuration, blocks and values, of every exporter."""
    paths: set[tuple[str, ...]] = set()
    for path, _, _ in generate_docs.all_keys():
        if "*" in path[2:]:
            continue  # A block in a list: `BAD_FILES` has its cases.
        kinds = ("file", "otlp", "otlp_http", "debug") if path[1:2] == ("*",) else path[1:2]
        for kind in kinds or ("",):
            whole = (path[0], kind, *path[2:]) if kind else path
            paths |= {whole[: i + 1] for i in range(len(whole))}
    return sorted(paths)


def wrong_value(path: tuple[str, ...], scalar: object) -> object:
    """A value whose type cannot be right at `path`."""
    section = section_at(path[:-1])
    field = section.model_fields[path[-1]] if section else None
    if field and generate_docs.is_list(field):
        return {"not": scalar}
    is_block = field is None or section_of(field) or path[-1] == "headers" or path == ("exporters",)
    return [scalar] if is_block else {"not": scalar}


@pytest.mark.parametrize("path", every_path(), ids=".".join)
@settings(max_examples=8)
@given(gap=st.integers(0, 3), scalar=st.integers() | st.booleans() | st.just("text"))
def test_a_wrong_type_anywhere_is_named_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], gap: int, scalar: object
) -> None:
    """
    Scenario: any key of any block gets a list for a block, or a block for anything else.
    Guarantees: the message names that key and the line that it stands on.
    """
    lines: list[str] = []
    for depth, key in enumerate(path):
        lines += [""] * gap + [f"{'  ' * depth}{key}:"]
    lines[-1] += f" {json.dumps(wrong_value(path, scalar))}"
    file = written(tmp_path_factory.mktemp("wrong"), "\n".join(lines))
    said = complaint(file).splitlines()
    assert any(line.startswith(f"{file}:{len(lines)}: {'.'.join(path)}: must") for line in said)
