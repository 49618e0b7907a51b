"""What was learned lives on: half a stream, a restart and the rest are the whole."""

from __future__ import annotations

import io
import json
import random
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from otel_anomaly import snapshot as snapshots_layout
from otel_anomaly.config import SECOND_NS, Config
from otel_anomaly.entities.identity import NAME_BYTES
from otel_anomaly.episodes import EpisodeBook, read_pages
from otel_anomaly.otlp.dialects import AGENT
from otel_anomaly.replay import Replay, replay_command
from otel_anomaly.report import Reporter
from otel_anomaly.resizing import keep
from otel_anomaly.snapshot import (
    FINGERPRINT,
    LAYOUT,
    MIGRATIONS,
    PARTS,
    arrays_of,
    copied,
    fingerprint_of,
    forget_former_names,
    make_room,
    room_for,
)
from otel_anomaly.snapshot_file import SnapshotRefused, read, write
from otel_anomaly.snapshots import load
from tests import traffic
from tests.book_rigs import BookRig, at
from tests.fleet_traffic import Fleet
from tests.habits import WARM_S, warm_rig
from tests.judge_rigs import KEEN, OBSERVING
from tests.rig import ROOMY, SEED, Calls, Rig
from tests.sizes import scaled
from tests.snapshot_rigs import restarted, save
from tests.test_acceptance_contextforge import KNOWN, NOVEL
from tests.test_captures import every_capture
from tests.test_captures_judged import LIMITS, requests_of
from tests.traffic import START_NS, Agent

if TYPE_CHECKING:
    from pathlib import Path

    from otel_anomaly.state import State

START_S = START_NS // SECOND_NS
BIG = 1 << 40


def same_state(one: State, other: State) -> bool:
    """Whether two states are the same to the last bit, but for labels, what only counts and names
    that are forgotten."""
    kept, others = copied(keep(one)), copied(keep(other))
    for each in (kept, others):
        forget_former_names(each)
    for name in TABLES:
        first, second = getattr(kept, name), getattr(others, name)
        if first.rows.tobytes() != second.rows.tobytes():
            return False
        for field in ("hand", "free", "used", "in_use", "idle_ns", "capacity", "mask"):
            if first.head[field] != second.head[field]:
                return False
    journal = one.journal.tobytes() == other.journal.tobytes()
    return journal and one.watermark.tobytes() == other.watermark.tobytes()


TABLES = ("traces", "names", "agents", "services", "sessions", "episodes")


@pytest.mark.parametrize("seed", range(scaled(24)))
def test_half_a_restart_and_the_rest_are_the_whole(seed: int, tmp_path: Path) -> None:
    """
    Scenario: a fleet at work, live or recorded, under keen or observing settings, in little memory
    or enough; at random moments the process is another one with the last snapshot.
    Guarantees: all that is said of every call (verdict, findings, steps of episodes, reasons,
    identities) and every byte sent on is what it would have been; so is what was learned.
    """
    rng = random.Random(seed)
    settings: dict[str, Any] = dict(rng.choice((KEEN, OBSERVING)))
    few = {"agents": 3, "sessions": 9, "traces": 20, "spans": 64, "moves": 32, "episodes": 4}
    settings["limits"] = {**settings.get("limits", {}), **rng.choice(({}, few, few))}
    settings["limits"].update({"agent_keep": "0s", "session_keep": "0s"})
    whole, halves = Rig(**settings), Rig(**settings)
    replayed = rng.random() < 0.3
    for received_ns, signal, body in Fleet(seed).deliveries(40):
        for rig in (whole, halves):
            rig.offer(body, 0 if replayed else received_ns, signal)
        assert halves.told == whole.told
        assert halves.callers == whole.callers
        assert halves.room.payloads[-1:] == whole.room.payloads[-1:]
        if rng.random() < 0.1:
            path = save(halves, tmp_path / "s")
            halves = restarted(halves, path, **settings)
            assert same_state(whole.state, halves.state)
            whole.told.clear()
            whole.callers.clear()


