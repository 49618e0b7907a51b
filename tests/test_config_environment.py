"""OTEL_EXPORTER_OTLP_*: what fills an exporter, what makes one, and what does not."""

from __future__ import annotations

import logging
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config, ConfigError, load_config
from otel_anomaly.config.own_doors import is_ours, own_door
from otel_anomaly.exporters.destination import refuse_own_doors
from tests.config_files import complaint, written
from tests.virtual_time import play

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTLP = "OTEL_EXPORTER_OTLP_"
HOP = "http://192.0.2.1:4318"
"""TEST-NET-1: nobody's."""


def named(**variables: str) -> dict[str, str]:
    return {OTLP + name: text for name, text in variables.items()}


def filled(tmp_path: Path, text: str, **variables: str) -> Any:
    """The one exporter of a configuration, with the environment below it."""
    (exporter,) = load_config([written(tmp_path, text)], (), named(**variables)).exporters.values()
    return exporter


def test_everything_fills_a_silent_exporter(tmp_path: Path) -> None:
    """
    Scenario: `otlp_http` without a key, and every variable set.
    Guarantees: each is where it belongs, in our units; the form for a signal is used as it is.
    """
    exporter = filled(
        tmp_path,
        "exporters: {otlp_http: }",
        ENDPOINT=HOP,
        LOGS_ENDPOINT="https://logs.example/in",
        HEADERS="Api-Key=a%2Cb%20c, x-team = blue ",
        COMPRESSION="none",
        TIMEOUT="1500",
        CERTIFICATE="/ca.pem",
        CLIENT_KEY="/key.pem",
        CLIENT_CERTIFICATE="/cert.pem",
    )
    assert exporter.endpoints() == {
        "traces": f"{HOP}/v1/traces",
        "metrics": f"{HOP}/v1/metrics",
        "logs": "https://logs.example/in",
    }
    assert exporter.headers == {"api-key": "a,b c", "x-team": "blue"}
    assert (exporter.compression, exporter.timeout) == ("none", 1_500_000_000)
    tls = exporter.tls
    assert (tls.ca_file, tls.key_file, tls.cert_file) == ("/ca.pem", "/key.pem", "/cert.pem")


@pytest.mark.parametrize(("text", "insecure"), [("true", True), ("TRUE", True), ("false", False)])
def test_grpc_is_filled(tmp_path: Path, text: str, insecure: bool) -> None:  # noqa: FBT001 - A case.
    """
    Scenario: `otlp` without a key; address without a scheme, and INSECURE.
    Guarantees: both arrive; without INSECURE it is TLS.
    """
    exporter = filled(tmp_path, "exporters: {otlp: }", ENDPOINT="hop:4317", INSECURE=text)
    assert (exporter.endpoint, exporter.tls.insecure) == ("hop:4317", insecure)
    assert not filled(tmp_path, "exporters: {otlp: }", ENDPOINT="hop:4317").tls.insecure


def test_what_is_written_wins(tmp_path: Path) -> None:
    """
    Scenario: keys both in the file and in the environment.
    Guarantees: the file's, key by key; headers of both when the address is the environment's.
    """
    text = "exporters: {otlp_http: {timeout: 3s, headers: {a: file}}}"
    exporter = filled(tmp_path, text, ENDPOINT=HOP, TIMEOUT="9000", HEADERS="a=env,b=env")
    assert exporter.timeout == 3_000_000_000
    assert exporter.headers == {"a": "file", "b": "env"}


@pytest.mark.parametrize("signal", ["TRACES", "METRICS", "LOGS"])
@pytest.mark.parametrize(("name", "text"), [("TIMEOUT", "5000"), ("COMPRESSION", "none")])
@pytest.mark.parametrize("endpoint", ["", HOP])
def test_what_is_written_wins_over_one_signal(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    signal: str,
    name: str,
    text: str,
    endpoint: str,
) -> None:
    """
    Scenario: timeout and compression are written; a variable, there for the agents, says one of
    them of one signal.
    Guarantees: what is written counts, and nothing is said, let alone refused.
    """
    written_out = f"endpoint: '{endpoint}', " if endpoint else ""
    exporter = filled(
        tmp_path,
        f"exporters: {{otlp_http: {{{written_out}timeout: 3s, compression: zstd}}}}",
        ENDPOINT="" if endpoint else HOP,
        **{f"{signal}_{name}": text},
    )
    assert (exporter.compression, exporter.timeout) == ("zstd", 3_000_000_000)
    assert not caplog.records


