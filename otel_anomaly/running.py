"""The life of the process: from a configuration to an exit code, by way of signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_anomaly import __version__
from otel_anomaly.directory_lock import DirectoryLock
from otel_anomaly.kernels import cache_is_warm, signed
from otel_anomaly.last_resort import LastResort
from otel_anomaly.logs import log_to, on_loop_error
from otel_anomaly.service import Service

if TYPE_CHECKING:
    from otel_anomaly.config import Config
    from otel_anomaly.reloading import Readable

HANG_UP: Final = getattr(signal, "SIGHUP", None)
"""What asks for a reload; there is none on Windows."""
HEARD: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
EXIT_OK, EXIT_CANNOT_START, EXIT_BY_FORCE = 0, 3, 4
COMPILER_S: Final = 0.5
"""For a thread that compiles, when all else is stopped before the start was over."""
STOP_S: Final = 15.0
"""For all of the stop but the drain: doors, snapshot, last writes. After that it ends by force."""


class SystemClock:
    """The machine's own time."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


def random_seed() -> int:
    """A fresh secret for the hashes of this process."""
    return signed(secrets.randbits(64))


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory instead of giving back every request's.

    Without it each request of some 100 KiB faults its pages in anew: 18 page faults and a fifth
    of the CPU time of a 270 KiB request (2 cores, glibc 2.36).
    """
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)


def say(text: str) -> None:
    """A line to whoever watches. The terminal may be closed, the reader of the log gone: so be it.

    An error here would end the service before it has delivered what it holds.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


async def _serve(config: Config, source: Readable | None, last_resort: LastResort) -> int:
    if not cache_is_warm():
        say("first start on this machine: compiling the kernels, a minute or two ...")
    clock = SystemClock()
    started = clock.monotonic()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_loop_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        service = Service(config, clock, sys.stdout, seed=random_seed(), source=source)
        if HANG_UP is not None:  # One that comes while we start is done when we have.
            loop.add_signal_handler(HANG_UP, service.reloads.request)
        if sys.platform != "win32":
            loop.add_signal_handler(signal.SIGUSR1, service.snapshots.ask)
        if not await _started(service, stop, last_resort):
            _hear_no_more(loop)
            return EXIT_OK
        gc.freeze()  # What is there now stays: a full collection need not look at it each time.
    except (OSError, ValueError) as error:
        say(f"otel-anomaly cannot start: {error}")
        return EXIT_CANNOT_START
    say(_welcome(service, clock.monotonic() - started))
    await stop.wait()
    say("stopping: no new requests, delivering what is held ...")
    limit_s = service.drain_timeout_s + STOP_S  # Of now: a reload may have changed it.
    forced = "stopped by force: something does not end\n"
    last_resort.arm(limit_s, EXIT_BY_FORCE, lambda: forced + _last_words(service))
    await service.stop()
    say(_last_words(service).rstrip())
    _hear_no_more(loop)
    return EXIT_OK


def _hear_no_more(loop: asyncio.AbstractEventLoop) -> None:
    """All is done. One more signal would make a failure of it while the interpreter ends."""
    for name in HEARD:
        number = getattr(signal, name, None)
        if number is not None:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


async def _started(service: Service, stop: asyncio.Event, last_resort: LastResort) -> bool:
    """Start, unless we are told to stop before that is done: compiling takes a minute, and cannot
    be broken off but by force. Raises as `Service.start`."""
    start, told = asyncio.create_task(service.start()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({start, told}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            return True
        say("stopping before the start is over ...")
        limit_s = service.drain_timeout_s + STOP_S
        last_resort.arm(limit_s, EXIT_OK, lambda: _last_words(service))
        start.cancel()
        await asyncio.wait({start})
        say(_last_words(service).rstrip())
        last_resort.disarm()
        last_resort.arm(COMPILER_S, EXIT_OK, str)  # All is said.
        return False
    finally:
        told.cancel()


def _last_words(service: Service) -> str:
    """What became of the spans, a line for each exporter."""
    ledger = service.telemetry.ledger
    names = service.exporter_names()
    return "".join(f"stopped: {name}: {ledger(name).sentence()}\n" for name in names)


def _welcome(service: Service, seconds: float) -> str:
    places = ", ".join(f"{name} on {place}" for name, place in service.places().items())
    return f"otel-anomaly {__version__} ready after {seconds:.1f} s: {places}"


def run(config: Config, source: Readable | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code.

    `source`: where the configuration is read again on SIGHUP.
    """
    if HANG_UP is not None:  # It would end us until somebody listens.
        signal.signal(HANG_UP, signal.SIG_IGN)
    log_to(sys.stderr)
    keep_freed_memory()
    directory = Path(config.storage.directory)
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(DirectoryLock(directory))
        except OSError as error:
            say(f"otel-anomaly cannot start: storage.directory: {error}")
            return EXIT_CANNOT_START
        return _run_loop(config, source)


def _run_loop(config: Config, source: Readable | None) -> int:
    last_resort = LastResort()
    try:
        if sys.platform == "win32":
            return asyncio.run(_serve(config, source, last_resort))
        import uvloop  # noqa: PLC0415 - not to be had on Windows.

        # By default it ends the process: a command may ask for a snapshot before there is a
        # service.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return uvloop.run(_serve(config, source, last_resort))
    finally:  # The loop waits for its threads, so this is behind all that can hang.
        last_resort.disarm()
