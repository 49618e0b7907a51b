"""Why, and why not: what `replay --explain` says of one span."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from otel_anomaly.config import Config
from otel_anomaly.detectors.finding import SKIP_REASONS
from otel_anomaly.explanation import Explanation
from otel_anomaly.handoff import Signal
from otel_anomaly.otlp import json as otlp_json
from otel_anomaly.replay import Replay, replay_command
from otel_anomaly.scoring import DETECTORS
from tests.book_rigs import LOW_LIMITS, at
from tests.habits import HOME, WARM_S, calm, text
from tests.log_traffic import log_request, tool_record
from tests.rig import Calls
from tests.traffic import Agent, attributes, request

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

ROW = [
    *("detector", "skipped", "action", "score"),
    *("observed", "limit", "baseline", "window_s", "why", "details"),
]
ALL: dict[str, Any] = {"rate": {"warn": 3, "block": 6}}
"""Every detector on its defaults, with a rate that a handful of calls reach."""
WHY_SKIPPED = {
    "off": "switched off",
    "late": "the call is too late",
    "learning": "still learning",
    "no_entity": "nobody is known",
    "no_arguments": "the span carries no arguments",
    "not_told": "the telemetry does not say",
    "exempt": "the tool is exempt",
    "memory_full": "the agent's memory is full",
}


class Explained:
    """One run of `replay --explain`."""

    def __init__(
        self, folder: Path, span_id: str, *bodies: bytes, form: str = "json", **sections: Any
    ) -> None:
        stdout = io.StringIO()
        files = []
        for number, body in enumerate(bodies):
            files.append(folder / f"{number}.{'jsonl' if body.startswith(b'{') else 'bin'}")
            files[-1].write_bytes(body)
        config = Config.model_validate({"detectors": ALL, **sections})
        self.code = replay_command(
            config,
            files,
            out=folder / "out.jsonl",
            output_format=form,
            calls=False,
            signal=Signal.TRACES,
            explain=span_id,
            stdout=stdout,
        )
        self.text = stdout.getvalue()
        self.out = (folder / "out.jsonl").read_bytes()

    @property
    def call(self) -> dict[str, Any]:
        assert self.code == 0, self.text
        said: dict[str, Any] = json.loads(self.text)["call"]
        return said

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What each detector said."""
        assert self.code == 0, self.text
        return {row["detector"]: row for row in json.loads(self.text)["detectors"]}


def spans(count: int = 5, agent: Agent | None = None, **more: Any) -> list[Span]:
    """Calls of one session, half a second apart."""
    agent = agent or Agent("support", session="s-1", user="u", tenant="t")
    return [agent.call(at(i / 2), **more) for i in range(count)]


def said_by(*, arguments: str | None = None, **who: Any) -> Span:
    """One call of an agent."""
    (span,) = spans(1, Agent(who.pop("name", "support"), **{"session": "s-1", **who}))
    if arguments is not None:
        span.attributes.extend(attributes([("gen_ai.tool.call.arguments", arguments)]))
    return span


def test_every_detector_is_asked(tmp_path: Path) -> None:
    """
    Scenario: the fourth of five calls is explained, of a session that is over `warn` since the
    third.
    Guarantees: who called what, when, and the verdict; a row for each detector, in their order, all
    with the same columns; each says why.
    """
    body = request(spans())
    explained = Explained(tmp_path, spans()[3].span_id.hex(), body)
    call = explained.call
    assert (call["tool"], call["action"], call["span_id"]) == (
        "lookup_order",
        "warn",
        spans()[3].span_id.hex(),
    )
    who = {"tenant": "t", "agent": "support", "session": "s-1", "user": "u", "owner": None}
    assert call["who"] == who
    assert list(explained.rows) == list(DETECTORS)
    for row in explained.rows.values():
        assert list(row) == ROW
        assert row["why"]
        assert row["skipped"] is None or row["skipped"] in SKIP_REASONS[1:]
    rate = explained.rows["rate"]
    assert (rate["observed"], rate["limit"], rate["window_s"]) == (4, 3, 60)
    assert rate["action"] == "warn"
    assert rate["why"] == "4 calls in 60 s, limit 3"
    assert rate["details"] == {"warn": 3, "block": 6}