@pytest.mark.parametrize("text", [f"{{endpoint: '{HOP}'}}", ""])
def test_the_general_form_counts_where_signals_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """
    Scenario: timeout and compression are said of one signal, with and without a general form, and
    the configuration is silent.
    Guarantees: the general form, or the default; a warning names what is ignored. What says the
    same as the default is not told.
    """
    text = f"exporters: {{otlp_http: {text}}}"
    said = {"LOGS_TIMEOUT": "7000", "TRACES_COMPRESSION": "none"}
    exporter = filled(tmp_path, text, ENDPOINT=HOP, TIMEOUT="9000", **said)
    assert (exporter.compression, exporter.timeout) == ("gzip", 9_000_000_000)
    for name in said:
        assert f"{OTLP}{name} is ignored: not the same for all signals" in caplog.text
    caplog.clear()
    said = {"LOGS_TIMEOUT": "30000", "TRACES_COMPRESSION": "GZIP"}
    exporter = filled(tmp_path, text, ENDPOINT=HOP, **said)
    assert (exporter.compression, exporter.timeout) == ("gzip", 30_000_000_000)
    assert not caplog.records


def test_a_written_header_cannot_differ(tmp_path: Path) -> None:
    """
    Scenario: the headers of traces differ from the general ones, in a name that is written.
    Guarantees: the written one counts; the others come from the environment.
    """
    text = "exporters: {otlp_http: {headers: {Api-Key: file}}}"
    exporter = filled(
        tmp_path, text, ENDPOINT=HOP, HEADERS="a=b,api-key=c", TRACES_HEADERS="a=b,api-key=d"
    )
    assert exporter.headers == {"a": "b", "api-key": "file"}


@pytest.mark.parametrize("key", ["endpoint", "logs_endpoint"])
def test_credentials_stay_with_their_address(tmp_path: Path, key: str) -> None:
    """
    Scenario: the file names an address; the environment has another one, with its key and trust.
    Guarantees: nothing of these goes to the file's address; timeout and compression do.
    """
    exporter = filled(
        tmp_path,
        f"exporters: {{otlp_http: {{{key}: 'http://other:1'}}}}",
        ENDPOINT=HOP,
        TRACES_ENDPOINT=HOP,
        HEADERS="api-key=secret",
        CERTIFICATE="/ca.pem",
        CLIENT_KEY="/key.pem",
        TIMEOUT="1500",
        COMPRESSION="none",
    )
    assert all("192.0.2.1" not in url for url in exporter.endpoints().values())
    assert exporter.headers == {}
    assert exporter.tls.ca_file is None
    assert exporter.tls.key_file is None
    assert (exporter.compression, exporter.timeout) == ("none", 1_500_000_000)


