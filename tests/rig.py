"""A processor with its surroundings handed in: a scripted room, a recording of all it judged.

What comes out is read back through the protobuf classes, as a next hop would read it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_anomaly.config import Config
from otel_anomaly.detectors.finding import SECOND_NS
from otel_anomaly.entities import names
from otel_anomaly.entities.links import FOLDED
from otel_anomaly.handoff import Batch, Outcome, Payload, Reply, Signal
from otel_anomaly.otlp.scan import IS_CALL
from otel_anomaly.processor import Processor
from otel_anomaly.scoring import DETECTORS
from otel_anomaly.state import STEPS, Judgement, State
from otel_anomaly.telemetry import Telemetry
from tests import naive
from tests.log_traffic import log_request
from tests.traffic import Attributes, request, tool_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from otel_anomaly.otlp.scan import Columns

SEED = 7
ROOMY = {
    "agents": 64,
    "services": 64,
    "sessions": 256,
    "traces": 256,
    "spans": 4096,
    "moves": 1024,
    "episodes": 256,
    "labels": 256,
}
"""Enough for a test, small enough to compare byte by byte."""
ALONE = {name: {"enabled": False} for name in DETECTORS if name not in {"rate", "rate_shift"}}
"""All but the two that need no arguments and no tools are off."""


SAID = ("score", "observed", "limit", "usual", "window_s", "ratio", "action", "variant")
"""What counts of a sign that is a finding."""
EPISODE = ("start_ns", "last_ns", "peak", "score", "count", "action")


class Room:
    """The queues' end: answers as scripted, then takes everything; keeps what it is given."""

    def __init__(self) -> None:
        self.script: list[Outcome] = []
        self.asked: list[int] = []
        self.reserved: list[int] = []
        self.payloads: list[Payload] = []

    def reserve(self, bytes_needed: int) -> Outcome:
        self.asked.append(bytes_needed)
        outcome = self.script.pop(0) if self.script else Outcome.ACCEPTED
        if outcome is Outcome.ACCEPTED:
            self.reserved.append(bytes_needed)
        return outcome

    def commit(self, payload: Payload, bytes_reserved: int) -> None:
        assert self.reserved == [bytes_reserved], "what is filled is what was set aside"
        assert len(payload.body) <= bytes_reserved
        self.reserved.clear()
        self.payloads.append(payload)

    def retry_after_s(self) -> float:
        return 2.5


class Verdict(NamedTuple):
    """What stands on a span under our prefix, read by the protobuf classes."""

    action: str
    score: float
    mode: str
    types: tuple[str, ...] = ()
    reason: str | None = None
    signals: tuple[tuple[str, float], ...] = ()
    identity: str | None = None


class Told(NamedTuple):
    """All that the judge says of one call, as plain values: what twins and splits must agree on."""

    action: int
    score: float
    learning: int
    duplicate: int
    late: int
    skipped: tuple[int, ...]
    time_ns: int
    failed: int
    fingerprint: int
    findings: tuple[tuple[str, tuple[float, ...]], ...]
    """Detector; what it says, in the order of SAID."""
    steps: tuple[tuple[str, str, tuple[float, ...]], ...]
    """Step, detector; start, last, peak, score, count, action of the episode."""


