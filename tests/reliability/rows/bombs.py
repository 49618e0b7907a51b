"""Compression bombs on every codec and transport, chunked and not: refused, and the peak of the
resident memory rises by less than twice the limit of a request.

Each bomb is a few hundred kilobytes that would inflate to a gigabyte. The peak is the kernel's own
(VmHWM), reset before each bomb, so no sample can miss it.
"""

from __future__ import annotations

import http.client
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc

from tests.bench.peers import TRACE_METHOD
from tests.reliability.children import Hop, Service
from tests.reliability.figures import Figure
from tests.reliability.trial import SMALL, Trial, running, sections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
LIMIT_MIB = 16
TOO_LARGE_HTTP, TOO_LARGE_GRPC = 413, 8
"""Any other answer would be about something else than the size: then the bomb is no bomb."""


class Bomb(NamedTuple):
    """One attack."""

    name: str
    transport: str
    coding: str
    chunked: bool
    data: bytes


def zeros(size: int, wbits: int) -> bytes:
    """`size` zero bytes, compressed as hard as can be."""
    packer, piece = zlib.compressobj(9, zlib.DEFLATED, wbits), bytes(MIB)
    return b"".join([packer.compress(piece) for _ in range(size // MIB)]) + packer.flush()


def zstd_zeros(size: int) -> bytes:
    """The same for zstd: one frame of run-length blocks of 128 KiB, 4 bytes each (RFC 8878)."""
    block = 128 << 10
    count = size // block
    # Frame: magic, no checksum, no content size, a window of 2**17 bytes.
    head = b"\x28\xb5\x2f\xfd" + bytes((0x00, 0x38))
    kind_rle = 1
    blocks = (block << 3 | kind_rle << 1).to_bytes(3, "little") + b"\x00"
    last = (block << 3 | kind_rle << 1 | 1).to_bytes(3, "little") + b"\x00"
    return head + blocks * (count - 1) + last


def bombs(size: int) -> Iterator[Bomb]:
    """Every codec on every transport, chunked and not."""
    packed = {
        "gzip": zeros(size, 31),
        "deflate": zeros(size, 15),
        "zstd": zstd_zeros(size),
        "gzip of many members": zeros(size // 64, 31) * 64,
        "identity": bytes(size // 8),
    }
    for name, data in packed.items():
        coding = name.split()[0]
        for chunked in (False, True):
            yield Bomb(f"{name}{', chunked' * chunked}", "http", coding, chunked, data)
    for coding in ("gzip", "deflate", "identity"):
        yield Bomb(coding, "grpc", coding, chunked=False, data=b"")


def run(trial: Trial) -> list[Figure]:
    """The highest rise of the peak over all bombs, in limits."""
    size = int(trial.size(256, 1024)) * MIB
    rises: dict[str, float] = {}
    answers: dict[str, str] = {}
    with Hop(SMALL, trial.seed) as hop:
        doors = {
            "grpc": {"max_recv_msg_size_mib": LIMIT_MIB},
            "http": {"max_request_body_size": f"{LIMIT_MIB}MiB"},
        }
        config = sections(hop) | {"receivers": {"otlp": {"protocols": doors}}}
        with running(trial.folder, config) as service:
            for bomb in bombs(size):
                name = f"{bomb.transport} {bomb.name}"
                throw = _over_http if bomb.transport == "http" else _over_grpc
                rises[name], answers[name] = _one(service, bomb, size, throw)
            alive = service.status("/healthz")
    accepted = [name for name, answer in answers.items() if not answer.startswith("refused")]
    told = {name: f"{answers[name]}, +{rise:.1f} MiB" for name, rise in rises.items()}
    return [
        Figure(
            "bombs",
            "highest rise of resident memory over the limit of a request",
            max(rises.values()) / LIMIT_MIB,
            "limits",
            limit=2,
            details={"limit, MiB": LIMIT_MIB, "inflates to, MiB": size / MIB, **told},
        ),
        Figure(
            "bombs",
            "bombs that were not refused, or ended the process",
            len(accepted) + (alive != 200),
            "bombs",
            limit=0,
            details={"thrown": len(answers), "not refused": accepted or "none"},
        ),
    ]


def _one(
    service: Service, bomb: Bomb, size: int, throw: Callable[[Service, Bomb, int], str]
) -> tuple[float, str]:
    """(rise of the peak in MiB, the answer)."""
    status, reset = (Path(f"/proc/{service.pid}/{name}") for name in ("status", "clear_refs"))
    reset.write_text("5")
    before = _kib(status, "VmRSS")
    answer = throw(service, bomb, size)
    return max(_kib(status, "VmHWM") - before, 0) / 1024, answer


def _kib(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def _over_http(service: Service, bomb: Bomb, _size: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", service.http_port, timeout=60)
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": bomb.coding}
    pieces = (bomb.data[at : at + MIB // 16] for at in range(0, len(bomb.data), MIB // 16))
    body = pieces if bomb.chunked else bomb.data
    try:
        connection.request("POST", "/v1/traces", body, headers, encode_chunked=bomb.chunked)
        status = connection.getresponse().status
    except OSError as error:
        return f"refused: {type(error).__name__}"
    finally:
        connection.close()
    return f"refused: {status}" if status == TOO_LARGE_HTTP else f"answered {status}"


def _over_grpc(service: Service, bomb: Bomb, size: int) -> str:
    packing = {
        "gzip": grpc.Compression.Gzip,
        "deflate": grpc.Compression.Deflate,
        "identity": grpc.Compression.NoCompression,
    }[bomb.coding]
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}", options=options) as channel:
        try:
            channel.unary_unary(TRACE_METHOD)(bytes(size), timeout=60, compression=packing)
        except grpc.RpcError as error:
            code = error.code().value[0]
            return f"refused: {code}" if code == TOO_LARGE_GRPC else f"answered {code}"
    return "answered 0"
