"""What the fuzzer tries to break in the configuration: any text is a configuration, or is refused.

The first byte says what the others are: a file where it is even, else one `--set`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from otel_anomaly.config import Config, ConfigError, load_config

ENVIRON = {"NAME": "value", "EMPTY": "", "LINES": "a: 1\nb: [2"}
MESSAGE_CHARS_MAX = 20_000
"""However much is wrong, nobody reads more."""


def check(data: bytes) -> None:
    """A `Config` that can be written out, or a ConfigError that is short; all else is a find."""
    if not data:
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-config-") as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(data[1:])
        override = [data[1:].decode("utf-8", "replace")] if data[0] & 1 else []
        try:
            config = load_config([] if override else [path], override, ENVIRON)
        except ConfigError as error:
            message = str(error)
        else:
            assert isinstance(config, Config)
            assert config.model_dump_json()
            return
    assert 0 < len(message) <= MESSAGE_CHARS_MAX
