"""Candidates for secrets: forms of issuers, opaque values behind names, and what is none."""

from __future__ import annotations

import random

import numpy as np
import pytest

from otel_anomaly.kernels import Array, Int, kernel
from otel_anomaly.otlp.content import (
    ACCOUNTISH,
    ADDRESSEE,
    CITIZEN,
    LOGIN,
    SECRETIVE,
    TEXTUAL,
    name_hints,
    secretive_name,
)
from otel_anomaly.otlp.opaque import is_opaque
from tests import naive_content as naive
from tests.content_rigs import look_at
from tests.sizes import scaled


def hints(name: str) -> int:
    """What a name says."""
    text = np.frombuffer(name.encode() + b"\0", np.uint8)
    told = int(name_hints(text, np.int64(0), np.int64(text.size - 1)))
    assert bool(told & SECRETIVE) == secretive_name(text, np.int64(0), np.int64(text.size - 1))
    return told


@kernel
def _is_opaque(text: Array, size: Int) -> bool:
    return is_opaque(text, np.int64(0), size)


@pytest.mark.parametrize("issuer", sorted(naive.KEYS))
@pytest.mark.parametrize("seed", range(scaled(10)))
def test_keys_of_issuers(issuer: str, seed: int) -> None:
    """
    Scenario: a random key of each issuer, alone, quoted, in a header, a path, a query, in code.
    Guarantees: counted once wherever it stands; not counted when its prefix is spoilt.
    """
    rng = random.Random(f"{issuer} {seed}")
    key = naive.random_key(issuer, rng)
    for around in ("{}", "key: {}", '{{"k": "{}"}}', "export K={}", "x/{}/y", "?a={}&b=1", "({})"):
        assert look_at(around.format(key)).secrets == 1, around.format(key)
    twice = f"{key} and again {key}"
    assert look_at(twice).secrets == 1
    if issuer not in {"telegram", "azure client", "azure storage", "google oauth"}:
        assert look_at("x" + key).secrets == 0
        assert look_at(key[:1] + "#" + key[2:]).secrets == 0


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_mixed_keys_equal_naive(seed: int) -> None:
    """
    Scenario: running text with up to eight different keys among words, paths and numbers.
    Guarantees: as many as the regular expressions of the issuers find.
    """
    rng = random.Random(seed)
    issuers = rng.sample(sorted(naive.KEYS), rng.randrange(9))
    words = ["the", "an-ordinary-long-identifier", "/usr/share/doc/readme", "0123456789abcdef" * 2]
    parts = [naive.random_key(issuer, rng) for issuer in issuers] + words
    rng.shuffle(parts)
    text = " ".join(parts)
    assert look_at(text).secrets == len(set(naive.key_matches(text))) == len(issuers)