@pytest.mark.parametrize("seed", range(scaled(30)))
def test_hostile_streams_go_on_as_well(seed: int, tmp_path: Path) -> None:
    """
    Scenario: random valid requests with odd times, ids and values, with a restart in the middle.
    Guarantees: as above; whatever a client sent, its traces in memory pass the checks of a load.
    """
    whole, halves = Rig(detectors={}), Rig(detectors={})
    for number in range(8):
        body = traffic.random_request(100 * seed + number, tricks=())
        for rig in (whole, halves):
            rig.offer(body, START_NS + number)
        assert halves.room.payloads[-1:] == whole.room.payloads[-1:]
        if number % 3 == 2:
            halves = restarted(halves, save(halves, tmp_path / "s"), detectors={})
            assert same_state(whole.state, halves.state)


@every_capture
def test_captures_in_halves(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Scenario: what real frameworks sent, request by request; the same with a restart after each.
    Guarantees: the same calls and findings, in every field of the report.
    """
    monkeypatch.setattr("otel_anomaly.replay.TRACES_MIN", 64)
    monkeypatch.setattr("otel_anomaly.replay.SPANS_MIN", 8192)
    config = Config.model_validate({"identity": {"limits": LIMITS}})
    whole = Replay(config, calls=True, writer=None)
    calls, findings, path = [], [], None
    for recorded in requests_of(folder):
        whole.request(recorded)
        part = Replay(config, calls=True, writer=None, load_state=path)
        part.request(recorded)
        calls += part.calls
        findings += part.findings
        path = tmp_path / "s"
        write(path, part.processor.snapshot(b"", 1))
    assert calls == whole.calls
    assert findings == whole.findings


def test_replay_in_halves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Scenario: two recordings, no trace in both, replayed together; then one after the other with
    `--save-state` and `--load-state`.
    Guarantees: the findings of the second are those of the whole; the sums add up.
    """
    agent, paths = Agent("support", session="s-1"), []
    for number in range(2):
        paths.append(tmp_path / f"{number}.bin")
        spans = [agent.call(at(number * 30 + i / 10)) for i in range(60)]
        for i, span in enumerate(spans):
            span.trace_id = (1000 * number + i + 1).to_bytes(16, "big")
        paths[-1].write_bytes(traffic.request(spans))
    limits = {"identity": {"limits": ROOMY}}
    config, state = Config.model_validate(limits), tmp_path / "state"

    def report(files: list[Path], **more: Path) -> dict[str, Any]:
        assert (
            replay_command(
                config,
                files,
                out=None,
                output_format="json",
                calls=True,
                signal=None,
                stdout=sys.stdout,
                **more,  # type: ignore[arg-type]
            )
            == 0
        )
        return dict(json.loads(capsys.readouterr().out))

    whole = report(paths)
    first = report(paths[:1], save_state=state)
    second = report(paths[1:], load_state=state)
    assert first["findings"] + second["findings"] == whole["findings"] != []
    assert first["calls"] + second["calls"] == whole["calls"]
    for name in ("spans", "tool_calls"):
        assert first["summary"][name] + second["summary"][name] == whole["summary"][name]


def test_replay_says_why_a_state_is_refused(tmp_path: Path) -> None:
    """
    Scenario: a state that is not there; one that is none; a folder that cannot be written to.
    Guarantees: exit 2, and the name with the reason.
    """
    recording, wrong = tmp_path / "a.bin", tmp_path / "wrong"
    recording.write_bytes(traffic.request([Agent("a").call(START_NS)]))
    wrong.write_bytes(b"x" * 100)
    config = Config.model_validate({"identity": {"limits": ROOMY}})
    for options in (
        {"load_state": tmp_path / "nothing"},
        {"load_state": wrong},
        {"save_state": wrong / "below"},
    ):
        code = replay_command(
            config,
            [recording],
            out=None,
            output_format="table",
            calls=False,
            signal=None,
            stdout=io.StringIO(),
            **options,  # type: ignore[arg-type]
        )
        assert code == 2


def test_open_episodes_go_on(tmp_path: Path) -> None:
    """
    Scenario: a session over the line; a restart; it gets worse, and then it is quiet. Beside it the
    same without a restart.
    Guarantees: the same steps, word for word; the episode is one, from start to end.
    """
    whole, halves = BookRig(), BookRig()
    agent = Agent("support", session="s-1", user="u-1", tenant="t-1")
    for number in range(9):
        call = agent.call(at(number / 10))
        for rig in (whole, halves):
            rig.send(call)
            rig.tick(at(number / 10))
        if number == 3:
            path = tmp_path / "s"
            write(path, halves.processor.snapshot(halves.book.to_bytes(), START_NS))
            halves = book_from(path, halves)
    for rig in (whole, halves):
        rig.tick(at(2))
        rig.tick(at(70))
        assert len(rig.book) == 0
    assert [event.step for event in whole.events] == ["start", "escalate", "end"]
    assert halves.events == whole.events


def book_from(path: Path, earlier: BookRig) -> BookRig:
    """A rig that goes on from a snapshot, with all that was told so far."""
    rig = BookRig()
    loaded = load(path, Config.model_validate({}))
    rig.processor.state = loaded.state
    rig.book = EpisodeBook(rig.reporter, earlier.book._hold_ns)
    assert rig.book.reopen(read_pages(loaded.book), rig.processor.state) == []
    rig.events += earlier.events
    return rig


@pytest.mark.parametrize("days", [0.01, 0.1, 1.5, 27, 29, 31, 400])
def test_a_long_time_between_stop_and_start(days: float, tmp_path: Path) -> None:
    """
    Scenario: minutes, hours, weeks or a year between the snapshot and the first call after it.
    Guarantees: idle, forgotten and aged are what they would have been in a process that ran all
    the time: the past goes by the time of the calls, not by that of the file.
    """
    (whole, calls), (first, _) = warm_rig(), warm_rig()
    again = restarted(first, save(first, tmp_path / "s"))
    later_s = WARM_S + days * 86400
    whole.told.clear()
    first_calls = [calls.at(later_s, **said) for said in (KNOWN, NOVEL)]
    more_calls = calls.many(30, later_s + 2, 1, **KNOWN)
    for rig in (whole, again):
        rig.send(first_calls, round(later_s * 1e9))
        rig.processor.sweep(round((later_s + 1) * 1e9))
        rig.send(more_calls, round((later_s + 40) * 1e9))
    assert again.told == whole.told
    assert same_state(whole.state, again.state)


@pytest.mark.parametrize("factor", [0.3, 0.5, 2, 10])
def test_another_capacity_is_migrated(factor: float, tmp_path: Path) -> None:
    """
    Scenario: a snapshot, and a configuration with other limits.
    Guarantees: what fits is there with its past; of agents, those seen last; nothing else changes.
    """
    rig, calls = Rig(limits={"agents": 20}), Calls()
    for number in range(20):
        rig.send(calls.many(3, START_S + number, agent=f"a{number}", session=f"s{number}"))
    path = save(rig, tmp_path / "s")
    limits = {"limits": {name: max(int(count * factor), 1) for name, count in ROOMY.items()}}
    limits["limits"]["agents"] = int(20 * factor)
    other = restarted(rig, path, **limits)
    kept = min(int(20 * factor), 20)
    assert other.state.agents.head["in_use"][0] == kept
    seen = np.sort(rig.state.agents.rows["seen_ns"][1:21])[-kept:]
    found = other.state.agents.rows[1 : kept + 1]
    assert np.sort(found["seen_ns"]).tolist() == seen.tolist()
    assert (found["shift"]["samples"] == 3).all()
    (verdict,) = other.send([calls.at(START_S + 20, agent="a19", session="s19")])
    assert verdict.action == "allow"
    assert other.sign("rate")["observed"] == 4


def test_other_limits_do_not_make_the_past_worthless(tmp_path: Path) -> None:
    """
    Scenario: the same, but with an override less, another window and other placeholders.
    Guarantees: it loads; calls of the override go by the base; the window is the new one.
    """
    override = {"tool": "t", "detectors": {"rate": {"warn": 5}}}
    rig, calls = Rig(policy={"overrides": [override]}), Calls()
    rig.send([*calls.many(3, START_S), *calls.many(4, START_S + 30)])
    path = save(rig, tmp_path / "s")
    other = restarted(rig, path, rate={"window": "10s"}, identity={"placeholders": ["nobody"]})
    assert other.state.journal["plan"].max() == 0
    other.send([calls.at(START_S + 31)])
    assert other.sign("rate")["observed"] == 5


def test_the_seed_and_nothing_else_opens_the_past(tmp_path: Path) -> None:
    """
    Scenario: a snapshot of a rig, read by one with another seed of its own.
    Guarantees: the seed comes out of the file; the file is its owner's alone.
    """
    rig, calls = Rig(), Calls()
    rig.send(calls.many(3, START_S))
    path = save(rig, tmp_path / "deep" / "s")
    assert load(path, rig.config).seed == SEED
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_content_of_a_call_is_in_it(tmp_path: Path) -> None:
    """
    Scenario: calls whose arguments and results hold secrets, card numbers, hosts, mail addresses
    and programs, told by spans and log records, also as bytes between fields; alarms of each kind
    are open and in the book.
    Guarantees: none of it is in the file, in plain, reversed or as a part of eight bytes; the names
    of agent and session are, as in the audit trail.
    """
    rig = Rig(**KEEN)
    book = EpisodeBook(Reporter(rig.processor.texts), 10**12)
    rig.processor._on_judged = lambda columns, judgement: book.take(  # type: ignore[assignment]
        columns, judgement, rig.state
    )
    words = ("hunter2hunter2", "ghp_" + "aB3" * 12, "4111 1111 1111 1111", "evil.example")
    words += ("api.good.example", "eve@evil.example", "/etc/passwd", "select 1", "curl https")
    sent = b""
    for received_ns, signal, body in Fleet(3).deliveries(60):
        rig.offer(body, received_ns, signal)
        sent += body
    assert len(book) > 0
    data = save(rig, tmp_path / "s", book.to_bytes()).read_bytes()
    for word in words:
        assert word.encode() in sent
        for part in {word[:8], word[-8:]}:
            assert part.encode() not in data
            assert part[::-1].encode() not in data
    assert b"coder" in data


def test_names_that_are_forgotten_are_not_in_it(tmp_path: Path) -> None:
    """
    Scenario: room for one trace, which another takes and names less; then agents whose names have
    every length up to the longest that is kept, and one more.
    Guarantees: the former name is not in the file; the present ones are, as far as they are kept,
    and nothing behind them.
    """
    rig, calls = Rig(detectors={}, limits={"traces": 1}), Calls()
    rig.send([calls.at(START_S, agent="a", session="alice-smith-session")], START_NS)
    assert b"alice-smith-session" in save(rig, tmp_path / "s").read_bytes()
    rig.send([calls.at(START_S + 1, agent="b", session=None)], START_NS + SECOND_NS)
    assert b"alice-smith" in rig.state.traces.rows.tobytes()
    assert b"alice-smith" not in save(rig, tmp_path / "s").read_bytes()
    for length in range(NAME_BYTES + 1, 0, -1):
        name = "n" * (length - 1) + "!"
        rig.send([calls.at(START_S + 2, agent=name, session=None)], START_NS + 2 * SECOND_NS)
        kept = rig.processor.snapshot(b"", 1).kept
        forget_former_names(kept)
        text = kept.traces.rows["text"][1][AGENT]
        assert text.tobytes() == name.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")


@pytest.mark.parametrize("room", [0, 1000, 1 << 20])
def test_a_copy_is_of_one_moment(room: int) -> None:
    """
    Scenario: a copy, into no room, too little or enough; then the rig goes on.
    Guarantees: the copy stays as it was, and is what was there to the last bit.
    """
    rig, calls = Rig(), Calls()
    rig.send(calls.many(30, START_S))
    before = rig.processor.snapshot(b"", 1, make_room(room))
    again = copied(before.kept)
    rig.send(calls.many(30, START_S + 5))
    pairs = zip(arrays_of(before.kept), arrays_of(again), strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs)
    assert before.kept.watermark[1] == 30
    assert room_for(before.kept) >= sum(array.nbytes for array in arrays_of(before.kept))


def test_the_layout_is_known_by_its_fields() -> None:
    """
    Scenario: records with a field more, of another type, elsewhere; another number.
    Guarantees: each has another fingerprint; ours is as it was.
    """
    record = PARTS["sessions.rows"]
    assert record.fields is not None
    variants = [
        np.dtype([("key", "i8"), ("seen_ns", "i8")]),
        np.dtype([("key", "i8"), ("seen_ns", "i4"), ("x", "i4")]),
        np.dtype([("key", "i8"), ("seen_ns", "u8")]),
        np.dtype([("seen_ns", "i8"), ("key", "i8")]),
        np.dtype([("key", "i8"), ("seen_ns", "i8", (2,))]),
        np.dtype({"names": ["key", "seen_ns"], "formats": ["i8", "i8"], "offsets": [0, 16]}),
    ]
    told = [fingerprint_of({**PARTS, "sessions.rows": variant}, LAYOUT) for variant in variants]
    told += [fingerprint_of(PARTS, LAYOUT + 1), FINGERPRINT]
    assert len(set(told)) == len(told)
    assert fingerprint_of(PARTS, LAYOUT) == FINGERPRINT


def as_it_was(monkeypatch: pytest.MonkeyPatch, part: str, record: np.dtype) -> None:
    """Write snapshots as a version would that had another record in one part."""
    monkeypatch.setattr("otel_anomaly.snapshot_file.FINGERPRINT", "of another version")
    monkeypatch.setattr("otel_anomaly.snapshot_file.LAYOUT", 0)
    real = snapshots_layout.parts_of

    def parts_of(snapshot: Any) -> dict[str, np.ndarray]:
        parts = real(snapshot)
        return {**parts, part: snapshots_layout.carried_over(parts[part], record)}

    monkeypatch.setattr("otel_anomaly.snapshot_file.parts_of", parts_of)


@pytest.mark.parametrize("known", [False, True])
def test_an_older_layout_is_refused_or_carried_over(
    known: bool,  # noqa: FBT001 - a parameter of the test.
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Scenario: a version whose sessions lacked a field and had one that is gone; there is a
    migration, or there is none.
    Guarantees: without one, refused with both layouts named. With one, every field that is the same
    has its value, and the new one is zero.
    """
    rig, calls = Rig(), Calls()
    rig.send(calls.many(7, START_S))
    now = PARTS["sessions.rows"]
    assert now.fields is not None
    older = np.dtype(
        [
            ("gone", "f8"),
            *((name, now.fields[name][0]) for name in now.names or () if name != "open"),
        ]
    )
    with monkeypatch.context() as patch:
        as_it_was(patch, "sessions.rows", older)
        path = save(rig, tmp_path / "s")
    if not known:
        with pytest.raises(SnapshotRefused, match=r"layout 0 of version .* differs from layout 1"):
            read(path, BIG)
        return
    monkeypatch.setitem(MIGRATIONS, "of another version", {"sessions.rows": older})
    other = restarted(rig, path)
    for name in ("key", "seen_ns", "rate", "loop"):
        assert (rig.state.sessions.rows[name][:5] == other.state.sessions.rows[name][:5]).all()
    assert (other.state.sessions.rows["open"] == 0).all()
    other.send([calls.at(START_S)])
    assert other.sign("rate")["observed"] == 8


GOLDEN = (1, "413e5490")
"""LAYOUT, and a digest of the hashes that a fixed stream leaves in a state."""


def test_what_names_are_hashed_to_belongs_to_the_layout() -> None:
    """
    Scenario: a fixed stream under a fixed seed.
    Guarantees: its names, fingerprints and destinations are hashed to what they were hashed to
    under this number of the layout. If not: what an agent did before would be new to it, so LAYOUT
    goes up, and with it this digest.
    """
    rig = Rig(**KEEN)
    for received_ns, signal, body in Fleet(1).deliveries(30):
        rig.offer(body, received_ns, signal)
    state = rig.state
    hashed = [
        state.agents.rows["key"],
        state.services.rows["key"],
        state.sessions.rows["key"],
        state.traces.rows["key"],
        state.names.rows["key"],
        state.links.spans["key"],
        state.agents.rows["past"]["entry"] >> 32,
        state.sessions.rows["loop"]["tag"],
        state.journal["call"]["fingerprint"],
        state.journal["call"]["destination"],
        state.journal["call"]["program"],
    ]
    digest = 0
    for column in hashed:
        digest = zlib.crc32(np.sort(column, axis=None).astype("<i8").tobytes(), digest)
    assert (LAYOUT, f"{digest:08x}") == GOLDEN
