"""Load: h2load when it is installed, else a generator in Python; either says how busy it was.

h2load sends one body file again and again. The service would take the repeats for spans delivered
twice and not judge them, so whoever measures gives it the smallest memory of span ids, and a body
built just before: then all but a few repeats are judged in full (`transport.py` checks by count).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import aiohttp
import grpc

from tests.bench.peers import HTTP_PATH, TRACE_METHOD
from tests.bench.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Transport = Literal["grpc", "http"]
BUSY_SHARE = 0.9
"""A generator with one thread that uses more of a core than this is what limits the speed."""
_SUCCEEDED = re.compile(r"^requests: .* (\d+) succeeded, ", re.MULTILINE)


class Load(NamedTuple):
    """What is sent to whom."""

    transport: Transport
    address: str
    body: Path
    """File with one request, uncompressed, without the gRPC frame."""
    requests: int
    clients: int = 4
    streams: int = 4
    """Requests under way at once per gRPC connection; HTTP/1.1 has one."""


@dataclass(frozen=True)
class LoadReport:
    """What the generator says of itself."""

    generator: str
    succeeded: int
    seconds: float
    cpu_share: float
    """Its own CPU time over the time it took: 1.0 is a whole core."""

    @property
    def bottleneck(self) -> bool:
        return self.cpu_share > BUSY_SHARE


def h2load_version() -> str | None:
    """`h2load nghttp2/1.52.0`, or None where it is not installed."""
    if shutil.which("h2load") is None:
        return None
    return subprocess.check_output(["h2load", "--version"], text=True).strip()


def run_load(load: Load, *, python: bool = False) -> LoadReport:
    """Send everything and wait for the answers. `python` asks for the fallback."""
    version = None if python else h2load_version()
    if version is None:
        return _run_python(load)
    command = _h2load_command(load)
    started = time.monotonic()
    output, cpu_s = _timed_output(command)
    seconds = time.monotonic() - started
    match = _SUCCEEDED.search(output)
    succeeded = int(match[1]) if match else 0
    return LoadReport(version, succeeded, seconds, cpu_s / seconds)


def _h2load_command(load: Load) -> list[str]:
    clients = min(load.clients, load.requests)
    shape = ["-n", str(load.requests), "-c", str(clients), "-t", "1"]
    if load.transport == "http":
        headers = ["-H", "content-type: application/x-protobuf"]
        url = f"http://{load.address}{HTTP_PATH}"
        return ["h2load", "--h1", *shape, *headers, "-d", str(load.body), url]
    framed = load.body.with_suffix(".grpc")
    message = load.body.read_bytes()
    framed.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{load.address}{TRACE_METHOD}"
    return ["h2load", *shape, "-m", str(load.streams), *headers, "-d", str(framed), url]


def _timed_output(command: list[str]) -> tuple[str, float]:
    """Standard output of a command, and the CPU time it used."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    # wait4 tells the usage of this child alone; Popen is told that it is over.
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return output, usage.ru_utime + usage.ru_stime


def _run_python(load: Load) -> LoadReport:
    """The fallback runs in a process of its own, so that its CPU time is told apart."""
    arguments = {**load._asdict(), "body": str(load.body)}
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(arguments)]
    output, _cpu_s = _timed_output(command)
    return LoadReport(**json.loads(output))


async def _send_all(load: Load, send: Callable[[bytes], Awaitable[bool]], lanes: int) -> int:
    """`lanes` coroutines share the requests. Returns how many were answered well."""
    body = load.body.read_bytes()
    left = iter(range(load.requests))

    async def lane() -> int:
        return sum([await send(body) for _ in left])

    return sum(await asyncio.gather(*(lane() for _ in range(lanes))))


async def _send_grpc(load: Load) -> int:
    async with grpc.aio.insecure_channel(load.address) as channel:
        export = channel.unary_unary(TRACE_METHOD)

        async def send(body: bytes) -> bool:
            try:
                await export(body)
            except grpc.aio.AioRpcError:
                return False
            return True

        return await _send_all(load, send, load.clients * load.streams)


async def _send_http(load: Load) -> int:
    url = f"http://{load.address}{HTTP_PATH}"
    headers = {"Content-Type": "application/x-protobuf"}
    async with aiohttp.ClientSession() as session:

        async def send(body: bytes) -> bool:
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status == 200

        return await _send_all(load, send, load.clients)


def main(argv: list[str]) -> int:
    """The fallback generator: one JSON argument, the fields of `Load`; prints a `LoadReport`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("load", help="fields of Load as a JSON object")
    fields = json.loads(parser.parse_args(argv).load)
    load = Load(**{**fields, "body": Path(fields["body"])})
    started, cpu = time.monotonic(), time.process_time()
    succeeded = asyncio.run(_send_grpc(load) if load.transport == "grpc" else _send_http(load))
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu
    print(
        json.dumps(
            asdict(LoadReport("python (aiohttp, grpc.aio)", succeeded, seconds, cpu_s / seconds))
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
