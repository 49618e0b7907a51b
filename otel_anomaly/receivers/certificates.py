"""TLS at the doors: contexts from PEM files, and noticing when files change.

A file is looked at by its time, size and number, as a mounted secret changes by a new link. What
cannot be used is told with the name of the file and leaves what was there in place.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_anomaly.config.doors import TlsServerConfig

VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class PemFiles(NamedTuple):
    """What grpcio takes: contents. They belong together: a context was made of them."""

    key: bytes
    chain: bytes
    client_ca: bytes | None


def server_context(tls: TlsServerConfig) -> ssl.SSLContext:
    """A context that shows our certificate and, with `client_ca_file`, demands the client's.

    Raises
    ------
    ValueError
        A file is missing, is not PEM, or key and certificate are not a pair. Names the files.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[tls.min_version]
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        # An encrypted key would ask for its password at the terminal: an empty one fails instead.
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tls: cannot use {tls.cert_file} with {tls.key_file}: {_reason(error)}"
        ) from None
    if tls.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"tls: cannot use {tls.client_ca_file}: {_reason(error)}") from None
    return context


def pem_files(tls: TlsServerConfig) -> PemFiles:
    """The contents, after they have proved to be usable. Raises ValueError as `server_context`."""
    server_context(tls)
    try:
        ca = Path(tls.client_ca_file).read_bytes() if tls.client_ca_file is not None else None
        return PemFiles(Path(tls.key_file).read_bytes(), Path(tls.cert_file).read_bytes(), ca)
    except OSError as error:
        raise ValueError(f"tls: {error.filename}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a PEM file of the right kind"
    return (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)


def tls_files(tls: TlsServerConfig) -> list[str]:
    """The files to be watched."""
    files = (tls.cert_file, tls.key_file, tls.client_ca_file)
    return [file for file in files if file is not None]


class FileWatch:
    """Tells whether any of some files has changed since it was last asked."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = tuple(files)
        self._seen = self._look()

    def changed(self) -> bool:
        """True once for each change."""
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_signature(file) for file in self._files)


def _signature(file: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(file)  # noqa: PTH116 - Path would be made anew each time.
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
