"""The audit trail: what a record says, and what crashes and strangers leave behind."""

from __future__ import annotations

import json
import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from otel_anomaly import __version__
from otel_anomaly.sinks import trail, verify
from otel_anomaly.sinks.chain import LINE_BYTES_MAX, START, seal
from otel_anomaly.sinks.trail import Trail
from tests.sink_rigs import PLAIN, Gate, StoppedClock, build_audit, counted, events, until

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.handoff import EpisodeEvent

NOON = "2026-11-21T10:00:00.000000000Z"


def tell(path: Path, offered: list[EpisodeEvent]) -> list[dict[str, object]]:
    """One run that tells `offered`; the records then in the file."""
    sink = build_audit(path)
    sink.offer(offered)
    assert sink.close(10)
    return read(path)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def others(path: Path) -> dict[str, bytes]:
    """Files beside the trail: name -> content."""
    return {file.name: file.read_bytes() for file in sorted(path.parent.iterdir()) if file != path}


def test_a_run_from_start_to_stop(tmp_path: Path) -> None:
    """
    Scenario: the service starts, an episode starts, gets worse and ends, the service stops.
    Guarantees: five records of the promised types; they verify; the sink knows the head.
    """
    path = tmp_path / "data" / "audit.jsonl"
    sink = build_audit(path)
    sink.service_started()
    sink.offer([PLAIN, PLAIN._replace(step="escalate"), PLAIN._replace(step="end")])
    sink.service_stopped(accepted=10, sent=7, held=2, dropped=1)
    assert sink.close(10)
    records = read(path)
    assert [record["type"] for record in records] == [
        *("service.start", "episode.start", "episode.escalate", "episode.end", "service.stop")
    ]
    assert [record["seq"] for record in records] == [1, 2, 3, 4, 5]
    assert records[4]["reason"] == "accepted 10, sent 7, held 2, dropped 1"
    result = verify(path)
    assert (result.ok, result.records, result.line) == (True, 5, None)
    assert sink.head.hash == result.head == records[4]["hash"]
    assert counted(sink.telemetry, "audit") == (5, 0)


def test_every_record_has_every_field(tmp_path: Path) -> None:
    """
    Scenario: the record of an episode and one of the life cycle.
    Guarantees: an episode's record says all that the event says; the other has the same fields,
    null where they do not apply.
    """
    path = tmp_path / "audit.jsonl"
    sink = build_audit(path)
    sink.offer([PLAIN._replace(time_ns=PLAIN.time_ns + 7)])
    sink.service_stopped(accepted=0, sent=0, held=0, dropped=0)
    assert sink.close(10)
    episode, stop = read(path)
    said = PLAIN._asdict()
    for name in ("step", "time_ns", "start_ns"):
        del said[name]
    own = {"type": "episode.start", "time": NOON[:-2] + "7Z", "recorded": NOON, "start": NOON}
    own |= {"config_hash": "c0ffee", "version": __version__, "seq": 1}
    own |= {"prev": episode["prev"], "hash": episode["hash"]}
    assert episode == said | own
    assert set(stop) == set(episode)
    assert {name for name, value in stop.items() if value is not None} == {
        *("type", "time", "recorded", "reason", "config_hash", "version", "seq", "prev", "hash")
    }


def test_values_that_json_has_no_form_for(tmp_path: Path) -> None:
    """
    Scenario: not-a-number, infinities, a whole number beyond 2**53, times beyond any calendar,
    half a surrogate pair, a name of 300 bytes.
    Guarantees: each has a form in the record, no value is invented, the trail verifies.
    """
    path = tmp_path / "audit.jsonl"
    hostile = PLAIN._replace(
        score=float("nan"), observed=float("inf"), limit=float("-inf"), window_s=1e20,
        count=1 << 60, time_ns=1 << 90, start_ns=-1, agent="\ud800", session="\u00fc" * 150,
    )  # fmt: skip
    (record,) = tell(path, [hostile])
    assert record["score"] is None
    assert (record["observed"], record["limit"]) == ("Infinity", "-Infinity")
    assert (record["window_s"], record["count"]) == (1e20, str(1 << 60))
    assert record["time"] == "2554-07-21T23:34:33.709551615Z"
    assert record["start"] == "1970-01-01T00:00:00.000000000Z"
    assert record["agent"] == "\\ud800"
    assert record["session"] == "\u00fc" * 124 + "...[cut]"
    assert verify(path).ok


