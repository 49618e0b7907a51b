"""The doors: where telemetry comes in, who may bring it, and how much of it.

Key names are the Collector's where it has them. Its authenticators are extensions that a receiver
names; here the credentials stand in the door's own block.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from otel_anomaly.config.conflicts import conflict
from otel_anomaly.config.quantities import (
    GIB,
    KIB,
    MIB,
    SECOND_NS,
    Count,
    Duration,
    Ratio,
    Size,
    door_endpoint,
)
from otel_anomaly.config.section import Section

CREDENTIALS_MAX = 256
"""All of them are compared for each request: about a tenth of a millisecond."""
UNIX = "unix://"


def _written_out(value: object) -> object:
    """A block of security that is named and left empty is a mistake, never "off"."""
    if value is None or value == {}:
        raise ValueError("is named but empty: give its keys, or leave the block out")
    return value


def _bearer_token(token: SecretStr) -> SecretStr:
    """RFC 6750, 2.1: what can stand in a header, and long enough not to be guessed."""
    if not re.fullmatch(r"[!-~]{8,4096}", token.get_secret_value()):
        raise ValueError("must be 8 to 4096 visible ASCII characters without spaces")
    return token


def _origin(origin: str) -> str:
    """`https://app.example.com`, `https://*.example.com` or `*`."""
    if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.*:\[\]-]{1,255}", origin):
        raise ValueError("must be an origin, like https://*.example.com, without a path")
    return origin.lower()


def _header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", name):
        raise ValueError("must be a header name")
    return name


FilePath = Annotated[str, Field(min_length=1)]
BearerToken = Annotated[SecretStr, AfterValidator(_bearer_token)]


class TlsServerConfig(Section):
    """TLS at a door. Files are read again when they change; a bad one leaves the old in place."""

    cert_file: FilePath
    """PEM file of the certificate and its chain."""
    key_file: FilePath
    """PEM file of its key."""
    client_ca_file: FilePath | None = None
    """PEM file of authorities: every client must show a certificate of theirs (mutual TLS)."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest version spoken. At the gRPC door 1.2 alone: grpcio has no switch."""
    reload_interval: Annotated[Duration, Field(ge=SECOND_NS)] = 10 * SECOND_NS
    """How often the files are looked at."""


class BearerConfig(Section):
    """`Authorization: Bearer <token>`; any of the tokens opens."""

    tokens: tuple[BearerToken, ...] = Field(default=(), max_length=CREDENTIALS_MAX)
    """Tokens, best as `${env:NAME}`. Never shown."""
    filename: FilePath | None = None
    """File with one token per line, read again when it changes."""

    @model_validator(mode="after")
    def _some_token(self) -> Self:
        if not self.tokens and self.filename is None:
            raise conflict("no token: give tokens or filename, or leave bearer out")
        return self


class HtpasswdConfig(Section):
    """Lines of `user:password`, or `user:{SHA256}` and the SHA-256 of `user:password` in hex."""

    inline: SecretStr | None = None
    """The lines themselves, best as `${env:NAME}`. Never shown."""
    file: FilePath | None = None
    """File with the lines, read again when it changes."""

    @model_validator(mode="after")
    def _some_line(self) -> Self:
        inline = self.inline.get_secret_value().strip() if self.inline is not None else None
        if inline == "":
            raise conflict("no user: inline is empty", "inline")
        if inline is None and self.file is None:
            raise conflict("no user: give inline or file, or leave basic out")
        return self


class BasicConfig(Section):
    """`Authorization: Basic <user:password>`; any of the users may come in."""

    htpasswd: Annotated[HtpasswdConfig, BeforeValidator(_written_out)]


class AuthConfig(Section):
    """Who may come in. With both kinds, either opens."""

    bearer: Annotated[BearerConfig | None, BeforeValidator(_written_out)] = None
    basic: Annotated[BasicConfig | None, BeforeValidator(_written_out)] = None

    @model_validator(mode="after")
    def _some_kind(self) -> Self:
        if self.bearer is None and self.basic is None:
            raise conflict("nobody could come in: give bearer or basic, or leave auth out")
        return self


class PerClientConfig(Section):
    """Limits per client address (IPv6: per /64). Behind a proxy all clients are one: leave off."""

    requests_per_second: Ratio = Field(default=0, ge=0, le=1_000_000)
    """Requests a client may send on average; 0 is no limit. Beyond: 429 or UNAVAILABLE."""
    burst: Count = Field(default=100, ge=1, le=1_000_000)
    """Requests it may send at once before the average counts."""
    connections: Count = Field(default=0, ge=0, le=1_000_000)
    """Connections a client may hold; 0 is no limit."""


class CorsConfig(Section):
    """Browsers as clients."""

    allowed_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        min_length=1, max_length=100
    )
    """Pages that may send, `*` inside a name for any part. `*` alone is all, then without
    credentials."""
    allowed_headers: tuple[Annotated[str, AfterValidator(_header)], ...] = Field(
        default=(), max_length=100
    )
    """Headers they may set beside the usual ones; `*` is any."""
    max_age: Count = Field(default=7200, ge=0, le=86400)
    """Seconds a browser may remember the answer."""


