"""The map of the house, and the limits on what is written in it.

A diagram drifts, a test does not: the two tables below are the documentation of who may know whom,
and the check.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "otel_anomaly"

# The map of the house, lowest floor first: room -> the rooms it may import. Every row names only
# rows above it, so no cycle can form. Doors, exporters and sinks are blind to each other and to
# the processor: they meet in `handoff`. Everybody may ask the house itself for its version.
EDGE = {"handoff", "config", "telemetry", "otlp"}
CORE = {"handoff", "kernels", "config", "otlp", "entities", "detectors", "scoring", "state"}
STEPS = {"policy", "gathering", "ahead", "correction", "episode_steps", "looking"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "handoff": set(),
    "logs": set(),
    "cache_copy": set(),
    "compilation": set(),
    "kernels": {"cache_copy", "compilation"},
    "config": set(),
    "otlp": {"handoff", "kernels"},
    "telemetry": {"handoff"},
    "entities": {"otlp", "kernels", "config"},
    "detectors": {"otlp", "entities", "kernels", "config"},
    "scoring": {"kernels", "config", "detectors"},
    "state": CORE - {"handoff", "state"},
    "policy": {"kernels", "config", "detectors"},
    "plans": CORE - {"handoff"} | {"policy"},
    "gathering": CORE - {"handoff"} | {"policy"},
    "ahead": CORE - {"handoff"},
    "correction": CORE - {"handoff"},
    "episode_steps": CORE - {"handoff"},
    "looking": CORE - {"handoff"} | {"policy", "gathering", "ahead", "correction"},
    "judge": CORE - {"handoff"} | STEPS,
    "verdict": CORE,
    "workspace": CORE | {"verdict"},
    "redacting": CORE - {"handoff"} | {"telemetry"},
    "resizing": CORE - {"handoff"},
    "rules": CORE - {"handoff"} | {"plans", "verdict"},
    "snapshot": CORE | {"resizing"},
    "snapshot_file": {"resizing", "snapshot"},
    "soundness": CORE | {"resizing"},
    "directory_lock": set(),
    "processor": CORE
    | {"resizing", "snapshot", "telemetry", "rules", "plans", "gathering", "looking", "judge"}
    | {"verdict", "workspace", "redacting"},
    "receivers": EDGE,
    "exporters": EDGE,
    "sinks": EDGE,
    "report": CORE | {"verdict"},
    "episodes": CORE | {"report"},
    "snapshots": CORE
    | {"telemetry", "plans", "resizing", "snapshot", "snapshot_file", "soundness"}
    | {"processor", "episodes"},
    "recordings": {"handoff", "otlp"},
    "why_not": CORE,
    "explanation": CORE | {"processor", "report", "why_not"},
    "replay": CORE
    | {"telemetry", "processor", "recordings", "report", "explanation"}
    | {"snapshot_file", "snapshots"},
    "warm": CORE | {"telemetry", "processor", "report", "episodes", "explanation", "gathering"},
    "doors": EDGE | {"receivers"},
    "telling": EDGE | {"sinks"},
    "memory": EDGE,
    "reloading": EDGE,
    "service": CORE
    | EDGE
    | {"processor", "report", "episodes", "warm", "exporters", "doors", "telling"}
    | {"memory", "reloading", "snapshots"},
    "last_resort": set(),
    "running": {"config", "kernels", "directory_lock", "logs", "reloading", "service"}
    | {"last_resort"},
    "asking": {"config", "directory_lock", "snapshot_file", "snapshots"},
    "probe": {"config"},
    "cli": {"handoff", "config", "kernels", "sinks", "replay", "running", "probe", "asking"},
    "__main__": {"cli"},
}

# Packages of others -> the rooms that may know them. One that is not named here may not be used.
MAY_USE: dict[str, set[str]] = {
    "numpy": CORE - {"handoff", "config"}
    | STEPS
    | {"plans", "judge", "verdict", "workspace", "processor", "report", "episodes", "explanation"}
    | {"why_not", "redacting", "resizing", "rules", "snapshot", "snapshot_file", "snapshots"}
    | {"soundness"},
    "numba": {"compilation", "kernels"},
    "llvmlite": {"kernels"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "yaml": {"config"},
    "prometheus_client": {"telemetry"},
    "grpc": {"receivers", "exporters"},
    "grpc_health": {"receivers"},
    "aiohttp": {"receivers", "exporters"},
    "yarl": {"receivers"},
    "backports": {"receivers", "exporters"},  # backports.zstd
    "compression": {"receivers", "exporters"},  # The same in Python 3.14.
    "google": {"otlp", "receivers", "exporters"},
    "opentelemetry": {"otlp", "receivers", "exporters"},
    "rfc8785": {"sinks"},
    "uvloop": {"running"},
}

# These rooms compute: bytes and columns in, bytes and columns out. The same code then serves a
# door, a recorded file, the fuzzer and the benchmark.
PURE = {"otlp", "entities", "detectors", "scoring", "state", "plans", "judge"} | STEPS
PURE |= {"rules"}
OUTSIDE_WORLD = {
    "asyncio",
    "logging",
    "os",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
BANNED_NAMES = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
TEXT_SUFFIXES = {".cfg", ".ini", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}
TEXT_FILES = {".dockerignore", ".gitignore", "Dockerfile", "LICENSE", "Makefile", "run"}
NOT_OURS = {"build", "data", "dist", "__pycache__", "otel-anomaly-data"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files_below(folder: Path) -> Iterator[Path]:
    """Our own files: no caches, no environments, no captured data."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in {".ci", *TEXT_FILES}
        if hidden or path.name in NOT_OURS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


PACKAGE_MODULES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in files_below(ROOT) if path.suffix == ".py"]
ROOMS = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE_MODULES}