def test_owner_only(tmp_path: Path) -> None:
    """
    Scenario: a new trail in a new folder; a trail that others may read, opened again.
    Guarantees: 0600 and 0700.
    """
    path = tmp_path / "data" / "audit.jsonl"
    tell(path, [PLAIN])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    tell(path, [PLAIN])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_cannot_write_one_trail(tmp_path: Path) -> None:
    """
    Scenario: a second sink on the trail of a running one; later, when that is closed.
    Guarantees: refused with a message that names cause and file; then it continues the chain.
    """
    path = tmp_path / "audit.jsonl"
    sink = build_audit(path)
    with pytest.raises(OSError, match=r"in use by another process.*audit\.jsonl"):
        build_audit(path)
    assert sink.close(10)
    assert len(tell(path, events(2))) == 2


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """
    Scenario: the path is a folder, a pipe, a link, below a file.
    Guarantees: OSError at the start.
    """
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").touch()
    for name in ("folder", "pipe", "link", "file/audit.jsonl"):
        with pytest.raises(OSError, match=name.partition("/")[0]):
            build_audit(tmp_path / name)


def test_a_full_disk_refuses_the_start(tmp_path: Path) -> None:
    """
    Scenario: the first record cannot be forced to disk.
    Guarantees: OSError while the start can still be refused; no half record stays.
    """
    gate = Gate()
    gate.fail(1)
    sink = build_audit(tmp_path / "audit.jsonl", sync=gate)
    with pytest.raises(OSError, match="No space left"):
        sink.service_started()
    assert sink.close(10)
    assert read(tmp_path / "audit.jsonl") == []


def test_a_repair_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """
    Scenario: a torn trail, and no place for the torn bytes; then no room for the gap record.
    Guarantees: OSError; nothing was cut off that is not kept; the lock is let go, so that the next
    start can go on.
    """
    path, gate = tmp_path / "audit.jsonl", Gate()
    path.write_bytes(b"torn")
    place = tmp_path / "audit.jsonl.torn-20261121T100000.000000000Z"
    place.mkdir()
    with pytest.raises(IsADirectoryError):
        build_audit(path)
    assert path.read_bytes() == b"torn"
    place.rmdir()
    gate.fail(1)
    with pytest.raises(OSError, match="No space left"):
        build_audit(path, sync=gate)
    assert place.read_bytes() == b"torn"
    assert [record["type"] for record in tell(path, [PLAIN])] == ["episode.start"]


def test_a_file_renamed_between_open_and_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: another process sets the trail aside just before this one gets the lock.
    Guarantees: the lock is taken on the file at the path, not on the one set aside.
    """
    path = tmp_path / "audit.jsonl"
    claim, moves = trail._claim, [path, path]

    def moved_first(descriptor: int, at: Path) -> None:
        if moves:
            moves.pop().rename(tmp_path / f"aside-{len(moves)}")
        claim(descriptor, at)

    monkeypatch.setattr(trail, "_claim", moved_first)
    tell(path, [PLAIN])
    assert verify(path).records == 1
    assert set(others(path).values()) == {b""}


def test_fsync_is_once_per_group_and_can_be_off(tmp_path: Path) -> None:
    """
    Scenario: 50 events in one offer, with `fsync` on and off.
    Guarantees: one call for the group; none when off.
    """
    for fsync, calls in ((True, 1), (False, 0)):
        synced: list[int] = []
        sink = build_audit(tmp_path / f"{fsync}.jsonl", sync=synced.append, fsync=fsync)
        sink.offer(events(50))
        assert sink.close(10)
        assert len(synced) == calls


def test_a_write_cut_short_is_taken_back(tmp_path: Path) -> None:
    """
    Scenario: the file may grow by 100 bytes more, so the system takes a part of the group; then
    the limit is lifted.
    Guarantees: OSError; the file is as before; the second attempt writes the group once.
    """
    path = tmp_path / "audit.jsonl"
    file = Trail(path, StoppedClock(), None)
    file.append([{"type": "a"}])
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append([{"type": "b"}, {"type": "c"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    file.append([{"type": "b"}, {"type": "c"}])
    file.close()
    assert [record["type"] for record in read(path)] == ["a", "b", "c"]
    assert verify(path).ok


def test_what_cannot_be_taken_back_at_once_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a write fails after its bytes are in the file, and so does cutting them off.
    Guarantees: the next attempt cuts them off before it writes.
    """
    path, gate = tmp_path / "audit.jsonl", Gate()
    file, failing = Trail(path, StoppedClock(), gate), Gate()
    gate.fail(1)
    failing.fail(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", failing)
        with pytest.raises(OSError, match="No space left"):
            file.append([{"type": "a"}])
    assert len(read(path)) == 1
    file.append([{"type": "b"}])
    file.close()
    assert [record["type"] for record in read(path)] == ["b"]


def test_the_stop_is_recorded_when_the_queue_is_full(tmp_path: Path) -> None:
    """
    Scenario: the disk hangs, the queue overflows, the service stops.
    Guarantees: the trail ends with a gap that has the number of lost records, then the stop.
    """
    path, gate = tmp_path / "audit.jsonl", Gate()
    gate.shut()
    sink = build_audit(path, sync=gate, queue_records=2)
    sink.offer(events(5))
    sink.service_stopped(accepted=0, sent=0, held=0, dropped=0)
    gate.open()
    assert sink.close(10)
    gap, stop = read(path)[-2:]
    assert (gap["type"], gap["count"]) == ("gap", 3)
    assert gap["reason"] == "records were dropped: the queue was full"
    assert stop["type"] == "service.stop"


def test_the_trail_goes_on_after_a_restart(tmp_path: Path) -> None:
    """
    Scenario: three runs; the second one ends without saying so.
    Guarantees: one chain; the run after a stop says nothing, the one after a crash says so.
    """
    path = tmp_path / "audit.jsonl"
    for stops in (True, False, True):
        sink = build_audit(path)
        sink.service_started()
        if stops:
            sink.service_stopped(accepted=0, sent=0, held=0, dropped=0)
        assert sink.close(10)
    records = read(path)
    assert [record["type"] for record in records] == [
        *("service.start", "service.stop", "service.start", "service.start", "service.stop")
    ]
    assert [records[place]["reason"] for place in (0, 2, 3)] == [
        *("", "", "the run before did not record its stop")
    ]
    assert verify(path).ok


def test_cut_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    """
    Scenario: a crash leaves 0, 1, 2 ... bytes of the last record.
    Guarantees: the trail opens, goes on and verifies; the torn bytes are kept beside it, and a
    gap record says where.
    """
    source = tmp_path / "source.jsonl"
    tell(source, events(3))
    lines = source.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:2])
    for length in range(len(lines[2])):
        path = tmp_path / str(length) / "audit.jsonl"
        path.parent.mkdir()
        path.write_bytes(kept + lines[2][:length])
        records = tell(path, events(1))
        assert path.read_bytes().startswith(kept)
        assert verify(path).ok
        if length:
            assert [record["type"] for record in records[2:]] == ["gap", "episode.start"]
            name = "audit.jsonl.torn-20261121T100000.000000000Z"
            assert others(path) == {name: lines[2][:length]}
            assert records[2]["reason"] == (
                f"a torn last line of {length} bytes was cut off and lies in {name}"
            )
        else:
            assert [record["type"] for record in records[2:]] == ["episode.start"]
            assert others(path) == {}


