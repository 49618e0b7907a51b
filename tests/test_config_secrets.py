"""Secrets of a configuration that is refused: where YAML and people mistake them for other things.

Each is tried where it can be seen: in the error, in what `validate` prints, in the log and in what
health says after a reload.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from otel_anomaly import cli
from otel_anomaly.config import Config, ConfigError, Source, config_hash, load_config, summary
from otel_anomaly.config.doors import AuthConfig, BasicConfig, BearerConfig, HtpasswdConfig
from otel_anomaly.config.problems import without_password
from otel_anomaly.config.yaml_text import SECRET, dotted
from otel_anomaly.reloading import Reloads
from otel_anomaly.telemetry import Telemetry
from tests.config_files import written
from tests.door_rigs import StandingClock

if TYPE_CHECKING:
    from pathlib import Path

S = "Sup3rS3cret"


def auth(block: str) -> str:
    """A door with this block of credentials."""
    return f"receivers: {{otlp: {{protocols: {{http: {{auth: {block}}}}}}}}}"


def http(keys: str) -> str:
    """An exporter with these keys."""
    return f"exporters: {{otlp_http: {{endpoint: 'http://a:1', {keys}}}}}"


def target(endpoint: str, kind: str = "otlp_http") -> str:
    """An exporter that sends there."""
    return f"exporters: {{{kind}: {{endpoint: '{endpoint}'}}}}"


FILES = {
    "alias in a list": auth(f"{{bearer: {{tokens: [*{S}]}}}}"),
    "alias in a block": f"audit:\n  path:\n    - *{S}\n",
    "tag in a list": auth(f"{{bearer: {{tokens: [!{S}]}}}}"),
    "tag in a block": f"a:\n  - !{S}\n",
    "tag of a list": auth(f"{{bearer: {{tokens: !{S} [x]}}}}"),
    "tag of users": auth(f"{{basic: {{htpasswd: {{inline: !{S} }}}}}}"),
    "tag with a handle": auth(f"{{bearer: {{tokens: [ !{S}!x y ]}}}}"),
    "anchor twice": auth(f"{{bearer: {{tokens: [ &{S} a, &{S} b]}}}}"),
    "anchor that is none": http(f"headers: {{a: &{S}$ x}}"),
    "no space after a colon": http(f"headers: {{Authorization:Bearer {S}}}"),
    "an equals sign": http(f"headers: {{Authorization=Bearer {S}}}"),
    "no space, beside the headers": http(f"Authorization:Bearer {S}"),
    "header twice": http(f"headers: {{{S}: 1, {S}: 2}}"),
    "value in a value": http(f"headers: {{a: {{{S}: 1}}}}"),
    "user without a space": auth(f"{{basic: {{htpasswd: {{user:{S}}}}}}}"),
    "password as a key": auth(f"{{basic: {{htpasswd: {{{S}: 1, {S}: 2}}}}}}"),
    "token as a key": auth(f"{{bearer: {{{S}}}}}"),
    "tokens as keys": auth(f"{{bearer: {{tokens: {{{S}: }}}}}}"),
    "variable below a token": auth(f"{{bearer: {{{S}: '${{env:NOT_SET}}'}}}}"),
    "password with a slash": target(f"https://user:{S}/x@host"),
    "password with odd letters": target(f"https://user:{S}\u2105@host"),
    "password with a bracket": target(f"https://user:[{S}@host"),
    "password with a question mark": target(f"https://user:{S}?{S}@host"),
    "user of a gRPC target": target(f"user:{S}@host:4317", "otlp_grpc"),
    "user and path of a gRPC target": target(f"user:{S}/x@host:4317", "otlp_grpc"),
    "key in a query": target(f"https://h/v1?api_key={S}"),
    "key in a query behind a mail": target(f"https://h/v1?mail=a@b&api_key={S}"),
    "key in a fragment": target(f"h:4317#{S}", "otlp_grpc"),
}
OVERRIDES = {
    "alias": f"receivers.otlp.protocols.http.auth.bearer.tokens=[*{S}]",
    "no space after a colon": f"exporters.otlp_http={{headers: {{Authorization:Bearer {S}}}}}",
    "header as a key": f"exporters.otlp_http.headers.Authorization:Bearer {S}=x",
    "token as a key": f"receivers.otlp.protocols.http.auth.bearer.{S}=x",
    "no equals sign": f"exporters.otlp_http.headers.Authorization:Bearer {S}",
    "YAML for a key": f"exporters.otlp_http.headers: {{Authorization: Bearer {S}==}}",
    "password": f"exporters.otlp_grpc.endpoint=user:{S}@h:1",
    "password with a slash": f"exporters.otlp_http.endpoint=https://user:{S}/x@h",
    "two passwords": f"exporters.otlp={{endpoint: 'http://u:{S}@h', x: 'http://u:{S}@h'}}",
    "key in a query": f"exporters.otlp_http.endpoint=https://h?k={S}",
}


def told(
    source: Source, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> str:
    """All that is told of a configuration that is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(source.files, source.overrides)
    arguments = [f"--set={override}" for override in source.overrides]
    for path in source.files:
        arguments += ["--config", str(path)]
    assert cli.main(["validate", *arguments]) == 2

    async def unused(config: Config) -> bool:
        raise AssertionError(config)

    reloads = Reloads(source, unused, Telemetry(), StandingClock())
    asyncio.run(reloads.reload())
    assert reloads.problem
    printed = capsys.readouterr()
    return "\n".join((str(caught.value), reloads.problem, caplog.text, printed.out, printed.err))


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_no_part_of_a_file_tells_a_secret(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    """
    Scenario: a secret stands where YAML takes it for a key, a tag, an alias or an anchor, or in
    an address that is none.
    Guarantees: it is in no error, print-out or log record, nor in what health says of a reload.
    """
    source = Source((written(tmp_path, text),))
    assert S not in told(source, caplog, capsys)


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_no_part_of_a_set_tells_a_secret(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    """
    Scenario: the same in a `--set`, in its key as well.
    Guarantees: the same.
    """
    assert S not in told(Source(overrides=(override,)), caplog, capsys)


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [
        ("http/protobuf", f"https://user:{S}/x@host"),
        ("http/protobuf", f"https://h/v1?api_key={S}"),
        ("grpc", f"user:{S}@host:1"),
    ],
)
def test_no_variable_tells_a_secret(
    caplog: pytest.LogCaptureFixture, protocol: str, endpoint: str
) -> None:
    """
    Scenario: the address that the environment names has a password or a key, and is none.
    Guarantees: the warning says so without it.
    """
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    config = load_config([], [], environ)
    assert "no exporter is made from OTEL_EXPORTER_OTLP_*" in caplog.text
    assert S not in caplog.text + summary(config)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://tempo:4318/otlp", "https://tempo:4318/otlp"),
        ("tempo:4317", "tempo:4317"),
        ("https://u:p@h:1/x", "https://***@h:1/x"),
        ("https://u:p/q@h", "https://***@h"),
        ("https://u:p@q@h", "https://***@h"),
        ("u:p@h:1", "***@h:1"),
        ("u:p@h http://v@w", "***@w"),
        ("https://h?k=p#q", "https://h?***"),
        ("https://h#q?p", "https://h#***"),
        ("https://u:p?q@h", "https://***"),
        ("https://u:p\n@h", "https://***@h"),
        ("", ""),
    ],
)
def test_what_is_left_of_an_address(url: str, shown: str) -> None:
    """
    Scenario: addresses with and without a scheme, a user, a query and a fragment.
    Guarantees: where it leads stays; all before the last `@` and behind `?` or `#` does not.
    """
    assert without_password(url) == shown