def test_below_its_limit(tmp_path: Path) -> None:
    """
    Scenario: the second call of the session is explained.
    Guarantees: `rate` did not fire, and says by how much; the numbers are those of that call, not
    of a later one.
    """
    rate = Explained(tmp_path, spans()[1].span_id.hex(), request(spans())).rows["rate"]
    assert (rate["action"], rate["score"], rate["observed"], rate["limit"]) == ("allow", 0, 2, 3)
    assert rate["why"] == "2 calls in 60 s, warn from 3, block from 6"


def test_a_signal_that_is_no_alarm(tmp_path: Path) -> None:
    """
    Scenario: a call at night, which alone is not enough for `risk`.
    Guarantees: `off_hours` says what it saw and that it raises no alarm alone; `risk` says how far
    it is below.
    """
    night = {"off_hours": {"start": 0, "end": 24}, "risk": {"warn": 0.9, "block": 0.92}}
    (span,) = spans(1)
    detectors = {"detectors": ALL | night}
    rows = Explained(tmp_path, span.span_id.hex(), request([span]), **detectors).rows
    assert rows["off_hours"]["score"] > 0
    assert rows["off_hours"]["action"] == "allow"
    assert rows["off_hours"]["why"].startswith("local hour ")
    assert rows["off_hours"]["why"].endswith("; counts in risk, no alarm by itself")
    assert rows["risk"]["action"] == "allow"
    assert rows["risk"]["score"] > 0
    says = "weak signs add up to 0.15 on a scale to 1, limit 0.9 (off_hours: local hour "
    assert rows["risk"]["why"].startswith(says)
    assert rows["risk"]["why"].endswith("; no alarm")


WHY_NOT = [
    ("rate", "off", {"detectors": LOW_LIMITS | {"rate": {"enabled": False}}}, {}),
    ("loop", "off", {"detectors": LOW_LIMITS}, {}),
    ("novelty", "learning", {}, {"arguments": "{}"}),
    ("rate_shift", "learning", {}, {}),
    ("novelty", "no_entity", {}, {"name": None}),
    ("credential_leak", "no_arguments", {}, {}),
    ("identity_spoofing", "not_told", {}, {}),
    ("burst", "exempt", {"policy": {"batch_tools": ["lookup_*"]}}, {}),
    ("loop", "exempt", {"policy": {"polling_tools": ["lookup_*"]}}, {"arguments": "{}"}),
]


@pytest.mark.parametrize(
    ("detector", "reason", "sections", "who"), WHY_NOT, ids=[f"{d}-{r}" for d, r, _, _ in WHY_NOT]
)
def test_why_a_detector_did_not_judge(
    tmp_path: Path, detector: str, reason: str, sections: dict[str, Any], who: dict[str, Any]
) -> None:
    """
    Scenario: a call that a detector cannot judge: it is off, it learns, nobody is known, the span
    carries no arguments or does not say, the tool is exempt.
    Guarantees: its row names the reason, in a word and in words, and shows no score.
    """
    span = said_by(**who)
    explained = Explained(tmp_path, span.span_id.hex(), request([span]), **sections)
    row = explained.rows[detector]
    assert (row["skipped"], row["action"], row["score"]) == (reason, "allow", 0)
    assert row["why"].startswith(WHY_SKIPPED[reason])
    table = Explained(tmp_path, span.span_id.hex(), request([span]), form="table", **sections)
    (line,) = (line for line in table.text.splitlines() if line.split()[:1] == [detector])
    assert line.split()[1:3] == ["-"] * 2
    assert line.endswith(row["why"])


def test_a_call_that_is_late(tmp_path: Path) -> None:
    """
    Scenario: a call that ended two hours before the last one of its agent.
    Guarantees: what counts by windows and learns says that it is too late for it.
    """
    agent = Agent("support", session="s-1")
    now, late = agent.call(at(7200)), agent.call(at(0))
    rows = Explained(tmp_path, late.span_id.hex(), request([now, late])).rows
    for detector in ("rate", "rate_shift", "novelty", "burst"):
        assert rows[detector]["skipped"] == "late"


def test_all_reasons_have_words() -> None:
    """
    Scenario: the reasons of the detectors are held against those explained above.
    Guarantees: none lacks its words.
    """
    assert set(WHY_SKIPPED) == set(SKIP_REASONS[1:])


