"""Both doors in a process of their own, for tests that watch its memory.

Prints the two ports, then after each line on standard input its peak resident memory in bytes. With
an argument, that is the limit of both in MiB.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import uvloop

from otel_anomaly.config import GrpcReceiverConfig, HttpReceiverConfig
from otel_anomaly.receivers.grpc import GrpcReceiver
from otel_anomaly.receivers.http import HttpReceiver
from otel_anomaly.telemetry import Telemetry
from tests.door_rigs import Consumer, StandingClock

HTTP_LIMIT = 2 << 20


def peak_resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10


async def main() -> None:
    beside = (Consumer(), Telemetry(), StandingClock())
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    limit = mebibytes << 20 or HTTP_LIMIT
    http_config = HttpReceiverConfig(endpoint="127.0.0.1:0", max_request_body_size=limit)
    http = HttpReceiver(http_config, *beside)
    grpc = GrpcReceiver(
        GrpcReceiverConfig(endpoint="127.0.0.1:0", max_recv_msg_size_mib=mebibytes or 1), *beside
    )
    await http.start()
    await grpc.start()
    print(http.port, grpc.port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(peak_resident(), flush=True)
    await http.stop(0)
    await grpc.stop(0)


if __name__ == "__main__":
    uvloop.run(main())
