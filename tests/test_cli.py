"""The commands: what they ask the rooms for, what they print, and their exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from otel_anomaly import __version__, cli
from otel_anomaly.config import DetectorsConfig, load_config
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def stand_in(patch: pytest.MonkeyPatch, module: str, name: str, function: Callable) -> None:
    """Put a module with one function in the place of a room."""
    room = ModuleType(module)
    setattr(room, name, function)
    patch.setitem(sys.modules, module, room)


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """This interpreter, as a process of its own."""
    environ = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environ, timeout=60, **options
    )


def test_run_starts_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: `run` with two files and two `--set`.
    Guarantees: the service gets their configuration; its exit code is ours.
    """
    started = []
    stand_in(
        monkeypatch, "otel_anomaly.running", "run", lambda config, _: started.append(config) or 3
    )
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("detectors: {rate: {warn: 7}}")
    two.write_text("audit: {enabled: false}")
    overrides = ["detectors.rate.block=9", "alerts.hold=5s"]
    arguments = ["--config", str(one), "--config", str(two)]
    arguments += ["--set", overrides[0], "--set", overrides[1]]
    assert cli.main(["run", *arguments]) == 3
    assert started == [load_config([one, two], overrides)]
    assert (started[0].detectors.rate.warn, started[0].audit.enabled) == (7, False)


