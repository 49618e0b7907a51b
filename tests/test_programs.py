"""Which program a command line starts: examples, and the search against its slow twin."""

from __future__ import annotations

import json
import random
import shlex

import pytest

from otel_anomaly.otlp.programs import hash_program
from tests.argument_rigs import SEED, read, read_any
from tests.naive_programs import first_program
from tests.sizes import scaled

LINES = {
    "git status": "git",
    "  /usr/bin/git\tstatus": "git",
    '"/opt/my tools/run.sh" now': "run.sh",
    "'C:\\Program Files\\Git\\bin\\git.exe' pull": "git",
    "C:\\Windows\\System32\\WHOAMI.EXE /all": "WHOAMI",
    "\\rm -rf x": "rm",
    'p"yth"on x.py': "python",
    "A=1 B='x y' make test": "make",
    "sudo rm x": "rm",
    "sudo -n -u build -- make": "make",
    "sudo -E env A=b nice -n 10 timeout -s KILL 5m ./run": "run",
    "timeout 10 curl x": "curl",
    "nohup setsid python -m http.server": "python",
    "cd /repo && git pull": "git",
    "cd /repo; export X=1\n# build it\nmake -j": "make",
    "set -euo pipefail\ncargo test": "cargo",
    "if true; then curl x; fi": "curl",
    "! grep x y": "grep",
    "(cd x && npm ci)": "npm",
    "ls | grep x": "ls",
    "ls;curl evil": "ls",
    'bash -c "git pull && make"': "git",
    "bash -lc 'cd /x && git pull'": "git",
    "/bin/sh -ec 'sudo apt-get update'": "apt-get",
    "bash -o pipefail -c 'curl x | sh'": "curl",
    "bash --norc -c 'id'": "id",
    "sh ./install.sh": "install.sh",
    "bash": "bash",
    "bash -l": "bash",
    "sudo": "sudo",
    "sudo -l; id": "sudo",
    "env | sort": "env",
    "cd /tmp": "cd",
    "cmd /c dir": "dir",
    "powershell.exe -ExecutionPolicy Bypass -Command 'Get-ChildItem'": "Get-ChildItem",
    "pwsh -c whoami": "whoami",
    "bash -c 'bash -c \"bash -c id\"'": "id",
    "": None,
    "   ": None,
    "# only words": None,
    "A=1": None,
    ";;&&": None,
    "/": "/",
    "'": None,
}
LISTS = (
    (["git", "status"], "git"),
    (["bash", "-lc", "cd /repo && make"], "make"),
    (["sudo", "-u", "x", "id"], "id"),
    (["env", "A=b c", "make"], "make"),
    (["cd /x && ls -la"], "ls"),
    (["/bin/sh", "-c", "curl x | sh"], "curl"),
    (["timeout", "5", "sleep", "9"], "sleep"),
    (["bash", "-c"], "bash"),
    ([], None),
    ([1, "ls"], None),
    ([["ls"]], None),
    (["sudo", None, "ls"], "sudo"),
)


def program(name: str | None) -> int:
    return 0 if name is None else hash_program(name, SEED)


@pytest.mark.parametrize("line", LINES)
def test_lines(line: str) -> None:
    """
    Scenario: a command line as a member, as the whole text, and as an AnyValue.
    Guarantees: the program it starts first, by its own name.
    """
    expected = program(LINES[line])
    assert first_program([line]) == LINES[line]
    for value in ({"command": line}, {"args": [line], "kwargs": {}}, [line]):
        assert read(json.dumps(value)).program == expected
        assert read_any(value).program == expected
    if not line.startswith(("{", "[", '"')):
        assert read(line).program == expected


@pytest.mark.parametrize(("words", "name"), LISTS)
def test_lists(words: list[object], name: str | None) -> None:
    """
    Scenario: a list of arguments, with elements that are no strings among them.
    Guarantees: the first element is a line, the others are words; another value ends the search.
    """
    for value in (words, {"argv": words}, {"step": {"argv": words}}, {"argv": words, "x": "ls"}):
        assert read(json.dumps(value)).program == program(name)
        assert read_any(value).program == program(name)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"command": "a", "cmd": "b"}, "a"),
        ({"cmd": "b", "command": "a"}, "a"),
        ({"cmd": "b", "command": ""}, "b"),
        ({"cmd": "b", "command": None}, "b"),
        ({"cmd": "b", "command": {"argv": ["c"]}}, "b"),
        ({"deep": {"command": "a"}, "cmd": "b"}, "b"),
        ({"steps": [{"cmd": "b"}, {"cmd": "c"}]}, "b"),
        ({"other": "x"}, None),
        ({"command": 7}, None),
        (["x", {"command": "a"}], "a"),
    ],
)
def test_which_member(value: object, name: str | None) -> None:
    """
    Scenario: several members that may name a program.
    Guarantees: the least deep one counts, then the name listed first, then the first to come.
    """
    assert read(json.dumps(value)).program == program(name)
    assert read_any(value).program == program(name)


PARTS = (
    *("sudo", "env", "bash", "sh", "cmd", "timeout", "cd", "if", "git", "ls", "/bin/ls", "x.exe"),
    *("-c", "-lc", "-u", "-n", "-o", "--norc", "-ExecutionPolicy", "-Command", "/c", "-", "--"),
    *("A=1", "5", "a b", "\u00e4", "\u2028", "'", '"', "\\", "\\\\", "\\n", " ", "\t", "\n", ";"),
    *("&&", "|", "(", ")", "#", "$x", "", "\x00", "=", "/", "C:\\x\\y.EXE", "\x7f", "\x1f"),
)


def random_line(rng: random.Random) -> str:
    """Words and signs, with quotes that close and such that do not."""
    drawn = [rng.choice(PARTS) for _ in range(rng.randrange(10))]
    match rng.randrange(4):
        case 0:
            return shlex.join(drawn)
        case 1:
            return "".join(drawn)
        case 2:
            return rng.choice(("bash -c ", "sh -lc ", "sudo sh -c ")) + shlex.quote(
                random_line(rng)
            )
    return " ".join(drawn)


@pytest.mark.parametrize("seed", range(scaled(40)))
def test_like_the_twin(seed: int) -> None:
    """
    Scenario: random lines and lists of arguments, shells within shells, quotes left open.
    Guarantees: the program the twin finds.
    """
    rng = random.Random(seed)
    for _ in range(50):
        line = random_line(rng)
        assert read_any({"cmd": line}).program == program(first_program([line])), line
        words = [rng.choice((random_line(rng), *PARTS)) for _ in range(rng.randrange(6))]
        found = read(json.dumps({"argv": words})).program
        assert found == program(first_program(words)), words
