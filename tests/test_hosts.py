"""Hosts: one spelling for all, lists of them, and which of them are local."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from otel_anomaly.config import patterns as config_patterns
from otel_anomaly.kernels import Array, Int, kernel
from otel_anomaly.otlp.content import OUTSIDE, make_content_plan
from otel_anomaly.otlp.host_names import BROKEN, HOST_BYTES, normal_host
from otel_anomaly.otlp.hosts import ENTRIES_MAX, STORES, allowed, compile_hosts, is_public
from tests import content_rigs
from tests import naive_content as naive
from tests.sizes import scaled

SEED = 77


@kernel
def _judge(
    text: Array, size: Int, out: Array, hosts: Array, port: Int
) -> tuple[Int, Int, Int, Int]:
    length, what, high, low = normal_host(text, np.int64(0), size, out)
    listed = allowed(hosts[0], out, length, what, high, low, port, np.int64(SEED))
    return length, what, 1 if listed else 0, 1 if is_public(out, length, what, high, low) else 0


NOBODY = compile_hosts([], SEED)


def judge(host: bytes, hosts: Array = NOBODY, port: int = 0) -> tuple[str, bool, bool]:
    """(normal form or BROKEN, listed, public) as the kernels have it."""
    text = np.frombuffer(host + b"\0", np.uint8)
    out = np.zeros(HOST_BYTES, np.uint8)
    length, what, listed, public = _judge(text, np.int64(len(host)), out, hosts, np.int64(port))
    form = naive.BROKEN if what == BROKEN else out[:length].tobytes().decode()
    return form, bool(listed), bool(public)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("EXAMPLE.com", "example.com"),
        ("example.com.", "example.com"),
        ("%65xample.c%6Fm", "example.com"),
        ("\uff45\uff56\uff49\uff4c.com", "evil.com"),
        ("example\u3002com", "example.com"),
        ("ex\u00adample.com", "example.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", "xn--e1afmkfd.xn--p1ai"),
        ("XN--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[::FFFF:7f00:1]", "127.0.0.1"),
        ("[2001:DB8::1]", "[20010db8000000000000000000000001]"),
        ("[fe80::1%25eth0]", "[fe800000000000000000000000000001]"),
        ("1.2.3.400", naive.BROKEN),
        ("1.2.3.4.5", naive.BROKEN),
        ("a b.com", naive.BROKEN),
        ("a%2Fb.com", naive.BROKEN),
        ("[::1", naive.BROKEN),
        ("", naive.BROKEN),
    ],
)
def test_spellings(written: str, normal: str) -> None:
    """
    Scenario: hosts written so that they do not look like what they are.
    Guarantees: the normal form is the one the WHATWG URL standard gives; the slow twin agrees.
    """
    assert judge(written.encode())[0] == normal
    assert naive.normal_host(written.encode()) == normal


def random_host(rng: random.Random) -> bytes:
    """A host, or something close to one."""
    kind = rng.randrange(6)
    if kind == 0:
        return ".".join(
            rng.choice(["{}", "0x{:x}", "0{:o}"]).format(rng.choice([0, 1, 127, 255, 256, 1 << 31]))
            for _ in range(rng.randrange(1, 6))
        ).encode()
    if kind == 1:
        pieces = [f"{rng.getrandbits(16):x}" for _ in range(rng.randrange(1, 9))]
        text = ":".join(pieces)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["::", ":", "", "0", "1.2.3.4"]) + text[at:]
        return f"[{text}]".encode()
    alphabet = ["abc", "AbZ09-.", "a.\u00fc\u0416\u4e00\u3002\uff21", "a%41%e3%zz.\u00ad:@ "][
        kind - 2
    ]
    text = "".join(rng.choice(alphabet) for _ in range(rng.choice([3, 10, 40, 100, 300])))
    data = text.encode()
    return data if rng.random() < 0.9 else data[: len(data) // 2] + b"\xe3\x80" + b"x"


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_hosts_equal_naive(seed: int) -> None:
    """
    Scenario: random hosts: numbers in all bases, addresses with gaps, escapes, scripts, garbage.
    Guarantees: normal form and locality are those of the twin on the standard library.
    """
    rng = random.Random(seed)
    for _ in range(20):
        host = random_host(rng)
        form, _, public = judge(host)
        assert form == naive.normal_host(host), host
        assert public == naive.is_public(form), host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "app.localhost",
        "db",
        "printer.local",
        "svc.ns.internal",
        "x.test",
        "nas.lan",
        "home.arpa",
        "x.home.arpa",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[fd00::1]",
        "[fe80::1]",
    ],
)
def test_local_hosts(host: str) -> None:
    """
    Scenario: hosts that only this machine or this network knows.
    Guarantees: none is public; a neighbour that looks alike is.
    """
    assert not judge(host.encode())[2]
    assert not naive.is_public(naive.normal_host(host.encode()))
    for public in ("localhost.com", "xlocal.com", "172.32.0.1", "11.0.0.1", "a.xlan", "ahome.arpa"):
        assert judge(public.encode())[2], public


ENTRIES = [
    "api.openai.com",
    ".corp.example",
    "*.files.example",
    "pinned.example:8443",
    ".ports.example:443",
    "10.0.0.0/8",
    "192.0.2.7",
    "192.0.2.9:80",
    "2001:db8::/32",
    "[2001:dead::1]:443",
    "b\u00fccher.example",
]


@pytest.mark.parametrize(
    ("host", "port", "listed"),
    [
        ("api.openai.com", 443, True),
        ("API.OpenAI.com.", 80, True),
        ("evil.com", 443, False),
        ("api.openai.com.evil.com", 443, False),
        ("xapi.openai.com", 443, False),
        ("openai.com", 443, False),
        ("corp.example", 443, True),
        ("a.b.corp.example", 443, True),
        ("xcorp.example", 443, False),
        ("files.example", 443, False),
        ("a.files.example", 443, True),
        ("pinned.example", 8443, True),
        ("pinned.example", 443, False),
        ("pinned.example", 0, False),
        ("x.ports.example", 443, True),
        ("x.ports.example", 8443, False),
        ("10.200.3.4", 80, True),
        ("0xa.1", 80, True),
        ("11.0.0.1", 80, False),
        ("192.0.2.7", 1, True),
        ("[::ffff:192.0.2.7]", 1, True),
        ("192.0.2.9", 81, False),
        ("[2001:db8:1::2]", 80, True),
        ("[2001:db9::2]", 80, False),
        ("[2001:dead::1]", 443, True),
        ("[2001:dead::1]", 80, False),
        ("xn--bcher-kva.example", 443, True),
    ],
)
def test_lists(host: str, port: int, *, listed: bool) -> None:
    """
    Scenario: one list with every kind of entry, hosts on it and next to it.
    Guarantees: exact names, domains, networks and ports as the entries say; the twin agrees.
    """
    hosts = compile_hosts(ENTRIES, SEED)
    assert judge(host.encode(), hosts, port)[1] == listed
    assert naive.allowed(ENTRIES, naive.normal_host(host.encode()), port) == listed


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_lists_equal_naive(seed: int) -> None:
    """
    Scenario: random lists up to the largest, and hosts made of the same few labels.
    Guarantees: what is listed is what the twin lists, however full the table is.
    """
    rng = random.Random(seed)

    def name() -> str:
        return ".".join(rng.choice("abcdefgh") for _ in range(rng.randrange(2, 5))) + ".zz"

    entries = [
        rng.choice(["", ".", "*."]) + name() + rng.choice(["", "", ":443"])
        for _ in range(rng.choice([1, 10, ENTRIES_MAX]))
    ]
    hosts = compile_hosts(entries, SEED)
    for _ in range(100):
        host, port = name(), rng.choice([0, 80, 443])
        assert judge(host.encode(), hosts, port)[1] == naive.allowed(entries, host, port)


def test_buckets_are_listed_as_themselves() -> None:
    """
    Scenario: a list of buckets and of hosts with the same names and endings.
    Guarantees: a bucket is covered by its own entry alone, in any spelling of its scheme; no host
    is covered by a bucket. The configuration knows the same schemes.
    """
    entries = ["s3://ours", "wasbs://Box", "plain", ".corp.example", "*.corp.example"]
    plan = make_content_plan(content_rigs.SEED, inside=entries)
    for text, inside in {
        "s3://ours/key": True,
        "S3A://ours": True,
        "az://box/x": True,
        "gs://ours/key": False,
        "s3://theirs/key": False,
        "s3://plain/key": False,
        "s3://evil.corp.example/key": False,
        "https://ours.example/": False,
    }.items():
        kinds = next(iter(content_rigs.look_at(text, plan=plan).destinations.values()))
        assert (kinds & OUTSIDE == 0) == inside, text
    assert set(STORES) == set(config_patterns.STORES)


@pytest.mark.parametrize(
    "entry",
    [
        "http://x.example",
        "s3://",
        "s3://a/b",
        "ours://a",
        "x.example/path",
        "1.2.3.4/33",
        "10.0.0.1/8",
        "1.2.3.400",
        "x.example:0",
        "x.example:99999",
        "a..b",
        "*",
        "*.*.x.example",
        "[::1",
        "user@x.example",
        "x example",
        "",
    ],
)
def test_wrong_entries(entry: str) -> None:
    """
    Scenario: a list with an entry that is no host.
    Guarantees: refused with a message that begins with the entry.
    """
    with pytest.raises(ValueError, match=rf"^{re.escape(entry)}: "):
        compile_hosts(["fine.example", entry], SEED)


def test_too_many_entries() -> None:
    """
    Scenario: one entry more than there is room for.
    Guarantees: refused, with both numbers.
    """
    entries = [f"h{i}.example" for i in range(ENTRIES_MAX + 1)]
    with pytest.raises(ValueError, match=f"{ENTRIES_MAX + 1} hosts, at most {ENTRIES_MAX}"):
        compile_hosts(entries, SEED)
