"""What the fuzzer tries to break: for any bytes, scan and splice agree with the protobuf library,
whether they are taken for spans or for log records.

The same function runs under atheris, over the corpus in the test suite, and by hand on one file.
"""

from __future__ import annotations

import random
import zlib

from tests.scan_rigs import (
    IDENTITY,
    TANGLED,
    check_logs,
    check_scan,
    check_splice,
    random_verdicts,
)


def check(data: bytes) -> None:
    """AssertionError where fast and slow disagree about `data`; any other error is a find too.

    Scan: accepted by both or by none; the same calls, names, ids, identities. Splice: to the byte
    and parsed what the twins make of it. Verdicts and keys are drawn from the data itself, so that
    a find can be repeated.
    """
    rng = random.Random(zlib.crc32(data))
    for read in (check_scan, check_logs):
        columns = read(data, IDENTITY)
        if columns is None:
            continue
        read(data, TANGLED)
        check_splice(columns, random_verdicts(rng, columns))
        check_splice(columns, {})