class _DoorConfig(Section):
    """What both doors have."""

    transport: Literal["tcp", "unix"] = "tcp"
    """`unix`: the endpoint is the path of a socket."""
    tls: Annotated[TlsServerConfig | None, BeforeValidator(_written_out)] = None
    auth: Annotated[AuthConfig | None, BeforeValidator(_written_out)] = None
    max_connections: Count | None = Field(default=None, ge=1, le=1_000_000)
    """Connections at once; more are refused. Default: a share of the open files allowed."""

    @model_validator(mode="before")
    @classmethod
    def _socket_path(cls, value: object) -> object:
        """The Collector writes `transport: unix` and a bare path."""
        if not isinstance(value, dict) or value.get("transport") != "unix":
            return value
        endpoint = value.get("endpoint")
        if isinstance(endpoint, str) and endpoint.startswith("/"):
            return {**value, "endpoint": UNIX + endpoint}
        return value

    @model_validator(mode="after")
    def _one_transport(self) -> Self:
        endpoint: str = getattr(self, "endpoint")  # noqa: B009 - each door has its own default.
        if self.transport == "unix" and not endpoint.startswith(UNIX):
            raise conflict("transport: unix needs a path as endpoint", "endpoint", "transport")
        if endpoint.startswith(UNIX) and self.tls is not None:
            text = "a unix socket is its owner's alone and has no TLS: leave tls out"
            raise conflict(text, "tls", "endpoint")
        return self


class ServerParametersConfig(Section):
    """Life of a connection."""

    max_connection_idle: Annotated[Duration, Field(gt=0)] = 600 * SECOND_NS
    """A connection without a request for so long is closed."""
    max_connection_age: Duration = 0
    """After so long a client is told to connect anew, so that load moves; 0 is never."""
    max_connection_age_grace: Annotated[Duration, Field(gt=0)] = 60 * SECOND_NS
    """What it may take to finish its requests by then."""
    time: Annotated[Duration, Field(ge=SECOND_NS)] = 7200 * SECOND_NS
    """A silent client is asked for a sign of life after so long."""
    timeout: Annotated[Duration, Field(gt=0)] = 20 * SECOND_NS
    """And must give it within this."""


class EnforcementPolicyConfig(Section):
    """How often a client may ask for a sign of life."""

    min_time: Duration = 300 * SECOND_NS
    """One that asks more often is disconnected."""
    permit_without_stream: bool = False
    """Whether it may ask while it has no request under way."""


class KeepaliveServerConfig(Section):
    """Signs of life."""

    server_parameters: ServerParametersConfig = ServerParametersConfig()
    enforcement_policy: EnforcementPolicyConfig = EnforcementPolicyConfig()


class GrpcReceiverConfig(_DoorConfig):
    """OTLP/gRPC door."""

    endpoint: Annotated[str, BeforeValidator(door_endpoint)] = "127.0.0.1:4317"
    """Address to listen on, or `unix:///path`."""
    max_recv_msg_size_mib: Count = Field(default=64, gt=0, le=1024)
    """Largest request in MiB, also after decompression."""
    max_concurrent_streams: Count = Field(default=256, ge=1, le=65536)
    """Requests under way at once on one connection."""
    max_header_size: Annotated[Size, Field(ge=KIB, le=MIB)] = 16 * KIB
    """Metadata of one request."""
    read_timeout: Annotated[Duration, Field(gt=0)] = 60 * SECOND_NS
    """Time for a whole request to arrive."""
    keepalive: KeepaliveServerConfig = KeepaliveServerConfig()
    per_client: PerClientConfig = PerClientConfig()

    @model_validator(mode="after")
    def _grpcio_speaks_both(self) -> Self:
        if self.tls is not None and self.tls.min_version != "1.2":
            text = "grpcio cannot refuse TLS 1.2: use the HTTP door, or a proxy in front"
            raise conflict(text, ("tls", "min_version"))
        return self


class HttpReceiverConfig(_DoorConfig):
    """OTLP/HTTP door."""

    endpoint: Annotated[str, BeforeValidator(door_endpoint)] = "127.0.0.1:4318"
    """Address to listen on, or `unix:///path`."""
    max_request_body_size: Annotated[Size, Field(gt=0, le=GIB)] = 64 * MIB
    """Largest request body, also after decompression."""
    max_header_size: Annotated[Size, Field(ge=KIB, le=MIB)] = 8 * KIB
    """Longest request line or header; there may be 128 headers, together twice that."""
    read_header_timeout: Annotated[Duration, Field(gt=0)] = 10 * SECOND_NS
    """Time for the headers of a request to arrive, and for the TLS handshake."""
    read_timeout: Annotated[Duration, Field(gt=0)] = 60 * SECOND_NS
    """Time for a whole body to arrive."""
    idle_timeout: Annotated[Duration, Field(gt=0)] = 180 * SECOND_NS
    """A connection without a request for so long is closed. SDKs send every 60 s at most."""
    max_connection_age: Duration = 0
    """After so long a connection ends with its next answer, so that load moves; 0 is never."""
    max_connection_age_grace: Annotated[Duration, Field(gt=0)] = 60 * SECOND_NS
    """One that gets no answer by then is closed all the same."""
    cors: Annotated[CorsConfig | None, BeforeValidator(_written_out)] = None
    per_client: PerClientConfig = PerClientConfig()
