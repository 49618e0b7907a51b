"""The doors' configuration: half-configured security is refused, secrets are never shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from otel_anomaly.config import (
    ConfigError,
    HttpReceiverConfig,
    MetricsConfig,
    is_local,
    load_config,
    summary,
)
from otel_anomaly.config.quantities import KIB
from otel_anomaly.receivers.monitoring import Monitoring
from otel_anomaly.receivers.reloading import exposure, warn_of_exposure
from otel_anomaly.receivers.sockets import FILES_KEPT, connection_shares
from otel_anomaly.telemetry import Telemetry

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2-hunter2"
DOOR = "receivers.otlp.protocols.http"
PAIR = "cert_file: a.pem, key_file: b.pem"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([], [f"receivers.otlp.protocols.{text}" for text in overrides], {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("http.tls={}", "named but empty"),
        ("http.tls=", "named but empty"),
        ("grpc.tls={cert_file: a.pem}", "key_file: is required"),
        ("grpc.tls={key_file: a.pem}", "cert_file: is required"),
        ("http.tls={client_ca_file: a.pem}", "cert_file: is required"),
        ("http.tls={cert_file: '', key_file: b.pem}", "cert_file"),
        (f"grpc.tls={{{PAIR}, min_version: '1.3'}}", "cannot refuse TLS 1.2"),
        (f"http.tls={{{PAIR}, min_version: '1.1'}}", "min_version: must be '1.2' or '1.3'"),
        (f"http={{endpoint: 'unix:///run/a.sock', tls: {{{PAIR}}}}}", "leave tls out"),
        ("http.auth={}", "named but empty"),
        ("grpc.auth=", "named but empty"),
        ("http.auth={bearer: {}}", "named but empty"),
        ("http.auth={bearer: {tokens: []}}", "no token"),
        ("http.auth={bearer: {tokens: ['']}}", "tokens[0]: must be 8 to 4096"),
        ("http.auth={bearer: {tokens: ['short']}}", "tokens[0]: must be 8 to 4096"),
        ("http.auth={bearer: {filename: ''}}", "filename"),
        ("http.auth={basic: {}}", "named but empty"),
        ("http.auth={basic: {htpasswd: {}}}", "named but empty"),
        ("http.auth={basic: {htpasswd: {inline: '  '}}}", "inline is empty"),
        ("http.auth={oauth: {}}", "unknown key"),
        ("http={transport: unix}", "needs a path"),
        ("http.endpoint='unix://relative'", "absolute path"),
        ("http.cors={}", "named but empty"),
        ("http.cors={allowed_origins: ['example.com']}", "must be an origin"),
    ],
)
def test_half_configured_is_refused(block: str, reason: str) -> None:
    """
    Scenario: blocks of security with a part missing, empty or impossible.
    Guarantees: each is refused with the reason; none starts as if it were off.
    """
    assert reason in refused(block)


def test_two_doors_on_one_socket() -> None:
    """
    Scenario: both doors on one unix socket, and on two.
    Guarantees: the first is refused, the second is a configuration.
    """
    same = "endpoint='unix:///run/a.sock'"
    assert "cannot share unix:///run/a.sock" in refused(f"grpc.{same}", f"http.{same}")
    other = "{transport: unix, endpoint: /run/b.sock}"
    base = "receivers.otlp.protocols"
    config = load_config([], [f"{base}.grpc.{same}", f"{base}.http={other}"], {})
    assert config.receivers.otlp.protocols.http is not None
    assert config.receivers.otlp.protocols.http.endpoint == "unix:///run/b.sock"


@pytest.mark.parametrize(
    "auth",
    [
        f"{{bearer: {{tokens: ['{SECRET} with a space']}}}}",
        f"{{bearer: {{tokens: {SECRET}}}}}",
        f"{{bearer: {{token: {SECRET}}}}}",
        f"{{bearer: {{tokens: ['{SECRET}', 7]}}}}",
        f"{{basic: {{htpasswd: {SECRET}}}}}",
        f"{{basic: {{htpasswd: {{inline: ['{SECRET}']}}}}}}",
        f"{SECRET}",
    ],
)
def test_errors_do_not_show_credentials(auth: str, tmp_path: Path) -> None:
    """
    Scenario: blocks of credentials that are wrong in several ways, in a file and by `--set`.
    Guarantees: the key is named, the secret is in no message.
    """
    file = tmp_path / "c.yaml"
    file.write_text(f"receivers: {{otlp: {{protocols: {{http: {{auth: {auth}}}}}}}}}")
    with pytest.raises(ConfigError) as caught:
        load_config([file], [], {})
    for text in (str(caught.value), refused(f"http.auth={auth}")):
        assert "auth" in text
        assert SECRET not in text


def test_print_outs_do_not_show_credentials() -> None:
    """
    Scenario: a good configuration with a token from the environment and a password.
    Guarantees: neither its text, its JSON nor its summary holds them; the models do.
    """
    environ = {"TOKEN": SECRET, "USERS": f"alice:{SECRET}"}
    auth = "{bearer: {tokens: ['${env:TOKEN}']}, basic: {htpasswd: {inline: '${env:USERS}'}}}"
    config = load_config([], [f"{DOOR}.auth={auth}"], environ)
    for text in (repr(config), str(config), config.model_dump_json(), summary(config)):
        assert SECRET not in text
    door = config.receivers.otlp.protocols.http
    assert door is not None
    assert door.auth is not None
    assert door.auth.bearer is not None
    assert door.auth.bearer.tokens[0].get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:///run/a", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("collector:1", False),
    ],
)
def test_what_is_local(endpoint: str, local: bool) -> None:  # noqa: FBT001
    """
    Scenario: endpoints that only this machine reaches, and others.
    Guarantees: told apart; a name that is not known to be ours is not local.
    """
    assert is_local(endpoint) is local


def test_the_loud_line() -> None:
    """
    Scenario: doors on all addresses with nothing, with TLS, with credentials, with both, with
    client certificates.
    Guarantees: one line names endpoint and keys for what is missing; none when nothing is.
    """
    tls = {"cert_file": "a", "key_file": "b"}
    auth = {"bearer": {"tokens": [SECRET]}}

    def line(**keys: object) -> str | None:
        return exposure("http", HttpReceiverConfig(endpoint="0.0.0.0:4318", **keys))  # type: ignore[arg-type]

    bare, encrypted, known = line(), line(tls=tls), line(auth=auth)
    assert bare is not None
    assert "0.0.0.0:4318" in bare
    assert f"{DOOR}.tls and {DOOR}.auth" in bare
    assert "\n" not in bare
    assert encrypted is not None
    assert f"Set {DOOR}.auth" in encrypted
    assert known is not None
    assert f"Set {DOOR}.tls" in known
    assert line(tls=tls, auth=auth) is None
    assert line(tls={**tls, "client_ca_file": "c"}) is None
    assert exposure("http", HttpReceiverConfig()) is None


@pytest.mark.parametrize("files", [0, 256, 1024, 20_000, 10_000_000])
def test_connections_fit_into_the_open_files(files: int) -> None:
    """
    Scenario: limits of open files from nothing to millions.
    Guarantees: both doors together leave what the rest needs, and each has some.
    """
    shares = connection_shares(files)
    assert min(shares) >= 64
    if files >= KIB:
        assert sum(shares) + FILES_KEPT <= files


def test_a_door_that_is_opened_while_running_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a door that others reach starts with TLS and a token; a reload takes the token away,
    and another changes nothing about that.
    Guarantees: one loud line, at the reload that opened it.
    """
    tls = {"cert_file": "c", "key_file": "k"}
    ajar = HttpReceiverConfig.model_validate({"endpoint": "0.0.0.0:4318", "tls": tls})
    auth = {"bearer": {"tokens": [SECRET]}}
    shut = HttpReceiverConfig.model_validate({"endpoint": "0.0.0.0:4318", "tls": tls, "auth": auth})
    for config, former in ((shut, None), (ajar, shut), (ajar, ajar), (shut, ajar)):
        warn_of_exposure("http", config, former)
    (line,) = caplog.messages
    assert line.startswith("OPEN DOOR: OTLP/http listens on 0.0.0.0:4318: anybody")


@pytest.mark.parametrize(("endpoint", "lines"), [("0.0.0.0:0", 1), ("127.0.0.1:0", 0)])
def test_pages_that_others_reach(
    endpoint: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: the pages of metrics and health on all addresses, and on loopback.
    Guarantees: one loud line that names the endpoint and its key; none where nobody else comes.
    """

    async def scenario() -> None:
        page = Monitoring(MetricsConfig(endpoint=endpoint), Telemetry(), dict, lambda: True)
        await page.start()
        await page.stop()

    asyncio.run(scenario())
    assert len(caplog.messages) == lines
    for line in caplog.messages:
        assert line.startswith(f"OPEN DOOR: metrics and health listen on {endpoint}: anybody")
        assert "telemetry.metrics.endpoint" in line
