"""Reading the configuration: what is accepted and what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from otel_anomaly import config as room
from otel_anomaly.config import Config, load_config, summary, yaml_text
from otel_anomaly.config.problems import problems
from otel_anomaly.config.quantities import duration_ns, duration_text, size_bytes, size_text
from tests.config_files import complaint, written


def test_anchors_and_merges_are_fine(tmp_path: Path) -> None:
    """
    Scenario: two exporters take over the same block, one by `<<` with a key of its own.
    Guarantees: own keys win over taken ones, the first of several blocks wins, lines stay true.
    """
    path = written(
        tmp_path,
        """\
        exporters:
          file: &base
            path: /x/a.jsonl
            max_size: 1MiB
          debug:
            required: &no false
          file/b:
            <<: [{max_size: 2MiB}, *base]
            path: /y/b.jsonl
            required: *no
        """,
    )
    exporter = load_config([path], (), {}).exporters["file/b"]
    assert (exporter.path, exporter.max_size, exporter.required) == ("/y/b.jsonl", 2 << 20, False)
    path.write_text(path.read_text().replace("/y/b.jsonl", "7"))
    assert complaint(path).startswith(f"{path}:9: exporters.file/b.path: must be text")


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "---\n", "null", "audit:\nexporters:\n"]
)
def test_empty_is_defaults(tmp_path: Path, text: str) -> None:
    """
    Scenario: a file without a key, or with blocks whose keys are all commented out.
    Guarantees: the defaults, exactly.
    """
    values = {"ack", "ack_timeout"}
    blocks = "".join(f"{name}:\n" for name in Config.model_fields if name not in values)
    assert load_config([written(tmp_path, text)], (), {}) == Config()
    assert load_config([written(tmp_path, blocks)], (), {}) == Config()
    assert load_config([], (), {}) == Config()


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    """
    Scenario: an editor has put a UTF-8 byte order mark before the first key.
    Guarantees: the key is read.
    """
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfaudit: {enabled: false}")
    assert not load_config([path], (), {}).audit.enabled


def test_later_wins(tmp_path: Path) -> None:
    """
    Scenario: two files and a `--set` name the same keys, a map, a list and a value.
    Guarantees: maps merge, lists and values are replaced, null over a map changes nothing.
    """
    one = written(
        tmp_path,
        """\
        detectors: {rate: {warn: 5, block: 6}, rate_shift: {enabled: false}}
        identity: {user: [a, b, c]}
        audit: {path: /x}
        """,
        "one.yaml",
    )
    two = written(
        tmp_path,
        """\
        detectors: {rate: {warn: 4}, rate_shift: }
        identity: {user: [d]}
        audit: {path: }
        """,
        "two.yaml",
    )
    config = load_config([one, two], ["detectors.rate.block=9"], {})
    assert (config.detectors.rate.warn, config.detectors.rate.block) == (4, 9)
    assert not config.detectors.rate_shift.enabled
    assert config.identity.user == ("d",)
    assert config.audit.path is None


def test_the_line_is_that_of_the_file_that_won(tmp_path: Path) -> None:
    """
    Scenario: the first of two files is right, the second wrong; then the other way round.
    Guarantees: the message names the file whose value counts; a value that lost is not judged.
    """
    good = written(tmp_path, "\n\ndetectors: {rate: {warn: 4}}", "good.yaml")
    bad = written(tmp_path, "\ndetectors: {rate: {warn: x}}", "bad.yaml")
    assert complaint(good, bad).startswith(f"{bad}:2: ")
    assert load_config([bad, good], (), {}).detectors.rate.warn == 4
    said = complaint(good, overrides=["detectors.rate.block=3"])
    assert said.startswith(f"{good}:3: detectors.rate.warn: warn (4) must be below block (3)")


def test_default_exporter_and_doors_go_when_named(tmp_path: Path) -> None:
    """
    Scenario: exporters and doors are written out in a file, in a second one, or set one by one.
    Guarantees: a file that names the block has what it names, and so has `--set` of the whole
    block; files merge with each other; `--set` of a key inside only adds.
    """
    debug = written(tmp_path, "exporters: {debug: }", "debug.yaml")
    grpc = written(
        tmp_path, "exporters: {file/x: {}}\nreceivers: {otlp: {protocols: {grpc: }}}", "grpc.yaml"
    )
    http_on = "receivers.otlp.protocols.http.endpoint=127.0.0.1:0"

    def names(files, overrides=()):
        return sorted(load_config(files, overrides, {}).exporters)

    def doors(files, overrides=()):
        protocols = load_config(files, overrides, {}).receivers.otlp.protocols
        return protocols.grpc is not None, protocols.http is not None

    assert names([]) == ["file"]
    assert names([debug]) == ["debug"]
    assert names([debug, grpc]) == ["debug", "file/x"]
    assert names([debug], ["exporters.debug="]) == ["debug"]
    assert names([], ["exporters.debug={}"]) == ["debug", "file"]
    assert names([], ["exporters={debug: }"]) == ["debug"]
    assert names([], ["exporters.file.max_backups=1"]) == ["file"]
    assert doors([]) == (True, True)
    assert doors([grpc]) == (True, False)
    assert doors([grpc], [http_on]) == (True, True)
    assert doors([], [http_on]) == (True, True)


def test_an_exporter_named_again_without_a_value_stays(tmp_path: Path) -> None:
    """
    Scenario: a later file names an exporter with null.
    Guarantees: it keeps what the earlier file gave it.
    """
    one = written(tmp_path, "exporters: {otlp: {endpoint: 'h:1'}}", "one.yaml")
    two = written(tmp_path, "exporters: {otlp: , debug: }", "two.yaml")
    exporters = load_config([one, two], (), {}).exporters
    assert exporters["otlp"].endpoint == "h:1"
    assert sorted(exporters) == ["debug", "otlp"]


def test_variables_expand(tmp_path: Path) -> None:
    """
    Scenario: variables in plain and quoted text, alone and in the middle, set, unset and empty.
    Guarantees: each expands once; alone and plain it is read as YAML reads a scalar; digits meant
    as text keep their zeros; `$$` is a dollar.
    """
    path = written(
        tmp_path,
        """\
        detectors:
          rate: {enabled: "${env:OFF}", warn: "${env:SEVEN}"}
          rate_shift:
            k: ${env:HALF}
            ceiling: ${env:NO_SUCH:-0}
        exporters:
          otlp:
            endpoint: ${env:HOST}:${env:NO_SUCH:-4317}
            timeout: ${env:ZERO}5s
            tls: {insecure: true}
            headers:
              token: ${env:ZEROS}
              dollar: $${env:HOST} $$5 $1
              nested: ${env:NESTED}
              empty: "${env:EMPTY}"
            retry_on_failure: {max_elapsed_time: "${env:ZERO}"}
        audit: {path: "a${env:EMPTY}"}
        storage:
          directory: ${env:EMPTY:-x}y
        """,
    )
    environ = {
        "OFF": "off",
        "SEVEN": "7",
        "HALF": "0.5",
        "HOST": "tempo",
        "ZERO": "0",
        "ZEROS": "00123",
        "NESTED": "${env:HOST}",
        "EMPTY": "",
    }
    config = load_config([path], (), environ)
    exporter = config.exporters["otlp"]
    assert (config.detectors.rate.enabled, config.detectors.rate.warn) == (False, 7)
    assert (config.detectors.rate_shift.k, config.detectors.rate_shift.ceiling) == (0.5, 0)
    assert (exporter.endpoint, exporter.timeout) == ("tempo:4317", 5_000_000_000)
    assert exporter.retry_on_failure.max_elapsed_time == 0
    assert exporter.headers == {
        "token": "00123",
        "dollar": "${env:HOST} $5 $1",
        "nested": "${env:HOST}",
        "empty": "",
    }
    assert config.audit.path == "a"
    assert config.storage.directory == "y"


def test_an_empty_variable_is_nothing(tmp_path: Path) -> None:
    """
    Scenario: a key is nothing but a variable that is set and empty.
    Guarantees: it is null, as in the Collector: an optional key takes its default.
    """
    path = written(tmp_path, "audit:\n  path: ${env:EMPTY}\n")
    assert load_config([path], (), {"EMPTY": ""}).audit.path is None


def test_the_data_directory_comes_from_the_environment(tmp_path: Path) -> None:
    """
    Scenario: OTEL_ANOMALY_DATA is set, empty, or a file names a directory as well.
    Guarantees: it is a default only, and moves the files whose place is not given.
    """
    path = written(tmp_path, "storage: {directory: /from/file}\naudit: {path: /b.jsonl}")
    environ = {"OTEL_ANOMALY_DATA": "/from/env"}
    config = load_config([], (), environ)
    exporter = config.exporters["file"]
    assert room.signal_paths(config, exporter) == {
        "traces": Path("/from/env/spans.jsonl"),
        "metrics": Path("/from/env/metrics.jsonl"),
        "logs": Path("/from/env/logs.jsonl"),
    }
    assert room.audit_path(config) == Path("/from/env/audit.jsonl")
    assert load_config([], (), {"OTEL_ANOMALY_DATA": ""}) == Config()
    assert load_config([path], (), environ).storage.directory == "/from/file"
    assert room.audit_path(load_config([path], (), environ)) == Path("/b.jsonl")


def test_every_exporter_named_twice_is_two() -> None:
    """
    Scenario: two exporters of one type, and the Collector's older names of the types.
    Guarantees: each has its own model; keys of the file stay as written.
    """
    overrides = ["exporters.otlp/a.endpoint=a:1", "exporters.otlp_grpc/b.endpoint=https://b:1/"]
    overrides += [
        "exporters.otlphttp.endpoint=http://c",
        "exporters.otlp_http/d.endpoint=https://d",
    ]
    exporters = load_config([], overrides, {}).exporters
    assert exporters["otlp_grpc/b"].endpoint == "https://b:1"
    kinds = {name: exporter.kind for name, exporter in exporters.items()}
    assert kinds == {
        "file": "file",
        "otlp/a": "otlp_grpc",
        "otlp_grpc/b": "otlp_grpc",
        "otlphttp": "otlp_http",
        "otlp_http/d": "otlp_http",
    }


def test_the_configuration_does_not_change() -> None:
    """
    Scenario: code tries to change a loaded value.
    Guarantees: refused.
    """
    with pytest.raises(ValueError, match="frozen"):
        Config().audit.enabled = False  # type: ignore[misc]


DURATIONS = {
    "0": 0,
    "3us": 3000,
    "90s": 90 * 10**9,
    "1m30s": 90 * 10**9,
    "0.5h": 1800 * 10**9,
    "7ns": 7,
}


@pytest.mark.parametrize(("text", "expected"), DURATIONS.items())
def test_durations(text: str, expected: int) -> None:
    """
    Scenario: durations as people write them.
    Guarantees: exact nanoseconds.
    """
    assert duration_ns(text) == expected


@given(st.integers(0, 10**9), st.sampled_from([1, 1000, 10**6, 10**9, 60 * 10**9, 3600 * 10**9]))
def test_quantities_are_read_as_they_are_written(count: int, unit: int) -> None:
    """
    Scenario: any duration and size is written as text and read again.
    Guarantees: the same number: generated defaults are the defaults.
    """
    duration, size = count * unit, count << (unit % 31)
    assert re.fullmatch(r"\d+(ns|us|ms|s|m|h|d)", duration_text(duration))
    assert duration_ns(duration_text(duration)) == duration
    assert size_bytes(size_text(size)) == size


NEIGHBOURS = {
    "free ports": ("127.0.0.1:0", "127.0.0.1:0", True),
    "other port": ("127.0.0.1:1", "127.0.0.1:2", True),
    "other host": ("10.0.0.1:1", "10.0.0.2:1", True),
    "other family": ("127.0.0.1:1", "[::1]:1", True),
    "same": ("127.0.0.1:1", "127.0.0.1:1", False),
    "same by name": ("HOST:1", "host:1", False),
    "localhost": ("localhost:1", "127.0.0.1:1", False),
    "localhost in the other family": ("[::1]:1", "localhost:1", False),
    "every address": ("0.0.0.0:1", "10.0.0.1:1", False),
}


@pytest.mark.parametrize(("one", "other", "is_fine"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_doors_side_by_side(one: str, other: str, is_fine: object) -> None:
    """
    Scenario: both doors get an address.
    Guarantees: refused when, and only when, they would want the same port.
    """
    base = "receivers.otlp.protocols"
    overrides = [f"{base}.grpc.endpoint='{one}'", f"{base}.http.endpoint='{other}'"]
    if is_fine:
        load_config([], overrides, {})
    else:
        assert "cannot share port 1" in complaint(overrides=overrides)


NEXT_HOPS = {
    "elsewhere": ("0.0.0.0:4317", "tempo:4317", True),
    "address of the door only": ("10.0.0.1:4317", "localhost:4317", True),
    "wildcard is this machine": ("10.0.0.1:4317", "0.0.0.0:4317", True),
    "other port": ("0.0.0.0:4317", "localhost:14317", True),
    "unknown port": ("127.0.0.1:0", "localhost:4317", True),
    "itself": ("10.0.0.1:4317", "10.0.0.1:4317", False),
    "itself, every address": ("0.0.0.0:4317", "https://localhost:4317/", False),
    "itself, by wildcard": ("127.0.0.1:4317", "0.0.0.0:4317", False),
}


@pytest.mark.parametrize(("door", "target", "is_fine"), NEXT_HOPS.values(), ids=NEXT_HOPS)
def test_next_hops(door: str, target: str, is_fine: object) -> None:
    """
    Scenario: an exporter sends to an address on or off this machine.
    Guarantees: refused when, and only when, its spans would come in again at our own door.
    """
    overrides = [
        f"receivers.otlp.protocols.grpc.endpoint={door}",
        f"exporters.otlp.endpoint={target}",
    ]
    if is_fine:
        load_config([], overrides, {})
    else:
        assert "sends to our own door" in complaint(overrides=overrides)


def test_parts_can_be_given_as_models() -> None:
    """
    Scenario: code, not a file, makes a configuration from an exporter that is already a model.
    Guarantees: it is taken as it is, and held against the rest.
    """
    debug = room.DebugExporterConfig(required=False)
    assert Config(exporters={"debug": debug}).exporters == {"debug": debug}
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"audit": {"fsync": "x"}})
    said = problems(caught.value, yaml_text.Layer({}, {}))
    assert said == ["configuration: audit.fsync: must be true or false"]


def test_a_disk_queue_waits_for_its_next_hop(tmp_path: Path) -> None:
    """
    Scenario: an exporter with a disk queue, alone and with rules for retries; others with none.
    Guarantees: with a disk queue nothing is given up for its age, unless that is asked for.
    """

    def elapsed_s(section: str) -> float:
        text = f"exporters: {{otlp_http: {{endpoint: 'http://127.0.0.1:9', {section}}}}}"
        return (
            load_config([written(tmp_path, text)], (), {})
            .exporters["otlp_http"]
            .retry_on_failure.max_elapsed_time
            / 1e9
        )

    disk = "sending_queue: {storage: disk}"
    assert elapsed_s(disk) == elapsed_s(f"{disk}, retry_on_failure: {{max_interval: 9s}}") == 0
    assert elapsed_s(f"{disk}, retry_on_failure: {{max_elapsed_time: 1h}}") == 3600
    assert elapsed_s("sending_queue: {storage: memory}") == elapsed_s("timeout: 1s") == 300


def test_the_summary_tells_what_guards_and_what_lasts(tmp_path: Path) -> None:
    """
    Scenario: doors with TLS, credentials and neither; a disk queue, `ack: sent`, redaction, no
    snapshots; then a door with neither that other machines reach.
    Guarantees: the line that `validate` prints has it, without a secret; the last is `open`.
    """
    tls = "tls: {cert_file: c, key_file: k"
    auth = "auth: {bearer: {tokens: [not-to-be-told]}, basic: {htpasswd: {file: f}}}"
    protocols = f"{{grpc: {{{tls}, client_ca_file: a}}}}, http: {{{tls}}}, {auth}}}}}"
    text = (
        f"receivers: {{otlp: {{protocols: {protocols}}}}}\n"
        "exporters: {otlp_grpc: {endpoint: 'hop:4317', sending_queue: {storage: disk}}}\n"
        "ack: sent\nredact: {enabled: true, what: [mails]}\n"
        "storage: {snapshots: {enabled: false}}\n"
    )
    said = summary(load_config([written(tmp_path, text)], (), {}))
    for part in (
        "otlp/grpc on 127.0.0.1:4317 (mutual tls), ",
        "otlp/http on 127.0.0.1:4318 (tls, bearer, basic)",
        "forwards to otlp_grpc (hop:4317) from a disk queue; answers when that is delivered",
        "redacts mails (mask)",
        "forgets what it learned when it stops",
    ):
        assert part in said
    assert "not-to-be-told" not in said
    assert "(" not in summary(Config()).partition(";")[0]
    open_door = ["receivers.otlp.protocols.grpc.endpoint=0.0.0.0:4317"]
    assert summary(load_config([], open_door, {})).startswith(
        "receives otlp/grpc on 0.0.0.0:4317 (open), otlp/http on 127.0.0.1:4318; "
    )
