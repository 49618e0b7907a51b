"""The commands; the only room that exits or prints to a terminal.

Exit codes: 0 done, 1 the answer is no, 2 usage or configuration, 3 could not start, 4 the stop was
ended by force, and as shells have it 130 for Ctrl-C and 141 for a reader that went away. What a
command needs is imported when it runs: `validate` and `--help` do not wait for the kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from otel_anomaly import __version__
from otel_anomaly.config import ConfigError, Source, load_config, summary
from otel_anomaly.handoff import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # The type of `add_subparsers` has no public name.
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

OK, NO, USAGE = 0, 1, 2
INTERRUPTED, READER_GONE = 130, 141
_VERIFIES = (
    "says whether the chain of an audit trail is unbroken, with its head, or its first broken"
    " record; records cut off the end show only beside a head, or a count, kept elsewhere"
)
_EXIT_CODES = (
    "Exit codes: 0 done, 1 the answer is no, 2 usage or configuration, 3 could not start,"
    " 4 the stop was ended by force."
)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; the exit code."""
    if not __debug__:
        print("not under python -O: assertions are part of this program", file=sys.stderr)
        return USAGE
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()  # A reader that went away is noticed here, not while exiting.
    except SystemExit as stop:  # argparse: --help, --version and wrong usage.
        return stop.code if isinstance(stop.code, int) else USAGE
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return READER_GONE
    return code


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of complaining."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-anomaly",
        description="Judges every tool call of AI agents on the OpenTelemetry spans they emit.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_validate(commands)
    _add_replay(commands)
    _add_audit(commands)
    _add_health(commands)
    _add_snapshot(commands)
    return parser


def _command(
    commands: _Commands, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=_EXIT_CODES, allow_abbrev=False
    )
    parser.set_defaults(command=run)
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="YAML file; later ones win (default: the built-in defaults)",
    )
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="one key over the files, like detectors.rate.warn=50",
    )


def _add_run(commands: _Commands) -> None:
    parser = _command(commands, "run", "the service", _run)
    _add_configuration(parser)


def _run(arguments: argparse.Namespace) -> int:
    source = Source(tuple(arguments.config), tuple(arguments.overrides))
    config = source.load()
    from otel_anomaly.running import run  # noqa: PLC0415 - kernels load after the config is right.

    return run(config, source)


def _add_validate(commands: _Commands) -> None:
    parser = _command(commands, "validate", "checks a configuration", _validate)
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        action="extend",
        nargs="+",
        required=True,
        help="YAML file; several are checked as one, later ones win",
    )
    _add_set(parser)


def _validate(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    for path in arguments.config:
        print(f"{path}: ok")
    print(summary(config))
    return OK


def _add_replay(commands: _Commands) -> None:
    parser = _command(commands, "replay", "judges recorded OTLP", _replay)
    parser.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="+",
        help=".bin or .pb (protobuf), .json or .jsonl (OTLP JSON), each also with .gz",
    )
    _add_configuration(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="annotated spans, in the format of the suffix"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="the report")
    parser.add_argument(
        "--calls", action="store_true", help="every judged call, with --format json"
    )
    parser.add_argument(
        "--signal",
        choices=(Signal.TRACES.value, Signal.LOGS.value),
        help="what all binary files hold (default: each what can be read in it)",
    )
    parser.add_argument(
        "--load-state", metavar="FILE", type=Path, help="begin with what this snapshot remembers"
    )
    parser.add_argument(
        "--save-state", metavar="FILE", type=Path, help="write what is remembered at the end"
    )
    parser.add_argument(
        "--explain",
        metavar="SPAN_ID",
        type=_span_id,
        help="what every detector said of this span and why, instead of the report",
    )


def _span_id(text: str) -> str:
    """16 hex digits, in lower case."""
    if not re.fullmatch("[0-9a-fA-F]{16}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a span id: 16 hex digits")
    return text.lower()


def _replay(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    for path in arguments.files:
        if not _readable(path):
            return USAGE
    from otel_anomaly.kernels import cache_is_warm  # noqa: PLC0415 - same as for `run`.
    from otel_anomaly.replay import replay_command  # noqa: PLC0415 - same as for `run`.

    if not cache_is_warm():
        said = "first run on this machine: compiling the kernels, a minute or two ..."
        print(said, file=sys.stderr)
    return replay_command(
        config,
        arguments.files,
        out=arguments.out,
        output_format=arguments.format,
        calls=arguments.calls,
        signal=Signal(arguments.signal) if arguments.signal else None,
        explain=arguments.explain,
        load_state=arguments.load_state,
        save_state=arguments.save_state,
        stdout=sys.stdout,
    )


def _readable(path: Path) -> bool:
    """Whether `path` can be opened; says why not."""
    try:
        with path.open("rb"):
            return True
    except OSError as error:
        print(f"{path}: {error.strerror or error}", file=sys.stderr)
        return False


def _add_audit(commands: _Commands) -> None:
    parser = commands.add_parser("audit", help="audit trails", description="Audit trails.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    verify = _command(actions, "verify", _VERIFIES, _audit_verify)
    verify.add_argument("file", metavar="FILE", type=Path)
    verify.add_argument(
        "--key", metavar="FILE", type=Path, help="refused: the trail carries no signatures"
    )


def _audit_verify(arguments: argparse.Namespace) -> int:
    path: Path = arguments.file
    if arguments.key is not None:
        print(
            f"{path}: the trail carries no signatures: --key has nothing to check", file=sys.stderr
        )
        return USAGE
    if not _readable(path):
        return USAGE
    from otel_anomaly.sinks import verify  # noqa: PLC0415 - same as for `run`.

    result = verify(path)
    if result.ok and not result.records:
        print(f"{path}: no records")
        return NO
    if result.ok:
        # The head, kept elsewhere, is what shows later that nothing was cut off the end.
        print(f"{path}: ok, {result.records} records, head {result.head}")
        return OK
    place = path if result.line is None else f"{path}:{result.line}"
    print(f"{place}: {result.message}")
    return NO


def _add_health(commands: _Commands) -> None:
    text = "asks the running service whether it is ready, for container health checks"
    parser = _command(commands, "health", text, _health)
    _add_configuration(parser)


def _health(arguments: argparse.Namespace) -> int:
    from otel_anomaly.probe import ask  # noqa: PLC0415 - nobody else waits for an HTTP client.

    answer = ask(load_config(arguments.config, arguments.overrides))
    print(answer.text)
    return OK if answer.ready else NO


def _add_snapshot(commands: _Commands) -> None:
    text = "has the running service write down what it learned, and waits until it is there"
    parser = _command(commands, "snapshot", text, _snapshot)
    _add_configuration(parser)
    parser.add_argument(
        "--inspect", metavar="FILE", type=Path, help="says what is in a snapshot instead; no names"
    )


def _snapshot(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    from otel_anomaly.asking import ask, look_into  # noqa: PLC0415 - same as for `run`.

    answer = ask(config) if arguments.inspect is None else look_into(arguments.inspect)
    print(answer.text, file=sys.stdout if answer.good else sys.stderr)
    return OK if answer.good else NO
