"""TLS towards the next hop: certificates are read, and held to be sound, when we start."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from otel_anomaly.config import TlsClientConfig


class PemFiles(NamedTuple):
    """Contents of the files; None for one that is not given."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


def client_context(config: TlsClientConfig) -> ssl.SSLContext:
    """Verifies the next hop, and shows our certificate when there is one.

    Raises
    ------
    OSError
        A file cannot be read, or is not what it should be. Names the key.
    """
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise OSError(f"tls.ca_file {config.ca_file!r}: {error}") from error
    if config.cert_file is not None:
        try:
            # An encrypted key would ask for its password at the terminal, and all would wait: an
            # empty one fails instead.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except OSError as error:
            files = f"tls.cert_file {config.cert_file!r}, tls.key_file {config.key_file!r}"
            raise OSError(f"{files}: {error}{_why(config.key_file)}") from error
    return context


def _why(key_file: str | None) -> str:
    """What OpenSSL does not say of a key that needs a password."""
    with contextlib.suppress(OSError):
        if b"ENCRYPTED" in (_read(key_file) or b""):
            return "; a key with a password cannot be used"
    return ""


def pem_files(config: TlsClientConfig) -> PemFiles:
    """The same files for gRPC, which has a TLS of its own and trusts its own authorities.

    Raises
    ------
    OSError
        As `client_context`: gRPC itself would tell it at the first request only.
    """
    client_context(config)
    trusted = config.ca_file or ssl.get_default_verify_paths().cafile
    return PemFiles(_read(trusted), _read(config.cert_file), _read(config.key_file))


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
