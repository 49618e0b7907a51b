"""Who may come in: bearer tokens and users with passwords, compared without telling how far.

What is presented is hashed and compared with the hash of every credential there is, each in
constant time and without stopping at a hit: the time taken says nothing about what is right.
Nothing here puts a credential into a message; a bad line of a file is named by its number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_anomaly.config.doors import CREDENTIALS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otel_anomaly.config.doors import AuthConfig

FILE_BYTES_MAX: Final = 1 << 20
HEADER_BYTES_MAX: Final = 8192
REALM: Final = "otel-anomaly"
_TOKEN: Final = re.compile(rb"[!-~]{8,4096}")
_HASHED: Final = re.compile(rb"([^:\x00-\x1f]{1,256}):\{SHA256\}([0-9a-fA-F]{64})")
_PLAIN: Final = re.compile(rb"[^:\x00-\x1f]{1,256}:[^\x00-\x1f]{1,1024}")
_OTHER_HASH: Final = re.compile(rb"[^:]*:(\$[0-9a-zA-Z]+\$|\{[A-Z0-9]+\})")

Lines = list[tuple[str, bytes]]
"""(where it stands, line) without empty lines and comments."""


class Credentials:
    """What opens one door. Immutable: changed files make a new one."""

    def __init__(self, config: AuthConfig) -> None:
        """Read the files.

        Raises
        ------
        ValueError
            A file cannot be read, holds nothing, or a line that is no credential.
        """
        self._tokens = tuple(_tokens(config))
        self._users = tuple(_users(config))
        self.challenge = _challenge(config)
        if len(self._tokens) > CREDENTIALS_MAX or len(self._users) > CREDENTIALS_MAX:
            raise ValueError(f"auth: more than {CREDENTIALS_MAX} credentials of one kind")

    def open_with(self, values: Sequence[str | bytes]) -> bool:
        """Whether the values of the Authorization header let the client in: there must be one."""
        if len(values) != 1:
            return False
        value = values[0]
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        if len(raw) > HEADER_BYTES_MAX:
            return False
        scheme, _, rest = raw.partition(b" ")
        match scheme.lower():  # RFC 9110, 11.1: the name of the scheme, and it alone.
            case b"bearer":
                return _is_among(rest, self._tokens)
            case b"basic":
                return _is_among(_decoded(rest), self._users)
        return False


def _is_among(presented: bytes, digests: Sequence[bytes]) -> bool:
    digest, found = hashlib.sha256(presented).digest(), False
    for known in digests:
        found |= hmac.compare_digest(digest, known)
    return found


def _decoded(text: bytes) -> bytes:
    """`user:password`; what is not base64 is nobody's."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _challenge(config: AuthConfig) -> str:
    """What a refused client is told to show (RFC 9110, 11.6.1)."""
    kinds = []
    if config.bearer is not None:
        kinds.append(f'Bearer realm="{REALM}"')
    if config.basic is not None:
        kinds.append(f'Basic realm="{REALM}", charset="UTF-8"')
    return ", ".join(kinds)


def credential_files(config: AuthConfig) -> list[str]:
    """The files that stand behind a block, to be watched."""
    files = [config.bearer.filename if config.bearer else None]
    files.append(config.basic.htpasswd.file if config.basic else None)
    return [file for file in files if file is not None]


def _tokens(config: AuthConfig) -> Iterator[bytes]:
    if config.bearer is None:
        return
    for token in config.bearer.tokens:
        yield hashlib.sha256(token.get_secret_value().encode()).digest()
    if config.bearer.filename is not None:
        for where, line in _lines_of_file(config.bearer.filename):
            if not _TOKEN.fullmatch(line):
                raise ValueError(f"{where}: not a token: 8 to 4096 visible ASCII characters")
            yield hashlib.sha256(line).digest()


def _users(config: AuthConfig) -> Iterator[bytes]:
    if config.basic is None:
        return
    htpasswd, lines = config.basic.htpasswd, Lines()
    if htpasswd.inline is not None:
        lines += _lines("auth.basic.htpasswd.inline", htpasswd.inline.get_secret_value().encode())
    if htpasswd.file is not None:
        lines += _lines_of_file(htpasswd.file)
    for where, line in lines:
        if hashed := _HASHED.fullmatch(line):
            yield bytes.fromhex(hashed[2].decode())
        elif _OTHER_HASH.match(line):
            raise ValueError(f"{where}: a password is plain text or {{SHA256}}")
        elif _PLAIN.fullmatch(line):
            yield hashlib.sha256(line).digest()
        else:
            raise ValueError(f"{where}: must be user:password, neither empty")


def _lines_of_file(path: str) -> Lines:
    try:
        with Path(path).open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if len(text) > FILE_BYTES_MAX:
        raise ValueError(f"{path}: larger than {FILE_BYTES_MAX >> 20} MiB")
    return _lines(path, text)


def _lines(name: str, text: bytes) -> Lines:
    numbered = enumerate((line.strip() for line in text.splitlines()), start=1)
    lines = [(f"{name}:{i}", line) for i, line in numbered if line and not line.startswith(b"#")]
    if not lines:
        raise ValueError(f"{name}: holds no credential, so nobody could come in")
    return lines