def test_the_table(tmp_path: Path) -> None:
    """
    Scenario: the fourth call is explained, as a table; its session and tool are hostile names.
    Guarantees: who, the verdict, a head, a line for each detector, columns under their heads;
    every line is printable.
    """
    hostile = "\x1b[2J\r\nx\x07\u202e"
    agent = Agent("support", session=hostile)
    calls = [agent.call(at(i), hostile) for i in range(4)]
    span_id = calls[3].span_id.hex()
    explained = Explained(tmp_path, span_id, request(calls), form="table")
    assert explained.code == 0
    first, verdict, counted, blank, head, *rows = explained.text.split("\n")[:-1]
    assert first == f"span {span_id}, tool ?[2J??x??, agent support, session ?[2J??x??"
    assert verdict == "verdict warn, score 0.67, learning"
    assert counted == (
        "counted by agent=gen_ai.agent.name, session=gen_ai.conversation.id, rate=session;"
        " limits of detectors"
    )
    assert blank == ""
    columns = ["detector", "said", "score", "observed", "limit", "usual", "window", "why"]
    assert head.split() == columns
    assert [row.split()[0] for row in rows] == list(DETECTORS)
    for row in rows:
        assert row.isprintable()
        for name in ("said", "score", "window"):
            place = head.index(f" {name}") + 1
            assert row[place - 1] == " "
            assert row[place] != " "
    assert rows[0].split()[1:8] == ["warn", "0.67", "4", "3", "-", "60", "s"]
    assert rows[0].endswith("  4 calls in 60 s, limit 3")


def test_explaining_changes_nothing(tmp_path: Path) -> None:
    """
    Scenario: the same recording with one span explained, and with none.
    Guarantees: the same annotated bytes come out.
    """
    body = request(spans())
    explained = Explained(tmp_path, spans()[3].span_id.hex(), body)
    plain = Explained(tmp_path, "00" * 7 + "01", body)
    assert plain.code == 1
    assert explained.out == plain.out
    assert b"anomaly.action" in plain.out


def test_a_span_that_is_not_there(tmp_path: Path) -> None:
    """
    Scenario: an id that no span has; the id of a span whose trace id is not valid; an empty file.
    Guarantees: exit 1, and one line that says so.
    """
    broken = said_by()
    broken.trace_id = bytes(16)
    for body, span_id in (
        (request(spans()), "ab" * 8),
        (request([broken]), broken.span_id.hex()),
        (b"", "ab" * 8),
    ):
        explained = Explained(tmp_path, span_id, body)
        assert explained.code == 1
        assert explained.text == (
            f"span {span_id}: is not in the recording, or its ids are not valid\n"
        )


def test_a_span_that_is_no_call(tmp_path: Path) -> None:
    """
    Scenario: the id of a model's span; then a second trace uses the same id for a call.
    Guarantees: exit 1, and that it is no call; the call is found, wherever it stands.
    """
    chat = said_by()
    chat.attributes[0].value.string_value = "chat"
    span_id = chat.span_id.hex()
    explained = Explained(tmp_path, span_id, request([chat]))
    assert explained.code == 1
    assert explained.text == f"span {span_id}: is no tool call, so no detector looked at it\n"
    call = said_by(name="other")
    call.span_id = chat.span_id
    for bodies in ([chat, call], [call, chat]):
        explained = Explained(tmp_path, span_id, *(request([span]) for span in bodies))
        assert explained.call["who"]["agent"] == "other"


def test_a_part_of_another_call(tmp_path: Path) -> None:
    """
    Scenario: the inner one of two spans of the same call, in one request and before the outer one.
    Guarantees: within one request exit 1, and that another span speaks for it; the outer one is
    explained.
    """
    agent = Agent("support", session="s-1")
    inner, outer = agent.call(at(1)), agent.call(at(2))
    inner.parent_span_id = outer.span_id
    for bodies in ([[inner, outer]], [[inner], [outer]]):
        sent = [request(body) for body in bodies]
        explained = Explained(tmp_path, inner.span_id.hex(), *sent)
        assert explained.code == 1
        assert explained.text.endswith("is part of another span's call, which speaks for it\n")
        assert Explained(tmp_path, outer.span_id.hex(), *sent).call["action"] == "allow"