class Rig:
    """A processor, its room, and everything it judged."""

    def __init__(
        self,
        *,
        rate: Mapping[str, Any] | None = None,
        shift: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
        detectors: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        """`rate`, `shift`, `limits`, `identity`: keys of those sections; others by their name.

        `detectors`: sections of further detectors; `{}`: all run on their defaults. Without it
        only `rate` and `rate_shift` run.
        """
        others = ALONE if detectors is None else detectors
        self.config = Config.model_validate(
            {
                "identity": {**(identity or {}), "limits": {**ROOMY, **(limits or {})}},
                "detectors": {"rate": rate or {}, "rate_shift": shift or {}, **others},
                **sections,
            }
        )
        self.room, self.telemetry = Room(), Telemetry()
        self.told: list[Told | None] = []
        self.callers: list[names.Caller] = []
        self.processor = Processor(
            self.config, self.room, self.telemetry, seed=SEED, on_judged=self._record
        )
        self.prefix = self.config.annotate.prefix

    @property
    def state(self) -> State:
        return self.processor.state

    def offer(self, body: bytes, received_ns: int = 0, signal: Signal = Signal.TRACES) -> Reply:
        """Hand a request in, as a door does."""
        return self.processor.process(Batch(body, signal, "grpc", received_ns))

    def send(
        self, what: bytes | Iterable[Span], received_ns: int = 0, resource: Attributes = ()
    ) -> list[Verdict]:
        """Have spans, or an encoded request, judged. The verdicts that came out, in order."""
        body = what if isinstance(what, bytes) else request(what, scope=None, resource=resource)
        reply = self.offer(body, received_ns)
        assert reply.outcome is Outcome.ACCEPTED
        assert self.processor.healthy
        return [verdict for verdict in self.read() if verdict is not None] if body else []

    def send_logs(
        self, what: bytes | Iterable[LogRecord], received_ns: int = 0, resource: Attributes = ()
    ) -> list[Verdict]:
        """`send` for log records."""
        body = what if isinstance(what, bytes) else log_request(what, resource=resource)
        reply = self.offer(body, received_ns, Signal.LOGS)
        assert reply.outcome is Outcome.ACCEPTED
        assert self.processor.healthy
        return [verdict for verdict in self.read() if verdict is not None] if body else []

    def read(self) -> list[Verdict | None]:
        """The verdict on each span of what was passed on last; None where there is none."""
        return [read_verdict(span.attributes, self.prefix) for span in self.spans_out()]

    def spans_out(self) -> list[Any]:
        """The spans, or log records, of what was passed on last."""
        payload = self.room.payloads[-1]
        logs = payload.signal is Signal.LOGS
        cls = ExportLogsServiceRequest if logs else ExportTraceServiceRequest
        message = cls.FromString(payload.body)
        return [child for child, _, _ in naive.children_with_place(message)]

    def sign(self, detector: str) -> dict[str, float]:
        """What a detector says of the call judged last, also when that is nothing."""
        return self.signs()[detector]

    def signs(self) -> dict[str, dict[str, float]]:
        """The same of all detectors."""
        signs = self.processor._scratch.signs
        return {
            detector: {name: sign[name].item() for name in sign.dtype.names}
            for detector, sign in zip(DETECTORS, signs, strict=True)
        }

    def counts(self, name: str, *labels: str) -> int:
        return self.processor.counts()[name, labels]

    def steps(self) -> list[tuple[str, str]]:
        """Step and detector of every step of an episode so far, in order."""
        return [step[:2] for told in self.told if told is not None for step in told.steps]

    def digest(self, *, counters: bool = True) -> str:
        """One word for the whole state, to the bit; but for what means nothing beyond a request:
        its number, when it was looked at, and which spans of it came before the one that they are
        part of."""
        state, digest = self.state, hashlib.sha256()
        spans = state.links.spans.copy()
        spans["request"] = spans["row"] = 0
        spans["event"][spans["flags"] & FOLDED != 0] = 0
        head = state.links.head.copy()
        head["looked"] = 0
        rows = bytearray(state.agents.rows.tobytes())  # A copy leaves out what is between fields.
        agents = np.frombuffer(rows, state.agents.rows.dtype)
        for kept in ("limit", "usual", "rules"):  # Worked out when first asked for, from the rest.
            agents["shift"][kept] = 0
        links = state.links._replace(head=head, spans=spans)
        lasting = state._replace(
            counters=np.empty(0),
            watermark=state.watermark[:2],
            links=links,
            agents=state.agents._replace(rows=agents),
        )
        for array in arrays_of(lasting):
            digest.update(array.tobytes())
        if counters:
            digest.update(self.state.counters.tobytes())
        return digest.hexdigest()

    def _record(self, columns: Columns, judgement: Judgement) -> None:
        for number, row in enumerate(columns.rows):
            verdict = judgement.verdicts[number]
            if not row["flags"] & IS_CALL:
                continue
            self.told.append(told(judgement, number) if verdict["judged"] else None)
            person = verdict["person"]
            self.callers.append(names.caller(columns.data, row, person, self.state))


def arrays_of(state: Sequence[Any]) -> Iterator[np.ndarray]:
    """Every array of a state, tables opened."""
    for part in state:
        if isinstance(part, np.ndarray):
            yield part
        else:
            yield from arrays_of(part)


def told(judgement: Judgement, number: int) -> Told:
    """A row of a judgement in plain values."""
    verdict = judgement.verdicts[number]
    first, count = int(verdict["finding"]), int(verdict["findings"])
    findings = []
    for finding in judgement.findings[first : first + count]:
        assert finding["row"] == number
        values = (finding["sign"][name].item() for name in SAID)
        findings.append((DETECTORS[finding["detector"]], tuple(values)))
    steps = [
        (STEPS[step["step"]], DETECTORS[step["detector"]], episode_of(step))
        for step in judgement.steps
        if step["row"] == number
    ]
    return Told(
        action=verdict["action"].item(),
        score=verdict["score"].item(),
        learning=verdict["learning"].item(),
        duplicate=verdict["duplicate"].item(),
        late=verdict["late"].item(),
        skipped=tuple(verdict["skipped"].tolist()),
        time_ns=verdict["time_ns"].item(),
        failed=verdict["failed"].item(),
        fingerprint=verdict["fingerprint"].item(),
        findings=tuple(findings),
        steps=tuple(steps),
    )


def episode_of(step: np.void) -> tuple[float, ...]:
    """What a step says of its episode, in the order of EPISODE."""
    return tuple(step["episode"][name].item() for name in EPISODE)


def read_verdict(
    attributes: RepeatedCompositeFieldContainer[Any], prefix: str = "anomaly"
) -> Verdict | None:
    """The verdict on a span; None without one. Order and types are part of the promise."""
    ours = [pair for pair in attributes if pair.key.startswith(f"{prefix}.")]
    if not ours:
        return None
    keys = [pair.key.removeprefix(f"{prefix}.") for pair in ours]
    assert len(set(keys)) == len(keys), "each key once"
    assert list(attributes[-len(ours) :]) == ours, "behind everything that came"
    found: dict[str, AnyValue] = {key: pair.value for key, pair in zip(keys, ours, strict=True)}
    told = ["types", "reason"] if "types" in found else []
    identity = ["identity"] if "identity" in found else []
    signals = [key for key in keys if key.startswith("signal.")]
    assert keys == ["action", "score", "mode", *told, *identity, *signals]
    for key, value in found.items():
        kinds = {"score": "double_value", "types": "array_value"}
        kind = "double_value" if key.startswith("signal.") else kinds.get(key, "string_value")
        assert value.WhichOneof("value") == kind, key
    return Verdict(
        found["action"].string_value,
        found["score"].double_value,
        found["mode"].string_value,
        tuple(item.string_value for item in found["types"].array_value.values) if told else (),
        found["reason"].string_value if told else None,
        tuple((key.removeprefix("signal."), found[key].double_value) for key in signals),
        found["identity"].string_value if "identity" in found else None,
    )


class Calls:
    """Makes spans that differ in their ids only as far as they are told to."""

    def __init__(self) -> None:
        self._made = 0

    def at(
        self, time_s: float, *, agent: str | None = "a", session: str | None = "s", **more: Any
    ) -> Span:
        """One call that ends at `time_s`, seconds since 1970. Each has a trace of its own."""
        self._made += 1
        end_ns = round(time_s * SECOND_NS)
        given = {"tool": "t", "end_ns": end_ns, "start_ns": max(end_ns - 1000, 0), **more}
        given.setdefault("trace_id", b"T" + self._made.to_bytes(15, "big"))
        given.setdefault("span_id", b"S" + self._made.to_bytes(7, "big"))
        return tool_span(agent=agent, session=session, **given)

    def many(self, count: int, start_s: float, step_s: float = 0.0, **who: Any) -> list[Span]:
        """`count` calls, `step_s` apart."""
        return [self.at(start_s + i * step_s, **who) for i in range(count)]
