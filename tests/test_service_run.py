"""`run`: from the configuration to the exit code, in this process."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import re
import signal
import socket
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly import __version__, running, service
from otel_anomaly.config import SECOND_NS
from otel_anomaly.last_resort import LastResort
from tests.door_rigs import NOW_NS
from tests.service_rigs import config_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_anomaly.config import Config


LEDGER = "stopped: file: accepted 0 spans = sent 0 + held 0 + dropped 0\n"
HEARD = [getattr(signal, name) for name in running.HEARD if hasattr(signal, name)]


class _Killed(service.Service):
    """Sends the process a signal once it is ready: what a person or an orchestrator does."""

    number = signal.SIGTERM

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), self.number)


@pytest.fixture(autouse=True)
def _quiet_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the allocator of the test process as it is."""
    monkeypatch.setattr(running, "keep_freed_memory", lambda: None)


@pytest.fixture
def _handlers_come_back() -> Iterator[None]:
    """Signal handlers are the process's: a test must not leave its own."""
    before = {number: signal.getsignal(number) for number in HEARD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_until_killed(
    monkeypatch: pytest.MonkeyPatch, config: Config, number: signal.Signals
) -> int:
    monkeypatch.setattr(running, "Service", type("Killed", (_Killed,), {"number": number}))
    return running.run(config)


class _Starting(service.Service):
    """Never comes to the end of its start: it compiles, or a disk hangs."""

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()


@pytest.mark.usefixtures("_handlers_come_back")
def test_a_stop_is_heard_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: SIGTERM comes before the start is over.
    Guarantees: it is broken off, exit 0; by force it would be only if that took long.
    """
    monkeypatch.setattr(running, "Service", _Starting)
    assert running.run(config_in(tmp_path)) == 0
    assert {signal.getsignal(each) for each in HEARD} == {signal.SIG_IGN}
    assert capsys.readouterr().err.endswith(f"stopping before the start is over ...\n{LEDGER}")


@pytest.mark.usefixtures("_handlers_come_back")
def test_a_stop_while_it_compiles_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Scenario: SIGTERM while a thread compiles, which nothing can break off.
    Guarantees: the process is ended with exit code 0, and the words are those of a stop.
    """
    codes: list[int] = []
    over = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        over.set()

    class Compiling(service.Service):
        async def start(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.to_thread(over.wait, 60)

    monkeypatch.setattr(running, "Service", Compiling)
    monkeypatch.setattr(running, "COMPILER_S", 0.01)
    monkeypatch.setattr(running, "LastResort", lambda: LastResort(end))
    running.run(config_in(tmp_path))
    assert codes == [0]
    assert capsys.readouterr().err.endswith(f"start is over ...\n{LEDGER}")


@pytest.mark.usefixtures("_handlers_come_back")
@pytest.mark.parametrize("platform", [sys.platform, "win32"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_until_a_signal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    platform: str,
) -> None:
    """
    Scenario: the service runs, on uvloop or where there is none, and gets SIGTERM or Ctrl-C.
    Guarantees: exit 0, whatever signal comes behind the last words; standard error says where it
    listens, that it stops, and the ledger; the folder of its files is made for its owner alone; no
    thread is left.
    """
    speaks = SimpleNamespace(
        platform=platform,
        stderr=sys.stderr,
        stdout=sys.stdout,
    )
    monkeypatch.setattr(running, "sys", speaks)
    monkeypatch.setattr(running, "cache_is_warm", lambda: True)
    folder = tmp_path / "deep" / "data"
    threads = threading.active_count()
    assert run_until_killed(monkeypatch, config_in(folder), number) == 0
    assert {signal.getsignal(each) for each in HEARD} == {signal.SIG_IGN}
    assert threading.active_count() <= threads + 1  # grpcio keeps its poller for the process.
    ready, stopping, stopped = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"otel-anomaly {re.escape(__version__)} ready after [0-9.]+ s:"
        r" OTLP/gRPC on 127\.0\.0\.1:\d+, OTLP/HTTP on 127\.0\.0\.1:\d+,"
        r" metrics and health on 127\.0\.0\.1:\d+",
        ready,
    )
    assert stopping == "stopping: no new requests, delivering what is held ..."
    assert stopped == "stopped: file: accepted 0 spans = sent 0 + held 0 + dropped 0"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("_handlers_come_back")
def test_a_longer_drain_is_not_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a reload gives the drain ten minutes more than it had at the start; then a stop.
    Guarantees: force is used when the drain that is in force, and all else, had their time.
    """
    config = config_in(tmp_path)
    drain_s = config.service.drain_timeout // SECOND_NS + 600
    limits: list[float] = []

    class Reloaded(service.Service):
        async def start(self) -> None:
            await super().start()
            longer = {"drain_timeout": drain_s * SECOND_NS}
            change = {"service": config.service.model_copy(update=longer)}
            assert await self.reconfigure(config.model_copy(update=change))
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

    def arm(_: LastResort, limit_s: float, *_more: object) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(running, "cache_is_warm", lambda: True)
    monkeypatch.setattr(running, "Service", Reloaded)
    monkeypatch.setattr(LastResort, "arm", arm)
    assert running.run(config) == 0
    assert limits == [drain_s + running.STOP_S]


class _Gone:
    """A terminal that was closed."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.usefixtures("_handlers_come_back")
def test_nobody_reads_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: the terminal was closed, or the reader of the log has ended; then SIGTERM.
    Guarantees: the service stops as it should: its trail has the end, its state is written.
    """
    monkeypatch.setattr(sys, "stderr", _Gone())
    assert run_until_killed(monkeypatch, config_in(tmp_path), signal.SIGTERM) == 0
    trail = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(trail[-1])["type"] == "service.stop"


@pytest.mark.usefixtures("_handlers_come_back")
@pytest.mark.parametrize("warm", [False, True])
def test_the_first_start_says_that_it_takes_long(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    warm: bool,  # noqa: FBT001 - a parameter of the test.
) -> None:
    """
    Scenario: there are no compiled kernels on this machine; or there are.
    Guarantees: the first thing said is that kernels are compiled; or it is not said.
    """
    monkeypatch.setattr(running, "cache_is_warm", lambda: warm)
    assert run_until_killed(monkeypatch, config_in(tmp_path), signal.SIGTERM) == 0
    said = capsys.readouterr().err
    assert said.startswith("first start on this machine: compiling") is not warm


@pytest.mark.usefixtures("_handlers_come_back")
def test_run_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: a port is taken; the folder of the data, and that of the trail, is a file; the
    certificates of an exporter and of a door are not there.
    Guarantees: exit 3 and one line on standard error that names what and where; no thread is left.
    """
    (tmp_path / "file").touch()
    no_ca = {"endpoint": "https://127.0.0.1:9", "tls": {"ca_file": "/no.crt"}}
    no_file = {"cert_file": "/no.crt", "key_file": "/no.key"}
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        wrong: dict[str, Config] = {
            f"cannot listen on {address}": config_in(
                tmp_path, telemetry={"metrics": {"endpoint": address}}
            ),
            "storage.directory: [Errno 20] Not a directory": config_in(tmp_path / "file" / "data"),
            "audit.path: [Errno ": config_in(
                tmp_path, audit={"enabled": True, "path": f"{tmp_path}/file/audit.jsonl"}
            ),
            "exporters.otlp_http/x: ": config_in(tmp_path, exporters={"otlp_http/x": no_ca}),
            "receivers.otlp.protocols.http: tls: cannot use /no.crt": config_in(
                tmp_path,
                receivers={
                    "otlp": {"protocols": {"http": {"endpoint": "127.0.0.1:0", "tls": no_file}}}
                },
            ),
        }
        for said, config in wrong.items():
            assert running.run(config) == 3
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith("otel-anomaly cannot start: ")
            assert said in line
    assert threading.active_count() <= threads + 1


class _Library:
    """Stands for libc."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.asked.append((option, value))
        return 1


def test_freed_memory_is_kept_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a machine with glibc, one without any libc of that name, one whose libc has no such
    function.
    Guarantees: both thresholds are set; on the others nothing happens.
    """
    keep: Any = _KEEP
    library = _Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    keep()
    assert library.asked == [(-3, 32 << 20), (-1, 64 << 20)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep()

    def missing(_: str) -> None:
        raise OSError("no libc.so.6")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep()


def test_seeds_and_clocks() -> None:
    """
    Scenario: secrets are drawn; the machine's clock is read twice.
    Guarantees: secrets are of 64 bits with a sign, and differ; time is in nanoseconds and does not
    go back.
    """
    seeds = {running.random_seed() for _ in range(64)}
    assert len(seeds) == 64
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in seeds)
    assert min(seeds) < 0 < max(seeds)
    clock = running.SystemClock()
    assert clock.now_ns() > NOW_NS
    assert clock.monotonic() <= clock.monotonic()


_KEEP = running.keep_freed_memory