def test_run_without_a_file_runs_on_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: `run` and nothing else.
    Guarantees: the service gets the defaults, with OTEL_ANOMALY_DATA as their place for files.
    """
    started = []
    stand_in(
        monkeypatch, "otel_anomaly.running", "run", lambda config, _: started.append(config) or 0
    )
    monkeypatch.setenv("OTEL_ANOMALY_DATA", "/some/where")
    assert cli.main(["run"]) == 0
    assert started[0].storage.directory == "/some/where"


def test_run_refuses_a_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: `run` with a wrong value, then a missing file.
    Guarantees: exit 2 and the reason on standard error; the service is not even imported.
    """
    monkeypatch.setitem(sys.modules, "otel_anomaly.running", None)
    assert cli.main(["run", "--set", "detectors.rate.warn=x"]) == 2
    assert cli.main(["run", "--config", "/no/such.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "--set detectors.rate.warn=x: must be a whole number (got 'x')",
        "/no/such.yaml: No such file or directory",
    ]


def test_validate_says_ok_and_what_it_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: two sound files, checked as one.
    Guarantees: exit 0, a line for each and one that says what the service will do, no secrets.
    """
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    off = DetectorsConfig.model_fields.keys() - {"learning", "rate", "unknown_connection"}
    one.write_text(
        "receivers: {otlp: {protocols: {grpc: {endpoint: 'localhost:1'}}}}\n"
        "policy: {mode: observe, overrides: [{tool: poll_*, detectors: {rate: {warn: 7}}}]}\n"
        "detectors:\n  unknown_connection: {allow: [a.example]}\n"
        + "".join(f"  {name}: {{enabled: false}}\n" for name in off)
    )
    two.write_text(
        "exporters:\n  otlp_http/up: {endpoint: 'https://u:secret@up', headers: {a: secret}}\n"
        "  file: {path: /x/s.jsonl}\n  debug:\naudit: {enabled: false}\n"
    )
    assert cli.main(["validate", "--config", str(one), str(two)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{one}: ok",
        f"{two}: ok",
        (
            "receives otlp/grpc on localhost:1;"
            " judges rate (scope session, window 60s, warn 100, block 500), unknown_connection"
            " (allow 1 entry, action block); observe: nothing above warn is written, 1 override;"
            " forwards to otlp_http/up (https://***@up), file (/x/s.jsonl), debug (standard error);"
            " metrics on 127.0.0.1:9464"
        ),
    ]


def test_validate_of_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: an empty file, then one with every detector off.
    Guarantees: the line shows both doors, the detectors, what the mode does, the file and the
    trail; or `nothing`.
    """
    file = tmp_path / "empty.yaml"
    file.write_text("storage: {directory: /d}")
    switches = [name for name in DetectorsConfig.model_fields if name != "learning"]
    off = [part for name in switches for part in ("--set", f"detectors.{name}.enabled=off")]
    assert cli.main(["validate", "--config", str(file)]) == 0
    assert cli.main(["validate", "--config", str(file), *off]) == 0
    _, full, _, quiet = capsys.readouterr().out.splitlines()
    assert full.startswith("receives otlp/grpc on 127.0.0.1:4317, otlp/http on 127.0.0.1:4318; ")
    assert "rate_shift (k 3.0, ratio 2.0, min_calls_second 30," in full
    assert full.endswith("metrics on 127.0.0.1:9464; audit in /d/audit.jsonl")
    assert "; enforce: actions are written as decided; forwards to file (/d/spans.jsonl)" in full
    assert "judges nothing; enforce: " in quiet


def test_validate_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: a file with two wrong lines; then no file is named.
    Guarantees: exit 2; a line on standard error for each.
    """
    file = tmp_path / "c.yaml"
    file.write_text("audit:\n  fsync: maybe\nalerts:\n  clear: 2\n")
    assert cli.main(["validate", "--config", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"{file}:2: audit.fsync: must be true or false (got 'maybe')",
        f"{file}:4: alerts.clear: must be at most 1 (got 2)",
    ]
    assert cli.main(["validate"]) == 2


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["rn"], ["run", "x"], ["run", "--conf", "x"]]
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: no command, help, a wrong command, a stray argument, a shortened option.
    Guarantees: help is exit 0, all else 2 with the usage on standard error.
    """
    code = cli.main(arguments)
    printed = capsys.readouterr()
    assert code == (0 if "--help" in arguments else 2)
    assert "usage: otel-anomaly" in (printed.err if code else printed.out)


@pytest.mark.parametrize(
    "command", [["run"], ["validate"], ["replay"], ["snapshot"], ["audit", "verify"]]
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: `COMMAND --help`.
    Guarantees: exit 0; the text says what the exit codes mean.
    """
    assert cli.main([*command, "--help"]) == 0
    assert "0 done, 1 the answer is no, 2 usage" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: `--version`.
    Guarantees: exit 0 and the version of the package.
    """
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"otel-anomaly {__version__}\n"


def test_replay_hands_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: `replay` with every option, then with none.
    Guarantees: replay gets them typed, with standard output to print to; its code is ours.
    """
    asked = []

    def replay(config, files, **options) -> int:
        asked.append((config, files, options))
        return 1

    stand_in(monkeypatch, "otel_anomaly.replay", "replay_command", replay)
    one, two, out = tmp_path / "a.bin", tmp_path / "b.jsonl.gz", tmp_path / "o.jsonl"
    one.touch(), two.touch()
    full = ["--set", "detectors.rate.warn=7", "--out", str(out), "--format", "json", "--calls"]
    full += ["--signal", "logs", "--explain", "00F067AA0BA902B7"]
    full += ["--load-state", str(one), "--save-state", str(two)]
    assert cli.main(["replay", str(one), str(two), *full]) == 1
    assert cli.main(["replay", str(one)]) == 1
    assert asked[0][0].detectors.rate.warn == 7
    assert asked[0][1] == [one, two]
    assert asked[0][2] == {
        "out": out,
        "output_format": "json",
        "calls": True,
        "signal": Signal.LOGS,
        "explain": "00f067aa0ba902b7",
        "load_state": one,
        "save_state": two,
        "stdout": sys.stdout,
    }
    assert asked[1] == (
        load_config([]),
        [one],
        {
            "out": None,
            "output_format": "table",
            "calls": False,
            "signal": None,
            "explain": None,
            "load_state": None,
            "save_state": None,
            "stdout": sys.stdout,
        },
    )


@pytest.mark.parametrize("warm", [True, False])
def test_replay_says_that_it_compiles(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    warm: bool,  # noqa: FBT001 - pytest hands it over by name.
) -> None:
    """
    Scenario: `replay` on a machine that has the kernels, and on one that compiles them first.
    Guarantees: the second is told on standard error before anything is replayed, the first is not.
    """
    before: list[str] = []

    def replay(*_, **__) -> int:
        before.append(capsys.readouterr().err)
        return 0

    stand_in(monkeypatch, "otel_anomaly.replay", "replay_command", replay)
    stand_in(monkeypatch, "otel_anomaly.kernels", "cache_is_warm", lambda: warm)
    file = tmp_path / "a.bin"
    file.touch()
    assert cli.main(["replay", str(file)]) == 0
    told = "first run on this machine: compiling the kernels, a minute or two ...\n"
    assert before == ["" if warm else told]


def test_replay_of_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: the second file is missing; then a folder; then metrics, which are not judged.
    Guarantees: exit 2 with the name; nothing is replayed.
    """
    monkeypatch.setitem(sys.modules, "otel_anomaly.replay", None)
    file = tmp_path / "a.bin"
    file.touch()
    assert cli.main(["replay", str(file), str(tmp_path / "no.bin")]) == 2
    assert cli.main(["replay", str(tmp_path)]) == 2
    assert cli.main(["replay", str(file), "--signal", "metrics"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{tmp_path}/no.bin: No such file or directory"
    assert lines[1] == f"{tmp_path}: Is a directory"


@pytest.mark.parametrize("text", ["", "00f067aa0ba902b", "00f067aa0ba902b70", "00f067aa0ba902bx"])
def test_a_span_id_is_checked_at_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    """
    Scenario: `--explain` with what is no span id: nothing, a digit short, one too many, a letter.
    Guarantees: exit 2 and the reason, before anything is read.
    """
    monkeypatch.setitem(sys.modules, "otel_anomaly.replay", None)
    file = tmp_path / "a.bin"
    file.touch()
    assert cli.main(["replay", str(file), "--explain", text]) == 2
    assert f"{text!r} is not a span id: 16 hex digits" in capsys.readouterr().err


AUDIT_ANSWERS = {
    "whole": (
        SimpleNamespace(ok=True, records=7, line=None, message="", head="ab12"),
        ": ok, 7 records, head ab12",
    ),
    "empty": (SimpleNamespace(ok=True, records=0, line=None, message=""), ": no records"),
    "broken": (SimpleNamespace(ok=False, records=4, line=5, message="hash"), ":5: hash"),
    "no line": (SimpleNamespace(ok=False, records=0, line=None, message="empty"), ": empty"),
}


@pytest.mark.parametrize(("result", "said"), AUDIT_ANSWERS.values(), ids=AUDIT_ANSWERS)
def test_audit_verify(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    result: SimpleNamespace,
    said: str,
) -> None:
    """
    Scenario: a trail that is unbroken, one without records, as a file that was emptied is, one
    with a broken line, one that is broken as a whole.
    Guarantees: one line with file, line and reason; exit 0 or 1.
    """
    file = tmp_path / "audit.jsonl"
    file.touch()
    stand_in(monkeypatch, "otel_anomaly.sinks", "verify", {file: result}.__getitem__)
    assert cli.main(["audit", "verify", str(file)]) == (0 if result.ok and result.records else 1)
    assert capsys.readouterr().out == f"{file}{said}\n"


def test_audit_verify_that_cannot_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: the trail is missing; then a key is given for a trail that carries no signatures.
    Guarantees: exit 2: neither is an answer about the trail.
    """
    monkeypatch.setitem(sys.modules, "otel_anomaly.sinks", None)
    missing = tmp_path / "audit.jsonl"
    assert cli.main(["audit", "verify", str(missing)]) == 2
    assert cli.main(["audit", "verify", str(missing), "--key", "k.pem"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{missing}: No such file or directory",
        f"{missing}: the trail carries no signatures: --key has nothing to check",
    ]


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: Ctrl-C while a command works.
    Guarantees: exit 130, as shells have it, and no traceback.
    """

    def interrupted(*_) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "otel_anomaly.running", "run", interrupted)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_quiet(tmp_path: Path) -> None:
    """
    Scenario: `otel-anomaly validate | head -0`: the pipe is closed before anything is printed.
    Guarantees: exit 141, as shells have it, and nothing on standard error.
    """
    file = tmp_path / "c.yaml"
    file.touch()
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "otel_anomaly", "validate", "--config", str(file)]
    try:
        done = subprocess.run(
            command, stdout=write_end, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_that_goes_away_within_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: standard output breaks while a command prints.
    Guarantees: exit 141; what is still in the buffer goes nowhere instead of raising at exit.
    """
    read_end, write_end = os.pipe()
    os.close(read_end)
    broken = io.TextIOWrapper(io.BufferedWriter(io.FileIO(write_end, "wb")))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", broken)
        assert cli.main(["--version"]) == 0  # Buffered: not broken yet.
        assert cli.main(["validate", "--config", os.devnull]) == 141
    broken.close()


def test_optimised_python_is_refused() -> None:
    """
    Scenario: `python -O -m otel_anomaly`, which would strip the assertions.
    Guarantees: exit 2 and the reason.
    """
    done = run_python("-O", "-m", "otel_anomaly", "--version")
    assert done.returncode == 2
    assert done.stderr == "not under python -O: assertions are part of this program\n"


def test_the_console_script_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: the console script is entered with wrong arguments.
    Guarantees: the process exits with the code of the command.
    """
    monkeypatch.setattr(sys, "argv", ["otel-anomaly", "validate"])
    with pytest.raises(SystemExit) as stop:
        cli.entry()
    assert stop.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_quick_commands_do_not_load_the_kernels(tmp_path: Path) -> None:
    """
    Scenario: `validate` in a fresh process.
    Guarantees: neither numba nor grpc nor aiohttp is imported for it.
    """
    file = tmp_path / "c.yaml"
    file.touch()
    code = (
        "import sys; from otel_anomaly.cli import main;"
        f"code = main(['validate', '--config', {str(file)!r}]);"
        "heavy = {'numba', 'numpy', 'grpc', 'aiohttp', 'prometheus_client'} & set(sys.modules);"
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