@pytest.mark.parametrize(
    "secret",
    ["-----BEGIN RSA PRIVATE KEY-----\nMIIEow", "AKIAIOSFODNN7EXAMPLE", "Bearer aB3dE5gH7jK9mN1pQ"],
)
def test_secret_at_any_place(secret: str) -> None:
    """
    Scenario: a secret behind 0 to 69 bytes, with little, much and nothing else behind it.
    Guarantees: counted wherever it begins and ends, as text is looked at by blocks of bytes.
    """
    for place in range(70):
        for behind in ("", " z", " and so on" * 8):
            for before in ("x" * (place - 1) + " " * min(place, 1), ". " * (place // 2)):
                assert look_at(before + secret + behind).secrets == 1, (place, before, behind)


def test_nine_keys() -> None:
    """
    Scenario: twelve different keys in one value.
    Guarantees: no more than eight are counted.
    """
    rng = random.Random(1)
    keys = [naive.random_key("github", rng) for _ in range(12)]
    assert look_at(" ".join(keys)).secrets == 8
    assert look_at(" ".join(keys[:7])).secrets == 7


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", 1),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow", 1),
        ("x\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", 1),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQ", 1),
        ('{"private_key": "-----BEGIN PRIVATE KEY-----\\nMIIEv"}', 1),
        ("-----BEGIN PUBLIC KEY-----\nMIIBI", 0),
        ("-----BEGIN CERTIFICATE-----\nMIIBI", 0),
        ("------------------------------", 0),
        ("https://user:pass@host.example/", 1),
        ("postgres://u:p@db/x and redis://:p@cache/0", 1),
        ("postgres://u:p1@db/x and redis://:p2@cache/0", 2),
        ("https://user@host.example/", 0),
        ("https://user:${PASSWORD}@host.example/", 0),
        ("https://user:<password>@host.example/", 0),
        ("https://user:****@host.example/", 0),
        ("Authorization: Bearer aB3dE5gH7jK9mN1pQ", 1),
        ("curl -H 'authorization: bearer aB3dE5gH7jK9mN1pQ' x", 1),
        ("Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==", 1),
        ("the forbearer internationalisations", 0),
        ("Server=db;User Id=sa;Password=Tr0ub4dor&3;", 1),
        ('{"password": "Tr0ub4dor&3"}', 1),
        ('{\\"api_key\\": \\"aB3dE5gH7jK9mN1pQ\\"}', 1),
        ("client_secret => 'aB3dE5gH7jK9mN1pQ'", 1),
        ("?token=aB3dE5gH7jK9mN1pQ&secret=zY3xW5vU7tS9rQ1pO", 2),
        ("next_page_token=aB3dE5gH7jK9mN1pQ", 0),
        ("token=${TOKEN} password=changeme secret=<redacted> api_key=os.environ['KEY']", 0),
        ("max_tokens: 4096, tokens=aB3dE5gH7jK9mN1pQ", 0),
        ("pwd=/home/alice/project-1/Data", 0),
        ("sk-learn sk-toolong-identifier-with-hyphens", 0),
        ("AKIAIOSFODNN7EXAMPLE", 1),
        ("AKIAIOSFODNN7EXAMPL", 0),
        ("AKIAIOSFODNN7EXAMPLEX", 0),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlMTIzNDU2Nzg5", 1),
        ("eyJhbGciOiJIUzI1NiJ9.notapayload.c2lnbmF0dXJlMTIzNDU2Nzg5", 0),
    ],
)
def test_secrets_in_text(text: str, count: int) -> None:
    """
    Scenario: private keys, passwords in URLs, headers and assignments, and what stands for them.
    Guarantees: each secret counts once, a placeholder never.
    """
    assert look_at(text).secrets == count


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, SECRETIVE) for name in (
            "password", "db_password", "passwd", "PWD", "passphrase", "token", "access_token",
            "authToken", "token2", "secret", "client-secret", "secretValue",
            "api_key", "apiKey", "API-KEY", "aws_secret_access_key", "private_key",
            "signing_key", "encryption_key", "auth", "x-auth", "authHeader",
            "credential", "credentials", "bearer", "bearer_token", "session_token",
        )),
        *((name, SECRETIVE | LOGIN) for name in (
            "Authorization", "authorisation", "X-Auth-Token", "x.api.key", "PRIVATE-TOKEN",
        )),
        *((name, TEXTUAL) for name in (
            "content", "file_text", "body", "new_string", "oldStr", "prompt", "markdown",
        )),
        *((name, 0) for name in (
            "code", "textual", "bodyguard", "string",
            "", "query", "max_tokens", "tokens", "token_s"[:-2] + "s_used", "tokenizer", "tokenize",
            "totalTokens", "next_page_token", "nextPageToken", "page_token", "nextToken",
            "sync_token", "continuationToken", "resume_token", "cancellation_token",
            "authored_by", "authority", "authenticated", "key", "keyboard", "monkey",
            "sort_key", "primary_key", "passed", "password"[:4], "compass", "forwarding",
        )),
        *((name, ACCOUNTISH) for name in (
            "account", "account_number", "IBAN", "routing_number",
        )),
        *((name, CITIZEN) for name in (
            "bsn", "citizen_id", "citizenServiceNumber", "national_id", "pesel", "personnummer",
        )),
        *((name, ADDRESSEE) for name in (
            "to", "mail_to", "sendTo", "To", "cc", "bcc", "from", "from_address", "attendees",
            "invitees", "participants", "sender", "reply-to", "assignee_email", "author", "authors",
            "author_email", "username", "login",
        )),
        *((name, ADDRESSEE | ACCOUNTISH) for name in ("recipient", "payee", "fromAccount")),
        *((name, 0) for name in ("email", "contact", "customer", "total", "tomorrow", "formal")),
    ],
)  # fmt: skip
def test_names(name: str, told: int) -> None:
    """
    Scenario: names that announce a secret, an account, a citizen or somebody addressed, and their
    false friends.
    Guarantees: each says what it says, in any case and with any signs between its words.
    """
    assert hints(name) == told


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("aB3dE5gH7jK9mN1pQ", 1),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", 1),
        ("550e8400-e29b-41d4-a716-446655440000", 1),
        ("Tr0ub4dor&3", 1),
        ("Bearer aB3dE5gH7jK9mN1pQ", 1),
        ("ghp_" + "aB3dE5gH7j" * 4, 1),
        ("hunter2", 0),
        ("changeme", 0),
        ("abc12345", 0),
        ("correct horse battery staple", 0),
        ("correct-horse-battery-staple", 0),
        ("YourApiKeyGoesRightHere", 0),
        ("OPENAI_API_KEY_2", 0),
        ("${OPENAI_API_KEY_2}", 0),
        ("{{ secrets.KEY_2 }}", 0),
        ("<redacted-Value-1>", 0),
        ("[REDACTED_VALUE_1a]", 0),
        ("%SECRET_VALUE_1a%", 0),
        ("****************", 0),
        ("xxxxxxxxxxxxxxxx1X", 0),
        ("https://vault.example/v1/S3cret", 0),
        ("/run/secrets/Token-1a", 0),
        ("C:\\Secrets\\Token-1a", 0),
        ("process.env.OPENAI_API_KEY", 0),
        ("12345678901234567", 0),
        ("aB3 " * 10, 0),
        ("aB3d" * 200, 0),
    ],
)
def test_values_behind_a_name(value: str, count: int) -> None:
    """
    Scenario: values of an argument called api_key: keys, words, placeholders, places.
    Guarantees: what looks drawn at random counts; under another name only what has a form.
    """
    assert look_at(value, "api_key").secrets == count
    assert look_at(value, "query").secrets == (1 if value.startswith(("ghp_", "Bearer")) else 0)


@pytest.mark.parametrize("seed", range(scaled(50)))
def test_opaque_equals_naive(seed: int) -> None:
    """
    Scenario: random values from narrow and wide alphabets, of lengths around the limits.
    Guarantees: opaque or not as the slow twin, which uses regular expressions, says.
    """
    rng = random.Random(seed)
    alphabets = ["ab", "abcdefgh", "aB3", "ABC_12", "aZ09-_.", "Camel", "aB1!\u00e9<>{}$%/:~ "]
    for _ in range(40):
        size = rng.choice([1, 7, 8, 9, 15, 16, 17, 40, 512, 513])
        text = "".join(rng.choice(rng.choice(alphabets)) for _ in range(size))
        text = rng.choice([text, text[:1] * 3 + text, "Word" * 4 + text[:3], text.upper()])
        data = np.frombuffer(text.encode(), np.uint8)
        bits = naive.entropy(text.encode())
        if min(abs(bits - 3.0), abs(bits - 2.5)) > 1e-9:  # Sums of floats differ in the last bit.
            assert _is_opaque(data, np.int64(data.size)) == naive.is_opaque(text), text
