"""Compression bombs on every codec and transport, chunked and not: what they cost in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.door_rigs import (
    PROTOBUF,
    TRACE_SERVICE,
    chunked,
    connect,
    gzip_bomb,
    read_answer,
    request_head,
)

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
LIMIT_MIB = 16
BOMB_MIB = 512
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def deflate_bomb() -> bytes:
    deflate = zlib.compressobj(1)
    parts = [deflate.compress(bytes(MIB)) for _ in range(BOMB_MIB)]
    return b"".join((*parts, deflate.flush()))


def zstd_bomb() -> bytes:
    zstd = ZstdCompressor()
    parts = [zstd.compress(bytes(MIB)) for _ in range(BOMB_MIB)]
    return b"".join((*parts, zstd.flush()))


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip_bomb(BOMB_MIB),
    "deflate": deflate_bomb,
    "zstd": zstd_bomb,
}
CASES = [(coding, way) for coding in BOMBS for way in ("whole", "chunked")] + [("gzip", "grpc")]


class Doors:
    """Both doors in a process of their own, with the same limit."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.door_process", str(LIMIT_MIB)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.http, self.grpc = map(int, self._process.stdout.readline().split())

    def peak_resident(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(30) == 0


async def post(port: int, body: bytes, coding: str, *, in_chunks: bool) -> int:
    length = {"transfer_encoding": "chunked"} if in_chunks else {"content_length": str(len(body))}
    head = request_head(
        "POST", "/v1/traces", content_type=PROTOBUF, content_encoding=coding, **length
    )
    async with connect(port) as (reader, writer):
        writer.write(head + (chunked(body, 1000) if in_chunks else body))
        return (await read_answer(reader)).status


async def export(port: int, body: bytes) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        code = await channel.unary_unary(f"/{TRACE_SERVICE}/Export")(body).code()
        assert isinstance(code, grpc.StatusCode)
        return code


async def throw(doors: Doors, body: bytes, coding: str, way: str) -> bool:
    """Send it. Whether it was refused as too large."""
    if way == "grpc":
        return await export(doors.grpc, body) is grpc.StatusCode.RESOURCE_EXHAUSTED
    return await post(doors.http, body, coding, in_chunks=way == "chunked") == 413


@pytest.mark.parametrize(("coding", "way"), CASES)
def test_a_bomb_costs_less_than_two_limits(coding: str, way: str) -> None:
    """
    Scenario: a small body that inflates to 512 MiB, three times, against a limit of 16 MiB.
    Guarantees: refused as too large each time; the peak of the process rises by less than two
    limits; the next request is served.
    """
    bomb, doors = BOMBS[coding](), Doors()
    assert len(bomb) < LIMIT_MIB * MIB // 2

    async def scenario() -> None:
        assert await post(doors.http, b"x", "", in_chunks=False) == 200
        assert await export(doors.grpc, b"x") is grpc.StatusCode.OK
        before = doors.peak_resident()
        for _ in range(3):
            assert await throw(doors, bomb, coding, way)
        assert doors.peak_resident() - before < 2 * LIMIT_MIB * MIB
        assert await post(doors.http, b"x", "", in_chunks=False) == 200

    try:
        asyncio.run(scenario())
    finally:
        doors.stop()
