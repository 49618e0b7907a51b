"""The rig itself: what it cannot see, no trial can tell."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from otel_anomaly.handoff import Batch, Signal
from tests.reliability.__main__ import ROWS, main
from tests.reliability.figures import Figure, merge, places, stamp, table
from tests.reliability.generator import ACCEPTED, GIVEN_UP, REFUSED, UNKNOWN
from tests.reliability.numbers import NumberedBodies, numbers_in
from tests.reliability.rows.bombs import bombs
from tests.reliability.rows.soak import slope_percent_per_hour
from tests.reliability.trial import compare
from tests.reliability.wire import REQUEST, RESPONSE, Parser
from tests.rig import Rig
from tests.traffic import START_NS

if TYPE_CHECKING:
    from pathlib import Path


def test_numbers_survive_the_service() -> None:
    """
    Scenario: two numbered requests go through the processor and are merged as the queue does.
    Guarantees: all numbers are found in what the next hop gets, each once, and every span was
    judged.
    """
    bodies = NumberedBodies(10, all_new=True)
    rig = Rig()
    for request in (3, 4):
        batch = Batch(bodies.make(request, START_NS), Signal.TRACES, "http", START_NS)
        rig.processor.process(batch)
    merged = b"".join(payload.body for payload in rig.room.payloads)
    assert numbers_in(merged).tolist() == list(range(30, 50))
    assert merged.count(b"anomaly.action") == 20


@pytest.mark.parametrize("seed", range(20))
def test_messages_come_out_whole(seed: int) -> None:
    """
    Scenario: requests with a length and in chunks on one connection, cut anywhere.
    Guarantees: each comes out once, with its body.
    """
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice((0, 1, 300, 5000))) for _ in range(6)]
    wire = b""
    for body in bodies:
        if rng.random() < 0.5:
            half = len(body) // 2
            chunks = [part for part in (body[:half], body[half:]) if part]
            parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in chunks)
            wire += b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
        else:
            wire += b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    parser, found, at = Parser(REQUEST), list[bytes](), 0
    while at < len(wire):
        size = rng.choice((1, 7, 1000))
        found += [body for _, body in parser.feed(wire[at : at + size])]
        at += size
    assert found == bodies


def test_garbage_is_not_an_answer() -> None:
    """
    Scenario: what a next hop in a bad mood writes.
    Guarantees: the generator does not wait for the end of an answer that is none.
    """
    with pytest.raises(ValueError, match="not HTTP"):
        list(Parser(RESPONSE).feed(bytes(range(256))))


def test_what_went_wrong_is_seen() -> None:
    """
    Scenario: five requests of two spans: accepted, accepted and half lost, refused and sent on,
    given up after a cut and doubled once too often, unknown.
    Guarantees: each span that is lost, leaked or doubled is counted as such, and no other.
    """
    load = {
        "status": np.array([ACCEPTED, ACCEPTED, REFUSED, GIVEN_UP, UNKNOWN], np.uint8),
        "cuts": np.array([0, 0, 0, 1, 1], np.uint8),
    }
    counts = np.array([1, 1, 1, 0, 0, 1, 3, 1], np.uint8)
    compared = compare(load, counts, spans=2)
    assert compared == (4, 2, 2, 1, 1, 1)
    forgotten = np.array([0, 0, 0, 0, 0, 0, 1, 0], np.uint8)
    assert compare(load, counts, 2, forgotten) == (4, 2, 2, 1, 1, 0), "the hop's own doing"


def test_bombs_are_bombs() -> None:
    """
    Scenario: each bomb for the HTTP door, inflated here.
    Guarantees: it becomes as large as promised, and is small before.
    """
    size = 64 << 20
    checked = 0
    for bomb in bombs(size):
        if bomb.transport == "http" and bomb.coding in {"gzip", "deflate"}:
            inflated, data = 0, bomb.data
            while data:
                stream = zlib.decompressobj(47)
                inflated += len(stream.decompress(data))
                data = stream.unused_data
            assert inflated == size
            assert len(bomb.data) < size / 500
            checked += 1
    assert checked == 6


def test_a_slope_is_in_percent_an_hour() -> None:
    """
    Scenario: 100 MiB that grow by 1 MiB in a minute, evenly.
    Guarantees: sixty percent an hour, within what the mean makes of it.
    """
    times = np.arange(0.0, 60.0)
    assert slope_percent_per_hour(times, 100.0 + times / 60) == pytest.approx(60, rel=0.01)


def test_rows_are_kept_until_measured_anew(tmp_path: Path) -> None:
    """
    Scenario: two rows are measured, then one of them again.
    Guarantees: the other stays; a limit that is passed says no, one that is met yes.
    """
    said = stamp(full=False, seed=1) | {"took": "1 s"}
    old = [Figure(row, "lost", 1, "spans", 0, measured=said) for row in ("a", "b")]
    merge(tmp_path / "out.json", old)
    both = merge(tmp_path / "out.json", [Figure("b", "lost", 0, "spans", 0, measured=said)])
    assert [(one.row, one.met) for one in both] == [("a", "no"), ("b", "yes")]
    assert table(both).count("\n") == 3
    assert places(both).count("\n") == 0, "measured in one place"


def test_a_row_that_breaks_off_is_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: of two rows asked for, the first breaks off in the middle.
    Guarantees: it stands in the table as not met, with the reason; the second is run; the end is
    not a success.
    """

    def breaks(*_: object) -> list[Figure]:
        raise AssertionError("waited in vain")

    out, made = tmp_path / "out.json", tmp_path / "page.md"
    monkeypatch.setitem(ROWS, "kills", breaks)
    monkeypatch.setitem(ROWS, "idle", lambda *_: [Figure("idle", "failed", 0, "requests", 0)])
    assert main(["kills", "idle", "--out", str(out), "--page", str(made)]) == 1
    assert [(one.row, one.met) for one in merge(out, [])] == [("idle", "yes"), ("kills", "no")]
    assert "waited in vain" in made.read_text()