def test_a_torn_first_record(tmp_path: Path) -> None:
    """
    Scenario: a crash leaves half of the first record; the same again in the same second.
    Guarantees: a new chain that tells of it; both halves are kept.
    """
    path = tmp_path / "audit.jsonl"
    for torn in (b'{"a', b"\x00\x00"):
        path.write_bytes(torn)
        records = tell(path, [PLAIN])
        assert [record["type"] for record in records] == ["gap", "episode.start"]
        assert verify(path).ok
    assert list(others(path).values()) == [b'{"a\x00\x00']


@pytest.mark.parametrize(
    "spoilt",
    [
        b"not a record\n",
        b'{"seq":1}\n',
        b"\n",
        b"[" * 100_000 + b"\n",
        b"x" * (LINE_BYTES_MAX + 2),
        seal({"type": "x"}, START)[0].replace(b'"x"', b'"y"'),
    ],
    ids=["text", "no chain", "empty", "deep", "long", "changed"],
)
def test_a_trail_that_is_not_valid_is_set_aside(tmp_path: Path, spoilt: bytes) -> None:
    """
    Scenario: the last record of the trail is not valid, twice in the same second.
    Guarantees: the service starts; the old file is kept whole under another name; the new chain
    begins with a gap record that gives the name.
    """
    path = tmp_path / "audit.jsonl"
    for number in (1, 2):
        path.write_bytes(spoilt)
        records = tell(path, [PLAIN])
        assert [record["type"] for record in records] == ["gap", "episode.start"]
        assert [record["seq"] for record in records] == [1, 2]
        assert verify(path).ok
        assert list(others(path).values()) == [spoilt] * number
        assert max(others(path), key=len) in str(records[0]["reason"])


def test_a_trail_moved_away_while_in_use(tmp_path: Path) -> None:
    """
    Scenario: the file is renamed under the running sink, as log rotation does.
    Guarantees: both files verify; the new one begins by naming the last record of the old one.
    """
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    sink = build_audit(path)
    sink.offer(events(2))
    until(lambda: counted(sink.telemetry, "audit") == (2, 0))
    path.rename(moved)
    sink.offer(events(1))
    assert sink.close(10)
    assert [record["type"] for record in read(path)] == ["gap", "episode.start"]
    assert verify(path).ok
    assert verify(moved).head in str(read(path)[0]["reason"])


def test_what_others_append_is_not_taken_back(tmp_path: Path) -> None:
    """
    Scenario: somebody appends a line to the file of a running sink, then a write fails once.
    Guarantees: the line stays where it is, and verify names it.
    """
    path, gate = tmp_path / "audit.jsonl", Gate()
    sink = build_audit(path, sync=gate)
    sink.service_started()
    with path.open("ab") as file:
        file.write(b"forged\n")
    gate.fail(1)
    sink.offer(events(1))
    assert sink.close(10)
    assert verify(path).line == 2
    assert len(path.read_bytes().splitlines()) == 3
