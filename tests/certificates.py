"""A certificate for localhost that is its own authority, made once per run by openssl."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path


class Certificates(NamedTuple):
    """PEM files."""

    ca: Path
    cert: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make them, or skip the test: openssl is not a Python package."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return Certificates(cert, cert, key)


def lock(key: Path, password: str) -> Path:
    """The same key, to be opened with a password."""
    locked = key.with_name("locked.pem")
    command = ["openssl", "pkcs8", "-topk8", "-in", str(key), "-out", str(locked)]
    subprocess.run([*command, "-passout", f"pass:{password}"], check=True, capture_output=True)
    return locked