def test_a_span_delivered_twice(tmp_path: Path) -> None:
    """
    Scenario: the third call of a session is in the recording twice.
    Guarantees: what was said of the first delivery is explained, the one that counted.
    """
    calls = spans(4)
    body = [request([*calls[:3], calls[3]]), request([calls[2]])]
    rate = Explained(tmp_path, calls[2].span_id.hex(), *body).rows["rate"]
    assert rate["observed"] == 3


def test_a_call_told_by_a_log_record(tmp_path: Path) -> None:
    """
    Scenario: the id of a span in which a log record tells of a call; then the span is in the
    recording as well, as the same call, before and after the record.
    Guarantees: the record's call is explained; where the span tells of the call, the span is, with
    what detectors made of the arguments that only a later record tells.
    """
    span = said_by()
    span.attributes.extend(attributes([("gen_ai.tool.call.id", "c-1")]))
    record = tool_record(
        time_ns=at(0),
        tool="lookup_order",
        trace_id=span.trace_id,
        span_id=span.span_id,
        session="s-1",
        call_id="c-1",
        arguments='{"a": 1}',
    )
    logs = otlp_json.encode(log_request([record]), Signal.LOGS) + b"\n"
    span_id = span.span_id.hex()
    assert Explained(tmp_path, span_id, logs).call["signal"] == "logs"
    for bodies in ([request([span]), logs], [logs, request([span])]):
        explained = Explained(tmp_path, span_id, *bodies)
        assert explained.call["signal"] == "traces"
        if bodies[1] is logs:
            assert explained.rows["loop"]["skipped"] is None


def test_an_identity_that_comes_later(tmp_path: Path) -> None:
    """
    Scenario: a call that names nobody, then the span above it that names the agent.
    Guarantees: the explanation names the agent: a replay knows the whole trace.
    """
    agent = Agent(None)
    call, above = agent.call(at(0)), agent.call(at(1), None)
    call.parent_span_id = above.span_id
    above.attributes[0].value.string_value = "invoke_agent"
    above.attributes.extend(attributes([("gen_ai.agent.name", "planner")]))
    sent = [request([call]), request([above])]
    assert Explained(tmp_path, call.span_id.hex(), *sent).call["who"]["agent"] == "planner"


@pytest.mark.parametrize("span_id", ["", "ab", "ab" * 9, "xy" * 8])
def test_an_id_that_is_none(span_id: str) -> None:
    """
    Scenario: texts that are no span ids.
    Guarantees: ValueError, before anything is read.
    """
    with pytest.raises(ValueError, match=r"hex"):
        Explanation(span_id)


def test_only_one_span_is_kept() -> None:
    """
    Scenario: a replay that is to explain nothing.
    Guarantees: it keeps no explanation.
    """
    assert Replay(Config(), calls=False, writer=None).explanation is None


PAST = calm(Calls())
"""A calm past of agent `a`: it is warm at defaults."""
LATER = Calls()
LATER.many(1000, 0)  # So that no id comes twice.


def warm(folder: Path, *last: Span, **sections: Any) -> dict[str, dict[str, Any]]:
    """What is said of the last call after a calm past."""
    sections.setdefault("detectors", {})
    return Explained(folder, last[-1].span_id.hex(), request([*PAST, *last]), **sections).rows


def test_a_shift_below_its_limit(tmp_path: Path) -> None:
    """
    Scenario: a warm agent makes five calls within a second.
    Guarantees: `rate_shift` tells both buckets with limits and what is usual, its row the nearer
    of the two; explaining works the limit out for itself, for no bucket reached its floor.
    """
    past = [LATER.at(WARM_S + i) for i in range(-60, 0)]
    last = [LATER.at(WARM_S + 0.1) for _ in range(5)]
    row = warm(tmp_path, *past, *last)["rate_shift"]
    assert (row["skipped"], row["score"], row["observed"]) == (None, 0, 5)
    assert (row["limit"], row["baseline"], row["window_s"]) == (30, 1, 1)
    assert row["why"] == (
        "5 calls in this second, limit 30, usual 1; 5 calls in this minute, limit 500, usual 1"
    )
    second, minute = row["details"]["second"], row["details"]["minute"]
    assert (second["calls"], second["limit"], second["usual"]) == (5, 30, 1)
    assert (minute["calls"], minute["limit"], minute["min_calls"]) == (5, 500, 500)