def test_keys_of_credentials_are_shown() -> None:
    """
    Scenario: every key that there is below `auth`, one that is none, items of lists, and headers.
    Guarantees: those there are can be read in a message, all else is stars.
    """
    keys = {
        *AuthConfig.model_fields,
        *BearerConfig.model_fields,
        *BasicConfig.model_fields,
        *HtpasswdConfig.model_fields,
    }
    for key in keys:
        assert dotted(("auth", key, 0)) == f"auth.{key}[0]"
    assert dotted(("auth", "bearer", "a1b2")) == f"auth.bearer.{SECRET}"
    assert dotted(("headers", "a1b2", "file")) == f"headers.{SECRET}.{SECRET}"
    assert dotted(("exporters", "otlp/a.b", "a: b")) == f"exporters.otlp/a.b.{SECRET}"


def test_the_name_of_a_configuration_tells_no_secret() -> None:
    """
    Scenario: configurations that differ in a header's value, in a password of an address, in a
    token; and in the name of a header, in a host.
    Guarantees: the hash, which is published, cannot be used to try secrets: they are not in it.
    """

    def named(headers: dict[str, str], url: str, token: str) -> str:
        bearer = {"auth": {"bearer": {"tokens": [token]}}}
        exporter = {"endpoint": url, "headers": headers}
        return config_hash(
            Config.model_validate(
                {
                    "receivers": {"otlp": {"protocols": {"http": bearer}}},
                    "exporters": {"otlp_http": exporter},
                }
            )
        )

    base = named({"a": "1"}, "https://u:p@h", "t" * 8)
    assert base == named({"a": "2"}, "https://v:q@h", "s" * 8)
    assert base != named({"b": "1"}, "https://u:p@h", "t" * 8)
    assert base != named({"a": "1"}, "https://u:p@g", "t" * 8)
