"""Where the configuration comes from, kept so that it can be read again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from otel_anomaly.config.loading import load_config
from otel_anomaly.config.yaml_text import TEXT_BYTES_MAX

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.config.models import Config


class Source:
    """The files and the overrides of the command line."""

    def __init__(self, files: tuple[Path, ...] = (), overrides: tuple[str, ...] = ()) -> None:
        self.files, self.overrides = files, overrides
        self.loaded = b""
        """The fingerprint of what was loaded last."""

    def load(self) -> Config:
        """The configuration as it stands there now. Raises ConfigError."""
        self.loaded = self.fingerprint()  # Before it is read: what changes meanwhile differs.
        return load_config(self.files, self.overrides)

    def fingerprint(self) -> bytes:
        """The same as long as the files say the same, whatever they were replaced by.

        By content and not by time or inode: files are small, and a mounted directory of a
        Kubernetes ConfigMap is exchanged as a whole, by a link that no file's time tells of.
        """
        digest = hashlib.sha256()
        for path in self.files:
            try:
                with path.open("rb") as file:
                    body = file.read(TEXT_BYTES_MAX + 1)
            except OSError as error:
                body = f"errno {error.errno}".encode()
            digest.update(hashlib.sha256(body).digest())
        return digest.digest()
