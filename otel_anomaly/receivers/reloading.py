"""Certificates and credentials that change on the disk, and doors that stand open.

What cannot be used leaves in place what was there: it is logged once for each change, counted, and
stays a problem of the door's health until the files are right again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from otel_anomaly.config import is_local
from otel_anomaly.receivers.certificates import FileWatch, server_context, tls_files
from otel_anomaly.receivers.credentials import Credentials, credential_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_anomaly.config import GrpcReceiverConfig, HttpReceiverConfig
    from otel_anomaly.config.doors import TlsServerConfig
    from otel_anomaly.telemetry import Telemetry

    DoorConfig = GrpcReceiverConfig | HttpReceiverConfig

LOG: Final = logging.getLogger("otel_anomaly")
Read = TypeVar("Read")
LOOK_S: Final = 10.0
"""How often credential files are looked at where no `tls.reload_interval` says so."""


def files_of(config: DoorConfig) -> list[str]:
    """What is watched for one door."""
    files = tls_files(config.tls) if config.tls is not None else []
    return files + (credential_files(config.auth) if config.auth is not None else [])


class Shown(NamedTuple, Generic[Read]):
    """What a door shows its clients, and what it asks them for."""

    certificates: Read | None
    credentials: Credentials | None
    watch: FileWatch
    """Sees a change of the files that these are from. It was made before they were read, or one in
    between would never be noticed."""


def read_files(config: DoorConfig, read_tls: Callable[[TlsServerConfig], Read]) -> Shown[Read]:
    """Certificates, as `read_tls` gives them, and credentials, where the door has them.

    Raises
    ------
    ValueError
        One of them cannot be used. The message names the file.
    """
    watch = FileWatch(files_of(config))
    certificates = read_tls(config.tls) if config.tls is not None else None
    credentials = Credentials(config.auth) if config.auth is not None else None
    return Shown(certificates, credentials, watch)


def check_files(config: DoorConfig) -> None:
    """Raise ValueError for certificates or credentials that cannot be used."""
    read_files(config, server_context)


def exposure(transport: str, config: DoorConfig) -> str | None:
    """The one loud line about a door that strangers can reach; None when there is no need."""
    if is_local(config.endpoint):
        return None
    is_mutual = config.tls is not None and config.tls.client_ca_file is not None
    missing = [] if config.tls is not None else ["tls"]
    missing += [] if config.auth is not None or is_mutual else ["auth"]
    if not missing:
        return None
    key = f"receivers.otlp.protocols.{transport}"
    what = {
        "tls": "what is sent can be read and changed on the way",
        "auth": "anybody who can reach it can send",
    }
    return (
        f"OPEN DOOR: OTLP/{transport} listens on {config.endpoint}: "
        f"{' and '.join(what[name] for name in missing)}. "
        f"Set {' and '.join(f'{key}.{name}' for name in missing)}, or listen on 127.0.0.1"
    )


def warn_of_exposure(transport: str, config: DoorConfig, former: DoorConfig | None = None) -> None:
    """Say it, at the start and when a new configuration opens what was shut."""
    line = exposure(transport, config)
    if line is not None and (former is None or exposure(transport, former) != line):
        LOG.warning("%s", line)


def warn_of_open_page(endpoint: str) -> None:
    """The same of the monitoring pages, which have neither TLS nor credentials."""
    if not is_local(endpoint):
        LOG.warning(
            "OPEN DOOR: metrics and health listen on %s: anybody who can reach it can read them."
            " Set telemetry.metrics.endpoint to 127.0.0.1, or keep strangers from it",
            endpoint,
        )


class FileReload:
    """Looks at the files of one door now and then."""

    def __init__(
        self, transport: str, telemetry: Telemetry, apply: Callable[[], Awaitable[None]]
    ) -> None:
        """`apply` reads the files and uses them; it raises ValueError when it cannot."""
        self.problem: str | None = None
        """For health: what is wrong with the files on the disk."""
        self._transport = transport
        self._failures = telemetry.door_reload_failures.labels(transport)
        self._apply = apply
        self.watch = FileWatch(())
        self._look_s = LOOK_S
        self._task: asyncio.Task[None] | None = None

    async def start(self, config: DoorConfig, watch: FileWatch) -> None:
        """Watch the files of `config` from now on. `watch` comes with what was read from them."""
        await self.stop()
        self.problem = None
        if not files_of(config):
            return
        self.watch = watch
        self._look_s = config.tls.reload_interval / 1e9 if config.tls is not None else LOOK_S
        self._task = asyncio.create_task(self._look_forever())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def look(self) -> None:
        """Use the files if they have changed, or could not be used.

        A file that may be read again looks the same as before.
        """
        changed = self.watch.changed()
        if not changed and self.problem is None:
            return
        try:
            await self._apply()
        except (ValueError, OSError) as error:
            if not changed and self.problem == str(error):
                return  # That has been told.
            self.problem = str(error)
            self._failures.inc()
            LOG.error(  # noqa: TRY400 - the message says it all.
                "OTLP/%s goes on with the old certificates and credentials: %s",
                self._transport,
                error,
            )
        else:
            self.problem = None
            LOG.info("OTLP/%s uses new certificates and credentials", self._transport)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            await self.look()