def test_a_shift_that_fires_tells_the_finding(tmp_path: Path) -> None:
    """
    Scenario: 40 calls in one second; the same agent under an override with a limit of its own.
    Guarantees: the row has the numbers of the finding; the head says which override applied.
    """
    last = [LATER.at(WARM_S) for _ in range(40)]
    row = warm(tmp_path, *last)["rate_shift"]
    assert (row["action"], row["observed"], row["limit"], row["window_s"]) == ("pause", 40, 30, 1)
    assert row["why"] == "40 calls in 1 s, limit 30, usual 0"
    lax = {"agent": "a", "detectors": {"rate_shift": {"min_calls_second": 60}}}
    other = {"agent": "b", "detectors": {"rate": {"warn": 5}}}
    told = Explained(
        tmp_path,
        last[-1].span_id.hex(),
        request([*PAST, *last]),
        policy={"overrides": [other, lax]},
    )
    assert told.call["limits"] == "policy.overrides[1]"
    assert told.rows["rate_shift"]["limit"] == 60
    assert told.rows["rate_shift"]["action"] == "allow"


def test_a_cold_agent_tells_how_far_it_is(tmp_path: Path) -> None:
    """
    Scenario: the ninth call of an agent, one every ten minutes.
    Guarantees: whoever learns says how many calls and how long are known, of how many and how long;
    `rate_shift` tells its ceiling and what it lacks.
    """
    agent = Agent("support", session="s-1")
    calls = [agent.call(at(600 * i)) for i in range(9)]
    rows = Explained(tmp_path, calls[-1].span_id.hex(), request(calls)).rows
    words = "this agent 8 of 50 calls, 1 h 20 min of 1 h"
    for detector in ("novelty", "frequency"):
        assert rows[detector]["skipped"] == "learning"
        assert words in rows[detector]["why"]
        assert rows[detector]["details"]["learning"]["agent"] == {
            "calls": 8,
            "calls_needed": 50,
            "seconds": 4800,
            "seconds_needed": 3600,
        }
    shift = rows["rate_shift"]
    assert shift["skipped"] == "learning"
    assert "8 of 10 earlier calls" in shift["why"]
    assert (shift["observed"], shift["limit"], shift["baseline"]) == (1, 6000, None)


NOW: dict[str, Any] = {"tool": "db_query", "arguments": text(url=HOME, page=7)}
"""A call like many before."""
NO_PERSON = "personal 0, personal strong 0"
KEPT_STILL = [
    ("novelty", NOW, "a known tool: 20 calls so far", (20, None)),
    ("burst", NOW, "1 call in 60 s, says nothing below 10, half its limit", (1, 20)),
    (
        "frequency",
        NOW,
        "this tool makes up 33.3 % of the agent's calls, rare below 1 %",
        (pytest.approx(100 / 3), 1),
    ),
    (
        "frequency",
        {"tool": "new"},
        "a tool never used before has no share: novelty speaks of it",
        (None, 1),
    ),
    ("off_hours", NOW, "local hour 13, off hours 22 to 6 (UTC)", (13, None)),
    ("risk", NOW, "none of novelty, burst, frequency, off_hours speaks", (0, 0.5)),
    ("loop", NOW, "this call 1 time in 300 s, pause from 50; it carries no result", (1, 50)),
    (
        "loop",
        {**NOW, "result": "ok"},
        "this call 1 time in 300 s, warn from 10, pause from 50; it carries a result",
        (1, 10),
    ),
    ("new_destination", NOW, "1 destination in the arguments, none of them new", (0, 1)),
    ("credential_leak", NOW, "0 secrets in 3600 s, warn from 3", (0, 3)),
    ("child_process", NOW, "the tool is none of those that start programs", (0, 1)),
    ("data_exfiltration", NOW, "neither secrets nor personal data in the arguments", (0, 1)),
    (
        "data_exfiltration",
        {**NOW, "arguments": text(key="AKIAIOSFODNN7EXAMPLE")},
        f"secrets 1, {NO_PERSON}; too few, or none of 0 destinations is outside and no habit",
        (0, 1),
    ),
    (
        "credential_leak",
        {**NOW, "arguments": text(key="AKIAIOSFODNN7EXAMPLE")},
        "1 secret in 3600 s, 1 of them in this call, warn from 3",
        (1, 3),
    ),
    ("unknown_connection", NOW, "off: no host is listed in allow", (None, None)),
]


