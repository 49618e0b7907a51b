"""Endpoints: what they mean, whether they are free, how many fit.

A unix socket is a file that outlives its process. One that nobody listens on is removed; one that
somebody listens on is taken, as a port would be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIX: Final = "unix://"
SOCKET_UMASK: Final = 0o177
"""A socket file is the owner's alone."""
FILES_KEPT: Final = 512
"""Open files for everything but the doors' connections: queues, sinks, next hops, threads."""
CONNECTIONS_MIN, CONNECTIONS_MAX = 64, 100_000


class ConnectionShares(NamedTuple):
    """How many connections each door may hold when the configuration does not say."""

    http: int
    grpc: int


def host_and_port(endpoint: str) -> tuple[str, int]:
    """`[::1]:80` -> (`::1`, 80)."""
    host, _, port = endpoint.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def place(endpoint: str, port: int) -> str:
    """Where it really listens: port 0 is any free one."""
    return endpoint if endpoint.startswith(UNIX) else f"{endpoint.rpartition(':')[0]}:{port}"


def unix_path(endpoint: str) -> str | None:
    """The path of a unix endpoint; None for host and port."""
    return endpoint.removeprefix(UNIX) if endpoint.startswith(UNIX) else None


def check_free(endpoint: str) -> None:
    """Raise OSError, naming the endpoint, when it is taken or not ours."""
    path = unix_path(endpoint)
    try:
        if path is not None:
            remove_stale(path)
            return
        address = host_and_port(endpoint)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        socket.create_server(address, family=family).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot listen on {endpoint}: {reason}") from error


def remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError for one in use or another file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is not a socket stands there")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there")


def remove_socket(endpoint: str) -> None:
    """At the end, of our own."""
    path = unix_path(endpoint)
    if path is not None:
        Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """Files made within are the owner's alone: a socket has its mode from its first moment."""
    before = os.umask(SOCKET_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def allow_many_files() -> int:
    """Raise the soft limit of open files to the hard one. Returns what holds then."""
    try:
        import resource  # noqa: PLC0415 - not to be had on Windows.
    except ImportError:
        return FILES_KEPT + 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = FILES_KEPT + 2 * CONNECTIONS_MAX
    wanted = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return ceiling if soft == resource.RLIM_INFINITY else soft


def connection_shares(open_files: int) -> ConnectionShares:
    """Five eighths for HTTP, where a client holds one connection per request under way."""
    left = max(0, open_files - FILES_KEPT)
    http, grpc = left * 5 // 8, left * 3 // 8
    assert http + grpc <= left
    return ConnectionShares(
        *(min(CONNECTIONS_MAX, max(CONNECTIONS_MIN, share)) for share in (http, grpc))
    )