def name_of(path: Path) -> str:
    """The path from the root: the test's name and what a failure prints."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The room a module of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file; each file is read once."""
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands and however it is spelt."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            for alias in node.names:
                yield node.lineno, f"{dots}{node.module or ''}.{alias.name}"


def target_room(name: str) -> str | None:
    """The room of ours that a dotted name leads to; None when it leads out of the house."""
    house, _, rest = name.partition(".")
    if house != PACKAGE.name:
        return None
    room = rest.partition(".")[0]
    return room if room in ROOMS else "__init__"


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function, also those inside others."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the last one; the docstring does not count."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        assert text.end_lineno is not None
        lines -= text.end_lineno - text.lineno + 1
    return lines


per_module = pytest.mark.parametrize("path", MODULES, ids=name_of)
per_package_module = pytest.mark.parametrize("path", PACKAGE_MODULES, ids=name_of)


def test_the_map_has_no_cycle() -> None:
    """
    Scenario: the rows of the map are read from the lowest floor up.
    Guarantees: each names only rows already read, so no cycle of imports can form.
    """
    built: set[str] = set()
    for room, floors in MAY_IMPORT.items():
        assert floors <= built, f"{room} is below {sorted(floors - built)}"
        built.add(room)


def test_the_map_is_of_this_house() -> None:
    """
    Scenario: the rooms on disk are held against the rows of the map.
    Guarantees: every room has a row, and no row is left of a room that is gone.
    """
    assert set(MAY_IMPORT) == ROOMS


@per_package_module
def test_rooms_know_only_lower_floors(path: Path) -> None:
    """
    Scenario: every import of a module that leads to another room of ours.
    Guarantees: the map allows it, and none is relative.
    """
    room = room_of(path)
    allowed = MAY_IMPORT[room] | {room, "__init__"}
    for line, name in imported(parsed(path)):
        assert not name.startswith("."), f"{name_of(path)}:{line}: relative import"
        target = target_room(name)
        assert target is None or target in allowed, (
            f"{name_of(path)}:{line}: {room} may not import {target}"
        )


@per_package_module
def test_packages_of_others_stay_in_their_rooms(path: Path) -> None:
    """
    Scenario: every import of a module that leads out of the house.
    Guarantees: a package of others is used only in the rooms that the table names for it.
    """
    room = room_of(path)
    for line, name in imported(parsed(path)):
        package = name.partition(".")[0]
        if package == PACKAGE.name or package in sys.stdlib_module_names:
            continue
        assert room in MAY_USE.get(package, set()), (
            f"{name_of(path)}:{line}: {room} may not use {package}"
        )


@per_package_module
def test_computing_rooms_touch_nothing(path: Path) -> None:
    """
    Scenario: the imports of the rooms that only compute.
    Guarantees: no clock, thread, log, socket or chance: what they need is handed in.
    """
    if room_of(path) not in PURE:
        return
    for line, name in imported(parsed(path)):
        module = name.partition(".")[0]
        assert module not in OUTSIDE_WORLD, f"{name_of(path)}:{line}: imports {module}"


@per_module
def test_functions_and_modules_are_short(path: Path) -> None:
    """
    Scenario: the lines of a module and of each function in it are counted.
    Guarantees: 600 and 70 are not passed; docstrings of functions do not count.
    """
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MODULE_LINES_MAX, f"{name_of(path)}: {lines} lines"
    for function in functions(parsed(path)):
        lines = length(function)
        assert lines <= FUNCTION_LINES_MAX, (
            f"{name_of(path)}:{function.lineno}: {function.name} has {lines} lines"
        )


@per_module
def test_modules_compile_without_a_warning(path: Path) -> None:
    """
    Scenario: each file is compiled; the suite turns warnings into errors.
    Guarantees: it is valid for this Python, without so much as a doubtful escape.
    """
    compile(path.read_text("utf-8"), str(path), "exec", dont_inherit=True)


@per_module
def test_names_say_what_is_inside(path: Path) -> None:
    """
    Scenario: the names of a module and of the folders it lies in.
    Guarantees: none is one of the names under which anything can be put.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert BANNED_NAMES.isdisjoint(parts), f"{name_of(path)}: a banned name"


@per_package_module
def test_modules_say_what_they_are(path: Path) -> None:
    """
    Scenario: every public module of the package.
    Guarantees: it opens with a docstring.
    """
    if path.stem.startswith("_") and not path.stem.endswith("__"):
        return
    assert ast.get_docstring(parsed(path)), f"{name_of(path)}: no docstring"


@per_module
def test_tests_say_scenario_and_guarantee(path: Path) -> None:
    """
    Scenario: every test function, but benchmarks, whose docstring says how to run them.
    Guarantees: its docstring says which scenario it plays and what it guarantees.
    """
    if path.is_relative_to(PACKAGE):
        return
    for function in functions(parsed(path)):
        if not function.name.startswith("test_") or function.name.startswith("test_bench"):
            continue
        text = ast.get_docstring(function) or ""
        assert "Scenario:" in text, f"{name_of(path)}:{function.lineno}: {function.name}"
        assert "Guarantees:" in text, f"{name_of(path)}:{function.lineno}: {function.name}"


def test_source_is_ascii() -> None:
    """
    Scenario: every text file that people write.
    Guarantees: ASCII only, so that a diff shows what is there; ends with a newline, no tabs at
    the end of lines.
    """
    for path in files_below(ROOT):
        if path.suffix not in TEXT_SUFFIXES and path.name not in TEXT_FILES:
            continue
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            where = f"{name_of(path)}:{number}"
            assert line.isascii(), f"{where}: not ASCII"
            assert line.endswith(b"\n"), f"{where}: no newline at the end"
            assert line.rstrip(b"\n") == line.rstrip(), f"{where}: space at the end"