@pytest.mark.parametrize(
    ("detector", "call", "why", "numbers"),
    KEPT_STILL,
    ids=[f"{i}-{row[0]}" for i, row in enumerate(KEPT_STILL)],
)
def test_why_it_kept_still(
    tmp_path: Path,
    detector: str,
    call: dict[str, Any],
    why: str,
    numbers: tuple[float | None, float | None],
) -> None:
    """
    Scenario: a warm agent makes a call that the detector has nothing against.
    Guarantees: it says what it observed, its limit, and in words why that is nothing.
    """
    row = warm(tmp_path, LATER.at(WARM_S, **call))[detector]
    assert (row["action"], row["score"]) == ("allow", 0)
    assert row["why"] == why
    assert (row["observed"], row["limit"]) == numbers


def test_the_rest_of_why_it_kept_still(tmp_path: Path) -> None:
    """
    Scenario: a host that is allowed, a credential that is the agent's own, a known program,
    secrets in earlier calls but not in this one, off-hours that are never.
    Guarantees: each says so.
    """
    sections = {
        "detectors": {
            "unknown_connection": {"allow": ["*.example.com"]},
            "off_hours": {"start": 5, "end": 5},
        },
        "identity": {"owner": ["owner.id"]},
    }
    shell = {"tool": "bash", "arguments": text(command="ls")}
    leak = [LATER.at(WARM_S - 9, arguments=text(key="AKIAIOSFODNN7EXAMPLE")) for _ in range(4)]
    start = [LATER.at(WARM_S - 5, **shell)]
    rows = warm(
        tmp_path, *leak, *start, LATER.at(WARM_S, **shell, extra=[("owner.id", "a")]), **sections
    )
    said = {name: row["why"] for name, row in rows.items()}
    assert said["child_process"] == "a program started before"
    assert said["credential_leak"] == (
        "4 secrets in 3600 s, 0 of them in this call, warn from 3,"
        " told with a call that carries one"
    )
    assert said["identity_spoofing"] == "the credential presented belongs to the agent claimed"
    assert said["off_hours"] == "off: start and end are the same hour, so no hour is in between"
    assert said["unknown_connection"].endswith("no host beside the 1 allowed")


def test_every_row_is_whole(tmp_path: Path) -> None:
    """
    Scenario: a call of nobody, of a new agent, of a warm one, one with arguments, and a loud one.
    Guarantees: every detector has words; numbers are numbers or null, none of them infinite or not
    a number; the table shows the same words.
    """
    loud = [LATER.at(WARM_S, **NOW, result="ok") for _ in range(60)]
    for calls in ([said_by(name=None, session=None)], spans(1), [*PAST, LATER.at(WARM_S)], loud):
        span_id = calls[-1].span_id.hex()
        rows = Explained(tmp_path, span_id, request(calls)).rows
        table = Explained(tmp_path, span_id, request(calls), form="table").text
        for row in rows.values():
            assert row["why"]
            assert row["why"].isprintable()
            assert row["why"] in table
            json.loads(json.dumps(row), parse_constant=pytest.fail)


def test_what_would_have_been_while_observing(tmp_path: Path) -> None:
    """
    Scenario: mode observe; a session over `block`.
    Guarantees: the verdict is warn, and beside it stands what it is in mode enforce.
    """
    calls = spans(7)
    sections = {"policy": {"mode": "observe"}}
    told = Explained(tmp_path, calls[-1].span_id.hex(), request(calls), **sections)
    assert (told.call["action"], told.call["would_be"]) == ("warn", "block")
    assert told.rows["rate"]["action"] == "block"
    table = Explained(
        tmp_path, calls[-1].span_id.hex(), request(calls), form="table", **sections
    ).text
    assert "verdict warn (block in mode enforce), score 1.00" in table