def test_insecure_does_not_reach_a_written_address(tmp_path: Path) -> None:
    """
    Scenario: INSECURE in the environment, the address in the file.
    Guarantees: it is TLS.
    """
    text = "exporters: {otlp_grpc: {endpoint: 'hop:4317'}}"
    assert not filled(tmp_path, text, INSECURE="true").tls.insecure


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_empty_is_unset(tmp_path: Path, empty: str) -> None:
    """
    Scenario: every variable is there, and empty.
    Guarantees: as if none were: no exporter is made, none is filled.
    """
    names = ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "COMPRESSION", "TRACES_ENDPOINT")
    environ = named(**dict.fromkeys(names, empty))
    assert load_config([], (), environ) == Config()
    path = written(tmp_path, "exporters: {otlp_http: }")
    assert "endpoint: is required" in complaint(path, environ=environ)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TIMEOUT", "10s"),
        ("TIMEOUT", "-1"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "9" * 5000),
        ("TIMEOUT", "1" + "0" * 5000),
        ("TIMEOUT", "10000000000000"),
        ("TIMEOUT", "315360000001"),
        ("COMPRESSION", "snappy"),
        ("PROTOCOL", "thrift"),
        ("HEADERS", "secret-without-equals"),
    ],
)
def test_nonsense_is_warned_of_and_ignored(
    name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a number, a choice or a pair that cannot be read.
    Guarantees: one warning that names the variable and not its value; the default stays.
    """
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        config = load_config([], (), named(ENDPOINT=HOP, **{name: text}))
    exporter: Any = config.exporters["otlp_http/environment"]
    assert (exporter.timeout, exporter.compression) == (30_000_000_000, "gzip")
    assert exporter.headers == {}
    assert f"{OTLP}{name} is ignored" in caplog.text
    (message,) = (record.getMessage() for record in caplog.records)
    assert text not in message.replace("more than 0", "")


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        ("http/protobuf", "Content-Type"),
        ("http/protobuf", "content-encoding"),
        ("http/json", "Content-Length"),
        ("grpc", "x-bin"),
        ("grpc", "x!"),
    ],
)
def test_a_header_that_cannot_be_sent(
    tmp_path: Path, protocol: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: a header that the exporter sets itself, or that gRPC does not carry; in the
    environment, and written.
    Guarantees: no exporter and a warning; an error at its line; both without the value.
    """
    environ = named(ENDPOINT="http://hop:4318", PROTOCOL=protocol, HEADERS=f"{name}=s3cret")
    assert list(load_config([], (), environ).exporters) == ["file"]
    assert f"{OTLP}HEADERS: exporters." in caplog.text
    kind = "otlp_grpc" if protocol == "grpc" else "otlp_http"
    lines = [f"exporters:\n  {kind}:", "endpoint: http://hop:4318", f"headers: {{{name}: s3cret}}"]
    text = complaint(written(tmp_path, "\n    ".join(lines)))
    assert f":4: exporters.{kind}.headers.***: " in text
    assert kind == "otlp_grpc" or f"{name.lower()} is set by the exporter" in text
    assert "s3cret" not in text + caplog.text


@pytest.mark.parametrize(
    ("protocol", "endpoint", "kind", "encoding"),
    [
        ("", HOP, "otlp_http", "proto"),
        ("http/protobuf", HOP, "otlp_http", "proto"),
        ("HTTP/JSON", HOP, "otlp_http", "json"),
        ("grpc", "http://192.0.2.1:4317", "otlp_grpc", None),
    ],
)
def test_one_is_made_beside_the_file(
    protocol: str, endpoint: str, kind: str, encoding: str | None
) -> None:
    """
    Scenario: no configuration, an address and each protocol in the environment.
    Guarantees: an exporter of that kind, beside the default file.
    """
    config = load_config([], (), named(ENDPOINT=endpoint, PROTOCOL=protocol))
    assert list(config.exporters) == ["file", f"{kind}/environment"]
    made: Any = config.exporters[f"{kind}/environment"]
    assert made.endpoint == endpoint
    assert getattr(made, "encoding", None) == encoding


def test_none_is_made_beside_written_ones(tmp_path: Path) -> None:
    """
    Scenario: a file that names its exporters; `--set` that adds one without an address.
    Guarantees: exactly these.
    """
    path = written(tmp_path, "exporters: {debug: }")
    assert list(load_config([path], (), named(ENDPOINT=HOP)).exporters) == ["debug"]
    config = load_config([], ["exporters.otlp_http={}"], named(ENDPOINT=HOP))
    assert list(config.exporters) == ["file", "otlp_http"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:4318",
        "http://127.0.0.1:4318",
        "http://127.0.0.1:4317",
        "http://[::1]:4318",
        "http://0.0.0.0:4318/base",
        f"http://{socket.gethostname()}:4318",
        "http://127.8.9.1:4318",
    ],
)
def test_none_is_made_towards_ourselves(
    endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: the variable is there for the agents and points at us, whose doors are open to all.
    Guarantees: no exporter; a warning that says why; the service starts.
    """
    path = written(
        tmp_path,
        """\
        receivers:
          otlp: {protocols: {grpc: {endpoint: "[::]:4317"}, http: {endpoint: "[::]:4318"}}}
        """,
    )
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        config = load_config([path], (), named(ENDPOINT=endpoint))
    assert list(config.exporters) == ["file"]
    assert "our own door" in caplog.text


@pytest.mark.parametrize("endpoint", ["localhost:4318", "http://x y", "ftp://hop", "http://"])
def test_a_bad_address_keeps_nothing_from_starting(
    endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Scenario: what nobody wrote for us is not a URL.
    Guarantees: no exporter, a warning that names the variable.
    """
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        config = load_config([], (), named(ENDPOINT=endpoint))
    assert list(config.exporters) == ["file"]
    assert f"{OTLP}ENDPOINT" in caplog.text


def test_a_bad_value_for_a_written_exporter_names_the_variable(tmp_path: Path) -> None:
    """
    Scenario: a file that counts on the environment, where there is no URL.
    Guarantees: an error at the variable's name.
    """
    path = written(tmp_path, "exporters: {otlp_http: }")
    text = complaint(path, environ=named(ENDPOINT="hop"))
    assert text.startswith(f"{OTLP}ENDPOINT: exporters.otlp_http.endpoint: must be a URL")


def test_header_values_are_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: a header value with a line break in it, and another secret in a pair that is none.
    Guarantees: error and warning are without them.
    """
    path = written(tmp_path, "exporters: {otlp_http: }")
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        text = complaint(path, environ=named(ENDPOINT=HOP, HEADERS="k=s3cret%0A,s3cret2"))
    assert "headers" in text
    assert "s3cret" not in text + caplog.text


def test_signals_that_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: traces have a key of their own; once all signals have an address, once traces alone.
    Guarantees: refused, naming both variables, where the other signals would get it too; fine
    where nothing else is sent.
    """
    path = written(tmp_path, "exporters: {otlp_http: }")
    variables = {"TRACES_HEADERS": "k=1", "HEADERS": "k=2"}
    text = complaint(path, environ=named(ENDPOINT=HOP, **variables))
    assert f"{OTLP}HEADERS, {OTLP}TRACES_HEADERS: differ" in text
    exporter = filled(
        tmp_path, "exporters: {otlp_http: }", TRACES_ENDPOINT=f"{HOP}/x", TRACES_HEADERS="k=1"
    )
    assert exporter.endpoints() == {"traces": f"{HOP}/x"}
    assert exporter.headers == {"k": "1"}
    with caplog.at_level(logging.WARNING, "otel_anomaly"):
        config = load_config([], (), named(ENDPOINT=HOP, **variables))
    assert list(config.exporters) == ["file"]
    assert "differ" in caplog.text


@pytest.mark.parametrize(
    ("protocol", "encoding"),
    [("http/protobuf", "proto"), ("http/json", "json"), ("", "proto"), ("thrift", "proto")],
)
def test_one_signal_with_its_own_protocol(protocol: str, encoding: str) -> None:
    """
    Scenario: address, protocol and key of traces alone.
    Guarantees: an exporter for traces, which sends nothing else.
    """
    environ = named(
        TRACES_ENDPOINT=f"{HOP}/x", TRACES_PROTOCOL=protocol, TRACES_HEADERS="k=1", TIMEOUT="9000"
    )
    config = load_config([], (), environ)
    assert list(config.exporters) == ["file", "otlp_http/environment"]
    made: Any = config.exporters["otlp_http/environment"]
    assert made.endpoints() == {"traces": f"{HOP}/x"}
    assert (made.encoding, made.headers, made.timeout) == (encoding, {"k": "1"}, 9_000_000_000)


def test_one_signal_over_grpc(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: the address of traces alone, over gRPC; then the same one for each of the signals.
    Guarantees: it is where the exporter sends, that of the environment and a written one, with a
    warning that metrics and logs go there too; none when they name it as well.
    """
    protocol = {f"{signal}_PROTOCOL": "grpc" for signal in ("TRACES", "METRICS", "LOGS")}
    alone = named(TRACES_ENDPOINT="hop:4317", TRACES_PROTOCOL="grpc")
    path = written(tmp_path, "exporters: {otlp_grpc: }")
    for name, files in (("otlp_grpc/environment", []), ("otlp_grpc", [path])):
        made: Any = load_config(files, (), alone).exporters[name]
        assert made.endpoint == "hop:4317"
        assert f"{OTLP}TRACES_ENDPOINT: over gRPC all signals go there" in caplog.text
        caplog.clear()
    each = {f"{signal}_ENDPOINT": "hop:4317" for signal in ("TRACES", "METRICS", "LOGS")}
    made = load_config([], (), named(**each, **protocol)).exporters["otlp_grpc/environment"]
    assert made.endpoint == "hop:4317"
    assert not caplog.text


def test_protocols_that_differ(caplog: pytest.LogCaptureFixture) -> None:
    """
    Scenario: all signals have an address; one has a protocol of its own, or names the default.
    Guarantees: no exporter is made for protocols that differ; the default is no difference.
    """
    config = load_config([], (), named(ENDPOINT=HOP, TRACES_PROTOCOL="HTTP/Protobuf"))
    assert list(config.exporters) == ["file", "otlp_http/environment"]
    config = load_config([], (), named(ENDPOINT=HOP, TRACES_PROTOCOL="http/json"))
    assert list(config.exporters) == ["file"]
    assert f"{OTLP}PROTOCOL, {OTLP}TRACES_PROTOCOL: differ" in caplog.text


NAMES = {
    "alias": ["192.0.2.7"],
    "mapped": ["::ffff:127.0.0.1"],
    "zone": ["fe80::1%eth0"],
    "both": ["127.0.0.1", "::1"],
    "0.0.0.0": ["0.0.0.0"],
    "::": ["::"],
}


def lookup(host: str, *_: object, **__: object) -> list[Any]:
    if host in NAMES:
        return [(0, 0, 0, "", (address, 0)) for address in NAMES[host]]
    return [(0, 0, 0, "", (str(ip_address(host)), 0))]


@pytest.mark.parametrize(
    ("target", "door", "ours"),
    [
        ("http://both:4318", "127.0.0.1:4318", True),
        ("both:4318", "[::1]:4318", True),
        ("mapped:4318", "127.0.0.1:4318", True),
        ("mapped:4318", "both:4318", True),
        ("127.0.0.2:4318", "0.0.0.0:4318", True),
        ("127.0.0.2:4318", "127.0.0.1:4318", False),
        ("[::1]:4318", "[::]:4318", True),
        ("127.0.0.1:4318", "[::]:4318", True),
        ("[::1]:4318", "0.0.0.0:4318", False),
        ("0.0.0.0:4318", "127.0.0.1:4318", True),
        ("both:4319", "both:4318", False),
        ("alias:4318", "0.0.0.0:4318", False),
        ("zone:4318", "127.0.0.1:4318", False),
        ("both:0", "both:0", False),
        ("http://both", "both:80", True),
        ("https://both/x", "both:443", True),
        ("nonsense:x", "both:4318", False),
        ("both:4318", "unix:///run/otlp.sock", False),
        ("http://both:99999", "both:4318", False),
    ],
)
def test_our_own_doors(target: str, door: str, ours: bool) -> None:  # noqa: FBT001 - A case.
    """
    Scenario: names, loopback, wildcards, mapped addresses and sockets, on both sides.
    Guarantees: a target is ours when a connection to it ends at that door.
    """
    assert own_door(target, [door], lookup) == (door if ours else None)


def test_addresses_of_this_machine() -> None:
    """
    Scenario: this machine's own address, as its name resolves; one that is documented as nobody's.
    Guarantees: the first is ours, the second is not.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", 9))
        assert is_ours(ip_address(probe.getsockname()[0]))
    for info in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
        assert is_ours(ip_address(str(info[4][0]).partition("%")[0]))
    assert not is_ours(ip_address("192.0.2.1"))


def test_an_unknown_name_is_not_ours() -> None:
    """
    Scenario: the name service fails, and a name that cannot even be asked for.
    Guarantees: not ours: the next hop may not be there yet.
    """

    def fails(*_: object, **__: object) -> Any:
        raise socket.gaierror

    assert own_door("hop:4318", ["127.0.0.1:4318"], fails) is None
    assert own_door("http://" + "a" * 70 + ".x:4318", ["127.0.0.1:4318"]) is None


@pytest.mark.parametrize(
    ("endpoint", "says"), [("127.0.0.1:4318", "our own door"), ("192.0.2.1:4318", "")]
)
def test_exporters_refuse_to_start_towards_ourselves(
    endpoint: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: an exporter starts whose address leads to a door; one whose does not.
    Guarantees: the first is an error that names the door.
    """

    async def inline(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    monkeypatch.setattr("asyncio.to_thread", inline)  # No threads in virtual time.
    told = ""
    try:
        play(refuse_own_doors([endpoint], ["0.0.0.0:4318"]))
    except ValueError as error:
        told = str(error)
    assert says in told
    assert bool(told) == bool(says)


def test_config_error_is_what_it_says() -> None:
    """
    Scenario: a configuration that names our own door.
    Guarantees: refused when it is read, not only when it starts.
    """
    with pytest.raises(ConfigError, match="our own door"):
        load_config([], ["exporters.otlp_http={endpoint: 'http://localhost:4318'}"], {})
